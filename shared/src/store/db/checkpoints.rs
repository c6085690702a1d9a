//! SQLite's log is copied into its file beside the writer, not by it.
//!
//! Left to itself SQLite copies the log in the commit that finds it long enough: whoever makes that commit waits for thousands of pages to reach the
//! disk, and so does everybody behind. Here a connection of its own copies while others write, and waits for the disk too. What is written meanwhile is
//! left over, and a log that is not copied whole is never begun anew; so the last of it, which is short by then, is copied in a turn at the writer.
//!
//! The writer's own limit stays as a bound for the case that this task cannot work.

use super::Error;
use super::log::Log;
use super::sqlite::Desk;
use rusqlite::Connection;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// How long the log may become before it is copied, in pages of 4 KiB: a page that many commits have changed is copied once.
const LONG: i64 = 8_192;
/// How much of it is copied at once while somebody waits: whoever must wait for the disk waits for what is being copied, too.
const PORTION: i64 = 512;
/// What is short enough for a turn at the writer.
const SHORT: i64 = 256;
/// How often what was written meanwhile is copied before the writer waits for it.
const ROUNDS: u32 = 8;
/// How long commits are gathered before the length of the log is looked at.
const GATHER: Duration = Duration::from_millis(20);
/// When the writer copies by itself, in pages.
pub(super) const WRITERS_LIMIT: i64 = 65_536;

/// What copies.
pub(super) struct Copier {
    connection: Connection,
    /// The same file, to wait for what is written to it. SQLite itself waits only where nothing was committed meanwhile. It is never closed: a process
    /// that closes a file loses the locks that its other handles hold on it (fcntl(2)), and with them the database.
    file: &'static File,
    log: Arc<Log>,
    /// How long the log becomes until a turn at the writer is taken.
    next_turn: i64,
}

impl Copier {
    pub(super) fn open(connection: Connection, path: &Path, log: Arc<Log>) -> Result<Self, Error> {
        let file = File::open(path).map_err(sqlx::Error::Io)?;
        let file = Box::leak(Box::new(file));
        Ok(Self {
            connection,
            file,
            log,
            next_turn: LONG,
        })
    }

    /// `true`: the log is long, what is left of it is short or never will be, and nobody has tried yet to have it begun anew.
    fn copy(&mut self) -> Result<bool, Error> {
        let portion = if self.log.is_awaited() { PORTION } else { LONG };
        let mut log = Length::of(&self.connection, "NOOP")?;
        if log.whole < LONG {
            self.next_turn = LONG;
        }
        if log.left < portion && log.whole < self.next_turn {
            return Ok(false);
        }
        for _ in 0..ROUNDS {
            Length::of(&self.connection, "PASSIVE")?;
            if let Err(error) = self.file.sync_data() {
                self.log.fail(&error);
                return Err(sqlx::Error::Io(error).into());
            }
            let before = log.left;
            log = Length::of(&self.connection, "NOOP")?;
            // Little was written while the disk was waited for; or somebody reads what the log says, and it cannot be copied.
            if log.left <= SHORT || log.left >= before {
                break;
            }
        }
        let due = log.whole >= self.next_turn;
        if due {
            // Whoever reads what it says keeps it as it is: it grows, and is copied, and has its turn again when it is longer.
            self.next_turn = log.whole + LONG;
        }
        Ok(due)
    }
}

/// Copies the log in portions, and has it begun anew whenever it is long, until the database is closed.
pub(super) async fn keep_log_short(
    mut committed: watch::Receiver<bool>,
    writer: Desk,
    mut copier: Copier,
) {
    while committed.changed().await.is_ok() && !*committed.borrow() {
        sleep(GATHER).await;
        let copying = spawn_blocking(move || (copier.copy(), copier));
        // A panic was already shown. The writer's limit holds from now on.
        let Ok((copied, back)) = copying.await else {
            return;
        };
        copier = back;
        let turn = match copied {
            Ok(false) => continue,
            Ok(true) => Arc::clone(&writer).lock_owned().await,
            Err(error) => {
                warn(&error);
                continue;
            }
        };
        let copying = spawn_blocking(move || {
            let writer = turn.as_ref()?;
            Some(Length::of(writer.connection(), "PASSIVE"))
        });
        match copying.await {
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(error))) => warn(&error),
            Ok(None) | Err(_) => break,
        }
    }
    // Whoever closes the database waits for the end of `committed`, which is the last to go.
    drop(copier);
    drop(writer);
}

fn warn(error: &Error) {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "the log of the database could not be copied into its file yet"
    );
}

/// How long the log is, in pages.
struct Length {
    whole: i64,
    /// Not in the file yet.
    left: i64,
}

impl Length {
    /// After a checkpoint of this kind.
    fn of(connection: &Connection, kind: &str) -> Result<Self, Error> {
        let text = format!("PRAGMA wal_checkpoint({kind})");
        let read = |row: &rusqlite::Row<'_>| {
            let whole: i64 = row.get(1)?;
            let left = whole - row.get::<_, i64>(2)?;
            Ok(Self { whole, left })
        };
        Ok(connection.query_row(&text, [], read)?)
    }
}
