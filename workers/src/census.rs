//! Tells the others that this worker lives, and the ways to the phones among how many a provider's quota is shared.
//!
//! A worker that dies keeps its part for as long as its word lasts. One that joins starts at the foot of the ramp, so what is sent too
//! much until the others have counted it stays within the part of the quota that is left free.

use crate::credentials::Credentials;
use shared::clock::{Millis, SharedClock};
use shared::store::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(5);
const LIVES: Millis = 15_000;

/// Counts until `stop`.
pub async fn run(
    store: Store,
    clock: SharedClock,
    credentials: Arc<Credentials>,
    stop: CancellationToken,
) {
    let worker = shared::crypto::random_text::<12>();
    loop {
        let now = clock.now();
        match store.count_workers(&worker, now, now + LIVES).await {
            Ok(count) => {
                metrics::gauge!("countersign_workers_alive").set(count as f64);
                credentials.share_among(u32::try_from(count).unwrap_or(u32::MAX));
            }
            // The last count stays.
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the workers could not be counted"
            ),
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
    // Otherwise the others wait for its word to run out.
    store.leave_workers(&worker).await.ok();
}
