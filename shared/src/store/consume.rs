//! Using an approval: once, in time, and for what was approved. What was approved is the stored content, never what the caller says it was.

use super::audit::{Note, note};
use super::db::{Arg, Error, Statement};
use super::{PushRow, Store};
use crate::audit::Act;
use crate::clock::Millis;
use crate::domain::{Field, Payment, PushState};
use crate::id::ApprovalId;
use serde_json::{Value, json};

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
        let before = async {
            let stored = self.push(&push.id).await?;
            Ok(stored.and_then(|push| push.consumed_at))
        };
        let used = used(push, json!({}));
        self.use_once((&CONSUME, &args), used, before, now).await
    }

    /// Uses an approval by a statement that gives a row to the first one only, and notes it. Anybody else learns when it was used `before`.
    pub(super) async fn use_once(
        &self,
        (consume, args): (&'static Statement, &[Arg<'_>]),
        used: Note<'_>,
        before: impl Future<Output = Result<Option<Millis>, Error>> + Send,
        now: Millis,
    ) -> Result<Consumed, Error> {
        let mut tx = self.db.begin().await?;
        if tx.fetch(consume, args).await?.is_empty() {
            drop(tx);
            return Ok(before.await?.map_or(Consumed::TooLate, Consumed::Before));
        }
        note(&mut tx, &[used.by(self.by.as_deref())], now).await?;
        tx.commit().await?;
        Ok(Consumed::Now(now))
    }
}

/// What the audit log keeps of a use.
pub(super) fn used(push: &PushRow, facts: Value) -> Note<'_> {
    let used = Note::new(&push.store, Act::PushConsumed).push(&push.id);
    used.user(&push.user).facts(facts)
}
