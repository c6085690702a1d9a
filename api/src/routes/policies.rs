//! Per relying party: how its devices are reached, and which devices may register.

use crate::app::App;
use crate::auth::Caller;
use crate::body::Valid;
use crate::problem::{Code, Fault, Problem};
use crate::routes::pushes::payment::ProfileWord;
use crate::routes::pushes::seconds;
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::clock::{Millis, rfc3339};
use shared::crypto::{is_apns_key, is_rsa_key};
use shared::domain::{ApnsCredential, FcmCredential, KeyAlgorithm, OpenPrompts, Provider, Rules};
use shared::secret::Secret;
use shared::store::{AppkeyPolicy, PushPolicy, SealedPolicy};
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPushPolicy {
    /// What people call it.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// For devices with an APNs address.
    #[serde(default)]
    apns: Option<NewApns>,
    /// For devices with an FCM address.
    #[serde(default)]
    fcm: Option<NewFcm>,
    /// How often a user may be asked in a minute without an approval: 3 when left out. What is over it ends as `failed(throttled)`.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    max_prompts: Option<i64>,
    /// What becomes of an open confirm or process prompt when the same user is asked again: `supersede` (when left out) ends the older one as
    /// `cancelled(superseded)`, `refuse` answers the newer one with 409 `prompt_open`, `many` leaves both open.
    #[serde(default)]
    open_prompts: Option<OpenPromptsWord>,
    /// How long after a denial the user is not asked: `30s` when left out, `0s` to `3600s`. What comes in that time ends as
    /// `failed(cooldown)`. An approval lifts it.
    #[serde(default)]
    #[schema(pattern = "^(0|[1-9][0-9]{0,3})s$", example = "30s")]
    cooldown_after_denial: Option<String>,
    /// How long a fraud report locks the initiator, or where none was named the way from the API key to the user: `3600s` when left out, `0s` to `604800s`.
    #[serde(default)]
    #[schema(pattern = "^(0|[1-9][0-9]{0,5})s$", example = "3600s")]
    fraud_lock: Option<String>,
    /// Whose rules prompts follow: `default`, `nist` or `psd2`. A request can ask for more, never for less.
    #[serde(default)]
    profile: Option<ProfileWord>,
}

/// See `NewPushPolicy`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OpenPromptsWord {
    Supersede,
    Refuse,
    Many,
}

impl From<OpenPromptsWord> for OpenPrompts {
    fn from(word: OpenPromptsWord) -> Self {
        match word {
            OpenPromptsWord::Supersede => Self::Supersede,
            OpenPromptsWord::Refuse => Self::Refuse,
            OpenPromptsWord::Many => Self::Many,
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewApns {
    #[schema(pattern = "^[A-Z0-9]{10}$")]
    team_id: String,
    #[schema(pattern = "^[A-Z0-9]{10}$")]
    key_id: String,
    /// The app's bundle identifier.
    #[schema(min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._-]+$")]
    topic: String,
    /// The `.p8` file: PKCS#8, PEM.
    #[schema(min_length = 1, max_length = 4000)]
    private_key: String,
    /// `https://api.push.apple.com` unless given; `https://api.sandbox.push.apple.com` for development builds.
    #[serde(default)]
    #[schema(max_length = 200, pattern = "^https://[^/?#]+$")]
    endpoint: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewFcm {
    /// The service account's JSON file, as a text.
    #[schema(min_length = 1, max_length = 8000)]
    service_account: String,
    /// `https://fcm.googleapis.com` unless given.
    #[serde(default)]
    #[schema(max_length = 200, pattern = "^https://[^/?#]+$")]
    endpoint: Option<String>,
}

/// A push policy. Credentials are kept sealed and never shown.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PushPolicyView {
    relying_party: String,
    name: String,
    /// Whether there is an APNs credential.
    apns: bool,
    /// Whether there is an FCM credential.
    fcm: bool,
    /// How often a user may be asked in a minute without an approval.
    max_prompts: i64,
    /// `supersede`, `refuse` or `many`.
    open_prompts: String,
    /// How long after a denial the user is not asked.
    cooldown_after_denial: String,
    /// How long a fraud report locks the initiator.
    fraud_lock: String,
    /// Whose rules prompts follow.
    profile: String,
    created_at: String,
    updated_at: String,
}

impl From<PushPolicy> for PushPolicyView {
    fn from(policy: PushPolicy) -> Self {
        Self {
            relying_party: policy.rp,
            name: policy.sealed.name,
            apns: policy.sealed.apns.is_some(),
            fcm: policy.sealed.fcm.is_some(),
            max_prompts: policy.sealed.rules.max_prompts,
            open_prompts: policy.sealed.rules.open_prompts.to_string(),
            cooldown_after_denial: in_seconds(policy.sealed.rules.cooldown),
            fraud_lock: in_seconds(policy.sealed.rules.fraud_lock),
            profile: policy.sealed.rules.profile.to_string(),
            created_at: rfc3339(policy.created_at),
            updated_at: rfc3339(policy.updated_at),
        }
    }
}

fn in_seconds(time: Millis) -> String {
    format!("{}s", time / 1000)
}

const LONGEST_COOLDOWN: Millis = 3_600_000;
const LONGEST_LOCK: Millis = 604_800_000;

/// The rules that a policy sets; the default where it says nothing.
fn rules_of(new: &NewPushPolicy, faults: &mut Vec<Fault>) -> Rules {
    let default = Rules::default();
    let mut time = |pointer: &str, text: Option<&str>, default: Millis, longest: Millis| {
        let time = text.and_then(seconds).unwrap_or(default);
        if time > longest {
            let detail = format!("from 0s to {}", in_seconds(longest));
            faults.push(Fault::new(pointer, "out_of_range", detail));
        }
        time
    };
    Rules {
        max_prompts: new.max_prompts.unwrap_or(default.max_prompts),
        open_prompts: new
            .open_prompts
            .map_or(default.open_prompts, OpenPrompts::from),
        cooldown: time(
            "/cooldown_after_denial",
            new.cooldown_after_denial.as_deref(),
            default.cooldown,
            LONGEST_COOLDOWN,
        ),
        fraud_lock: time(
            "/fraud_lock",
            new.fraud_lock.as_deref(),
            default.fraud_lock,
            LONGEST_LOCK,
        ),
        profile: new.profile.map_or(default.profile, Into::into),
    }
}

fn sound_rp(rp: &str) -> Result<(), Problem> {
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if rp.is_empty() || rp.len() > 100 || !rp.bytes().all(sound) {
        return Err(super::bad_parameter(
            "a relying party is 1 to 100 letters, digits, dots, hyphens and underscores",
        ));
    }
    Ok(())
}

fn is_service_account(text: &str) -> bool {
    let fields = ["project_id", "client_email", "private_key", "token_uri"];
    serde_json::from_str::<serde_json::Value>(text).is_ok_and(|file| {
        fields.iter().all(|field| file[field].is_string())
            && is_rsa_key(file["private_key"].as_str().unwrap_or_default())
    })
}

/// Is this host the provider's own? Any other one could be inside of the deployment's network.
fn is_of(url: &str, domain: &str) -> bool {
    let host = url.strip_prefix("https://").unwrap_or_default();
    let host = host
        .split(['/', ':', '?', '#', '@'])
        .next()
        .unwrap_or_default();
    host.strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        && !url.contains('@')
}

/// Providers other than Apple's and Google's, where they are not allowed.
fn foreign_hosts(new: &NewPushPolicy, faults: &mut Vec<Fault>) {
    let mut fault = |pointer: &str, detail: &str| {
        faults.push(Fault::new(pointer, "not_allowed", detail));
    };
    let endpoint = new.apns.as_ref().and_then(|apns| apns.endpoint.as_deref());
    if endpoint.is_some_and(|url| !is_of(url, "push.apple.com")) {
        fault(
            "/apns/endpoint",
            "a host of push.apple.com is needed; see push.any_provider",
        );
    }
    let Some(fcm) = &new.fcm else {
        return;
    };
    if fcm
        .endpoint
        .as_deref()
        .is_some_and(|url| !is_of(url, "googleapis.com"))
    {
        fault(
            "/fcm/endpoint",
            "a host of googleapis.com is needed; see push.any_provider",
        );
    }
    let file: serde_json::Value = serde_json::from_str(&fcm.service_account).unwrap_or_default();
    if file["token_uri"]
        .as_str()
        .is_some_and(|url| !is_of(url, "googleapis.com"))
    {
        fault(
            "/fcm/service_account",
            "its token_uri must be at googleapis.com; see push.any_provider",
        );
    }
}

/// Set how a relying party's devices are reached. Replaces what was there; takes effect with the next push.
#[utoipa::path(put, path = "/v1/stores/{store}/push-policies/{relying_party}", tag = "policies",
    params(("store" = String, Path), ("relying_party" = String, Path)), request_body = NewPushPolicy,
    responses((status = 200, body = PushPolicyView), (status = 422, body = Problem)))]
pub(crate) async fn put_push(
    State(app): State<App>,
    caller: Caller,
    Path((store, rp)): Path<(String, String)>,
    body: Valid<NewPushPolicy>,
) -> Result<Json<PushPolicyView>, Problem> {
    let store = caller.may(&app, &store, "policies").await?;
    sound_rp(&rp)?;
    let new = body.value;
    let mut faults = Vec::new();
    let rules = rules_of(&new, &mut faults);
    if new.apns.is_none() && new.fcm.is_none() {
        faults.push(Fault::new("", "required", "apns, fcm or both are needed"));
    }
    if !app.any_provider {
        foreign_hosts(&new, &mut faults);
    }
    if new
        .apns
        .as_ref()
        .is_some_and(|apns| !is_apns_key(&apns.private_key))
    {
        faults.push(Fault::new(
            "/apns/private_key",
            "wrong_form",
            "the text of a .p8 file is needed",
        ));
    }
    if new
        .fcm
        .as_ref()
        .is_some_and(|fcm| !is_service_account(&fcm.service_account))
    {
        let detail = "the text of a service account's JSON file is needed";
        faults.push(Fault::new("/fcm/service_account", "wrong_form", detail));
    }
    if !faults.is_empty() {
        return Err(Problem::faults(faults));
    }
    let seal = |provider: Provider, credential: String| {
        let place = PushPolicy::place(&store, &rp, provider);
        app.secret.seal(&place, &Secret::new(credential))
    };
    let apns = new.apns.map(|apns| ApnsCredential {
        team_id: apns.team_id,
        key_id: apns.key_id,
        topic: apns.topic,
        private_key: Secret::new(apns.private_key),
        endpoint: apns
            .endpoint
            .unwrap_or_else(|| "https://api.push.apple.com".to_owned()),
    });
    let fcm = new.fcm.map(|fcm| FcmCredential {
        service_account: Secret::new(fcm.service_account),
        endpoint: fcm
            .endpoint
            .unwrap_or_else(|| "https://fcm.googleapis.com".to_owned()),
    });
    // Texts only: this cannot fail to serialise.
    let sealed = SealedPolicy {
        rules,
        name: new.name,
        apns: apns.map(|c| {
            seal(
                Provider::Apns,
                serde_json::to_string(&c).unwrap_or_default(),
            )
        }),
        fcm: fcm.map(|c| seal(Provider::Fcm, serde_json::to_string(&c).unwrap_or_default())),
    };
    let policy = caller
        .store(&app)
        .put_push_policy(&store, &rp, sealed, app.clock.now())
        .await?;
    Ok(Json(policy.into()))
}

/// Show a push policy.
#[utoipa::path(get, path = "/v1/stores/{store}/push-policies/{relying_party}", tag = "policies",
    params(("store" = String, Path), ("relying_party" = String, Path)),
    responses((status = 200, body = PushPolicyView), (status = 404, body = Problem)))]
pub(crate) async fn show_push(
    State(app): State<App>,
    caller: Caller,
    Path((store, rp)): Path<(String, String)>,
) -> Result<Json<PushPolicyView>, Problem> {
    let store = caller.may(&app, &store, "policies").await?;
    let policy = app.store.push_policy(&store, &rp).await?;
    policy
        .map(|policy| Json(policy.into()))
        .ok_or_else(|| Code::NotFound.into())
}

/// Remove a push policy. Devices are then reached by their own fetching only.
#[utoipa::path(delete, path = "/v1/stores/{store}/push-policies/{relying_party}", tag = "policies",
    params(("store" = String, Path), ("relying_party" = String, Path)), responses((status = 204), (status = 404, body = Problem)))]
pub(crate) async fn drop_push(
    State(app): State<App>,
    caller: Caller,
    Path((store, rp)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let store = caller.may(&app, &store, "policies").await?;
    let now = app.clock.now();
    if caller
        .store(&app)
        .drop_push_policy(&store, &rp, now)
        .await?
    {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Code::NotFound.into())
    }
}

/// List push policies.
#[utoipa::path(get, path = "/v1/stores/{store}/push-policies", tag = "policies", params(("store" = String, Path)),
    responses((status = 200, body = Listed<PushPolicyView>)))]
pub(crate) async fn list_push(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
) -> Result<Json<Listed<PushPolicyView>>, Problem> {
    let store = caller.may(&app, &store, "policies").await?;
    let data = app.store.push_policies(&store).await?;
    Ok(Json(Listed {
        data: data.into_iter().map(Into::into).collect(),
        next_cursor: None,
    }))
}

/// Which devices may register for a relying party.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AppkeyPolicyView {
    /// `ios`, `android`, `web`.
    #[schema(min_items = 1, max_items = 3)]
    platforms: Vec<PlatformWord>,
    /// How many devices a user may have.
    #[schema(minimum = 1, maximum = 20)]
    max_devices: i64,
    /// The least that an approval must assert: `none`, `device` or `biometric`.
    user_verification: VerificationWord,
    /// How the keys sign that may register: `ES256` (P-256), `EdDSA` (Ed25519); both when left out.
    #[serde(default = "both")]
    #[schema(min_items = 1, max_items = 2)]
    algorithms: Vec<AlgorithmWord>,
}

fn both() -> Vec<AlgorithmWord> {
    vec![AlgorithmWord::Es256, AlgorithmWord::EdDsa]
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub(crate) enum AlgorithmWord {
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl From<AlgorithmWord> for KeyAlgorithm {
    fn from(word: AlgorithmWord) -> Self {
        match word {
            AlgorithmWord::Es256 => Self::Es256,
            AlgorithmWord::EdDsa => Self::EdDsa,
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PlatformWord {
    Ios,
    Android,
    Web,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VerificationWord {
    None,
    Device,
    Biometric,
}

fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// Set which devices may register for a relying party.
#[utoipa::path(put, path = "/v1/stores/{store}/appkey-policies/{relying_party}", tag = "policies",
    params(("store" = String, Path), ("relying_party" = String, Path)), request_body = AppkeyPolicyView,
    responses((status = 200, body = AppkeyPolicyView), (status = 422, body = Problem)))]
pub(crate) async fn put_appkey(
    State(app): State<App>,
    caller: Caller,
    Path((store, rp)): Path<(String, String)>,
    body: Valid<AppkeyPolicyView>,
) -> Result<Json<AppkeyPolicyView>, Problem> {
    let store = caller.may(&app, &store, "policies").await?;
    sound_rp(&rp)?;
    let policy = AppkeyPolicy {
        platforms: body.value.platforms.iter().map(word).collect(),
        max_devices: body.value.max_devices,
        user_verification: word(&body.value.user_verification),
        algorithms: body
            .value
            .algorithms
            .iter()
            .map(|&one| one.into())
            .collect(),
    };
    caller
        .store(&app)
        .put_appkey_policy(&store, &rp, &policy, app.clock.now())
        .await?;
    Ok(Json(body.value))
}

/// Show the appkey policy in force: the relying party's own, or the default.
#[utoipa::path(get, path = "/v1/stores/{store}/appkey-policies/{relying_party}", tag = "policies",
    params(("store" = String, Path), ("relying_party" = String, Path)), responses((status = 200, body = AppkeyPolicyView)))]
pub(crate) async fn show_appkey(
    State(app): State<App>,
    caller: Caller,
    Path((store, rp)): Path<(String, String)>,
) -> Result<Json<serde_json::Value>, Problem> {
    let store = caller.may(&app, &store, "policies").await?;
    let policy = app.store.appkey_policy(&store, &rp).await?;
    Ok(Json(
        serde_json::json!({"platforms": policy.platforms, "max_devices": policy.max_devices,
        "user_verification": policy.user_verification, "algorithms": policy.algorithms}),
    ))
}
