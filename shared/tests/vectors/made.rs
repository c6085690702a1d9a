//! Proofs, requests and prompts, each with what is changed about it.

#![expect(clippy::too_many_lines, reason = "lists of cases")]

use crate::keys::{Key, Keys, b64};
use crate::payments::items;
use serde_json::{Value, json};
use shared::crypto::{ServerSecret, Signer, content_hash, match_of};
use shared::domain::Content;
use shared::payments;
use shared::secret::Secret;

pub(crate) const DEVICE: &str = "dev_00000000000000000000000001";
const OTHER_DEVICE: &str = "dev_00000000000000000000000002";
pub(crate) const STORE: &str = "sto_00000000000000000000000001";
const OTHER_STORE: &str = "sto_00000000000000000000000002";
pub(crate) const PUSH: &str = "psh_00000000000000000000000001";
const OTHER_PUSH: &str = "psh_00000000000000000000000002";
pub(crate) const NONCE: &str = "bm9uY2Ugb2YgYSB0ZXN0IHZlY3Rvcg";
const CODE: &str = "042137";
const NOW: i64 = 1_764_000_000_000;
pub(crate) const PROOF: &str = "countersign-proof+jwt";
const REQUEST: &str = "countersign-request+jwt";
const PROMPT: &str = "countersign-prompt+jwt";

pub(crate) fn shown() -> Value {
    json!({"kind": "confirm", "relying_party": "payroll", "title": "Pay 5.00 EUR — Zürich", "message": "Invoice 4711",
        "details": [{"label": "Payee", "value": "Grace"}], "context": {"ip": "203.0.113.7", "place": "Cork"}})
}

pub(crate) fn hash() -> String {
    content_hash(&serde_json::from_value::<Content>(shown()).unwrap())
}

pub(crate) fn header(alg: &str, typ: &str, kid: &str) -> String {
    json!({"alg": alg, "typ": typ, "kid": kid}).to_string()
}

pub(crate) fn expected(code: bool) -> Value {
    json!({"device": DEVICE, "store": STORE, "push": PUSH, "nonce": NONCE, "kind": "confirm", "content_hash": hash(),
        "code": code.then_some(CODE)})
}

/// The claims of `approve`, `approve with code` or `deny`.
pub(crate) fn claims(what: &str) -> Value {
    let decision = if what == "deny" { "deny" } else { "approve" };
    let mut claims = json!({"ver": 1, "iss": DEVICE, "aud": STORE, "sub": PUSH, "jti": "jti of a test vector", "iat": NOW / 1000,
        "nonce": NONCE, "decision": decision, "kind": "confirm", "content_hash": hash(), "uv": "device"});
    match what {
        "approve with code" => claims["match"] = match_of(NONCE, CODE).into(),
        "deny" => claims["reason"] = "fraud_reported".into(),
        _ => {}
    }
    claims
}

fn changed(claims: &Value, name: &str, value: &Value) -> Value {
    let mut changed = claims.clone();
    if value.is_null() {
        changed.as_object_mut().unwrap().remove(name);
    } else {
        changed[name] = value.clone();
    }
    changed
}

/// What may be substituted in a proof, and the fault that is found.
fn substitutions(decision: &str) -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let other = if decision == "deny" {
        "approve"
    } else {
        "deny"
    };
    let mut all = vec![
        ("another push", "sub", json!(OTHER_PUSH), "binding"),
        ("another store", "aud", json!(OTHER_STORE), "binding"),
        ("another device", "iss", json!(OTHER_DEVICE), "binding"),
        ("an older version", "ver", json!(0), "binding"),
        ("a newer version", "ver", json!(2), "binding"),
        ("no version", "ver", Value::Null, "form"),
        ("another kind", "kind", json!("generic"), "binding"),
        ("an unknown kind", "kind", json!("login"), "form"),
        ("another nonce", "nonce", json!("x"), "binding"),
        (
            "another content",
            "content_hash",
            json!(b64([0; 32])),
            "content",
        ),
        (
            "an unknown decision",
            "decision",
            json!("maybe"),
            "decision",
        ),
        ("an unknown reason", "reason", json!("bored"), "decision"),
        (
            "an unknown user verification",
            "uv",
            json!("thumb"),
            "decision",
        ),
        ("an unknown claim", "exp", json!(NOW / 1000 + 60), "form"),
    ];
    // A denial's reason makes no approval, and an approval without the code is none where one is asked for.
    let flipped = match decision {
        "deny" => Some("decision"),
        _ => None,
    };
    all.extend(flipped.map(|fault| ("the other decision", "decision", json!(other), fault)));
    all
}

pub(crate) fn proofs(keys: &Keys) -> Value {
    let mut vectors = Vec::new();
    for (own, stranger) in &keys.0 {
        for what in ["approve", "approve with code", "deny"] {
            let code = what != "approve";
            let good = claims(what);
            let head = header(own.alg(), PROOF, DEVICE);
            let mut add = |name: &str, proof: String, verdict: &str| {
                vectors.push(json!({"name": format!("{}, {what}: {name}", own.alg()), "alg": own.alg(), "key": own.jwk(),
                    "expected": expected(code), "proof": proof, "verdict": verdict}));
            };
            let held = own.sign(&head, &good.to_string());
            add("holds", held.clone(), "holds");
            for (name, claim, value, fault) in substitutions(good["decision"].as_str().unwrap()) {
                let proof = own.sign(&head, &changed(&good, claim, &value).to_string());
                add(name, proof, fault);
                // The same, put under the signature of what was really said.
                let signature = held.rsplit_once('.').unwrap().1;
                let payload = b64(changed(&good, claim, &value).to_string());
                let forged = format!("{}.{payload}.{signature}", b64(&head));
                add(&format!("{name}, not signed anew"), forged, "signature");
            }
            if what == "approve with code" {
                for (name, value) in [
                    ("no code", Value::Null),
                    ("another code", json!(match_of(NONCE, "042138"))),
                    ("the code in clear", json!(CODE)),
                ] {
                    add(
                        name,
                        own.sign(&head, &changed(&good, "match", &value).to_string()),
                        "code",
                    );
                }
            }
            let typ = header(own.alg(), REQUEST, DEVICE);
            add(
                "the type of a request",
                own.sign(&typ, &good.to_string()),
                "form",
            );
            let kid = header(own.alg(), PROOF, OTHER_DEVICE);
            add(
                "another device in the header",
                own.sign(&kid, &good.to_string()),
                "binding",
            );
            add(
                "a stranger's key",
                stranger.sign(&head, &good.to_string()),
                "signature",
            );
        }
    }
    json!({"about": "Proofs of devices: docs/device-protocol.md, The proof. `verdict` is `holds`, or the fault that the operator is told; a caller is told no more than that it is refused.",
        "vectors": vectors})
}

fn request_claims(request: &Value) -> Value {
    let body = request["body"].as_str().unwrap();
    json!({"iss": DEVICE, "htm": request["method"], "htu": request["path"], "iat": NOW / 1000, "jti": "0123456789abcdef",
        "bh": shared::crypto::sha256_text(body.as_bytes())})
}

pub(crate) fn requests(keys: &Keys) -> Value {
    let mut vectors = Vec::new();
    let path = format!("/v1/device/pushes/{PUSH}/answer");
    for (own, stranger) in &keys.0 {
        for request in [
            json!({"method": "GET", "path": "/v1/device/pushes", "body": ""}),
            json!({"method": "POST", "path": path, "body": "{\"proof\":\"…\"}"}),
        ] {
            let good = request_claims(&request);
            let head = header(own.alg(), REQUEST, DEVICE);
            let mut add = |name: &str, jws: String, verdict: &str| {
                let name = format!(
                    "{}, {}: {name}",
                    own.alg(),
                    request["method"].as_str().unwrap()
                );
                vectors.push(json!({"name": name, "alg": own.alg(), "key": own.jwk(), "now": NOW, "request": request,
                    "authorization": format!("Device {jws}"), "verdict": verdict}));
            };
            add("holds", own.sign(&head, &good.to_string()), "holds");
            let late = NOW / 1000 - 61;
            for (name, claim, value, fault) in [
                ("another device", "iss", json!(OTHER_DEVICE), "binding"),
                ("another method", "htm", json!("DELETE"), "binding"),
                (
                    "another path",
                    "htu",
                    json!("/v1/device/push-address"),
                    "binding",
                ),
                ("another body", "bh", json!(b64([0; 32])), "binding"),
                ("60 s ago", "iat", json!(late + 1), "holds"),
                ("61 s ago", "iat", json!(late), "time"),
                ("61 s ahead", "iat", json!(NOW / 1000 + 61), "time"),
                ("a short jti", "jti", json!("0123456789abcde"), "binding"),
                ("a long jti", "jti", json!("0".repeat(65)), "binding"),
                (
                    "a jti with a space",
                    "jti",
                    json!("0123456789 abcdef"),
                    "binding",
                ),
                ("no jti", "jti", Value::Null, "form"),
                ("an unknown claim", "exp", json!(1), "form"),
            ] {
                let jws = own.sign(&head, &changed(&good, claim, &value).to_string());
                add(name, jws, fault);
            }
            let typ = header(own.alg(), PROOF, DEVICE);
            add(
                "the type of a proof",
                own.sign(&typ, &good.to_string()),
                "form",
            );
            add(
                "a stranger's key",
                stranger.sign(&head, &good.to_string()),
                "signature",
            );
            let kid = header(own.alg(), REQUEST, "nobody");
            add(
                "a header that names no device",
                own.sign(&kid, &good.to_string()),
                "form",
            );
        }
    }
    json!({"about": "Signed requests of devices: docs/device-protocol.md, Every request is signed. `now` is the server's clock in milliseconds.", "vectors": vectors})
}

pub(crate) fn prompts() -> Value {
    let server = |text: &str| ServerSecret::new(&Secret::new(text.repeat(43))).unwrap();
    let (own, stranger) = (server("0"), server("1"));
    let expires_at = "2026-11-24T12:00:00.000Z";
    let claims = json!({"ver": 1, "iss": STORE, "aud": DEVICE, "sub": PUSH, "iat": NOW / 1000, "state": "pending", "nonce": NONCE,
        "kind": "confirm", "content_hash": hash(), "match_required": true, "expires_at": expires_at});
    let good = json!({"push": PUSH, "store": STORE, "state": "pending", "shown": shown(), "content_hash": hash(), "nonce": NONCE,
        "match_required": true, "expires_at": expires_at, "signature": own.signer().sign(PROMPT, &claims)});
    let mut vectors = Vec::new();
    let mut add = |name: &str, prompt: Value, verdict: &str| {
        vectors.push(json!({"name": name, "alg": "EdDSA", "server_key": own.signer().public(), "device": DEVICE, "store": STORE,
            "push": PUSH, "prompt": prompt, "verdict": verdict}));
    };
    add("holds", good.clone(), "holds");
    for (name, member, value, verdict) in [
        ("not signed", "signature", Value::Null, "unsigned"),
        ("another push", "push", json!(OTHER_PUSH), "push"),
        ("another store", "store", json!(OTHER_STORE), "device"),
        ("another state", "state", json!("approved"), "changed"),
        ("another nonce", "nonce", json!("x"), "changed"),
        ("no code needed", "match_required", json!(false), "changed"),
        (
            "a later end",
            "expires_at",
            json!("2036-11-24T12:00:00.000Z"),
            "changed",
        ),
    ] {
        add(name, changed(&good, member, &value), verdict);
    }
    for (name, member, value) in [
        ("another title", "title", json!("Pay 9.00 EUR — Zürich")),
        ("another kind is shown", "kind", json!("generic")),
        ("no message", "message", Value::Null),
        (
            "another context",
            "context",
            json!({"ip": "203.0.113.8", "place": "Cork"}),
        ),
        ("something more is shown", "added", json!("x")),
    ] {
        let mut prompt = good.clone();
        prompt["shown"] = changed(&shown(), member, &value);
        add(name, prompt, "content");
    }
    for (name, claim, value, verdict) in [
        (
            "signed for another device",
            "aud",
            json!(OTHER_DEVICE),
            "device",
        ),
        (
            "signed for another store",
            "iss",
            json!(OTHER_STORE),
            "device",
        ),
        ("signed for another push", "sub", json!(OTHER_PUSH), "push"),
        ("signed in an older version", "ver", json!(0), "signature"),
    ] {
        let mut prompt = good.clone();
        prompt["signature"] = own
            .signer()
            .sign(PROMPT, &changed(&claims, claim, &value))
            .into();
        add(name, prompt, verdict);
    }
    batches(&mut add, &claims, &good, own.signer());
    let with = |signature: String| changed(&good, "signature", &json!(signature));
    add(
        "another server's key",
        with(stranger.signer().sign(PROMPT, &claims)),
        "signature",
    );
    add(
        "signed as a receipt",
        with(own.signer().sign("countersign-receipt+jwt", &claims)),
        "signature",
    );
    let mut parts: Vec<_> = good["signature"]
        .as_str()
        .unwrap()
        .split('.')
        .map(str::to_owned)
        .collect();
    parts[1] = b64(changed(&claims, "match_required", &json!(false)).to_string());
    add(
        "claims put under another signature",
        with(parts.join(".")),
        "signature",
    );
    json!({"about": "Prompts as one device fetches them: docs/device-protocol.md, What the server signs. `verdict` is what the device makes of it.", "vectors": vectors})
}

/// A prompt for a batch of payments, and what somebody on the way may change of it.
fn batches(
    add: &mut impl FnMut(&str, Value, &str),
    claims: &Value,
    prompt: &Value,
    signer: &Signer,
) {
    let batch = changed(&shown(), "payments", &json!(payments::shown(&items())));
    let batch = changed(&batch, "details", &Value::Null);
    let hash = content_hash(&serde_json::from_value::<Content>(batch.clone()).unwrap());
    let claims = changed(claims, "content_hash", &json!(hash));
    let mut good = changed(prompt, "content_hash", &json!(hash));
    good["signature"] = signer.sign(PROMPT, &claims).into();
    good["shown"] = batch;
    add("a batch of payments holds", good.clone(), "holds");
    for (name, pointer, value) in [
        ("another total", "/totals/1/amount", json!("12.50")),
        ("another number", "/count", json!(4)),
        ("another payee", "/payees/0/payee/name", json!("Mallory")),
        (
            "another part of a payee",
            "/payees/0/totals/0/amount",
            json!("1"),
        ),
        ("another root", "/root", json!(b64([0; 32]))),
        ("no payees", "/payees", json!([])),
    ] {
        let mut prompt = good.clone();
        *prompt["shown"]["payments"].pointer_mut(pointer).unwrap() = value;
        add(&format!("a batch of payments: {name}"), prompt, "content");
    }
}

/// For `bad.rs`.
pub(crate) fn good(key: &Key) -> (String, String) {
    (
        header(key.alg(), PROOF, DEVICE),
        claims("approve").to_string(),
    )
}
