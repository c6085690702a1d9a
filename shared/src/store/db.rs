//! One SQL text for two databases. The only place that names a driver.
//!
//! A text is written once, with `$1` parameters, which both drivers read, over TEXT and BIGINT columns. What differs is
//! filled in from marks:
//!
//! | mark | PostgreSQL | SQLite |
//! |---|---|---|
//! | `{each:$1}` | `jsonb_array_elements($1::jsonb) AS r(value)` | `json_each($1) AS r` |
//! | `{texts:$1}` | `jsonb_array_elements_text($1::jsonb) AS r(value)` | `json_each($1) AS r` |
//! | `{skip_locked}` | `FOR UPDATE SKIP LOCKED` | nothing: there is one writer |
//! | `{texts_as_s:$1}` | the same as `s(value)`, for a second one in a statement | `json_each($1) AS s` |
//! | `{lock}` | `FOR UPDATE` | nothing |
//! | `{share:p}` | `FOR SHARE OF p` | nothing |

use crate::id::ApprovalId;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, PgPool, Row as _, SqlitePool};
use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one of `sqlite:` or `postgres:`.
    #[error("a database address starts with sqlite: or postgres:")]
    Scheme,
    /// The driver's error. It names no value of a row.
    #[error("the database refused or could not be reached")]
    Driver(#[from] sqlx::Error),
    /// A migration failed, or the schema is newer than this program.
    #[error("the schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row holds what this program never writes.
    #[error("column {0} holds an unknown value")]
    Row(&'static str),
}

impl Error {
    /// The same values will fail again: whoever repeats must leave something out.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Scheme
            | Self::Migrate(_)
            | Self::Row(_)
            | Self::Driver(sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. }) => true,
            Self::Driver(sqlx::Error::Database(error)) => {
                let code = error.code().unwrap_or_default();
                // PostgreSQL: classes of bad data, broken constraints and bad statements. SQLite: ERROR, CONSTRAINT, MISMATCH.
                match code.len() {
                    5 => ["22", "23", "42"]
                        .iter()
                        .any(|class| code.starts_with(class)),
                    _ => code
                        .parse::<u32>()
                        .is_ok_and(|code| matches!(code & 0xff, 1 | 19 | 20)),
                }
            }
            Self::Driver(_) => false,
        }
    }
}

/// One SQL text, translated at its first use.
pub struct Statement {
    text: &'static str,
    postgres: OnceLock<String>,
    sqlite: OnceLock<String>,
}

impl Statement {
    /// A text with the marks of this module.
    pub const fn new(text: &'static str) -> Self {
        Self {
            text,
            postgres: OnceLock::new(),
            sqlite: OnceLock::new(),
        }
    }

    fn postgres(&self) -> &str {
        self.postgres.get_or_init(|| {
            let text = unfold(self.text, "{each:", |p| {
                format!("jsonb_array_elements({p}::jsonb) AS r(value)")
            });
            let text = unfold(&text, "{texts:", |p| {
                format!("jsonb_array_elements_text({p}::jsonb) AS r(value)")
            });
            let text = unfold(&text, "{texts_as_s:", |p| {
                format!("jsonb_array_elements_text({p}::jsonb) AS s(value)")
            });
            let text = unfold(&text, "{share:", |table| format!("FOR SHARE OF {table}"));
            text.replace("{skip_locked}", "FOR UPDATE SKIP LOCKED")
                .replace("{lock}", "FOR UPDATE")
        })
    }

    fn sqlite(&self) -> &str {
        self.sqlite.get_or_init(|| {
            let text = unfold(self.text, "{each:", |p| format!("json_each({p}) AS r"));
            let text = unfold(&text, "{texts:", |p| format!("json_each({p}) AS r"));
            let text = unfold(&text, "{texts_as_s:", |p| format!("json_each({p}) AS s"));
            let text = unfold(&text, "{share:", |_| String::new());
            text.replace("{skip_locked}", "").replace("{lock}", "")
        })
    }
}

fn unfold(text: &str, mark: &str, with: impl Fn(&str) -> String) -> String {
    let mut parts = text.split(mark);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (parameter, rest) = part.split_once('}').unwrap_or((part, ""));
        out.push_str(&with(parameter));
        out.push_str(rest);
    }
    out
}

/// A parameter.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    /// A text.
    Text(&'a str),
    /// A text or NULL.
    MaybeText(Option<&'a str>),
    /// A number.
    Int(i64),
    /// A number or NULL.
    MaybeInt(Option<i64>),
}

/// One row of an answer.
pub enum Row {
    /// From PostgreSQL.
    Postgres(PgRow),
    /// From SQLite.
    Sqlite(SqliteRow),
}

impl Row {
    /// A text column.
    pub fn text(&self, column: &str) -> Result<String, Error> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        })
    }

    /// A text column that may be NULL.
    pub fn maybe_text(&self, column: &str) -> Result<Option<String>, Error> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        })
    }

    /// A number column.
    pub fn int(&self, column: &str) -> Result<i64, Error> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        })
    }

    /// A number column that may be NULL.
    pub fn maybe_int(&self, column: &str) -> Result<Option<i64>, Error> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        })
    }
}

/// A database, behind its pools.
#[derive(Clone)]
pub enum Db {
    /// Serves many machines.
    Postgres(PgPool),
    /// Serves one process: any number of readers, one writer.
    Sqlite {
        /// One connection: SQLite has one writer, and waiting in the pool is fairer than waiting for its lock.
        writer: SqlitePool,
        /// Readers see the last commit.
        readers: SqlitePool,
    },
}

const ACQUIRE: Duration = Duration::from_secs(5);

impl Db {
    /// Opens `postgres://…` or `sqlite:PATH`; the file is made where there is none.
    pub async fn open(url: &str) -> Result<Self, Error> {
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let options = PgConnectOptions::from_str(url)?
                .options([("statement_timeout", "15s"), ("lock_timeout", "10s")]);
            let pool = PgPoolOptions::new()
                .max_connections(16)
                .acquire_timeout(ACQUIRE)
                .connect_with(options)
                .await?;
            return Ok(Self::Postgres(pool));
        }
        if !url.starts_with("sqlite:") {
            return Err(Error::Scheme);
        }
        let options = SqliteConnectOptions::from_str(url)?
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            // NORMAL would lose the last commits at a power cut, and each of them has been answered with 202.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(ACQUIRE);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE)
            .connect_with(options.clone())
            .await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(ACQUIRE)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self::Sqlite { writer, readers })
    }

    /// Brings the schema up to date.
    pub async fn migrate(&self) -> Result<(), Error> {
        match self {
            Self::Postgres(pool) => sqlx::migrate!("../migrations/postgres").run(pool).await?,
            Self::Sqlite { writer, .. } => {
                sqlx::migrate!("../migrations/sqlite").run(writer).await?;
            }
        }
        Ok(())
    }

    /// How many migrations are still to be run; more than there are, when the schema is newer than this program. Changes nothing.
    pub async fn pending_migrations(&self) -> Result<i64, Error> {
        static RUN: Statement =
            Statement::new("SELECT COUNT(*) AS n FROM _sqlx_migrations WHERE success");
        let known = match self {
            Self::Postgres(_) => sqlx::migrate!("../migrations/postgres").iter().count(),
            Self::Sqlite { .. } => sqlx::migrate!("../migrations/sqlite").iter().count(),
        };
        let run = match self.fetch(&RUN, &[]).await {
            Ok(rows) => rows.first().map_or(Ok(0), |row| row.int("n"))?,
            // No such table: an empty database.
            Err(error) if error.is_permanent() => 0,
            Err(error) => return Err(error),
        };
        Ok(i64::try_from(known).unwrap_or(i64::MAX) - run)
    }

    /// Begins a transaction that may write. Dropping it rolls back.
    pub async fn begin(&self) -> Result<Tx, Error> {
        Ok(Tx::of(match self {
            Self::Postgres(pool) => Open::Postgres(pool.begin().await?),
            // Immediate: a read that later turns into a write would otherwise fail as busy.
            Self::Sqlite { writer, .. } => {
                Open::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?)
            }
        }))
    }

    /// Reads outside a transaction.
    pub async fn fetch(&self, statement: &Statement, args: &[Arg<'_>]) -> Result<Vec<Row>, Error> {
        match self {
            Self::Postgres(pool) => {
                fetch_postgres(&mut *pool.acquire().await?, statement, args).await
            }
            Self::Sqlite { readers, .. } => {
                fetch_sqlite(&mut *readers.acquire().await?, statement, args).await
            }
        }
    }

    /// Runs one statement that writes, in a transaction of its own.
    pub async fn write(&self, statement: &Statement, args: &[Arg<'_>]) -> Result<Vec<Row>, Error> {
        match self {
            Self::Postgres(pool) => {
                fetch_postgres(&mut *pool.acquire().await?, statement, args).await
            }
            Self::Sqlite { writer, .. } => {
                fetch_sqlite(&mut *writer.acquire().await?, statement, args).await
            }
        }
    }

    /// Closes every connection.
    pub async fn close(&self) {
        match self {
            Self::Postgres(pool) => pool.close().await,
            Self::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
        }
    }
}

enum Open {
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
}

/// A transaction.
pub struct Tx {
    open: Open,
    /// Approvals of which it has ended members: whoever commits it counts them next.
    pub(super) to_settle: BTreeSet<ApprovalId>,
}

impl Tx {
    fn of(open: Open) -> Self {
        Self {
            open,
            to_settle: BTreeSet::new(),
        }
    }

    /// Runs a statement and returns its rows.
    pub async fn fetch(
        &mut self,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        match &mut self.open {
            Open::Postgres(tx) => fetch_postgres(tx, statement, args).await,
            Open::Sqlite(tx) => fetch_sqlite(tx, statement, args).await,
        }
    }

    /// Makes it last.
    pub async fn commit(self) -> Result<(), Error> {
        match self.open {
            Open::Postgres(tx) => tx.commit().await?,
            Open::Sqlite(tx) => tx.commit().await?,
        }
        Ok(())
    }
}

macro_rules! fetch {
    ($name:ident, $connection:ty, $text:ident, $row:expr) => {
        async fn $name(
            connection: &mut $connection,
            statement: &Statement,
            args: &[Arg<'_>],
        ) -> Result<Vec<Row>, Error> {
            // The texts are constants of this crate; values travel as parameters only.
            let mut query = sqlx::query(AssertSqlSafe(statement.$text().to_owned()));
            for arg in args {
                query = match *arg {
                    Arg::Text(v) => query.bind(v.to_owned()),
                    Arg::MaybeText(v) => query.bind(v.map(str::to_owned)),
                    Arg::Int(v) => query.bind(v),
                    Arg::MaybeInt(v) => query.bind(v),
                };
            }
            Ok(query
                .fetch_all(connection)
                .await?
                .into_iter()
                .map($row)
                .collect())
        }
    };
}

fetch!(fetch_postgres, sqlx::PgConnection, postgres, Row::Postgres);
fetch!(fetch_sqlite, sqlx::SqliteConnection, sqlite, Row::Sqlite);

#[cfg(test)]
mod tests {
    use super::Statement;

    #[test]
    fn marks_are_filled_in_for_each_database() {
        let s = Statement::new("SELECT 1 FROM {each:$2} JOIN {texts:$1} {skip_locked}");
        assert_eq!(
            s.postgres(),
            "SELECT 1 FROM jsonb_array_elements($2::jsonb) AS r(value) JOIN jsonb_array_elements_text($1::jsonb) AS r(value) FOR UPDATE SKIP LOCKED"
        );
        assert_eq!(
            s.sqlite(),
            "SELECT 1 FROM json_each($2) AS r JOIN json_each($1) AS r "
        );
    }
}
