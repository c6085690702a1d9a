//! One HTTP/2 connection: how full it is, how old, and the task that moves its frames.

use super::Shared;
use super::connect::Halves;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use shared::message::Lane;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// Of so many streams one is for interactive pushes alone; of two or more at least one.
const RESERVED: usize = 10;
/// How long a PING may take.
const PONG: Duration = Duration::from_secs(10);

/// An open connection. It closes when the last handle is gone.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) opened: Instant,
    /// When to replace it.
    pub(super) retire_at: Instant,
    /// Streams the peer allows at the moment.
    allowed: AtomicUsize,
    /// Streams taken. Changed under the pool's lock only.
    pub(super) taken: AtomicUsize,
    /// Answers seen so far: tells a dead peer from a slow one.
    pub(super) answers: AtomicU64,
    /// Takes no new streams.
    pub(super) draining: AtomicBool,
    /// When a stream was last taken, in milliseconds after `opened`.
    used: AtomicU64,
}

impl Connection {
    /// Takes over a fresh connection and lets it run.
    pub(super) fn start(halves: Halves, pool: &Arc<Shared>, max_age: Duration) -> Arc<Self> {
        let (sender, mut transport) = halves;
        let now = Instant::now();
        let connection = Arc::new(Self {
            sender,
            opened: now,
            retire_at: now + max_age,
            allowed: AtomicUsize::new(transport.max_concurrent_send_streams()),
            taken: AtomicUsize::new(0),
            answers: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            used: AtomicU64::new(0),
        });
        if let (Some(after), Some(pings)) = (pool.limits.ping_after, transport.ping_pong()) {
            tokio::spawn(keep_alive(Arc::downgrade(&connection), pings, after));
        }
        let (pool, weak) = (Arc::downgrade(pool), Arc::downgrade(&connection));
        tokio::spawn(drive(transport, weak, pool));
        connection
    }

    /// How many more streams it takes of a lane: bulk pushes leave some free for those that somebody waits for.
    pub(super) fn room(&self, cap: usize, lane: Lane) -> usize {
        if self.draining.load(Ordering::Relaxed) {
            return 0;
        }
        let allowed = self.allowed.load(Ordering::Relaxed).min(cap);
        let reserved = match lane {
            Lane::Bulk if allowed > 1 => (allowed / RESERVED).max(1),
            Lane::Bulk | Lane::Interactive => 0,
        };
        allowed.saturating_sub(reserved + self.taken.load(Ordering::Relaxed))
    }

    /// Has the peer ever answered here? Until then it may allow one stream only.
    pub(super) fn proven(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 0
    }

    pub(super) fn touch(&self) {
        let ms = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used.store(ms, Ordering::Relaxed);
    }

    pub(super) fn last_used(&self) -> Instant {
        self.opened + Duration::from_millis(self.used.load(Ordering::Relaxed))
    }
}

type Transport = h2::client::Connection<super::connect::Unvectored, Bytes>;

/// Moves frames until the connection ends, and passes on what the peer says about streams.
async fn drive(mut transport: Transport, connection: Weak<Connection>, pool: Weak<Shared>) {
    let mut allowed = transport.max_concurrent_send_streams();
    let ended = poll_fn(|cx| {
        let polled = Pin::new(&mut transport).poll(cx);
        let now_allowed = transport.max_concurrent_send_streams();
        if now_allowed != allowed {
            allowed = now_allowed;
            if let (Some(connection), Some(pool)) = (connection.upgrade(), pool.upgrade()) {
                connection.allowed.store(allowed, Ordering::Relaxed);
                pool.serve_waiting();
            }
        }
        polled
    })
    .await;
    if let Err(error) = ended {
        // The peer's reason may stand in the error; it is about the connection, never about a push.
        tracing::debug!(%error, "a connection to a push provider ended");
    }
    if let (Some(connection), Some(pool)) = (connection.upgrade(), pool.upgrade()) {
        pool.retire(&connection, "closed");
    }
}

/// Asks after a silence whether the peer is still there.
async fn keep_alive(connection: Weak<Connection>, mut pings: PingPong, after: Duration) {
    let mut pinged = Instant::now();
    loop {
        let Some(due) = connection
            .upgrade()
            .map(|c| c.last_used().max(pinged) + after)
        else {
            return;
        };
        if due > Instant::now() {
            sleep_until(due).await;
            continue;
        }
        pinged = Instant::now();
        if !matches!(timeout(PONG, pong(&mut pings)).await, Ok(Ok(()))) {
            if let Some(connection) = connection.upgrade() {
                connection.draining.store(true, Ordering::Relaxed);
            }
            return;
        }
    }
}

async fn pong(pings: &mut PingPong) -> Result<(), h2::Error> {
    pings.send_ping(Ping::opaque())?;
    poll_fn(|cx| match pings.poll_pong(cx) {
        Poll::Ready(result) => Poll::Ready(result.map(|_| ())),
        Poll::Pending => Poll::Pending,
    })
    .await
}
