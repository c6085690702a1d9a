//! What an answer of APNs means. One function decides, and it never calls a device gone without Apple's proof.
//!
//! Sources: developer.apple.com, "Handling notification responses from APNs"; what is done about each is in the table
//! at the end of this file's tests.

use crate::push::{PushResult, Reason, Scope, cleaned};
use serde::Deserialize;
use shared::clock::Millis;
use std::time::Duration;

/// Apple gives no number for a device that gets too much; two pushes a minute are bearable to everyone.
const DEVICE_PAUSE: Duration = Duration::from_secs(30);
/// After too many provider tokens: the old one goes on working.
const TOKEN_PAUSE: Duration = Duration::from_secs(5);

/// What to do about an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It is the result.
    Result(PushResult),
    /// The provider token is too old: with a new one, once.
    RenewToken,
    /// No new provider token for a while, and this is the result.
    FreezeToken(PushResult),
    /// The connection belongs to another key: on a fresh one, once.
    OtherConnection,
}

/// An answer that is not 200, as read from the wire.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// The body's `reason`; none where the body is empty or not Apple's.
    pub(super) reason: Option<String>,
    /// The body's `timestamp`.
    pub(super) timestamp: Option<Millis>,
    pub(super) retry_after: Option<Duration>,
}

#[derive(Deserialize)]
struct Body {
    reason: Option<String>,
    timestamp: Option<Millis>,
}

impl Refusal {
    /// Reads whatever stands in the body: JSON of Apple's, HTML of a proxy, nothing.
    pub(super) fn read(status: u16, body: &[u8], retry_after: Option<Duration>) -> Self {
        let body = serde_json::from_slice::<Body>(body).ok();
        let (reason, timestamp) = body.map_or((None, None), |b| (b.reason, b.timestamp));
        Self {
            status,
            reason,
            timestamp,
            retry_after,
        }
    }
}

macro_rules! reasons {
    ($($name:ident = $status:literal,)*) => {
        /// The reasons that Apple documents.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Known { $($name,)* }

        impl Known {
            /// Reads a reason that comes with its documented status. With another one it proves nothing.
            fn of(status: u16, word: &str) -> Option<Self> {
                match (status, word) { $(($status, stringify!($name)) => Some(Self::$name),)* _ => None }
            }

            fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }

        #[cfg(test)]
        pub(super) const KNOWN: &[(Known, u16)] = &[$((Known::$name, $status),)*];
    };
}

reasons! {
    BadCollapseId = 400,
    BadDeviceToken = 400,
    BadExpirationDate = 400,
    BadMessageId = 400,
    BadPriority = 400,
    BadTopic = 400,
    DeviceTokenNotForTopic = 400,
    DuplicateHeaders = 400,
    IdleTimeout = 400,
    InvalidPushType = 400,
    MissingDeviceToken = 400,
    MissingTopic = 400,
    PayloadEmpty = 400,
    TopicDisallowed = 400,
    BadCertificate = 403,
    BadCertificateEnvironment = 403,
    BadEnvironmentKeyIdInToken = 403,
    ExpiredProviderToken = 403,
    Forbidden = 403,
    InvalidProviderToken = 403,
    MissingProviderToken = 403,
    UnrelatedKeyIdInToken = 403,
    BadPath = 404,
    MethodNotAllowed = 405,
    ExpiredToken = 410,
    Unregistered = 410,
    PayloadTooLarge = 413,
    TooManyProviderTokenUpdates = 429,
    TooManyRequests = 429,
    InternalServerError = 500,
    ServiceUnavailable = 503,
    Shutdown = 503,
}

/// What a refusal means.
pub(super) fn classify(refusal: &Refusal) -> Action {
    let word = refusal.reason.as_deref().unwrap_or("");
    let Some(known) = Known::of(refusal.status, word) else {
        return Action::Result(by_status(refusal));
    };
    let reason = Reason::Borrowed(known.as_str());
    Action::Result(match known {
        // A wrong environment or topic of ours looks the same from here, so the breaker watches these.
        Known::BadDeviceToken | Known::DeviceTokenNotForTopic => PushResult::AddressGone {
            since: None,
            guarded: true,
            reason,
        },
        // Without Apple's time nobody knows whether it means the address that is registered now.
        Known::Unregistered | Known::ExpiredToken => PushResult::AddressGone {
            since: refusal.timestamp,
            guarded: refusal.timestamp.is_none(),
            reason,
        },
        Known::BadCollapseId
        | Known::BadExpirationDate
        | Known::BadMessageId
        | Known::BadPriority
        | Known::InvalidPushType
        | Known::DuplicateHeaders
        | Known::PayloadEmpty
        | Known::MissingDeviceToken
        | Known::BadPath
        | Known::MethodNotAllowed
        | Known::PayloadTooLarge
        | Known::Forbidden => PushResult::Rejected { reason },
        Known::BadTopic
        | Known::MissingTopic
        | Known::TopicDisallowed
        | Known::BadCertificate
        | Known::BadCertificateEnvironment
        | Known::InvalidProviderToken
        | Known::MissingProviderToken
        | Known::BadEnvironmentKeyIdInToken => PushResult::Credentials { reason },
        Known::ExpiredProviderToken => return Action::RenewToken,
        Known::UnrelatedKeyIdInToken => return Action::OtherConnection,
        Known::IdleTimeout | Known::Shutdown => PushResult::Unprocessed { reason },
        Known::TooManyRequests => PushResult::Throttled {
            after: refusal.retry_after.unwrap_or_default().max(DEVICE_PAUSE),
            scope: Scope::Device,
            reason,
        },
        Known::TooManyProviderTokenUpdates => {
            return Action::FreezeToken(PushResult::Throttled {
                after: refusal.retry_after.unwrap_or_default().max(TOKEN_PAUSE),
                scope: Scope::Credential,
                reason,
            });
        }
        Known::InternalServerError | Known::ServiceUnavailable => PushResult::Unavailable {
            after: refusal.retry_after,
            reason,
        },
    })
}

/// What an answer means that Apple does not document: by its class, and never a reason to drop a device.
fn by_status(refusal: &Refusal) -> PushResult {
    let reason = refusal
        .reason
        .as_deref()
        .map_or_else(|| format!("status_{}", refusal.status).into(), cleaned);
    match refusal.status {
        401 | 403 => PushResult::Credentials { reason },
        429 => PushResult::Throttled {
            after: refusal.retry_after.unwrap_or_default().max(DEVICE_PAUSE),
            scope: Scope::Device,
            reason,
        },
        // A 2xx other than 200 is nothing that Apple says: it may have been taken.
        200..=299 | 408 => PushResult::Ambiguous { reason },
        300..=499 => PushResult::Rejected { reason },
        _ => PushResult::Unavailable {
            after: refusal.retry_after,
            reason,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, KNOWN, Refusal, classify};
    use crate::push::{PushResult, Scope};
    use proptest::prelude::*;
    use std::time::Duration;

    fn judged(status: u16, body: &str) -> Action {
        classify(&Refusal::read(status, body.as_bytes(), None))
    }

    fn documented(status: u16, word: &str) -> Action {
        judged(status, &format!(r#"{{"reason":"{word}"}}"#))
    }

    /// The decision for each documented reason, in one word.
    const TABLE: &[(u16, &str, &str)] = &[
        (400, "BadCollapseId", "rejected"),
        (400, "BadDeviceToken", "gone, guarded"),
        (400, "BadExpirationDate", "rejected"),
        (400, "BadMessageId", "rejected"),
        (400, "BadPriority", "rejected"),
        (400, "BadTopic", "credentials"),
        (400, "DeviceTokenNotForTopic", "gone, guarded"),
        (400, "DuplicateHeaders", "rejected"),
        (400, "IdleTimeout", "unprocessed"),
        (400, "InvalidPushType", "rejected"),
        (400, "MissingDeviceToken", "rejected"),
        (400, "MissingTopic", "credentials"),
        (400, "PayloadEmpty", "rejected"),
        (400, "TopicDisallowed", "credentials"),
        (403, "BadCertificate", "credentials"),
        (403, "BadCertificateEnvironment", "credentials"),
        (403, "BadEnvironmentKeyIdInToken", "credentials"),
        (403, "ExpiredProviderToken", "renew token"),
        (403, "Forbidden", "rejected"),
        (403, "InvalidProviderToken", "credentials"),
        (403, "MissingProviderToken", "credentials"),
        (403, "UnrelatedKeyIdInToken", "other connection"),
        (404, "BadPath", "rejected"),
        (405, "MethodNotAllowed", "rejected"),
        (410, "ExpiredToken", "gone"),
        (410, "Unregistered", "gone"),
        (413, "PayloadTooLarge", "rejected"),
        (429, "TooManyProviderTokenUpdates", "freeze token"),
        (429, "TooManyRequests", "throttled"),
        (500, "InternalServerError", "unavailable"),
        (503, "ServiceUnavailable", "unavailable"),
        (503, "Shutdown", "unprocessed"),
    ];

    fn word(action: &Action) -> &'static str {
        match action {
            Action::RenewToken => "renew token",
            Action::OtherConnection => "other connection",
            Action::FreezeToken(_) => "freeze token",
            Action::Result(PushResult::AddressGone { guarded: true, .. }) => "gone, guarded",
            Action::Result(PushResult::AddressGone { .. }) => "gone",
            Action::Result(PushResult::Rejected { .. }) => "rejected",
            Action::Result(PushResult::Credentials { .. }) => "credentials",
            Action::Result(PushResult::Throttled { .. }) => "throttled",
            Action::Result(PushResult::Unavailable { .. }) => "unavailable",
            Action::Result(PushResult::Unprocessed { .. }) => "unprocessed",
            Action::Result(PushResult::Ambiguous { .. }) => "ambiguous",
            Action::Result(other) => panic!("no answer means {other:?}"),
        }
    }

    #[test]
    fn every_documented_reason_has_its_action() {
        assert_eq!(TABLE.len(), KNOWN.len());
        for (known, status) in KNOWN {
            let row = TABLE.iter().find(|row| row.1 == known.as_str());
            let (row_status, reason, expected) = row.unwrap();
            assert_eq!(row_status, status, "{reason}");
            let body = format!(r#"{{"reason":"{reason}","timestamp":5}}"#);
            assert_eq!(word(&judged(*status, &body)), *expected, "{reason}");
        }
    }

    #[test]
    fn a_gone_device_is_proved_by_apples_time_alone() {
        let gone = judged(
            410,
            r#"{"reason":"Unregistered","timestamp":1700000000000}"#,
        );
        assert_eq!(
            gone,
            Action::Result(PushResult::AddressGone {
                since: Some(1_700_000_000_000),
                guarded: false,
                reason: "Unregistered".into()
            })
        );
        assert_eq!(word(&documented(410, "Unregistered")), "gone, guarded");
    }

    #[test]
    fn what_apple_does_not_document_goes_by_its_class() {
        assert_eq!(word(&documented(400, "SomethingNew")), "rejected");
        assert_eq!(word(&documented(403, "SomethingNew")), "credentials");
        assert_eq!(word(&documented(410, "SomethingNew")), "rejected");
        assert_eq!(word(&documented(500, "BadDeviceToken")), "unavailable");
        assert_eq!(word(&documented(400, "Unregistered")), "rejected");
        assert_eq!(
            word(&judged(502, "<html>Bad Gateway</html>")),
            "unavailable"
        );
        assert_eq!(word(&judged(410, "")), "rejected");
        assert_eq!(word(&judged(429, "[]")), "throttled");
        assert_eq!(word(&judged(301, "")), "rejected");
        assert_eq!(word(&judged(204, "")), "ambiguous");
        let Action::Result(PushResult::Rejected { reason }) = documented(400, "Some New-Word")
        else {
            panic!("another action");
        };
        assert_eq!(reason, "SomeNew-Word");
    }

    #[test]
    fn a_retry_after_is_honoured_and_has_a_floor() {
        let after = |seconds| {
            let mut refusal = Refusal::read(429, br#"{"reason":"TooManyRequests"}"#, None);
            refusal.retry_after = Some(Duration::from_secs(seconds));
            match classify(&refusal) {
                Action::Result(PushResult::Throttled {
                    after,
                    scope: Scope::Device,
                    ..
                }) => after.as_secs(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(after(1), 30);
        assert_eq!(after(77), 77);
    }

    proptest! {
        #[test]
        fn no_body_whatever_drops_a_device_without_proof(status in 100u16..700, body in ".{0,200}") {
            let action = judged(status, &body);
            prop_assert!(!word(&action).starts_with("gone"), "{action:?}");
        }

        #[test]
        fn only_the_documented_pairs_drop_a_device(status in 100u16..700, row in 0usize..TABLE.len()) {
            let (its_status, reason, expected) = TABLE[row];
            let action = documented(status, reason);
            if word(&action).starts_with("gone") {
                prop_assert_eq!(status, its_status);
                prop_assert!(expected.starts_with("gone"));
            }
        }
    }
}
