//! What became of each line, in pages.

use super::{Arg, Error, Refusal, Statement, Store, maybe_parsed, parsed, to_json};
use crate::clock::Millis;
use crate::domain::PushState;
use crate::id::{BatchId, PushId, UserId};
use crate::store::DeliveryRow;
use crate::store::pushes::{DELIVERIES, delivery_of};
use std::collections::HashMap;

static RESULTS: Statement = Statement::new(
    "SELECT p.id, p.line, p.idem_key, p.user_id, u.external_id, p.state, p.reason, p.ended_at FROM pushes p JOIN users u ON u.id = p.user_id
     WHERE p.batch_id = $1 AND p.line > $2 ORDER BY p.line LIMIT $3",
);
static REFUSALS: Statement = Statement::new(
    "SELECT line, row_key, duplicate_of, faults FROM batch_refusals WHERE batch_id = $1 AND line > $2 ORDER BY line LIMIT $3",
);

/// A line and the push that it became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineResult {
    /// The line's number.
    pub line: i64,
    /// The sender's key.
    pub key: Option<String>,
    /// The push.
    pub push: PushId,
    /// Who was asked.
    pub user: UserId,
    /// The sender's name of the user.
    pub external_id: String,
    /// Where the push stands.
    pub state: PushState,
    /// Why.
    pub reason: String,
    /// When it ended.
    pub ended_at: Option<Millis>,
    /// Each device that was asked.
    pub deliveries: Vec<DeliveryRow>,
}

impl Store {
    /// The pushes of a batch behind line `after`, in the order of their lines.
    pub async fn batch_results(
        &self,
        batch: &BatchId,
        after: i64,
        limit: i64,
    ) -> Result<Vec<LineResult>, Error> {
        let args = [Arg::Text(batch.as_str()), Arg::Int(after), Arg::Int(limit)];
        let rows = self.db.fetch(&RESULTS, &args).await?;
        let ids: Vec<String> = rows
            .iter()
            .map(|row| row.text("id"))
            .collect::<Result<_, _>>()?;
        let mut of_push: HashMap<PushId, Vec<DeliveryRow>> = HashMap::new();
        if !ids.is_empty() {
            let ids = to_json(&ids);
            for row in self.db.fetch(&DELIVERIES, &[Arg::Text(&ids)]).await? {
                let delivery = delivery_of(&row)?;
                let of = of_push.entry(delivery.push.clone()).or_default();
                of.push(delivery);
            }
        }
        rows.iter()
            .map(|row| {
                let (push, line): (PushId, _) = (parsed(row, "id")?, row.int("line")?);
                let key = row.maybe_text("idem_key")?;
                Ok(LineResult {
                    line,
                    // The one that we have made ourselves is nobody's business.
                    key: key.filter(|key| *key != format!("{batch}:{line}")),
                    user: parsed(row, "user_id")?,
                    external_id: row.text("external_id")?,
                    state: parsed(row, "state")?,
                    reason: row.text("reason")?,
                    ended_at: row.maybe_int("ended_at")?,
                    deliveries: of_push.remove(&push).unwrap_or_default(),
                    push,
                })
            })
            .collect()
    }

    /// The lines of a batch behind line `after` that became no push.
    pub async fn batch_refusals(
        &self,
        batch: &BatchId,
        after: i64,
        limit: i64,
    ) -> Result<Vec<Refusal>, Error> {
        let args = [Arg::Text(batch.as_str()), Arg::Int(after), Arg::Int(limit)];
        let rows = self.db.fetch(&REFUSALS, &args).await?;
        rows.iter()
            .map(|row| {
                Ok(Refusal {
                    line: row.int("line")?,
                    key: row.maybe_text("row_key")?,
                    duplicate_of: maybe_parsed(row, "duplicate_of")?,
                    faults: row.text("faults")?,
                })
            })
            .collect()
    }
}
