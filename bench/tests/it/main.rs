//! Each measurement once, with numbers so small that only its working counts.
#![expect(
    clippy::unwrap_used,
    reason = "clippy's exception for tests does not reach the helpers of an integration test"
)]

use serde_json::Value;
use std::process::{Command, Output};

const SMALL: [&str; 11] = [
    "--json",
    "--pushes",
    "400",
    "--runs",
    "1",
    "--seconds",
    "0.1",
    "--flights",
    "20",
    "--latency",
    "0",
];

fn bench(more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign-bench"));
    command.args(SMALL).args(more);
    if !more.contains(&"--users") {
        command.args(["--users", "40"]);
    }
    command
}

fn lines_of(output: &Output) -> Vec<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document["machine"].as_str().unwrap().contains("cores"));
    document["lines"].as_array().unwrap().clone()
}

fn measured(more: &[&str]) -> Vec<Value> {
    lines_of(&bench(more).output().unwrap())
}

fn named<'a>(lines: &'a [Value], what: &str) -> &'a Value {
    let found = lines
        .iter()
        .find(|line| line["what"].as_str().unwrap().starts_with(what));
    found.unwrap_or_else(|| panic!("no line {what} in {lines:?}"))
}

fn has_servers() -> bool {
    std::env::var_os("COUNTERSIGN_TEST_DATABASE_URL").is_some()
        && std::env::var_os("COUNTERSIGN_TEST_AMQP_URL").is_some()
}

#[test]
fn deliveries_and_the_stack_without_database_on_either_provider_with_few_streams() {
    let mut footings = vec!["embedded"];
    if has_servers() {
        footings.push("servers");
    }
    for (footing, provider) in footings.iter().flat_map(|f| [(*f, "apns"), (*f, "fcm")]) {
        let lines = measured(&[
            "--only",
            "deliveries,storeless",
            "--footing",
            footing,
            "--provider",
            provider,
            "--streams",
            "10",
        ]);
        for what in [
            "deliveries, bulk",
            "deliveries, interactive",
            "without database, bulk",
            "without database, interactive",
        ] {
            let line = named(&lines, &format!("{what}, 0 ms, 10 streams"));
            assert!(line["of_bare"].as_f64().unwrap() > 0.0, "{line}");
            assert_eq!(line["count"], 400, "{line}");
            assert_eq!(line["footing"], footing, "{line}");
        }
        assert_eq!(named(&lines, "deliveries, bulk")["notes"]["again"], 0);
    }
}

#[test]
fn refused_pushes_are_counted_as_what_they_became() {
    let lines = measured(&[
        "--only",
        "deliveries",
        "--footing",
        "embedded",
        "--errors",
        "503:2,unregistered:0.5",
        // One push each: a dead address fails nothing of somebody else.
        "--users",
        "400",
    ]);
    for lane in ["bulk", "interactive"] {
        let line = named(&lines, &format!("deliveries, {lane}, 0 ms, errors 503:2"));
        let notes = &line["notes"];
        let of = |state: &str| notes["deliveries"][state].as_i64().unwrap_or(0);
        assert_eq!(of("sent") + of("failed") + of("skipped"), 400, "{line}");
        assert!(of("sent") > 350, "{line}");
        let again = notes["again"].as_i64().unwrap();
        // Of 400 calls eight meet a 503 and one or two a dead address. In a batch Apple's quarter of an hour is longer than a push's life;
        // somebody who waits gets one more try.
        match lane {
            "bulk" => assert!(of("failed") >= 9 && again == 0, "{line}"),
            _ => assert!(of("failed") <= 4 && again >= 7, "{line}"),
        }
    }
}

#[test]
fn a_batch_is_uploaded_and_sign_ins_beside_it_all_arrive() {
    let mut footings = vec![("embedded", "all")];
    if has_servers() {
        footings.push(("servers", "worker"));
    }
    for (footing, process) in footings {
        let lines = measured(&["--only", "volume", "--volume", "600", "--footing", footing]);
        for when in ["alone", "beside a batch of 600"] {
            for store in ["in the batch's store", "in a quiet store"] {
                let line = named(&lines, &format!("sign-ins {when}, {store}"));
                assert!(line["count"].as_u64().unwrap() > 0, "{line}");
                assert_eq!(line["notes"]["missing"], 0, "{line}");
            }
        }
        let upload = named(&lines, "upload of 600 lines");
        let most = upload["notes"][process][1].as_u64().unwrap();
        assert!(most > 0, "{upload}");
        let part = named(&lines, "batch of 600, 0 to 600");
        assert_eq!(part["count"], 600, "{part}");
        assert!(part["cost_us"]["ours"].as_f64().unwrap() > 0.0, "{part}");
    }
}

#[test]
fn what_rabbitmq_takes_and_gives_by_itself() {
    if !has_servers() {
        return;
    }
    let lines = measured(&["--only", "rabbitmq", "--footing", "servers"]);
    for what in ["publish", "consume", "both at once"] {
        for jobs in ["jobs of 1,", "jobs of 200,"] {
            let line = named(&lines, &format!("RabbitMQ, {what}, {jobs}"));
            assert!(line["rate"].as_f64().unwrap() > 0.0, "{line}");
            assert!(line["of_bare"].as_f64().unwrap() > 0.0, "{line}");
        }
    }
}

#[test]
fn what_is_missing_for_the_peers_is_said() {
    let peers = ["--only", "peers", "--footing", "embedded", "--lane", "bulk"];
    let mut without_broker = bench(&peers);
    without_broker.env_remove("COUNTERSIGN_TEST_AMQP_URL");
    let mut without_python = bench(&peers);
    let nowhere = std::env::temp_dir().join("countersign-no-peers");
    // It is asked before anything connects to it.
    without_python
        .env("COUNTERSIGN_TEST_AMQP_URL", "amqp://127.0.0.1:1")
        .env("COUNTERSIGN_PEERS_VENV", nowhere)
        .env("COUNTERSIGN_PEERS_PYTHON", "no-such-python");
    for (mut command, missing) in [
        (without_broker, "RabbitMQ"),
        (without_python, "no-such-python"),
    ] {
        let lines = lines_of(&command.output().unwrap());
        let why = named(&lines, "peers")["notes"]["skipped"].as_str().unwrap();
        assert!(why.contains(missing), "{why}");
        assert!(named(&lines, "deliveries, bulk")["rate"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for (more, named) in [
        (["--errors", "teapot:1"], "teapot"),
        (["--provider", "wns"], "apns or fcm"),
        (["--streams", "0"], "--streams"),
    ] {
        let output = bench(&more).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{said}");
    }
}
