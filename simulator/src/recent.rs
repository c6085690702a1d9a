//! A map that forgets its oldest entries, for what is kept per push while millions of pushes pass by.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Holds at most `capacity` entries; the entry that was added first goes first.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
    capacity: usize,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: VecDeque::new(),
            capacity: capacity.max(1),
        }
    }

    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key)
    }

    /// The entry of `key`, made by `fresh` where there is none.
    pub(crate) fn entry(&mut self, key: K, fresh: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&key) {
            if self.order.len() == self.capacity
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        self.entries.entry(key).or_insert_with(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::Recent;

    #[test]
    fn the_oldest_entry_goes_first() {
        let mut recent = Recent::new(2);
        *recent.entry("a", || 0) += 1;
        *recent.entry("b", || 0) += 1;
        *recent.entry("a", || 0) += 1;
        *recent.entry("c", || 0) += 1;
        assert_eq!(recent.get("a"), None);
        assert_eq!(recent.get("b"), Some(&1));
        assert_eq!(recent.get("c"), Some(&1));
    }
}
