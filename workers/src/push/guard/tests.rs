use super::{Admission, Condition, Guard};
use crate::push::PushResult;

fn accepted() -> PushResult {
    PushResult::Accepted { provider_id: None }
}

fn refused() -> PushResult {
    PushResult::Credentials {
        reason: "InvalidProviderToken".into(),
    }
}

fn unavailable() -> PushResult {
    PushResult::Unavailable {
        after: None,
        reason: "ServiceUnavailable".into(),
    }
}

fn gone(guarded: bool) -> PushResult {
    PushResult::AddressGone {
        since: None,
        guarded,
        reason: "BadDeviceToken".into(),
    }
}

fn dropped(result: &PushResult) -> bool {
    matches!(result, PushResult::AddressGone { .. })
}

fn paused(guard: &Guard) -> bool {
    matches!(guard.condition(), Condition::Paused(_))
}

/// Makes a call at `now` if the guard allows one.
fn call(guard: &mut Guard, result: PushResult, now: i64) -> Option<PushResult> {
    match guard.admit(now) {
        Admission::Call => Some(guard.settle(false, result, now)),
        Admission::Probe => Some(guard.settle(true, result, now)),
        Admission::No { .. } => None,
    }
}

#[test]
fn a_refused_credential_is_probed_at_growing_intervals() {
    let mut guard = Guard::new();
    let mut now = 1_000_000;
    call(&mut guard, refused(), now).unwrap();
    let mut waits = vec![];
    for _ in 0..8 {
        let start = now;
        while call(&mut guard, refused(), now).is_none() {
            now += 1_000;
        }
        waits.push((now - start) / 1_000);
    }
    assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300]);
    // A failing hour costs some fifteen calls, whatever waits; a working key ends it at the next one.
    while call(&mut guard, accepted(), now).is_none() {
        now += 1_000;
    }
    assert_eq!(guard.condition(), Condition::Working);
    assert!(call(&mut guard, accepted(), now).is_some());
}

#[test]
fn one_probe_is_out_at_a_time_and_a_lost_one_does_not_block_for_ever() {
    let mut guard = Guard::new();
    call(&mut guard, refused(), 0).unwrap();
    assert_eq!(guard.admit(5_000), Admission::Probe);
    assert!(matches!(guard.admit(5_001), Admission::No { .. }));
    assert!(matches!(guard.admit(64_999), Admission::No { .. }));
    assert_eq!(guard.admit(65_000), Admission::Probe);
}

#[test]
fn calls_that_were_under_way_do_not_lengthen_a_pause() {
    let mut guard = Guard::new();
    call(&mut guard, refused(), 0).unwrap();
    for _ in 0..500 {
        guard.settle(false, refused(), 10);
    }
    assert_eq!(guard.admit(5_000), Admission::Probe);
}

#[test]
fn a_probe_that_meets_an_outage_says_nothing_about_the_credential() {
    let mut guard = Guard::new();
    call(&mut guard, refused(), 0).unwrap();
    assert_eq!(guard.admit(5_000), Admission::Probe);
    guard.settle(true, unavailable(), 5_010);
    assert!(paused(&guard));
    assert_eq!(guard.admit(10_010), Admission::Probe);
}

#[test]
fn a_failing_provider_gets_a_rest_and_then_one_call() {
    let mut guard = Guard::new();
    for _ in 0..10 {
        call(&mut guard, accepted(), 0).unwrap();
    }
    for _ in 0..10 {
        call(&mut guard, unavailable(), 0).unwrap();
    }
    assert_eq!(guard.condition(), Condition::Working);
    call(&mut guard, unavailable(), 100).unwrap();
    assert_eq!(guard.condition(), Condition::Resting { until: 5_100 });
    assert!(call(&mut guard, accepted(), 5_099).is_none());
    assert_eq!(guard.admit(5_100), Admission::Probe);
    assert!(matches!(guard.admit(5_100), Admission::No { .. }));
    guard.settle(true, unavailable(), 5_200);
    assert_eq!(guard.condition(), Condition::Resting { until: 10_200 });
    assert_eq!(call(&mut guard, accepted(), 10_200), Some(accepted()));
    assert_eq!(guard.condition(), Condition::Working);
    // Its memory is wiped: the failures of before do not open it again.
    call(&mut guard, unavailable(), 10_201).unwrap();
    assert_eq!(guard.condition(), Condition::Working);
}

#[test]
fn a_few_failures_open_nothing() {
    let mut guard = Guard::new();
    for _ in 0..19 {
        call(&mut guard, unavailable(), 0).unwrap();
    }
    assert_eq!(guard.condition(), Condition::Working);
}

#[test]
fn a_wrong_environment_costs_fifty_calls_and_no_address() {
    let mut guard = Guard::new();
    let mut calls = 0;
    for _ in 0..10_000 {
        if let Some(result) = call(&mut guard, gone(true), 1_000) {
            calls += 1;
            assert!(!dropped(&result));
        }
    }
    assert_eq!(calls, 50);
    assert!(paused(&guard));
    // A probe that finds the next dead address proves nothing either.
    assert!(!dropped(&call(&mut guard, gone(true), 6_000).unwrap()));
    assert!(paused(&guard));
    assert!(call(&mut guard, accepted(), 7_000).is_none());
}

#[test]
fn a_fleet_that_dies_at_once_keeps_its_addresses() {
    let mut guard = Guard::new();
    for _ in 0..500 {
        call(&mut guard, accepted(), 0).unwrap();
    }
    let drops = (0..200)
        .filter_map(|_| call(&mut guard, gone(false), 0))
        .filter(dropped)
        .count();
    assert_eq!(drops, 49);
    assert!(paused(&guard));
}

#[test]
fn the_usual_share_of_dead_addresses_is_dropped() {
    let mut guard = Guard::new();
    let mut drops = 0;
    for place in 0..20_000 {
        let result = if place % 25 == 24 {
            gone(true)
        } else {
            accepted()
        };
        drops += usize::from(dropped(&call(&mut guard, result, place).unwrap()));
    }
    assert_eq!(drops, 800);
    assert_eq!(guard.condition(), Condition::Working);
}

#[test]
fn forbidden_once_is_the_job_and_three_times_the_credential() {
    let forbidden = || PushResult::Rejected {
        reason: "Forbidden".into(),
    };
    let mut guard = Guard::new();
    call(&mut guard, forbidden(), 0).unwrap();
    call(&mut guard, forbidden(), 0).unwrap();
    call(&mut guard, accepted(), 0).unwrap();
    call(&mut guard, forbidden(), 0).unwrap();
    assert_eq!(guard.condition(), Condition::Working);
    call(&mut guard, forbidden(), 0).unwrap();
    call(&mut guard, forbidden(), 0).unwrap();
    assert!(paused(&guard));
}
