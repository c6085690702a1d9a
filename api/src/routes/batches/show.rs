//! A batch as its sender sees it.

use crate::app::App;
use crate::auth::Caller;
use crate::problem::Problem;
use crate::routes::{Query, bad_parameter, page};
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use shared::clock::rfc3339;
use shared::domain::PushState;
use shared::id::BatchId;
use shared::store::{BatchRow, Counts};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use utoipa::ToSchema;

/// A count is a look at every push: it is not made again before this time, nor before ten times what it took.
const FRESH: Duration = Duration::from_millis(500);
const SPARING: u32 = 10;
/// How many counts are remembered.
const REMEMBERED: usize = 1_000;

/// Counts that were made lately, each with when and how long it took.
#[derive(Default)]
pub(crate) struct BatchCounts(Mutex<HashMap<BatchId, (Instant, Duration, Counts)>>);

impl BatchCounts {
    async fn of(&self, app: &App, batch: &BatchRow) -> Result<Counts, Problem> {
        if let Some(counts) = &batch.outcomes {
            return Ok(counts.clone());
        }
        {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, took, counts)) = known.get(&batch.id)
                && at.elapsed() < (*took * SPARING).max(FRESH)
            {
                return Ok(counts.clone());
            }
        }
        let began = Instant::now();
        let counts = app.store.count_batch(&batch.id).await?;
        let took = began.elapsed();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(batch.id.clone(), (Instant::now(), took, counts.clone()));
        Ok(counts)
    }
}

/// A batch.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchView {
    /// Its identifier.
    id: String,
    /// The store.
    store: String,
    /// What people call it.
    name: String,
    /// `receiving`, `running`, `paused`, then `done` or `cancelled`, for good.
    state: String,
    /// Why it was cancelled: `by_sender`, or `lines_refused` where it was atomic.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// The key of its upload.
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    /// Was nothing to be sent unless every line is good?
    atomic: bool,
    /// How many pushes a second are sent at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_per_second: Option<i64>,
    /// The last line that was read.
    lines: i64,
    /// How many lines became pushes.
    accepted: i64,
    /// How many of those are still to be sent.
    waiting: i64,
    /// Left out in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<CountsView>,
    /// RFC 3339, UTC.
    created_at: String,
    /// When all its lines were there.
    #[serde(skip_serializing_if = "Option::is_none")]
    received_at: Option<String>,
    /// When the first push was sent on its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_sent_at: Option<String>,
    /// When the last one was, so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_sent_at: Option<String>,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
}

/// Where the lines of a batch stand. While it runs, up to a few seconds old.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CountsView {
    /// Lines with faults: see `errors.ndjson`.
    refused: i64,
    /// Lines whose key has made a push before, elsewhere, with the same request: see `errors.ndjson`.
    duplicates: i64,
    /// Not sent yet.
    waiting: i64,
    /// On their way to a worker.
    in_flight: i64,
    /// Asked; the answer is open.
    pending: i64,
    /// Ended, by state and reason.
    ended: BTreeMap<String, BTreeMap<String, i64>>,
}

impl BatchView {
    pub(super) fn new(row: &BatchRow, counts: Option<CountsView>) -> Self {
        Self {
            id: row.id.to_string(),
            store: row.store.to_string(),
            name: row.name.clone(),
            state: row.state.to_string(),
            reason: row.reason.clone(),
            idempotency_key: row.idempotency_key.clone(),
            atomic: row.atomic,
            max_per_second: row.max_per_second,
            lines: row.lines,
            accepted: row.accepted,
            waiting: row.waiting,
            counts,
            created_at: rfc3339(row.created_at),
            received_at: row.received_at.map(rfc3339),
            first_sent_at: row.first_released_at.map(rfc3339),
            last_sent_at: row.last_released_at.map(rfc3339),
            ended_at: row.ended_at.map(rfc3339),
        }
    }
}

/// A batch with its counts.
pub(super) async fn view(app: &App, row: &BatchRow) -> Result<BatchView, Problem> {
    let mut counts = app.counts.of(app, row).await?;
    let accepted = counts.of(PushState::Accepted.as_str());
    // Some of what waits may have ended there.
    let waiting = row.waiting.min(accepted);
    let pending = counts.of(PushState::Pending.as_str());
    counts
        .states
        .retain(|state, _| PushState::parse(state).is_some_and(PushState::is_terminal));
    let counts = CountsView {
        refused: counts.refused,
        duplicates: counts.duplicates,
        waiting,
        in_flight: accepted - waiting,
        pending,
        ended: counts.states,
    };
    Ok(BatchView::new(row, Some(counts)))
}

/// Show a batch, with how many pushes stand where.
#[utoipa::path(get, path = "/v1/stores/{store}/batches/{batch}", tag = "batches",
    params(("store" = String, Path), ("batch" = String, Path)), responses((status = 200, body = BatchView)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((store, batch)): Path<(String, String)>,
) -> Result<Json<BatchView>, Problem> {
    let row = super::find(&app, &caller, &store, &batch, "pushes:read").await?;
    view(&app, &row).await.map(Json)
}

/// List batches, newest first.
#[utoipa::path(get, path = "/v1/stores/{store}/batches", tag = "batches",
    params(("store" = String, Path), ("state" = Option<String>, Query), ("idempotency_key" = Option<String>, Query),
        ("cursor" = Option<String>, Query), ("limit" = Option<i64>, Query)), responses((status = 200, body = Listed<BatchView>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    query: Query,
) -> Result<Json<Listed<BatchView>>, Problem> {
    let store = caller.may(&app, &store, "pushes:read").await?;
    let (cursor, limit) = page(&query, &["state", "idempotency_key"])?;
    let before: Option<BatchId> = Some(&cursor)
        .filter(|cursor| !cursor.is_empty())
        .map(|cursor| cursor.parse())
        .transpose()
        .map_err(|_| bad_parameter("cursor is what next_cursor said"))?;
    let state = query
        .0
        .get("state")
        .map(|state| state.parse())
        .transpose()
        .map_err(|()| bad_parameter("state is a batch state"))?;
    let key = query.0.get("idempotency_key").map(String::as_str);
    let rows = app
        .store
        .batches(&store, before.as_ref(), state, key, limit)
        .await?;
    let full = rows.len() as i64 == limit;
    let next_cursor = rows.last().filter(|_| full).map(|row| row.id.to_string());
    let data = rows.iter().map(|row| BatchView::new(row, None)).collect();
    Ok(Json(Listed { data, next_cursor }))
}
