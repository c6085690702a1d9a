//! The access token: fetched once for everybody who asks at the same time, renewed in the background before it runs out.

use super::account::Account;
use crate::push::pool::{Reply, once};
use crate::push::{PushResult, Reason, cleaned, transport};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use rustls::ClientConfig;
use serde::Deserialize;
use shared::clock::{Millis, SharedClock};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Mutex;

/// When a token is renewed while it still works.
const RENEW_AFTER: Millis = 50 * 60_000;
/// A token with less left is not used any more.
const MARGIN: Millis = 60_000;
/// How long the token endpoint may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// After a failure everybody gets the same answer this long: a thousand waiting pushes are not a thousand requests.
const FIRST_PAUSE: Millis = 1_000;
const LAST_PAUSE: Millis = 60_000;
const GRANT: &str = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=";

/// A token in the form in which it goes on the wire.
#[derive(Clone)]
pub(super) struct AccessToken {
    pub(super) header: HeaderValue,
    generation: u64,
    fetched_at: Millis,
    until: Millis,
}

pub(super) struct AccessTokens(Arc<Inner>);

struct Inner {
    account: Account,
    tls: Arc<ClientConfig>,
    clock: SharedClock,
    current: RwLock<Option<AccessToken>>,
    /// Held by whoever fetches.
    fetching: Mutex<Fetching>,
}

#[derive(Default)]
struct Fetching {
    generation: u64,
    failures: u32,
    /// What the last attempt came to, and until when that is the answer.
    failed: Option<(Millis, PushResult)>,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: i64,
}

#[derive(Deserialize)]
struct Denied {
    error: String,
}

impl AccessTokens {
    pub(super) fn new(account: Account, tls: Arc<ClientConfig>, clock: SharedClock) -> Self {
        Self(Arc::new(Inner {
            account,
            tls,
            clock,
            current: RwLock::default(),
            fetching: Mutex::default(),
        }))
    }

    /// The token to use now.
    pub(super) async fn token(&self) -> Result<AccessToken, PushResult> {
        let now = self.0.clock.now();
        if let Some(token) = self.0.current(now) {
            if now - token.fetched_at >= RENEW_AFTER {
                self.renew_soon(&token);
            }
            return Ok(token);
        }
        self.0.fetch(None).await
    }

    /// After FCM refused `used`: another one.
    pub(super) async fn refreshed(&self, used: &AccessToken) -> Result<AccessToken, PushResult> {
        self.0.fetch(Some(used.generation)).await
    }

    /// Renews without making anybody wait. Does nothing while somebody else is at it.
    fn renew_soon(&self, token: &AccessToken) {
        if self.0.fetching.try_lock().is_err() {
            return;
        }
        let (inner, generation) = (Arc::clone(&self.0), token.generation);
        tokio::spawn(async move {
            if let Err(result) = inner.fetch(Some(generation)).await {
                tracing::warn!(
                    ?result,
                    "the access token of FCM could not be renewed; the old one goes on"
                );
            }
        });
    }
}

impl Inner {
    fn current(&self, now: Millis) -> Option<AccessToken> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let usable = |token: &&AccessToken| token.fetched_at <= now && now < token.until - MARGIN;
        current.as_ref().filter(usable).cloned()
    }

    /// Fetches a token, unless one newer than `refused` has come in while this waited.
    async fn fetch(&self, refused: Option<u64>) -> Result<AccessToken, PushResult> {
        let mut fetching = self.fetching.lock().await;
        let now = self.clock.now();
        if let Some(token) = self.current(now)
            && refused.is_none_or(|generation| token.generation > generation)
        {
            return Ok(token);
        }
        if let Some((until, result)) = &fetching.failed
            && now < *until
        {
            return Err(result.clone());
        }
        match self.exchange(now, fetching.generation + 1).await {
            Ok(token) => {
                fetching.generation = token.generation;
                fetching.failures = 0;
                fetching.failed = None;
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                *current = Some(token.clone());
                Ok(token)
            }
            Err(result) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << fetching.failures.min(10));
                fetching.failures += 1;
                fetching.failed = Some((self.clock.now() + pause.min(LAST_PAUSE), result.clone()));
                Err(result)
            }
        }
    }

    async fn exchange(&self, now: Millis, generation: u64) -> Result<AccessToken, PushResult> {
        let cannot = |reason: &'static str| PushResult::Credentials {
            reason: Reason::Borrowed(reason),
        };
        let assertion = self.account.assertion(now);
        let assertion = assertion.map_err(|_| cannot("key_cannot_sign"))?;
        let body = Bytes::from(format!("{GRANT}{assertion}"));
        let request = Request::builder()
            .method(Method::POST)
            .version(http::Version::HTTP_2)
            .uri(&self.account.token_uri)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(())
            .map_err(|_| cannot("token_uri"))?;
        let peer = &self.account.token_peer;
        let reply = once(peer, &self.tls, request, body, DEADLINE).await;
        let reply = reply.map_err(|error| not_sent(transport(&error)))?;
        if reply.status != http::StatusCode::OK {
            return Err(denied(&reply));
        }
        let granted: Granted = serde_json::from_slice(&reply.body).map_err(|_| unclear())?;
        let header = HeaderValue::try_from(format!("Bearer {}", granted.access_token));
        let mut header = header.map_err(|_| unclear())?;
        header.set_sensitive(true);
        Ok(AccessToken {
            header,
            generation,
            fetched_at: now,
            until: now + granted.expires_in.clamp(0, 86_400) * 1000,
        })
    }
}

fn unclear() -> PushResult {
    PushResult::Unavailable {
        after: None,
        reason: "token_answer_unclear".into(),
    }
}

/// The push itself has not been sent, whatever became of the question for a token.
fn not_sent(result: PushResult) -> PushResult {
    match result {
        PushResult::Ambiguous { reason } | PushResult::Unprocessed { reason } => {
            PushResult::Unavailable {
                after: None,
                reason: format!("token_{reason}").into(),
            }
        }
        other => other,
    }
}

fn denied(reply: &Reply) -> PushResult {
    match reply.status.as_u16() {
        400..=403 => {
            let denied = serde_json::from_slice::<Denied>(&reply.body);
            PushResult::Credentials {
                reason: denied.map_or("token_refused".into(), |d| cleaned(&d.error)),
            }
        }
        status => PushResult::Unavailable {
            after: None,
            reason: format!("token_status_{status}").into(),
        },
    }
}
