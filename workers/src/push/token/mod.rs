//! The tokens that prove to a provider who sends: one for each key, for all tasks, processes and restarts.
//!
//! ```text
//! own memory -> the shelf -> a short lease by compare-and-set -> made, put on the shelf, used
//! ```
//!
//! A token goes onto the shelf before it is first used, and only by who still holds the lease: whoever dies in between has used
//! nothing, and whoever was overtaken throws its own away. So Apple sees one new token for each lease, and a lease is given out no
//! sooner than a gap after the last token. Without the shelf nothing is made: tokens in memory serve as long as they are good,
//! and a push that finds none was not processed and is tried again.

mod shelf;

pub(super) use shelf::Alone;
pub use shelf::{Kept, KeptToken, Lease, Shelf, TokenKey, Unread};

use super::PushResult;
use http::HeaderValue;
use shared::clock::{Millis, SharedClock};
use shared::secret::Secret;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// When a token is replaced while it still works: ten minutes before it ends, so that requests in flight do not meet the change.
const RENEW_AFTER: Millis = 50 * 60_000;
/// A token with less left is not used any more.
const MARGIN: Millis = 60_000;
/// How far the clocks of our own processes may be apart.
const SKEW: Millis = 60_000;
/// A token from further ahead than this was dated by a clock that was wrong, or this one is; it is replaced when it may be.
const AHEAD: Millis = 5 * SKEW;
/// How long a lease lasts: longer than a token takes to make.
const LEASE: Millis = 15_000;
/// How long to wait for a token that another process makes.
const PATIENCE: Duration = Duration::from_secs(4);
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_millis(500);
/// After a failure everybody gets the same answer this long: a thousand waiting pushes are not a thousand requests.
const FIRST_PAUSE: Millis = 1_000;
const LAST_PAUSE: Millis = 60_000;
/// How long no renewal is tried in the background after one that came to nothing.
const QUIET: Millis = 30_000;

/// A token in the form in which it goes on the wire.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    issued_at: Millis,
    expires_at: Millis,
}

impl Token {
    fn read(scheme: &str, kept: &KeptToken) -> Option<Self> {
        let header = HeaderValue::try_from(format!("{scheme} {}", kept.text.expose()));
        let mut header = header.ok()?;
        // Never into the compression table, as Apple asks, and never into a log.
        header.set_sensitive(true);
        Some(Self {
            header,
            issued_at: kept.issued_at,
            expires_at: kept.expires_at,
        })
    }

    fn is_good(&self, now: Millis) -> bool {
        now < self.expires_at - MARGIN
    }

    fn is_young(&self, now: Millis) -> bool {
        (-AHEAD..RENEW_AFTER).contains(&(now - self.issued_at))
    }
}

/// A fresh token.
pub(super) struct Made {
    pub(super) text: Secret,
    pub(super) lasts: Millis,
}

/// Makes tokens for one key.
pub(super) trait Maker: Send + Sync + 'static {
    /// The provider, for metrics.
    const PROVIDER: &'static str;
    /// What stands before the token in the header.
    const SCHEME: &'static str;
    /// The least time between two tokens, whatever the provider says of the first.
    const GAP: Millis;

    /// Makes one.
    fn make(&self, now: Millis) -> impl Future<Output = Result<Made, PushResult>> + Send;
}

/// Why there is no other token.
#[derive(Debug)]
pub(super) enum Without {
    /// The last one is too young to be replaced.
    TooSoon,
    /// What the push comes to.
    Result(PushResult),
}

impl Without {
    /// What a push comes to that had no token at all.
    pub(super) fn result(self) -> PushResult {
        match self {
            Self::TooSoon => unprocessed("token_too_soon"),
            Self::Result(result) => result,
        }
    }
}

/// The tokens of one key.
pub(super) struct Tokens<M>(Arc<Inner<M>>);

struct Inner<M> {
    key: TokenKey,
    maker: M,
    shelf: Arc<dyn Shelf>,
    clock: SharedClock,
    current: RwLock<Option<Token>>,
    /// No new token before, on the provider's word; on the shelf, too, where that could be reached.
    frozen_until: AtomicI64,
    /// Held by whoever looks for another token.
    turn: Mutex<Turn>,
}

#[derive(Default)]
struct Turn {
    failures: u32,
    /// What the last attempt came to, and until when that is the answer.
    failed: Option<(Millis, PushResult)>,
    /// No renewal in the background before.
    quiet_until: Millis,
}

impl<M: Maker> Tokens<M> {
    pub(super) fn new(key: TokenKey, maker: M, shelf: Arc<dyn Shelf>, clock: SharedClock) -> Self {
        Self(Arc::new(Inner {
            key,
            maker,
            shelf,
            clock,
            current: RwLock::default(),
            frozen_until: AtomicI64::new(0),
            turn: Mutex::default(),
        }))
    }

    /// The token to use now.
    pub(super) async fn token(&self) -> Result<Token, PushResult> {
        let now = self.0.clock.now();
        if let Some(token) = self.0.current(now) {
            if !token.is_young(now) {
                self.renew_soon(&token, now);
            }
            return Ok(token);
        }
        self.0.obtain(None).await.map_err(Without::result)
    }

    /// After the provider refused `used`: another one.
    pub(super) async fn another(&self, used: &Token) -> Result<Token, Without> {
        self.0.obtain(Some(used)).await
    }

    /// After the provider complained about too many tokens: somebody else makes them with this key, too.
    pub(super) async fn freeze(&self) {
        let now = self.0.clock.now();
        let until = now + M::GAP;
        let before = self.0.frozen_until.fetch_max(until, Ordering::Relaxed);
        if before > now {
            return;
        }
        tracing::error!(provider = M::PROVIDER, key = %self.0.key, "the provider sees too many tokens: another sender uses this key");
        count::<M>("frozen");
        if self.0.shelf.not_before(&self.0.key, until).await.is_err() {
            count::<M>("unread");
        }
    }

    /// Renews without making anybody wait. Does nothing while somebody else is at it.
    fn renew_soon(&self, token: &Token, now: Millis) {
        let Ok(turn) = self.0.turn.try_lock() else {
            return;
        };
        if now < turn.quiet_until {
            return;
        }
        drop(turn);
        let (inner, token) = (Arc::clone(&self.0), token.clone());
        tokio::spawn(async move {
            if let Err(why) = inner.obtain(Some(&token)).await {
                let mut turn = inner.turn.lock().await;
                turn.quiet_until = inner.clock.now() + QUIET;
                drop(turn);
                tracing::warn!(provider = M::PROVIDER, key = %inner.key, ?why, "a token could not be renewed; the old one goes on");
            }
        });
    }
}

impl<M: Maker> Inner<M> {
    fn current(&self, now: Millis) -> Option<Token> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|token| token.is_good(now)).cloned()
    }

    fn adopt(&self, token: &Token) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(token.clone());
    }

    /// A good token other than `refused`.
    async fn obtain(&self, refused: Option<&Token>) -> Result<Token, Without> {
        let other = |token: &Token| Some(token) != refused;
        let mut turn = self.turn.lock().await;
        // It may have come while this waited for its turn.
        let now = self.clock.now();
        if let Some(token) = self.current(now).filter(other) {
            return Ok(token);
        }
        if let Some((until, result)) = &turn.failed
            && now < *until
        {
            return Err(Without::Result(result.clone()));
        }
        let patient_until = Instant::now() + PATIENCE;
        let mut pause = FIRST_LOOK;
        loop {
            let now = self.clock.now();
            let kept = self.shelf.look(&self.key).await;
            let kept = kept.map_err(|Unread| turn.unread::<M>(now))?;
            let token = kept.token.as_ref();
            if let Some(token) = token.and_then(|kept| Token::read(M::SCHEME, kept))
                && token.is_good(now)
                && other(&token)
            {
                count::<M>("shared");
                self.adopt(&token);
                return Ok(token);
            }
            self.check_gap(&kept, now).await?;
            let lease = self
                .shelf
                .lease(&self.key, kept.issued_at, now, now + LEASE);
            if let Some(lease) = lease.await.map_err(|Unread| turn.unread::<M>(now))?
                && let Some(token) = self.make(&lease, &mut turn).await?
            {
                return Ok(token);
            }
            if Instant::now() >= patient_until {
                count::<M>("awaited");
                return Err(Without::Result(unprocessed("token_awaited")));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    async fn check_gap(&self, kept: &Kept, now: Millis) -> Result<(), Without> {
        let farthest = now + M::GAP + SKEW;
        if kept.not_before > farthest {
            // Written by a clock that was far ahead, or this one was set back: from here the gap is waited for once more, not for
            // hours.
            if self.shelf.not_after(&self.key, farthest).await.is_err() {
                count::<M>("unread");
            }
        }
        let frozen_until = self.frozen_until.load(Ordering::Relaxed);
        let frozen = now < frozen_until && frozen_until <= farthest;
        if frozen || now < kept.not_before {
            count::<M>("too_soon");
            return Err(Without::TooSoon);
        }
        Ok(())
    }

    /// Makes a token under the lease; `None` where it was overtaken.
    async fn make(&self, lease: &Lease, turn: &mut Turn) -> Result<Option<Token>, Without> {
        let now = self.clock.now();
        let made = match self.maker.make(now).await {
            Ok(made) => made,
            Err(result) => {
                // Where this fails the lease runs out by itself.
                self.shelf.give_back(lease).await.ok();
                count::<M>("not_made");
                return Err(turn.fail(self.clock.now(), result));
            }
        };
        let kept = KeptToken {
            text: made.text,
            issued_at: now,
            expires_at: now + made.lasts,
        };
        // What cannot be used would be made again and again.
        let token = Token::read(M::SCHEME, &kept).filter(|token| token.is_good(now));
        let Some(token) = token else {
            self.shelf.give_back(lease).await.ok();
            return Err(turn.fail(now, unavailable("token_answer_unclear")));
        };
        let gap = if M::GAP == 0 { 0 } else { M::GAP + SKEW };
        let put = self.shelf.put(lease, &kept, now + gap).await;
        if !put.map_err(|Unread| turn.unread::<M>(now))? {
            count::<M>("overtaken");
            return Ok(None);
        }
        count::<M>("made");
        turn.failures = 0;
        turn.failed = None;
        self.adopt(&token);
        Ok(Some(token))
    }
}

impl Turn {
    /// The maker failed: everybody gets this for a while, each time for longer.
    fn fail(&mut self, now: Millis, result: PushResult) -> Without {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10));
        self.failures += 1;
        self.failed = Some((now + pause.min(LAST_PAUSE), result.clone()));
        Without::Result(result)
    }

    /// The shelf could not be reached. It costs the provider nothing to ask again soon.
    fn unread<M: Maker>(&mut self, now: Millis) -> Without {
        count::<M>("unread");
        let result = unprocessed("token_unread");
        self.failed = Some((now + FIRST_PAUSE, result.clone()));
        Without::Result(result)
    }
}

fn count<M: Maker>(result: &'static str) {
    metrics::counter!("countersign_push_tokens_total", "provider" => M::PROVIDER, "result" => result)
        .increment(1);
}

fn unprocessed(reason: &'static str) -> PushResult {
    PushResult::Unprocessed {
        reason: reason.into(),
    }
}

fn unavailable(reason: &'static str) -> PushResult {
    PushResult::Unavailable {
        after: None,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests;
