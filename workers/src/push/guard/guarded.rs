//! A provider with its guard and its metrics.

use super::{Admission, Condition, Guard};
use crate::push::{Call, Provider, PushResult};
use async_trait::async_trait;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use shared::clock::SharedClock;
use shared::domain;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Calls `P` where the guard allows it.
pub(in crate::push) struct Guarded<P> {
    inner: P,
    /// The policy's name, for log lines.
    policy: String,
    provider: domain::Provider,
    clock: SharedClock,
    guard: Mutex<Guard>,
    meters: Meters,
}

/// Looked up once: the registry is too slow for every push.
struct Meters {
    accepted: Counter,
    seconds: Histogram,
    breaker: Gauge,
}

impl<P> Guarded<P> {
    pub(in crate::push) fn new(
        inner: P,
        policy: &str,
        provider: domain::Provider,
        clock: SharedClock,
    ) -> Self {
        let name = provider.as_str();
        Self {
            inner,
            policy: policy.to_owned(),
            provider,
            clock,
            guard: Mutex::new(Guard::new()),
            meters: Meters {
                accepted: counter!("countersign_delivery_attempts_total", "provider" => name, "result" => "accepted"),
                seconds: histogram!("countersign_delivery_attempt_seconds", "provider" => name),
                breaker: gauge!("countersign_provider_breaker_state", "provider" => name),
            },
        }
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the credential is.
    pub(in crate::push) fn condition(&self) -> Condition {
        self.guard().condition()
    }

    fn note(&self, result: &PushResult) {
        match result {
            PushResult::Accepted { .. } => self.meters.accepted.increment(1),
            other => {
                let provider = self.provider.as_str();
                counter!("countersign_delivery_attempts_total", "provider" => provider, "result" => other.label()).increment(1);
            }
        }
    }

    /// Says once that something has changed, and not with every push that it hits.
    fn tell(&self, before: &Condition, after: &Condition) {
        let state = match after {
            Condition::Working => 0.0,
            Condition::Resting { .. } | Condition::Paused(_) => 2.0,
        };
        match (before, after) {
            (Condition::Paused(_), Condition::Paused(_))
            | (Condition::Resting { .. }, Condition::Resting { .. })
            | (_, Condition::Working) => {}
            (_, Condition::Paused(pause)) => {
                tracing::error!(policy = %self.policy, provider = %self.provider, reason = %pause.reason, "a push credential is paused; its jobs wait");
            }
            (_, Condition::Resting { .. }) => {
                tracing::warn!(policy = %self.policy, provider = %self.provider, "most calls of a push provider fail; it is left alone for some seconds");
            }
        }
        self.meters.breaker.set(state);
    }
}

#[async_trait]
impl<P: Provider> Provider for Guarded<P> {
    async fn push(&self, call: &Call) -> PushResult {
        let admission = self.guard().admit(self.clock.now());
        let probe = match admission {
            Admission::Call => false,
            Admission::Probe => true,
            Admission::No { after, reason } => {
                let result = PushResult::Paused { after, reason };
                self.note(&result);
                return result;
            }
        };
        let started = Instant::now();
        let result = self.inner.push(call).await;
        self.meters.seconds.record(started.elapsed());
        let uneventful = matches!(result, PushResult::Accepted { .. }) && !probe;
        let result = {
            let mut guard = self.guard();
            if uneventful {
                guard.settle(probe, result, self.clock.now())
            } else {
                let before = guard.condition();
                let result = guard.settle(probe, result, self.clock.now());
                let after = guard.condition();
                drop(guard);
                if before != after {
                    self.tell(&before, &after);
                }
                result
            }
        };
        self.note(&result);
        result
    }
}
