//! One outcome, ever: two devices that decide differently at the same moment, and one proof that arrives fifty times at once.
//!
//! The suite runs a few of each. `scripts/races` runs 10,000 and 1,000, on both footings.

#![expect(clippy::unwrap_used, reason = "a test may panic: that is its failing")]

use futures_util::stream::{self, StreamExt as _};
use harness::{Footing, Tap, World, footings};
use serde_json::{Value, json};
use shared::domain::Provider;
use shared::id::PushId;
use simulator::phone::{Answered, Decision, Phone};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How many people are asked at the same time.
const AT_ONCE: usize = 12;
/// How often the same proof is sent at once.
const COPIES: usize = 50;
/// How many races one user runs; each of the two devices may send 600 requests in two minutes.
const OF_ONE_USER: usize = 50;

fn wanted(name: &str, few: usize) -> usize {
    std::env::var(name).map_or(few, |text| text.parse().unwrap())
}

struct Person {
    name: String,
    phones: [Phone; 2],
}

async fn person(world: &World, n: usize) -> Person {
    let name = format!("racer-{n}");
    let user = world
        .in_store("POST", "users", &json!({"external_id": name}))
        .await;
    let user = user["id"].as_str().unwrap();
    let mut phones = Vec::new();
    for provider in [Provider::Apns, Provider::Fcm] {
        let phone = Phone::new(provider, format!("{name}-{provider}"));
        world.register_for(user, &phone).await;
        phones.push(phone);
    }
    Person {
        name,
        phones: phones.try_into().unwrap(),
    }
}

async fn asked(world: &World, person: &Person) -> (PushId, Option<String>) {
    let more = json!({"user": {"external_id": person.name}});
    world.send(&more).await
}

/// Sends a proof as a phone does: again where the service is too busy to say what became of it, a bounded number of times.
async fn told(phone: &Phone, push: &PushId, proof: &str) -> Answered {
    let mut answer = phone.send_proof(push, proof).await.unwrap();
    for _ in 0..20 {
        if answer.status != 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        answer = phone.send_proof(push, proof).await.unwrap();
    }
    answer
}

/// Yes from one device, no from the other. Gives the state that it came to.
async fn race(world: &World, person: &Person, n: usize) -> (PushId, String) {
    let (push, code) = asked(world, person).await;
    let [a, b] = &person.phones;
    let (yes, no) = if n.is_multiple_of(2) { (a, b) } else { (b, a) };
    let prompts = tokio::join!(yes.fetch(&push), no.fetch(&push));
    let approve = yes.proof(&prompts.0.unwrap(), &Decision::Approve { code });
    let deny = no.proof(&prompts.1.unwrap(), &Decision::Deny { reason: None });
    let (approve, deny) = (approve.unwrap(), deny.unwrap());
    let (yes, no) = tokio::join!(told(yes, &push, &approve), told(no, &push, &deny));
    let (won, lost, state) = if yes.status == 200 {
        (yes, no, "approved")
    } else {
        (no, yes, "denied")
    };
    let told = (won.status, &won.body["state"]);
    assert_eq!(told, (200, &json!(state)), "{push}: {lost:?}");
    let told = (lost.status, &lost.body["code"], &lost.body["state"]);
    assert_eq!(told, (409, &json!("push_ended"), &json!(state)), "{push}");
    assert_eq!(world.show(&push).await["state"], state, "{push}");
    (push, state.to_owned())
}

/// The same proof many times at once: every copy gets the one outcome.
async fn copies(world: &World, person: &Person) -> PushId {
    let (push, code) = asked(world, person).await;
    let phone = &person.phones[0];
    let prompt = phone.fetch(&push).await.unwrap();
    let proof = phone.proof(&prompt, &Decision::Approve { code }).unwrap();
    let sent = (0..COPIES).map(|_| told(phone, &push, &proof));
    for answer in futures_util::future::join_all(sent).await {
        let told = (answer.status, &answer.body["state"]);
        assert_eq!(told, (200, &json!("approved")), "{push}: {answer:?}");
    }
    let shown = world.show(&push).await;
    assert_eq!(shown["state"], "approved", "{push}");
    push
}

/// Third parties were told one end of each push, the one that the answers told.
async fn check_events(tap: &mut Tap, ends: &BTreeMap<String, String>) {
    // A push that was answered before a worker had it has no event of a device that never fetched it, so devices are not counted.
    let ended = RefCell::new((0, BTreeSet::new()));
    let all = tap
        .events(|seen| {
            let (read, subjects) = &mut *ended.borrow_mut();
            for (event, _) in &seen[*read..] {
                if !event["type"].as_str().unwrap().contains(".device_") {
                    subjects.insert(event["subject"].as_str().unwrap().to_owned());
                }
            }
            *read = seen.len();
            subjects.len() >= ends.len()
        })
        .await;
    let mut told: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (event, _) in &all {
        let kind = event["type"].as_str().unwrap();
        if !kind.contains(".device_") {
            let push = event["subject"].as_str().unwrap().to_owned();
            let id = event["id"].as_str().unwrap().to_owned();
            told.entry(push).or_default().insert(id, kind.to_owned());
        }
    }
    for (push, state) in ends {
        let events: Vec<_> = told[push].values().collect();
        assert_eq!(events, [&format!("countersign.push.{state}.v1")], "{push}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_02_33_of_racing_answers_one_counts_and_a_repeated_proof_changes_nothing() {
    let (races, identical) = (
        wanted("COUNTERSIGN_RACES", 100),
        wanted("COUNTERSIGN_IDENTICAL", 20),
    );
    for footing in footings() {
        let world = World::start(footing, "races").await;
        let mut tap = None;
        if footing == Footing::Servers {
            let name = format!("ext.{}.races", world.store);
            let exchange = format!("{}.status.ext", world.prefix);
            tap = Some(Tap::open(&world.amqp_url(), &name, Some(&exchange)).await);
        }
        let world_ref = &world;
        let people: Vec<Person> = stream::iter(0..races.div_ceil(OF_ONE_USER).max(4))
            .map(|n| person(world_ref, n))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let count = people.len();
        let of_each = people.iter().enumerate().map(|(n, person)| async move {
            let mut ends = Vec::new();
            for race_no in (n..races).step_by(count) {
                ends.push(race(world_ref, person, race_no).await);
            }
            for _ in (n..identical).step_by(count) {
                ends.push((copies(world_ref, person).await, "approved".to_owned()));
            }
            ends
        });
        let ends: Vec<Vec<(PushId, String)>> = stream::iter(of_each)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let ends: BTreeMap<String, String> = ends
            .into_iter()
            .flatten()
            .map(|(push, state)| (push.to_string(), state))
            .collect();
        assert_eq!(ends.len(), races + identical);
        let denied = ends.values().filter(|state| *state == "denied").count();
        let approved = ends.len() - identical - denied;
        assert!(
            denied > 0 && approved > 0,
            "{footing:?}: no race at all: {approved} approved, {denied} denied"
        );
        if let Some(tap) = &mut tap {
            // Asked last, so that what was told before it is here, a second end of a push too.
            let mut all = ends.clone();
            let last = copies(&world, &people[0]).await;
            all.insert(last.to_string(), "approved".to_owned());
            check_events(tap, &all).await;
        }
        let shown: Value = json!({"footing": format!("{footing:?}"), "races": races, "approved": approved, "denied": denied,
            "identical": format!("{identical} x {COPIES}"), "outcomes": ends.len()});
        eprintln!("{shown}");
        drop(tap);
        world.end().await;
    }
}
