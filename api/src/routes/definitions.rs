//! Process definitions: where a child process instance starts.

use crate::app::App;
use crate::auth::Caller;
use crate::body::Valid;
use crate::problem::{Code, Problem};
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::store::Definition;
use utoipa::ToSchema;

/// A process definition.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DefinitionView {
    #[schema(min_length = 1, max_length = 50, pattern = "^[A-Za-z0-9._-]+$")]
    name: String,
    #[schema(minimum = 1, maximum = 1_000_000)]
    version: i64,
    /// A word that stands for a version, such as `live`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 50, pattern = "^[A-Za-z0-9._-]+$")]
    tag: Option<String>,
    /// The page that opens on the phone. `instance`, `push`, with RabbitMQ `report`, and the parameters are added to its query.
    #[schema(min_length = 1, max_length = 500, pattern = "^https?://[!-\"$-~]+$")]
    start_url: String,
}

/// Add a version of a process definition.
#[utoipa::path(post, path = "/v1/stores/{store}/process-definitions", tag = "processes", params(("store" = String, Path)),
    request_body = DefinitionView, responses((status = 201, body = DefinitionView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    body: Valid<DefinitionView>,
) -> Result<(StatusCode, Json<DefinitionView>), Problem> {
    let store = caller.may(&app, &store, "policies").await?;
    let view = body.value;
    let definition = Definition {
        name: view.name.clone(),
        version: view.version,
        tag: view.tag.clone(),
        start_url: view.start_url.clone(),
    };
    if caller
        .store(&app)
        .add_definition(&store, &definition, app.clock.now())
        .await?
    {
        Ok((StatusCode::CREATED, Json(view)))
    } else {
        Err(Problem::new(Code::Exists).detail("this version exists; add the next one"))
    }
}

/// List process definitions.
#[utoipa::path(get, path = "/v1/stores/{store}/process-definitions", tag = "processes", params(("store" = String, Path)),
    responses((status = 200, body = Listed<DefinitionView>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
) -> Result<Json<Listed<DefinitionView>>, Problem> {
    let store = caller.may(&app, &store, "policies").await?;
    let rows = app.store.definitions(&store).await?;
    let data = rows
        .into_iter()
        .map(|row| DefinitionView {
            name: row.name,
            version: row.version,
            tag: row.tag,
            start_url: row.start_url,
        })
        .collect();
    Ok(Json(Listed {
        data,
        next_cursor: None,
    }))
}
