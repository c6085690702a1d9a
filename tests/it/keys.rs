//! Whose keys count: those that a policy takes, those that are sound, and the server's own.

use harness::{RP, World, footings};
use serde_json::{Value, json};
use shared::domain::{KeyAlgorithm, Provider};
use simulator::fleet::Behaviour;
use simulator::phone::Phone;
use std::time::Duration;

fn registration(key: &Value) -> Value {
    json!({"name": "pocket", "relying_party": RP, "platform": "ios", "public_key": key})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_with_either_kind_of_key_answers() {
    for footing in footings() {
        let world = World::start(footing, "kinds").await;
        for algorithm in KeyAlgorithm::ALL {
            let phone = Phone::with_key(Provider::Apns, algorithm.as_str(), *algorithm);
            let device = world.register(&phone).await;
            let path = format!("users/{}/devices/{device}", world.user);
            let shown = world.in_store("GET", &path, &Value::Null).await;
            assert_eq!(shown["algorithm"], algorithm.as_str(), "{footing:?}");
            let (push, code) = world.send(&Value::Null).await;
            let prompt = world.rung(&phone, &push).await;
            world.approve(&phone, &prompt, code.as_deref()).await;
            world.fleet.set_behaviour(phone.name(), Behaviour::Ignore);
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_appkey_policy_says_which_keys_may_register() {
    for footing in footings() {
        let world = World::start(footing, "algorithms").await;
        let devices = format!("users/{}/devices", world.user);
        let policy = format!("appkey-policies/{RP}");
        let asked = world.in_store("GET", &policy, &Value::Null).await;
        assert_eq!(
            asked["algorithms"],
            json!(["ES256", "EdDSA"]),
            "{footing:?}"
        );
        let key = |algorithm| Phone::with_key(Provider::Apns, "pocket", algorithm).public_jwk();
        for (allowed, other) in [
            (KeyAlgorithm::EdDsa, KeyAlgorithm::Es256),
            (KeyAlgorithm::Es256, KeyAlgorithm::EdDsa),
        ] {
            let body = json!({"platforms": ["ios"], "max_devices": 10, "user_verification": "none", "algorithms": [allowed]});
            world.in_store("PUT", &policy, &body).await;
            assert_eq!(world.in_store("GET", &policy, &Value::Null).await, body);
            world
                .in_store("POST", &devices, &registration(&key(allowed)))
                .await;
            let refused = world
                .reply("POST", &devices, &registration(&key(other)), &[])
                .await;
            assert_eq!(refused.status.as_u16(), 422);
            let fault = &refused.body["errors"][0];
            assert_eq!(
                (&fault["pointer"], &fault["code"]),
                (&json!("/public_key"), &json!("not_allowed"))
            );
        }
        let none = json!({"platforms": ["ios"], "max_devices": 10, "user_verification": "none", "algorithms": []});
        let refused = world.reply("PUT", &policy, &none, &[]).await;
        assert_eq!(refused.status.as_u16(), 422);
        // A body that says nothing of it, as an older caller sends it, allows both.
        let silent = json!({"platforms": ["ios"], "max_devices": 10, "user_verification": "none"});
        let set = world.in_store("PUT", &policy, &silent).await;
        assert_eq!(set["algorithms"], json!(["ES256", "EdDSA"]));
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_none_cannot_register() {
    for footing in footings() {
        let world = World::start(footing, "unsound").await;
        let devices = format!("users/{}/devices", world.user);
        let p256 = Phone::new(Provider::Apns, "a").public_jwk();
        let ed = Phone::with_key(Provider::Apns, "a", KeyAlgorithm::EdDsa).public_jwk();
        let with = |key: &Value, name: &str, value: Value| {
            let mut key = key.clone();
            key[name] = value;
            key
        };
        // Zero is of small order on Curve25519 and on no point of P-256; one is the identity.
        let zero = "A".repeat(43);
        let one = format!("AQ{}", "A".repeat(41));
        let bad = [
            with(&p256, "x", json!(zero)),
            with(&p256, "x", p256["y"].clone()),
            with(&p256, "y", Value::Null),
            with(&p256, "crv", json!("P-384")),
            with(&p256, "kty", json!("OKP")),
            with(&ed, "x", json!(zero)),
            with(&ed, "x", json!(one)),
            with(&ed, "x", json!("AA")),
            with(&ed, "crv", json!("X25519")),
            with(&ed, "kty", json!("EC")),
            with(&ed, "y", p256["y"].clone()),
            json!({"kty": "oct", "crv": "", "x": zero}),
        ];
        for key in bad {
            let refused = world
                .reply("POST", &devices, &registration(&key), &[])
                .await;
            assert_eq!(refused.status.as_u16(), 422, "{footing:?} {key}");
            let fault = &refused.body["errors"][0];
            assert_eq!(
                (&fault["pointer"], &fault["code"]),
                (&json!("/public_key"), &json!("wrong_form")),
                "{key}"
            );
        }
        // The private half has no place here.
        let private = with(&p256, "d", json!(zero));
        let refused = world
            .reply("POST", &devices, &registration(&private), &[])
            .await;
        assert_eq!(refused.body["errors"][0]["pointer"], "/public_key/d");
        let list = world.in_store("GET", &devices, &Value::Null).await;
        assert_eq!(list["data"], json!([]));
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gets_the_server_s_key_and_anybody_can_read_it() {
    for footing in footings() {
        let world = World::start(footing, "serverkey").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let stranger = cli::client::Client::new(cli::client::Context {
            url: world.address().to_owned(),
            key: shared::secret::Secret::new("none"),
            store: String::new(),
        });
        let shown = stranger
            .call("GET", "/v1/server-key", None, &[], Duration::from_secs(20))
            .await
            .unwrap();
        assert_eq!(shown.status.as_u16(), 200, "{footing:?}");
        let pinned = serde_json::to_value(phone.identity().unwrap().server_key).unwrap();
        assert_eq!(shown.body, pinned);
        world.end().await;
    }
}
