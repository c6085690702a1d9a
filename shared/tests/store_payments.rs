//! Batches of payments in the database, one suite for both: written with their push or not at all, used once each, in time, and as they were approved.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;
mod samples;

use databases::{Left, close, databases, key, phone};
use shared::clock::Millis;
use shared::domain::{Content, Kind, Payee, PaymentItem};
use shared::id::{DeviceId, PushId, StoreId};
use shared::payments::shown;
use shared::store::{Action, Answer, Consumed, Handover, NewPush, PushRow, Store, Taken, USABLE};

const NOW: Millis = 1_000_000;

struct Bed {
    name: &'static str,
    left: Left,
    store: Store,
    tenant: StoreId,
    device: DeviceId,
}

async fn beds(test: &str) -> Vec<Bed> {
    let mut beds = Vec::new();
    for (name, db, left) in databases(test).await {
        let store = Store::new(db, Handover::channel().0);
        let tenant = store.add_store("Acme", NOW).await.unwrap().id;
        let user = store.add_user(&tenant, "ada", NOW).await.unwrap().unwrap();
        let device = phone(None);
        let added = store.add_device(&tenant, &user, &device, 10, NOW).await;
        beds.push(Bed {
            name,
            left,
            store,
            tenant,
            device: added.unwrap().unwrap().id,
        });
    }
    beds
}

fn items(count: usize) -> Vec<PaymentItem> {
    let item = |n: usize| PaymentItem {
        amount: format!("{n}.25"),
        currency: "EUR".to_owned(),
        payee: Payee {
            name: format!("Payee {}", n % 7),
            account: "IE29".to_owned(),
        },
        reference: Some(format!("invoice-{n}")),
    };
    (0..count).map(item).collect()
}

impl Bed {
    fn push(&self, items: Vec<PaymentItem>, idempotency: Option<(&str, &str)>) -> NewPush {
        let content = Content {
            payments: shown(&items),
            ..samples::content(Kind::Confirm, "Pay")
        };
        NewPush {
            payments: items,
            idempotency: idempotency.map(|(key, hash)| (key.to_owned(), hash.to_owned())),
            ..samples::push(&self.tenant, content, NOW)
        }
    }

    async fn row(&self, push: &PushId) -> PushRow {
        self.store.push(push).await.unwrap().unwrap()
    }

    async fn answered(&self, push: &PushId, approves: bool) {
        let reason = if approves {
            "user_approved"
        } else {
            "user_declined"
        };
        let answer = Answer {
            push,
            kind: Kind::Confirm,
            device: &self.device,
            approves,
            reason,
            verified: true,
            proof_hash: "hash",
            proof: "proof",
            key: &key(),
        };
        self.store.answer(&answer, NOW).await.unwrap();
    }

    async fn consume(
        &self,
        push: &PushId,
        index: u64,
        item: &PaymentItem,
        now: Millis,
    ) -> Option<Consumed> {
        let row = self.row(push).await;
        let consumed = self.store.consume_payment(&row, index, item, now).await;
        consumed.unwrap()
    }
}

#[tokio::test]
async fn must_32_a_batch_is_written_with_its_push_or_not_at_all() {
    for bed in beds("payments-taken").await {
        let (first, second) = (
            bed.push(items(300), Some(("key", "a"))),
            bed.push(items(2), None),
        );
        // The same key once more in the same transaction, and once more after it.
        let again = bed.push(items(300), Some(("key", "a")));
        let other = bed.push(items(3), Some(("key", "b")));
        let all = [first.clone(), second.clone(), again.clone(), other.clone()];
        let taken = bed.store.take(&all, NOW).await.unwrap();
        assert!(matches!(taken[2], Taken::Replayed(_)), "{}", bed.name);
        assert_eq!(taken[3], Taken::KeyReused);
        let late = bed.push(items(300), Some(("key", "a")));
        let taken = bed.store.take(std::slice::from_ref(&late), NOW).await;
        assert!(matches!(taken.unwrap()[0], Taken::Replayed(_)));
        for (push, count) in [
            (&first, 300),
            (&second, 2),
            (&again, 0),
            (&other, 0),
            (&late, 0),
        ] {
            let rows = bed.store.payments(&push.id, -1, 1_000).await.unwrap();
            assert_eq!(rows.len(), count, "{}", bed.name);
            let same = rows.iter().zip(&push.payments);
            assert!(same.clone().all(|(row, item)| row.item == *item));
            let places = rows.iter().map(|row| row.index);
            assert!(places.eq(0..count as u64), "in their order");
        }
        let part = bed.store.payments(&first.id, 297, 10).await.unwrap();
        assert_eq!(part.len(), 2);
        close(bed.store.db().clone(), bed.left).await;
    }
}

#[tokio::test]
async fn must_32_36_a_payment_of_a_batch_is_used_in_time_and_once() {
    for bed in beds("payments-used").await {
        let items = items(4);
        let mut pushes = Vec::new();
        for approves in [true, false] {
            let push = bed.push(items.clone(), None);
            bed.store
                .take(std::slice::from_ref(&push), NOW)
                .await
                .unwrap();
            let early = bed.consume(&push.id, 0, &items[0], NOW).await;
            assert_eq!(early, Some(Consumed::NotApproved), "{}", bed.name);
            bed.answered(&push.id, approves).await;
            pushes.push(push.id);
        }
        let [approved, denied] = &pushes[..] else {
            panic!("two")
        };
        let last = NOW + USABLE - 1;
        let used = bed.consume(approved, 0, &items[0], last).await;
        assert_eq!(used, Some(Consumed::Now(last)), "{}", bed.name);
        let again = bed.consume(approved, 0, &items[0], last + 5).await;
        assert_eq!(again, Some(Consumed::Before(last)));
        let late = bed.consume(approved, 1, &items[1], NOW + USABLE).await;
        assert_eq!(late, Some(Consumed::TooLate));
        for index in [1, 2] {
            let other = bed.consume(approved, index, &items[3], last).await;
            assert_eq!(other, Some(Consumed::Differs));
        }
        for index in [4, u64::MAX] {
            assert_eq!(bed.consume(approved, index, &items[3], last).await, None);
        }
        let refused = bed.consume(denied, 0, &items[0], last).await;
        assert_eq!(refused, Some(Consumed::NotApproved));
        let row = bed.row(approved).await;
        let whole = bed.store.consume(&row, &Action::default(), last).await;
        assert_eq!(whole.unwrap(), Consumed::OneByOne);
        let rows = bed.store.payments(approved, -1, 10).await.unwrap();
        let used: Vec<_> = rows.iter().map(|row| row.consumed_at).collect();
        assert_eq!(used, [Some(last), None, None, None], "{}", bed.name);
        close(bed.store.db().clone(), bed.left).await;
    }
}
