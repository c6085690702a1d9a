//! The relay: moves promised messages from the outbox to the broker.
//!
//! The hot path does not poll: whoever commits hands the messages over with [`shared::store::Handover`], and they are published together with
//! whatever else of their class has come in meanwhile. A message leaves the outbox only after its confirm, and then together with others: the next
//! ones are published meanwhile. What a crash, a full broker or a lost confirm leaves behind is found by the sweep, once its lease has run out, and
//! handed over again.

use crate::batch::gather_for_a_moment;
use shared::broker::{PublishError, SharedBroker};
use shared::clock::SharedClock;
use shared::id::MessageId;
use shared::message::{Message, Route};
use shared::store::{Committed, Error, Handover, LEASE, Outbox};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How many messages one publish carries at most.
const BATCH: usize = 500;
/// How many confirmed messages may wait to be forgotten.
const UNFORGOTTEN: usize = 2_000;
/// How often leases that ran out are looked for.
const SWEEP: Duration = Duration::from_secs(2);

/// The relay of one process.
pub struct Relay {
    publisher: Publisher,
    clock: SharedClock,
    handover: Handover,
    committed: Committed,
}

#[derive(Clone)]
struct Publisher {
    outbox: Outbox,
    broker: SharedBroker,
}

impl Relay {
    /// A relay that publishes what comes in through `committed`, and what others left behind, which goes through `handover`.
    pub fn new(
        outbox: Outbox,
        broker: SharedBroker,
        clock: SharedClock,
        handover: Handover,
        committed: Committed,
    ) -> Self {
        Self {
            publisher: Publisher { outbox, broker },
            clock,
            handover,
            committed,
        }
    }

    /// Hands over what others left behind. Says how many messages.
    pub async fn sweep(&self) -> Result<usize, Error> {
        let mut total = 0;
        while !self.handover.is_behind() {
            let now = self.clock.now();
            let outbox = &self.publisher.outbox;
            let left = outbox.take(now, now + LEASE, BATCH as u32).await?;
            let count = left.len();
            self.handover.published_soon(left);
            total += count;
            if count < BATCH {
                break;
            }
        }
        Ok(total)
    }

    /// Works until `stop`, then publishes what was handed over before it.
    pub async fn run(mut self, stop: CancellationToken) {
        let (_, idle) = Handover::channel();
        let classes = std::mem::replace(&mut self.committed, idle);
        let publishing = classes.map(|committed| {
            let (publisher, stop) = (self.publisher.clone(), stop.clone());
            tokio::spawn(publisher.run(committed, stop))
        });
        let mut tick = tokio::time::interval(SWEEP);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            let swept = tokio::select! {
                () = stop.cancelled() => break,
                swept = self.sweep() => swept,
            };
            if let Err(error) = swept {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the outbox could not be swept; the next sweep comes"
                );
            }
        }
        for class in publishing {
            // A panic in it was already shown; its messages are in the outbox.
            class.await.ok();
        }
    }
}

impl Publisher {
    /// Publishes what comes in until `stop`, and then what is there.
    async fn run(self, mut committed: mpsc::Receiver<Vec<Message>>, stop: CancellationToken) {
        let (confirmed, to_forget) = mpsc::channel(UNFORGOTTEN);
        let forgetting = tokio::spawn(forget(self.outbox.clone(), to_forget));
        loop {
            let first = tokio::select! {
                first = committed.recv() => first,
                () = stop.cancelled() => break,
            };
            match first {
                Some(first) => {
                    let messages = gather(first, &mut committed);
                    self.publish(messages, &confirmed).await;
                }
                None => break,
            }
        }
        while let Ok(first) = committed.try_recv() {
            let messages = gather(first, &mut committed);
            self.publish(messages, &confirmed).await;
        }
        drop(confirmed);
        // A panic in it was already shown; its messages are published once more.
        forgetting.await.ok();
    }

    /// Publishes `messages` and has the confirmed ones forgotten.
    async fn publish(&self, messages: Vec<Message>, to_forget: &mpsc::Sender<MessageId>) {
        let results = self.broker.publish(&messages).await;
        shared::crash::point("R1");
        let mut confirmed = Vec::with_capacity(messages.len());
        for (message, result) in messages.into_iter().zip(results) {
            match result {
                Ok(()) => confirmed.push(message.id),
                // A reply queue that is gone does not come back by trying: an operator sees the message in the parking queue.
                Err(PublishError::Unroutable) if matches!(message.route, Route::Direct(_)) => {
                    if self.park(&message).await {
                        confirmed.push(message.id);
                    }
                }
                Err(error) => {
                    tracing::warn!(message = %message.id, error = %error, "a message was not confirmed; it stays in the outbox");
                }
            }
        }
        metrics::counter!("countersign_messages_published_total", "result" => "confirmed")
            .increment(confirmed.len() as u64);
        for id in confirmed {
            // It ends after this one.
            to_forget.send(id).await.ok();
        }
    }

    async fn park(&self, message: &Message) -> bool {
        tracing::warn!(message = %message.id, "a reply queue does not exist; its message is parked");
        let parked = Message {
            route: Route::Parking("the reply queue does not exist".to_owned()),
            ..message.clone()
        };
        matches!(self.broker.publish(&[parked]).await.first(), Some(Ok(())))
    }
}

/// Deletes confirmed messages from the outbox, many at once. Ends with the last sender.
async fn forget(outbox: Outbox, mut confirmed: mpsc::Receiver<MessageId>) {
    let mut ids = Vec::with_capacity(BATCH);
    while gather_for_a_moment(&mut confirmed, &mut ids, BATCH).await {
        if let Err(error) = outbox.delete(&ids).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "confirmed messages stay in the outbox; they will be published once more"
            );
        }
        ids.clear();
    }
}

/// Everything that waits, up to a batch: under load one round trip serves many requests.
fn gather(mut batch: Vec<Message>, from: &mut mpsc::Receiver<Vec<Message>>) -> Vec<Message> {
    while batch.len() < BATCH {
        match from.try_recv() {
            Ok(more) => batch.extend(more),
            Err(_) => break,
        }
    }
    batch
}
