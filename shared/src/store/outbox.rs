//! The outbox: messages that a committed transaction has promised.
//!
//! A row is written with a lease, during which the process that wrote it publishes it at once and then deletes it. A row
//! whose lease has run out was left behind by a crash, or its publish was not confirmed: any process may take it.
//! Publishing twice is harmless, so deleting waits for the confirm and nothing else.

use super::db::{Arg, Db, Error, Statement, Tx};
use crate::broker::{Embedded, Placed};
use crate::clock::Millis;
use crate::id::MessageId;
use crate::message::{EVENT_BATCH, Lane, Message, Route};
use tokio::sync::mpsc;

/// How long a message is its writer's own to publish. Longer than a confirm may take.
pub const LEASE: Millis = 10_000;
/// How many hand-overs may wait. Beyond that the sweep takes them: nothing is lost, it only takes a lease longer.
const WAITING: usize = 10_000;

/// Messages that may wait for one another. What one class waits for never delays another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits at a screen.
    Interactive,
    /// Batches.
    Bulk,
    /// Queues that are not ours and may be full or gone.
    Foreign,
}

impl Class {
    /// All of them, in the order of the handover's ends.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Bulk, Self::Foreign];

    fn of(message: &Message) -> Self {
        match &message.route {
            Route::Jobs(lane) | Route::Later(_, lane) => match lane {
                Lane::Interactive => Self::Interactive,
                Lane::Bulk => Self::Bulk,
            },
            Route::Status(_) if message.content_type == EVENT_BATCH => Self::Bulk,
            Route::Status(_) => Self::Interactive,
            Route::External(_) | Route::Direct(_) | Route::Parking(_) => Self::Foreign,
        }
    }
}

/// Takes messages from those who promise them to whoever sends them on: the relay of the same process, or a queue in the same database.
#[derive(Clone)]
pub struct Handover {
    relay: [mpsc::Sender<Vec<Message>>; 3],
    queue: Option<Embedded>,
}

/// Messages promised by a transaction that is not committed yet.
pub(super) struct Promised {
    placed: Option<Placed>,
    rest: Vec<Message>,
}

impl Promised {
    /// Is there one that not only our own workers read?
    pub(super) fn is_told_outside(&self) -> bool {
        let outside = |one: &Message| !matches!(one.route, Route::Jobs(_) | Route::Later(..));
        let placed = self.placed.iter().flat_map(Placed::messages);
        placed.chain(&self.rest).any(outside)
    }
}

/// Where the relay gets them: one end for each class.
pub type Committed = [mpsc::Receiver<Vec<Message>>; 3];

impl Handover {
    /// The two ends.
    pub fn channel() -> (Self, Committed) {
        let [one, two, three] = Class::ALL.map(|_| mpsc::channel(WAITING));
        let relay = [one.0, two.0, three.0];
        let all = Self { relay, queue: None };
        (all, [one.1, two.1, three.1])
    }

    /// The same, beside a queue in the store's own database, if there is one: what that takes goes into it at once, without outbox and relay.
    pub fn beside(self, queue: Option<Embedded>) -> Self {
        Self { queue, ..self }
    }

    /// Writes `messages` as part of `tx`. Those that the relay publishes have a lease until `lease_until`.
    pub(super) async fn promise(
        &self,
        tx: &mut Tx,
        messages: Vec<Message>,
        lease_until: Millis,
    ) -> Result<Promised, Error> {
        let at_once = |one: &Message| self.queue.as_ref().is_some_and(|queue| queue.places(one));
        let (own, rest): (Vec<_>, Vec<_>) = messages.into_iter().partition(at_once);
        let placed = match &self.queue {
            Some(queue) if !own.is_empty() => Some(queue.place(tx, own).await?),
            _ => None,
        };
        Outbox::add(tx, &rest, lease_until)?;
        Ok(Promised { placed, rest })
    }

    /// Sends on what was promised, after the commit. Never waits.
    pub(super) fn keep(&self, promised: Promised) {
        if let (Some(queue), Some(placed)) = (&self.queue, promised.placed) {
            let count = queue.hand_out(placed);
            metrics::counter!("countersign_messages_published_total", "result" => "confirmed")
                .increment(count as u64);
        }
        self.published_soon(promised.rest);
    }

    /// Hands over messages whose transaction is committed. Never waits.
    pub fn published_soon(&self, committed: Vec<Message>) {
        let mut classes = [Vec::new(), Vec::new(), Vec::new()];
        for message in committed {
            classes[Class::of(&message) as usize].push(message);
        }
        for (to, messages) in self.relay.iter().zip(classes) {
            if !messages.is_empty() && to.try_send(messages).is_err() {
                tracing::warn!("the relay is behind or gone; a sweep will publish these messages");
            }
        }
    }

    /// Is there so much to publish already that a sweep would only add to it?
    pub fn is_behind(&self) -> bool {
        self.relay.iter().any(|to| to.capacity() < WAITING / 2)
    }
}

static ADD: Statement = Statement::new(
    "INSERT INTO outbox (id, message, lease_until)
     SELECT r.value->>'id', r.value->>'message', CAST(r.value->>'lease_until' AS BIGINT) FROM {each:$1}",
);
static TAKE: Statement = Statement::new(
    "UPDATE outbox SET lease_until = $2 WHERE id IN
       (SELECT id FROM outbox WHERE lease_until <= $1 ORDER BY lease_until LIMIT $3 {skip_locked})
     RETURNING id, message",
);
static DELETE: Statement = Statement::new("DELETE FROM outbox WHERE id {in:$1}");
static COUNT: Statement = Statement::long("SELECT COUNT(*) AS n FROM outbox");

/// The outbox of one database.
#[derive(Clone)]
pub struct Outbox {
    db: Db,
}

impl Outbox {
    /// The outbox in `db`.
    pub fn new(db: Db) -> Self {
        Self { db }
    }

    /// Promises `messages` as part of `tx`. Until `lease_until` they are the caller's to publish, after the commit.
    pub fn add(tx: &mut Tx, messages: &[Message], lease_until: Millis) -> Result<(), Error> {
        if messages.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = messages
            .iter()
            .map(|m| {
                // Texts, numbers and bytes only: this cannot fail to serialise.
                let message = serde_json::to_string(m).unwrap_or_default();
                serde_json::json!({"id": m.id, "message": message, "lease_until": lease_until})
            })
            .collect();
        let rows = serde_json::Value::Array(rows).to_string();
        tx.send(&ADD, &[Arg::Text(&rows)])
    }

    /// Takes up to `limit` messages whose lease has run out at `now`, under a new lease. Of two takers one gets a message.
    pub async fn take(
        &self,
        now: Millis,
        lease_until: Millis,
        limit: u32,
    ) -> Result<Vec<Message>, Error> {
        let args = [
            Arg::Int(now),
            Arg::Int(lease_until),
            Arg::Int(i64::from(limit)),
        ];
        let rows = self.db.write_repeatable(&TAKE, &args).await?;
        rows.iter()
            .map(|row| {
                serde_json::from_str(&row.text("message")?)
                    .map_err(|_| Error::Row("outbox.message"))
            })
            .collect()
    }

    /// Forgets messages that the broker has confirmed.
    pub async fn delete(&self, confirmed: &[MessageId]) -> Result<(), Error> {
        if confirmed.is_empty() {
            return Ok(());
        }
        let ids = super::to_json(&confirmed);
        let args = [Arg::Text(&ids)];
        self.db.write_repeatable(&DELETE, &args).await.map(|_| ())
    }

    /// How many promises are open.
    pub async fn pending(&self) -> Result<i64, Error> {
        match self.db.fetch(&COUNT, &[]).await?.first() {
            Some(row) => row.int("n"),
            None => Ok(0),
        }
    }
}
