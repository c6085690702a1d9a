//! APNs and FCM v1 on the wire: two TLS + HTTP/2 listeners on loopback, scripts for misbehaviour, a journal of what came in.
//!
//! It checks requests as strictly as the providers do. It does not imitate their delivery: what
//! turns an accepted push into something a phone sees is its subscriber.

mod apns;
mod apns_token;
mod exchange;
mod fcm;
mod fcm_message;
mod fcm_reply;
mod journal;
mod keys;
mod listen;
mod mix;
mod oauth;
mod quota;
mod reasons;
mod script;

pub use journal::{Counts, Provider, Receipt};
pub use keys::ApnsKey;
pub use mix::Share;
pub use reasons::{ApnsReason, FcmCode};
pub use script::Script;

use crate::Error;
use journal::Journal;
use keys::{ApnsCredential, ServiceAccount, Tls};
use mix::Mix;
use quota::Quota;
use script::{Book, Step, Verdict};
use shared::clock::{Clock, Millis, SystemClock};
use shared::secret::Secret;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How to start a gateway.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// Where APNs listens; FCM takes the next port, or any when the port is 0. Loopback only.
    pub listen: SocketAddr,
    /// Streams per APNs connection.
    pub apns_streams: u32,
    /// Streams per FCM connection.
    pub fcm_streams: u32,
    /// Messages that FCM takes in any second; the others get 429. No limit, if not given.
    pub fcm_per_second: Option<usize>,
    /// How long every push takes.
    pub latency: Duration,
    /// How many receipts are kept in full.
    pub journal_capacity: usize,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            apns_streams: 1000,
            fcm_streams: 100,
            fcm_per_second: None,
            latency: Duration::ZERO,
            journal_capacity: 10_000,
        }
    }
}

/// What every connection of one gateway shares.
struct State {
    journal: Journal,
    scripts: Book,
    mix: Mix,
    apns: ApnsCredential,
    account: ServiceAccount,
    verified: apns_token::Verified,
    access: oauth::AccessTokens,
    fcm_quota: Quota,
    outage: AtomicBool,
    latency_us: AtomicU64,
    apns_streams: AtomicU32,
    fcm_streams: AtomicU32,
}

impl State {
    fn now() -> Millis {
        SystemClock.now()
    }

    fn judge(&self, provider: Provider, token: &str) -> Step {
        if self.outage.load(Ordering::Relaxed) {
            Step::answer(Verdict::Down)
        } else if provider == Provider::Fcm && !self.fcm_quota.admits(Self::now()) {
            Step::answer(Verdict::Throttled {
                retry_after_secs: 1,
            })
        } else if let Some(step) = self.scripts.step(provider, token) {
            step
        } else {
            let mixed = self.mix.step();
            mixed.unwrap_or_else(|| Step::answer(Verdict::Accept))
        }
    }

    fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_us.load(Ordering::Relaxed))
    }

    fn streams(&self, provider: Provider) -> &AtomicU32 {
        match provider {
            Provider::Apns => &self.apns_streams,
            Provider::Fcm => &self.fcm_streams,
        }
    }
}

struct Inner {
    state: Arc<State>,
    apns_url: String,
    fcm_url: String,
    ca_pem: String,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// A running gateway. Clones are handles to the same one; it stops when the last is dropped.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("apns_url", &self.0.apns_url)
            .field("fcm_url", &self.0.fcm_url)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Makes fresh keys and listens. When it returns, both ports accept connections.
    pub async fn start(options: GatewayOptions) -> Result<Self, Error> {
        if !options.listen.ip().is_loopback() {
            return Err(Error::NotLoopback(options.listen));
        }
        let mut second = options.listen;
        if second.port() != 0 {
            let next = second.port().checked_add(1);
            second.set_port(next.ok_or(Error::NoSecondPort(second.port()))?);
        }
        let (apns_socket, apns_url) = listen::bind(options.listen).await?;
        let (fcm_socket, fcm_url) = listen::bind(second).await?;
        let tls = Tls::generate()?;
        let state = Arc::new(State {
            journal: Journal::new(options.journal_capacity),
            scripts: Book::default(),
            mix: Mix::default(),
            apns: ApnsCredential::generate()?,
            account: ServiceAccount::generate(&fcm_url)?,
            verified: apns_token::Verified::default(),
            access: oauth::AccessTokens::default(),
            fcm_quota: Quota::new(options.fcm_per_second),
            outage: AtomicBool::new(false),
            latency_us: AtomicU64::new(0),
            apns_streams: AtomicU32::new(options.apns_streams),
            fcm_streams: AtomicU32::new(options.fcm_streams),
        });
        let stop = CancellationToken::new();
        for (provider, socket) in [(Provider::Apns, apns_socket), (Provider::Fcm, fcm_socket)] {
            let (state, stop) = (Arc::clone(&state), stop.clone());
            let server = Arc::clone(&tls.server);
            tokio::spawn(listen::accept(provider, socket, server, state, stop));
        }
        let gateway = Self(Arc::new(Inner {
            state,
            apns_url,
            fcm_url,
            ca_pem: tls.ca_pem,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }));
        gateway.set_latency(options.latency);
        Ok(gateway)
    }

    /// `https://127.0.0.1:port` of APNs.
    pub fn apns_url(&self) -> &str {
        &self.0.apns_url
    }

    /// `https://127.0.0.1:port` of FCM; `/token` under it is the OAuth2 endpoint.
    pub fn fcm_url(&self) -> &str {
        &self.0.fcm_url
    }

    /// The certificate authority to trust, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.0.ca_pem
    }

    /// The APNs credential.
    pub fn apns_key(&self) -> ApnsKey {
        self.0.state.apns.public.clone()
    }

    /// The FCM service account file.
    pub fn service_account_json(&self) -> Secret {
        self.0.state.account.json()
    }

    /// The project that the service account belongs to.
    pub fn project_id(&self) -> &str {
        &self.0.state.account.project_id
    }

    /// From now on, this happens to pushes to `token`.
    pub fn script(&self, token: &str, script: Script) {
        self.0.state.scripts.set(token, script, None);
    }

    /// This happens to the next `times` pushes to `token`; later ones are served well.
    pub fn script_times(&self, token: &str, script: Script, times: u32) {
        self.0.state.scripts.set(token, script, Some(times));
    }

    /// Forgets every script.
    pub fn clear_scripts(&self) {
        self.0.state.scripts.clear();
    }

    /// From now on, these parts of the pushes to tokens without a script meet these faults; none when empty. What a script does several
    /// times, such as [`Script::Flaky`], it does once each time.
    pub fn set_mix(&self, shares: Vec<Share>) {
        self.0.state.mix.set(shares);
    }

    /// 503 for every well-formed push, whatever its token's script. The OAuth2 endpoint goes on working.
    pub fn set_outage(&self, on: bool) {
        self.0.state.outage.store(on, Ordering::Relaxed);
    }

    /// How long every push takes from now on, scripted delays aside.
    pub fn set_latency(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.state.latency_us.store(micros, Ordering::Relaxed);
    }

    /// Streams per connection, for connections opened from now on.
    pub fn set_max_streams(&self, provider: Provider, streams: u32) {
        let cell = self.0.state.streams(provider);
        cell.store(streams, Ordering::Relaxed);
    }

    /// Makes every access token invalid: the next FCM push with one gets 401.
    pub fn revoke_access_tokens(&self) {
        self.0.state.access.revoke_all();
    }

    /// The receipts still held, oldest first.
    pub fn journal(&self) -> Vec<Arc<Receipt>> {
        self.0.state.journal.all()
    }

    /// The receipts still held of one push token, oldest first.
    pub fn receipts_for(&self, token: &str) -> Vec<Arc<Receipt>> {
        self.0.state.journal.of(token)
    }

    /// Receipts from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Receipt>> {
        self.0.state.journal.subscribe()
    }

    /// Exact totals.
    pub fn counts(&self) -> Counts {
        self.0.state.journal.counts()
    }

    /// Closes both ports and cuts every connection.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }
}
