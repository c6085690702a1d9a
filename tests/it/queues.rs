//! What comes out of the queues, for those who wait there.

use harness::{Footing, Tap, World, footings};
use serde_json::{Value, json};
use shared::domain::Provider;

fn kinds(events: &[(Value, Option<String>)]) -> Vec<String> {
    let mut all: Vec<_> = events
        .iter()
        .map(|(e, _)| e["type"].as_str().unwrap().to_owned())
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn third_parties_get_one_event_per_device_and_one_per_push() {
    if !footings().contains(&Footing::Servers) {
        return;
    }
    let world = World::start(Footing::Servers, "events").await;
    let apple = world.phone("apple", Provider::Apns).await;
    let google = world.phone("google", Provider::Fcm).await;
    let exchange = format!("{}.status.ext", world.prefix);
    let mut tap = Tap::open(
        &world.amqp_url(),
        &format!("ext.{}.tap", world.prefix),
        Some(&exchange),
    )
    .await;
    let (push, code) = world.send(&json!({"correlation_id": "order 7"})).await;
    let (prompt, _) = tokio::join!(world.rung(&apple, &push), world.rung(&google, &push));
    world.approve(&apple, &prompt, code.as_deref()).await;
    let events = tap.events(|seen| seen.len() >= 3).await;
    assert_eq!(
        kinds(&events),
        [
            "countersign.push.approved.v1",
            "countersign.push.device_answered.v1",
            "countersign.push.device_withdrawn.v1"
        ]
    );
    let (ended, _) = events
        .iter()
        .find(|(e, _)| e["type"] == "countersign.push.approved.v1")
        .unwrap();
    assert_eq!(ended["specversion"], "1.0");
    assert_eq!(
        (&ended["subject"], &ended["data"]["correlation_id"]),
        (&json!(push), &json!("order 7"))
    );
    assert_eq!(ended["data"]["deliveries"].as_array().unwrap().len(), 2);
    let text = ended.to_string();
    assert!(
        !text.contains("Sign in") && !text.contains("Cork") && !text.contains(&code.unwrap()),
        "no content: {text}"
    );
    let (late, _) = world.send(&json!({"expires_in": "10s"})).await;
    let events = tap.events(|seen| seen.len() >= 3).await;
    assert!(
        events.iter().all(|(e, _)| e["subject"] == json!(late)),
        "nothing more of the first push"
    );
    assert_eq!(
        kinds(&events),
        [
            "countersign.push.device_expired.v1",
            "countersign.push.device_expired.v1",
            "countersign.push.expired.v1"
        ]
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_engine_is_released_through_its_own_queue() {
    if !footings().contains(&Footing::Servers) {
        return;
    }
    let world = World::start(Footing::Servers, "reply").await;
    let phone = world.phone("apple", Provider::Apns).await;
    let queue = format!("ext.{}.engine", world.store);
    let mut tap = Tap::open(&world.amqp_url(), &queue, None).await;
    let (push, code) = world
        .send(&json!({"reply_to": queue, "correlation_id": "instance 9"}))
        .await;
    let prompt = world.rung(&phone, &push).await;
    world.approve(&phone, &prompt, code.as_deref()).await;
    let events = tap.events(|seen| !seen.is_empty()).await;
    assert_eq!(events.len(), 1);
    let (event, correlation) = &events[0];
    assert_eq!(
        (&event["data"]["state"], correlation.as_deref()),
        (&json!("approved"), Some("instance 9"))
    );
    // A queue that does not exist: the push ends all the same, and the message is parked for an operator.
    let (lost, code) = world
        .send(&json!({"reply_to": format!("ext.{}.gone", world.store)}))
        .await;
    let prompt = world.rung(&phone, &lost).await;
    world.approve(&phone, &prompt, code.as_deref()).await;
    assert_eq!(world.ended(&lost).await["state"], "approved");
    let mut parking =
        Tap::open_existing(&world.amqp_url(), &format!("{}.parking", world.prefix)).await;
    let parked = parking.events(|seen| !seen.is_empty()).await;
    assert_eq!(parked[0].0["subject"], json!(lost));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_no_job_is_parked_and_the_worker_lives_on() {
    if !footings().contains(&Footing::Servers) {
        return;
    }
    let world = World::start(Footing::Servers, "garbage").await;
    let phone = world.phone("apple", Provider::Apns).await;
    let mut parking =
        Tap::open_existing(&world.amqp_url(), &format!("{}.parking", world.prefix)).await;
    let jobs = format!("{}.jobs.interactive", world.prefix);
    for body in ["{\"garbage\":1}", "[]", "\"x\""] {
        parking.publish(&jobs, body.as_bytes()).await;
    }
    let parked = parking.events(|seen| !seen.is_empty()).await;
    assert!(!parked.is_empty());
    let (push, code) = world.send(&Value::Null).await;
    let prompt = world.rung(&phone, &push).await;
    world.approve(&phone, &prompt, code.as_deref()).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gets_out_is_found_wherever_it_went() {
    for footing in footings() {
        let world = World::start(footing, "leak").await;
        let phone = world.phone("google", Provider::Fcm).await;
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        world.approve(&phone, &prompt, code.as_deref()).await;
        world.ended(&push).await;
        assert_eq!(world.leaks().await, Vec::<String>::new());
        // What providers and the broker do carry, and what the log says, taken for secrets.
        world.secret(push.as_str());
        world.secret("listening");
        world.secret("ready");
        let leaks = world.leaks().await;
        for place in ["a provider", "the log", "the broker"] {
            assert!(
                leaks.iter().any(|leak| leak.starts_with(place)),
                "{footing:?} {place}: {leaks:?}"
            );
        }
        world.remove().await;
    }
}
