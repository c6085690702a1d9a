//! Pause, resume, cancel.

use super::show::{BatchView, view};
use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Code, Problem};
use axum::Json;
use axum::extract::{Path, State};
use shared::domain::BatchState;
use shared::store::BatchRow;

/// Moves a batch; one that is there already is no error, so that every call may be repeated.
async fn moved(
    app: &App,
    caller: &Caller,
    (store, batch): (String, String),
    to: BatchState,
) -> Result<Json<BatchView>, Problem> {
    let found = super::find(app, caller, &store, &batch, "pushes:write").await?;
    let row = match app.store.move_batch(&found.store, &found.id, to).await? {
        Some(row) => row,
        None => unmoved(app, &found, to).await?,
    };
    view(app, &row).await.map(Json)
}

async fn unmoved(app: &App, before: &BatchRow, to: BatchState) -> Result<BatchRow, Problem> {
    let now = app.store.batch(&before.store, &before.id).await?;
    let now = now.ok_or_else(|| Problem::new(Code::NotFound))?;
    let there = match to {
        BatchState::Running | BatchState::Receiving => {
            matches!(now.state, BatchState::Running | BatchState::Receiving)
        }
        BatchState::Paused | BatchState::Done | BatchState::Cancelled => now.state == to,
    };
    if there {
        Ok(now)
    } else {
        Err(Problem::new(Code::WrongState).with("state", now.state.as_str()))
    }
}

/// Send nothing more of a batch until it is resumed. What is with the workers already, two seconds of work at most, goes on.
#[utoipa::path(post, path = "/v1/stores/{store}/batches/{batch}/pause", tag = "batches",
    params(("store" = String, Path), ("batch" = String, Path)),
    responses((status = 200, body = BatchView), (status = 409, body = Problem)))]
pub(crate) async fn pause(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Result<Json<BatchView>, Problem> {
    moved(&app, &caller, path, BatchState::Paused).await
}

/// Go on with a paused batch.
#[utoipa::path(post, path = "/v1/stores/{store}/batches/{batch}/resume", tag = "batches",
    params(("store" = String, Path), ("batch" = String, Path)),
    responses((status = 200, body = BatchView), (status = 409, body = Problem)))]
pub(crate) async fn resume(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Result<Json<BatchView>, Problem> {
    moved(&app, &caller, path, BatchState::Running).await
}

/// Take a batch back: nothing more is sent, and every push of it that has not ended is cancelled, also those that a phone shows.
#[utoipa::path(post, path = "/v1/stores/{store}/batches/{batch}/cancel", tag = "batches",
    params(("store" = String, Path), ("batch" = String, Path)),
    responses((status = 200, body = BatchView), (status = 409, body = Problem)))]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Result<Json<BatchView>, Problem> {
    moved(&app, &caller, path, BatchState::Cancelled).await
}
