//! The wait-on-push activity: consumes the status queue and releases whoever waits by queue.
//!
//! For every push or approval with a `reply_to` it promises one message to that queue, in the transaction that remembers the event; only then the event
//! is acknowledged. An event that comes twice is in the inbox already. Callers who wait over HTTP are released by [`shared::wait`].

use crate::batch;
use crate::park::{UNREAD, park};
use shared::broker::{Delivery, Error as BrokerError, Queue, SharedBroker};
use shared::clock::SharedClock;
use shared::event;
use shared::message::Event;
use shared::store::Store;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const PREFETCH: u16 = 256;
const AGAIN: Duration = Duration::from_millis(500);

/// The activity of one process; several share the queue.
pub struct Waiter {
    /// The database.
    pub store: Store,
    /// The queues.
    pub broker: SharedBroker,
    /// The time.
    pub clock: SharedClock,
}

impl Waiter {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BrokerError> {
        let mut events = self.broker.consume(Queue::StatusWait, PREFETCH).await?;
        while let Some(batch) = batch::next(&mut events, PREFETCH, &stop).await {
            shared::crash::point("T1");
            self.release(batch, &stop).await;
        }
        Ok(())
    }

    async fn release(&self, batch: Vec<Delivery>, stop: &CancellationToken) {
        let mut ended: Vec<Event> = Vec::new();
        let mut good = Vec::with_capacity(batch.len());
        for delivery in batch {
            let events = match &delivery.message {
                Ok(message) => event::decode(message),
                Err(reason) => Err(reason.clone()),
            };
            match events {
                Ok(events) => {
                    ended.extend(events.into_iter().filter(Event::is_verdict));
                    good.push(delivery);
                }
                Err(reason) => self.park(&delivery, &reason).await,
            }
        }
        while let Err(error) = self.store.reply(&ended, self.clock.now()).await {
            if error.is_permanent() {
                let reason = format!("it cannot be passed on: {error}");
                for delivery in &good {
                    self.park(delivery, &reason).await;
                }
                return;
            }
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "completion events could not be passed on; trying again"
            );
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                // Unacknowledged: they come again.
                () = stop.cancelled() => return,
            }
        }
        shared::crash::point("T2");
        for delivery in &good {
            delivery.ack().await;
        }
        metrics::counter!("countersign_messages_consumed_total", "queue" => "cs.status.wait")
            .increment(good.len() as u64);
    }

    async fn park(&self, delivery: &Delivery, reason: &str) {
        tracing::warn!(reason, "a message that is no event is parked");
        let now = self.clock.now();
        // After an error it comes again.
        park(&self.broker, delivery, UNREAD, reason, now).await.ok();
    }
}
