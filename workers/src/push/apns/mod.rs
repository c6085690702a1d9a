//! Apple Push Notification service, by provider token.

mod classify;
mod token;

pub use token::KeyError;
pub(super) use token::{ProviderTokens, Signer};

use super::pool::{Pool, Reply};
use super::token::{Token, Without};
use super::{Call, MALFORMED, Provider, PushResult, latest, retry_after, transport};
use async_trait::async_trait;
use bytes::{BufMut as _, Bytes, BytesMut};
use classify::{Action, Refusal, classify};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};
use shared::clock::{Millis, SharedClock};
use shared::id::DeliveryId;
use shared::message::Lane;
use std::sync::Arc;
use tokio::time::Instant;
use uuid::Uuid;

const ID: HeaderName = HeaderName::from_static("apns-id");
const COLLAPSE: HeaderName = HeaderName::from_static("apns-collapse-id");
const EXPIRATION: HeaderName = HeaderName::from_static("apns-expiration");
const PRIORITY: HeaderName = HeaderName::from_static("apns-priority");
const PUSH_TYPE: HeaderName = HeaderName::from_static("apns-push-type");
const TOPIC: HeaderName = HeaderName::from_static("apns-topic");
const UNIQUE_ID: HeaderName = HeaderName::from_static("apns-unique-id");
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What stands before and after the push's identifier. The text is what a phone shows that cannot fetch the real one.
const BEFORE: &str = concat!(
    r#"{"aps":{"alert":{"title":"Confirmation requested","body":"Open the app to answer."},"#,
    r#""category":"COUNTERSIGN_PUSH","interruption-level":"time-sensitive","mutable-content":1,"sound":"default"},"push":""#
);
const AFTER: &str = r#""}"#;
const PATH: &str = "/3/device/";
/// Apple: of variable length. 200 digits are the most that were seen.
const LONGEST_TOKEN: usize = 200;

/// One credential's way to APNs.
pub(super) struct Apns {
    pool: Pool,
    tokens: Arc<ProviderTokens>,
    authority: Authority,
    topic: HeaderValue,
    clock: SharedClock,
}

/// What is the same in every attempt of one call.
struct Push<'a> {
    uri: Uri,
    id: HeaderValue,
    collapse: HeaderValue,
    expiration: HeaderValue,
    trace: Option<&'a str>,
    lane: Lane,
    body: Bytes,
    latest: Instant,
}

impl Apns {
    pub(super) fn new(
        pool: Pool,
        tokens: Arc<ProviderTokens>,
        authority: Authority,
        topic: HeaderValue,
        clock: SharedClock,
    ) -> Self {
        Self {
            pool,
            tokens,
            authority,
            topic,
            clock,
        }
    }

    /// `None` where the address cannot be one, and so must not come near a path.
    fn prepare<'a>(&self, call: &'a Call, now: Millis) -> Option<Push<'a>> {
        let token = call.token.expose();
        let sound = (1..=LONGEST_TOKEN).contains(&token.len())
            && token.bytes().all(|b| b.is_ascii_hexdigit());
        if !sound {
            return None;
        }
        let mut path = BytesMut::with_capacity(PATH.len() + token.len());
        path.put_slice(PATH.as_bytes());
        path.put_slice(token.as_bytes());
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(path.freeze()).ok()?);
        let push = call.push.as_str();
        let mut body = BytesMut::with_capacity(BEFORE.len() + push.len() + AFTER.len());
        body.put_slice(BEFORE.as_bytes());
        body.put_slice(push.as_bytes());
        body.put_slice(AFTER.as_bytes());
        let id = apns_id(&call.delivery);
        Some(Push {
            uri: Uri::from_parts(parts).ok()?,
            id: own(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()))?,
            collapse: own(push)?,
            expiration: HeaderValue::from(expiration(call.expires_at)),
            trace: call.traceparent.as_deref(),
            lane: call.lane,
            body: body.freeze(),
            latest: latest(call, now),
        })
    }

    fn request(&self, push: &Push<'_>, token: &Token) -> Request<()> {
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(header::AUTHORIZATION, token.header.clone());
        headers.insert(TOPIC, self.topic.clone());
        headers.insert(PUSH_TYPE, HeaderValue::from_static("alert"));
        headers.insert(PRIORITY, HeaderValue::from_static("10"));
        headers.insert(EXPIRATION, push.expiration.clone());
        headers.insert(ID, push.id.clone());
        headers.insert(COLLAPSE, push.collapse.clone());
        if let Some(trace) = push.trace.and_then(own) {
            headers.insert(TRACEPARENT, trace);
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = push.uri.clone();
        *request.headers_mut() = headers;
        request
    }

    async fn send(&self, push: &Push<'_>, token: &Token) -> Result<Action, PushResult> {
        let request = || self.request(push, token);
        let sent = self.pool.send(push.lane, request, &push.body, push.latest);
        let reply = sent.await.map_err(|error| transport(&error))?;
        Ok(self.read(&reply))
    }

    fn read(&self, reply: &Reply) -> Action {
        if reply.status == http::StatusCode::OK {
            let text = |name| Some(reply.headers.get(name)?.to_str().ok()?.to_owned());
            if let Some(unique_id) = text(UNIQUE_ID) {
                // The sandbox names it, and Apple's console finds a delivery by it.
                tracing::debug!(unique_id, "taken by the APNs sandbox");
            }
            return Action::Result(PushResult::Accepted {
                provider_id: text(ID),
            });
        }
        let after = retry_after(&reply.headers, self.clock.now());
        classify(&Refusal::read(reply.status.as_u16(), &reply.body, after))
    }
}

#[async_trait]
impl Provider for Apns {
    async fn push(&self, call: &Call) -> PushResult {
        let now = self.clock.now();
        if call.expires_at <= now {
            return PushResult::Expired;
        }
        let Some(push) = self.prepare(call, now) else {
            return PushResult::Rejected {
                reason: MALFORMED.into(),
            };
        };
        let mut token = match self.tokens.token().await {
            Ok(token) => token,
            Err(result) => return result,
        };
        // The token may have taken its time.
        if call.expires_at <= self.clock.now() {
            return PushResult::Expired;
        }
        let started = Instant::now();
        let mut second = false;
        loop {
            let action = match self.send(&push, &token).await {
                Ok(action) => action,
                Err(result) => return result,
            };
            match action {
                Action::Result(result) => return result,
                Action::FreezeToken(result) => {
                    self.tokens.freeze().await;
                    return result;
                }
                Action::RenewToken if second => return credentials("ExpiredProviderToken"),
                Action::RenewToken => match self.tokens.another(&token).await {
                    Ok(renewed) => token = renewed,
                    // Too old to Apple and too young to be: one of the two clocks is wrong.
                    Err(Without::TooSoon) => return credentials("clock_skew"),
                    Err(Without::Result(result)) => return result,
                },
                Action::OtherConnection if second => return credentials("UnrelatedKeyIdInToken"),
                Action::OtherConnection => self.pool.renew(started),
            }
            second = true;
        }
    }
}

fn credentials(reason: &'static str) -> PushResult {
    PushResult::Credentials {
        reason: reason.into(),
    }
}

/// A value that differs in every request: kept out of the compression table, where it would only push out the constant ones.
pub(super) fn own(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whole seconds, and never later than our own deadline.
fn expiration(at: Millis) -> i64 {
    at.div_euclid(1000).max(0)
}

/// The identifier's own UUID: the same on each retry, and it can be traced back to the delivery.
fn apns_id(delivery: &DeliveryId) -> Uuid {
    let text = delivery.as_str().rsplit('_').next().unwrap_or_default();
    let bits = text.bytes().fold(0_u128, |bits, letter| {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let digit = ALPHABET.iter().position(|l| *l == letter).unwrap_or(0);
        (bits << 5) | digit as u128
    });
    Uuid::from_u128(bits)
}

#[cfg(test)]
mod tests {
    use super::{AFTER, BEFORE, apns_id, expiration};
    use shared::id::DeliveryId;

    #[test]
    fn the_payload_is_a_wake_up_and_small() {
        let text = format!("{BEFORE}psh_00000000000000000000000000{AFTER}");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["aps"]["alert"]["title"], "Confirmation requested");
        assert_eq!(json["aps"]["alert"]["body"], "Open the app to answer.");
        assert_eq!(json["aps"]["category"], "COUNTERSIGN_PUSH");
        assert_eq!(json["aps"]["interruption-level"], "time-sensitive");
        assert_eq!(json["aps"]["mutable-content"], 1);
        assert_eq!(json["aps"]["sound"], "default");
        assert_eq!(json["push"], "psh_00000000000000000000000000");
        assert!(text.len() < 500, "{}", text.len());
    }

    #[test]
    fn the_apns_id_is_the_deliverys_own_uuid() {
        let delivery = DeliveryId::fresh(1_800_000_000_000);
        let id = apns_id(&delivery);
        assert_eq!(id, apns_id(&delivery));
        assert_eq!(id.get_version_num(), 7);
        let (seconds, _) = id.get_timestamp().unwrap().to_unix();
        assert_eq!(seconds, 1_800_000_000);
        assert_ne!(id, apns_id(&DeliveryId::derived(&["another"])));
    }

    #[test]
    fn the_expiration_is_rounded_down() {
        assert_eq!(expiration(1_999), 1);
        assert_eq!(expiration(-5), 0);
    }
}
