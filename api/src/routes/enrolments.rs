//! A device enrols itself, with nothing but a code and its key.

use super::server_key::ServerKeyView;
use super::user_devices::{
    Jwk, Platform, PushAddress, algorithm_fault, key_and_address, platform_faults, refused,
};
use crate::app::App;
use crate::body::Valid;
use crate::problem::{Code, Problem};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::crypto::Binding;
use shared::store::{EnrolRefused, NewDevice};
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Enrolment {
    /// The one-time code.
    #[schema(min_length = 1, max_length = 100)]
    code: String,
    /// What its owner calls it.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// `ios`, `android` or `web`; the relying party's appkey policy says which may enrol.
    platform: Platform,
    /// The public half of a key that the device has made, as a JWK (RFC 7517): P-256 or Ed25519.
    public_key: Jwk,
    /// Where its wake-ups go. Without one the device is reached by its own fetching only.
    #[serde(default)]
    push_address: Option<PushAddress>,
    /// A JWS that shows that the device holds the key, for this code, store and server.
    #[schema(min_length = 1, max_length = 4096)]
    proof: String,
}

/// Who the device is from now on.
#[derive(Serialize, ToSchema)]
pub(crate) struct EnrolledView {
    device: String,
    store: String,
    relying_party: String,
    state: String,
    /// The server's key, to be pinned. Its `kid` must be the one that the link named.
    server_key: ServerKeyView,
}

fn refuse(why: &str) -> Problem {
    tracing::warn!(why, "an enrolment was refused");
    metrics::counter!("countersign_enrolments_refused_total", "why" => why.to_owned()).increment(1);
    Code::EnrolmentRefused.into()
}

/// Enrol this device with a one-time code. The same device may repeat, with the same key, and gets the same answer.
#[utoipa::path(post, path = "/v1/enrolments", tag = "enrolment", request_body = Enrolment,
    responses((status = 201, body = EnrolledView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn enrol(
    State(app): State<App>,
    body: Valid<Enrolment>,
) -> Result<(StatusCode, Json<EnrolledView>), Problem> {
    let sent = body.value;
    let mut faults = Vec::new();
    let parts = key_and_address(sent.public_key, sent.push_address, &mut faults);
    let Some((key, address)) = parts else {
        return Err(Problem::faults(faults));
    };
    let hash = app.secret.enrolment_code_hash(&sent.code);
    let Some(code) = app.store.enrolment_code_of(&hash).await? else {
        return Err(refuse("unknown"));
    };
    let now = app.clock.now();
    let server_key = app.secret.signer().public();
    let binding = Binding {
        store: &code.store,
        code: &sent.code,
        server_key: &server_key.kid,
    };
    if let Err(fault) = binding.check(&sent.proof, &key, now) {
        return Err(refuse(&fault.to_string()));
    }
    let policy = app.store.appkey_policy(&code.store, &code.rp).await?;
    // Only who holds an open code learns what the policy takes.
    let state = code.state(now).as_str();
    let mut faults = platform_faults(&policy, sent.platform);
    faults.extend(algorithm_fault(&policy, &key));
    if !faults.is_empty() {
        return Err(if state == "open" {
            Problem::faults(faults)
        } else {
            refuse(state)
        });
    }
    let new = NewDevice {
        rp: code.rp.clone(),
        name: sent.name,
        platform: sent.platform.as_str().to_owned(),
        key,
        address,
    };
    let enrolled = app
        .store
        .enrol(&code, &new, policy.max_devices, now)
        .await?;
    let device = match enrolled {
        Ok(device) => device,
        Err(EnrolRefused::Spent) => return Err(refuse(state)),
        Err(EnrolRefused::Device(why)) => return Err(refused(why, policy.max_devices)),
    };
    tracing::info!(device = %device.id, code = %code.id, "a device was enrolled");
    Ok((
        StatusCode::CREATED,
        Json(EnrolledView {
            device: device.id.to_string(),
            store: device.store.to_string(),
            relying_party: device.rp,
            state: device.state.to_string(),
            server_key: server_key.into(),
        }),
    ))
}
