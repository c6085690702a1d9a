//! Use an approval.

use super::find;
use super::payment::PaymentView;
use crate::app::App;
use crate::auth::Caller;
use crate::body::Valid;
use crate::problem::{Code, Problem};
use crate::view::DetailView;
use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use shared::clock::rfc3339;
use shared::store::{Action, Consumed};
use utoipa::ToSchema;

/// What is about to be done: the payment, the details, or both, as they were asked.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsumeRequest {
    /// The payment that is about to be executed.
    #[serde(default)]
    payment: Option<PaymentView>,
    /// The details, all of them and in their order.
    #[serde(default)]
    #[schema(max_items = 20)]
    details: Vec<DetailView>,
}

impl ConsumeRequest {
    pub(in crate::routes) fn action(self) -> Action {
        Action {
            payment: self.payment.map(Into::into),
            details: self.details.into_iter().map(Into::into).collect(),
        }
    }
}

/// Go ahead.
#[derive(Serialize, ToSchema)]
pub(crate) struct ConsumedView {
    push: String,
    consumed_at: String,
}

/// Use an approval: once, within 300 s, and for the very payment and details that the person approved. Call it right before the act. A second call gets 409,
/// also when the answer to the first was lost: whether it was you must be in your own books. The payments of a batch are used one by one, see `payments/{index}/consume`.
#[utoipa::path(post, path = "/v1/stores/{store}/pushes/{push}/consume", tag = "pushes",
    params(("store" = String, Path), ("push" = String, Path)), request_body = ConsumeRequest,
    responses((status = 200, body = ConsumedView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn consume(
    State(app): State<App>,
    caller: Caller,
    Path((store, push)): Path<(String, String)>,
    body: Valid<ConsumeRequest>,
) -> Result<Json<ConsumedView>, Problem> {
    let found = find(&app, &caller, &store, &push, "pushes:write").await?;
    let action = body.value.action();
    let consumed = caller
        .store(&app)
        .consume(&found, &action, app.clock.now())
        .await?;
    Ok(Json(ConsumedView {
        consumed_at: told(consumed, found.state.as_str(), &found.reason)?,
        push: found.id.to_string(),
    }))
}

/// When it was used, or why it was not; `state` and `reason` are those of what was to be used.
pub(in crate::routes) fn told(
    consumed: Consumed,
    state: &str,
    reason: &str,
) -> Result<String, Problem> {
    match consumed {
        Consumed::Now(at) => Ok(rfc3339(at)),
        Consumed::Before(at) => Err(Problem::new(Code::Consumed).with("consumed_at", rfc3339(at))),
        Consumed::NotApproved => Err(Problem::new(Code::NotApproved)
            .with("state", state)
            .with("reason", reason)),
        Consumed::TooLate => Err(Code::ApprovalExpired.into()),
        Consumed::Differs => Err(Code::ActionDiffers.into()),
        Consumed::OfApproval(approval) => {
            let detail = "use the approval, which is good for one act";
            Err(Problem::new(Code::MemberOfApproval)
                .detail(detail)
                .with("approval", approval.as_str()))
        }
        Consumed::OneByOne => {
            let detail = "use each payment by payments/{index}/consume beneath the push";
            Err(Problem::new(Code::ConsumeOneByOne).detail(detail))
        }
    }
}
