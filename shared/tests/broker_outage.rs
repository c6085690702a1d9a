//! What happens to the engine when something happens to the whole broker. It needs the broker for itself, so it is one test
//! in a program of its own, and runs only against a server that `scripts/test` has made.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod support;

use shared::broker::{PublishError, Queue};
use shared::message::Message;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Bed, id, job, next, within};
use tokio::process::Command;

async fn control(arguments: &[&str]) {
    let program = std::env::var("COUNTERSIGN_TEST_BROKER_CONTROL").unwrap();
    let done = Command::new(program)
        .args(arguments)
        .output()
        .await
        .unwrap();
    assert!(done.status.success(), "{arguments:?}: {done:?}");
}

/// Publishes until every one is confirmed, as the relay does.
async fn publish_all(bed: &Bed, mut left: Vec<Message>) {
    while !left.is_empty() {
        let said = bed.broker.publish(&left).await;
        let mut said = said.into_iter();
        left.retain(|_| said.next().unwrap().is_err());
    }
}

/// Everything that is confirmed while `harm` is done arrives.
async fn nothing_is_lost_while(bed: &Arc<Bed>, harm: impl Future<Output = ()>) {
    let batches: Vec<Vec<_>> = (0..40).map(|_| (0..50).map(|_| job()).collect()).collect();
    let mut missing: HashSet<_> = batches.iter().flatten().map(|m| m.id.clone()).collect();
    let mut jobs = bed.consume(Queue::JobsInteractive, 20).await;
    let (half_way, go) = tokio::sync::oneshot::channel();
    let publishing = tokio::spawn({
        let bed = Arc::clone(bed);
        async move {
            let mut half_way = Some(half_way);
            for (count, batch) in batches.into_iter().enumerate() {
                if count == 5 {
                    half_way.take().unwrap().send(()).unwrap();
                }
                publish_all(&bed, batch).await;
            }
        }
    });
    let consuming = async {
        while !missing.is_empty() {
            let delivery = next(&mut jobs).await;
            if delivery.ack().await {
                missing.remove(&id(&delivery));
            }
        }
    };
    let harming = async {
        go.await.unwrap();
        harm.await;
    };
    tokio::join!(consuming, harming);
    within("the last confirm", publishing).await.unwrap();
}

async fn an_alarm_stops_publishers_only(bed: &Bed) {
    publish_all(bed, (0..3).map(|_| job()).collect()).await;
    control(&["ctl", "set_vm_memory_high_watermark", "0.0000001"]).await;
    // The broker holds a connection back once it publishes; until then the confirm is what does not come.
    let held_back = async {
        loop {
            let start = Instant::now();
            let said = bed.broker.publish(&[job()]).await;
            if said == [Err(PublishError::Unknown)] && start.elapsed() < Duration::from_secs(1) {
                break;
            }
        }
    };
    within("the word that it is blocked", held_back).await;
    assert!(!bed.broker.healthy().await);
    let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
    for _ in 0..3 {
        assert!(next(&mut jobs).await.ack().await, "consumers go on");
    }
    control(&["ctl", "set_vm_memory_high_watermark", "0.4"]).await;
    let again = async {
        publish_all(bed, vec![job()]).await;
        while !bed.broker.healthy().await {
            tokio::task::yield_now().await;
        }
    };
    within("the end of the alarm", again).await;
    drop(jobs);
}

#[tokio::test(flavor = "multi_thread")]
async fn outages_of_the_broker_lose_nothing() {
    if std::env::var_os("COUNTERSIGN_TEST_BROKER_CONTROL").is_none() {
        eprintln!("left out: this RabbitMQ is not one to be killed");
        return;
    }
    let Some(bed) = support::rabbit(None).await else {
        return;
    };
    let bed = Arc::new(bed);
    nothing_is_lost_while(&bed, control(&["ctl", "close_all_connections", "test"])).await;
    nothing_is_lost_while(&bed, control(&["restart"])).await;
    nothing_is_lost_while(&bed, async {
        control(&["ctl", "stop_app"]).await;
        control(&["ctl", "start_app"]).await;
    })
    .await;
    an_alarm_stops_publishers_only(&bed).await;
    Arc::into_inner(bed).unwrap().end().await;
}
