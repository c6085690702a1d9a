//! Take a push back.

use super::find;
use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Code, Problem};
use crate::view::PushView;
use axum::Json;
use axum::extract::{Path, State};
use shared::domain::PushState;

/// Take a push back. Cancelling twice is no error; a push that has ended otherwise stays as it is.
#[utoipa::path(post, path = "/v1/stores/{store}/pushes/{push}/cancel", tag = "pushes",
    params(("store" = String, Path), ("push" = String, Path)),
    responses((status = 200, body = PushView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path((store, push)): Path<(String, String)>,
) -> Result<Json<PushView>, Problem> {
    let found = find(&app, &caller, &store, &push, "pushes:write").await?;
    let now = app.clock.now();
    let cancelled = caller
        .store(&app)
        .cancel(&found.store, &found.id, "by_sender", now)
        .await?;
    let push = match cancelled {
        Some(push) => push,
        None => app
            .store
            .push(&found.id)
            .await?
            .ok_or_else(|| Problem::new(Code::NotFound))?,
    };
    match push.state {
        PushState::Cancelled => {
            let deliveries = app.store.deliveries(&push.id).await?;
            Ok(Json(PushView::new(&push, Some(deliveries))))
        }
        PushState::Accepted | PushState::Pending | PushState::Opened => {
            Err(Code::PushExpired.into())
        }
        PushState::Approved
        | PushState::Denied
        | PushState::Expired
        | PushState::Failed
        | PushState::Completed => Err(Problem::new(Code::PushEnded)
            .with("state", push.state.as_str())
            .with("reason", push.reason)),
    }
}
