//! PostgreSQL: connections of two kinds, whose statements go out in pipelines (postgresql.org/docs/17/protocol-flow.html, 53.2.4). A round trip costs both
//! sides more than most statements do.

mod address;
mod connection;
mod encryption;
mod failure;
mod lease;
mod parameters;
mod row;
mod transaction;
mod wire;

pub use failure::Failure;
pub use row::PostgresRow;
pub(super) use transaction::Transaction;

use super::sqlite::Flush;
use super::turns::Turn;
use super::{ACQUIRE, Arg, Error, Row, Statement};
use deadpool::managed::{BuildError, Pool, PoolError, QueueMode, TimeoutType, WeakPool};
use lease::{Lease, Maker};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How many connections whose commits wait for the disk, and how many whose commits do not.
const CONNECTIONS: usize = 16;
const REPEATABLE: usize = 8;
/// For how long one may be of no use.
const IDLE: Duration = Duration::from_mins(10);
/// How often those that are still in use are looked for when all are to be closed.
const LOOK: Duration = Duration::from_millis(10);

/// A message to nobody: its commit waits until all of the log before it is on the disk.
const FLUSH: &str = "SELECT pg_logical_emit_message(true, 'countersign', '')";

/// A server, or several behind one address.
#[derive(Clone)]
pub struct Postgres {
    waiting: Pool<Maker>,
    /// Its commits do not wait for the disk: after a crash of the server some of the last are gone, and all that came after the first of these.
    repeatable: Pool<Maker>,
    /// For migrations, which take as long as they take: one that was cut off would fail at each start.
    patient: Arc<PgConnectOptions>,
}

fn pool(options: &PgConnectOptions, connections: usize) -> Result<Pool<Maker>, Error> {
    let built = Pool::builder(Maker(address::way(options)))
        .max_size(connections)
        // The last one back has its statements and its memory at hand.
        .queue_mode(QueueMode::Lifo)
        .build();
    let pool = built.map_err(|BuildError::NoRuntimeSpecified| sqlx::Error::PoolClosed)?;
    tokio::spawn(reap(pool.weak()));
    Ok(pool)
}

async fn lease(pool: &Pool<Maker>) -> Result<Lease, Error> {
    // Whoever waits in front of the pool, looks at one connection after the other, or makes one, has this long for all of it.
    let connection = timeout(ACQUIRE, pool.get()).await;
    let connection = connection.unwrap_or(Err(PoolError::Timeout(TimeoutType::Wait)));
    let connection = connection.map_err(|error| match error {
        PoolError::Backend(error) => Error::Postgres(error),
        PoolError::Closed => sqlx::Error::PoolClosed.into(),
        _ => sqlx::Error::PoolTimedOut.into(),
    })?;
    Ok(Lease::of(connection))
}

/// Closes what nobody has used for long, as long as anybody holds the pool.
async fn reap(pool: WeakPool<Maker>) {
    loop {
        sleep(IDLE / 10).await;
        let Some(pool) = pool.upgrade().filter(|pool| !pool.is_closed()) else {
            break;
        };
        pool.retain(|_, metrics| metrics.last_used() < IDLE);
    }
}

impl Postgres {
    /// Opens `postgres://…`.
    pub(super) async fn open(url: &str) -> Result<Self, Error> {
        let options = address::read(url)?.options([
            ("statement_timeout", "15s"),
            ("lock_timeout", "10s"),
            // Statements are short and come again and again: compiling one takes longer than running it.
            ("jit", "off"),
            // Nothing is worth reading a whole table for, though a plan made while it was small says so.
            ("enable_seqscan", "off"),
        ]);
        let repeatable = options.clone().options([("synchronous_commit", "off")]);
        let patient = options
            .clone()
            .options([("statement_timeout", "0"), ("lock_timeout", "0")]);
        let both = Self {
            waiting: pool(&options, CONNECTIONS)?,
            repeatable: pool(&repeatable, REPEATABLE)?,
            patient: Arc::new(patient),
        };
        // Whoever cannot reach it learns so at once.
        drop(lease(&both.waiting).await?);
        Ok(both)
    }

    pub(super) async fn migrate(&self) -> Result<(), Error> {
        let mut connection = self.patient.connect().await?;
        let migrations = sqlx::migrate!("../migrations/postgres");
        migrations.run(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }

    /// Does the commit of such a transaction wait for the disk? Those of batches do all the same: this process outlives the server, and counts an
    /// upload's part or a chunk's results as done once they are committed.
    pub(super) fn waits(flush: Flush, turn: Turn) -> bool {
        flush != Flush::Never || turn == Turn::Later
    }

    fn pool(&self, flush: Flush, turn: Turn) -> &Pool<Maker> {
        if Self::waits(flush, turn) {
            &self.waiting
        } else {
            &self.repeatable
        }
    }

    /// A transaction on a connection for such.
    pub(super) async fn begin(&self, flush: Flush, turn: Turn) -> Result<Transaction, Error> {
        Ok(Transaction::of(lease(self.pool(flush, turn)).await?))
    }

    /// Runs one statement in a transaction of its own.
    pub(super) async fn fetch(
        &self,
        (flush, turn): (Flush, Turn),
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        let mut lease = lease(self.pool(flush, turn)).await?;
        let connection = lease.connection()?;
        connection.draft(statement, args)?;
        let answers = connection.go().await?;
        Ok(answers.into_iter().flat_map(|answer| answer.rows).collect())
    }

    /// Waits until everything that can be read is on the disk.
    pub(super) async fn all_safe(&self) -> Result<(), Error> {
        let mut lease = lease(&self.waiting).await?;
        let connection = lease.connection()?;
        connection.draft_words(FLUSH)?;
        connection.go().await?;
        Ok(())
    }

    /// Closes every connection, those in use when they come back.
    pub(super) async fn close(&self) {
        for pool in [&self.repeatable, &self.waiting] {
            pool.close();
            let gone = async {
                while pool.status().size > 0 {
                    sleep(LOOK).await;
                }
            };
            timeout(ACQUIRE, gone).await.ok();
        }
    }
}
