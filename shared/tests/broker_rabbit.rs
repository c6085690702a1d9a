//! What only the RabbitMQ engine has to get right: connections that break, confirms that do not come, strangers' queues, and
//! a topology that others have changed. `scripts/test` provides RabbitMQ.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod support;

use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use shared::broker::{Broker as _, Error, PublishError, Queue, Rabbit};
use shared::id::MessageId;
use shared::message::{EVENT, EVENT_BATCH, Lane, Message, Route};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Bed, Engine, PATIENCE, amqp_url, id, job, message, next, options, within};

/// Publishes until every one is confirmed, as the relay does.
async fn publish_all(bed: &Bed, mut left: Vec<Message>) {
    let publishing = async {
        while !left.is_empty() {
            let said = bed.broker.publish(&left).await;
            let mut said = said.into_iter();
            left.retain(|_| said.next().unwrap().is_err());
        }
    };
    within("the confirms", publishing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_again_and_again_lose_nothing() {
    let Some(bed) = support::rabbit(None).await else {
        return;
    };
    let bed = Arc::new(bed);
    let batches: Vec<Vec<_>> = (0..30).map(|_| (0..50).map(|_| job()).collect()).collect();
    let mut missing: HashSet<_> = batches.iter().flatten().map(|m| m.id.clone()).collect();
    let mut jobs = bed.consume(Queue::JobsInteractive, 20).await;
    let publishing = tokio::spawn({
        let bed = Arc::clone(&bed);
        async move {
            for batch in batches {
                publish_all(&bed, batch).await;
            }
        }
    });
    let mut acked = 0;
    while !missing.is_empty() {
        let delivery = next(&mut jobs).await;
        // An ack that is refused means that it comes again.
        if within("the ack", delivery.ack()).await {
            missing.remove(&id(&delivery));
            acked += 1;
            if acked % 150 == 0 {
                bed.proxy().cut();
            }
        }
    }
    publishing.await.unwrap();
    let bed = Arc::into_inner(bed).unwrap();
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_that_does_not_come_is_unknown_in_time_and_the_connection_is_replaced() {
    let Some(mut bed) = support::rabbit(None).await else {
        return;
    };
    let Engine::Rabbit { url, proxy, .. } = &bed.engine else {
        unreachable!("this is the bed of RabbitMQ")
    };
    let mut quick = options(&bed.prefix, None);
    // Long enough for a busy machine to confirm in.
    quick.confirm_timeout = Duration::from_secs(2);
    let broker = Arc::new(Rabbit::connect(&proxy.url(url), quick).await.unwrap());
    let sent = job();
    assert_eq!(broker.publish(std::slice::from_ref(&sent)).await, [Ok(())]);
    bed.proxy().go_deaf();
    for _ in 0..3 {
        let start = Instant::now();
        let said = broker.publish(&[job(), job()]).await;
        assert_eq!(
            said,
            [Err(PublishError::Unknown), Err(PublishError::Unknown)]
        );
        assert!(
            start.elapsed() < Duration::from_secs(8),
            "{:?}",
            start.elapsed()
        );
    }
    assert!(!broker.healthy().await);
    // From here on the silent connection stays silent: only a new one can hear.
    bed.proxy().cut();
    bed.proxy().hear();
    bed.broker = broker;
    let after = job();
    publish_all(&bed, vec![after.clone()]).await;
    let well = async {
        while !bed.broker.healthy().await {
            tokio::task::yield_now().await;
        }
    };
    within("health", well).await;
    // What was unknown may have been taken; the first and the last certainly were.
    let mut jobs = bed.consume(Queue::JobsInteractive, 20).await;
    let mut expected = HashSet::from([sent.id, after.id]);
    while !expected.is_empty() {
        expected.remove(&id(&next(&mut jobs).await));
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_gone_silent_is_found_out_and_replaced_while_the_socket_stays_open() {
    let Some(mut bed) = support::rabbit(None).await else {
        return;
    };
    let Engine::Rabbit { url, proxy, .. } = &bed.engine else {
        unreachable!("this is the bed of RabbitMQ")
    };
    let mut quick = options(&bed.prefix, None);
    quick.confirm_timeout = Duration::from_millis(200);
    bed.broker = Arc::new(Rabbit::connect(&proxy.url(url), quick).await.unwrap());
    proxy.go_deaf();
    assert_eq!(
        bed.broker.publish(&[job()]).await,
        [Err(PublishError::Unknown)]
    );
    proxy.forget();
    proxy.hear();
    publish_all(&bed, vec![job()]).await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn returns_are_laid_to_the_right_messages_also_with_many_publishers() {
    let Some(bed) = support::rabbit(None).await else {
        return;
    };
    let (connection, channel) = bed.stranger().await.unwrap();
    let there = format!("ext.{}.there", bed.prefix);
    let options = QueueDeclareOptions::default();
    channel
        .queue_declare(there.as_str().into(), options, FieldTable::default())
        .await
        .unwrap();
    let bed = Arc::new(bed);
    let publishers = (0..6).map(|seed| {
        let (bed, there) = (Arc::clone(&bed), there.clone());
        tokio::spawn(async move {
            for round in 0..5_usize {
                let nowhere = |n: usize| (n + round + seed).is_multiple_of(7);
                let queue = |n: usize| {
                    if nowhere(n) {
                        format!("ext.{}.nobody", bed.prefix)
                    } else {
                        there.clone()
                    }
                };
                let batch: Vec<_> = (0..100).map(|n| message(Route::Direct(queue(n)))).collect();
                let said = bed.broker.publish(&batch).await;
                for (n, result) in said.into_iter().enumerate() {
                    let expected = if nowhere(n) {
                        Err(PublishError::Unroutable)
                    } else {
                        Ok(())
                    };
                    assert_eq!(result, expected);
                }
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.unwrap();
    }
    connection.close(200, "OK".into()).await.unwrap();
    Arc::into_inner(bed).unwrap().end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn third_parties_get_what_they_asked_for_and_only_that() {
    let Some(bed) = support::rabbit(None).await else {
        return;
    };
    let (connection, channel) = bed.stranger().await.unwrap();
    let queue = format!("ext.{}.erp", bed.prefix);
    let exclusive = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(queue.as_str().into(), exclusive, FieldTable::default())
        .await
        .unwrap();
    let exchange = format!("{}.status.ext", bed.prefix);
    let bind = QueueBindOptions::default();
    channel
        .queue_bind(
            queue.as_str().into(),
            exchange.into(),
            "v1.acme.#".into(),
            bind,
            FieldTable::default(),
        )
        .await
        .unwrap();
    let event = |route| Message {
        content_type: EVENT.to_owned(),
        ..message(route)
    };
    let direct = event(Route::Direct(queue.clone()));
    let copy = Message {
        content_type: EVENT_BATCH.to_owned(),
        ..event(Route::External("v1.acme.confirm.approved".to_owned()))
    };
    let other = event(Route::External("v1.other.confirm.approved".to_owned()));
    let batch = [direct.clone(), other, copy.clone()];
    assert_eq!(bed.broker.publish(&batch).await, [Ok(()), Ok(()), Ok(())]);
    for expected in [direct, copy] {
        let got = within("the message", async {
            loop {
                let options = BasicGetOptions { no_ack: true };
                if let Some(got) = channel
                    .basic_get(queue.as_str().into(), options)
                    .await
                    .unwrap()
                {
                    break got;
                }
            }
        })
        .await;
        assert_eq!(got.data, expected.body);
        let said = &got.properties;
        assert_eq!(
            said.message_id().as_ref().unwrap().as_str(),
            expected.id.as_str()
        );
        assert_eq!(
            said.content_type().as_ref().unwrap().as_str(),
            expected.content_type
        );
        assert_eq!(*said.delivery_mode(), Some(2));
    }
    connection.close(200, "OK".into()).await.unwrap();
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_ends_no_consumer_once_the_topology_is_there_again() {
    let Some(bed) = support::rabbit(None).await else {
        return;
    };
    let mut jobs = bed.consume(Queue::JobsInteractive, 5).await;
    let (connection, channel) = bed.stranger().await.unwrap();
    let queue = format!("{}.jobs.interactive", bed.prefix);
    let options = QueueDeleteOptions::default();
    channel.queue_delete(queue.into(), options).await.unwrap();
    assert_eq!(
        bed.broker.publish(&[job()]).await,
        [Err(PublishError::Unroutable)]
    );
    // The broker cleans up behind a deletion: a queue that is made anew at once it may take too, with what was in it, or leave without a leader that
    // delivers.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut sent = Vec::new();
    let came = within("a delivery", async {
        loop {
            bed.broker.apply_topology().await.unwrap();
            let message = job();
            bed.broker.publish(std::slice::from_ref(&message)).await;
            sent.push(message.id);
            let next = tokio::time::timeout(Duration::from_secs(6), jobs.recv());
            if let Ok(came) = next.await {
                return came.expect("the consumer has ended");
            }
        }
    });
    let came = id(&came.await);
    assert!(sent.contains(&came));
    connection.close(200, "OK".into()).await.unwrap();
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_is_named_and_left_alone() {
    let Some(bed) = support::rabbit(None).await else {
        return;
    };
    let Engine::Rabbit { url, .. } = &bed.engine else {
        unreachable!("this is the bed of RabbitMQ")
    };
    bed.send(Route::Jobs(Lane::Interactive)).await;
    let other = Rabbit::connect(url, options(&bed.prefix, Some(9)))
        .await
        .unwrap();
    match other.apply_topology().await {
        Err(Error::Refused(why)) => {
            let queue = format!("{}.jobs.interactive", bed.prefix);
            assert!(
                why.contains(&queue) && why.contains("x-max-length"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    other.close().await;
    let mut jobs = bed.consume(Queue::JobsInteractive, 5).await;
    assert!(next(&mut jobs).await.ack().await);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_at_once() {
    let Some(bed) = support::rabbit(None).await else {
        return;
    };
    let Engine::Rabbit { url, .. } = &bed.engine else {
        unreachable!("this is the bed of RabbitMQ")
    };
    let stranger = format!("t.{}", MessageId::fresh(0));
    let bare = Rabbit::connect(url, options(&stranger, None))
        .await
        .unwrap();
    for queue in [Queue::JobsBulk, Queue::StatusOwn] {
        let refused = bare.consume(queue.clone(), 1).await.err().unwrap();
        assert!(
            matches!(refused, Error::Refused(_)),
            "{queue:?}: {refused:?}"
        );
    }
    assert!(matches!(
        bare.depth(Queue::JobsBulk).await,
        Err(Error::Refused(_))
    ));
    // Nothing was sent; that another batch is not harmed shows in the next one.
    assert_eq!(bare.publish(&[job()]).await, [Err(PublishError::Unknown)]);
    bare.apply_topology().await.unwrap();
    assert_eq!(bare.publish(&[job()]).await, [Ok(())]);
    let strangers = Bed {
        name: "rabbitmq",
        broker: Arc::new(bare.clone()),
        engine: Engine::Rabbit {
            url: url.clone(),
            proxy: support::proxy::Proxy::before(String::new()).await,
            engine: bare,
        },
        prefix: stranger,
        limit: None,
    };
    strangers.end().await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_address_is_told_without_its_password() {
    let Some(url) = amqp_url() else {
        return;
    };
    let at = support::proxy::authority(&url).to_owned();
    let say = async |url: String| {
        let connecting = Rabbit::connect(&url, options("t", None));
        let error = tokio::time::timeout(PATIENCE, connecting)
            .await
            .unwrap()
            .err()
            .unwrap();
        let mut text = format!("{error:?}");
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = source {
            text.push_str(&error.to_string());
            source = error.source();
        }
        assert!(!text.contains("canary"), "{text}");
        error
    };
    let refused = |error| assert!(matches!(error, Error::Refused(_)), "{error:?}");
    refused(say(format!("amqp://guest:canary@{at}")).await);
    refused(say(format!("amqp://guest:canary@{at}/nowhere")).await);
    refused(say(format!("http://guest:canary@{at}")).await);
    refused(say("amqp:canary".to_owned()).await);
    match say("amqp://guest:canary@127.0.0.1:1".to_owned()).await {
        Error::Unreachable { at, .. } => assert_eq!(at, "127.0.0.1:1"),
        other => panic!("{other:?}"),
    }
    // The default host, written both ways.
    for end in ["", "/"] {
        let head = url.split(&at).next().unwrap();
        let broker = Rabbit::connect(&format!("{head}{at}{end}"), options("t", None)).await;
        broker.unwrap().close().await;
    }
}
