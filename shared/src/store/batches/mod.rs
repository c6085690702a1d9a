//! Batches: many pushes from one upload, kept in the database until it is their turn.
//!
//! ```text
//! line -> push (`accepted`) + part of a chunk in `backlog` -> released: one job for the chunk, promised -> begun: a worker has all of it
//!      -> ended: every push of the chunk has, the chunk is deleted -> the batch is done when it has no chunk
//! ```
//!
//! Lock order: batches, then backlog, then as everywhere: pushes, users, deliveries, devices.

mod end;
mod intake;
mod release;
mod report;

pub use end::Counts;
pub use intake::{NewRow, PART, Refusal, RowCheck, Took};
pub use release::{InFlight, Releasable, Released};
pub use report::LineResult;

use super::db::{Arg, Error, Row, Statement};
use super::{Store, maybe_parsed, parsed, to_json};
use crate::clock::Millis;
use crate::domain::BatchState;
use crate::id::{BatchId, StoreId};

static ADD: Statement = Statement::new(
    "INSERT INTO batches (id, store_id, name, state, reason, idem_key, idem_hash, upload, atomic, max_per_second, next_release_at,
       chunk_rows, lines, accepted, waiting, waiting_bytes, cancelled_to, created_at, touched_at)
     VALUES ($1, $2, $3, 'receiving', '', $4, $5, $6, $7, $8, 0, $9, 0, 0, 0, 0, 0, $10, $10) ON CONFLICT DO NOTHING RETURNING *",
);
static ONE: Statement = Statement::new("SELECT * FROM batches WHERE store_id = $1 AND id = $2");
static BY_KEY: Statement =
    Statement::new("SELECT * FROM batches WHERE store_id = $1 AND idem_key = $2");
static RESUME: Statement = Statement::new(
    "UPDATE batches SET upload = $3, touched_at = $4 WHERE store_id = $1 AND idem_key = $2 AND received_at IS NULL
       AND state IN ('receiving', 'paused') RETURNING *",
);
static LIST: Statement = Statement::new(
    "SELECT * FROM batches WHERE store_id = $1 AND id < $2 AND ($3 IS NULL OR state = $3) AND ($4 IS NULL OR idem_key = $4)
     ORDER BY id DESC LIMIT $5",
);
static RECEIVED: Statement = Statement::new(
    "UPDATE batches SET received_at = $3, touched_at = $3,
       state = CASE WHEN atomic = 1 AND EXISTS (SELECT 1 FROM batch_refusals f WHERE f.batch_id = batches.id AND f.duplicate_of IS NULL)
         THEN 'cancelled' WHEN state = 'receiving' THEN 'running' ELSE state END,
       reason = CASE WHEN atomic = 1 AND EXISTS (SELECT 1 FROM batch_refusals f WHERE f.batch_id = batches.id AND f.duplicate_of IS NULL)
         THEN 'lines_refused' ELSE reason END
     WHERE id = $1 AND upload = $2 AND received_at IS NULL AND state IN ('receiving', 'paused') RETURNING *",
);
static PAUSE: Statement = Statement::new(
    "UPDATE batches SET state = 'paused' WHERE store_id = $1 AND id = $2 AND state IN ('receiving', 'running') RETURNING *",
);
static PROCEED: Statement = Statement::new(
    "UPDATE batches SET state = CASE WHEN received_at IS NULL THEN 'receiving' ELSE 'running' END
     WHERE store_id = $1 AND id = $2 AND state = 'paused' RETURNING *",
);
static CANCEL: Statement = Statement::new(
    "UPDATE batches SET state = 'cancelled', reason = 'by_sender'
     WHERE store_id = $1 AND id = $2 AND state IN ('receiving', 'running', 'paused') RETURNING *",
);
static WAITING: Statement = Statement::new(
    "SELECT CAST(COALESCE(SUM(waiting), 0) AS BIGINT) AS n, CAST(COALESCE(SUM(waiting_bytes), 0) AS BIGINT) AS bytes,
       CAST(COALESCE(SUM(CASE WHEN store_id = $1 THEN waiting ELSE 0 END), 0) AS BIGINT) AS own
     FROM batches WHERE ended_at IS NULL",
);

/// A batch that is to be.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Whose.
    pub store: StoreId,
    /// What people call it.
    pub name: String,
    /// The idempotency key and the hash of what was asked with it. Without one a cut upload cannot be taken up again.
    pub idempotency: Option<(String, String)>,
    /// Send nothing unless every line is good.
    pub atomic: bool,
    /// How many pushes a second are sent at most.
    pub max_per_second: Option<i64>,
}

/// A batch as it lies in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRow {
    /// Its identifier.
    pub id: BatchId,
    /// Whose.
    pub store: StoreId,
    /// What people call it.
    pub name: String,
    /// Where it stands.
    pub state: BatchState,
    /// Why it was cancelled.
    pub reason: String,
    /// The sender's key.
    pub idempotency_key: Option<String>,
    /// Send nothing unless every line is good.
    pub atomic: bool,
    /// How many pushes a second are sent at most.
    pub max_per_second: Option<i64>,
    /// How many pushes one chunk holds at most.
    pub chunk_rows: i64,
    /// The last line that was read.
    pub lines: i64,
    /// How many pushes it has made.
    pub accepted: i64,
    /// How many of them are in the backlog.
    pub waiting: i64,
    /// How its pushes ended, once it is over: counted for good.
    pub outcomes: Option<Counts>,
    /// When it began.
    pub created_at: Millis,
    /// When the last line was there.
    pub received_at: Option<Millis>,
    /// When the first chunk was sent on its way.
    pub first_released_at: Option<Millis>,
    /// When the last one was.
    pub last_released_at: Option<Millis>,
    /// When it was over.
    pub ended_at: Option<Millis>,
}

/// The right to add lines to a batch. The upload that began last has it.
#[derive(Debug, Clone)]
pub struct Upload {
    /// The batch.
    pub batch: BatchRow,
    token: String,
}

/// What a new upload meets.
#[derive(Debug, Clone)]
pub enum Begun {
    /// Lines may come.
    Open(Upload),
    /// The batch of this key has all its lines, or is over.
    Replayed(BatchRow),
    /// The key was used with other parameters.
    KeyReused,
}

/// What the backlog holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waiting {
    /// Pushes of all stores.
    pub rows: i64,
    /// The length of their lines.
    pub bytes: i64,
    /// Pushes of the store that was asked for.
    pub of_store: i64,
}

pub(super) fn batch_of(row: &Row) -> Result<BatchRow, Error> {
    let outcomes = row.maybe_text("outcomes")?;
    Ok(BatchRow {
        id: parsed(row, "id")?,
        store: parsed(row, "store_id")?,
        name: row.text("name")?,
        state: parsed(row, "state")?,
        reason: row.text("reason")?,
        idempotency_key: row.maybe_text("idem_key")?,
        atomic: row.int("atomic")? != 0,
        max_per_second: row.maybe_int("max_per_second")?,
        chunk_rows: row.int("chunk_rows")?,
        lines: row.int("lines")?,
        accepted: row.int("accepted")?,
        waiting: row.int("waiting")?,
        outcomes: outcomes
            .map(|text| serde_json::from_str(&text).map_err(|_| Error::Row("outcomes")))
            .transpose()?,
        created_at: row.int("created_at")?,
        received_at: row.maybe_int("received_at")?,
        first_released_at: row.maybe_int("first_released_at")?,
        last_released_at: row.maybe_int("last_released_at")?,
        ended_at: row.maybe_int("ended_at")?,
    })
}

/// How many pushes a chunk holds: as many as a job carries, and not more than a slow batch sends in a fifth of a second.
fn chunk_rows(max_per_second: Option<i64>) -> i64 {
    let most = super::intake::JOB_BULK as i64;
    max_per_second.map_or(most, |rate| (rate / 5).clamp(1, most))
}

impl Store {
    /// Begins a batch, or takes up the one of this key where its upload was cut. An upload of the same batch that is still under way loses
    /// the right to add lines: its connection may be long dead.
    pub async fn begin_upload(&self, new: &NewBatch, now: Millis) -> Result<Begun, Error> {
        let token = crate::crypto::random_text::<12>();
        let key = new.idempotency.as_ref();
        let mut tx = self.db.begin().await?;
        let id = BatchId::fresh(now);
        let args = [
            Arg::Text(id.as_str()),
            Arg::Text(new.store.as_str()),
            Arg::Text(&new.name),
            Arg::MaybeText(key.map(|(key, _)| key.as_str())),
            Arg::MaybeText(key.map(|(_, hash)| hash.as_str())),
            Arg::Text(&token),
            Arg::Int(i64::from(new.atomic)),
            Arg::MaybeInt(new.max_per_second),
            Arg::Int(chunk_rows(new.max_per_second)),
            Arg::Int(now),
        ];
        let mut rows = tx.fetch(&ADD, &args).await?;
        if let (true, Some((key, hash))) = (rows.is_empty(), key) {
            let args = [Arg::Text(new.store.as_str()), Arg::Text(key)];
            let known = tx.fetch(&BY_KEY, &args).await?;
            let known = known.first().ok_or(Error::Row("idem_key"))?;
            if known.text("idem_hash")? != *hash {
                return Ok(Begun::KeyReused);
            }
            let args = [
                Arg::Text(new.store.as_str()),
                Arg::Text(key),
                Arg::Text(&token),
                Arg::Int(now),
            ];
            rows = tx.fetch(&RESUME, &args).await?;
            if rows.is_empty() {
                return Ok(Begun::Replayed(batch_of(known)?));
            }
        }
        let batch = batch_of(rows.first().ok_or(Error::Row("id"))?)?;
        tx.commit().await?;
        Ok(Begun::Open(Upload { batch, token }))
    }

    /// All lines are there. `None`: another upload has taken over, or the batch was cancelled.
    pub async fn end_upload(
        &self,
        upload: &Upload,
        now: Millis,
    ) -> Result<Option<BatchRow>, Error> {
        let args = [
            Arg::Text(upload.batch.id.as_str()),
            Arg::Text(&upload.token),
            Arg::Int(now),
        ];
        let rows = self.db.write(&RECEIVED, &args).await?;
        self.backlog_news.notify_one();
        rows.first().map(batch_of).transpose()
    }

    /// One batch of a store.
    pub async fn batch(&self, store: &StoreId, id: &BatchId) -> Result<Option<BatchRow>, Error> {
        let args = [Arg::Text(store.as_str()), Arg::Text(id.as_str())];
        let rows = self.db.fetch(&ONE, &args).await?;
        rows.first().map(batch_of).transpose()
    }

    /// Batches of a store, newest first.
    pub async fn batches(
        &self,
        store: &StoreId,
        before: Option<&BatchId>,
        state: Option<BatchState>,
        key: Option<&str>,
        limit: i64,
    ) -> Result<Vec<BatchRow>, Error> {
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(before.map_or("bat_~", BatchId::as_str)),
            Arg::MaybeText(state.map(BatchState::as_str)),
            Arg::MaybeText(key),
            Arg::Int(limit),
        ];
        let rows = self.db.fetch(&LIST, &args).await?;
        rows.iter().map(batch_of).collect()
    }

    /// Moves a batch to `to`. `None`: it is not there, or its state does not allow it.
    pub async fn move_batch(
        &self,
        store: &StoreId,
        id: &BatchId,
        to: BatchState,
    ) -> Result<Option<BatchRow>, Error> {
        let statement = match to {
            BatchState::Paused => &PAUSE,
            BatchState::Running | BatchState::Receiving => &PROCEED,
            BatchState::Cancelled => &CANCEL,
            BatchState::Done => return Ok(None),
        };
        let args = [Arg::Text(store.as_str()), Arg::Text(id.as_str())];
        let rows = self.db.write(statement, &args).await?;
        self.backlog_news.notify_one();
        rows.first().map(batch_of).transpose()
    }

    /// How much waits in the backlog.
    pub async fn waiting(&self, store: &StoreId) -> Result<Waiting, Error> {
        let rows = self
            .db
            .fetch(&WAITING, &[Arg::Text(store.as_str())])
            .await?;
        rows.first().map_or(Ok(Waiting::default()), |row| {
            Ok(Waiting {
                rows: row.int("n")?,
                bytes: row.int("bytes")?,
                of_store: row.int("own")?,
            })
        })
    }

    /// Waits until there may be something new in the backlog. Only what this process does is heard of.
    pub async fn backlog_news(&self) {
        self.backlog_news.notified().await;
    }
}
