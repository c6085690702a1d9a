//! Fan-out: takes jobs, claims their deliveries, calls the providers, records what they said, and only then forgets the jobs.
//!
//! ```text
//! job -> claim (of many jobs at once) -> call -> record (one transaction for many results) -> ack
//! ```
//!
//! A worker that dies anywhere leaves either an unacknowledged job, which the broker gives to another worker, or a delivery whose lease runs
//! out, which the sweep finds. A job that comes twice claims nothing the second time.

use crate::batch;
use crate::credentials::Credentials;
use crate::park::{UNREAD, park};
use crate::push::retry::{Attempt, Decision, decide};
use crate::push::{Call, Provider, PushResult};
use shared::broker::{Delivery, Error as BrokerError, Queue, SharedBroker};
use shared::clock::{Millis, SharedClock};
use shared::crash;
use shared::id::ChunkId;
use shared::message::{Job, Lane};
use shared::store::{
    Chunk, Claimed, Db, DeliveryResult, Error as StoreError, Recorded, Store, Wanted,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a worker may hold a delivery: a wait for a place, a call with its timeout and a renewed access token, and the record. A longer
/// call costs a second push under the same identifiers, nothing else.
pub const LEASE: Millis = 40_000;
/// The part of the lease that a call and its record need: later than this nothing is called any more.
const CALL: Millis = 25_000;
/// How many pushes and retries one claim takes at most.
const CLAIM: usize = 1_000;
/// How a batch goes while somebody waits for an interactive push.
const PACE: Pace = Pace {
    claim: Step { most: 64, rest: 12 },
    record: Step { most: 32, rest: 5 },
};
/// The same where each transaction has round trips, and waits for the disk.
const PACE_OF_SERVERS: Pace = Pace {
    claim: Step {
        most: 200,
        rest: 16,
    },
    record: Step { most: 100, rest: 6 },
};
/// How many calls of a batch begin at once while somebody waits, and how long the next ones wait: tasks that are ready run in the order in which they
/// became so.
const CALLS: usize = 16;
const PAUSE: Duration = Duration::from_millis(1);
/// How many results one record takes at most.
const RECORD: usize = 500;
/// How long to wait before the database is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// How much is done at once, and how many times as long as it has taken follows as a rest on one processor.
struct Step {
    most: usize,
    rest: u32,
}

/// The steps of one lane. After a claim its calls and their record are still to come.
struct Pace {
    claim: Step,
    record: Step,
}

/// How much one process does at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Unacknowledged jobs.
    pub prefetch: u16,
    /// Calls under way.
    pub in_flight: usize,
    /// Claims under way: while one waits for the database, the calls of another are made.
    pub claims: u32,
}

impl Limits {
    /// What suits a lane: interactive jobs carry one push each, bulk jobs hundreds.
    pub fn for_lane(lane: Lane) -> Self {
        match lane {
            Lane::Interactive => Self {
                prefetch: 256,
                in_flight: 1_000,
                claims: 1,
            },
            Lane::Bulk => Self {
                prefetch: 16,
                in_flight: 2_000,
                claims: 2,
            },
        }
    }
}

/// The fan-out of one lane.
#[derive(Clone)]
pub struct FanOut {
    /// The database.
    pub store: Store,
    /// The queues.
    pub broker: SharedBroker,
    /// The time.
    pub clock: SharedClock,
    /// The ways to the phones.
    pub credentials: Arc<Credentials>,
    /// Which jobs.
    pub lane: Lane,
    /// How much at once.
    pub limits: Limits,
}

/// A job whose deliveries are under way; acknowledged when the last of them is recorded.
struct Open {
    delivery: Delivery,
    left: AtomicUsize,
    /// The chunk that it carries, whose row knows of nothing but the whole.
    chunk: Option<ChunkId>,
    /// Was a delivery of it left without a result?
    missed: AtomicBool,
}

/// Jobs that are claimed together.
#[derive(Default)]
struct Group {
    jobs: Vec<(Job, Delivery)>,
    size: usize,
}

/// What several jobs ask for.
#[derive(Default)]
struct Asked {
    wanted: Wanted,
    chunks: Vec<Chunk>,
}

/// What came of one claimed delivery; nothing when it was left to its lease.
type Outcome = (Option<Recorded>, Arc<Open>);

impl FanOut {
    /// Works until `stop`, then finishes what is under way.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BrokerError> {
        let queue = match self.lane {
            Lane::Interactive => Queue::JobsInteractive,
            Lane::Bulk => Queue::JobsBulk,
        };
        let mut jobs = self.broker.consume(queue, self.limits.prefetch).await?;
        let places = Arc::new(Semaphore::new(self.limits.in_flight));
        let turns = Arc::new(Semaphore::new(self.limits.claims as usize));
        let (mut claims, calls) = (JoinSet::new(), TaskTracker::new());
        let (outcomes, results) = mpsc::channel(self.limits.in_flight);
        let mut recorder = tokio::spawn(self.clone().record(results));
        loop {
            // Who gives way does one thing at a time.
            let turn = Arc::clone(&turns).acquire_many_owned(self.turns());
            // Never closed.
            let Ok(turn) = turn.await else { break };
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Without it nothing may be called. The role ends, and with it the process.
                _ = &mut recorder => return Ok(()),
                Some(ended) = claims.join_next() => match ended {
                    Ok(()) => continue,
                    // A panic was already shown. Its jobs are held as long as this process lives.
                    Err(_) => return Ok(()),
                },
                job = jobs.recv() => match job {
                    Some(job) => job,
                    None => break,
                },
            };
            let batch = batch::gather(first, &mut jobs, self.limits.prefetch);
            if self.lane == Lane::Interactive {
                self.store.courtesy().somebody_waits();
            }
            crash::point("W1");
            let (fan_out, places, stop) = (self.clone(), Arc::clone(&places), stop.clone());
            let (calls, outcomes) = (calls.clone(), outcomes.clone());
            claims.spawn(async move {
                fan_out.work(batch, &places, &calls, &outcomes, &stop).await;
                drop(turn);
            });
        }
        while claims.join_next().await.is_some() {}
        drop(jobs);
        calls.close();
        calls.wait().await;
        drop(outcomes);
        // A panic in it was already shown; its jobs are unacknowledged and come again.
        recorder.await.ok();
        Ok(())
    }

    async fn work(
        &self,
        batch: Vec<Delivery>,
        places: &Arc<Semaphore>,
        calls: &TaskTracker,
        outcomes: &mpsc::Sender<Outcome>,
        stop: &CancellationToken,
    ) {
        // A chunk is claimed in its own way.
        let mut groups = [Group::default(), Group::default()];
        for delivery in batch {
            let decoded = match &delivery.message {
                Ok(message) => Job::decode(message).map_err(|error| error.to_string()),
                Err(reason) => Err(reason.clone()),
            };
            match decoded {
                Ok(job) => {
                    let group = &mut groups[usize::from(job.chunk.is_some())];
                    group.size += job.pushes.len() + job.retries.len();
                    group.jobs.push((job, delivery));
                    if group.size >= self.step() {
                        let full = std::mem::take(group);
                        self.send(full.jobs, places, calls, outcomes, stop).await;
                    }
                }
                Err(reason) => self.park(&delivery, &reason).await,
            }
        }
        for group in groups {
            if !group.jobs.is_empty() {
                self.send(group.jobs, places, calls, outcomes, stop).await;
            }
        }
    }

    fn gives_way(&self) -> bool {
        self.lane == Lane::Bulk && self.store.courtesy().is_asked()
    }

    /// How many of the turns one claim takes.
    fn turns(&self) -> u32 {
        if self.gives_way() {
            self.limits.claims
        } else {
            1
        }
    }

    /// How much one claim takes.
    fn step(&self) -> usize {
        if self.gives_way() {
            self.pace().claim.most
        } else {
            CLAIM
        }
    }

    fn pace(&self) -> Pace {
        match self.store.db() {
            Db::Sqlite(_) => PACE,
            Db::Postgres(_) => PACE_OF_SERVERS,
        }
    }

    /// How much one record takes.
    fn record_step(&self) -> usize {
        if self.gives_way() {
            self.pace().record.most
        } else {
            RECORD
        }
    }

    /// Rests after a step of a batch, if somebody waits.
    async fn rest(&self, step: Duration, times: u32) {
        if self.lane == Lane::Bulk {
            self.store.courtesy().rest(step, times).await;
        }
    }

    /// Sets aside what is no job, with the reason, and forgets it.
    async fn park(&self, delivery: &Delivery, reason: &str) {
        tracing::warn!(reason, "a message that is no job is parked");
        metrics::counter!("countersign_messages_parked_total", "lane" => self.lane.as_str())
            .increment(1);
        let read = delivery.message.as_ref();
        let content_type = read.map_or(UNREAD, |message| &message.content_type);
        let now = self.clock.now();
        if let Err(error) = park(&self.broker, delivery, content_type, reason, now).await {
            tracing::warn!(%error, "a message could not be parked yet");
        }
    }

    async fn send(
        &self,
        group: Vec<(Job, Delivery)>,
        places: &Arc<Semaphore>,
        calls: &TaskTracker,
        outcomes: &mpsc::Sender<Outcome>,
        stop: &CancellationToken,
    ) {
        let (asked, owners, jobs) = gathered(group);
        // Claimed is only what can be called soon.
        let Ok(room) = places.acquire().await else {
            return;
        };
        drop(room);
        let until = self.clock.now() + LEASE - CALL;
        let began = Instant::now();
        let claimed = match self.claim(&asked, stop).await {
            Some(Ok(claimed)) => claimed,
            Some(Err(reason)) if jobs.len() == 1 => {
                for (job, _) in &jobs {
                    self.park(job, &reason).await;
                }
                return;
            }
            // One of them cannot be read: each by itself.
            Some(Err(_)) => {
                for (delivery, _) in jobs {
                    let decoded = delivery.message.as_ref().ok().map(Job::decode);
                    if let Some(Ok(job)) = decoded {
                        let alone = vec![(job, delivery)];
                        Box::pin(self.send(alone, places, calls, outcomes, stop)).await;
                    }
                }
                return;
            }
            None => return,
        };
        let took = began.elapsed();
        crash::point("W2");
        let owner_of = |one: &Claimed| {
            let owner = owners.get(one.push.as_str());
            owner.or_else(|| owners.get(one.delivery.as_str())).copied()
        };
        let mut left = vec![0_usize; jobs.len()];
        for one in &claimed {
            if let Some(n) = owner_of(one) {
                left[n] += 1;
            }
        }
        let mut open: Vec<Option<Arc<Open>>> = Vec::with_capacity(jobs.len());
        for ((delivery, chunk), left) in jobs.into_iter().zip(left) {
            if left == 0 {
                // Nothing here is ours to do: ended, held by another worker, or not due.
                delivery.ack().await;
                open.push(None);
            } else {
                let left = AtomicUsize::new(left);
                open.push(Some(Arc::new(Open {
                    delivery,
                    left,
                    chunk,
                    missed: AtomicBool::new(false),
                })));
            }
        }
        for (n, one) in claimed.into_iter().enumerate() {
            let Some(job) = owner_of(&one).and_then(|n| open[n].clone()) else {
                continue;
            };
            if n % CALLS == CALLS - 1 && self.gives_way() {
                tokio::time::sleep(PAUSE).await;
            }
            let provider = self.credentials.provider(&one).await;
            // Never closed while this runs.
            let Ok(place) = Arc::clone(places).acquire_owned().await else {
                return;
            };
            let (clock, outcomes) = (self.clock.clone(), outcomes.clone());
            // In a box: a task is moved several times before it runs, and once more when it ends.
            calls.spawn(Box::pin(async move {
                // Another worker may have it by now; this one leaves it.
                let recorded = if clock.now() > until {
                    None
                } else {
                    Some(call(one, provider, &clock).await)
                };
                crash::point("W3");
                // The recorder ends only after every call.
                outcomes.send((recorded, job)).await.ok();
                drop(place);
            }));
        }
        self.rest(took, self.pace().claim.rest).await;
    }

    /// Claims, however long the database is away; `None` at shutdown, an error where waiting cannot help.
    async fn claim(
        &self,
        Asked { wanted, chunks }: &Asked,
        stop: &CancellationToken,
    ) -> Option<Result<Vec<Claimed>, String>> {
        loop {
            let now = self.clock.now();
            let claimed = if chunks.is_empty() {
                let claim = self.store.claim(wanted, now, LEASE).await;
                claim.map(|claim| claim.claimed)
            } else {
                self.store.claim_chunks(chunks, now, LEASE).await
            };
            match claimed {
                Ok(claimed) => return Some(Ok(claimed)),
                Err(error) if error.is_permanent() => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "deliveries cannot be claimed"
                    );
                    return Some(Err(format!("it cannot be claimed: {error}")));
                }
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "deliveries could not be claimed; trying again"
                ),
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = stop.cancelled() => return None,
            }
        }
    }

    /// Records results, as many at once as there are, and forgets the jobs that are done. Ends with the last sender.
    async fn record(self, mut results: mpsc::Receiver<Outcome>) {
        let (store, clock) = (&self.store, &self.clock);
        let acks = TaskTracker::new();
        let mut batch = Vec::with_capacity(RECORD);
        while batch::gather_for_a_moment(&mut results, &mut batch, self.record_step()).await {
            let began = Instant::now();
            let outcomes: Vec<Outcome> = std::mem::take(&mut batch);
            let mut recorded = Vec::with_capacity(outcomes.len());
            let mut jobs = Vec::with_capacity(outcomes.len());
            for (one, job) in outcomes {
                match one {
                    Some(one) => recorded.push(one),
                    None => job.missed.store(true, Ordering::Release),
                }
                jobs.push(job);
            }
            if !write(store, clock, &recorded).await {
                // One of them cannot be written: it is left to its lease, the others are not.
                for one in &recorded {
                    write(store, clock, std::slice::from_ref(one)).await;
                }
                for job in &jobs {
                    job.missed.store(true, Ordering::Release);
                }
            }
            crash::point("W4");
            jobs.retain(|job| job.left.fetch_sub(1, Ordering::AcqRel) == 1);
            let whole = jobs
                .iter()
                .filter(|job| !job.missed.load(Ordering::Acquire));
            let sent: Vec<_> = whole.filter_map(|job| job.chunk.clone()).collect();
            if !sent.is_empty()
                && let Err(error) = store.chunks_sent(&sent).await
            {
                // The look at chunks that are due finds nothing to do.
                tracing::warn!(error = &error as &dyn std::error::Error, "chunks stay due");
            }
            for job in jobs {
                acks.spawn(async move { job.delivery.ack().await });
            }
            // Results that wait hold places, and their leases run.
            if results.len() < self.limits.in_flight / 4 {
                self.rest(began.elapsed(), self.pace().record.rest).await;
            }
        }
        acks.close();
        acks.wait().await;
    }
}

/// What several jobs ask for, which of them asked for what, and the jobs.
#[expect(
    clippy::type_complexity,
    reason = "it is taken apart at once, in one place"
)]
fn gathered(
    group: Vec<(Job, Delivery)>,
) -> (
    Asked,
    HashMap<String, usize>,
    Vec<(Delivery, Option<ChunkId>)>,
) {
    let mut asked = Asked::default();
    let mut owners: HashMap<String, usize> = HashMap::new();
    let mut jobs = Vec::with_capacity(group.len());
    for (n, (job, delivery)) in group.into_iter().enumerate() {
        for push in &job.pushes {
            owners.entry(push.to_string()).or_insert(n);
        }
        for retry in &job.retries {
            owners.entry(retry.delivery.to_string()).or_insert(n);
        }
        asked.wanted.retries.extend(job.retries);
        match job.chunk.clone() {
            Some(id) => asked.chunks.push(Chunk {
                id,
                pushes: job.pushes,
            }),
            None => asked.wanted.pushes.extend(job.pushes),
        }
        jobs.push((delivery, job.chunk));
    }
    (asked, owners, jobs)
}

/// Calls the provider once and decides what follows.
async fn call(
    claimed: Claimed,
    provider: Result<Option<Arc<dyn Provider>>, StoreError>,
    clock: &SharedClock,
) -> Recorded {
    let result = match provider {
        Ok(Some(provider)) => {
            let call = Call {
                delivery: claimed.delivery.clone(),
                push: claimed.push.clone(),
                kind: claimed.kind,
                lane: claimed.lane,
                token: claimed.token.clone(),
                expires_at: claimed.expires_at,
                attempt: claimed.attempt,
                traceparent: claimed.traceparent.clone(),
            };
            provider.push(&call).await
        }
        Ok(None) => PushResult::Credentials {
            reason: "credential_unusable".into(),
        },
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a push policy could not be read"
            );
            PushResult::Unprocessed {
                reason: "policy_unread".into(),
            }
        }
    };
    let called = !matches!(
        result,
        PushResult::Paused { .. } | PushResult::Paced { .. } | PushResult::Expired
    );
    let carrier = claimed.provider.as_str();
    let attempt = Attempt {
        provider: claimed.provider,
        lane: claimed.lane,
        number: claimed.calls + 1,
        now: clock.now(),
        deadline: claimed.expires_at,
    };
    let result = match decide(&result, &attempt, fastrand::u64(..)) {
        Decision::Sent => match result {
            PushResult::Accepted { provider_id } => DeliveryResult::Sent {
                provider_id: provider_id.as_deref().map(cleaned),
            },
            _ => DeliveryResult::Sent { provider_id: None },
        },
        Decision::Retry { after, reason } => later(after, &reason),
        Decision::PauseCredential { after, reason } => {
            tracing::error!(store = %claimed.store, rp = claimed.rp, provider = carrier, %reason, "a push credential does not work");
            later(after, &reason)
        }
        Decision::Failed {
            failure,
            reason,
            drop_address,
        } => DeliveryResult::Failed {
            reason: format!("{}:{reason}", failure.as_str()),
            address_gone: drop_address.map(|gone| gone.since),
        },
    };
    Recorded {
        claimed,
        result,
        called,
    }
}

/// A stranger's identifier, fit to be kept.
fn cleaned(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_graphic)
        .take(200)
        .collect()
}

fn later(after: Duration, reason: &str) -> DeliveryResult {
    DeliveryResult::Retry {
        after: Millis::try_from(after.as_millis()).unwrap_or(Millis::MAX),
        reason: reason.to_owned(),
    }
}

/// Writes results, however long the database is away: the jobs are unacknowledged, and what is not recorded would be sent again. `false` where
/// waiting cannot help.
async fn write(store: &Store, clock: &SharedClock, results: &[Recorded]) -> bool {
    if results.is_empty() {
        return true;
    }
    loop {
        match store.record(results, clock.now()).await {
            Ok(()) => return true,
            Err(error) if error.is_permanent() => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    count = results.len(),
                    "results cannot be recorded"
                );
                return false;
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "results could not be recorded; trying again"
            ),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
