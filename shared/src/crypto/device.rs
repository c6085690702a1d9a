//! What a device signs, and how it is checked. The format: `docs/device-protocol.md`.

use super::jws::Jws;
use super::{DeviceKey, same_text, sha256_text};
use crate::clock::Millis;
use crate::domain::{Content, Kind};
use crate::id::{DeviceId, PushId, StoreId};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// How far a device's clock may be from ours for its requests. Never used to judge whether a push has expired.
pub const REQUEST_TOLERANCE_S: i64 = 60;
const REQUEST: &str = "countersign-request+jwt";
const PROOF: &str = "countersign-proof+jwt";
/// No text that a device signs is longer.
pub(super) const MAX_LENGTH: usize = 4096;

/// Who claims to have signed a request, before anything is checked: the key to look up.
pub struct Signed<'a> {
    jws: Jws<'a>,
    /// The device that the header names.
    pub device: DeviceId,
}

/// A request is not the device's. Callers learn nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// Not a JWS of the right type.
    #[error("not a signed request")]
    Form,
    /// Another algorithm than the key's.
    #[error("another algorithm than the key's")]
    Algorithm,
    /// The signature does not fit the key.
    #[error("bad signature")]
    Signature,
    /// Signed for something else.
    #[error("signed for another request")]
    Binding,
    /// Signed too long ago or ahead of time.
    #[error("not signed just now")]
    Time,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestClaims {
    iss: String,
    htm: String,
    htu: String,
    iat: i64,
    jti: String,
    bh: String,
}

impl<'a> Signed<'a> {
    /// Reads the value of an `authorization` header.
    pub fn read(authorization: &'a str) -> Result<Self, RequestFault> {
        let jws = authorization
            .strip_prefix("Device ")
            .ok_or(RequestFault::Form)?;
        let jws = Jws::read(jws, REQUEST, MAX_LENGTH).ok_or(RequestFault::Form)?;
        let device = jws.kid().and_then(|kid| kid.parse().ok());
        let device = device.ok_or(RequestFault::Form)?;
        Ok(Self { jws, device })
    }

    /// Checks it against the device's key and the request at hand. Gives the `jti`, which may be used once.
    pub fn check(
        &self,
        key: &DeviceKey,
        method: &str,
        path: &str,
        body: &[u8],
        now: Millis,
    ) -> Result<String, RequestFault> {
        if !key.fits(&self.jws) {
            return Err(RequestFault::Algorithm);
        }
        if !key.has_signed(&self.jws) {
            return Err(RequestFault::Signature);
        }
        let claims: RequestClaims = self.jws.claims().ok_or(RequestFault::Form)?;
        let bound = claims.iss == self.device.as_str()
            && claims.htm == method
            && claims.htu == path
            && same_text(&claims.bh, &sha256_text(body));
        let once = (16..=64).contains(&claims.jti.len())
            && claims.jti.bytes().all(|b| b.is_ascii_graphic());
        if !bound || !once {
            return Err(RequestFault::Binding);
        }
        if (now / 1000).abs_diff(claims.iat) > REQUEST_TOLERANCE_S.unsigned_abs() {
            return Err(RequestFault::Time);
        }
        Ok(claims.jti)
    }
}

/// Exactly what is shown, hashed: base64url of the SHA-256 over its RFC 8785 form.
pub fn content_hash(shown: &Content) -> String {
    // Texts, lists, words and a small count: there is no number that JCS could refuse.
    let canonical = serde_json_canonicalizer::to_vec(shown).unwrap_or_default();
    sha256_text(&canonical)
}

/// What a device sends instead of the typed code.
pub fn match_of(nonce: &str, code: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, nonce.as_bytes());
    URL_SAFE_NO_PAD.encode(hmac::sign(&key, code.as_bytes()))
}

/// The claims of a proof.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    ver: u32,
    iss: String,
    aud: String,
    sub: String,
    jti: String,
    iat: i64,
    nonce: String,
    /// `approve` or `deny`.
    pub decision: String,
    /// For a denial.
    #[serde(default)]
    pub reason: Option<String>,
    kind: Kind,
    content_hash: String,
    #[serde(rename = "match", default)]
    matched: Option<String>,
    /// `none`, `device` or `biometric`.
    pub uv: String,
}

/// Why a proof does not hold. For the operator's log; the caller learns only that it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofFault {
    /// Not a JWS of the right type, or claims that we do not know.
    #[error("form")]
    Form,
    /// Another algorithm than the one of the key that was bound.
    #[error("algorithm")]
    Algorithm,
    /// The signature does not fit the device's key.
    #[error("signature")]
    Signature,
    /// Made for another push, store, device, version, kind or nonce.
    #[error("binding")]
    Binding,
    /// What the device showed is not what was asked.
    #[error("content")]
    Content,
    /// The decision or its reason is no word of ours.
    #[error("decision")]
    Decision,
    /// The typed code is wrong or missing.
    #[error("code")]
    Code,
}

impl ProofFault {
    /// The word in the audit log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Binding => "binding",
            Self::Content => "content",
            Self::Decision => "decision",
            Self::Code => "code",
        }
    }
}

/// What a proof must be bound to: all from the stored push, nothing from the caller.
pub struct Expected<'a> {
    /// Who answers.
    pub device: &'a DeviceId,
    /// The store.
    pub store: &'a StoreId,
    /// The push.
    pub push: &'a PushId,
    /// Its nonce.
    pub nonce: &'a str,
    /// Its kind.
    pub kind: Kind,
    /// The hash of what was asked.
    pub content_hash: &'a str,
    /// The right code, where one must be typed.
    pub code: Option<&'a str>,
}

/// The reasons that a person may give for a denial.
pub const DENIAL_REASONS: [&str; 4] = [
    "user_declined",
    "fraud_reported",
    "wrong_data",
    "user_cancelled",
];

impl Proof {
    /// Checks a proof. A wrong code is the last thing found: only a device that holds the key can try one.
    pub fn check(jws: &str, key: &DeviceKey, expected: &Expected<'_>) -> Result<Self, ProofFault> {
        let jws = Jws::read(jws, PROOF, MAX_LENGTH).ok_or(ProofFault::Form)?;
        if !key.fits(&jws) {
            return Err(ProofFault::Algorithm);
        }
        if !key.has_signed(&jws) {
            return Err(ProofFault::Signature);
        }
        let proof: Self = jws.claims().ok_or(ProofFault::Form)?;
        let bound = proof.ver == 1
            && jws.kid() == Some(expected.device.as_str())
            && proof.iss == expected.device.as_str()
            && proof.aud == expected.store.as_str()
            && proof.sub == expected.push.as_str()
            && proof.kind == expected.kind
            && same_text(&proof.nonce, expected.nonce);
        if !bound {
            return Err(ProofFault::Binding);
        }
        if !same_text(&proof.content_hash, expected.content_hash) {
            return Err(ProofFault::Content);
        }
        if !matches!(proof.uv.as_str(), "none" | "device" | "biometric") {
            return Err(ProofFault::Decision);
        }
        match (proof.decision.as_str(), proof.reason.as_deref()) {
            ("deny", None) => {}
            ("deny", Some(reason)) if DENIAL_REASONS.contains(&reason) => {}
            ("approve", None) => {
                if let Some(code) = expected.code {
                    let given = proof.matched.as_deref().unwrap_or("");
                    if !same_text(given, &match_of(expected.nonce, code)) {
                        return Err(ProofFault::Code);
                    }
                }
            }
            _ => return Err(ProofFault::Decision),
        }
        Ok(proof)
    }

    /// Was a code typed? Whether it was the right one is for [`Proof::check`].
    pub fn tells_code(&self) -> bool {
        self.matched.is_some()
    }

    /// Yes or no.
    pub fn approves(&self) -> bool {
        self.decision == "approve"
    }
}
