//! The chainer: gives the entries that transactions have noted their places in the audit log of their store (`shared/src/store/audit.rs`).
//! Any number of processes may run one: a store's log is chained by whoever holds its head.

use shared::store::Store;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often it looks: the bound on how late an entry gets its place, while the database keeps up.
const TICK: Duration = Duration::from_millis(250);

/// Chains until `stop`.
pub async fn run(store: Store, stop: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        loop {
            match store.chain_audit().await {
                Ok(0) => break,
                Ok(_) if stop.is_cancelled() => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "audit entries could not be chained; the next look comes"
                    );
                    break;
                }
            }
        }
    }
}
