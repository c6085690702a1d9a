//! From a result to what is done about it. A pure function: the caller brings time and randomness, and carries the decision out.
//!
//! Delays are waited for in the broker, never in a task. They are jittered, never shorter than what the provider asked for, and
//! a retry that could not finish before the deadline is not made: then the end is told at once, while somebody may still act on it.

use super::{PushResult, Reason, Scope};
use shared::clock::Millis;
use shared::domain::Provider;
use shared::message::Lane;
use std::time::Duration;

/// A retry has to start this long before the deadline.
pub const RESERVE: Duration = Duration::from_secs(5);

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

/// What is known about the job whose attempt has ended.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Who was called.
    pub provider: Provider,
    /// Is somebody waiting at a screen?
    pub lane: Lane,
    /// Which call it was, from 1.
    pub number: u32,
    /// Now.
    pub now: Millis,
    /// When the push expires.
    pub deadline: Millis,
}

/// Compare-and-set: only where the token is the one that was sent to and, given `since`, was registered before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropAddress {
    /// From when on the provider knows it as gone.
    pub since: Option<Millis>,
}

/// How a delivery's transport ends without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The address is dead.
    AddressGone,
    /// This job cannot succeed.
    Rejected,
    /// The provider did not take it in time. The device may still fetch.
    ProviderUnavailable,
    /// The credential did not work in time.
    CredentialPaused,
    /// The deadline has passed.
    Expired,
}

impl Failure {
    /// The word in rows and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddressGone => "address_gone",
            Self::Rejected => "rejected",
            Self::ProviderUnavailable => "provider_unavailable",
            Self::CredentialPaused => "credential_paused",
            Self::Expired => "expired",
        }
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Record it as sent.
    Sent,
    /// Another attempt, through the broker's delay.
    Retry {
        /// Not before.
        after: Duration,
        /// Why.
        reason: Reason,
    },
    /// As [`Decision::Retry`], and the credential does not work: say so once, to whoever operates it.
    PauseCredential {
        /// Not before.
        after: Duration,
        /// Why.
        reason: Reason,
    },
    /// The end.
    Failed {
        /// In what way.
        failure: Failure,
        /// The provider's word, or ours.
        reason: Reason,
        /// The address is to be disabled.
        drop_address: Option<DropAddress>,
    },
}

/// How often, and how far apart. All in milliseconds.
struct Schedule {
    /// Calls in total; `None`: until the deadline.
    attempts: Option<u32>,
    base: u64,
    cap: u64,
    /// Never sooner, whatever the jitter.
    floor: u64,
}

const fn schedule(attempts: Option<u32>, base: u64, cap: u64, floor: u64) -> Schedule {
    Schedule {
        attempts,
        base,
        cap,
        floor,
    }
}

/// How often a push is tried again almost at once when nobody processed it.
const QUICK: u32 = 3;
const QUICK_SPREAD: u64 = 250;

/// Decides. `random` may be any number; the same gives the same.
pub fn decide(result: &PushResult, attempt: &Attempt, random: u64) -> Decision {
    match result {
        PushResult::Accepted { .. } => Decision::Sent,
        PushResult::AddressGone { since, reason, .. } => Decision::Failed {
            failure: Failure::AddressGone,
            reason: reason.clone(),
            drop_address: Some(DropAddress { since: *since }),
        },
        PushResult::Rejected { reason } => failed(Failure::Rejected, reason),
        PushResult::Expired => failed(Failure::Expired, &Reason::Borrowed("expired")),
        PushResult::Unprocessed { reason } if attempt.number <= QUICK => {
            let after = Duration::from_millis(random % (QUICK_SPREAD + 1));
            again(attempt, after, Failure::ProviderUnavailable, reason)
        }
        // Nothing was processed and nothing can be doubled, so only the deadline ends it.
        PushResult::Unprocessed { reason } => {
            let plan = schedule(None, SECOND, MINUTE, 0);
            let later = Attempt {
                number: attempt.number - QUICK,
                ..*attempt
            };
            retry(&plan, None, &later, random, reason)
        }
        PushResult::Ambiguous { reason } => {
            let attempts = match attempt.lane {
                Lane::Interactive => 2,
                Lane::Bulk => 4,
            };
            let floor = match attempt.provider {
                Provider::Apns => 0,
                Provider::Fcm => 10 * SECOND,
            };
            let plan = schedule(Some(attempts), 2 * SECOND, MINUTE, floor);
            retry(&plan, None, attempt, random, reason)
        }
        PushResult::Unavailable { after, reason } => {
            let plan = unavailable(attempt.provider, attempt.lane);
            retry(&plan, *after, attempt, random, reason)
        }
        PushResult::Throttled {
            after,
            scope,
            reason,
        } => {
            let plan = throttled(attempt.provider, *scope);
            retry(&plan, Some(*after), attempt, random, reason)
        }
        PushResult::Credentials { reason } => {
            let plan = schedule(None, 5 * SECOND, 5 * MINUTE, 5 * SECOND);
            let after = delay(&plan, None, attempt.number, random);
            match again(attempt, after, Failure::CredentialPaused, reason) {
                Decision::Retry { after, reason } => Decision::PauseCredential { after, reason },
                ended => ended,
            }
        }
        // Each comes with a time of its own already.
        PushResult::Paced { after } => {
            let reason = Reason::Borrowed("paced");
            again(attempt, *after, Failure::ProviderUnavailable, &reason)
        }
        PushResult::Paused { after, reason } => {
            // Spread, so that what waited for the same pause does not come back together.
            let spread = after.mul_f64(unit(random) / 2.0);
            again(
                attempt,
                after.saturating_add(spread),
                Failure::CredentialPaused,
                reason,
            )
        }
    }
}

fn unavailable(provider: Provider, lane: Lane) -> Schedule {
    match (provider, lane) {
        // Apple says 15 minutes. An interactive push does not live that long, so it gets one more try, deliberately.
        (Provider::Apns, Lane::Interactive) => {
            schedule(Some(2), 5 * SECOND, 5 * SECOND, 5 * SECOND)
        }
        (Provider::Apns, Lane::Bulk) => schedule(Some(4), 15 * MINUTE, 60 * MINUTE, 15 * MINUTE),
        (Provider::Fcm, Lane::Interactive) => {
            schedule(Some(4), 10 * SECOND, 5 * MINUTE, 10 * SECOND)
        }
        (Provider::Fcm, Lane::Bulk) => schedule(Some(8), 10 * SECOND, 5 * MINUTE, 10 * SECOND),
    }
}

fn throttled(provider: Provider, scope: Scope) -> Schedule {
    match (provider, scope) {
        (Provider::Apns, Scope::Device) => schedule(Some(3), 30 * SECOND, 2 * MINUTE, 30 * SECOND),
        (Provider::Apns, Scope::Credential) => schedule(None, 5 * SECOND, MINUTE, 5 * SECOND),
        // `Retry-After` may ask for less than Google's default minute, and then is the better word.
        (Provider::Fcm, Scope::Device | Scope::Credential) => {
            schedule(None, MINUTE, 15 * MINUTE, 0)
        }
    }
}

fn retry(
    plan: &Schedule,
    asked: Option<Duration>,
    attempt: &Attempt,
    random: u64,
    reason: &Reason,
) -> Decision {
    if plan.attempts.is_some_and(|most| attempt.number >= most) {
        return failed(Failure::ProviderUnavailable, reason);
    }
    let after = delay(plan, asked, attempt.number, random);
    again(attempt, after, Failure::ProviderUnavailable, reason)
}

/// `min(cap, base * 2^n)`, times something between a half and one and a half, and never under the floor or what was asked for.
fn delay(plan: &Schedule, asked: Option<Duration>, number: u32, random: u64) -> Duration {
    let doublings = number.saturating_sub(1).min(32);
    let plain = plan.base.saturating_mul(1 << doublings).min(plan.cap);
    let jittered = Duration::from_millis(plain).mul_f64(0.5 + unit(random));
    let floor = Duration::from_millis(plan.floor).max(asked.unwrap_or_default());
    jittered.max(floor)
}

/// Somewhere in 0..1.
fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// A retry, or the end where it would come too late.
fn again(attempt: &Attempt, after: Duration, otherwise: Failure, reason: &Reason) -> Decision {
    let wait = i64::try_from(after.saturating_add(RESERVE).as_millis()).unwrap_or(i64::MAX);
    if attempt.now.saturating_add(wait) >= attempt.deadline {
        return failed(otherwise, reason);
    }
    Decision::Retry {
        after,
        reason: reason.clone(),
    }
}

fn failed(failure: Failure, reason: &Reason) -> Decision {
    Decision::Failed {
        failure,
        reason: reason.clone(),
        drop_address: None,
    }
}

#[cfg(test)]
mod tests;
