//! The pool: streams, connections, and what is known about a push when they fail.

use crate::bed::{Bed, accepted, call, device, push_all, until};
use crate::wire::{Peer, Step};
use shared::clock::{Clock as _, SystemClock};
use shared::domain::ApnsCredential;
use simulator::{Provider as Side, Script};
use std::sync::Arc;
use std::time::{Duration, Instant};
use workers::push::{Options, Provider, Providers, PushResult};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_goaways_loses_and_doubles_nothing() {
    let bed = Bed::new().await;
    let provider = bed.apns("p");
    let tokens: Vec<_> = (0..3_000).map(device).collect();
    for token in tokens.iter().step_by(50) {
        bed.gateway.script_times(token, Script::GoAway, 1);
    }
    let mut left = tokens.clone();
    let mut rounds = 0;
    while !left.is_empty() {
        rounds += 1;
        assert!(rounds < 10, "{} left", left.len());
        let results = futures_util::future::join_all(left.iter().map(|token| {
            let provider = Arc::clone(&provider);
            async move { (token.clone(), provider.push(&call(token)).await) }
        }))
        .await;
        // What a worker does: again where it is proved that nobody processed it.
        left = results
            .into_iter()
            .filter_map(|(token, result)| match result {
                PushResult::Accepted { .. } => None,
                PushResult::Unprocessed { .. } => Some(token),
                other => panic!("{other:?}"),
            })
            .collect();
    }
    let counts = bed.gateway.counts();
    assert_eq!(counts.accepted, 3_000, "a push was lost or doubled");
    assert_eq!(counts.requests, 3_000);
    assert!(counts.connections[&Side::Apns] >= 5, "no storm");
    for token in &tokens {
        assert_eq!(bed.gateway.receipts_for(token).len(), 1);
    }
}

#[tokio::test]
async fn few_streams_and_a_slow_peer_make_more_connections() {
    // A project's pace would do with fewer.
    let bed = Bed::with(|options| options.fcm_per_minute = u32::MAX).await;
    bed.gateway.set_latency(Duration::from_millis(80));
    let provider = bed.fcm("p");
    let tokens = (0..3_000).map(|n| format!("device-{n:08}")).collect();
    let started = Instant::now();
    let results = push_all(&provider, tokens, 500).await;
    assert!(results.iter().all(accepted));
    let connections = bed.gateway.counts().connections[&Side::Fcm];
    // One of them fetched the access token. A single connection would take 2.4 s on an idle machine.
    assert!(
        (5..=12).contains(&connections),
        "{connections} connections in {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn connections_are_bounded_and_the_rest_waits() {
    let bed = Bed::with(|options| options.max_connections = 2).await;
    bed.gateway.set_max_streams(Side::Apns, 5);
    bed.gateway.set_latency(Duration::from_millis(5));
    let provider = bed.apns("p");
    let results = push_all(&provider, (0..200).map(device).collect(), 200).await;
    assert!(results.iter().all(accepted));
    assert_eq!(bed.gateway.counts().connections[&Side::Apns], 2);
}

#[tokio::test]
async fn a_full_queue_refuses_before_anything_is_sent() {
    let bed = Bed::with(|options| {
        options.max_connections = 1;
        options.max_waiting = 10;
    })
    .await;
    bed.gateway.set_max_streams(Side::Apns, 1);
    bed.gateway.set_latency(Duration::from_millis(5));
    let provider = bed.apns("p");
    let results = push_all(&provider, (0..50).map(device).collect(), 50).await;
    let full = PushResult::Unprocessed {
        reason: "queue_full".into(),
    };
    let refused = results.iter().filter(|result| **result == full).count();
    let taken = results.iter().filter(|result| accepted(result)).count();
    assert_eq!(
        (refused + taken, taken as u64),
        (50, bed.gateway.counts().requests)
    );
    assert!((10..=12).contains(&taken), "{taken}");
}

#[tokio::test]
async fn a_push_that_expires_while_it_waits_for_a_stream_is_not_sent() {
    let bed = Bed::with(|options| options.max_connections = 1).await;
    bed.gateway.set_max_streams(Side::Apns, 1);
    bed.gateway.set_latency(Duration::from_millis(500));
    let provider = bed.apns("p");
    let first = tokio::spawn({
        let provider = Arc::clone(&provider);
        async move { provider.push(&call(&device(1))).await }
    });
    until("the first push", || bed.gateway.counts().requests == 1).await;
    let mut second = call(&device(2));
    second.expires_at = SystemClock.now() + 100;
    let result = provider.push(&second).await;
    assert_eq!(
        result,
        PushResult::Unprocessed {
            reason: "no_stream".into()
        }
    );
    assert!(accepted(&first.await.unwrap()));
    assert_eq!(bed.gateway.counts().requests, 1);
}

#[tokio::test]
async fn a_connection_cut_after_the_push_was_taken_leaves_it_open() {
    let bed = Bed::new().await;
    bed.gateway
        .script_times(&device(1), Script::ResetAfterAccept, 1);
    let provider = bed.apns("p");
    let result = provider.push(&call(&device(1))).await;
    let PushResult::Ambiguous { reason } = &result else {
        panic!("{result:?}");
    };
    assert_eq!(reason, "connection_lost");
    // It was not sent again behind anybody's back, and the next one finds a connection.
    assert_eq!(bed.gateway.receipts_for(&device(1)).len(), 1);
    assert!(accepted(&provider.push(&call(&device(2))).await));
}

#[tokio::test]
async fn a_peer_that_never_answers_costs_the_deadline_and_no_more() {
    let bed = Bed::with(|options| options.timeout = Duration::from_millis(300)).await;
    bed.gateway.script(&device(1), Script::Hang);
    let provider = bed.apns("p");
    let started = Instant::now();
    let result = provider.push(&call(&device(1))).await;
    assert_eq!(
        result,
        PushResult::Ambiguous {
            reason: "timeout".into()
        }
    );
    assert!(started.elapsed() < Duration::from_secs(2));
    // Nothing came back on that connection at all, so the next push does not trust it.
    assert!(accepted(&provider.push(&call(&device(2))).await));
    assert_eq!(bed.gateway.counts().connections[&Side::Apns], 2);
}

#[tokio::test]
async fn an_absent_peer_is_told_soon_and_costs_nobody_the_deadline() {
    let bed = Bed::new().await;
    let mut credential = bed.apns_credential();
    let vacant = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    credential.endpoint = format!("https://{}", vacant.local_addr().unwrap());
    drop(vacant);
    let provider = bed.providers.apns("p", &credential).unwrap();
    let started = Instant::now();
    let results = push_all(&provider, (0..100).map(device).collect(), 100).await;
    let refused = PushResult::Unprocessed {
        reason: "connect_refused".into(),
    };
    assert!(results.iter().all(|result| *result == refused));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn an_old_connection_is_replaced_without_a_gap() {
    let bed = Bed::with(|options| options.max_age = Duration::from_millis(200)).await;
    let provider = bed.apns("p");
    let mut number = 0;
    while bed
        .gateway
        .counts()
        .connections
        .get(&Side::Apns)
        .is_none_or(|c| *c < 3)
    {
        assert!(accepted(&provider.push(&call(&device(number))).await));
        number += 1;
        assert!(number < 1_000_000, "never replaced");
    }
    assert_eq!(bed.gateway.counts().accepted, number as u64);
}

/// A provider whose APNs is a peer that speaks single frames.
fn towards(peer: &Peer, bed: &Bed) -> Arc<dyn Provider> {
    let providers = Providers::new(Options {
        extra_ca_pem: Some(peer.ca_pem.clone()),
        timeout: Duration::from_secs(5),
        ..Options::default()
    })
    .unwrap();
    let credential = ApnsCredential {
        endpoint: peer.url.clone(),
        ..bed.apns_credential()
    };
    providers.apns("p", &credential).unwrap()
}

#[tokio::test]
async fn one_stream_is_respected_until_the_peer_allows_more() {
    let bed = Bed::new().await;
    let peer = Peer::start(1, |request| match request {
        1 => vec![Step::Settings(50), Step::Answer],
        // What Apple does after a push that it rejects.
        60 => vec![Step::Settings(1), Step::Answer],
        _ => vec![Step::Answer],
    })
    .await;
    let provider = towards(&peer, &bed);
    let results = push_all(&provider, (0..200).map(device).collect(), 200).await;
    assert!(results.iter().all(accepted));
    let seen = peer.seen();
    assert_eq!(seen.requests, 200);
    assert_eq!(seen.exceeded, 0, "more streams than allowed");
    assert!(seen.most_open > 1, "never more than one stream at once");
}

#[tokio::test]
async fn refused_streams_are_sent_again_and_nothing_else_is() {
    let bed = Bed::new().await;
    let peer = Peer::start(100, |request| match request {
        1 => vec![Step::Reset(0x7)],
        3 => vec![Step::Reset(0x2)],
        _ => vec![Step::Answer],
    })
    .await;
    let provider = towards(&peer, &bed);
    assert!(accepted(&provider.push(&call(&device(1))).await));
    assert_eq!(peer.seen().requests, 2);
    let result = provider.push(&call(&device(2))).await;
    assert_eq!(
        result,
        PushResult::Ambiguous {
            reason: "stream_reset".into()
        }
    );
    assert_eq!(peer.seen().requests, 3);
}

#[tokio::test]
async fn streams_above_the_last_one_of_a_goaway_are_sent_again_and_those_below_are_not() {
    let bed = Bed::new().await;
    // The first connection: 1 answered, then 3 and 5 taken in; GOAWAY says that only 3 was processed, and the line is cut.
    let peer = Peer::start(100, |request| match request {
        2 => vec![],
        3 => vec![Step::GoAway(3), Step::Cut],
        _ => vec![Step::Answer],
    })
    .await;
    let provider = towards(&peer, &bed);
    assert!(accepted(&provider.push(&call(&device(1))).await));
    let below = tokio::spawn({
        let provider = Arc::clone(&provider);
        async move { provider.push(&call(&device(2))).await }
    });
    until("the second request", || peer.seen().requests == 2).await;
    let above = provider.push(&call(&device(3))).await;
    assert!(accepted(&above), "{above:?}");
    let below = below.await.unwrap();
    assert_eq!(below.label(), "timeout", "{below:?}");
    assert_eq!(peer.seen().requests, 4);
}
