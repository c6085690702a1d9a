//! Taking what a queue has, as much as there is, without waiting for more.

use shared::broker::Delivery;
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
