//! Statements that go out together, on both databases: what one of them does to the others, and to whoever comes after.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;

use databases::{close, databases, postgres};
use shared::store::Db;
use shared::store::db::{Arg, Asked, Statement};
use std::time::Duration;
use tokio::time::timeout;

static ADD: Statement =
    Statement::new("INSERT INTO outbox (id, message, lease_until) VALUES ($1, '', 0)");
static IDS: Statement = Statement::new("SELECT id FROM outbox ORDER BY id");
static COUNT: Statement = Statement::new("SELECT COUNT(*) AS n FROM outbox");
static TAKE: Statement = Statement::new("DELETE FROM outbox WHERE id = $1 RETURNING id");
static HOLD: Statement = Statement::new("SELECT id FROM outbox WHERE id = $1 FOR UPDATE");
static SLEEP: Statement = Statement::new("SELECT 'slept' AS id FROM pg_sleep(2)");
static ECHO: Statement = Statement::new("SELECT CAST($1 AS TEXT) AS text");
static WHO: Statement = Statement::new("SELECT CAST(pg_backend_pid() AS BIGINT) AS pid");

async fn ids(db: &Db) -> Vec<String> {
    let rows = db.fetch(&IDS, &[]).await.unwrap();
    rows.iter().map(|row| row.text("id").unwrap()).collect()
}

#[tokio::test]
async fn each_sees_those_before_it_and_the_commit_ends_them() {
    for (name, db, left) in databases("order").await {
        let mut tx = db.begin().await.unwrap();
        tx.send(&ADD, &[Arg::Text("a")]).unwrap();
        tx.send(&ADD, &[Arg::Text("b")]).unwrap();
        let (a, none) = ([Arg::Text("a")], []);
        let [count, taken, left_over] = tx
            .fetch_all([(&COUNT, &none[..]), (&TAKE, &a), (&IDS, &none)])
            .await
            .unwrap();
        assert_eq!(count[0].int("n").unwrap(), 2, "{name}");
        assert_eq!(taken[0].text("id").unwrap(), "a", "{name}");
        assert_eq!(left_over.len(), 1, "{name}");
        tx.send(&ADD, &[Arg::Text("c")]).unwrap();
        tx.commit().await.unwrap();
        assert_eq!(ids(&db).await, ["b", "c"], "{name}");
        let mut tx = db.begin_repeatable().await.unwrap();
        tx.send(&ADD, &[Arg::Text("d")]).unwrap();
        let rows = tx.fetch_last(&TAKE, &[Arg::Text("b")]).await.unwrap();
        assert_eq!(rows.len(), 1, "{name}");
        assert_eq!(ids(&db).await, ["c", "d"], "{name}");
        let mut tx = db.begin().await.unwrap();
        assert_eq!(tx.execute(&TAKE, &[Arg::Text("x")]).await.unwrap(), 0);
        tx.commit().await.unwrap();
        db.begin().await.unwrap().commit().await.unwrap();
        close(db, left).await;
    }
}

/// More than all buffers hold, in both directions: the server takes nothing more before its answers are read.
#[tokio::test]
async fn large_ones_do_not_wait_for_each_other() {
    let text = "x".repeat(2_000_000);
    for (name, db, left) in databases("large").await {
        let mut tx = db.begin().await.unwrap();
        let args = [Arg::Text(&text)];
        let asked: [Asked<'_>; 8] = [(&ECHO, &args); 8];
        let answers = timeout(Duration::from_mins(1), tx.fetch_all(asked));
        for rows in answers.await.unwrap().unwrap() {
            assert_eq!(rows[0].text("text").unwrap().len(), text.len(), "{name}");
        }
        tx.commit().await.unwrap();
        close(db, left).await;
    }
}

#[tokio::test]
async fn one_that_fails_is_told_at_the_next_wait_and_undoes_all() {
    if let Some((db, left)) = postgres("failing").await {
        db.write(&ADD, &[Arg::Text("there")]).await.unwrap();
        let mut tx = db.begin().await.unwrap();
        tx.send(&ADD, &[Arg::Text("new")]).unwrap();
        tx.send(&ADD, &[Arg::Text("there")]).unwrap();
        let error = tx.fetch(&IDS, &[]).await.err().unwrap();
        assert!(error.is_permanent(), "{error:?}");
        let source = std::error::Error::source(&error).unwrap();
        let told = format!("{error:?} {error} {source}");
        assert!(told.contains("23505"), "{told}");
        assert!(
            !told.contains("there"),
            "the server's details quote values: {told}"
        );
        assert!(tx.commit().await.is_err(), "it was not committed");
        assert_eq!(ids(&db).await, ["there"]);
        // At the latest by the commit.
        let mut tx = db.begin().await.unwrap();
        tx.send(&ADD, &[Arg::Text("new")]).unwrap();
        tx.send(&ADD, &[Arg::Text("there")]).unwrap();
        assert!(tx.commit().await.is_err());
        let mut tx = db.begin().await.unwrap();
        tx.send(&ADD, &[Arg::Text("new")]).unwrap();
        assert!(tx.fetch_last(&ADD, &[Arg::Text("there")]).await.is_err());
        assert_eq!(ids(&db).await, ["there"]);
        close(db, left).await;
    }
}

#[tokio::test]
async fn one_that_is_left_rolls_back_and_frees_what_it_held() {
    if let Some((db, left)) = postgres("leaving").await {
        db.write(&ADD, &[Arg::Text("row")]).await.unwrap();
        for round in 0..4 {
            let mut tx = db.begin().await.unwrap();
            tx.fetch(&HOLD, &[Arg::Text("row")]).await.unwrap();
            tx.send(&ADD, &[Arg::Text("unsent")]).unwrap();
            tx.fetch(&COUNT, &[]).await.unwrap();
            if round % 2 == 0 {
                // In the middle of a statement, too.
                let asleep = tx.fetch(&SLEEP, &[]);
                let waited = timeout(Duration::from_millis(5), asleep).await;
                assert!(waited.is_err());
            }
            drop(tx);
            let mut next = db.begin().await.unwrap();
            next.fetch(&HOLD, &[Arg::Text("row")]).await.unwrap();
            assert_eq!(next.fetch(&IDS, &[]).await.unwrap().len(), 1);
            next.commit().await.unwrap();
        }
        close(db, left).await;
    }
}

#[tokio::test]
async fn nobody_gets_the_answer_to_somebody_elses_question() {
    if let Some((db, left)) = postgres("hanging").await {
        // All connections that there are, each with an answer to come.
        let mut open = Vec::new();
        for _ in 0..16 {
            let mut tx = db.begin().await.unwrap();
            tx.fetch(&COUNT, &[]).await.unwrap();
            open.push(tx);
        }
        for tx in open {
            tx.commit().await.unwrap();
        }
        let callers: Vec<_> = (0..16)
            .map(|_| {
                let db = db.clone();
                tokio::spawn(async move {
                    let asleep = db.fetch(&SLEEP, &[]);
                    timeout(Duration::from_millis(50), asleep).await.is_err()
                })
            })
            .collect();
        for one in callers {
            assert!(one.await.unwrap(), "nobody had an answer");
        }
        let all: Vec<_> = (0..40)
            .map(|n| {
                let db = db.clone();
                tokio::spawn(async move {
                    let id = format!("{n:02}");
                    db.write(&ADD, &[Arg::Text(&id)]).await.unwrap();
                    let rows = db.write(&TAKE, &[Arg::Text(&id)]).await.unwrap();
                    assert_eq!(rows[0].text("id").unwrap(), id);
                })
            })
            .collect();
        for one in all {
            one.await.unwrap();
        }
        close(db, left).await;
    }
}

#[tokio::test]
async fn connections_that_the_server_has_ended_are_not_given_out() {
    for (_, db, left) in databases("ended").await {
        let databases::Left::Schema(admin, _) = &left else {
            close(db, left).await;
            continue;
        };
        for _ in 0..3 {
            let (mut open, mut pids) = (Vec::new(), Vec::new());
            for _ in 0..8 {
                let mut tx = db.begin().await.unwrap();
                let who = tx.fetch(&WHO, &[]).await.unwrap();
                pids.push(who[0].int("pid").unwrap());
                open.push(tx);
            }
            for tx in open {
                tx.commit().await.unwrap();
            }
            for pid in pids {
                sqlx::query("SELECT pg_terminate_backend(CAST($1 AS INT), 5000)")
                    .bind(pid)
                    .execute(admin)
                    .await
                    .unwrap();
            }
            // Within the time in which a connection is not asked whether it lives.
            for _ in 0..8 {
                db.fetch(&COUNT, &[]).await.unwrap();
            }
        }
        close(db, left).await;
    }
}
