//! `countersign bench`, with numbers so small that only its working counts.
#![expect(
    clippy::unwrap_used,
    reason = "clippy's exception for tests does not reach the helpers of an integration test"
)]

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

const SMALL: [&str; 13] = [
    "bench",
    "--json",
    "--pushes",
    "200",
    "--users",
    "40",
    "--runs",
    "1",
    "--latency",
    "0",
    "--seconds",
    "0.1",
    "--flights=20",
];

/// A folder of a test's own, which the program takes for the place of temporary files.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("bench-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn bench(folder: &PathBuf) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    for (name, _) in std::env::vars() {
        let ours = name.starts_with("COUNTERSIGN_");
        if ours || matches!(name.as_str(), "DATABASE_URL" | "AMQP_URL" | "RUST_LOG") {
            command.env_remove(name);
        }
    }
    command
        .args(SMALL)
        .current_dir(folder)
        .env("TMPDIR", folder);
    command
}

fn check(output: &Output, footing: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.is_empty(), "{said}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    for lane in ["bulk", "interactive"] {
        let mut lines = document["lines"].as_array().unwrap().iter();
        let what = format!("deliveries, {lane}, 0 ms");
        let line = lines.find(|line| line["what"] == what.as_str()).unwrap();
        assert_eq!(
            (&line["footing"], &line["count"]),
            (&footing.into(), &200.into())
        );
        assert!(line["of_bare"].as_f64().unwrap() > 0.0, "{line}");
    }
}

#[test]
fn without_settings_it_runs_embedded_and_leaves_nothing() {
    let folder = folder("embedded");
    check(&bench(&folder).output().unwrap(), "embedded");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    std::fs::remove_dir(folder).unwrap();
}

/// The broker's queues, where `scripts/test` has started it by itself.
fn queues() -> Option<String> {
    let control = std::env::var_os("COUNTERSIGN_TEST_BROKER_CONTROL")?;
    let listed = Command::new(control)
        .args(["ctl", "list_queues", "name"])
        .output()
        .unwrap();
    assert!(listed.status.success());
    let text = String::from_utf8(listed.stdout).unwrap();
    let mut names: Vec<_> = text.lines().collect();
    names.sort_unstable();
    Some(names.join(" "))
}

#[test]
fn on_the_servers_of_the_settings_it_leaves_nothing() {
    let (Ok(database), Ok(queue)) = (
        std::env::var("COUNTERSIGN_TEST_DATABASE_URL"),
        std::env::var("COUNTERSIGN_TEST_AMQP_URL"),
    ) else {
        return;
    };
    let before = queues();
    let folder = folder("servers");
    let mut command = bench(&folder);
    command
        .env("DATABASE_URL", database)
        .env("AMQP_URL", queue)
        .env("COUNTERSIGN_SERVER__SECRET", "s".repeat(43));
    check(&command.output().unwrap(), "servers");
    assert_eq!(queues(), before);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    std::fs::remove_dir(folder).unwrap();
}

#[test]
fn servers_that_no_settings_name_are_asked_for() {
    let folder = folder("none");
    let mut command = bench(&folder);
    command
        .args(["--footing", "servers"])
        .env("COUNTERSIGN_SERVER__SECRET", "s".repeat(43));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("database.url"), "{said}");
    std::fs::remove_dir(folder).unwrap();
}
