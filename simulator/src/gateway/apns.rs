//! `POST /3/device/<token>` as APNs serves it. Where Apple does not say which of two faults it names first, the cheaper check is first.

use super::exchange::{Connection, NoBody, Reply, finish, read};
use super::journal::{Provider, Receipt, push_named_in};
use super::reasons::ApnsReason;
use super::script::{Step, Verdict};
use super::{State, apns_token};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};
use shared::secret::Secret;
use uuid::Uuid;

const PUSH_TYPES: [&str; 10] = [
    "alert",
    "background",
    "location",
    "voip",
    "complication",
    "fileprovider",
    "mdm",
    "liveactivity",
    "pushtotalk",
    "widgets",
];
const MAX_PAYLOAD: usize = 4096;
const MAX_VOIP_PAYLOAD: usize = 5120;
const MAX_COLLAPSE_ID: usize = 64;
/// Tokens are of variable length by Apple's word; 32 bytes is the least that was ever seen, 100 the most.
const TOKEN_DIGITS: std::ops::RangeInclusive<usize> = 64..=200;

pub(super) async fn serve(
    connection: &Connection,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = read(body).await;
    let mut receipt = Receipt::new(Provider::Apns, State::now());
    let step = match inspect(&connection.state, &parts, body.as_ref(), &mut receipt) {
        Ok(()) => connection
            .state
            .judge(Provider::Apns, receipt.token.expose()),
        Err(reason) => Step::answer(Verdict::Apns(reason)),
    };
    let id = receipt
        .apns_id
        .get_or_insert_with(|| Uuid::now_v7().to_string())
        .clone();
    let mut reply = reply(&step.verdict, receipt.at_ms);
    reply.headers.push((HeaderName::from_static("apns-id"), id));
    finish(connection, receipt, &step, reply).await
}

fn reply(verdict: &Verdict, now: i64) -> Reply {
    let named = |reason: ApnsReason| {
        let mut body = json!({"reason": reason.as_str()});
        if reason.status() == 410 {
            body["timestamp"] = now.into();
        }
        Reply::json(reason.status(), Some(reason.as_str()), &body)
    };
    match verdict {
        Verdict::Accept | Verdict::Fcm(_) => Reply::raw(200, String::new()),
        Verdict::Gone { since_ms } => {
            let body = json!({"reason": "Unregistered", "timestamp": since_ms.unwrap_or(now)});
            Reply::json(410, Some("Unregistered"), &body)
        }
        Verdict::BadToken => named(ApnsReason::BadDeviceToken),
        Verdict::Broken => named(ApnsReason::InternalServerError),
        Verdict::Down => named(ApnsReason::ServiceUnavailable),
        Verdict::Throttled { retry_after_secs } => {
            named(ApnsReason::TooManyRequests).retry_after(*retry_after_secs)
        }
        Verdict::Refused => named(ApnsReason::InvalidProviderToken),
        Verdict::Apns(reason) => named(*reason),
        Verdict::Raw { status, body } => Reply::raw(*status, body.clone()),
    }
}

/// The only value of a header.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApnsReason> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        // Bytes that are no text fit no rule below, and neither does this.
        (Some(value), None) => Ok(Some(value.to_str().unwrap_or("\u{fffd}"))),
        (Some(_), Some(_)) => Err(ApnsReason::DuplicateHeaders),
    }
}

fn device_token(path: &str) -> Result<&str, ApnsReason> {
    match path.strip_prefix("/3/device") {
        Some("" | "/") => Err(ApnsReason::MissingDeviceToken),
        Some(rest) => rest
            .strip_prefix('/')
            .filter(|token| !token.contains('/'))
            .ok_or(ApnsReason::BadPath),
        None => Err(ApnsReason::BadPath),
    }
}

/// Apple prints identifiers in the canonical form and takes no other.
fn canonical_uuid(text: &str) -> bool {
    text.len() == 36 && Uuid::try_parse(text).is_ok()
}

fn check_topic(topic: Option<&str>, ours: &str) -> Result<(), ApnsReason> {
    let topic = topic.ok_or(ApnsReason::MissingTopic)?;
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if topic.is_empty() || !topic.bytes().all(sound) {
        return Err(ApnsReason::BadTopic);
    }
    let beneath = topic
        .strip_prefix(ours)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    if beneath {
        Ok(())
    } else {
        Err(ApnsReason::TopicDisallowed)
    }
}

/// Checks everything, and notes in the receipt what it learns on the way.
fn inspect(
    state: &State,
    parts: &http::request::Parts,
    body: Result<&Bytes, &NoBody>,
    receipt: &mut Receipt,
) -> Result<(), ApnsReason> {
    if parts.method != Method::POST {
        return Err(ApnsReason::MethodNotAllowed);
    }
    let token = device_token(parts.uri.path())?;
    receipt.token = Secret::new(token);
    let header = |name| single(&parts.headers, name);
    if let Some(id) = header("apns-id")? {
        if !canonical_uuid(id) {
            return Err(ApnsReason::BadMessageId);
        }
        receipt.apns_id = Some(id.to_owned());
    }
    let authorization = header("authorization")?;
    let checked = apns_token::check(&state.apns, &state.verified, authorization, receipt.at_ms)?;
    if checked.fresh {
        state.journal.saw_provider_token(checked.iat);
    }
    let hex = token.bytes().all(|b| b.is_ascii_hexdigit());
    if !hex || !TOKEN_DIGITS.contains(&token.len()) || token.len() % 2 != 0 {
        return Err(ApnsReason::BadDeviceToken);
    }
    check_topic(header("apns-topic")?, &state.apns.public.topic)?;
    let push_type = header("apns-push-type")?
        .filter(|kind| PUSH_TYPES.contains(kind))
        .ok_or(ApnsReason::InvalidPushType)?;
    receipt.push_type = Some(push_type.to_owned());
    let priority = header("apns-priority")?;
    if priority.is_some_and(|p| !matches!(p, "1" | "5" | "10"))
        || (push_type == "background" && priority.is_none_or(|p| p == "10"))
    {
        return Err(ApnsReason::BadPriority);
    }
    receipt.priority = priority.map(str::to_owned);
    if let Some(text) = header("apns-expiration")? {
        let at = text
            .parse::<i64>()
            .map_err(|_| ApnsReason::BadExpirationDate)?;
        if at < 0 {
            return Err(ApnsReason::BadExpirationDate);
        }
        receipt.expiration = Some(at);
    }
    if let Some(id) = header("apns-collapse-id")? {
        if id.is_empty() || id.len() > MAX_COLLAPSE_ID {
            return Err(ApnsReason::BadCollapseId);
        }
        receipt.collapse_id = Some(id.to_owned());
    }
    check_payload(push_type, body, receipt)
}

fn check_payload(
    push_type: &str,
    body: Result<&Bytes, &NoBody>,
    receipt: &mut Receipt,
) -> Result<(), ApnsReason> {
    let limit = match push_type {
        "voip" => MAX_VOIP_PAYLOAD,
        _ => MAX_PAYLOAD,
    };
    let body = match body {
        Ok(body) if body.len() > limit => return Err(ApnsReason::PayloadTooLarge),
        Err(NoBody::TooLarge) => return Err(ApnsReason::PayloadTooLarge),
        Err(NoBody::Broken) => return Err(ApnsReason::PayloadEmpty),
        Ok(body) => body,
    };
    receipt.body = Secret::new(String::from_utf8_lossy(body));
    // Apple has one word for a payload without anything to show, whatever the cause.
    let payload: Value = serde_json::from_slice(body).map_err(|_| ApnsReason::PayloadEmpty)?;
    if !payload["aps"].is_object() {
        return Err(ApnsReason::PayloadEmpty);
    }
    receipt.push_id = push_named_in(&payload);
    Ok(())
}
