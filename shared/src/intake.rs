//! Group commit of requests: whoever comes while a transaction is under way goes together into the next one. Nobody is delayed for it, but for a
//! millisecond on PostgreSQL right after several have come together.

use crate::clock::SharedClock;
use crate::gather::gather_for;
use crate::store::{Db, Error, NewPush, Store, Taken};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::TaskTracker;

/// How many requests may wait. Beyond that the door is shut: a queue in front of a slow database outlives its cause.
const WAITING: usize = 4_000;
/// How many pushes one transaction takes at most.
const BATCH: usize = 250;
/// Where the last transaction took so many, more are on their way, and for so long they are waited for: on a server one of twice the size costs little
/// more, and each of its round trips waits for the others' (`docs/performance.md`). On SQLite a transaction is over sooner than this.
const MANY: usize = 3;
const MOMENT: Duration = Duration::from_millis(1);

/// Why a push was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Shed {
    /// Too many are waiting.
    #[error("too many requests are waiting")]
    Full,
    /// The database failed. The push may have been taken all the same.
    #[error("the database failed")]
    Database(#[source] Arc<Error>),
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopping,
}

type Request = (NewPush, oneshot::Sender<Result<Taken, Shed>>);

/// The door for new pushes.
#[derive(Clone)]
pub struct Intake(mpsc::Sender<Request>);

impl Intake {
    /// A door served by `writers` tasks, which end when the last handle is gone.
    pub fn start(store: &Store, clock: &SharedClock, writers: usize, tasks: &TaskTracker) -> Self {
        let (to, from) = mpsc::channel(WAITING);
        let from = Arc::new(Mutex::new(from));
        for _ in 0..writers.max(1) {
            tasks.spawn(write(store.clone(), clock.clone(), Arc::clone(&from)));
        }
        Self(to)
    }

    /// Takes a push. When this returns `Taken::New` it is durable.
    pub async fn take(&self, push: NewPush) -> Result<Taken, Shed> {
        let (reply, answer) = oneshot::channel();
        self.0
            .try_send((push, reply))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Shed::Full,
                mpsc::error::TrySendError::Closed(_) => Shed::Stopping,
            })?;
        answer.await.map_err(|_| Shed::Stopping)?
    }
}

async fn write(store: Store, clock: SharedClock, from: Arc<Mutex<mpsc::Receiver<Request>>>) {
    let gathers = matches!(store.db(), Db::Postgres(_));
    let mut last = 0;
    loop {
        let mut requests = Vec::new();
        {
            let mut from = from.lock().await;
            if from.recv_many(&mut requests, BATCH).await == 0 {
                return;
            }
            if gathers && last >= MANY {
                gather_for(MOMENT, &mut from, &mut requests, BATCH).await;
            }
        }
        last = requests.len();
        let (pushes, replies): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        match store.take(&pushes, clock.now()).await {
            Ok(taken) => {
                for (reply, taken) in replies.into_iter().zip(taken) {
                    // A caller who has hung up learns it by its idempotency key.
                    reply.send(Ok(taken)).ok();
                }
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "new pushes could not be written"
                );
                let error = Shed::Database(Arc::new(error));
                for reply in replies {
                    reply.send(Err(error.clone())).ok();
                }
            }
        }
    }
}
