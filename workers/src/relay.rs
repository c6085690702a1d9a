//! The relay: moves promised messages from the outbox to the broker.
//!
//! The hot path does not poll: whoever commits hands the messages over with [`shared::store::Handover`], and they are published
//! together with whatever else has come in meanwhile. A message leaves the outbox only after its confirm. What a crash,
//! a full broker or a lost confirm leaves behind is found by the sweep, once its lease has run out.

use shared::broker::{PublishError, SharedBroker};
use shared::clock::SharedClock;
use shared::message::{Message, Route};
use shared::store::{Error, LEASE, Outbox};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How many messages one publish carries at most.
const BATCH: usize = 500;
/// How often leases that ran out are looked for.
const SWEEP: Duration = Duration::from_secs(2);

/// The relay of one process.
pub struct Relay {
    outbox: Outbox,
    broker: SharedBroker,
    clock: SharedClock,
    committed: mpsc::Receiver<Vec<Message>>,
}

impl Relay {
    /// A relay that publishes what comes in through `committed`, and what others left behind.
    pub fn new(
        outbox: Outbox,
        broker: SharedBroker,
        clock: SharedClock,
        committed: mpsc::Receiver<Vec<Message>>,
    ) -> Self {
        Self {
            outbox,
            broker,
            clock,
            committed,
        }
    }

    /// Publishes `messages` and forgets the confirmed ones. Says how many were confirmed.
    async fn publish(&self, messages: Vec<Message>) -> Result<usize, Error> {
        let results = self.broker.publish(&messages).await;
        shared::crash::point("R1");
        let mut confirmed = Vec::with_capacity(messages.len());
        for (message, result) in messages.into_iter().zip(results) {
            match result {
                Ok(()) => confirmed.push(message),
                // A reply queue that is gone does not come back by trying: an operator sees the message in the parking queue.
                Err(PublishError::Unroutable) if matches!(message.route, Route::Direct(_)) => {
                    if self.park(&message).await {
                        confirmed.push(message);
                    }
                }
                Err(error) => {
                    tracing::warn!(message = %message.id, error = %error, "a message was not confirmed; it stays in the outbox");
                }
            }
        }
        self.outbox.delete(&confirmed).await?;
        Ok(confirmed.len())
    }

    async fn park(&self, message: &Message) -> bool {
        tracing::warn!(message = %message.id, "a reply queue does not exist; its message is parked");
        let parked = Message {
            route: Route::Parking("the reply queue does not exist".to_owned()),
            ..message.clone()
        };
        matches!(self.broker.publish(&[parked]).await.first(), Some(Ok(())))
    }

    /// Publishes what others left behind. Says how many were confirmed.
    pub async fn sweep(&self) -> Result<usize, Error> {
        let mut total = 0;
        loop {
            let now = self.clock.now();
            let left = self.outbox.take(now, now + LEASE, BATCH as u32).await?;
            if left.is_empty() {
                return Ok(total);
            }
            total += self.publish(left).await?;
        }
    }

    /// Works until `stop`, then publishes what was handed over before it.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(first) = self.committed.recv() => {
                    let batch = self.gather(first);
                    self.publish(batch).await
                }
                _ = sweep.tick() => self.sweep().await,
            };
            report(result);
        }
        while let Ok(first) = self.committed.try_recv() {
            let batch = self.gather(first);
            report(self.publish(batch).await);
        }
    }

    /// Everything that waits, up to a batch: under load one round trip serves many requests.
    fn gather(&mut self, mut batch: Vec<Message>) -> Vec<Message> {
        while batch.len() < BATCH {
            match self.committed.try_recv() {
                Ok(more) => batch.extend(more),
                Err(_) => break,
            }
        }
        batch
    }
}

fn report(result: Result<usize, Error>) {
    if let Err(error) = result {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the outbox could not be reached; its messages wait"
        );
    }
}
