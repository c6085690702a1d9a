//! How fast a Firebase project is sent to: evenly, slowly at first, slower after a 429, and never so fast that a flood of a batch
//! keeps a login waiting.
//!
//! Two lines of slots, each one slot after another at its own rate, so that their sum is the project's rate at any time: the main
//! line for everybody, and the reserved line for interactive pushes alone. A call takes the next slot and waits for it; where that
//! would take too long it takes none, and comes back when it is likely to find one. Workers share the quota evenly: each takes the
//! part of one of them.

use metrics::counter;
use shared::clock::{Millis, SharedClock};
use shared::message::Lane;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The part of the quota that is used: FCM's minutes are not ours, and other senders of the project want to live, too.
const USED: f64 = 0.8;
/// The part of the rate that only interactive pushes get.
const RESERVED: f64 = 0.1;
/// How much may go at once after silence, in seconds of the rate.
const BURST_MAIN_S: f64 = 0.1;
const BURST_RESERVED_S: f64 = 1.0;
/// From where the rate rises when a project is cold: this part of it, but so many a second at least.
const COLD: f64 = 0.1;
const COLD_LEAST: f64 = 10.0;
/// How long it rises, and after what silence a project is cold again.
const RAMP: Millis = 60_000;
/// What a 429 leaves of the rate, no more than once in a second, and never less than this.
const SLOWER: f64 = 0.5;
const SLOWEST: f64 = 1.0 / 64.0;
const ONCE: Millis = 1_000;
/// What comes back of it in a minute.
const RECOVERED: f64 = 0.1;
/// How long a call may wait for its slot: with the call itself it has to end within the lease of its delivery.
const PATIENCE_MS: f64 = 5_000.0;
/// No time lies further ahead, whatever a provider asks for and whoever sets the clock.
const FARTHEST_MS: f64 = 900_000.0;

/// The paces of one process, by project.
pub(in crate::push) struct Paces {
    per_minute: u32,
    workers: Arc<AtomicU32>,
    clock: SharedClock,
    of_project: HashMap<String, Arc<Pace>>,
}

impl Paces {
    /// A quota for each project, of which each of so many workers takes an even part.
    pub(in crate::push) fn new(
        per_minute: u32,
        workers: Arc<AtomicU32>,
        clock: SharedClock,
    ) -> Self {
        Self {
            per_minute,
            workers,
            clock,
            of_project: HashMap::new(),
        }
    }

    /// The pace of a project, however many credentials send to it.
    pub(super) fn of(&mut self, project: &str) -> Arc<Pace> {
        let (workers, clock) = (Arc::clone(&self.workers), Arc::clone(&self.clock));
        let made = || Arc::new(Pace::new(self.per_minute, workers, clock));
        let project = self.of_project.entry(project.to_owned());
        Arc::clone(project.or_insert_with(made))
    }

    /// Forgets what nothing is sent to any more.
    pub(in crate::push) fn tidy(&mut self) {
        self.of_project
            .retain(|_, pace| Arc::strong_count(pace) > 1);
    }
}

/// When a call may be made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Turn {
    /// After this time.
    After(Duration),
    /// Not now; it is worth asking again after this time.
    Later(Duration),
}

/// The pace of one project in one process.
pub(super) struct Pace {
    per_second: f64,
    /// Among how many workers the quota is shared.
    workers: Arc<AtomicU32>,
    clock: SharedClock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    main: Line,
    reserved: Line,
    /// When those that were turned away come back, one after another.
    returns: Line,
    /// When the ramp began.
    warm_since: Millis,
    last_used: Option<Millis>,
    /// What 429s have left of the rate, and as of when.
    slowed: f64,
    slowed_at: Millis,
    /// Nothing of the bulk lane before, on FCM's word.
    held_until: f64,
}

/// Slots one after another, by when the next one is free. Milliseconds.
#[derive(Debug, Default)]
struct Line(f64);

impl Line {
    /// How long until the next slot, where `burst_ms` of them may be taken at once.
    fn wait(&self, now: f64, burst_ms: f64) -> f64 {
        (self.0 - burst_ms - now).max(0.0)
    }

    fn take(&mut self, now: f64, rate: f64) {
        self.0 = self.0.max(now) + 1_000.0 / rate;
    }

    /// A clock that is set back must not hold everybody up.
    fn bound(&mut self, now: f64) {
        self.0 = self.0.min(now + FARTHEST_MS);
    }
}

impl Pace {
    fn new(per_minute: u32, workers: Arc<AtomicU32>, clock: SharedClock) -> Self {
        Self {
            per_second: f64::from(per_minute.max(1)) / 60.0 * USED,
            workers,
            clock,
            state: Mutex::new(State {
                main: Line::default(),
                reserved: Line::default(),
                returns: Line::default(),
                warm_since: 0,
                last_used: None,
                slowed: 1.0,
                slowed_at: 0,
                held_until: 0.0,
            }),
        }
    }

    /// The next slot. Taken, where it is to be waited for.
    pub(super) fn turn(&self, lane: Lane) -> Turn {
        let at = self.clock.now();
        let now = at as f64;
        let workers = f64::from(self.workers.load(Ordering::Relaxed).max(1));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = state.rate(self.per_second / workers, at);
        let (main, reserved) = (rate * (1.0 - RESERVED), rate * RESERVED);
        let State {
            main: all,
            reserved: own,
            returns,
            held_until,
            ..
        } = &mut *state;
        *held_until = held_until.min(now + FARTHEST_MS);
        let held = *held_until - now;
        for line in [&mut *all, &mut *own, &mut *returns] {
            line.bound(now);
        }
        // One slot at least may be taken ahead, or a slow line would never be used at once.
        let burst =
            |seconds: f64, rate: f64| (seconds * 1_000.0).max(1_000.0 / rate) - 1_000.0 / rate;
        let in_main = all.wait(now, burst(BURST_MAIN_S, main));
        let in_own = own.wait(now, burst(BURST_RESERVED_S, reserved));
        let wait = match lane {
            Lane::Interactive if in_own <= in_main => {
                if in_own <= PATIENCE_MS {
                    own.take(now, reserved);
                }
                in_own
            }
            // A slot taken now would be used with all the others in the moment in which the hold ends.
            Lane::Bulk if held > 0.0 => held + PATIENCE_MS,
            Lane::Interactive | Lane::Bulk => {
                if in_main <= PATIENCE_MS {
                    all.take(now, main);
                }
                in_main
            }
        };
        if wait <= PATIENCE_MS {
            if wait > 0.0 {
                counter!("countersign_fcm_paced_total", "result" => "waited").increment(1);
            }
            return Turn::After(Duration::from_micros((wait * 1_000.0) as u64));
        }
        counter!("countersign_fcm_paced_total", "result" => "later").increment(1);
        returns.0 = returns.0.max(now + if held > 0.0 { held } else { wait });
        returns.take(now, main);
        returns.bound(now);
        Turn::Later(Duration::from_millis((returns.0 - now) as u64))
    }

    /// After FCM said that the project sends too much: everything goes more slowly, and nothing of a batch for `after`. A login
    /// cannot wait that long, and may be let through.
    pub(super) fn slow_down(&self, after: Duration) {
        let at = self.clock.now();
        counter!("countersign_fcm_paced_total", "result" => "slowed").increment(1);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.recover(at);
        if at - state.slowed_at >= ONCE || state.slowed >= 1.0 {
            state.slowed = (state.slowed * SLOWER).max(SLOWEST);
            state.slowed_at = at;
        }
        let until = at as f64 + (after.as_secs_f64() * 1_000.0).min(FARTHEST_MS);
        state.held_until = state.held_until.max(until);
    }
}

impl State {
    /// What may be sent in a second now.
    fn rate(&mut self, full: f64, now: Millis) -> f64 {
        let cold = self
            .last_used
            .is_none_or(|last| now - last >= RAMP || now < last);
        if cold {
            self.warm_since = now;
        }
        self.last_used = Some(now);
        self.recover(now);
        let risen = ((now - self.warm_since) as f64 / RAMP as f64).clamp(0.0, 1.0);
        let start = (full * COLD).max(COLD_LEAST).min(full);
        (start + (full - start) * risen) * self.slowed
    }

    /// Gives back what a 429 took, a bit at a time.
    fn recover(&mut self, now: Millis) {
        if self.slowed >= 1.0 {
            return;
        }
        let minutes = (now - self.slowed_at) as f64 / 60_000.0;
        if minutes >= 1.0 / 60.0 {
            self.slowed = (self.slowed + minutes * RECOVERED).min(1.0);
            self.slowed_at = now;
        } else if minutes < 0.0 {
            self.slowed_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pace, Turn};
    use shared::clock::{Clock as _, ManualClock};
    use shared::message::Lane;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    const START: i64 = 1_800_000_000_000;

    /// 6,000 in a minute: 80 in a second.
    fn pace(workers: u32) -> (Pace, Arc<ManualClock>, Arc<AtomicU32>) {
        let clock = ManualClock::at(START);
        let workers = Arc::new(AtomicU32::new(workers));
        let pace = Pace::new(6_000, Arc::clone(&workers), clock.clone());
        (pace, clock, workers)
    }

    /// How many calls of the lane fall into each second, where there is always another one.
    fn sent(pace: &Pace, clock: &ManualClock, lane: Lane, seconds: usize) -> Vec<u32> {
        const STEP: i64 = 100;
        let start = clock.now();
        let mut counts = vec![0; seconds + 10];
        for _ in 0..seconds * 10 {
            while let Turn::After(wait) = pace.turn(lane) {
                let wait = i64::try_from(wait.as_millis()).unwrap();
                counts[usize::try_from(clock.now() + wait - start).unwrap() / 1_000] += 1;
                if wait >= STEP {
                    break;
                }
            }
            clock.advance(STEP);
        }
        counts.truncate(seconds);
        counts
    }

    fn warm(pace: &Pace, clock: &ManualClock) {
        for _ in 0..61 {
            pace.turn(Lane::Interactive);
            clock.advance(1_000);
        }
    }

    #[test]
    fn a_flood_goes_evenly_and_no_faster_than_the_rate() {
        let (pace, clock, _) = pace(1);
        warm(&pace, &clock);
        for second in sent(&pace, &clock, Lane::Bulk, 10) {
            assert!((60..=80).contains(&second), "{second} in a second");
        }
        // No burst after silence either.
        clock.advance(30_000);
        let at_once = (0..100).filter(|_| pace.turn(Lane::Bulk) == Turn::After(Duration::ZERO));
        let at_once = at_once.count();
        assert!((1..=8).contains(&at_once), "{at_once} at once");
    }

    #[test]
    fn a_cold_project_starts_slowly_and_is_cold_again_after_silence() {
        let (pace, clock, _) = pace(1);
        // The last of so many seconds.
        let second = |n: usize| sent(&pace, &clock, Lane::Bulk, n).pop().unwrap();
        let first = second(1);
        assert!((5..=15).contains(&first), "{first}");
        second(29);
        let middle = second(1);
        assert!((30..=50).contains(&middle), "{middle}");
        second(30);
        let full = second(1);
        assert!((60..=80).contains(&full), "{full}");
        clock.advance(60_000);
        let again = second(1);
        assert!((5..=20).contains(&again), "{again}");
    }

    #[test]
    fn a_flood_leaves_room_for_a_login() {
        let (pace, clock, _) = pace(1);
        warm(&pace, &clock);
        let mut later = 0;
        for _ in 0..2_000 {
            later += u32::from(matches!(pace.turn(Lane::Bulk), Turn::Later(_)));
        }
        assert!(later > 1_000, "{later} would wait beyond their lease");
        for _ in 0..8 {
            assert_eq!(pace.turn(Lane::Interactive), Turn::After(Duration::ZERO));
        }
        // Those that are turned away come back one after another.
        let returns: Vec<_> = (0..3).map(|_| pace.turn(Lane::Bulk)).collect();
        let [Turn::Later(a), Turn::Later(b), Turn::Later(c)] = returns[..] else {
            panic!("{returns:?}");
        };
        assert!(a < b && b < c && a > Duration::from_secs(5), "{returns:?}");
    }

    #[test]
    fn interactive_pushes_alone_get_the_whole_rate() {
        let (pace, clock, _) = pace(1);
        warm(&pace, &clock);
        let total: u32 = sent(&pace, &clock, Lane::Interactive, 10).iter().sum();
        assert!((700..=830).contains(&total), "{total} in 10 s");
    }

    #[test]
    fn workers_share_the_quota() {
        let (pace, clock, _) = pace(4);
        warm(&pace, &clock);
        let total: u32 = sent(&pace, &clock, Lane::Bulk, 10).iter().sum();
        assert!((150..=190).contains(&total), "{total} in 10 s");
    }

    #[test]
    fn a_429_holds_a_batch_back_and_slows_the_project_for_minutes() {
        let (pace, clock, _) = pace(1);
        warm(&pace, &clock);
        for _ in 0..100 {
            pace.slow_down(Duration::from_secs(20));
        }
        let Turn::Later(wait) = pace.turn(Lane::Bulk) else {
            panic!("a batch does not wait");
        };
        assert!(wait >= Duration::from_secs(20), "{wait:?}");
        // A login may be let through.
        assert_eq!(pace.turn(Lane::Interactive), Turn::After(Duration::ZERO));
        clock.advance(20_000);
        // A hundred at the same time halve it once.
        let total: u32 = sent(&pace, &clock, Lane::Bulk, 10).iter().sum();
        assert!((340..=410).contains(&total), "{total} in 10 s");
        for _ in 0..300 {
            pace.turn(Lane::Interactive);
            clock.advance(1_000);
        }
        let total: u32 = sent(&pace, &clock, Lane::Bulk, 10).iter().sum();
        assert!((640..=740).contains(&total), "{total} in 10 s");
    }

    #[test]
    fn a_clock_set_back_holds_nobody_up_for_long() {
        let (pace, clock, _) = pace(1);
        warm(&pace, &clock);
        pace.turn(Lane::Bulk);
        clock.advance(-7_200_000);
        let Turn::Later(wait) = pace.turn(Lane::Bulk) else {
            return;
        };
        assert!(wait <= Duration::from_mins(16), "{wait:?}");
    }
}
