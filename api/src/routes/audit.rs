//! The audit log of a store (`docs/audit.md`).

use super::server_key::ServerKeyView;
use super::{Query, bad_parameter, page};
use crate::app::App;
use crate::auth::Caller;
use crate::problem::Problem;
use crate::view::Listed;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Serialize;
use serde_json::value::RawValue;
use shared::audit::Head;

use shared::id::{PushId, StoreId};
use shared::store::{Error, HeadRow};
use utoipa::ToSchema;

/// An entry as it lies in the log: its text is what was hashed, so nothing of it is touched here.
#[derive(Debug, Serialize, ToSchema)]
#[schema(value_type = Object)]
pub(crate) struct AuditEntry(Box<RawValue>);

/// The end of a log, signed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HeadView {
    store: String,
    /// The place of the last entry; 0 while there is none.
    seq: u64,
    /// Its hash.
    hash: String,
    /// RFC 3339, UTC.
    at: String,
    /// The same, signed by the server: a JWS. Keep it somewhere else, and nothing before it can be changed unseen.
    head: String,
    /// The public key that checks it.
    server_key: ServerKeyView,
}

const NDJSON: &str = "application/x-ndjson";
/// How many entries are read at once for an export.
const PART: i64 = 500;

fn head_of(app: &App, store: &StoreId, row: HeadRow) -> Head {
    let (seq, now) = (row.seq.unsigned_abs(), app.clock.now());
    Head::new(store.clone(), seq, row.hash, now)
}

/// The entries of the log, oldest first; with `push` those about one push. With `Accept: application/x-ndjson` all entries behind the cursor, a
/// line each, and the signed head as the last line.
#[utoipa::path(get, path = "/v1/stores/{store}/audit", tag = "audit",
    params(("store" = String, Path), ("push" = Option<String>, Query), ("cursor" = Option<String>, Query), ("limit" = Option<i64>, Query)),
    responses((status = 200, content((Listed<AuditEntry> = "application/json"), (String = "application/x-ndjson"))),
        (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let store = caller.may(&app, &store, "audit:read").await?;
    let (cursor, limit) = page(&query, &["push"])?;
    let after = match cursor.as_str() {
        "" => 0,
        text => text
            .parse()
            .ok()
            .filter(|seq| *seq >= 0)
            .ok_or_else(|| bad_parameter("cursor is what next_cursor said"))?,
    };
    let push: Option<PushId> = query
        .0
        .get("push")
        .map(|push| push.parse())
        .transpose()
        .map_err(|_| bad_parameter("push is an identifier"))?;
    let accepts = headers.get(header::ACCEPT);
    if accepts.is_some_and(|value| value.to_str().is_ok_and(|text| text.contains(NDJSON))) {
        if push.is_some() || query.0.contains_key("limit") {
            return Err(bad_parameter("an export takes neither push nor limit"));
        }
        return export(app, store, after).await;
    }
    let lines = app
        .store
        .audit_entries(&store, after, push.as_ref(), limit)
        .await?;
    let full = lines.len() as i64 == limit;
    let entries = lines.into_iter().map(RawValue::from_string);
    let data: Vec<_> = entries
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Row("audit_log.entry"))?;
    let last = data.last().filter(|_| full);
    let next_cursor = last
        .and_then(|entry| seq_of(entry))
        .map(|seq| seq.to_string());
    let data = data.into_iter().map(AuditEntry).collect();
    Ok(Json(Listed { data, next_cursor }).into_response())
}

fn seq_of(entry: &RawValue) -> Option<i64> {
    #[derive(serde::Deserialize)]
    struct Place {
        seq: i64,
    }
    let place: Place = serde_json::from_str(entry.get()).ok()?;
    Some(place.seq)
}

/// Everything behind `after` up to the head as it is now, then the head. A failure on the way cuts the answer off, and the head is then missing.
async fn export(app: App, store: StoreId, after: i64) -> Result<Response, Problem> {
    let row = app.store.audit_head(&store).await?;
    let end = row.seq;
    let head = head_of(&app, &store, row).signed(app.secret.signer());
    let last = Some(format!("{{\"head\":\"{head}\"}}\n"));
    let state = (app, store, after, last);
    let parts = futures_util::stream::try_unfold(state, move |(app, store, at, last)| async move {
        if at >= end {
            let Some(line) = last else { return Ok(None) };
            return Ok(Some((Bytes::from(line), (app, store, at, None))));
        }
        let limit = PART.min(end - at);
        let lines = app.store.audit_entries(&store, at, None, limit).await?;
        if lines.is_empty() {
            return Err(Error::Row("audit_log.seq"));
        }
        // Places have no gaps.
        let at = at + lines.len() as i64;
        let part = lines.join("\n") + "\n";
        Ok(Some((Bytes::from(part), (app, store, at, last))))
    });
    let kind = [(header::CONTENT_TYPE, NDJSON)];
    Ok((kind, Body::from_stream(parts)).into_response())
}

/// The end of the log, signed by the server.
#[utoipa::path(get, path = "/v1/stores/{store}/audit/head", tag = "audit", params(("store" = String, Path)),
    responses((status = 200, body = HeadView), (status = 404, body = Problem)))]
pub(crate) async fn head(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
) -> Result<Json<HeadView>, Problem> {
    let store = caller.may(&app, &store, "audit:read").await?;
    let row = app.store.audit_head(&store).await?;
    let head = head_of(&app, &store, row);
    let signer = app.secret.signer();
    Ok(Json(HeadView {
        head: head.signed(signer),
        store: head.store.to_string(),
        seq: head.seq,
        hash: head.hash,
        at: head.at,
        server_key: signer.public().into(),
    }))
}
