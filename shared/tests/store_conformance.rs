//! One suite, both databases. `scripts/test` provides PostgreSQL.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;

use databases::{close, databases};
use shared::id::{PushId, StoreId};
use shared::message::{Job, Lane, Message, Route, VERSION};
use shared::store::db::{Arg, Statement};
use shared::store::{Db, Error, Outbox};

fn messages(count: usize) -> Vec<Message> {
    (0..count)
        .map(|_| {
            let job = Job {
                v: VERSION,
                store: StoreId::fresh(1),
                pushes: vec![PushId::fresh(1)],
                retries: vec![],
                chunk: None,
            };
            job.into_message(Route::Jobs(Lane::Interactive), 1)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_run_twice_without_harm() {
    for (_, db, left) in databases("migrate").await {
        db.migrate().await.unwrap();
        close(db, left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promise_lives_and_dies_with_its_transaction() {
    for (name, db, left) in databases("promise").await {
        let outbox = Outbox::new(db.clone());
        let mut tx = db.begin().await.unwrap();
        Outbox::add(&mut tx, &messages(3), 0).unwrap();
        drop(tx);
        assert_eq!(
            outbox.take(1, 2, 10).await.unwrap(),
            vec![],
            "{name}: rolled back"
        );
        let mut tx = db.begin().await.unwrap();
        Outbox::add(&mut tx, &messages(3), 0).unwrap();
        tx.commit().await.unwrap();
        assert_eq!(outbox.pending().await.unwrap(), 3, "{name}: committed");
        close(db, left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_the_promise_to_whoever_comes_after_the_lease() {
    for (name, db, left) in databases("lease").await {
        let outbox = Outbox::new(db.clone());
        let sent = messages(2);
        let mut tx = db.begin().await.unwrap();
        Outbox::add(&mut tx, &sent, 1_000).unwrap();
        tx.commit().await.unwrap();
        assert!(
            outbox.take(999, 5_000, 10).await.unwrap().is_empty(),
            "{name}: the writer still holds it"
        );
        let mut taken = outbox.take(1_000, 5_000, 10).await.unwrap();
        taken.sort_by(|a, b| a.id.cmp(&b.id));
        let mut expected = sent.clone();
        expected.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(taken, expected, "{name}: unchanged");
        assert!(
            outbox.take(4_999, 9_000, 10).await.unwrap().is_empty(),
            "{name}: under the new lease"
        );
        outbox.delete(&[taken[0].id.clone()]).await.unwrap();
        assert_eq!(
            outbox.take(5_000, 9_000, 10).await.unwrap(),
            taken[1..],
            "{name}: only the unconfirmed one"
        );
        close(db, left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_takers_one_gets_each_message() {
    for (name, db, left) in databases("takers").await {
        let mut tx = db.begin().await.unwrap();
        Outbox::add(&mut tx, &messages(200), 0).unwrap();
        tx.commit().await.unwrap();
        let takers: Vec<_> = (0..8)
            .map(|_| {
                let outbox = Outbox::new(db.clone());
                tokio::spawn(async move {
                    let mut mine = Vec::new();
                    loop {
                        let some = outbox.take(1, 9_000, 7).await.unwrap();
                        if some.is_empty() {
                            return mine;
                        }
                        mine.extend(some.into_iter().map(|m| m.id.to_string()));
                    }
                })
            })
            .collect();
        let mut all = Vec::new();
        for taker in takers {
            all.extend(taker.await.unwrap());
        }
        let taken = all.len();
        all.sort();
        all.dedup();
        // A taker may leave early past rows that another one holds locked, but every row is taken by then, once.
        assert_eq!((taken, all.len()), (200, 200), "{name}");
        close(db, left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_texts_and_nulls_come_back_as_they_went_in() {
    static ECHO: Statement = Statement::new(
        "SELECT r.value->>'t' AS t, CAST(r.value->>'n' AS BIGINT) AS n, r.value->>'gone' AS gone, CAST($2 AS TEXT) AS p, CAST($3 AS BIGINT) AS q FROM {each:$1}",
    );
    for (name, db, left) in databases("echo").await {
        let given = serde_json::json!([{"t": "Zoë \"q\" \\ \u{1F600}", "n": i64::MAX}]).to_string();
        let rows = db
            .fetch(
                &ECHO,
                &[
                    Arg::Text(&given),
                    Arg::MaybeText(None),
                    Arg::MaybeInt(Some(-1)),
                ],
            )
            .await
            .unwrap();
        assert_eq!(
            rows[0].text("t").unwrap(),
            "Zoë \"q\" \\ \u{1F600}",
            "{name}"
        );
        assert_eq!(rows[0].int("n").unwrap(), i64::MAX, "{name}");
        assert_eq!(rows[0].maybe_text("gone").unwrap(), None, "{name}");
        assert_eq!(rows[0].maybe_text("p").unwrap(), None, "{name}");
        assert_eq!(rows[0].maybe_int("q").unwrap(), Some(-1), "{name}");
        close(db, left).await;
    }
}

#[tokio::test]
async fn another_kind_of_address_is_refused() {
    assert!(matches!(
        Db::open("mysql://localhost/x").await,
        Err(Error::Scheme)
    ));
    for url in ["sqlite:", "sqlite::memory:", "sqlite:x.db?mode=memory"] {
        assert!(matches!(Db::open(url).await, Err(Error::Path)), "{url}");
    }
}
