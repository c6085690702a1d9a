//! What an answer of FCM v1 means. One function decides, by `details[].@type`: the status alone cannot tell a dead
//! token from a wrong project, and peers that read it alone have deleted their users' devices.
//!
//! Sources: firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode, docs/cloud-messaging/error-codes.

use crate::push::{PushResult, Reason, Scope, cleaned};
use serde::Deserialize;
use std::time::Duration;

/// Google's least wait after a 429 without `Retry-After`.
const QUOTA_PAUSE: Duration = Duration::from_mins(1);

const FCM_ERROR: &str = "google.firebase.fcm.v1.FcmError";
const BAD_REQUEST: &str = "google.rpc.BadRequest";
const ERROR_INFO: &str = "google.rpc.ErrorInfo";
const QUOTA_FAILURE: &str = "google.rpc.QuotaFailure";

/// What to do about an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It is the result.
    Result(PushResult),
    /// The access token is not accepted: with a fresh one, once.
    RefreshToken,
}

/// An answer that is not 200, as read from the wire.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    status: u16,
    /// `error.status`.
    canonical: Option<String>,
    /// `FcmError.errorCode`.
    fcm: Option<String>,
    /// `ErrorInfo.reason`.
    info: Option<String>,
    /// `BadRequest` names `message.token`.
    token_is_bad: bool,
    /// `QuotaFailure` is about one device.
    device_quota: bool,
    retry_after: Option<Duration>,
}

#[derive(Deserialize)]
struct Body {
    error: Status,
}

#[derive(Deserialize)]
struct Status {
    status: Option<String>,
    #[serde(default)]
    details: Vec<Detail>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    #[serde(rename = "@type", default)]
    kind: String,
    error_code: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    field_violations: Vec<Field>,
    #[serde(default)]
    violations: Vec<Subject>,
}

#[derive(Deserialize)]
struct Field {
    #[serde(default)]
    field: String,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    subject: String,
}

impl Refusal {
    /// Reads whatever stands in the body: Google's JSON, HTML of a front end, nothing.
    pub(super) fn read(status: u16, body: &[u8], retry_after: Option<Duration>) -> Self {
        let mut refusal = Self {
            status,
            retry_after,
            ..Self::default()
        };
        let Ok(body) = serde_json::from_slice::<Body>(body) else {
            return refusal;
        };
        refusal.canonical = body.error.status;
        for detail in body.error.details {
            match detail.kind.rsplit('/').next().unwrap_or_default() {
                FCM_ERROR => refusal.fcm = detail.error_code,
                ERROR_INFO => refusal.info = detail.reason,
                BAD_REQUEST => {
                    let named = |f: &Field| f.field == "message.token";
                    refusal.token_is_bad |= detail.field_violations.iter().any(named);
                }
                QUOTA_FAILURE => {
                    let device =
                        |s: &Subject| s.subject.starts_with("token:") || s.subject == "device";
                    refusal.device_quota |= detail.violations.iter().any(device);
                }
                _ => {}
            }
        }
        refusal
    }

    /// The most telling word of the answer.
    fn word(&self) -> Reason {
        let said = self
            .fcm
            .as_deref()
            .or(self.info.as_deref())
            .or(self.canonical.as_deref());
        said.map_or_else(|| format!("status_{}", self.status).into(), cleaned)
    }
}

/// The error codes of FCM's own detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Unspecified,
    InvalidArgument,
    Unregistered,
    SenderIdMismatch,
    QuotaExceeded,
    Unavailable,
    Internal,
    ThirdPartyAuthError,
    /// Not documented, or none given.
    Other,
}

impl Code {
    fn of(word: Option<&str>) -> Self {
        match word {
            Some("UNSPECIFIED_ERROR") => Self::Unspecified,
            Some("INVALID_ARGUMENT") => Self::InvalidArgument,
            Some("UNREGISTERED") => Self::Unregistered,
            Some("SENDER_ID_MISMATCH") => Self::SenderIdMismatch,
            Some("QUOTA_EXCEEDED") => Self::QuotaExceeded,
            Some("UNAVAILABLE") => Self::Unavailable,
            Some("INTERNAL") => Self::Internal,
            Some("THIRD_PARTY_AUTH_ERROR") => Self::ThirdPartyAuthError,
            Some(_) | None => Self::Other,
        }
    }
}

/// What a refusal means. A code counts only with the status it is documented with; otherwise the status decides.
pub(super) fn classify(refusal: &Refusal) -> Action {
    let reason = refusal.word();
    Action::Result(match (refusal.status, Code::of(refusal.fcm.as_deref())) {
        (404, Code::Unregistered) => PushResult::AddressGone {
            since: None,
            guarded: false,
            reason,
        },
        // A token of another project: theirs, or our credential is the wrong one. The breaker watches.
        (403, Code::SenderIdMismatch) => PushResult::AddressGone {
            since: None,
            guarded: true,
            reason,
        },
        (400, Code::InvalidArgument | Code::Other) if refusal.token_is_bad => {
            PushResult::AddressGone {
                since: None,
                guarded: true,
                reason: Reason::Borrowed("INVALID_TOKEN"),
            }
        }
        // Firebase's own key for Apple or for web push is bad. We send to Android, which goes on working, so the credential is
        // not paused for a stray token; a fresh access token would change nothing.
        (401, Code::ThirdPartyAuthError) => PushResult::Rejected { reason },
        (401, _) => return Action::RefreshToken,
        // Wrong project, no permission, service switched off: nothing here is about the device.
        (403 | 404, _) => PushResult::Credentials { reason },
        (429, _) => PushResult::Throttled {
            after: refusal.retry_after.unwrap_or(QUOTA_PAUSE).max(
                // Google's floor for one device is a minute, whatever else it says.
                if refusal.device_quota {
                    QUOTA_PAUSE
                } else {
                    Duration::ZERO
                },
            ),
            scope: if refusal.device_quota {
                Scope::Device
            } else {
                Scope::Credential
            },
            reason,
        },
        (200..=299 | 408, _) => PushResult::Ambiguous { reason },
        (300..=499, _) => PushResult::Rejected { reason },
        (_, _) => PushResult::Unavailable {
            after: refusal.retry_after,
            reason,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{Action, Refusal, classify};
    use crate::push::{PushResult, Scope};
    use proptest::prelude::*;
    use std::time::Duration;

    fn detail(kind: &str, rest: &str) -> String {
        format!(r#"{{"@type":"type.googleapis.com/{kind}",{rest}}}"#)
    }

    fn fcm(code: &str) -> String {
        detail(
            "google.firebase.fcm.v1.FcmError",
            &format!(r#""errorCode":"{code}""#),
        )
    }

    fn info(reason: &str) -> String {
        detail(
            "google.rpc.ErrorInfo",
            &format!(r#""reason":"{reason}","domain":"googleapis.com""#),
        )
    }

    fn field(name: &str) -> String {
        detail(
            "google.rpc.BadRequest",
            &format!(r#""fieldViolations":[{{"field":"{name}"}}]"#),
        )
    }

    fn judged(status: u16, canonical: &str, details: &[String]) -> Action {
        let details = details.join(",");
        let body = format!(
            r#"{{"error":{{"code":{status},"message":"text","status":"{canonical}","details":[{details}]}}}}"#
        );
        classify(&Refusal::read(status, body.as_bytes(), None))
    }

    fn word(action: &Action) -> &'static str {
        match action {
            Action::RefreshToken => "refresh token",
            Action::Result(PushResult::AddressGone { guarded: true, .. }) => "gone, guarded",
            Action::Result(PushResult::AddressGone { .. }) => "gone",
            Action::Result(PushResult::Rejected { .. }) => "rejected",
            Action::Result(PushResult::Credentials { .. }) => "credentials",
            Action::Result(PushResult::Throttled {
                scope: Scope::Device,
                ..
            }) => "device throttled",
            Action::Result(PushResult::Throttled { .. }) => "throttled",
            Action::Result(PushResult::Unavailable { .. }) => "unavailable",
            Action::Result(PushResult::Ambiguous { .. }) => "ambiguous",
            Action::Result(other) => panic!("no answer means {other:?}"),
        }
    }

    #[test]
    fn every_documented_error_has_its_action() {
        let bad_token = [fcm("INVALID_ARGUMENT"), field("message.token")];
        let other_field = [fcm("INVALID_ARGUMENT"), field("message.data")];
        let device = [
            fcm("QUOTA_EXCEEDED"),
            detail(
                "google.rpc.QuotaFailure",
                r#""violations":[{"subject":"device"}]"#,
            ),
        ];
        let rows: [(u16, &str, &[String], &str); 22] = [
            (400, "INVALID_ARGUMENT", &bad_token, "gone, guarded"),
            (400, "INVALID_ARGUMENT", &other_field, "rejected"),
            (
                400,
                "INVALID_ARGUMENT",
                &[fcm("INVALID_ARGUMENT")],
                "rejected",
            ),
            (400, "INVALID_ARGUMENT", &[], "rejected"),
            (401, "UNAUTHENTICATED", &[], "refresh token"),
            (
                401,
                "UNAUTHENTICATED",
                &[info("ACCESS_TOKEN_EXPIRED")],
                "refresh token",
            ),
            (
                401,
                "UNAUTHENTICATED",
                &[fcm("THIRD_PARTY_AUTH_ERROR")],
                "rejected",
            ),
            (
                403,
                "PERMISSION_DENIED",
                &[fcm("SENDER_ID_MISMATCH")],
                "gone, guarded",
            ),
            (403, "PERMISSION_DENIED", &[], "credentials"),
            (
                403,
                "PERMISSION_DENIED",
                &[info("SERVICE_DISABLED")],
                "credentials",
            ),
            (404, "NOT_FOUND", &[fcm("UNREGISTERED")], "gone"),
            (404, "NOT_FOUND", &[], "credentials"),
            (
                429,
                "RESOURCE_EXHAUSTED",
                &[fcm("QUOTA_EXCEEDED")],
                "throttled",
            ),
            (
                429,
                "RESOURCE_EXHAUSTED",
                &[info("RATE_LIMIT_EXCEEDED")],
                "throttled",
            ),
            (429, "RESOURCE_EXHAUSTED", &[], "throttled"),
            (429, "RESOURCE_EXHAUSTED", &device, "device throttled"),
            (500, "INTERNAL", &[fcm("INTERNAL")], "unavailable"),
            (503, "UNAVAILABLE", &[fcm("UNAVAILABLE")], "unavailable"),
            (504, "DEADLINE_EXCEEDED", &[], "unavailable"),
            (500, "UNKNOWN", &[fcm("UNSPECIFIED_ERROR")], "unavailable"),
            (
                400,
                "INVALID_ARGUMENT",
                &[fcm("UNSPECIFIED_ERROR")],
                "rejected",
            ),
            (500, "INTERNAL", &[fcm("SOMETHING_NEW")], "unavailable"),
        ];
        for (status, canonical, details, expected) in rows {
            let action = judged(status, canonical, details);
            assert_eq!(word(&action), expected, "{status} {details:?}");
        }
    }

    #[test]
    fn a_page_of_html_goes_by_its_status() {
        let page = |status| word(&classify(&Refusal::read(status, b"<!DOCTYPE html>", None)));
        assert_eq!(page(502), "unavailable");
        assert_eq!(page(404), "credentials");
        assert_eq!(page(400), "rejected");
        assert_eq!(page(302), "rejected");
        assert_eq!(page(204), "ambiguous");
    }

    #[test]
    fn a_retry_after_is_honoured() {
        let after = |seconds: Option<u64>| {
            let refusal = Refusal::read(429, b"", seconds.map(Duration::from_secs));
            match classify(&refusal) {
                Action::Result(PushResult::Throttled { after, .. }) => after.as_secs(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(after(None), 60);
        assert_eq!(after(Some(7)), 7);
        assert_eq!(after(Some(700)), 700);
    }

    #[test]
    fn the_most_telling_word_is_kept() {
        let reason = |action| match action {
            Action::Result(PushResult::Credentials { reason }) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            reason(judged(
                403,
                "PERMISSION_DENIED",
                &[info("SERVICE_DISABLED")]
            )),
            "SERVICE_DISABLED"
        );
        assert_eq!(reason(judged(404, "NOT_FOUND", &[])), "NOT_FOUND");
        assert_eq!(
            reason(classify(&Refusal::read(404, b"", None))),
            "status_404"
        );
    }

    proptest! {
        #[test]
        fn no_body_whatever_drops_a_device_without_proof(status in 100u16..700, body in ".{0,200}") {
            let action = classify(&Refusal::read(status, body.as_bytes(), None));
            prop_assert!(!word(&action).starts_with("gone"), "{action:?}");
        }

        #[test]
        fn a_code_with_another_status_proves_nothing(status in 100u16..700) {
            for (code, its_status) in [("UNREGISTERED", 404), ("SENDER_ID_MISMATCH", 403)] {
                let gone = word(&judged(status, "", &[fcm(code)])).starts_with("gone");
                prop_assert_eq!(gone, status == its_status);
            }
        }
    }
}
