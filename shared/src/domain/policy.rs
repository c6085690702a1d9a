//! With which credentials a relying party's devices are reached.

use super::state::words;
use crate::secret::Secret;
use serde::{Deserialize, Serialize};

words! {
    /// Who carries a wake-up to a device.
    Provider {
        /// Apple Push Notification service.
        Apns = "apns",
        /// Firebase Cloud Messaging, HTTP v1.
        Fcm = "fcm",
    }
}

/// How a device signs. Its key says which; both are of 128 bits of strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyAlgorithm {
    /// ECDSA on P-256 with SHA-256: what every phone's secure hardware can.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl KeyAlgorithm {
    /// Every value.
    pub const ALL: &'static [Self] = &[Self::Es256, Self::EdDsa];

    /// The word in a JWS header (RFC 7518, RFC 8037) and in policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// A token-based APNs credential (developer.apple.com, "Establishing a token-based connection to APNs").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApnsCredential {
    /// Ten characters.
    pub team_id: String,
    /// Ten characters.
    pub key_id: String,
    /// The app's bundle identifier.
    pub topic: String,
    /// The `.p8` file: PKCS#8, PEM.
    pub private_key: Secret,
    /// `https://api.push.apple.com` or the sandbox.
    pub endpoint: String,
}

/// A Firebase service account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FcmCredential {
    /// The service account's JSON file; it names the project and the token endpoint.
    pub service_account: Secret,
    /// `https://fcm.googleapis.com`.
    pub endpoint: String,
}
