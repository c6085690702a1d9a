use super::{
    Alone, Kept, KeptToken, LEASE, Lease, Made, Maker, Shelf, Token, TokenKey, Tokens, Unread,
    Without,
};
use crate::push::PushResult;
use async_trait::async_trait;
use shared::clock::{Clock as _, ManualClock, Millis};
use shared::secret::Secret;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const MINUTE: i64 = 60_000;
const START: i64 = 1_800_000_000_000;

/// Numbers its tokens, and can be told to take its time or to fail.
#[derive(Clone, Default)]
struct Numbering {
    made: Arc<AtomicU64>,
    slow: Arc<AtomicBool>,
    failing: Arc<AtomicBool>,
}

impl Maker for Numbering {
    const PROVIDER: &'static str = "test";
    const SCHEME: &'static str = "bearer";
    const GAP: Millis = 20 * MINUTE;

    async fn make(&self, _now: Millis) -> Result<Made, PushResult> {
        if self.slow.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        if self.failing.load(Ordering::Relaxed) {
            return Err(PushResult::Credentials {
                reason: "no".into(),
            });
        }
        Ok(Made {
            text: Secret::new(format!("t{number}")),
            lasts: 60 * MINUTE,
        })
    }
}

/// A shelf that can be out of reach.
#[derive(Default)]
struct Far {
    near: Alone,
    away: AtomicBool,
}

impl Far {
    fn there(&self) -> Result<&Alone, Unread> {
        let away = self.away.load(Ordering::Relaxed);
        (!away).then_some(&self.near).ok_or(Unread)
    }
}

#[async_trait]
impl Shelf for Far {
    async fn look(&self, key: &TokenKey) -> Result<Kept, Unread> {
        self.there()?.look(key).await
    }
    async fn lease(
        &self,
        key: &TokenKey,
        seen: Millis,
        now: Millis,
        until: Millis,
    ) -> Result<Option<Lease>, Unread> {
        self.there()?.lease(key, seen, now, until).await
    }
    async fn put(&self, lease: &Lease, token: &KeptToken, at: Millis) -> Result<bool, Unread> {
        self.there()?.put(lease, token, at).await
    }
    async fn give_back(&self, lease: &Lease) -> Result<(), Unread> {
        self.there()?.give_back(lease).await
    }
    async fn not_before(&self, key: &TokenKey, at: Millis) -> Result<(), Unread> {
        self.there()?.not_before(key, at).await
    }
    async fn not_after(&self, key: &TokenKey, at: Millis) -> Result<(), Unread> {
        self.there()?.not_after(key, at).await
    }
}

#[derive(Clone)]
struct Bed {
    shelf: Arc<Far>,
    maker: Numbering,
    clock: Arc<ManualClock>,
}

impl Bed {
    fn new() -> Self {
        Self {
            shelf: Arc::default(),
            maker: Numbering::default(),
            clock: ManualClock::at(START),
        }
    }

    fn key() -> TokenKey {
        TokenKey::new("test", &["k"], &Secret::new("pem"))
    }

    fn process(&self) -> Tokens<Numbering> {
        self.process_at(&self.clock)
    }

    /// One whose clock is another.
    fn process_at(&self, clock: &Arc<ManualClock>) -> Tokens<Numbering> {
        let (shelf, maker) = (self.shelf.clone(), self.maker.clone());
        Tokens::new(Self::key(), maker, shelf, clock.clone())
    }

    fn made(&self) -> u64 {
        self.maker.made.load(Ordering::Relaxed)
    }
}

fn text(token: &Token) -> &str {
    token.header.to_str().unwrap()
}

async fn settled(what: &str, done: impl Fn() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_serves_every_task_process_and_restart() {
    let bed = Bed::new();
    bed.maker.slow.store(true, Ordering::Relaxed);
    let processes: Vec<_> = (0..4).map(|_| Arc::new(bed.process())).collect();
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..400 {
        let process = Arc::clone(&processes[n % 4]);
        asking.spawn(async move { text(&process.token().await.unwrap()).to_owned() });
    }
    assert!(asking.join_all().await.iter().all(|t| t == "bearer t0"));
    bed.clock.advance(49 * MINUTE);
    assert_eq!(text(&bed.process().token().await.unwrap()), "bearer t0");
    assert_eq!(bed.made(), 1);
}

#[tokio::test]
async fn a_token_is_renewed_once_and_behind_everybodys_back() {
    let bed = Bed::new();
    let (one, other) = (bed.process(), bed.process());
    one.token().await.unwrap();
    other.token().await.unwrap();
    bed.clock.advance(50 * MINUTE);
    for process in [&one, &other] {
        // Nobody waits: the old one is given out, and soon it is the new one.
        assert_eq!(text(&process.token().await.unwrap()), "bearer t0");
    }
    settled("the new one", || bed.made() == 2).await;
    for process in [&one, &other, &bed.process()] {
        for _ in 0..100 {
            if text(&process.token().await.unwrap()) == "bearer t1" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(text(&process.token().await.unwrap()), "bearer t1");
    }
    assert_eq!(bed.made(), 2);
}

#[tokio::test]
async fn a_young_token_is_not_replaced_whatever_the_provider_says() {
    let bed = Bed::new();
    let (one, other) = (bed.process(), bed.process());
    let used = one.token().await.unwrap();
    bed.clock.advance(20 * MINUTE);
    // A minute more than the provider asks for: the processes' clocks may be that far apart.
    for process in [&one, &other, &bed.process()] {
        let without = process.another(&used).await.err().unwrap();
        assert!(matches!(without, Without::TooSoon), "{without:?}");
    }
    assert_eq!(bed.made(), 1);
    bed.clock.advance(MINUTE);
    let new = one.another(&used).await.unwrap();
    // The second of two that were refused together takes the first one's token.
    assert!(other.another(&used).await.unwrap() == new);
    assert_eq!((text(&new), bed.made()), ("bearer t1", 2));
}

#[tokio::test]
async fn a_freeze_holds_for_every_process() {
    let bed = Bed::new();
    let (one, other) = (bed.process(), bed.process());
    let used = one.token().await.unwrap();
    bed.clock.advance(45 * MINUTE);
    one.freeze().await;
    bed.clock.advance(19 * MINUTE);
    assert!(matches!(other.another(&used).await, Err(Without::TooSoon)));
    // The old one has run out, and no new one may be made: not processed, so tried again.
    assert_eq!(other.token().await.err().unwrap().label(), "retryable");
    bed.clock.advance(MINUTE);
    assert_eq!(text(&other.token().await.unwrap()), "bearer t1");
    assert_eq!(bed.made(), 2);
}

#[tokio::test]
async fn a_dead_holders_lease_runs_out() {
    let bed = Bed::new();
    let now = bed.clock.now();
    let dead = bed.shelf.lease(&Bed::key(), 0, now, now + LEASE).await;
    let dead = dead.unwrap().unwrap();
    let process = bed.process();
    assert_eq!(process.token().await.err().unwrap().label(), "retryable");
    assert_eq!(bed.made(), 0);
    bed.clock.advance(LEASE);
    assert_eq!(text(&process.token().await.unwrap()), "bearer t0");
    // It was not dead after all: what it made is worth nothing.
    let late = KeptToken {
        text: Secret::new("late"),
        issued_at: now,
        expires_at: now + 60 * MINUTE,
    };
    assert!(!bed.shelf.put(&dead, &late, now).await.unwrap());
    assert_eq!(text(&bed.process().token().await.unwrap()), "bearer t0");
}

#[tokio::test]
async fn without_the_shelf_the_old_token_serves_and_no_new_one_is_made() {
    let bed = Bed::new();
    let process = bed.process();
    let used = process.token().await.unwrap();
    bed.shelf.away.store(true, Ordering::Relaxed);
    bed.clock.advance(58 * MINUTE);
    assert!(process.token().await.unwrap() == used);
    let fresh = bed.process();
    assert_eq!(fresh.token().await.err().unwrap().label(), "retryable");
    bed.clock.advance(2 * MINUTE);
    assert_eq!(process.token().await.err().unwrap().label(), "retryable");
    assert_eq!(bed.made(), 1);
    bed.shelf.away.store(false, Ordering::Relaxed);
    bed.clock.advance(1_000);
    assert_eq!(text(&process.token().await.unwrap()), "bearer t1");
}

#[tokio::test]
async fn a_failure_is_everybodys_answer_for_a_while() {
    let bed = Bed::new();
    bed.maker.failing.store(true, Ordering::Relaxed);
    let process = bed.process();
    for _ in 0..50 {
        assert_eq!(process.token().await.err().unwrap().label(), "credentials");
    }
    assert_eq!(bed.made(), 1);
    bed.clock.advance(1_000);
    assert!(process.token().await.is_err());
    assert_eq!(bed.made(), 2);
    bed.maker.failing.store(false, Ordering::Relaxed);
    // Others need not wait for the lease of one that failed.
    assert_eq!(text(&bed.process().token().await.unwrap()), "bearer t2");
}

#[tokio::test]
async fn clocks_that_differ_share_a_token() {
    let bed = Bed::new();
    let behind = ManualClock::at(START - 30 * MINUTE);
    let late = bed.process_at(&behind);
    bed.process().token().await.unwrap();
    let used = late.token().await.unwrap();
    assert_eq!(text(&used), "bearer t0");
    // The gap is waited for by a clock that runs, and not until it reads what the other one wrote.
    assert!(late.another(&used).await.is_err());
    behind.advance(21 * MINUTE);
    assert_eq!(text(&late.another(&used).await.unwrap()), "bearer t1");
    assert_eq!(bed.made(), 2);
}

#[test]
fn a_token_is_not_shown() {
    let kept = KeptToken {
        text: Secret::new("canary"),
        issued_at: 0,
        expires_at: 0,
    };
    let token = Token::read("bearer", &kept).unwrap();
    let shown = format!("{kept:?} {:?} {:?}", token.header, Bed::key());
    assert!(
        !shown.contains("canary") && !shown.contains("pem"),
        "{shown}"
    );
}
