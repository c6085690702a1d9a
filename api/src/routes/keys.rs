//! API keys of a store.

use super::id;
use crate::app::App;
use crate::auth::{Caller, SCOPES};
use crate::body::Valid;
use crate::problem::{Code, Fault, Problem};
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::clock::rfc3339;
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    /// What people call it.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// What it may do: `keys`, `directory`, `policies`, `pushes:write`, `pushes:read`, `processes`, `audit:read`, or `*`.
    #[schema(min_items = 1, max_items = 10)]
    scopes: Vec<String>,
}

/// A fresh API key.
#[derive(Serialize, ToSchema)]
pub(crate) struct FreshKey {
    id: String,
    /// The key itself: shown once, kept nowhere.
    key: String,
}

/// An API key.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyView {
    id: String,
    name: String,
    scopes: Vec<String>,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<String>,
}

/// Make an API key for a store.
#[utoipa::path(post, path = "/v1/stores/{store}/keys", tag = "keys", params(("store" = String, Path)), request_body = NewKey,
    responses((status = 201, body = FreshKey), (status = 422, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    body: Valid<NewKey>,
) -> Result<(StatusCode, Json<FreshKey>), Problem> {
    let store = caller.may(&app, &store, "keys").await?;
    let new = body.value;
    let faults: Vec<_> = new
        .scopes
        .iter()
        .enumerate()
        .filter(|(_, scope)| *scope != "*" && !SCOPES.contains(&scope.as_str()))
        .map(|(n, _)| {
            let pointer = format!("/scopes/{n}");
            Fault::new(
                &pointer,
                "unknown_word",
                format!("one of {}", SCOPES.join(", ")),
            )
        })
        .collect();
    if !faults.is_empty() {
        return Err(Problem::faults(faults));
    }
    if let Some(scope) = new.scopes.iter().find(|scope| !caller.has(scope)) {
        let detail = format!("a key cannot give away {scope}, which it lacks itself");
        return Err(Problem::new(Code::Forbidden).detail(detail));
    }
    let key = app.secret.api_key();
    let id = caller
        .store(&app)
        .add_key(
            Some(&store),
            &key.hash,
            &new.scopes,
            &new.name,
            app.clock.now(),
        )
        .await?;
    let fresh = FreshKey {
        id: id.to_string(),
        key: key.text.expose().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(fresh)))
}

/// List a store's API keys.
#[utoipa::path(get, path = "/v1/stores/{store}/keys", tag = "keys", params(("store" = String, Path)),
    responses((status = 200, body = Listed<KeyView>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
) -> Result<Json<Listed<KeyView>>, Problem> {
    let store = caller.may(&app, &store, "keys").await?;
    let data = app.store.keys(&store).await?;
    let data = data
        .into_iter()
        .map(|row| KeyView {
            id: row.owner.id.to_string(),
            name: row.name,
            scopes: row.owner.scopes,
            created_at: rfc3339(row.created_at),
            revoked_at: row.revoked_at.map(rfc3339),
        })
        .collect();
    Ok(Json(Listed {
        data,
        next_cursor: None,
    }))
}

/// Revoke an API key: it opens nothing from at most 2 s later on.
#[utoipa::path(delete, path = "/v1/stores/{store}/keys/{key}", tag = "keys", params(("store" = String, Path), ("key" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path((store, key)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let store = caller.may(&app, &store, "keys").await?;
    if caller
        .store(&app)
        .revoke_key(&store, &id(&key)?, app.clock.now())
        .await?
    {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Code::NotFound.into())
    }
}
