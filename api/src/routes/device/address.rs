//! A device has a new push address.

use crate::app::App;
use crate::body::read;
use crate::device_auth::DeviceCall;
use crate::problem::{Code, Problem};
use crate::routes::user_devices::PushAddress;
use axum::extract::State;
use http::StatusCode;

/// Give this device a new push address, without registering it again.
#[utoipa::path(put, path = "/v1/device/push-address", tag = "device", request_body = PushAddress,
    responses((status = 204), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn put(State(app): State<App>, call: DeviceCall) -> Result<StatusCode, Problem> {
    let sent = read::<PushAddress>(&call.body)?;
    let address = sent
        .check("")
        .map_err(|fault| Problem::faults(vec![fault]))?;
    let now = app.clock.now();
    if app
        .store
        .set_address(&call.device.id, &address, now)
        .await?
    {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Code::DeviceUnauthenticated.into())
    }
}
