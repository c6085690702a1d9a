//! The outbox: messages that a committed transaction has promised.
//!
//! A row is written with a lease, during which the process that wrote it publishes it at once and then deletes it. A row
//! whose lease has run out was left behind by a crash, or its publish was not confirmed: any process may take it.
//! Publishing twice is harmless, so deleting waits for the confirm and nothing else.

use super::db::{Arg, Db, Error, Statement, Tx};
use crate::clock::Millis;
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

/// Takes committed messages from those who wrote them to the relay of the same process.
#[derive(Clone)]
pub struct Handover([mpsc::Sender<Vec<Message>>; 3]);

/// Where the relay gets them: one end for each class.
pub type Committed = [mpsc::Receiver<Vec<Message>>; 3];

impl Handover {
    /// The two ends.
    pub fn channel() -> (Self, Committed) {
        let [one, two, three] = Class::ALL.map(|_| mpsc::channel(WAITING));
        (Self([one.0, two.0, three.0]), [one.1, two.1, three.1])
    }

    /// Hands over messages whose transaction is committed. Never waits.
    pub fn published_soon(&self, committed: Vec<Message>) {
        let mut classes = [Vec::new(), Vec::new(), Vec::new()];
        for message in committed {
            classes[Class::of(&message) as usize].push(message);
        }
        for (to, messages) in self.0.iter().zip(classes) {
            if !messages.is_empty() && to.try_send(messages).is_err() {
                tracing::warn!("the relay is behind or gone; a sweep will publish these messages");
            }
        }
    }

    /// Is there so much to publish already that a sweep would only add to it?
    pub fn is_behind(&self) -> bool {
        self.0.iter().any(|to| to.capacity() < WAITING / 2)
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
static DELETE: Statement =
    Statement::new("DELETE FROM outbox WHERE id IN (SELECT r.value FROM {texts:$1})");
static COUNT: Statement = Statement::new("SELECT COUNT(*) AS n FROM outbox");

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
    pub async fn add(tx: &mut Tx, messages: &[Message], lease_until: Millis) -> Result<(), Error> {
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
        tx.fetch(
            &ADD,
            &[Arg::Text(&serde_json::Value::Array(rows).to_string())],
        )
        .await?;
        Ok(())
    }

    /// Takes up to `limit` messages whose lease has run out at `now`, under a new lease. Of two takers one gets a message.
    pub async fn take(
        &self,
        now: Millis,
        lease_until: Millis,
        limit: u32,
    ) -> Result<Vec<Message>, Error> {
        let mut tx = self.db.begin_repeatable().await?;
        let rows = tx
            .fetch(
                &TAKE,
                &[
                    Arg::Int(now),
                    Arg::Int(lease_until),
                    Arg::Int(i64::from(limit)),
                ],
            )
            .await?;
        let messages = rows
            .iter()
            .map(|row| {
                serde_json::from_str(&row.text("message")?)
                    .map_err(|_| Error::Row("outbox.message"))
            })
            .collect::<Result<_, _>>()?;
        tx.commit().await?;
        Ok(messages)
    }

    /// Forgets messages that the broker has confirmed.
    pub async fn delete(&self, confirmed: &[Message]) -> Result<(), Error> {
        if confirmed.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = confirmed.iter().map(|m| m.id.as_str()).collect();
        let ids = serde_json::json!(ids).to_string();
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
