//! APNs: what a good push gets, what Apple documents, and what its checks find.

use crate::client::{apns, connect, gateway, now_s, post, provider_token};
use http::Method;
use serde_json::json;
use shared::id::PushId;
use simulator::{ApnsReason, Provider, Script};

const TOKEN: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[tokio::test]
async fn a_good_push_is_taken_and_noted() {
    let gateway = gateway().await;
    let mut connection = connect(&gateway, gateway.apns_url()).await;
    let push = PushId::fresh(1);
    let mut request = apns(&gateway, TOKEN, &push);
    let id = "eabeae54-14a8-11e5-b60b-1697f925ec7b";
    request.headers_mut().insert("apns-id", id.parse().unwrap());
    let answer = connection.send(request).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert_eq!(answer.header("apns-id"), Some(id));

    let [receipt] = &gateway.receipts_for(TOKEN)[..] else {
        panic!("one receipt");
    };
    assert!(receipt.accepted);
    assert_eq!(receipt.apns_id.as_deref(), Some(id));
    assert_eq!(receipt.push_id, Some(push.clone()));
    assert_eq!(receipt.collapse_id.as_deref(), Some(push.as_str()));
    assert_eq!(receipt.expiration, Some(1_900_000_000));
    assert_eq!(receipt.priority.as_deref(), Some("10"));
    assert_eq!(receipt.push_type.as_deref(), Some("alert"));
    assert!(receipt.body.expose().contains(push.as_str()));
}

#[tokio::test]
async fn every_documented_reason_can_be_scripted() {
    let gateway = gateway().await;
    let mut connection = connect(&gateway, gateway.apns_url()).await;
    for (place, reason) in ApnsReason::ALL.iter().enumerate() {
        let token = format!("{place:064x}");
        gateway.script(&token, Script::Apns(*reason));
        let request = apns(&gateway, &token, &PushId::fresh(1));
        let answer = connection.send(request).await;
        assert_eq!(answer.status, reason.status(), "{reason:?}");
        assert_eq!(answer.json()["reason"], reason.as_str());
        let gone = answer.status == 410;
        assert_eq!(answer.json()["timestamp"].is_i64(), gone, "{reason:?}");
        assert!(answer.header("apns-id").is_some());
        let counted = (Provider::Apns, reason.status(), reason.as_str().to_owned());
        assert_eq!(gateway.counts().answers[&counted], 1, "{reason:?}");
        assert!(!gateway.receipts_for(&token)[0].accepted);
    }
}

#[tokio::test]
async fn an_unregistered_token_says_since_when() {
    let gateway = gateway().await;
    let mut connection = connect(&gateway, gateway.apns_url()).await;
    let since_ms = Some(1_700_000_000_123);
    gateway.script(TOKEN, Script::Unregistered { since_ms });
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    let answer = connection.send(request).await;
    let body = json!({"reason": "Unregistered", "timestamp": 1_700_000_000_123_i64});
    assert_eq!((answer.status, answer.json()), (410, body));
}

#[tokio::test]
async fn a_bad_provider_token_is_refused_and_an_old_one_is_expired() {
    let gateway = gateway().await;
    let other = crate::client::gateway().await;
    let mut connection = connect(&gateway, gateway.apns_url()).await;
    for (bearer, reason) in [
        (None, "MissingProviderToken"),
        (Some("basic abc".to_owned()), "MissingProviderToken"),
        (Some("bearer nonsense".to_owned()), "InvalidProviderToken"),
        (
            Some(format!("bearer {}", provider_token(&other, now_s()))),
            "InvalidProviderToken",
        ),
        (
            Some(format!(
                "bearer {}",
                provider_token(&gateway, now_s() - 3700)
            )),
            "ExpiredProviderToken",
        ),
        (
            Some(format!(
                "bearer {}",
                provider_token(&gateway, now_s() + 600)
            )),
            "InvalidProviderToken",
        ),
    ] {
        let mut request = apns(&gateway, TOKEN, &PushId::fresh(1));
        request.headers_mut().remove("authorization");
        if let Some(bearer) = &bearer {
            let value = bearer.parse().unwrap();
            request.headers_mut().insert("authorization", value);
        }
        let answer = connection.send(request).await;
        assert_eq!(answer.status, 403, "{reason}");
        assert_eq!(answer.json()["reason"], reason);
    }
    assert_eq!(gateway.counts().accepted, 0);
    assert_eq!(gateway.counts().distinct_iats, 0);
}

#[tokio::test]
async fn provider_tokens_are_counted_by_their_age() {
    let gateway = gateway().await;
    let mut connection = connect(&gateway, gateway.apns_url()).await;
    for iat in [now_s() - 100, now_s() - 100, now_s() - 50] {
        let mut request = apns(&gateway, TOKEN, &PushId::fresh(1));
        let bearer = format!("bearer {}", provider_token(&gateway, iat));
        let value = bearer.parse().unwrap();
        request.headers_mut().insert("authorization", value);
        assert_eq!(connection.send(request).await.status, 200);
    }
    assert!((2..=3).contains(&gateway.counts().distinct_iats));
}

#[tokio::test]
async fn every_header_is_checked() {
    let gateway = gateway().await;
    let mut connection = connect(&gateway, gateway.apns_url()).await;
    let long = "x".repeat(65);
    for (name, value, reason) in [
        ("apns-id", Some("EABEAE54"), "BadMessageId"),
        ("apns-topic", None, "MissingTopic"),
        ("apns-topic", Some("no topic"), "BadTopic"),
        ("apns-topic", Some("com.example.other"), "TopicDisallowed"),
        ("apns-push-type", None, "InvalidPushType"),
        ("apns-push-type", Some("loud"), "InvalidPushType"),
        ("apns-priority", Some("7"), "BadPriority"),
        ("apns-push-type", Some("background"), "BadPriority"),
        ("apns-expiration", Some("soon"), "BadExpirationDate"),
        ("apns-expiration", Some("-1"), "BadExpirationDate"),
        ("apns-collapse-id", Some(&long), "BadCollapseId"),
    ] {
        let mut request = apns(&gateway, TOKEN, &PushId::fresh(1));
        request.headers_mut().remove(name);
        if let Some(value) = value {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let answer = connection.send(request).await;
        assert_eq!(answer.json()["reason"], reason, "{name}: {value:?}");
        assert_eq!(answer.status, 400);
    }
    let mut twice = apns(&gateway, TOKEN, &PushId::fresh(1));
    let value = "alert".parse().unwrap();
    twice.headers_mut().append("apns-push-type", value);
    let answer = connection.send(twice).await;
    assert_eq!(answer.json()["reason"], "DuplicateHeaders");
}

#[tokio::test]
async fn path_method_token_and_payload_are_checked() {
    let gateway = gateway().await;
    let mut connection = connect(&gateway, gateway.apns_url()).await;
    let good = || apns(&gateway, TOKEN, &PushId::fresh(1));
    let url = gateway.apns_url();
    for (path, status, reason) in [
        ("/3/device/", 400, "MissingDeviceToken"),
        ("/3/devices/x", 404, "BadPath"),
        ("/3/device/a/b", 404, "BadPath"),
        ("/3/device/123abc", 400, "BadDeviceToken"),
        ("/3/device/sim:unregistered:1", 400, "BadDeviceToken"),
    ] {
        let mut request = good();
        *request.uri_mut() = format!("{url}{path}").parse().unwrap();
        let answer = connection.send(request).await;
        assert_eq!(
            (answer.status, &answer.json()["reason"]),
            (status, &reason.into()),
            "{path}"
        );
    }
    let mut get = good();
    *get.method_mut() = Method::GET;
    let answer = connection.send(get).await;
    assert_eq!(
        (answer.status, &answer.json()["reason"]),
        (405, &"MethodNotAllowed".into())
    );

    let big = |size: usize| json!({"aps": {}, "x": "x".repeat(size)}).to_string();
    for (body, status, reason) in [
        (String::new(), 400, "PayloadEmpty"),
        ("{".to_owned(), 400, "PayloadEmpty"),
        ("{\"push\": 1}".to_owned(), 400, "PayloadEmpty"),
        (big(4097), 413, "PayloadTooLarge"),
        (big(100_000), 413, "PayloadTooLarge"),
    ] {
        let (parts, _) = good().into_parts();
        let mut request = post(&parts.uri.to_string(), body);
        *request.headers_mut() = parts.headers;
        let answer = connection.send(request).await;
        assert_eq!(
            (answer.status, &answer.json()["reason"]),
            (status, &reason.into())
        );
    }
}
