//! The dispatcher: releases the backlog of batches to the broker, in fair turns, and no more than the workers take in two seconds.
//!
//! ```text
//! what has left the broker -> rate of the workers -> target = two seconds of it -> room = target - on the way -> deficit round robin -> release
//! ```
//!
//! One process at a time does it, by a lease. Without it nothing goes wrong but the fairness: a chunk is released once, whoever does it.
//! What a crash leaves is a chunk that waits, or one whose job is in the outbox.

mod fair;

use fair::{Fair, QUANTUM};
use shared::broker::{Queue, SharedBroker};
use shared::clock::{Millis, SharedClock};
use shared::store::{Error, Store};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often to look while something is to be sent or on its way, and else.
const BUSY: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_millis(500);
/// How long news is gathered: what comes together is released together. And while somebody waits: each release is a transaction and a wait for the disk.
const GATHER: Duration = Duration::from_millis(5);
const GATHER_GIVING_WAY: Duration = BUSY;
/// How long the lease lasts, and when it is renewed.
const LEASE: Millis = 6_000;
const RENEW: Duration = Duration::from_secs(2);
/// How often to look for ends, lost jobs and depths.
const UPKEEP: Duration = Duration::from_secs(1);
/// How many transactions of a cancellation one look makes.
const CANCELS: usize = 20;
/// How much work the broker holds, in seconds, and in pushes at least and at most.
const HELD: f64 = 2.0;
const LEAST: i64 = 2 * QUANTUM;
const MOST: i64 = 200 * QUANTUM;

/// The dispatcher of one process; of several one works.
pub struct Dispatcher {
    /// The database.
    pub store: Store,
    /// For the depth of its queues.
    pub broker: SharedBroker,
    /// The time.
    pub clock: SharedClock,
}

/// How fast workers take pushes, smoothed over about a second.
#[derive(Debug, Default)]
struct Drain(f64);

impl Drain {
    fn note(&mut self, rows: i64, within: Duration) {
        let seconds = within.as_secs_f64().max(0.001);
        let weight = 1.0 - (-seconds).exp();
        self.0 += weight * (rows as f64 / seconds - self.0);
    }

    /// How many pushes may be on the way.
    fn target(&self) -> i64 {
        ((self.0 * HELD) as i64).clamp(LEAST, MOST)
    }
}

struct State {
    fair: Fair,
    drain: Drain,
    looked: Instant,
    /// How many pushes were on the way after the last look.
    on_the_way: i64,
    led: Option<Instant>,
    kept: Option<Instant>,
}

fn since(at: Option<Instant>, time: Duration) -> bool {
    at.is_none_or(|at| at.elapsed() >= time)
}

impl Dispatcher {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let holder = shared::crypto::random_text::<12>();
        let mut state = State {
            fair: Fair::default(),
            drain: Drain::default(),
            looked: Instant::now(),
            on_the_way: 0,
            led: None,
            kept: None,
        };
        let mut wait = IDLE;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
                () = self.store.backlog_news() => {
                    let gives_way = self.store.courtesy().is_asked();
                    tokio::time::sleep(if gives_way { GATHER_GIVING_WAY } else { GATHER }).await;
                }
            }
            wait = match self.look(&holder, &mut state).await {
                Ok(true) => BUSY,
                Ok(false) => IDLE,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the backlog could not be looked at; the next look comes"
                    );
                    IDLE
                }
            };
        }
        if state.led.is_some() {
            // Else the next one waits for the end of the lease.
            self.store.leave_dispatch(&holder).await.ok();
        }
    }

    /// One look. Says whether there is something to send, or on its way.
    async fn look(&self, holder: &str, state: &mut State) -> Result<bool, Error> {
        if !self.store.has_open_batches().await? {
            if state.kept.take().is_some() {
                self.tell(0, 0, 0.0);
            }
            return Ok(false);
        }
        let now = self.clock.now();
        if since(state.led, RENEW) {
            let led = self.store.lead_dispatch(holder, now, now + LEASE).await?;
            if !led {
                if state.led.take().is_some() {
                    self.tell(0, 0, 0.0);
                }
                state.on_the_way = 0;
                return Ok(false);
            }
            state.led = Some(Instant::now());
        }
        let in_flight: std::collections::HashMap<_, _> = self
            .store
            .bulk_in_flight()
            .await?
            .into_iter()
            .map(|one| (one.store, one.rows))
            .collect();
        let on_the_way: i64 = in_flight.values().sum();
        let begun = (state.on_the_way - on_the_way).max(0);
        state.on_the_way = on_the_way;
        let within = state.looked.elapsed();
        state.looked = Instant::now();
        if begun > 0 || !in_flight.is_empty() {
            state.drain.note(begun, within);
        }
        let waiting = self.store.releasable(now).await?;
        let target = state.drain.target();
        let picks = state.fair.pick(&waiting, &in_flight, target);
        if !picks.is_empty() {
            let picks: Vec<_> = picks.into_iter().collect();
            let released = self.store.release(&picks, now).await?;
            state.on_the_way += released.rows;
            metrics::counter!("countersign_batch_released_total")
                .increment(released.rows.unsigned_abs());
        }
        if since(state.kept, UPKEEP) {
            state.kept = Some(Instant::now());
            self.keep_up(now).await?;
            let rows = waiting.iter().map(|one| one.waiting).sum();
            self.tell(rows, on_the_way, state.drain.0);
        }
        Ok(!waiting.is_empty() || !in_flight.is_empty())
    }

    /// Ends, cancellations, lost jobs.
    async fn keep_up(&self, now: Millis) -> Result<(), Error> {
        for _ in 0..CANCELS {
            if !self.store.cancel_some(now).await? {
                break;
            }
        }
        let lost = self.store.resend_lost(now).await?;
        if lost > 0 {
            tracing::info!(lost, "jobs of batches were lost and are sent again");
        }
        let unsent = self.store.resend_unsent(now, crate::fanout::LEASE).await?;
        if unsent > 0 {
            tracing::info!(
                unsent,
                "pushes that a worker took and did not send are sent again"
            );
        }
        self.store.end_batches(now).await?;
        for (queue, name) in [
            (Queue::JobsInteractive, "jobs.interactive"),
            (Queue::JobsBulk, "jobs.bulk"),
        ] {
            if let Ok(depth) = self.broker.depth(queue).await {
                metrics::gauge!("countersign_queue_ready", "queue" => name).set(depth.ready as f64);
            }
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "it speaks for this dispatcher")]
    fn tell(&self, waiting: i64, in_flight: i64, rate: f64) {
        metrics::gauge!("countersign_backlog_waiting").set(waiting as f64);
        metrics::gauge!("countersign_backlog_in_flight").set(in_flight as f64);
        metrics::gauge!("countersign_backlog_drain_per_second").set(rate);
    }
}

#[cfg(test)]
mod tests {
    use super::{Drain, HELD, LEAST, MOST};
    use std::time::Duration;

    #[test]
    fn the_broker_holds_two_seconds_of_what_the_workers_take() {
        let mut drain = Drain::default();
        assert_eq!(drain.target(), LEAST, "somebody has to begin");
        for _ in 0..100 {
            drain.note(400, Duration::from_millis(100));
        }
        let target = drain.target() as f64;
        assert!((target - HELD * 4_000.0).abs() < 100.0, "{target}");
        for _ in 0..100 {
            drain.note(100_000, Duration::from_millis(100));
        }
        assert_eq!(drain.target(), MOST);
        for _ in 0..100 {
            drain.note(0, Duration::from_millis(100));
        }
        assert_eq!(drain.target(), LEAST, "workers that stand still get little");
    }
}
