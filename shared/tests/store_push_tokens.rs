//! The providers' tokens: one maker at a time, no new token too soon, and what is forgotten.

#![expect(clippy::unwrap_used, reason = "a test may panic: that is its failing")]

mod databases;

use databases::{close, databases};
use shared::store::{Handover, PushToken, Store};

const NOW: i64 = 1_800_000_000_000;
const LEASE: i64 = 15_000;

fn token(text: &str, at: i64) -> PushToken {
    PushToken {
        sealed: Some(text.to_owned()),
        issued_at: at,
        expires_at: at + 3_600_000,
        not_before: at + 1_200_000,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_holder_makes_the_next_token_and_none_comes_too_soon() {
    for (name, db, left) in databases("push_tokens").await {
        let store = Store::new(db.clone(), Handover::channel().0);
        let lease = async |holder: &str, seen, now| {
            let until = now + LEASE;
            let leased = store.lease_push_token("k", holder, seen, now, until).await;
            leased.unwrap()
        };
        assert_eq!(store.push_token("k").await.unwrap(), None, "{name}");
        let racing = (0..20).map(|n| {
            let (store, holder) = (store.clone(), format!("h{n}"));
            async move {
                let leased = store.lease_push_token("k", &holder, 0, NOW, NOW + LEASE);
                leased.await.unwrap().then_some(holder)
            }
        });
        let won = futures_util::future::join_all(racing).await;
        let won: Vec<_> = won.into_iter().flatten().collect();
        assert_eq!(won.len(), 1, "{name}");
        // It died: after its lease another one makes the token, and the dead one cannot write any more.
        assert!(!lease("b", 0, NOW + LEASE - 1).await, "{name}");
        assert!(lease("b", 0, NOW + LEASE).await, "{name}");
        let at = NOW + LEASE;
        let put = async |holder: &str, row: &PushToken| {
            store.put_push_token("k", holder, row).await.unwrap()
        };
        assert!(!put(&won[0], &token("dead", at)).await, "{name}");
        assert!(put("b", &token("b", at)).await, "{name}");
        assert!(!put("b", &token("twice", at)).await, "{name}");
        let row = store.push_token("k").await.unwrap();
        assert_eq!(row, Some(token("b", at)), "{name}");

        // Too soon; then by somebody who knows an older token; then rightly.
        assert!(!lease("c", at, at + 1_199_999).await, "{name}");
        assert!(!lease("c", 0, at + 1_200_000).await, "{name}");
        assert!(lease("c", at, at + 1_200_000).await, "{name}");
        store.give_back_push_token("k", "other").await.unwrap();
        assert!(!lease("d", at, at + 1_200_000).await, "{name}");
        store.give_back_push_token("k", "c").await.unwrap();
        assert!(lease("d", at, at + 1_200_000).await, "{name}");
        // A lease that a clock far ahead has dated holds nobody up.
        let ahead = store.lease_push_token("l", "a", 0, NOW + 3_600_000, NOW + 3_600_000 + LEASE);
        assert!(ahead.await.unwrap(), "{name}");
        let ours = store.lease_push_token("l", "b", 0, NOW, NOW + LEASE);
        assert!(ours.await.unwrap(), "{name}");
        close(db, left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_the_next_token_moves_and_old_rows_are_forgotten() {
    for (name, db, left) in databases("push_token_times").await {
        let store = Store::new(db.clone(), Handover::channel().0);
        let not_before = async |key: &str| {
            let row = store.push_token(key).await.unwrap();
            row.map(|row| row.not_before)
        };
        store.push_token_not_before("k", NOW + 50).await.unwrap();
        store.push_token_not_before("k", NOW + 10).await.unwrap();
        assert_eq!(not_before("k").await, Some(NOW + 50), "{name}");
        store.push_token_not_after("k", NOW + 60).await.unwrap();
        assert_eq!(not_before("k").await, Some(NOW + 50), "{name}");
        store.push_token_not_after("k", NOW + 40).await.unwrap();
        assert_eq!(not_before("k").await, Some(NOW + 40), "{name}");
        store.push_token_not_after("none", NOW).await.unwrap();
        assert_eq!(not_before("none").await, None, "{name}");
        // A freeze while a token is made outlives it.
        let leased = store.lease_push_token("k", "a", 0, NOW + 40, NOW + LEASE);
        assert!(leased.await.unwrap(), "{name}");
        store
            .push_token_not_before("k", NOW + 9_000_000)
            .await
            .unwrap();
        let row = token("a", NOW + 40);
        assert!(store.put_push_token("k", "a", &row).await.unwrap());
        assert_eq!(not_before("k").await, Some(NOW + 9_000_000), "{name}");

        let day = 24 * 3_600_000;
        store.recover(NOW + 40 + 3_600_000 + day).await.unwrap();
        assert!(not_before("k").await.is_some(), "{name}");
        store.recover(NOW + 41 + 3_600_000 + day).await.unwrap();
        assert_eq!(not_before("k").await, None, "{name}");
        close(db, left).await;
    }
}
