//! FCM v1: what goes on the wire, what comes of every answer, and the access token's life.

use crate::bed::{Bed, accepted, call, push_all};
use serde_json::{Value, json};
use shared::domain::FcmCredential;
use shared::secret::Secret;
use simulator::{FcmCode, Script};
use std::time::Duration;
use workers::push::{Error, PushResult, Scope};

fn device(number: usize) -> String {
    format!("device-{number}:APA91b_{number:020}")
}

#[tokio::test]
async fn a_push_is_a_data_message_of_high_priority() {
    let bed = Bed::new().await;
    let call = call(&device(1));
    let result = bed.fcm("p").push(&call).await;
    let PushResult::Accepted {
        provider_id: Some(name),
    } = result
    else {
        panic!("{result:?}");
    };
    let receipt = bed.gateway.receipts_for(&device(1)).remove(0);
    let id = receipt.apns_id.as_deref().unwrap();
    let project = bed.gateway.project_id();
    assert_eq!(name, format!("projects/{project}/messages/{id}"));
    let body: Value = serde_json::from_str(receipt.body.expose()).unwrap();
    let ttl = body["message"]["android"]["ttl"].as_str().unwrap();
    assert!(["59s", "60s"].contains(&ttl), "{ttl}");
    let expected = json!({"message": {
        "token": device(1),
        "data": {"push": call.push.as_str()},
        "android": {"priority": "HIGH", "ttl": ttl},
    }});
    assert_eq!(body, expected);
}

/// What each of FCM's errors comes to when it is given to every attempt.
fn expected(code: FcmCode) -> PushResult {
    let rejected = |reason: &'static str| PushResult::Rejected {
        reason: reason.into(),
    };
    let credentials = |reason: &'static str| PushResult::Credentials {
        reason: reason.into(),
    };
    let unavailable = |reason: &'static str| PushResult::Unavailable {
        after: None,
        reason: reason.into(),
    };
    let throttled = |reason: &'static str| PushResult::Throttled {
        after: Duration::from_mins(1),
        scope: Scope::Credential,
        reason: reason.into(),
    };
    let gone = |reason: &'static str, guarded| PushResult::AddressGone {
        since: None,
        guarded,
        reason: reason.into(),
    };
    match code {
        FcmCode::InvalidArgument | FcmCode::TooBig => rejected("INVALID_ARGUMENT"),
        FcmCode::InvalidToken => gone("INVALID_TOKEN", true),
        FcmCode::Unauthenticated => credentials("UNAUTHENTICATED"),
        FcmCode::ThirdPartyAuthError => rejected("THIRD_PARTY_AUTH_ERROR"),
        FcmCode::SenderIdMismatch => gone("SENDER_ID_MISMATCH", true),
        FcmCode::PermissionDenied => credentials("IAM_PERMISSION_DENIED"),
        FcmCode::ServiceDisabled => credentials("SERVICE_DISABLED"),
        FcmCode::Unregistered => gone("UNREGISTERED", false),
        FcmCode::NotFound => credentials("NOT_FOUND"),
        FcmCode::QuotaExceeded => throttled("QUOTA_EXCEEDED"),
        FcmCode::RateLimitExceeded => throttled("RATE_LIMIT_EXCEEDED"),
        FcmCode::Internal => unavailable("INTERNAL"),
        FcmCode::Unavailable => unavailable("UNAVAILABLE"),
        FcmCode::UnspecifiedError => unavailable("UNSPECIFIED_ERROR"),
    }
}

#[tokio::test]
async fn every_documented_error_has_its_result() {
    let bed = Bed::new().await;
    for (number, code) in FcmCode::ALL.iter().enumerate() {
        // A policy each: some of these pause it.
        let provider = bed.fcm(&format!("{code:?}"));
        assert!(accepted(&provider.push(&call(&device(999))).await));
        bed.gateway.script(&device(number), Script::Fcm(*code));
        let result = provider.push(&call(&device(number))).await;
        assert_eq!(result, expected(*code), "{code:?}");
    }
}

#[tokio::test]
async fn a_retry_after_is_passed_on() {
    let bed = Bed::new().await;
    let script = Script::Throttled {
        times: 1,
        retry_after_secs: 77,
    };
    bed.gateway.script(&device(1), script);
    let provider = bed.fcm("p");
    let result = provider.push(&call(&device(1))).await;
    let PushResult::Throttled { after, .. } = result else {
        panic!("{result:?}");
    };
    assert_eq!(after, Duration::from_secs(77));
    assert!(accepted(&provider.push(&call(&device(1))).await));
}

#[tokio::test]
async fn one_access_token_serves_all_and_a_revoked_one_is_replaced_once() {
    let bed = Bed::new().await;
    let provider = bed.fcm("p");
    let tokens = || (0..500).map(device).collect::<Vec<_>>();
    let results = push_all(&provider, tokens(), 500).await;
    assert!(results.iter().all(accepted));
    assert_eq!(bed.gateway.counts().tokens_issued, 1);
    bed.gateway.revoke_access_tokens();
    let results = push_all(&provider, tokens(), 500).await;
    assert!(results.iter().all(accepted));
    let counts = bed.gateway.counts();
    assert_eq!(counts.tokens_issued, 2);
    assert_eq!(counts.accepted, 1_000);
}

#[tokio::test]
async fn an_account_that_google_does_not_know_is_a_credential_problem() {
    let bed = Bed::new().await;
    let mut account: Value =
        serde_json::from_str(bed.gateway.service_account_json().expose()).unwrap();
    account["client_email"] = "stranger@example.invalid".into();
    let credential = FcmCredential {
        service_account: Secret::new(account.to_string()),
        endpoint: bed.gateway.fcm_url().to_owned(),
    };
    let provider = bed.providers.fcm("p", &credential).unwrap();
    let results = push_all(&provider, (0..300).map(device).collect(), 300).await;
    let refused = PushResult::Credentials {
        reason: "invalid_grant".into(),
    };
    assert!(results.iter().all(|result| *result == refused));
    // All asked at once, and one of them asked Google.
    let counts = bed.gateway.counts();
    assert_eq!((counts.requests, counts.tokens_issued), (0, 0));
}

#[tokio::test]
async fn a_file_that_is_no_service_account_is_refused_without_being_quoted() {
    let bed = Bed::new().await;
    let credential = FcmCredential {
        service_account: Secret::new(r#"{"project_id":"canary"}"#),
        endpoint: bed.gateway.fcm_url().to_owned(),
    };
    let error = bed.providers.fcm("p", &credential).err().unwrap();
    assert!(matches!(error, Error::Account(_)));
    assert!(!format!("{error:?} {error}").contains("canary"));
}
