//! FCM's quota: kept to by several workers together, without a login waiting for a batch.

use crate::bed::{Bed, accepted, call};
use shared::message::Lane;
use simulator::{Gateway, GatewayOptions, Script};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use workers::push::{Options, Provider, Providers, PushResult};

/// As many as the flood of one worker.
const FLOOD: usize = 60;

fn token(lane: &str, number: usize) -> String {
    format!("{lane}-{number}:APA91b_{number:020}")
}

fn worker(gateway: &Gateway, workers: u32) -> Providers {
    let providers = Providers::new(Options {
        extra_ca_pem: Some(gateway.ca_pem().to_owned()),
        fcm_per_minute: 1_200,
        ..Options::default()
    });
    let providers = providers.unwrap();
    providers.share_among(workers);
    providers
}

/// Sends as the queue does: what is turned away comes back when it was told to.
async fn until_sent(provider: Arc<dyn Provider>, token: String, lane: Lane) -> PushResult {
    let mut call = call(&token);
    call.lane = lane;
    loop {
        match provider.push(&call).await {
            PushResult::Paced { after } => tokio::time::sleep(after).await,
            result => return result,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_keep_to_the_quota_and_logins_overtake_a_flood() {
    let gateway = Gateway::start(GatewayOptions {
        fcm_per_second: Some(20),
        ..GatewayOptions::default()
    });
    let bed = Bed::on(gateway.await.unwrap());
    let workers = [worker(&bed.gateway, 2), worker(&bed.gateway, 2)];
    let ways = workers
        .each_ref()
        .map(|w| w.fcm("p", &bed.fcm_credential()).unwrap());
    let mut sending = JoinSet::new();
    for n in 0..2 * FLOOD {
        let (way, address) = (Arc::clone(&ways[n % 2]), token("bulk", n));
        sending.spawn(until_sent(way, address, Lane::Bulk));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for n in 0..6 {
        let (way, address) = (Arc::clone(&ways[n % 2]), token("login", n));
        sending.spawn(until_sent(way, address, Lane::Interactive));
    }
    let results = sending.join_all().await;
    assert!(results.iter().all(accepted), "{results:?}");
    let journal = bed.gateway.journal();
    assert_eq!(journal.len(), 2 * FLOOD + 6, "each was sent once");
    let mut before = 0;
    for receipt in journal {
        assert_eq!(receipt.status, Some(200), "no 429");
        if receipt.token.expose().starts_with("bulk") {
            before += 1;
        } else {
            assert!(before < FLOOD, "a login came after {before} of the flood");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_429_a_batch_is_held_back_as_long_as_asked() {
    let bed = Bed::new().await;
    let provider = bed.fcm("p");
    let script = Script::Throttled {
        times: 1,
        retry_after_secs: 60,
    };
    bed.gateway.script(&token("login", 1), script);
    let throttled = provider.push(&call(&token("login", 1))).await;
    assert_eq!(throttled.label(), "throttled");
    for n in 0..10 {
        let mut bulk = call(&token("bulk", n));
        bulk.lane = Lane::Bulk;
        let result = provider.push(&bulk).await;
        let PushResult::Paced { after } = result else {
            panic!("{result:?}");
        };
        assert!(after > Duration::from_secs(55), "{after:?}");
    }
    assert_eq!(bed.gateway.counts().requests, 1);
    assert!(accepted(&provider.push(&call(&token("login", 2))).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_that_hangs_leaves_streams_for_a_login() {
    let bed = Bed::with(|options| {
        options.max_connections = 1;
        options.timeout = Duration::from_secs(5);
    })
    .await;
    let provider = bed.fcm("p");
    assert!(accepted(&provider.push(&call(&token("login", 999))).await));
    let mut flood = JoinSet::new();
    for n in 0..300 {
        let address = token("bulk", n);
        bed.gateway.script(&address, Script::Hang);
        let mut call = call(&address);
        call.lane = Lane::Bulk;
        let provider = Arc::clone(&provider);
        flood.spawn(async move { provider.push(&call).await });
    }
    crate::bed::until("the flood", || bed.gateway.counts().requests >= 80).await;
    for n in 0..20 {
        let result = provider.push(&call(&token("login", n))).await;
        assert!(accepted(&result), "{result:?}");
    }
    assert!(flood.try_join_next().is_none(), "it still hangs");
}
