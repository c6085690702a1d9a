//! A connection that somebody has, and the pool it goes back to.

use super::super::ACQUIRE;
use super::Failure;
use super::connection::Connection;
use super::wire::Way;
use deadpool::managed::{Manager, Metrics, Object, RecycleError, RecycleResult};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

/// For how long a connection that was alive is taken to be so.
const FRESH: Duration = Duration::from_secs(1);
/// After how long one is replaced: where there are several servers, others come to be used, and what one has gathered is freed.
const OLD: Duration = Duration::from_mins(30);
/// How long one has for a word that it lives.
const PONG: Duration = Duration::from_secs(1);
/// How soon a connection is tried for again where the server was not ready for it.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a statement may go on that nobody waits for any more: longer than `statement_timeout`.
const LEAVING: Duration = Duration::from_secs(20);

/// Makes connections, and looks at those that are given out again.
pub(super) struct Maker(pub(super) Way);

impl Manager for Maker {
    type Type = Box<Connection>;
    type Error = Failure;

    async fn create(&self) -> Result<Box<Connection>, Failure> {
        let began = Instant::now();
        loop {
            // Whoever takes a connection holds this, too, and rarely needs it.
            let opened = timeout(ACQUIRE, Box::pin(Connection::open(&self.0))).await;
            match opened.unwrap_or_else(|_| Err(Failure::ended("it does not answer"))) {
                Err(failure) if failure.is_of_the_moment() && began.elapsed() + AGAIN < ACQUIRE => {
                    sleep(AGAIN).await;
                }
                opened => return opened.map(Box::new),
            }
        }
    }

    /// One that the server has ended is found out by what it has sent. One that was not used for a while is asked: the way to a server can end
    /// without a word.
    async fn recycle(
        &self,
        connection: &mut Box<Connection>,
        metrics: &Metrics,
    ) -> RecycleResult<Failure> {
        if !connection.is_at_rest() || !connection.is_open() || metrics.age() > OLD {
            return Err(RecycleError::message("it has ended"));
        }
        if metrics.last_used() > FRESH {
            // A word without a statement. Whoever waits for it has no longer than this.
            let pong = timeout(PONG, connection.go()).await;
            pong.map_err(|_| RecycleError::message("it does not answer"))??;
        }
        Ok(())
    }
}

/// A connection, until it is dropped. What was under way then is left.
pub(super) struct Lease {
    connection: Option<Object<Maker>>,
}

impl Lease {
    pub(super) fn of(connection: Object<Maker>) -> Self {
        Self {
            connection: Some(connection),
        }
    }

    pub(super) fn connection(&mut self) -> Result<&mut Connection, Failure> {
        let connection = self.connection.as_mut();
        connection
            .map(|connection| &mut ***connection)
            .ok_or_else(|| Failure::ended("it was given back"))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        connection.forget();
        if connection.is_at_rest() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            drop(Object::take(connection));
            return;
        };
        // Nobody else gets it, and its place in the pool, before its locks are free.
        runtime.spawn(async move {
            let rest = timeout(LEAVING, connection.come_to_rest()).await;
            if !matches!(rest, Ok(Ok(()))) {
                drop(Object::take(connection));
            }
        });
    }
}
