//! Batches give way while somebody waits.
//!
//! Queues, connections and streams of their own do not help a login whose task, transaction or page stands behind a thousand pushes of a batch:
//! both lanes share the processors, the event loop and the database. So while logins come, whatever works for a batch takes small steps and rests
//! after each of them, the longer the fewer processors there are; while none come, it takes all there is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long after the last interactive push more of them are expected.
const ATTENTIVE: Duration = Duration::from_secs(2);
/// How many times as long as a step every rest is at least, on however many processors: the database has no more of them for it.
const LEAST: u32 = 2;
/// No rest is longer.
const LONGEST: Duration = Duration::from_millis(500);

/// Who waits in this process.
#[derive(Debug)]
pub struct Courtesy {
    began: Instant,
    processors: u32,
    /// When the last interactive push was seen, in milliseconds after `began`, and one.
    last: AtomicU64,
}

impl Default for Courtesy {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            processors: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            last: AtomicU64::new(0),
        }
    }
}

impl Courtesy {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// An interactive push was taken or is to be sent.
    pub fn somebody_waits(&self) {
        self.last
            .store(self.now().saturating_add(1), Ordering::Relaxed);
    }

    /// Does somebody wait?
    pub fn is_asked(&self) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        last > 0 && u128::from(self.now().saturating_sub(last - 1)) < ATTENTIVE.as_millis()
    }

    /// Rests after a step of a batch, if somebody waits: on one processor `times` as long as the step has taken, on two half as long, and so on.
    pub async fn rest(&self, step: Duration, times: u32) {
        let length = self.length(step, times);
        if !length.is_zero() {
            sleep(length).await;
        }
    }

    fn length(&self, step: Duration, times: u32) -> Duration {
        if self.is_asked() {
            (step * (times / self.processors).max(LEAST)).min(LONGEST)
        } else {
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ATTENTIVE, Courtesy, LEAST, LONGEST};
    use std::time::{Duration, Instant};

    #[test]
    fn a_batch_rests_only_while_somebody_waits_and_never_for_long() {
        let mut courtesy = Courtesy {
            processors: 2,
            ..Courtesy::default()
        };
        let step = Duration::from_millis(10);
        assert_eq!(courtesy.length(step, 16), Duration::ZERO, "nobody has come");
        courtesy.somebody_waits();
        assert_eq!(courtesy.length(step, 16), step * 8);
        assert_eq!(courtesy.length(Duration::from_secs(9), 16), LONGEST);
        courtesy.processors = 64;
        assert_eq!(courtesy.length(step, 16), step * LEAST);
        courtesy.began = Instant::now().checked_sub(ATTENTIVE * 2).unwrap();
        assert_eq!(
            courtesy.length(step, 16),
            Duration::ZERO,
            "nobody comes now"
        );
    }
}
