//! Signed requests of devices: used once, and forgotten once they cannot come again.

#![expect(clippy::unwrap_used, reason = "a test may panic: that is its failing")]

mod databases;

use databases::{close, databases};
use shared::crypto::REQUEST_TOLERANCE_S;
use shared::id::DeviceId;
use shared::store::db::Statement;
use shared::store::{Handover, REQUEST_MEMORY, Store};

static LEFT: Statement = Statement::new("SELECT COUNT(*) AS n FROM device_requests");
const NOW: i64 = 1_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_used_once_and_forgotten_when_it_is_too_old_to_come_again() {
    // Dated ahead by the tolerance, it is good until the tolerance after that; clocks count whole seconds.
    const { assert!(REQUEST_MEMORY > 2 * REQUEST_TOLERANCE_S * 1000 + 999) };
    for (name, db, left) in databases("requests").await {
        let store = Store::new(db.clone(), Handover::channel().0);
        let (one, other) = (DeviceId::fresh(1), DeviceId::fresh(2));
        assert!(store.use_request(&one, "a", NOW).await.unwrap(), "{name}");
        for _ in 0..2 {
            assert!(
                !store.use_request(&one, "a", NOW + 1).await.unwrap(),
                "{name}"
            );
        }
        assert!(store.use_request(&one, "b", NOW).await.unwrap(), "{name}");
        assert!(store.use_request(&other, "a", NOW).await.unwrap(), "{name}");
        let racing = (0..20).map(|_| store.use_request(&one, "c", NOW));
        let used = futures_util::future::join_all(racing).await;
        let first = used.into_iter().filter(|used| *used.as_ref().unwrap());
        assert_eq!(first.count(), 1, "{name}");

        let count = async || db.fetch(&LEFT, &[]).await.unwrap()[0].int("n").unwrap();
        store.recover(NOW + REQUEST_MEMORY).await.unwrap();
        assert_eq!(count().await, 4, "{name}: our own clocks may differ");
        store.recover(NOW + REQUEST_MEMORY + 60_001).await.unwrap();
        assert_eq!(count().await, 0, "{name}");
        close(db, left).await;
    }
}
