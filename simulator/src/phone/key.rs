//! The phone's P-256 key and what it signs: JWS compact with ES256.

use super::Error;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use shared::secret::Secret;

/// A private key. It leaves only by [`Key::saved`].
pub(super) struct Key(EcdsaKeyPair);

impl Key {
    pub(super) fn generate() -> Self {
        // Key generation fails only where the system's random generator does, and that one is seeded before any process starts.
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Self(pair.expect("the system's random generator answers"))
    }

    pub(super) fn load(saved: &Secret) -> Result<Self, Error> {
        let der = STANDARD
            .decode(saved.expose())
            .map_err(|_| Error::SavedKey)?;
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
            .map(Self)
            .map_err(|_| Error::SavedKey)
    }

    /// PKCS#8 as base64.
    pub(super) fn saved(&self) -> Secret {
        let der = self.0.to_pkcs8v1();
        // Encoding a key that is in memory needs nothing but memory.
        Secret::new(STANDARD.encode(der.expect("a P-256 key has a PKCS#8 form")))
    }

    /// The public half (RFC 7517, RFC 7518 section 6.2).
    pub(super) fn public_jwk(&self) -> Value {
        // 0x04, then 32 bytes each.
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        json!({
            "kty": "EC",
            "crv": "P-256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// Signs `payload` (RFC 7515, section 7.1): the signature is `r || s`, 64 bytes.
    pub(super) fn sign(&self, typ: &str, kid: &str, payload: &Value) -> String {
        let header = json!({"alg": "ES256", "typ": typ, "kid": kid}).to_string();
        let mut jws = URL_SAFE_NO_PAD.encode(header);
        jws.push('.');
        URL_SAFE_NO_PAD.encode_string(payload.to_string(), &mut jws);
        let signature = self.0.sign(&SystemRandom::new(), jws.as_bytes());
        // Signing fails only where the random generator does.
        let signature = signature.expect("a P-256 key signs any text");
        jws.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut jws);
        jws
    }
}

#[cfg(test)]
mod tests {
    use super::Key;
    use shared::secret::Secret;

    #[test]
    fn a_key_survives_being_saved() {
        let key = Key::generate();
        let loaded = Key::load(&key.saved()).unwrap();
        assert_eq!(loaded.public_jwk(), key.public_jwk());
        assert!(Key::load(&Secret::new("bm8ga2V5")).is_err());
        assert!(Key::load(&Secret::new("%")).is_err());
    }
}
