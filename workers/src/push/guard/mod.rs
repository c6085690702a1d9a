//! What keeps one bad credential, or one bad day of a provider, from doing harm.
//!
//! - A credential that does not authenticate is paused: one probe at growing intervals, everything else is answered
//!   without a call. It never costs a device its address.
//! - A provider that fails most calls gets a rest of some seconds, then one call to find out.
//! - Where too many addresses are called dead, none is dropped any more and the credential is paused: a wrong environment
//!   or topic looks exactly like a fleet of uninstalled apps.

mod guarded;
mod window;

pub(super) use guarded::Guarded;

use super::{MALFORMED, PushResult, Reason};
use shared::clock::Millis;
use std::time::Duration;
use window::Window;

const FIRST_PROBE: Millis = 5_000;
const LAST_PROBE: Millis = 300_000;
/// A probe whose caller went away is given up after this long.
const PROBE_LIFE: Millis = 60_000;

/// The circuit opens when more than half of at least so many calls failed within the window.
const FEWEST_CALLS: u64 = 20;
const REST: Millis = 5_000;

/// Drops stop above both of these.
const FEWEST_DROPS: u64 = 50;
const MOST_DROPS_PERCENT: u64 = 5;

/// Calls in a row answered `Forbidden` until the credential is to blame and not the job.
const FORBIDDEN: u32 = 3;

/// Why a credential is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// The provider's word, or `mass_drop`.
    pub reason: Reason,
    /// Since when.
    pub since: Millis,
    /// When one call will find out whether it works again.
    pub next_probe: Millis,
}

/// How a credential is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// In use.
    Working,
    /// The provider fails; calls start again at `until`, with one.
    Resting {
        /// When.
        until: Millis,
    },
    /// It does not work.
    Paused(Pause),
}

/// May this call be made?
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Call,
    /// Yes, alone, to find out.
    Probe,
    No {
        after: Duration,
        reason: Reason,
    },
}

#[derive(Debug)]
enum Circuit {
    Closed,
    Open {
        until: Millis,
    },
    /// One call is out to find out.
    Trying {
        since: Millis,
    },
}

#[derive(Debug)]
struct Paused {
    pause: Pause,
    wait: Millis,
    probing_since: Option<Millis>,
}

/// The state of one credential's guard.
#[derive(Debug)]
pub(super) struct Guard {
    paused: Option<Paused>,
    circuit: Circuit,
    /// Ten seconds: calls, and failures of the provider.
    calls: Window<10>,
    /// Five minutes: calls, and addresses called dead.
    drops: Window<30>,
    /// Has any push ever been accepted? Until then the credential may belong to another environment.
    accepted: bool,
    forbidden: u32,
}

impl Guard {
    pub(super) fn new() -> Self {
        Self {
            paused: None,
            circuit: Circuit::Closed,
            calls: Window::new(1_000),
            drops: Window::new(10_000),
            accepted: false,
            forbidden: 0,
        }
    }

    pub(super) fn condition(&self) -> Condition {
        match (&self.paused, &self.circuit) {
            (Some(paused), _) => Condition::Paused(paused.pause.clone()),
            (None, Circuit::Open { until }) => Condition::Resting { until: *until },
            (None, Circuit::Closed | Circuit::Trying { .. }) => Condition::Working,
        }
    }

    pub(super) fn admit(&mut self, now: Millis) -> Admission {
        if let Some(paused) = &mut self.paused {
            let free = paused.probing_since.is_none_or(|at| now - at >= PROBE_LIFE);
            if free && now >= paused.pause.next_probe {
                paused.probing_since = Some(now);
                return Admission::Probe;
            }
            let after = paused.pause.next_probe.saturating_sub(now).max(1_000);
            return refusal(after, paused.pause.reason.clone());
        }
        match self.circuit {
            Circuit::Closed => Admission::Call,
            Circuit::Open { until } if now < until => {
                refusal(until - now, Reason::Borrowed("circuit_open"))
            }
            Circuit::Trying { since } if now - since < PROBE_LIFE => {
                refusal(1_000, Reason::Borrowed("circuit_open"))
            }
            Circuit::Open { .. } | Circuit::Trying { .. } => {
                self.circuit = Circuit::Trying { since: now };
                Admission::Probe
            }
        }
    }

    /// Takes note of a result, and says what the caller is told.
    pub(super) fn settle(&mut self, probe: bool, result: PushResult, now: Millis) -> PushResult {
        let failed = matches!(
            result,
            PushResult::Unavailable { .. } | PushResult::Ambiguous { .. }
        );
        let gone = matches!(result, PushResult::AddressGone { .. });
        if was_called(&result) {
            self.calls.count(now, failed);
            self.drops.count(now, gone);
        }
        self.watch_circuit(probe, failed, was_called(&result), now);
        let (result, finding) = self.judge(result, now);
        match finding {
            Finding::Bad(reason) => self.pause(probe, reason, now),
            Finding::Works if probe => self.resume(now),
            Finding::Nothing if probe => self.postpone(now),
            Finding::Works | Finding::Nothing => {}
        }
        result
    }

    /// What a result says about the credential, and what the caller is told.
    fn judge(&mut self, result: PushResult, now: Millis) -> (PushResult, Finding) {
        let finding = match &result {
            PushResult::Accepted { .. } => {
                self.accepted = true;
                self.forbidden = 0;
                Finding::Works
            }
            PushResult::AddressGone { guarded, .. } => {
                let (withheld, finding) = self.judge_drop(*guarded, now);
                if withheld {
                    let reason = Reason::Borrowed(WITHHELD);
                    return (PushResult::Rejected { reason }, finding);
                }
                finding
            }
            PushResult::Credentials { reason } => Finding::Bad(reason.clone()),
            PushResult::Rejected { reason } if reason == "Forbidden" => {
                self.forbidden = self.forbidden.saturating_add(1);
                if self.forbidden >= FORBIDDEN {
                    Finding::Bad(reason.clone())
                } else {
                    Finding::Works
                }
            }
            PushResult::Throttled { .. } => Finding::Works,
            PushResult::Rejected { .. } if was_called(&result) => Finding::Works,
            PushResult::Rejected { .. }
            | PushResult::Unavailable { .. }
            | PushResult::Unprocessed { .. }
            | PushResult::Ambiguous { .. }
            | PushResult::Paused { .. }
            | PushResult::Paced { .. }
            | PushResult::Expired => Finding::Nothing,
        };
        (result, finding)
    }

    /// Whether a drop is withheld, and what it says about the credential.
    fn judge_drop(&mut self, guarded: bool, now: Millis) -> (bool, Finding) {
        let (all, drops) = self.drops.totals(now);
        let too_many = drops >= FEWEST_DROPS && drops * 100 > all * MOST_DROPS_PERCENT;
        // Once paused for this, only an accepted push is proof that the addresses are to blame.
        let suspect = matches!(&self.paused, Some(p) if p.pause.reason == MASS_DROP);
        if too_many && self.paused.is_none() {
            tracing::error!(
                drops,
                calls = all,
                "too many addresses are called dead: no more are dropped"
            );
        }
        if too_many || suspect {
            return (true, Finding::Bad(Reason::Borrowed(MASS_DROP)));
        }
        // A guarded proof counts only where this credential is known to reach somebody.
        (guarded && !self.accepted, Finding::Works)
    }

    fn watch_circuit(&mut self, probe: bool, failed: bool, called: bool, now: Millis) {
        match self.circuit {
            Circuit::Trying { .. } if probe && failed => self.open(now),
            Circuit::Trying { .. } if probe && called => {
                self.circuit = Circuit::Closed;
                self.calls.clear();
            }
            // Nothing was found out: the next one tries.
            Circuit::Trying { .. } if probe => self.circuit = Circuit::Open { until: now },
            Circuit::Closed if failed => {
                let (all, failures) = self.calls.totals(now);
                if all >= FEWEST_CALLS && failures * 2 > all {
                    self.open(now);
                }
            }
            Circuit::Closed | Circuit::Open { .. } | Circuit::Trying { .. } => {}
        }
    }

    fn open(&mut self, now: Millis) {
        self.circuit = Circuit::Open { until: now + REST };
    }

    /// Pauses, or after a probe that failed pauses for longer. Failures of calls that were under way change nothing.
    fn pause(&mut self, probe: bool, reason: Reason, now: Millis) {
        match &mut self.paused {
            Some(paused) if probe => {
                paused.wait = paused.wait.saturating_mul(2).min(LAST_PROBE);
                paused.probing_since = None;
                paused.pause.next_probe = now + paused.wait;
                paused.pause.reason = reason;
            }
            Some(_) => {}
            None => {
                self.paused = Some(Paused {
                    pause: Pause {
                        reason,
                        since: now,
                        next_probe: now + FIRST_PROBE,
                    },
                    wait: FIRST_PROBE,
                    probing_since: None,
                });
            }
        }
    }

    /// A probe that told nothing: again soon, since it did not burn anything either.
    fn postpone(&mut self, now: Millis) {
        if let Some(paused) = &mut self.paused {
            paused.probing_since = None;
            paused.pause.next_probe = now + FIRST_PROBE;
        }
    }

    fn resume(&mut self, now: Millis) {
        if let Some(paused) = self.paused.take() {
            self.forbidden = 0;
            self.drops.clear();
            let paused_for = now - paused.pause.since;
            tracing::info!(reason = %paused.pause.reason, paused_for, "a push credential works again");
        }
    }
}

/// The word for a drop that is not made.
const WITHHELD: &str = "address_drop_withheld";
/// The word for a pause because of too many of them.
const MASS_DROP: &str = "mass_drop";

/// What a result says about a credential.
enum Finding {
    Works,
    Bad(Reason),
    /// Nothing, for better or worse.
    Nothing,
}

/// Has the provider seen the push, as far as we know?
fn was_called(result: &PushResult) -> bool {
    match result {
        PushResult::Rejected { reason } => reason != MALFORMED,
        PushResult::Unprocessed { .. }
        | PushResult::Paused { .. }
        | PushResult::Paced { .. }
        | PushResult::Expired => false,
        PushResult::Accepted { .. }
        | PushResult::AddressGone { .. }
        | PushResult::Throttled { .. }
        | PushResult::Unavailable { .. }
        | PushResult::Ambiguous { .. }
        | PushResult::Credentials { .. } => true,
    }
}

fn refusal(after: Millis, reason: Reason) -> Admission {
    Admission::No {
        after: Duration::from_millis(u64::try_from(after).unwrap_or(0)),
        reason,
    }
}

#[cfg(test)]
mod tests;
