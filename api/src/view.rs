//! How pushes look to callers.

use serde::{Deserialize, Serialize};
use shared::clock::rfc3339;
use shared::domain::{Assurance, Context, Field, Target};
use shared::store::{DeliveryRow, PushRow};
use utoipa::ToSchema;

/// A push.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PushView {
    /// Its identifier.
    pub(crate) id: String,
    /// The store.
    store: String,
    /// Who is asked.
    user: String,
    /// Who asks.
    relying_party: String,
    /// `process`, `generic` or `confirm`.
    kind: String,
    /// `accepted`, `pending`, `opened`, then one of `approved`, `denied`, `expired`, `cancelled`, `failed`, `completed`, for good.
    state: String,
    /// Why it ended: a stable word; empty before.
    reason: String,
    /// The device whose answer decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// The sender's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    /// The approval by several people that it is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<String>,
    /// The child process instance, once the link was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    /// Whose rules it follows: `default`, `nist` or `psd2`.
    profile: String,
    /// What the approval is worth, where a proof approved it.
    #[serde(skip_serializing_if = "Option::is_none")]
    assurance: Option<AssuranceView>,
    /// RFC 3339, UTC; once its approval was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    consumed_at: Option<String>,
    /// Which devices are asked.
    target: TargetView,
    /// RFC 3339, UTC.
    created_at: String,
    /// Until when an answer counts.
    expires_at: String,
    /// RFC 3339, UTC; once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    /// One for each device that was asked; left out in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries: Option<Vec<DeliveryView>>,
}

/// What an approval is worth.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AssuranceView {
    /// `multi` where the proof says that the device verified its user and the device was registered under an appkey policy that demands it; else `single`.
    factors: String,
    /// Always `false`.
    phishing_resistant: bool,
}

impl From<Assurance> for AssuranceView {
    fn from(assurance: Assurance) -> Self {
        Self {
            factors: assurance.factors.to_string(),
            phishing_resistant: assurance.phishing_resistant,
        }
    }
}

/// Which of the user's devices are asked.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetView {
    /// `all`: every active device. `preferred`: the preferred one, or the oldest where none is marked. `devices`: those listed.
    pub(crate) mode: TargetMode,
    /// With `preferred`: ask all others after this time without an answer, or at once after a hard failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[1-9][0-9]{0,3}s$", example = "15s")]
    pub(crate) escalate_after: Option<String>,
    /// With `devices`: identifiers of the user's devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 20)]
    pub(crate) devices: Vec<String>,
}

/// See `TargetView`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TargetMode {
    All,
    Preferred,
    Devices,
}

/// One push to one device.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeliveryView {
    /// Its identifier.
    id: String,
    /// The device.
    device: String,
    /// `queued`, `sending`, `sent` (the provider took it, nothing more), `retry_wait`, `fetched`, `answered`, `withdrawn`, `expired`,
    /// `failed`, `skipped`.
    state: String,
    /// Why, where there is something to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// `approve` or `deny`, once this device has answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<String>,
    /// How often a provider was called.
    attempts: i64,
    /// The last change.
    updated_at: String,
}

/// From where the question comes, as the initiating channel saw it. At least one of the four is needed.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContextView {
    /// An IPv4 or IPv6 address.
    #[serde(default)]
    #[schema(min_length = 2, max_length = 45, example = "203.0.113.7")]
    ip: Option<String>,
    /// The program that is used there, such as a browser.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200, example = "Firefox on Linux")]
    agent: Option<String>,
    /// Where that is, as people say it.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 100, example = "Cork, Ireland")]
    place: Option<String>,
    /// Your own name of the session.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 100)]
    session: Option<String>,
}

impl From<ContextView> for Context {
    fn from(view: ContextView) -> Self {
        Self {
            ip: view.ip,
            agent: view.agent,
            place: view.place,
            session: view.session,
        }
    }
}

/// One line of typed details.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetailView {
    #[schema(min_length = 1, max_length = 36)]
    pub(crate) label: String,
    #[schema(min_length = 1, max_length = 128)]
    pub(crate) value: String,
}

impl From<DetailView> for Field {
    fn from(view: DetailView) -> Self {
        Self {
            label: view.label,
            value: view.value,
        }
    }
}

impl From<&Target> for TargetView {
    fn from(target: &Target) -> Self {
        let (mode, devices) = match target {
            Target::All => (TargetMode::All, Vec::new()),
            Target::Preferred { .. } => (TargetMode::Preferred, Vec::new()),
            Target::Devices { devices } => (
                TargetMode::Devices,
                devices.iter().map(ToString::to_string).collect(),
            ),
        };
        Self {
            mode,
            escalate_after: target.escalate_after().map(|ms| format!("{}s", ms / 1000)),
            devices,
        }
    }
}

impl PushView {
    pub(crate) fn new(push: &PushRow, deliveries: Option<Vec<DeliveryRow>>) -> Self {
        Self {
            id: push.id.to_string(),
            store: push.store.to_string(),
            user: push.user.to_string(),
            relying_party: push.rp.clone(),
            kind: push.kind.to_string(),
            state: push.state.to_string(),
            reason: push.reason.clone(),
            device: push.answered_by.as_ref().map(ToString::to_string),
            correlation_id: push.correlation_id.clone(),
            approval: push.approval.as_ref().map(ToString::to_string),
            instance: push.instance.as_ref().map(ToString::to_string),
            profile: push.profile.to_string(),
            assurance: push.factors.map(|factors| Assurance::from(factors).into()),
            consumed_at: push.consumed_at.map(rfc3339),
            target: (&push.target).into(),
            created_at: rfc3339(push.created_at),
            expires_at: rfc3339(push.expires_at),
            ended_at: push.ended_at.map(rfc3339),
            deliveries: deliveries.map(|all| all.iter().map(DeliveryView::new).collect()),
        }
    }
}

impl DeliveryView {
    pub(crate) fn new(row: &DeliveryRow) -> Self {
        Self {
            id: row.id.to_string(),
            device: row.device.to_string(),
            state: row.state.to_string(),
            reason: row.reason.clone(),
            decision: row.decision.clone(),
            attempts: row.attempts,
            updated_at: rfc3339(row.updated_at),
        }
    }
}

/// Part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Listed<T> {
    /// The things.
    pub(crate) data: Vec<T>,
    /// Give it as `cursor` for the next part; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_cursor: Option<String>,
}
