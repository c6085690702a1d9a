//! The audit log: who did what, in a chain that shows every change.

use cli::client::{Client, Context};
use harness::{World, footings, until};
use serde_json::{Value, json};
use shared::domain::Provider;
use shared::secret::Secret;
use simulator::phone::Decision;
use std::time::Duration;

/// The entries about a push once `act` is among them.
async fn story(world: &World, push: &shared::id::PushId, act: &str) -> Vec<Value> {
    let path = format!("audit?push={push}&limit=200");
    until(
        10,
        &format!("{:?}: {act} in the log", world.footing),
        || async {
            let page = world.in_store("GET", &path, &Value::Null).await;
            let entries = page["data"].as_array().unwrap().clone();
            entries
                .iter()
                .any(|entry| entry["act"] == act)
                .then_some(entries)
        },
    )
    .await
}

fn acts(entries: &[Value]) -> Vec<&str> {
    entries
        .iter()
        .map(|entry| entry["act"].as_str().unwrap())
        .collect()
}

/// The faults that were noted, in order.
fn faults(entries: &[Value]) -> Vec<&str> {
    let of = entries
        .iter()
        .filter(|entry| entry["act"] == "proof_refused");
    of.map(|entry| entry["facts"]["fault"].as_str().unwrap())
        .collect()
}

fn wrong(code: Option<&str>) -> Decision {
    let code = if code == Some("000000") {
        "000001"
    } else {
        "000000"
    };
    Decision::Approve {
        code: Some(code.to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_35_the_log_tells_session_transaction_data_and_times_of_every_verdict() {
    for footing in footings() {
        let world = World::start(footing, "trace").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (push, code) = world.send(&json!({"correlation_id": "order-7"})).await;
        let prompt = world.rung(&phone, &push).await;
        phone.send_proof(&push, "no.proof.atall").await.unwrap();
        phone
            .answer(&prompt, &wrong(code.as_deref()))
            .await
            .unwrap();
        let yes = Decision::Approve { code };
        let proof = phone.proof(&prompt, &yes).unwrap();
        assert_eq!(phone.send_proof(&push, &proof).await.unwrap().status, 200);
        let entries = story(&world, &push, "push_approved").await;
        assert_eq!(
            acts(&entries),
            ["proof_refused", "wrong_code", "push_approved"],
            "{footing:?}"
        );
        let device = phone.identity().unwrap().device;
        let shown = world.show(&push).await;
        let verdict = &entries[2];
        assert_eq!(verdict["push"], push.as_str(), "the session");
        assert_eq!(verdict["user"], world.user);
        assert_eq!(verdict["device"], device.as_str());
        assert_eq!(verdict["store"], world.store.as_str());
        let facts = &verdict["facts"];
        assert_eq!(facts["correlation_id"], "order-7", "the transaction");
        assert_eq!(facts["content_hash"], prompt.content_hash);
        let proof_hash = shared::crypto::sha256_text(proof.as_bytes());
        assert_eq!(facts["proof_hash"], proof_hash.as_str());
        for time in ["created_at", "expires_at", "ended_at"] {
            assert_eq!(facts[time], shown[time], "the server's clock: {time}");
        }
        assert_eq!(facts["refused_proofs"], 1);
        assert_eq!(verdict["at"], shown["ended_at"]);
        let numbers: Vec<_> = entries.iter().map(|e| e["seq"].as_u64().unwrap()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_34_one_answer_for_every_fault_and_a_precise_entry_for_the_operator() {
    for footing in footings() {
        let world = World::start(footing, "refused").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let other = world.phone("google", Provider::Fcm).await;
        let (late, late_code) = world.send(&json!({"expires_in": "10s"})).await;
        let late_prompt = world.rung(&phone, &late).await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let yes = Decision::Approve { code };
        let claims = phone.proof_claims(&prompt, &yes).unwrap();
        let changed = |name: &str, value: Value| {
            let mut changed = claims.clone();
            changed[name] = value;
            phone.sign_proof(&changed).unwrap()
        };
        let garbage = "not.a.proof".to_owned();
        let refused = [
            ("form", garbage.clone()),
            ("binding", changed("sub", json!(late))),
            ("binding", changed("nonce", json!(late_prompt.nonce))),
            ("binding", changed("kind", json!("generic"))),
            ("content", changed("content_hash", json!("x"))),
            ("decision", changed("decision", json!("maybe"))),
            // Another device's signature under this one's name.
            ("signature", {
                let mut foreign = other.sign_proof(&claims).unwrap();
                let header = changed("x", json!(1));
                let header = header.split_once('.').unwrap().0;
                let rest = foreign.split_off(foreign.find('.').unwrap());
                format!("{header}{rest}")
            }),
        ];
        let mut bodies = Vec::new();
        for (fault, proof) in &refused {
            let answer = phone.send_proof(&push, proof).await.unwrap();
            assert_eq!(answer.status, 422, "{footing:?} {fault}");
            bodies.push(answer.body);
        }
        assert!(bodies.windows(2).all(|two| two[0] == two[1]), "{bodies:?}");
        // A flood leaves a few entries and a number.
        for _ in 0..60 {
            phone.send_proof(&push, &garbage).await.unwrap();
        }
        let answer = phone.answer(&prompt, &yes).await.unwrap();
        assert_eq!(answer.status, 200, "unharmed: {}", answer.body);
        // The same push decided already, and one whose time is over.
        let again = phone.proof(&prompt, &yes).unwrap();
        assert_eq!(phone.send_proof(&push, &again).await.unwrap().status, 409);
        let entries = story(&world, &push, "push_approved").await;
        let words: Vec<_> = refused.iter().map(|(fault, _)| *fault).collect();
        assert_eq!(faults(&entries)[..words.len()], words, "{footing:?}");
        assert!(entries.len() <= 22, "{:?}", acts(&entries));
        assert_eq!(
            acts(&entries)
                .iter()
                .filter(|a| **a == "proofs_muted")
                .count(),
            1
        );
        let verdict = entries.last().unwrap();
        assert_eq!(verdict["facts"]["refused_proofs"], words.len() + 60);
        world.ended(&late).await;
        let yes = Decision::Approve { code: late_code };
        let answer = phone.answer(&late_prompt, &yes).await.unwrap();
        assert_eq!(answer.body["code"], "push_expired");
        let entries = story(&world, &late, "proof_refused").await;
        assert_eq!(faults(&entries), ["expired"]);
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_and_a_revoked_device_are_turned_away_and_named_in_the_log() {
    for footing in footings() {
        let world = World::start(footing, "stranger").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let bob = world
            .in_store("POST", "users", &json!({"external_id": "bob"}))
            .await;
        let stranger = simulator::phone::Phone::new(Provider::Fcm, "bob's");
        let body = json!({"name": "bob's", "relying_party": harness::RP, "platform": "android", "public_key": stranger.public_jwk()});
        let path = format!("users/{}/devices", bob["id"].as_str().unwrap());
        let made = world.in_store("POST", &path, &body).await;
        let device = made["id"].as_str().unwrap();
        stranger.enrolled(
            device.parse().unwrap(),
            world.store.clone(),
            phone.identity().unwrap().server_key,
            world.address(),
        );
        let yes = Decision::Approve { code };
        let answer = stranger.answer(&prompt, &yes).await.unwrap();
        assert_eq!(answer.status, 404, "{footing:?}");
        let entries = story(&world, &push, "proof_refused").await;
        assert_eq!(faults(&entries), ["foreign"]);
        assert_eq!(entries[0]["device"], device);
        let own = phone.identity().unwrap().device;
        let path = format!("users/{}/devices/{own}", world.user);
        world
            .in_store("PATCH", &path, &json!({"state": "revoked"}))
            .await;
        for _ in 0..3 {
            let answer = phone.answer(&prompt, &yes).await.unwrap();
            assert_eq!(answer.status, 401, "{footing:?}");
        }
        let refused = until(10, "the revoked device in the log", || async {
            let page = world.in_store("GET", "audit?limit=200", &Value::Null).await;
            let all = page["data"].as_array().unwrap().clone();
            let of = |e: &&Value| e["act"] == "device_refused";
            let found: Vec<_> = all.iter().filter(of).cloned().collect();
            (!found.is_empty()).then_some(found)
        })
        .await;
        assert_eq!(refused.len(), 1, "once in a minute");
        assert_eq!(refused[0]["device"], own.as_str());
        assert_eq!(refused[0]["facts"]["fault"], "revoked");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_log_is_checked_offline_and_a_missing_entry_is_named() {
    for footing in footings() {
        let world = World::start(footing, "export").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let scopes = json!({"name": "auditor", "scopes": ["audit:read"]});
        let key = world.in_store("POST", "keys", &scopes).await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        let fraud = Decision::Deny {
            reason: Some("fraud_reported".to_owned()),
        };
        phone.answer(&prompt, &fraud).await.unwrap();
        let entries = story(&world, &push, "fraud_reported").await;
        assert_eq!(
            acts(&entries),
            ["push_denied", "fraud_reported"],
            "{footing:?}"
        );
        let (status, log, said) = world.run(&["audit", "export"]);
        assert!(status.success(), "{said}");
        // Nothing that a person reads or types, and no key.
        let secrets = [code.unwrap(), key["key"].as_str().unwrap().to_owned()];
        let texts = ["Sign in", "Cork", "auditor", phone.push_token().expose()].map(str::to_owned);
        for text in secrets.iter().chain(&texts) {
            assert!(!log.contains(text), "{text} is in the log");
        }
        let entries: Vec<Value> = log
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        for act in [
            "key_made",
            "user_added",
            "device_registered",
            "push_policy_set",
            "store_made",
        ] {
            let entry = entries.iter().find(|entry| entry["act"] == act);
            let by = entry.and_then(|entry| entry["by"].as_str());
            assert!(
                by.is_some_and(|by| by.starts_with("key_")),
                "{act}: who did it"
            );
        }
        let file = world.folder.join("audit.ndjson");
        let name = file.to_str().unwrap();
        let verify = |text: &str, more: &[&str]| {
            std::fs::write(&file, text).unwrap();
            let arguments = [&["audit", "verify", name], more].concat();
            // Offline: no server, no key, no store.
            harness::Process::run(&arguments, &[])
        };
        let (status, out, said) = verify(&log, &[]);
        assert!(status.success() && out.contains("hold"), "{said}");
        assert!(said.contains("no key was given"), "{said}");
        let head = world.in_store("GET", "audit/head", &Value::Null).await;
        let kid = head["server_key"]["kid"].as_str().unwrap();
        let (status, _, said) = verify(&log, &["--server-key", kid]);
        assert!(status.success() && said.is_empty(), "{said}");
        let lines: Vec<_> = log.lines().collect();
        let without = [&lines[..1], &lines[2..]].concat().join("\n");
        let (status, _, said) = verify(&without, &[]);
        assert_eq!(status.code(), Some(1));
        assert!(said.contains("entry 2 is missing"), "{said}");
        // The same over HTTP, for those who have no program of ours, with a key for nothing else.
        let auditor = Client::new(Context {
            url: world.address().to_owned(),
            key: Secret::new(key["key"].as_str().unwrap()),
            store: world.store.to_string(),
        });
        let path = format!("/v1/stores/{}/audit", world.store);
        let ndjson = [("accept", "application/x-ndjson")];
        let reply = auditor
            .call("GET", &path, None, &ndjson, Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(reply.status.as_u16(), 200);
        let pushes = format!("/v1/stores/{}/pushes", world.store);
        let reply = auditor
            .call("GET", &pushes, None, &[], Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(reply.status.as_u16(), 403);
        world.end().await;
    }
}
