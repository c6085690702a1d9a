//! The audit log in the database, on both: every act noted once, in one chain for each store, whoever chains.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;

use databases::{close, databases};
use shared::audit::{Act, Entry, Head, check};
use shared::crypto::ServerSecret;
use shared::domain::UserStatus;
use shared::id::{KeyId, StoreId, UserId};
use shared::secret::Secret;
use shared::store::{Handover, Store};
use std::collections::BTreeSet;

const NOW: i64 = 1_000_000;

/// The whole log as an export, and what is in it.
async fn exported(store: &Store, tenant: &StoreId) -> (String, Vec<Entry>) {
    let head = store.audit_head(tenant).await.unwrap();
    let lines = store.audit_entries(tenant, 0, None, 100_000).await.unwrap();
    assert_eq!(lines.len() as i64, head.seq);
    let secret = ServerSecret::new(&Secret::new("0123456789".repeat(5))).unwrap();
    let head = Head::new(tenant.clone(), head.seq.unsigned_abs(), head.hash, NOW);
    let head = head.signed(secret.signer());
    let text = format!("{}\n{{\"head\":\"{head}\"}}\n", lines.join("\n"));
    let mut entries = Vec::new();
    let checked = check(text.as_bytes(), None, |entry| entries.push(entry.clone()));
    assert!(checked.is_ok(), "{checked:?}");
    (text, entries)
}

#[tokio::test]
async fn two_chainers_never_chain_twice_and_leave_no_gap() {
    for (name, db, left) in databases("audit-chain").await {
        let store = Store::new(db.clone(), Handover::channel().0);
        let mut tenants = Vec::new();
        for _ in 0..3 {
            tenants.push(store.add_store("Acme", NOW).await.unwrap().id);
        }
        let writers = tenants.clone().into_iter().map(|tenant| {
            let store = store.by(&KeyId::fresh(NOW));
            tokio::spawn(async move {
                for n in 0..120 {
                    let external = format!("user {n}");
                    store
                        .add_user(&tenant, &external, NOW)
                        .await
                        .unwrap()
                        .unwrap();
                }
            })
        });
        let chainers = (0..4).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut total = 0;
                for _ in 0..60 {
                    total += store.chain_audit().await.unwrap();
                    tokio::task::yield_now().await;
                }
                total
            })
        });
        let (writers, chainers): (Vec<_>, Vec<_>) = (writers.collect(), chainers.collect());
        let mut total = 0;
        for writer in writers {
            writer.await.unwrap();
        }
        for chainer in chainers {
            total += chainer.await.unwrap();
        }
        loop {
            match store.chain_audit().await.unwrap() {
                0 => break,
                more => total += more,
            }
        }
        assert_eq!(total, 3 * 121, "{name}: each entry once");
        for tenant in &tenants {
            let (_, entries) = exported(&store, tenant).await;
            assert_eq!(entries.len(), 121);
            let ids: BTreeSet<_> = entries.iter().map(|entry| &entry.id).collect();
            assert_eq!(ids.len(), 121);
            assert!(entries[1..].iter().all(|entry| entry.by.is_some()));
        }
        close(db, left).await;
    }
}

#[tokio::test]
async fn what_does_not_happen_is_not_noted() {
    for (name, db, left) in databases("audit-none").await {
        let store = Store::new(db.clone(), Handover::channel().0);
        let tenant = store.add_store("Acme", NOW).await.unwrap().id;
        let user = store.add_user(&tenant, "ada", NOW).await.unwrap().unwrap();
        assert_eq!(store.add_user(&tenant, "ada", NOW).await.unwrap(), None);
        let nobody = UserId::fresh(NOW);
        let locked = Some(UserStatus::Locked);
        store
            .change_user(&tenant, &nobody, locked, None, NOW)
            .await
            .unwrap();
        store
            .change_user(&tenant, &user, locked, None, NOW)
            .await
            .unwrap();
        let key = KeyId::fresh(NOW);
        assert!(!store.revoke_key(&tenant, &key, NOW).await.unwrap());
        assert!(!store.drop_push_policy(&tenant, "x", NOW).await.unwrap());
        while store.chain_audit().await.unwrap() > 0 {}
        let (_, entries) = exported(&store, &tenant).await;
        let acts: BTreeSet<_> = entries.iter().map(|entry| entry.act.as_str()).collect();
        let expected = [Act::StoreMade, Act::UserAdded, Act::UserChanged].map(Act::as_str);
        assert_eq!(acts, expected.into_iter().collect(), "{name}");
        assert_eq!(entries.len(), 3);
        close(db, left).await;
    }
}
