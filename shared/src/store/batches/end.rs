//! How batches end: chunk by chunk, or cancelled. And how many pushes stand where.

use super::{Arg, Error, Statement, Store, batch_of, parsed, to_json};
use crate::clock::Millis;
use crate::id::BatchId;
use crate::store::claim;
use crate::store::db::Tx;
use crate::store::ending::{announce, rows_of};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many chunks one look takes in.
const CHUNKS: i64 = 200;
/// How many pushes one transaction cancels.
const CANCEL: i64 = 500;
/// The longest time until the next look at a chunk whose pushes are still open.
const LOOK: Millis = 60_000;

// Only at the first push that is open: with one left the chunk is not over.
static LOOKED_AT: Statement = Statement::new(
    "SELECT k.id, k.begun_at, CAST(CASE WHEN EXISTS
         (SELECT 1 FROM {texts:k.pushes} WHERE (SELECT COALESCE(p.ended_at, 0) FROM pushes p WHERE p.id = r.value) = 0) THEN 1 ELSE 0 END AS BIGINT) AS open
     FROM backlog k WHERE k.begun_at IS NOT NULL AND k.due_at <= $1 ORDER BY k.due_at LIMIT $2",
);
static DROP: Statement = Statement::new("DELETE FROM backlog WHERE id {in:$1}");
static LATER: Statement = Statement::new(
    "UPDATE backlog SET due_at = CAST(r.value->>'due' AS BIGINT) FROM {each:$1} WHERE backlog.id = r.value->>'id'",
);
static OVER: Statement = Statement::new(
    "SELECT b.id FROM batches b WHERE b.ended_at IS NULL AND b.state = 'running'
       AND NOT EXISTS (SELECT 1 FROM backlog k WHERE k.batch_id = b.id) LIMIT 100",
);
static DONE: Statement = Statement::new(
    "UPDATE batches SET state = 'done', outcomes = $2, ended_at = $3, waiting = 0, waiting_bytes = 0
     WHERE id = $1 AND state = 'running' AND ended_at IS NULL RETURNING id",
);
static CANCELLING: Statement = Statement::new(
    "SELECT * FROM batches WHERE ended_at IS NULL AND state = 'cancelled' ORDER BY id LIMIT 1",
);
static HOLD: Statement =
    Statement::new("SELECT cancelled_to FROM batches WHERE id = $1 AND ended_at IS NULL {lock}");
static NEXT: Statement = Statement::new(
    "SELECT id, line FROM pushes WHERE batch_id = $1 AND line > $2 ORDER BY line LIMIT $3",
);
static CANCEL_THEM: Statement = Statement::new(
    "UPDATE pushes SET state = 'cancelled', reason = 'batch_cancelled', ended_at = $2, escalate_at = NULL
     WHERE id {in:$1} AND COALESCE(ended_at, 0) = 0 RETURNING *",
);
static CANCELLED_TO: Statement =
    Statement::new("UPDATE batches SET cancelled_to = $2 WHERE id = $1");
static CANCELLED: Statement = Statement::new(
    "UPDATE batches SET ended_at = $2, outcomes = $3, waiting = 0, waiting_bytes = 0 WHERE id = $1 AND ended_at IS NULL",
);
static DROP_OF: Statement = Statement::new("DELETE FROM backlog WHERE batch_id = $1");
static BY_STATE: Statement = Statement::long(
    "SELECT state, reason, COUNT(*) AS n FROM pushes WHERE batch_id = $1 GROUP BY state, reason",
);
static REFUSED: Statement = Statement::long(
    "SELECT COUNT(*) AS n, COUNT(duplicate_of) AS duplicates FROM batch_refusals WHERE batch_id = $1",
);

/// How many pushes of a batch stand where.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// By state, then by reason.
    pub states: BTreeMap<String, BTreeMap<String, i64>>,
    /// Lines with faults.
    pub refused: i64,
    /// Lines whose key has made a push elsewhere.
    pub duplicates: i64,
}

impl Counts {
    /// How many are in this state.
    pub fn of(&self, state: &str) -> i64 {
        self.states.get(state).map_or(0, |by| by.values().sum())
    }
}

impl Store {
    /// Counts the pushes of a batch: a look at each of them.
    pub async fn count_batch(&self, batch: &BatchId) -> Result<Counts, Error> {
        let id = [Arg::Text(batch.as_str())];
        let mut counts = Counts::default();
        for row in self.db.fetch(&BY_STATE, &id).await? {
            let by = counts.states.entry(row.text("state")?).or_default();
            by.insert(row.text("reason")?, row.int("n")?);
        }
        if let Some(row) = self.db.fetch(&REFUSED, &id).await?.first() {
            counts.duplicates = row.int("duplicates")?;
            counts.refused = row.int("n")? - counts.duplicates;
        }
        Ok(counts)
    }

    /// Forgets the chunks whose pushes have all ended, and ends the batches that have none left. Says how many chunks and batches.
    pub async fn end_batches(&self, now: Millis) -> Result<usize, Error> {
        let args = [Arg::Int(now), Arg::Int(CHUNKS)];
        let (mut over, mut later) = (Vec::new(), Vec::new());
        for row in self.db.fetch(&LOOKED_AT, &args).await? {
            let id = row.text("id")?;
            if row.int("open")? == 0 {
                over.push(id);
            } else {
                let wait = ((now - row.int("begun_at")?) / 2).clamp(1_000, LOOK);
                later.push(serde_json::json!({"id": id, "due": now + wait}));
            }
        }
        if !over.is_empty() {
            let ids = to_json(&over);
            self.db
                .write_repeatable_later(&DROP, &[Arg::Text(&ids)])
                .await?;
        }
        if !later.is_empty() {
            let rows = to_json(&later);
            self.db
                .write_repeatable_later(&LATER, &[Arg::Text(&rows)])
                .await?;
        }
        let mut ended = 0;
        for row in self.db.fetch(&OVER, &[]).await? {
            let id: BatchId = parsed(&row, "id")?;
            let counts = to_json(&self.count_batch(&id).await?);
            let args = [Arg::Text(id.as_str()), Arg::Text(&counts), Arg::Int(now)];
            ended += self.db.write(&DONE, &args).await?.len();
        }
        Ok(over.len() + ended)
    }

    /// Cancels some of the pushes of a batch that was taken back. `false`: there is none left to cancel.
    pub async fn cancel_some(&self, now: Millis) -> Result<bool, Error> {
        let batch = self.db.fetch(&CANCELLING, &[]).await?;
        let Some(batch) = batch.first().map(batch_of).transpose()? else {
            return Ok(false);
        };
        let id = batch.id.as_str();
        let mut tx = self.db.begin_later().await?;
        let held = tx.fetch(&HOLD, &[Arg::Text(id)]).await?;
        let Some(from) = held
            .first()
            .map(|row| row.int("cancelled_to"))
            .transpose()?
        else {
            return Ok(true);
        };
        let args = [Arg::Text(id), Arg::Int(from), Arg::Int(CANCEL)];
        let rows = tx.fetch(&NEXT, &args).await?;
        let Some(last) = rows.last() else {
            drop(tx);
            let counts = to_json(&self.count_batch(&batch.id).await?);
            let mut tx = self.db.begin_later().await?;
            let args = [Arg::Text(id), Arg::Int(now), Arg::Text(&counts)];
            tx.fetch(&CANCELLED, &args).await?;
            tx.fetch(&DROP_OF, &[Arg::Text(id)]).await?;
            tx.commit().await?;
            return Ok(true);
        };
        let to = last.int("line")?;
        let pushes: Vec<String> = rows
            .iter()
            .map(|row| row.text("id"))
            .collect::<Result<_, _>>()?;
        let messages = cancel_them(&mut tx, &pushes, now).await?;
        tx.fetch(&CANCELLED_TO, &[Arg::Text(id), Arg::Int(to)])
            .await?;
        self.commit(tx, messages, now).await?;
        Ok(true)
    }
}

async fn cancel_them(
    tx: &mut Tx,
    pushes: &[String],
    now: Millis,
) -> Result<Vec<crate::message::Message>, Error> {
    claim::lock(tx, pushes)?;
    let args = [Arg::Text(&to_json(&pushes)), Arg::Int(now)];
    let ended = rows_of(&tx.fetch(&CANCEL_THEM, &args).await?);
    announce(tx, &ended, &[], now).await
}
