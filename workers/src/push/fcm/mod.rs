//! Firebase Cloud Messaging, HTTP v1, by service account.

mod account;
mod classify;
mod oauth;
mod pace;

pub use account::AccountError;
pub(super) use pace::Paces;

use super::apns::{TRACEPARENT, own};
use super::pool::{Peer, Pool, Reply};
use super::token::{Shelf, Token, Tokens, Without};
use super::{Call, MALFORMED, Provider, PushResult, Scope, latest, retry_after, transport};
use account::Account;
use async_trait::async_trait;
use bytes::{BufMut as _, Bytes, BytesMut};
use classify::{Action, Refusal, classify};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};
use oauth::Fetcher;
use pace::{Pace, Turn};
use rustls::ClientConfig;
use serde::Deserialize;
use shared::clock::{Millis, SharedClock};
use shared::secret::Secret;
use std::sync::Arc;

/// Google's most, four weeks.
const LONGEST_TTL_S: i64 = 2_419_200;
const LONGEST_TOKEN: usize = 4096;

/// One credential's way to FCM.
pub(super) struct Fcm {
    pool: Pool,
    tokens: Tokens<Fetcher>,
    pace: Arc<Pace>,
    uri: Uri,
    clock: SharedClock,
}

#[derive(Deserialize)]
struct Taken {
    name: String,
}

impl Fcm {
    pub(super) fn new(
        service_account: &Secret,
        peer: &Peer,
        pool: impl FnOnce() -> Pool,
        tls: &Arc<ClientConfig>,
        shelf: Arc<dyn Shelf>,
        paces: &mut Paces,
        clock: SharedClock,
    ) -> Result<Self, AccountError> {
        let (account, key) = Account::parse(service_account)?;
        let path = format!("/v1/projects/{}/messages:send", account.project);
        let uri = Uri::builder()
            .scheme("https")
            .authority(peer.authority.clone())
            .path_and_query(path)
            .build();
        let pace = paces.of(&format!("{}/{}", peer.authority, account.project));
        let fetcher = Fetcher::new(account, Arc::clone(tls));
        Ok(Self {
            uri: uri.map_err(|_| AccountError::Project)?,
            tokens: Tokens::new(key, fetcher, shelf, Arc::clone(&clock)),
            pace,
            pool: pool(),
            clock,
        })
    }

    fn request(&self, token: &Token, trace: Option<&str>) -> Request<()> {
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(header::AUTHORIZATION, token.header.clone());
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(trace) = trace.and_then(own) {
            headers.insert(TRACEPARENT, trace);
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        request
    }

    fn read(&self, reply: &Reply) -> Action {
        if reply.status == http::StatusCode::OK {
            let taken = serde_json::from_slice::<Taken>(&reply.body);
            return Action::Result(PushResult::Accepted {
                provider_id: taken.ok().map(|taken| taken.name),
            });
        }
        let after = retry_after(&reply.headers, self.clock.now());
        classify(&Refusal::read(reply.status.as_u16(), &reply.body, after))
    }
}

/// The message. `None` where the address cannot be one, and so must not come near JSON.
fn body(call: &Call, now: Millis) -> Option<Bytes> {
    let token = call.token.expose();
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':' | b'.' | b'%');
    if !(1..=LONGEST_TOKEN).contains(&token.len()) || !token.bytes().all(sound) {
        return None;
    }
    let ttl = ((call.expires_at - now) / 1000).clamp(0, LONGEST_TTL_S);
    let mut body = BytesMut::with_capacity(token.len() + 160);
    body.put_slice(br#"{"message":{"token":""#);
    body.put_slice(token.as_bytes());
    body.put_slice(br#"","data":{"push":""#);
    body.put_slice(call.push.as_str().as_bytes());
    body.put_slice(br#""},"android":{"priority":"HIGH","ttl":""#);
    body.put_slice(ttl.to_string().as_bytes());
    body.put_slice(br#"s"}}}"#);
    Some(body.freeze())
}

#[async_trait]
impl Provider for Fcm {
    async fn push(&self, call: &Call) -> PushResult {
        let now = self.clock.now();
        if call.expires_at <= now {
            return PushResult::Expired;
        }
        let Some(body) = body(call, now) else {
            return PushResult::Rejected {
                reason: MALFORMED.into(),
            };
        };
        let latest = latest(call, now);
        let trace = call.traceparent.as_deref();
        let mut token = match self.tokens.token().await {
            Ok(token) => token,
            Err(result) => return result,
        };
        match self.pace.turn(call.lane) {
            Turn::After(wait) if wait.is_zero() => {}
            Turn::After(wait) => tokio::time::sleep(wait).await,
            Turn::Later(after) => return PushResult::Paced { after },
        }
        // The token and the turn may have taken their time.
        if call.expires_at <= self.clock.now() {
            return PushResult::Expired;
        }
        let mut refreshed = false;
        loop {
            let request = || self.request(&token, trace);
            let sent = self.pool.send(call.lane, request, &body, latest).await;
            let action = match sent {
                Ok(reply) => self.read(&reply),
                Err(error) => return transport(&error),
            };
            match action {
                Action::Result(result) => {
                    if let PushResult::Throttled {
                        after,
                        scope: Scope::Credential,
                        ..
                    } = &result
                    {
                        self.pace.slow_down(*after);
                    }
                    return result;
                }
                Action::RefreshToken if refreshed => {
                    return PushResult::Credentials {
                        reason: "UNAUTHENTICATED".into(),
                    };
                }
                Action::RefreshToken => match self.tokens.another(&token).await {
                    Ok(fresh) => token = fresh,
                    Err(without) => return Without::result(without),
                },
            }
            refreshed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::body;
    use crate::push::Call;
    use shared::domain::Kind;
    use shared::id::{DeliveryId, PushId};
    use shared::message::Lane;
    use shared::secret::Secret;

    fn call(token: &str, expires_at: i64) -> Call {
        Call {
            delivery: DeliveryId::derived(&["d"]),
            push: PushId::derived(&["p"]),
            kind: Kind::Generic,
            lane: Lane::Bulk,
            token: Secret::new(token),
            expires_at,
            attempt: 1,
            traceparent: None,
        }
    }

    #[test]
    fn the_message_is_data_only_and_high() {
        let call = call("abc:DEF-_1", 90_500);
        let json: serde_json::Value = serde_json::from_slice(&body(&call, 500).unwrap()).unwrap();
        let expected = serde_json::json!({"message": {
            "token": "abc:DEF-_1",
            "data": {"push": call.push.as_str()},
            "android": {"priority": "HIGH", "ttl": "90s"},
        }});
        assert_eq!(json, expected);
    }

    #[test]
    fn the_ttl_stays_within_googles_bounds() {
        let ttl = |expires| {
            let json: serde_json::Value =
                serde_json::from_slice(&body(&call("t", expires), 0).unwrap()).unwrap();
            json["message"]["android"]["ttl"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(ttl(999), "0s");
        assert_eq!(ttl(i64::MAX), "2419200s");
    }

    #[test]
    fn what_could_break_out_of_the_json_is_no_address() {
        for token in ["", "a\"b", "a\\b", "a b", "é", &"x".repeat(4097)] {
            assert!(body(&call(token, 1_000), 0).is_none(), "{token}");
        }
    }
}
