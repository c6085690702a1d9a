//! The vectors in `contracts/vectors`, for whoever writes the device's side: what holds, what does not, and why. Our own verifier gives each vector's verdict.
//!
//! `COUNTERSIGN_WRITE_CONTRACTS=1 cargo test -p shared --test vectors` makes them anew. The keys stay; ES256 signatures are others each time, EdDSA's are not.

#![expect(clippy::unwrap_used, reason = "a test may panic: that is its failing")]

mod bad;
mod keys;
mod made;
mod noise;
mod payments;

use keys::Keys;
use serde_json::Value;
use shared::crypto::{DeviceKey, Expected, Proof, ServerKey, Signed};
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contracts/vectors");
    root.join(name)
}

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file(name)).unwrap()).unwrap()
}

/// Writes a file where that was asked for; else what does not change by chance must be what lies there.
fn keep(name: &str, made: &Value) {
    if std::env::var("COUNTERSIGN_WRITE_CONTRACTS").is_ok() {
        let text = serde_json::to_string_pretty(made).unwrap();
        std::fs::write(file(name), text + "\n").unwrap();
        return;
    }
    let kept = read(name);
    let (kept, made) = (cases(&kept), cases(made));
    let names = |all: &[Value]| {
        all.iter()
            .map(|one| one["name"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&kept), names(&made), "{name}");
    for (kept, made) in kept.iter().zip(&made) {
        assert_eq!(kept["verdict"], made["verdict"], "{name}: {}", kept["name"]);
        // EdDSA signs alike each time; ES256 does not, also where it is the wrong one.
        if kept["alg"] == "EdDSA" && !text(kept, "name").contains("its own signature") {
            assert_eq!(kept, made, "{name}");
        }
    }
}

fn cases(file: &Value) -> Vec<Value> {
    file["vectors"].as_array().unwrap().clone()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

fn key(value: &Value) -> DeviceKey {
    serde_json::from_value(value.clone()).unwrap()
}

/// The word of a verdict: `holds`, or that of the fault.
fn word<T, F: std::fmt::Debug>(result: Result<T, F>) -> String {
    match result {
        Ok(_) => "holds".to_owned(),
        Err(fault) => format!("{fault:?}").to_lowercase(),
    }
}

/// What our verifier says of a proof, with everything expected taken from `expected`.
fn judged(proof: &str, key: &DeviceKey, expected: &Value) -> String {
    let (device, store, push) = (
        text(expected, "device").parse().unwrap(),
        text(expected, "store").parse().unwrap(),
        text(expected, "push").parse().unwrap(),
    );
    let expected = Expected {
        device: &device,
        store: &store,
        push: &push,
        nonce: text(expected, "nonce"),
        kind: text(expected, "kind").parse().unwrap(),
        content_hash: text(expected, "content_hash"),
        code: expected["code"].as_str(),
    };
    word(Proof::check(proof, key, &expected))
}

fn judged_request(vector: &Value) -> String {
    let signed = match Signed::read(text(vector, "authorization")) {
        Ok(signed) => signed,
        Err(fault) => return word::<(), _>(Err(fault)),
    };
    let request = &vector["request"];
    let body = text(request, "body").as_bytes();
    let now = vector["now"].as_i64().unwrap();
    let (method, path) = (text(request, "method"), text(request, "path"));
    word(signed.check(&key(&vector["key"]), method, path, body, now))
}

#[test]
fn must_02_29_33_every_proof_vector_gets_its_verdict() {
    let keys = Keys::get();
    keep("proofs.json", &made::proofs(&keys));
    let all = cases(&read("proofs.json"));
    for vector in &all {
        let verdict = judged(
            text(vector, "proof"),
            &key(&vector["key"]),
            &vector["expected"],
        );
        assert_eq!(verdict, text(vector, "verdict"), "{}", vector["name"]);
    }
    for alg in ["ES256", "EdDSA"] {
        let of = |verdict: &str| {
            let fits = |one: &&Value| {
                one["alg"] == alg && (one["verdict"] == "holds") == (verdict == "holds")
            };
            all.iter().filter(fits).count()
        };
        assert_eq!(of("holds"), 3, "{alg}: approve, approve with code, deny");
        assert!(of("refused") >= 3 * 8, "{alg}");
    }
}

#[test]
fn every_request_vector_gets_its_verdict() {
    keep("requests.json", &made::requests(&Keys::get()));
    for vector in cases(&read("requests.json")) {
        assert_eq!(
            judged_request(&vector),
            text(&vector, "verdict"),
            "{}",
            vector["name"]
        );
    }
}

/// Whether the whole prompt holds is a device's to say: `simulator/tests/it/vectors.rs`.
#[test]
fn every_prompt_vector_that_holds_is_signed_by_the_server() {
    keep("prompts.json", &made::prompts());
    for vector in cases(&read("prompts.json")) {
        let server: ServerKey = serde_json::from_value(vector["server_key"].clone()).unwrap();
        let signature = vector["prompt"]["signature"].as_str().unwrap_or_default();
        let claims = server.verified::<Value>(signature, "countersign-prompt+jwt");
        let unsigned = matches!(text(&vector, "verdict"), "unsigned" | "signature");
        let version = claims.as_ref().is_some_and(|claims| claims["ver"] == 1);
        assert_eq!(version, !unsigned, "{}", vector["name"]);
    }
}

#[test]
fn must_32_every_payment_vector_gets_its_verdict() {
    let made = payments::vectors();
    keep("payments.json", &made);
    let file = read("payments.json");
    assert_eq!(
        (&file["items"], &file["shown"]),
        (&made["items"], &made["shown"])
    );
    let approved = serde_json::from_value(file["shown"].clone()).unwrap();
    let all = cases(&file);
    assert!(all.len() > 25, "{}", all.len());
    for vector in all {
        let verdict = payments::judged(&vector["proof"], &approved);
        assert_eq!(verdict, text(&vector, "verdict"), "{}", vector["name"]);
    }
}

#[test]
fn must_33_no_bad_signature_is_taken() {
    let made = bad::signatures(&Keys::get());
    keep("signatures.json", &made);
    let all = cases(&read("signatures.json"));
    assert!(all.len() >= 50, "{}", all.len());
    for vector in all {
        let verdict = judged(
            text(&vector, "proof"),
            &key(&vector["key"]),
            &vector["expected"],
        );
        let held = verdict == "holds";
        let wanted = text(&vector, "verdict") == "holds";
        assert_eq!(held, wanted, "{}: {verdict}", vector["name"]);
        // The same fault in a request is none the better.
        let header = format!("Device {}", text(&vector, "proof"));
        assert!(
            Signed::read(&header).is_err(),
            "{}: another typ",
            vector["name"]
        );
    }
}

#[test]
fn a_key_of_small_order_or_of_no_point_is_none() {
    for refused in read("signatures.json")["keys_refused"].as_array().unwrap() {
        assert!(!key(&refused["key"]).is_sound(), "{}", refused["name"]);
    }
    let sound = cases(&read("proofs.json"));
    assert!(sound.iter().all(|vector| key(&vector["key"]).is_sound()));
}
