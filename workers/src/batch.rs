//! Taking what a queue has, as much as there is: at once where somebody waits, and else with what comes in a moment.

use shared::broker::Delivery;
use shared::gather::gather_for;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// `first` and whatever else has come, up to `most`.
pub(crate) fn gather(
    first: Delivery,
    from: &mut mpsc::Receiver<Delivery>,
    most: u16,
) -> Vec<Delivery> {
    let mut batch = vec![first];
    while batch.len() < usize::from(most) {
        match from.try_recv() {
            Ok(more) => batch.push(more),
            Err(_) => break,
        }
    }
    batch
}

/// The next batch; `None` at `stop` and at the end of the queue.
pub(crate) async fn next(
    from: &mut mpsc::Receiver<Delivery>,
    most: u16,
    stop: &CancellationToken,
) -> Option<Vec<Delivery>> {
    let first = tokio::select! {
        biased;
        () = stop.cancelled() => return None,
        first = from.recv() => first?,
    };
    Some(gather(first, from, most))
}

/// How long work that nobody waits for is gathered.
const MOMENT: Duration = Duration::from_millis(20);

/// Adds to the empty `batch` what has come and what comes in a moment, up to `most`. `false` at the end of the channel.
pub(crate) async fn gather_for_a_moment<T>(
    from: &mut mpsc::Receiver<T>,
    batch: &mut Vec<T>,
    most: usize,
) -> bool {
    if from.recv_many(batch, most).await == 0 {
        return false;
    }
    gather_for(MOMENT, from, batch, most).await;
    true
}
