//! The way in for process engines: reports of child process instances from the broker. Over HTTP they come to the API.
//!
//! Whoever may write to the exchange may be anybody's engine, so that each report must be signed with the token of its instance, which only
//! the page that the link leads to was given. What is malformed, of an unknown instance or not signed is parked with the reason; what comes twice
//! or too late changes nothing.

use crate::batch;
use crate::park::{UNREAD, park};
use shared::broker::{Delivery, Error as BrokerError, Queue, SharedBroker};
use shared::clock::SharedClock;
use shared::crypto::{ServerSecret, report_mac, same_text};
use shared::message::InstanceReport;
use shared::store::{Error, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const PREFETCH: u16 = 64;
const AGAIN: Duration = Duration::from_millis(500);

/// The way in of one process; several share the queue.
pub struct Instances {
    /// The database.
    pub store: Store,
    /// The queues.
    pub broker: SharedBroker,
    /// The time.
    pub clock: SharedClock,
    /// Knows the tokens.
    pub secret: Arc<ServerSecret>,
}

/// What to do with a message.
enum Verdict {
    /// It counted, or there was nothing left to count.
    Done,
    /// Nobody can do anything with it.
    Park(String),
}

impl Instances {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BrokerError> {
        let mut reports = self.broker.consume(Queue::Instances, PREFETCH).await?;
        while let Some(batch) = batch::next(&mut reports, PREFETCH, &stop).await {
            for delivery in batch {
                if !self.settle(&delivery, &stop).await {
                    // Unacknowledged: it comes again.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// `false`: told to stop before anything was decided.
    async fn settle(&self, delivery: &Delivery, stop: &CancellationToken) -> bool {
        let verdict = loop {
            match self.take(&delivery.raw).await {
                Ok(verdict) => break verdict,
                Err(error) if error.is_permanent() => {
                    break Verdict::Park(format!("it cannot be taken: {error}"));
                }
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a report of an instance could not be taken; trying again"
                ),
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = stop.cancelled() => return false,
            }
        };
        match verdict {
            Verdict::Done => {
                delivery.ack().await;
            }
            Verdict::Park(reason) => self.park(delivery, &reason).await,
        }
        metrics::counter!("countersign_messages_consumed_total", "queue" => "cs.ingress.instances")
            .increment(1);
        true
    }

    async fn take(&self, body: &[u8]) -> Result<Verdict, Error> {
        let report = match InstanceReport::decode(body) {
            Ok(report) => report,
            Err(reason) => return Ok(Verdict::Park(reason)),
        };
        let instance = &report.instance;
        let token = self.secret.report_token(instance);
        if !same_text(&report.mac, &report_mac(&token, instance, report.status)) {
            return Ok(Verdict::Park(format!(
                "{instance}: not signed with its report token"
            )));
        }
        let Some(store) = self.store.store_of_instance(instance).await? else {
            return Ok(Verdict::Park(format!("{instance}: no such instance")));
        };
        let now = self.clock.now();
        let taken = self
            .store
            .report_instance(&store, instance, report.status, now)
            .await?;
        if let Some((false, push)) = taken
            && push.instance_state != Some(report.status)
        {
            tracing::info!(%instance, push = %push.id, status = %report.status, state = %push.state, "a report came too late");
            metrics::counter!("countersign_late_reports_total").increment(1);
        }
        Ok(Verdict::Done)
    }

    async fn park(&self, delivery: &Delivery, reason: &str) {
        tracing::warn!(reason, "a report of an instance is parked");
        let now = self.clock.now();
        // After an error it comes again.
        park(&self.broker, delivery, UNREAD, reason, now).await.ok();
    }
}
