//! What time does: pushes expire, escalate, and what a crash or an empty broker left behind is sent on its way again.

use super::claim::retry_jobs;
use super::db::{Arg, Error, Row, Statement};
use super::ending::{announce, rows_of};
use super::{Store, claim, intake, json, parsed, push_tokens, record, requests};
use crate::clock::Millis;
use crate::id::{PushId, StoreId};
use crate::message::{Lane, RetryOf};
use std::collections::HashSet;

/// How many rows one sweep takes: a bound on its transaction. A full one has more behind it.
pub const BATCH: i64 = 500;
/// How long a retry's message may be late before the sweep makes another.
const LATE: Millis = 10_000;
/// How long an event is remembered in the inbox: longer than any redelivery.
const REMEMBERED: Millis = 24 * 3_600_000;
/// How long an enrolment code can be looked up, and a notice waits for its device.
const KEPT: Millis = 30 * 24 * 3_600_000;

macro_rules! expire_where {
    ($which:literal) => {
        Statement::new(concat!(
            "UPDATE pushes SET ended_at = $1, escalate_at = NULL, fan_out_due = NULL,
       state = CASE WHEN kind = 'generic' AND EXISTS
           (SELECT 1 FROM deliveries d WHERE d.push_id = pushes.id AND d.state = 'answered') THEN 'completed' ELSE 'expired' END,
       reason = CASE WHEN kind = 'generic' AND EXISTS
           (SELECT 1 FROM deliveries d WHERE d.push_id = pushes.id AND d.state = 'answered') THEN 'some_answered'
           WHEN state = 'opened' OR EXISTS (SELECT 1 FROM deliveries d WHERE d.push_id = pushes.id AND d.state = 'fetched') THEN 'no_response'
           WHEN EXISTS (SELECT 1 FROM deliveries d WHERE d.push_id = pushes.id AND d.state = 'sent') THEN 'unopened'
           WHEN state = 'accepted' AND batch_id IS NOT NULL THEN 'not_released'
           ELSE 'undelivered' END
     WHERE ",
            $which,
            " RETURNING *"
        ))
    };
}
static EXPIRE: Statement = expire_where!(
    "id IN (SELECT id FROM pushes WHERE ended_at IS NULL AND expire_due <= $1 ORDER BY expire_due LIMIT $2 {skip_locked})"
);
static EXPIRING_CHUNKS: Statement = Statement::new(
    "SELECT id, pushes FROM backlog WHERE expire_due <= $1 ORDER BY expire_due LIMIT 1 {skip_locked}",
);
static EXPIRE_OF_CHUNK: Statement =
    expire_where!("id {in:$2} AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 <= $1");
static NEXT_OF_CHUNK: Statement = Statement::new(
    "UPDATE backlog SET expire_due =
       (SELECT MIN(p.expires_at) FROM pushes p WHERE p.id {in:$2} AND COALESCE(p.ended_at, 0) = 0) WHERE id = $1",
);
static ESCALATING: Statement = Statement::new(
    "SELECT id FROM pushes WHERE escalate_at IS NOT NULL AND escalate_at <= $1 AND ended_at IS NULL ORDER BY escalate_at LIMIT $2
     {skip_locked}",
);
// The states once more: SQLite finds the index by them alone.
static STALE: Statement = Statement::new(
    "UPDATE deliveries SET state = 'retry_wait', reason = CASE WHEN state = 'sending' THEN 'lease_expired' ELSE reason END, due_at = $1
     WHERE id IN (SELECT id FROM deliveries WHERE state IN ('queued', 'sending', 'retry_wait') AND due_at <= $1
       AND (state = 'sending' OR (state = 'retry_wait' AND due_at <= $2))
       AND EXISTS (SELECT 1 FROM pushes p WHERE p.id = push_id AND COALESCE(p.ended_at, 0) = 0 AND p.state IN ('accepted', 'pending'))
       ORDER BY due_at LIMIT $3 {skip_locked})
     RETURNING id, attempt, (SELECT p.store_id FROM pushes p WHERE p.id = push_id) AS store_id,
       (SELECT p.lane FROM pushes p WHERE p.id = push_id) AS lane",
);
static LOST: Statement = Statement::new(
    "UPDATE pushes SET fan_out_due = $1 + CASE WHEN $1 - created_at > 600000 THEN 600000 ELSE $1 - created_at END WHERE id IN
       (SELECT id FROM pushes WHERE fan_out_due <= $1 AND ended_at IS NULL ORDER BY fan_out_due LIMIT $2 {skip_locked})
     RETURNING id, store_id, lane",
);
static FORGET: Statement = Statement::new(
    "DELETE FROM inbox WHERE event_id IN (SELECT event_id FROM inbox WHERE seen_at < $1 LIMIT $2)",
);
static FORGET_NOTICES: Statement = Statement::new(
    "DELETE FROM notices WHERE id IN (SELECT id FROM notices WHERE created_at < $1 LIMIT $2)",
);
static FORGET_CODES: Statement = Statement::new(
    "DELETE FROM enrolment_codes WHERE id IN (SELECT id FROM enrolment_codes WHERE expires_at < $1 LIMIT $2)",
);
static NEXT: Statement = Statement::new(
    "SELECT MIN(at) AS at FROM (SELECT MIN(expire_due) AS at FROM pushes WHERE expire_due IS NOT NULL AND ended_at IS NULL
       UNION ALL SELECT MIN(expire_due) FROM backlog WHERE expire_due IS NOT NULL
       UNION ALL SELECT MIN(escalate_at) FROM pushes WHERE escalate_at IS NOT NULL
       UNION ALL SELECT MIN(due_at) FROM settlements) AS t",
);

fn job_row(row: &Row) -> Result<(StoreId, Lane, PushId), Error> {
    Ok((
        parsed(row, "store_id")?,
        parsed(row, "lane")?,
        parsed(row, "id")?,
    ))
}

impl Store {
    /// Ends pushes whose time is over. Says how many.
    pub async fn expire(&self, now: Millis) -> Result<usize, Error> {
        let mut tx = self.db.begin().await?;
        let ended = rows_of(&tx.fetch(&EXPIRE, &[Arg::Int(now), Arg::Int(BATCH)]).await?);
        if ended.is_empty() {
            return Ok(0);
        }
        let messages = announce(&mut tx, &ended, &[], now).await?;
        self.commit(tx, messages, now).await?;
        Ok(ended.len())
    }

    /// Ends pushes of one chunk whose time is over. `None`: no chunk is due; else how many.
    pub async fn expire_chunk(&self, now: Millis) -> Result<Option<usize>, Error> {
        let mut tx = self.db.begin_later().await?;
        let chunks = tx.fetch(&EXPIRING_CHUNKS, &[Arg::Int(now)]).await?;
        let Some(chunk) = chunks.first() else {
            return Ok(None);
        };
        let pushes = chunk.text("pushes")?;
        let ids: Vec<PushId> = json(chunk, "pushes")?;
        claim::lock(&mut tx, &ids)?;
        let args = [Arg::Int(now), Arg::Text(&pushes)];
        let ended = rows_of(&tx.fetch(&EXPIRE_OF_CHUNK, &args).await?);
        let messages = announce(&mut tx, &ended, &[], now).await?;
        let args = [Arg::Text(&chunk.text("id")?), Arg::Text(&pushes)];
        tx.fetch(&NEXT_OF_CHUNK, &args).await?;
        self.commit(tx, messages, now).await?;
        Ok(Some(ended.len()))
    }

    /// Asks the other devices where the preferred one has not answered in time. Says how many pushes.
    pub async fn escalate_due(&self, now: Millis) -> Result<usize, Error> {
        let mut tx = self.db.begin().await?;
        let rows = tx
            .fetch(&ESCALATING, &[Arg::Int(now), Arg::Int(BATCH)])
            .await?;
        let ids: Vec<String> = rows
            .iter()
            .map(|row| row.text("id"))
            .collect::<Result<_, _>>()?;
        let due: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let messages = record::escalate(&mut tx, &due, now).await?;
        self.commit(tx, messages, now).await?;
        Ok(ids.len())
    }

    /// Sends again what nobody is sending: leases that ran out, retries and jobs whose message is gone. Says how many.
    pub async fn recover(&self, now: Millis) -> Result<usize, Error> {
        let mut tx = self.db.begin().await?;
        let args = [Arg::Int(now), Arg::Int(now - LATE), Arg::Int(BATCH)];
        let stale = tx.fetch(&STALE, &args).await?;
        let retries: Vec<_> = stale
            .iter()
            .map(|row| {
                let attempt = u32::try_from(row.int("attempt")?).unwrap_or(u32::MAX);
                let delivery = parsed(row, "id")?;
                let retry = RetryOf { delivery, attempt };
                Ok((parsed(row, "store_id")?, parsed(row, "lane")?, 0, retry))
            })
            .collect::<Result<_, Error>>()?;
        let args = [Arg::Int(now), Arg::Int(BATCH)];
        let lost = tx.fetch(&LOST, &args).await?;
        let lost: Vec<_> = lost.iter().map(job_row).collect::<Result<_, _>>()?;
        let old = [Arg::Int(now - REMEMBERED), Arg::Int(BATCH)];
        tx.fetch(&FORGET, &old).await?;
        let old = [Arg::Int(now - KEPT), Arg::Int(BATCH)];
        tx.fetch(&FORGET_NOTICES, &old).await?;
        tx.fetch(&FORGET_CODES, &old).await?;
        let old = [
            Arg::Int(now - requests::SKEW),
            Arg::Int(requests::FORGOTTEN),
        ];
        tx.fetch(&requests::FORGET, &old).await?;
        let old = [Arg::Int(now), Arg::Int(BATCH)];
        tx.fetch(&push_tokens::FORGET, &old).await?;
        let count = retries.len() + lost.len();
        let mut messages = retry_jobs(retries.into_iter(), now);
        messages.extend(intake::jobs(
            lost.iter().map(|(store, lane, id)| (store, *lane, id)),
            now,
        ));
        self.commit(tx, messages, now).await?;
        Ok(count)
    }

    /// When the next push expires or escalates, or the next approval is to be counted because nobody else did.
    pub async fn next_deadline(&self) -> Result<Option<Millis>, Error> {
        let rows = self.db.fetch(&NEXT, &[]).await?;
        rows.first().map_or(Ok(None), |row| row.maybe_int("at"))
    }
}
