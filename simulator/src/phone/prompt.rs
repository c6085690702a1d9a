//! What a phone is asked and what its owner says.

use serde::Deserialize;
use serde_json::Value;
use shared::domain::PushState;
use shared::id::{PushId, StoreId};
use shared::secret::Secret;

/// A question as it came from the API. Its `Debug` shows no text that the person sees.
#[derive(Clone, Deserialize)]
pub struct Prompt {
    /// The push.
    pub push: PushId,
    /// The identity store it belongs to.
    pub store: StoreId,
    /// Where the push stands.
    pub state: PushState,
    /// Exactly what the person sees; kept as it came, since the proof covers its hash.
    pub shown: Value,
    /// What the API says the hash is. The phone computes its own.
    pub content_hash: String,
    /// Goes into the proof.
    pub nonce: Secret,
    /// Whether an approval needs the match code.
    pub match_required: bool,
    /// RFC 3339.
    pub expires_at: String,
    /// What the server has signed of it. A phone gives no prompt out without having checked it.
    #[serde(default)]
    pub signature: Option<String>,
}

impl std::fmt::Debug for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prompt")
            .field("push", &self.push)
            .field("state", &self.state)
            .field("match_required", &self.match_required)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// What the person says.
#[derive(Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Approve {
        /// The six typed digits.
        code: Option<String>,
    },
    /// No.
    Deny {
        /// `user_declined` when not given.
        reason: Option<String>,
    },
}

impl Decision {
    /// The word in the proof.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Approve { .. } => "approve",
            Self::Deny { .. } => "deny",
        }
    }
}

impl std::fmt::Debug for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the API made of an answer, whatever it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The HTTP status: 200, or a refusal.
    pub status: u16,
    /// `{"push":…,"state":…,"reason":…}`, or a problem; null when the body was no JSON.
    pub body: Value,
}
