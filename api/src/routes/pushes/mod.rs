//! Pushes, as their senders see them.

pub(crate) mod cancel;
pub(in crate::routes) mod checks;
pub(crate) mod consume;
pub(crate) mod create;
pub(crate) mod events;
pub(crate) mod list;
pub(crate) mod payment;
pub(crate) mod payments;
mod process;
pub(crate) mod receipt;
pub(crate) mod show;

pub(crate) use checks::seconds;

use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Code, Problem};
use crate::routes::id;
use shared::id::PushId;
use shared::store::PushRow;

/// A push of the caller's store.
pub(crate) async fn find(
    app: &App,
    caller: &Caller,
    store: &str,
    push: &str,
    scope: &str,
) -> Result<PushRow, Problem> {
    let store = caller.may(app, store, scope).await?;
    let push: PushId = id(push)?;
    let found = app.store.push(&push).await?;
    found
        .filter(|found| found.store == store)
        .ok_or_else(|| Code::NotFound.into())
}
