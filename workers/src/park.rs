//! Setting aside what nobody here can do anything with.

use shared::broker::{Delivery, PublishError, SharedBroker};
use shared::clock::Millis;
use shared::id::MessageId;
use shared::message::{Message, Route};

/// The content type of what could not be read.
pub(crate) const UNREAD: &str = "application/octet-stream";

/// Parks a message as it came, with the reason, and forgets it once the broker has the copy. After an error it stays unacknowledged and comes again.
pub(crate) async fn park(
    broker: &SharedBroker,
    delivery: &Delivery,
    content_type: &str,
    reason: &str,
    now: Millis,
) -> Result<(), PublishError> {
    let parked = Message {
        id: MessageId::fresh(now),
        route: Route::Parking(reason.chars().take(200).collect()),
        content_type: content_type.to_owned(),
        correlation_id: None,
        traceparent: None,
        body: delivery.raw.to_vec(),
    };
    let said = broker.publish(&[parked]).await.into_iter().next();
    said.unwrap_or(Err(PublishError::Unknown))?;
    delivery.ack().await;
    Ok(())
}
