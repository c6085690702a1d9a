//! The provider token: an ES256 JWT that every push of one key carries.
//!
//! Apple refuses tokens older than an hour and senders that make more than one in twenty minutes. So there is one for each key, however
//! many credentials, topics, connections and processes use it (see [`crate::push::token`]).

use crate::push::PushResult;
use crate::push::token::{Made, Maker, TokenKey, Tokens};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;
use shared::clock::Millis;
use shared::domain::ApnsCredential;
use shared::secret::Secret;

/// When Apple refuses a token.
const LASTS: Millis = 60 * 60_000;

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: i64,
}

/// The key is not one that can sign.
#[derive(Debug, thiserror::Error)]
#[error("the APNs key cannot sign: it has to be an EC P-256 key, PKCS#8, PEM")]
pub struct KeyError;

/// Signs for one key.
pub(in crate::push) struct Signer {
    team_id: String,
    key_id: String,
    key: EncodingKey,
}

/// The tokens of one key.
pub(in crate::push) type ProviderTokens = Tokens<Signer>;

impl Signer {
    pub(in crate::push) fn new(credential: &ApnsCredential) -> Result<Self, KeyError> {
        let pem = credential.private_key.expose().as_bytes();
        let signer = Self {
            team_id: credential.team_id.clone(),
            key_id: credential.key_id.clone(),
            key: EncodingKey::from_ec_pem(pem).map_err(|_| KeyError)?,
        };
        // A key on another curve is found out here and not by the first push. This one goes nowhere.
        signer.sign(0)?;
        Ok(signer)
    }

    /// The name that the processes know the key by.
    pub(in crate::push) fn name(credential: &ApnsCredential) -> TokenKey {
        let identity = [credential.team_id.as_str(), credential.key_id.as_str()];
        TokenKey::new("apns", &identity, &credential.private_key)
    }

    fn sign(&self, now: Millis) -> Result<Secret, KeyError> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        let claims = Claims {
            iss: &self.team_id,
            iat: now / 1000,
        };
        let jwt = encode(&header, &claims, &self.key);
        jwt.map(Secret::new).map_err(|_| KeyError)
    }
}

impl Maker for Signer {
    const PROVIDER: &'static str = "apns";
    const SCHEME: &'static str = "bearer";
    const GAP: Millis = 20 * 60_000;

    async fn make(&self, now: Millis) -> Result<Made, PushResult> {
        let signed = self.sign(now).map_err(|_| PushResult::Credentials {
            reason: "key_cannot_sign".into(),
        });
        Ok(Made {
            text: signed?,
            lasts: LASTS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Signer;
    use shared::domain::ApnsCredential;
    use shared::secret::Secret;

    fn credential(pem: &str) -> ApnsCredential {
        ApnsCredential {
            team_id: "T".to_owned(),
            key_id: "K".to_owned(),
            topic: "t".to_owned(),
            private_key: Secret::new(pem),
            endpoint: String::new(),
        }
    }

    #[test]
    fn a_key_of_another_kind_is_refused_at_once() {
        let pair = |kind| rcgen::KeyPair::generate_for(kind).unwrap().serialize_pem();
        let good = pair(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert!(Signer::new(&credential(&good)).is_ok());
        let longer = pair(&rcgen::PKCS_ECDSA_P384_SHA384);
        assert!(Signer::new(&credential(&longer)).is_err());
        assert!(Signer::new(&credential("-----BEGIN")).is_err());
    }

    #[test]
    fn a_key_in_another_layout_is_the_same_key() {
        let name = |pem| Signer::name(&credential(pem));
        assert_eq!(name("a b\nc\n"), name("a b\r\nc"));
        assert_ne!(name("a b c"), name("a b d"));
        let mut other = credential("a b c");
        other.key_id.push('2');
        assert_ne!(Signer::name(&other), name("a b c"));
    }
}
