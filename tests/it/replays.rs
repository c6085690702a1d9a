//! A signed request counts once, wherever it is sent.

use harness::{Footing, RP, World, footings, raw};
use serde_json::{Value, json};
use shared::domain::Provider;
use simulator::phone::Phone;

const ADDRESS: &str = "/v1/device/push-address";
const PUSHES: &str = "/v1/device/pushes";

async fn put(at: &str, authorization: &str, body: &str) -> u16 {
    let headers = [("authorization", authorization)];
    raw(at, ("PUT", ADDRESS), &headers, body).await.0
}

fn new_address(phone: &Phone) -> String {
    let token = phone.rotate_token();
    json!({"provider": phone.provider(), "token": token}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn must_33_a_signed_change_counts_once_in_all_processes_and_after_a_restart() {
    for footing in footings() {
        let mut world = World::start(footing, "replay").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let other = world.another_api().await;
        let here = world.address().to_owned();
        let there = other.as_ref().map_or(&here, |(_, address)| address).clone();
        let (first, second) = (new_address(&phone), new_address(&phone));
        let signed = phone
            .authorization("PUT", ADDRESS, first.as_bytes())
            .unwrap();
        assert_eq!(put(&here, &signed, &first).await, 204, "{footing:?}");
        assert_eq!(put(&here, &signed, &first).await, 401);
        assert_eq!(put(&there, &signed, &first).await, 401, "elsewhere too");
        let newer = phone
            .authorization("PUT", ADDRESS, second.as_bytes())
            .unwrap();
        assert_eq!(put(&there, &newer, &second).await, 204);
        assert_eq!(put(&here, &newer, &second).await, 401);
        // What a process knew is gone with it; the database is not.
        let role = world.process_of("api");
        world.process("api").kill();
        world.start_role(role, None).await;
        for (authorization, body) in [(&signed, &first), (&newer, &second)] {
            assert_eq!(put(&here, authorization, body).await, 401, "{footing:?}");
        }
        // Of twenty at once, one counts.
        let third = new_address(&phone);
        let racing = phone
            .authorization("PUT", ADDRESS, third.as_bytes())
            .unwrap();
        let calls = (0..20).map(|n| {
            let at = if n % 2 == 0 { &here } else { &there };
            put(at, &racing, &third)
        });
        let statuses = futures_util::future::join_all(calls).await;
        let taken = statuses.iter().filter(|status| **status == 204).count();
        assert_eq!(taken, 1, "{footing:?} {statuses:?}");
        drop(other);
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_look_counts_once_in_a_process_and_for_nothing_else() {
    for footing in footings() {
        let world = World::start(footing, "reread").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let here = world.address().to_owned();
        let look = async |authorization: &str, method: &str, path: &str, body: &str| {
            let headers = [("authorization", authorization)];
            raw(&here, (method, path), &headers, body).await.0
        };
        let signed = phone.authorization("GET", PUSHES, b"").unwrap();
        assert_eq!(look(&signed, "GET", PUSHES, "").await, 200, "{footing:?}");
        assert_eq!(look(&signed, "GET", PUSHES, "").await, 401);
        let (push, _) = world.send(&Value::Null).await;
        let one = format!("{PUSHES}/{push}");
        for (method, path, body) in [
            ("GET", one.as_str(), ""),
            ("GET", PUSHES, "{}"),
            ("HEAD", PUSHES, ""),
        ] {
            let signed = phone.authorization("GET", PUSHES, b"").unwrap();
            assert_eq!(
                look(&signed, method, path, body).await,
                401,
                "{method} {path}"
            );
        }
        // Another phone's key under this one's name.
        let thief = Phone::new(Provider::Apns, "thief");
        let identity = phone.identity().unwrap();
        let (device, store) = (identity.device, identity.store);
        thief.enrolled(device, store, identity.server_key, &here);
        let signed = thief.authorization("GET", PUSHES, b"").unwrap();
        assert_eq!(look(&signed, "GET", PUSHES, "").await, 401);
        world.end().await;
    }
}

/// The address is where a wake-up goes, and no more: whoever has it gets no prompt, and who has lost it is still who it was.
#[tokio::test(flavor = "multi_thread")]
async fn must_07_the_key_proves_and_the_push_address_does_not() {
    for footing in footings() {
        let world = World::start(footing, "address").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let devices = format!("users/{}/devices", world.user);
        // A second device takes the first one's address: it rings there from now on.
        let second = Phone::new(Provider::Apns, "second");
        let body = json!({"name": "second", "relying_party": RP, "platform": "ios", "public_key": second.public_jwk(),
            "push_address": {"provider": "apns", "token": phone.push_token().expose()}});
        let made = world.in_store("POST", &devices, &body).await;
        let identity = phone.identity().unwrap();
        second.enrolled(
            made["id"].as_str().unwrap().parse().unwrap(),
            identity.store.clone(),
            identity.server_key.clone(),
            world.address(),
        );
        let own = identity.device.clone();
        let target = json!({"target": {"mode": "devices", "devices": [own]}});
        let (push, code) = world.send(&target).await;
        let foreign = second.fetch(&push).await;
        assert!(foreign.is_err(), "{footing:?}: asked was the other one");
        assert!(second.pending().await.unwrap().is_empty());
        let prompt = phone.fetch(&push).await.unwrap();
        let yes = simulator::Decision::Approve { code: code.clone() };
        assert_eq!(second.answer(&prompt, &yes).await.unwrap().status, 404);
        world.approve(&phone, &prompt, code.as_deref()).await;
        let shown = world
            .in_store("GET", &format!("{devices}/{own}"), &Value::Null)
            .await;
        assert_eq!(shown["push_address"], "invalid");
        assert!(shown.get("public_key").is_none() && shown.get("private_key").is_none());
        if footing == Footing::Embedded {
            // No private half is anywhere: what lies there is what was registered, or a part of it.
            let file = std::fs::read(world.folder.join("db.sqlite")).unwrap();
            let saved = phone.save().key;
            let needle = saved.expose().as_bytes();
            assert!(!file.windows(needle.len()).any(|part| part == needle));
        }
        world.end().await;
    }
}
