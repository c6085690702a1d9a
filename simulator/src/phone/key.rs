//! The phone's key and what it signs: JWS compact, with ES256 or EdDSA.

use super::Error;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use shared::domain::KeyAlgorithm;
use shared::secret::Secret;

/// A private key. It leaves only by [`Key::saved`].
pub(super) enum Key {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Key {
    pub(super) fn generate(algorithm: KeyAlgorithm) -> Self {
        // Key generation fails only where the system's random generator does, and that one is seeded before any process starts.
        let seeded = "the system's random generator answers";
        match algorithm {
            KeyAlgorithm::Es256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
                Self::P256(pair.expect(seeded))
            }
            KeyAlgorithm::EdDsa => Self::Ed25519(Ed25519KeyPair::generate().expect(seeded)),
        }
    }

    pub(super) fn load(saved: &Secret) -> Result<Self, Error> {
        let der = STANDARD
            .decode(saved.expose())
            .map_err(|_| Error::SavedKey)?;
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der) {
            return Ok(Self::P256(pair));
        }
        Ed25519KeyPair::from_pkcs8(&der)
            .map(Self::Ed25519)
            .map_err(|_| Error::SavedKey)
    }

    /// PKCS#8 as base64.
    pub(super) fn saved(&self) -> Secret {
        let der = match self {
            Self::P256(pair) => pair.to_pkcs8v1(),
            Self::Ed25519(pair) => pair.to_pkcs8v1(),
        };
        // Encoding a key that is in memory needs nothing but memory.
        Secret::new(STANDARD.encode(der.expect("a key in memory has a PKCS#8 form")))
    }

    pub(super) fn algorithm(&self) -> KeyAlgorithm {
        match self {
            Self::P256(_) => KeyAlgorithm::Es256,
            Self::Ed25519(_) => KeyAlgorithm::EdDsa,
        }
    }

    /// The public half (RFC 7517; RFC 7518, 6.2; RFC 8037).
    pub(super) fn public_jwk(&self) -> Value {
        match self {
            Self::P256(pair) => {
                // 0x04, then 32 bytes each.
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({
                    "kty": "EC",
                    "crv": "P-256",
                    "x": URL_SAFE_NO_PAD.encode(x),
                    "y": URL_SAFE_NO_PAD.encode(y),
                })
            }
            Self::Ed25519(pair) => {
                let x = URL_SAFE_NO_PAD.encode(pair.public_key());
                json!({"kty": "OKP", "crv": "Ed25519", "x": x})
            }
        }
    }

    /// Signs `payload` (RFC 7515, section 7.1): the signature has 64 bytes.
    pub(super) fn sign(&self, typ: &str, kid: &str, payload: &Value) -> String {
        let alg = self.algorithm().as_str();
        let header = json!({"alg": alg, "typ": typ, "kid": kid}).to_string();
        let mut jws = URL_SAFE_NO_PAD.encode(header);
        jws.push('.');
        URL_SAFE_NO_PAD.encode_string(payload.to_string(), &mut jws);
        let signature = match self {
            Self::P256(pair) => {
                let signature = pair.sign(&SystemRandom::new(), jws.as_bytes());
                // Signing fails only where the random generator does.
                URL_SAFE_NO_PAD.encode(signature.expect("a P-256 key signs any text"))
            }
            Self::Ed25519(pair) => URL_SAFE_NO_PAD.encode(pair.sign(jws.as_bytes())),
        };
        jws.push('.');
        jws.push_str(&signature);
        jws
    }
}

#[cfg(test)]
mod tests {
    use super::Key;
    use shared::domain::KeyAlgorithm;
    use shared::secret::Secret;

    #[test]
    fn a_key_survives_being_saved() {
        for algorithm in KeyAlgorithm::ALL {
            let key = Key::generate(*algorithm);
            let loaded = Key::load(&key.saved()).unwrap();
            assert_eq!(loaded.public_jwk(), key.public_jwk());
            assert_eq!(loaded.algorithm(), *algorithm);
        }
        assert!(Key::load(&Secret::new("bm8ga2V5")).is_err());
        assert!(Key::load(&Secret::new("%")).is_err());
    }
}
