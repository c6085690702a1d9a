//! What bad input gets, and what callers may rely on.

use cli::client::{Client, Context};
use harness::{World, footings};
use serde_json::{Value, json};
use shared::domain::Provider;
use shared::secret::Secret;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_body_is_told_at_once_with_its_pointer() {
    for footing in footings() {
        let world = World::start(footing, "faults").await;
        let bad = json!({"user": {"external_id": "ada", "extra": 1}, "relying_party": "pay roll", "kind": "confirm",
            "title": "x".repeat(101), "message": "evil \u{202e}txet", "details": [{"label": "a", "value": 5}],
            "context": {"ip": "localhost", "agent": "Fire\u{2066}fox", "place": "Cork\n", "city": "Cork"},
            "expires_in": "601s", "target": {"mode": "devices"}, "unknown": true});
        let refused = world.reply("POST", "pushes", &bad, &[]).await;
        assert_eq!(refused.status.as_u16(), 422, "{footing:?}");
        let pointers: Vec<_> = refused.body["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["pointer"].as_str().unwrap())
            .collect();
        for pointer in [
            "/user/extra",
            "/relying_party",
            "/title",
            "/message",
            "/details/0/value",
            "/context/ip",
            "/context/agent",
            "/context/place",
            "/context/city",
            "/unknown",
            "/expires_in",
            "/target/devices",
        ] {
            assert!(
                pointers.contains(&pointer),
                "{pointer} is not in {pointers:?}"
            );
        }
        // What the schema cannot say is told with the rest.
        let more = World::confirm(
            &json!({"expires_in": "601s", "target": {"mode": "devices"}, "reply_to": "ext.other.q"}),
        );
        let refused = world.reply("POST", "pushes", &more, &[]).await;
        let pointers: Vec<_> = refused.body["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["pointer"].as_str().unwrap())
            .collect();
        assert_eq!(pointers, ["/target/devices", "/reply_to", "/expires_in"]);
        for more in [
            json!({"expires_in": "9s"}),
            json!({"context": {}}),
            json!({"context": {"ip": null}}),
        ] {
            let refused = world
                .reply("POST", "pushes", &World::confirm(&more), &[])
                .await;
            assert_eq!(refused.status.as_u16(), 422, "{more}");
        }
        let stranger = World::confirm(&json!({"user": {"external_id": "nobody"}}));
        assert_eq!(
            world
                .reply("POST", "pushes", &stranger, &[])
                .await
                .status
                .as_u16(),
            404
        );
        assert_eq!(refused.body["type"], "/problems/invalid");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_asks_once() {
    for footing in footings() {
        let world = World::start(footing, "idem").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let body = World::confirm(&Value::Null);
        let key = [("idempotency-key", "k-1")];
        let calls: Vec<_> = (0..20)
            .map(|_| world.reply("POST", "pushes", &body, &key))
            .collect();
        let replies = futures_util::future::join_all(calls).await;
        let taken: Vec<_> = replies
            .iter()
            .filter(|r| r.status.as_u16() == 202)
            .collect();
        let running = replies.iter().filter(|r| r.status.as_u16() == 409).count();
        assert_eq!(taken.len() + running, 20, "{footing:?}");
        assert!(
            !taken.is_empty() && taken.iter().all(|r| r.body == taken[0].body),
            "one push, one answer"
        );
        let again = world.reply("POST", "pushes", &body, &key).await;
        assert_eq!(again.body, taken[0].body);
        let other = World::confirm(&json!({"title": "Something else"}));
        let reused = world.reply("POST", "pushes", &other, &key).await;
        assert_eq!(
            (reused.status.as_u16(), &reused.body["code"]),
            (422, &json!("idempotency_reused"))
        );
        let push = taken[0].body["id"].as_str().unwrap().parse().unwrap();
        world.rung(&phone, &push).await;
        let all = world.in_store("GET", "pushes", &Value::Null).await;
        assert_eq!(all["data"].as_array().unwrap().len(), 1);
        let bad = world
            .reply("POST", "pushes", &body, &[("idempotency-key", "a b")])
            .await;
        assert_eq!(
            (bad.status.as_u16(), &bad.body["code"]),
            (400, &json!("bad_parameter"))
        );
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_store_is_as_absent_as_one_that_never_was() {
    for footing in footings() {
        let world = World::start(footing, "foreign").await;
        let other = world
            .ask("POST", "/v1/stores", &json!({"name": "Other"}))
            .await;
        let scoped = world
            .in_store(
                "POST",
                "keys",
                &json!({"name": "sender", "scopes": ["pushes:write"]}),
            )
            .await;
        let client = Client::new(Context {
            url: world.address().to_owned(),
            key: Secret::new(scoped["key"].as_str().unwrap()),
            store: world.store.to_string(),
        });
        let get = async |path: String| {
            client
                .call("GET", &path, None, &[], Duration::ZERO)
                .await
                .unwrap()
        };
        let foreign = get(format!(
            "/v1/stores/{}/pushes",
            other["id"].as_str().unwrap()
        ))
        .await;
        let absent = get("/v1/stores/sto_00000000000000000000000000/pushes".to_owned()).await;
        assert_eq!(
            (foreign.status, &foreign.body),
            (absent.status, &absent.body),
            "{footing:?}"
        );
        assert_eq!(foreign.status.as_u16(), 404);
        let own = get(format!("/v1/stores/{}/pushes", world.store)).await;
        assert_eq!(
            (own.status.as_u16(), &own.body["code"]),
            (403, &json!("forbidden")),
            "its own store, without the scope"
        );
        let more = world
            .in_store("POST", "keys", &json!({"name": "keys", "scopes": ["keys"]}))
            .await;
        let giver = Client::new(Context {
            url: world.address().to_owned(),
            key: Secret::new(more["key"].as_str().unwrap()),
            store: world.store.to_string(),
        });
        let path = format!("/v1/stores/{}/keys", world.store);
        let all = json!({"name": "all", "scopes": ["*"]});
        let refused = giver
            .call("POST", &path, Some(&all), &[], Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(
            refused.status.as_u16(),
            403,
            "nobody gives away what they lack"
        );
        let path = format!("keys/{}", scoped["id"].as_str().unwrap());
        assert_eq!(
            world
                .reply("DELETE", &path, &Value::Null, &[])
                .await
                .status
                .as_u16(),
            204
        );
        harness::until(5, "revoked", || async {
            Some(()).filter(|()| true)?;
            let refused = get(format!("/v1/stores/{}/pushes", world.store)).await;
            (refused.status.as_u16() == 401).then_some(())
        })
        .await;
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_get_a_problem_and_never_a_crash() {
    for footing in footings() {
        let world = World::start(footing, "malformed").await;
        for (method, path, body, status, code) in [
            ("GET", "pushes?limit=0", Value::Null, 400, "bad_parameter"),
            ("GET", "pushes?limit=x", Value::Null, 400, "bad_parameter"),
            ("GET", "pushes?what=1", Value::Null, 400, "bad_parameter"),
            (
                "GET",
                "pushes?cursor=abc",
                Value::Null,
                400,
                "bad_parameter",
            ),
            ("GET", "pushes/psh_1", Value::Null, 404, "not_found"),
            ("GET", "nothing", Value::Null, 404, "not_found"),
            ("DELETE", "pushes", Value::Null, 405, "method_not_allowed"),
            ("POST", "pushes", json!([]), 422, "invalid"),
            (
                "GET",
                "users?external_id=%00",
                Value::Null,
                400,
                "bad_parameter",
            ),
            ("POST", "pushes", json!("x"), 422, "invalid"),
            (
                "POST",
                "users",
                json!({"external_id": "ada"}),
                409,
                "exists",
            ),
            ("POST", "users", json!({"external_id": ""}), 422, "invalid"),
            (
                "PUT",
                "push-policies/a%20b",
                json!({"name": "x"}),
                400,
                "bad_parameter",
            ),
            (
                "PUT",
                "push-policies/x",
                json!({"name": "x"}),
                422,
                "invalid",
            ),
        ] {
            let reply = world.reply(method, path, &body, &[]).await;
            assert_eq!(
                (reply.status.as_u16(), &reply.body["code"]),
                (status, &json!(code)),
                "{footing:?} {method} {path} {}",
                reply.body
            );
        }
        let nobody = Client::new(Context {
            url: world.address().to_owned(),
            key: Secret::new("cs_wrong"),
            store: String::new(),
        });
        let refused = nobody
            .call("GET", "/v1/stores", None, &[], Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(refused.status.as_u16(), 401);
        for path in [
            "/livez",
            "/readyz",
            "/openapi.json",
            "/docs/api/",
            "/problems/invalid",
            "/metrics",
        ] {
            let reply = nobody
                .call("GET", path, None, &[], Duration::ZERO)
                .await
                .unwrap();
            assert_eq!(reply.status.as_u16(), 200, "{path}");
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_request_counts_once_and_only_for_what_it_was_signed_for() {
    for footing in footings() {
        let world = World::start(footing, "signed").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let anonymous = Client::new(Context {
            url: world.address().to_owned(),
            key: Secret::new("none"),
            store: String::new(),
        });
        let signed = phone
            .authorization("GET", "/v1/device/pushes", b"")
            .unwrap();
        let call = async |method: &'static str, path: &'static str, header: String| {
            // The client's own authorization comes first; the raw one must be the only one.
            raw(anonymous_address(&world), method, path, &header).await
        };
        assert_eq!(
            call("GET", "/v1/device/pushes", signed.clone()).await,
            200,
            "{footing:?}"
        );
        assert_eq!(call("GET", "/v1/device/pushes", signed).await, 401, "twice");
        let other = phone
            .authorization("GET", "/v1/device/pushes/x", b"")
            .unwrap();
        assert_eq!(
            call("GET", "/v1/device/pushes", other).await,
            401,
            "another path"
        );
        let method = phone
            .authorization("PUT", "/v1/device/pushes", b"")
            .unwrap();
        assert_eq!(
            call("GET", "/v1/device/pushes", method).await,
            401,
            "another method"
        );
        let body = phone
            .authorization("GET", "/v1/device/pushes", b"x")
            .unwrap();
        assert_eq!(
            call("GET", "/v1/device/pushes", body).await,
            401,
            "another body"
        );
        assert_eq!(
            call("GET", "/v1/device/pushes", "Device x.y.z".to_owned()).await,
            401
        );
        drop(anonymous);
        world.end().await;
    }
}

fn anonymous_address(world: &World) -> String {
    world.address().trim_start_matches("http://").to_owned()
}

/// A request with one header of our choice, byte by byte. Gives the status.
async fn raw(address: String, method: &str, path: &str, authorization: &str) -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: {authorization}\r\nconnection: close\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}
