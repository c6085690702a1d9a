//! List pushes.

use crate::app::App;
use crate::auth::Caller;
use crate::problem::Problem;
use crate::routes::{Query, bad_parameter, page};
use crate::view::{Listed, PushView};
use axum::Json;
use axum::extract::{Path, State};
use shared::store::Page;

/// List pushes, newest first.
#[utoipa::path(get, path = "/v1/stores/{store}/pushes", tag = "pushes",
    params(("store" = String, Path), ("state" = Option<String>, Query), ("user" = Option<String>, Query),
        ("cursor" = Option<String>, Query), ("limit" = Option<i64>, Query)), responses((status = 200, body = Listed<PushView>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    query: Query,
) -> Result<Json<Listed<PushView>>, Problem> {
    let store = caller.may(&app, &store, "pushes:read").await?;
    let (cursor, limit) = page(&query, &["state", "user"])?;
    let word = |name: &str| query.0.get(name);
    let page = Page {
        before: Some(&cursor)
            .filter(|cursor| !cursor.is_empty())
            .map(|cursor| cursor.parse())
            .transpose()
            .map_err(|_| bad_parameter("cursor is what next_cursor said"))?,
        state: word("state")
            .map(|state| state.parse())
            .transpose()
            .map_err(|()| bad_parameter("state is a push state"))?,
        user: word("user")
            .map(|user| user.parse())
            .transpose()
            .map_err(|_| bad_parameter("user is an identifier"))?,
        limit,
    };
    let rows = app.store.pushes(&store, &page).await?;
    let full = rows.len() as i64 == limit;
    let next_cursor = rows.last().filter(|_| full).map(|row| row.id.to_string());
    let data = rows.iter().map(|row| PushView::new(row, None)).collect();
    Ok(Json(Listed { data, next_cursor }))
}
