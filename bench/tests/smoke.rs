//! The whole program with tiny numbers: it counts, and cleans up after itself. No times are looked at.

use std::process::Command;

#[test]
fn every_measurement_counts_what_was_asked_for() {
    let temporary = std::env::temp_dir().join(format!("bench-smoke-{}", std::process::id()));
    std::fs::create_dir_all(&temporary).unwrap();
    let numbers = "--json --footing embedded --users 5 --pushes 40 --polls 10 --flights 8 --seconds 0.2 --runs 1 --latency 0";
    let output = Command::new(env!("CARGO_BIN_EXE_countersign-bench"))
        .args(numbers.split(' '))
        .env("TMPDIR", &temporary)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |what: &str| {
        let lines = document["lines"].as_array().unwrap();
        let of = |line: &&serde_json::Value| line["what"].as_str().unwrap().starts_with(what);
        lines
            .iter()
            .find(of)
            .map_or(0, |line| line["count"].as_u64().unwrap())
    };
    assert_eq!(count("deliveries, bulk"), 40);
    assert_eq!(count("deliveries, interactive"), 40);
    assert_eq!(count("wait, 10 released"), 10);
    assert!(count("bare client") > 0 && count("accept, 64 in a closed loop") > 0);
    let left = std::fs::read_dir(&temporary).unwrap().count();
    std::fs::remove_dir_all(&temporary).unwrap();
    assert_eq!(left, 0, "files were left behind");
}
