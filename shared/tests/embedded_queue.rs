//! What only the embedded engine promises. The rest is in `broker_conformance.rs`.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod support;

use shared::broker::{Depth, PublishError, Queue};
use shared::message::{Lane, Retry, Route};
use std::time::Duration;
use support::{Bed, id, job, message, next};

async fn depth(bed: &Bed) -> Depth {
    bed.broker.depth(Queue::JobsInteractive).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_depth_tells_waiting_from_held() {
    let bed = support::embedded(None).await;
    bed.broker.publish(&[job(), job()]).await;
    let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
    let held = next(&mut jobs).await;
    let now = depth(&bed).await;
    assert_eq!((now.ready, now.unacked), (1, 1));
    assert!(held.ack().await);
    drop(jobs);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeued_message_does_not_count_as_delivered() {
    let bed = support::embedded(None).await;
    bed.broker.publish(&[job()]).await;
    let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
    assert!(next(&mut jobs).await.requeue().await);
    assert!(!next(&mut jobs).await.redelivered);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_can_still_be_settled_after_the_close() {
    let mut bed = support::embedded(None).await;
    bed.broker.publish(&[job()]).await;
    let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
    let held = next(&mut jobs).await;
    bed.broker.close().await;
    assert!(held.ack().await);
    bed.crash().await;
    assert_eq!(depth(&bed).await, Depth::default());
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_counts_what_waits_and_refuses_message_by_message() {
    let bed = support::embedded(Some(2)).await;
    let later = || message(Route::Later(Retry { seconds: 30 }, Lane::Interactive));
    let batch = [later(), job(), job(), job(), later()];
    let refused = Err(PublishError::Refused);
    let said = bed.broker.publish(&batch).await;
    assert_eq!(said, [Ok(()), Ok(()), Ok(()), refused, Ok(())]);
    let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
    assert_eq!(id(&next(&mut jobs).await), batch[1].id);
    bed.advance(Duration::from_secs(30));
    assert_eq!(bed.broker.publish(&[job()]).await, [refused]);
    bed.end().await;
}
