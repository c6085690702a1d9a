//! What the broker tests stand on: one bed per engine, each with queues of its own.

#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod proxy;

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Channel, Connection, ConnectionProperties};
use proxy::Proxy;
use shared::broker::{Broker, Delivery, Embedded, LEASE, Queue, Rabbit, rabbit};
use shared::clock::ManualClock;
use shared::id::{MessageId, PushId, StoreId};
use shared::message::{Job, Lane, Message, Route, VERSION};
use shared::store::Db;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;

/// No condition is waited for longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) enum Engine {
    Embedded {
        folder: PathBuf,
        db: Db,
        clock: Arc<ManualClock>,
    },
    Rabbit {
        url: String,
        proxy: Proxy,
        engine: Rabbit,
    },
}

/// An engine with nothing in its queues.
pub(crate) struct Bed {
    pub(crate) name: &'static str,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) engine: Engine,
    pub(crate) prefix: String,
    pub(crate) limit: Option<u32>,
}

/// The address of the real broker, if it is to be tested.
pub(crate) fn amqp_url() -> Option<String> {
    let url = std::env::var("COUNTERSIGN_TEST_AMQP_URL").ok();
    assert!(
        url.is_some() || std::env::var("COUNTERSIGN_TEST_EMBEDDED_ONLY").is_ok(),
        "no RabbitMQ: run scripts/test, or set COUNTERSIGN_TEST_EMBEDDED_ONLY=1 to leave it out"
    );
    url
}

/// A bed for each engine.
pub(crate) async fn beds() -> Vec<Bed> {
    limited(None).await
}

/// The same, whose queues of jobs take `limit` messages.
pub(crate) async fn limited(limit: Option<u32>) -> Vec<Bed> {
    let mut all = vec![embedded(limit).await];
    all.extend(rabbit(limit).await);
    all
}

pub(crate) async fn embedded(limit: Option<u32>) -> Bed {
    let unique = MessageId::fresh(0);
    let folder = std::env::temp_dir().join(format!("countersign-queue-{unique}"));
    std::fs::create_dir_all(&folder).unwrap();
    let db = Db::open(&format!("sqlite:{}", folder.join("db.sqlite").display()))
        .await
        .unwrap();
    db.migrate().await.unwrap();
    let clock = ManualClock::at(1_000_000);
    let broker = Embedded::limited(db.clone(), clock.clone(), limit);
    broker.apply_topology().await.unwrap();
    Bed {
        name: "embedded",
        broker: Arc::new(broker),
        engine: Engine::Embedded { folder, db, clock },
        prefix: "cs".to_owned(),
        limit,
    }
}

pub(crate) fn options(prefix: &str, limit: Option<u32>) -> rabbit::Options {
    rabbit::Options {
        prefix: prefix.to_owned(),
        max_length: limit,
        ..rabbit::Options::default()
    }
}

/// The bed of RabbitMQ, if it is to be tested.
pub(crate) async fn rabbit(limit: Option<u32>) -> Option<Bed> {
    let url = amqp_url()?;
    let proxy = Proxy::before(proxy::authority(&url).to_owned()).await;
    let prefix = format!("t.{}", MessageId::fresh(0));
    let engine = Rabbit::connect(&proxy.url(&url), options(&prefix, limit))
        .await
        .unwrap();
    engine.apply_topology().await.unwrap();
    Some(Bed {
        name: "rabbitmq",
        broker: Arc::new(engine.clone()),
        engine: Engine::Rabbit { url, proxy, engine },
        prefix,
        limit,
    })
}

impl Bed {
    /// The database that the embedded engine's queues lie in.
    pub(crate) fn database(&self) -> &Db {
        match &self.engine {
            Engine::Embedded { db, .. } => db,
            Engine::Rabbit { .. } => panic!("RabbitMQ has a database of its own"),
        }
    }

    pub(crate) async fn send(&self, route: Route) -> Message {
        let sent = message(route);
        let said = self.broker.publish(std::slice::from_ref(&sent)).await;
        assert_eq!(said, [Ok(())], "{}", self.name);
        sent
    }

    pub(crate) async fn consume(&self, queue: Queue, prefetch: u16) -> Receiver<Delivery> {
        self.broker.consume(queue, prefetch).await.unwrap()
    }

    /// Time passes where time can be made to pass; with RabbitMQ it passes by itself.
    pub(crate) fn advance(&self, by: Duration) {
        if let Engine::Embedded { clock, .. } = &self.engine {
            clock.advance(i64::try_from(by.as_millis()).unwrap());
        }
    }

    /// Whatever consumes is lost without a goodbye; another process takes its place.
    pub(crate) async fn crash(&mut self) -> Arc<dyn Broker> {
        let heir: Arc<dyn Broker> = match &self.engine {
            Engine::Embedded { db, clock, .. } => {
                let heir = Embedded::limited(db.clone(), clock.clone(), self.limit);
                self.advance(LEASE);
                Arc::new(heir)
            }
            Engine::Rabbit { url, proxy, .. } => {
                proxy.go_deaf();
                proxy.cut();
                let heir = Rabbit::connect(url, options(&self.prefix, self.limit)).await;
                Arc::new(heir.unwrap())
            }
        };
        std::mem::replace(&mut self.broker, heir)
    }

    /// A channel to do what only a stranger would do.
    pub(crate) async fn stranger(&self) -> Option<(Connection, Channel)> {
        match &self.engine {
            Engine::Embedded { .. } => None,
            Engine::Rabbit { url, .. } => Some(raw(url).await),
        }
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        match &self.engine {
            Engine::Embedded { .. } => panic!("only RabbitMQ is behind a proxy"),
            Engine::Rabbit { proxy, .. } => proxy,
        }
    }

    pub(crate) async fn end(self) {
        self.broker.close().await;
        match self.engine {
            Engine::Embedded { folder, db, .. } => {
                db.close().await;
                std::fs::remove_dir_all(&folder).unwrap();
            }
            Engine::Rabbit { url, engine, .. } => {
                engine.close().await;
                let (connection, channel) = raw(&url).await;
                for queue in &engine.topology().queues {
                    let options = QueueDeleteOptions::default();
                    let name = queue.name.as_str();
                    channel.queue_delete(name.into(), options).await.unwrap();
                }
                for exchange in &engine.topology().exchanges {
                    let options = ExchangeDeleteOptions::default();
                    let name = exchange.name.as_str();
                    channel.exchange_delete(name.into(), options).await.unwrap();
                }
                connection.close(200, "OK".into()).await.unwrap();
            }
        }
    }
}

pub(crate) async fn raw(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

pub(crate) fn message(route: Route) -> Message {
    Job {
        v: VERSION,
        store: StoreId::fresh(1),
        pushes: vec![PushId::fresh(1)],
        retries: vec![],
        chunk: None,
    }
    .into_message(route, 1)
}

pub(crate) fn job() -> Message {
    message(Route::Jobs(Lane::Interactive))
}

pub(crate) async fn within<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    let Ok(came) = tokio::time::timeout(PATIENCE, waiting).await else {
        panic!("{what} did not come within {PATIENCE:?}")
    };
    came
}

pub(crate) async fn next(from: &mut Receiver<Delivery>) -> Delivery {
    within("a delivery", from.recv())
        .await
        .expect("the consumer has ended")
}

pub(crate) fn id(delivery: &Delivery) -> MessageId {
    delivery.message.as_ref().unwrap().id.clone()
}
