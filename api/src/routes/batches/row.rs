//! One line of a batch: what it may say, and the push that it becomes.

use super::lines::Line;
use crate::body::faults_of;
use crate::problem::Fault;
use crate::routes::pushes::checks::{correlation_faults, seconds, time_at, user_faults};
use crate::routes::pushes::create::{UserName, user_of};
use crate::view::{DetailView, TargetMode, TargetView};
use serde::Deserialize;
use serde_json::{Map, Value};
use shared::clock::Millis;
use shared::crypto::{content_hash, random_text, sha256_text};
use shared::domain::{Content, Kind, Target};
use shared::id::PushId;
use shared::store::{NewRow, Refusal, RowCheck};
use utoipa::ToSchema;

/// How long an answer counts when nothing else was said.
const EXPIRES_IN: Millis = 24 * 3_600_000;
const EXPIRES_IN_RANGE: std::ops::RangeInclusive<Millis> = 10_000..=7 * 24 * 3_600_000;

/// One line of a batch: a `generic` push to one user. What is left out comes from the batch's own parameters.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchLine {
    /// The idempotency key of this line, in the same space as those of single pushes: whatever is sent again with it asks once. The place
    /// in the batch when left out.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255, pattern = "^[!-~]+$")]
    #[expect(dead_code, reason = "taken out before the rest is hashed")]
    key: Option<String>,
    /// Whom to ask: exactly one of the two.
    user: UserName,
    /// Which app asks.
    #[schema(min_length = 1, max_length = 100, pattern = "^[A-Za-z0-9._-]+$")]
    relying_party: String,
    /// `generic`, also when left out. A `confirm` shows a code to the one who asked, and a `process` belongs to one session: both are sent
    /// one by one.
    #[serde(default)]
    #[expect(dead_code, reason = "there is only one")]
    kind: Option<BatchKind>,
    /// What is said, in one line.
    #[schema(min_length = 1, max_length = 100)]
    title: String,
    /// What is said, in more words.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    message: Option<String>,
    /// Typed details, shown and signed.
    #[serde(default)]
    #[schema(max_items = 20)]
    details: Vec<DetailView>,
    /// Which devices: the modes `all` (when left out) and `preferred`.
    #[serde(default)]
    target: Option<TargetView>,
    /// How long an answer counts, from the moment a worker takes the push: `10s` to `604800s`, `86400s` when left out.
    #[serde(default)]
    #[schema(pattern = "^[1-9][0-9]{0,5}s$", example = "86400s")]
    expires_in: Option<String>,
    /// Comes back in the completion event.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    correlation_id: Option<String>,
}

/// See `BatchLine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BatchKind {
    Generic,
}

/// What the schema cannot say.
fn more_faults(sent: &Value, faults: &mut Vec<Fault>) {
    let given = |pointer: &str| sent.pointer(pointer).is_some_and(|value| !value.is_null());
    let mut fault = |pointer: &str, code: &str, detail: &str| {
        faults.push(Fault::new(pointer, code, detail));
    };
    user_faults(sent, &mut fault);
    let mode = sent.pointer("/target/mode").and_then(Value::as_str);
    if mode == Some("devices") || given("/target/devices") || given("/target/escalate_after") {
        let detail = "in a batch only the modes all and preferred, without escalation";
        fault("/target", "not_allowed", detail);
    }
    correlation_faults(sent, &mut fault);
    time_at(sent, "/expires_in", EXPIRES_IN, &EXPIRES_IN_RANGE, faults);
}

/// All faults of a line.
pub(super) fn faults_of_line(sent: &Value) -> Vec<Fault> {
    let mut faults = faults_of::<BatchLine>(sent);
    more_faults(sent, &mut faults);
    faults
}

/// The push that a line becomes, or why it becomes none.
pub(super) fn row_of(
    line: Line,
    defaults: &Map<String, Value>,
    now: Millis,
) -> Result<NewRow, Refusal> {
    let (number, length, mut value) = match line {
        Line::Row {
            number,
            length,
            value,
        } => (number, length, value),
        Line::Bad { number, fault } => return Err(refusal(number, None, &[fault])),
    };
    let mut key = None;
    if let Some(row) = value.as_object_mut() {
        for (name, default) in defaults {
            row.entry(name.as_str()).or_insert_with(|| default.clone());
        }
        key = row.get("key").and_then(Value::as_str).map(str::to_owned);
    }
    let faults = faults_of_line(&value);
    if !faults.is_empty() {
        // A key that is at fault itself is not repeated.
        let key = key.filter(|_| faults.iter().all(|fault| fault.pointer != "/key"));
        return Err(refusal(number, key, &faults));
    }
    if let Some(row) = value.as_object_mut() {
        row.remove("key");
    }
    let hash = sha256_text(value.to_string().as_bytes());
    let parsed: BatchLine = serde_json::from_value(value).map_err(|error| {
        let fault = Fault::new("", "invalid", error.to_string());
        refusal(number, key.clone(), &[fault])
    })?;
    let content = Content {
        kind: Kind::Generic,
        relying_party: parsed.relying_party,
        title: parsed.title,
        message: parsed.message,
        details: parsed.details.into_iter().map(Into::into).collect(),
        context: None,
        payment: None,
        approval: None,
        payments: None,
        redirect_url: None,
    };
    let preferred = parsed
        .target
        .is_some_and(|view| matches!(view.mode, TargetMode::Preferred));
    Ok(NewRow {
        line: number,
        key,
        hash,
        id: PushId::fresh(now),
        user: user_of(parsed.user),
        content_hash: content_hash(&content),
        content,
        target: if preferred {
            Target::Preferred {
                escalate_after: None,
            }
        } else {
            Target::All
        },
        nonce: random_text::<24>(),
        lifetime: parsed
            .expires_in
            .as_deref()
            .and_then(seconds)
            .unwrap_or(EXPIRES_IN),
        correlation_id: parsed.correlation_id,
        bytes: i64::try_from(length).unwrap_or(i64::MAX),
    })
}

fn refusal(line: i64, key: Option<String>, faults: &[Fault]) -> Refusal {
    Refusal {
        line,
        key,
        duplicate_of: None,
        faults: told(faults),
    }
}

fn told(faults: &[Fault]) -> String {
    serde_json::to_string(faults).unwrap_or_default()
}

/// What is said of a line that the store does not take.
pub(super) fn faults_of_check(check: &RowCheck) -> Option<String> {
    let fault = match check {
        RowCheck::Good(_) => return None,
        RowCheck::Duplicate(push) => Fault::new(
            "/key",
            "duplicate",
            format!("this key has made {push} before, with the same request"),
        ),
        RowCheck::KeyReused => Fault::new(
            "/key",
            "key_reused",
            "this key, or this line of the batch, came before with another request",
        ),
        RowCheck::NoUser => Fault::new("/user", "unknown_user", "the store has no such user"),
        RowCheck::UserInactive(status) => {
            Fault::new("/user", "user_inactive", format!("the user is {status}"))
        }
    };
    Some(told(&[fault]))
}
