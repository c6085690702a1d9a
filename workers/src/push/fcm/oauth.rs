//! The access token: fetched once for everybody, renewed in the background before it runs out (see [`crate::push::token`]).

use super::account::Account;
use crate::push::pool::{Reply, once};
use crate::push::token::{Made, Maker};
use crate::push::{PushResult, Reason, cleaned, transport};
use bytes::Bytes;
use http::{Method, Request, header};
use rustls::ClientConfig;
use serde::Deserialize;
use shared::clock::Millis;
use shared::secret::Secret;
use std::sync::Arc;
use std::time::Duration;

/// How long the token endpoint may take.
const DEADLINE: Duration = Duration::from_secs(10);
const GRANT: &str = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=";

/// Fetches tokens for one account.
pub(super) struct Fetcher {
    account: Account,
    tls: Arc<ClientConfig>,
}

#[derive(Deserialize)]
struct Granted {
    access_token: Secret,
    expires_in: i64,
}

#[derive(Deserialize)]
struct Denied {
    error: String,
}

impl Fetcher {
    pub(super) fn new(account: Account, tls: Arc<ClientConfig>) -> Self {
        Self { account, tls }
    }
}

impl Maker for Fetcher {
    const PROVIDER: &'static str = "fcm";
    const SCHEME: &'static str = "Bearer";
    /// Google sets none; what it refuses may be replaced at once.
    const GAP: Millis = 0;

    async fn make(&self, now: Millis) -> Result<Made, PushResult> {
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
        Ok(Made {
            text: granted.access_token,
            lasts: granted.expires_in.clamp(0, 86_400) * 1000,
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
