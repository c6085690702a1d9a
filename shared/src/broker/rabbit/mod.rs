//! The RabbitMQ engine. It speaks AMQP 0-9-1 to 3.10 and later, and keeps five connections at most, each made when first
//! needed: three that publish (interactive, bulk, third parties), so that none waits for another and an alarm, which stops
//! publishers only, does not stop consumers, and two that consume.
//!
//! Bodies and passwords never enter an error or a log line of ours. The library logs a returned message whole: see
//! [`LIBRARY_LOG_FILTER`].

mod consumer;
mod link;
mod publisher;
pub mod topology;
mod wire;

use super::{Broker, Delivery, Depth, Error, PublishError, Queue};
use crate::clock::{SharedClock, SystemClock};
use crate::message::Message;
use consumer::Consumer;
use lapin::ExchangeKind;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use link::{Link, Target};
use publisher::Publisher;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use topology::{Argument, Arguments, Names, Topology};
use wire::{Class, Outgoing};

/// What a log filter must contain: the library writes the body of every returned message into the log.
pub const LIBRARY_LOG_FILTER: &str = "lapin::returned_messages=off";
/// How long one question to the broker may take.
const ANSWER: Duration = Duration::from_secs(10);

/// What can be chosen beside the address.
pub struct Options {
    /// What every queue and exchange begins with. Default `cs`.
    pub prefix: String,
    /// Where the time stamps of messages come from.
    pub clock: SharedClock,
    /// How long a confirm may take. Longer than any but a broken broker needs, shorter than the relay's lease.
    pub confirm_timeout: Duration,
    /// How many batches one publishing connection carries at once.
    pub channels: usize,
    /// A limit on each queue of jobs, which then refuses. Default none: the relay holds back before.
    pub max_length: Option<u32>,
    /// Certificates to trust beside the system's, PEM, for `amqps:`.
    pub ca: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: "cs".to_owned(),
            clock: Arc::new(SystemClock),
            confirm_timeout: Duration::from_secs(5),
            channels: 4,
            max_length: None,
            ca: None,
        }
    }
}

struct Inner {
    names: Names,
    topology: Topology,
    clock: SharedClock,
    interactive: Publisher,
    bulk: Publisher,
    foreign: Publisher,
    consume_interactive: Link,
    /// Also asks and declares: a consuming connection is never blocked.
    consume_bulk: Link,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The engine.
#[derive(Clone)]
pub struct Rabbit(Arc<Inner>);

impl Rabbit {
    /// Connects once, to say at once what is wrong; a connection lost later is rebuilt.
    pub async fn connect(url: &str, options: Options) -> Result<Self, Error> {
        let target = Arc::new(Target::new(url, options.ca)?);
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let link = |purpose| Link::lazy(Arc::clone(&target), purpose, stop.clone(), tasks.clone());
        let publisher = |link| Publisher::new(link, options.channels, options.confirm_timeout);
        let first = link("publish-interactive");
        first.start().await?;
        let names = Names::new(&options.prefix);
        Ok(Self(Arc::new(Inner {
            topology: Topology::new(&names, options.max_length),
            names,
            clock: options.clock,
            interactive: publisher(first),
            bulk: publisher(link("publish-bulk")),
            foreign: publisher(link("publish-third-parties")),
            consume_interactive: link("consume-interactive"),
            consume_bulk: link("consume-bulk"),
            stop,
            tasks,
        })))
    }

    /// What [`Broker::apply_topology`] declares.
    pub fn topology(&self) -> &Topology {
        &self.0.topology
    }

    /// Deletes all of that, with every message in it: for a deployment that was made for a while.
    pub async fn remove_topology(&self) -> Result<(), Error> {
        let inner = &self.0;
        for queue in &inner.topology.queues {
            let (name, options) = (queue.name.as_str(), QueueDeleteOptions::default());
            let delete =
                async |channel: lapin::Channel| channel.queue_delete(name.into(), options).await;
            inner.ask(&format!("queue {name}"), delete).await?;
        }
        for exchange in &inner.topology.exchanges {
            let (name, options) = (exchange.name.as_str(), ExchangeDeleteOptions::default());
            let delete =
                async |channel: lapin::Channel| channel.exchange_delete(name.into(), options).await;
            inner.ask(&format!("exchange {name}"), delete).await?;
        }
        Ok(())
    }
}

impl Inner {
    /// A question on a channel of its own: a refusal closes the channel.
    async fn ask<T>(
        &self,
        what: &str,
        asking: impl AsyncFnOnce(lapin::Channel) -> Result<T, lapin::Error>,
    ) -> Result<T, Error> {
        let target = self.consume_bulk.target();
        let connection = self.consume_bulk.get(ANSWER).await?;
        let asked = async {
            let channel = connection.create_channel().await?;
            let answer = asking(channel.clone()).await?;
            // Left to its drop, it is closed at any later time, also while the connection closes, which the library logs as an error.
            channel.close(200, "answered".into()).await.ok();
            Ok(answer)
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(match target.error(error) {
                Error::Refused(why) => Error::Refused(format!("{what}: {why}")),
                other => other,
            }),
            Err(_) => {
                self.consume_bulk.suspect();
                Err(target.unreachable())
            }
        }
    }

    fn publisher(&self, class: Class) -> &Publisher {
        match class {
            Class::Interactive => &self.interactive,
            Class::Bulk => &self.bulk,
            Class::Foreign => &self.foreign,
        }
    }
}

/// Arguments in the library's form.
fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Int(number) => AMQPValue::LongLongInt(*number),
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
        };
        table.insert((*name).into(), value);
    }
    table
}

#[async_trait::async_trait]
impl Broker for Rabbit {
    async fn apply_topology(&self) -> Result<(), Error> {
        let inner = &self.0;
        for exchange in &inner.topology.exchanges {
            let kind = match exchange.kind {
                "fanout" => ExchangeKind::Fanout,
                "topic" => ExchangeKind::Topic,
                _ => ExchangeKind::Direct,
            };
            let options = ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            };
            let name = exchange.name.as_str();
            let arguments = table(&exchange.arguments);
            inner
                .ask(&format!("exchange {name}"), async |channel| {
                    channel
                        .exchange_declare(name.into(), kind, options, arguments)
                        .await
                })
                .await?;
        }
        for queue in &inner.topology.queues {
            let options = QueueDeclareOptions {
                durable: true,
                ..QueueDeclareOptions::default()
            };
            let name = queue.name.as_str();
            let arguments = table(&queue.arguments);
            inner
                .ask(&format!("queue {name}"), async |channel| {
                    channel.queue_declare(name.into(), options, arguments).await
                })
                .await?;
        }
        for binding in &inner.topology.bindings {
            let (queue, exchange) = (binding.queue.as_str(), binding.exchange.as_str());
            inner
                .ask(
                    &format!("binding of {queue} to {exchange}"),
                    async |channel| {
                        let options = QueueBindOptions::default();
                        channel
                            .queue_bind(
                                queue.into(),
                                exchange.into(),
                                binding.key.into(),
                                options,
                                FieldTable::default(),
                            )
                            .await
                    },
                )
                .await?;
        }
        Ok(())
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Result<(), PublishError>> {
        let inner = &self.0;
        let now = inner.clock.now();
        let mut results = vec![Ok(()); batch.len()];
        let mut parts: [(Vec<usize>, Vec<Outgoing<'_>>); 3] = Default::default();
        for (place, message) in batch.iter().enumerate() {
            match wire::outgoing(message, &inner.names, now) {
                Ok(out) => {
                    let (places, outgoing) = &mut parts[out.class as usize];
                    places.push(place);
                    outgoing.push(out);
                }
                Err(refused) => results[place] = Err(refused),
            }
        }
        // Side by side: no class waits for another.
        let sent = parts
            .iter()
            .filter(|(_, part)| !part.is_empty())
            .map(async |(places, part)| {
                (places, inner.publisher(part[0].class).publish(part).await)
            });
        for (places, said) in futures_util::future::join_all(sent).await {
            for (place, result) in places.iter().zip(said) {
                results[*place] = result;
            }
        }
        results
    }

    async fn consume(
        &self,
        queue: Queue,
        prefetch: u16,
    ) -> Result<mpsc::Receiver<Delivery>, Error> {
        let link = match queue {
            Queue::JobsInteractive | Queue::StatusWait | Queue::StatusOwn => {
                &self.0.consume_interactive
            }
            Queue::JobsBulk | Queue::StatusForward | Queue::Instances | Queue::Parking => {
                &self.0.consume_bulk
            }
        };
        // 0 would mean without a limit.
        let prefetch = prefetch.max(1);
        let consumer = Consumer {
            link: link.clone(),
            names: self.0.names.clone(),
            queue,
            prefetch,
            stop: self.0.stop.clone(),
        };
        let session = consumer.open().await?;
        let (to, receiver) = mpsc::channel(usize::from(prefetch));
        self.0.tasks.spawn(consumer.feed(session, to));
        Ok(receiver)
    }

    async fn depth(&self, queue: Queue) -> Result<Depth, Error> {
        let Some(name) = self.0.names.queue(&queue) else {
            return Ok(Depth::default());
        };
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let found = self
            .0
            .ask(&format!("queue {name}"), async |channel| {
                channel
                    .queue_declare(name.as_str().into(), options, FieldTable::default())
                    .await
            })
            .await?;
        Ok(Depth {
            ready: u64::from(found.message_count()),
            unacked: 0,
        })
    }

    async fn healthy(&self) -> bool {
        self.0.interactive.answers().await
    }

    async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}
