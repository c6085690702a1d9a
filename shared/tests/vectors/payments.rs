//! A batch of payments: what is shown of it, and proofs that a payment belongs to it, each with what is changed about it.

#![expect(clippy::too_many_lines, reason = "a list of cases")]

use crate::made::PUSH;
use serde_json::{Value, json};
use shared::domain::{PaymentItem, Payments};
use shared::payments::{ItemBroken, ItemProof, prove, shown};

const OTHER_PUSH: &str = "psh_00000000000000000000000002";

pub(crate) fn items() -> Vec<PaymentItem> {
    let item =
        |amount: &str, currency: &str, name: &str, account: &str, reference: Option<&str>| {
            PaymentItem {
                amount: amount.to_owned(),
                currency: currency.to_owned(),
                payee: shared::domain::Payee {
                    name: name.to_owned(),
                    account: account.to_owned(),
                },
                reference: reference.map(str::to_owned),
            }
        };
    vec![
        item(
            "12.50",
            "EUR",
            "Cork Cycles",
            "IE29AIBK93115212345678",
            Some("invoice-4711"),
        ),
        item(
            "0.1",
            "EUR",
            "Zürich Käse — €",
            "CH9300762011623852957",
            None,
        ),
        item(
            "999999999999999.9999",
            "EUR",
            "Cork Cycles",
            "IE29AIBK93115212345678",
            Some("invoice-4712"),
        ),
        item(
            "7",
            "CHF",
            "Zürich Käse — €",
            "CH9300762011623852957",
            Some("\"quoted\" \\ and / more"),
        ),
        item(
            "12.50",
            "EUR",
            "Cork Cycles",
            "IE29AIBK93115212345678",
            None,
        ),
    ]
}

fn changed(change: impl FnOnce(&mut Vec<PaymentItem>)) -> Vec<PaymentItem> {
    let mut all = items();
    change(&mut all);
    all
}

pub(crate) fn vectors() -> Value {
    let push = PUSH.parse().unwrap();
    let of = |items: &[PaymentItem], index: usize| {
        serde_json::to_value(prove(&push, items, index).unwrap()).unwrap()
    };
    let mut vectors = Vec::new();
    let mut add = |name: &str, proof: Value, verdict: &str| {
        vectors.push(json!({"name": name, "alg": "EdDSA", "proof": proof, "verdict": verdict}));
    };
    for index in 0..items().len() {
        add(
            &format!("payment {index} holds"),
            of(&items(), index),
            "holds",
        );
    }
    let mut with = |name: &str, change: &dyn Fn(&mut Value), verdict: &str| {
        let mut proof = of(&items(), 3);
        change(&mut proof);
        add(name, proof, verdict);
    };
    with(
        "another amount",
        &|p| p["item"]["amount"] = json!("700"),
        "leaf",
    );
    with(
        "the same amount in other digits",
        &|p| p["item"]["amount"] = json!("7.0"),
        "leaf",
    );
    with(
        "another currency",
        &|p| p["item"]["currency"] = json!("EUR"),
        "leaf",
    );
    with(
        "another payee",
        &|p| p["item"]["payee"]["name"] = json!("Mallory"),
        "leaf",
    );
    with(
        "another account",
        &|p| p["item"]["payee"]["account"] = json!("IE00"),
        "leaf",
    );
    with(
        "another reference",
        &|p| p["item"]["reference"] = json!("x"),
        "leaf",
    );
    with("another place", &|p| p["index"] = json!(2), "path");
    with(
        "a place behind the last",
        &|p| p["index"] = json!(5),
        "path",
    );
    with(
        "another number of payments",
        &|p| p["tree_size"] = json!(6),
        "size",
    );
    with(
        "a step left out",
        &|p| drop(p["path"].as_array_mut().unwrap().pop()),
        "path",
    );
    with(
        "the steps in another order",
        &|p| p["path"].as_array_mut().unwrap().reverse(),
        "path",
    );
    with("another push", &|p| p["push"] = json!(OTHER_PUSH), "push");
    with(
        "another root",
        &|p| p["root"] = p["leaf_hash"].clone(),
        "root",
    );
    with(
        "something more",
        &|p| p["item"]["paid"] = json!("yes"),
        "form",
    );
    for (name, other, verdict) in [
        (
            "a batch with another amount",
            changed(|all| "12.51".clone_into(&mut all[0].amount)),
            "root",
        ),
        (
            "a batch with another payee",
            changed(|all| "IE00".clone_into(&mut all[0].payee.account)),
            "root",
        ),
        (
            "a batch in another order",
            changed(|all| all.swap(0, 1)),
            "root",
        ),
        (
            "a batch with one payment less",
            changed(|all| drop(all.pop())),
            "size",
        ),
    ] {
        add(name, of(&other, 3), verdict);
        let mut claimed = of(&other, 3);
        claimed["tree_size"] = json!(items().len());
        claimed["root"] = json!(shown(&items()).unwrap().root);
        add(
            &format!("{name}, under the root that was signed"),
            claimed,
            "path",
        );
    }
    json!({"about": "A batch of payments: docs/receipts.md, One payment of a batch. `items` is what was sent, `shown` what the person is shown of it and the device signs, \
        `proof` what is to show that a payment belongs to it. `verdict` is `holds`, or what is wrong.",
        "push": PUSH, "items": items(), "shown": shown(&items()), "vectors": vectors})
}

/// The word of what is made of a proof.
pub(crate) fn judged(proof: &Value, approved: &Payments) -> &'static str {
    let read = ItemProof::read(&proof.to_string());
    let push = PUSH.parse().unwrap();
    match read.and_then(|proof| proof.check(&push, approved)) {
        Ok(()) => "holds",
        Err(ItemBroken::Form(_)) => "form",
        Err(ItemBroken::Push(_)) => "push",
        Err(ItemBroken::Size { .. }) => "size",
        Err(ItemBroken::Root) => "root",
        Err(ItemBroken::Leaf) => "leaf",
        Err(ItemBroken::Path) => "path",
        Err(other) => panic!("{other}"),
    }
}
