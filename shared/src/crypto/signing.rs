//! What the server signs: prompts, receipts, heads of the audit log. One Ed25519 key, derived from the server's secret, so that every process of
//! a deployment signs alike and nothing has to be kept beside the secret.

use super::jws::Jws;
use super::{ServerSecret, sha256_text};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const ALGORITHM: &str = "EdDSA";
/// No text that the server signs is longer: a receipt holds a proof.
const LONGEST: usize = 64 * 1024;

/// The public half of the server's key, as a JWK (RFC 8037). Devices pin it when they are bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerKey {
    /// `OKP`.
    pub kty: String,
    /// `Ed25519`.
    pub crv: String,
    /// base64url, 32 bytes.
    pub x: String,
    /// The key's thumbprint (RFC 7638).
    pub kid: String,
}

impl ServerKey {
    fn of(public: &[u8]) -> Self {
        let x = URL_SAFE_NO_PAD.encode(public);
        // RFC 7638, 3: the required members in lexicographic order.
        let kid = sha256_text(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#).as_bytes());
        Self {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            x,
            kid,
        }
    }

    /// Reads a JWK; what else it may say of the key is of no weight.
    pub fn from_jwk(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Jwk {
            kty: String,
            crv: String,
            x: String,
        }
        let jwk: Jwk = serde_json::from_str(text).ok()?;
        let public = URL_SAFE_NO_PAD.decode(jwk.x).ok()?;
        let right = jwk.kty == "OKP" && jwk.crv == "Ed25519" && public.len() == 32;
        right.then(|| Self::of(&public))
    }

    /// The key that a signed text brings along in its header (RFC 7515, 4.1.3). It says who claims to have signed, and no more: the reader
    /// compares the fingerprint with one that is known from elsewhere.
    pub fn of_signed(jws: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Header {
            kid: String,
            jwk: Jwk,
        }
        #[derive(Deserialize)]
        struct Jwk {
            x: String,
        }
        let header = URL_SAFE_NO_PAD.decode(jws.split('.').next()?).ok()?;
        let header: Header = serde_json::from_slice(&header).ok()?;
        let key = Self::of(&URL_SAFE_NO_PAD.decode(header.jwk.x).ok()?);
        (key.kid == header.kid).then_some(key)
    }

    /// The claims of a text that this key has signed for `typ`, whatever key the text brings along; `None` for anything else.
    pub fn verified<T: DeserializeOwned>(&self, jws: &str, typ: &str) -> Option<T> {
        let jws = Jws::read_with_key(jws, typ, LONGEST)?;
        let public = URL_SAFE_NO_PAD.decode(&self.x).ok()?;
        let right = jws.alg() == ALGORITHM && jws.kid() == Some(&self.kid);
        let key = UnparsedPublicKey::new(&ED25519, public);
        let signed = right && key.verify(jws.signed.as_bytes(), &jws.signature).is_ok();
        jws.claims().filter(|_| signed)
    }
}

/// Signs in the server's name.
pub struct Signer {
    pair: Ed25519KeyPair,
    public: ServerKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Signer").field(&self.public.kid).finish()
    }
}

impl Signer {
    pub(super) fn new(seed: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let public = ServerKey::of(pair.public_key().as_ref());
        Some(Self { pair, public })
    }

    /// What others check with.
    pub fn public(&self) -> &ServerKey {
        &self.public
    }

    /// A compact JWS (RFC 7515) over `claims`; `typ` keeps one use of the key from passing as another.
    pub fn sign(&self, typ: &str, claims: &impl Serialize) -> String {
        self.sign_under(
            &serde_json::json!({"alg": ALGORITHM, "typ": typ, "kid": self.public.kid}),
            claims,
        )
    }

    /// The same, with the public key in the header, for those who have nothing but the text.
    pub fn sign_with_key(&self, typ: &str, claims: &impl Serialize) -> String {
        let ServerKey { kty, crv, x, kid } = &self.public;
        let jwk = serde_json::json!({"kty": kty, "crv": crv, "x": x});
        self.sign_under(
            &serde_json::json!({"alg": ALGORITHM, "typ": typ, "kid": kid, "jwk": jwk}),
            claims,
        )
    }

    fn sign_under(&self, header: &serde_json::Value, claims: &impl Serialize) -> String {
        // Texts, words and numbers: this cannot fail to serialise.
        let claims = serde_json::to_vec(claims).unwrap_or_default();
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let signature = self.pair.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl ServerSecret {
    /// Signs in the server's name.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }
}

#[cfg(test)]
mod tests {
    use crate::crypto::ServerSecret;
    use crate::secret::Secret;
    use serde_json::{Value, json};

    fn secret(text: &str) -> ServerSecret {
        ServerSecret::new(&Secret::new(text.repeat(5))).unwrap()
    }

    #[test]
    fn a_text_that_brings_its_key_is_checked_with_nothing_else() {
        let secret = secret("0123456789");
        let jws = secret.signer().sign_with_key("a+jwt", &json!({"n": 1}));
        let key = super::ServerKey::of_signed(&jws).unwrap();
        assert_eq!(key, *secret.signer().public());
        assert_eq!(key.verified::<Value>(&jws, "a+jwt"), Some(json!({"n": 1})));
        let bare = secret.signer().sign("a+jwt", &json!({"n": 1}));
        assert_eq!(super::ServerKey::of_signed(&bare), None);
    }

    #[test]
    fn what_one_process_signs_every_other_one_checks() {
        let (here, there) = (secret("0123456789"), secret("0123456789"));
        let jws = here.signer().sign("a+jwt", &json!({"n": 1}));
        let key = there.signer().public();
        assert_eq!(key.verified::<Value>(&jws, "a+jwt"), Some(json!({"n": 1})));
        assert_eq!(key.verified::<Value>(&jws, "b+jwt"), None, "another use");
        let other = secret("9876543210");
        assert_eq!(
            other.signer().public().verified::<Value>(&jws, "a+jwt"),
            None
        );
        let mut forged = other.signer().public().clone();
        forged.kid.clone_from(&key.kid);
        assert_eq!(forged.verified::<Value>(&jws, "a+jwt"), None, "another key");
    }
}
