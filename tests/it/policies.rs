//! What push policies limit, end to end: how often a phone rings, and what becomes of what is kept back.

use futures_util::future::join_all;
use harness::{Footing, Tap, World, footings};
use serde_json::{Value, json};
use shared::domain::Provider;
use simulator::phone::Decision;
use std::collections::{BTreeMap, BTreeSet};

/// Every push of the store, oldest last.
async fn listed(world: &World) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("pushes?limit=200&cursor={cursor}");
        let page = world.in_store("GET", &path, &Value::Null).await;
        all.extend(page["data"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return all,
        }
    }
}

fn by_reason(pushes: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for push in pushes {
        let reason = push["reason"].as_str().unwrap().to_owned();
        *counts.entry(reason).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn must_09_39_a_phone_that_is_bombed_rings_three_times_and_every_suppression_is_told() {
    const BOMBS: usize = 1_000;
    for footing in footings() {
        let world = World::start(footing, "bomb").await;
        world.policy(&Value::Null).await;
        let phone = world.phone("apple", Provider::Apns).await;
        let exchange = format!("{}.status.ext", world.prefix);
        let mut tap = match footing {
            Footing::Embedded => None,
            Footing::Servers => {
                let name = format!("ext.{}.tap", world.prefix);
                Some(Tap::open(&world.amqp_url(), &name, Some(&exchange)).await)
            }
        };
        let body = World::confirm(&Value::Null);
        let began = std::time::Instant::now();
        for _ in 0..BOMBS / 50 {
            let bombs = (0..50).map(|_| world.reply("POST", "pushes", &body, &[]));
            let sent = join_all(bombs).await;
            assert!(sent.iter().all(|one| one.status.as_u16() == 202));
        }
        let took = began.elapsed().as_secs();
        assert!(
            took < 60,
            "{footing:?}: a minute is what is counted: {took}"
        );
        let pushes = listed(&world).await;
        assert_eq!(pushes.len(), BOMBS, "{footing:?}");
        let open: Vec<_> = pushes
            .iter()
            .filter(|push| push["ended_at"].is_null())
            .collect();
        let [open] = open.as_slice() else {
            panic!("{footing:?}: one prompt stays: {open:?}");
        };
        let counts = by_reason(&pushes);
        assert_eq!(
            (counts["throttled"], counts["superseded"]),
            (BOMBS - 3, 2),
            "{footing:?}"
        );
        // The one that stays can be answered, and then the phone may be asked again.
        let push = open["id"].as_str().unwrap().parse().unwrap();
        let prompt = world.rung(&phone, &push).await;
        let rings = world.gateway.counts().requests;
        assert!((1..=3).contains(&rings), "{footing:?}: {rings}");
        if let Some(tap) = &mut tap {
            let end = |event: &Value| {
                let ended = !event["type"].as_str().unwrap().contains(".device_");
                ended.then(|| event["subject"].as_str().unwrap().to_owned())
            };
            let told = |seen: &[(Value, Option<String>)]| {
                let ends = seen.iter().filter_map(|(event, _)| end(event));
                ends.collect::<BTreeSet<_>>().len()
            };
            let seen = tap.events(|seen| told(seen) == BOMBS - 1).await;
            assert_eq!(told(&seen), BOMBS - 1, "an event for each that has ended");
        }
        let no = Decision::Deny { reason: None };
        assert_eq!(phone.answer(&prompt, &no).await.unwrap().status, 200);
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_prompt_takes_the_older_one_off_the_phone_and_after_a_denial_it_is_quiet() {
    for footing in footings() {
        let world = World::start(footing, "one-open").await;
        let shown = world
            .policy(&json!({"max_prompts": 100, "cooldown_after_denial": "3600s"}))
            .await;
        assert_eq!(
            (&shown["open_prompts"], &shown["cooldown_after_denial"]),
            (&json!("supersede"), &json!("3600s"))
        );
        let phone = world.phone("apple", Provider::Apns).await;
        let (first, code) = world.send(&Value::Null).await;
        let older = world.rung(&phone, &first).await;
        let (second, _) = world.send(&Value::Null).await;
        let ended = world.ended(&first).await;
        assert_eq!(
            (&ended["state"], &ended["reason"]),
            (&json!("cancelled"), &json!("superseded")),
            "{footing:?}"
        );
        assert_eq!(ended["deliveries"][0]["state"], "withdrawn");
        let late = phone.answer(&older, &Decision::Approve { code }).await;
        assert_eq!(late.unwrap().body["state"], "cancelled");
        let newer = world.rung(&phone, &second).await;
        assert_eq!(phone.pending().await.unwrap().len(), 1);
        let no = Decision::Deny { reason: None };
        assert_eq!(phone.answer(&newer, &no).await.unwrap().status, 200);
        let (third, _) = world.send(&Value::Null).await;
        let ended = world.show(&third).await;
        assert_eq!(
            (&ended["state"], &ended["reason"], &ended["deliveries"]),
            (&json!("failed"), &json!("cooldown"), &json!([])),
            "{footing:?}: at once, and no worker was asked"
        );
        assert!(phone.pending().await.unwrap().is_empty());
        world
            .policy(&json!({"open_prompts": "refuse", "cooldown_after_denial": "0s"}))
            .await;
        let (fourth, _) = world.send(&Value::Null).await;
        let body = World::confirm(&Value::Null);
        let refused = world.reply("POST", "pushes", &body, &[]).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["code"]),
            (409, &json!("prompt_open")),
            "{footing:?}"
        );
        assert!(!refused.body.to_string().contains(fourth.as_str()));
        for (field, value) in [
            ("open_prompts", json!("some")),
            ("cooldown_after_denial", json!("3601s")),
            ("cooldown_after_denial", json!("1h")),
        ] {
            let policy = json!({"name": "x", field: value});
            let path = format!("push-policies/{}", harness::RP);
            let refused = world.reply("PUT", &path, &policy, &[]).await;
            let pointers: Vec<_> = refused.body["errors"].as_array().unwrap().clone();
            let named = pointers
                .iter()
                .any(|fault| fault["pointer"] == format!("/{field}"));
            assert!(named, "{footing:?}: {}", refused.body);
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fraud_report_locks_the_initiator_and_the_user_can_still_sign_in() {
    for footing in footings() {
        let world = World::start(footing, "fraud").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let theirs = json!({"initiator": "session of eve"});
        let (push, _) = world.send(&theirs).await;
        let prompt = world.rung(&phone, &push).await;
        assert!(!prompt.shown.to_string().contains("eve"), "{footing:?}");
        let fraud = Decision::Deny {
            reason: Some("fraud_reported".to_owned()),
        };
        assert_eq!(phone.answer(&prompt, &fraud).await.unwrap().status, 200);
        let again = World::confirm(&theirs);
        let refused = world.reply("POST", "pushes", &again, &[]).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["code"]),
            (409, &json!("initiator_locked")),
            "{footing:?}"
        );
        let (own, code) = world.send(&json!({"initiator": "session of ada"})).await;
        let prompt = world.rung(&phone, &own).await;
        world.approve(&phone, &prompt, code.as_deref()).await;
        let named = "fraud-locks?initiator=session%20of%20eve";
        let locks = world.in_store("GET", named, &Value::Null).await;
        let lock = &locks["data"][0];
        assert_eq!(
            (&lock["of"], &lock["push"], &lock["user"]),
            (&json!("initiator"), &json!(push), &json!(world.user))
        );
        let path = format!("fraud-locks/{}", lock["id"].as_str().unwrap());
        let lifted = world.reply("DELETE", &path, &Value::Null, &[]).await;
        assert_eq!(lifted.status.as_u16(), 204);
        let lifted = world.reply("DELETE", &path, &Value::Null, &[]).await;
        assert_eq!(lifted.status.as_u16(), 404);
        world.send(&theirs).await;
        world.end().await;
    }
}
