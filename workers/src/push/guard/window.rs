//! Counts over the last while, in a ring of slices.

use shared::clock::Millis;

/// `N` slices of `slice` milliseconds each, with two counts: all, and those that were marked.
#[derive(Debug, Clone)]
pub(super) struct Window<const N: usize> {
    slice: Millis,
    /// Number of the slice written last.
    at: Millis,
    counts: [(u32, u32); N],
}

impl<const N: usize> Window<N> {
    pub(super) fn new(slice: Millis) -> Self {
        Self {
            slice,
            at: 0,
            counts: [(0, 0); N],
        }
    }

    fn place(at: Millis) -> usize {
        usize::try_from(at.rem_euclid(N as Millis)).unwrap_or(0)
    }

    /// Forgets what lies further back than the window is long.
    fn advance(&mut self, now: Millis) {
        let at = now.div_euclid(self.slice);
        if at - self.at >= N as Millis || at < self.at {
            // A clock that was set back makes old slices look new: start again.
            self.counts = [(0, 0); N];
            self.at = at;
        }
        while self.at < at {
            self.at += 1;
            self.counts[Self::place(self.at)] = (0, 0);
        }
    }

    pub(super) fn count(&mut self, now: Millis, marked: bool) {
        self.advance(now);
        let slice = &mut self.counts[Self::place(self.at)];
        slice.0 = slice.0.saturating_add(1);
        slice.1 = slice.1.saturating_add(u32::from(marked));
    }

    /// All and marked.
    pub(super) fn totals(&mut self, now: Millis) -> (u64, u64) {
        self.advance(now);
        let sum = |(all, marked), slice: &(u32, u32)| {
            (all + u64::from(slice.0), marked + u64::from(slice.1))
        };
        self.counts.iter().fold((0, 0), sum)
    }

    pub(super) fn clear(&mut self) {
        self.counts = [(0, 0); N];
    }
}

#[cfg(test)]
mod tests {
    use super::Window;

    #[test]
    fn old_counts_fall_out() {
        let mut window = Window::<10>::new(1_000);
        window.count(100_000, true);
        window.count(105_500, false);
        assert_eq!(window.totals(109_999), (2, 1));
        assert_eq!(window.totals(110_000), (1, 0));
        assert_eq!(window.totals(500_000), (0, 0));
        window.count(500_000, true);
        assert_eq!(window.totals(400_000), (0, 0));
    }
}
