//! The outbox: messages that a committed transaction has promised.
//!
//! A row is written with a lease, during which the process that wrote it publishes it at once and then deletes it. A row
//! whose lease has run out was left behind by a crash, or its publish was not confirmed: any process may take it.
//! Publishing twice is harmless, so deleting waits for the confirm and nothing else.

use super::db::{Arg, Db, Error, Statement, Tx};
use crate::clock::Millis;
use crate::message::Message;
use tokio::sync::mpsc;

/// How long a message is its writer's own to publish. Longer than a confirm may take.
pub const LEASE: Millis = 10_000;
/// How many hand-overs may wait. Beyond that the sweep takes them: nothing is lost, it only takes a lease longer.
const WAITING: usize = 10_000;

/// Takes committed messages from those who wrote them to the relay of the same process.
#[derive(Clone)]
pub struct Handover(mpsc::Sender<Vec<Message>>);

impl Handover {
    /// The two ends.
    pub fn channel() -> (Self, mpsc::Receiver<Vec<Message>>) {
        let (to, from) = mpsc::channel(WAITING);
        (Self(to), from)
    }

    /// Hands over messages whose transaction is committed. Never waits.
    pub fn published_soon(&self, committed: Vec<Message>) {
        if !committed.is_empty() && self.0.try_send(committed).is_err() {
            tracing::warn!("the relay is behind or gone; a sweep will publish these messages");
        }
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
        let mut tx = self.db.begin().await?;
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
        let mut tx = self.db.begin().await?;
        tx.fetch(&DELETE, &[Arg::Text(&ids)]).await?;
        tx.commit().await
    }

    /// How many promises are open.
    pub async fn pending(&self) -> Result<i64, Error> {
        match self.db.fetch(&COUNT, &[]).await?.first() {
            Some(row) => row.int("n"),
            None => Ok(0),
        }
    }
}
