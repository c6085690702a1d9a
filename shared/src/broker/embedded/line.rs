//! What the consumers of one queue in this process share: a bell, the room in their prefetch windows, and the rows leased for them already.

use super::super::Queue;
use super::{Taken, name};
use crate::clock::Millis;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{Notify, Semaphore};

/// Those whose rows are in the table.
const QUEUES: [Queue; 5] = [
    Queue::JobsInteractive,
    Queue::JobsBulk,
    Queue::StatusWait,
    Queue::StatusForward,
    Queue::Parking,
];

/// Which line serves a queue; the last one serves all that have none.
pub(super) fn number(queue: &str) -> usize {
    let same = |one: &Queue| name(one) == queue;
    QUEUES.iter().position(same).unwrap_or(QUEUES.len())
}

/// A row that is leased for a consumer of this process.
pub(super) struct Leased {
    /// The number of its line.
    pub(super) queue: usize,
    pub(super) taken: Taken,
    pub(super) until: Millis,
}

#[derive(Default)]
struct Line {
    /// Rung when there may be something to hand out.
    bell: Notify,
    windows: Mutex<Vec<Weak<Semaphore>>>,
    leased: Mutex<VecDeque<Leased>>,
    /// The table may hold rows that are ready: nothing that comes later goes before them.
    behind: AtomicBool,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One for each queue.
#[derive(Default)]
pub(super) struct Lines([Line; QUEUES.len() + 1]);

impl Lines {
    fn of(&self, queue: &str) -> &Line {
        &self.0[number(queue)]
    }

    pub(super) fn bell(&self, queue: &Queue) -> &Notify {
        &self.of(name(queue)).bell
    }

    pub(super) fn ring(&self, queue: &str) {
        self.of(queue).bell.notify_waiters();
    }

    /// There are rows in the table that are ready.
    pub(super) fn fell_behind(&self, queue: &str) {
        self.of(queue).behind.store(true, Ordering::Release);
    }

    /// All rows of the table that were ready are handed out.
    pub(super) fn caught_up(&self, queue: &Queue) {
        self.of(name(queue)).behind.store(false, Ordering::Release);
    }

    pub(super) fn is_behind(&self, queue: &Queue) -> bool {
        self.of(name(queue)).behind.load(Ordering::Acquire)
    }

    /// Rows of some queues are ready again.
    pub(super) fn ring_all(&self) {
        for line in &self.0 {
            line.behind.store(true, Ordering::Release);
            line.bell.notify_waiters();
        }
    }

    /// A consumer has begun; it is gone with its window.
    pub(super) fn joined(&self, queue: &Queue, window: &Arc<Semaphore>) {
        let mut windows = held(&self.of(name(queue)).windows);
        windows.retain(|one| one.strong_count() > 0);
        windows.push(Arc::downgrade(window));
    }

    /// How many more rows the consumers of a queue would take at once.
    pub(super) fn room(&self, queue: &str) -> usize {
        let line = self.of(queue);
        if line.behind.load(Ordering::Acquire) {
            return 0;
        }
        let free = held(&line.windows)
            .iter()
            .filter_map(Weak::upgrade)
            .map(|window| window.available_permits())
            .sum::<usize>();
        free.saturating_sub(held(&line.leased).len())
    }

    /// Lays rows out for the consumers, who hear of it by their bell.
    pub(super) fn hand_out(&self, rows: Vec<Leased>) {
        for row in rows {
            held(&self.0[row.queue].leased).push_back(row);
        }
    }

    /// Up to `limit` rows for a consumer. What nobody came for in time is left to the look at the table, which sees it then.
    pub(super) fn take(&self, queue: &Queue, limit: usize, now: Millis) -> Vec<Taken> {
        let mut leased = held(&self.of(name(queue)).leased);
        let count = limit.min(leased.len());
        let rows = leased.drain(..count);
        rows.filter(|one| now < one.until)
            .map(|one| one.taken)
            .collect()
    }
}
