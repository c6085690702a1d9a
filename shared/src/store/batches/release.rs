//! From the backlog to the broker: what may be sent, what was sent and no worker has yet, what was lost on the way.

use super::{Arg, Error, Row, Statement, Store, parsed};
use crate::clock::Millis;
use crate::id::{BatchId, PushId, StoreId};
use crate::message::{Job, Lane, Message, Route, VERSION};
use crate::store::json;

/// How long a job of a chunk may be on its way before another one is made. A second one claims nothing.
const LOST: Millis = 60_000;
const MAX_LOST: Millis = 600_000;
/// How many batches one look takes in.
const BATCHES: i64 = 1_000;
/// How many chunks one look takes in.
const CHUNKS: i64 = 500;
/// A batch that sends slower than it may makes up for this much at most.
const CATCH_UP: Millis = 1_000;

static RELEASABLE: Statement = Statement::new(
    "SELECT b.id, b.store_id, b.waiting, b.chunk_rows, b.max_per_second, s.bulk_weight FROM batches b JOIN stores s ON s.id = b.store_id
     WHERE b.ended_at IS NULL AND b.waiting > 0 AND (b.state = 'running' OR (b.state = 'receiving' AND b.atomic = 0))
       AND b.next_release_at <= $1 ORDER BY b.id LIMIT $2",
);
static ANY_OPEN: Statement =
    Statement::new("SELECT 1 AS one FROM batches WHERE ended_at IS NULL LIMIT 1");
static HOLD: Statement = Statement::new(
    "SELECT max_per_second, next_release_at FROM batches
     WHERE id = $1 AND (state = 'running' OR (state = 'receiving' AND atomic = 0)) AND next_release_at <= $2 {lock}",
);
static RELEASE: Statement = Statement::new(
    "UPDATE backlog SET released_at = $3, due_at = $4 WHERE id IN
       (SELECT k.id FROM backlog k WHERE k.batch_id = $1 AND k.released_at IS NULL ORDER BY k.first_line LIMIT $2 {skip_locked})
     RETURNING id, store_id, pushes, row_count, bytes",
);
static COUNT: Statement = Statement::new(
    "UPDATE batches SET waiting = waiting - $2, waiting_bytes = waiting_bytes - $3, next_release_at = $4,
       first_released_at = COALESCE(first_released_at, $5), last_released_at = $5 WHERE id = $1",
);
static IN_FLIGHT: Statement = Statement::new(
    "SELECT store_id, CAST(SUM(row_count) AS BIGINT) AS n FROM backlog WHERE released_at IS NOT NULL AND begun_at IS NULL GROUP BY store_id",
);
static ANY_LOST: Statement = Statement::new(
    "SELECT 1 AS one FROM backlog WHERE released_at IS NOT NULL AND begun_at IS NULL AND due_at <= $1 LIMIT 1",
);
static AGAIN: Statement = Statement::new(
    "UPDATE backlog SET due_at = $1 + CASE WHEN $1 - released_at > $3 THEN $3 ELSE $1 - released_at END WHERE id IN
       (SELECT k.id FROM backlog k WHERE k.released_at IS NOT NULL AND k.begun_at IS NULL AND k.due_at <= $1 ORDER BY k.due_at
        LIMIT $2 {skip_locked})
     RETURNING id, store_id, pushes, row_count, bytes",
);
static LEASE: Statement = Statement::new(
    "INSERT INTO leases (name, holder, until_at) VALUES ('dispatcher', $1, $3)
     ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until_at = excluded.until_at
       WHERE leases.holder = excluded.holder OR leases.until_at <= $2 RETURNING holder",
);
static GIVE_UP: Statement =
    Statement::new("UPDATE leases SET until_at = 0 WHERE name = 'dispatcher' AND holder = $1");

/// A batch with pushes that may be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Releasable {
    /// The batch.
    pub batch: BatchId,
    /// Its store.
    pub store: StoreId,
    /// The store's share against those of other stores.
    pub weight: i64,
    /// How many pushes wait.
    pub waiting: i64,
    /// How many of them go in one job.
    pub chunk_rows: i64,
    /// How many pushes a second are sent at most.
    pub max_per_second: Option<i64>,
}

/// What of a store was released and is not with a worker yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The store.
    pub store: StoreId,
    /// How many pushes.
    pub rows: i64,
}

/// What one release did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Released {
    /// Jobs.
    pub chunks: usize,
    /// Pushes.
    pub rows: i64,
}

fn job_of(row: &Row, now: Millis) -> Result<Message, Error> {
    let store: StoreId = parsed(row, "store_id")?;
    let pushes: Vec<PushId> = json(row, "pushes")?;
    let job = Job {
        v: VERSION,
        store,
        pushes,
        retries: vec![],
        chunk: Some(parsed(row, "id")?),
    };
    Ok(job.into_message(Route::Jobs(Lane::Bulk), now))
}

impl Store {
    /// Takes or renews the dispatcher's lease. `false`: another process has it. Two at once would release nothing twice, but know less of
    /// each other's shares.
    pub async fn lead_dispatch(
        &self,
        holder: &str,
        now: Millis,
        until: Millis,
    ) -> Result<bool, Error> {
        let args = [Arg::Text(holder), Arg::Int(now), Arg::Int(until)];
        Ok(!self.db.write(&LEASE, &args).await?.is_empty())
    }

    /// Leaves the lease to the next process.
    pub async fn leave_dispatch(&self, holder: &str) -> Result<(), Error> {
        let args = [Arg::Text(holder)];
        self.db.write(&GIVE_UP, &args).await.map(|_| ())
    }

    /// Is there a batch that is not over?
    pub async fn has_open_batches(&self) -> Result<bool, Error> {
        Ok(!self.db.fetch(&ANY_OPEN, &[]).await?.is_empty())
    }

    /// The batches that have something to send at `now`.
    pub async fn releasable(&self, now: Millis) -> Result<Vec<Releasable>, Error> {
        let args = [Arg::Int(now), Arg::Int(BATCHES)];
        let rows = self.db.fetch(&RELEASABLE, &args).await?;
        rows.iter()
            .map(|row| {
                Ok(Releasable {
                    batch: parsed(row, "id")?,
                    store: parsed(row, "store_id")?,
                    weight: row.int("bulk_weight")?,
                    waiting: row.int("waiting")?,
                    chunk_rows: row.int("chunk_rows")?,
                    max_per_second: row.maybe_int("max_per_second")?,
                })
            })
            .collect()
    }

    /// Sends so many chunks of each of these batches on their way, in one transaction with the promise of their jobs.
    pub async fn release(
        &self,
        picks: &[(BatchId, usize)],
        now: Millis,
    ) -> Result<Released, Error> {
        let mut picks: Vec<_> = picks.iter().collect();
        picks.sort();
        let mut tx = self.db.begin_open_later().await?;
        let (mut messages, mut released) = (Vec::new(), Released::default());
        for (batch, chunks) in picks {
            let args = [Arg::Text(batch.as_str()), Arg::Int(now)];
            let held = tx.fetch(&HOLD, &args).await?;
            let Some(held) = held.first() else {
                continue;
            };
            let args = [
                Arg::Text(batch.as_str()),
                Arg::Int(*chunks as i64),
                Arg::Int(now),
                Arg::Int(now + LOST),
            ];
            let (mut rows, mut bytes) = (0, 0);
            for row in tx.fetch(&RELEASE, &args).await? {
                rows += row.int("row_count")?;
                bytes += row.int("bytes")?;
                released.chunks += 1;
                messages.push(job_of(&row, now)?);
            }
            released.rows += rows;
            let next = match held.maybe_int("max_per_second")? {
                Some(rate) => {
                    let from = match held.int("next_release_at")? {
                        0 => now,
                        next => next.max(now - CATCH_UP),
                    };
                    from + rows * 1000 / rate.max(1)
                }
                None => 0,
            };
            let args = [
                Arg::Text(batch.as_str()),
                Arg::Int(rows),
                Arg::Int(bytes),
                Arg::Int(next),
                Arg::Int(now),
            ];
            tx.send(&COUNT, &args)?;
        }
        self.commit(tx, messages, now).await?;
        crate::crash::point("B3");
        Ok(released)
    }

    /// What is released and not with a worker yet.
    pub async fn bulk_in_flight(&self) -> Result<Vec<InFlight>, Error> {
        let rows = self.db.fetch(&IN_FLIGHT, &[]).await?;
        rows.iter()
            .map(|row| {
                Ok(InFlight {
                    store: parsed(row, "store_id")?,
                    rows: row.int("n")?,
                })
            })
            .collect()
    }

    /// Sends chunks again whose jobs no worker has taken in time: the broker may have lost them. Says how many.
    pub async fn resend_lost(&self, now: Millis) -> Result<usize, Error> {
        if self.db.fetch(&ANY_LOST, &[Arg::Int(now)]).await?.is_empty() {
            return Ok(0);
        }
        let mut tx = self.db.begin_later().await?;
        let args = [Arg::Int(now), Arg::Int(CHUNKS), Arg::Int(MAX_LOST)];
        let rows = tx.fetch(&AGAIN, &args).await?;
        let messages = rows
            .iter()
            .map(|row| job_of(row, now))
            .collect::<Result<_, _>>()?;
        self.commit(tx, messages, now).await?;
        Ok(rows.len())
    }
}
