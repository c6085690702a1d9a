//! What a device signs, and how it is checked. The format: `docs/device-protocol.md`.

use super::{same_text, sha256_text};
use crate::clock::Millis;
use crate::domain::{Content, Kind};
use crate::id::{DeviceId, PushId, StoreId};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::{Deserialize, Serialize};

/// How far a device's clock may be from ours for its requests. Never used to judge whether a push has expired.
pub const REQUEST_TOLERANCE_S: i64 = 60;
/// No signed text of ours is longer.
pub(super) const MAX_LENGTH: usize = 4096;

/// The public half of a device's key, P-256, as a JWK (RFC 7517).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceKey {
    /// `EC`.
    pub kty: String,
    /// `P-256`.
    pub crv: String,
    /// base64url, 32 bytes.
    pub x: String,
    /// base64url, 32 bytes.
    pub y: String,
}

impl DeviceKey {
    /// Is it a point on the curve?
    pub fn is_sound(&self) -> bool {
        let coordinate = |text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .ok()
                .filter(|bytes| bytes.len() == 32)
        };
        let (Some(x), Some(y)) = (coordinate(&self.x), coordinate(&self.y)) else {
            return false;
        };
        let mut point = vec![4_u8];
        point.extend(x);
        point.extend(y);
        self.kty == "EC"
            && self.crv == "P-256"
            && aws_lc_rs::signature::ParsedPublicKey::new(
                &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED,
                &point,
            )
            .is_ok()
    }
}

/// Who claims to have signed a request, before anything is checked: the key to look up.
pub struct Signed<'a> {
    jws: &'a str,
    /// The device that the header names.
    pub device: DeviceId,
}

/// A request is not the device's. Callers learn nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// Not a JWS of the right type.
    #[error("not a signed request")]
    Form,
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
struct RequestClaims {
    iss: String,
    htm: String,
    htu: String,
    iat: i64,
    jti: String,
    bh: String,
}

fn header_of(jws: &str, typ: &str) -> Option<DeviceId> {
    if jws.len() > MAX_LENGTH {
        return None;
    }
    let header = decode_header(jws).ok()?;
    let right = header.alg == Algorithm::ES256 && header.typ.as_deref() == Some(typ);
    right.then_some(header.kid)??.parse().ok()
}

pub(super) fn claims_of<T: serde::de::DeserializeOwned + Clone>(
    jws: &str,
    key: &DeviceKey,
) -> Option<T> {
    let key = DecodingKey::from_ec_components(&key.x, &key.y).ok()?;
    let mut rules = Validation::new(Algorithm::ES256);
    rules.required_spec_claims.clear();
    rules.validate_exp = false;
    rules.validate_aud = false;
    decode::<T>(jws, &key, &rules).ok().map(|data| data.claims)
}

impl<'a> Signed<'a> {
    /// Reads the value of an `authorization` header.
    pub fn read(authorization: &'a str) -> Result<Self, RequestFault> {
        let jws = authorization
            .strip_prefix("Device ")
            .ok_or(RequestFault::Form)?;
        let device = header_of(jws, "countersign-request+jwt").ok_or(RequestFault::Form)?;
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
        let raw: RawRequest = claims_of(self.jws, key).ok_or(RequestFault::Signature)?;
        let claims: RequestClaims =
            serde_json::from_value(raw.0).map_err(|_| RequestFault::Form)?;
        let bound = claims.iss == self.device.as_str()
            && claims.htm == method
            && claims.htu == path
            && same_text(&claims.bh, &sha256_text(body));
        if !bound || !(16..=64).contains(&claims.jti.len()) {
            return Err(RequestFault::Binding);
        }
        if (now / 1000).abs_diff(claims.iat) > REQUEST_TOLERANCE_S.unsigned_abs() {
            return Err(RequestFault::Time);
        }
        Ok(claims.jti)
    }
}

#[derive(Deserialize, Clone)]
pub(super) struct RawRequest(pub(super) serde_json::Value);

/// Exactly what is shown, hashed: base64url of the SHA-256 over its RFC 8785 form.
pub fn content_hash(shown: &Content) -> String {
    // Texts, lists and words only: there is no number that JCS could refuse.
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
    /// Not a JWS of the right type and algorithm.
    #[error("form")]
    Form,
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
        let kid = header_of(jws, "countersign-proof+jwt").ok_or(ProofFault::Form)?;
        let raw: RawRequest = claims_of(jws, key).ok_or(ProofFault::Signature)?;
        let proof: Self = serde_json::from_value(raw.0).map_err(|_| ProofFault::Form)?;
        let bound = proof.ver == 1
            && kid == *expected.device
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

    /// Yes or no.
    pub fn approves(&self) -> bool {
        self.decision == "approve"
    }
}
