//! Keys for vectors and for nothing else: their private halves are published.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// PKCS#8, base64.
const P256: [&str; 2] = [include_str!("p256-1.txt"), include_str!("p256-2.txt")];
/// RFC 8032, 7.1, tests 1 and 2.
const ED25519: [&str; 2] = [
    "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "TM0Imyj_ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U-4pvs",
];

pub(crate) enum Key {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Key {
    pub(crate) fn alg(&self) -> &'static str {
        match self {
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    pub(crate) fn jwk(&self) -> Value {
        match self {
            Self::P256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y)})
            }
            Self::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key())})
            }
        }
    }

    pub(crate) fn signature(&self, signed: &str) -> Vec<u8> {
        match self {
            Self::P256(pair) => {
                let signature = pair.sign(&SystemRandom::new(), signed.as_bytes());
                signature.unwrap().as_ref().to_vec()
            }
            Self::Ed25519(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
        }
    }

    /// A JWS with any header and any payload.
    pub(crate) fn sign(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", b64(header), b64(payload));
        let signature = self.signature(&signed);
        format!("{signed}.{}", b64(signature))
    }
}

/// For each algorithm a device's key and a stranger's.
pub(crate) struct Keys(pub(crate) [(Key, Key); 2]);

impl Keys {
    pub(crate) fn get() -> Self {
        let p256 = |text: &str| {
            let der = STANDARD.decode(text.trim()).unwrap();
            Key::P256(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).unwrap())
        };
        let ed25519 = |text: &str| {
            let seed = URL_SAFE_NO_PAD.decode(text).unwrap();
            Key::Ed25519(Ed25519KeyPair::from_seed_unchecked(&seed).unwrap())
        };
        Self([
            (p256(P256[0]), p256(P256[1])),
            (ed25519(ED25519[0]), ed25519(ED25519[1])),
        ])
    }
}
