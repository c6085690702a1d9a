//! A user's devices look after each other: one lets another in, one removes another, and all others are told.

use harness::{World, footings, until};
use serde_json::{Value, json};
use shared::domain::{NoticeWord, Provider};
use simulator::phone::{Error, Phone};
use std::time::{Duration, Instant};

/// The words of the notices that wait for a phone, about another one.
async fn told(phone: &Phone, about: &Phone) -> Vec<NoticeWord> {
    let about = about.identity().unwrap().device;
    let notices = phone.notices().await.unwrap();
    let mine = notices.iter().filter(|one| one.device == about);
    mine.map(|one| one.what).collect()
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(Error::Refused { status, .. }) => assert_eq!(status.as_u16(), 401),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_40_a_device_is_added_and_removed_by_another_ones_proof_and_the_others_are_told() {
    for footing in footings() {
        let world = World::start(footing, "siblings").await;
        let first = world.phone("first", Provider::Apns).await;
        let second = Phone::new(Provider::Fcm, "second");
        let link = world.reachable(first.invite().await.unwrap());
        second.enrol(&link).await.unwrap();
        world.fleet.add(&second, simulator::Behaviour::Manual);
        let third = world.phone("third", Provider::Apns).await;
        assert_eq!(
            told(&first, &second).await,
            [NoticeWord::Added],
            "{footing:?}"
        );
        assert_eq!(told(&first, &third).await, [NoticeWord::Added]);
        assert_eq!(told(&second, &third).await, [NoticeWord::Added]);
        assert_eq!(
            third.notices().await.unwrap(),
            [],
            "the new one is not told of itself"
        );
        // Seen is seen; of another device nothing can be taken away.
        let notice = first.notices().await.unwrap().pop().unwrap().id;
        assert!(second.notice_seen(&notice).await.is_err());
        first.notice_seen(&notice).await.unwrap();
        assert_eq!(first.notices().await.unwrap().len(), 1);

        let (push, _) = world.send(&Value::Null).await;
        world.rung(&second, &push).await;
        let open = world.reachable(second.invite().await.unwrap());
        let gone = second.identity().unwrap().device;
        first.revoke(&gone).await.unwrap();
        first.revoke(&gone).await.unwrap();
        refused(second.pending().await);
        refused(second.fetch(&push).await);
        refused(second.put_address().await);
        refused(second.invite().await);
        refused(second.notices().await);
        refused(second.revoke(&first.identity().unwrap().device).await);
        let ended = world.delivery(&push, &second).await.unwrap();
        assert_eq!(
            (&ended["state"], &ended["reason"]),
            (&json!("withdrawn"), &json!("device_revoked"))
        );
        assert_eq!(
            world.show(&push).await["state"],
            "pending",
            "the others are still asked"
        );
        let late = Phone::new(Provider::Apns, "late");
        let (status, body) = late
            .send_enrolment(&open, &late.enrolment(&open))
            .await
            .unwrap();
        assert_eq!(
            (status, &body["code"]),
            (422, &json!("enrolment_refused")),
            "{footing:?}: its codes died with it"
        );
        assert_eq!(told(&third, &second).await, [NoticeWord::Revoked]);
        // The last thing a device can do is to remove itself.
        let own = third.identity().unwrap().device;
        third.revoke(&own).await.unwrap();
        refused(third.pending().await);
        assert_eq!(
            told(&first, &third).await,
            [NoticeWord::Revoked, NoticeWord::Added]
        );
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_40_nobody_removes_a_device_of_somebody_else() {
    for footing in footings() {
        let world = World::start(footing, "foreign-device").await;
        let mine = world.phone("mine", Provider::Apns).await;
        let bob = world
            .in_store("POST", "users", &json!({"external_id": "bob"}))
            .await;
        let path = format!("users/{}/enrolment-codes", bob["id"].as_str().unwrap());
        let made = world
            .in_store("POST", &path, &json!({"relying_party": harness::RP}))
            .await;
        let link = world.reachable(made["link"].as_str().unwrap().parse().unwrap());
        let bobs = Phone::new(Provider::Apns, "bobs");
        bobs.enrol(&link).await.unwrap();
        // The same person's app of another relying party is somebody else too.
        let link = world
            .enrolment_link(&json!({"relying_party": "bank"}))
            .await;
        let bank = Phone::new(Provider::Apns, "bank");
        bank.enrol(&link).await.unwrap();
        let device = mine.identity().unwrap().device;
        for stranger in [&bobs, &bank] {
            match stranger.revoke(&device).await {
                Err(Error::Refused { status, .. }) => {
                    assert_eq!(status.as_u16(), 404, "{footing:?}");
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(stranger.notices().await.unwrap(), []);
        }
        assert_eq!(mine.notices().await.unwrap(), []);
        mine.pending().await.unwrap();
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_40_a_new_push_address_and_a_block_are_told_once_and_pile_up_nowhere() {
    for footing in footings() {
        let world = World::start(footing, "told-once").await;
        let first = world.phone("first", Provider::Apns).await;
        let second = world.phone("second", Provider::Fcm).await;
        for notice in first.notices().await.unwrap() {
            first.notice_seen(&notice.id).await.unwrap();
        }
        // An app tells its address at every start: that is no news.
        second.put_address().await.unwrap();
        assert_eq!(first.notices().await.unwrap(), [], "{footing:?}");
        for _ in 0..20 {
            second.rotate_token();
            second.put_address().await.unwrap();
        }
        assert_eq!(
            told(&first, &second).await,
            [NoticeWord::AddressChanged],
            "{footing:?}"
        );
        let path = format!(
            "users/{}/devices/{}",
            world.user,
            second.identity().unwrap().device
        );
        for state in ["blocked", "active", "blocked"] {
            world
                .in_store("PATCH", &path, &json!({"state": state}))
                .await;
        }
        refused(second.put_address().await);
        let mut words = told(&first, &second).await;
        words.sort_by_key(|word| word.as_str());
        let all = [
            NoticeWord::AddressChanged,
            NoticeWord::Blocked,
            NoticeWord::Unblocked,
        ];
        assert_eq!(words, all, "{footing:?}");
        assert_eq!(second.identity().unwrap().store, world.store);
        world.end().await;
    }
}

/// No process keeps a device's state: what one has written, every other one reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_refused_by_every_process_at_once() {
    for footing in footings() {
        let world = World::start(footing, "revoked-everywhere").await;
        let phone = world.phone("phone", Provider::Apns).await;
        let other = world.another_api().await;
        let address = other
            .as_ref()
            .map_or(world.address(), |(_, address)| address);
        let elsewhere = Phone::load(phone.save()).unwrap();
        let identity = phone.identity().unwrap();
        elsewhere.moved(address);
        // Both processes know it well.
        for _ in 0..3 {
            phone.pending().await.unwrap();
            elsewhere.pending().await.unwrap();
        }
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let path = format!("users/{}/devices/{}", world.user, identity.device);
        for (state, reached) in [("blocked", false), ("active", true), ("revoked", false)] {
            world
                .in_store("PATCH", &path, &json!({"state": state}))
                .await;
            let began = Instant::now();
            for one in [&phone, &elsewhere] {
                if reached {
                    one.pending().await.unwrap();
                } else {
                    refused(one.pending().await);
                    refused(one.fetch(&push).await);
                    refused(one.put_address().await);
                    let yes = simulator::phone::Decision::Approve { code: code.clone() };
                    assert_eq!(
                        one.answer(&prompt, &yes).await.unwrap().status,
                        401,
                        "{footing:?}"
                    );
                }
            }
            assert!(began.elapsed() < Duration::from_secs(5), "{footing:?}");
        }
        assert_eq!(
            world.delivery(&push, &phone).await.unwrap()["state"],
            "withdrawn"
        );
        if let Some((mut process, _)) = other {
            assert!(process.terminate().await.success());
        }
        // A push that comes later asks nobody.
        let (push, _) = world.send(&Value::Null).await;
        until(10, "failed", || async {
            (world.show(&push).await["reason"] == "no_devices").then_some(())
        })
        .await;
        world.end().await;
    }
}
