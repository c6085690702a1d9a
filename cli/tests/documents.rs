//! What is written down about the program is what it does: commands, flags, exit codes, settings.

#![expect(clippy::unwrap_used, reason = "a test may panic: that is its failing")]

use clap::{Command, CommandFactory as _};
use cli::commands::Arguments;
use cli::exit::Exit;
use cli::settings::Settings;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The rows of tables whose first cell is in backticks, as their cells.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter_map(|line| {
        let inner = line.strip_prefix('|')?.strip_suffix('|')?;
        let cells: Vec<_> = inner.split(" | ").map(str::trim).collect();
        cells[0].starts_with('`').then_some(cells)
    })
}

fn quoted(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap()
}

/// The sections of the page, by the name in their heading.
fn sections(text: &str) -> BTreeMap<&str, &str> {
    let parts = text.split("\n## ").skip(1);
    parts.map(|part| part.split_once('\n').unwrap()).collect()
}

/// Every command with what it takes, the flags of all commands left out.
fn commands(command: &Command, name: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
    let mut deeper = false;
    for below in command
        .get_subcommands()
        .filter(|one| one.get_name() != "help")
    {
        let name = format!("{name} {}", below.get_name());
        commands(below, name.trim(), found);
        deeper = true;
    }
    if deeper {
        return;
    }
    let arguments = command.get_arguments().filter_map(|one| {
        let id = one.get_id().as_str();
        if matches!(id, "help" | "version" | "json") {
            return None;
        }
        Some(match one.get_long() {
            Some(long) => format!("--{long}"),
            None => id.to_uppercase(),
        })
    });
    found.insert(name.to_owned(), arguments.collect());
}

#[test]
fn every_command_and_flag_is_written_and_no_other() {
    let mut program = Arguments::command();
    program.build();
    let mut ours = BTreeMap::new();
    commands(&program, "", &mut ours);
    assert!(ours.len() > 10);
    let text = read("docs/cli.md");
    let all = sections(&text);
    let mut written = BTreeMap::new();
    for (heading, part) in &all {
        let Some(name) = heading.strip_prefix("countersign ") else {
            continue;
        };
        let flags: BTreeSet<_> = rows(part)
            .map(|row| quoted(row[0]).split([' ', '=']).next().unwrap().to_owned())
            .collect();
        assert!(
            part.contains(&format!("\ncountersign {name}")),
            "{name} has an example"
        );
        written.insert(name.to_owned(), flags);
    }
    assert_eq!(written, ours);
}

#[test]
fn every_example_is_understood() {
    let pages = ["cli", "settings", "runbook"];
    let text = pages.map(|page| read(&format!("docs/{page}.md"))).concat();
    let mut count = 0;
    for block in text.split("```").skip(1).step_by(2) {
        for line in block
            .lines()
            .filter(|line| line.starts_with("countersign "))
        {
            let mut words = Vec::new();
            for (n, part) in line.split('"').enumerate() {
                if n % 2 == 1 {
                    words.push(part.to_owned());
                } else {
                    words.extend(part.split_whitespace().map(str::to_owned));
                }
            }
            let parsed = Arguments::command().try_get_matches_from(&words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            count += 1;
        }
    }
    assert!(count > 15, "{count}");
}

/// One for each value, so that a new one does not compile until it is here, and then in the page.
fn all_exits() -> Vec<Exit> {
    let next = |exit: Exit| match exit {
        Exit::Done => Some(Exit::Failed),
        Exit::Failed => Some(Exit::Usage),
        Exit::Usage => Some(Exit::Settings),
        Exit::Settings => Some(Exit::Refused),
        Exit::Refused => Some(Exit::Unreachable),
        Exit::Unreachable => Some(Exit::GaveUp),
        Exit::GaveUp => Some(Exit::Denied),
        Exit::Denied => Some(Exit::Fraud),
        Exit::Fraud => Some(Exit::Expired),
        Exit::Expired => Some(Exit::Undeliverable),
        Exit::Undeliverable => Some(Exit::Cancelled),
        Exit::Cancelled => Some(Exit::Partly),
        Exit::Partly => None,
    };
    std::iter::successors(Some(Exit::Done), |exit| next(*exit)).collect()
}

#[test]
fn every_exit_code_is_written_and_no_other() {
    let ours: BTreeSet<u8> = all_exits().into_iter().map(|exit| exit as u8).collect();
    let text = read("docs/cli.md");
    let part = sections(&text)["Exit codes"];
    let written: Vec<u8> = rows(part)
        .map(|row| quoted(row[0]).parse().unwrap())
        .collect();
    assert!(written.is_sorted());
    assert_eq!(written.iter().copied().collect::<BTreeSet<_>>(), ours);
    let help = Arguments::command().render_help().to_string();
    let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for code in written {
        let said = [", ", ": "]
            .iter()
            .any(|before| flat.contains(&format!("{before}{code} ")));
        assert!(said, "the help says nothing of {code}");
    }
    for (state, exit) in [
        ("approved", Exit::Done),
        ("completed", Exit::Done),
        ("denied", Exit::Denied),
        ("expired", Exit::Expired),
        ("failed", Exit::Undeliverable),
        ("cancelled", Exit::Cancelled),
    ] {
        assert_eq!(Exit::of_push(state, ""), Some(exit));
        let row = rows(part).find(|row| quoted(row[0]) == (exit as u8).to_string());
        assert!(row.unwrap()[1].contains(state), "{state}");
    }
}

#[test]
fn the_written_settings_are_those_that_are_read() {
    let text = read("docs/settings.md");
    let written: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("| `") && line.contains("COUNTERSIGN_"))
        .collect();
    let ours = Settings::table();
    assert_eq!(written, ours.lines().collect::<Vec<_>>());
}

/// The file shown in the page is one that can be used.
#[test]
fn the_written_settings_file_is_read() {
    let text = read("docs/settings.md");
    let (_, rest) = text.split_once("```toml\n").unwrap();
    let (file, _) = rest.split_once("```").unwrap();
    let folder = std::env::temp_dir().join(format!("countersign-settings-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let secret = folder.join("secret");
    std::fs::write(&secret, "x".repeat(43)).unwrap();
    let place = secret.display().to_string();
    let file = file.replace("/run/secrets/countersign_secret", &place);
    let path = folder.join("countersign.toml");
    std::fs::write(&path, file).unwrap();
    let read = Settings::read(Some(&path), &|_| None, &[]);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(read.is_ok(), "{read:?}");
}
