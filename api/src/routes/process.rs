//! The link of a process push: it opens once, and a child process instance starts.

use crate::app::{App, encoded};
use crate::problem::{Code, Problem};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;
use shared::crypto::sha256_text;
use shared::store::{Opened, Started};

fn location(started: &Started) -> String {
    let mut url = started.start_url.clone();
    let mut add = |name: &str, value: &str| {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&encoded(name));
        url.push('=');
        url.push_str(&encoded(value));
    };
    add("instance", started.instance.as_str());
    add("push", started.push.id.as_str());
    if let Some(parameters) = started.parameters.as_object() {
        for (name, value) in parameters {
            match value {
                Value::String(text) => add(name, text),
                other => add(name, &other.to_string()),
            }
        }
    }
    url
}

/// Open a process link. Works once: the second time it is gone.
#[utoipa::path(get, path = "/v1/process/{token}", tag = "processes", params(("token" = String, Path)),
    responses((status = 303, description = "To the page of the process definition"), (status = 404, body = Problem), (status = 410, body = Problem)))]
pub(crate) async fn open(
    State(app): State<App>,
    Path(token): Path<String>,
) -> Result<Response, Problem> {
    // Nothing of it can fail after the link is spent: page and parameters were checked when they came in.
    let hash = sha256_text(token.as_bytes());
    match app.store.open_process(&hash, app.clock.now()).await? {
        Opened::Started(started) => {
            let to = HeaderValue::from_str(&location(&started))
                .map_err(|_| Problem::new(Code::Internal))?;
            let headers = [
                (header::LOCATION, to),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
                (
                    header::REFERRER_POLICY,
                    HeaderValue::from_static("no-referrer"),
                ),
            ];
            Ok((StatusCode::SEE_OTHER, headers).into_response())
        }
        Opened::Used | Opened::Ended => Err(Code::LinkSpent.into()),
        Opened::Unknown => Err(Code::LinkUnknown.into()),
    }
}
