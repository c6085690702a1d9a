//! Publishing with confirms. A channel is lent out for one batch, all of whose confirms are in flight at once; nobody else
//! publishes on it meanwhile, since the library can cross the confirms of two publishers on one channel.
//!
//! What a confirm says: a nack is a refusal; an ack says that the broker has dealt with the message, which for an unroutable
//! one means that it was returned before. The library hangs a returned message on whichever confirm resolves next, so returns
//! are collected over the whole batch and matched by identifier, exchange and key.

use super::super::PublishError;
use super::link::Link;
use super::wire::Outgoing;
use deadpool::managed::{
    Manager, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult, Timeouts,
};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How many confirms are in flight on one channel. More brings latency, not speed.
const WINDOW: usize = 1_000;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoChannel {
    #[error("the connection is down")]
    Down,
    #[error("the broker holds this connection back")]
    Blocked,
    #[error("the channel could not be opened")]
    Lapin(#[from] lapin::Error),
}

/// Makes the channels of one connection.
pub(super) struct Channels(Link);

/// A channel in confirm mode. It belongs to the connection that it was opened on.
pub(super) struct Slot {
    channel: Channel,
    connection: Arc<Connection>,
    /// Every confirm has come. A batch that was given up half way leaves it unset, and the channel is not lent out again.
    clean: bool,
}

impl Manager for Channels {
    type Type = Slot;
    type Error = NoChannel;

    async fn create(&self) -> Result<Slot, NoChannel> {
        if self.0.blocked() {
            return Err(NoChannel::Blocked);
        }
        let connection = self.0.now().ok_or(NoChannel::Down)?;
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(Slot {
            channel,
            connection,
            clean: true,
        })
    }

    async fn recycle(&self, slot: &mut Slot, _: &Metrics) -> RecycleResult<NoChannel> {
        if slot.clean && slot.channel.status().connected() && self.0.serves(&slot.connection) {
            Ok(())
        } else {
            Err(RecycleError::message(
                "broken, blocked, or with confirms outstanding",
            ))
        }
    }
}

/// One publishing connection and its channels.
pub(super) struct Publisher {
    link: Link,
    pool: Pool<Channels>,
    patience: Duration,
}

/// What became of one message on the wire.
enum Outcome {
    /// With the stranger that the confirm carried, if any.
    Ack {
        carries_return: bool,
    },
    Nack,
    Failed,
}

/// A message as a return names it.
type Name = (String, String, String);

fn name_of(returned: &BasicReturnMessage) -> Name {
    let id = returned.properties.message_id().as_ref();
    (
        id.map(ToString::to_string).unwrap_or_default(),
        returned.exchange.to_string(),
        returned.routing_key.to_string(),
    )
}

impl Publisher {
    /// `channels` batches may be under way at once; `patience` is how long a confirm may take.
    pub(super) fn new(link: Link, channels: usize, patience: Duration) -> Self {
        let pool = Pool::builder(Channels(link.clone()))
            .max_size(channels.max(1))
            .queue_mode(QueueMode::Lifo)
            .runtime(deadpool::Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(patience),
                create: Some(patience),
                recycle: Some(patience),
            })
            .build()
            .expect("a pool with a runtime and a size above zero can be built");
        Self {
            link,
            pool,
            patience,
        }
    }

    async fn channel(&self) -> Option<Object<Channels>> {
        // Waiting out a short reconnect here is quicker than the sweep that would find the messages later.
        if self.link.get(self.patience).await.is_err() {
            return None;
        }
        match self.pool.get().await {
            Ok(channel) => Some(channel),
            Err(error) => {
                if matches!(error, PoolError::Timeout(_)) {
                    self.link.suspect();
                }
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "no channel to publish on"
                );
                None
            }
        }
    }

    /// Is there a channel, and does the broker answer on it?
    pub(super) async fn answers(&self) -> bool {
        let asking = async {
            let Ok(mut slot) = self.pool.get().await else {
                return false;
            };
            slot.clean = false;
            let again = slot.channel.confirm_select(ConfirmSelectOptions::default());
            slot.clean = again.await.is_ok();
            slot.clean
        };
        tokio::time::timeout(self.patience, asking)
            .await
            .unwrap_or(false)
    }

    /// Publishes `batch` and waits for its confirms: one result per message, in order.
    pub(super) async fn publish(&self, batch: &[Outgoing<'_>]) -> Vec<Result<(), PublishError>> {
        let mut results = Vec::with_capacity(batch.len());
        for window in batch.chunks(WINDOW) {
            match self.channel().await {
                Some(mut slot) => {
                    slot.clean = false;
                    let (mut judged, clean) = self.window(&slot.channel, window).await;
                    slot.clean = clean;
                    results.append(&mut judged);
                }
                // Not sent at all, but the port has no word for that, and the caller would do the same.
                None => break,
            }
        }
        results.resize(batch.len(), Err(PublishError::Unknown));
        results
    }

    async fn window(
        &self,
        channel: &Channel,
        window: &[Outgoing<'_>],
    ) -> (Vec<Result<(), PublishError>>, bool) {
        let deadline = tokio::time::sleep_until(Instant::now() + self.patience);
        tokio::pin!(deadline);
        let mut flight: FuturesUnordered<_> = window
            .iter()
            .enumerate()
            .map(|(place, one)| async move { (place, send(channel, one).await) })
            .collect();
        let mut outcomes: Vec<Option<Outcome>> = window.iter().map(|_| None).collect();
        let mut returned = HashSet::new();
        let mut failure = None;
        let mut note = |(place, said): (usize, Result<Confirmation, lapin::Error>)| {
            let outcome = match said {
                Ok(Confirmation::Ack(carried)) => {
                    let carries_return = carried.is_some();
                    returned.extend(carried.as_ref().map(name_of));
                    Outcome::Ack { carries_return }
                }
                Ok(Confirmation::Nack(carried)) => {
                    returned.extend(carried.as_ref().map(name_of));
                    Outcome::Nack
                }
                // Cannot be: the channel is in confirm mode. Then it is no confirm.
                Ok(Confirmation::NotRequested) => Outcome::Failed,
                Err(error) => {
                    failure.get_or_insert(error);
                    Outcome::Failed
                }
            };
            outcomes[place] = Some(outcome);
        };
        loop {
            tokio::select! {
                biased;
                next = flight.next() => match next {
                    Some(said) => note(said),
                    None => break,
                },
                () = &mut deadline => {
                    // What has come by now must be heard: it may carry the return of a message judged below.
                    while let Some(Some(said)) = flight.next().now_or_never() {
                        note(said);
                    }
                    break;
                }
            }
        }
        let late = outcomes.iter().filter(|outcome| outcome.is_none()).count();
        if late > 0 {
            tracing::warn!(late, "confirms did not come in time");
            self.link.suspect();
        }
        if let Some(error) = failure {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "publishing broke off"
            );
        }
        judge(window, &outcomes, &returned)
    }
}

async fn send(channel: &Channel, one: &Outgoing<'_>) -> Result<Confirmation, lapin::Error> {
    let options = BasicPublishOptions {
        mandatory: one.mandatory,
        immediate: false,
    };
    // The first poll takes the tag and queues the frames in one go, so tags and frames keep step.
    let publishing = channel.basic_publish(
        one.exchange.clone(),
        one.key.clone(),
        options,
        one.body,
        one.properties.clone(),
    );
    publishing.await?.await
}

/// One result per message, and whether nothing is outstanding.
fn judge(
    window: &[Outgoing<'_>],
    outcomes: &[Option<Outcome>],
    returned: &HashSet<Name>,
) -> (Vec<Result<(), PublishError>>, bool) {
    let complete = outcomes
        .iter()
        .all(|outcome| matches!(outcome, Some(Outcome::Ack { .. } | Outcome::Nack)));
    let came_back = |one: &Outgoing<'_>| {
        let id = one.properties.message_id().as_ref();
        !returned.is_empty()
            && returned.contains(&(
                id.map(ToString::to_string).unwrap_or_default(),
                one.exchange.to_string(),
                one.key.to_string(),
            ))
    };
    let results = window
        .iter()
        .zip(outcomes)
        .map(|(one, outcome)| match outcome {
            None | Some(Outcome::Failed) => Err(PublishError::Unknown),
            Some(Outcome::Nack) => Err(PublishError::Refused),
            Some(Outcome::Ack { .. }) if came_back(one) => Err(PublishError::Unroutable),
            // It carried another message's return; its own may sit behind a confirm that never came.
            Some(Outcome::Ack {
                carries_return: true,
            }) if !complete => Err(PublishError::Unknown),
            Some(Outcome::Ack { .. }) => Ok(()),
        })
        .collect();
    (results, complete)
}

#[cfg(test)]
mod tests {
    use super::super::wire::Class;
    use super::*;
    use lapin::BasicProperties;

    fn sent(id: &str) -> Outgoing<'static> {
        Outgoing {
            class: Class::Interactive,
            exchange: "e".into(),
            key: "k".into(),
            mandatory: true,
            properties: BasicProperties::default().with_message_id(id.into()),
            body: b"",
        }
    }

    fn ack(carries_return: bool) -> Outcome {
        Outcome::Ack { carries_return }
    }

    fn back(id: &str) -> HashSet<Name> {
        HashSet::from([(id.to_owned(), "e".to_owned(), "k".to_owned())])
    }

    #[test]
    fn a_return_that_hangs_on_another_confirm_is_laid_to_the_right_message() {
        let (results, clean) = judge(
            &[sent("a"), sent("b")],
            &[Some(ack(true)), Some(ack(false))],
            &back("b"),
        );
        assert_eq!(results, [Ok(()), Err(PublishError::Unroutable)]);
        assert!(clean);
    }

    #[test]
    fn with_a_confirm_missing_an_ack_that_carries_a_strange_return_proves_nothing() {
        let window = [sent("a"), sent("b"), sent("c")];
        let (results, clean) = judge(
            &window,
            &[Some(ack(true)), None, Some(ack(false))],
            &back("b"),
        );
        assert_eq!(
            results,
            [
                Err(PublishError::Unknown),
                Err(PublishError::Unknown),
                Ok(())
            ]
        );
        assert!(!clean);
    }

    #[test]
    fn a_nack_is_a_refusal_and_an_error_is_not_known() {
        let window = [sent("a"), sent("b")];
        let (results, clean) = judge(
            &window,
            &[Some(Outcome::Nack), Some(Outcome::Failed)],
            &HashSet::new(),
        );
        assert_eq!(
            results,
            [Err(PublishError::Refused), Err(PublishError::Unknown)]
        );
        assert!(!clean);
    }
}
