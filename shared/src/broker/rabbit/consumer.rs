//! Consuming. Each consumer has a channel of its own on a connection that never publishes, and is built anew with it when
//! the connection, the channel or the queue is lost. What was handed out before can then no longer be settled; the broker
//! gives it to somebody.

use super::super::{Delivery, Error, Queue, Settle, Settlement};
use super::link::Link;
use super::topology::{Arguments, Names, OWN_LIMIT};
use super::{table, wire};
use crate::id::MessageId;
use backon::{ExponentialBuilder, Retryable as _};
use futures_util::{FutureExt as _, StreamExt as _};

use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Connection};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long opening may take, with waiting for the connection.
const OPEN: Duration = Duration::from_secs(10);
const CANCEL: Duration = Duration::from_secs(2);
/// How long a consumer that holds nothing may get nothing before it looks whether it should.
const SILENCE: Duration = Duration::from_secs(5);
/// How long it may take to write an ack.
const SETTLE: Duration = Duration::from_secs(5);

const BACK: BasicNackOptions = BasicNackOptions {
    multiple: false,
    requeue: true,
};

/// What is consumed, how, and to whom it goes.
pub(super) struct Consumer {
    pub(super) link: Link,
    pub(super) names: Names,
    pub(super) queue: Queue,
    pub(super) prefetch: u16,
    pub(super) stop: CancellationToken,
}

/// A consumer on one connection.
pub(super) struct Session {
    connection: Arc<Connection>,
    channel: Arc<Channel>,
    deliveries: lapin::Consumer,
    /// Rung when nothing of this session can be settled any more.
    lost: CancellationToken,
    /// How many messages are handed out and not settled.
    unsettled: Arc<AtomicUsize>,
}

enum End {
    /// Shutdown, or nobody listens any more.
    Wanted,
    /// The connection, the channel or the queue.
    Lost,
}

impl Consumer {
    /// Builds channel and consumer, in time or not at all.
    pub(super) async fn open(&self) -> Result<Session, Error> {
        timeout(OPEN, self.build())
            .await
            .unwrap_or_else(|_| Err(self.link.target().unreachable()))
    }

    async fn build(&self) -> Result<Session, Error> {
        let connection = self.link.get(OPEN).await?;
        let opening = async {
            let channel = connection.create_channel().await?;
            // Before anything is consumed: the library buffers without a bound.
            let qos = BasicQosOptions { global: false };
            channel.basic_qos(self.prefetch, qos).await?;
            let queue = match self.names.queue(&self.queue) {
                Some(queue) => queue,
                None => self.own(&channel).await?,
            };
            let options = BasicConsumeOptions::default();
            let deliveries = channel
                .basic_consume(queue.into(), "".into(), options, FieldTable::default())
                .await?;
            Ok((channel, deliveries))
        };
        let (channel, deliveries) = opening
            .await
            .map_err(|error| self.link.target().error(error))?;
        Ok(Session {
            connection,
            channel: Arc::new(channel),
            deliveries,
            lost: CancellationToken::new(),
            unsettled: Arc::default(),
        })
    }

    /// A queue of this consumer's own, gone with it, that gets every event.
    async fn own(&self, channel: &Channel) -> Result<String, lapin::Error> {
        let queue = self
            .names
            .of(&format!("status.own.{}", MessageId::fresh(0)));
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let arguments = table(&Arguments::from([
            ("x-queue-type", "classic".into()),
            ("x-max-length", OWN_LIMIT.into()),
        ]));
        let name = queue.as_str();
        channel
            .queue_declare(name.into(), options, arguments)
            .await?;
        let bind = QueueBindOptions::default();
        let from = self.names.of("status");
        channel
            .queue_bind(
                name.into(),
                from.into(),
                "#".into(),
                bind,
                FieldTable::default(),
            )
            .await?;
        Ok(queue)
    }

    /// Hands deliveries on until it is told to stop or nobody listens.
    pub(super) async fn feed(self, mut session: Session, to: mpsc::Sender<Delivery>) {
        loop {
            match self.pump(&mut session, &to).await {
                End::Wanted => return retire(session).await,
                End::Lost => session.lost.cancel(),
            }
            let delays = ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(20))
                .with_max_delay(Duration::from_secs(2))
                .with_jitter()
                .without_max_times();
            let opening = (|| self.open()).retry(delays).notify(|error, _| {
                tracing::warn!(queue = ?self.queue, error = error as &dyn std::error::Error, "nothing is consumed for now");
            });
            session = tokio::select! {
                () = self.stop.cancelled() => return,
                () = to.closed() => return,
                opened = opening => match opened {
                    Ok(session) => session,
                    // Cannot be: it is tried without end.
                    Err(_) => return,
                },
            };
            if self.queue == Queue::StatusOwn && to.send(Delivery::gap()).await.is_err() {
                return retire(session).await;
            }
        }
    }

    async fn pump(&self, session: &mut Session, to: &mpsc::Sender<Delivery>) -> End {
        let left = self.link.left(&session.connection);
        tokio::pin!(left);
        loop {
            let place = tokio::select! {
                biased;
                place = to.reserve() => match place {
                    Ok(place) => place,
                    Err(_) => return End::Wanted,
                },
                () = self.stop.cancelled() => return End::Wanted,
                () = &mut left => return End::Lost,
            };
            let next = tokio::select! {
                biased;
                next = session.deliveries.next() => next,
                () = self.stop.cancelled() => return End::Wanted,
                () = to.closed() => return End::Wanted,
                () = &mut left => return End::Lost,
                () = tokio::time::sleep(SILENCE) => {
                    if self.is_forgotten(session).await {
                        tracing::warn!(queue = ?self.queue, "messages wait and none comes: consuming anew");
                        return End::Lost;
                    }
                    continue;
                }
            };
            match next {
                Some(Ok(mut delivery)) => {
                    let (message, raw) = wire::incoming(&mut delivery, &self.queue);
                    let redelivered = delivery.redelivered;
                    session.unsettled.fetch_add(1, Ordering::SeqCst);
                    let held = Held {
                        unsettled: Arc::clone(&session.unsettled),
                        acker: delivery.acker,
                        settled: AtomicBool::new(false),
                        lost: session.lost.clone(),
                        _channel: Arc::clone(&session.channel),
                    };
                    place.send(Delivery::new(message, raw, redelivered, Box::new(held)));
                }
                // Nothing: the broker has cancelled the consumer, for example because the queue was deleted.
                Some(Err(_)) | None => return End::Lost,
            }
        }
    }
}

impl Consumer {
    /// Has the broker messages for a consumer that waits for some? Seen when a queue was deleted and made anew under load.
    async fn is_forgotten(&self, session: &Session) -> bool {
        let Some(queue) = self.names.queue(&self.queue) else {
            return false;
        };
        if session.unsettled.load(Ordering::SeqCst) > 0 {
            return false;
        }
        let looking = async {
            // A channel of its own: a queue that is gone closes it.
            let channel = session.connection.create_channel().await?;
            let options = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let found = channel
                .queue_declare(queue.as_str().into(), options, FieldTable::default())
                .await;
            channel.close(200, "OK".into()).await.ok();
            found
        };
        match timeout(OPEN, looking).await {
            Ok(Ok(found)) => found.message_count() > 0,
            // A queue that is gone, or no right to look: nothing is known.
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

/// Stops consuming. What has been handed out can still be settled: the channel lives until the last of it is dropped.
async fn retire(session: Session) {
    let tag = session.deliveries.tag();
    let cancelling = session
        .channel
        .basic_cancel(tag, BasicCancelOptions::default());
    timeout(CANCEL, cancelling).await.ok();
    let mut left = session.deliveries;
    while let Some(Some(Ok(delivery))) = left.next().now_or_never() {
        give_back(&delivery.acker);
    }
}

/// Sends the message back without waiting: the first poll queues the frame.
fn give_back(acker: &Acker) {
    acker.nack(BACK).now_or_never();
}

/// A message that the broker waits to hear about.
struct Held {
    unsettled: Arc<AtomicUsize>,
    acker: Acker,
    settled: AtomicBool,
    lost: CancellationToken,
    /// Open for as long as something on it is unsettled.
    _channel: Arc<Channel>,
}

#[async_trait::async_trait]
impl Settlement for Held {
    async fn settle(&self, how: Settle) -> bool {
        if self.settled.swap(true, Ordering::SeqCst) {
            return false;
        }
        self.unsettled.fetch_sub(1, Ordering::SeqCst);
        let settling = async {
            let settled = match how {
                Settle::Ack => self.acker.ack(BasicAckOptions::default()).await,
                Settle::Requeue => self.acker.nack(BACK).await,
            };
            settled.unwrap_or(false)
        };
        // The library forgets an ack that is on its way when the connection breaks, and never answers.
        tokio::select! {
            biased;
            settled = settling => settled,
            () = self.lost.cancelled() => false,
            () = tokio::time::sleep(SETTLE) => false,
        }
    }
}

impl Drop for Held {
    /// A handler that failed on the way: without this the message would wait for the end of the connection.
    fn drop(&mut self) {
        if !self.settled.swap(true, Ordering::SeqCst) {
            self.unsettled.fetch_sub(1, Ordering::SeqCst);
            give_back(&self.acker);
        }
    }
}
