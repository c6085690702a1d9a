//! Batches: many pushes from one upload.

pub(crate) mod control;
mod lines;
pub(crate) mod report;
mod row;
pub(crate) mod show;
pub(crate) mod upload;

pub(crate) use show::BatchCounts;

use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Code, Problem};
use crate::routes::id;
use shared::id::BatchId;
use shared::store::BatchRow;

/// A batch of the caller's store.
async fn find(
    app: &App,
    caller: &Caller,
    store: &str,
    batch: &str,
    scope: &str,
) -> Result<BatchRow, Problem> {
    let store = caller.may(app, store, scope).await?;
    let batch: BatchId = id(batch)?;
    let found = app.store.batch(&store, &batch).await?;
    found.ok_or_else(|| Code::NotFound.into())
}
