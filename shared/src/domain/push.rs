//! What is asked, of whom, and how it ended.

use super::state::{PushState, words};
use crate::id::DeviceId;
use serde::{Deserialize, Serialize};

words! {
    /// What the push asks for.
    Kind {
        /// Accept opens a link; a child process instance decides.
        Process = "process",
        /// Contents are shown; each device that accepts is counted.
        Generic = "generic",
        /// A signed approve or deny, with a match code.
        Confirm = "confirm",
    }
}

/// Which of the user's devices are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Target {
    /// Every active device.
    All,
    /// The preferred device; the oldest active one where none is marked.
    Preferred {
        /// Ask the others after this many milliseconds without an answer, or at once after a hard failure.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        escalate_after: Option<i64>,
    },
    /// These.
    Devices {
        /// Identifiers of the user's devices.
        devices: Vec<DeviceId>,
    },
}

/// One line of typed details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// At most 36 characters.
    pub label: String,
    /// At most 128 characters.
    pub value: String,
}

/// Exactly what the person is shown; the proof covers its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// `process`, `generic` or `confirm`: a proof for one never verifies as another.
    pub kind: Kind,
    /// At most 100 characters.
    pub title: String,
    /// At most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// At most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Field>,
    /// For `process`: the link that an accept opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_url: Option<String>,
}

/// How a push ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// A terminal state.
    pub state: PushState,
    /// A stable word, such as `user_declined`.
    pub reason: String,
    /// The device whose answer decided, where one did.
    pub device: Option<DeviceId>,
}
