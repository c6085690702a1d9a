//! Use an approval by several people.

use super::find;
use crate::app::App;
use crate::auth::Caller;
use crate::body::Valid;
use crate::problem::Problem;
use crate::routes::pushes::consume::{ConsumeRequest, told};
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

/// Go ahead.
#[derive(Serialize, ToSchema)]
pub(crate) struct ConsumedApproval {
    approval: String,
    consumed_at: String,
}

/// Use an approval: once for all its members, within 300 s of its end, and for the very payment and details that they approved. Call it right before the act.
/// A second call gets 409, also when the answer to the first was lost: whether it was you must be in your own books.
#[utoipa::path(post, path = "/v1/stores/{store}/approvals/{approval}/consume", tag = "approvals", operation_id = "consume_approval",
    params(("store" = String, Path), ("approval" = String, Path)), request_body = ConsumeRequest,
    responses((status = 200, body = ConsumedApproval), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn consume(
    State(app): State<App>,
    caller: Caller,
    Path((store, approval)): Path<(String, String)>,
    body: Valid<ConsumeRequest>,
) -> Result<Json<ConsumedApproval>, Problem> {
    let found = find(&app, &caller, &store, &approval, "pushes:write").await?;
    let now = app.clock.now();
    let consumed = caller
        .store(&app)
        .consume_approval(&found, &body.value.action(), now)
        .await?;
    Ok(Json(ConsumedApproval {
        consumed_at: told(consumed, found.state.as_str(), &found.reason)?,
        approval: found.id.to_string(),
    }))
}
