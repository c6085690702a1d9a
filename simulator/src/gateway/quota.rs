//! How many messages a project may send in any second.

use shared::clock::Millis;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

const SECOND: Millis = 1_000;

/// The times of the last second's messages.
pub(super) struct Quota {
    per_second: Option<usize>,
    taken: Mutex<VecDeque<Millis>>,
}

impl Quota {
    pub(super) fn new(per_second: Option<usize>) -> Self {
        Self {
            per_second,
            taken: Mutex::default(),
        }
    }

    /// Counts a message, where there is room for it.
    pub(super) fn admits(&self, now: Millis) -> bool {
        let Some(most) = self.per_second else {
            return true;
        };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while taken.front().is_some_and(|at| now - at >= SECOND) {
            taken.pop_front();
        }
        let room = taken.len() < most;
        if room {
            taken.push_back(now);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::Quota;

    #[test]
    fn any_second_holds_so_many_and_no_more() {
        let quota = Quota::new(Some(2));
        let admitted = [0, 600, 700, 1_000, 1_500, 1_600].map(|at| quota.admits(at));
        assert_eq!(admitted, [true, true, false, true, false, true]);
        assert!((0..1_000).all(|_| Quota::new(None).admits(0)));
    }
}
