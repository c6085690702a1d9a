//! SQLite's log on the disk, waited for beside the writer.
//!
//! A commit that SQLite itself waits for keeps the writer as long as the disk takes. Where nobody is told of a commit before it returns, it goes into
//! the log, the next transaction begins, and one wait for the disk serves all that were made before it.
//!
//! The system tells a failed write once, to whoever waits first, and takes what was to be written for clean (fsync(2)). What a later wait says of it is
//! worth nothing, so a failure stays.

use super::Error;
use super::sqlite::in_place;
use crate::courtesy::Courtesy;
use rusqlite::Connection;
use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

type Wait = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The log of one database.
pub(super) struct Log {
    /// Waits until what was written to the log is on the disk.
    wait: Wait,
    /// The same for what nobody waits for, by a file handle of its own: each is told of a failure, so that this one takes it from nobody.
    empty: Wait,
    /// How many commits were made that are waited for here.
    made: AtomicU64,
    /// How many of them are on the disk.
    safe: Mutex<u64>,
    failed: AtomicBool,
    /// Who waits at a screen for a commit to be safe.
    courtesy: Courtesy,
    /// Is what batches write on its way to the disk?
    emptying: AtomicBool,
}

impl Log {
    /// The log of a database that has one already.
    pub(super) fn of(connection: &Connection) -> Result<Self, Error> {
        let path = format!("{}-wal", connection.path().unwrap_or_default());
        // SQLite keeps no locks on the log, and removes it only with the last connection.
        let open = || OpenOptions::new().read(true).write(true).open(&path);
        let waiter = || {
            let file = open().map_err(sqlx::Error::Io)?;
            Ok::<_, Error>(move || file.sync_data())
        };
        Ok(Self::waiting(waiter()?, waiter()?))
    }

    fn waiting(
        wait: impl Fn() -> io::Result<()> + Send + Sync + 'static,
        empty: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            wait: Box::new(wait),
            empty: Box::new(empty),
            made: AtomicU64::new(0),
            safe: Mutex::new(0),
            failed: AtomicBool::new(false),
            courtesy: Courtesy::default(),
            emptying: AtomicBool::new(false),
        }
    }

    /// A commit was made, by whoever has the writer. Gives its number.
    pub(super) fn note(&self) -> u64 {
        self.made.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Waits until this commit is on the disk, and with it those before.
    pub(super) async fn safe(&self, commit: u64) -> Result<(), Error> {
        let mut safe = self.safe.lock().await;
        if *safe < commit {
            *safe = self.wait()?;
        }
        self.intact()
    }

    /// Waits until everything that was noted is on the disk.
    pub(super) async fn noted_safe(&self) -> Result<(), Error> {
        self.safe(self.made.load(Ordering::Acquire)).await
    }

    /// Waits until everything that anybody has written is on the disk, in this process or another one.
    pub(super) async fn all_safe(&self) -> Result<(), Error> {
        let mut safe = self.safe.lock().await;
        *safe = self.wait()?;
        Ok(())
    }

    /// Somebody at a screen waits, and more of them are expected.
    pub(super) fn somebody_waits(&self) {
        self.courtesy.somebody_waits();
    }

    /// Does somebody at a screen wait, now and then?
    pub(super) fn is_awaited(&self) -> bool {
        self.courtesy.is_asked()
    }

    /// A batch has committed without a wait. The next wait for the disk is for its pages, too: while somebody waits they go there before, beside
    /// everything else. While nobody does, waiting for the disk more often than there is need takes a twentieth of the rate.
    pub(super) fn empty(self: &Arc<Self>) {
        if self.courtesy.is_asked() && !self.emptying.swap(true, Ordering::AcqRel) {
            let log = Arc::clone(self);
            spawn_blocking(move || {
                if let Err(error) = (log.empty)() {
                    log.fail(&error);
                }
                log.emptying.store(false, Ordering::Release);
            });
        }
    }

    /// How many commits were noted, and how many of them are on the disk.
    #[cfg(test)]
    pub(super) async fn counts(&self) -> (u64, u64) {
        (self.made.load(Ordering::Acquire), *self.safe.lock().await)
    }

    fn wait(&self) -> Result<u64, Error> {
        self.intact()?;
        let made = self.made.load(Ordering::Acquire);
        if let Err(error) = in_place(|| (self.wait)()) {
            self.fail(&error);
            return Err(sqlx::Error::Io(error).into());
        }
        Ok(made)
    }

    /// The disk has not taken what was written, and nothing that comes after it would last.
    pub(super) fn fail(&self, error: &(dyn std::error::Error + 'static)) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                error,
                "the disk has not taken what was written; this process uses its database no more and must be started anew"
            );
        }
    }

    /// An error once the disk has failed.
    pub(super) fn intact(&self) -> Result<(), Error> {
        if self.failed.load(Ordering::Acquire) {
            return Err(sqlx::Error::PoolClosed.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Log;
    use std::io::{Error, ErrorKind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    fn counting(waits: &Arc<AtomicU64>) -> impl Fn() -> Result<(), Error> + use<> {
        let waits = Arc::clone(waits);
        move || {
            waits.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    #[tokio::test]
    async fn one_wait_serves_all_that_came_before_it() {
        let waits = Arc::new(AtomicU64::new(0));
        let log = Log::waiting(counting(&waits), || Ok(()));
        let (first, second) = (log.note(), log.note());
        log.safe(second).await.unwrap();
        log.safe(first).await.unwrap();
        log.noted_safe().await.unwrap();
        assert_eq!(waits.load(Ordering::Relaxed), 1);
        let third = log.note();
        log.safe(third).await.unwrap();
        assert_eq!(waits.load(Ordering::Relaxed), 2);
        log.all_safe().await.unwrap();
        assert_eq!(waits.load(Ordering::Relaxed), 3, "others write too");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_is_told_before_the_disk_answers() {
        let (answer, answers) = mpsc::channel::<()>();
        let answers = std::sync::Mutex::new(answers);
        let wait = move || {
            let answer = answers.lock().unwrap().recv();
            answer.map_err(|_| ErrorKind::Other.into())
        };
        let log = Arc::new(Log::waiting(wait, || Ok(())));
        let one = log.note();
        let waiting = tokio::spawn({
            let log = Arc::clone(&log);
            async move { log.safe(one).await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        answer.send(()).unwrap();
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_failure_is_told_once_by_the_system_and_to_everybody_by_us() {
        let failed = AtomicU64::new(0);
        let wait = move || {
            if failed.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(Error::from(ErrorKind::StorageFull));
            }
            Ok(())
        };
        let log = Log::waiting(wait, || Ok(()));
        let (first, second) = (log.note(), log.note());
        assert!(log.safe(first).await.is_err());
        assert!(
            log.safe(second).await.is_err(),
            "it was lost with the first"
        );
        assert!(log.all_safe().await.is_err());
        assert!(log.intact().is_err());
    }

    /// Empties it, to the end.
    async fn empty(log: &Arc<Log>) {
        log.empty();
        while log.emptying.load(Ordering::Acquire) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn what_a_batch_has_written_goes_to_the_disk_before_somebody_must_wait_for_it() {
        let waits = Arc::new(AtomicU64::new(0));
        let log = Arc::new(Log::waiting(|| Ok(()), counting(&waits)));
        let emptied = async || {
            empty(&log).await;
            waits.load(Ordering::Relaxed)
        };
        assert_eq!(emptied().await, 0, "nobody waits");
        log.somebody_waits();
        assert_eq!(emptied().await, 1);
        assert_eq!(emptied().await, 2);
    }

    #[tokio::test]
    async fn a_failure_beside_everything_else_stays_too() {
        let failing = || Err(Error::from(ErrorKind::StorageFull));
        let log = Arc::new(Log::waiting(|| Ok(()), failing));
        log.somebody_waits();
        empty(&log).await;
        assert!(log.safe(log.note()).await.is_err());
    }
}
