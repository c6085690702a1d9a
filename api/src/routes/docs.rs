//! The OpenAPI document, a page to read it, and a page for each problem.

use crate::problem::{CODES, Problem};
use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use http::StatusCode;
use utoipa::ToSchema as _;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Content, License, OpenApi, Ref, RefOr, Response as Answer, ResponseBuilder};
use utoipa_swagger_ui::SwaggerUi;

/// What the routes do not say themselves.
pub(crate) fn describe(document: &mut OpenApi) {
    "Countersign".clone_into(&mut document.info.title);
    env!("CARGO_PKG_VERSION").clone_into(&mut document.info.version);
    // The generator puts its own author and license there.
    document.info.contact = None;
    let mut license = License::new(env!("CARGO_PKG_LICENSE"));
    license.identifier = Some(env!("CARGO_PKG_LICENSE").to_owned());
    document.info.license = Some(license);
    document.info.description = Some(
        "Out-of-band authentication by push. Errors are RFC 9457 problems with a stable `code`; times are RFC 3339 in UTC; durations are \
         texts such as `120s`."
            .to_owned(),
    );
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "An API key, `cs_…`, of one store or of the whole deployment.",
        ))
        .build();
    let mut signed = ApiKeyValue::new("Authorization");
    signed.description = Some(
        "`Device <JWS>`: the request signed by a registered device, see `docs/device-protocol.md`."
            .to_owned(),
    );
    let components = document.components.get_or_insert_default();
    let schemes = &mut components.security_schemes;
    schemes.insert(API_KEY.to_owned(), SecurityScheme::Http(key).into());
    let signed = SecurityScheme::ApiKey(ApiKey::Header(signed));
    schemes.insert(DEVICE.to_owned(), signed.into());
    for (path, item) in &mut document.paths.paths {
        let caller = Caller::of(path);
        for operation in operations(item) {
            complete(operation, path, caller);
        }
    }
}

const API_KEY: &str = "api_key";
const DEVICE: &str = "device_signature";
const PROBLEM: &str = "application/problem+json";

/// Who calls a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Key,
    Device,
    Anybody,
}

impl Caller {
    fn of(path: &str) -> Self {
        if path.starts_with("/v1/stores") {
            Self::Key
        } else if path.starts_with("/v1/device/") {
            Self::Device
        } else {
            Self::Anybody
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let all = [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.patch,
    ];
    all.into_iter().filter_map(Option::as_mut)
}

/// Adds what follows from who calls and from what is sent: the security, and the refusals that every such operation knows.
fn complete(operation: &mut Operation, path: &str, caller: Caller) {
    // The name of a handler is unique in its file only.
    let tag = operation.tags.iter().flatten().next();
    let name = tag.zip(operation.operation_id.as_ref());
    operation.operation_id = name.map(|(tag, name)| format!("{tag}_{name}"));
    let mut more: Vec<StatusCode> = Vec::new();
    let none: [&str; 0] = [];
    match caller {
        Caller::Key => {
            operation.security = Some(vec![SecurityRequirement::new(API_KEY, none)]);
            more.extend([StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN]);
            if path.contains("{store}") {
                more.push(StatusCode::NOT_FOUND);
            }
        }
        Caller::Device => {
            operation.security = Some(vec![SecurityRequirement::new(DEVICE, none)]);
            more.push(StatusCode::UNAUTHORIZED);
        }
        Caller::Anybody => operation.security = Some(Vec::new()),
    }
    let asks = operation.parameters.iter().flatten().any(|one| match one {
        RefOr::T(one) => one.parameter_in != utoipa::openapi::path::ParameterIn::Path,
        RefOr::Ref(_) => false,
    });
    if operation.request_body.is_some() {
        more.extend([
            StatusCode::BAD_REQUEST,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::UNPROCESSABLE_ENTITY,
        ]);
        if caller != Caller::Device {
            more.push(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
    } else if asks {
        more.push(StatusCode::BAD_REQUEST);
    }
    if path != "/livez" {
        more.push(StatusCode::SERVICE_UNAVAILABLE);
    }
    let answers = &mut operation.responses.responses;
    for status in more {
        answers
            .entry(status.as_str().to_owned())
            .or_insert_with(|| refusal().into());
    }
    for (status, answer) in answers {
        let RefOr::T(answer) = answer else { continue };
        let status = StatusCode::from_bytes(status.as_bytes()).ok();
        if status.is_some_and(|status| !status.is_success() && !status.is_redirection()) {
            answer.content = refusal().content;
        }
        if answer.description.is_empty() {
            let word = status.and_then(|status| status.canonical_reason());
            word.unwrap_or_default().clone_into(&mut answer.description);
        }
    }
}

fn refusal() -> Answer {
    let schema = Ref::from_schema_name(Problem::name());
    ResponseBuilder::new()
        .content(PROBLEM, Content::new(Some(schema)))
        .build()
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
