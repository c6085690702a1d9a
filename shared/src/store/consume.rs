//! Using an approval: once, in time, and for what was approved. What was approved is the stored content, never what the caller says it was.

use super::audit::{Note, note};
use super::db::{Arg, Error, Statement, Tx};
use super::{PushRow, Store};
use crate::audit::Act;
use crate::clock::Millis;
use crate::domain::{Field, Payment, PushState};
use crate::id::ApprovalId;
use serde_json::json;

/// How long an approval may be used: what is executed later was decided by somebody who may see it otherwise by then.
pub const USABLE: Millis = 300_000;

static CONSUME: Statement = Statement::new(
    "UPDATE pushes SET consumed_at = $2 WHERE id = $1 AND state || '' = 'approved' AND consumed_at IS NULL AND ended_at + 0 > $3
     RETURNING consumed_at",
);

/// What is about to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Action {
    /// The payment, where there is one.
    pub payment: Option<Payment>,
    /// The details.
    pub details: Vec<Field>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consumed {
    /// Go ahead. Nobody else was told so.
    Now(Millis),
    /// Somebody was told so at this time.
    Before(Millis),
    /// It was not approved.
    NotApproved,
    /// It was approved too long ago.
    TooLate,
    /// This is not what was approved.
    Differs,
    /// It is a part of this approval, which is the one to use.
    OfApproval(ApprovalId),
    /// A batch of payments is used one by one.
    OneByOne,
}

pub(super) fn is_what_was_approved(action: &Action, push: &PushRow) -> bool {
    push.content.payments.is_none()
        && action.payment == push.content.payment
        && action.details == push.content.details
}

impl Store {
    /// Uses the approval of `push` for `action`.
    pub async fn consume(
        &self,
        push: &PushRow,
        action: &Action,
        now: Millis,
    ) -> Result<Consumed, Error> {
        if let Some(approval) = &push.approval {
            return Ok(Consumed::OfApproval(approval.clone()));
        }
        if push.content.payments.is_some() {
            return Ok(Consumed::OneByOne);
        }
        if push.state != PushState::Approved {
            return Ok(Consumed::NotApproved);
        }
        if !is_what_was_approved(action, push) {
            return Ok(Consumed::Differs);
        }
        let args = [
            Arg::Text(push.id.as_str()),
            Arg::Int(now),
            Arg::Int(now - USABLE),
        ];
        let mut tx = self.db.begin().await?;
        if !tx.fetch(&CONSUME, &args).await?.is_empty() {
            self.noted(&mut tx, push, None, now).await?;
            tx.commit().await?;
            return Ok(Consumed::Now(now));
        }
        drop(tx);
        let stored = self.push(&push.id).await?;
        let before = stored.and_then(|push| push.consumed_at);
        Ok(before.map_or(Consumed::TooLate, Consumed::Before))
    }

    /// Notes that the approval of a push is used, of a batch that of the payment at `index`.
    pub(super) async fn noted(
        &self,
        tx: &mut Tx,
        push: &PushRow,
        index: Option<u64>,
        now: Millis,
    ) -> Result<(), Error> {
        let used = Note::new(&push.store, Act::PushConsumed).push(&push.id);
        let used = used.user(&push.user).by(self.by.as_deref());
        note(tx, &[used.facts(json!({"payment": index}))], now).await
    }
}
