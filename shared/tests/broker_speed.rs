//! How fast the engines are, roughly: `scripts/test -- cargo test --release -p shared --test broker_speed -- --ignored --nocapture`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the helpers of a test may panic, and this one's result is what it prints"
)]

use shared::broker::{Broker, Embedded, Queue, Rabbit, rabbit};
use shared::clock::SystemClock;
use shared::id::{MessageId, PushId, StoreId};
use shared::message::{Job, Lane, Message, Route, VERSION};
use shared::store::Db;
use std::sync::Arc;
use std::time::Instant;

const ROUNDS: usize = 40;
const BATCH: usize = 500;

fn batch() -> Vec<Message> {
    let job = || Job {
        v: VERSION,
        store: StoreId::fresh(1),
        pushes: vec![PushId::fresh(1)],
        retries: vec![],
        chunk: None,
    };
    (0..BATCH)
        .map(|_| job().into_message(Route::Jobs(Lane::Interactive), 1))
        .collect()
}

async fn measure(name: &str, broker: Arc<dyn Broker>, workers: usize) {
    broker.apply_topology().await.unwrap();
    let total = ROUNDS * BATCH;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        assert!(broker.publish(&batch()).await.iter().all(Result::is_ok));
    }
    let rate = |since: Instant| total as f64 / since.elapsed().as_secs_f64();
    println!("{name}: publish, one after another: {:.0}/s", rate(start));

    let start = Instant::now();
    let mut consumers = Vec::new();
    let jobs = broker.consume(Queue::JobsInteractive, 256).await.unwrap();
    let jobs = Arc::new(tokio::sync::Mutex::new(jobs));
    let left = Arc::new(std::sync::atomic::AtomicI64::new(total as i64));
    for _ in 0..workers {
        let (jobs, left) = (Arc::clone(&jobs), Arc::clone(&left));
        consumers.push(tokio::spawn(async move {
            while left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) > 0 {
                let delivery = jobs.lock().await.recv().await.unwrap();
                assert!(delivery.ack().await);
            }
        }));
    }
    for consumer in consumers {
        consumer.await.unwrap();
    }
    println!(
        "{name}: consume and ack, prefetch 256, {workers} at once: {:.0}/s",
        rate(start)
    );

    let start = Instant::now();
    let publishers = (0..4).map(|_| {
        let broker = Arc::clone(&broker);
        tokio::spawn(async move {
            for _ in 0..ROUNDS / 4 {
                assert!(broker.publish(&batch()).await.iter().all(Result::is_ok));
            }
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let mut jobs = jobs.lock().await;
    let mut acks = tokio::task::JoinSet::new();
    for _ in 0..total {
        let delivery = jobs.recv().await.unwrap();
        acks.spawn(async move { assert!(delivery.ack().await) });
    }
    while let Some(acked) = acks.join_next().await {
        acked.unwrap();
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    println!(
        "{name}: 4 publishers and a consumer side by side: {:.0}/s through",
        rate(start)
    );
    let one = batch();
    let start = Instant::now();
    for message in one.iter().take(200) {
        broker.publish(std::slice::from_ref(message)).await;
    }
    println!(
        "{name}: one message at a time: {:.2} ms each",
        start.elapsed().as_secs_f64() * 5.0
    );
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a check"]
async fn speed() {
    let url = std::env::var("COUNTERSIGN_TEST_AMQP_URL").unwrap();
    let options = rabbit::Options {
        prefix: format!("speed-{}", MessageId::fresh(0)),
        ..rabbit::Options::default()
    };
    let rabbit = Rabbit::connect(&url, options).await.unwrap();
    measure("rabbitmq", Arc::new(rabbit), 64).await;

    let folder = std::env::temp_dir().join(format!("countersign-speed-{}", MessageId::fresh(0)));
    std::fs::create_dir_all(&folder).unwrap();
    let url = format!("sqlite:{}", folder.join("db.sqlite").display());
    let db = Db::open(&url).await.unwrap();
    db.migrate().await.unwrap();
    let embedded = Embedded::new(db.clone(), Arc::new(SystemClock));
    measure("embedded", Arc::new(embedded), 64).await;
    db.close().await;
    std::fs::remove_dir_all(&folder).unwrap();
}
