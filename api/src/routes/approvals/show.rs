//! Show approvals, wait for the end of one, take one back.

use super::find;
use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Code, Problem};
use crate::routes::pushes::show::waited;
use crate::routes::{Query, bad_parameter, page};
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use shared::clock::rfc3339;
use shared::domain::ApprovalState;
use shared::id::ApprovalId;
use shared::store::{ApprovalRow, Cancelled, PushRow};
use utoipa::ToSchema;

/// An approval by several people.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ApprovalView {
    /// Its identifier.
    id: String,
    /// The store.
    store: String,
    /// Who asks.
    relying_party: String,
    /// `pending`, then one of `approved`, `denied`, `expired`, `cancelled`, `failed`, for good.
    state: String,
    /// Why it ended: a stable word; empty before.
    reason: String,
    /// How many must approve.
    required: i64,
    /// How many are asked.
    of: i64,
    /// What one denial means: `continue` or `end`.
    on_denial: String,
    /// The user who wants it.
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_by: Option<String>,
    /// The sender's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    /// RFC 3339, UTC; once it was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    consumed_at: Option<String>,
    /// RFC 3339, UTC.
    created_at: String,
    /// Until when an answer counts.
    expires_at: String,
    /// RFC 3339, UTC; once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    /// One for each approver, in the order of the request; left out in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    members: Option<Vec<MemberView>>,
}

/// One of those asked. The push shows more, and has a receipt of its own once it has ended.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MemberView {
    /// Who.
    user: String,
    /// The push that asks them.
    push: String,
    /// The push's state.
    state: String,
    /// Why it ended; empty before.
    reason: String,
    /// The device whose answer decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// RFC 3339, UTC; once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
}

impl From<&PushRow> for MemberView {
    fn from(push: &PushRow) -> Self {
        Self {
            user: push.user.to_string(),
            push: push.id.to_string(),
            state: push.state.to_string(),
            reason: push.reason.clone(),
            device: push.answered_by.as_ref().map(ToString::to_string),
            ended_at: push.ended_at.map(rfc3339),
        }
    }
}

impl ApprovalView {
    fn new(row: &ApprovalRow, members: Option<&[PushRow]>) -> Self {
        Self {
            id: row.id.to_string(),
            store: row.store.to_string(),
            relying_party: row.rp.clone(),
            state: row.state.to_string(),
            reason: row.reason.clone(),
            required: row.required,
            of: row.of,
            on_denial: row.on_denial.to_string(),
            requested_by: row.requested_by.as_ref().map(ToString::to_string),
            correlation_id: row.correlation_id.clone(),
            consumed_at: row.consumed_at.map(rfc3339),
            created_at: rfc3339(row.created_at),
            expires_at: rfc3339(row.expires_at),
            ended_at: row.ended_at.map(rfc3339),
            members: members.map(|all| all.iter().map(Into::into).collect()),
        }
    }
}

async fn view(app: &App, row: &ApprovalRow) -> Result<Json<ApprovalView>, Problem> {
    let members = app.store.members(&row.id).await?;
    Ok(Json(ApprovalView::new(row, Some(&members))))
}

/// Show an approval. With `Prefer: wait=N` (at most 30) the answer comes when it ends: 200, or 202 when it is still open by then.
#[utoipa::path(get, path = "/v1/stores/{store}/approvals/{approval}", tag = "approvals", operation_id = "show_approval",
    params(("store" = String, Path), ("approval" = String, Path), ("Prefer" = Option<String>, Header, example = "wait=25")),
    responses((status = 200, body = ApprovalView), (status = 202, body = ApprovalView, description = "Still open"), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((store, approval)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<(StatusCode, HeaderMap, Json<ApprovalView>), Problem> {
    let found = find(&app, &caller, &store, &approval, "pushes:read").await?;
    let id = found.id.clone();
    let ended = |patience| {
        app.waits
            .approval_ended(&app.store, &id, patience, &app.stop)
    };
    let is_open = |found: &ApprovalRow| found.ended_at.is_none();
    let (status, applied, found) = waited(&headers, found, ended, is_open).await?;
    Ok((status, applied, view(&app, &found).await?))
}

/// List approvals, newest first.
#[utoipa::path(get, path = "/v1/stores/{store}/approvals", tag = "approvals", operation_id = "list_approvals",
    params(("store" = String, Path), ("state" = Option<String>, Query), ("cursor" = Option<String>, Query), ("limit" = Option<i64>, Query)),
    responses((status = 200, body = Listed<ApprovalView>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    query: Query,
) -> Result<Json<Listed<ApprovalView>>, Problem> {
    let store = caller.may(&app, &store, "pushes:read").await?;
    let (cursor, limit) = page(&query, &["state"])?;
    let before: Option<ApprovalId> = Some(&cursor)
        .filter(|cursor| !cursor.is_empty())
        .map(|cursor| cursor.parse())
        .transpose()
        .map_err(|_| bad_parameter("cursor is what next_cursor said"))?;
    let state: Option<ApprovalState> = query
        .0
        .get("state")
        .map(|state| state.parse())
        .transpose()
        .map_err(|()| bad_parameter("state is a state of an approval"))?;
    let rows = app
        .store
        .approvals(&store, before.as_ref(), state, limit)
        .await?;
    let full = rows.len() as i64 == limit;
    let next_cursor = rows.last().filter(|_| full).map(|row| row.id.to_string());
    let data = rows.iter().map(|row| ApprovalView::new(row, None));
    Ok(Json(Listed {
        data: data.collect(),
        next_cursor,
    }))
}

/// Take an approval back: what its members have not answered is withdrawn. Cancelling twice is no error; one that has ended otherwise, or that its members
/// have just decided, stays as it is.
#[utoipa::path(post, path = "/v1/stores/{store}/approvals/{approval}/cancel", tag = "approvals", operation_id = "cancel_approval",
    params(("store" = String, Path), ("approval" = String, Path)),
    responses((status = 200, body = ApprovalView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path((store, approval)): Path<(String, String)>,
) -> Result<Json<ApprovalView>, Problem> {
    let found = find(&app, &caller, &store, &approval, "pushes:write").await?;
    let now = app.clock.now();
    let cancelled = caller.store(&app).cancel_approval(&found.id, now).await?;
    match cancelled.ok_or_else(|| Problem::new(Code::NotFound))? {
        Cancelled::Now(row) => view(&app, &row).await,
        Cancelled::Ended(row) if row.state == ApprovalState::Cancelled => view(&app, &row).await,
        Cancelled::Ended(row) => Err(Problem::new(Code::ApprovalEnded)
            .with("state", row.state.as_str())
            .with("reason", row.reason)),
    }
}
