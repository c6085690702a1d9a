use super::{Broken, Checked, check};
use crate::audit::{Act, GENESIS, Head, chained};
use crate::crypto::ServerSecret;
use crate::id::{AuditId, PushId, StoreId};
use crate::secret::Secret;
use proptest::prelude::*;
use serde_json::{Value, json};

fn secret(text: &str) -> ServerSecret {
    ServerSecret::new(&Secret::new(text.repeat(5))).unwrap()
}

/// A log of `count` entries and its head, a line each.
fn log(count: u64) -> Vec<String> {
    let store = StoreId::fresh(1);
    let mut prev = GENESIS.to_owned();
    let mut lines = Vec::new();
    for seq in 1..=count {
        let entry = json!({"v": 1, "id": AuditId::fresh(seq.cast_signed()), "store": store, "at": "2026-11-25T00:00:00.000Z",
            "act": Act::PushApproved, "push": PushId::fresh(seq.cast_signed()), "facts": {"reason": "user_approved", "n": seq}});
        let Value::Object(entry) = entry else {
            unreachable!()
        };
        let (line, hash) = chained(entry, seq, &prev);
        lines.push(line);
        prev = hash;
    }
    let head = Head::new(store, count, prev, 5).signed(secret("0123456789").signer());
    lines.push(json!({"head": head}).to_string());
    lines
}

fn look(lines: &[String]) -> Result<Checked, Broken> {
    let text = lines.join("\n");
    check(text.as_bytes(), None, |_| {})
}

fn said(lines: &[String]) -> String {
    look(lines).unwrap_err().to_string()
}

#[test]
fn a_whole_log_holds_and_says_whose_key_signed_it() {
    for count in [0, 1, 2, 50] {
        let mut seen = 0;
        let text = log(count).join("\n") + "\n";
        let checked = check(text.as_bytes(), None, |_| seen += 1).unwrap();
        assert_eq!((checked.head.seq, seen), (count, count));
        let kid = secret("0123456789").signer().public().kid.clone();
        assert_eq!(checked.key.kid, kid);
        assert!(check(text.as_bytes(), Some(&kid), |_| {}).is_ok());
        let other = secret("9876543210").signer().public().kid.clone();
        let refused = check(text.as_bytes(), Some(&other), |_| {}).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("not signed by the expected key")
        );
    }
}

#[test]
fn each_kind_of_damage_is_named() {
    let whole = log(6);
    let mut lines = whole.clone();
    lines.remove(2);
    assert_eq!(said(&lines), "entry 3 is missing");
    let mut lines = whole.clone();
    lines.drain(..2);
    assert_eq!(said(&lines), "entries 1 to 2 are missing");
    let mut lines = whole.clone();
    lines.remove(5);
    assert_eq!(said(&lines), "entry 6 is missing", "the head knows of it");
    let mut lines = whole.clone();
    lines.swap(1, 3);
    assert_eq!(
        said(&lines),
        "entry 4 is out of order: it stands where entry 2 belongs"
    );
    let mut lines = whole.clone();
    lines.insert(3, whole[2].clone());
    assert_eq!(
        said(&lines),
        "entry 3 was added: there is one already in its place"
    );
    let mut lines = whole.clone();
    lines[3] = lines[3].replace("user_approved", "user_improved");
    assert_eq!(
        said(&lines),
        "entry 4 was changed: its hash is not that of its content"
    );
    let mut lines = whole.clone();
    lines.pop();
    assert!(said(&lines).starts_with("there is no signed head"));
    let mut lines = whole.clone();
    lines.push(whole[0].clone());
    assert_eq!(said(&lines), "line 8 was added: nothing follows the head");
}

/// Whoever rewrites an entry and its hash too is found at the next one, or at the head.
#[test]
fn a_rewritten_entry_does_not_lead_to_the_next_one() {
    for at in [0, 3, 5] {
        let mut lines = log(6);
        let mut entry: serde_json::Map<String, Value> = serde_json::from_str(&lines[at]).unwrap();
        entry.remove("hash");
        entry.insert("facts".to_owned(), json!({"reason": "forged"}));
        let prev = entry["prev"].as_str().unwrap().to_owned();
        lines[at] = chained(entry, at as u64 + 1, &prev).0;
        let next = (at as u64 + 2).min(6);
        assert_eq!(
            said(&lines),
            format!(
                "entry {next} does not follow from the entry before it: one of the two was replaced or added"
            )
        );
    }
}

#[test]
fn a_line_with_a_name_twice_or_in_another_form_is_refused() {
    let mut lines = log(2);
    lines[1] = lines[1].replace(r#""seq":2"#, r#""seq":9,"seq":2"#);
    assert!(said(&lines).contains("canonical"));
    let mut lines = log(2);
    lines[1] = lines[1].replace(r#""seq":2"#, r#""seq": 2"#);
    assert!(said(&lines).contains("canonical"));
}

proptest! {
    #[test]
    fn no_changed_byte_goes_unseen(at in 0_usize..10_000, bit in 0_u32..8) {
        let whole = log(4).join("\n");
        let mut bytes = whole.into_bytes();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let seen = check(bytes.as_slice(), None, |_| {});
        prop_assert!(seen.is_err(), "byte {at}, bit {bit}");
    }
}
