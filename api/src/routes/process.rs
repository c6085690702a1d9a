//! The link of a process push: looking at it is free, it opens once, and a child process instance starts.

use crate::app::{App, encoded};
use crate::page;
use crate::problem::{Code, Problem};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;
use shared::clock::rfc3339;
use shared::crypto::sha256_text;
use shared::secret::Secret;
use shared::store::{Opened, ProcessLink, Started};

/// The page with what it is to know. `report`: lets its process engine report over the broker; an address is no place for what could do harm alone,
/// and this needs a way to the broker too.
fn location(started: &Started, report: Option<&Secret>) -> String {
    let mut url = started.start_url.clone();
    let mut add = |name: &str, value: &str| {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&encoded(name));
        url.push('=');
        url.push_str(&encoded(value));
    };
    add("instance", started.instance.as_str());
    add("push", started.push.id.as_str());
    if let Some(report) = report {
        add("report", report.expose());
    }
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

/// Why a link does not open.
fn refusal(link: &ProcessLink) -> Problem {
    match link {
        ProcessLink::Early(at) => Problem::new(Code::LinkEarly)
            .detail(format!("it can be opened from {} on", rfc3339(*at)))
            .with("not_before", rfc3339(*at)),
        ProcessLink::Spent => {
            Problem::new(Code::LinkSpent).detail("to begin again, go back to where you came from")
        }
        ProcessLink::Unknown | ProcessLink::Ready(_) => Problem::new(Code::LinkUnknown)
            .detail("it may be cut off; open it from where you got it"),
    }
}

/// What a person is asked to trust: where the page is.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // What stands before an @ is no host, whatever it looks like.
    authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host)
}

/// Look at a process link. Nothing is spent by it, since mail scanners and previews of links look too: a page with one button answers, and only
/// the button opens the link. Refusals are pages for browsers, problems for programs.
#[utoipa::path(get, path = "/v1/process/{token}", tag = "processes", params(("token" = String, Path)),
    responses((status = 200, description = "A page with one button", content_type = "text/html", body = String),
        (status = 404, body = Problem), (status = 409, body = Problem), (status = 410, body = Problem)))]
pub(crate) async fn look(
    State(app): State<App>,
    Path(token): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let hash = sha256_text(token.as_bytes());
    let link = app.store.process_link(&hash, app.clock.now()).await?;
    Ok(match &link {
        ProcessLink::Ready(to) => page::confirm(&to.rp, host_of(&to.start_url)),
        other => page::refusal(&headers, refusal(other)),
    })
}

/// Open a process link. Works once: the second time it is gone.
#[utoipa::path(post, path = "/v1/process/{token}", tag = "processes", params(("token" = String, Path)),
    responses((status = 303, description = "To the page of the process definition"), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 410, body = Problem)))]
pub(crate) async fn open(
    State(app): State<App>,
    Path(token): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // Nothing of it can fail after the link is spent: page and parameters were checked when they came in.
    let hash = sha256_text(token.as_bytes());
    match app.store.open_process(&hash, app.clock.now()).await? {
        Opened::Started(started) => {
            let report = app
                .reply_queues
                .then(|| app.secret.report_token(&started.instance));
            let to = HeaderValue::from_str(&location(&started, report.as_ref()))
                .map_err(|_| Problem::new(Code::Internal))?;
            let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response();
            page::seal(response.headers_mut());
            Ok(response)
        }
        Opened::Not(link) => Ok(page::refusal(&headers, refusal(&link))),
    }
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn the_host_is_the_one_that_a_browser_goes_to() {
        for (url, host) in [
            ("https://bank.example/start?x=1", "bank.example"),
            ("http://h:80?y", "h:80"),
            ("https://bank.example@evil.example/", "evil.example"),
            ("https://h#@z", "h"),
        ] {
            assert_eq!(host_of(url), host);
        }
    }
}
