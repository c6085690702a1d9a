//! One request from body to answer: what APNs and FCM have in common.

use super::State;
use super::journal::Receipt;
use super::script::{Ending, Step, Verdict};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// More than any provider reads; what lies above it is refused unread.
const MAX_BODY: usize = 64 * 1024;
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// One client connection, as its requests see it.
pub(super) struct Connection {
    pub(super) state: Arc<State>,
    pub(super) goaway: CancellationToken,
    pub(super) cut: CancellationToken,
}

impl Connection {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            goaway: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoBody {
    TooLarge,
    Broken,
}

pub(super) async fn read(body: Incoming) -> Result<Bytes, NoBody> {
    let whole = Limited::new(body, MAX_BODY).collect();
    match tokio::time::timeout(BODY_DEADLINE, whole).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(NoBody::TooLarge),
        Ok(Err(_)) | Err(_) => Err(NoBody::Broken),
    }
}

/// An answer before it is one.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) reason: Option<String>,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) body: String,
}

impl Reply {
    pub(super) fn json(status: u16, reason: Option<&str>, body: &serde_json::Value) -> Self {
        Self {
            status,
            reason: reason.map(str::to_owned),
            headers: vec![(http::header::CONTENT_TYPE, "application/json".to_owned())],
            body: body.to_string(),
        }
    }

    pub(super) fn raw(status: u16, body: String) -> Self {
        Self {
            status,
            body,
            ..Self::default()
        }
    }

    pub(super) fn retry_after(mut self, seconds: u64) -> Self {
        if seconds > 0 {
            self.headers
                .push((http::header::RETRY_AFTER, seconds.to_string()));
        }
        self
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        // A script may ask for a number that is no status; a broken answer is then the closest thing.
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

/// Notes the receipt, waits as long as the step says, and answers or does not.
pub(super) async fn finish(
    connection: &Connection,
    mut receipt: Receipt,
    step: &Step,
    reply: Reply,
) -> Response<Full<Bytes>> {
    let answers = matches!(step.ending, Ending::Answer | Ending::AnswerThenGoAway);
    receipt.accepted =
        reply.status == 200 && step.verdict == Verdict::Accept && step.ending != Ending::Hang;
    receipt.status = answers.then_some(reply.status);
    receipt.reason.clone_from(&reply.reason);
    // Before the delay: a sender that gives up in between has still reached the provider.
    connection.state.journal.record(receipt);
    let delay = step.delay.saturating_add(connection.state.latency());
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    match step.ending {
        Ending::Answer => {}
        Ending::AnswerThenGoAway => connection.goaway.cancel(),
        Ending::Cut => {
            connection.cut.cancel();
            std::future::pending::<()>().await;
        }
        Ending::Hang => std::future::pending().await,
    }
    reply.into_response()
}
