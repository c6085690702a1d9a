//! The server's own key.

use crate::app::App;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use shared::crypto::ServerKey;
use utoipa::ToSchema;

/// The public half of the key that signs prompts: a JWK (RFC 8037). A device keeps it when it is registered, and takes no other later.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ServerKeyView {
    /// `OKP`.
    kty: String,
    /// `Ed25519`.
    crv: String,
    /// base64url, 32 bytes.
    x: String,
    /// The key's thumbprint (RFC 7638): the `kid` of everything that it signs.
    kid: String,
}

impl From<&ServerKey> for ServerKeyView {
    fn from(key: &ServerKey) -> Self {
        Self {
            kty: key.kty.clone(),
            crv: key.crv.clone(),
            x: key.x.clone(),
            kid: key.kid.clone(),
        }
    }
}

/// The key that signs prompts. A device that is registered gets it with the answer; this is for whoever compares.
#[utoipa::path(get, path = "/v1/server-key", tag = "device", responses((status = 200, body = ServerKeyView)))]
pub(crate) async fn server_key(State(app): State<App>) -> Json<ServerKeyView> {
    Json(app.secret.signer().public().into())
}
