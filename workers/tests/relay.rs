//! The relay on the embedded footing: at once, after a crash, and when the broker refuses.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

use shared::broker::{Broker, Embedded, Queue};
use shared::clock::ManualClock;
use shared::id::{MessageId, PushId, StoreId};
use shared::message::{Job, Lane, Message, Route, VERSION};
use shared::store::{Db, Handover, LEASE, Outbox};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use workers::relay::Relay;

struct Bed {
    folder: std::path::PathBuf,
    db: Db,
    clock: Arc<ManualClock>,
    broker: Arc<Embedded>,
    outbox: Outbox,
}

impl Bed {
    async fn new() -> Self {
        let folder =
            std::env::temp_dir().join(format!("countersign-relay-{}", MessageId::fresh(0)));
        std::fs::create_dir_all(&folder).unwrap();
        let db = Db::open(&format!("sqlite:{}", folder.join("db.sqlite").display()))
            .await
            .unwrap();
        db.migrate().await.unwrap();
        let clock = ManualClock::at(1_000_000);
        let broker = Arc::new(Embedded::new(db.clone(), clock.clone()));
        Self {
            folder,
            outbox: Outbox::new(db.clone()),
            db,
            clock,
            broker,
        }
    }

    fn relay(&self) -> (Relay, Handover) {
        let (handover, committed) = Handover::channel();
        let (outbox, broker) = (self.outbox.clone(), self.broker.clone());
        (
            Relay::new(
                outbox,
                broker,
                self.clock.clone(),
                handover.clone(),
                committed,
            ),
            handover,
        )
    }

    async fn commit(&self, messages: &[Message]) {
        let mut tx = self.db.begin().await.unwrap();
        Outbox::add(&mut tx, messages, 1_000_000 + LEASE).unwrap();
        tx.commit().await.unwrap();
    }

    async fn ready(&self) -> u64 {
        self.broker
            .depth(Queue::JobsInteractive)
            .await
            .unwrap()
            .ready
    }

    async fn end(self) {
        self.broker.close().await;
        self.db.close().await;
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// A relay that runs under it publishes what was handed over, and ends.
fn stopped() -> CancellationToken {
    let stop = CancellationToken::new();
    stop.cancel();
    stop
}

fn message(route: Route) -> Message {
    Job {
        v: VERSION,
        store: StoreId::fresh(1),
        pushes: vec![PushId::fresh(1)],
        retries: vec![],
        chunk: None,
    }
    .into_message(route, 1)
}

fn jobs(count: usize) -> Vec<Message> {
    (0..count)
        .map(|_| message(Route::Jobs(Lane::Interactive)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn handed_over_messages_are_published_at_once_and_leave_the_outbox() {
    let bed = Bed::new().await;
    let mut consumer = bed
        .broker
        .consume(Queue::JobsInteractive, 64)
        .await
        .unwrap();
    let (relay, handle) = bed.relay();
    let stop = CancellationToken::new();
    let running = tokio::spawn(relay.run(stop.clone()));
    let sent = jobs(3);
    bed.commit(&sent).await;
    handle.published_soon(sent);
    for _ in 0..3 {
        let one = tokio::time::timeout(Duration::from_secs(10), consumer.recv())
            .await
            .unwrap()
            .unwrap();
        assert!(one.ack().await);
    }
    stop.cancel();
    running.await.unwrap();
    assert_eq!(bed.outbox.pending().await.unwrap(), 0);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_loses_nothing_that_was_handed_over_before() {
    let bed = Bed::new().await;
    let (relay, handle) = bed.relay();
    let sent = jobs(1_200);
    bed.commit(&sent).await;
    for part in sent.chunks(400) {
        handle.published_soon(part.to_vec());
    }
    relay.run(stopped()).await;
    assert_eq!(
        (bed.ready().await, bed.outbox.pending().await.unwrap()),
        (1_200, 0)
    );
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_behind_is_published_after_its_lease_and_once() {
    let bed = Bed::new().await;
    bed.commit(&jobs(700)).await;
    let (relay, _handle) = bed.relay();
    assert_eq!(
        relay.sweep().await.unwrap(),
        0,
        "the writer may still be at it"
    );
    bed.clock.advance(LEASE);
    assert_eq!(relay.sweep().await.unwrap(), 700);
    assert_eq!(relay.sweep().await.unwrap(), 0, "under a new lease");
    relay.run(stopped()).await;
    assert_eq!(
        (bed.ready().await, bed.outbox.pending().await.unwrap()),
        (700, 0)
    );
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_a_queue_that_is_gone_is_parked_and_does_not_hold_up_the_others() {
    let bed = Bed::new().await;
    let mut sent = jobs(2);
    sent.insert(1, message(Route::Direct("ext.acme.erp".to_owned())));
    bed.commit(&sent).await;
    let (relay, _handle) = bed.relay();
    bed.clock.advance(LEASE);
    assert_eq!(relay.sweep().await.unwrap(), 3);
    relay.run(stopped()).await;
    let parked = bed.broker.depth(Queue::Parking).await.unwrap().ready;
    assert_eq!(
        (
            bed.ready().await,
            parked,
            bed.outbox.pending().await.unwrap()
        ),
        (2, 1, 0)
    );
    bed.end().await;
}
