//! Using an approval: once for all its members, in time, and for what they approved.

use super::ApprovalRow;
use crate::audit::Act;
use crate::clock::{Millis, rfc3339};
use crate::domain::{ApprovalState, PushState};
use crate::store::audit::Note;
use crate::store::consume::is_what_was_approved;
use crate::store::db::{Arg, Error, Statement};
use crate::store::{Action, Consumed, Store, USABLE};
use serde_json::json;

static CONSUME: Statement = Statement::new(
    "UPDATE approvals SET consumed_at = $2 WHERE id = $1 AND state = 'approved' AND consumed_at IS NULL AND ended_at > $3
     RETURNING consumed_at",
);

impl Store {
    /// Uses `approval` for `action`.
    pub async fn consume_approval(
        &self,
        approval: &ApprovalRow,
        action: &Action,
        now: Millis,
    ) -> Result<Consumed, Error> {
        if approval.state != ApprovalState::Approved {
            return Ok(Consumed::NotApproved);
        }
        // All of them were shown the same.
        let members = self.members(&approval.id).await?;
        let approved = members
            .iter()
            .find(|push| push.state == PushState::Approved);
        if !approved.is_some_and(|push| is_what_was_approved(action, push)) {
            return Ok(Consumed::Differs);
        }
        let args = [
            Arg::Text(approval.id.as_str()),
            Arg::Int(now),
            Arg::Int(now - USABLE),
        ];
        let before = async {
            let stored = self.approval(&approval.id).await?;
            Ok(stored.and_then(|approval| approval.consumed_at))
        };
        let facts = json!({"approval": approval.id, "consumed_at": rfc3339(now), "correlation_id": approval.correlation_id});
        let used = Note::new(&approval.store, Act::ApprovalConsumed).facts(facts);
        self.use_once((&CONSUME, &args), used, before, now).await
    }
}
