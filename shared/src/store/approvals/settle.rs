//! Counting what the members of an approval came to.
//!
//! Members end in transactions of their own, which hold their pushes and never the approval: were each to count the others, two at the same
//! moment would wait for each other, or neither would see the other's answer. So the transaction of an end only promises to count (a row of
//! `settlements`, [`promise`]), and whoever has committed it counts in a new one, which holds the approval first: of two, the second sees what
//! both have done. Where that process has died in between, the sweep finds the row.

use super::{ApprovalRow, approval_of};
use crate::audit::Act;
use crate::clock::{Millis, rfc3339};
use crate::domain::approval::{Terms, outcome};
use crate::domain::{ApprovalState, PushState, Standing};
use crate::event::{ApprovalEnded, Events, MemberEnd};
use crate::id::{ApprovalId, PushId, UserId};
use crate::message::Message;
use crate::store::audit::{Note, note};
use crate::store::db::{Arg, Error, Row, Statement, Tx};
use crate::store::ending::{announce_by, rows_of};
use crate::store::{PushRow, SWEEP_BATCH, Store, parsed, to_json};
use serde_json::json;
use std::collections::BTreeSet;

/// How long counting is left to whoever has ended a member.
const OWN: Millis = 1_000;
/// How long it is left to a sweep that has taken it.
const SWEEPING: Millis = 10_000;
/// How long after its time an approval may be open before it is counted whether or not there is a promise: a process of the release before this
/// one ends pushes without making any.
const OVERDUE: Millis = 10_000;

static PROMISE: Statement = Statement::new(
    "INSERT INTO settlements (push_id, approval_id, due_at) SELECT r.value->>'push', r.value->>'approval', $2 FROM {each:$1} WHERE true
     ON CONFLICT DO NOTHING",
);
static KEPT: Statement = Statement::new("DELETE FROM settlements WHERE push_id {in:$1}");
static DUE: Statement = Statement::new(
    "UPDATE settlements SET due_at = $2 WHERE push_id IN
       (SELECT push_id FROM settlements WHERE due_at <= $1 ORDER BY due_at LIMIT $3 {skip_locked})
     RETURNING approval_id",
);
static LATE: Statement = Statement::new(
    "SELECT id FROM approvals WHERE ended_at IS NULL AND expires_at <= $1 ORDER BY expires_at LIMIT $2",
);
static HOLD: Statement = Statement::new("SELECT * FROM approvals WHERE id = $1 {lock}");
static STANDINGS: Statement = Statement::new(
    "SELECT id, user_id, state, reason FROM pushes WHERE approval_id = $1 ORDER BY id",
);
static END: Statement = Statement::new(
    "UPDATE approvals SET state = $2, reason = $3, ended_at = $4 WHERE id = $1 AND ended_at IS NULL RETURNING *",
);
static OPEN: Statement = Statement::new(
    "SELECT id FROM pushes WHERE approval_id = $1 AND COALESCE(ended_at, 0) = 0 ORDER BY id {lock}",
);
static WITHDRAW: Statement = Statement::new(
    "UPDATE pushes SET state = 'cancelled', reason = $2, ended_at = $3, escalate_at = NULL, fan_out_due = NULL
     WHERE approval_id = $1 AND COALESCE(ended_at, 0) = 0 RETURNING *",
);

/// Promises to count the approvals of which `ended` are members.
pub(in crate::store) async fn promise(
    tx: &mut Tx,
    ended: &[PushRow],
    now: Millis,
) -> Result<(), Error> {
    let mut rows = Vec::new();
    for push in ended {
        if let Some(approval) = &push.approval {
            rows.push(json!({"push": push.id, "approval": approval}));
            tx.to_settle.insert(approval.clone());
        }
    }
    if !rows.is_empty() {
        let args = [Arg::Text(&to_json(&rows)), Arg::Int(now + OWN)];
        tx.fetch(&PROMISE, &args).await?;
    }
    Ok(())
}

/// What became of a cancellation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// It is cancelled now.
    Now(ApprovalRow),
    /// It had ended, or its members had decided it.
    Ended(ApprovalRow),
}

/// How its members stand.
struct Count {
    members: Vec<(PushId, UserId, PushState, String)>,
}

impl Count {
    async fn of(tx: &mut Tx, approval: &ApprovalId) -> Result<Self, Error> {
        let args = [Arg::Text(approval.as_str())];
        let rows = tx.fetch(&STANDINGS, &args).await?;
        let members = rows
            .iter()
            .map(|row| {
                let (push, user) = (parsed(row, "id")?, parsed(row, "user_id")?);
                Ok((push, user, parsed(row, "state")?, row.text("reason")?))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { members })
    }

    fn outcome(&self, approval: &ApprovalRow) -> Option<(ApprovalState, &'static str)> {
        let standings: Vec<_> = self
            .members
            .iter()
            .map(|(_, _, state, reason)| Standing::of(*state, reason))
            .collect();
        let terms = Terms {
            // More than there are members cannot be reached.
            required: usize::try_from(approval.required).unwrap_or(usize::MAX),
            on_denial: approval.on_denial,
        };
        outcome(terms, &standings)
    }

    fn ended(&self) -> Vec<&PushId> {
        let ended = self.members.iter();
        ended
            .filter(|(_, _, state, _)| state.is_terminal())
            .map(|(push, ..)| push)
            .collect()
    }
}

/// Ends the approval and withdraws what its other members are asked. Gives the messages that say so, and how its members stand then; nothing where it had
/// ended before.
async fn end(
    tx: &mut Tx,
    approval: &mut ApprovalRow,
    (state, reason): (ApprovalState, &str),
    by: Option<&str>,
    now: Millis,
) -> Result<Option<(Vec<Message>, Count)>, Error> {
    let id = approval.id.clone();
    let args = [
        Arg::Text(id.as_str()),
        Arg::Text(state.as_str()),
        Arg::Text(reason),
        Arg::Int(now),
    ];
    let rows = tx.fetch(&END, &args).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    *approval = approval_of(row)?;
    tx.fetch(&OPEN, &args[..1]).await?;
    let withdrawn = if state == ApprovalState::Cancelled && reason == "by_sender" {
        "approval_cancelled"
    } else {
        "decided"
    };
    let args = [args[0], Arg::Text(withdrawn), Arg::Int(now)];
    let ended = rows_of(&tx.fetch(&WITHDRAW, &args).await?);
    let mut messages = announce_by(tx, &ended, &[], by, now).await?;
    let count = Count::of(tx, &id).await?;
    let members = count.members.iter().cloned();
    let members = members.map(|(push, user, state, reason)| MemberEnd {
        push,
        user,
        state,
        reason,
    });
    let told = ApprovalEnded {
        approval: id,
        store: approval.store.clone(),
        state,
        reason: reason.to_owned(),
        required: approval.required,
        correlation_id: approval.correlation_id.clone(),
        created_at: rfc3339(approval.created_at),
        ended_at: rfc3339(now),
        members: members.collect(),
    };
    let approved_by: Vec<_> = told
        .members
        .iter()
        .filter(|member| member.state == PushState::Approved)
        .map(|member| &member.user)
        .collect();
    let facts = json!({"approval": told.approval, "state": state, "reason": reason, "required": told.required, "of": approval.of,
        "approved_by": approved_by, "correlation_id": told.correlation_id, "created_at": told.created_at, "ended_at": told.ended_at});
    let ended = Note::new(&approval.store, Act::ApprovalEnded).by(by);
    note(tx, &[ended.facts(facts)], now).await?;
    let mut events = Events::default();
    events.approval_ended(&told, now);
    messages.extend(events.into_messages(now));
    Ok(Some((messages, count)))
}

impl Store {
    /// Counts, after a commit, what it was about. An error costs a second: the sweep does it then.
    pub(in crate::store) async fn settle_now(&self, approvals: BTreeSet<ApprovalId>, now: Millis) {
        if approvals.is_empty() {
            return;
        }
        crate::crash::point("Q1");
        // On the heap: every transaction that may end a push awaits this.
        Box::pin(self.settle_all(approvals, now)).await;
    }

    /// Counts those that a column of `rows` names. Says how many.
    async fn settle_rows(
        &self,
        rows: &[Row],
        column: &'static str,
        now: Millis,
    ) -> Result<usize, Error> {
        let of = rows.iter().map(|row| parsed(row, column));
        let approvals: BTreeSet<ApprovalId> = of.collect::<Result<_, _>>()?;
        let count = approvals.len();
        self.settle_all(approvals, now).await;
        Ok(count)
    }

    /// Counts each; one that cannot be counted keeps no other one from it.
    async fn settle_all(&self, approvals: BTreeSet<ApprovalId>, now: Millis) {
        for approval in approvals {
            if let Err(error) = self.settle(&approval, false, now).await {
                tracing::warn!(
                    %approval,
                    error = &error as &dyn std::error::Error,
                    "an approval could not be counted; a sweep will do it"
                );
            }
        }
    }

    /// Counts an approval, and ends it where that decides it; `cancel`: also where it does not. Gives it as it is then.
    async fn settle(
        &self,
        approval: &ApprovalId,
        cancel: bool,
        now: Millis,
    ) -> Result<Option<(ApprovalRow, bool)>, Error> {
        let mut tx = self.db.begin().await?;
        let rows = tx.fetch(&HOLD, &[Arg::Text(approval.as_str())]).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let mut row = approval_of(row)?;
        // Only now, with the approval held.
        let mut count = Count::of(&mut tx, approval).await?;
        let (mut messages, mut cancelled) = (Vec::new(), false);
        let open = row.ended_at.is_none();
        if open {
            let verdict = count.outcome(&row);
            cancelled = cancel && verdict.is_none();
            let verdict = if cancelled {
                Some((ApprovalState::Cancelled, "by_sender"))
            } else {
                verdict
            };
            if let Some(verdict) = verdict {
                let by = self.by.as_deref().filter(|_| cancelled);
                if let Some(ended) = end(&mut tx, &mut row, verdict, by, now).await? {
                    (messages, count) = ended;
                }
            }
        }
        // What was counted, and what this has withdrawn itself. Whoever ends meanwhile has a promise of its own.
        tx.fetch(&KEPT, &[Arg::Text(&to_json(&count.ended()))])
            .await?;
        tx.to_settle.clear();
        crate::crash::point("Q2");
        self.commit_promises(tx, messages, || (), now).await?;
        if open && row.ended_at.is_some() {
            metrics::counter!("countersign_approvals_ended_total", "state" => row.state.as_str())
                .increment(1);
        }
        Ok(Some((row, cancelled)))
    }

    /// The sender takes an approval back. `None`: it is not there.
    pub async fn cancel_approval(
        &self,
        approval: &ApprovalId,
        now: Millis,
    ) -> Result<Option<Cancelled>, Error> {
        let settled = self.settle(approval, true, now).await?;
        Ok(settled.map(|(row, cancelled)| {
            if cancelled {
                Cancelled::Now(row)
            } else {
                Cancelled::Ended(row)
            }
        }))
    }

    /// Counts approvals that nobody has counted since a member of theirs ended. Says how many.
    pub async fn settle_due(&self, now: Millis) -> Result<usize, Error> {
        let args = [
            Arg::Int(now),
            Arg::Int(now + SWEEPING),
            Arg::Int(SWEEP_BATCH),
        ];
        let rows = self.db.write(&DUE, &args).await?;
        self.settle_rows(&rows, "approval_id", now).await
    }

    /// Counts approvals that are open although their time is over. Says how many.
    pub async fn settle_overdue(&self, now: Millis) -> Result<usize, Error> {
        let args = [Arg::Int(now - OVERDUE), Arg::Int(SWEEP_BATCH)];
        let rows = self.db.fetch(&LATE, &args).await?;
        self.settle_rows(&rows, "id", now).await
    }
}
