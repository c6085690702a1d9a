//! The end of a child process instance, and with it of its push.

use super::id;
use crate::app::App;
use crate::auth::Caller;
use crate::body::Valid;
use crate::problem::{Code, Problem};
use crate::view::PushView;
use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use shared::store::InstanceEnd;
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

impl From<EndWord> for InstanceEnd {
    fn from(word: EndWord) -> Self {
        match word {
            EndWord::EndedSuccess => Self::Success,
            EndWord::EndedError => Self::Error,
            EndWord::Terminated => Self::Terminated,
            EndWord::ProcessError => Self::ProcessError,
        }
    }
}

/// Say how a child process instance ended. The first end counts; the same end again gets the same answer.
#[utoipa::path(post, path = "/v1/stores/{store}/instances/{instance}/complete", tag = "processes",
    params(("store" = String, Path), ("instance" = String, Path)), request_body = Completion,
    responses((status = 200, body = PushView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn complete(
    State(app): State<App>,
    caller: Caller,
    Path((store, instance)): Path<(String, String)>,
    body: Valid<Completion>,
) -> Result<Json<PushView>, Problem> {
    let store = caller.may(&app, &store, "processes").await?;
    let end: InstanceEnd = body.value.status.into();
    let ended = caller
        .store(&app)
        .end_instance(&store, &id(&instance)?, end, app.clock.now())
        .await?;
    let Some((counted, push)) = ended else {
        return Err(Code::NotFound.into());
    };
    let (state, reason) = end.outcome();
    if counted || (push.state, push.reason.as_str()) == (state, reason) {
        return Ok(Json(PushView::new(&push, None)));
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
