//! What a proof is bound to, and that it counts once.

use harness::{World, footings, raw};
use serde_json::{Value, json};
use shared::domain::Provider;
use simulator::phone::{Decision, Phone, Prompt};

/// A proof with some claims changed; `null` takes one out.
fn changed(phone: &Phone, prompt: &Prompt, yes: &Decision, changes: &Value) -> String {
    let mut claims = phone.proof_claims(prompt, yes).unwrap();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    phone.sign_proof(&claims).unwrap()
}

async fn status(phone: &Phone, prompt: &Prompt, proof: &str) -> u16 {
    let answered = phone.send_proof(&prompt.push, proof).await;
    answered.unwrap().status
}

#[tokio::test(flavor = "multi_thread")]
async fn must_02_33_a_challenge_is_accepted_once_and_a_proof_for_one_push_is_none_for_another() {
    for footing in footings() {
        let world = World::start(footing, "once").await;
        let phone = world.phone("apple", Provider::Apns).await;
        // The same question twice, and one after the other: nothing of the first helps with the second.
        let (first, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &first).await;
        let yes = Decision::Approve { code };
        let proof = phone.proof(&prompt, &yes).unwrap();
        assert_eq!(status(&phone, &prompt, &proof).await, 200, "{footing:?}");
        assert_eq!(
            status(&phone, &prompt, &proof).await,
            200,
            "a repetition changes nothing"
        );
        let again = phone.proof(&prompt, &yes).unwrap();
        assert_eq!(
            status(&phone, &prompt, &again).await,
            409,
            "the challenge is spent"
        );
        let no = Decision::Deny { reason: None };
        assert_eq!(phone.answer(&prompt, &no).await.unwrap().status, 409);
        assert_eq!(world.show(&first).await["state"], "approved");

        let (second, code) = world.send(&Value::Null).await;
        let next = world.rung(&phone, &second).await;
        assert_ne!(prompt.nonce, next.nonce);
        assert_eq!(prompt.content_hash, next.content_hash, "the same question");
        assert_eq!(status(&phone, &next, &proof).await, 422, "the old proof");
        let moved = changed(&phone, &prompt, &yes, &json!({"sub": second}));
        assert_eq!(
            status(&phone, &next, &moved).await,
            422,
            "the old challenge"
        );
        world.approve(&phone, &next, code.as_deref()).await;
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_29_30_changed_content_invalidates_the_proof_and_nothing_changes_content() {
    for footing in footings() {
        let world = World::start(footing, "content").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let pay = |amount: &str| json!({"title": "Pay", "match_code": false, "details": [{"label": "Amount", "value": amount}, {"label": "Payee", "value": "Grace"}]});
        let (small, _) = world.send(&pay("5.00 EUR")).await;
        let first = world.rung(&phone, &small).await;
        let yes = Decision::Approve { code: None };
        // Nothing of a push can be changed but its end.
        let path = format!("/v1/stores/{}/pushes/{small}", world.store);
        for method in ["PUT", "PATCH", "POST"] {
            let reply = world
                .reply(method, &format!("pushes/{small}"), &pay("500.00 EUR"), &[])
                .await;
            assert_eq!(reply.status.as_u16(), 405, "{footing:?} {method} {path}");
        }
        // A change is a new push: the proof of what was shown before is none for it, whatever else is made to fit.
        world
            .in_store("POST", &format!("pushes/{small}/cancel"), &Value::Null)
            .await;
        let (large, _) = world.send(&pay("500.00 EUR")).await;
        let second = world.rung(&phone, &large).await;
        let old = phone.proof(&first, &yes).unwrap();
        assert_eq!(status(&phone, &second, &old).await, 422);
        let fitted = json!({"content_hash": first.content_hash});
        let proof = changed(&phone, &second, &yes, &fitted);
        assert_eq!(status(&phone, &second, &proof).await, 422);
        // A phone that rendered something else, to the last character, says so by its hash.
        for shown in [
            json!({"label": "Amount", "value": "50.00 EUR"}),
            json!({"label": "Amount", "value": "500.00 EUR "}),
            json!({"label": "amount", "value": "500.00 EUR"}),
        ] {
            let mut other = second.clone();
            other.shown["details"][0] = shown.clone();
            let proof = phone.proof(&other, &yes).unwrap();
            assert_eq!(status(&phone, &second, &proof).await, 422, "{shown}");
        }
        let mut swapped = second.clone();
        swapped.shown["details"].as_array_mut().unwrap().reverse();
        let proof = phone.proof(&swapped, &yes).unwrap();
        assert_eq!(status(&phone, &second, &proof).await, 422, "another order");
        assert_eq!(world.show(&large).await["state"], "pending", "unharmed");
        world.approve(&phone, &second, None).await;
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_34_whatever_element_is_wrong_the_answer_is_the_same_to_the_byte() {
    for footing in footings() {
        let world = World::start(footing, "alike").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let wrong = if code.as_deref() == Some("000000") {
            "000001"
        } else {
            "000000"
        };
        let (right, wrong) = (
            Decision::Approve { code },
            Decision::Approve {
                code: Some(wrong.to_owned()),
            },
        );
        let made =
            |decision: &Decision, changes: Value| changed(&phone, &prompt, decision, &changes);
        let proofs = [
            made(&wrong, json!({})),
            made(&Decision::Approve { code: None }, json!({})),
            made(&right, json!({"nonce": "x"})),
            made(&wrong, json!({"nonce": "x"})),
            made(&right, json!({"content_hash": "x"})),
            made(&right, json!({"aud": "sto_00000000000000000000000000"})),
            made(&right, json!({"uv": "thumb"})),
            made(&right, json!({"reason": "user_declined"})),
            made(&right, json!({"extra": true})),
            made(&right, json!({"match": null})),
            Phone::new(Provider::Apns, "x").public_jwk().to_string(),
            ".".repeat(4000),
        ];
        let path = format!("/v1/device/pushes/{push}/answer");
        let mut answers = Vec::new();
        for proof in proofs {
            let body = json!({"proof": proof}).to_string();
            let signed = phone.authorization("POST", &path, body.as_bytes()).unwrap();
            let headers = [("authorization", signed.as_str())];
            let (status, answer) = raw(world.address(), ("POST", &path), &headers, &body).await;
            assert_eq!(status, 422, "{footing:?} {answer}");
            let undated = answer.lines().filter(|line| !line.starts_with("date:"));
            answers.push(undated.collect::<Vec<_>>().join("\n"));
        }
        assert!(
            answers.windows(2).all(|two| two[0] == two[1]),
            "{answers:#?}"
        );
        assert_eq!(
            phone.answer(&prompt, &right).await.unwrap().status,
            200,
            "unharmed"
        );
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_37_38_a_proof_is_for_one_kind_and_for_no_older_version() {
    for footing in footings() {
        let world = World::start(footing, "kinds-bound").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let yes = Decision::Approve { code: None };
        for (kind, others) in [
            ("confirm", ["generic", "process"]),
            ("generic", ["confirm", "process"]),
        ] {
            let mut more = json!({"kind": kind, "title": format!("Is this a {kind}?")});
            if kind == "confirm" {
                more["match_code"] = false.into();
            }
            let (push, _) = world.send(&more).await;
            let prompt = world.rung(&phone, &push).await;
            assert_eq!(prompt.shown["kind"], kind, "{footing:?}");
            for other in others {
                let proof = changed(&phone, &prompt, &yes, &json!({"kind": other}));
                assert_eq!(status(&phone, &prompt, &proof).await, 422, "{kind} {other}");
                // The hash covers the kind as well, so that neither can be made to fit the other.
                let mut shown = prompt.clone();
                shown.shown["kind"] = other.into();
                let proof = changed(&phone, &shown, &yes, &json!({"kind": kind}));
                assert_eq!(status(&phone, &prompt, &proof).await, 422, "{kind} {other}");
            }
            for version in [json!(0), json!(2), json!(-1), json!("1"), Value::Null] {
                let proof = changed(&phone, &prompt, &yes, &json!({"ver": version}));
                assert_eq!(status(&phone, &prompt, &proof).await, 422, "{version}");
            }
            world.approve(&phone, &prompt, None).await;
            world.ended(&push).await;
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_39_context_and_relying_party_are_shown_and_signed_and_the_code_is_on_by_default() {
    for footing in footings() {
        let world = World::start(footing, "context").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let context = json!({"ip": "2001:db8::7", "agent": "Firefox on Linux", "place": "Cork, Ireland", "session": "s-4711"});
        let (push, code) = world.send(&json!({"context": context})).await;
        let prompt = world.rung(&phone, &push).await;
        assert_eq!(prompt.shown["context"], context, "{footing:?}");
        assert_eq!(prompt.shown["relying_party"], harness::RP);
        assert!(prompt.match_required && code.as_ref().is_some_and(|code| code.len() == 6));
        let yes = Decision::Approve { code: code.clone() };
        for (name, value) in [
            ("ip", json!("2001:db8::8")),
            ("agent", json!("curl")),
            ("place", json!("Lagos")),
            ("session", Value::Null),
        ] {
            let mut other = prompt.clone();
            other.shown["context"][name] = value;
            let proof = phone.proof(&other, &yes).unwrap();
            assert_eq!(status(&phone, &prompt, &proof).await, 422, "{name}");
        }
        world.approve(&phone, &prompt, code.as_deref()).await;
        world.end().await;
    }
}

/// The end of every test looks through payloads, messages and logs; here for what a person is shown, the code, and what the callers' own channels say.
#[tokio::test(flavor = "multi_thread")]
async fn must_06_08_31_the_code_goes_to_the_sender_only_and_content_to_the_device_only() {
    for footing in footings() {
        let world = World::start(footing, "channels").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let google = world.phone("google", Provider::Fcm).await;
        let more = json!({"title": "canary-title", "message": "canary-message", "details": [{"label": "canary-label", "value": "canary-value"}],
            "context": {"ip": "203.0.113.77", "agent": "canary-agent", "place": "canary-place", "session": "canary-session"}});
        let (push, code) = world.send(&more).await;
        let code = code.unwrap();
        let prompt = world.rung(&phone, &push).await;
        world.rung(&google, &push).await;
        // What a device fetches, one and all, has the content and not the code.
        for path in [
            format!("/v1/device/pushes/{push}"),
            "/v1/device/pushes".to_owned(),
        ] {
            let signed = phone.authorization("GET", &path, b"").unwrap();
            let headers = [("authorization", signed.as_str())];
            let (status, answer) = raw(world.address(), ("GET", &path), &headers, "").await;
            assert_eq!(status, 200, "{footing:?} {answer}");
            let body = answer.split("\r\n\r\n").nth(1).unwrap();
            assert!(body.contains("canary-value") && body.contains("canary-place"));
            assert!(!body.contains(&code), "{body}");
        }
        world.approve(&phone, &prompt, Some(&code)).await;
        let ended = world.ended(&push).await;
        let events = format!("/v1/stores/{}/pushes/{push}/events", world.store);
        let told = world
            .client
            .call(
                "GET",
                &events,
                None,
                &[],
                std::time::Duration::from_secs(20),
            )
            .await
            .unwrap();
        let list = world.in_store("GET", "pushes", &Value::Null).await;
        for said in [ended, told.body, list] {
            let said = said.to_string();
            assert!(!said.contains("canary") && !said.contains(&code), "{said}");
        }
        let payloads = world.gateway.journal();
        assert!(payloads.len() >= 2, "{footing:?}");
        for payload in payloads {
            let body = payload.body.expose();
            let there = [
                "canary",
                "203.0.113.77",
                code.as_str(),
                "content_hash",
                prompt.nonce.expose(),
            ];
            assert!(there.iter().all(|text| !body.contains(text)), "{body}");
            assert!(body.contains(push.as_str()), "the wake-up names the push");
        }
        assert_eq!(world.leaks().await, Vec::<String>::new(), "{footing:?}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_polls_is_asked_and_answers_while_both_providers_are_away() {
    for footing in footings() {
        let world = World::start(footing, "pull").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let google = world.phone("google", Provider::Fcm).await;
        world.gateway.stop();
        let (push, code) = world.send(&Value::Null).await;
        for one in [&phone, &google] {
            let waiting = one.pending().await.unwrap();
            assert_eq!(waiting.len(), 1, "{footing:?} {}", one.name());
            assert_eq!(waiting[0].push, push);
        }
        let prompt = phone.fetch(&push).await.unwrap();
        world.approve(&phone, &prompt, code.as_deref()).await;
        assert_eq!(world.ended(&push).await["state"], "approved");
        assert!(google.pending().await.unwrap().is_empty());
        assert!(
            world.gateway.journal().is_empty(),
            "no provider took anything"
        );
        world.end().await;
    }
}
