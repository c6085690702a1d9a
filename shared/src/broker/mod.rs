//! The broker port: a transport that may lose everything, since it can be refilled from the store.
//!
//! Delivery is at least once. A message is gone only after [`Delivery::ack`]; whoever acks must first have committed
//! or published, confirmed, what replaces it.

mod embedded;
pub mod rabbit;

pub(crate) use embedded::Placed;
pub use embedded::{DELIVERY_LIMIT, Embedded, LEASE};
pub use rabbit::Rabbit;

use crate::clock::SharedClock;
use crate::message::{Message, Retry};
use crate::store::Db;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Why one message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound for it: returned by the broker.
    #[error("no queue takes this message")]
    Unroutable,
    /// A queue refused it, for example because it is full.
    #[error("a queue refused the message")]
    Refused,
    /// No confirm came in time or the connection broke: it may have been taken. Publishing again is harmless.
    #[error("no confirm: the message may have been taken")]
    Unknown,
}

/// Why an operation on the broker failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker cannot be reached or dropped the connection.
    #[error("the broker at {at} cannot be reached")]
    Unreachable {
        /// Host and port, never the credentials.
        at: String,
        /// The cause.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The broker refused: a missing right, or a queue that exists with other arguments.
    #[error("the broker refused: {0}")]
    Refused(String),
    /// The embedded queue's database failed.
    #[error("the embedded queue failed")]
    Database(#[from] crate::store::Error),
}

/// A queue that a role consumes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Jobs of single pushes that somebody waits for.
    JobsInteractive,
    /// Jobs of batches.
    JobsBulk,
    /// Completion events for the wait-on-push activity: durable, shared by all waiters.
    StatusWait,
    /// Completion events for this process alone: gone with its connection. After a gap in them an error is delivered in their place.
    StatusOwn,
    /// Completion events on their way to the queues of third parties.
    StatusForward,
    /// What process engines of third parties say about child process instances. Nothing in it is a [`Message`]: read the raw body.
    Instances,
    /// Messages that nobody could handle, with the reason.
    Parking,
}

/// How a delivery was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// Done with: forget it.
    Ack,
    /// Give it to somebody else, soon. For shutdown only.
    Requeue,
}

/// The broker's side of one delivery.
#[async_trait::async_trait]
pub trait Settlement: Send + Sync {
    /// Settles the delivery. `false`: the broker has already given it to somebody else.
    async fn settle(&self, how: Settle) -> bool;
}

/// One message handed to a consumer, unsettled. Dropping it settles nothing: the broker will deliver it again.
pub struct Delivery {
    /// The message, or the reason why what arrived is none. Its raw body stays in `raw`.
    pub message: Result<Message, String>,
    /// What arrived, byte for byte.
    pub raw: bytes::Bytes,
    /// The broker says that it was delivered before.
    pub redelivered: bool,
    settlement: Box<dyn Settlement>,
}

impl Delivery {
    /// A delivery settled through `settlement`.
    pub fn new(
        message: Result<Message, String>,
        raw: bytes::Bytes,
        redelivered: bool,
        settlement: Box<dyn Settlement>,
    ) -> Self {
        Self {
            message,
            raw,
            redelivered,
            settlement,
        }
    }

    /// Says to a consumer of [`Queue::StatusOwn`] that events may have passed it by: it reads the state again. Nothing is settled by it.
    fn gap() -> Self {
        let message = Err("events may have been missed".to_owned());
        Self::new(message, bytes::Bytes::new(), false, Box::new(Nothing))
    }

    /// Forgets the message. Call it only after what replaces it is committed or confirmed.
    pub async fn ack(&self) -> bool {
        self.settlement.settle(Settle::Ack).await
    }

    /// Hands the message back, for shutdown.
    pub async fn requeue(&self) -> bool {
        self.settlement.settle(Settle::Requeue).await
    }
}

/// The settlement of what is no message.
struct Nothing;

#[async_trait::async_trait]
impl Settlement for Nothing {
    async fn settle(&self, _how: Settle) -> bool {
        true
    }
}

/// How many messages a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Waiting for a consumer.
    pub ready: u64,
    /// With a consumer, not yet settled. The RabbitMQ engine does not know it over AMQP and says 0.
    pub unacked: u64,
}

/// The port. Every engine passes one conformance suite.
#[async_trait::async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Declares what is missing. A queue that exists with other arguments is an error and is left alone.
    async fn apply_topology(&self) -> Result<(), Error>;

    /// Publishes a batch, persistent and mandatory, and waits for the confirms: one result per message, in order.
    async fn publish(&self, batch: &[Message]) -> Vec<Result<(), PublishError>>;

    /// Starts to consume. At most `prefetch` deliveries are unsettled at once. The receiver ends when the engine shuts
    /// down; a lost connection is rebuilt behind it.
    async fn consume(&self, queue: Queue, prefetch: u16)
    -> Result<mpsc::Receiver<Delivery>, Error>;

    /// How full a queue is.
    async fn depth(&self, queue: Queue) -> Result<Depth, Error>;

    /// The engine itself, if its queues lie in the store's own database.
    fn in_database(&self) -> Option<Embedded> {
        None
    }

    /// Is the broker there and taking messages?
    async fn healthy(&self) -> bool;

    /// Closes connections and stops tasks.
    async fn close(&self);
}

/// May a push name `queue` as its `reply_to`? Only queues of third parties and of waiters: with any other name a tenant could
/// aim our own rights at our own queues.
pub fn may_be_aimed_at(queue: &str) -> bool {
    queue.starts_with("ext.") || queue.starts_with("wait.")
}

/// A broker that can be handed around.
pub type SharedBroker = Arc<dyn Broker>;

/// Opens the engine that `url` names: `embedded:` keeps its queues in `db`, `amqp://…` and `amqps://…` speak to RabbitMQ, where the names of
/// all queues and exchanges begin with `prefix`.
pub async fn open(
    url: &str,
    prefix: &str,
    db: &Db,
    clock: SharedClock,
) -> Result<SharedBroker, Error> {
    match url.split_once(':') {
        Some(("embedded", _)) if matches!(db, Db::Sqlite(_)) => {
            Ok(Arc::new(Embedded::new(db.clone(), clock)))
        }
        Some(("embedded", _)) => Err(Error::Refused(
            "the embedded queue lives in SQLite; with PostgreSQL a RabbitMQ is needed".to_owned(),
        )),
        Some(("amqp" | "amqps", _)) => {
            let options = rabbit::Options {
                prefix: prefix.to_owned(),
                clock,
                ..rabbit::Options::default()
            };
            Ok(Arc::new(Rabbit::connect(url, options).await?))
        }
        // The address may hold a password: it is not repeated.
        _ => Err(Error::Refused(
            "a broker address starts with embedded:, amqp: or amqps:".to_owned(),
        )),
    }
}

/// The delay tiers, shortest first.
pub const RETRY_TIERS: [Duration; 7] = [
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
    Duration::from_mins(5),
];

/// The longest tier that does not wait longer than asked; the shortest when all do.
pub fn tier_for(delay: Duration) -> Retry {
    let secs = RETRY_TIERS
        .iter()
        .rev()
        .find(|tier| **tier <= delay)
        .unwrap_or(&RETRY_TIERS[0])
        .as_secs();
    Retry {
        seconds: u32::try_from(secs).unwrap_or(300),
    }
}
