//! Noise: texts of chance, and good ones with something changed. None is taken, and none makes the verifier panic.

use crate::{cases, judged, key, read, text};
use proptest::prelude::*;
use serde_json::Value;
use shared::crypto::{ServerKey, Signed};
use std::sync::OnceLock;

/// Good proofs, requests and prompts.
fn good() -> &'static [(String, Value)] {
    static ALL: OnceLock<Vec<(String, Value)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut all = Vec::new();
        for (file, member) in [
            ("proofs.json", "/proof"),
            ("requests.json", "/authorization"),
            ("prompts.json", "/prompt/signature"),
        ] {
            let held = cases(&read(file))
                .into_iter()
                .filter(|one| one["verdict"] == "holds");
            all.extend(held.map(|one| {
                (
                    one.pointer(member).unwrap().as_str().unwrap().to_owned(),
                    one,
                )
            }));
        }
        all
    })
}

/// Does anything take `noise` for something that `vector` holds, or panic over it?
fn taken(noise: &str, vector: &Value) -> bool {
    let proof = vector
        .get("expected")
        .is_some_and(|expected| judged(noise, &key(&vector["key"]), expected) == "holds");
    let request = vector.get("request").is_some_and(|request| {
        let now = vector["now"].as_i64().unwrap();
        let body = text(request, "body").as_bytes();
        let (method, path) = (text(request, "method"), text(request, "path"));
        Signed::read(noise).is_ok_and(|signed| {
            signed
                .check(&key(&vector["key"]), method, path, body, now)
                .is_ok()
        })
    });
    let prompt = vector.get("server_key").is_some_and(|server| {
        let server: ServerKey = serde_json::from_value(server.clone()).unwrap();
        server
            .verified::<Value>(noise, "countersign-prompt+jwt")
            .is_some()
    });
    proof || request || prompt
}

#[derive(Debug, Clone)]
enum Change {
    Replace(prop::sample::Index, char),
    Insert(prop::sample::Index, String),
    Remove(prop::sample::Index, usize),
    Swap(prop::sample::Index, prop::sample::Index),
    Splice(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    use prop::sample::Index;
    let near = prop_oneof![prop::char::range('-', 'z'), any::<char>()];
    prop_oneof![
        (any::<Index>(), near).prop_map(|(at, c)| Change::Replace(at, c)),
        (any::<Index>(), "[-_.A-Za-z0-9=+/ ]{1,8}").prop_map(|(at, text)| Change::Insert(at, text)),
        (any::<Index>(), 1..200_usize).prop_map(|(at, n)| Change::Remove(at, n)),
        (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Change::Swap(a, b)),
        (any::<Index>(), any::<Index>()).prop_map(|(at, other)| Change::Splice(at, other)),
    ]
}

fn apply(text: &mut Vec<char>, change: &Change) {
    if text.is_empty() {
        return;
    }
    match change {
        Change::Replace(at, c) => {
            let at = at.index(text.len());
            text[at] = *c;
        }
        Change::Insert(at, more) => {
            let at = at.index(text.len() + 1);
            text.splice(at..at, more.chars());
        }
        Change::Remove(at, n) => {
            let at = at.index(text.len());
            let end = (at + n).min(text.len());
            text.drain(at..end);
        }
        Change::Swap(a, b) => {
            let (a, b) = (a.index(text.len()), b.index(text.len()));
            text.swap(a, b);
        }
        Change::Splice(at, other) => {
            let other: Vec<char> = good()[other.index(good().len())].0.chars().collect();
            let at = at.index(text.len());
            text.truncate(at);
            text.extend(other.into_iter().skip(at));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn what_was_changed_is_refused(which in any::<prop::sample::Index>(), changes in prop::collection::vec(change(), 1..4)) {
        let (text, vector) = &good()[which.index(good().len())];
        let mut noise: Vec<char> = text.chars().collect();
        for one in &changes {
            apply(&mut noise, one);
        }
        let noise: String = noise.into_iter().collect();
        let same = good().iter().any(|(good, _)| *good == noise);
        prop_assert!(same || !taken(&noise, vector), "{noise}");
    }

    #[test]
    fn texts_of_chance_are_refused(noise in "(Device )?[ -~]{0,40}(\\.[A-Za-z0-9_-]{0,90}){0,4}|\\PC{0,200}") {
        for (_, vector) in good() {
            prop_assert!(!taken(&noise, vector));
        }
    }
}

#[test]
fn what_is_good_is_taken() {
    assert!(
        good().iter().all(|(text, vector)| taken(text, vector)),
        "or the others show nothing"
    );
}
