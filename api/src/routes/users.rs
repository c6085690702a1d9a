//! Users of a store.

use super::{Query, id, page};
use crate::app::App;
use crate::auth::Caller;
use crate::body::Valid;
use crate::problem::{Code, Problem};
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::clock::rfc3339;
use shared::domain::UserStatus;
use shared::id::UserId;
use shared::store::User;
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewUser {
    /// Your own identifier for this person, unique in the store.
    #[schema(min_length = 1, max_length = 200)]
    external_id: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UserChange {
    /// `active`, `locked` or `disabled`.
    #[serde(default)]
    status: Option<StatusWord>,
    /// The device asked first: one of the user's active devices; an empty text unsets it.
    #[serde(default)]
    #[schema(max_length = 40)]
    preferred_device: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StatusWord {
    Active,
    Locked,
    Disabled,
}

impl From<StatusWord> for UserStatus {
    fn from(word: StatusWord) -> Self {
        match word {
            StatusWord::Active => Self::Active,
            StatusWord::Locked => Self::Locked,
            StatusWord::Disabled => Self::Disabled,
        }
    }
}

/// A user.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UserView {
    id: String,
    external_id: String,
    /// `active`, `locked` or `disabled`: only an active user is asked.
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    preferred_device: Option<String>,
    created_at: String,
}

impl From<User> for UserView {
    fn from(user: User) -> Self {
        Self {
            id: user.id.to_string(),
            external_id: user.external_id,
            status: user.status.to_string(),
            preferred_device: user.preferred_device.map(Into::into),
            created_at: rfc3339(user.created_at),
        }
    }
}

/// Add a user.
#[utoipa::path(post, path = "/v1/stores/{store}/users", tag = "users", params(("store" = String, Path)), request_body = NewUser,
    responses((status = 201, body = UserView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    body: Valid<NewUser>,
) -> Result<(StatusCode, Json<UserView>), Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let now = app.clock.now();
    let external_id = body.value.external_id;
    let added = caller
        .store(&app)
        .add_user(&store, &external_id, now)
        .await?;
    let Some(id) = added else {
        return Err(Problem::new(Code::Exists).detail("another user has this external_id"));
    };
    let view = UserView {
        id: id.to_string(),
        external_id,
        status: UserStatus::Active.to_string(),
        preferred_device: None,
        created_at: rfc3339(now),
    };
    Ok((StatusCode::CREATED, Json(view)))
}

/// List users, or find one by your own identifier.
#[utoipa::path(get, path = "/v1/stores/{store}/users", tag = "users",
    params(("store" = String, Path), ("external_id" = Option<String>, Query), ("cursor" = Option<String>, Query),
        ("limit" = Option<i64>, Query)), responses((status = 200, body = Listed<UserView>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    query: Query,
) -> Result<Json<Listed<UserView>>, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let (cursor, limit) = page(&query, &["external_id"])?;
    if let Some(external_id) = query.0.get("external_id") {
        let found = app.store.user_by_external(&store, external_id).await?;
        let data = found.into_iter().map(Into::into).collect();
        return Ok(Json(Listed {
            data,
            next_cursor: None,
        }));
    }
    let rows = app.store.users(&store, &cursor, limit).await?;
    let full = rows.len() as i64 == limit;
    let next_cursor = rows.last().filter(|_| full).map(|row| row.id.to_string());
    let data = rows.into_iter().map(Into::into).collect();
    Ok(Json(Listed { data, next_cursor }))
}

/// Show a user.
#[utoipa::path(get, path = "/v1/stores/{store}/users/{user}", tag = "users", params(("store" = String, Path), ("user" = String, Path)),
    responses((status = 200, body = UserView), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((store, user)): Path<(String, String)>,
) -> Result<Json<UserView>, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let found = app.store.user(&store, &id(&user)?).await?;
    found
        .map(|user| Json(user.into()))
        .ok_or_else(|| Code::NotFound.into())
}

/// Change a user's status or preferred device.
#[utoipa::path(patch, path = "/v1/stores/{store}/users/{user}", tag = "users", params(("store" = String, Path), ("user" = String, Path)),
    request_body = UserChange, responses((status = 200, body = UserView), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn change(
    State(app): State<App>,
    caller: Caller,
    Path((store, user)): Path<(String, String)>,
    body: Valid<UserChange>,
) -> Result<Json<UserView>, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let user: UserId = id(&user)?;
    let change = body.value;
    let preferred = change.preferred_device.as_deref();
    let changed = caller
        .store(&app)
        .change_user(
            &store,
            &user,
            change.status.map(Into::into),
            preferred,
            app.clock.now(),
        )
        .await?;
    if let Some(user) = changed {
        return Ok(Json(user.into()));
    }
    match app.store.user(&store, &user).await? {
        None => Err(Code::NotFound.into()),
        Some(_) => Err(Problem::fault(
            "/preferred_device",
            "unknown_device",
            "an active device of this user is needed",
        )),
    }
}
