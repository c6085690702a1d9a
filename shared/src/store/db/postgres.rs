//! PostgreSQL: connections of two kinds, and statements and their parameters as its driver wants them.

use super::sqlite::Flush;
use super::turns::Turn;
use super::values::Cell;
use super::{ACQUIRE, Arg, Error, Row, Rows, Statement};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgPool};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

/// For how long a connection that was alive is taken to be so.
const FRESH: Duration = Duration::from_secs(1);
/// How many connections whose commits wait for the disk, and how many whose commits do not.
const CONNECTIONS: u32 = 16;
const REPEATABLE: u32 = 8;

/// A message to nobody: its commit waits until all of the log before it is on the disk.
const FLUSH: &str = "SELECT pg_logical_emit_message(true, 'countersign', '')";

/// A server, or several behind one address.
#[derive(Clone)]
pub struct Postgres {
    waiting: PgPool,
    /// Its commits do not wait for the disk: after a crash of the server some of the last are gone, and all that came after the first of these.
    repeatable: PgPool,
    /// For migrations, which take as long as they take: one that was cut off would fail at each start.
    patient: Arc<PgConnectOptions>,
}

fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        // Each is asked whether it lives as it comes back; to ask again as it goes out is one more round trip for everything. After a restart of
        // the server within this moment a caller gets an error that the second question would have found.
        .test_before_acquire(false)
        .before_acquire(|connection, known| {
            Box::pin(async move {
                if known.idle_for > FRESH {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}

impl Postgres {
    /// Opens `postgres://…`.
    pub(super) async fn open(url: &str) -> Result<Self, Error> {
        let options = PgConnectOptions::from_str(url)?.options([
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
            waiting: pool(options, CONNECTIONS),
            repeatable: pool(repeatable, REPEATABLE),
            patient: Arc::new(patient),
        };
        // Whoever cannot reach it learns so at once.
        drop(both.waiting.acquire().await?);
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

    /// The connections for such a transaction.
    pub(super) fn pool(&self, flush: Flush, turn: Turn) -> &PgPool {
        if Self::waits(flush, turn) {
            &self.waiting
        } else {
            &self.repeatable
        }
    }

    /// Runs one statement in a transaction of its own.
    pub(super) async fn fetch(
        &self,
        (flush, turn): (Flush, Turn),
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        fetch(
            &mut *self.pool(flush, turn).acquire().await?,
            statement,
            args,
        )
        .await
    }

    /// Waits until everything that can be read is on the disk.
    pub(super) async fn all_safe(&self) -> Result<(), Error> {
        sqlx::query(FLUSH).execute(&self.waiting).await?;
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.repeatable.close().await;
        self.waiting.close().await;
    }
}

type PgQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

pub(super) fn query<'q>(statement: &'q Statement, args: &[Arg<'_>]) -> PgQuery<'q> {
    // The texts are constants of this crate; values travel as parameters only.
    let mut query = sqlx::query(AssertSqlSafe(statement.postgres().to_owned()));
    for arg in args {
        query = match *arg {
            Arg::Text(v) => query.bind(v.to_owned()),
            Arg::MaybeText(v) => query.bind(v.map(str::to_owned)),
            Arg::Int(v) => query.bind(v),
            Arg::MaybeInt(v) => query.bind(v),
            Arg::Rows(rows) => with_columns(query, statement, rows),
        };
    }
    query
}

/// Binds each column as an array.
fn with_columns<'q>(mut query: PgQuery<'q>, statement: &Statement, rows: &Rows) -> PgQuery<'q> {
    let numbers = statement.rows().map_or(&[][..], |mark| &mark.numbers);
    for (column, number) in numbers.iter().enumerate() {
        let cells = rows.cells.iter().skip(column).step_by(numbers.len());
        query = if *number {
            let of = |cell: &Cell| match cell {
                Cell::Int(v) => *v,
                Cell::Text(_) => None,
            };
            query.bind(cells.map(of).collect::<Vec<Option<i64>>>())
        } else {
            let of = |cell: &Cell| match cell {
                Cell::Text(v) => v.clone(),
                Cell::Int(_) => None,
            };
            query.bind(cells.map(of).collect::<Vec<Option<String>>>())
        };
    }
    query
}

pub(super) async fn fetch(
    connection: &mut sqlx::PgConnection,
    statement: &Statement,
    args: &[Arg<'_>],
) -> Result<Vec<Row>, Error> {
    let rows = query(statement, args).fetch_all(connection).await?;
    Ok(rows.into_iter().map(Row::Postgres).collect())
}
