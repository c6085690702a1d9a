//! What a pool does while nobody asks: replaces old connections before the peer does, closes idle ones, keeps the warm ones.

use super::{Shared, State};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const EVERY: Duration = Duration::from_millis(500);
/// A thousand credentials in disuse should cost nothing.
const EVERY_IN_DISUSE: Duration = Duration::from_secs(5);
/// Connections are kept warm this long after the last push: a credential in disuse need not reconnect forever.
const WARM: Duration = Duration::from_mins(15);

pub(super) async fn run(pool: Weak<Shared>) {
    let mut pause = EVERY;
    loop {
        sleep(pause).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut state = pool.state();
        pool.close_idle(&mut state);
        pool.replace_old(&mut state);
        pool.keep_warm(&mut state);
        // Someone may have been waiting for a connection on trial that never answered.
        pool.serve(&mut state);
        pause = if state.in_use() {
            EVERY
        } else {
            EVERY_IN_DISUSE
        };
    }
}

impl Shared {
    fn close_idle(&self, state: &mut State) {
        let spare = state
            .connections
            .len()
            .saturating_sub(*self.limits.connections.start());
        let mut closed = 0;
        state.connections.retain(|c| {
            let dead = c.draining.load(Ordering::Relaxed);
            let idle =
                c.taken.load(Ordering::Relaxed) == 0 && c.last_used().elapsed() > self.limits.idle;
            let close = dead || (idle && closed < spare);
            if close {
                c.draining.store(true, Ordering::Relaxed);
                closed += 1;
            }
            !close
        });
    }

    /// One at a time, and the new one stands before the old one goes.
    fn replace_old(self: &Arc<Self>, state: &mut State) {
        if state.opening > 0 {
            return;
        }
        let now = Instant::now();
        let Some(old) = state
            .connections
            .iter()
            .find(|c| c.retire_at <= now)
            .cloned()
        else {
            return;
        };
        if state.in_use() {
            self.open(state, Some(old));
        } else {
            old.draining.store(true, Ordering::Relaxed);
            state.connections.retain(|c| !Arc::ptr_eq(c, &old));
        }
    }

    fn keep_warm(self: &Arc<Self>, state: &mut State) {
        let warm = *self.limits.connections.start();
        if state.in_use()
            && state.opening == 0
            && state.connections.len() < warm
            && state.retry_at <= Instant::now()
        {
            self.open(state, None);
        }
    }
}

impl State {
    fn in_use(&self) -> bool {
        self.wanted.is_some_and(|at| at.elapsed() < WARM)
    }
}
