//! Requests signed by a device (`docs/device-protocol.md`). Every fault gets the same answer.

use crate::app::App;
use crate::body::bytes_of;
use crate::problem::{Code, Problem};
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::header;
use shared::clock::Millis;
use shared::crypto::Signed;
use shared::domain::DeviceState;
use shared::id::DeviceId;
use shared::store::{Device, REQUEST_MEMORY};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// How many requests of one device are remembered. Beyond it this device is refused, and no other, until its oldest are too old to be
/// replayed.
const OF_ONE_DEVICE: usize = 600;
/// How many requests come between two looks for devices that have gone quiet.
const SWEEP_EVERY: u64 = 10_000;

/// The identifiers of signed requests that this process has seen, as long as they could come again.
///
/// What changes something is used up in the database as well (`Store::use_request`), so once in the whole deployment and across restarts. A GET
/// is remembered here only: whoever could repeat one at another process within the minute has read its TLS traffic, and so the answer, already; what
/// it gives out is signed for one device and worth nothing without its key; and polls are the most frequent calls there are: a write for
/// each would double their cost and queue them, on SQLite, before its one writer.
#[derive(Default)]
pub(crate) struct Replays(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    devices: HashMap<DeviceId, HashMap<String, Millis>>,
    count: u64,
}

impl Replays {
    /// `false`: it was here before, or there is no room to remember it.
    fn first(&self, device: &DeviceId, jti: &str, now: Millis) -> bool {
        let until = now + REQUEST_MEMORY;
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.count += 1;
        if seen.count.is_multiple_of(SWEEP_EVERY) {
            seen.devices
                .retain(|_, own| own.values().any(|until| *until > now));
        }
        let own = seen.devices.entry(device.clone()).or_default();
        if own.len() >= OF_ONE_DEVICE {
            own.retain(|_, until| *until > now);
        }
        own.len() < OF_ONE_DEVICE
            && own
                .insert(jti.to_owned(), until)
                .is_none_or(|old| old <= now)
    }
}

/// A request that an active device has signed.
pub(crate) struct DeviceCall {
    /// Who.
    pub(crate) device: Device,
    /// The body that was signed.
    pub(crate) body: Bytes,
}

/// Nobody fills the audit log by asking: one refusal of a device is noted in this time.
const NOTED_EVERY: Millis = 60_000;
/// How many devices that is remembered of.
const NOTED: usize = 10_000;

/// When the last refusal of each device was noted.
#[derive(Default)]
pub(crate) struct Noted(Mutex<HashMap<DeviceId, Millis>>);

impl Noted {
    fn due(&self, device: &DeviceId, now: Millis) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= NOTED {
            known.retain(|_, at| *at + NOTED_EVERY > now);
        }
        let quiet = known.get(device).is_none_or(|at| *at + NOTED_EVERY <= now);
        if quiet && known.len() < NOTED {
            known.insert(device.clone(), now);
            return true;
        }
        false
    }
}

async fn note(app: &App, device: &Device, fault: &str, now: Millis) -> Result<(), Problem> {
    if app.noted.due(&device.id, now) {
        app.store.refused_device(device, fault, now).await?;
    }
    Ok(())
}

/// A device that is not trusted: where the request bears the signature of its key, the operator learns of it.
async fn untrusted(
    app: &App,
    signed: &Signed<'_>,
    (method, path, body): (&str, &str, &[u8]),
    now: Millis,
) -> Result<(), Problem> {
    let Some(device) = app.store.device(&signed.device).await? else {
        return Ok(());
    };
    if signed.check(&device.key, method, path, body, now).is_err() {
        return Ok(());
    }
    // An active device that is not trusted: its user is locked or disabled.
    let fault = match device.state {
        DeviceState::Active => "user_inactive",
        DeviceState::PendingBinding | DeviceState::Blocked | DeviceState::Revoked => {
            device.state.as_str()
        }
    };
    note(app, &device, fault, now).await
}

impl FromRequest<App> for DeviceCall {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let refused = || Problem::new(Code::DeviceUnauthenticated);
        let authorization = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
            .ok_or_else(refused)?;
        let method = request.method().as_str().to_owned();
        let path = request.uri().path().to_owned();
        let body = bytes_of(request).await?;
        let signed = Signed::read(&authorization).map_err(|_| refused())?;
        let now = app.clock.now();
        let Some(device) = app.store.trusted_device(&signed.device).await? else {
            let call = (method.as_str(), path.as_str(), body.as_ref());
            untrusted(app, &signed, call, now).await?;
            return Err(refused());
        };
        let checked = signed.check(&device.key, &method, &path, &body, now);
        let jti = checked.map_err(|fault| {
            tracing::warn!(device = %device.id, %fault, "a device's request was refused");
            refused()
        })?;
        let reads = matches!(method.as_str(), "GET" | "HEAD");
        let first = app.replays.first(&device.id, &jti, now)
            && (reads || app.store.use_request(&device.id, &jti, now).await?);
        if !first {
            tracing::warn!(device = %device.id, "a device's request came twice");
            note(app, &device, "replay", now).await?;
            return Err(refused());
        }
        Ok(Self { device, body })
    }
}
