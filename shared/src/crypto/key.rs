//! The public half of a device's key. The key says which algorithm its signatures have; what a header says is compared with it.

use super::jws::Jws;
use crate::domain::KeyAlgorithm;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};

/// A JWK (RFC 7517) of one of two kinds: P-256 for ES256 (RFC 7518, 6.2), Ed25519 for EdDSA (RFC 8037).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceKey {
    /// `EC` or `OKP`.
    pub kty: String,
    /// `P-256` or `Ed25519`.
    pub crv: String,
    /// base64url, 32 bytes.
    pub x: String,
    /// base64url, 32 bytes; with `EC` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

fn coordinate(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

impl DeviceKey {
    /// The only algorithm that its signatures may have.
    pub fn algorithm(&self) -> Option<KeyAlgorithm> {
        match (self.kty.as_str(), self.crv.as_str(), &self.y) {
            ("EC", "P-256", Some(_)) => Some(KeyAlgorithm::Es256),
            ("OKP", "Ed25519", None) => Some(KeyAlgorithm::EdDsa),
            _ => None,
        }
    }

    /// `0x04 || x || y`, if that is a point of the curve.
    fn p256(&self) -> Option<ParsedPublicKey> {
        let (x, y) = (coordinate(&self.x)?, coordinate(self.y.as_deref()?)?);
        let point = [&[4], x.as_slice(), y.as_slice()].concat();
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).ok()
    }

    /// A point of the curve in its one canonical form, and not one of the eight of small order, under which anything verifies.
    fn ed25519(&self) -> Option<VerifyingKey> {
        let bytes = coordinate(&self.x)?;
        let key = VerifyingKey::from_bytes(&bytes).ok()?;
        let canonical = key.to_edwards().compress().to_bytes() == bytes;
        (canonical && !key.is_weak()).then_some(key)
    }

    /// Is it a key that can be trusted at all?
    pub fn is_sound(&self) -> bool {
        match self.algorithm() {
            Some(KeyAlgorithm::Es256) => self.p256().is_some(),
            Some(KeyAlgorithm::EdDsa) => self.ed25519().is_some(),
            None => false,
        }
    }

    /// Does `jws` name this key's algorithm?
    pub(super) fn fits(&self, jws: &Jws<'_>) -> bool {
        self.algorithm()
            .is_some_and(|alg| alg.as_str() == jws.alg())
    }

    /// Has this key made the signature? 64 bytes for both: `r || s`, or RFC 8032's `R || S`.
    ///
    /// ES256 takes `n - s` for `s` as well: phones' keystores make either, and a second form of one signature is a second copy of one answer,
    /// which the push's state turns away. Ed25519 is verified strictly: no `S` of another form, no `R` of small order.
    pub(super) fn has_signed(&self, jws: &Jws<'_>) -> bool {
        let signed = jws.signed.as_bytes();
        match self.algorithm() {
            Some(KeyAlgorithm::Es256) => self
                .p256()
                .is_some_and(|key| key.verify_sig(signed, &jws.signature).is_ok()),
            Some(KeyAlgorithm::EdDsa) => {
                let signature = Signature::from_slice(&jws.signature).ok();
                signature
                    .zip(self.ed25519())
                    .is_some_and(|(signature, key)| key.verify_strict(signed, &signature).is_ok())
            }
            None => false,
        }
    }
}
