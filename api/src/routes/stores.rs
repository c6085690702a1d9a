//! Identity stores.

use super::{Query, page};
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
use shared::store::StoreRow;
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewStore {
    /// What people call it.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
}

/// An identity store: the tenant.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoreView {
    id: String,
    name: String,
    created_at: String,
}

impl From<StoreRow> for StoreView {
    fn from(row: StoreRow) -> Self {
        Self {
            id: row.id.to_string(),
            name: row.name,
            created_at: rfc3339(row.created_at),
        }
    }
}

/// Make an identity store. Needs a key of the whole deployment.
#[utoipa::path(post, path = "/v1/stores", tag = "stores", request_body = NewStore,
    responses((status = 201, body = StoreView), (status = 422, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: Valid<NewStore>,
) -> Result<(StatusCode, Json<StoreView>), Problem> {
    caller.may_everywhere("stores")?;
    let row = caller
        .store(&app)
        .add_store(&body.value.name, app.clock.now())
        .await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// List identity stores. Needs a key of the whole deployment.
#[utoipa::path(get, path = "/v1/stores", tag = "stores",
    params(("cursor" = Option<String>, Query), ("limit" = Option<i64>, Query)), responses((status = 200, body = Listed<StoreView>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    query: Query,
) -> Result<Json<Listed<StoreView>>, Problem> {
    caller.may_everywhere("stores")?;
    let (cursor, limit) = page(&query, &[])?;
    let rows = app.store.stores(&cursor, limit).await?;
    let full = rows.len() as i64 == limit;
    let next_cursor = rows.last().filter(|_| full).map(|row| row.id.to_string());
    let data = rows.into_iter().map(Into::into).collect();
    Ok(Json(Listed { data, next_cursor }))
}

/// Show an identity store.
#[utoipa::path(get, path = "/v1/stores/{store}", tag = "stores", params(("store" = String, Path)),
    responses((status = 200, body = StoreView), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
) -> Result<Json<StoreView>, Problem> {
    let id = caller.may(&app, &store, "directory").await?;
    let row = app.store.store(&id).await?;
    row.map(|row| Json(row.into()))
        .ok_or_else(|| Code::NotFound.into())
}
