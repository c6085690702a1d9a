//! One SQL text for two databases. The only place that names a driver.
//!
//! A text is written once, with `$1` parameters, which both drivers read, over TEXT and BIGINT columns. What differs is
//! filled in from marks:
//!
//! | mark | PostgreSQL | SQLite |
//! |---|---|---|
//! | `{each:$1}` | `unnest(ARRAY(SELECT jsonb_array_elements($1::jsonb))) AS r(value)` | `json_each($1) AS r` |
//! | `{texts:$1}` | the same of `jsonb_array_elements_text` | `json_each($1) AS r` |
//! | `{in:$1}` | `= ANY(ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))` | `IN (SELECT value FROM json_each($1))` |
//! | `{among:$1 id}` | `= ANY(ARRAY(SELECT jsonb_array_elements($1::jsonb)->>'id'))` | `IS NOT NULL` |
//! | `{since:p.user_id p.id u.id $2}` | `(p.user_id, p.id) > (u.id, $2)` | `p.id > $2` |
//! | `{skip_locked}` | `FOR UPDATE SKIP LOCKED` | nothing: there is one writer |
//! | `{texts_as_s:$1}` | the same as `s(value)`, for a second one in a statement | `json_each($1) AS s` |
//! | `{lock}` | `FOR UPDATE` | nothing |
//! | `{rows:3 id line:int}` | `unnest($3::text[], $4::bigint[]) AS r(id, line)` | a `VALUES` list of the rows, `AS r` |
//! | `{share:p}` | `FOR SHARE OF p` | nothing |
//!
//! A plan that PostgreSQL makes while a table is small is kept by its connection while the table grows, so a text leaves no choice but the right one:
//! rows are looked up by index from a short list. An array it takes for ten rows, a set of JSON elements for a hundred, which once was more than
//! there were pushes; `= ANY` is a condition of the index, `IN (SELECT …)` and `JOIN` are not, so that a table which is joined with `{each:$1}` is told
//! with `{among:…}` once more which rows are asked for; and `p.id > $2` beside `p.user_id = u.id` is an invitation to
//! read everybody's recent pushes by their identifiers.

use crate::id::ApprovalId;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, PgPool, Row as _, SqlSafeStr as _, SqlitePool};
use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one of `sqlite:` or `postgres:`.
    #[error("a database address starts with sqlite: or postgres:")]
    Scheme,
    /// The driver's error. It names no value of a row.
    #[error("the database refused or could not be reached")]
    Driver(#[from] sqlx::Error),
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
            Self::Driver(_) | Self::Stopped => false,
        }
    }
}

/// One SQL text, translated at its first use.
pub struct Statement {
    text: &'static str,
    postgres: OnceLock<String>,
    sqlite: OnceLock<String>,
    rows: OnceLock<Option<RowsMark>>,
}

/// What the mark `{rows:…}` says.
struct RowsMark {
    /// The number of its first parameter: it stands behind all others.
    first: usize,
    columns: Vec<&'static str>,
    numbers: Vec<bool>,
}

impl RowsMark {
    fn of(text: &'static str) -> Option<Self> {
        let (_, mark) = text.split_once("{rows:")?;
        let (mark, _) = mark.split_once('}')?;
        let mut words = mark.split_whitespace();
        let first = words.next()?.parse().ok()?;
        let (columns, numbers) = words
            .map(|word| (word.trim_end_matches(":int"), word.ends_with(":int")))
            .unzip();
        Some(Self {
            first,
            columns,
            numbers,
        })
    }

    fn postgres(&self) -> String {
        let parameters: Vec<_> = (self.first..)
            .zip(&self.numbers)
            .map(|(n, number)| format!("${n}::{}[]", if *number { "bigint" } else { "text" }))
            .collect();
        let names = self.columns.join(", ");
        format!("unnest({}) AS r({names})", parameters.join(", "))
    }

    fn sqlite(&self, rows: usize) -> String {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(rows * self.columns.len() * 6 + 200);
        for (n, name) in self.columns.iter().enumerate() {
            let lead = if n == 0 { "(SELECT" } else { "," };
            // Writing to a String cannot fail.
            write!(text, "{lead} column{} AS {name}", n + 1).ok();
        }
        text.push_str(" FROM (VALUES ");
        let row = vec!["?"; self.columns.len()].join(",");
        for n in 0..rows {
            text.push_str(if n == 0 { "(" } else { "),(" });
            text.push_str(&row);
        }
        text.push_str("))) AS r");
        text
    }
}

impl Statement {
    /// A text with the marks of this module.
    pub const fn new(text: &'static str) -> Self {
        Self {
            text,
            postgres: OnceLock::new(),
            sqlite: OnceLock::new(),
            rows: OnceLock::new(),
        }
    }

    fn rows(&self) -> Option<&RowsMark> {
        self.rows.get_or_init(|| RowsMark::of(self.text)).as_ref()
    }

    fn postgres(&self) -> &str {
        self.postgres.get_or_init(|| {
            let text = unfold(self.text, "{each:", |p| {
                format!("unnest(ARRAY(SELECT jsonb_array_elements({p}::jsonb))) AS r(value)")
            });
            let texts = |p: &str| format!("ARRAY(SELECT jsonb_array_elements_text({p}::jsonb))");
            let text = unfold(&text, "{texts:", |p| {
                format!("unnest({}) AS r(value)", texts(p))
            });
            let text = unfold(&text, "{texts_as_s:", |p| {
                format!("unnest({}) AS s(value)", texts(p))
            });
            let text = unfold(&text, "{in:", |p| format!("= ANY({})", texts(p)));
            let text = unfold(&text, "{among:", |words| {
                let (p, key) = words.split_once(' ').unwrap_or((words, "id"));
                format!("= ANY(ARRAY(SELECT jsonb_array_elements({p}::jsonb)->>'{key}'))")
            });
            let text = unfold(&text, "{since:", |words| {
                let words: Vec<_> = words.split(' ').collect();
                format!("({}) > ({})", words[..2].join(", "), words[2..].join(", "))
            });
            let text = unfold(&text, "{share:", |table| format!("FOR SHARE OF {table}"));
            let text = unfold(&text, "{rows:", |_| {
                self.rows().map(RowsMark::postgres).unwrap_or_default()
            });
            text.replace("{skip_locked}", "FOR UPDATE SKIP LOCKED")
                .replace("{lock}", "FOR UPDATE")
        })
    }

    /// The text for so many rows, and whether it is worth being kept by the driver.
    fn for_sqlite(&self, rows: usize) -> (String, bool) {
        let text = self.sqlite();
        match self.rows() {
            None => (text.to_owned(), true),
            Some(mark) => {
                let text = moved(text, rows * mark.columns.len());
                let text = unfold(&text, "{rows:", |_| mark.sqlite(rows));
                (text, rows.is_multiple_of(100))
            }
        }
    }

    fn sqlite(&self) -> &str {
        self.sqlite.get_or_init(|| {
            let text = unfold(self.text, "{each:", |p| format!("json_each({p}) AS r"));
            let text = unfold(&text, "{texts:", |p| format!("json_each({p}) AS r"));
            let text = unfold(&text, "{texts_as_s:", |p| format!("json_each({p}) AS s"));
            let text = unfold(&text, "{in:", |p| {
                format!("IN (SELECT value FROM json_each({p}))")
            });
            let text = unfold(&text, "{among:", |_| "IS NOT NULL".to_owned());
            let text = unfold(&text, "{since:", |words| {
                let words: Vec<_> = words.split(' ').collect();
                format!("{} > {}", words[1], words[3])
            });
            let text = unfold(&text, "{share:", |_| String::new());
            text.replace("{skip_locked}", "").replace("{lock}", "")
        })
    }
}

/// The text with each parameter `$n` as `$n+by`. The values of rows have no names, which SQLite would look for in one long list, so that they come
/// first.
fn moved(text: &str, by: usize) -> String {
    let mut parts = text.split('$');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let number: usize = part[..digits].parse().unwrap_or(0);
        out.push('$');
        out.push_str(&(number + by).to_string());
        out.push_str(&part[digits..]);
    }
    out
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
    /// The rows of the mark `{rows:…}`: the last parameter.
    Rows(&'a Rows),
}

/// One value of many rows.
#[derive(Debug, Clone)]
enum Cell {
    Text(Option<String>),
    Int(Option<i64>),
}

/// Many rows, all of the same columns: for large sets cheaper than one JSON text, on both databases.
#[derive(Default)]
pub struct Rows {
    cells: Vec<Cell>,
    count: usize,
}

impl Rows {
    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Begins the next row.
    pub fn row(&mut self) -> &mut Self {
        self.count += 1;
        self
    }

    /// A text.
    pub fn text(&mut self, text: impl Into<String>) -> &mut Self {
        self.maybe_text(Some(text))
    }

    /// A text or NULL.
    pub fn maybe_text(&mut self, text: Option<impl Into<String>>) -> &mut Self {
        self.cells.push(Cell::Text(text.map(Into::into)));
        self
    }

    /// A number.
    pub fn int(&mut self, number: i64) -> &mut Self {
        self.cells.push(Cell::Int(Some(number)));
        self
    }
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
        /// Does the writer's connection wait for the disk at a commit? Only whoever holds that connection looks or writes here.
        waits: Arc<AtomicBool>,
        /// Who waits for it.
        line: Line,
    },
}

/// How soon a transaction has its turn at SQLite's one writer. PostgreSQL does not look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Somebody waits for the answer.
    Now,
    /// Work behind it.
    Soon,
    /// Batches.
    Later,
}

/// The line in front of the one writer. Of each later kind a few transactions at a time wait with those of the kind before, so that they have their
/// turn among them, but do not crowd them out: a sign-in waits for a few others, not for all that a batch has to write.
#[derive(Debug, Clone)]
pub struct Line {
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
type Place = [Option<OwnedSemaphorePermit>; 2];

impl Line {
    async fn place(&self, turn: Turn) -> Result<Place, Error> {
        async fn of(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
            match timeout(ACQUIRE, Arc::clone(places).acquire_owned()).await {
                Ok(Ok(place)) => Ok(place),
                // Never closed: it took too long.
                Ok(Err(_)) | Err(_) => Err(sqlx::Error::PoolTimedOut.into()),
            }
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

const ACQUIRE: Duration = Duration::from_secs(5);
/// How many rows SQLite's thread hands over before it waits for their reader.
const ROWS_AT_ONCE: usize = 1_024;
/// What the writer keeps of the file in memory: minus KiB. With less the pages that every insert touches are read again and again.
const WRITERS_CACHE: &str = "-65536";
/// After how many pages of 4 KiB the log is copied into the file: a page that many commits have changed is copied once.
const CHECKPOINT: &str = "8192";

impl Db {
    /// Opens `postgres://…` or `sqlite:PATH`; the file is made where there is none.
    pub async fn open(url: &str) -> Result<Self, Error> {
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let options = PgConnectOptions::from_str(url)?.options([
                ("statement_timeout", "15s"),
                ("lock_timeout", "10s"),
                // Statements are short and come again and again: compiling one takes longer than running it.
                ("jit", "off"),
                // Nothing is worth reading a whole table for, though a plan made while it was small says so.
                ("enable_seqscan", "off"),
            ]);
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
            .busy_timeout(ACQUIRE)
            .row_buffer_size(ROWS_AT_ONCE);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE)
            .connect_with(
                options
                    .clone()
                    .pragma("cache_size", WRITERS_CACHE)
                    .pragma("wal_autocheckpoint", CHECKPOINT),
            )
            .await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(ACQUIRE)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self::Sqlite {
            writer,
            readers,
            waits: Arc::new(AtomicBool::new(true)),
            line: Line::default(),
        })
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

    /// Begins a transaction that may write. Dropping it rolls back. Its commit survives everything.
    pub async fn begin(&self) -> Result<Tx, Error> {
        self.begin_waiting(true, Turn::Now).await
    }

    /// The same for a batch: it gives way to everybody else.
    pub async fn begin_later(&self) -> Result<Tx, Error> {
        self.begin_waiting(true, Turn::Later).await
    }

    /// The same for what nobody outside is told of, and what can be done again: on SQLite its commit does not wait for the disk. It survives the end
    /// of the process; a power cut may take it back, together with every later one, and never without them.
    pub async fn begin_repeatable(&self) -> Result<Tx, Error> {
        self.begin_waiting(false, Turn::Soon).await
    }

    /// The same for a batch: it gives way to everybody else.
    pub async fn begin_repeatable_later(&self) -> Result<Tx, Error> {
        self.begin_waiting(false, Turn::Later).await
    }

    async fn begin_waiting(&self, wait: bool, turn: Turn) -> Result<Tx, Error> {
        Ok(match self {
            Self::Postgres(pool) => Tx::of(Open::Postgres(pool.begin().await?), Place::default()),
            Self::Sqlite {
                writer,
                waits,
                line,
                ..
            } => {
                let place = line.place(turn).await?;
                let mut connection = writer.acquire().await?;
                if waits.load(Ordering::Relaxed) != wait {
                    let mode = if wait {
                        "PRAGMA synchronous = FULL"
                    } else {
                        "PRAGMA synchronous = NORMAL"
                    };
                    // Said after it is so: whoever is cut off in between does it again.
                    waits.store(false, Ordering::Relaxed);
                    sqlx::query(mode).execute(&mut *connection).await?;
                    waits.store(wait, Ordering::Relaxed);
                }
                // Immediate: a read that later turns into a write would otherwise fail as busy.
                let begin = Some("BEGIN IMMEDIATE".into_sql_str());
                let open = Open::Sqlite(sqlx::Transaction::begin(connection, begin).await?);
                Tx::of(open, place)
            }
        })
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
        self.write_waiting(true, statement, args).await
    }

    /// The same for what can be done again (see [`Db::begin_repeatable`]).
    pub async fn write_repeatable(
        &self,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        self.write_waiting(false, statement, args).await
    }

    async fn write_waiting(
        &self,
        wait: bool,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        match self {
            Self::Postgres(pool) => {
                fetch_postgres(&mut *pool.acquire().await?, statement, args).await
            }
            Self::Sqlite { .. } => {
                let turn = if wait { Turn::Now } else { Turn::Soon };
                let mut tx = self.begin_waiting(wait, turn).await?;
                let rows = tx.fetch(statement, args).await?;
                tx.commit().await?;
                Ok(rows)
            }
        }
    }

    /// Closes every connection.
    pub async fn close(&self) {
        match self {
            Self::Postgres(pool) => pool.close().await,
            Self::Sqlite {
                writer, readers, ..
            } => {
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
    _place: Place,
}

impl Tx {
    fn of(open: Open, place: Place) -> Self {
        Self {
            open,
            to_settle: BTreeSet::new(),
            _place: place,
        }
    }

    /// Nobody else writes meanwhile, so that there is nothing to lock.
    pub fn is_alone(&self) -> bool {
        matches!(self.open, Open::Sqlite(_))
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

    /// Runs a statement that gives no rows. Says how many it has written.
    pub async fn execute(&mut self, statement: &Statement, args: &[Arg<'_>]) -> Result<u64, Error> {
        Ok(match &mut self.open {
            Open::Postgres(tx) => postgres_query(statement, args)
                .execute(&mut **tx)
                .await?
                .rows_affected(),
            Open::Sqlite(tx) => sqlite_query(statement, args)
                .execute(&mut **tx)
                .await?
                .rows_affected(),
        })
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

type PgQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;
type SqliteQuery<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// Binds a parameter to either kind of query, which have no trait in common.
macro_rules! bound {
    ($query:ident, $arg:expr, $rows:pat => $otherwise:expr) => {
        match $arg {
            Arg::Text(v) => $query.bind(v.to_owned()),
            Arg::MaybeText(v) => $query.bind(v.map(str::to_owned)),
            Arg::Int(v) => $query.bind(v),
            Arg::MaybeInt(v) => $query.bind(v),
            $rows => $otherwise,
        }
    };
}

fn postgres_query<'q>(statement: &'q Statement, args: &[Arg<'_>]) -> PgQuery<'q> {
    // The texts are constants of this crate; values travel as parameters only.
    let mut query = sqlx::query(AssertSqlSafe(statement.postgres().to_owned()));
    for arg in args {
        query = bound!(query, *arg, Arg::Rows(rows) => with_columns(query, statement, rows));
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

fn sqlite_query<'q>(statement: &Statement, args: &[Arg<'_>]) -> SqliteQuery<'q> {
    let rows = args.iter().find_map(|arg| match arg {
        Arg::Rows(rows) => Some(*rows),
        _ => None,
    });
    let (text, kept) = statement.for_sqlite(rows.map_or(0, Rows::count));
    let mut query = sqlx::query(AssertSqlSafe(text)).persistent(kept);
    for cell in rows.iter().flat_map(|rows| &rows.cells) {
        query = match cell {
            Cell::Text(v) => query.bind(v.clone()),
            Cell::Int(v) => query.bind(*v),
        };
    }
    for arg in args {
        query = bound!(query, *arg, Arg::Rows(_) => query);
    }
    query
}

async fn fetch_postgres(
    connection: &mut sqlx::PgConnection,
    statement: &Statement,
    args: &[Arg<'_>],
) -> Result<Vec<Row>, Error> {
    let rows = postgres_query(statement, args)
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(Row::Postgres).collect())
}

async fn fetch_sqlite(
    connection: &mut sqlx::SqliteConnection,
    statement: &Statement,
    args: &[Arg<'_>],
) -> Result<Vec<Row>, Error> {
    let rows = sqlite_query(statement, args).fetch_all(connection).await?;
    Ok(rows.into_iter().map(Row::Sqlite).collect())
}

#[cfg(test)]
mod tests {
    use super::Statement;

    #[test]
    fn marks_are_filled_in_for_each_database() {
        let s = Statement::new("SELECT 1 FROM {each:$2} JOIN {texts:$1} {skip_locked}");
        assert_eq!(
            s.postgres(),
            "SELECT 1 FROM unnest(ARRAY(SELECT jsonb_array_elements($2::jsonb))) AS r(value) \
             JOIN unnest(ARRAY(SELECT jsonb_array_elements_text($1::jsonb))) AS r(value) FOR UPDATE SKIP LOCKED"
        );
        assert_eq!(
            s.sqlite(),
            "SELECT 1 FROM json_each($2) AS r JOIN json_each($1) AS r "
        );
        let s = Statement::new(
            "SELECT 1 FROM p JOIN u ON {since:p.user_id p.id u.id $2} WHERE p.id {in:$1}",
        );
        assert_eq!(
            s.postgres(),
            "SELECT 1 FROM p JOIN u ON (p.user_id, p.id) > (u.id, $2) WHERE p.id = ANY(ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))"
        );
        assert_eq!(
            s.sqlite(),
            "SELECT 1 FROM p JOIN u ON p.id > $2 WHERE p.id IN (SELECT value FROM json_each($1))"
        );
        let s = Statement::new("SELECT 1 FROM p WHERE p.id {among:$1 id}");
        assert_eq!(
            s.postgres(),
            "SELECT 1 FROM p WHERE p.id = ANY(ARRAY(SELECT jsonb_array_elements($1::jsonb)->>'id'))"
        );
        assert_eq!(s.sqlite(), "SELECT 1 FROM p WHERE p.id IS NOT NULL");
        let s = Statement::new("SELECT id FROM {rows:2 id line:int} WHERE line > $1");
        assert_eq!(
            s.postgres(),
            "SELECT id FROM unnest($2::text[], $3::bigint[]) AS r(id, line) WHERE line > $1"
        );
        assert_eq!(
            s.for_sqlite(2).0,
            "SELECT id FROM (SELECT column1 AS id, column2 AS line FROM (VALUES (?,?),(?,?))) AS r WHERE line > $5"
        );
    }
}
