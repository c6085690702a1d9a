//! Approvals by several people, as their senders see them.

pub(crate) mod consume;
pub(crate) mod create;
mod request;
pub(crate) mod show;

use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Code, Problem};
use crate::routes::id;
use shared::id::ApprovalId;
use shared::store::ApprovalRow;

/// An approval of the caller's store.
pub(crate) async fn find(
    app: &App,
    caller: &Caller,
    store: &str,
    approval: &str,
    scope: &str,
) -> Result<ApprovalRow, Problem> {
    let store = caller.may(app, store, scope).await?;
    let approval: ApprovalId = id(approval)?;
    let found = app.store.approval(&approval).await?;
    found
        .filter(|found| found.store == store)
        .ok_or_else(|| Code::NotFound.into())
}
