//! How many workers there are: those that come, go, and die.

#![expect(clippy::unwrap_used, reason = "a test may panic: that is its failing")]

mod databases;

use databases::{close, databases};
use shared::store::{Handover, Store};

const NOW: i64 = 1_800_000_000_000;
const LIVES: i64 = 15_000;

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_counted_while_they_say_that_they_live() {
    for (name, db, left) in databases("census").await {
        let store = Store::new(db.clone(), Handover::channel().0);
        let says = async |worker: &str, now: i64| {
            let count = store.count_workers(worker, now, now + LIVES).await;
            count.unwrap()
        };
        assert_eq!(says("a", NOW).await, 1, "{name}");
        assert_eq!(says("b", NOW).await, 2, "{name}");
        assert_eq!(says("a", NOW + 5_000).await, 2, "{name}");
        store.leave_workers("b").await.unwrap();
        assert_eq!(says("a", NOW + 5_000).await, 1, "{name}");
        says("c", NOW + 5_000).await;
        // c died; its word lasts and then does not.
        assert_eq!(says("a", NOW + 5_000 + LIVES - 1).await, 2, "{name}");
        assert_eq!(says("a", NOW + 5_000 + LIVES).await, 1, "{name}");
        assert_eq!(says("a", NOW + 7_200_000).await, 1, "{name}");
        close(db, left).await;
    }
}
