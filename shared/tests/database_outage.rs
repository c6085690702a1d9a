//! What a crash of PostgreSQL takes back, and what not. It ends the whole server, so it is a program of its own, and runs only against a server that
//! `scripts/test` has made.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;

use databases::{close, postgres};
use shared::store::Db;
use shared::store::db::{Arg, Statement, Tx};
use std::time::Duration;
use tokio::process::Command;

static ADD: Statement =
    Statement::new("INSERT INTO outbox (id, message, lease_until) VALUES ($1, '', 0)");
static IDS: Statement = Statement::new("SELECT id FROM outbox ORDER BY id");
static WAITS: Statement = Statement::new("SELECT current_setting('synchronous_commit') AS waits");

/// How often the server is ended: each time it could have been lucky.
const ROUNDS: usize = 4;

async fn crash(program: &str) {
    for word in ["kill", "start"] {
        let done = Command::new(program).arg(word).output().await.unwrap();
        assert!(done.status.success(), "{word}: {done:?}");
    }
}

async fn add(mut tx: Tx, id: &str) {
    tx.execute(&ADD, &[Arg::Text(id)]).await.unwrap();
    tx.commit().await.unwrap();
}

/// Connections that the crash has ended are found out one by one.
async fn again<T, E>(mut ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    for _ in 0..100 {
        if let Ok(given) = ask().await {
            return given;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the database does not come back");
}

async fn ids(db: &Db) -> Vec<String> {
    let rows = again(async || db.fetch(&IDS, &[]).await).await;
    rows.iter().map(|row| row.text("id").unwrap()).collect()
}

async fn waits(mut tx: Tx) -> String {
    let rows = tx.fetch(&WAITS, &[]).await.unwrap();
    tx.commit().await.unwrap();
    rows[0].text("waits").unwrap()
}

#[tokio::test]
async fn what_can_be_done_again_is_safe_with_whatever_comes_after_it() {
    let Ok(program) = std::env::var("COUNTERSIGN_TEST_DATABASE_CONTROL") else {
        return;
    };
    if let Some((db, left)) = postgres("outage").await {
        assert_eq!(waits(db.begin().await.unwrap()).await, "on");
        assert_eq!(waits(db.begin_open().await.unwrap()).await, "on");
        assert_eq!(waits(db.begin_repeatable().await.unwrap()).await, "off");
        let of_a_batch = db.begin_repeatable_later().await.unwrap();
        assert_eq!(waits(of_a_batch).await, "on", "this process outlives it");
        let mut expected = Vec::new();
        for round in 0..ROUNDS {
            let (first, second) = (format!("{round}-1"), format!("{round}-2"));
            add(again(async || db.begin_repeatable().await).await, &first).await;
            if round % 2 == 0 {
                add(again(async || db.begin().await).await, &second).await;
                expected.extend([first, second]);
            } else {
                again(async || db.all_safe().await).await;
                expected.push(first);
            }
            crash(&program).await;
            assert_eq!(ids(&db).await, expected);
        }
        let databases::Left::Schema(admin, schema) = left else {
            panic!("PostgreSQL has a schema");
        };
        admin.close().await;
        let url = std::env::var("COUNTERSIGN_TEST_DATABASE_URL").unwrap();
        let admin = sqlx::PgPool::connect(&url).await.unwrap();
        close(db, databases::Left::Schema(admin, schema)).await;
    }
}
