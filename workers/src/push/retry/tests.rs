use super::{Attempt, Decision, DropAddress, Failure, RESERVE, decide};
use crate::push::{PushResult, Scope};
use proptest::prelude::*;
use shared::domain::Provider;
use shared::message::Lane;
use std::time::Duration;

const HOUR: i64 = 3_600_000;

fn attempt(provider: Provider, lane: Lane, number: u32) -> Attempt {
    Attempt {
        provider,
        lane,
        number,
        now: 0,
        deadline: 24 * HOUR,
    }
}

fn unavailable() -> PushResult {
    PushResult::Unavailable {
        after: None,
        reason: "503".into(),
    }
}

fn throttled(scope: Scope, after: u64) -> PushResult {
    PushResult::Throttled {
        after: Duration::from_secs(after),
        scope,
        reason: "429".into(),
    }
}

fn ambiguous() -> PushResult {
    PushResult::Ambiguous {
        reason: "timeout".into(),
    }
}

/// How many calls a result that never changes leads to, and the delays between them with the jitter in its middle.
fn life(result: &PushResult, provider: Provider, lane: Lane) -> (u32, Vec<u64>) {
    let mut delays = vec![];
    for number in 1..=20 {
        match decide(result, &attempt(provider, lane, number), u64::MAX / 2) {
            Decision::Retry { after, .. } => delays.push(after.as_secs()),
            Decision::Failed { .. } => return (number, delays),
            other => panic!("{other:?}"),
        }
    }
    (u32::MAX, delays)
}

#[test]
fn the_policys_table() {
    use Lane::{Bulk, Interactive};
    use Provider::{Apns, Fcm};
    let calls = |result: &PushResult, provider, lane| life(result, provider, lane).0;
    let delays = |result: &PushResult, provider, lane| life(result, provider, lane).1;

    assert_eq!(calls(&ambiguous(), Apns, Interactive), 2);
    assert_eq!(calls(&ambiguous(), Fcm, Bulk), 4);
    assert_eq!(delays(&ambiguous(), Apns, Bulk), [2, 4, 8]);
    assert_eq!(delays(&ambiguous(), Fcm, Bulk), [10, 10, 10]);

    assert_eq!(calls(&unavailable(), Apns, Interactive), 2);
    assert_eq!(delays(&unavailable(), Apns, Interactive), [5]);
    assert_eq!(delays(&unavailable(), Apns, Bulk), [900, 1800, 3600]);
    assert_eq!(calls(&unavailable(), Fcm, Interactive), 4);
    assert_eq!(delays(&unavailable(), Fcm, Interactive), [10, 20, 40]);
    assert_eq!(calls(&unavailable(), Fcm, Bulk), 8);

    let device = throttled(Scope::Device, 30);
    assert_eq!(calls(&device, Apns, Interactive), 3);
    let quota = throttled(Scope::Credential, 60);
    assert_eq!(calls(&quota, Fcm, Bulk), u32::MAX);
    assert_eq!(delays(&quota, Fcm, Bulk)[..5], [60, 120, 240, 480, 900]);

    let unprocessed = PushResult::Unprocessed {
        reason: "goaway".into(),
    };
    let delays = life(&unprocessed, Apns, Interactive).1;
    assert_eq!(delays[..6], [0, 0, 0, 1, 2, 4]);
}

#[test]
fn what_ends_at_once() {
    let now = attempt(Provider::Apns, Lane::Interactive, 1);
    let gone = PushResult::AddressGone {
        since: Some(7),
        guarded: false,
        reason: "Unregistered".into(),
    };
    assert_eq!(
        decide(&gone, &now, 0),
        Decision::Failed {
            failure: Failure::AddressGone,
            reason: "Unregistered".into(),
            drop_address: Some(DropAddress { since: Some(7) }),
        }
    );
    let accepted = PushResult::Accepted { provider_id: None };
    assert_eq!(decide(&accepted, &now, 0), Decision::Sent);
    let rejected = PushResult::Rejected {
        reason: "PayloadEmpty".into(),
    };
    assert!(matches!(
        decide(&rejected, &now, 0),
        Decision::Failed {
            failure: Failure::Rejected,
            drop_address: None,
            ..
        }
    ));
    assert!(matches!(
        decide(&PushResult::Expired, &now, 0),
        Decision::Failed {
            failure: Failure::Expired,
            ..
        }
    ));
}

#[test]
fn a_credential_that_fails_keeps_its_jobs_until_the_deadline() {
    let refused = PushResult::Credentials {
        reason: "InvalidProviderToken".into(),
    };
    let mut job = attempt(Provider::Apns, Lane::Bulk, 40);
    assert!(matches!(
        decide(&refused, &job, 0),
        Decision::PauseCredential { .. }
    ));
    job.now = job.deadline - 6_000;
    assert!(matches!(
        decide(&refused, &job, 0),
        Decision::Failed {
            failure: Failure::CredentialPaused,
            drop_address: None,
            ..
        }
    ));
}

fn results() -> impl Strategy<Value = PushResult> {
    let after = (0u64..100_000).prop_map(Duration::from_millis);
    let reason = || "reason".into();
    prop_oneof![
        Just(PushResult::Accepted { provider_id: None }),
        Just(PushResult::Expired),
        any::<bool>().prop_map(move |guarded| PushResult::AddressGone {
            since: None,
            guarded,
            reason: reason()
        }),
        (after.clone(), any::<bool>()).prop_map(move |(after, device)| PushResult::Throttled {
            after,
            scope: if device {
                Scope::Device
            } else {
                Scope::Credential
            },
            reason: reason()
        }),
        prop::option::of(after.clone()).prop_map(move |after| PushResult::Unavailable {
            after,
            reason: reason()
        }),
        Just(PushResult::Unprocessed { reason: reason() }),
        Just(PushResult::Ambiguous { reason: reason() }),
        Just(PushResult::Rejected { reason: reason() }),
        Just(PushResult::Credentials { reason: reason() }),
        after.clone().prop_map(|after| PushResult::Paced { after }),
        after.prop_map(move |after| PushResult::Paused {
            after,
            reason: reason()
        }),
    ]
}

fn attempts() -> impl Strategy<Value = Attempt> {
    let times = (0i64..10_000_000, -100_000i64..100_000_000);
    (any::<bool>(), any::<bool>(), 1u32..100, times).prop_map(
        |(apns, bulk, number, (now, left))| Attempt {
            provider: if apns { Provider::Apns } else { Provider::Fcm },
            lane: if bulk { Lane::Bulk } else { Lane::Interactive },
            number,
            now,
            deadline: now + left,
        },
    )
}

proptest! {
    #[test]
    fn a_retry_never_starts_in_the_last_seconds(result in results(), attempt in attempts(), random: u64) {
        if let Decision::Retry { after, .. } | Decision::PauseCredential { after, .. } = decide(&result, &attempt, random) {
            let start = attempt.now + after.as_millis() as i64;
            prop_assert!(start < attempt.deadline - RESERVE.as_millis() as i64);
        }
    }

    #[test]
    fn what_the_provider_asks_for_is_honoured(result in results(), attempt in attempts(), random: u64) {
        let asked = match &result {
            PushResult::Throttled { after, .. }
            | PushResult::Paused { after, .. }
            | PushResult::Paced { after } => *after,
            PushResult::Unavailable { after, .. } => after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        if let Decision::Retry { after, .. } = decide(&result, &attempt, random) {
            prop_assert!(after >= asked);
        }
    }

    #[test]
    fn a_delay_has_bounds(result in results(), attempt in attempts(), random: u64) {
        if let Decision::Retry { after, .. } | Decision::PauseCredential { after, .. } = decide(&result, &attempt, random) {
            prop_assert!(after <= Duration::from_mins(90), "{after:?}");
        }
    }

    #[test]
    fn an_address_is_dropped_on_the_providers_word_alone(result in results(), attempt in attempts(), random: u64) {
        let gone = matches!(result, PushResult::AddressGone { .. });
        let drops = matches!(decide(&result, &attempt, random), Decision::Failed { drop_address: Some(_), .. });
        prop_assert_eq!(gone, drops);
    }

    #[test]
    fn the_same_randomness_gives_the_same_decision(result in results(), attempt in attempts(), random: u64) {
        prop_assert_eq!(decide(&result, &attempt, random), decide(&result, &attempt, random));
    }
}

#[test]
fn what_waits_for_a_turn_comes_back_when_it_was_told_to_or_fails_in_time() {
    let after = Duration::from_secs(10);
    let paced = PushResult::Paced { after };
    let mut attempt = attempt(Provider::Fcm, Lane::Bulk, 7);
    let reason = "paced".into();
    let again = Decision::Retry { after, reason };
    assert_eq!(decide(&paced, &attempt, u64::MAX), again);
    attempt.deadline = 15_000;
    let Decision::Failed { failure, .. } = decide(&paced, &attempt, 0) else {
        panic!("it would come too late");
    };
    assert_eq!(failure, Failure::ProviderUnavailable);
}
