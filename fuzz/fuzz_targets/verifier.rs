//! Texts of any kind against everything that reads signed ones. Seeds: the texts in `contracts/vectors`.
//!
//! ```text
//! cargo +nightly fuzz run verifier -- -max_len=5000 -dict=fuzz/jws.dict
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use shared::crypto::{DeviceKey, Expected, Proof, ServerKey, Signed};
use shared::id::{DeviceId, PushId, StoreId};
use std::collections::HashSet;
use std::sync::OnceLock;

struct Vectors {
    proofs: Vec<Value>,
    requests: Vec<Value>,
    prompts: Vec<Value>,
    good: HashSet<String>,
}

fn vectors() -> &'static Vectors {
    static ALL: OnceLock<Vectors> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut good = HashSet::new();
        let mut held = |text: &str, member: &str| -> Vec<Value> {
            let file: Value = serde_json::from_str(text).unwrap_or_default();
            let all = file["vectors"].as_array().cloned().unwrap_or_default();
            let held: Vec<_> = all
                .into_iter()
                .filter(|one| one["verdict"] == "holds")
                .collect();
            let texts = held.iter().filter_map(|one| one.pointer(member)?.as_str());
            good.extend(texts.map(str::to_owned));
            held
        };
        let proofs = held(
            include_str!("../../contracts/vectors/proofs.json"),
            "/proof",
        );
        let requests = held(
            include_str!("../../contracts/vectors/requests.json"),
            "/authorization",
        );
        let prompts = held(
            include_str!("../../contracts/vectors/prompts.json"),
            "/prompt/signature",
        );
        // The second forms of good ES256 signatures.
        held(
            include_str!("../../contracts/vectors/signatures.json"),
            "/proof",
        );
        Vectors {
            proofs,
            requests,
            prompts,
            good,
        }
    })
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn id<T: std::str::FromStr>(value: &Value, name: &str) -> Option<T> {
    text(value, name).parse().ok()
}

fn proof(noise: &str, vector: &Value) -> Option<bool> {
    let key: DeviceKey = serde_json::from_value(vector["key"].clone()).ok()?;
    let of = &vector["expected"];
    let (device, store, push): (DeviceId, StoreId, PushId) =
        (id(of, "device")?, id(of, "store")?, id(of, "push")?);
    let expected = Expected {
        device: &device,
        store: &store,
        push: &push,
        nonce: text(of, "nonce"),
        kind: text(of, "kind").parse().ok()?,
        content_hash: text(of, "content_hash"),
        code: of["code"].as_str(),
    };
    Some(Proof::check(noise, &key, &expected).is_ok())
}

fn request(noise: &str, vector: &Value) -> Option<bool> {
    let key: DeviceKey = serde_json::from_value(vector["key"].clone()).ok()?;
    let of = &vector["request"];
    let signed = Signed::read(noise).ok()?;
    let (method, path, body) = (text(of, "method"), text(of, "path"), text(of, "body"));
    let now = vector["now"].as_i64()?;
    Some(
        signed
            .check(&key, method, path, body.as_bytes(), now)
            .is_ok(),
    )
}

fn prompt(noise: &str, vector: &Value) -> Option<bool> {
    let key: ServerKey = serde_json::from_value(vector["server_key"].clone()).ok()?;
    Some(
        key.verified::<Value>(noise, "countersign-prompt+jwt")
            .is_some(),
    )
}

fuzz_target!(|noise: &str| {
    let all = vectors();
    let taken = all.proofs.iter().any(|one| proof(noise, one) == Some(true))
        || all
            .requests
            .iter()
            .any(|one| request(noise, one) == Some(true))
        || all
            .prompts
            .iter()
            .any(|one| prompt(noise, one) == Some(true));
    assert!(!taken || all.good.contains(noise), "{noise}");
    // A key is a text from outside too.
    if let Ok(key) = serde_json::from_str::<DeviceKey>(noise) {
        let _sound = key.is_sound();
    }
});
