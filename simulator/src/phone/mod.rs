//! A virtual phone: a key, a push address, and the device's side of `docs/device-protocol.md`.
//!
//! It does what an honest app does. A test that needs a dishonest one changes the claims between [`Phone::proof_claims`] and
//! [`Phone::sign_proof`], or sends the same proof twice.

mod enrol;
mod error;
mod genuine;
mod http;
mod key;
mod notices;
mod prompt;
mod proof;

pub use self::http::Http;
pub use enrol::Link;
pub use error::Error;
pub use genuine::PromptFault;
pub use notices::Notice;
pub use prompt::{Answered, Decision, Prompt};

use crate::fleet::Index;
use crate::random;
use ::http::{Method, StatusCode};
use bytes::Bytes;
use key::Key;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::clock::{SharedClock, SystemClock};
use shared::crypto::ServerKey;
use shared::domain::{KeyAlgorithm, Provider};
use shared::id::{DeviceId, PushId, StoreId};
use shared::secret::Secret;
use std::sync::{Arc, Mutex, PoisonError, Weak};

const PUSHES: &str = "/v1/device/pushes";
const ADDRESS: &str = "/v1/device/push-address";

/// Who the phone is since it was registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The device.
    pub device: DeviceId,
    /// Its identity store.
    pub store: StoreId,
    /// Who may ask: kept from the registration on.
    pub server_key: ServerKey,
    /// Where the API is, without a slash at the end.
    pub api_base: String,
}

/// A phone at rest. The key and the token are secrets: a file that holds it must be readable by its owner alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The phone's name.
    pub name: String,
    /// Who wakes it.
    pub provider: Provider,
    /// The private key: PKCS#8, base64.
    pub key: Secret,
    /// The push token.
    pub token: Secret,
    /// Absent until it was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

struct Changing {
    token: Secret,
    identity: Option<Identity>,
    indexes: Vec<Weak<Index>>,
}

struct Inner {
    name: String,
    provider: Provider,
    key: Key,
    changing: Mutex<Changing>,
}

/// A phone. Clones are handles to the same one.
#[derive(Clone)]
pub struct Phone {
    inner: Arc<Inner>,
    clock: SharedClock,
    http: Http,
}

impl std::fmt::Debug for Phone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Phone")
            .field("name", &self.inner.name)
            .field("provider", &self.inner.provider)
            .finish_non_exhaustive()
    }
}

impl Phone {
    /// A phone out of the box: a fresh P-256 key and a fresh push token.
    pub fn new(provider: Provider, name: impl Into<String>) -> Self {
        Self::with_key(provider, name, KeyAlgorithm::Es256)
    }

    /// The same, with a key for `algorithm`.
    pub fn with_key(provider: Provider, name: impl Into<String>, algorithm: KeyAlgorithm) -> Self {
        let (key, token) = (Key::generate(algorithm), fresh(provider));
        Self::made(name.into(), provider, key, token, None)
    }

    /// The phone that was saved.
    pub fn load(saved: Saved) -> Result<Self, Error> {
        let key = Key::load(&saved.key)?;
        let Saved { name, provider, .. } = saved;
        Ok(Self::made(name, provider, key, saved.token, saved.identity))
    }

    fn made(
        name: String,
        provider: Provider,
        key: Key,
        token: Secret,
        identity: Option<Identity>,
    ) -> Self {
        let changing = Mutex::new(Changing {
            token,
            identity,
            indexes: Vec::new(),
        });
        let inner = Arc::new(Inner {
            name,
            provider,
            key,
            changing,
        });
        Self {
            inner,
            clock: Arc::new(SystemClock),
            http: Http::default(),
        }
    }

    /// The same phone, but its requests are dated by `clock`.
    pub fn with_clock(self, clock: SharedClock) -> Self {
        Self { clock, ..self }
    }

    /// The same phone, but it shares its connections.
    pub fn with_http(self, http: &Http) -> Self {
        let http = http.clone();
        Self { http, ..self }
    }

    /// What [`Phone::load`] takes.
    pub fn save(&self) -> Saved {
        let (token, identity) = self.with(|now| (now.token.clone(), now.identity.clone()));
        Saved {
            name: self.inner.name.clone(),
            provider: self.inner.provider,
            key: self.inner.key.saved(),
            token,
            identity,
        }
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut Changing) -> T) -> T {
        let changing = &self.inner.changing;
        use_it(&mut changing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Who wakes it.
    pub fn provider(&self) -> Provider {
        self.inner.provider
    }

    /// The key to register.
    pub fn public_jwk(&self) -> Value {
        self.inner.key.public_jwk()
    }

    /// The address to register.
    pub fn push_token(&self) -> Secret {
        self.with(|now| now.token.clone())
    }

    /// Tells the phone who it is, and whose prompts it takes: call it when the API has registered the key.
    pub fn enrolled(
        &self,
        device: DeviceId,
        store: StoreId,
        server_key: ServerKey,
        api_base: &str,
    ) {
        let api_base = api_base.trim_end_matches('/').to_owned();
        self.with(|now| {
            now.identity = Some(Identity {
                device,
                store,
                server_key,
                api_base,
            });
        });
    }

    /// The API is elsewhere now. It must still have the same key.
    pub fn moved(&self, api_base: &str) {
        self.with(|now| {
            if let Some(identity) = &mut now.identity {
                api_base
                    .trim_end_matches('/')
                    .clone_into(&mut identity.api_base);
            }
        });
    }

    /// Who the phone is; `None` before [`Phone::enrolled`].
    pub fn identity(&self) -> Option<Identity> {
        self.with(|now| now.identity.clone())
    }

    /// Gets a new push token, as apps do now and then. The fleets it is in follow; the API learns it by [`Phone::put_address`].
    pub fn rotate_token(&self) -> Secret {
        let new = fresh(self.inner.provider);
        let indexes = self.with(|now| {
            now.token = new.clone();
            now.indexes.retain(|index| index.strong_count() > 0);
            now.indexes.clone()
        });
        for index in indexes.iter().filter_map(Weak::upgrade) {
            index.moved(self.name());
        }
        new
    }

    pub(crate) fn follow(&self, index: &Arc<Index>) {
        self.with(|now| now.indexes.push(Arc::downgrade(index)));
    }

    /// What waits for this phone, newest first. One prompt that is not the server's, and none of them is taken.
    pub async fn pending(&self) -> Result<Vec<Prompt>, Error> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Prompt>,
        }
        let list: List = read(self.call(Method::GET, PUSHES, Bytes::new()).await?)?;
        for prompt in &list.data {
            self.genuine(prompt, None)?;
        }
        Ok(list.data)
    }

    /// One prompt, which from then on counts as fetched.
    pub async fn fetch(&self, push: &PushId) -> Result<Prompt, Error> {
        let path = format!("{PUSHES}/{push}");
        let prompt = read(self.call(Method::GET, &path, Bytes::new()).await?)?;
        self.genuine(&prompt, Some(push))?;
        Ok(prompt)
    }

    /// Refuses what the server has not signed for this phone.
    fn genuine(&self, prompt: &Prompt, asked: Option<&PushId>) -> Result<(), Error> {
        let identity = self.identity().ok_or(Error::NotEnrolled)?;
        prompt.check(&identity, asked).map_err(Error::NotGenuine)
    }

    /// Signs and sends what the person says.
    pub async fn answer(&self, prompt: &Prompt, decision: &Decision) -> Result<Answered, Error> {
        let proof = self.proof(prompt, decision)?;
        self.send_proof(&prompt.push, &proof).await
    }

    /// A proof, not sent. Each call makes another one.
    pub fn proof(&self, prompt: &Prompt, decision: &Decision) -> Result<String, Error> {
        self.sign_proof(&self.proof_claims(prompt, decision)?)
    }

    /// What [`Phone::proof`] signs.
    pub fn proof_claims(&self, prompt: &Prompt, decision: &Decision) -> Result<Value, Error> {
        let identity = self.identity().ok_or(Error::NotEnrolled)?;
        let jti = random::base64url::<16>();
        proof::claims(&identity.device, prompt, decision, &jti, self.clock.now())
    }

    /// Signs any claims as a proof.
    pub fn sign_proof(&self, claims: &Value) -> Result<String, Error> {
        let identity = self.identity().ok_or(Error::NotEnrolled)?;
        let kid = identity.device.as_str();
        Ok(self.inner.key.sign(proof::PROOF, kid, claims))
    }

    /// Sends a proof. To send the same one again is allowed and changes nothing.
    pub async fn send_proof(&self, push: &PushId, proof: &str) -> Result<Answered, Error> {
        let path = format!("{PUSHES}/{push}/answer");
        let body = json!({"proof": proof}).to_string();
        let (status, body) = self.call(Method::POST, &path, body.into()).await?;
        Ok(Answered {
            status: status.as_u16(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        })
    }

    /// Tells the API the current push token.
    pub async fn put_address(&self) -> Result<(), Error> {
        let token = self.push_token();
        let body = json!({"provider": self.inner.provider, "token": token}).to_string();
        accepted(self.call(Method::PUT, ADDRESS, body.into()).await?).map(drop)
    }

    /// The `authorization` header of one request. Each call makes another one, good for one request only.
    pub fn authorization(&self, method: &str, path: &str, body: &[u8]) -> Result<String, Error> {
        let identity = self.identity().ok_or(Error::NotEnrolled)?;
        let jti = random::base64url::<16>();
        let request = (method, path, body);
        let claims = proof::request_claims(&identity.device, request, &jti, self.clock.now());
        let kid = identity.device.as_str();
        let jws = self.inner.key.sign(proof::REQUEST, kid, &claims);
        Ok(format!("Device {jws}"))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Error> {
        let authorization = self.authorization(method.as_str(), path, &body)?;
        let identity = self.identity().ok_or(Error::NotEnrolled)?;
        let at = (identity.api_base.as_str(), path);
        self.http.call(method, at, Some(&authorization), body).await
    }
}

fn accepted((status, body): (StatusCode, Bytes)) -> Result<Bytes, Error> {
    if status.is_success() {
        return Ok(body);
    }
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    let code = problem["code"].as_str().map(str::to_owned);
    Err(Error::Refused { status, code })
}

fn read<T: DeserializeOwned>(answer: (StatusCode, Bytes)) -> Result<T, Error> {
    serde_json::from_slice(&accepted(answer)?).map_err(Error::Unreadable)
}

/// A token in the provider's form.
fn fresh(provider: Provider) -> Secret {
    Secret::new(match provider {
        Provider::Apns => random::hex::<32>(),
        Provider::Fcm => format!(
            "{}:APA91b{}",
            random::base64url::<16>(),
            random::base64url::<100>()
        ),
    })
}
