//! Recording what the providers said: many results in one transaction, each fenced by its attempt.

use super::claim::{Claimed, retry_jobs};
use super::db::{Arg, Error, Row, Statement, Tx};
use super::{Store, bulk, claim, intake, parsed, to_json};
use crate::clock::Millis;
use crate::domain::{DeliveryState, Target};
use crate::id::{PushId, StoreId};
use crate::message::{Lane, Message, RetryOf};
use serde_json::json;
use std::collections::{HashMap, HashSet};

// The call counts whatever has become of the delivery since: a phone may answer before its provider's answer is written.
static RECORD: Statement = Statement::new(
    "UPDATE deliveries SET calls = CAST(r.value->>'calls' AS BIGINT), provider_id = COALESCE(r.value->>'provider_id', provider_id),
       state = CASE WHEN state = 'sending' THEN r.value->>'state' ELSE state END,
       reason = CASE WHEN state = 'sending' THEN r.value->>'reason' ELSE reason END,
       due_at = CASE WHEN state = 'sending' THEN CAST(r.value->>'due_at' AS BIGINT) ELSE due_at END,
       updated_at = CASE WHEN state = 'sending' THEN $2 ELSE updated_at END FROM {each:$1}
     WHERE deliveries.id = r.value->>'id' AND deliveries.id {among:$1 id} AND attempt = CAST(r.value->>'attempt' AS BIGINT)
     RETURNING deliveries.id, state",
);
// Only the very address that was tried, by its token and the time of its registration, and only if that was before the provider says that it
// died.
static DROP_ADDRESS: Statement = Statement::new(
    "UPDATE devices SET address_state = 'invalid', updated_at = $2 FROM {each:$1}
     WHERE devices.id = r.value->>'device' AND devices.id {among:$1 device} AND address = r.value->>'token' AND address_state = 'valid'
       AND address_registered_at = CAST(r.value->>'registered_at' AS BIGINT)
       AND (r.value->>'since' IS NULL OR address_registered_at <= CAST(r.value->>'since' AS BIGINT))
     RETURNING devices.id",
);
static ESCALATE: Statement = Statement::new(
    "UPDATE pushes SET target = $2, escalate_at = NULL, fan_out_due = $3 WHERE id {in:$1}
       AND COALESCE(escalate_at, 0) > 0 AND COALESCE(ended_at, 0) = 0 RETURNING id, store_id, lane",
);

/// How one call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Result {
    /// The provider took it.
    Sent {
        /// The provider's own identifier.
        provider_id: Option<String>,
    },
    /// Again, after this many milliseconds.
    Retry {
        /// From now.
        after: Millis,
        /// A stable word.
        reason: String,
    },
    /// Never again.
    Failed {
        /// A stable word.
        reason: String,
        /// The address is dead; the provider may say since when.
        address_gone: Option<Option<Millis>>,
    },
}

/// One result to record.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The call.
    pub claimed: Claimed,
    /// How it ended.
    pub result: Result,
    /// Was the provider called at all?
    pub called: bool,
}

impl Recorded {
    /// What the delivery becomes by it, and why.
    pub(super) fn becomes(&self) -> (DeliveryState, &str) {
        match &self.result {
            Result::Sent { .. } => (DeliveryState::Sent, ""),
            Result::Retry { reason, .. } => (DeliveryState::RetryWait, reason),
            Result::Failed { reason, .. } => (DeliveryState::Failed, reason),
        }
    }

    pub(super) fn due_at(&self, now: Millis) -> Millis {
        match &self.result {
            Result::Retry { after, .. } => now + after,
            Result::Sent { .. } | Result::Failed { .. } => now,
        }
    }

    pub(super) fn provider_id(&self) -> Option<&str> {
        match &self.result {
            Result::Sent { provider_id } => provider_id.as_deref(),
            Result::Retry { .. } | Result::Failed { .. } => None,
        }
    }
}

fn row_of(one: &Recorded, now: Millis) -> serde_json::Value {
    let (state, reason) = one.becomes();
    json!({"id": one.claimed.delivery, "attempt": one.claimed.attempt, "state": state, "reason": reason, "due_at": one.due_at(now),
        "provider_id": one.provider_id(), "calls": one.claimed.calls + u32::from(one.called)})
}

/// Asks all devices of those pushes that were to be escalated, in the caller's transaction.
pub(super) async fn escalate(
    tx: &mut Tx,
    pushes: &HashSet<&str>,
    now: Millis,
) -> std::result::Result<Vec<Message>, Error> {
    if pushes.is_empty() {
        return Ok(Vec::new());
    }
    let all = to_json(&Target::All);
    let args = [
        Arg::Text(&to_json(pushes)),
        Arg::Text(&all),
        Arg::Int(now + intake::unseen(Lane::Interactive)),
    ];
    let rows = tx.fetch(&ESCALATE, &args).await?;
    let escalated: Vec<(StoreId, Lane, PushId)> = rows
        .iter()
        .map(|row| {
            Ok((
                parsed(row, "store_id")?,
                parsed(row, "lane")?,
                parsed(row, "id")?,
            ))
        })
        .collect::<std::result::Result<_, Error>>()?;
    Ok(intake::jobs(
        escalated.iter().map(|(store, lane, id)| (store, *lane, id)),
        now,
    ))
}

/// Of written deliveries those that are now what their results made of them.
pub(super) fn standing(
    written: &[Row],
    results: &[&Recorded],
) -> std::result::Result<HashSet<String>, Error> {
    let wanted: HashMap<&str, DeliveryState> = results
        .iter()
        .map(|one| (one.claimed.delivery.as_str(), one.becomes().0))
        .collect();
    let mut stand = HashSet::new();
    for row in written {
        let id = row.text("id")?;
        if wanted.get(id.as_str()) == Some(&parsed(row, "state")?) {
            stand.insert(id);
        }
    }
    Ok(stand)
}

/// Writes results of deliveries that were written before the call. Gives those that stand as recorded, if one of them was not sent.
async fn record_written(
    tx: &mut Tx,
    results: &[&Recorded],
    now: Millis,
) -> std::result::Result<HashSet<String>, Error> {
    if results.is_empty() {
        return Ok(HashSet::new());
    }
    let all_sent = results
        .iter()
        .all(|one| one.becomes().0 == DeliveryState::Sent);
    // One delivery that needs nothing more is all that is locked.
    if !all_sent || results.len() > 1 {
        let pushes: std::collections::BTreeSet<_> =
            results.iter().map(|one| &one.claimed.push).collect();
        claim::lock(tx, &pushes.into_iter().collect::<Vec<_>>())?;
    }
    let rows: Vec<_> = results.iter().map(|one| row_of(one, now)).collect();
    let args = [Arg::Text(&to_json(&rows)), Arg::Int(now)];
    if all_sent {
        // Nothing more is done for any of them, whether it stands or not.
        tx.send(&RECORD, &args)?;
        return Ok(HashSet::new());
    }
    let won = tx.fetch(&RECORD, &args).await?;
    standing(&won, results)
}

impl Store {
    /// Records results. Where the delivery has moved on (answered, withdrawn), only the call is counted; where it was taken
    /// over, nothing.
    pub async fn record(
        &self,
        results: &[Recorded],
        now: Millis,
    ) -> std::result::Result<(), Error> {
        let (unwritten, written): (Vec<_>, Vec<_>) =
            results.iter().partition(|one| one.claimed.unwritten);
        let mut tx = if unwritten.is_empty() {
            self.db.begin_repeatable().await?
        } else {
            self.db.begin_repeatable_later().await?
        };
        let mut messages = Vec::new();
        let mut won = bulk::record(&mut tx, &unwritten, now, &mut messages).await?;
        won.extend(record_written(&mut tx, &written, now).await?);
        let (mut retries, mut gone, mut failed) = (Vec::new(), Vec::new(), HashSet::new());
        for one in results {
            let claimed = &one.claimed;
            // An address is judged by itself: it is dead whatever has become of the delivery.
            if let Result::Failed {
                address_gone: Some(since),
                ..
            } = &one.result
            {
                gone.push(json!({"device": claimed.device, "token": claimed.token.expose(), "since": since, "registered_at": claimed.registered_at}));
            }
            if !won.contains(claimed.delivery.as_str()) {
                continue;
            }
            match &one.result {
                Result::Sent { .. } => {}
                Result::Retry { after, .. } => {
                    let retry = RetryOf {
                        delivery: claimed.delivery.clone(),
                        attempt: claimed.attempt,
                    };
                    retries.push((claimed.store.clone(), claimed.lane, *after, retry));
                }
                Result::Failed { .. } => {
                    failed.insert(claimed.push.as_str());
                }
            }
        }
        messages.extend(retry_jobs(retries.into_iter(), now));
        messages.extend(escalate(&mut tx, &failed, now).await?);
        if !gone.is_empty() {
            tx.send(&DROP_ADDRESS, &[Arg::Text(&to_json(&gone)), Arg::Int(now)])?;
        }
        self.commit(tx, messages, now).await
    }
}
