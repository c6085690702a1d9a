//! The embedded engine: queues as rows of the store's own SQLite file. It serves one process on one machine, keeps every
//! confirmed message through a crash, and knows no queues of third parties: `External` finds nobody bound and `Direct` no queue.
//!
//! A row is visible from `visible_at` on. Handing it out moves `visible_at` to the end of a lease and counts the delivery;
//! that count fences the settling, so a consumer that outlived its lease can neither delete nor release what another one
//! holds now. Nothing renews a lease: a delivery must be settled within [`LEASE`].

use super::{Broker, Delivery, Depth, Error, PublishError, Queue, Settle, Settlement};
use crate::clock::{Millis, SharedClock};
use crate::message::{Message, Route};
use crate::store::db::{Arg, Db, Error as StoreError, Row, Statement};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a consumer may hold a message before it is handed to another one.
pub const LEASE: Duration = Duration::from_mins(1);
/// A message handed out this often and never settled is parked: it takes its consumers down.
pub const DELIVERY_LIMIT: i64 = 20;
/// How long an idle consumer sleeps at most: the bound on how late it sees a row whose lease ran out.
const IDLE: Duration = Duration::from_secs(1);
/// How far a slow `StatusOwn` consumer may fall behind before it loses events; it re-reads the state then.
const OWN_BUFFER: usize = 65_536;

static ADD: Statement = Statement::new(
    "INSERT INTO queue_messages (queue, message, visible_at, deliveries)
     SELECT r.value->>'queue', r.value->>'message', CAST(r.value->>'visible_at' AS BIGINT), 0 FROM {each:$1}",
);
static TAKE: Statement = Statement::new(
    "UPDATE queue_messages SET visible_at = $3, deliveries = deliveries + 1 WHERE id IN
       (SELECT id FROM queue_messages WHERE queue = $1 AND visible_at <= $2 ORDER BY visible_at, id LIMIT $4)
     RETURNING id, message, deliveries",
);
static NEXT: Statement =
    Statement::new("SELECT MIN(visible_at) AS at FROM queue_messages WHERE queue = $1");
static DELETE: Statement =
    Statement::new("DELETE FROM queue_messages WHERE id = $1 AND deliveries = $2 RETURNING id");
static RELEASE: Statement = Statement::new(
    "UPDATE queue_messages SET visible_at = $3, deliveries = deliveries - 1 WHERE id = $1 AND deliveries = $2 RETURNING id",
);
static MOVE: Statement = Statement::new(
    "UPDATE queue_messages SET queue = $3, message = $4, visible_at = $5, deliveries = 0 WHERE id = $1 AND deliveries = $2 RETURNING id",
);
static DEPTH: Statement = Statement::new(
    "SELECT COUNT(CASE WHEN visible_at <= $2 THEN 1 END) AS ready,
            COUNT(CASE WHEN visible_at > $2 AND deliveries > 0 THEN 1 END) AS unacked
     FROM queue_messages WHERE queue = $1",
);

fn name(queue: &Queue) -> &'static str {
    match queue {
        Queue::JobsInteractive => "cs.jobs.interactive",
        Queue::JobsBulk => "cs.jobs.bulk",
        Queue::StatusWait => "cs.status.wait",
        Queue::StatusOwn => "cs.status.own",
        Queue::StatusForward => "cs.status.forward",
        Queue::Parking => "cs.parking",
    }
}

fn jobs(lane: crate::message::Lane) -> &'static str {
    match lane {
        crate::message::Lane::Interactive => name(&Queue::JobsInteractive),
        crate::message::Lane::Bulk => name(&Queue::JobsBulk),
    }
}

struct Inner {
    db: Db,
    clock: SharedClock,
    /// Rung at every publish and every release.
    bell: Notify,
    own: broadcast::Sender<Message>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The engine.
#[derive(Clone)]
pub struct Embedded(Arc<Inner>);

impl Embedded {
    /// The queues kept in `db`, which must be a migrated SQLite database.
    pub fn new(db: Db, clock: SharedClock) -> Self {
        Self(Arc::new(Inner {
            db,
            clock,
            bell: Notify::new(),
            own: broadcast::channel(OWN_BUFFER).0,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }
}

impl Inner {
    /// The rows that a message becomes; `Err` when no queue takes it.
    fn rows(&self, message: &Message) -> Result<Vec<serde_json::Value>, PublishError> {
        let now = self.clock.now();
        let (queues, visible_at): (&[&str], Millis) = match &message.route {
            Route::Jobs(lane) => (&[jobs(*lane)], now),
            Route::Later(retry, lane) => (&[jobs(*lane)], now + i64::from(retry.seconds) * 1000),
            Route::Status(_) => (
                &[name(&Queue::StatusWait), name(&Queue::StatusForward)],
                now,
            ),
            Route::Parking(_) => (&[name(&Queue::Parking)], now),
            Route::External(_) => (&[], now),
            Route::Direct(_) => return Err(PublishError::Unroutable),
        };
        // Texts, numbers and bytes only: this cannot fail to serialise.
        let text = serde_json::to_string(message).unwrap_or_default();
        Ok(queues.iter().map(|queue| serde_json::json!({"queue": queue, "message": text, "visible_at": visible_at})).collect())
    }

    async fn write(&self, statement: &Statement, args: &[Arg<'_>]) -> Result<Vec<Row>, StoreError> {
        let mut tx = self.db.begin().await?;
        let rows = tx.fetch(statement, args).await?;
        tx.commit().await?;
        Ok(rows)
    }

    async fn take(&self, queue: &Queue, limit: usize) -> Result<Vec<Taken>, StoreError> {
        let now = self.clock.now();
        let until = now + LEASE.as_millis() as Millis;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self
            .write(
                &TAKE,
                &[
                    Arg::Text(name(queue)),
                    Arg::Int(now),
                    Arg::Int(until),
                    Arg::Int(limit),
                ],
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Taken {
                    id: row.int("id")?,
                    text: row.text("message")?,
                    deliveries: row.int("deliveries")?,
                })
            })
            .collect()
    }

    async fn park(&self, taken: &Taken, mut message: Message) -> Result<(), StoreError> {
        message.route = Route::Parking(format!(
            "handed out {DELIVERY_LIMIT} times and never settled"
        ));
        let text = serde_json::to_string(&message).unwrap_or_default();
        let args = [
            Arg::Int(taken.id),
            Arg::Int(taken.deliveries),
            Arg::Text(name(&Queue::Parking)),
            Arg::Text(&text),
            Arg::Int(self.clock.now()),
        ];
        self.write(&MOVE, &args).await?;
        self.bell.notify_waiters();
        Ok(())
    }

    /// How long until a row of `queue` becomes visible, at most [`IDLE`].
    async fn nap(&self, queue: &Queue) -> Duration {
        let next = match self.db.fetch(&NEXT, &[Arg::Text(name(queue))]).await {
            Ok(rows) => rows
                .first()
                .and_then(|row| row.maybe_int("at").ok().flatten()),
            Err(_) => None,
        };
        next.map_or(IDLE, |at| {
            Duration::from_millis(u64::try_from(at - self.clock.now()).unwrap_or(1).max(1))
                .min(IDLE)
        })
    }
}

struct Taken {
    id: i64,
    text: String,
    deliveries: i64,
}

struct Leased {
    inner: Arc<Inner>,
    id: i64,
    deliveries: i64,
    _permit: OwnedSemaphorePermit,
}

#[async_trait::async_trait]
impl Settlement for Leased {
    async fn settle(&self, how: Settle) -> bool {
        let fence = [Arg::Int(self.id), Arg::Int(self.deliveries)];
        let settled = match how {
            Settle::Ack => self.inner.write(&DELETE, &fence).await,
            Settle::Requeue => {
                let now = Arg::Int(self.inner.clock.now());
                let settled = self.inner.write(&RELEASE, &[fence[0], fence[1], now]).await;
                self.inner.bell.notify_waiters();
                settled
            }
        };
        match settled {
            Ok(rows) => !rows.is_empty(),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a message could not be settled; it will be delivered again"
                );
                false
            }
        }
    }
}

/// Nothing to settle: the event is in memory only.
struct Volatile(
    #[expect(
        dead_code,
        reason = "held: it frees the place in the prefetch window when dropped"
    )]
    OwnedSemaphorePermit,
);

#[async_trait::async_trait]
impl Settlement for Volatile {
    async fn settle(&self, _how: Settle) -> bool {
        true
    }
}

/// A place in the prefetch window; `None` at shutdown.
async fn place(inner: &Inner, window: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        permit = Arc::clone(window).acquire_owned() => permit.ok(),
        () = inner.stop.cancelled() => None,
    }
}

async fn feed(inner: Arc<Inner>, queue: Queue, window: Arc<Semaphore>, to: mpsc::Sender<Delivery>) {
    loop {
        let Some(first) = place(&inner, &window).await else {
            return;
        };
        // Armed before the look: a publish in between then rings it.
        let bell = inner.bell.notified();
        tokio::pin!(bell);
        bell.as_mut().enable();
        let room = window.available_permits() + 1;
        let taken = inner.take(&queue, room).await.unwrap_or_else(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the embedded queue could not be read"
            );
            Vec::new()
        });
        if taken.is_empty() {
            drop(first);
            let nap = inner.nap(&queue).await;
            tokio::select! {
                () = bell => {}
                () = tokio::time::sleep(nap) => {}
                () = inner.stop.cancelled() => return,
                () = to.closed() => return,
            }
            continue;
        }
        let mut first = Some(first);
        for one in taken {
            let message = serde_json::from_str::<Message>(&one.text);
            if let (Ok(message), true, true) = (
                &message,
                one.deliveries > DELIVERY_LIMIT,
                queue != Queue::Parking,
            ) {
                if let Err(error) = inner.park(&one, message.clone()).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a poisonous message could not be parked yet"
                    );
                }
                continue;
            }
            let permit = match first.take() {
                Some(permit) => permit,
                None => match Arc::clone(&window).acquire_owned().await {
                    Ok(permit) => permit,
                    Err(_) => return,
                },
            };
            let leased = Leased {
                inner: Arc::clone(&inner),
                id: one.id,
                deliveries: one.deliveries,
                _permit: permit,
            };
            let raw = message
                .as_ref()
                .map_or_else(|_| one.text.clone().into_bytes(), |m| m.body.clone());
            let message = message.map_err(|error| format!("not a message: {error}"));
            let delivery = Delivery::new(message, raw.into(), one.deliveries > 1, Box::new(leased));
            if let Err(unsent) = to.send(delivery).await {
                unsent.0.requeue().await;
                return;
            }
        }
        if inner.stop.is_cancelled() {
            return;
        }
    }
}

async fn feed_own(
    inner: Arc<Inner>,
    mut from: broadcast::Receiver<Message>,
    window: Arc<Semaphore>,
    to: mpsc::Sender<Delivery>,
) {
    loop {
        let Some(permit) = place(&inner, &window).await else {
            return;
        };
        let next = tokio::select! {
            next = from.recv() => next,
            () = inner.stop.cancelled() => return,
            () = to.closed() => return,
        };
        match next {
            Ok(message) => {
                let raw = message.body.clone().into();
                if to
                    .send(Delivery::new(
                        Ok(message),
                        raw,
                        false,
                        Box::new(Volatile(permit)),
                    ))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                tracing::warn!(lost, "a consumer of events fell behind");
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[async_trait::async_trait]
impl Broker for Embedded {
    async fn apply_topology(&self) -> Result<(), Error> {
        // The table is a migration of the store.
        self.depth(Queue::Parking).await.map(|_| ())
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Result<(), PublishError>> {
        let mut rows = Vec::with_capacity(batch.len());
        let mut results: Vec<_> = batch
            .iter()
            .map(|message| self.0.rows(message).map(|more| rows.extend(more)))
            .collect();
        let text = serde_json::Value::Array(rows).to_string();
        if let Err(error) = self.0.write(&ADD, &[Arg::Text(&text)]).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the embedded queue could not be written"
            );
            // A failed commit may have been made durable all the same.
            results
                .iter_mut()
                .filter(|result| result.is_ok())
                .for_each(|result| *result = Err(PublishError::Unknown));
            return results;
        }
        for message in batch
            .iter()
            .filter(|message| matches!(message.route, Route::Status(_)))
        {
            // An error here says that nobody listens.
            self.0.own.send(message.clone()).ok();
        }
        self.0.bell.notify_waiters();
        results
    }

    async fn consume(
        &self,
        queue: Queue,
        prefetch: u16,
    ) -> Result<mpsc::Receiver<Delivery>, Error> {
        let window = Arc::new(Semaphore::new(usize::from(prefetch.max(1))));
        let (to, receiver) = mpsc::channel(usize::from(prefetch.max(1)));
        let inner = Arc::clone(&self.0);
        if queue == Queue::StatusOwn {
            let from = inner.own.subscribe();
            self.0.tasks.spawn(feed_own(inner, from, window, to));
        } else {
            self.0.tasks.spawn(feed(inner, queue, window, to));
        }
        Ok(receiver)
    }

    async fn depth(&self, queue: Queue) -> Result<Depth, Error> {
        let rows = self
            .0
            .db
            .fetch(
                &DEPTH,
                &[Arg::Text(name(&queue)), Arg::Int(self.0.clock.now())],
            )
            .await?;
        let Some(row) = rows.first() else {
            return Ok(Depth::default());
        };
        let count = |column| row.int(column).map(|n| u64::try_from(n).unwrap_or(0));
        Ok(Depth {
            ready: count("ready")?,
            unacked: count("unacked")?,
        })
    }

    async fn healthy(&self) -> bool {
        self.depth(Queue::Parking).await.is_ok()
    }

    async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}
