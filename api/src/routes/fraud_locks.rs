//! What fraud reports have locked.

use super::{Query, bad_parameter, id, page};
use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Code, Problem};
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Serialize;
use shared::clock::rfc3339;
use shared::id::LockId;
use shared::store::FraudLock;
use utoipa::ToSchema;

/// A lock in force.
#[derive(Serialize, ToSchema)]
pub(crate) struct FraudLockView {
    id: String,
    /// `initiator`: prompts of this API key that name the same `initiator` are refused. `user`: those of this API key to this user and relying party end
    /// as `failed(fraud_lock)`.
    of: String,
    /// The API key whose pushes it keeps back, and nobody else's.
    key: String,
    /// Who reported it.
    user: String,
    relying_party: String,
    /// The push that was reported.
    push: String,
    locked_at: String,
    until: String,
}

impl From<FraudLock> for FraudLockView {
    fn from(lock: FraudLock) -> Self {
        Self {
            id: lock.id.to_string(),
            of: if lock.initiator { "initiator" } else { "user" }.to_owned(),
            key: lock.key.to_string(),
            user: lock.user.to_string(),
            relying_party: lock.rp,
            push: lock.push.to_string(),
            locked_at: rfc3339(lock.locked_at),
            until: rfc3339(lock.until),
        }
    }
}

/// List the locks in force, oldest first: all, those that a user has reported, or that of an initiator, which is named as pushes name it.
#[utoipa::path(get, path = "/v1/stores/{store}/fraud-locks", tag = "users",
    params(("store" = String, Path), ("user" = Option<String>, Query), ("initiator" = Option<String>, Query), ("cursor" = Option<String>, Query),
        ("limit" = Option<i64>, Query)), responses((status = 200, body = Listed<FraudLockView>)))]
pub(crate) async fn list_locks(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    query: Query,
) -> Result<Json<Listed<FraudLockView>>, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let (cursor, limit) = page(&query, &["user", "initiator"])?;
    let user = query.0.get("user").map(|text| text.parse());
    let user = user
        .transpose()
        .map_err(|_| bad_parameter("user is an identifier"))?;
    let initiator = query.0.get("initiator");
    let initiator = initiator.map(|text| app.secret.initiator_hash(&store, text));
    let now = app.clock.now();
    let locks = app.store.fraud_locks(
        &store,
        user.as_ref(),
        initiator.as_deref(),
        (&cursor, limit),
        now,
    );
    let locks = locks.await?;
    let full = locks.len() as i64 == limit;
    let next_cursor = locks.last().filter(|_| full).map(|one| one.id.to_string());
    let data = locks.into_iter().map(Into::into).collect();
    Ok(Json(Listed { data, next_cursor }))
}

/// Lift a lock before its time.
#[utoipa::path(delete, path = "/v1/stores/{store}/fraud-locks/{lock}", tag = "users",
    params(("store" = String, Path), ("lock" = String, Path)), responses((status = 204), (status = 404, body = Problem)))]
pub(crate) async fn lift_lock(
    State(app): State<App>,
    caller: Caller,
    Path((store, lock)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let lock: LockId = id(&lock)?;
    let lifted = caller.store(&app);
    let lifted = lifted.lift_fraud_lock(&store, &lock, app.clock.now());
    if lifted.await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Code::NotFound.into())
    }
}
