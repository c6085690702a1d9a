//! The receipt of a push that has ended (`docs/receipts.md`).

use super::find;
use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Code, Problem};
use crate::routes::device::prompts::shown;
use crate::routes::{Query, bad_parameter};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use shared::domain::Kind;
use shared::receipt::{Parts, issue};
use shared::store::ReceiptParts;

/// The verdict on a confirm or process push as a small file that anybody can check without a server: one line, a compact JWS.
#[utoipa::path(get, path = "/v1/stores/{store}/pushes/{push}/receipt", tag = "pushes",
    params(("store" = String, Path), ("push" = String, Path),
        ("content" = Option<bool>, Query, description = "Put what was shown into it too, not only its hash")),
    responses((status = 200, content_type = "application/jose", body = String), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn receipt(
    State(app): State<App>,
    caller: Caller,
    Path((store, push)): Path<(String, String)>,
    query: Query,
) -> Result<Response, Problem> {
    let with_content = content_of(&query)?;
    let push = find(&app, &caller, &store, &push, "pushes:read").await?;
    if push.ended_at.is_none() {
        return Err(Problem::new(Code::PushOpen).with("state", push.state.as_str()));
    }
    if push.kind == Kind::Generic {
        let detail =
            "a generic push decides nothing: each device's answer is in its completion event";
        return Err(Problem::new(Code::NoReceipt).detail(detail));
    }
    let (entry, evidence, fetched_at) = match app.store.receipt_parts(&push).await? {
        ReceiptParts::Ready {
            entry,
            evidence,
            fetched_at,
        } => (*entry, evidence.map(|one| *one), fetched_at),
        ReceiptParts::NotChained => {
            return Err(Problem::new(Code::ReceiptPending).retry_after(1));
        }
        ReceiptParts::Unknown => {
            let detail = "it ended before this server kept an audit log";
            return Err(Problem::new(Code::NoReceipt).detail(detail));
        }
    };
    // Texts and words only: this cannot fail to serialise.
    let content =
        with_content.then(|| serde_json::to_value(shown(&app, &push)).unwrap_or_default());
    let name = format!("attachment; filename=\"{}.receipt\"", push.id);
    let parts = Parts {
        push,
        content,
        fetched_at,
        evidence,
        entry,
    };
    let text = issue(parts, app.secret.signer(), app.clock.now());
    let mut response = text.into_response();
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/jose");
    headers.insert(header::CONTENT_TYPE, kind);
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

fn content_of(query: &Query) -> Result<bool, Problem> {
    let mut with_content = false;
    for (name, value) in &query.0 {
        with_content = match (name.as_str(), value.as_str()) {
            ("content", "true") => true,
            ("content", "false") => false,
            ("content", _) => return Err(bad_parameter("content is true or false")),
            (other, _) => return Err(bad_parameter(&format!("there is no parameter {other}"))),
        };
    }
    Ok(with_content)
}
