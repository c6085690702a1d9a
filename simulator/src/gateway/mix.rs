//! Faults in fixed parts of all pushes, for load: evenly spaced, so that two runs of one length meet the same number of them.

use super::script::{Script, Step};
use std::sync::{Mutex, PoisonError};

/// One of every so many pushes meets a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What happens to it.
    pub script: Script,
    /// One of how many; never when 0.
    pub every: u64,
}

#[derive(Default)]
struct Inner {
    shares: Vec<Share>,
    seen: u64,
}

/// The mix in force.
#[derive(Default)]
pub(super) struct Mix(Mutex<Inner>);

impl Mix {
    pub(super) fn set(&self, shares: Vec<Share>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Inner { shares, seen: 0 };
    }

    /// What the next push meets; `None` when it is served well.
    pub(super) fn step(&self) -> Option<Step> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.shares.is_empty() {
            return None;
        }
        inner.seen += 1;
        let seen = inner.seen;
        // Each share one push later than the one before, so that one of 100 does not hide one of 1000.
        let due = |(n, share): (u64, &Share)| {
            (share.every > 0 && seen % share.every == n % share.every).then(|| share.script.step())
        };
        (0..).zip(&inner.shares).find_map(due)
    }
}

#[cfg(test)]
mod tests {
    use super::{Mix, Share};
    use crate::gateway::Script;
    use crate::gateway::script::Verdict;

    #[test]
    fn each_share_comes_as_often_as_it_says() {
        let mix = Mix::default();
        assert_eq!(mix.step(), None);
        mix.set(vec![
            Share {
                script: Script::Outage,
                every: 10,
            },
            Share {
                script: Script::BadToken,
                every: 100,
            },
            Share {
                script: Script::Refuse,
                every: 0,
            },
        ]);
        let verdicts: Vec<_> = (0..1000)
            .filter_map(|_| mix.step())
            .map(|step| step.verdict)
            .collect();
        let of = |wanted: Verdict| verdicts.iter().filter(|one| **one == wanted).count();
        assert_eq!(
            (of(Verdict::Down), of(Verdict::BadToken), verdicts.len()),
            (100, 10, 110)
        );
    }
}
