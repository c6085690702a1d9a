//! What happens, in one transaction, when pushes end: their deliveries end and their completion events are promised.

use super::approvals;
use super::audit::{Note, note};
use super::db::{Arg, Error, Row, Statement, Tx};
use super::pushes::{delivery_of, push_of};
use super::{PushRow, Store, to_json};
use crate::audit::Act;
use crate::clock::{Millis, rfc3339};
use crate::domain::{DeliveryState, Kind, PushState};
use crate::event::{DeviceDone, DeviceEnd, Events, PushEnded};
use crate::id::{PushId, StoreId, UserId};
use crate::message::Message;
use serde_json::json;
use std::collections::HashMap;

static ALREADY_DONE: Statement = Statement::new(
    "SELECT * FROM deliveries WHERE push_id {in:$1} AND state IN ('answered', 'withdrawn', 'expired')",
);
static CLOSE: Statement = Statement::new(
    "UPDATE deliveries SET state = $2, updated_at = $3
     WHERE push_id {in:$1} AND state NOT IN ('answered', 'withdrawn', 'expired') RETURNING *",
);
static CANCEL: Statement = Statement::new(
    "UPDATE pushes SET state = 'cancelled', reason = $3, ended_at = $4, escalate_at = NULL, fan_out_due = NULL
     WHERE id = $2 AND store_id = $1 AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $4 RETURNING *",
);
static CANCEL_OF_USER: Statement = Statement::new(
    "UPDATE pushes SET state = 'cancelled', reason = 'user_blocked', ended_at = $2, escalate_at = NULL, fan_out_due = NULL
     WHERE user_id = $1 AND COALESCE(ended_at, 0) = 0 RETURNING *",
);
static FAIL: Statement = Statement::new(
    "UPDATE pushes SET state = 'failed', reason = $2, ended_at = $3, escalate_at = NULL, fan_out_due = NULL
     WHERE id {in:$1} AND COALESCE(ended_at, 0) = 0 RETURNING *",
);

/// Ends the deliveries of pushes that this transaction has ended, notes the verdicts, promises to count the approvals that they belong to, and gives the messages that say so.
/// `fresh`: deliveries whose end belongs to this transaction although they have it already (the answer that decided).
pub(super) async fn announce(
    tx: &mut Tx,
    ended: &[PushRow],
    fresh: &[&str],
    now: Millis,
) -> Result<Vec<Message>, Error> {
    announce_by(tx, ended, fresh, None, now).await
}

/// The same, where the holder of an API key ended them.
pub(super) async fn announce_by(
    tx: &mut Tx,
    ended: &[PushRow],
    fresh: &[&str],
    by: Option<&str>,
    now: Millis,
) -> Result<Vec<Message>, Error> {
    let verdicts: Vec<_> = ended.iter().filter_map(|push| verdict(push, by)).collect();
    note(tx, &verdicts, now).await?;
    approvals::promise(tx, ended, now).await?;
    let mut events = Events::default();
    let mut ends: HashMap<&PushId, Vec<DeviceEnd>> = HashMap::new();
    for how in [DeliveryState::Withdrawn, DeliveryState::Expired] {
        let of: Vec<_> = ended
            .iter()
            .filter(|push| end_of_deliveries(push.state) == how)
            .collect();
        if of.is_empty() {
            continue;
        }
        let ids = to_json(&of.iter().map(|push| &push.id).collect::<Vec<_>>());
        let done = tx.fetch(&ALREADY_DONE, &[Arg::Text(&ids)]).await?;
        let args = [Arg::Text(&ids), Arg::Text(how.as_str()), Arg::Int(now)];
        let closed = tx.fetch(&CLOSE, &args).await?;
        let by_id: HashMap<_, _> = of.iter().map(|push| (&push.id, *push)).collect();
        for (rows, all_new) in [(done, false), (closed, true)] {
            for row in rows {
                let row = delivery_of(&row)?;
                let Some(push) = by_id.get(&row.push) else {
                    continue;
                };
                let end = DeviceEnd::from(row);
                if all_new || fresh.contains(&end.delivery.as_str()) {
                    events.device_done(&device_done(push, &end), now);
                }
                ends.entry(&push.id).or_default().push(end);
            }
        }
    }
    for push in ended {
        let mut deliveries = ends.remove(&push.id).unwrap_or_default();
        deliveries.sort_by(|a, b| a.device.cmp(&b.device));
        let data = PushEnded {
            push: push.id.clone(),
            store: push.store.clone(),
            kind: push.kind,
            state: push.state,
            reason: push.reason.clone(),
            device: push.answered_by.clone(),
            correlation_id: push.correlation_id.clone(),
            approval: push.approval.clone(),
            assurance: push.factors.map(Into::into),
            created_at: rfc3339(push.created_at),
            ended_at: rfc3339(push.ended_at.unwrap_or(now)),
            deliveries,
        };
        events.push_ended(&data, now);
    }
    Ok(events.into_messages(now))
}

/// What the audit log keeps of an end. A generic push decides nothing, and a batch of a million of them is not written one by one.
fn verdict<'a>(push: &'a PushRow, by: Option<&'a str>) -> Option<Note<'a>> {
    let act = match (push.kind, push.state) {
        (Kind::Generic, _)
        | (
            _,
            PushState::Accepted | PushState::Pending | PushState::Opened | PushState::Completed,
        ) => {
            return None;
        }
        (Kind::Confirm | Kind::Process, PushState::Approved) => Act::PushApproved,
        (Kind::Confirm | Kind::Process, PushState::Denied) => Act::PushDenied,
        (Kind::Confirm | Kind::Process, PushState::Expired) => Act::PushExpired,
        (Kind::Confirm | Kind::Process, PushState::Cancelled) => Act::PushCancelled,
        (Kind::Confirm | Kind::Process, PushState::Failed) => Act::PushFailed,
    };
    let facts = json!({"reason": push.reason, "kind": push.kind, "relying_party": push.rp, "content_hash": push.content_hash,
        "proof_hash": push.proof_hash, "factors": push.factors, "instance": push.instance, "correlation_id": push.correlation_id,
        "created_at": rfc3339(push.created_at), "expires_at": rfc3339(push.expires_at),
        "ended_at": push.ended_at.map(rfc3339), "refused_proofs": Some(push.refused_proofs).filter(|n| *n > 0)});
    let note = Note::new(&push.store, act).push(&push.id).user(&push.user);
    Some(note.device(push.answered_by.as_ref()).by(by).facts(facts))
}

pub(super) fn device_done(push: &PushRow, end: &DeviceEnd) -> DeviceDone {
    DeviceDone {
        push: push.id.clone(),
        store: push.store.clone(),
        kind: push.kind,
        end: end.clone(),
    }
}

pub(super) fn end_of_deliveries(push: PushState) -> DeliveryState {
    match push {
        PushState::Expired | PushState::Completed => DeliveryState::Expired,
        PushState::Approved
        | PushState::Denied
        | PushState::Cancelled
        | PushState::Failed
        // These three do not end a push and never come here.
        | PushState::Accepted
        | PushState::Pending
        | PushState::Opened => DeliveryState::Withdrawn,
    }
}

/// The pushes that a statement has ended. One that a newer release wrote in a form not known here ends without its event rather than keeping
/// all others from their end.
pub(super) fn rows_of(rows: &[Row]) -> Vec<PushRow> {
    rows.iter()
        .filter_map(|row| match push_of(row) {
            Ok(push) => Some(push),
            Err(error) => {
                let id = row.text("id").unwrap_or_default();
                tracing::error!(push = id, %error, "a push cannot be read; its end is not told");
                None
            }
        })
        .collect()
}

/// Ends pushes as failed, in the caller's transaction.
pub(super) async fn fail(
    tx: &mut Tx,
    pushes: &[PushId],
    reason: &str,
    now: Millis,
) -> Result<Vec<Message>, Error> {
    let args = [
        Arg::Text(&to_json(&pushes)),
        Arg::Text(reason),
        Arg::Int(now),
    ];
    let ended = rows_of(&tx.fetch(&FAIL, &args).await?);
    announce(tx, &ended, &[], now).await
}

/// Ends everything that a user is asked.
pub(super) async fn cancel_of_user(
    tx: &mut Tx,
    user: &UserId,
    by: Option<&str>,
    now: Millis,
) -> Result<Vec<Message>, Error> {
    let args = [Arg::Text(user.as_str()), Arg::Int(now)];
    let ended = rows_of(&tx.fetch(&CANCEL_OF_USER, &args).await?);
    announce_by(tx, &ended, &[], by, now).await
}

impl Store {
    /// The sender takes a push back. `None`: it had ended, or is not there.
    pub async fn cancel(
        &self,
        store: &StoreId,
        push: &PushId,
        reason: &str,
        now: Millis,
    ) -> Result<Option<PushRow>, Error> {
        let mut tx = self.db.begin().await?;
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(push.as_str()),
            Arg::Text(reason),
            Arg::Int(now),
        ];
        let ended = rows_of(&tx.fetch(&CANCEL, &args).await?);
        let messages = announce_by(&mut tx, &ended, &[], self.by.as_deref(), now).await?;
        self.commit(tx, messages, now).await?;
        Ok(ended.into_iter().next())
    }
}
