//! The OpenAPI document, a page to read it, and a page for each problem.

use crate::problem::CODES;
use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use http::StatusCode;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_swagger_ui::SwaggerUi;

/// What the routes do not say themselves.
pub(crate) fn describe(document: &mut OpenApi) {
    "Countersign".clone_into(&mut document.info.title);
    env!("CARGO_PKG_VERSION").clone_into(&mut document.info.version);
    document.info.description = Some(
        "Out-of-band authentication by push. Errors are RFC 9457 problems with a stable `code`; times are RFC 3339 in UTC; durations are \
         texts such as `120s`."
            .to_owned(),
    );
    let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let components = document.components.get_or_insert_default();
    components
        .security_schemes
        .insert("api_key".to_owned(), SecurityScheme::Http(key).into());
}

async fn problem(Path(code): Path<String>) -> Response {
    let Some((status, code, title)) = CODES.iter().find(|(_, known, _)| *known == code) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    format!("{code}\n\n{title}.\nHTTP status {status}. See docs/errors.md.\n").into_response()
}

pub(crate) fn router(document: OpenApi) -> Router {
    let ui = SwaggerUi::new("/docs/api").url("/openapi.json", document);
    Router::new()
        .route("/docs", get(async || Redirect::to("/docs/api/")))
        .route("/problems/{code}", get(problem))
        .merge(ui)
}
