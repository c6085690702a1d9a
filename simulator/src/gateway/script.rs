//! What happens to the pushes of one token, and the book that keeps it. Tokens without an entry are served well.

use super::Provider;
use super::reasons::{ApnsReason, FcmCode};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How many self-describing tokens (`sim:flaky:2:…`) are counted; the rest behave as if seen for the first time.
const MAX_SELF_DESCRIBED: usize = 10_000;
/// A self-describing token cannot hold a request longer than this.
const MAX_SLOW: Duration = Duration::from_mins(10);

/// What the provider does with pushes to one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// Takes them.
    Ok,
    /// The app was removed: 410 with the time, or 404 `UNREGISTERED`.
    Unregistered {
        /// APNs says since when; now, if not given.
        since_ms: Option<i64>,
    },
    /// The token never was one.
    BadToken,
    /// Takes them after a while.
    Slow(Duration),
    /// Fails with 500, then takes them.
    Flaky {
        /// How many times it fails.
        failures: u32,
    },
    /// Answers 429 with `Retry-After`, then takes them.
    Throttled {
        /// How many times.
        times: u32,
        /// The header's value; none when 0.
        retry_after_secs: u64,
    },
    /// 503 until another script is set.
    Outage,
    /// Never answers, and does not deliver.
    Hang,
    /// 403 for the credential.
    Refuse,
    /// Takes the push, answers, and shuts this connection down gracefully.
    GoAway,
    /// Takes the push, then cuts the connection before the answer.
    ResetAfterAccept,
    /// One documented APNs error (FCM takes the push).
    Apns(ApnsReason),
    /// One documented FCM error (APNs takes the push).
    Fcm(FcmCode),
    /// Any status and body: proxies' HTML, an unknown reason, nothing at all.
    Raw {
        /// The HTTP status.
        status: u16,
        /// The body as it is.
        body: String,
    },
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Gone { since_ms: Option<i64> },
    BadToken,
    Broken,
    Down,
    Throttled { retry_after_secs: u64 },
    Refused,
    Apns(ApnsReason),
    Fcm(FcmCode),
    Raw { status: u16, body: String },
}

/// What to do with the connection instead of, or after, answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Answer,
    AnswerThenGoAway,
    Cut,
    Hang,
}

/// One push's fate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) delay: Duration,
    pub(super) verdict: Verdict,
    pub(super) ending: Ending,
}

impl Step {
    pub(super) fn answer(verdict: Verdict) -> Self {
        Self {
            delay: Duration::ZERO,
            verdict,
            ending: Ending::Answer,
        }
    }

    fn accept(ending: Ending) -> Self {
        Self {
            ending,
            ..Self::answer(Verdict::Accept)
        }
    }
}

impl Script {
    /// How often it applies before the token is served well; `None`: until replaced.
    fn times(&self) -> Option<u32> {
        match self {
            Self::Flaky { failures } => Some(*failures),
            Self::Throttled { times, .. } => Some(*times),
            _ => None,
        }
    }

    pub(super) fn step(&self) -> Step {
        match self {
            Self::Ok => Step::answer(Verdict::Accept),
            Self::Unregistered { since_ms } => Step::answer(Verdict::Gone {
                since_ms: *since_ms,
            }),
            Self::BadToken => Step::answer(Verdict::BadToken),
            Self::Slow(delay) => Step {
                delay: *delay,
                ..Step::answer(Verdict::Accept)
            },
            Self::Flaky { .. } => Step::answer(Verdict::Broken),
            Self::Throttled {
                retry_after_secs, ..
            } => Step::answer(Verdict::Throttled {
                retry_after_secs: *retry_after_secs,
            }),
            Self::Outage => Step::answer(Verdict::Down),
            Self::Hang => Step::accept(Ending::Hang),
            Self::Refuse => Step::answer(Verdict::Refused),
            Self::GoAway => Step::accept(Ending::AnswerThenGoAway),
            Self::ResetAfterAccept => Step::accept(Ending::Cut),
            Self::Apns(reason) => Step::answer(Verdict::Apns(*reason)),
            Self::Fcm(code) => Step::answer(Verdict::Fcm(*code)),
            Self::Raw { status, body } => Step::answer(Verdict::Raw {
                status: *status,
                body: body.clone(),
            }),
        }
    }

    /// Reads `sim:<what>:…` tokens, for use where nobody can call [`super::Gateway::script`].
    fn self_described(token: &str) -> Option<Self> {
        let mut words = token.strip_prefix("sim:")?.split(':');
        match words.next()? {
            "unregistered" => Some(Self::Unregistered { since_ms: None }),
            "badtoken" => Some(Self::BadToken),
            "outage" => Some(Self::Outage),
            "hang" => Some(Self::Hang),
            "refuse" => Some(Self::Refuse),
            "goaway" => Some(Self::GoAway),
            "reset" => Some(Self::ResetAfterAccept),
            "flaky" => Some(Self::Flaky {
                failures: words.next()?.parse().ok()?,
            }),
            "throttle" => Some(Self::Throttled {
                times: words.next()?.parse().ok()?,
                retry_after_secs: 1,
            }),
            "slow" => {
                let (number, unit) = match words.next()? {
                    ms if ms.ends_with("ms") => (ms.strip_suffix("ms")?, 1_u64),
                    s => (s.strip_suffix('s')?, 1000),
                };
                let ms = number.parse::<u64>().ok()?.saturating_mul(unit);
                Some(Self::Slow(Duration::from_millis(ms).min(MAX_SLOW)))
            }
            _ => None,
        }
    }
}

struct Entry {
    script: Script,
    left: Option<u32>,
}

impl Entry {
    fn step(&mut self) -> Step {
        match &mut self.left {
            Some(0) => Step::answer(Verdict::Accept),
            Some(left) => {
                *left -= 1;
                self.script.step()
            }
            None => self.script.step(),
        }
    }
}

/// All scripts by token.
#[derive(Default)]
pub(super) struct Book(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    entries: HashMap<String, Entry>,
    self_described: usize,
}

/// APNs tokens are hex and case does not matter; FCM's do.
fn key(token: &str) -> String {
    if token.bytes().all(|b| b.is_ascii_hexdigit()) {
        token.to_ascii_lowercase()
    } else {
        token.to_owned()
    }
}

impl Book {
    pub(super) fn set(&self, token: &str, script: Script, times: Option<u32>) {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if script == Script::Ok && Script::self_described(token).is_none() {
            pages.entries.remove(&key(token));
            return;
        }
        let left = times.or_else(|| script.times());
        pages.entries.insert(key(token), Entry { script, left });
    }

    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Pages::default();
    }

    /// What happens to this push; `None` where the token has no script.
    pub(super) fn step(&self, provider: Provider, token: &str) -> Option<Step> {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !pages.entries.is_empty()
            && let Some(entry) = pages.entries.get_mut(&key(token))
        {
            return Some(entry.step());
        }
        let script = (provider == Provider::Fcm)
            .then(|| Script::self_described(token))
            .flatten()?;
        let mut entry = Entry {
            left: script.times(),
            script,
        };
        let step = entry.step();
        if entry.left.is_some() && pages.self_described < MAX_SELF_DESCRIBED {
            pages.self_described += 1;
            pages.entries.insert(key(token), entry);
        }
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::{Book, Provider, Script, Step, Verdict};
    use std::time::Duration;

    #[test]
    fn a_counted_script_ends_in_good_service() {
        let book = Book::default();
        book.set("AB12", Script::Flaky { failures: 2 }, None);
        let verdicts: Vec<_> = (0..3)
            .map(|_| book.step(Provider::Apns, "ab12").unwrap().verdict)
            .collect();
        assert_eq!(
            verdicts,
            [Verdict::Broken, Verdict::Broken, Verdict::Accept]
        );
    }

    #[test]
    fn a_token_can_say_what_happens_to_it() {
        let book = Book::default();
        let first = |token: &str| book.step(Provider::Fcm, token).unwrap();
        assert_eq!(first("sim:slow:3s:x").delay, Duration::from_secs(3));
        assert_eq!(first("sim:slow:20ms:x").delay, Duration::from_millis(20));
        assert_eq!(
            first("sim:unregistered:x").verdict,
            Verdict::Gone { since_ms: None }
        );
        assert_eq!(
            first("sim:throttle:1:x").verdict,
            Verdict::Throttled {
                retry_after_secs: 1
            }
        );
        assert_eq!(first("sim:throttle:1:x"), Step::answer(Verdict::Accept));
        assert_eq!(book.step(Provider::Fcm, "sim:nonsense"), None);
        book.set("sim:unregistered:x", Script::Ok, None);
        assert_eq!(first("sim:unregistered:x"), Step::answer(Verdict::Accept));
    }
}
