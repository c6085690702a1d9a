//! Receipts of real pushes, checked offline by the program.

use harness::{Process, World, footings};
use serde_json::{Value, json};
use shared::domain::Provider;
use shared::id::PushId;
use simulator::phone::Decision;

/// The receipt's file.
fn got(world: &World, push: &PushId, more: &[&str]) -> String {
    let (status, text, said) = world.run(&[&["receipt", "get", push.as_str()], more].concat());
    assert!(status.success(), "{:?}: {said}", world.footing);
    let file = world.folder.join(format!("{push}.receipt"));
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Checks a file with nothing but the program. Gives what the receipt says.
fn verified(file: &str, more: &[&str]) -> Result<Value, String> {
    let arguments = [&["receipt", "verify", "--json", file], more].concat();
    let (status, out, said) = Process::run(&arguments, &[]);
    if status.success() {
        return Ok(serde_json::from_str::<Value>(&out).unwrap()["receipt"].clone());
    }
    assert_eq!(status.code(), Some(1), "{said}");
    Err(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn must_33_35_a_receipt_proves_an_approval_offline_and_the_log_has_it() {
    for footing in footings() {
        let world = World::start(footing, "receipt").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (push, code) = world.send(&json!({"correlation_id": "order-7"})).await;
        let prompt = world.rung(&phone, &push).await;
        let path = format!("pushes/{push}/receipt");
        let open = world.reply("GET", &path, &Value::Null, &[]).await;
        assert_eq!(
            (open.status.as_u16(), &open.body["code"]),
            (409, &json!("push_open"))
        );
        world.approve(&phone, &prompt, code.as_deref()).await;
        let file = got(&world, &push, &["--content"]);
        let says = verified(&file, &[]).unwrap();
        let shown = world.show(&push).await;
        assert_eq!(
            (&says["state"], &says["push"]),
            (&json!("approved"), &json!(push))
        );
        assert_eq!(says["content"], prompt.shown, "{footing:?}");
        assert_eq!(says["evidence"]["device_key"], phone.public_jwk());
        for time in ["created_at", "expires_at", "ended_at"] {
            assert_eq!(says[time], shown[time]);
        }
        assert_eq!(says["answered_at"], says["ended_at"]);
        let times = ["created_at", "fetched_at", "answered_at"].map(|t| says[t].as_str().unwrap());
        assert!(times.is_sorted(), "{times:?}");
        let bare = verified(&got(&world, &push, &[]), &[]).unwrap();
        assert_eq!(bare.get("content"), None, "only by its hash");
        let head = world.in_store("GET", "audit/head", &Value::Null).await;
        let key = world.folder.join("key.json");
        std::fs::write(&key, head["server_key"].to_string()).unwrap();
        let (_, log, _) = world.run(&["audit", "export"]);
        let log_file = world.folder.join("audit.ndjson");
        let with_log = [
            "--server-key",
            key.to_str().unwrap(),
            "--log",
            log_file.to_str().unwrap(),
        ];
        std::fs::write(&log_file, &log).unwrap();
        verified(&file, &with_log).unwrap();
        // One entry taken out of the log, whichever.
        let lines: Vec<_> = log.lines().collect();
        let own = says["entry"]["seq"].as_u64().unwrap();
        for without in [0, lines.len() - 3, own as usize - 1] {
            let mut left = lines.clone();
            left.remove(without);
            std::fs::write(&log_file, left.join("\n")).unwrap();
            let said = verified(&file, &with_log).unwrap_err();
            assert!(
                said.contains(&format!("entry {} is missing", without + 1)),
                "{said}"
            );
        }
        // One byte here and there.
        let whole = std::fs::read(&file).unwrap();
        for at in [0, 40, whole.len() / 2, whole.len() - 3, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            std::fs::write(&file, bytes).unwrap();
            verified(&file, &[]).unwrap_err();
        }
        std::fs::write(&file, whole).unwrap();
        let stranger = "A".repeat(43);
        let said = verified(&file, &["--server-key", &stranger]).unwrap_err();
        assert!(said.contains("not by the expected key"), "{said}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_expiries_and_process_pushes_have_receipts_and_generic_ones_none() {
    for footing in footings() {
        let world = World::start(footing, "receipts").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let (late, _) = world.send(&json!({"expires_in": "10s"})).await;
        world.rung(&phone, &late).await;
        let (denied, _) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &denied).await;
        let no = Decision::Deny {
            reason: Some("wrong_data".to_owned()),
        };
        phone.answer(&prompt, &no).await.unwrap();
        let says = verified(&got(&world, &denied, &[]), &[]).unwrap();
        assert_eq!(
            (&says["state"], &says["reason"]),
            (&json!("denied"), &json!("wrong_data"))
        );
        assert!(
            says["evidence"]["proof"].is_string(),
            "{footing:?}: a denial is signed"
        );
        let (cancelled, _) = world.send(&Value::Null).await;
        let path = format!("pushes/{cancelled}/cancel");
        world.in_store("POST", &path, &Value::Null).await;
        let says = verified(&got(&world, &cancelled, &[]), &[]).unwrap();
        assert_eq!(
            (&says["state"], says.get("evidence")),
            (&json!("cancelled"), None)
        );
        assert!(
            says["entry"]["by"].as_str().unwrap().starts_with("key_"),
            "who took it back"
        );
        let definition =
            json!({"name": "onboard", "version": 1, "start_url": "https://bank.example/start"});
        world
            .in_store("POST", "process-definitions", &definition)
            .await;
        let ask = json!({"kind": "process", "process": {"definition": "onboard"}});
        let (process, _) = world.send(&ask).await;
        let prompt = world.rung(&phone, &process).await;
        phone
            .answer(&prompt, &Decision::Deny { reason: None })
            .await
            .unwrap();
        let says = verified(&got(&world, &process, &["--content"]), &[]).unwrap();
        assert_eq!(
            says["content"], prompt.shown,
            "with the link, which is spent"
        );
        let (generic, _) = world.send(&json!({"kind": "generic"})).await;
        let prompt = world.rung(&phone, &generic).await;
        world.approve(&phone, &prompt, None).await;
        world.ended(&generic).await;
        let path = format!("pushes/{generic}/receipt");
        let none = world.reply("GET", &path, &Value::Null, &[]).await;
        assert_eq!(
            (none.status.as_u16(), &none.body["code"]),
            (409, &json!("no_receipt"))
        );
        let bad = world
            .reply("GET", &format!("{path}?content=1"), &Value::Null, &[])
            .await;
        assert_eq!(
            (bad.status.as_u16(), &bad.body["code"]),
            (400, &json!("bad_parameter"))
        );
        world.ended(&late).await;
        let says = verified(&got(&world, &late, &[]), &[]).unwrap();
        assert_eq!(
            (&says["reason"], says.get("evidence")),
            (&json!("no_response"), None)
        );
        assert!(says["fetched_at"].is_string());
        world.end().await;
    }
}
