//! Doing together what comes at about the same time: one transaction for many costs little more than for one.

use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// Adds to `batch` what comes within a `moment`, up to `most`.
pub async fn gather_for<T>(
    moment: Duration,
    from: &mut mpsc::Receiver<T>,
    batch: &mut Vec<T>,
    most: usize,
) {
    if batch.len() >= most {
        return;
    }
    sleep(moment).await;
    while batch.len() < most
        && let Ok(more) = from.try_recv()
    {
        batch.push(more);
    }
}
