//! How a push ends.

use harness::{World, footings};
use serde_json::{Value, json};
use shared::domain::Provider;
use simulator::phone::Decision;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn all_devices_ring_the_first_answer_wins_and_the_others_are_withdrawn() {
    for footing in footings() {
        let world = World::start(footing, "all").await;
        let apple = world.phone("apple", Provider::Apns).await;
        let google = world.phone("google", Provider::Fcm).await;
        let (push, code) = world.send(&json!({"correlation_id": "order 7"})).await;
        let (prompt, _) = tokio::join!(world.rung(&apple, &push), world.rung(&google, &push));
        assert_eq!(prompt.shown["title"], "Sign in to Payroll");
        assert!(prompt.match_required);
        let waiting = world.ended(&push);
        let approving = async {
            let answer = world.approve(&apple, &prompt, code.as_deref()).await;
            assert_eq!(answer["state"], "approved", "{footing:?}");
        };
        let (ended, ()) = tokio::join!(waiting, approving);
        assert_eq!(
            (&ended["state"], &ended["reason"]),
            (&json!("approved"), &json!("user_approved"))
        );
        assert_eq!(ended["device"], apple.identity().unwrap().device.as_str());
        assert_eq!(ended["correlation_id"], "order 7");
        let states: Vec<_> = ended["deliveries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d["state"].clone())
            .collect();
        assert!(
            states.contains(&json!("answered")) && states.contains(&json!("withdrawn")),
            "{ended}"
        );
        assert!(
            google.pending().await.unwrap().is_empty(),
            "the card is gone"
        );
        assert_eq!(world.fleet.missed(), 0);
        for phone in ["apple", "google"] {
            assert_eq!(world.fleet.rings(phone, &push), 1, "{footing:?} {phone}");
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_is_signed_terminal_and_never_sent_again() {
    for footing in footings() {
        let world = World::start(footing, "deny").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let fraud = Decision::Deny {
            reason: Some("fraud_reported".to_owned()),
        };
        assert_eq!(phone.answer(&prompt, &fraud).await.unwrap().status, 200);
        let ended = world.ended(&push).await;
        assert_eq!(
            (&ended["state"], &ended["reason"]),
            (&json!("denied"), &json!("fraud_reported")),
            "{footing:?}"
        );
        let yes = Decision::Approve { code };
        let late = phone.answer(&prompt, &yes).await.unwrap();
        assert_eq!(
            (late.status, &late.body["code"], &late.body["state"]),
            (409, &json!("push_ended"), &json!("denied"))
        );
        assert_eq!(world.fleet.rings("apple", &push), 1);
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_proof_again_gets_the_stored_outcome_and_another_one_a_conflict() {
    for footing in footings() {
        let world = World::start(footing, "twice").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let yes = phone
            .proof(&prompt, &Decision::Approve { code: code.clone() })
            .unwrap();
        let first = phone.send_proof(&push, &yes).await.unwrap();
        let again = phone.send_proof(&push, &yes).await.unwrap();
        assert_eq!(
            (first.status, &first.body),
            (200, &again.body),
            "{footing:?}"
        );
        let other = phone.proof(&prompt, &Decision::Approve { code }).unwrap();
        assert_eq!(phone.send_proof(&push, &other).await.unwrap().status, 409);
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_push_expires_and_a_late_answer_is_refused() {
    for footing in footings() {
        let world = World::start(footing, "expire").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (push, code) = world.send(&json!({"expires_in": "10s"})).await;
        let prompt = world.rung(&phone, &push).await;
        let ended = world.ended(&push).await;
        assert_eq!(
            (&ended["state"], &ended["reason"]),
            (&json!("expired"), &json!("no_response")),
            "{footing:?}"
        );
        assert_eq!(ended["deliveries"][0]["state"], "expired");
        let late = phone
            .answer(&prompt, &Decision::Approve { code })
            .await
            .unwrap();
        assert_eq!(
            (late.status, &late.body["code"]),
            (409, &json!("push_expired"))
        );
        assert_eq!(world.show(&push).await["state"], "expired");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_push_leaves_the_phone_and_takes_no_answer() {
    for footing in footings() {
        let world = World::start(footing, "cancel").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        assert_eq!(phone.pending().await.unwrap().len(), 1);
        let cancelled = world
            .in_store("POST", &format!("pushes/{push}/cancel"), &Value::Null)
            .await;
        assert_eq!(
            (&cancelled["state"], &cancelled["reason"]),
            (&json!("cancelled"), &json!("by_sender")),
            "{footing:?}"
        );
        assert!(phone.pending().await.unwrap().is_empty());
        let late = phone
            .answer(&prompt, &Decision::Approve { code })
            .await
            .unwrap();
        assert_eq!(
            (late.status, &late.body["state"]),
            (409, &json!("cancelled"))
        );
        let again = world
            .in_store("POST", &format!("pushes/{push}/cancel"), &Value::Null)
            .await;
        assert_eq!(again["state"], "cancelled", "twice is no error");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_05_34_proofs_that_do_not_hold_are_refused_alike_and_wrong_codes_are_counted() {
    for footing in footings() {
        let world = World::start(footing, "proofs").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let other = world.phone("google", Provider::Fcm).await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let right = Decision::Approve { code: code.clone() };
        let claims = phone.proof_claims(&prompt, &right).unwrap();
        let mut bad = Vec::new();
        for (name, value) in [
            ("iss", json!(other.identity().unwrap().device)),
            ("aud", json!("sto_00000000000000000000000000")),
            ("sub", json!("psh_00000000000000000000000000")),
            ("nonce", json!("x")),
            ("kind", json!("generic")),
            ("content_hash", json!("x")),
            ("decision", json!("maybe")),
            ("ver", json!(2)),
            ("uv", json!("thumb")),
        ] {
            let mut changed = claims.clone();
            changed[name] = value;
            bad.push(phone.sign_proof(&changed).unwrap());
        }
        // Signed by a device that is not the one answering.
        bad.push(other.sign_proof(&claims).unwrap());
        bad.push("not.a.proof".to_owned());
        let mut bodies = Vec::new();
        for proof in &bad {
            let refused = phone.send_proof(&push, proof).await.unwrap();
            assert_eq!(refused.status, 422, "{footing:?} {proof}");
            bodies.push(refused.body);
        }
        assert!(
            bodies.windows(2).all(|two| two[0] == two[1]),
            "one answer for every fault: {bodies:?}"
        );
        let wrong = if code.as_deref() == Some("000000") {
            "000001"
        } else {
            "000000"
        };
        let wrong = Decision::Approve {
            code: Some(wrong.to_owned()),
        };
        for _ in 0..4 {
            assert_eq!(phone.answer(&prompt, &wrong).await.unwrap().status, 422);
        }
        assert_eq!(
            world.show(&push).await["state"],
            "pending",
            "unharmed so far"
        );
        assert_eq!(phone.answer(&prompt, &wrong).await.unwrap().status, 422);
        let ended = world.ended(&push).await;
        assert_eq!(
            (&ended["state"], &ended["reason"]),
            (&json!("failed"), &json!("code_attempts"))
        );
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_devices_that_answer_at_once_one_wins() {
    for footing in footings() {
        let world = World::start(footing, "race").await;
        let apple = world.phone("apple", Provider::Apns).await;
        let google = world.phone("google", Provider::Fcm).await;
        for _ in 0..10 {
            let (push, code) = world.send(&Value::Null).await;
            let (one, two) = tokio::join!(world.rung(&apple, &push), world.rung(&google, &push));
            let yes = Decision::Approve { code };
            let no = Decision::Deny { reason: None };
            let (yes, no) = tokio::join!(apple.answer(&one, &yes), google.answer(&two, &no));
            let (yes, no) = (yes.unwrap(), no.unwrap());
            let mut statuses = [yes.status, no.status];
            statuses.sort_unstable();
            assert_eq!(statuses, [200, 409], "{footing:?}");
            let state = world.ended(&push).await["state"].clone();
            assert_eq!(state == "approved", yes.status == 200);
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_is_told_within_a_second_by_long_poll_and_by_events() {
    for footing in footings() {
        let world = World::start(footing, "wait").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let none = world
            .reply(
                "GET",
                &format!("pushes/{push}"),
                &Value::Null,
                &[("prefer", "wait=1")],
            )
            .await;
        assert_eq!(none.status.as_u16(), 202, "still open after the wait");
        let waits: Vec<_> = (0..50).map(|_| world.ended(&push)).collect();
        let all = futures_util::future::join_all(waits);
        let approve = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            world.approve(&phone, &prompt, code.as_deref()).await;
            std::time::Instant::now()
        };
        let told = async {
            let ended = all.await;
            (ended, std::time::Instant::now())
        };
        let ((ended, told), answered) = tokio::join!(told, approve);
        assert!(
            ended.iter().all(|one| one["state"] == "approved"),
            "{footing:?}"
        );
        assert!(
            told.duration_since(answered) < Duration::from_secs(5),
            "by an event, not by the end of the wait"
        );
        let follow = format!("/v1/stores/{}/pushes/{push}/events", world.store);
        let reply = world
            .client
            .call("GET", &follow, None, &[], Duration::from_secs(20))
            .await
            .unwrap();
        assert_eq!(
            reply.status.as_u16(),
            200,
            "the stream of an ended push says so and closes"
        );
        world.end().await;
    }
}
