//! Ask a person something.

use super::checks::{EXPIRES_IN, more_faults, seconds};
use super::payment::{PaymentView, ProfileWord};
use super::payments::{PaymentItemView, batch};
use super::process::{ProcessRequest, process_of};
use crate::app::App;
use crate::auth::Caller;
use crate::body::{Sent, faults_of, typed};
use crate::problem::{Code, Fault, Problem};
use crate::routes::bad_parameter;
use crate::view::{ContextView, DetailView, TargetMode, TargetView};
use axum::Json;
use axum::extract::{Path, State};
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::clock::{Millis, rfc3339};
use shared::crypto::{content_hash, random_text, sha256_text};
use shared::domain::{Content, DeviceState, Kind, Lack, Profile, Quorum, Target};
use shared::id::{ApprovalId, PushId, StoreId};
use shared::message::Lane;
use shared::store::{NewPush, PushRow, Taken, Terms, User, UserRef};
use std::sync::PoisonError;
use utoipa::ToSchema;

/// What to ask, and whom.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushRequest {
    /// Whom to ask: exactly one of the two.
    user: UserName,
    /// Which app asks: devices registered for this relying party are asked.
    #[schema(min_length = 1, max_length = 100, pattern = "^[A-Za-z0-9._-]+$")]
    relying_party: String,
    /// `confirm`: a signed approve or deny. `generic`: contents are shown, each device that accepts is counted. `process`: a link opens
    /// and a child process instance decides.
    kind: KindWord,
    /// The question, in one line.
    #[schema(min_length = 1, max_length = 100)]
    title: String,
    /// The question, in more words.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    message: Option<String>,
    /// Typed details, shown and signed.
    #[serde(default)]
    #[schema(max_items = 20)]
    details: Vec<DetailView>,
    /// With `confirm`: what is to be paid, and to whom; shown and signed.
    #[serde(default)]
    payment: Option<PaymentView>,
    /// With `confirm`, in place of `payment`: a batch of payments with one verdict. Their number, totals and payees are shown and signed, and so is the root of a Merkle
    /// tree over them (RFC 6962), which stands for each. To at most 200 different payees, in at most 20 currencies.
    #[serde(default)]
    #[schema(min_items = 2, max_items = 1000)]
    payments: Option<Vec<PaymentItemView>>,
    /// Whose rules this push follows, where it is to be more than the push policy demands.
    #[serde(default)]
    profile: Option<ProfileWord>,
    /// Who at the other end makes you ask: a session, an account, an address, in any form of yours. It is shown to nobody and kept as a keyed hash. When the user reports
    /// fraud, it is locked for your API key. Name what is one attacker's and not shared by others, if you can.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    initiator: Option<String>,
    /// From where the question comes; shown and signed.
    #[serde(default)]
    context: Option<ContextView>,
    /// Which devices; all when left out.
    #[serde(default)]
    target: Option<TargetView>,
    /// How long an answer counts: `10s` to `600s`, `120s` when left out.
    #[serde(default)]
    #[schema(pattern = "^[1-9][0-9]{0,3}s$", example = "120s")]
    expires_in: Option<String>,
    /// With `confirm`: must the person type the six digits shown on the initiating channel? True when left out.
    #[serde(default)]
    match_code: Option<bool>,
    /// With `process`: what the link starts.
    #[serde(default)]
    process: Option<ProcessRequest>,
    /// A queue of yours that gets the completion event; its name begins with `ext.` and your store's identifier.
    #[serde(default)]
    #[schema(max_length = 200, pattern = "^ext\\.[A-Za-z0-9._-]+$")]
    reply_to: Option<String>,
    /// Comes back in the completion event.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    correlation_id: Option<String>,
    /// Refuse with 422 when no device could be asked, instead of ending the push as `failed(no_devices)`.
    #[serde(default)]
    require_device: bool,
}

/// A user, by one of two names.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UserName {
    /// Our identifier.
    #[serde(default)]
    #[schema(pattern = "^usr_[0-9a-z]{26}$")]
    id: Option<String>,
    /// Yours.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    external_id: Option<String>,
}

/// See `PushRequest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KindWord {
    Process,
    Generic,
    Confirm,
}

/// A push that was taken.
#[derive(Serialize, ToSchema)]
pub(crate) struct Accepted {
    id: String,
    store: String,
    user: String,
    /// Always `accepted`: what it was when this request was first answered.
    state: String,
    created_at: String,
    expires_at: String,
    /// Show it on the initiating channel, and nowhere else.
    #[serde(skip_serializing_if = "Option::is_none")]
    match_code: Option<String>,
}

fn target_of(view: Option<&TargetView>) -> Target {
    let Some(view) = view else {
        return Target::All;
    };
    match view.mode {
        TargetMode::All => Target::All,
        TargetMode::Preferred => Target::Preferred {
            escalate_after: view.escalate_after.as_deref().and_then(seconds),
        },
        TargetMode::Devices => Target::Devices {
            devices: view
                .devices
                .iter()
                .filter_map(|id| id.parse().ok())
                .collect(),
        },
    }
}

pub(crate) fn user_of(name: UserName) -> UserRef {
    let by_id = name.id.and_then(|id| id.parse().ok()).map(UserRef::Id);
    by_id.unwrap_or_else(|| UserRef::External(name.external_id.unwrap_or_default()))
}

/// The idempotency key of a request.
pub(crate) fn key_of(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().ok().map(str::trim);
    let sound =
        |text: &&str| (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    text.filter(sound)
        .map(|text| Some(text.to_owned()))
        .ok_or_else(|| bad_parameter("Idempotency-Key is 1 to 255 visible ASCII characters"))
}

pub(in crate::routes) fn traceparent_of(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let sound = text.len() == 55 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    sound.then(|| text.to_owned())
}

/// Holds an idempotency key while its first request is under way.
pub(in crate::routes) struct Running<'a>(&'a App, String);

impl<'a> Running<'a> {
    pub(in crate::routes) fn begin(
        app: &'a App,
        store: &StoreId,
        key: &str,
    ) -> Result<Self, Problem> {
        let name = format!("{store} {key}");
        let mut running = app.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.insert(name.clone()) {
            Ok(Self(app, name))
        } else {
            Err(Code::IdempotencyRunning.into())
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = self
            .0
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.1);
    }
}

pub(in crate::routes) async fn user_row(
    app: &App,
    store: &StoreId,
    user: &UserRef,
) -> Result<Option<User>, Problem> {
    Ok(match user {
        UserRef::Id(id) => app.store.user(store, id).await?,
        UserRef::External(external) => app.store.user_by_external(store, external).await?,
    })
}

/// Looks that cost a query, made only when the request asks for them.
async fn check_devices(
    app: &App,
    store: &StoreId,
    user: &UserRef,
    rp: &str,
    target: &Target,
    required: bool,
) -> Result<(), Problem> {
    let named: &[_] = match target {
        Target::Devices { devices } => devices,
        Target::All | Target::Preferred { .. } => &[],
    };
    if named.is_empty() && !required {
        return Ok(());
    }
    let user = user_row(app, store, user).await?;
    let user = user.ok_or_else(|| Problem::new(Code::NotFound))?;
    let mut devices = app.store.devices(store, &user.id).await?;
    devices.retain(|device| device.state == DeviceState::Active && device.rp == rp);
    let unknown = named
        .iter()
        .enumerate()
        .filter(|(_, id)| !devices.iter().any(|device| device.id == **id));
    let faults: Vec<_> = unknown
        .map(|(n, _)| {
            let detail = "no active device of this user for this relying party";
            Fault::new(&format!("/target/devices/{n}"), "unknown_device", detail)
        })
        .collect();
    if !faults.is_empty() {
        return Err(Problem::faults(faults));
    }
    if required && devices.is_empty() {
        return Err(Code::NoDevices.into());
    }
    Ok(())
}

/// The approval that a push is a part of.
pub(in crate::routes) struct Part {
    pub(in crate::routes) approval: ApprovalId,
    pub(in crate::routes) quorum: Quorum,
}

/// Makes pushes of requests without faults.
pub(in crate::routes) struct Taking<'a> {
    pub(in crate::routes) app: &'a App,
    pub(in crate::routes) caller: &'a Caller,
    pub(in crate::routes) store: &'a StoreId,
    pub(in crate::routes) headers: &'a HeaderMap,
    /// Where several people are asked.
    pub(in crate::routes) part: Option<&'a Part>,
}

impl Taking<'_> {
    /// The push `id`, not yet taken.
    pub(in crate::routes) async fn push(
        &self,
        id: PushId,
        request: PushRequest,
        now: Millis,
    ) -> Result<NewPush, Problem> {
        let (app, store) = (self.app, self.store);
        let kind = match request.kind {
            KindWord::Process => Kind::Process,
            KindWord::Generic => Kind::Generic,
            KindWord::Confirm => Kind::Confirm,
        };
        let expires_in = request.expires_in.as_deref().and_then(seconds);
        let expires_in = expires_in.unwrap_or(EXPIRES_IN);
        let (user, target) = (user_of(request.user), target_of(request.target.as_ref()));
        let mut process = process_of(app, store, request.process).await?;
        let rp = &request.relying_party;
        check_devices(app, store, &user, rp, &target, request.require_device).await?;
        let (payments, shown_payments) = batch(request.payments)?;
        let nonce = random_text::<24>();
        let mut content = Content {
            kind,
            relying_party: request.relying_party,
            title: request.title,
            message: request.message,
            details: request.details.into_iter().map(Into::into).collect(),
            payment: request.payment.map(Into::into),
            payments: shown_payments,
            context: request.context.map(Into::into),
            approval: self.part.map(|part| part.quorum),
            redirect_url: None,
        };
        if let Some(process) = &mut process {
            let token = app.secret.process_token(&id, &nonce);
            process.token_hash = sha256_text(token.expose().as_bytes());
            content.redirect_url = Some(app.process_link(&id, &nonce));
        }
        let shown_hash = content_hash(&content);
        content.redirect_url = None;
        Ok(NewPush {
            match_required: kind == Kind::Confirm && request.match_code != Some(false),
            expires_at: now + expires_in,
            idempotency: None,
            traceparent: traceparent_of(self.headers),
            reply_to: request.reply_to,
            correlation_id: request.correlation_id,
            lane: Lane::Interactive,
            content_hash: shown_hash,
            created_at: now,
            terms: Terms {
                profile: request.profile.map(Into::into),
                key: Some(self.caller.key().clone()),
                initiator: request
                    .initiator
                    .map(|text| app.secret.initiator_hash(store, &text)),
                approval: self.part.map(|part| part.approval.clone()),
            },
            id,
            store: store.clone(),
            user,
            content,
            payments,
            target,
            nonce,
            process,
        })
    }
}

/// Ask a person something. 202 says that the question is durable and on its way.
#[utoipa::path(post, path = "/v1/stores/{store}/pushes", tag = "pushes",
    params(("store" = String, Path), ("Idempotency-Key" = Option<String>, Header, description = "The same key with the same body asks once")),
    request_body = PushRequest,
    responses((status = 202, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem),
        (status = 503, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    headers: HeaderMap,
    Sent(sent): Sent,
) -> Result<(StatusCode, HeaderMap, Json<Accepted>), Problem> {
    let began = std::time::Instant::now();
    let store = caller.may(&app, &store, "pushes:write").await?;
    let key = key_of(&headers)?;
    let _running = key
        .as_ref()
        .map(|key| Running::begin(&app, &store, key))
        .transpose()?;
    let hash = sha256_text(sent.to_string().as_bytes());
    if let Some(key) = &key
        && let Some((known, row)) = app.store.push_of_key(&store, key).await?
    {
        // What has changed since does not change the answer.
        return if known == hash {
            Ok(replay(&app, &row, seconds_of(&sent)))
        } else {
            Err(Code::IdempotencyReused.into())
        };
    }
    let now = app.clock.now();
    let mut faults = faults_of::<PushRequest>(&sent);
    more_faults(&app, &store, &sent, &mut faults);
    let request: PushRequest = typed(sent, faults)?;
    let taking = Taking {
        app: &app,
        caller: &caller,
        store: &store,
        headers: &headers,
        part: None,
    };
    let mut push = taking.push(PushId::fresh(now), request, now).await?;
    push.idempotency = key.map(|key| (key, hash));
    let taken = app.intake.take(push.clone()).await?;
    metrics::histogram!("countersign_push_accept_seconds", "source" => "http")
        .record(began.elapsed().as_secs_f64());
    answer(&app, &push, taken)
}

/// How long the sender wants an answer to count.
fn seconds_of(sent: &Value) -> Millis {
    let text = sent.get("expires_in").and_then(Value::as_str);
    text.and_then(seconds).unwrap_or(EXPIRES_IN)
}

type Reply = (StatusCode, HeaderMap, Json<Accepted>);

pub(in crate::routes) fn count(result: &'static str) {
    metrics::counter!("countersign_push_requests_total", "source" => "http", "lane" => "interactive", "result" => result).increment(1);
}

pub(in crate::routes) fn answer(app: &App, push: &NewPush, taken: Taken) -> Result<Reply, Problem> {
    match taken {
        Taken::New(user) => {
            count("accepted");
            let code = push
                .match_required
                .then(|| app.secret.match_code(&push.id, &push.nonce));
            Ok(reply(
                HeaderMap::new(),
                Accepted {
                    id: push.id.to_string(),
                    store: push.store.to_string(),
                    user: user.to_string(),
                    state: "accepted".to_owned(),
                    created_at: rfc3339(push.created_at),
                    expires_at: rfc3339(push.expires_at),
                    match_code: code.map(|code| code.expose().to_owned()),
                },
            ))
        }
        Taken::Replayed(row) => Ok(replay(app, &row, push.expires_at - push.created_at)),
        Taken::KeyReused => Err(Code::IdempotencyReused.into()),
        Taken::NoUser => Err(Code::NotFound.into()),
        Taken::InitiatorLocked(until) => {
            metrics::counter!("countersign_suppressed_total", "reason" => "initiator_locked")
                .increment(1);
            Err(Problem::new(Code::InitiatorLocked).with("until", rfc3339(until)))
        }
        Taken::Lacks(lack) => Err(lacking(lack)),
        Taken::PromptOpen => Err(Code::PromptOpen.into()),
        Taken::CodesBlocked(until) => {
            Err(Problem::new(Code::CodesBlocked).with("until", rfc3339(until)))
        }
        Taken::UserInactive(status) => {
            Err(Problem::new(Code::UserInactive).with("state", status.as_str()))
        }
    }
}

/// What the profile in force wants.
fn lacking(lack: Lack) -> Problem {
    let by = |profile: Profile, what: &str| format!("the profile {profile} wants {what}");
    match lack {
        Lack::Weaker(profile) => {
            Problem::new(Code::ProfileWeaker).with("profile", profile.as_str())
        }
        Lack::MatchCode(profile) => {
            Problem::fault("/match_code", "not_allowed", &by(profile, "a typed code"))
        }
        Lack::Process(profile) => {
            Problem::fault("/kind", "not_allowed", &by(profile, "a signed approval"))
        }
        Lack::Payment(profile) => {
            Problem::fault("/payment", "required", &by(profile, "amount and payee"))
        }
    }
}

/// The first answer once more. The row's own end moves when a process link is opened; the first answer said the time before.
fn replay(app: &App, row: &PushRow, expires_in: Millis) -> Reply {
    count("duplicate");
    let code = row
        .match_required
        .then(|| app.secret.match_code(&row.id, &row.nonce));
    reply(
        replayed(),
        Accepted {
            id: row.id.to_string(),
            store: row.store.to_string(),
            user: row.user.to_string(),
            state: "accepted".to_owned(),
            created_at: rfc3339(row.created_at),
            expires_at: rfc3339(row.created_at + expires_in),
            match_code: code.map(|code| code.expose().to_owned()),
        },
    )
}

/// Says that this answer was given before.
pub(in crate::routes) fn replayed() -> HeaderMap {
    let name = HeaderName::from_static("idempotent-replayed");
    HeaderMap::from_iter([(name, http::HeaderValue::from_static("true"))])
}

fn reply(mut headers: HeaderMap, accepted: Accepted) -> Reply {
    let place = format!("/v1/stores/{}/pushes/{}", accepted.store, accepted.id);
    if let Ok(place) = http::HeaderValue::from_str(&place) {
        headers.insert(header::LOCATION, place);
    }
    (StatusCode::ACCEPTED, headers, Json(accepted))
}
