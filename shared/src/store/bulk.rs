//! Pushes of a released chunk: one write for each delivery instead of two.
//!
//! An interactive delivery is written as `sending` before its call and again with the result. Of a chunk, the state `pending` of the push and the
//! chunk's own row are the claim, and a delivery is written once, with its result:
//!
//! ```text
//! claim: push accepted -> pending, chunk due at the end of the lease -> call -> record: delivery inserted, all of the chunk: no longer due
//! ```
//!
//! Whom to ask is read after the commit of the claim; only what is not sent (nobody to ask, a device without an address) needs a second transaction.
//! A second job of the same chunk finds no `accepted` push and claims nothing. What a dead worker had claimed and not recorded is found when the
//! chunk is due: an ordinary job then writes those deliveries as `sending`, and whoever wrote first keeps them, since a late result of the first
//! worker changes no delivery that has an attempt.

use super::claim::{self, ASKED, Claimed, Plan};
use super::db::{Arg, Error, Rows, Statement, Tx};
use super::ending::end_of_deliveries;
use super::record::{Recorded, standing};
use super::{Store, ending, json, parsed, to_json};
use crate::clock::Millis;
use crate::domain::{DeliveryState, PushState};
use crate::event::{DeviceDone, DeviceEnd, Events};
use crate::id::{ChunkId, PushId, StoreId};
use crate::message::{Job, Lane, Message, Route, VERSION};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// What a worker may need beyond its lease to write down what it has.
const GRACE: Millis = 20_000;
/// How soon somebody looks whether all pushes of a chunk have ended. At once none has.
const FIRST_LOOK: Millis = 1_000;
/// How often a committed claim looks again whom to ask when the database fails it: as long as its calls can still be made.
const ATTEMPTS: u32 = 20;
const AGAIN: Duration = Duration::from_millis(500);
/// How many chunks one look takes in.
const CHUNKS: i64 = 100;

static TAKE_CHUNKS: Statement = Statement::new(
    "UPDATE backlog SET sent_due = $3, begun_at = COALESCE(begun_at, $2), due_at = CASE WHEN begun_at IS NULL THEN $4 ELSE due_at END,
       expire_due = CASE WHEN begun_at IS NULL THEN $2 + lifetime ELSE expire_due END WHERE id {in:$1}",
);
static BEGIN: Statement = Statement::new(
    "UPDATE pushes SET state = 'pending', fan_out_due = NULL,
       expires_at = CASE WHEN lifetime IS NOT NULL THEN $2 + lifetime ELSE expires_at END WHERE id {in:$1}
       AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $2 AND state || '' = 'accepted' RETURNING id",
);
macro_rules! insert {
    ($then:literal) => {
        Statement::new(concat!(
            "INSERT INTO deliveries (id, push_id, device_id, state, reason, attempt, calls, due_at, provider_id, created_at, updated_at)
     SELECT r.id, r.push_id, r.device_id, r.state, r.reason, 1, r.calls, r.due_at, r.provider_id, $1, $1
     FROM {rows:2 id push_id device_id state reason calls:int due_at:int provider_id} WHERE true ON CONFLICT (push_id, device_id) ",
            $then
        ))
    };
}
// A phone may have fetched or answered before: such a row has no attempt yet, and learns only of the call.
static WRITE: Statement = insert!(
    "DO UPDATE SET attempt = 1, calls = excluded.calls, provider_id = excluded.provider_id WHERE deliveries.attempt = 0"
);
static WRITE_AND_TELL: Statement = insert!(
    "DO UPDATE SET attempt = 1, calls = excluded.calls, provider_id = excluded.provider_id WHERE deliveries.attempt = 0 RETURNING id, state"
);
static WRITE_ENDED: Statement = insert!("DO NOTHING RETURNING id, state");
static SENT: Statement = Statement::new("UPDATE backlog SET sent_due = NULL WHERE id {in:$1}");
static ANY_UNSENT: Statement =
    Statement::new("SELECT 1 AS one FROM backlog WHERE sent_due <= $1 LIMIT 1");
static UNSENT: Statement = Statement::new(
    "UPDATE backlog SET sent_due = $2 WHERE id IN
       (SELECT k.id FROM backlog k WHERE k.sent_due <= $1 ORDER BY k.sent_due LIMIT $3 {skip_locked})
     RETURNING id, store_id, pushes",
);
static WITHOUT_DELIVERY: Statement = Statement::new(
    "SELECT p.id FROM pushes p WHERE p.id {in:$1} AND p.state = 'pending' AND COALESCE(p.ended_at, 0) = 0
       AND p.expires_at + 0 > $2 AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.push_id = p.id AND d.attempt > 0)",
);

/// A chunk that a job carries, and its pushes.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Which.
    pub id: ChunkId,
    /// Its pushes.
    pub pushes: Vec<PushId>,
}

/// Writes the results of claims without a row. Gives those deliveries that stand as recorded and were not sent.
pub(super) async fn record(
    tx: &mut Tx,
    results: &[&Recorded],
    now: Millis,
    messages: &mut Vec<Message>,
) -> Result<HashSet<String>, Error> {
    if results.is_empty() {
        return Ok(HashSet::new());
    }
    let mut pushes: Vec<_> = results.iter().map(|one| &one.claimed.push).collect();
    pushes.sort();
    pushes.dedup();
    let mut ended: HashMap<PushId, PushState> = HashMap::new();
    for row in claim::lock_and_tell_ended(tx, &pushes).await? {
        ended.insert(parsed(&row, "id")?, parsed(&row, "state")?);
    }
    // What was sent needs nothing more; what was not, goes on only if it is the delivery's last word.
    let (mut sent, mut open, mut unsent) = (Rows::default(), Rows::default(), Vec::new());
    let (mut late, mut late_rows) = (Vec::new(), Rows::default());
    for one in results {
        let (state, reason) = one.becomes();
        if let Some(push) = ended.get(&one.claimed.push) {
            add_to(&mut late_rows, one, end_of_deliveries(*push), reason, now);
            late.push((*one, *push, reason));
        } else if state == DeliveryState::Sent {
            add_to(&mut sent, one, state, reason, now);
        } else {
            add_to(&mut open, one, state, reason, now);
            unsent.push(*one);
        }
    }
    if sent.count() > 0 {
        tx.send(&WRITE, &[Arg::Int(now), Arg::Rows(&sent)])?;
    }
    let mut stand = HashSet::new();
    if open.count() > 0 {
        let args = [Arg::Int(now), Arg::Rows(&open)];
        let written = tx.fetch(&WRITE_AND_TELL, &args).await?;
        stand = standing(&written, &unsent)?;
    }
    if !late.is_empty() {
        messages.extend(tell_late(tx, &late, &late_rows, now).await?);
    }
    Ok(stand)
}

fn add_to(rows: &mut Rows, one: &Recorded, state: DeliveryState, reason: &str, now: Millis) {
    let claimed = &one.claimed;
    rows.row()
        .text(claimed.delivery.as_str())
        .text(claimed.push.as_str())
        .text(claimed.device.as_str())
        .text(state.as_str())
        .text(reason)
        .int(i64::from(one.called))
        .int(one.due_at(now))
        .maybe_text(one.provider_id());
}

/// The push ended while the provider was called: the delivery is written as it ends, with the event that it has not had.
async fn tell_late(
    tx: &mut Tx,
    late: &[(&Recorded, PushState, &str)],
    rows: &Rows,
    now: Millis,
) -> Result<Vec<Message>, Error> {
    let args = [Arg::Int(now), Arg::Rows(rows)];
    let written: HashSet<String> = tx
        .fetch(&WRITE_ENDED, &args)
        .await?
        .iter()
        .map(|row| row.text("id"))
        .collect::<Result<_, _>>()?;
    let mut events = Events::default();
    for (one, state, reason) in late {
        let claimed = &one.claimed;
        if written.contains(claimed.delivery.as_str()) {
            let end = DeviceEnd {
                delivery: claimed.delivery.clone(),
                device: claimed.device.clone(),
                state: end_of_deliveries(*state),
                decision: None,
                reason: (*reason).to_owned(),
                attempts: i64::from(one.called),
            };
            let done = DeviceDone {
                push: claimed.push.clone(),
                store: claimed.store.clone(),
                kind: claimed.kind,
                end,
            };
            events.device_done(&done, now);
        }
    }
    Ok(events.into_messages(now))
}

impl Store {
    /// Claims the pushes of released chunks that no worker has had: the calls to make.
    pub async fn claim_chunks(
        &self,
        chunks: &[Chunk],
        now: Millis,
        lease: Millis,
    ) -> Result<Vec<Claimed>, Error> {
        let ids: Vec<_> = chunks.iter().map(|chunk| &chunk.id).collect();
        let mut pushes: Vec<&PushId> = chunks.iter().flat_map(|chunk| &chunk.pushes).collect();
        pushes.sort();
        pushes.dedup();
        let (ids, all) = (to_json(&ids), to_json(&pushes));
        let mut tx = self.db.begin_repeatable_later().await?;
        let args = [
            Arg::Text(&ids),
            Arg::Int(now),
            Arg::Int(now + lease + GRACE),
            Arg::Int(now + FIRST_LOOK),
        ];
        tx.send(&TAKE_CHUNKS, &args)?;
        claim::lock(&mut tx, &pushes)?;
        let args = [Arg::Text(&all), Arg::Int(now)];
        let open = claim::ids_of(&tx.fetch_last(&BEGIN, &args).await?)?;
        if open.is_empty() {
            return Ok(Vec::new());
        }
        // Whom to ask is looked up while others write. The claim stands: to ask again for it would find nothing.
        let open = to_json(&open);
        let mut attempts = 0;
        let plan = loop {
            match self.db.fetch(&ASKED, &[Arg::Text(&open)]).await {
                Ok(asked) => break claim::planned(&asked, None)?,
                Err(error) if error.is_permanent() || attempts >= ATTEMPTS => return Err(error),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
            attempts += 1;
        };
        while let Err(error) = self.leave_out(&plan, now, lease).await {
            if error.is_permanent() || attempts >= ATTEMPTS {
                // They are found again as pushes that were not sent; the others are sent now.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "pushes that are not sent could not be written"
                );
                break;
            }
            attempts += 1;
            tokio::time::sleep(AGAIN).await;
        }
        Ok(plan.send)
    }

    /// Writes who is not asked.
    async fn leave_out(&self, plan: &Plan, now: Millis, lease: Millis) -> Result<(), Error> {
        let Plan {
            send: _,
            rows,
            skipped,
            nobody,
            blocked,
            escalated,
        } = plan;
        let mut touched: Vec<&PushId> = [skipped, nobody, blocked, escalated]
            .into_iter()
            .flatten()
            .collect();
        if touched.is_empty() {
            return Ok(());
        }
        touched.sort();
        touched.dedup();
        let mut tx = self.db.begin_repeatable_later().await?;
        claim::lock(&mut tx, &touched)?;
        let mut messages = Vec::new();
        for (pushes, reason) in [(nobody, "no_devices"), (blocked, "user_blocked")] {
            if !pushes.is_empty() {
                messages.extend(ending::fail(&mut tx, pushes, reason, now).await?);
            }
        }
        claim::widen(&mut tx, escalated)?;
        claim::write(&mut tx, rows, now, lease).await?;
        self.commit(tx, messages, now).await
    }

    /// Every delivery of these chunks is recorded.
    pub async fn chunks_sent(&self, chunks: &[ChunkId]) -> Result<(), Error> {
        let args = [Arg::Text(&to_json(&chunks))];
        self.db.write_repeatable(&SENT, &args).await.map(|_| ())
    }

    /// Sends what was claimed and never recorded on its way again, as ordinary jobs. Says how many pushes.
    pub async fn resend_unsent(&self, now: Millis, lease: Millis) -> Result<usize, Error> {
        if self
            .db
            .fetch(&ANY_UNSENT, &[Arg::Int(now)])
            .await?
            .is_empty()
        {
            return Ok(0);
        }
        let mut tx = self.db.begin_later().await?;
        let args = [
            Arg::Int(now),
            Arg::Int(now + lease + GRACE),
            Arg::Int(CHUNKS),
        ];
        let (mut messages, mut sent, mut count) = (Vec::new(), Vec::new(), 0);
        for row in tx.fetch(&UNSENT, &args).await? {
            let pushes: Vec<PushId> = json(&row, "pushes")?;
            let args = [Arg::Text(&to_json(&pushes)), Arg::Int(now)];
            let pushes: Vec<PushId> = tx
                .fetch(&WITHOUT_DELIVERY, &args)
                .await?
                .iter()
                .map(|row| parsed(row, "id"))
                .collect::<Result<_, _>>()?;
            if pushes.is_empty() {
                sent.push(row.text("id")?);
                continue;
            }
            count += pushes.len();
            let store: StoreId = parsed(&row, "store_id")?;
            let job = Job {
                v: VERSION,
                store,
                pushes,
                retries: vec![],
                chunk: None,
            };
            messages.push(job.into_message(Route::Jobs(Lane::Bulk), now));
        }
        if !sent.is_empty() {
            tx.send(&SENT, &[Arg::Text(&to_json(&sent))])?;
        }
        self.commit(tx, messages, now).await?;
        Ok(count)
    }
}
