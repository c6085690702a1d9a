//! The life of a batch: many pushes from one upload. `docs/data-model.md` holds the same table and a test compares them.

use super::state::words;
use serde::{Deserialize, Serialize};

words! {
    /// Where a batch stands.
    BatchState {
        /// Lines are still to come. What has come is sent all the same, unless the batch is atomic.
        Receiving = "receiving",
        /// All lines are there; not all of its pushes have ended.
        Running = "running",
        /// Nothing more is sent until it is resumed. Lines may still come.
        Paused = "paused",
        /// Every push has ended.
        Done = "done",
        /// Taken back: what had not ended is cancelled.
        Cancelled = "cancelled",
    }
}

impl BatchState {
    /// No way leads out of these.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Receiving | Self::Running | Self::Paused => false,
            Self::Done | Self::Cancelled => true,
        }
    }

    /// May a batch go from `self` to `to`?
    pub fn may_become(self, to: Self) -> bool {
        match self {
            Self::Receiving => matches!(to, Self::Running | Self::Paused | Self::Cancelled),
            Self::Running => matches!(to, Self::Paused | Self::Done | Self::Cancelled),
            Self::Paused => matches!(to, Self::Receiving | Self::Running | Self::Cancelled),
            Self::Done | Self::Cancelled => false,
        }
    }
}
