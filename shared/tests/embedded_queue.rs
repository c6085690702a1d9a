//! The broker port's promises, on the embedded engine.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

use shared::broker::{Broker, DELIVERY_LIMIT, Delivery, Embedded, LEASE, PublishError, Queue};
use shared::clock::ManualClock;
use shared::id::{MessageId, PushId, StoreId};
use shared::message::{Job, Lane, Message, Retry, Route, VERSION};
use shared::store::Db;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;

struct Bed {
    folder: PathBuf,
    db: Db,
    clock: Arc<ManualClock>,
    broker: Embedded,
}

impl Bed {
    async fn new() -> Self {
        let folder =
            std::env::temp_dir().join(format!("countersign-queue-{}", MessageId::fresh(0)));
        std::fs::create_dir_all(&folder).unwrap();
        let db = Db::open(&format!("sqlite:{}", folder.join("db.sqlite").display()))
            .await
            .unwrap();
        db.migrate().await.unwrap();
        let clock = ManualClock::at(1_000_000);
        let broker = Embedded::new(db.clone(), clock.clone());
        broker.apply_topology().await.unwrap();
        Self {
            folder,
            db,
            clock,
            broker,
        }
    }

    /// The same file under a new engine, as after a crash: nothing was settled on the way out.
    fn reborn(&self) -> Embedded {
        Embedded::new(self.db.clone(), self.clock.clone())
    }

    async fn end(self) {
        self.broker.close().await;
        self.db.close().await;
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

fn message(route: Route) -> Message {
    Job {
        v: VERSION,
        store: StoreId::fresh(1),
        pushes: vec![PushId::fresh(1)],
        retries: vec![],
    }
    .into_message(route, 1)
}

fn job() -> Message {
    message(Route::Jobs(Lane::Interactive))
}

async fn next(from: &mut Receiver<Delivery>) -> Delivery {
    tokio::time::timeout(Duration::from_secs(10), from.recv())
        .await
        .unwrap()
        .unwrap()
}

fn id(delivery: &Delivery) -> MessageId {
    delivery.message.as_ref().unwrap().id.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_message_is_delivered_and_gone_after_the_ack() {
    let bed = Bed::new().await;
    let sent = job();
    assert_eq!(
        bed.broker.publish(std::slice::from_ref(&sent)).await,
        vec![Ok(())]
    );
    let mut jobs = bed.broker.consume(Queue::JobsInteractive, 4).await.unwrap();
    let delivery = next(&mut jobs).await;
    assert_eq!(delivery.message.as_ref().unwrap(), &sent);
    assert!(!delivery.redelivered);
    assert_eq!(
        bed.broker
            .depth(Queue::JobsInteractive)
            .await
            .unwrap()
            .unacked,
        1
    );
    assert!(delivery.ack().await);
    assert!(!delivery.ack().await, "a second ack finds nothing");
    let depth = bed.broker.depth(Queue::JobsInteractive).await.unwrap();
    assert_eq!((depth.ready, depth.unacked), (0, 0));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_consumer_held_comes_back_after_its_lease_and_the_late_ack_is_refused() {
    let bed = Bed::new().await;
    bed.broker.publish(&[job()]).await;
    let mut jobs = bed.broker.consume(Queue::JobsInteractive, 1).await.unwrap();
    let zombie = next(&mut jobs).await;
    let heir = bed.reborn();
    let mut rest = heir.consume(Queue::JobsInteractive, 1).await.unwrap();
    bed.clock.advance(i64::try_from(LEASE.as_millis()).unwrap());
    let again = next(&mut rest).await;
    assert!(again.redelivered);
    assert_eq!(id(&again), id(&zombie));
    assert!(!zombie.ack().await, "it no longer holds the message");
    assert!(again.ack().await);
    heir.close().await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_message_waits_for_its_tier() {
    let bed = Bed::new().await;
    bed.broker
        .publish(&[message(Route::Later(Retry { seconds: 30 }, Lane::Bulk))])
        .await;
    let depth = bed.broker.depth(Queue::JobsBulk).await.unwrap();
    assert_eq!((depth.ready, depth.unacked), (0, 0), "not visible yet");
    bed.clock.advance(29_999);
    assert_eq!(bed.broker.depth(Queue::JobsBulk).await.unwrap().ready, 0);
    bed.clock.advance(1);
    let mut jobs = bed.broker.consume(Queue::JobsBulk, 1).await.unwrap();
    assert!(next(&mut jobs).await.ack().await);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_prefetch_is_held_and_nothing_is_held_twice() {
    let bed = Bed::new().await;
    let batch: Vec<_> = (0..40).map(|_| job()).collect();
    bed.broker.publish(&batch).await;
    let mut left = bed.broker.consume(Queue::JobsInteractive, 3).await.unwrap();
    let mut right = bed.broker.consume(Queue::JobsInteractive, 3).await.unwrap();
    let mut seen = Vec::new();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(next(&mut left).await);
        held.push(next(&mut right).await);
    }
    assert_eq!(
        bed.broker
            .depth(Queue::JobsInteractive)
            .await
            .unwrap()
            .unacked,
        6
    );
    assert!(left.try_recv().is_err() && right.try_recv().is_err());
    while seen.len() < 40 {
        for delivery in held.drain(..) {
            assert!(delivery.ack().await);
            seen.push(id(&delivery));
        }
        if seen.len() < 40 {
            tokio::select! {
                Some(one) = left.recv() => held.push(one),
                Some(one) = right.recv() => held.push(one),
                () = tokio::time::sleep(Duration::from_secs(10)) => panic!("only {} arrived", seen.len()),
            }
        }
    }
    seen.sort();
    let mut expected: Vec<_> = batch.into_iter().map(|m| m.id).collect();
    expected.sort();
    assert_eq!(seen, expected);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_is_woken_by_a_publish_and_an_event_reaches_every_kind_of_listener() {
    let bed = Bed::new().await;
    let mut wait = bed.broker.consume(Queue::StatusWait, 1).await.unwrap();
    let mut own = bed.broker.consume(Queue::StatusOwn, 1).await.unwrap();
    let mut other = bed.broker.consume(Queue::StatusOwn, 1).await.unwrap();
    let sent = message(Route::Status("v1.sto_x.confirm.approved".to_owned()));
    assert_eq!(
        bed.broker.publish(std::slice::from_ref(&sent)).await,
        vec![Ok(())]
    );
    for listener in [&mut wait, &mut own, &mut other] {
        assert_eq!(id(&next(listener).await), sent.id);
    }
    assert_eq!(
        bed.broker.depth(Queue::StatusForward).await.unwrap().ready,
        1
    );
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_unroutable_message_does_not_spoil_its_batch() {
    let bed = Bed::new().await;
    let results = bed
        .broker
        .publish(&[
            job(),
            message(Route::Direct("ext.acme.erp".to_owned())),
            job(),
        ])
        .await;
    assert_eq!(results, vec![Ok(()), Err(PublishError::Unroutable), Ok(())]);
    assert_eq!(
        bed.broker
            .depth(Queue::JobsInteractive)
            .await
            .unwrap()
            .ready,
        2
    );
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeued_message_is_handed_out_at_once_and_does_not_count_as_a_delivery() {
    let bed = Bed::new().await;
    bed.broker.publish(&[job()]).await;
    let mut jobs = bed.broker.consume(Queue::JobsInteractive, 1).await.unwrap();
    let first = next(&mut jobs).await;
    assert!(first.requeue().await);
    drop(first);
    let again = next(&mut jobs).await;
    assert!(!again.redelivered);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_every_consumer_is_parked_with_the_reason() {
    let bed = Bed::new().await;
    let sent = job();
    bed.broker.publish(std::slice::from_ref(&sent)).await;
    let mut jobs = bed.broker.consume(Queue::JobsInteractive, 1).await.unwrap();
    for _ in 0..DELIVERY_LIMIT {
        drop(next(&mut jobs).await);
        bed.clock.advance(i64::try_from(LEASE.as_millis()).unwrap());
    }
    let mut parking = bed.broker.consume(Queue::Parking, 1).await.unwrap();
    let parked = next(&mut parking).await;
    assert_eq!(id(&parked), sent.id);
    assert!(
        matches!(&parked.message.as_ref().unwrap().route, Route::Parking(reason) if reason.contains("never settled"))
    );
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_no_message_arrives_as_such_and_can_be_acked() {
    static GARBAGE: shared::store::db::Statement = shared::store::db::Statement::new(
        "INSERT INTO queue_messages (queue, message, visible_at, deliveries) VALUES ('cs.jobs.interactive', '{oops', 0, 0)",
    );
    let bed = Bed::new().await;
    let mut tx = bed.db.begin().await.unwrap();
    tx.fetch(&GARBAGE, &[]).await.unwrap();
    tx.commit().await.unwrap();
    let mut jobs = bed.broker.consume(Queue::JobsInteractive, 1).await.unwrap();
    let delivery = next(&mut jobs).await;
    assert!(delivery.message.is_err());
    assert_eq!(&delivery.raw[..], b"{oops");
    assert!(delivery.ack().await);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_does_not_wait_for_a_consumer_that_holds_its_whole_window() {
    let bed = Bed::new().await;
    bed.broker.publish(&[job(), job()]).await;
    let mut jobs = bed.broker.consume(Queue::JobsInteractive, 1).await.unwrap();
    let _held = next(&mut jobs).await;
    tokio::time::timeout(Duration::from_secs(10), bed.broker.close())
        .await
        .unwrap();
    assert!(jobs.recv().await.is_none());
    bed.end().await;
}
