//! The forwarder: copies completion events to the exchange that third parties' queues hang on. A queue of theirs that is full or gone
//! then never slows our own confirms.

use crate::batch;
use shared::broker::{Delivery, Error as BrokerError, PublishError, Queue, SharedBroker};
use shared::message::{Message, Route};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const PREFETCH: u16 = 256;
const AGAIN: Duration = Duration::from_millis(500);
/// How often a queue may refuse before its event is set aside, so that the others do not wait for it.
const REFUSALS: u32 = 4;

/// The forwarder of one process; several share the queue.
pub struct Forwarder {
    /// The queues.
    pub broker: SharedBroker,
}

impl Forwarder {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BrokerError> {
        let mut events = self.broker.consume(Queue::StatusForward, PREFETCH).await?;
        while let Some(batch) = batch::next(&mut events, PREFETCH, &stop).await {
            self.forward(batch, &stop).await;
        }
        Ok(())
    }

    /// Copies events until each is taken, has nobody to go to, or was refused too often; then it is set aside.
    async fn forward(&self, batch: Vec<Delivery>, stop: &CancellationToken) {
        let mut left = Vec::with_capacity(batch.len());
        for delivery in batch {
            match copy_of(&delivery) {
                Some(copy) => left.push((copy, delivery)),
                // What is no event of ours is parked by the wait-on-push activity.
                None => {
                    delivery.ack().await;
                }
            }
        }
        let mut refusals = 0;
        while !left.is_empty() {
            let copies: Vec<Message> = left.iter().map(|(copy, _)| copy.clone()).collect();
            let results = self.broker.publish(&copies).await;
            let mut again = Vec::new();
            for ((copy, delivery), result) in left.into_iter().zip(results) {
                match result {
                    Ok(()) | Err(PublishError::Unroutable) => {
                        delivery.ack().await;
                    }
                    Err(PublishError::Refused) if refusals >= REFUSALS => {
                        self.set_aside(copy, &delivery).await;
                    }
                    Err(error @ (PublishError::Refused | PublishError::Unknown)) => {
                        again.push((copy, delivery, error));
                    }
                }
            }
            let refused = again
                .iter()
                .any(|(_, _, error)| *error == PublishError::Refused);
            refusals += u32::from(refused);
            left = again
                .into_iter()
                .map(|(copy, delivery, _)| (copy, delivery))
                .collect();
            if left.is_empty() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                // Unacknowledged: they come again.
                () = stop.cancelled() => return,
            }
        }
    }

    async fn set_aside(&self, copy: Message, delivery: &Delivery) {
        tracing::warn!(message = %copy.id, "a third party's queue refuses events; one is parked");
        metrics::counter!("countersign_forward_refused_total").increment(1);
        let parked = Message {
            route: Route::Parking("a third party's queue refused it".to_owned()),
            ..copy
        };
        if matches!(self.broker.publish(&[parked]).await.first(), Some(Ok(()))) {
            delivery.ack().await;
        }
    }
}

/// The copy for third parties, where this is an event.
fn copy_of(delivery: &Delivery) -> Option<Message> {
    let message = delivery.message.as_ref().ok()?;
    let Route::Status(key) = &message.route else {
        return None;
    };
    Some(Message {
        route: Route::External(key.clone()),
        ..message.clone()
    })
}
