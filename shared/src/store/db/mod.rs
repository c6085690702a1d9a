//! The database: PostgreSQL or SQLite, behind one set of calls. The only place that names a driver.

mod checkpoints;
mod log;
mod postgres;
mod sqlite;
mod statement;
mod turns;
mod values;

pub use postgres::{Failure, Postgres, PostgresRow};
pub use sqlite::{Sqlite, SqliteRow};
pub use statement::Statement;
pub use values::{Arg, Row, Rows};

use crate::id::ApprovalId;
use sqlite::Flush;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::task::yield_now;
use turns::Turn;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one of `sqlite:` or `postgres:`.
    #[error("a database address starts with sqlite: or postgres:")]
    Scheme,
    /// The address of SQLite is not a path alone.
    #[error("an address of SQLite is sqlite:PATH, a file, without parameters")]
    Path,
    /// An error of what is around both databases, and of migrations. It names no value of a row.
    #[error("the database refused or could not be reached")]
    Driver(#[from] sqlx::Error),
    /// PostgreSQL's.
    #[error("the database refused or could not be reached")]
    Postgres(#[from] Failure),
    /// The same of SQLite's.
    #[error("the database refused or could not be reached")]
    Sqlite(#[from] rusqlite::Error),
    /// The process ends.
    #[error("the process is stopping")]
    Stopped,
    /// A migration failed, or the schema is newer than this program.
    #[error("the schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row holds what this program never writes.
    #[error("column {0} holds an unknown value")]
    Row(&'static str),
}

impl Error {
    /// A row stands in the way of a new one (`unique_violation`).
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Postgres(Failure::Refused { code, .. }) if code == "23505")
    }

    /// The same values will fail again: whoever repeats must leave something out.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Scheme | Self::Path | Self::Migrate(_) | Self::Row(_) => true,
            Self::Postgres(failure) => failure.is_permanent(),
            Self::Sqlite(error) => match error.sqlite_error() {
                // ERROR, CONSTRAINT, MISMATCH.
                Some(error) => matches!(error.extended_code & 0xff, 1 | 19 | 20),
                // It was never asked: what came out is not what was expected, or what went in.
                None => true,
            },
            Self::Driver(_) | Self::Stopped => false,
        }
    }
}

/// A database, behind its pools.
#[derive(Clone)]
pub enum Db {
    /// Serves many machines.
    Postgres(Postgres),
    /// Serves one process.
    Sqlite(Sqlite),
}

/// How long anybody waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(5);

impl Db {
    /// Opens `postgres://…` or `sqlite:PATH`; the file is made where there is none.
    pub async fn open(url: &str) -> Result<Self, Error> {
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            return Ok(Self::Postgres(Postgres::open(url).await?));
        }
        if !url.starts_with("sqlite:") {
            return Err(Error::Scheme);
        }
        Ok(Self::Sqlite(Sqlite::open(url).await?))
    }

    /// Brings the schema up to date.
    pub async fn migrate(&self) -> Result<(), Error> {
        match self {
            Self::Postgres(db) => db.migrate().await?,
            Self::Sqlite(db) => db.migrate().await?,
        }
        Ok(())
    }

    /// How many migrations are still to be run; more than there are, when the schema is newer than this program. Changes nothing.
    pub async fn pending_migrations(&self) -> Result<i64, Error> {
        static RUN: Statement =
            Statement::new("SELECT COUNT(*) AS n FROM _sqlx_migrations WHERE success");
        let known = match self {
            Self::Postgres(_) => sqlx::migrate!("../migrations/postgres").iter().count(),
            Self::Sqlite(_) => sqlx::migrate!("../migrations/sqlite").iter().count(),
        };
        let run = match self.fetch(&RUN, &[]).await {
            Ok(rows) => rows.first().map_or(Ok(0), |row| row.int("n"))?,
            // No such table: an empty database.
            Err(error) if error.is_permanent() => 0,
            Err(error) => return Err(error),
        };
        Ok(i64::try_from(known).unwrap_or(i64::MAX) - run)
    }

    /// Begins a transaction that may write. Dropping it rolls back. Its commit survives everything.
    pub async fn begin(&self) -> Result<Tx, Error> {
        self.begin_with(Flush::Within, Turn::Now).await
    }

    /// The same for a batch: it gives way to everybody else.
    pub async fn begin_later(&self) -> Result<Tx, Error> {
        self.begin_with(Flush::Within, Turn::Later).await
    }

    /// The same for what nobody is told of before its commit returns: on SQLite others write, and read it, while it waits for the disk.
    pub async fn begin_open(&self) -> Result<Tx, Error> {
        self.begin_with(Flush::Beside, Turn::Now).await
    }

    /// The same for a batch: it gives way to everybody else.
    pub async fn begin_open_later(&self) -> Result<Tx, Error> {
        self.begin_with(Flush::Beside, Turn::Later).await
    }

    /// The same for what nobody outside is told of, and what can be done again: its commit does not wait for the disk. It survives the end of the
    /// process; a crash of PostgreSQL, or a power cut, may take it back, together with every later one, and never without them.
    pub async fn begin_repeatable(&self) -> Result<Tx, Error> {
        self.begin_with(Flush::Never, Turn::Soon).await
    }

    /// The same for a batch: it gives way to everybody else. PostgreSQL's commit waits for the disk, since this process outlives the server.
    pub async fn begin_repeatable_later(&self) -> Result<Tx, Error> {
        self.begin_with(Flush::Never, Turn::Later).await
    }

    async fn begin_with(&self, flush: Flush, turn: Turn) -> Result<Tx, Error> {
        let (open, waits) = match self {
            Self::Postgres(db) => {
                let tx = db.begin(flush, turn).await?;
                (Open::Postgres(tx), Postgres::waits(flush, turn))
            }
            Self::Sqlite(db) => {
                let tx = db.begin(flush, turn).await?;
                (Open::Sqlite(tx), flush != Flush::Never)
            }
        };
        Ok(Tx {
            open,
            is_repeatable: !waits,
            to_settle: BTreeSet::new(),
        })
    }

    /// Waits until whatever was read before is on the disk, whoever has written it.
    pub async fn all_safe(&self) -> Result<(), Error> {
        match self {
            Self::Postgres(db) => db.all_safe().await,
            Self::Sqlite(db) => db.log().all_safe().await,
        }
    }

    /// Waits until the open transactions that this process has committed before are on the disk.
    pub async fn open_ones_safe(&self) -> Result<(), Error> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(db) => db.log().noted_safe().await,
        }
    }

    /// Reads outside a transaction.
    pub async fn fetch(&self, statement: &Statement, args: &[Arg<'_>]) -> Result<Vec<Row>, Error> {
        match self {
            Self::Postgres(db) => db.fetch((Flush::Within, Turn::Now), statement, args).await,
            Self::Sqlite(db) => db.fetch(statement, args).await,
        }
    }

    /// Runs one statement that writes, in a transaction of its own.
    pub async fn write(&self, statement: &Statement, args: &[Arg<'_>]) -> Result<Vec<Row>, Error> {
        self.write_with(Flush::Within, Turn::Now, statement, args)
            .await
    }

    /// The same for what can be done again (see [`Db::begin_repeatable`]).
    pub async fn write_repeatable(
        &self,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        self.write_with(Flush::Never, Turn::Soon, statement, args)
            .await
    }

    /// The same for a batch: it gives way to everybody else.
    pub async fn write_repeatable_later(
        &self,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        self.write_with(Flush::Never, Turn::Later, statement, args)
            .await
    }

    async fn write_with(
        &self,
        flush: Flush,
        turn: Turn,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        match self {
            Self::Postgres(db) => db.fetch((flush, turn), statement, args).await,
            Self::Sqlite(_) => {
                let mut tx = self.begin_with(flush, turn).await?;
                let rows = tx.fetch(statement, args).await?;
                tx.commit().await?;
                Ok(rows)
            }
        }
    }

    /// Closes every connection.
    pub async fn close(&self) {
        match self {
            Self::Postgres(db) => db.close().await,
            Self::Sqlite(db) => db.close().await,
        }
    }
}

enum Open {
    Postgres(postgres::Transaction),
    Sqlite(sqlite::Transaction),
}

/// A statement with its parameters.
pub type Asked<'a> = (&'a Statement, &'a [Arg<'a>]);

/// A transaction.
pub struct Tx {
    open: Open,
    is_repeatable: bool,
    /// Approvals of which it has ended members: whoever commits it counts them next.
    pub(super) to_settle: BTreeSet<ApprovalId>,
}

impl Tx {
    /// Nobody else writes meanwhile, so that there is nothing to lock.
    pub fn is_alone(&self) -> bool {
        matches!(self.open, Open::Sqlite(..))
    }

    /// Does its commit wait for nothing that others do meanwhile? Then nobody can hang up on it.
    pub fn commits_at_once(&self) -> bool {
        matches!(&self.open, Open::Sqlite(tx) if tx.commits_at_once())
    }

    /// Does its commit wait for no disk?
    pub(super) fn is_repeatable(&self) -> bool {
        self.is_repeatable
    }

    /// Runs a statement and returns its rows.
    pub async fn fetch(
        &mut self,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        match &mut self.open {
            Open::Postgres(tx) => {
                let [rows] = tx.fetch([(statement, args)]).await?;
                Ok(rows)
            }
            Open::Sqlite(tx) => tx.fetch(statement, args),
        }
    }

    /// Runs statements that need nothing of one another: on PostgreSQL they go out together.
    pub async fn fetch_all<const N: usize>(
        &mut self,
        asked: [Asked<'_>; N],
    ) -> Result<[Vec<Row>; N], Error> {
        match &mut self.open {
            Open::Postgres(tx) => Ok(tx.fetch(asked).await?),
            Open::Sqlite(tx) => {
                let mut all = [const { Vec::new() }; N];
                for (rows, (statement, args)) in all.iter_mut().zip(asked) {
                    *rows = tx.fetch(statement, args)?;
                }
                Ok(all)
            }
        }
    }

    /// Runs a statement of which nothing is needed before the next one: on PostgreSQL it goes out with that, or with the commit, and so does its error.
    pub fn send(&mut self, statement: &Statement, args: &[Arg<'_>]) -> Result<(), Error> {
        match &mut self.open {
            Open::Postgres(tx) => Ok(tx.send(statement, args)?),
            Open::Sqlite(tx) => tx.fetch(statement, args).map(drop),
        }
    }

    /// Runs the last statement and commits, together.
    pub async fn fetch_last(
        self,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        let gives_way = self.gives_way();
        let rows = match self.open {
            Open::Postgres(tx) => tx.fetch_last(statement, args).await?,
            Open::Sqlite(tx) => {
                let rows = tx.fetch(statement, args)?;
                tx.commit().await?;
                rows
            }
        };
        if gives_way {
            yield_now().await;
        }
        Ok(rows)
    }

    /// Runs a statement that gives no rows. Says how many it has written.
    pub async fn execute(&mut self, statement: &Statement, args: &[Arg<'_>]) -> Result<u64, Error> {
        match &mut self.open {
            Open::Postgres(tx) => Ok(tx.execute(statement, args).await?),
            Open::Sqlite(tx) => tx.execute(statement, args),
        }
    }

    /// Makes it last, and lets others go on if it belongs to a batch.
    pub async fn commit(self) -> Result<(), Error> {
        let gives_way = self.gives_way();
        self.commit_only().await?;
        if gives_way {
            yield_now().await;
        }
        Ok(())
    }

    /// Does it belong to a batch? Whoever gets SQLite's writer after it was woken to run next in this thread, and no other thread takes that over: a batch
    /// that went on would keep them all for as long as it computes. So it yields.
    pub(super) fn gives_way(&self) -> bool {
        matches!(&self.open, Open::Sqlite(tx) if tx.is_later())
    }

    /// Makes it last, without a moment in between at which nobody could come back to it.
    pub(super) async fn commit_only(self) -> Result<(), Error> {
        match self.open {
            Open::Postgres(tx) => tx.commit().await?,
            Open::Sqlite(tx) => tx.commit().await?,
        }
        Ok(())
    }
}
