//! APNs: what goes on the wire, and what comes of every answer.

use crate::bed::{Bed, accepted, call, device, push_all};
use simulator::{ApnsReason, Gateway, GatewayOptions, Script};
use std::time::Duration;
use workers::push::{Condition, Error, Options, Providers, PushResult, Scope};

#[tokio::test]
async fn a_push_carries_what_apple_asks_for_and_nothing_of_the_question() {
    let bed = Bed::new().await;
    let mut call = call(&device(1));
    call.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    let provider = bed.apns("p");
    let first = provider.push(&call).await;
    call.attempt = 2;
    let second = provider.push(&call).await;
    assert_eq!(first, second);
    let receipts = bed.gateway.receipts_for(&device(1));
    assert_eq!(receipts.len(), 2);
    for receipt in receipts {
        let provider_id = receipt.apns_id.clone();
        assert_eq!(first, PushResult::Accepted { provider_id });
        assert_eq!(receipt.collapse_id.as_deref(), Some(call.push.as_str()));
        assert_eq!(receipt.push_id.as_ref(), Some(&call.push));
        assert_eq!(receipt.expiration, Some(call.expires_at / 1000));
        assert_eq!(receipt.priority.as_deref(), Some("10"));
        assert_eq!(receipt.push_type.as_deref(), Some("alert"));
    }
}

/// What each of Apple's reasons comes to when it is given to every attempt.
fn expected(reason: ApnsReason) -> PushResult {
    let word = reason.as_str();
    let credentials = |reason: &'static str| PushResult::Credentials {
        reason: reason.into(),
    };
    match reason {
        ApnsReason::BadDeviceToken | ApnsReason::DeviceTokenNotForTopic => {
            PushResult::AddressGone {
                since: None,
                guarded: true,
                reason: word.into(),
            }
        }
        ApnsReason::ExpiredToken | ApnsReason::Unregistered => PushResult::AddressGone {
            since: None,
            guarded: false,
            reason: word.into(),
        },
        ApnsReason::BadCollapseId
        | ApnsReason::BadExpirationDate
        | ApnsReason::BadMessageId
        | ApnsReason::BadPriority
        | ApnsReason::DuplicateHeaders
        | ApnsReason::InvalidPushType
        | ApnsReason::MissingDeviceToken
        | ApnsReason::PayloadEmpty
        | ApnsReason::Forbidden
        | ApnsReason::BadPath
        | ApnsReason::MethodNotAllowed
        | ApnsReason::PayloadTooLarge => PushResult::Rejected {
            reason: word.into(),
        },
        ApnsReason::BadTopic
        | ApnsReason::MissingTopic
        | ApnsReason::TopicDisallowed
        | ApnsReason::BadCertificate
        | ApnsReason::BadCertificateEnvironment
        | ApnsReason::BadEnvironmentKeyIdInToken
        | ApnsReason::InvalidProviderToken
        | ApnsReason::MissingProviderToken
        | ApnsReason::UnrelatedKeyIdInToken => credentials(word),
        // The token is seconds old: no new one helps.
        ApnsReason::ExpiredProviderToken => credentials("clock_skew"),
        ApnsReason::TooManyProviderTokenUpdates => PushResult::Throttled {
            after: Duration::from_secs(5),
            scope: Scope::Credential,
            reason: word.into(),
        },
        ApnsReason::TooManyRequests => PushResult::Throttled {
            after: Duration::from_secs(30),
            scope: Scope::Device,
            reason: word.into(),
        },
        ApnsReason::IdleTimeout | ApnsReason::Shutdown => PushResult::Unprocessed {
            reason: word.into(),
        },
        ApnsReason::InternalServerError | ApnsReason::ServiceUnavailable => {
            PushResult::Unavailable {
                after: None,
                reason: word.into(),
            }
        }
    }
}

#[tokio::test]
async fn every_documented_reason_has_its_result() {
    let bed = Bed::new().await;
    for (number, reason) in ApnsReason::ALL.iter().enumerate() {
        // A policy each: some of these pause it.
        let provider = bed.apns(reason.as_str());
        assert!(accepted(&provider.push(&call(&device(999))).await));
        let token = device(number);
        bed.gateway.script(&token, Script::Apns(*reason));
        let mut result = provider.push(&call(&token)).await;
        if let PushResult::AddressGone {
            since,
            guarded: false,
            ..
        } = &mut result
        {
            assert!(since.take().is_some(), "{reason:?} comes with a time");
        }
        assert_eq!(result, expected(*reason), "{reason:?}");
    }
}

#[tokio::test]
async fn a_gone_device_comes_with_apples_time() {
    let bed = Bed::new().await;
    let since = Some(1_700_000_000_000);
    let script = Script::Unregistered { since_ms: since };
    bed.gateway.script(&device(1), script);
    assert_eq!(
        bed.apns("p").push(&call(&device(1))).await,
        PushResult::AddressGone {
            since,
            guarded: false,
            reason: "Unregistered".into()
        }
    );
}

#[tokio::test]
async fn answers_that_are_not_apples_drop_nobody() {
    let bed = Bed::new().await;
    let provider = bed.apns("p");
    let answers = [
        (502, "<html>Bad Gateway</html>", "retryable"),
        (500, "", "retryable"),
        (400, r#"{"reason":"SomethingNew"}"#, "permanent"),
        (410, "{}", "permanent"),
        (429, "slow down", "throttled"),
    ];
    for (number, (status, body, label)) in answers.into_iter().enumerate() {
        let body = body.to_owned();
        let script = Script::Raw { status, body };
        bed.gateway.script(&device(number), script);
        let result = provider.push(&call(&device(number))).await;
        assert_eq!(result.label(), label, "{status}: {result:?}");
    }
}

#[tokio::test]
async fn a_thousand_at_once_share_one_token() {
    let bed = Bed::new().await;
    let provider = bed.apns("p");
    let tokens = (0..1_000).map(device).collect();
    let results = push_all(&provider, tokens, 1_000).await;
    assert!(results.iter().all(accepted));
    // Another policy with the same key does not mint a second one either.
    let mut other = bed.apns_credential();
    other.topic.push_str(".voip");
    let other = bed.providers.apns("other", &other).unwrap();
    assert!(accepted(&other.push(&call(&device(1))).await));
    let counts = bed.gateway.counts();
    assert_eq!(counts.distinct_iats, 1);
    assert_eq!(counts.accepted, 1_001);
}

#[tokio::test]
async fn what_cannot_be_an_address_or_is_too_late_never_reaches_the_wire() {
    let bed = Bed::new().await;
    let provider = bed.apns("p");
    for token in ["", "..", "abc/def", "ab%2f", "ab\r\ncd", &"a".repeat(201)] {
        let result = provider.push(&call(token)).await;
        assert_eq!(result.label(), "permanent", "{token:?}");
    }
    let mut late = call(&device(1));
    late.expires_at = 1;
    assert_eq!(provider.push(&late).await, PushResult::Expired);
    assert_eq!(bed.gateway.counts().requests, 0);
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused() {
    let bed = Bed::new().await;
    let stranger = Gateway::start(GatewayOptions::default()).await.unwrap();
    let mut credential = bed.apns_credential();
    stranger.apns_url().clone_into(&mut credential.endpoint);
    let provider = bed.providers.apns("p", &credential).unwrap();
    for _ in 0..3 {
        let result = provider.push(&call(&device(1))).await;
        let PushResult::Unavailable { reason, .. } = &result else {
            panic!("{result:?}");
        };
        assert_eq!(reason, "tls_certificate");
    }
    assert_eq!(stranger.counts().requests, 0);
}

#[tokio::test]
async fn a_refused_credential_is_paused_and_a_new_one_works_at_once() {
    let bed = Bed::new().await;
    let good = bed.apns_credential();
    let mut bad = good.clone();
    bad.key_id = "OTHERKEY01".to_owned();
    let provider = bed.providers.apns("p", &bad).unwrap();
    let tokens = || (0..200).map(device).collect::<Vec<_>>();
    let results = push_all(&provider, tokens(), 10).await;
    let refused = results
        .iter()
        .filter(|r| r.label() == "credentials")
        .count();
    let paused = results
        .iter()
        .filter(|r| r.label() == "breaker_open")
        .count();
    assert_eq!(
        (refused + paused, bed.gateway.counts().requests),
        (200, refused as u64)
    );
    assert!(refused <= 20, "{refused} calls with a bad key");
    let condition = bed.providers.conditions().remove(0).2;
    let Condition::Paused(pause) = condition else {
        panic!("{condition:?}");
    };
    assert_eq!(pause.reason, "InvalidProviderToken");

    let provider = bed.providers.apns("p", &good).unwrap();
    let results = push_all(&provider, tokens(), 10).await;
    assert!(results.iter().all(accepted));
}

#[tokio::test]
async fn one_provider_is_made_per_policy_and_credential() {
    let bed = Bed::new().await;
    let same = |a: &str, b: &str| std::sync::Arc::ptr_eq(&bed.apns(a), &bed.apns(b));
    assert!(same("p", "p"));
    assert!(!same("p", "q"));
    bed.providers.forget("q");
    assert_eq!(bed.providers.conditions().len(), 1);
}

#[tokio::test]
async fn a_credential_that_cannot_work_is_refused_without_being_quoted() {
    let bed = Bed::new().await;
    let refused = |change: &dyn Fn(&mut shared::domain::ApnsCredential)| {
        let mut credential = bed.apns_credential();
        change(&mut credential);
        let error = bed.providers.apns("p", &credential).err().unwrap();
        assert!(!format!("{error:?} {error}").contains("canary"));
        error
    };
    let key = refused(&|c| c.private_key = shared::secret::Secret::new("canary"));
    assert!(matches!(key, Error::Key(_)));
    let plain = refused(&|c| c.endpoint = "http://127.0.0.1:1".to_owned());
    assert!(matches!(plain, Error::Endpoint));
    let topic = refused(&|c| c.topic = "canary\r\nx: y".to_owned());
    assert!(matches!(topic, Error::Topic));
    let broken = Options {
        extra_ca_pem: Some("canary".to_owned()),
        ..Options::default()
    };
    assert!(Providers::new(broken).is_err());
}
