//! A device fetches what waits for it.

use crate::app::App;
use crate::device_auth::DeviceCall;
use crate::problem::{Code, Problem};
use crate::routes::id;
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::Value;
use shared::clock::rfc3339;
use shared::crypto::PromptClaims;
use shared::domain::{Content, Kind};
use shared::id::{DeviceId, PushId};
use shared::store::PushRow;
use utoipa::ToSchema;

/// A push as one of its devices sees it.
#[derive(Serialize, ToSchema)]
pub(crate) struct PromptView {
    push: String,
    store: String,
    state: String,
    /// Exactly what the person is shown.
    #[schema(value_type = Object)]
    shown: Value,
    /// base64url of the SHA-256 over the RFC 8785 form of `shown`.
    content_hash: String,
    nonce: String,
    /// Must the six digits be typed?
    match_required: bool,
    expires_at: String,
    /// All of this, signed by the server for this device: a JWS.
    signature: String,
}

/// What is shown: the stored content and, for a process push that has not been opened, its link.
pub(crate) fn shown(app: &App, push: &PushRow) -> Content {
    let mut content = push.content.clone();
    if push.kind == Kind::Process {
        content.redirect_url = Some(app.process_link(&push.id, &push.nonce));
    }
    content
}

fn view(app: &App, device: &DeviceId, push: &PushRow) -> PromptView {
    let claims = PromptClaims {
        ver: PromptClaims::VERSION,
        iss: push.store.clone(),
        aud: device.clone(),
        sub: push.id.clone(),
        iat: app.clock.now() / 1000,
        state: push.state,
        nonce: push.nonce.clone(),
        kind: push.kind,
        content_hash: push.content_hash.clone(),
        match_required: push.match_required,
        expires_at: rfc3339(push.expires_at),
    };
    PromptView {
        signature: claims.sign(app.secret.signer()),
        push: push.id.to_string(),
        store: push.store.to_string(),
        state: push.state.to_string(),
        // Texts and words only: this cannot fail to serialise.
        shown: serde_json::to_value(shown(app, push)).unwrap_or_default(),
        content_hash: claims.content_hash,
        nonce: claims.nonce,
        match_required: claims.match_required,
        expires_at: claims.expires_at,
    }
}

/// What waits for this device, newest first, whether or not its wake-up came.
#[utoipa::path(get, path = "/v1/device/pushes", tag = "device", responses((status = 200, body = Listed<PromptView>), (status = 401, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    call: DeviceCall,
) -> Result<Json<Listed<PromptView>>, Problem> {
    let now = app.clock.now();
    let prompts = app.store.prompts(&call.device, now).await?;
    let fresh = prompts.iter().filter(|prompt| !prompt.seen);
    let fresh: Vec<_> = fresh.map(|prompt| &prompt.push.id).collect();
    app.store.fetched(&call.device.id, &fresh, now).await?;
    let device = &call.device.id;
    let signed = prompts.iter().map(|one| view(&app, device, &one.push));
    let data = signed.collect();
    Ok(Json(Listed {
        data,
        next_cursor: None,
    }))
}

/// One prompt. Fetching it marks the delivery `fetched`.
#[utoipa::path(get, path = "/v1/device/pushes/{push}", tag = "device", params(("push" = String, Path)),
    responses((status = 200, body = PromptView), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Path(push): Path<String>,
    call: DeviceCall,
) -> Result<Json<PromptView>, Problem> {
    let push: PushId = id(&push)?;
    let Some(prompt) = app.store.prompt(&call.device, &push).await? else {
        return Err(Code::NotFound.into());
    };
    let now = app.clock.now();
    if prompt.push.ended_at.is_none() && prompt.push.expires_at > now {
        app.store.fetched(&call.device.id, &[&push], now).await?;
    }
    Ok(Json(view(&app, &call.device.id, &prompt.push)))
}
