//! Enrolment codes: an admin lets one device of a user in.

use super::id;
use crate::app::App;
use crate::auth::Caller;
use crate::body::Valid;
use crate::problem::{Code, Problem};
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use shared::clock::{Millis, rfc3339};
use shared::domain::CodeState;
use shared::id::{DeviceId, EnrolmentId, StoreId, UserId};
use shared::store::{CodeRefused, EnrolmentCode, MAX_OPEN_CODES, NewCode, Store};
use utoipa::ToSchema;

/// How long a code counts.
pub(crate) const EXPIRES_IN: Millis = 600_000;
const EXPIRES_IN_RANGE: std::ops::RangeInclusive<Millis> = 60_000..=3_600_000;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CodeRequest {
    /// For which app the device enrols.
    #[schema(min_length = 1, max_length = 100, pattern = "^[A-Za-z0-9._-]+$")]
    relying_party: String,
    /// How long the code counts: `60s` to `3600s`, `600s` when left out.
    #[serde(default)]
    #[schema(pattern = "^[1-9][0-9]{0,3}s$", example = "600s")]
    expires_in: Option<String>,
}

/// An enrolment code. The code itself is shown once, when it is made.
#[derive(Serialize, ToSchema)]
pub(crate) struct CodeView {
    id: String,
    store: String,
    user: String,
    relying_party: String,
    /// `open`, `used`, `expired` or `revoked`.
    state: String,
    /// The device that made it, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    made_by: Option<String>,
    /// The device that used it.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    created_at: String,
    expires_at: String,
    /// Whoever has it first gets in: show it to the user alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// The same as a link, for a QR code: `countersign://enrol?url=…&store=…&code=…&kid=…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
}

impl CodeView {
    fn of(code: &EnrolmentCode, now: Millis) -> Self {
        Self {
            id: code.id.to_string(),
            store: code.store.to_string(),
            user: code.user.to_string(),
            relying_party: code.rp.clone(),
            state: code.state(now).to_string(),
            made_by: code.made_by.as_ref().map(ToString::to_string),
            device: code.device.as_ref().map(ToString::to_string),
            created_at: rfc3339(code.created_at),
            expires_at: rfc3339(code.expires_at),
            code: None,
            link: None,
        }
    }
}

/// Who makes a code, for whom.
pub(crate) struct Maker<'a> {
    pub(crate) store: &'a StoreId,
    pub(crate) user: &'a UserId,
    pub(crate) rp: &'a str,
    pub(crate) device: Option<&'a DeviceId>,
}

/// Makes a code; `port` knows for whom. Nothing on the way may keep the answer.
pub(crate) async fn make(
    app: &App,
    port: &Store,
    maker: &Maker<'_>,
    life: Millis,
) -> Result<(StatusCode, HeaderMap, Json<CodeView>), Problem> {
    let now = app.clock.now();
    let fresh = app.secret.enrolment_code();
    let new = NewCode {
        store: maker.store,
        user: maker.user,
        rp: maker.rp,
        hash: &fresh.hash,
        made_by: maker.device,
        expires_at: now + life,
    };
    let code = match port.add_enrolment_code(&new, now).await? {
        Ok(code) => code,
        Err(CodeRefused::NoUser) => return Err(Code::NotFound.into()),
        Err(CodeRefused::UserInactive(status)) => {
            return Err(Problem::new(Code::UserInactive).with("state", status.as_str()));
        }
        Err(CodeRefused::MakerGone) => return Err(Code::DeviceUnauthenticated.into()),
        Err(CodeRefused::TooMany) => {
            let detail = format!("at most {MAX_OPEN_CODES}; wait, or revoke one");
            return Err(Problem::new(Code::TooManyCodes).detail(detail));
        }
    };
    let mut view = CodeView::of(&code, now);
    view.link = Some(app.enrolment_link(maker.store, fresh.text.expose()));
    view.code = Some(fresh.text.expose().to_owned());
    let mut headers = HeaderMap::new();
    let never = http::HeaderValue::from_static("no-store");
    headers.insert(http::header::CACHE_CONTROL, never);
    Ok((StatusCode::CREATED, headers, Json(view)))
}

fn life_of(text: Option<&str>) -> Result<Millis, Problem> {
    let Some(text) = text else {
        return Ok(EXPIRES_IN);
    };
    let seconds = text.trim_end_matches('s').parse::<Millis>().ok();
    seconds
        .map(|seconds| seconds * 1000)
        .filter(|life| EXPIRES_IN_RANGE.contains(life))
        .ok_or_else(|| Problem::fault("/expires_in", "out_of_range", "from 60s to 3600s"))
}

/// Make a one-time code that lets a device of this user enrol itself.
#[utoipa::path(post, path = "/v1/stores/{store}/users/{user}/enrolment-codes", tag = "enrolment",
    params(("store" = String, Path), ("user" = String, Path)), request_body = CodeRequest,
    responses((status = 201, body = CodeView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path((store, user)): Path<(String, String)>,
    body: Valid<CodeRequest>,
) -> Result<(StatusCode, HeaderMap, Json<CodeView>), Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let user: UserId = id(&user)?;
    let life = life_of(body.value.expires_in.as_deref())?;
    let maker = Maker {
        store: &store,
        user: &user,
        rp: &body.value.relying_party,
        device: None,
    };
    make(&app, &caller.store(&app), &maker, life).await
}

async fn find(
    app: &App,
    store: &StoreId,
    user: &str,
    code: &str,
) -> Result<EnrolmentCode, Problem> {
    let (user, code): (UserId, EnrolmentId) = (id(user)?, id(code)?);
    let found = app.store.enrolment_code(store, &user, &code).await?;
    found.ok_or_else(|| Code::NotFound.into())
}

/// List a user's last enrolment codes, newest first.
#[utoipa::path(get, path = "/v1/stores/{store}/users/{user}/enrolment-codes", tag = "enrolment",
    params(("store" = String, Path), ("user" = String, Path)), responses((status = 200, body = Listed<CodeView>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path((store, user)): Path<(String, String)>,
) -> Result<Json<Listed<CodeView>>, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let user: UserId = id(&user)?;
    if app.store.user(&store, &user).await?.is_none() {
        return Err(Code::NotFound.into());
    }
    let now = app.clock.now();
    let codes = app.store.enrolment_codes(&store, &user).await?;
    Ok(Json(Listed {
        data: codes.iter().map(|code| CodeView::of(code, now)).collect(),
        next_cursor: None,
    }))
}

/// Show an enrolment code: has it been used, and by which device?
#[utoipa::path(get, path = "/v1/stores/{store}/users/{user}/enrolment-codes/{code}", tag = "enrolment",
    params(("store" = String, Path), ("user" = String, Path), ("code" = String, Path, description = "Its identifier, `enr_…`")),
    responses((status = 200, body = CodeView), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((store, user, code)): Path<(String, String, String)>,
) -> Result<Json<CodeView>, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let found = find(&app, &store, &user, &code).await?;
    Ok(Json(CodeView::of(&found, app.clock.now())))
}

/// Take an enrolment code back. One that is over already is as good as revoked; one that was used is not.
#[utoipa::path(delete, path = "/v1/stores/{store}/users/{user}/enrolment-codes/{code}", tag = "enrolment",
    params(("store" = String, Path), ("user" = String, Path), ("code" = String, Path, description = "Its identifier, `enr_…`")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path((store, user, code)): Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    let store = caller.may(&app, &store, "directory").await?;
    let found = find(&app, &store, &user, &code).await?;
    let now = app.clock.now();
    let port = caller.store(&app);
    if port.revoke_enrolment_code(&found, now).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    // It may have been used since the first look.
    let found = find(&app, &store, &user, &code).await?;
    match found.state(now) {
        CodeState::Used => Err(Problem::new(Code::WrongState).with("state", "used")),
        CodeState::Open | CodeState::Expired | CodeState::Revoked => Ok(StatusCode::NO_CONTENT),
    }
}
