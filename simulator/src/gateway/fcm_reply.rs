//! FCM's errors on the wire: `google.rpc.Status` with typed details, by which alone some of them can be told apart.

use super::exchange::Reply;
use super::fcm_message::Invalid;
use super::reasons::FcmCode;
use super::script::Verdict;
use serde_json::{Value, json};

fn fcm_error(code: &str) -> Value {
    json!({"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code})
}

fn error_info(reason: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "fcm.googleapis.com"},
    })
}

fn bad_request(field: &str, description: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{"field": field, "description": description}],
    })
}

/// The details, and the word that tells this error from others with the same status.
fn details(code: FcmCode) -> (Vec<Value>, &'static str) {
    let fcm = |word: &'static str| (vec![fcm_error(word)], word);
    let info = |word: &'static str| (vec![error_info(word)], word);
    match code {
        FcmCode::InvalidArgument => fcm("INVALID_ARGUMENT"),
        FcmCode::TooBig => (vec![], "INVALID_ARGUMENT"),
        FcmCode::InvalidToken => (
            vec![
                fcm_error("INVALID_ARGUMENT"),
                bad_request("message.token", "Invalid registration token"),
            ],
            "INVALID_ARGUMENT",
        ),
        FcmCode::Unauthenticated => (
            vec![error_info("ACCESS_TOKEN_TYPE_UNSUPPORTED")],
            "UNAUTHENTICATED",
        ),
        FcmCode::ThirdPartyAuthError => fcm("THIRD_PARTY_AUTH_ERROR"),
        FcmCode::SenderIdMismatch => fcm("SENDER_ID_MISMATCH"),
        FcmCode::PermissionDenied => (
            vec![error_info("IAM_PERMISSION_DENIED")],
            "PERMISSION_DENIED",
        ),
        FcmCode::ServiceDisabled => info("SERVICE_DISABLED"),
        FcmCode::Unregistered => fcm("UNREGISTERED"),
        FcmCode::NotFound => (vec![], "NOT_FOUND"),
        FcmCode::QuotaExceeded => fcm("QUOTA_EXCEEDED"),
        FcmCode::RateLimitExceeded => info("RATE_LIMIT_EXCEEDED"),
        FcmCode::Internal => fcm("INTERNAL"),
        FcmCode::Unavailable => fcm("UNAVAILABLE"),
        FcmCode::UnspecifiedError => fcm("UNSPECIFIED_ERROR"),
    }
}

fn status(code: FcmCode, message: &str, details: Vec<Value>, reason: &str) -> Reply {
    let mut error = json!({"code": code.http(), "message": message, "status": code.status()});
    if !details.is_empty() {
        error["details"] = Value::Array(details);
    }
    Reply::json(code.http(), Some(reason), &json!({"error": error}))
}

/// One error.
pub(super) fn error(code: FcmCode) -> Reply {
    let (details, reason) = details(code);
    status(code, code.message(), details, reason)
}

/// A message that was refused.
pub(super) fn invalid(fault: &Invalid) -> Reply {
    let mut details = vec![];
    if let Some(field) = &fault.field {
        if fault.by_fcm {
            details.push(fcm_error("INVALID_ARGUMENT"));
        }
        details.push(bad_request(field, &fault.description));
    }
    status(fault.code, &fault.description, details, "INVALID_ARGUMENT")
}

/// What a token's script makes of a good message; `name` is the answer to an accepted one.
pub(super) fn verdict(verdict: &Verdict, name: &str) -> Reply {
    match verdict {
        Verdict::Accept | Verdict::Apns(_) => Reply::json(200, None, &json!({"name": name})),
        Verdict::Gone { .. } => error(FcmCode::Unregistered),
        Verdict::BadToken => error(FcmCode::InvalidToken),
        Verdict::Broken => error(FcmCode::Internal),
        Verdict::Down => error(FcmCode::Unavailable),
        Verdict::Throttled { retry_after_secs } => {
            error(FcmCode::QuotaExceeded).retry_after(*retry_after_secs)
        }
        Verdict::Refused => error(FcmCode::PermissionDenied),
        Verdict::Fcm(code) => error(*code),
        Verdict::Raw { status, body } => Reply::raw(*status, body.clone()),
    }
}
