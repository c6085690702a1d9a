//! Runs the tests that show what the standards demand, and writes `docs/conformance.md`. `scripts/conformance` runs it with the servers up.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program of the test suite"
)]

use harness::musts;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};

fn main() -> ExitCode {
    let root = musts::root();
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .current_dir(&root)
        .args([
            "test",
            "--workspace",
            "--locked",
            "--no-fail-fast",
            "--",
            "must_",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut results = BTreeMap::new();
    for line in BufReader::new(cargo.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        println!("{line}");
        let parts = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "));
        if let Some((path, result)) = parts {
            let name = path.rsplit("::").next().unwrap_or(path);
            let result = if result == "ok" { "pass" } else { "FAIL" };
            results.insert(name.to_owned(), result.to_owned());
        }
    }
    let ran = cargo.wait().unwrap().success();
    let tests = musts::tests(&root);
    std::fs::write(
        root.join("docs/conformance.md"),
        musts::page(&tests, &results),
    )
    .unwrap();
    let missing = musts::missing(&tests);
    let passed = tests
        .iter()
        .all(|test| results.get(&test.name).is_some_and(|one| one == "pass"));
    println!(
        "docs/conformance.md: {} tests; demands without a test: {missing:?}",
        tests.len()
    );
    if ran && passed && missing == musts::OPEN {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
