//! How a phone reaches the API: HTTP/1.1 without TLS, for an API on the same machine.

use super::Error;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;

/// More than any answer of the protocol: fifty prompts.
const MAX_ANSWER: usize = 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(30);

/// A pool of connections. Clones share it; thousands of phones may share one. It belongs to the runtime it was first used in.
#[derive(Debug, Clone)]
pub struct Http(hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>);

impl Default for Http {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self(
            hyper_util::client::legacy::Client::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE)
                .pool_timer(TokioTimer::new())
                .build(connector),
        )
    }
}

impl Http {
    pub(super) async fn call(
        &self,
        method: Method,
        (base, path): (&str, &str),
        authorization: Option<&str>,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Error> {
        let bad_base = || Error::Base(base.to_owned());
        let uri: Uri = format!("{base}{path}").parse().map_err(|_| bad_base())?;
        if uri.scheme_str() != Some("http") {
            return Err(bad_base());
        }
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(authorization) = authorization {
            let mut value = HeaderValue::from_str(authorization).map_err(|_| Error::NotEnrolled)?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|_| bad_base())?;
        let exchange = async {
            let answer = self.0.request(request).await.map_err(unreachable)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(Error::Unreachable)?;
            Ok((status, body.to_bytes()))
        };
        tokio::time::timeout(DEADLINE, exchange)
            .await
            .map_err(unreachable)?
    }
}

fn unreachable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Unreachable(Box::new(error))
}
