//! Receipts: every changed byte is found, every part is bound to every other, and the published vectors are what the code makes and refuses.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use shared::audit::{Entry, GENESIS, Head, chained, check};
use shared::crypto::{DeviceKey, ServerKey, ServerSecret, content_hash, match_of, sha256_text};
use shared::domain::{Content, Factors, Field, Kind, Payee, PaymentItem, PushState, Target};
use shared::id::{AuditId, DeviceId, PushId, StoreId, UserId};
use shared::message::Lane;
use shared::payments::{ItemBroken, prove, shown};
use shared::receipt::{Broken, Evidence, Parts, Receipt, TYP, issue, verify};
use shared::secret::Secret;
use shared::store::PushRow;
use std::path::{Path, PathBuf};

const NOW: i64 = 1_764_000_000_000;

fn secret() -> ServerSecret {
    ServerSecret::new(&Secret::new("published test vectors ".repeat(3))).unwrap()
}

/// A phone that signs what it is told to.
struct Phone {
    device: DeviceId,
    pair: EcdsaKeyPair,
}

impl Phone {
    fn new() -> Self {
        Self {
            device: DeviceId::fresh(NOW),
            pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
        }
    }

    fn key(&self) -> DeviceKey {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)});
        serde_json::from_value(jwk).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "ES256", "typ": "countersign-proof+jwt", "kid": self.device});
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", text(&header), text(claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.unwrap()))
    }

    fn claims(&self, push: &PushRow, decision: &str) -> Value {
        let mut claims = json!({"ver": 1, "iss": self.device, "aud": push.store, "sub": push.id, "jti": "0123456789abcdef", "iat": NOW / 1000,
            "nonce": push.nonce, "decision": decision, "kind": push.kind, "content_hash": push.content_hash, "uv": "biometric"});
        if decision == "approve" {
            claims["match"] = json!(match_of(&push.nonce, "123456"));
        }
        claims
    }
}

fn content() -> Content {
    let content = json!({"kind": "confirm", "relying_party": "payroll", "title": "Pay 40 EUR to Acme",
        "details": [Field { label: "Payee".to_owned(), value: "Acme".to_owned() }]});
    serde_json::from_value(content).unwrap()
}

fn push(state: PushState, reason: &str) -> PushRow {
    PushRow {
        id: PushId::fresh(NOW),
        store: StoreId::fresh(NOW),
        user: UserId::fresh(NOW),
        rp: "payroll".to_owned(),
        kind: Kind::Confirm,
        lane: Lane::Interactive,
        state,
        reason: reason.to_owned(),
        target: Target::All,
        nonce: "c2luZ2xlIHVzZSBub25jZQ".to_owned(),
        content: content(),
        content_hash: content_hash(&content()),
        match_required: true,
        wrong_codes: 0,
        reply_to: None,
        correlation_id: Some("order-7".to_owned()),
        instance: None,
        instance_state: None,
        created_by: None,
        initiator: None,
        approval: None,
        profile: shared::domain::Profile::Default,
        factors: None,
        consumed_at: None,
        answered_by: None,
        proof_hash: None,
        refused_proofs: 0,
        created_at: NOW,
        expires_at: NOW + 120_000,
        ended_at: Some(NOW + 9_000),
    }
}

/// A receipt with the log that it is in: three entries, its own in the middle.
struct Made {
    text: String,
    log: String,
    phone: Phone,
    push: PushRow,
}

fn facts(push: &PushRow) -> Value {
    let time = shared::clock::rfc3339;
    json!({"reason": push.reason, "kind": push.kind, "relying_party": push.rp, "content_hash": push.content_hash,
        "proof_hash": push.proof_hash, "factors": push.factors, "correlation_id": push.correlation_id, "created_at": time(push.created_at),
        "expires_at": time(push.expires_at), "ended_at": push.ended_at.map(time)})
}

fn made(state: PushState, reason: &str, with_content: bool) -> Made {
    made_of(state, reason, with_content, content())
}

fn made_of(state: PushState, reason: &str, with_content: bool, content: Content) -> Made {
    let (phone, mut push) = (Phone::new(), push(state, reason));
    push.content_hash = content_hash(&content);
    push.content = content.clone();
    let decision = match state {
        PushState::Approved => Some("approve"),
        PushState::Denied => Some("deny"),
        _ => None,
    };
    let evidence = decision.map(|decision| {
        let mut claims = phone.claims(&push, decision);
        if decision == "deny" {
            claims["reason"] = json!(reason);
        }
        Evidence {
            device: phone.device.clone(),
            device_key: phone.key(),
            proof: phone.sign(&claims),
        }
    });
    push.proof_hash = evidence
        .as_ref()
        .map(|one| sha256_text(one.proof.as_bytes()));
    push.answered_by = evidence.as_ref().map(|one| one.device.clone());
    push.factors = (state == PushState::Approved).then_some(Factors::Multi);
    let (mut lines, mut prev, mut own) = (Vec::new(), GENESIS.to_owned(), None);
    for seq in 1..=3 {
        let mut entry = json!({"v": 1, "id": AuditId::fresh(NOW + seq), "store": push.store, "at": shared::clock::rfc3339(NOW + 9_000),
            "act": format!("push_{state}"), "push": push.id, "user": push.user, "device": push.answered_by, "facts": facts(&push)});
        if seq != 2 {
            entry["act"] = json!("user_added");
        }
        let entry = without_nulls(entry);
        let (line, hash) = chained(entry, seq.unsigned_abs(), &prev);
        if seq == 2 {
            own = serde_json::from_str::<Entry>(&line).ok();
        }
        prev = hash;
        lines.push(line);
    }
    let head = Head::new(push.store.clone(), 3, prev, NOW + 10_000).signed(secret().signer());
    let log = format!("{}\n{{\"head\":\"{head}\"}}\n", lines.join("\n"));
    let parts = Parts {
        push: push.clone(),
        content: with_content.then(|| serde_json::to_value(content).unwrap()),
        fetched_at: Some(NOW + 3_000),
        evidence,
        entry: own.unwrap(),
    };
    let text = issue(parts, secret().signer(), NOW + 20_000);
    Made {
        text,
        log,
        phone,
        push,
    }
}

fn without_nulls(mut value: Value) -> Map<String, Value> {
    if let Value::Object(map) = &mut value {
        if let Some(Value::Object(facts)) = map.get_mut("facts") {
            facts.retain(|_, fact| !fact.is_null());
        }
        map.retain(|_, part| !part.is_null());
    }
    serde_json::from_value(value).unwrap()
}

fn kid() -> String {
    secret().signer().public().kid.clone()
}

fn claims_of(text: &str) -> Value {
    let payload = text.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

/// The receipt with its claims changed, signed by the very server: what a server that lies could write.
fn rewritten(text: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut claims = claims_of(text);
    change(&mut claims);
    secret().signer().sign_with_key(TYP, &claims)
}

#[test]
fn approvals_denials_and_expiries_have_receipts_that_hold() {
    for (state, reason) in [
        (PushState::Approved, "user_approved"),
        (PushState::Denied, "fraud_reported"),
        (PushState::Expired, "no_response"),
        (PushState::Cancelled, "by_sender"),
        (PushState::Failed, "throttled"),
    ] {
        for with_content in [false, true] {
            let made = made(state, reason, with_content);
            for pinned in [None, Some(kid())] {
                let verified = verify(&made.text, pinned.as_deref()).unwrap();
                assert_eq!(verified.receipt.push, made.push.id);
                assert_eq!(verified.receipt.state, state);
                let worth = verified.receipt.assurance.map(|worth| worth.factors);
                let multi = (state == PushState::Approved).then_some(Factors::Multi);
                assert_eq!(worth, multi);
                assert_eq!(verified.receipt.content.is_some(), with_content);
                assert_eq!(verified.key.kid, kid());
            }
            assert!(made.text.len() < 6_000, "small: {}", made.text.len());
            assert!(check(made.log.as_bytes(), Some(&kid()), |_| {}).is_ok());
        }
    }
}

#[test]
fn must_33_a_receipt_with_one_changed_byte_is_refused() {
    let made = made(PushState::Approved, "user_approved", true);
    let whole = made.text.into_bytes();
    let mut refused = 0;
    for at in 0..whole.len() {
        let flipped = whole[at] ^ 1;
        // Another letter of the same alphabet too, where the byte has one.
        let letter = if whole[at] == b'A' { b'B' } else { b'A' };
        for other in [flipped, letter, b'\n', b' '] {
            if other == whole[at] {
                continue;
            }
            let mut bytes = whole.clone();
            bytes[at] = other;
            let Ok(text) = String::from_utf8(bytes) else {
                refused += 1;
                continue;
            };
            for pinned in [None, Some(kid())] {
                assert!(verify(&text, pinned.as_deref()).is_err(), "byte {at}");
                refused += 1;
            }
        }
    }
    assert!(refused > 6 * whole.len());
    let text = String::from_utf8(whole).unwrap();
    for added in [
        format!("{text}\n"),
        format!(" {text}"),
        format!("\n{text}"),
        format!("{text}x"),
    ] {
        assert!(verify(&added, None).is_err());
    }
    assert!(
        verify(&text[..text.len() - 1], None).is_ok(),
        "the line feed alone may be left out"
    );
    assert!(verify(&text[..text.len() - 2], None).is_err());
}

/// What is wrong, and a receipt that is wrong in nothing else. The server signs each of them.
#[expect(
    clippy::too_many_lines,
    clippy::semicolon_if_nothing_returned,
    reason = "a list, a case each"
)]
fn lies() -> Vec<(&'static str, String, Broken)> {
    let made = made(PushState::Approved, "user_approved", true);
    let other = self::made(PushState::Approved, "user_approved", true);
    let (text, phone, push) = (&made.text, &made.phone, &made.push);
    let right = phone.claims(push, "approve");
    // A proof that the log knows by its hash, so that nothing but the proof is wrong.
    let with_proof = |proof: String| {
        rewritten(text, |claims| {
            let mut entry: Map<String, Value> =
                serde_json::from_value(claims["entry"].take()).unwrap();
            entry.remove("hash");
            entry["facts"]["proof_hash"] = json!(sha256_text(proof.as_bytes()));
            let prev = entry["prev"].as_str().unwrap().to_owned();
            let (line, hash) = chained(entry, 2, &prev);
            claims["entry"] = serde_json::from_str(&line).unwrap();
            claims["head"] =
                json!(Head::new(push.store.clone(), 2, hash, NOW).signed(secret().signer()));
            claims["evidence"]["proof"] = json!(proof);
        })
    };
    let changed = |name: &str, value: Value| {
        let mut claims = right.clone();
        claims[name] = value;
        with_proof(phone.sign(&claims))
    };
    let mut bare = right.clone();
    bare.as_object_mut().unwrap().remove("match");
    let (x, y) = (other.phone.sign(&right), claims_of(&other.text));
    vec![
        (
            "content changed",
            rewritten(text, |c| {
                c["content"]["title"] = json!("Pay 4000 EUR to Acme")
            }),
            Broken::Content,
        ),
        (
            "content hash changed",
            rewritten(text, |c| {
                c["content"].take();
                c.as_object_mut().unwrap().remove("content");
                c["content_hash"] = json!(sha256_text(b"x"));
            }),
            Broken::Entry("content_hash"),
        ),
        (
            "outcome changed",
            rewritten(text, |c| c["state"] = json!("denied")),
            Broken::Entry("act"),
        ),
        (
            "reason changed",
            rewritten(text, |c| c["reason"] = json!("x")),
            Broken::Entry("reason"),
        ),
        (
            "user changed",
            rewritten(text, |c| c["user"] = y["user"].clone()),
            Broken::Entry("user"),
        ),
        (
            "time changed",
            rewritten(text, |c| c["ended_at"] = c["created_at"].clone()),
            Broken::Entry("ended_at"),
        ),
        (
            "entry changed",
            rewritten(text, |c| c["entry"]["facts"]["reason"] = json!("x")),
            Broken::EntryHash,
        ),
        (
            "entry of another push",
            rewritten(text, |c| c["entry"] = y["entry"].clone()),
            Broken::Entry("store"),
        ),
        (
            "head of another log",
            rewritten(text, |c| c["head"] = y["head"].clone()),
            Broken::Head,
        ),
        (
            "proof left out",
            rewritten(text, |c| {
                c.as_object_mut().unwrap().remove("evidence");
            }),
            Broken::NoProof,
        ),
        (
            "another proof",
            rewritten(text, |c| {
                c["evidence"]["proof"] = y["evidence"]["proof"].clone()
            }),
            Broken::Entry("proof_hash"),
        ),
        (
            "another device's key",
            rewritten(text, |c| {
                c["evidence"]["device_key"] = json!(other.phone.key())
            }),
            Broken::Proof("signature"),
        ),
        (
            "signed by another device",
            with_proof(x),
            Broken::Proof("signature"),
        ),
        (
            "nonce changed",
            rewritten(text, |c| c["nonce"] = json!("x")),
            Broken::Proof("binding"),
        ),
        (
            "proof for another push",
            changed("sub", json!(other.push.id)),
            Broken::Proof("binding"),
        ),
        (
            "proof for another store",
            changed("aud", json!(other.push.store)),
            Broken::Proof("binding"),
        ),
        (
            "proof for another kind",
            changed("kind", json!("generic")),
            Broken::Proof("binding"),
        ),
        (
            "proof for other content",
            changed("content_hash", json!(sha256_text(b"x"))),
            Broken::Proof("content"),
        ),
        (
            "proof of a denial",
            changed("decision", json!("deny")),
            Broken::Proof("it says something else"),
        ),
        (
            "proof without the code",
            with_proof(phone.sign(&bare)),
            Broken::Proof("no code was typed"),
        ),
        (
            "worth less than the log says",
            rewritten(text, |c| c["assurance"]["factors"] = json!("single")),
            Broken::Entry("factors"),
        ),
        (
            "said to resist phishing",
            rewritten(text, |c| c["assurance"]["phishing_resistant"] = json!(true)),
            Broken::Claims("no approval resists phishing".to_owned()),
        ),
        (
            "two factors without user verification",
            changed("uv", json!("none")),
            Broken::Proof("the device did not verify its user"),
        ),
        (
            "unknown version",
            rewritten(text, |c| c["v"] = json!(2)),
            Broken::Claims("version 2".to_owned()),
        ),
    ]
}

#[test]
fn must_33_a_receipt_that_the_server_itself_rewrites_is_refused() {
    for (name, text, broken) in lies() {
        assert_eq!(verify(&text, Some(&kid())), Err(broken), "{name}");
    }
    let made = made(PushState::Approved, "user_approved", false);
    let stranger = ServerSecret::new(&Secret::new("somebody else's secret ".repeat(3))).unwrap();
    let forged = stranger.signer().sign_with_key(TYP, &claims_of(&made.text));
    assert!(matches!(
        verify(&forged, Some(&kid())),
        Err(Broken::Key { .. })
    ));
    // It holds by the stranger's key only as far as the head, which the server signed.
    assert_eq!(verify(&forged, None), Err(Broken::Head));
    let head = secret()
        .signer()
        .sign_with_key("countersign-audit-head+jwt", &json!({"v": 1}));
    assert_eq!(
        verify(&head, None),
        Err(Broken::Signature),
        "another use of the key"
    );
    assert_eq!(verify("", None), Err(Broken::Form));
}

/// A receipt of a push that asked for a batch of payments.
fn receipt_of_batch(
    state: PushState,
    reason: &str,
    with_content: bool,
    items: &[PaymentItem],
) -> Receipt {
    let shown = shown(items);
    let content = Content {
        details: vec![],
        payments: shown,
        ..content()
    };
    let text = made_of(state, reason, with_content, content).text;
    verify(&text, Some(&kid())).unwrap().receipt
}

#[test]
fn must_32_a_receipt_of_an_approved_batch_covers_its_payments_and_no_other() {
    let item = |amount: &str, name: &str| PaymentItem {
        amount: amount.to_owned(),
        currency: "EUR".to_owned(),
        payee: Payee {
            name: name.to_owned(),
            account: "IE29".to_owned(),
        },
        reference: None,
    };
    let items = [
        item("1.00", "Ada"),
        item("2.00", "Grace"),
        item("3.00", "Ada"),
    ];
    let approved =
        |content| receipt_of_batch(PushState::Approved, "user_approved", content, &items);
    let receipt = approved(true);
    let proof = |items: &[PaymentItem], index| prove(&receipt.push, items, index).unwrap();
    for index in 0..3 {
        assert_eq!(receipt.covers(&proof(&items, index)), Ok(()));
    }
    let mut dearer = items.to_vec();
    dearer[1].amount = "2.01".to_owned();
    assert_eq!(
        receipt.covers(&proof(&dearer, 0)),
        Err(ItemBroken::Root),
        "a payment of another batch, although it is the same"
    );
    let mut forged = proof(&items, 1);
    forged.item.amount = "2.01".to_owned();
    assert_eq!(receipt.covers(&forged), Err(ItemBroken::Leaf));
    let bare = approved(false);
    let of = prove(&bare.push, &items, 0).unwrap();
    assert_eq!(bare.covers(&of), Err(ItemBroken::NoContent));
    let denied = receipt_of_batch(PushState::Denied, "wrong_data", true, &items);
    let of = prove(&denied.push, &items, 0).unwrap();
    let refused = denied.covers(&of);
    assert_eq!(refused, Err(ItemBroken::NotApproved(PushState::Denied)));
    let single = made(PushState::Approved, "user_approved", true);
    let single = verify(&single.text, None).unwrap().receipt;
    let of = prove(&single.push, &items, 0).unwrap();
    assert_eq!(single.covers(&of), Err(ItemBroken::NoPayments));
    // The dearer batch has a hash of its own: no receipt of one is a receipt of the other.
    let other = receipt_of_batch(PushState::Approved, "user_approved", true, &dearer);
    assert_ne!(other.content_hash, receipt.content_hash);
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contracts/vectors")
}

/// The published receipts. A device's signature is random, so they are written once and then read.
#[test]
fn the_published_receipts_hold_and_the_published_lies_do_not() {
    if std::env::var("COUNTERSIGN_WRITE_RECEIPTS").is_ok() {
        write();
    }
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(folder().join(name)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    for name in ["approved", "denied", "expired"] {
        let vector = read(&format!("receipt-{name}.json"));
        let key = ServerKey::from_jwk(&vector["server_key"].to_string()).unwrap();
        let verified = verify(&text(&vector["receipt"]), Some(&key.kid)).unwrap();
        assert_eq!(
            serde_json::to_value(&verified.receipt).unwrap(),
            vector["says"],
            "{name}"
        );
        let log: Vec<_> = vector["log"].as_array().unwrap().iter().map(text).collect();
        let mut found = None;
        check(log.join("\n").as_bytes(), Some(&key.kid), |entry| {
            found = found
                .take()
                .or(Some(entry.clone()).filter(|e| e.seq == verified.receipt.entry.seq));
        })
        .unwrap();
        assert_eq!(found.as_ref(), Some(&verified.receipt.entry));
    }
    let broken = read("receipt-broken.json");
    let key = ServerKey::from_jwk(&broken["server_key"].to_string()).unwrap();
    let cases = broken["cases"].as_array().unwrap();
    assert_eq!(cases.len(), lies().len());
    for case in cases {
        let refused = verify(&text(&case["receipt"]), Some(&key.kid)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            text(&case["refused"]),
            "{}",
            case["name"]
        );
    }
}

fn write() {
    std::fs::create_dir_all(folder()).unwrap();
    let put = |name: &str, value: &Value| {
        let text = serde_json::to_string_pretty(value).unwrap() + "\n";
        std::fs::write(folder().join(name), text).unwrap();
    };
    let key = secret().signer().public().clone();
    for (name, state, reason) in [
        ("approved", PushState::Approved, "user_approved"),
        ("denied", PushState::Denied, "fraud_reported"),
        ("expired", PushState::Expired, "no_response"),
    ] {
        let made = made(state, reason, true);
        let log: Vec<_> = made.log.lines().collect();
        let vector = json!({"server_key": key, "receipt": made.text.trim_end(), "says": claims_of(&made.text), "log": log});
        put(&format!("receipt-{name}.json"), &vector);
    }
    let cases: Vec<_> = lies()
        .into_iter()
        .map(|(name, text, broken)| json!({"name": name, "receipt": text, "refused": broken.to_string()}))
        .collect();
    put(
        "receipt-broken.json",
        &json!({"server_key": key, "cases": cases}),
    );
}
