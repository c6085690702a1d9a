//! SQLite, in the thread that asks.
//!
//! Most statements take some ten microseconds. A thread of its own to run them must be woken, and must wake whoever waits, for each of them, which
//! takes several times as long. So they run where they are asked for. Those with many values, which belong to batches, and those that look at many rows
//! ([`Statement::long`]) tell the runtime first that they keep their thread for a while.

use super::checkpoints::{self, Copier, WRITERS_LIMIT};
use super::log::Log;
use super::statement::pieces;
use super::turns::{Line, Place, Turn, in_time};
use super::values::Cell;
use super::{ACQUIRE, Arg, Error, Row, Statement};
use rusqlite::types::{ToSql, Value};
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// How many may read at once.
const READERS: usize = 4;
/// How many statements a connection keeps prepared: more than there are.
const PREPARED: usize = 512;
/// What the writer keeps of the file in memory: minus KiB. With less the pages that every insert touches are read again and again.
const WRITERS_CACHE: i64 = -65_536;
/// How long until another process is asked again to let this one write.
const BUSY: Duration = Duration::from_millis(5);
/// From how many bytes of values on a statement may take milliseconds.
const LARGE: usize = 4_096;

/// When the disk is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    /// Before anybody else sees the commit, or writes.
    Within,
    /// Before the commit returns; others read and write meanwhile.
    Beside,
    /// By whoever is next to wait.
    Never,
}

/// The one connection that writes.
pub(super) struct Writer {
    connection: Connection,
    /// Does it wait for the disk at a commit?
    waits: bool,
}

impl Writer {
    fn open(path: &Path) -> Result<Self, Error> {
        let writable = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let connection = connect(path, writable)?;
        let mode = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        let mode = connection.pragma_update_and_check(None, "journal_mode", "WAL", mode)?;
        if mode != "wal" {
            return Err(sqlx::Error::Configuration(
                "its file system cannot hold SQLite's log".into(),
            )
            .into());
        }
        // NORMAL would lose the last commits at a power cut, and each of them has been answered with 202.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", WRITERS_CACHE)?;
        connection.pragma_update(None, "wal_autocheckpoint", WRITERS_LIMIT)?;
        // The log is made at the first look at the file.
        connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |_| Ok(()))?;
        // Whoever writes waits without keeping a thread.
        connection.busy_timeout(Duration::ZERO)?;
        Ok(Self {
            connection,
            waits: true,
        })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// `false`: another process writes.
    fn begin(&mut self, flush: Flush) -> Result<bool, Error> {
        if !self.connection.is_autocommit() {
            // The last one could not be rolled back then.
            self.connection.execute_batch("ROLLBACK")?;
        }
        let wait = flush == Flush::Within;
        if self.waits != wait {
            let mode = if wait { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", mode)?;
            self.waits = wait;
        }
        // Immediate: a read that later turns into a write would otherwise fail as busy.
        match say(&self.connection, "BEGIN IMMEDIATE") {
            Ok(()) => Ok(true),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Where the writer is when nobody writes; nowhere once the database is closed. Whoever waits for it gets it in the order of asking.
pub(super) type Desk = Arc<Mutex<Option<Writer>>>;

/// A SQLite file: any number of readers, one writer.
#[derive(Clone)]
pub struct Sqlite(Arc<Inner>);

struct Inner {
    path: PathBuf,
    writer: Desk,
    line: Line,
    log: Arc<Log>,
    /// Who may read, and with what: readers see the last commit.
    places: Semaphore,
    readers: std::sync::Mutex<Vec<Connection>>,
    /// Changes with every commit, to `true` with the end of the database.
    committed: watch::Sender<bool>,
}

fn gone() -> Error {
    sqlx::Error::PoolClosed.into()
}

fn failure(code: i32) -> Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()
}

/// The path of `sqlite:PATH`.
fn path_of(url: &str) -> Result<PathBuf, Error> {
    let (path, parameters) = url.split_once('?').unwrap_or((url, ""));
    let path = path.trim_start_matches("sqlite:").trim_start_matches("//");
    if path.is_empty() || path == ":memory:" || !["", "mode=rw", "mode=rwc"].contains(&parameters) {
        return Err(Error::Path);
    }
    Ok(SqliteConnectOptions::from_str(url)?
        .get_filename()
        .to_owned())
}

impl Sqlite {
    /// Opens `sqlite:PATH`; the file is made where there is none.
    pub(super) async fn open(url: &str) -> Result<Self, Error> {
        let path = path_of(url)?;
        let opening = spawn_blocking(move || {
            let writer = Writer::open(&path)?;
            let readers = (0..READERS)
                .map(|_| connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY))
                .collect::<Result<_, _>>()?;
            let log = Arc::new(Log::of(writer.connection())?);
            let copier = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            let copier = Copier::open(copier, &path, Arc::clone(&log))?;
            Ok::<_, Error>((path, writer, readers, copier, log))
        });
        let (path, writer, readers, copier, log) = opening.await.map_err(|_| Error::Stopped)??;
        let writer = Arc::new(Mutex::new(Some(writer)));
        let (committed, commits) = watch::channel(false);
        let desk = Arc::clone(&writer);
        tokio::spawn(checkpoints::keep_log_short(commits, desk, copier));
        Ok(Self(Arc::new(Inner {
            path,
            writer,
            line: Line::default(),
            log,
            places: Semaphore::new(READERS),
            readers: std::sync::Mutex::new(readers),
            committed,
        })))
    }

    /// Brings the schema up to date. Nobody writes meanwhile.
    pub(super) async fn migrate(&self) -> Result<(), Error> {
        let _turn = self.turn(Turn::Now).await?;
        let options = SqliteConnectOptions::new().filename(&self.0.path);
        let mut connection = options.busy_timeout(ACQUIRE).connect().await?;
        sqlx::migrate!("../migrations/sqlite")
            .run(&mut connection)
            .await?;
        sqlx::Connection::close(connection).await?;
        Ok(())
    }

    async fn turn(&self, turn: Turn) -> Result<(Place, OwnedMutexGuard<Option<Writer>>), Error> {
        let place = self.0.line.place(turn).await?;
        let writer = Arc::clone(&self.0.writer).lock_owned();
        Ok((place, in_time(writer).await?))
    }

    pub(super) async fn begin(&self, flush: Flush, turn: Turn) -> Result<Transaction, Error> {
        let (place, mut writer) = self.turn(turn).await?;
        self.0.log.intact()?;
        let one = writer.as_mut().ok_or_else(gone)?;
        let since = Instant::now();
        while !one.begin(flush)? {
            if since.elapsed() > ACQUIRE {
                return Err(failure(ffi::SQLITE_BUSY));
            }
            sleep(BUSY).await;
        }
        Ok(Transaction {
            writer,
            database: Arc::clone(&self.0),
            flush,
            turn,
            _place: place,
        })
    }

    pub(super) fn log(&self) -> &Log {
        &self.0.log
    }

    /// Reads outside a transaction.
    pub(super) async fn fetch(
        &self,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Error> {
        self.0.log.intact()?;
        let place = in_time(self.0.places.acquire()).await?;
        let _place = place.map_err(|_| gone())?;
        let connection = self.0.idle().pop().ok_or_else(gone)?;
        let reader = Reader(&self.0, Some(connection));
        let connection = reader.1.as_ref().ok_or_else(gone)?;
        fetch(connection, statement, args)
    }

    /// Closes every connection, the last of which copies the log into the file.
    pub(super) async fn close(&self) {
        // Those who read end first. An error says that it is closed already.
        let everybody = u32::try_from(READERS).unwrap_or(u32::MAX);
        let readers = self.0.places.acquire_many(everybody).await;
        self.0.places.close();
        self.0.idle().clear();
        drop(readers);
        let writer = self.0.writer.lock().await.take();
        self.0.committed.send_replace(true);
        self.0.committed.closed().await;
        drop(writer);
    }
}

impl Inner {
    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that reads, given back whatever happens.
struct Reader<'a>(&'a Inner, Option<Connection>);

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.0.idle().extend(self.1.take());
    }
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, Error> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(ACQUIRE)?;
    connection.set_prepared_statement_cache_capacity(PREPARED);
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

/// One of the words of transactions.
fn say(connection: &Connection, word: &str) -> Result<(), rusqlite::Error> {
    connection.prepare_cached(word)?.raw_execute().map(|_| ())
}

/// A transaction of the writer. Dropping it rolls back.
pub(super) struct Transaction {
    writer: OwnedMutexGuard<Option<Writer>>,
    database: Arc<Inner>,
    flush: Flush,
    turn: Turn,
    _place: Place,
}

impl Transaction {
    fn connection(&self) -> Result<&Connection, Error> {
        let writer = self.writer.as_ref().ok_or_else(gone)?;
        if writer.connection.is_autocommit() {
            // It is over; or SQLite has rolled it back by itself, at a full disk, and what follows must not be written alone.
            return Err(failure(ffi::SQLITE_ABORT));
        }
        Ok(&writer.connection)
    }

    pub(super) fn fetch(&self, statement: &Statement, args: &[Arg<'_>]) -> Result<Vec<Row>, Error> {
        fetch(self.connection()?, statement, args)
    }

    pub(super) fn execute(&self, statement: &Statement, args: &[Arg<'_>]) -> Result<u64, Error> {
        let connection = self.connection()?;
        let mut written = 0;
        run(connection, statement, args, |prepared| {
            written += prepared.raw_execute()? as u64;
            Ok(())
        })?;
        Ok(written)
    }

    /// Does it belong to a batch?
    pub(super) fn is_later(&self) -> bool {
        self.turn == Turn::Later
    }

    /// Does the commit wait for nothing but the disk, and keep its thread for it?
    pub(super) fn commits_at_once(&self) -> bool {
        self.flush != Flush::Beside
    }

    pub(super) async fn commit(self) -> Result<(), Error> {
        let database = Arc::clone(&self.database);
        if let Err(error) = say(self.connection()?, "COMMIT") {
            let code = error.sqlite_error().map(|error| error.extended_code);
            if code == Some(ffi::SQLITE_IOERR_FSYNC) {
                database.log.fail(&error);
            }
            return Err(error.into());
        }
        let (flush, turn) = (self.flush, self.turn);
        let number = (flush == Flush::Beside).then(|| database.log.note());
        database.committed.send_replace(false);
        drop(self);
        if let Some(number) = number {
            if turn == Turn::Now {
                database.log.somebody_waits();
            }
            return database.log.safe(number).await;
        }
        if flush == Flush::Never && turn == Turn::Later {
            database.log.empty();
        }
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Ok(connection) = self.connection()
            && let Err(error) = connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
    }
}

fn fetch(
    connection: &Connection,
    statement: &Statement,
    args: &[Arg<'_>],
) -> Result<Vec<Row>, Error> {
    let mut found = Vec::new();
    run(connection, statement, args, |prepared| {
        let mut names: Option<Arc<[String]>> = None;
        let mut rows = prepared.raw_query();
        while let Some(row) = rows.next()? {
            let names = names.get_or_insert_with(|| {
                let names = row.as_ref().column_names().into_iter();
                names.map(str::to_owned).collect()
            });
            let values = (0..names.len())
                .map(|n| row.get(n))
                .collect::<Result<_, _>>()?;
            found.push(Row::Sqlite(SqliteRow {
                names: Arc::clone(names),
                values,
            }));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Runs a statement, for many rows piece by piece, and says so to the runtime where it is large.
fn run(
    connection: &Connection,
    statement: &Statement,
    args: &[Arg<'_>],
    mut with: impl FnMut(&mut rusqlite::Statement<'_>) -> Result<(), rusqlite::Error>,
) -> Result<(), Error> {
    let rows = args.iter().find_map(|arg| match arg {
        Arg::Rows(rows) => Some(*rows),
        _ => None,
    });
    let mut one = |text: &str, cells: &[Cell]| {
        let mut prepared = connection.prepare_cached(text)?;
        bind(&mut prepared, cells, args)?;
        with(&mut prepared)
    };
    let mut work = || {
        let Some(rows) = rows else {
            return one(statement.sqlite(), &[]);
        };
        let columns = statement.rows().map_or(0, |mark| mark.numbers.len());
        if rows.cells.len() != rows.count() * columns {
            return Err(rusqlite::Error::InvalidParameterCount(
                rows.cells.len(),
                columns,
            ));
        }
        let mut left = rows.cells.as_slice();
        for (piece, count) in pieces(rows.count()) {
            let (cells, rest) = left.split_at(count * columns);
            one(statement.for_rows(piece), cells)?;
            left = rest;
        }
        Ok(())
    };
    if statement.is_long() || size(args) > LARGE {
        in_place(work)?;
    } else {
        work()?;
    }
    Ok(())
}

/// Does something that keeps its thread for a while, and says so to the runtime.
pub(super) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn size(args: &[Arg<'_>]) -> usize {
    let of = |arg: &Arg<'_>| match arg {
        Arg::Text(text) | Arg::MaybeText(Some(text)) => text.len(),
        Arg::MaybeText(None) | Arg::Int(_) | Arg::MaybeInt(_) => 0,
        // Its values are bound as they are: what takes long is how many there are. A few pushes are written sooner than another thread is woken.
        Arg::Rows(rows) => rows.cells.len() * size_of::<i64>(),
    };
    args.iter().map(of).sum()
}

/// The values of rows have no names and are bound in their order, the others by their numbers.
fn bind(
    prepared: &mut rusqlite::Statement<'_>,
    cells: &[Cell],
    args: &[Arg<'_>],
) -> Result<(), rusqlite::Error> {
    let mut next = cells.iter();
    for place in 1..=prepared.parameter_count() {
        let number = match prepared.parameter_name(place) {
            None => None,
            Some(name) => name.trim_start_matches('$').parse::<usize>().ok(),
        };
        match number {
            None => match next.next() {
                Some(cell) => prepared.raw_bind_parameter(place, cell)?,
                None => return Err(rusqlite::Error::InvalidParameterCount(place, cells.len())),
            },
            Some(number) => match number
                .checked_sub(cells.len() + 1)
                .and_then(|n| args.get(n))
            {
                Some(arg) => prepared.raw_bind_parameter(place, arg)?,
                None => return Err(rusqlite::Error::InvalidParameterCount(number, args.len())),
            },
        }
    }
    Ok(())
}

impl ToSql for Arg<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        match self {
            Arg::Text(text) => text.to_sql(),
            Arg::MaybeText(text) => text.to_sql(),
            Arg::Int(number) => number.to_sql(),
            Arg::MaybeInt(number) => number.to_sql(),
            // They are bound one by one.
            Arg::Rows(_) => Ok(rusqlite::types::Null.into()),
        }
    }
}

impl ToSql for Cell {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        match self {
            Cell::Text(text) => text.to_sql(),
            Cell::Int(number) => number.to_sql(),
        }
    }
}

/// One row of an answer.
pub struct SqliteRow {
    names: Arc<[String]>,
    values: Vec<Value>,
}

impl SqliteRow {
    fn value(&self, column: &str) -> Result<&Value, Error> {
        let place = self.names.iter().position(|name| name == column);
        let value = place.and_then(|n| self.values.get(n));
        value.ok_or_else(|| rusqlite::Error::InvalidColumnName(column.to_owned()).into())
    }

    pub(super) fn text(&self, column: &str) -> Result<Option<String>, Error> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text.clone())),
            other => Err(unlike(column, other)),
        }
    }

    pub(super) fn int(&self, column: &str) -> Result<Option<i64>, Error> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Integer(number) => Ok(Some(*number)),
            other => Err(unlike(column, other)),
        }
    }
}

/// The column holds another kind of value, or none.
pub(super) fn unlike(column: &str, found: &Value) -> Error {
    rusqlite::Error::InvalidColumnType(0, column.to_owned(), found.data_type()).into()
}

#[cfg(test)]
mod tests {
    use super::{Flush, Sqlite, Turn};
    use crate::store::db::Statement;

    static MAKE: Statement = Statement::new("CREATE TABLE t (n BIGINT)");
    static ADD: Statement = Statement::new("INSERT INTO t VALUES (1)");

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_commit_beside_the_writer_returns_when_it_is_safe_and_a_failed_disk_ends_everything()
    {
        let folder =
            std::env::temp_dir().join(format!("countersign-beside-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let url = format!("sqlite:{}", folder.join("store.db").display());
        let db = Sqlite::open(&url).await.unwrap();
        let write = async |statement: &Statement, flush| {
            let tx = db.begin(flush, Turn::Now).await?;
            tx.execute(statement, &[])?;
            tx.commit().await
        };
        write(&MAKE, Flush::Within).await.unwrap();
        write(&ADD, Flush::Never).await.unwrap();
        assert_eq!(
            db.log().counts().await,
            (0, 0),
            "nobody waits here for these"
        );
        for n in 1..=3 {
            write(&ADD, Flush::Beside).await.unwrap();
            assert_eq!(db.log().counts().await, (n, n));
        }
        db.log()
            .fail(&std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(write(&ADD, Flush::Within).await.is_err());
        assert!(db.fetch(&ADD, &[]).await.is_err());
        db.close().await;
        std::fs::remove_dir_all(folder).unwrap();
    }
}
