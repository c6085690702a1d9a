//! Show a push, or wait for its end.

use super::find;
use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Code, Problem};
use crate::routes::bad_parameter;
use crate::view::PushView;
use axum::Json;
use axum::extract::{Path, State};
use http::{HeaderMap, HeaderValue, StatusCode};
use shared::store::{Error, PushRow};
use std::time::Duration;

/// Proxies often give up after 30 s to 60 s.
const MAX_WAIT: u64 = 30;

/// `wait=N` of a `Prefer` header (RFC 7240 4.3).
fn wait_of(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    for value in headers.get_all("prefer") {
        for preference in value.to_str().unwrap_or_default().split([',', ';']) {
            if let Some(seconds) = preference.trim().strip_prefix("wait=") {
                let seconds: u64 = seconds
                    .trim_matches('"')
                    .parse()
                    .map_err(|_| bad_parameter("Prefer: wait=N takes whole seconds"))?;
                return Ok(Some(seconds.min(MAX_WAIT)));
            }
        }
    }
    Ok(None)
}

/// Shows what was found, or how it is when `wait` is over, where the caller wants to wait (RFC 7240 4.3).
pub(in crate::routes) async fn waited<T, F>(
    headers: &HeaderMap,
    found: T,
    wait: impl FnOnce(Duration) -> F,
    is_open: fn(&T) -> bool,
) -> Result<(StatusCode, HeaderMap, T), Problem>
where
    F: Future<Output = Result<Option<T>, Error>>,
{
    let mut applied = HeaderMap::new();
    let Some(seconds) = wait_of(headers)? else {
        return Ok((StatusCode::OK, applied, found));
    };
    let found = wait(Duration::from_secs(seconds)).await?;
    let found = found.ok_or_else(|| Problem::new(Code::NotFound))?;
    if let Ok(value) = HeaderValue::from_str(&format!("wait={seconds}")) {
        applied.insert("preference-applied", value);
    }
    let status = if is_open(&found) {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    Ok((status, applied, found))
}

/// Show a push. With `Prefer: wait=N` (at most 30) the answer comes when the push ends: 200, or 202 when it is still open by then.
#[utoipa::path(get, path = "/v1/stores/{store}/pushes/{push}", tag = "pushes",
    params(("store" = String, Path), ("push" = String, Path), ("Prefer" = Option<String>, Header, example = "wait=25")),
    responses((status = 200, body = PushView), (status = 202, body = PushView, description = "Still open"), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((store, push)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<(StatusCode, HeaderMap, Json<PushView>), Problem> {
    let found = find(&app, &caller, &store, &push, "pushes:read").await?;
    let id = found.id.clone();
    let ended = |patience| app.waits.ended(&app.store, &id, patience, &app.stop);
    let is_open = |found: &PushRow| found.ended_at.is_none();
    let (status, applied, found) = waited(&headers, found, ended, is_open).await?;
    let deliveries = app.store.deliveries(&found.id).await?;
    Ok((
        status,
        applied,
        Json(PushView::new(&found, Some(deliveries))),
    ))
}
