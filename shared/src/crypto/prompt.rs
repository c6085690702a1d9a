//! What the server signs of a prompt, so that whoever holds a provider's credential, or sits between, can ask nobody anything.

use super::{ServerKey, Signer};
use crate::domain::{Kind, PushState};
use crate::id::{DeviceId, PushId, StoreId};
use serde::{Deserialize, Serialize};

const TYP: &str = "countersign-prompt+jwt";

/// The claims of a signed prompt. A device refuses a prompt that says anything else than these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptClaims {
    /// [`PromptClaims::VERSION`].
    pub ver: u32,
    /// The store that asks.
    pub iss: StoreId,
    /// The device that is asked, and no other.
    pub aud: DeviceId,
    /// The push.
    pub sub: PushId,
    /// Seconds since the epoch.
    pub iat: i64,
    /// Where the push stood.
    pub state: PushState,
    /// The push's nonce.
    pub nonce: String,
    /// The push's kind.
    pub kind: Kind,
    /// The hash of what is to be shown.
    pub content_hash: String,
    /// Must the six digits be typed?
    pub match_required: bool,
    /// RFC 3339, as in the prompt.
    pub expires_at: String,
}

impl PromptClaims {
    /// The only version there is. A device knows no older one to be talked down to.
    pub const VERSION: u32 = 1;

    /// The signed prompt.
    pub fn sign(&self, signer: &Signer) -> String {
        signer.sign(TYP, self)
    }

    /// What `key` has signed as a prompt.
    pub fn read(jws: &str, key: &ServerKey) -> Option<Self> {
        key.verified(jws, TYP)
    }
}
