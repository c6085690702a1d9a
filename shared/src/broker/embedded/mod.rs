//! The embedded engine: queues as rows of the store's own SQLite file. It serves one process on one machine, keeps every
//! confirmed message through a crash, and knows no queues of third parties: `External` finds nobody bound and `Direct` no queue.
//!
//! A row is visible from `visible_at` on. Handing it out moves `visible_at` to the end of a lease and counts the delivery;
//! that count fences the settling, so a consumer that outlived its lease can neither delete nor release what another one
//! holds now. Nothing renews a lease: a delivery must be settled within [`LEASE`].
//!
//! Settling is grouped: while one transaction commits, the settlements that come in wait and share the next one.
//!
//! What the store promises goes into the queue with the transaction that promises it ([`Embedded::place`]), already leased if a consumer has room,
//! and is handed to that consumer from memory once it is committed ([`Embedded::hand_out`]): no outbox, no second transaction, no look. A process
//! that dies in between leaves leased rows, which the next one frees as it starts.

mod feed;
mod line;
mod settling;

use super::{Broker, Delivery, Depth, Error, PublishError, Queue, may_be_aimed_at};
use crate::clock::{Millis, SharedClock};
use crate::message::{Lane, Message, Route};
use crate::store::db::{Arg, Db, Error as StoreError, Row, Rows, Statement, Tx};
use line::{Leased, Lines};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast, mpsc};
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
     SELECT r.queue, r.message, r.visible_at, r.deliveries FROM {rows:1 queue message visible_at:int deliveries:int}
     WHERE true RETURNING id, queue, message, deliveries",
);
static TAKE: Statement = Statement::new(
    "UPDATE queue_messages SET visible_at = $3, deliveries = deliveries + 1 WHERE id IN
       (SELECT id FROM queue_messages WHERE queue = $1 AND visible_at <= $2 ORDER BY visible_at, id LIMIT $4)
     RETURNING id, message, deliveries",
);
static NEXT: Statement =
    Statement::new("SELECT MIN(visible_at) AS at FROM queue_messages WHERE queue = $1");
static MOVE: Statement = Statement::new(
    "UPDATE queue_messages SET queue = $3, message = $4, visible_at = $5, deliveries = 0 WHERE id = $1 AND deliveries = $2 RETURNING id",
);
static FREE: Statement = Statement::long(
    "UPDATE queue_messages SET visible_at = $1 WHERE deliveries > 0 AND visible_at > $1",
);
static DEPTH: Statement = Statement::long(
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
        Queue::Instances => "cs.ingress.instances",
        Queue::Parking => "cs.parking",
    }
}

fn jobs(lane: Lane) -> &'static str {
    match lane {
        Lane::Interactive => name(&Queue::JobsInteractive),
        Lane::Bulk => name(&Queue::JobsBulk),
    }
}

/// The queues that get a message.
fn queues_of(route: &Route) -> impl Iterator<Item = &'static str> {
    let (one, other) = match route {
        Route::Jobs(lane) | Route::Later(_, lane) => (Some(jobs(*lane)), None),
        Route::Status(_) => (
            Some(name(&Queue::StatusWait)),
            Some(name(&Queue::StatusForward)),
        ),
        Route::Parking(_) => (Some(name(&Queue::Parking)), None),
        Route::External(_) | Route::Direct(_) => (None, None),
    };
    one.into_iter().chain(other)
}

/// Until when a row that is handed out now is its consumer's.
fn until(now: Millis) -> Millis {
    now + LEASE.as_millis() as Millis
}

/// One row to come.
struct New {
    queue: &'static str,
    text: String,
    visible_at: Millis,
}

impl New {
    /// `leased`: a consumer gets it at once.
    fn add_to(self, rows: &mut Rows, visible_at: Millis, leased: bool) {
        rows.row()
            .text(self.queue)
            .text(self.text)
            .int(visible_at)
            .int(i64::from(leased));
    }
}

struct Inner {
    db: Db,
    clock: SharedClock,
    lines: Lines,
    own: broadcast::Sender<Message>,
    settler: OnceLock<mpsc::Sender<settling::Settling>>,
    /// How many messages may wait in a queue of jobs.
    max_length: Option<u32>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The engine.
#[derive(Clone)]
pub struct Embedded(Arc<Inner>);

impl Embedded {
    /// The queues kept in `db`, which must be a migrated SQLite database.
    pub fn new(db: Db, clock: SharedClock) -> Self {
        Self::limited(db, clock, None)
    }

    /// The same, with a limit on each queue of jobs: a message that finds so many waiting is refused.
    pub fn limited(db: Db, clock: SharedClock, max_length: Option<u32>) -> Self {
        Self(Arc::new(Inner {
            db,
            clock,
            lines: Lines::default(),
            own: broadcast::channel(OWN_BUFFER).0,
            settler: OnceLock::new(),
            max_length,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Is this a message that [`Embedded::place`] takes?
    pub(crate) fn places(&self, message: &Message) -> bool {
        // A refusal needs somebody who keeps the message and tries again: the outbox.
        let route = &message.route;
        self.0.max_length.is_none()
            && matches!(route, Route::Jobs(_) | Route::Later(..) | Route::Status(_))
    }

    /// Puts messages into the queue as part of `tx`, which is one of the queue's own database.
    pub(crate) async fn place(
        &self,
        tx: &mut Tx,
        messages: Vec<Message>,
    ) -> Result<Placed, StoreError> {
        let (now, mut rows) = (self.0.clock.now(), Rows::default());
        let mut room: HashMap<&str, usize> = HashMap::new();
        // Those that are placed are never refused.
        for new in messages
            .iter()
            .flat_map(|one| self.0.rows(one).unwrap_or_default())
        {
            let room = room
                .entry(new.queue)
                .or_insert_with(|| self.0.lines.room(new.queue));
            let leased = new.visible_at <= now && *room > 0;
            *room -= usize::from(leased);
            let visible_at = if leased { until(now) } else { new.visible_at };
            new.add_to(&mut rows, visible_at, leased);
        }
        let mut placed = Placed {
            messages,
            ..Placed::default()
        };
        for row in tx.fetch(&ADD, &[Arg::Rows(&rows)]).await? {
            let taken = Taken::of(&row)?;
            if taken.deliveries > 0 {
                let queue = line::number(&row.text("queue")?);
                placed.leased.push(Leased {
                    queue,
                    until: until(now),
                    taken,
                });
            } else {
                placed.ready.push(row.text("queue")?);
            }
        }
        Ok(placed)
    }

    /// Hands out what was placed by a transaction that is committed. Says how many messages.
    pub(crate) fn hand_out(&self, placed: Placed) -> usize {
        self.0.lines.hand_out(placed.leased);
        for queue in &placed.ready {
            self.0.lines.fell_behind(queue);
        }
        self.0.tell(&placed.messages);
        placed.messages.len()
    }
}

/// Messages in the queue by a transaction that is not committed yet.
#[derive(Default)]
pub(crate) struct Placed {
    messages: Vec<Message>,
    leased: Vec<Leased>,
    /// The queues of the others.
    ready: Vec<String>,
}

impl Placed {
    pub(crate) fn messages(&self) -> &[Message] {
        &self.messages
    }
}

impl Inner {
    /// The rows that a message becomes; `Err` when no queue takes it.
    fn rows(&self, message: &Message) -> Result<Vec<New>, PublishError> {
        let now = self.clock.now();
        let visible_at = match &message.route {
            Route::Later(retry, _) => now + i64::from(retry.seconds) * 1000,
            Route::Direct(queue) if may_be_aimed_at(queue) => return Err(PublishError::Unroutable),
            Route::Direct(_) => return Err(PublishError::Refused),
            _ => now,
        };
        // Texts, numbers and bytes only: this cannot fail to serialise.
        let text = match &message.route {
            // It is handed out as what it is by then.
            Route::Later(_, lane) => serde_json::to_string(&Message {
                route: Route::Jobs(*lane),
                ..message.clone()
            }),
            _ => serde_json::to_string(message),
        }
        .unwrap_or_default();
        let new = |queue| New {
            queue,
            text: text.clone(),
            visible_at,
        };
        Ok(queues_of(&message.route).map(new).collect())
    }

    /// Tells the consumers of messages that are in their queues.
    fn tell(&self, messages: &[Message]) {
        let mut queues = BTreeSet::new();
        for message in messages {
            if matches!(message.route, Route::Status(_)) {
                // An error here says that nobody listens.
                self.own.send(message.clone()).ok();
            }
            queues.extend(queues_of(&message.route));
        }
        for queue in queues {
            self.lines.ring(queue);
        }
    }

    /// Writes the rows of all messages in one transaction. A message that finds its queue full is refused.
    async fn add(
        &self,
        results: &mut [Result<(), PublishError>],
        rows: Vec<(usize, New)>,
    ) -> Result<(), StoreError> {
        let mut tx = self.db.begin_repeatable().await?;
        let mut kept = Vec::with_capacity(rows.len());
        if let Some(limit) = self.max_length {
            let now = self.clock.now();
            let lanes = [jobs(Lane::Interactive), jobs(Lane::Bulk)];
            let mut room = [0_i64; 2];
            for (lane, room) in lanes.iter().zip(&mut room) {
                let found = tx.fetch(&DEPTH, &[Arg::Text(lane), Arg::Int(now)]).await?;
                let ready = found.first().map_or(Ok(0), |row| row.int("ready"))?;
                *room = i64::from(limit) - ready;
            }
            for (place, new) in rows {
                let lane = lanes.iter().position(|lane| *lane == new.queue);
                if let Some(lane) = lane.filter(|_| new.visible_at <= now) {
                    room[lane] -= 1;
                    if room[lane] < 0 {
                        results[place] = Err(PublishError::Refused);
                        continue;
                    }
                }
                kept.push(new);
            }
        } else {
            kept.extend(rows.into_iter().map(|(_, new)| new));
        }
        let mut rows = Rows::default();
        for new in kept {
            let visible_at = new.visible_at;
            new.add_to(&mut rows, visible_at, false);
        }
        tx.fetch(&ADD, &[Arg::Rows(&rows)]).await?;
        tx.commit().await
    }

    async fn take(&self, queue: &Queue, limit: usize) -> Result<Vec<Taken>, StoreError> {
        let now = self.clock.now();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self
            .db
            .write_repeatable(
                &TAKE,
                &[
                    Arg::Text(name(queue)),
                    Arg::Int(now),
                    Arg::Int(until(now)),
                    Arg::Int(limit),
                ],
            )
            .await?;
        // What was placed by a transaction that still waits for the disk is not handed out before.
        self.db.open_ones_safe().await?;
        rows.iter().map(Taken::of).collect()
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
        self.db.write_repeatable(&MOVE, &args).await?;
        self.lines.ring(name(&Queue::Parking));
        Ok(())
    }

    /// How long until a row of `queue` becomes visible, at most [`IDLE`].
    async fn nap(&self, queue: &Queue) -> Result<Duration, StoreError> {
        let rows = self.db.fetch(&NEXT, &[Arg::Text(name(queue))]).await?;
        let next = rows.first().map(|row| row.maybe_int("at")).transpose()?;
        Ok(next.flatten().map_or(IDLE, |at| {
            Duration::from_millis(u64::try_from(at - self.clock.now()).unwrap_or(0)).min(IDLE)
        }))
    }
}

struct Taken {
    id: i64,
    text: String,
    deliveries: i64,
}

impl Taken {
    fn of(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.int("id")?,
            text: row.text("message")?,
            deliveries: row.int("deliveries")?,
        })
    }
}

#[async_trait::async_trait]
impl Broker for Embedded {
    async fn apply_topology(&self) -> Result<(), Error> {
        // The table is a migration of the store. One process serves it: what an earlier one held is free.
        self.0
            .db
            .write(&FREE, &[Arg::Int(self.0.clock.now())])
            .await?;
        Ok(())
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Result<(), PublishError>> {
        let mut rows = Vec::with_capacity(batch.len());
        let mut results = Vec::with_capacity(batch.len());
        for (place, message) in batch.iter().enumerate() {
            let more = self.0.rows(message);
            results.push(more.map(|more| rows.extend(more.into_iter().map(|new| (place, new)))));
        }
        if let Err(error) = self.0.add(&mut results, rows).await {
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
        for queue in batch.iter().flat_map(|one| queues_of(&one.route)) {
            self.0.lines.fell_behind(queue);
        }
        self.0.tell(batch);
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
            self.0.tasks.spawn(feed::feed_own(inner, from, window, to));
        } else {
            inner.lines.joined(&queue, &window);
            self.0.tasks.spawn(feed::feed(inner, queue, window, to));
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

    fn in_database(&self) -> Option<Embedded> {
        Some(self.clone())
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
