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
