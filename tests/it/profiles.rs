//! Profiles, payments, what an approval is worth, and its one use.

use futures_util::future::join_all;
use harness::{RP, World, footings};
use serde_json::{Value, json};
use shared::domain::Provider;
use shared::id::PushId;
use simulator::phone::{Decision, Phone, Prompt};

fn payment(amount: &str) -> Value {
    json!({"amount": amount, "currency": "EUR", "payee": {"name": "Cork Cycles", "account": "IE29AIBK93115212345678"}})
}

/// Refused with 422: the pointers of the faults.
async fn faults(world: &World, more: &Value) -> Vec<String> {
    let body = World::confirm(more);
    let refused = world.reply("POST", "pushes", &body, &[]).await;
    assert_eq!(refused.status.as_u16(), 422, "{more}: {}", refused.body);
    let faults = refused.body["errors"].as_array().cloned();
    let pointer = |fault: &Value| fault["pointer"].as_str().unwrap().to_owned();
    faults.unwrap_or_default().iter().map(pointer).collect()
}

/// Answers with claims changed; the status.
async fn answer_with(
    phone: &Phone,
    prompt: &Prompt,
    code: Option<&str>,
    change: impl FnOnce(&mut Value),
) -> u16 {
    let yes = Decision::Approve {
        code: code.map(str::to_owned),
    };
    let mut claims = phone.proof_claims(prompt, &yes).unwrap();
    change(&mut claims);
    let proof = phone.sign_proof(&claims).unwrap();
    let push: PushId = claims["sub"].as_str().unwrap().parse().unwrap();
    phone.send_proof(&push, &proof).await.unwrap().status
}

async fn appkey(world: &World, verification: &str) {
    let policy = json!({"platforms": ["ios", "android"], "max_devices": 10, "user_verification": verification});
    world
        .in_store("PUT", &format!("appkey-policies/{RP}"), &policy)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn must_01_03_04_11_12_nist_wants_the_code_and_an_approval_says_what_it_is_worth() {
    for footing in footings() {
        let world = World::start(footing, "nist").await;
        let set = world
            .policy(&json!({"profile": "nist", "max_prompts": 100, "cooldown_after_denial": "0s"}))
            .await;
        assert_eq!(set["profile"], "nist");
        let phone = world.phone("apple", Provider::Apns).await;
        assert_eq!(
            faults(&world, &json!({"match_code": false})).await,
            ["/match_code"],
            "{footing:?}: a bare approve is not to be had"
        );
        assert_eq!(
            faults(&world, &json!({"expires_in": "601s"})).await,
            ["/expires_in"]
        );
        let definition =
            json!({"name": "onboard", "version": 1, "start_url": "https://bank.example/start"});
        world
            .in_store("POST", "process-definitions", &definition)
            .await;
        let process = json!({"kind": "process", "process": {"definition": "onboard"}});
        assert_eq!(faults(&world, &process).await, ["/kind"]);
        let (push, code) = world.send(&Value::Null).await;
        let code = code.unwrap();
        assert!(code.len() == 6 && code.bytes().all(|b| b.is_ascii_digit()));
        let prompt = world.rung(&phone, &push).await;
        assert!(prompt.match_required && !prompt.shown.to_string().contains(&code));
        let bare = answer_with(&phone, &prompt, None, |_| ()).await;
        assert_eq!(bare, 422, "{footing:?}");
        assert_eq!(world.show(&push).await["state"], "pending");
        world.approve(&phone, &prompt, Some(&code)).await;
        let ended = world.ended(&push).await;
        // The device says that it verified its user; nobody asked it to when it was registered.
        let single = json!({"factors": "single", "phishing_resistant": false});
        assert_eq!(
            (&ended["profile"], &ended["assurance"]),
            (&json!("nist"), &single),
            "{footing:?}"
        );
        appkey(&world, "device").await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        world.approve(&phone, &prompt, code.as_deref()).await;
        assert_eq!(world.show(&push).await["assurance"], single);
        let bound = world.phone("google", Provider::Fcm).await;
        appkey(&world, "none").await;
        for (uv, factors) in [("biometric", "multi"), ("none", "single")] {
            let (push, code) = world.send(&Value::Null).await;
            let prompt = world.rung(&bound, &push).await;
            let status = answer_with(&bound, &prompt, code.as_deref(), |claims| {
                claims["uv"] = json!(uv);
            });
            assert_eq!(status.await, 200);
            let worth = world.show(&push).await["assurance"].clone();
            assert_eq!(
                worth,
                json!({"factors": factors, "phishing_resistant": false}),
                "{footing:?} {uv}"
            );
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_28_29_30_psd2_shows_amount_and_payee_and_the_proof_is_for_them_alone() {
    for footing in footings() {
        let world = World::start(footing, "psd2").await;
        world
            .policy(&json!({"profile": "psd2", "max_prompts": 100, "open_prompts": "many", "cooldown_after_denial": "0s"}))
            .await;
        let phone = world.phone("apple", Provider::Apns).await;
        assert_eq!(
            faults(&world, &Value::Null).await,
            ["/payment"],
            "{footing:?}"
        );
        for (bad, pointer) in [
            (payment("12,50"), "/payment/amount"),
            (payment("-1"), "/payment/amount"),
            (payment("0012"), "/payment/amount"),
            (
                json!({"amount": "1", "currency": "euro", "payee": {"name": "x", "account": "y"}}),
                "/payment/currency",
            ),
            (json!({"amount": "1", "currency": "EUR"}), "/payment/payee"),
            (
                json!({"amount": 1, "currency": "EUR", "payee": {"name": "x", "account": "y"}}),
                "/payment/amount",
            ),
        ] {
            assert_eq!(
                faults(&world, &json!({"payment": bad})).await,
                [pointer],
                "{footing:?}"
            );
        }
        let (push, code) = world.send(&json!({"payment": payment("12.50")})).await;
        let prompt = world.rung(&phone, &push).await;
        assert_eq!(prompt.shown["payment"], payment("12.50"), "{footing:?}");
        let (other, other_code) = world.send(&json!({"payment": payment("12.51")})).await;
        let other_prompt = world.rung(&phone, &other).await;
        // A cent more is another push, another nonce, another hash: neither the proof nor its parts fit.
        let hash = phone
            .proof_claims(
                &other_prompt,
                &Decision::Approve {
                    code: other_code.clone(),
                },
            )
            .unwrap()["content_hash"]
            .clone();
        let swapped = answer_with(&phone, &prompt, code.as_deref(), |claims| {
            claims["content_hash"] = hash;
        });
        assert_eq!(swapped.await, 422);
        let moved = answer_with(&phone, &prompt, code.as_deref(), |claims| {
            claims["sub"] = json!(other);
        });
        assert_eq!(moved.await, 422);
        world.approve(&phone, &prompt, code.as_deref()).await;
        assert_eq!(world.ended(&push).await["state"], "approved");
        assert_eq!(world.show(&other).await["state"], "pending");
        // Without a code the device must have verified its user.
        let (push, code) = world
            .send(&json!({"payment": payment("1"), "match_code": false}))
            .await;
        assert_eq!(code, None);
        let prompt = world.rung(&phone, &push).await;
        let unverified = answer_with(&phone, &prompt, None, |claims| claims["uv"] = json!("none"));
        assert_eq!(unverified.await, 422, "{footing:?}");
        world.approve(&phone, &prompt, None).await;
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_38_a_request_asks_for_more_than_the_policy_and_never_for_less() {
    for footing in footings() {
        let world = World::start(footing, "tighten").await;
        let bare = json!({"profile": "nist", "match_code": false});
        assert_eq!(faults(&world, &bare).await, ["/match_code"], "{footing:?}");
        let (push, code) = world.send(&json!({"profile": "nist"})).await;
        assert!(code.is_some());
        assert_eq!(world.show(&push).await["profile"], "nist");
        world
            .policy(&json!({"profile": "psd2", "max_prompts": 100}))
            .await;
        for asked in ["default", "nist"] {
            let body = World::confirm(&json!({"profile": asked, "payment": payment("1")}));
            let refused = world.reply("POST", "pushes", &body, &[]).await;
            assert_eq!(
                (
                    refused.status.as_u16(),
                    &refused.body["code"],
                    &refused.body["profile"]
                ),
                (422, &json!("profile_weaker"), &json!("psd2")),
                "{footing:?} {asked}"
            );
        }
        world
            .send(&json!({"profile": "psd2", "payment": payment("1")}))
            .await;
        world.end().await;
    }
}

async fn consume(world: &World, push: &PushId, action: &Value) -> (u16, String) {
    let path = format!("pushes/{push}/consume");
    let reply = world.reply("POST", &path, action, &[]).await;
    let code = reply.body["code"].as_str().unwrap_or_default().to_owned();
    (reply.status.as_u16(), code)
}

#[tokio::test(flavor = "multi_thread")]
async fn must_36_an_approval_is_used_once_and_for_what_was_approved() {
    for footing in footings() {
        let world = World::start(footing, "consume").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (push, code) = world.send(&json!({"payment": payment("12.50")})).await;
        let details = json!([{"label": "Place", "value": "Cork"}]);
        let right = json!({"payment": payment("12.50"), "details": details});
        let (status, word) = consume(&world, &push, &right).await;
        assert_eq!(
            (status, word.as_str()),
            (409, "not_approved"),
            "{footing:?}"
        );
        let prompt = world.rung(&phone, &push).await;
        world.approve(&phone, &prompt, code.as_deref()).await;
        let mut payee = right.clone();
        payee["payment"]["payee"]["account"] = json!("IE00");
        for other in [
            json!({}),
            json!({"details": details}),
            json!({"payment": payment("12.50")}),
            json!({"payment": payment("12.5"), "details": details}),
            payee,
        ] {
            let (status, word) = consume(&world, &push, &other).await;
            assert_eq!(
                (status, word.as_str()),
                (422, "action_differs"),
                "{footing:?} {other}"
            );
        }
        let race = join_all((0..50).map(|_| consume(&world, &push, &right))).await;
        let won = race.iter().filter(|(status, _)| *status == 200).count();
        let lost = (409, "consumed".to_owned());
        let lost = race.iter().filter(|one| **one == lost).count();
        assert_eq!((won, lost), (1, 49), "{footing:?}: {race:?}");
        assert!(world.show(&push).await["consumed_at"].is_string());
        let (denied, _) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &denied).await;
        let no = Decision::Deny { reason: None };
        assert_eq!(phone.answer(&prompt, &no).await.unwrap().status, 200);
        let (status, word) = consume(&world, &denied, &json!({"details": details})).await;
        assert_eq!((status, word.as_str()), (409, "not_approved"));
        world.end().await;
    }
}
