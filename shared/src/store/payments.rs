//! The payments of a batch: written with their push, read by its sender, never changed but for the time at which each was used.

use super::consume::{Consumed, USABLE, used};
use super::db::{Arg, Error, Row, Statement, Tx};
use super::{NewPush, PushRow, Store, json, to_json};
use crate::clock::Millis;
use crate::domain::{PaymentItem, PushState};
use crate::id::PushId;
use serde_json::json;
use std::collections::HashSet;

static ADD: Statement = Statement::new(
    "INSERT INTO payment_items (push_id, item_index, item)
     SELECT r.value->>'push', CAST(r.value->>'index' AS BIGINT), r.value->>'item' FROM {each:$1}",
);
static ITEMS: Statement = Statement::new(
    "SELECT item_index, item, consumed_at FROM payment_items WHERE push_id = $1 AND item_index > $2 ORDER BY item_index LIMIT $3",
);
static CONSUME: Statement = Statement::new(
    "UPDATE payment_items SET consumed_at = $3 WHERE push_id = $1 AND item_index = $2 AND consumed_at IS NULL
       AND EXISTS (SELECT 1 FROM pushes p WHERE p.id = $1 AND p.state || '' = 'approved' AND p.ended_at + 0 > $4) RETURNING item_index",
);

/// A payment as it lies in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentRow {
    /// Its place: 0 is the first.
    pub index: u64,
    /// What is to be paid, and to whom.
    pub item: PaymentItem,
    /// When its approval was used.
    pub consumed_at: Option<Millis>,
}

fn row_of(row: &Row) -> Result<PaymentRow, Error> {
    Ok(PaymentRow {
        index: row.int("item_index")?.unsigned_abs(),
        item: json(row, "item")?,
        consumed_at: row.maybe_int("consumed_at")?,
    })
}

/// Writes the payments of those pushes that the caller's transaction has `added`.
pub(super) fn add(tx: &mut Tx, new: &[NewPush], added: &HashSet<String>) -> Result<(), Error> {
    let rows: Vec<_> = new
        .iter()
        .filter(|push| added.contains(push.id.as_str()))
        .flat_map(|push| {
            let rows = push.payments.iter().enumerate();
            rows.map(|(n, item)| json!({"push": push.id, "index": n, "item": to_json(item)}))
        })
        .collect();
    if !rows.is_empty() {
        tx.send(&ADD, &[Arg::Text(&to_json(&rows))])?;
    }
    Ok(())
}

impl Store {
    /// The payments of a push behind place `after`, in order; from the first where that is -1.
    pub async fn payments(
        &self,
        push: &PushId,
        after: i64,
        limit: i64,
    ) -> Result<Vec<PaymentRow>, Error> {
        let args = [Arg::Text(push.as_str()), Arg::Int(after), Arg::Int(limit)];
        let rows = self.db.fetch(&ITEMS, &args).await?;
        rows.iter().map(row_of).collect()
    }

    /// One of them.
    pub async fn payment(&self, push: &PushId, index: u64) -> Result<Option<PaymentRow>, Error> {
        let Ok(index) = i64::try_from(index) else {
            return Ok(None);
        };
        let mut rows = self.payments(push, index - 1, 1).await?;
        rows.retain(|row| row.index == index.unsigned_abs());
        Ok(rows.pop())
    }

    /// Uses the approval of one payment of `push` for `action`. `None`: there is no such payment.
    pub async fn consume_payment(
        &self,
        push: &PushRow,
        index: u64,
        action: &PaymentItem,
        now: Millis,
    ) -> Result<Option<Consumed>, Error> {
        let Some(asked) = self.payment(&push.id, index).await? else {
            return Ok(None);
        };
        if let Some(approval) = &push.approval {
            return Ok(Some(Consumed::OfApproval(approval.clone())));
        }
        if push.state != PushState::Approved {
            return Ok(Some(Consumed::NotApproved));
        }
        if asked.item != *action {
            return Ok(Some(Consumed::Differs));
        }
        let args = [
            Arg::Text(push.id.as_str()),
            Arg::Int(index.cast_signed()),
            Arg::Int(now),
            Arg::Int(now - USABLE),
        ];
        let before = async {
            let stored = self.payment(&push.id, index).await?;
            Ok(stored.and_then(|row| row.consumed_at))
        };
        let used = used(push, json!({"payment": index}));
        let consumed = self.use_once((&CONSUME, &args), used, before, now);
        consumed.await.map(Some)
    }
}
