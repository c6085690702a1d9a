//! Child process instances: how they stand and how they end, and with that end their push.

use super::id;
use crate::app::App;
use crate::auth::Caller;
use crate::body::Valid;
use crate::problem::{Code, Problem};
use crate::view::PushView;
use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use shared::clock::rfc3339;
use shared::domain::InstanceState;
use shared::id::{InstanceId, StoreId};
use shared::store::PushRow;
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Completion {
    /// `ended_success`: approved. `ended_error`: denied. `terminated`: denied, given up by the user. `process_error`: failed.
    status: EndWord,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndWord {
    EndedSuccess,
    EndedError,
    Terminated,
    ProcessError,
}

impl From<EndWord> for InstanceState {
    fn from(word: EndWord) -> Self {
        match word {
            EndWord::EndedSuccess => Self::EndedSuccess,
            EndWord::EndedError => Self::EndedError,
            EndWord::Terminated => Self::Terminated,
            EndWord::ProcessError => Self::ProcessError,
        }
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    /// `active`: it runs. `review`: somebody else looks at it; its clock of `max_duration` starts again, up to an hour after the link was opened.
    status: ProgressWord,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProgressWord {
    Active,
    Review,
}

/// A child process instance.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InstanceView {
    id: String,
    push: String,
    /// `pending`, `active`, `review`, `ended_success`, `ended_error`, `terminated` or `process_error`.
    status: String,
    /// The push's.
    state: String,
    /// Until when its end counts.
    expires_at: String,
}

fn view(instance: &InstanceId, push: &PushRow) -> InstanceView {
    let status = push.instance_state.unwrap_or(InstanceState::Pending);
    InstanceView {
        id: instance.to_string(),
        push: push.id.to_string(),
        status: status.to_string(),
        state: push.state.to_string(),
        expires_at: rfc3339(push.expires_at),
    }
}

/// Lets a report count, or says what stands against it.
async fn report(
    app: &App,
    caller: &Caller,
    store: &StoreId,
    instance: &InstanceId,
    to: InstanceState,
) -> Result<PushRow, Problem> {
    let now = app.clock.now();
    let port = caller.store(app);
    let taken = port.report_instance(store, instance, to, now).await?;
    let Some((changed, push)) = taken else {
        return Err(Code::NotFound.into());
    };
    if changed || push.instance_state == Some(to) {
        return Ok(push);
    }
    let code = if push.ended_at.is_none() {
        Code::PushExpired
    } else {
        Code::PushEnded
    };
    Err(Problem::new(code)
        .with("state", push.state.as_str())
        .with("reason", push.reason))
}

/// Show a child process instance.
#[utoipa::path(get, path = "/v1/stores/{store}/instances/{instance}", tag = "instances",
    params(("store" = String, Path), ("instance" = String, Path)),
    responses((status = 200, body = InstanceView), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((store, instance)): Path<(String, String)>,
) -> Result<Json<InstanceView>, Problem> {
    let store = caller.may(&app, &store, "processes").await?;
    let instance: InstanceId = id(&instance)?;
    let found = app.store.push_of_instance(&store, &instance).await?;
    found
        .map(|push| Json(view(&instance, &push)))
        .ok_or_else(|| Code::NotFound.into())
}

/// Say that a child process instance goes on. The same again changes nothing.
#[utoipa::path(post, path = "/v1/stores/{store}/instances/{instance}/progress", tag = "instances",
    params(("store" = String, Path), ("instance" = String, Path)), request_body = Progress,
    responses((status = 200, body = InstanceView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn progress(
    State(app): State<App>,
    caller: Caller,
    Path((store, instance)): Path<(String, String)>,
    body: Valid<Progress>,
) -> Result<Json<InstanceView>, Problem> {
    let store = caller.may(&app, &store, "processes").await?;
    let instance: InstanceId = id(&instance)?;
    let to = match body.value.status {
        ProgressWord::Active => InstanceState::Active,
        ProgressWord::Review => InstanceState::Review,
    };
    let push = report(&app, &caller, &store, &instance, to).await?;
    Ok(Json(view(&instance, &push)))
}

/// Say how a child process instance ended. The first end counts; the same end again gets the same answer.
#[utoipa::path(post, path = "/v1/stores/{store}/instances/{instance}/complete", tag = "instances",
    params(("store" = String, Path), ("instance" = String, Path)), request_body = Completion,
    responses((status = 200, body = PushView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn complete(
    State(app): State<App>,
    caller: Caller,
    Path((store, instance)): Path<(String, String)>,
    body: Valid<Completion>,
) -> Result<Json<PushView>, Problem> {
    let store = caller.may(&app, &store, "processes").await?;
    let to = body.value.status.into();
    let push = report(&app, &caller, &store, &id(&instance)?, to).await?;
    Ok(Json(PushView::new(&push, None)))
}
