//! What a process push starts, and when its link may be opened.

use super::checks::{MAX_DURATION, seconds};
use crate::app::App;
use crate::problem::{Fault, Problem};
use serde::Deserialize;
use serde_json::Value;
use shared::clock::{Millis, millis};
use shared::id::StoreId;
use shared::store::NewProcess;
use utoipa::ToSchema;

/// What a process push starts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessRequest {
    /// The definition's name.
    #[schema(min_length = 1, max_length = 50)]
    definition: String,
    /// Its version; the newest when neither version nor tag is given.
    #[serde(default)]
    #[schema(minimum = 1)]
    version: Option<i64>,
    /// A word that stands for a version.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 50)]
    tag: Option<String>,
    /// Passed on to the page.
    #[serde(default)]
    #[schema(value_type = Object)]
    parameters: serde_json::Map<String, Value>,
    /// From when on the link may be opened: RFC 3339, before the push expires. At once when left out.
    #[serde(default)]
    #[schema(min_length = 20, max_length = 40, example = "2026-11-25T12:00:00Z")]
    not_before: Option<String>,
    /// Until when the link may be opened: RFC 3339, not after the push expires. Until then when left out.
    #[serde(default)]
    #[schema(min_length = 20, max_length = 40, example = "2026-11-25T12:01:00Z")]
    not_after: Option<String>,
    /// How long the child may take once the link was opened: `60s` to `3600s`, `600s` when left out.
    #[serde(default)]
    #[schema(pattern = "^[1-9][0-9]{0,3}s$")]
    max_duration: Option<String>,
}

/// Times of the link that lie outside of the push's life, or the wrong way round.
pub(super) fn window_faults(
    sent: &Value,
    now: Millis,
    expires_at: Millis,
    faults: &mut Vec<Fault>,
) {
    let mut time = |pointer: &str| -> Option<Millis> {
        let at = millis(sent.pointer(pointer)?.as_str()?);
        if at.is_none() {
            let detail = "a time as in RFC 3339 is needed, such as 2026-11-25T12:00:00Z";
            faults.push(Fault::new(pointer, "wrong_form", detail));
        }
        at
    };
    let (before, after) = ("/process/not_before", "/process/not_after");
    let (from, until) = (time(before), time(after));
    if from.is_some_and(|at| at >= expires_at) {
        let detail = "must be before the push expires";
        faults.push(Fault::new(before, "out_of_range", detail));
    }
    let first = from.unwrap_or(now).max(now);
    if until.is_some_and(|at| at <= first || at > expires_at) {
        let detail = "must be after now and not_before, and not after the push expires";
        faults.push(Fault::new(after, "out_of_range", detail));
    }
}

/// Finds the definition that a request names.
pub(super) async fn process_of(
    app: &App,
    store: &StoreId,
    request: Option<ProcessRequest>,
) -> Result<Option<NewProcess>, Problem> {
    let Some(request) = request else {
        return Ok(None);
    };
    let tag = request.tag.as_deref();
    let found = app
        .store
        .definition(store, &request.definition, request.version, tag)
        .await?;
    let definition = found.ok_or_else(|| {
        let detail = "no such process definition";
        Problem::fault("/process/definition", "unknown_definition", detail)
    })?;
    let max_duration = request.max_duration.as_deref().and_then(seconds);
    Ok(Some(NewProcess {
        definition,
        parameters: Value::Object(request.parameters),
        max_duration: max_duration.unwrap_or(MAX_DURATION),
        not_before: request.not_before.as_deref().and_then(millis),
        not_after: request.not_after.as_deref().and_then(millis),
        token_hash: String::new(),
    }))
}
