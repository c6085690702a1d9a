//! FCM v1 and the OAuth2 endpoint: what a good push gets, what Google documents, and what its checks find.

use crate::client::{assertion, connect, fcm, fcm_body, gateway, now_s, post, signed_in};
use serde_json::{Value, json};
use shared::id::PushId;
use simulator::{FcmCode, Provider, Script};

const TOKEN: &str = "an-instance:APA91b-a-token";

fn detail<'a>(error: &'a Value, kind: &str) -> Option<&'a Value> {
    let named = |detail: &&Value| detail["@type"].as_str().unwrap().ends_with(kind);
    error["details"].as_array()?.iter().find(named)
}

#[tokio::test]
async fn a_good_push_is_taken_and_noted() {
    let gateway = gateway().await;
    let (mut connection, access) = signed_in(&gateway).await;
    let push = PushId::fresh(1);
    let answer = connection.send(fcm(&gateway, &access, TOKEN, &push)).await;
    assert_eq!(answer.status, 200);
    let name = answer.json()["name"].as_str().unwrap().to_owned();
    let id = name
        .strip_prefix("projects/countersign-sim/messages/0:")
        .unwrap();

    let [receipt] = &gateway.receipts_for(TOKEN)[..] else {
        panic!("one receipt");
    };
    assert!(receipt.accepted);
    assert!(receipt.apns_id.as_deref().unwrap().ends_with(id));
    assert_eq!(receipt.push_id, Some(push));
    assert_eq!(receipt.expiration, Some(120));
    assert_eq!(receipt.priority.as_deref(), Some("HIGH"));
    assert_eq!(gateway.counts().tokens_issued, 1);
}

#[tokio::test]
async fn every_documented_code_can_be_scripted() {
    let gateway = gateway().await;
    let (mut connection, access) = signed_in(&gateway).await;
    for code in FcmCode::ALL {
        let token = format!("token-for-{code:?}");
        gateway.script(&token, Script::Fcm(*code));
        let request = fcm(&gateway, &access, &token, &PushId::fresh(1));
        let answer = connection.send(request).await;
        let error = &answer.json()["error"];
        assert_eq!(answer.status, code.http(), "{code:?}");
        assert_eq!(error["code"], code.http(), "{code:?}");
        assert_eq!(error["status"], code.status(), "{code:?}");
        // What a sender tells them apart by.
        let word = detail(error, ".FcmError").map(|d| d["errorCode"].as_str().unwrap());
        let expected = match code {
            FcmCode::InvalidArgument | FcmCode::InvalidToken => Some("INVALID_ARGUMENT"),
            FcmCode::ThirdPartyAuthError => Some("THIRD_PARTY_AUTH_ERROR"),
            FcmCode::SenderIdMismatch => Some("SENDER_ID_MISMATCH"),
            FcmCode::Unregistered => Some("UNREGISTERED"),
            FcmCode::QuotaExceeded => Some("QUOTA_EXCEEDED"),
            FcmCode::Internal => Some("INTERNAL"),
            FcmCode::Unavailable => Some("UNAVAILABLE"),
            FcmCode::UnspecifiedError => Some("UNSPECIFIED_ERROR"),
            FcmCode::TooBig
            | FcmCode::Unauthenticated
            | FcmCode::PermissionDenied
            | FcmCode::ServiceDisabled
            | FcmCode::NotFound
            | FcmCode::RateLimitExceeded => None,
        };
        assert_eq!(word, expected, "{code:?}");
        let field = detail(error, ".BadRequest").map(|d| &d["fieldViolations"][0]["field"]);
        let token_named = field == Some(&"message.token".into());
        assert_eq!(token_named, *code == FcmCode::InvalidToken);
        assert!(!gateway.receipts_for(&token)[0].accepted);
    }
}

#[tokio::test]
async fn the_script_s_own_words_are_fcm_s_too() {
    let gateway = gateway().await;
    let (mut connection, access) = signed_in(&gateway).await;
    for (script, status, word) in [
        (Script::Unregistered { since_ms: None }, 404, "UNREGISTERED"),
        (Script::BadToken, 400, "INVALID_ARGUMENT"),
        (Script::Outage, 503, "UNAVAILABLE"),
    ] {
        gateway.script(TOKEN, script);
        let request = fcm(&gateway, &access, TOKEN, &PushId::fresh(1));
        let answer = connection.send(request).await;
        assert_eq!(answer.status, status);
        let error = &answer.json()["error"];
        assert_eq!(detail(error, ".FcmError").unwrap()["errorCode"], word);
    }
    let html = "<html>502</html>".to_owned();
    gateway.script(
        TOKEN,
        Script::Raw {
            status: 502,
            body: html.clone(),
        },
    );
    let request = fcm(&gateway, &access, TOKEN, &PushId::fresh(1));
    let answer = connection.send(request).await;
    assert_eq!((answer.status, answer.body), (502, html));
}

#[tokio::test]
async fn a_push_needs_an_access_token_that_is_still_good() {
    let gateway = gateway().await;
    let (mut connection, access) = signed_in(&gateway).await;
    let push = PushId::fresh(1);
    let answer = connection
        .send(fcm(&gateway, "ya29.made-up", TOKEN, &push))
        .await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.json()["error"]["status"], "UNAUTHENTICATED");

    assert_eq!(
        connection
            .send(fcm(&gateway, &access, TOKEN, &push))
            .await
            .status,
        200
    );
    gateway.revoke_access_tokens();
    assert_eq!(
        connection
            .send(fcm(&gateway, &access, TOKEN, &push))
            .await
            .status,
        401
    );
    let fresh = connection.exchange(&assertion(&gateway, |_| ())).await;
    let fresh = fresh.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(
        connection
            .send(fcm(&gateway, &fresh, TOKEN, &push))
            .await
            .status,
        200
    );
    assert_eq!(gateway.counts().tokens_issued, 2);
}

#[tokio::test]
async fn the_endpoint_says_what_is_wrong_with_an_assertion() {
    let gateway = gateway().await;
    let stranger = crate::client::gateway().await;
    let mut connection = connect(&gateway, gateway.fcm_url()).await;
    let good = connection
        .exchange(&assertion(&gateway, |_| ()))
        .await
        .json();
    assert_eq!(
        (&good["expires_in"], &good["token_type"]),
        (&3599.into(), &"Bearer".into())
    );

    let url = gateway.fcm_url().to_owned();
    let set = |name: &'static str, value: Value| assertion(&gateway, |claims| claims[name] = value);
    for (assertion, error) in [
        (
            assertion(&stranger, |claims| {
                claims["aud"] = format!("{url}/token").into();
            }),
            "invalid_grant",
        ),
        (set("iss", "who@example.com".into()), "invalid_grant"),
        (
            set("aud", "https://oauth2.googleapis.com/token".into()),
            "invalid_grant",
        ),
        (
            set("scope", "https://mail.google.com/".into()),
            "invalid_scope",
        ),
        (set("iat", (now_s() - 7200).into()), "invalid_grant"),
        (set("exp", (now_s() - 100).into()), "invalid_grant"),
        (set("exp", (now_s() + 7200).into()), "invalid_grant"),
        ("nonsense".to_owned(), "invalid_grant"),
    ] {
        let answer = connection.exchange(&assertion).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (400, &error.into())
        );
    }
    for (form, error) in [
        ("", "unsupported_grant_type"),
        ("grant_type=password", "unsupported_grant_type"),
        (
            "grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer",
            "invalid_request",
        ),
    ] {
        let answer = connection.send(post(&format!("{url}/token"), form)).await;
        assert_eq!(answer.json()["error"], error);
    }
    assert_eq!(gateway.counts().tokens_issued, 1);
    assert_eq!(gateway.counts().requests, 0);
}

#[tokio::test]
async fn path_project_and_body_are_checked() {
    let gateway = gateway().await;
    let (mut connection, access) = signed_in(&gateway).await;
    let url = gateway.fcm_url();
    let answer = connection
        .send(post(&format!("{url}/fcm/send"), "{}"))
        .await;
    assert_eq!(answer.status, 404);
    assert!(answer.body.starts_with("<!DOCTYPE html>"));

    let mut elsewhere = fcm(&gateway, &access, TOKEN, &PushId::fresh(1));
    let other = format!("{url}/v1/projects/other/messages:send");
    *elsewhere.uri_mut() = other.parse().unwrap();
    let answer = connection.send(elsewhere).await;
    assert_eq!(answer.status, 404);
    assert_eq!(detail(&answer.json()["error"], ".FcmError"), None);

    let bad = json!({"message": {"token": "no token"}});
    let answer = connection.send(fcm_body(&gateway, &access, &bad)).await;
    let error = &answer.json()["error"];
    let violation = &detail(error, ".BadRequest").unwrap()["fieldViolations"][0];
    assert_eq!(violation["field"], "message.token");

    let big = json!({"message": {"token": TOKEN, "data": {"k": "x".repeat(5000)}}});
    let answer = connection.send(fcm_body(&gateway, &access, &big)).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"].get("details"), None);
}

#[tokio::test]
async fn a_message_can_be_checked_without_being_sent() {
    let gateway = gateway().await;
    let (mut connection, access) = signed_in(&gateway).await;
    gateway.script(TOKEN, Script::Unregistered { since_ms: None });
    let body = json!({"message": {"token": TOKEN}, "validate_only": true});
    let answer = connection.send(fcm_body(&gateway, &access, &body)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(gateway.counts().accepted, 0);
    let answered = (Provider::Fcm, 200, String::new());
    assert_eq!(gateway.counts().answers[&answered], 1);
}
