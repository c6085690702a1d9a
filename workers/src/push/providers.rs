//! One provider per credential, made when first asked for and replaced when the credential changes.

use super::Provider;
use super::apns::{Apns, KeyError, ProviderTokens, Signer};
use super::fcm::{AccountError, Fcm, Paces};
use super::guard::{Condition, Guarded};
use super::pool::{Limits, Peer, Pool, TlsError, tls_config};
use super::token::{Alone, Shelf, TokenKey};
use http::HeaderValue;
use rustls::ClientConfig;
use shared::clock::{SharedClock, SystemClock};
use shared::domain::{self, ApnsCredential, FcmCredential};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How providers are made.
#[derive(Clone)]
pub struct Options {
    /// A certificate authority to trust beside the system's: a simulator's or a proxy's. PEM.
    pub extra_ca_pem: Option<String>,
    /// From waiting for a stream to the end of the answer. Google wants at least ten seconds.
    pub timeout: Duration,
    /// Connections per credential that are kept once opened.
    pub min_connections: usize,
    /// The most connections per credential.
    pub max_connections: usize,
    /// Streams used of one connection at most, whatever the provider allows. APNs allows 1000 streams and 64 KiB of bodies in
    /// flight; past that bodies go out in crumbs, which peers take for an attack.
    pub max_streams: usize,
    /// Pushes that may wait for a stream, per credential and lane.
    pub max_waiting: usize,
    /// When a connection is replaced. FCM ends them after an hour.
    pub max_age: Duration,
    /// Messages that Google lets a Firebase project send in a minute, all workers together.
    pub fcm_per_minute: u32,
    /// Where the time comes from.
    pub clock: SharedClock,
    /// Where the providers' tokens lie for every process; by default for this one alone.
    pub shelf: Arc<dyn Shelf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            extra_ca_pem: None,
            timeout: Duration::from_secs(10),
            min_connections: 1,
            max_connections: 32,
            max_streams: 128,
            max_waiting: 10_000,
            max_age: Duration::from_mins(50),
            fcm_per_minute: 600_000,
            clock: Arc::new(SystemClock),
            shelf: Arc::<Alone>::default(),
        }
    }
}

/// Why a credential cannot be used at all. Says which part, never what stands there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// TLS cannot be set up.
    #[error("no TLS towards push providers")]
    Tls(#[from] TlsError),
    /// Not `https://host[:port]`.
    #[error("the endpoint is not of the form https://host:port")]
    Endpoint,
    /// Not fit for a header.
    #[error("the topic is not a bundle identifier")]
    Topic,
    /// The APNs key.
    #[error("the APNs key cannot be used")]
    Key(#[from] KeyError),
    /// The service account.
    #[error("the service account cannot be used")]
    Account(#[from] AccountError),
}

/// The providers of one process.
pub struct Providers {
    options: Options,
    tls: Arc<ClientConfig>,
    /// Among how many workers the providers' quotas are shared.
    workers: Arc<AtomicU32>,
    made: Mutex<Made>,
}

struct Made {
    apns: HashMap<String, Entry<ApnsCredential, Apns>>,
    fcm: HashMap<String, Entry<FcmCredential, Fcm>>,
    /// One per key, since Apple counts tokens per key.
    tokens: HashMap<TokenKey, Arc<ProviderTokens>>,
    paces: Paces,
}

impl Made {
    /// Forgets the tokens of keys and the paces of projects that nothing uses any more.
    fn tidy(&mut self) {
        self.tokens
            .retain(|_, tokens| Arc::strong_count(tokens) > 1);
        self.paces.tidy();
    }
}

struct Entry<C, P> {
    credential: C,
    provider: Arc<Guarded<P>>,
}

impl Providers {
    /// Reads the system's certificate authorities; makes nothing else yet.
    pub fn new(options: Options) -> Result<Self, Error> {
        let workers = Arc::new(AtomicU32::new(1));
        let (counted, clock) = (Arc::clone(&workers), Arc::clone(&options.clock));
        let made = Made {
            apns: HashMap::new(),
            fcm: HashMap::new(),
            tokens: HashMap::new(),
            paces: Paces::new(options.fcm_per_minute, counted, clock),
        };
        Ok(Self {
            tls: tls_config(options.extra_ca_pem.as_deref())?,
            options,
            workers,
            made: Mutex::new(made),
        })
    }

    /// Says among how many workers the providers' quotas are shared. One, until then.
    pub fn share_among(&self, workers: u32) {
        self.workers.store(workers.max(1), Ordering::Relaxed);
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to APNs for `policy`. A changed credential gets a new one; pushes under way end on the old one. Needs a running runtime.
    pub fn apns(
        &self,
        policy: &str,
        credential: &ApnsCredential,
    ) -> Result<Arc<dyn Provider>, Error> {
        let mut made = self.made();
        if let Some(entry) = made.apns.get(policy)
            && entry.credential == *credential
        {
            return Ok(Arc::clone(&entry.provider) as Arc<dyn Provider>);
        }
        let peer = Peer::parse(&credential.endpoint).ok_or(Error::Endpoint)?;
        let topic = topic(&credential.topic)?;
        let tokens = self.provider_tokens(&mut made, credential)?;
        let clock = Arc::clone(&self.options.clock);
        let authority = peer.authority.clone();
        let pool = Pool::new(peer, Arc::clone(&self.tls), self.limits(Some(PING_APNS)));
        let apns = Apns::new(pool, tokens, authority, topic, Arc::clone(&clock));
        let provider = Arc::new(Guarded::new(apns, policy, domain::Provider::Apns, clock));
        let entry = Entry {
            credential: credential.clone(),
            provider: Arc::clone(&provider),
        };
        made.apns.insert(policy.to_owned(), entry);
        made.tidy();
        Ok(provider)
    }

    /// The way to FCM for `policy`, as [`Providers::apns`].
    pub fn fcm(
        &self,
        policy: &str,
        credential: &FcmCredential,
    ) -> Result<Arc<dyn Provider>, Error> {
        let mut made = self.made();
        if let Some(entry) = made.fcm.get(policy)
            && entry.credential == *credential
        {
            return Ok(Arc::clone(&entry.provider) as Arc<dyn Provider>);
        }
        let peer = Peer::parse(&credential.endpoint).ok_or(Error::Endpoint)?;
        let clock = Arc::clone(&self.options.clock);
        let account = &credential.service_account;
        // FCM ends a connection after three PINGs without a request, so it gets none.
        let pool = || Pool::new(peer.clone(), Arc::clone(&self.tls), self.limits(None));
        let shelf = Arc::clone(&self.options.shelf);
        let paces = &mut made.paces;
        let fcm = Fcm::new(
            account,
            &peer,
            pool,
            &self.tls,
            shelf,
            paces,
            Arc::clone(&clock),
        )?;
        let provider = Arc::new(Guarded::new(fcm, policy, domain::Provider::Fcm, clock));
        let entry = Entry {
            credential: credential.clone(),
            provider: Arc::clone(&provider),
        };
        made.fcm.insert(policy.to_owned(), entry);
        made.tidy();
        Ok(provider)
    }

    /// Forgets the providers of a policy that is gone. Pushes under way end.
    pub fn forget(&self, policy: &str) {
        let mut made = self.made();
        made.apns.remove(policy);
        made.fcm.remove(policy);
        made.tidy();
    }

    /// How each credential is: policy, provider, condition.
    pub fn conditions(&self) -> Vec<(String, domain::Provider, Condition)> {
        let made = self.made();
        let apns = made.apns.iter().map(|(policy, entry)| {
            (
                policy.clone(),
                domain::Provider::Apns,
                entry.provider.condition(),
            )
        });
        let fcm = made.fcm.iter().map(|(policy, entry)| {
            (
                policy.clone(),
                domain::Provider::Fcm,
                entry.provider.condition(),
            )
        });
        apns.chain(fcm).collect()
    }

    fn provider_tokens(
        &self,
        made: &mut Made,
        credential: &ApnsCredential,
    ) -> Result<Arc<ProviderTokens>, Error> {
        let name = Signer::name(credential);
        if let Some(tokens) = made.tokens.get(&name) {
            return Ok(Arc::clone(tokens));
        }
        let signer = Signer::new(credential)?;
        let (shelf, clock) = (&self.options.shelf, &self.options.clock);
        let tokens =
            ProviderTokens::new(name.clone(), signer, Arc::clone(shelf), Arc::clone(clock));
        let tokens = Arc::new(tokens);
        made.tokens.insert(name, Arc::clone(&tokens));
        Ok(tokens)
    }

    fn limits(&self, ping_after: Option<Duration>) -> Limits {
        let least = self.options.min_connections.max(1);
        Limits {
            connections: least..=self.options.max_connections.max(least),
            streams: self.options.max_streams.max(1),
            streams_at_first: 1,
            waiting: self.options.max_waiting,
            timeout: self.options.timeout,
            max_age: self.options.max_age,
            idle: IDLE,
            ping_after,
        }
    }
}

/// Apple: after an hour of silence.
const PING_APNS: Duration = Duration::from_hours(1);
/// When a connection above the minimum is closed. FCM does it itself after four minutes.
const IDLE: Duration = Duration::from_mins(3);

fn topic(text: &str) -> Result<HeaderValue, Error> {
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || !text.bytes().all(sound) {
        return Err(Error::Topic);
    }
    HeaderValue::from_str(text).map_err(|_| Error::Topic)
}
