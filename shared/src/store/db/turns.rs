//! The line in front of SQLite's one writer.

use super::{ACQUIRE, Error};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How soon a transaction has its turn at SQLite's one writer. PostgreSQL looks only whether it is that of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Somebody waits for the answer.
    Now,
    /// Work behind it.
    Soon,
    /// Batches.
    Later,
}

/// The line in front of the one writer. Of each later kind a few transactions at a time wait with those of the kind before, so that they have their
/// turn among them, but do not crowd them out: a sign-in waits for a few others, not for all that a batch has to write.
pub(super) struct Line {
    soon: Arc<Semaphore>,
    later: Arc<Semaphore>,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            // A claim, a record and what settles them.
            soon: Arc::new(Semaphore::new(3)),
            later: Arc::new(Semaphore::new(1)),
        }
    }
}

/// A place in front of the line, held as long as the transaction.
pub(super) type Place = [Option<OwnedSemaphorePermit>; 2];

impl Line {
    pub(super) async fn place(&self, turn: Turn) -> Result<Place, Error> {
        async fn of(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
            let place = in_time(Arc::clone(places).acquire_owned()).await?;
            // Never closed.
            place.map_err(|_| sqlx::Error::PoolClosed.into())
        }
        Ok(match turn {
            Turn::Now => [None, None],
            Turn::Soon => [None, Some(of(&self.soon).await?)],
            Turn::Later => {
                let later = of(&self.later).await?;
                [Some(later), Some(of(&self.soon).await?)]
            }
        })
    }
}

/// Waits as long as anybody waits for a connection.
pub(super) async fn in_time<T>(place: impl Future<Output = T>) -> Result<T, Error> {
    let place = timeout(ACQUIRE, place).await;
    place.map_err(|_| sqlx::Error::PoolTimedOut.into())
}
