//! Batches of payments: one verdict over all of them, a proof for each, and one use of each.

use futures_util::future::join_all;
use harness::{Process, World, footings};
use serde_json::{Value, json};
use shared::domain::Provider;
use shared::id::PushId;
use simulator::phone::{Decision, Phone, Prompt};
use std::path::{Path, PathBuf};

const BIKES: (&str, &str) = ("Cork Cycles Ltd", "IE29AIBK93115212345678");
const CHEESE: (&str, &str) = ("Zürich Käse AG", "CH9300762011623852957");

fn item(amount: &str, currency: &str, (name, account): (&str, &str), reference: &str) -> Value {
    let mut item = json!({"amount": amount, "currency": currency, "payee": {"name": name, "account": account}});
    if !reference.is_empty() {
        item["reference"] = json!(reference);
    }
    item
}

fn batch() -> Vec<Value> {
    vec![
        item("12.50", "EUR", BIKES, "invoice-0001"),
        item("0.1", "EUR", CHEESE, "invoice-0002"),
        item("999999999999999.9999", "EUR", BIKES, ""),
        item("7", "CHF", CHEESE, "invoice-0004"),
        item("12.50", "EUR", BIKES, ""),
    ]
}

async fn psd2(test: &str, footing: harness::Footing) -> (World, Phone) {
    let world = World::start(footing, test).await;
    let rules = json!({"profile": "psd2", "max_prompts": 1000, "open_prompts": "many", "cooldown_after_denial": "0s"});
    world.policy(&rules).await;
    for secret in [BIKES.0, BIKES.1, CHEESE.0, CHEESE.1, "invoice-000"] {
        world.secret(secret);
    }
    let phone = world.phone("apple", Provider::Apns).await;
    (world, phone)
}

async fn asked(world: &World, phone: &Phone, items: &[Value]) -> (PushId, Prompt, Option<String>) {
    let (push, code) = world.send(&json!({"payments": items})).await;
    let prompt = world.rung(phone, &push).await;
    (push, prompt, code)
}

/// A call that is refused: status, and code.
async fn call(world: &World, method: &str, path: &str, body: &Value) -> (u16, String) {
    let reply = world.reply(method, path, body, &[]).await;
    let code = reply.body["code"].as_str().unwrap_or_default().to_owned();
    (reply.status.as_u16(), code)
}

async fn consume(world: &World, push: &PushId, index: usize, item: &Value) -> (u16, String) {
    let path = format!("pushes/{push}/payments/{index}/consume");
    call(world, "POST", &path, item).await
}

/// What the program writes to standard output, into a file.
fn written(world: &World, name: &str, arguments: &[&str]) -> PathBuf {
    let (status, text, said) = world.run(arguments);
    assert!(status.success(), "{arguments:?}: {said}");
    let file = world.folder.join(name);
    std::fs::write(&file, text).unwrap();
    file
}

/// Checks a receipt and a payment with nothing but the program.
fn covered(receipt: &Path, item: &Path) -> Result<Value, String> {
    let (receipt, item) = (receipt.to_str().unwrap(), item.to_str().unwrap());
    let arguments = ["receipt", "verify", receipt, "--item", item, "--json"];
    let (status, out, said) = Process::run(&arguments, &[]);
    if status.success() {
        return Ok(serde_json::from_str::<Value>(&out).unwrap()["item"]["item"].clone());
    }
    assert_eq!(status.code(), Some(1), "{said}");
    Err(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn must_32_one_proof_over_a_batch_is_for_its_total_and_its_payees_alone() {
    for footing in footings() {
        let (world, phone) = psd2("batch", footing).await;
        let (push, prompt, code) = asked(&world, &phone, &batch()).await;
        let shown = &prompt.shown["payments"];
        assert_eq!(shown["count"], 5, "{footing:?}");
        let totals = json!([{"amount": "7", "currency": "CHF"}, {"amount": "1000000000000025.0999", "currency": "EUR"}]);
        assert_eq!(shown["totals"], totals, "exact");
        let payees = json!([
            {"payee": {"name": BIKES.0, "account": BIKES.1}, "totals": [{"amount": "1000000000000024.9999", "currency": "EUR"}]},
            {"payee": {"name": CHEESE.0, "account": CHEESE.1}, "totals": [{"amount": "7", "currency": "CHF"}, {"amount": "0.1", "currency": "EUR"}]},
        ]);
        assert_eq!(shown["payees"], payees, "all of them");
        assert_eq!(prompt.shown.get("payment"), None);

        // Any change makes another batch, also one that leaves total and payees as they are: the proof of the one is none for the other.
        let mut amount = batch();
        amount[0]["amount"] = json!("12.51");
        let mut payee = batch();
        payee[0]["payee"]["account"] = json!("IE00");
        let mut order = batch();
        order.swap(0, 1);
        let mut reference = batch();
        reference[0]["reference"] = json!("invoice-0009");
        let dropped = batch()[..4].to_vec();
        for other in [amount, payee, order, reference, dropped] {
            let (substitute, second, digits) = asked(&world, &phone, &other).await;
            assert_ne!(second.shown["payments"]["root"], shown["root"]);
            let yes = Decision::Approve { code: digits };
            let mut claims = phone.proof_claims(&second, &yes).unwrap();
            claims["content_hash"] = json!(prompt.content_hash);
            let proof = phone.sign_proof(&claims).unwrap();
            let answered = phone.send_proof(&substitute, &proof).await.unwrap();
            assert_eq!(answered.status, 422, "{footing:?}");
            assert_eq!(world.show(&substitute).await["state"], "pending");
        }
        world.approve(&phone, &prompt, code.as_deref()).await;
        assert_eq!(world.ended(&push).await["state"], "approved");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_32_each_payment_of_an_approved_batch_is_proven_offline() {
    for footing in footings() {
        let (world, phone) = psd2("proven", footing).await;
        let (push, prompt, code) = asked(&world, &phone, &batch()).await;
        world.approve(&phone, &prompt, code.as_deref()).await;
        let receipt = ["receipt", "get", push.as_str(), "--content"];
        let receipt = written(&world, "whole.receipt", &receipt);
        for (index, sent) in batch().into_iter().enumerate() {
            let place = index.to_string();
            let file = written(
                &world,
                "item.json",
                &["receipt", "item", push.as_str(), &place],
            );
            assert_eq!(covered(&receipt, &file), Ok(sent), "{footing:?}");
            let whole: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            assert_eq!(whole["root"], prompt.shown["payments"]["root"]);
            for (pointer, value, said) in [
                ("/item/amount", json!("8"), "the payment was changed"),
                (
                    "/item/payee/name",
                    json!("Mallory"),
                    "the payment was changed",
                ),
                ("/index", json!((index + 1) % 5), "not among those"),
                ("/tree_size", json!(6), "5 were approved"),
                ("/path/0", whole["leaf_hash"].clone(), "not among those"),
                ("/root", whole["leaf_hash"].clone(), "another batch"),
                ("/push", json!(PushId::fresh(1)), "another push"),
            ] {
                let mut changed = whole.clone();
                *changed.pointer_mut(pointer).unwrap() = value;
                std::fs::write(&file, changed.to_string()).unwrap();
                let refused = covered(&receipt, &file).unwrap_err();
                assert!(refused.contains(said), "{pointer}: {refused}");
            }
        }
        // The receipt says what the approval is worth, and without the content it says so.
        let says = written(
            &world,
            "says.json",
            &["receipt", "verify", receipt.to_str().unwrap(), "--json"],
        );
        let says: Value = serde_json::from_slice(&std::fs::read(says).unwrap()).unwrap();
        assert_eq!(
            says["receipt"]["assurance"],
            world.show(&push).await["assurance"]
        );
        let bare = written(&world, "bare.receipt", &["receipt", "get", push.as_str()]);
        let file = written(
            &world,
            "item.json",
            &["receipt", "item", push.as_str(), "0"],
        );
        let refused = covered(&bare, &file).unwrap_err();
        assert!(refused.contains("--content"), "{refused}");
        // A denied batch covers nothing.
        let (denied, prompt, _) = asked(&world, &phone, &batch()).await;
        let no = Decision::Deny { reason: None };
        assert_eq!(phone.answer(&prompt, &no).await.unwrap().status, 200);
        let receipt = ["receipt", "get", denied.as_str(), "--content"];
        let receipt = written(&world, "denied.receipt", &receipt);
        let file = written(
            &world,
            "item.json",
            &["receipt", "item", denied.as_str(), "0"],
        );
        let refused = covered(&receipt, &file).unwrap_err();
        assert!(refused.contains("nothing was approved"), "{refused}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_32_36_each_payment_of_a_batch_is_used_once_and_as_it_was_approved() {
    for footing in footings() {
        let (world, phone) = psd2("used", footing).await;
        let items = batch();
        let (push, prompt, code) = asked(&world, &phone, &items).await;
        let early = consume(&world, &push, 0, &items[0]).await;
        assert_eq!(early, (409, "not_approved".to_owned()), "{footing:?}");
        world.approve(&phone, &prompt, code.as_deref()).await;
        let mut dearer = items[1].clone();
        dearer["amount"] = json!("0.2");
        let mut digits = items[1].clone();
        digits["amount"] = json!("0.10");
        let mut bare = items[1].clone();
        bare.as_object_mut().unwrap().remove("reference");
        for other in [&dearer, &digits, &bare, &items[0]] {
            let refused = consume(&world, &push, 1, other).await;
            assert_eq!(refused, (422, "action_differs".to_owned()), "{other}");
        }
        let race = join_all((0..50).map(|_| consume(&world, &push, 1, &items[1]))).await;
        let won = race.iter().filter(|(status, _)| *status == 200).count();
        let lost = (409, "consumed".to_owned());
        let lost = race.iter().filter(|one| **one == lost).count();
        assert_eq!((won, lost), (1, 49), "{footing:?}: {race:?}");
        // The others are as they were, also the one that is the same payment at another place.
        assert_eq!(consume(&world, &push, 4, &items[4]).await.0, 200);
        let none = consume(&world, &push, 5, &items[4]).await;
        assert_eq!(none, (404, "not_found".to_owned()));
        let all = call(
            &world,
            "POST",
            &format!("pushes/{push}/consume"),
            &json!({}),
        )
        .await;
        assert_eq!(all, (409, "consume_one_by_one".to_owned()));

        let listed = listed(&world, &push).await;
        let used: Vec<_> = listed
            .iter()
            .map(|one| one["consumed_at"].is_string())
            .collect();
        assert_eq!(used, [false, true, false, false, true]);
        assert!(listed.iter().map(|one| &one["item"]).eq(&items));
        let path = format!("pushes/{push}/payments?cursor=x");
        let bad = call(&world, "GET", &path, &Value::Null).await;
        assert_eq!(bad, (400, "bad_parameter".to_owned()));

        // The log tells each use once, and whose key it was.
        let log = uses(&world, &push, 2).await;
        let places = [&log[0]["facts"]["payment"], &log[1]["facts"]["payment"]];
        assert_eq!(places, [&json!(1), &json!(4)]);
        let by = |entry: &Value| entry["by"].as_str().unwrap().starts_with("key_");
        assert!(log.iter().all(by));
        world.end().await;
    }
}

/// The payments of a push, read in parts.
async fn listed(world: &World, push: &PushId) -> Vec<Value> {
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("pushes/{push}/payments?limit=2{cursor}");
        let part = world.in_store("GET", &path, &Value::Null).await;
        listed.extend(part["data"].as_array().unwrap().clone());
        let Some(next) = part["next_cursor"].as_str() else {
            return listed;
        };
        cursor = format!("&cursor={next}");
    }
}

/// The entries of the log that tell uses of a push's approval, once there are `count`.
async fn uses(world: &World, push: &PushId, count: usize) -> Vec<Value> {
    let path = format!("audit?push={push}");
    harness::until(10, "the log", || async {
        let log = world.in_store("GET", &path, &Value::Null).await;
        let mut entries = log["data"].as_array().unwrap().clone();
        entries.retain(|entry| entry["act"] == "push_consumed");
        (entries.len() == count).then_some(entries)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_payment_has_no_list_and_its_use_is_in_the_log() {
    for footing in footings() {
        let (world, phone) = psd2("single", footing).await;
        let paid = item("7", "CHF", CHEESE, "");
        let (push, code) = world.send(&json!({"payment": paid})).await;
        let prompt = world.rung(&phone, &push).await;
        world.approve(&phone, &prompt, code.as_deref()).await;
        for path in ["payments", "payments/0"] {
            let path = format!("pushes/{push}/{path}");
            let none = call(&world, "GET", &path, &Value::Null).await;
            assert_eq!(none, (404, "not_found".to_owned()), "{footing:?} {path}");
        }
        let refused = consume(&world, &push, 0, &paid).await;
        assert_eq!(refused, (404, "not_found".to_owned()));
        let action =
            json!({"payment": prompt.shown["payment"], "details": prompt.shown["details"]});
        let path = format!("pushes/{push}/consume");
        world.in_store("POST", &path, &action).await;
        let log = uses(&world, &push, 1).await;
        assert_eq!(log[0].get("facts"), None);
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_32_a_batch_with_faults_is_refused_and_all_of_them_are_told() {
    for footing in footings() {
        let (world, _phone) = psd2("faulty", footing).await;
        let good = batch();
        let many = |count: usize, payees: usize| -> Vec<Value> {
            let one = |n: usize| item("1", "EUR", (&format!("Payee {}", n % payees), "IE29"), "");
            (0..count).map(one).collect()
        };
        let currencies: Vec<_> = (0..21_u8)
            .map(|n| item("1", &format!("X{}A", char::from(b'A' + n)), BIKES, ""))
            .collect();
        let mut bad = good.clone();
        bad[1]["amount"] = json!("0,1");
        bad[2]["currency"] = json!("euro");
        bad[3].as_object_mut().unwrap().remove("payee");
        bad[4]["reference"] = json!("invoice-0001");
        bad[4]["title"] = json!("x");
        for (sent, pointers) in [
            (json!({"payments": []}), vec!["/payments"]),
            (json!({"payments": [good[0]]}), vec!["/payments"]),
            (json!({"payments": {}}), vec!["/payments"]),
            (
                json!({"payments": good, "payment": {"amount": "1", "currency": "EUR", "payee": {"name": "x", "account": "y"}}}),
                vec!["/payments"],
            ),
            (
                json!({"payments": good, "kind": "generic"}),
                vec!["/payments"],
            ),
            (json!({"payments": many(1001, 1)}), vec!["/payments"]),
            (json!({"payments": many(201, 201)}), vec!["/payments"]),
            (json!({"payments": currencies}), vec!["/payments"]),
            (
                json!({"payments": bad}),
                vec![
                    "/payments/1/amount",
                    "/payments/2/currency",
                    "/payments/3/payee",
                    "/payments/4/reference",
                    "/payments/4/title",
                ],
            ),
            (json!({}), vec!["/payment"]),
        ] {
            let body = World::confirm(&sent);
            let refused = world.reply("POST", "pushes", &body, &[]).await;
            assert_eq!(refused.status.as_u16(), 422, "{sent}");
            let faults = refused.body["errors"].as_array().unwrap();
            let mut found: Vec<_> = faults
                .iter()
                .map(|one| one["pointer"].as_str().unwrap())
                .collect();
            found.sort_unstable();
            assert_eq!(found, pointers, "{footing:?}");
        }
        // Each payment has one use, of one push: several people are not asked for a batch.
        let mut several = World::confirm(&json!({"payments": good, "required": 1}));
        several["approvers"] =
            json!([{"user": {"external_id": "ada"}}, {"user": {"external_id": "grace"}}]);
        for name in ["user", "kind"] {
            several.as_object_mut().unwrap().remove(name);
        }
        let refused = world.reply("POST", "approvals", &several, &[]).await;
        let faults = &refused.body["errors"];
        assert_eq!(
            (refused.status.as_u16(), &faults[0]["pointer"]),
            (422, &json!("/payments")),
            "{faults}"
        );
        // As many as may be, and a body that is longer than that of any other request.
        let largest = many(1000, 200);
        let body = World::confirm(&json!({"payments": largest}));
        assert!(body.to_string().len() > 64 * 1024);
        let headers = [("idempotency-key", "largest")];
        let mut pushes = Vec::new();
        for _ in 0..2 {
            let taken = world.reply("POST", "pushes", &body, &headers).await;
            assert_eq!(taken.status.as_u16(), 202, "{}", taken.body);
            pushes.push(taken.body["id"].as_str().unwrap().to_owned());
        }
        assert_eq!(pushes[0], pushes[1], "asked once");
        let path = format!("pushes/{}/payments/999", pushes[0]);
        let last = world.in_store("GET", &path, &Value::Null).await;
        assert_eq!(
            (&last["item"], &last["tree_size"]),
            (&largest[999], &json!(1000))
        );
        // The last one is high up in the tree, whose right side is not full.
        assert_eq!(last["path"].as_array().unwrap().len(), 8);
        let long = json!({"payments": (0..1000).map(|_| item("1", "EUR", (&"€".repeat(140), &"1".repeat(64)), &"r".repeat(64))).collect::<Vec<_>>()});
        let refused = call(&world, "POST", "pushes", &World::confirm(&long)).await;
        assert_eq!(refused, (413, "too_large".to_owned()));
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_sends_payments() {
    for footing in footings() {
        let (world, phone) = psd2("sent", footing).await;
        let pay = ["--payment", "12.50", "EUR", BIKES.0, BIKES.1];
        let send = [
            "send",
            "ada",
            "Pay Cork Cycles",
            "--relying-party",
            harness::RP,
        ];
        let (status, push, said) = world.run(&[&send[..], &pay[..]].concat());
        assert!(status.success(), "{said}");
        let push: PushId = push.trim().parse().unwrap();
        let prompt = world.rung(&phone, &push).await;
        let paid = item("12.50", "EUR", BIKES, "");
        assert_eq!(prompt.shown["payment"], paid, "{footing:?}");
        let file = world.folder.join("payments.json");
        std::fs::write(&file, json!(batch()).to_string()).unwrap();
        let list = ["--payments", file.to_str().unwrap()];
        let (status, push, said) = world.run(&[&send[..], &list[..]].concat());
        assert!(status.success(), "{said}");
        let push: PushId = push.trim().parse().unwrap();
        let prompt = world.rung(&phone, &push).await;
        assert_eq!(prompt.shown["payments"]["count"], 5);
        std::fs::write(&file, "{").unwrap();
        let (status, _, said) = world.run(&[&send[..], &list[..]].concat());
        assert_eq!(status.code(), Some(2), "{said}");
        world.end().await;
    }
}
