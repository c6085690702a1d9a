//! What follows from the server's one secret: hashes of API keys, match codes, process tokens, sealed credentials.
//!
//! Codes and tokens are derived, not stored, so that an idempotent replay gives the same answer again and a dump of the database
//! holds neither.

use super::random_text;
use crate::domain::InstanceState;
use crate::id::{InstanceId, PushId, StoreId};
use crate::secret::Secret;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// A sealed text could not be opened: another secret, another place, or changed bytes.
#[derive(Debug, thiserror::Error)]
#[error("a sealed credential could not be opened: was the server's secret changed?")]
pub struct Unsealed;

/// The server's secret, the same in every process of a deployment.
pub struct ServerSecret {
    api_keys: hmac::Key,
    codes: hmac::Key,
    tokens: hmac::Key,
    enrolments: hmac::Key,
    reports: hmac::Key,
    initiators: hmac::Key,
    seal: LessSafeKey,
    pub(super) signer: super::Signer,
}

impl std::fmt::Debug for ServerSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerSecret")
    }
}

/// A fresh API key: shown once, kept as a hash.
pub struct ApiKey {
    /// The text that the caller keeps.
    pub text: Secret,
    /// What the database keeps.
    pub hash: String,
}

/// A fresh enrolment code: shown once, kept as a hash.
pub struct FreshCode {
    /// The text that the new device gets: 160 random bits.
    pub text: Secret,
    /// What the database keeps.
    pub hash: String,
}

impl ServerSecret {
    /// At least this many characters: 32 random bytes in base64url.
    pub const MIN_LENGTH: usize = 43;

    /// From the configured text; `None` when it is too short to be one.
    pub fn new(text: &Secret) -> Option<Self> {
        if text.expose().len() < Self::MIN_LENGTH {
            return None;
        }
        let root = hmac::Key::new(hmac::HMAC_SHA256, text.expose().as_bytes());
        let derived = |label: &str| hmac::sign(&root, label.as_bytes());
        let key = |label: &str| hmac::Key::new(hmac::HMAC_SHA256, derived(label).as_ref());
        Some(Self {
            api_keys: key("countersign api keys"),
            codes: key("countersign match codes"),
            tokens: key("countersign process tokens"),
            enrolments: key("countersign enrolment codes"),
            reports: key("countersign instance reports"),
            initiators: key("countersign initiators"),
            seal: LessSafeKey::new(
                UnboundKey::new(&AES_256_GCM, derived("countersign seal").as_ref()).ok()?,
            ),
            signer: super::Signer::new(derived("countersign signatures").as_ref())?,
        })
    }

    /// A fresh text for [`ServerSecret::new`].
    pub fn generate() -> Secret {
        Secret::new(random_text::<32>())
    }

    /// A fresh API key.
    pub fn api_key(&self) -> ApiKey {
        let text = format!("cs_{}", random_text::<32>());
        let hash = self.api_key_hash(&text);
        ApiKey {
            text: Secret::new(text),
            hash,
        }
    }

    /// What the database keeps of an API key. The keys are random, so one keyed hash is enough.
    pub fn api_key_hash(&self, text: &str) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.api_keys, text.as_bytes()))
    }

    /// A fresh enrolment code.
    pub fn enrolment_code(&self) -> FreshCode {
        let text = random_text::<20>();
        let hash = self.enrolment_code_hash(&text);
        FreshCode {
            text: Secret::new(text),
            hash,
        }
    }

    /// What the database keeps of an enrolment code.
    pub fn enrolment_code_hash(&self, text: &str) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.enrolments, text.as_bytes()))
    }

    /// What the database keeps of an initiator: an address or an account name is a person's, and few enough to try them all without the key.
    pub fn initiator_hash(&self, store: &StoreId, text: &str) -> String {
        let tag = hmac::sign(&self.initiators, format!("{store}\u{1f}{text}").as_bytes());
        URL_SAFE_NO_PAD.encode(tag)
    }

    /// The six digits shown on the initiating channel.
    pub fn match_code(&self, push: &PushId, nonce: &str) -> Secret {
        let tag = hmac::sign(&self.codes, format!("{push}\u{1f}{nonce}").as_bytes());
        let number = tag
            .as_ref()
            .iter()
            .take(8)
            .fold(0_u64, |n, byte| (n << 8) | u64::from(*byte));
        // 2^64 / 10^6: the bias is below 10^-13.
        Secret::new(format!("{:06}", number % 1_000_000))
    }

    /// The token in a process push's link.
    pub fn process_token(&self, push: &PushId, nonce: &str) -> Secret {
        let tag = hmac::sign(&self.tokens, format!("{push}\u{1f}{nonce}").as_bytes());
        Secret::new(URL_SAFE_NO_PAD.encode(tag))
    }

    /// What a process engine gets in the redirect, to sign its reports of this instance with. Derived, so that it lies nowhere.
    pub fn report_token(&self, instance: &InstanceId) -> Secret {
        let tag = hmac::sign(&self.reports, instance.as_str().as_bytes());
        Secret::new(URL_SAFE_NO_PAD.encode(tag))
    }

    /// Encrypts a credential for `place`, where alone it can be opened again.
    pub fn seal(&self, place: &str, text: &Secret) -> String {
        let nonce_text = random_text::<NONCE_LEN>();
        let nonce = nonce_of(&nonce_text).unwrap_or([0; NONCE_LEN]);
        let mut bytes = text.expose().as_bytes().to_vec();
        // AES-GCM refuses only texts of more than 64 GiB.
        let sealed = self.seal.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(place.as_bytes()),
            &mut bytes,
        );
        debug_assert!(sealed.is_ok());
        format!("1.{nonce_text}.{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Opens what [`ServerSecret::seal`] made for the same place.
    pub fn open(&self, place: &str, sealed: &str) -> Result<Secret, Unsealed> {
        let rest = sealed.strip_prefix("1.").ok_or(Unsealed)?;
        let (nonce, bytes) = rest.split_once('.').ok_or(Unsealed)?;
        let nonce = nonce_of(nonce).ok_or(Unsealed)?;
        let mut bytes = URL_SAFE_NO_PAD.decode(bytes).map_err(|_| Unsealed)?;
        let plain = self
            .seal
            .open_in_place(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place.as_bytes()),
                &mut bytes,
            )
            .map_err(|_| Unsealed)?;
        String::from_utf8(plain.to_vec())
            .map(Secret::new)
            .map_err(|_| Unsealed)
    }
}

/// What a report carries instead of its token: HMAC-SHA-256 with the token's text as the key over `<instance>.<status>`.
pub fn report_mac(token: &Secret, instance: &InstanceId, status: InstanceState) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.expose().as_bytes());
    URL_SAFE_NO_PAD.encode(hmac::sign(&key, format!("{instance}.{status}").as_bytes()))
}

fn nonce_of(text: &str) -> Option<[u8; NONCE_LEN]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::{ServerSecret, report_mac};
    use crate::id::{InstanceId, PushId};
    use crate::secret::Secret;

    #[test]
    fn a_sealed_text_opens_at_its_place_only() {
        let secret = ServerSecret::new(&ServerSecret::generate()).unwrap();
        let sealed = secret.seal("a", &Secret::new("canary"));
        assert!(!sealed.contains("canary"));
        assert_eq!(secret.open("a", &sealed).unwrap().expose(), "canary");
        assert!(secret.open("b", &sealed).is_err());
        assert!(secret.open("a", "1.x.y").is_err());
        let other = ServerSecret::new(&ServerSecret::generate()).unwrap();
        assert!(other.open("a", &sealed).is_err());
    }

    #[test]
    fn a_code_follows_from_push_and_nonce_and_has_six_digits() {
        let secret = ServerSecret::new(&ServerSecret::generate()).unwrap();
        let push = PushId::fresh(1);
        let code = secret.match_code(&push, "n");
        assert_eq!(code, secret.match_code(&push, "n"));
        assert_ne!(code, secret.match_code(&push, "m"));
        assert_eq!(code.expose().len(), 6);
        assert!(code.expose().bytes().all(|b| b.is_ascii_digit()));
    }

    #[test]
    fn a_report_is_bound_to_its_instance_and_status() {
        use crate::domain::InstanceState::{EndedError, EndedSuccess};
        let secret = ServerSecret::new(&ServerSecret::generate()).unwrap();
        let (one, two) = (InstanceId::fresh(1), InstanceId::fresh(1));
        let token = secret.report_token(&one);
        assert_ne!(token, secret.report_token(&two));
        let mac = report_mac(&token, &one, EndedError);
        assert_ne!(mac, report_mac(&token, &one, EndedSuccess));
        assert_ne!(mac, report_mac(&token, &two, EndedError));
        assert!(!mac.contains(token.expose()));
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert!(ServerSecret::new(&Secret::new("hunter2")).is_none());
    }
}
