//! The connections to one provider with one credential.
//!
//! A stream is taken from the connection with the fewest in flight. When all are full the request waits, and another connection is
//! opened: how fast a connection is follows from its streams and the peer's latency, so more connections are the only way up.
//! They open one at a time until one has been answered, then as many at once as have been: a provider takes a burst of fresh
//! connections for an attack. The peer's word on streams is followed while it changes, in both directions.
//!
//! Interactive requests are served before bulk ones, and some streams of each connection are theirs alone.
//!
//! There is no request here that is sent twice unless it is proved that the first was not processed.

mod connect;
mod connection;
mod exchange;
mod upkeep;

pub use connect::TlsError;
pub(super) use connect::{ConnectError, Peer, tls_config};
pub(super) use exchange::{Reply, SendError, once};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use connection::Connection;
use rustls::ClientConfig;
use shared::message::Lane;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How many attempts to connect may fail before those who wait are told.
const PATIENCE: u32 = 3;
/// How long an unanswered connection holds back the next one.
const PROVING: Duration = Duration::from_secs(1);

/// What bounds a pool.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Connections kept warm, and the most there may be.
    pub(super) connections: RangeInclusive<usize>,
    /// Streams used of a connection at most, whatever the peer allows.
    pub(super) streams: usize,
    /// Streams assumed until the peer has said its own number.
    pub(super) streams_at_first: usize,
    /// Requests of each lane that may wait for a stream.
    pub(super) waiting: usize,
    /// From waiting for a stream to the end of the answer's body.
    pub(super) timeout: Duration,
    /// When a connection is replaced.
    pub(super) max_age: Duration,
    /// When a connection above the minimum is closed.
    pub(super) idle: Duration,
    /// After what silence the peer is asked whether it is there. Only where the provider wants that.
    pub(super) ping_after: Option<Duration>,
}

pub(super) struct Pool(Arc<Shared>);

struct Shared {
    peer: Peer,
    tls: Arc<ClientConfig>,
    limits: Limits,
    state: Mutex<State>,
}

struct State {
    /// Those that take streams.
    connections: Vec<Arc<Connection>>,
    opening: usize,
    waiting: Waiting,
    /// Attempts to connect that failed in a row.
    failures: u32,
    last_failure: ConnectError,
    retry_at: Instant,
    backoff: ExponentialBackoff,
    /// When somebody last asked for a stream.
    wanted: Option<Instant>,
}

/// Those who wait for a stream, by lane.
#[derive(Default)]
struct Waiting {
    interactive: VecDeque<Waiter>,
    bulk: VecDeque<Waiter>,
}

impl Waiting {
    fn of(&mut self, lane: Lane) -> &mut VecDeque<Waiter> {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
        }
    }

    fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.bulk.is_empty()
    }
}

type Waiter = oneshot::Sender<Result<Slot, SendError>>;

/// A place on a connection, given back when dropped.
struct Slot {
    connection: Arc<Connection>,
    /// `None` in the moment in which the pool takes it back itself.
    pool: Option<Arc<Shared>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(&self.connection);
        }
    }
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(30))
        .without_max_times()
        .with_jitter()
        .build()
}

impl Pool {
    /// A pool without a connection: the first request opens one. Needs a running runtime.
    pub(super) fn new(peer: Peer, tls: Arc<ClientConfig>, limits: Limits) -> Self {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            peer,
            tls,
            limits,
            state: Mutex::new(State {
                connections: Vec::new(),
                opening: 0,
                waiting: Waiting::default(),
                failures: 0,
                last_failure: ConnectError::Refused,
                retry_at: now,
                backoff: backoff(),
                wanted: None,
            }),
        });
        tokio::spawn(upkeep::run(Arc::downgrade(&shared)));
        Self(shared)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two of its lines that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream, at once or when one is free.
    async fn stream(self: &Arc<Self>, lane: Lane) -> Result<Slot, SendError> {
        let waiter = {
            let mut state = self.state();
            state.wanted = Some(Instant::now());
            if let Some(slot) = self.take(&state, lane) {
                return Ok(slot);
            }
            state.unreachable(PATIENCE)?;
            let waiting = state.waiting.of(lane);
            if waiting.len() >= self.limits.waiting {
                waiting.retain(|waiter| !waiter.is_closed());
            }
            if waiting.len() >= self.limits.waiting {
                return Err(SendError::Full);
            }
            let (waiter, slot) = oneshot::channel();
            waiting.push_back(waiter);
            self.open_if_needed(&mut state);
            slot
        };
        waiter.await.unwrap_or(Err(SendError::Full))
    }

    /// The emptiest connection's next stream.
    fn take(self: &Arc<Self>, state: &State, lane: Lane) -> Option<Slot> {
        let cap = self.limits.streams;
        let open = state.connections.iter().filter(|c| c.room(cap, lane) > 0);
        let connection = open.min_by_key(|c| c.taken.load(Ordering::Relaxed))?;
        connection.taken.fetch_add(1, Ordering::Relaxed);
        connection.touch();
        Some(Slot {
            connection: Arc::clone(connection),
            pool: Some(Arc::clone(self)),
        })
    }

    fn give_back(self: &Arc<Self>, connection: &Connection) {
        let mut state = self.state();
        connection.taken.fetch_sub(1, Ordering::Relaxed);
        if !state.waiting.is_empty() {
            self.serve(&mut state);
        }
    }

    /// Hands streams to those who wait.
    fn serve(self: &Arc<Self>, state: &mut State) {
        for lane in [Lane::Interactive, Lane::Bulk] {
            while let Some(waiter) = state.waiting.of(lane).pop_front() {
                if waiter.is_closed() {
                    continue;
                }
                let Some(slot) = self.take(state, lane) else {
                    state.waiting.of(lane).push_front(waiter);
                    break;
                };
                if let Err(Ok(mut unwanted)) = waiter.send(Ok(slot)) {
                    // Gone in this moment. The lock is held, so it cannot give itself back.
                    unwanted.pool = None;
                    unwanted.connection.taken.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        self.open_if_needed(state);
    }

    fn serve_waiting(self: &Arc<Self>) {
        let mut state = self.state();
        self.serve(&mut state);
    }

    /// Opens a connection where somebody waits for one and the bounds allow it.
    fn open_if_needed(self: &Arc<Self>, state: &mut State) {
        if state.waiting.is_empty() {
            return;
        }
        let unproven = |c: &&Arc<Connection>| !c.proven() && c.opened.elapsed() < PROVING;
        let proven = state.connections.iter().filter(|c| c.proven()).count();
        let on_trial = state.opening + state.connections.iter().filter(unproven).count();
        let total = state.connections.len() + state.opening;
        if total < *self.limits.connections.end() && on_trial < proven.max(1) {
            self.open(state, None);
        }
    }

    /// Opens a connection, in place of `old` where one is given.
    fn open(self: &Arc<Self>, state: &mut State, old: Option<Arc<Connection>>) {
        state.opening += 1;
        let wait = state.retry_at.saturating_duration_since(Instant::now());
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let streams = pool.limits.streams_at_first;
            let opened = connect::connect(&pool.peer, &pool.tls, streams).await;
            pool.opened(opened, old.as_ref());
        });
    }

    fn opened(
        self: &Arc<Self>,
        result: Result<connect::Halves, ConnectError>,
        old: Option<&Arc<Connection>>,
    ) {
        let mut state = self.state();
        state.opening -= 1;
        match result {
            Ok(halves) => {
                // Spread, so that connections opened together are not replaced together.
                let max_age = self.limits.max_age.mul_f32(0.9 + 0.1 * fastrand::f32());
                state.failures = 0;
                state.backoff = backoff();
                let connection = Connection::start(halves, self, max_age);
                state.connections.push(connection);
                if let Some(old) = old {
                    old.draining.store(true, Ordering::Relaxed);
                    state.connections.retain(|c| !Arc::ptr_eq(c, old));
                }
            }
            Err(error) => {
                let delay = state.backoff.next().unwrap_or(Duration::from_secs(30));
                state.failures += 1;
                state.last_failure = error;
                state.retry_at = Instant::now() + delay;
                tracing::warn!(peer = %self.peer.authority, reason = error.as_str(), failures = state.failures, "no connection to a push provider");
                if state.connections.is_empty()
                    && let Err(refusal) = state.unreachable(PATIENCE)
                {
                    let Waiting { interactive, bulk } = std::mem::take(&mut state.waiting);
                    for waiter in interactive.into_iter().chain(bulk) {
                        drop(waiter.send(Err(refusal.clone())));
                    }
                }
            }
        }
        self.serve(&mut state);
    }

    fn retire_older(self: &Arc<Self>, than: Instant) {
        let mut state = self.state();
        state.connections.retain(|c| {
            let keep = c.opened > than;
            c.draining.fetch_or(!keep, Ordering::Relaxed);
            keep
        });
        self.serve(&mut state);
    }

    /// Takes a connection out: no new streams, and it closes after the last of those it has.
    fn retire(self: &Arc<Self>, connection: &Arc<Connection>, why: &'static str) {
        let mut state = self.state();
        connection.draining.store(true, Ordering::Relaxed);
        let before = state.connections.len();
        state.connections.retain(|c| !Arc::ptr_eq(c, connection));
        if state.connections.len() < before {
            tracing::debug!(peer = %self.peer.authority, why, "a connection takes no more pushes");
            self.serve(&mut state);
        }
    }
}

impl State {
    /// Says no at once where waiting would be in vain: the peer was not reached `patience` times, or cannot be trusted.
    fn unreachable(&self, patience: u32) -> Result<(), SendError> {
        let hopeless = match self.last_failure {
            ConnectError::Certificate | ConnectError::NoHttp2 => self.failures > 0,
            ConnectError::Name
            | ConnectError::Refused
            | ConnectError::Timeout
            | ConnectError::Tls => self.failures >= patience,
        };
        let now = Instant::now();
        if hopeless && self.connections.is_empty() && self.retry_at > now {
            return Err(SendError::NoConnection {
                error: self.last_failure,
                after: self.retry_at - now,
            });
        }
        Ok(())
    }
}
