//! Settling: an ack deletes the row, a requeue makes it visible again, both only while the delivery count is still the one
//! that was handed out. One task settles for all consumers: what comes in while a transaction commits shares the next.

use super::super::{Settle, Settlement};
use super::Inner;
use crate::store::db::{Arg, Error as StoreError, Statement};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// How many settlements one transaction takes at most.
const SETTLE_BATCH: usize = 500;

static DELETE: Statement = Statement::new(
    "DELETE FROM queue_messages WHERE (id, deliveries) IN
       (SELECT CAST(r.value->>'id' AS BIGINT), CAST(r.value->>'deliveries' AS BIGINT) FROM {each:$1})
     RETURNING id, deliveries",
);
static RELEASE: Statement = Statement::new(
    "UPDATE queue_messages SET visible_at = $2, deliveries = deliveries - 1 WHERE (id, deliveries) IN
       (SELECT CAST(r.value->>'id' AS BIGINT), CAST(r.value->>'deliveries' AS BIGINT) FROM {each:$1})
     RETURNING id, deliveries + 1 AS deliveries",
);

/// Row and delivery count.
type Fence = (i64, i64);

/// A delivery to be settled, and who waits to hear whether it still was one.
pub(super) struct Settling {
    id: i64,
    deliveries: i64,
    how: Settle,
    done: oneshot::Sender<bool>,
}

impl Inner {
    /// Settles all of them in one transaction and says to each whether it still held its message.
    async fn settle(&self, all: Vec<Settling>) {
        let settled = match self.settled(&all).await {
            Ok(settled) => settled,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "messages could not be settled; they will be delivered again"
                );
                HashSet::new()
            }
        };
        if all.iter().any(|one| one.how == Settle::Requeue) {
            self.lines.ring_all();
        }
        for one in all {
            // Whoever asked may be gone; the message is settled all the same.
            one.done
                .send(settled.contains(&(one.id, one.deliveries)))
                .ok();
        }
    }

    async fn settled(&self, all: &[Settling]) -> Result<HashSet<Fence>, StoreError> {
        let fences = |how: Settle| {
            let of = all.iter().filter(|one| one.how == how);
            let rows: Vec<_> = of
                .map(|one| serde_json::json!({"id": one.id, "deliveries": one.deliveries}))
                .collect();
            (!rows.is_empty()).then(|| serde_json::Value::Array(rows).to_string())
        };
        let mut tx = self.db.begin_repeatable().await?;
        let mut rows = Vec::new();
        if let Some(acked) = fences(Settle::Ack) {
            rows.extend(tx.fetch(&DELETE, &[Arg::Text(&acked)]).await?);
        }
        if let Some(requeued) = fences(Settle::Requeue) {
            let args = [Arg::Text(&requeued), Arg::Int(self.clock.now())];
            rows.extend(tx.fetch(&RELEASE, &args).await?);
        }
        tx.commit().await?;
        rows.iter()
            .map(|row| Ok((row.int("id")?, row.int("deliveries")?)))
            .collect()
    }

    /// The way to the one task that settles, started at its first use.
    pub(super) fn settler(self: &Arc<Self>) -> mpsc::Sender<Settling> {
        let start = || {
            let (to, from) = mpsc::channel(SETTLE_BATCH);
            self.tasks.spawn(settle_all(Arc::clone(self), from));
            to
        };
        self.settler.get_or_init(start).clone()
    }
}

/// A message that a consumer holds until its lease ends.
pub(super) struct Leased {
    pub(super) inner: Arc<Inner>,
    pub(super) settler: mpsc::Sender<Settling>,
    pub(super) id: i64,
    pub(super) deliveries: i64,
    /// Its place in the prefetch window, free again once it is settled or dropped.
    pub(super) permit: Mutex<Option<OwnedSemaphorePermit>>,
}

#[async_trait::async_trait]
impl Settlement for Leased {
    async fn settle(&self, how: Settle) -> bool {
        // Once only: what was requeued is handed out again under the same count, and this is no longer its holder.
        let Some(place) = self.permit.lock().ok().and_then(|mut place| place.take()) else {
            return false;
        };
        let (done, answer) = oneshot::channel();
        let settling = Settling {
            id: self.id,
            deliveries: self.deliveries,
            how,
            done,
        };
        // After the shutdown of the engine nobody collects any more.
        if let Err(unsent) = self.settler.send(settling).await {
            self.inner.settle(vec![unsent.0]).await;
        }
        let settled = answer.await.unwrap_or(false);
        if let (false, Ok(mut permit)) = (settled, self.permit.lock()) {
            *permit = Some(place);
        }
        settled
    }
}

async fn settle_all(inner: Arc<Inner>, mut from: mpsc::Receiver<Settling>) {
    let mut all = Vec::with_capacity(SETTLE_BATCH);
    loop {
        tokio::select! {
            biased;
            count = from.recv_many(&mut all, SETTLE_BATCH) => {
                if count == 0 {
                    return;
                }
                inner.settle(std::mem::take(&mut all)).await;
            }
            // What has been sent is still settled.
            () = inner.stop.cancelled(), if !from.is_closed() => from.close(),
        }
    }
}
