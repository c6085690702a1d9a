//! The sweeper: what time does to pushes, and what a crash or an emptied broker left behind.

use shared::clock::SharedClock;
use shared::store::{Error, SWEEP_BATCH, Store};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often deadlines are looked at: the bound on how late an expiry is told.
const TICK: Duration = Duration::from_millis(250);
/// Every so many ticks, leases and lost messages are looked for.
const RECOVER_EVERY: u32 = 8;

/// The sweeper of one process; several share the work.
pub struct Sweeper {
    /// The database.
    pub store: Store,
    /// The time.
    pub clock: SharedClock,
}

impl Sweeper {
    /// One look at the deadlines. Says how many pushes ended or escalated, and how many approvals were counted.
    pub async fn deadlines(&self) -> Result<usize, Error> {
        let mut total = 0;
        // One look costs a read; the writes come only when there is something to do.
        while self
            .store
            .next_deadline()
            .await?
            .is_some_and(|at| at <= self.clock.now())
        {
            let now = self.clock.now();
            let done = self.store.expire(now).await?
                + self.store.escalate_due(now).await?
                + self.store.settle_due(now).await?;
            let chunk = self.store.expire_chunk(now).await?;
            if done == 0 && chunk.is_none() {
                // Another sweeper holds these rows.
                break;
            }
            total += done + chunk.unwrap_or(0);
        }
        Ok(total)
    }

    /// Everything that was lost. Says how much.
    async fn recover(&self, stop: &CancellationToken) -> Result<usize, Error> {
        let mut total = self.store.settle_overdue(self.clock.now()).await?;
        loop {
            let found = self.store.recover(self.clock.now()).await?;
            total += found;
            if (found as i64) < SWEEP_BATCH || stop.is_cancelled() {
                break;
            }
        }
        if total > 0 {
            tracing::info!(total, "lost work was found and sent on its way again");
        }
        Ok(total)
    }

    /// Sweeps until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0_u32;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            count = count.wrapping_add(1);
            let mut result = self.deadlines().await;
            if result.is_ok() && count.is_multiple_of(RECOVER_EVERY) {
                result = self.recover(&stop).await;
            }
            if let Err(error) = result {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a sweep failed; the next one comes"
                );
            }
        }
    }
}
