//! A device looks after the others of its user: it lets one in, sees them, and removes one.

use crate::app::App;
use crate::device_auth::DeviceCall;
use crate::problem::{Code, Problem};
use crate::routes::enrolment_codes::{CodeView, EXPIRES_IN, Maker, make};
use crate::routes::id;
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use shared::clock::rfc3339;
use shared::domain::DeviceState;
use shared::id::DeviceId;
use utoipa::ToSchema;

/// One of the user's devices for this relying party.
#[derive(Serialize, ToSchema)]
pub(crate) struct SiblingView {
    id: String,
    name: String,
    platform: String,
    /// `active` or `blocked`.
    state: String,
    /// Is it the one that asks?
    this: bool,
    created_at: String,
}

/// Make a one-time code that lets another device of the same user enrol itself. It dies when this device is blocked or revoked.
#[utoipa::path(post, path = "/v1/device/enrolment-codes", tag = "device",
    responses((status = 201, body = CodeView), (status = 401, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn invite(
    State(app): State<App>,
    call: DeviceCall,
) -> Result<(StatusCode, HeaderMap, Json<CodeView>), Problem> {
    let device = &call.device;
    let maker = Maker {
        store: &device.store,
        user: &device.user,
        rp: &device.rp,
        device: Some(&device.id),
    };
    make(&app, &app.store, &maker, EXPIRES_IN).await
}

/// The user's devices for this relying party that are not revoked.
#[utoipa::path(get, path = "/v1/device/devices", tag = "device",
    responses((status = 200, body = Listed<SiblingView>), (status = 401, body = Problem)))]
pub(crate) async fn siblings(
    State(app): State<App>,
    call: DeviceCall,
) -> Result<Json<Listed<SiblingView>>, Problem> {
    let own = &call.device;
    let mut devices = app.store.devices(&own.store, &own.user).await?;
    devices.retain(|one| one.rp == own.rp && one.state != DeviceState::Revoked);
    let data = devices
        .into_iter()
        .map(|one| SiblingView {
            this: one.id == own.id,
            id: one.id.to_string(),
            name: one.name,
            platform: one.platform,
            state: one.state.to_string(),
            created_at: rfc3339(one.created_at),
        })
        .collect();
    Ok(Json(Listed {
        data,
        next_cursor: None,
    }))
}

/// Revoke a device of the same user and relying party, this one or another: for good. The signed request is the proof.
#[utoipa::path(delete, path = "/v1/device/devices/{device}", tag = "device", params(("device" = String, Path)),
    responses((status = 204), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn revoke(
    State(app): State<App>,
    Path(device): Path<String>,
    call: DeviceCall,
) -> Result<StatusCode, Problem> {
    let device: DeviceId = id(&device)?;
    let own = &call.device;
    let mut devices = app.store.devices(&own.store, &own.user).await?;
    devices.retain(|one| one.rp == own.rp && one.id == device);
    let Some(found) = devices.first() else {
        return Err(Code::NotFound.into());
    };
    if found.state == DeviceState::Revoked {
        return Ok(StatusCode::NO_CONTENT);
    }
    let to = Some(DeviceState::Revoked);
    let now = app.clock.now();
    let port = app.store.by(&own.id);
    match port.change_device(found, to, None, now).await? {
        Some(_) => Ok(StatusCode::NO_CONTENT),
        // Changed by somebody else between the look and the write.
        None => Err(Problem::new(Code::WrongState)),
    }
}
