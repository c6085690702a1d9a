//! Batches, end to end: every recipient is asked once, whatever is cut, sent again, paused or flooding beside it. The providers' receipts
//! are the witness.

use harness::{RP, Upload, World, footings, payslips, until};
use serde_json::{Value, json};
use shared::domain::Provider;
use simulator::phone::{Decision, Phone};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

fn query(more: &str) -> String {
    format!("relying_party={RP}&{more}")
}

async fn shown(world: &World, batch: &Value) -> Value {
    let path = format!("batches/{}", batch["id"].as_str().unwrap());
    world.in_store("GET", &path, &Value::Null).await
}

/// Waits until a batch looks as wanted.
async fn until_batch(
    world: &World,
    batch: &Value,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> Value {
    until(90, &format!("{:?}: {what}", world.footing), || async {
        Some(shown(world, batch).await).filter(|batch| is(batch))
    })
    .await
}

/// Waits until the providers have taken `count` pushes, and looks that none of them came twice.
async fn sent(world: &World, count: u64) {
    until(
        90,
        &format!("{:?}: {count} sent", world.footing),
        || async { (world.gateway.counts().accepted >= count).then_some(()) },
    )
    .await;
    let times = world.calls();
    assert_eq!(times.len() as u64, count, "{:?}", world.footing);
    assert!(
        times.values().all(|n| *n == 1),
        "{:?}: nobody twice",
        world.footing
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_recipients_are_asked_once_each_and_told_by_line() {
    for footing in footings() {
        let world = World::start(footing, "batch").await;
        world.phone("apple", Provider::Apns).await;
        let body = payslips(5_000);
        let query = query("expires_in=12s&name=March");
        let batch = world.upload(&Upload::lines(&query, "march", &body)).await;
        assert_eq!(
            (&batch["accepted"], &batch["lines"]),
            (&json!(5_000), &json!(5_000))
        );
        assert_eq!(batch["name"], "March");
        sent(&world, 5_000).await;
        let done = until_batch(&world, &batch, "done", |one| one["state"] == "done").await;
        assert_eq!(
            done["counts"]["ended"]["expired"]["unopened"], 5_000,
            "{done}"
        );
        assert_eq!(
            (&done["counts"]["refused"], &done["waiting"]),
            (&json!(0), &json!(0))
        );
        let path = format!("batches/{}/results.ndjson", batch["id"].as_str().unwrap());
        let results = world.report(&path).await;
        let numbers: Vec<_> = results
            .iter()
            .map(|one| one["line"].as_u64().unwrap())
            .collect();
        assert!(numbers.into_iter().eq(1..=5_000), "{footing:?}: in order");
        for one in &results {
            assert_eq!(
                (&one["state"], &one["external_id"]),
                (&json!("expired"), &json!("ada"))
            );
            assert_eq!(one["devices"][0]["attempts"], 1, "{one}");
        }
        let behind = world.report(&format!("{path}?after=4998")).await;
        assert_eq!(behind.len(), 2);
        // The same once more asks nobody.
        let again = world.upload(&Upload::lines(&query, "march", &body)).await;
        assert_eq!(again["id"], batch["id"]);
        assert_eq!(world.gateway.counts().accepted, 5_000);
        let listed = world
            .in_store("GET", "batches?idempotency_key=march", &Value::Null)
            .await;
        assert_eq!(listed["data"][0]["state"], "done");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_cut_anywhere_and_sent_again_asks_everybody_once() {
    for footing in footings() {
        let world = World::start(footing, "batch-cut").await;
        world.phone("apple", Provider::Apns).await;
        let body = payslips(1_500);
        let query = query("");
        let upload = Upload::lines(&query, "march", &body);
        for part in [0, 1, 30, 55, 80, 99] {
            world.upload_cut(&upload, body.len() * part / 100).await;
            let listed = world
                .in_store("GET", "batches?idempotency_key=march", &Value::Null)
                .await;
            assert_eq!(
                listed["data"][0]["state"], "receiving",
                "{footing:?} {part}"
            );
        }
        // Everything but the last byte, and then a sender who leaves out what it believes to be there.
        world.upload_cut(&upload, body.len() - 1).await;
        let batch = world.upload(&upload).await;
        assert_eq!(
            (&batch["accepted"], &batch["state"]),
            (&json!(1_500), &json!("running"))
        );
        sent(&world, 1_500).await;
        let all = world.in_store("GET", "batches", &Value::Null).await;
        assert_eq!(all["data"].as_array().unwrap().len(), 1);
        let (status, problem) = world
            .upload_to(
                world.store.as_str(),
                &Upload {
                    query: "relying_party=other",
                    ..upload.clone()
                },
            )
            .await;
        assert_eq!(
            (status, &problem["code"]),
            (422, &json!("idempotency_reused"))
        );
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_told_by_line_and_good_lines_go_on() {
    for footing in footings() {
        let world = World::start(footing, "batch-faults").await;
        world.phone("apple", Provider::Apns).await;
        let table = format!(
            "key,user,relying_party,title,detail.Amount\na-1,ada,{RP},Payslip,\"1,000\"\na-2,nobody,{RP},Payslip,\n\
             a-3,ada,{RP},,2\na-1,ada,{RP},Payslip,\"1,000\"\na-5,ada,{RP},Payslip,5\n"
        );
        let upload = Upload {
            query: "",
            content_type: "text/csv",
            gzip: false,
            key: "table",
            body: table.as_bytes(),
        };
        let batch = world.upload(&upload).await;
        let counts = &batch["counts"];
        assert_eq!(
            (
                &batch["accepted"],
                &counts["refused"],
                &counts["duplicates"]
            ),
            (&json!(2), &json!(2), &json!(1))
        );
        let id = batch["id"].as_str().unwrap();
        let errors = world.report(&format!("batches/{id}/errors.ndjson")).await;
        let told: Vec<_> = errors
            .iter()
            .map(|one| {
                (
                    one["line"].as_i64().unwrap(),
                    one["errors"][0]["pointer"].as_str().unwrap(),
                    one["errors"][0]["code"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                (3, "/user", "unknown_user"),
                (4, "/title", "required"),
                (5, "/key", "duplicate")
            ]
        );
        assert!(errors[2]["push"].is_string() && errors[0]["key"] == "a-2");
        sent(&world, 2).await;
        let results = world.report(&format!("batches/{id}/results.ndjson")).await;
        let keys: BTreeSet<_> = results
            .iter()
            .map(|one| one["key"].as_str().unwrap())
            .collect();
        assert_eq!(keys, BTreeSet::from(["a-1", "a-5"]));
        // The keys are the store's: another batch with the same lines asks nobody again.
        let other = world
            .upload(&Upload {
                key: "other",
                ..upload.clone()
            })
            .await;
        assert_eq!(
            (&other["accepted"], &other["counts"]["duplicates"]),
            (&json!(0), &json!(3))
        );
        // Only looked at, nothing is written.
        let look = Upload {
            query: "validate_only=true",
            key: "look",
            ..upload
        };
        let (status, check) = world.upload_to(world.store.as_str(), &look).await;
        assert_eq!(
            (status, &check["refused"], &check["lines"]),
            (200, &json!(2), &json!(6))
        );
        assert_eq!(check["errors"][0]["line"], 3);
        let all = world.in_store("GET", "batches", &Value::Null).await;
        assert_eq!(all["data"].as_array().unwrap().len(), 2, "{footing:?}");
        // All or nothing.
        let atomic = Upload {
            query: "atomic=true",
            key: "atomic",
            ..upload_of(&table)
        };
        let batch = world.upload(&atomic).await;
        assert_eq!(
            (&batch["state"], &batch["reason"]),
            (&json!("cancelled"), &json!("lines_refused"))
        );
        assert_eq!(world.gateway.counts().accepted, 2);
        world.end().await;
    }
}

fn upload_of(table: &str) -> Upload<'_> {
    Upload {
        query: "",
        content_type: "text/csv",
        gzip: false,
        key: "",
        body: table.as_bytes(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_paused_resumed_and_cancelled() {
    for footing in footings() {
        let world = World::start(footing, "batch-pause").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let body = payslips(400);
        let query = query("max_per_second=50");
        let batch = world.upload(&Upload::lines(&query, "slow", &body)).await;
        let id = batch["id"].as_str().unwrap();
        let act = async |act: &str| {
            world
                .in_store("POST", &format!("batches/{id}/{act}"), &Value::Null)
                .await
        };
        let began = std::time::Instant::now();
        until(30, "some are sent", || async {
            (world.gateway.counts().accepted >= 20).then_some(())
        })
        .await;
        assert_eq!(act("pause").await["state"], "paused");
        let quiet = until_batch(&world, &batch, "nothing on the way", |one| {
            one["counts"]["in_flight"] == 0
        })
        .await;
        let within = began.elapsed().as_secs_f64();
        let before = world.gateway.counts().accepted;
        assert!(
            (before as f64) < 50.0 * (within + 1.5),
            "{footing:?}: {before} in {within} s"
        );
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(
            world.gateway.counts().accepted,
            before,
            "{footing:?} {quiet}"
        );
        // Phones see what was sent, and nothing else.
        let seen = phone.pending().await.unwrap().len() as u64;
        assert_eq!(seen, before.min(50), "{footing:?}");
        assert_eq!(act("resume").await["state"], "running");
        until(30, "more are sent", || async {
            (world.gateway.counts().accepted >= before + 20).then_some(())
        })
        .await;
        assert_eq!(act("cancel").await["state"], "cancelled");
        let ended = until_batch(&world, &batch, "ended", |one| one["ended_at"].is_string()).await;
        assert_eq!(
            ended["counts"]["ended"]["cancelled"]["batch_cancelled"], 400,
            "{ended}"
        );
        assert!(
            phone.pending().await.unwrap().is_empty(),
            "what was shown is taken back"
        );
        let refused = world
            .reply("POST", &format!("batches/{id}/resume"), &Value::Null, &[])
            .await;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["code"]),
            (409, &json!("wrong_state"))
        );
        assert_eq!(
            act("cancel").await["state"],
            "cancelled",
            "again is no error"
        );
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_store_and_a_login_do_not_wait_for_a_flood() {
    for footing in footings() {
        let world = World::start(footing, "batch-flood").await;
        let phone = world.phone("apple", Provider::Apns).await;
        let quiet = world
            .ask("POST", "/v1/stores", &json!({"name": "Quiet"}))
            .await;
        let quiet = quiet["id"].as_str().unwrap();
        let path = format!("/v1/stores/{quiet}");
        world
            .ask(
                "POST",
                &format!("{path}/users"),
                &json!({"external_id": "bob"}),
            )
            .await;
        // Bob has no device: his pushes end with their fan-out. The flood's provider is slow, and the flood is still coming.
        world.gateway.set_latency(Duration::from_millis(300));
        let body = payslips(40_000);
        let query = query("");
        let flood = Upload::lines(&query, "flood", &body);
        let mut flooding = Box::pin(world.upload_to(world.store.as_str(), &flood));
        let some = until(60, "it floods", || async {
            (world.gateway.counts().accepted >= 100).then_some(())
        });
        tokio::select! {
            () = some => {}
            end = &mut flooding => panic!("{footing:?}: the flood was over first: {end:?}"),
        }
        let mut calm = Box::pin(calm(&world, quiet, &phone));
        let mut ended = None;
        loop {
            tokio::select! {
                () = &mut calm => break,
                end = &mut flooding, if ended.is_none() => ended = Some(end),
            }
        }
        let listed = world.in_store("GET", "batches", &Value::Null).await;
        let flood = &listed["data"][0];
        let still = shown(&world, flood).await;
        let left = still["state"] == "receiving" || still["waiting"].as_i64().unwrap() > 0;
        assert!(
            left,
            "{footing:?}: the flood was over too soon to say anything: {still}"
        );
        let act = format!("batches/{}/cancel", flood["id"].as_str().unwrap());
        world.in_store("POST", &act, &Value::Null).await;
        until_batch(&world, flood, "ended", |one| one["ended_at"].is_string()).await;
        if ended.is_none() {
            flooding.as_mut().await;
        }
        drop((calm, flooding));
        world.end().await;
    }
}

/// What must not wait: a small batch of another store, and a login.
async fn calm(world: &World, quiet: &str, phone: &Phone) {
    let line = "{\"user\":{\"external_id\":\"bob\"},\"title\":\"Hello\"}\n";
    let few = line.repeat(50).into_bytes();
    let (status, small) = world
        .upload_to(
            quiet,
            &Upload::lines(&format!("relying_party={RP}"), "few", &few),
        )
        .await;
    assert_eq!(status, 202, "{small}");
    let at = format!(
        "/v1/stores/{quiet}/batches/{}",
        small["id"].as_str().unwrap()
    );
    until(60, "the quiet store's batch is done", || async {
        let now = world.ask("GET", &at, &Value::Null).await;
        (now["state"] == "done").then_some(())
    })
    .await;
    let (push, code) = world.send(&Value::Null).await;
    // A device that gets 503 comes again, as apps do.
    let prompt = until(30, "the login rings and is fetched", || async {
        phone.fetch(&push).await.ok()
    })
    .await;
    let decision = Decision::Approve { code };
    until(30, "the login is answered", || async {
        let answered = phone.answer(&prompt, &decision).await.ok()?;
        (answered.status == 200).then_some(())
    })
    .await;
    world.ended(&push).await;
}

fn packed(body: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(body).unwrap();
    packed.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_sends_a_packed_file_and_follows_it_to_its_end() {
    for footing in footings() {
        let world = World::start(footing, "batch-cli").await;
        world.phone("apple", Provider::Apns).await;
        let body = [payslips(900), b"{\"title\":\"Whose?\"}\n".to_vec()].concat();
        let file = world.folder.join("payslips.ndjson.gz");
        std::fs::write(&file, packed(&body)).unwrap();
        let file = file.to_str().unwrap();
        let send = [
            "batch",
            "send",
            file,
            "--relying-party",
            RP,
            "--expires-in",
            "10s",
        ];
        let look = [&send[..], &["--validate-only"]].concat();
        let (status, said, noted) = world.run(&look);
        assert_eq!(status.code(), Some(15), "{footing:?} {said} {noted}");
        assert!(
            said.contains("901 lines: 900 good, 1 with faults"),
            "{said}"
        );
        assert!(said.contains("line 901: /user"), "{said}");
        let (status, said, noted) = world.run(&[&send[..], &["--watch", "--json"]].concat());
        assert_eq!(status.code(), Some(15), "{footing:?} {said} {noted}");
        // What it says on the way are whole answers, and the last one is the end.
        let told: Vec<Value> = said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let (first, last) = (&told[0], &told[told.len() - 1]);
        assert_eq!(first["accepted"], 900, "{first}");
        assert_eq!(last["state"], "done", "{last}");
        assert_eq!(
            last["counts"]["ended"]["expired"]["unopened"], 900,
            "{last}"
        );
        sent(&world, 900).await;
        let id = first["id"].as_str().unwrap();
        let of = |report: &str| world.run(&["batch", report, id]).1.lines().count();
        assert_eq!((of("results"), of("errors")), (900, 1), "{footing:?}");
        let (status, said, _) = world.run(&["batch", "status", id]);
        assert!(
            status.success() && said.contains("done · 900 accepted · 1 refused"),
            "{said}"
        );
        // The same file asks nobody again, and a watch of what is over is over.
        let (status, said, noted) = world.run(&[&send[..], &["--watch"]].concat());
        assert_eq!(
            (status.code(), world.gateway.counts().accepted),
            (Some(15), 900)
        );
        assert!(said.contains(id), "{said}");
        let hint = format!("countersign batch errors {id}");
        assert!(noted.contains(&hint), "{noted}");
        let torn = world.folder.join("torn.ndjson.gz");
        let whole = packed(&body);
        std::fs::write(&torn, &whole[..whole.len() - 9]).unwrap();
        let (status, _, noted) = world.run(&[
            "batch",
            "send",
            torn.to_str().unwrap(),
            "--relying-party",
            RP,
        ]);
        assert_eq!(status.code(), Some(1), "{footing:?} {noted}");
        assert!(noted.contains("the gzip ends too early"), "{noted}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_backlog_says_when_to_come_back_and_the_same_upload_goes_on_then() {
    let limit = [("COUNTERSIGN_BATCHES__MAX_WAITING_PER_STORE", "500")];
    for footing in footings() {
        let world = World::start_with(footing, "batch-full", &limit).await;
        world.phone("apple", Provider::Apns).await;
        let body = payslips(600);
        let query = query("max_per_second=1");
        let first = world.upload(&Upload::lines(&query, "first", &body)).await;
        assert_eq!(first["accepted"], 600, "what began is taken whole");
        let second = Upload::lines(&query, "second", &body);
        let (status, said) = world.upload_to(world.store.as_str(), &second).await;
        assert_eq!(
            (status, &said["code"]),
            (429, &json!("backlog_full")),
            "{said}"
        );
        let file = world.folder.join("third.ndjson");
        std::fs::write(&file, &body).unwrap();
        let third = [
            "batch",
            "send",
            file.to_str().unwrap(),
            "--relying-party",
            RP,
        ];
        let mut third = world.run_beside(&third);
        let waits = third
            .says("too many pushes of this store wait to be sent")
            .await;
        assert!(waits.ends_with("again in 15 s"), "{waits}");
        // Other stores are not held up by it, and neither is a login.
        let other = world
            .ask("POST", "/v1/stores", &json!({"name": "Other"}))
            .await;
        let few = b"{\"user\":{\"external_id\":\"nobody\"},\"title\":\"Hello\"}\n";
        let (status, _) = world
            .upload_to(
                other["id"].as_str().unwrap(),
                &Upload::lines(&format!("relying_party={RP}"), "few", few),
            )
            .await;
        assert_eq!(status, 202, "{footing:?}");
        world.send(&Value::Null).await;
        // Room is made, and the sender comes back.
        let cancel = format!("batches/{}/cancel", first["id"].as_str().unwrap());
        world.in_store("POST", &cancel, &Value::Null).await;
        until_batch(&world, &first, "ended", |one| one["ended_at"].is_string()).await;
        let batch = world.upload(&second).await;
        assert_eq!(batch["accepted"], 600, "{footing:?} {batch}");
        let cancel = format!("batches/{}/cancel", batch["id"].as_str().unwrap());
        world.in_store("POST", &cancel, &Value::Null).await;
        assert!(
            third.ended().await.success(),
            "{footing:?} {}",
            third.said()
        );
        assert!(third.said().contains("600 accepted"), "{}", third.said());
        world.end().await;
    }
}
