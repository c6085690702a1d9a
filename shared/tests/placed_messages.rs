//! What the store promises while the embedded queue lies in its own database: in the queue with the transaction, handed out after it.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod samples;
mod support;

use shared::broker::{Broker, Depth, Embedded, LEASE, Queue};
use shared::clock::Millis;
use shared::domain::{Kind, OpenPrompts, Rules};
use shared::id::{PushId, StoreId};
use shared::message::Job;
use shared::store::{Handover, Outbox, Page, SealedPolicy, Store, Taken};
use std::sync::Arc;
use std::time::Duration;
use support::{Bed, Engine, next};

/// The clock of an embedded bed.
const NOW: Millis = 1_000_000;

struct Ground {
    bed: Bed,
    store: Store,
    tenant: StoreId,
}

impl Ground {
    async fn new() -> Self {
        let bed = support::embedded(None).await;
        let (handover, _) = Handover::channel();
        let store = Store::new(
            bed.database().clone(),
            handover.beside(bed.broker.in_database()),
        );
        let tenant = store.add_store("Acme", NOW).await.unwrap().id;
        store.add_user(&tenant, "ada", NOW).await.unwrap().unwrap();
        let rules = Rules {
            max_prompts: 1_000,
            open_prompts: OpenPrompts::Many,
            cooldown: 0,
            ..Rules::default()
        };
        let sealed = SealedPolicy {
            rules,
            name: "p".to_owned(),
            apns: Some("sealed".to_owned()),
            fcm: None,
        };
        let set = store.put_push_policy(&tenant, "payroll", sealed, NOW);
        set.await.unwrap();
        Self { bed, store, tenant }
    }

    async fn taken(&self) -> PushId {
        let new = samples::push(
            &self.tenant,
            samples::content(Kind::Generic, "Payslip"),
            NOW,
        );
        let taken = self.store.take(std::slice::from_ref(&new), NOW).await;
        assert!(matches!(taken.unwrap()[..], [Taken::New(_)]));
        new.id
    }

    /// Ready, held, and in the outbox.
    async fn counts(&self) -> (u64, u64, i64) {
        let Depth { ready, unacked } = self.bed.broker.depth(Queue::JobsInteractive).await.unwrap();
        let outbox = Outbox::new(self.bed.database().clone());
        (ready, unacked, outbox.pending().await.unwrap())
    }
}

fn pushes(delivery: &shared::broker::Delivery) -> Vec<PushId> {
    Job::decode(delivery.message.as_ref().unwrap())
        .unwrap()
        .pushes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promised_job_goes_to_its_consumer_without_the_outbox() {
    let ground = Ground::new().await;
    let mut jobs = ground.bed.consume(Queue::JobsInteractive, 4).await;
    let push = ground.taken().await;
    assert_eq!(
        ground.counts().await,
        (0, 1, 0),
        "leased by its own transaction"
    );
    let job = next(&mut jobs).await;
    assert_eq!((pushes(&job), job.redelivered), (vec![push], false));
    assert!(job.ack().await);
    assert_eq!(ground.counts().await, (0, 0, 0));
    ground.bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_consumer_has_room_for_waits_in_the_table() {
    let ground = Ground::new().await;
    let first = ground.taken().await;
    assert_eq!(ground.counts().await, (1, 0, 0), "nobody consumes");
    let mut jobs = ground.bed.consume(Queue::JobsInteractive, 1).await;
    let held = next(&mut jobs).await;
    assert_eq!(pushes(&held), [first]);
    let second = ground.taken().await;
    assert_eq!(ground.counts().await, (1, 1, 0), "its window is full");
    assert!(held.ack().await);
    let held = next(&mut jobs).await;
    assert_eq!(pushes(&held), [second]);
    assert!(held.requeue().await);
    assert!(!next(&mut jobs).await.redelivered, "given back unused");
    ground.bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_job_does_not_go_before_those_that_wait_in_the_table() {
    let ground = Ground::new().await;
    let mut jobs = ground.bed.consume(Queue::JobsInteractive, 2).await;
    let mut sent = Vec::new();
    for _ in 0..4 {
        sent.push(ground.taken().await);
    }
    let mut held = Vec::new();
    for push in &sent[..2] {
        held.push(next(&mut jobs).await);
        assert_eq!(pushes(held.last().unwrap()), std::slice::from_ref(push));
    }
    for job in held {
        assert!(job.ack().await);
        sent.push(ground.taken().await);
    }
    for push in &sent[2..] {
        let job = next(&mut jobs).await;
        assert_eq!(pushes(&job), std::slice::from_ref(push));
        assert!(job.ack().await);
    }
    ground.bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_hangs_up_leaves_no_job_behind() {
    let ground = Arc::new(Ground::new().await);
    let mut jobs = ground.bed.consume(Queue::JobsInteractive, 64).await;
    for n in 0..40 {
        let caller = tokio::spawn({
            let ground = Arc::clone(&ground);
            async move { ground.taken().await }
        });
        tokio::time::sleep(Duration::from_micros(n * 50)).await;
        caller.abort();
        caller.await.ok();
    }
    // One that is not cut off: everything before it is committed, or never will be.
    let last = ground.taken().await;
    let page = Page {
        limit: 100,
        ..Page::default()
    };
    let mut kept: Vec<PushId> = ground
        .store
        .pushes(&ground.tenant, &page)
        .await
        .unwrap()
        .into_iter()
        .map(|push| push.id)
        .collect();
    kept.sort();
    assert!(kept.contains(&last));
    let mut came = Vec::new();
    for _ in &kept {
        let job = next(&mut jobs).await;
        came.extend(pushes(&job));
        assert!(job.ack().await);
    }
    came.sort();
    assert_eq!(came, kept);
    let Ok(ground) = Arc::try_unwrap(ground) else {
        panic!("every caller has ended");
    };
    ground.bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_process_that_died_goes_to_the_next_one() {
    let mut ground = Ground::new().await;
    let mut jobs = ground.bed.consume(Queue::JobsInteractive, 4).await;
    let push = ground.taken().await;
    drop(next(&mut jobs).await);
    let Engine::Embedded { db, clock, .. } = &ground.bed.engine else {
        panic!("this is the embedded engine's test");
    };
    let heir = Embedded::new(db.clone(), clock.clone());
    // Before the lease is over: a process that starts knows that it is alone.
    heir.apply_topology().await.unwrap();
    let dead = std::mem::replace(&mut ground.bed.broker, Arc::new(heir));
    dead.close().await;
    let mut jobs = ground.bed.consume(Queue::JobsInteractive, 4).await;
    let again = next(&mut jobs).await;
    assert_eq!((pushes(&again), again.redelivered), (vec![push], true));
    ground.bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_not_settled_comes_again_after_its_lease() {
    let ground = Ground::new().await;
    let mut jobs = ground.bed.consume(Queue::JobsInteractive, 4).await;
    let push = ground.taken().await;
    let held = next(&mut jobs).await;
    ground.bed.advance(LEASE);
    let again = next(&mut jobs).await;
    assert_eq!((pushes(&again), again.redelivered), (vec![push], true));
    assert!(!held.ack().await, "it is somebody else's by now");
    assert!(again.ack().await);
    ground.bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_told_to_waiters_to_the_outside_and_to_the_process_itself() {
    let ground = Ground::new().await;
    let push = ground.taken().await;
    let queues = [Queue::StatusWait, Queue::StatusForward, Queue::StatusOwn];
    let mut consumers = Vec::new();
    for queue in queues {
        consumers.push(ground.bed.consume(queue, 4).await);
    }
    let ended = ground.store.cancel(&ground.tenant, &push, "by_sender", NOW);
    assert!(ended.await.unwrap().is_some());
    let mut told = Vec::new();
    for consumer in &mut consumers {
        let event = next(consumer).await;
        told.push(event.message.as_ref().unwrap().clone());
        assert!(event.ack().await);
    }
    assert!(told.iter().all(|one| one == &told[0]));
    let text = String::from_utf8(told[0].body.clone()).unwrap();
    assert!(text.contains(push.as_str()), "{text}");
    assert_eq!(ground.counts().await.2, 0);
    ground.bed.end().await;
}
