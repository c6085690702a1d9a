//! Feeding consumers: from the table, and from memory for events that only this process wants.

use super::super::{DELIVERY_LIMIT, Delivery, Queue, Settle, Settlement};
use super::settling::Leased;
use super::{IDLE, Inner, StoreError, Taken, name};
use crate::message::Message;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};

/// How often the table is looked at while rows come from memory.
const LOOK: Duration = Duration::from_millis(100);

/// Nothing to settle but the place in the prefetch window: the event is in memory only.
struct Volatile(Mutex<Option<OwnedSemaphorePermit>>);

#[async_trait::async_trait]
impl Settlement for Volatile {
    async fn settle(&self, _how: Settle) -> bool {
        self.0.lock().is_ok_and(|mut place| place.take().is_some())
    }
}

/// A place in the prefetch window; `None` at shutdown.
async fn place(inner: &Inner, window: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        permit = Arc::clone(window).acquire_owned() => permit.ok(),
        () = inner.stop.cancelled() => None,
    }
}

/// Up to `limit` rows that the table has ready, and how long to wait for more where there are none.
async fn look(inner: &Inner, queue: &Queue, limit: usize) -> (Vec<Taken>, Duration) {
    let looking = async {
        let nap = inner.nap(queue).await?;
        let rows = if nap.is_zero() {
            inner.take(queue, limit).await?
        } else {
            Vec::new()
        };
        Ok::<_, StoreError>((rows, nap))
    };
    match looking.await {
        Ok((rows, nap)) => {
            if rows.len() < limit {
                inner.lines.caught_up(queue);
            } else {
                inner.lines.fell_behind(name(queue));
            }
            (rows, nap)
        }
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the embedded queue could not be read"
            );
            // A row that is due says nothing about when a disk has room again.
            (Vec::new(), IDLE)
        }
    }
}

pub(super) async fn feed(
    inner: Arc<Inner>,
    queue: Queue,
    window: Arc<Semaphore>,
    to: mpsc::Sender<Delivery>,
) {
    let mut looked = Instant::now();
    loop {
        let Some(first) = place(&inner, &window).await else {
            return;
        };
        // Armed before the look: a publish in between then rings it.
        let bell = inner.lines.bell(&queue).notified();
        tokio::pin!(bell);
        bell.as_mut().enable();
        let room = window.available_permits() + 1;
        let mut taken = inner.lines.take(&queue, room, inner.clock.now());
        let mut nap = Duration::ZERO;
        // Rows that are due by themselves wait no longer for those that come from memory.
        let left = room - taken.len();
        if left > 0
            && (taken.is_empty() || inner.lines.is_behind(&queue) || looked.elapsed() >= LOOK)
        {
            looked = Instant::now();
            let more;
            (more, nap) = look(&inner, &queue, left).await;
            taken.extend(more);
        }
        if taken.is_empty() {
            drop(first);
            tokio::select! {
                () = bell => {}
                () = tokio::time::sleep(nap) => {}
                () = inner.stop.cancelled() => return,
                () = to.closed() => return,
            }
            continue;
        }
        let mut first = Some(first);
        for one in taken {
            let message = serde_json::from_str::<Message>(&one.text);
            if let (Ok(message), true, true) = (
                &message,
                one.deliveries > DELIVERY_LIMIT,
                queue != Queue::Parking,
            ) {
                if let Err(error) = inner.park(&one, message.clone()).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a poisonous message could not be parked yet"
                    );
                }
                continue;
            }
            let permit = match first.take() {
                Some(permit) => permit,
                None => match Arc::clone(&window).acquire_owned().await {
                    Ok(permit) => permit,
                    Err(_) => return,
                },
            };
            let leased = Leased {
                inner: Arc::clone(&inner),
                settler: inner.settler(),
                id: one.id,
                deliveries: one.deliveries,
                permit: Mutex::new(Some(permit)),
            };
            let raw = message
                .as_ref()
                .map_or_else(|_| one.text.clone().into_bytes(), |m| m.body.clone());
            let message = message.map_err(|error| format!("not a message: {error}"));
            let delivery = Delivery::new(message, raw.into(), one.deliveries > 1, Box::new(leased));
            if let Err(unsent) = to.send(delivery).await {
                unsent.0.requeue().await;
                return;
            }
        }
        if inner.stop.is_cancelled() {
            return;
        }
    }
}

pub(super) async fn feed_own(
    inner: Arc<Inner>,
    mut from: broadcast::Receiver<Message>,
    window: Arc<Semaphore>,
    to: mpsc::Sender<Delivery>,
) {
    loop {
        let Some(permit) = place(&inner, &window).await else {
            return;
        };
        let next = tokio::select! {
            next = from.recv() => next,
            () = inner.stop.cancelled() => return,
            () = to.closed() => return,
        };
        match next {
            Ok(message) => {
                let raw = message.body.clone().into();
                if to
                    .send(Delivery::new(
                        Ok(message),
                        raw,
                        false,
                        Box::new(Volatile(Mutex::new(Some(permit)))),
                    ))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                tracing::warn!(lost, "a consumer of events fell behind");
                drop(permit);
                if to.send(Delivery::gap()).await.is_err() {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
