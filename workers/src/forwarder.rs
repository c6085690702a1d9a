//! The forwarder: copies completion events to the exchange that third parties' queues hang on. A queue of theirs that is full or gone
//! then never slows our own confirms.

use shared::broker::{Error as BrokerError, PublishError, Queue, SharedBroker};
use shared::message::{Message, Route};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const PREFETCH: u16 = 256;
const AGAIN: Duration = Duration::from_millis(500);

/// The forwarder of one process; several share the queue.
pub struct Forwarder {
    /// The queues.
    pub broker: SharedBroker,
}

impl Forwarder {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BrokerError> {
        let mut events = self.broker.consume(Queue::StatusForward, PREFETCH).await?;
        loop {
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                event = events.recv() => match event {
                    Some(event) => event,
                    None => return Ok(()),
                },
            };
            let mut batch = vec![first];
            while batch.len() < usize::from(PREFETCH) {
                match events.try_recv() {
                    Ok(more) => batch.push(more),
                    Err(_) => break,
                }
            }
            let copies: Vec<Option<Message>> = batch
                .iter()
                .map(|delivery| match &delivery.message {
                    Ok(Message {
                        route: Route::Status(key),
                        ..
                    }) => delivery.message.as_ref().ok().map(|message| Message {
                        route: Route::External(key.clone()),
                        ..message.clone()
                    }),
                    Ok(_) | Err(_) => None,
                })
                .collect();
            let to_send: Vec<Message> = copies.iter().flatten().cloned().collect();
            let mut results = self.broker.publish(&to_send).await.into_iter();
            let mut failed = false;
            for (delivery, copy) in batch.iter().zip(&copies) {
                let result = copy.as_ref().and_then(|_| results.next());
                match result {
                    // Nobody bound, or what is no event of ours: the wait-on-push activity parks those.
                    None | Some(Ok(()) | Err(PublishError::Unroutable)) => {
                        delivery.ack().await;
                    }
                    Some(Err(PublishError::Refused | PublishError::Unknown)) => {
                        failed = true;
                        delivery.requeue().await;
                    }
                }
            }
            if failed {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}
