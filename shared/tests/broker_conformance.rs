//! One suite of the broker port's promises, both engines. `scripts/test` provides RabbitMQ.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod support;

use shared::broker::{DELIVERY_LIMIT, LEASE, PublishError, Queue};
use shared::message::{Lane, Retry, Route};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use support::{Engine, beds, id, job, limited, message, next, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_message_is_delivered_unchanged_and_gone_after_the_ack() {
    for mut bed in beds().await {
        let mut sent = job();
        sent.traceparent =
            Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
        let said = bed.broker.publish(std::slice::from_ref(&sent)).await;
        assert_eq!(said, [Ok(())]);
        let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
        let delivery = next(&mut jobs).await;
        assert_eq!(delivery.message.as_ref().unwrap(), &sent, "{}", bed.name);
        assert_eq!(&delivery.raw[..], &sent.body[..]);
        assert!(!delivery.redelivered);
        assert!(delivery.ack().await);
        assert!(!delivery.ack().await, "a second ack finds nothing");
        assert!(!delivery.requeue().await, "nor does anything else");
        // With room for one, the next one comes only when the broker has had the ack, which no answer tells of.
        let held = bed.send(Route::Jobs(Lane::Interactive)).await;
        let zombie = next(&mut jobs).await;
        assert_eq!(id(&zombie), held.id, "{}", bed.name);
        let before = bed.crash().await;
        let mut jobs = bed.consume(Queue::JobsInteractive, 4).await;
        assert_eq!(id(&next(&mut jobs).await), held.id, "{}", bed.name);
        before.close().await;
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_consumer_held_comes_back_and_the_late_ack_is_refused() {
    for mut bed in beds().await {
        let sent = bed.send(Route::Jobs(Lane::Interactive)).await;
        let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
        let zombie = next(&mut jobs).await;
        let before = bed.crash().await;
        let mut rest = bed.consume(Queue::JobsInteractive, 1).await;
        let again = next(&mut rest).await;
        assert!(again.redelivered, "{}", bed.name);
        assert_eq!(id(&again), sent.id);
        assert!(!zombie.ack().await, "{}: it no longer holds it", bed.name);
        assert!(again.ack().await);
        before.close().await;
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_delivery_settles_nothing_and_comes_again() {
    for bed in beds().await {
        bed.send(Route::Jobs(Lane::Bulk)).await;
        let mut jobs = bed.consume(Queue::JobsBulk, 1).await;
        drop(next(&mut jobs).await);
        bed.advance(LEASE);
        assert!(next(&mut jobs).await.redelivered, "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_message_waits_for_its_tier_and_keeps_its_lane() {
    for bed in beds().await {
        let start = Instant::now();
        let sent = bed
            .send(Route::Later(Retry { seconds: 1 }, Lane::Bulk))
            .await;
        let now = bed.broker.depth(Queue::JobsBulk).await.unwrap();
        assert_eq!((now.ready, now.unacked), (0, 0), "{}: not yet", bed.name);
        let mut jobs = bed.consume(Queue::JobsBulk, 1).await;
        bed.advance(Duration::from_millis(999));
        assert_eq!(bed.broker.depth(Queue::JobsBulk).await.unwrap().ready, 0);
        bed.advance(Duration::from_millis(1));
        let delivery = next(&mut jobs).await;
        let arrived = delivery.message.as_ref().unwrap();
        assert_eq!(arrived.id, sent.id);
        assert_eq!(arrived.route, Route::Jobs(Lane::Bulk), "{}", bed.name);
        if let Engine::Rabbit { .. } = bed.engine {
            assert!(start.elapsed() >= Duration::from_millis(990));
        }
        // Around again under the same identifier: what the broker noted on the first way must not stop the second.
        let again = message(Route::Later(Retry { seconds: 1 }, Lane::Bulk));
        let again = shared::message::Message {
            id: sent.id.clone(),
            ..again
        };
        assert_eq!(bed.broker.publish(&[again]).await, [Ok(())]);
        assert!(delivery.ack().await);
        bed.advance(Duration::from_secs(1));
        assert_eq!(id(&next(&mut jobs).await), sent.id, "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_unroutable_message_does_not_spoil_its_batch() {
    for bed in beds().await {
        let nowhere = || message(Route::Direct(format!("ext.nobody.{}", bed.prefix)));
        let forbidden = message(Route::Direct(format!("{}.jobs.bulk", bed.prefix)));
        let batch = [job(), nowhere(), job(), forbidden, nowhere()];
        let said = bed.broker.publish(&batch).await;
        let expected = [
            Ok(()),
            Err(PublishError::Unroutable),
            Ok(()),
            Err(PublishError::Refused),
            Err(PublishError::Unroutable),
        ];
        assert_eq!(said, expected, "{}", bed.name);
        assert_eq!(bed.broker.publish(&[]).await, []);
        let mut jobs = bed.consume(Queue::JobsInteractive, 4).await;
        let got = [id(&next(&mut jobs).await), id(&next(&mut jobs).await)];
        assert_eq!(got, [batch[0].id.clone(), batch[2].id.clone()]);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_takes_again_once_it_is_drained() {
    for bed in limited(Some(5)).await {
        let mut accepted = HashSet::new();
        let mut refused = 0;
        while refused == 0 {
            assert!(accepted.len() < 1_000, "{}: it takes everything", bed.name);
            let one = job();
            match bed.broker.publish(std::slice::from_ref(&one)).await[0] {
                Ok(()) => {
                    accepted.insert(one.id);
                }
                Err(PublishError::Refused) => refused += 1,
                Err(other) => panic!("{}: {other}", bed.name),
            }
        }
        assert!(accepted.len() >= 5, "{}", bed.name);
        // The other lane is not full.
        bed.send(Route::Jobs(Lane::Bulk)).await;
        let mut jobs = bed.consume(Queue::JobsInteractive, 100).await;
        while !accepted.is_empty() {
            let delivery = next(&mut jobs).await;
            accepted.remove(&id(&delivery));
            assert!(delivery.ack().await);
        }
        let taken = async {
            while bed.broker.publish(&[job()]).await[0].is_err() {
                tokio::task::yield_now().await;
            }
        };
        within("room in the queue", taken).await;
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_prefetch_is_held_and_nothing_is_held_twice() {
    for bed in beds().await {
        let mut left = bed.consume(Queue::JobsInteractive, 3).await;
        let mut right = bed.consume(Queue::JobsInteractive, 3).await;
        let batch: Vec<_> = (0..40).map(|_| job()).collect();
        bed.broker.publish(&batch).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(next(&mut left).await);
            held.push(next(&mut right).await);
        }
        // Somebody with a wide window gets all the rest: had one of the two more than three, some would be missing.
        let mut wide = bed.consume(Queue::JobsInteractive, 100).await;
        for _ in 0..34 {
            held.push(next(&mut wide).await);
        }
        assert!(left.try_recv().is_err() && right.try_recv().is_err());
        let mut seen: Vec<_> = held.iter().map(id).collect();
        for delivery in &held {
            assert!(delivery.ack().await);
        }
        // A window that is free again fills again.
        drop(held);
        drop(wide);
        let more = bed.send(Route::Jobs(Lane::Interactive)).await;
        let one = within("one more", async {
            tokio::select! { one = left.recv() => one, one = right.recv() => one }
        });
        assert_eq!(id(&one.await.unwrap()), more.id, "{}", bed.name);
        seen.sort();
        let mut expected: Vec<_> = batch.into_iter().map(|m| m.id).collect();
        expected.sort();
        assert_eq!(seen, expected, "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_acks_at_once_are_all_true_and_leave_nothing() {
    for bed in beds().await {
        let batch: Vec<_> = (0..300).map(|_| job()).collect();
        assert!(bed.broker.publish(&batch).await.iter().all(Result::is_ok));
        let mut jobs = bed.consume(Queue::JobsInteractive, 64).await;
        let mut acks = tokio::task::JoinSet::new();
        for _ in 0..300 {
            let delivery = next(&mut jobs).await;
            acks.spawn(async move { delivery.ack().await });
        }
        while let Some(acked) = acks.join_next().await {
            assert!(acked.unwrap(), "{}", bed.name);
        }
        let last = bed.send(Route::Jobs(Lane::Interactive)).await;
        assert_eq!(id(&next(&mut jobs).await), last.id, "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_reaches_every_kind_of_listener() {
    for bed in beds().await {
        let mut wait = bed.consume(Queue::StatusWait, 1).await;
        let mut forward = bed.consume(Queue::StatusForward, 1).await;
        let mut own = bed.consume(Queue::StatusOwn, 2).await;
        let mut other = bed.consume(Queue::StatusOwn, 2).await;
        let key = "v1.sto_x.confirm.approved".to_owned();
        let sent = bed.send(Route::Status(key.clone())).await;
        for listener in [&mut wait, &mut forward, &mut own, &mut other] {
            let delivery = next(listener).await;
            assert_eq!(id(&delivery), sent.id, "{}", bed.name);
            let route = &delivery.message.as_ref().unwrap().route;
            assert_eq!(route, &Route::Status(key.clone()));
            assert!(delivery.ack().await);
        }
        // Nobody has asked for copies yet, which is no mistake.
        bed.send(Route::External(key)).await;
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_of_waiters_is_shared_and_each_event_goes_to_one() {
    for bed in beds().await {
        let mut left = bed.consume(Queue::StatusWait, 10).await;
        let mut right = bed.consume(Queue::StatusWait, 10).await;
        let batch: Vec<_> = (0..10)
            .map(|_| message(Route::Status("v1.s.confirm.denied".to_owned())))
            .collect();
        assert!(bed.broker.publish(&batch).await.iter().all(Result::is_ok));
        let mut seen = HashSet::new();
        while seen.len() < 10 {
            let one = within("an event", async {
                tokio::select! { one = left.recv() => one, one = right.recv() => one }
            });
            let delivery = one.await.unwrap();
            assert!(seen.insert(id(&delivery)), "{}: twice", bed.name);
            assert!(delivery.ack().await);
        }
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeued_message_is_handed_out_at_once() {
    for bed in beds().await {
        let sent = bed.send(Route::Jobs(Lane::Interactive)).await;
        let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
        let first = next(&mut jobs).await;
        assert!(first.requeue().await);
        assert!(!first.ack().await, "{}", bed.name);
        drop(first);
        assert_eq!(id(&next(&mut jobs).await), sent.id, "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_every_consumer_is_parked_with_the_reason() {
    for bed in beds().await {
        let sent = bed.send(Route::Jobs(Lane::Interactive)).await;
        let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
        let mut parking = bed.consume(Queue::Parking, 1).await;
        let mut victims = 0;
        let parked = within("the parked message", async {
            loop {
                tokio::select! {
                    killed = jobs.recv() => {
                        drop(killed.unwrap());
                        victims += 1;
                        bed.advance(LEASE);
                    }
                    parked = parking.recv() => break parked.unwrap(),
                }
            }
        })
        .await;
        // Engines differ by one in what they count.
        assert!(
            (DELIVERY_LIMIT..=DELIVERY_LIMIT + 1).contains(&victims),
            "{}: {victims}",
            bed.name
        );
        assert_eq!(id(&parked), sent.id);
        let route = &parked.message.as_ref().unwrap().route;
        let Route::Parking(reason) = route else {
            panic!("{}: {route:?}", bed.name)
        };
        assert!(
            reason.contains("never settled") || reason.contains("delivery_limit"),
            "{}: {reason}",
            bed.name
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_by_us_keeps_its_reason() {
    for bed in beds().await {
        let sent = bed.send(Route::Parking("no such store".to_owned())).await;
        let mut parking = bed.consume(Queue::Parking, 1).await;
        let parked = next(&mut parking).await;
        assert_eq!(parked.message.as_ref().unwrap(), &sent, "{}", bed.name);
        assert!(parked.ack().await);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_arrives_as_such_with_its_bytes_and_can_be_acked() {
    static GARBAGE: shared::store::db::Statement = shared::store::db::Statement::new(
        "INSERT INTO queue_messages (queue, message, visible_at, deliveries) VALUES ('cs.jobs.interactive', '{oops', 0, 0)",
    );
    for bed in beds().await {
        match &bed.engine {
            Engine::Embedded { db, .. } => {
                let mut tx = db.begin().await.unwrap();
                tx.fetch(&GARBAGE, &[]).await.unwrap();
                tx.commit().await.unwrap();
            }
            Engine::Rabbit { .. } => {
                let (connection, channel) = bed.stranger().await.unwrap();
                let options = lapin::options::BasicPublishOptions::default();
                let exchange = format!("{}.jobs", bed.prefix);
                let plain = lapin::BasicProperties::default();
                channel
                    .basic_publish(
                        exchange.into(),
                        "interactive".into(),
                        options,
                        b"{oops",
                        plain,
                    )
                    .await
                    .unwrap();
                connection.close(200, "OK".into()).await.unwrap();
            }
        }
        let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
        let delivery = next(&mut jobs).await;
        assert!(delivery.message.is_err(), "{}", bed.name);
        assert_eq!(&delivery.raw[..], b"{oops");
        assert!(delivery.ack().await);
        drop(delivery);
        let good = bed.send(Route::Jobs(Lane::Interactive)).await;
        assert_eq!(id(&next(&mut jobs).await), good.id, "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_listening_may_still_settle_and_the_rest_goes_to_others() {
    for bed in beds().await {
        let batch: Vec<_> = (0..5).map(|_| job()).collect();
        assert!(bed.broker.publish(&batch).await.iter().all(Result::is_ok));
        let mut jobs = bed.consume(Queue::JobsInteractive, 5).await;
        let mut held = vec![next(&mut jobs).await, next(&mut jobs).await];
        drop(jobs);
        let mut heir = bed.consume(Queue::JobsInteractive, 5).await;
        let rest = within("the rest", async {
            let mut rest = HashSet::new();
            while rest.len() < 3 {
                // What the first had in its hands and not yet looked at comes back after its lease.
                bed.advance(LEASE / 10);
                if let Ok(Some(delivery)) =
                    tokio::time::timeout(Duration::from_millis(100), heir.recv()).await
                {
                    rest.insert(id(&delivery));
                    assert!(delivery.ack().await);
                }
                // Long before the lease of what it does hold ends, it settles.
                for delivery in held.drain(..) {
                    assert!(delivery.ack().await, "{}", bed.name);
                }
            }
            rest
        });
        let expected: HashSet<_> = batch[2..].iter().map(|m| m.id.clone()).collect();
        assert_eq!(rest.await, expected, "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_does_not_wait_for_a_consumer_that_holds_its_whole_window() {
    for bed in beds().await {
        bed.broker.publish(&[job(), job()]).await;
        let mut jobs = bed.consume(Queue::JobsInteractive, 1).await;
        let held = next(&mut jobs).await;
        within("the close", bed.broker.close()).await;
        assert!(
            within("the end", jobs.recv()).await.is_none(),
            "{}",
            bed.name
        );
        drop(held);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_says_whether_it_is_well_and_how_full_a_queue_is() {
    for bed in beds().await {
        assert!(bed.broker.healthy().await, "{}", bed.name);
        bed.broker.publish(&[job(), job(), job()]).await;
        let full = async {
            while bed
                .broker
                .depth(Queue::JobsInteractive)
                .await
                .unwrap()
                .ready
                != 3
            {
                tokio::task::yield_now().await;
            }
        };
        within("a depth of three", full).await;
        bed.broker.apply_topology().await.unwrap();
        bed.end().await;
    }
}
