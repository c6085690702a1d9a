//! Checks an exported log: lines of JSON, one entry each, and at the end the signed head. One changed, missing, reordered or added entry is
//! found and named.

use super::{Entry, GENESIS, HEAD_TYP, Head, VERSION, hash_of};
use crate::crypto::ServerKey;
use crate::id::StoreId;
use serde_json::{Map, Value};
use std::io::BufRead;

/// What is wrong with a log. The first thing found, by its place.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// A line is no entry.
    #[error("line {line} is no entry in its canonical form: {why}")]
    Form {
        /// Counted from 1.
        line: u64,
        /// More about it.
        why: String,
    },
    /// An entry's hash is not its own.
    #[error("entry {seq} was changed: its hash is not that of its content")]
    Changed {
        /// Which.
        seq: u64,
    },
    /// An entry's `prev` is not the hash of the one before.
    #[error(
        "entry {seq} does not follow from the entry before it: one of the two was replaced or added"
    )]
    Unchained {
        /// Which.
        seq: u64,
    },
    /// Entries are not there.
    #[error("{} missing", entries(*first, *last))]
    Missing {
        /// From.
        first: u64,
        /// To.
        last: u64,
    },
    /// Entries stand in another order.
    #[error("entry {seq} is out of order: it stands where entry {expected} belongs")]
    Order {
        /// Which.
        seq: u64,
        /// Which belongs there.
        expected: u64,
    },
    /// An entry is there twice.
    #[error("entry {seq} was added: there is one already in its place")]
    Added {
        /// Which.
        seq: u64,
    },
    /// An entry belongs to another store.
    #[error("entry {seq} belongs to another store")]
    Foreign {
        /// Which.
        seq: u64,
    },
    /// The head is not signed by the key that it should be.
    #[error("the head at the end is not signed by {0}")]
    Signature(String),
    /// There is no head, so nobody can tell whether the end is missing.
    #[error("there is no signed head at the end: entries after {last} may be missing")]
    NoHead {
        /// The last entry that is there.
        last: u64,
    },
    /// Lines follow the head.
    #[error("line {line} was added: nothing follows the head")]
    BehindHead {
        /// Counted from 1.
        line: u64,
    },
}

fn entries(first: u64, last: u64) -> String {
    if first == last {
        format!("entry {first} is")
    } else {
        format!("entries {first} to {last} are")
    }
}

/// A log that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What the server signed.
    pub head: Head,
    /// Who signed it. Where no key was expected, its fingerprint is for the reader to compare.
    pub key: ServerKey,
}

/// A log on its way: entries go in one after the other.
#[derive(Default)]
pub struct Log {
    store: Option<StoreId>,
    last: u64,
    hash: Option<String>,
}

fn canonical(line: &str, number: u64) -> Result<Map<String, Value>, Broken> {
    let form = |why: &str| Broken::Form {
        line: number,
        why: why.to_owned(),
    };
    let map: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| form(&error.to_string()))?;
    let same = serde_json_canonicalizer::to_string(&map).is_ok_and(|text| text == line);
    if same {
        Ok(map)
    } else {
        Err(form("RFC 8785 writes it differently"))
    }
}

impl Log {
    /// Takes the next line. What stands out of place is not judged here: see [`check`].
    fn take(&mut self, line: &str, number: u64) -> Result<Entry, Broken> {
        let mut map = canonical(line, number)?;
        let entry: Entry =
            serde_json::from_value(Value::Object(map.clone())).map_err(|error| Broken::Form {
                line: number,
                why: error.to_string(),
            })?;
        if entry.v != VERSION {
            return Err(Broken::Form {
                line: number,
                why: format!("version {} is not known here", entry.v),
            });
        }
        let seq = entry.seq;
        let expected = self.last + 1;
        if seq > expected {
            return Err(Broken::Missing {
                first: expected,
                last: seq - 1,
            });
        }
        if seq < expected {
            return Err(Broken::Added { seq });
        }
        if self.store.get_or_insert_with(|| entry.store.clone()) != &entry.store {
            return Err(Broken::Foreign { seq });
        }
        map.remove("hash");
        if hash_of(&map) != entry.hash {
            return Err(Broken::Changed { seq });
        }
        if entry.prev != self.hash.as_deref().unwrap_or(GENESIS) {
            return Err(Broken::Unchained { seq });
        }
        self.last = seq;
        self.hash = Some(entry.hash.clone());
        Ok(entry)
    }

    fn closed(self, head: &str, pinned: Option<&str>) -> Result<Checked, Broken> {
        let signed =
            ServerKey::of_signed(head).filter(|key| pinned.is_none_or(|kid| kid == key.kid));
        let known = signed.and_then(|key| {
            let head: Head = key.verified(head, HEAD_TYP)?;
            Some(Checked { head, key })
        });
        let Some(checked) = known else {
            let whom = pinned.map_or("the key that it names".to_owned(), |kid| {
                format!("the expected key {kid}")
            });
            return Err(Broken::Signature(whom));
        };
        let head = &checked.head;
        let last = self.last;
        if head.seq > last {
            return Err(Broken::Missing {
                first: last + 1,
                last: head.seq,
            });
        }
        if head.seq < last {
            return Err(Broken::Added { seq: head.seq + 1 });
        }
        if self.store.is_some_and(|store| store != head.store) {
            return Err(Broken::Foreign { seq: last });
        }
        if head.hash != self.hash.as_deref().unwrap_or(GENESIS) {
            return Err(Broken::Unchained { seq: last });
        }
        Ok(checked)
    }
}

/// Checks a whole log from its first entry on. `pinned`: the fingerprint of the server's key, where it is known. `each` sees every entry that
/// holds, in order.
pub fn check(
    lines: impl BufRead,
    pinned: Option<&str>,
    mut each: impl FnMut(&Entry),
) -> Result<Checked, Broken> {
    let mut log = Log::default();
    // Not `lines`, which swallows a carriage return.
    let mut lines = (1_u64..).zip(lines.split(b'\n'));
    while let Some((number, line)) = lines.next() {
        let line = String::from_utf8(line?).map_err(|_| Broken::Form {
            line: number,
            why: "not UTF-8".to_owned(),
        })?;
        if let Some(head) = head_of(&line) {
            if let Some((line, _)) = lines.next() {
                return Err(Broken::BehindHead { line });
            }
            return log.closed(&head, pinned);
        }
        match log.take(&line, number) {
            Ok(entry) => each(&entry),
            Err(Broken::Missing { first, last }) => {
                // Not there at all, or only further down?
                for (_, later) in lines {
                    let later: Option<Entry> = serde_json::from_slice(&later?).ok();
                    if later.is_some_and(|entry| entry.seq == first) {
                        return Err(Broken::Order {
                            seq: last + 1,
                            expected: first,
                        });
                    }
                }
                return Err(Broken::Missing { first, last });
            }
            Err(broken) => return Err(broken),
        }
    }
    Err(Broken::NoHead { last: log.last })
}

/// The signed head, where this line is one: an object with nothing but `head`, as it was written.
fn head_of(line: &str) -> Option<String> {
    let jws = line.strip_prefix(r#"{"head":""#)?.strip_suffix(r#""}"#)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    jws.bytes().all(plain).then(|| jws.to_owned())
}

#[cfg(test)]
mod tests;
