//! SQLite's log is copied into its file while others write, and begun anew.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

use shared::store::Db;
use shared::store::db::{Arg, Row, Statement};
use std::path::Path;
use std::time::Duration;

static FILL: Statement = Statement::new(
    "INSERT INTO outbox (id, message, lease_until)
     SELECT $1 || r.value, $2, 0 FROM {each:$3}",
);
static FIRST: Statement = Statement::new("SELECT id FROM outbox LIMIT 1");
static COUNT: Statement =
    Statement::new("SELECT COUNT(*) AS n, SUM(LENGTH(message)) AS bytes FROM outbox");

/// Rows of one commit, and the length of each: 4 MiB.
const ROWS: usize = 512;
const LENGTH: usize = 8_192;
/// How many commits are tried: 400 MiB. Without the task the log would have become 256 MiB long, the writer's own limit.
const COMMITS: usize = 100;

fn log_of(folder: &Path) -> u64 {
    std::fs::metadata(folder.join("store.db-wal")).map_or(0, |log| log.len())
}

async fn write(db: &Db, n: usize) {
    let (name, message) = (format!("{n}-"), "x".repeat(LENGTH));
    let ids = serde_json::to_string(&(0..ROWS).collect::<Vec<_>>()).unwrap();
    let mut tx = db.begin_repeatable_later().await.unwrap();
    let args = [Arg::Text(&name), Arg::Text(&message), Arg::Text(&ids)];
    tx.fetch(&FILL, &args).await.unwrap();
    tx.commit().await.unwrap();
}

async fn rows(db: &Db) -> (i64, i64) {
    let found = db.fetch(&COUNT, &[]).await.unwrap();
    let of = |row: &Row| (row.int("n").unwrap(), row.int("bytes").unwrap());
    of(&found[0])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_stays_short_while_others_write_and_nothing_of_it_is_lost() {
    let folder = std::env::temp_dir().join(format!("countersign-log-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let url = format!("sqlite:{}", folder.join("store.db").display());
    let db = Db::open(&url).await.unwrap();
    db.migrate().await.unwrap();
    let reading = tokio::spawn({
        let db = db.clone();
        async move {
            // Whoever reads holds the log where it is, for a moment.
            while db.fetch(&FIRST, &[]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    // Begun anew at least twice: three times as much is written as the log is long.
    let mut written = 0;
    for n in 0..COMMITS {
        write(&db, n).await;
        written += 1;
        if written >= 40 && (written * ROWS * LENGTH) as u64 > 3 * log_of(&folder) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (bytes, log) = ((written * ROWS * LENGTH) as u64, log_of(&folder));
    assert!(
        bytes > 3 * log,
        "{bytes} bytes were written, and the log has {log}"
    );
    db.close().await;
    reading.await.unwrap();
    assert_eq!(log_of(&folder), 0, "the last connection copies all of it");
    let db = Db::open(&url).await.unwrap();
    let all = (written * ROWS) as i64;
    assert_eq!(rows(&db).await, (all, all * LENGTH as i64));
    db.close().await;
    std::fs::remove_dir_all(&folder).unwrap();
}
