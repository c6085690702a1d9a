//! A user's devices: a key, and apart from it a push address.

use super::id;
use super::server_key::ServerKeyView;
use crate::app::App;
use crate::auth::Caller;
use crate::body::Valid;
use crate::problem::{Code, Fault, Problem};
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::clock::rfc3339;
use shared::crypto::DeviceKey;
use shared::domain::{DeviceState, Provider};
use shared::id::{DeviceId, StoreId, UserId};
use shared::secret::Secret;
use shared::store::{Address, AppkeyPolicy, Device, DeviceRefused, NewDevice};
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registration {
    /// What its owner calls it.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// Which app: pushes of this relying party reach it.
    #[schema(min_length = 1, max_length = 100, pattern = "^[A-Za-z0-9._-]+$")]
    relying_party: String,
    /// `ios`, `android` or `web`; the relying party's appkey policy says which may register.
    platform: Platform,
    /// The public half of a key that the device has made, as a JWK (RFC 7517): P-256 for ES256, Ed25519 for EdDSA. The relying party's
    /// appkey policy says which may register.
    public_key: Jwk,
    /// Where its wake-ups go. Without one the device is reached by its own fetching only.
    #[serde(default)]
    push_address: Option<PushAddress>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Platform {
    Ios,
    Android,
    Web,
}

impl Platform {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ios => "ios",
            Self::Android => "android",
            Self::Web => "web",
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Jwk {
    /// `EC` or `OKP`.
    #[schema(max_length = 10)]
    kty: String,
    /// `P-256` or `Ed25519`.
    #[schema(max_length = 10)]
    crv: String,
    /// base64url, 32 bytes.
    #[schema(max_length = 64)]
    x: String,
    /// base64url, 32 bytes; with `EC`, and only then.
    #[serde(default)]
    #[schema(max_length = 64)]
    y: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushAddress {
    /// `apns` or `fcm`.
    provider: ProviderWord,
    /// The provider's token for this installation of the app.
    #[schema(min_length = 1, max_length = 1024, pattern = "^[A-Za-z0-9:._-]+$")]
    token: String,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProviderWord {
    Apns,
    Fcm,
}

impl PushAddress {
    /// The address, or what is wrong with it. An APNs token is hexadecimal.
    pub(crate) fn check(self, pointer: &str) -> Result<Address, Fault> {
        let provider = match self.provider {
            ProviderWord::Apns => Provider::Apns,
            ProviderWord::Fcm => Provider::Fcm,
        };
        if provider == Provider::Apns && !self.token.bytes().all(|b| b.is_ascii_hexdigit()) {
            let pointer = format!("{pointer}/token");
            return Err(Fault::new(
                &pointer,
                "wrong_form",
                "an APNs token is hexadecimal",
            ));
        }
        Ok(Address {
            provider,
            token: Secret::new(self.token),
        })
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceChange {
    /// `active`, `blocked` (may come back) or `revoked` (for good).
    #[serde(default)]
    state: Option<StateWord>,
    /// What its owner calls it.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StateWord {
    Active,
    Blocked,
    Revoked,
}

/// A device. Its key's fingerprint and its address' token are not shown.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeviceView {
    id: String,
    user: String,
    relying_party: String,
    name: String,
    platform: String,
    /// `ES256` or `EdDSA`: the only one that its signatures may have.
    algorithm: String,
    /// `active`, `blocked` or `revoked`.
    state: String,
    /// `none`, `valid` or `invalid`: apart from the key.
    push_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    created_at: String,
}

impl From<Device> for DeviceView {
    fn from(device: Device) -> Self {
        Self {
            id: device.id.to_string(),
            user: device.user.to_string(),
            relying_party: device.rp,
            name: device.name,
            platform: device.platform,
            algorithm: device
                .key
                .algorithm()
                .map_or_else(String::new, |one| one.as_str().to_owned()),
            state: device.state.to_string(),
            push_address: device.address_state.to_string(),
            provider: device.address_provider.map(|p| p.to_string()),
            created_at: rfc3339(device.created_at),
        }
    }
}

/// A device, and what it keeps for good: the key that its prompts are signed with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Registered {
    #[serde(flatten)]
    device: DeviceView,
    server_key: ServerKeyView,
}

/// Why a device was not added.
pub(crate) fn refused(why: DeviceRefused, max_devices: i64) -> Problem {
    match why {
        DeviceRefused::NoUser => Code::NotFound.into(),
        DeviceRefused::Blocked => Problem::new(Code::WrongState).with("state", "blocked"),
        DeviceRefused::TooMany => Problem::new(Code::TooManyDevices)
            .detail(format!("at most {max_devices}; revoke one first")),
    }
}

/// Is this a platform that the relying party takes?
pub(crate) fn platform_faults(policy: &AppkeyPolicy, platform: Platform) -> Vec<Fault> {
    let taken = policy.platforms.iter().any(|one| one == platform.as_str());
    let detail = || format!("the appkey policy takes {}", policy.platforms.join(", "));
    let fault = (!taken).then(|| Fault::new("/platform", "not_allowed", detail()));
    fault.into_iter().collect()
}

/// Is this a kind of key that the relying party takes?
pub(crate) fn algorithm_fault(policy: &AppkeyPolicy, key: &DeviceKey) -> Option<Fault> {
    let algorithm = key.algorithm();
    let taken = algorithm.is_some_and(|one| policy.algorithms.contains(&one));
    let words = policy.algorithms.iter().map(|one| one.as_str());
    let words: Vec<_> = words.collect();
    let detail = format!("the appkey policy takes keys for {}", words.join(", "));
    (!taken).then(|| Fault::new("/public_key", "not_allowed", detail))
}

/// What a device brings with it, or what is wrong with it.
pub(crate) fn key_and_address(
    key: Jwk,
    address: Option<PushAddress>,
    faults: &mut Vec<Fault>,
) -> Option<(DeviceKey, Option<Address>)> {
    let Jwk { kty, crv, x, y } = key;
    let key = DeviceKey { kty, crv, x, y };
    if !key.is_sound() {
        let detail = "a point on P-256 (EC) or a public key of Ed25519 (OKP) is needed";
        faults.push(Fault::new("/public_key", "wrong_form", detail));
        return None;
    }
    match address.map(|one| one.check("/push_address")).transpose() {
        Ok(address) => Some((key, address)),
        Err(fault) => {
            faults.push(fault);
            None
        }
    }
}

/// Register a device for a customer that brings its devices along. New ones better enrol themselves: `POST …/enrolment-codes`. The same key
/// again gives the device that it made.
#[utoipa::path(post, path = "/v1/stores/{store}/users/{user}/devices", tag = "devices",
    params(("store" = String, Path), ("user" = String, Path)), request_body = Registration,
    responses((status = 201, body = Registered), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn register(
    State(app): State<App>,
    caller: Caller,
    Path((store, user)): Path<(String, String)>,
    body: Valid<Registration>,
) -> Result<(StatusCode, Json<Registered>), Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let user: UserId = id(&user)?;
    let sent = body.value;
    let policy = app.store.appkey_policy(&store, &sent.relying_party).await?;
    let mut faults = platform_faults(&policy, sent.platform);
    let parts = key_and_address(sent.public_key, sent.push_address, &mut faults);
    let unfit = parts
        .as_ref()
        .and_then(|(key, _)| algorithm_fault(&policy, key));
    faults.extend(unfit);
    let Some((key, address)) = parts.filter(|_| faults.is_empty()) else {
        return Err(Problem::faults(faults));
    };
    let new = NewDevice {
        rp: sent.relying_party,
        name: sent.name,
        platform: sent.platform.as_str().to_owned(),
        key,
        address,
    };
    let added = caller
        .store(&app)
        .add_device(&store, &user, &new, policy.max_devices, app.clock.now())
        .await?;
    match added {
        Ok(device) => {
            let device = device.into();
            let server_key = app.secret.signer().public().into();
            let registered = Registered { device, server_key };
            Ok((StatusCode::CREATED, Json(registered)))
        }
        Err(why) => Err(refused(why, policy.max_devices)),
    }
}

/// List a user's devices.
#[utoipa::path(get, path = "/v1/stores/{store}/users/{user}/devices", tag = "devices",
    params(("store" = String, Path), ("user" = String, Path)), responses((status = 200, body = Listed<DeviceView>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path((store, user)): Path<(String, String)>,
) -> Result<Json<Listed<DeviceView>>, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let user: UserId = id(&user)?;
    if app.store.user(&store, &user).await?.is_none() {
        return Err(Code::NotFound.into());
    }
    let devices = app.store.devices(&store, &user).await?;
    Ok(Json(Listed {
        data: devices.into_iter().map(Into::into).collect(),
        next_cursor: None,
    }))
}

async fn find(app: &App, store: &StoreId, user: &str, device: &str) -> Result<Device, Problem> {
    let (user, device): (UserId, DeviceId) = (id(user)?, id(device)?);
    let found = app.store.device(&device).await?;
    found
        .filter(|found| found.store == *store && found.user == user)
        .ok_or_else(|| Code::NotFound.into())
}

/// Show a device.
#[utoipa::path(get, path = "/v1/stores/{store}/users/{user}/devices/{device}", tag = "devices",
    params(("store" = String, Path), ("user" = String, Path), ("device" = String, Path)),
    responses((status = 200, body = DeviceView), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((store, user, device)): Path<(String, String, String)>,
) -> Result<Json<DeviceView>, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    Ok(Json(find(&app, &store, &user, &device).await?.into()))
}

/// Rename, block, unblock or revoke a device.
#[utoipa::path(patch, path = "/v1/stores/{store}/users/{user}/devices/{device}", tag = "devices",
    params(("store" = String, Path), ("user" = String, Path), ("device" = String, Path)), request_body = DeviceChange,
    responses((status = 200, body = DeviceView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn change(
    State(app): State<App>,
    caller: Caller,
    Path((store, user, device)): Path<(String, String, String)>,
    body: Valid<DeviceChange>,
) -> Result<Json<DeviceView>, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let found = find(&app, &store, &user, &device).await?;
    let to = body.value.state.map(|word| match word {
        StateWord::Active => DeviceState::Active,
        StateWord::Blocked => DeviceState::Blocked,
        StateWord::Revoked => DeviceState::Revoked,
    });
    let wrong = |from: DeviceState| Problem::new(Code::WrongState).with("state", from.as_str());
    if to.is_some_and(|to| to != found.state && !found.state.may_become(to)) {
        return Err(wrong(found.state));
    }
    let name = body.value.name.as_deref();
    let changed = caller
        .store(&app)
        .change_device(&found, to, name, app.clock.now())
        .await?;
    // Changed by somebody else between the look and the write.
    changed
        .map(|device| Json(device.into()))
        .ok_or_else(|| wrong(found.state))
}
