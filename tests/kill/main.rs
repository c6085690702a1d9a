//! Real processes and real servers killed at the worst moment: nothing is lost, and nothing gets a second outcome.
//!
//! The witnesses: what the sender was told, the push as the API shows it, the receipts of the providers, and the completion events that a
//! third party saw. Tests run one after the other, since they take the servers away from under each other.

#![expect(clippy::unwrap_used, reason = "a test may panic: that is its failing")]

use harness::{Footing, RP, Tap, Upload, World, control, footings, on_each, payslips, until};
use serde_json::{Value, json};
use shared::domain::Provider;
use shared::id::PushId;
use simulator::fleet::Behaviour;
use simulator::phone::{Decision, Phone};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::Mutex;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// What every push must come to, whatever was killed: approved, one event for its end, one for each device.
async fn audit(world: &World, pushes: &[PushId], tap: Option<&mut Tap>) {
    for push in pushes {
        let ended = world.ended(push).await;
        assert_eq!(ended["state"], "approved", "{:?} {ended}", world.footing);
    }
    let receipts = world.gateway.journal();
    for push in pushes {
        let of: Vec<_> = receipts
            .iter()
            .filter(|receipt| receipt.push_id.as_ref() == Some(push))
            .collect();
        assert!(!of.is_empty(), "{push} never reached a provider");
        let mut ids: Vec<_> = of.iter().filter_map(|r| r.collapse_id.clone()).collect();
        ids.dedup();
        assert!(ids.len() <= 1, "every copy shares one banner");
    }
    if let Some(tap) = tap {
        let wanted = pushes.len();
        let ends = |seen: &[(Value, Option<String>)]| {
            let mut ends: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (event, _) in seen {
                if event["type"] == "countersign.push.approved.v1" {
                    let subject = event["subject"].as_str().unwrap().to_owned();
                    let id = event["id"].as_str().unwrap().to_owned();
                    ends.entry(subject).or_default().push(id);
                }
                let other = ["denied", "expired", "failed", "cancelled", "completed"]
                    .iter()
                    .any(|state| event["type"] == format!("countersign.push.{state}.v1"));
                assert!(!other, "a second outcome: {event}");
            }
            ends
        };
        let seen = tap.events(|seen| ends(seen).len() >= wanted).await;
        for (push, mut ids) in ends(&seen) {
            // A second copy may come; a second event may not.
            ids.dedup();
            assert_eq!(ids.len(), 1, "{push}");
        }
    }
}

async fn tap(world: &World) -> Option<Tap> {
    if world.footing == Footing::Embedded {
        return None;
    }
    let exchange = format!("{}.status.ext", world.prefix);
    let queue = format!("ext.{}.tap", world.prefix);
    Some(Tap::open(&world.amqp_url(), &queue, Some(&exchange)).await)
}

/// Sends a push that the phone will approve by itself once its code is known.
async fn send_answered(world: &World, key: &str) -> Option<PushId> {
    let body = World::confirm(&Value::Null);
    let path = format!("/v1/stores/{}/pushes", world.store);
    let headers = [("idempotency-key", key)];
    let sent = world
        .client
        .call("POST", &path, Some(&body), &headers, Duration::ZERO)
        .await
        .ok()?;
    if sent.status.as_u16() != 202 {
        return None;
    }
    let push: PushId = sent.body["id"].as_str().unwrap().parse().unwrap();
    let code = sent.body["match_code"].as_str().unwrap();
    world.fleet.codes().set(push.clone(), code);
    Some(push)
}

async fn phone(world: &World) -> Phone {
    let phone = world.phone("apple", Provider::Apns).await;
    let at_once = Behaviour::Approve {
        after: Duration::ZERO,
    };
    world.fleet.set_behaviour("apple", at_once);
    phone
}

#[tokio::test(flavor = "multi_thread")]
async fn api_killed_after_commit_before_publish() {
    let _alone = ONE_AT_A_TIME.lock().await;
    on_each(async |footing| {
        let mut world = World::start(footing, "kill-api").await;
        let mut tap = tap(&world).await;
        phone(&world).await;
        let role = world.process_of("api");
        world.process("api").kill();
        world.start_role(role, Some("A3")).await;
        let told = send_answered(&world, "order-1").await;
        assert_eq!(told, None, "{footing:?}: the caller was told nothing");
        let crashed = world.process("api").ended().await;
        assert!(!crashed.success(), "it crashed where it should");
        world.start_role(role, None).await;
        let push = send_answered(&world, "order-1").await.unwrap();
        audit(&world, std::slice::from_ref(&push), tap.as_mut()).await;
        let all = world.in_store("GET", "pushes", &Value::Null).await;
        assert_eq!(
            all["data"].as_array().unwrap().len(),
            1,
            "the key asked once"
        );
        assert_eq!(world.fleet.rings("apple", &push), 1, "{footing:?}");
        world.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_killed_before_its_commit_leaves_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
    on_each(async |footing| {
        let mut world = World::start(footing, "kill-commit").await;
        phone(&world).await;
        let role = world.process_of("api");
        world.process("api").kill();
        world.start_role(role, Some("A2")).await;
        assert_eq!(send_answered(&world, "order-1").await, None);
        world.process("api").ended().await;
        world.start_role(role, None).await;
        let all = world.in_store("GET", "pushes", &Value::Null).await;
        assert_eq!(all["data"].as_array().unwrap().len(), 0, "{footing:?}");
        let push = send_answered(&world, "order-1").await.unwrap();
        audit(&world, std::slice::from_ref(&push), None).await;
        world.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chainer_killed_in_the_middle_leaves_no_gap_and_nothing_twice() {
    let _alone = ONE_AT_A_TIME.lock().await;
    on_each(async |footing| {
        let mut world = World::start(footing, "kill-chain").await;
        until(10, "all is chained", || async {
            let (_, log, _) = world.run(&["audit", "export"]);
            log.contains("push_policy_set").then_some(())
        })
        .await;
        let role = world.process_of("worker");
        world.process("worker").kill();
        world.start_role(role, Some("C1")).await;
        // It is noted whether or not the answer still comes.
        let (path, bob) = (
            format!("/v1/stores/{}/users", world.store),
            json!({"external_id": "bob"}),
        );
        let asked = world
            .client
            .call("POST", &path, Some(&bob), &[], Duration::ZERO);
        asked.await.ok();
        let crashed = world.process("worker").ended().await;
        assert!(
            !crashed.success(),
            "{footing:?}: it crashed where it should"
        );
        world.start_role(role, None).await;
        let log = until(20, "the log is chained", || async {
            let (_, log, _) = world.run(&["audit", "export"]);
            (log.matches("user_added").count() >= 2).then_some(log)
        })
        .await;
        assert_eq!(log.matches("user_added").count(), 2, "{log}");
        let file = world.folder.join("audit.ndjson");
        std::fs::write(&file, &log).unwrap();
        let verify = ["audit", "verify", file.to_str().unwrap()];
        let (status, _, said) = world.run(&verify);
        assert!(status.success(), "{said}");
        world.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_after_the_providers_answer_before_its_record() {
    let _alone = ONE_AT_A_TIME.lock().await;
    on_each(async |footing| {
        let mut world = World::start(footing, "kill-worker").await;
        let mut tap = tap(&world).await;
        let phone = world.phone("apple", Provider::Apns).await;
        let role = world.process_of("worker");
        world.process("worker").kill();
        world.start_role(role, Some("W3")).await;
        let (push, code) = world.send(&Value::Null).await;
        world.process("worker").ended().await;
        let token = phone.push_token();
        assert_eq!(
            world.gateway.receipts_for(token.expose()).len(),
            1,
            "{footing:?}: the provider has it"
        );
        world.start_role(role, None).await;
        // The lease of the dead worker runs out, another one sends again, under the same identifiers.
        until(90, "sent again", || async {
            let sent = world.gateway.receipts_for(token.expose());
            (sent.len() == 2).then_some(())
        })
        .await;
        let sent = world.gateway.receipts_for(token.expose());
        assert_eq!(
            (&sent[0].apns_id, &sent[0].collapse_id),
            (&sent[1].apns_id, &sent[1].collapse_id)
        );
        let prompt = phone.fetch(&push).await.unwrap();
        world.approve(&phone, &prompt, code.as_deref()).await;
        audit(&world, std::slice::from_ref(&push), tap.as_mut()).await;
        assert_eq!(
            world.gateway.receipts_for(token.expose()).len(),
            2,
            "one more per kill, and no other"
        );
        world.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_killed_at_each_of_its_points_loses_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
    on_each(async |footing| {
        let mut world = World::start(footing, "kill-points").await;
        let mut tap = tap(&world).await;
        phone(&world).await;
        let mut pushes = Vec::new();
        for (role, point) in [
            ("worker", "W1"),
            ("worker", "W2"),
            ("worker", "W4"),
            ("api", "R1"),
            ("api", "D1"),
            ("api", "D2"),
            ("waiter", "T1"),
            ("waiter", "T2"),
        ] {
            // There jobs are rows of the queue already: nothing is left to the relay.
            if (footing, point) == (Footing::Embedded, "R1") {
                continue;
            }
            let process = world.process_of(role);
            world.process(role).kill();
            world.start_role(process, Some(point)).await;
            let key = format!("{role}-{point}");
            let mut push = send_answered(&world, &key).await;
            let ended = tokio::time::timeout(Duration::from_secs(20), world.process(role).ended());
            assert!(
                ended.await.is_ok(),
                "{footing:?} {role} did not crash at {point}"
            );
            world.start_role(process, None).await;
            if push.is_none() {
                push = send_answered(&world, &key).await;
            }
            pushes.push(push.unwrap());
        }
        audit(&world, &pushes, tap.as_mut()).await;
        world.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_and_restarted_loses_no_push_and_releases_who_waits() {
    let _alone = ONE_AT_A_TIME.lock().await;
    if !footings().contains(&Footing::Servers) {
        return;
    }
    let world = World::start(Footing::Servers, "kill-broker").await;
    phone(&world).await;
    let mut pushes = Vec::new();
    for n in 0..10 {
        pushes.push(send_answered(&world, &format!("before-{n}")).await.unwrap());
    }
    // A foreign RabbitMQ is not ours to kill.
    if control("BROKER", "kill") {
        for n in 0..10 {
            let push = send_answered(&world, &format!("without-{n}")).await;
            pushes.push(push.expect("a push is taken without a broker: it waits in the outbox"));
        }
        control("BROKER", "start");
    }
    for n in 0..10 {
        pushes.push(send_answered(&world, &format!("after-{n}")).await.unwrap());
    }
    audit(&world, &pushes, None).await;
    for push in &pushes {
        let rings = world.fleet.rings("apple", push);
        assert!((1..=2).contains(&rings), "{push} rang {rings} times");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_killed_and_restarted_loses_no_push() {
    let _alone = ONE_AT_A_TIME.lock().await;
    if !footings().contains(&Footing::Servers) {
        return;
    }
    let world = World::start(Footing::Servers, "kill-db").await;
    let mut tap = tap(&world).await;
    phone(&world).await;
    let mut pushes = Vec::new();
    for n in 0..10 {
        pushes.push(send_answered(&world, &format!("before-{n}")).await.unwrap());
    }
    if control("DATABASE", "kill") {
        let refused = send_answered(&world, "while-down").await;
        assert_eq!(refused, None, "not taken, and not said to be");
        control("DATABASE", "start");
    }
    let again = until(30, "taken again", || send_answered(&world, "while-down")).await;
    pushes.push(again);
    audit(&world, &pushes, tap.as_mut()).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_finishes_what_was_taken() {
    let _alone = ONE_AT_A_TIME.lock().await;
    on_each(async |footing| {
        let mut world = World::start(footing, "term").await;
        phone(&world).await;
        let mut pushes = Vec::new();
        for round in 0..3 {
            for n in 0..20 {
                pushes.push(
                    send_answered(&world, &format!("{round}-{n}"))
                        .await
                        .unwrap(),
                );
            }
            let role = world.process_of("worker");
            let status = world.process("worker").terminate().await;
            assert!(
                status.success(),
                "{footing:?}: {}",
                world.process("worker").said()
            );
            world.start_role(role, None).await;
        }
        audit(&world, &pushes, None).await;
        for push in &pushes {
            assert_eq!(
                world.fleet.rings("apple", push),
                1,
                "{footing:?} a clean stop doubles nothing"
            );
        }
        let shown = world.show(&pushes[0]).await;
        assert_eq!(shown["deliveries"][0]["attempts"], json!(1));
        world.end().await;
    })
    .await;
}

/// PostgreSQL ends without a word, and comes back with what it has written to the disk's care.
async fn database_crash() {
    let crash = || control("DATABASE", "kill") && control("DATABASE", "start");
    tokio::task::spawn_blocking(crash).await.unwrap();
}

/// The roles outlive the server: what one of them has counted as done, the server must not take back.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_crashes_in_the_middle_of_a_batch_takes_back_no_line_and_no_result() {
    const LINES: usize = 8_000;
    const PART: usize = 2_000;
    let _alone = ONE_AT_A_TIME.lock().await;
    let is_ours = std::env::var("COUNTERSIGN_TEST_DATABASE_CONTROL").is_ok();
    if !footings().contains(&Footing::Servers) || !is_ours {
        println!("left out: there is no database that may be ended");
        return;
    }
    let world = World::start(Footing::Servers, "kill-db-batch").await;
    world.phone("apple", Provider::Apns).await;
    let body = payslips(LINES);
    // So slowly that there is something left to send at each end.
    let query = format!("relying_party={RP}&max_per_second=700");
    let upload = Upload::lines(&query, "march", &body);
    let store = world.store.to_string();
    // The server ends only when what was sent is taken, so that the upload itself hears of nothing.
    let all: Vec<_> = body.split_inclusive(|byte| *byte == b'\n').collect();
    let parts: Vec<_> = all.chunks(PART).map(<[_]>::concat).collect();
    let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
    let path = format!("/v1/stores/{store}/batches");
    // Right after a crash a connection may turn out to be gone.
    let shown = async |path: &str| world.client.ask("GET", path, None).await.ok();
    let crash_in_between = async |part: usize| {
        let wanted = PART * (part + 1);
        if wanted == LINES {
            return;
        }
        until(60, "the part is taken", || async {
            let batches = shown(&path).await?;
            (batches["data"][0]["accepted"] == wanted).then_some(())
        })
        .await;
        database_crash().await;
    };
    let (status, said) = world
        .upload_in_parts(&store, &upload, &parts, crash_in_between)
        .await;
    // Where it was refused it is sent again, as its sender is told to.
    let batch = if status == 202 {
        said
    } else {
        until(60, "taken whole", || async {
            let (status, batch) = world.upload_to(&store, &upload).await;
            (status == 202).then_some(batch)
        })
        .await
    };
    assert_eq!(batch["accepted"], LINES, "{status} {batch}");
    for sent in [LINES / 2, LINES * 3 / 4] {
        until(120, "some more are sent", || async {
            (world.gateway.counts().accepted >= sent as u64).then_some(())
        })
        .await;
        assert!(
            world.gateway.counts().accepted < LINES as u64,
            "nothing is left"
        );
        database_crash().await;
    }
    let path = format!("{path}/{}", batch["id"].as_str().unwrap());
    until(180, "nothing is under way", || async {
        let counts = &shown(&path).await?["counts"];
        (counts["waiting"] == 0 && counts["in_flight"] == 0).then_some(())
    })
    .await;
    let report = format!("batches/{}/results.ndjson", batch["id"].as_str().unwrap());
    // What a claim had begun whose end nobody heard of comes back after its lease.
    let results = until(120, "what the providers said is written", || async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let results = world.try_report(&report).await.ok()?;
        let sent = results
            .iter()
            .filter(|one| one["devices"][0]["state"] == "sent");
        (sent.count() == LINES).then_some(results)
    })
    .await;
    let numbers = results.iter().map(|one| one["line"].as_u64().unwrap());
    assert!(numbers.eq(1..=LINES as u64), "each line once");
    let calls = world.calls();
    assert_eq!(calls.len(), LINES, "nobody is lost");
    assert!(calls.values().all(|n| *n == 1), "and nobody is asked twice");
    world.end().await;
}

/// More than two parts of an upload.
const LINES: u64 = 2_300;

#[tokio::test(flavor = "multi_thread")]
async fn api_and_worker_killed_in_the_middle_of_a_batch_ask_everybody_once() {
    let _alone = ONE_AT_A_TIME.lock().await;
    on_each(async |footing| {
        let mut world = World::start(footing, "kill-batch").await;
        world.phone("apple", Provider::Apns).await;
        let body = payslips(LINES as usize);
        let query = format!("relying_party={RP}");
        let upload = Upload::lines(&query, "march", &body);
        let store = world.store.to_string();
        // Before and after the commit of a part, and between the release of a chunk and its publish.
        for (role, point) in [("api", "B1"), ("api", "B2"), ("worker", "B3")] {
            let process = world.process_of(role);
            // A call that is under way when its worker dies is made again; here nothing is, so that a second one is a fault.
            until(60, "what was taken is sent", || async {
                let batches = world.in_store("GET", "batches", &Value::Null).await;
                let taken = batches["data"][0]["accepted"].as_u64().unwrap_or(0);
                (world.gateway.counts().accepted == taken).then_some(())
            })
            .await;
            assert!(world.process(role).terminate().await.success());
            world.start_role(process, Some(point)).await;
            let (status, said) = world.upload_to(&store, &upload).await;
            let ended = tokio::time::timeout(Duration::from_secs(30), world.process(role).ended());
            assert!(
                ended.await.is_ok(),
                "{footing:?} {role} did not crash at {point}: {status} {said}"
            );
            world.start_role(process, None).await;
        }
        let batch = world.upload(&upload).await;
        assert_eq!(batch["accepted"], LINES, "{footing:?} {batch}");
        until(120, "all are sent", || async {
            (world.gateway.counts().accepted >= LINES).then_some(())
        })
        .await;
        let calls = world.calls();
        assert_eq!(calls.len() as u64, LINES, "{footing:?}: nobody is lost");
        assert!(
            calls.values().all(|n| *n == 1),
            "{footing:?}: and nobody asked twice"
        );
        world.end().await;
    })
    .await;
}

/// Between the answer that would decide and the count, and in the middle of the count.
#[tokio::test(flavor = "multi_thread")]
async fn api_killed_between_a_members_answer_and_the_verdict_leaves_one_verdict() {
    let _alone = ONE_AT_A_TIME.lock().await;
    on_each(async |footing| {
        let mut world = World::start(footing, "kill-approval").await;
        let mut tap = tap(&world).await;
        let grace = world
            .in_store("POST", "users", &json!({"external_id": "grace"}))
            .await;
        let phones = [phone(&world).await, Phone::new(Provider::Fcm, "grace")];
        world
            .register_for(grace["id"].as_str().unwrap(), &phones[1])
            .await;
        let manual = Behaviour::Manual;
        world.fleet.set_behaviour("apple", manual);
        let mut all = Vec::new();
        for point in ["Q1", "Q2"] {
            let body = json!({"approvers": [{"user": {"external_id": "ada"}}, {"user": {"external_id": "grace"}}], "required": 1,
                "relying_party": RP, "title": "Pay Acme", "match_code": false});
            let asked = world.in_store("POST", "approvals", &body).await;
            let member = |n: usize| -> PushId {
                let push = asked["members"][n]["push"].as_str().unwrap();
                push.parse().unwrap()
            };
            let role = world.process_of("api");
            world.process("api").kill();
            world.start_role(role, Some(point)).await;
            let prompt = phones[0].fetch(&member(0)).await.unwrap();
            let yes = Decision::Approve { code: None };
            let answered = phones[0].answer(&prompt, &yes).await;
            assert!(answered.is_err(), "{footing:?} {point}: nothing was heard");
            let crashed = world.process("api").ended().await;
            assert!(!crashed.success(), "{footing:?} {point}");
            world.start_role(role, None).await;
            let id = asked["id"].as_str().unwrap().to_owned();
            let shown = until(20, "the verdict", || async {
                let path = format!("approvals/{id}");
                let shown = world.in_store("GET", &path, &Value::Null).await;
                (shown["state"] != "pending").then_some(shown)
            })
            .await;
            assert_eq!(shown["state"], "approved", "{footing:?} {point}");
            assert_eq!(shown["members"][0]["state"], "approved");
            assert_eq!(shown["members"][1]["reason"], "decided");
            let told = phones[0].answer(&prompt, &yes).await.unwrap();
            assert_eq!(told.status, 409, "another proof, which comes too late");
            all.push(id);
        }
        if let Some(tap) = &mut tap {
            let ends = |seen: &[(Value, Option<String>)]| {
                let of_approval = |event: &&Value| {
                    let kind = event["type"].as_str().unwrap();
                    kind.starts_with("countersign.approval.")
                };
                let events = seen.iter().map(|(event, _)| event).filter(of_approval);
                let ids =
                    events.map(|event| (event["subject"].to_string(), event["id"].to_string()));
                ids.collect::<std::collections::BTreeSet<_>>()
            };
            let seen = tap.events(|seen| ends(seen).len() >= all.len()).await;
            assert_eq!(ends(&seen).len(), all.len(), "one event each");
        }
        world.end().await;
    })
    .await;
}
