//! How a push reaches a phone, or does not.

use harness::{World, footings, until};
use serde_json::{Value, json};
use shared::domain::Provider;
use simulator::{ApnsReason, FcmCode, Script};

#[tokio::test(flavor = "multi_thread")]
async fn the_preferred_device_rings_alone() {
    for footing in footings() {
        let world = World::start(footing, "preferred").await;
        let old = world.phone("old", Provider::Apns).await;
        let new = world.phone("new", Provider::Fcm).await;
        let device = new.identity().unwrap().device;
        world
            .in_store(
                "PATCH",
                &format!("users/{}", world.user),
                &json!({"preferred_device": device}),
            )
            .await;
        let (push, code) = world.send(&json!({"target": {"mode": "preferred"}})).await;
        let prompt = world.rung(&new, &push).await;
        assert!(
            old.pending().await.unwrap().is_empty(),
            "{footing:?}: not asked"
        );
        assert!(old.fetch(&push).await.is_err());
        world.approve(&new, &prompt, code.as_deref()).await;
        assert_eq!(
            world.ended(&push).await["deliveries"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert_eq!(world.fleet.rings("old", &push), 0);
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_failure_of_the_preferred_device_escalates_at_once() {
    for footing in footings() {
        let world = World::start(footing, "escalate").await;
        let first = world.phone("first", Provider::Apns).await;
        let second = world.phone("second", Provider::Fcm).await;
        world.gateway.script(
            first.push_token().expose(),
            Script::Unregistered { since_ms: None },
        );
        let (push, code) = world
            .send(&json!({"target": {"mode": "preferred", "escalate_after": "60s"}}))
            .await;
        let prompt = world.rung(&second, &push).await;
        world.approve(&second, &prompt, code.as_deref()).await;
        assert_eq!(world.ended(&push).await["state"], "approved", "{footing:?}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_of_the_preferred_device_escalates_after_the_time() {
    for footing in footings() {
        let world = World::start(footing, "silence").await;
        let first = world.phone("first", Provider::Apns).await;
        let second = world.phone("second", Provider::Fcm).await;
        let (push, code) = world
            .send(&json!({"target": {"mode": "preferred", "escalate_after": "2s"}}))
            .await;
        world.rung(&first, &push).await;
        assert_eq!(world.fleet.rings("second", &push), 0, "{footing:?}");
        let prompt = world.rung(&second, &push).await;
        world.approve(&second, &prompt, code.as_deref()).await;
        world.ended(&push).await;
        assert_eq!(
            world.fleet.rings("first", &push),
            1,
            "the first is not woken again"
        );
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_disables_the_address_and_never_the_device() {
    for footing in footings() {
        let world = World::start(footing, "dead").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let google = world.phone("google", Provider::Fcm).await;
        world.gateway.script(
            phone.push_token().expose(),
            Script::Unregistered { since_ms: None },
        );
        world.gateway.script(
            google.push_token().expose(),
            Script::Fcm(FcmCode::Unregistered),
        );
        let (push, code) = world.send(&Value::Null).await;
        for one in [&phone, &google] {
            let failed = world.delivery_is(&push, one, "failed").await;
            assert!(
                failed["reason"]
                    .as_str()
                    .unwrap()
                    .starts_with("address_gone"),
                "{footing:?} {failed}"
            );
        }
        let devices = world
            .in_store(
                "GET",
                &format!("users/{}/devices", world.user),
                &Value::Null,
            )
            .await;
        for device in devices["data"].as_array().unwrap() {
            assert_eq!(
                (&device["state"], &device["push_address"]),
                (&json!("active"), &json!("invalid"))
            );
        }
        // The push still waits to be fetched, and the phone gets a new address without registering again.
        let prompt = phone.pending().await.unwrap().remove(0);
        world.approve(&phone, &prompt, code.as_deref()).await;
        assert_eq!(world.ended(&push).await["state"], "approved");
        phone.rotate_token();
        phone.put_address().await.unwrap();
        let (next, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &next).await;
        world.approve(&phone, &prompt, code.as_deref()).await;
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_fails_is_tried_again_with_the_same_identifiers() {
    for footing in footings() {
        let world = World::start(footing, "flaky").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let token = phone.push_token();
        world
            .gateway
            .script(token.expose(), Script::Flaky { failures: 1 });
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let receipts = world.gateway.receipts_for(token.expose());
        assert_eq!(receipts.len(), 2, "{footing:?}");
        assert_eq!(receipts[0].apns_id, receipts[1].apns_id);
        assert_eq!(receipts[0].collapse_id.as_deref(), Some(push.as_str()));
        // Results are gathered before they are recorded.
        until(20, "both calls are counted", || async {
            let shown = world.delivery(&push, &phone).await.unwrap();
            (shown["attempts"] == 2).then_some(())
        })
        .await;
        world.approve(&phone, &prompt, code.as_deref()).await;
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_ends_the_delivery_before_the_deadline_and_not_the_push() {
    for footing in footings() {
        let world = World::start(footing, "outage").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let google = world.phone("google", Provider::Fcm).await;
        world.gateway.set_outage(true);
        let (push, code) = world.send(&json!({"expires_in": "30s"})).await;
        for one in [&phone, &google] {
            let failed = world.delivery_is(&push, one, "failed").await;
            assert!(
                failed["reason"]
                    .as_str()
                    .unwrap()
                    .starts_with("provider_unavailable"),
                "{footing:?} {failed}"
            );
        }
        let tried = world.gateway.counts().requests;
        assert!((2..=8).contains(&tried), "{tried} calls");
        let shown = world.show(&push).await;
        assert_eq!(shown["state"], "pending", "the device can still fetch");
        let prompt = google.pending().await.unwrap().remove(0);
        world.approve(&google, &prompt, code.as_deref()).await;
        assert_eq!(world.ended(&push).await["state"], "approved");
        let last = world
            .gateway
            .journal()
            .iter()
            .map(|r| r.at_ms)
            .max()
            .unwrap();
        assert!(last < shared::clock::Clock::now(&shared::clock::SystemClock));
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_fails_is_paused_and_burns_no_device() {
    for footing in footings() {
        let world = World::start(footing, "paused").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let token = phone.push_token();
        world.gateway.script(
            token.expose(),
            Script::Apns(ApnsReason::InvalidProviderToken),
        );
        let (push, code) = world.send(&Value::Null).await;
        world.delivery_is(&push, &phone, "retry_wait").await;
        world.gateway.script(token.expose(), Script::Ok);
        let prompt = world.rung(&phone, &push).await;
        world.approve(&phone, &prompt, code.as_deref()).await;
        let devices = world
            .in_store(
                "GET",
                &format!("users/{}/devices", world.user),
                &Value::Null,
            )
            .await;
        assert_eq!(devices["data"][0]["push_address"], "valid", "{footing:?}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_device_the_push_fails_or_is_refused_when_asked_for() {
    for footing in footings() {
        let world = World::start(footing, "none").await;
        let (push, _) = world.send(&Value::Null).await;
        let ended = world.ended(&push).await;
        assert_eq!(
            (&ended["state"], &ended["reason"]),
            (&json!("failed"), &json!("no_devices")),
            "{footing:?}"
        );
        let checked = World::confirm(&json!({"require_device": true}));
        let refused = world.reply("POST", "pushes", &checked, &[]).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["code"]),
            (422, &json!("no_devices"))
        );
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_device_is_neither_asked_nor_believed() {
    for footing in footings() {
        let world = World::start(footing, "blocked").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let other = world.phone("google", Provider::Fcm).await;
        let (push, _) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let device = phone.identity().unwrap().device;
        let path = format!("users/{}/devices/{device}", world.user);
        world
            .in_store("PATCH", &path, &json!({"state": "revoked"}))
            .await;
        let refused = phone
            .answer(&prompt, &simulator::phone::Decision::Deny { reason: None })
            .await
            .unwrap();
        assert_eq!(refused.status, 401, "{footing:?}: revoked at once");
        let back = world
            .reply("PATCH", &path, &json!({"state": "active"}), &[])
            .await;
        assert_eq!(
            (back.status.as_u16(), &back.body["code"]),
            (409, &json!("wrong_state"))
        );
        let (next, _) = world.send(&Value::Null).await;
        world.rung(&other, &next).await;
        assert!(world.delivery(&next, &phone).await.is_none());
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_to_a_provider_is_a_wake_up_and_holds_no_content() {
    for footing in footings() {
        let world = World::start(footing, "blind").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let google = world.phone("google", Provider::Fcm).await;
        let (push, code) = world
            .send(&json!({"title": "canary-title", "message": "canary-message", "details": [{"label": "Who", "value": "canary-detail"}]}))
            .await;
        let prompt = world.rung(&phone, &push).await;
        world.rung(&google, &push).await;
        assert_eq!(prompt.shown["message"], "canary-message");
        world.approve(&phone, &prompt, code.as_deref()).await;
        world.ended(&push).await;
        let code = code.unwrap();
        let receipts = until(5, "receipts", || async {
            Some(world.gateway.journal()).filter(|all| all.len() >= 2)
        })
        .await;
        for receipt in receipts {
            let body = receipt.body.expose();
            assert!(
                !body.contains("canary") && !body.contains(&code),
                "{footing:?} {body}"
            );
        }
        let tokens = [phone.push_token(), google.push_token()];
        for (role, process) in &world.processes {
            let said = process.said();
            assert!(
                !said.contains("canary") && !said.contains(&code),
                "{footing:?} {role}"
            );
            assert!(
                tokens.iter().all(|token| !said.contains(token.expose())),
                "{footing:?} {role}"
            );
        }
        world.end().await;
    }
}
