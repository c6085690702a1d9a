//! What became of each line, as streams of any length.

use crate::app::App;
use crate::auth::Caller;
use crate::problem::Problem;
use crate::routes::{Query, bad_parameter};
use crate::view::DeliveryView;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use http::{HeaderValue, header};
use serde::Serialize;
use serde_json::value::RawValue;
use shared::clock::rfc3339;
use shared::id::BatchId;
use shared::store::{Error, LineResult, Refusal};
use utoipa::ToSchema;

/// How many lines one look reads.
const PAGE: i64 = 500;

/// A line that became a push.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResultLine {
    /// Its number in the upload.
    line: i64,
    /// The sender's key, where one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The push.
    push: String,
    /// Who was asked.
    user: String,
    /// The sender's name of the user.
    external_id: String,
    /// The state of the push; `accepted` while it waits.
    state: String,
    /// Why it ended.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// RFC 3339, UTC; once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    /// One for each device that was asked.
    devices: Vec<DeliveryView>,
}

/// A line that became no push.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorLine {
    /// Its number in the upload.
    line: i64,
    /// The sender's key, where one could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// With the code `duplicate`: the push that this key has made before.
    #[serde(skip_serializing_if = "Option::is_none")]
    push: Option<String>,
    /// The faults, as in a problem.
    #[schema(value_type = Vec<crate::problem::Fault>)]
    errors: Box<RawValue>,
}

impl From<LineResult> for ResultLine {
    fn from(row: LineResult) -> Self {
        Self {
            line: row.line,
            key: row.key,
            push: row.push.to_string(),
            user: row.user.to_string(),
            external_id: row.external_id,
            state: row.state.to_string(),
            reason: row.reason,
            ended_at: row.ended_at.map(rfc3339),
            devices: row.deliveries.iter().map(DeliveryView::new).collect(),
        }
    }
}

impl From<Refusal> for ErrorLine {
    fn from(row: Refusal) -> Self {
        Self {
            line: row.line,
            key: row.key,
            push: row.duplicate_of.map(|push| push.to_string()),
            errors: RawValue::from_string(row.faults).unwrap_or_default(),
        }
    }
}

/// The lines of a page, and the number of the last one.
fn written<T: Serialize>(rows: Vec<T>, line_of: impl Fn(&T) -> i64) -> Option<(Vec<u8>, i64)> {
    let last = line_of(rows.last()?);
    let mut text = Vec::new();
    for row in rows {
        // Texts and numbers: this cannot fail.
        serde_json::to_writer(&mut text, &row).ok();
        text.push(b'\n');
    }
    Some((text, last))
}

async fn results_page(
    app: &App,
    batch: &BatchId,
    after: i64,
) -> Result<Option<(Vec<u8>, i64)>, Error> {
    let rows = app.store.batch_results(batch, after, PAGE).await?;
    let rows: Vec<ResultLine> = rows.into_iter().map(Into::into).collect();
    Ok(written(rows, |row| row.line))
}

async fn errors_page(
    app: &App,
    batch: &BatchId,
    after: i64,
) -> Result<Option<(Vec<u8>, i64)>, Error> {
    let rows = app.store.batch_refusals(batch, after, PAGE).await?;
    let rows: Vec<ErrorLine> = rows.into_iter().map(Into::into).collect();
    Ok(written(rows, |row| row.line))
}

fn after_of(query: &Query) -> Result<i64, Problem> {
    if let Some(name) = query.0.keys().find(|name| name.as_str() != "after") {
        return Err(bad_parameter(&format!("there is no parameter {name}")));
    }
    query.0.get("after").map_or(Ok(0), |text| {
        let number = text.parse().ok().filter(|n| *n >= 0);
        number.ok_or_else(|| bad_parameter("after is the number of a line"))
    })
}

fn ndjson(body: Body) -> Response {
    let mut response = body.into_response();
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

macro_rules! streamed {
    ($page:ident, $app:expr, $batch:expr, $after:expr) => {
        // A failure cuts the stream, so that the reader does not take a part for the whole; `after` goes on from there.
        ndjson(Body::from_stream(stream::try_unfold(
            ($app, $batch, $after),
            async |(app, batch, after)| {
                let page = $page(&app, &batch, after).await?;
                Ok::<_, Error>(page.map(|(text, last)| (text, (app, batch, last))))
            },
        )))
    };
}

/// One line for each push of the batch, in the order of the upload, streamed: what became of it, by device. While the batch runs, as it
/// stands.
#[utoipa::path(get, path = "/v1/stores/{store}/batches/{batch}/results.ndjson", tag = "batches",
    params(("store" = String, Path), ("batch" = String, Path), ("after" = Option<i64>, Query, description = "Only lines behind this one")),
    responses((status = 200, content_type = "application/x-ndjson", body = ResultLine)))]
pub(crate) async fn results(
    State(app): State<App>,
    caller: Caller,
    Path((store, batch)): Path<(String, String)>,
    query: Query,
) -> Result<Response, Problem> {
    let row = super::find(&app, &caller, &store, &batch, "pushes:read").await?;
    let after = after_of(&query)?;
    Ok(streamed!(results_page, app, row.id, after))
}

/// One line for each line of the upload that became no push, streamed: its number and its faults.
#[utoipa::path(get, path = "/v1/stores/{store}/batches/{batch}/errors.ndjson", tag = "batches",
    params(("store" = String, Path), ("batch" = String, Path), ("after" = Option<i64>, Query, description = "Only lines behind this one")),
    responses((status = 200, content_type = "application/x-ndjson", body = ErrorLine)))]
pub(crate) async fn errors(
    State(app): State<App>,
    caller: Caller,
    Path((store, batch)): Path<(String, String)>,
    query: Query,
) -> Result<Response, Problem> {
    let row = super::find(&app, &caller, &store, &batch, "pushes:read").await?;
    let after = after_of(&query)?;
    Ok(streamed!(errors_page, app, row.id, after))
}
