//! Whose turn it is: deficit round robin over stores (Shreedhar and Varghese, 1995), and in each store its batches in turn.
//!
//! A store that has something to send gets a quantum for each unit of its weight when its turn comes, and sends chunks as long as they fit into
//! what it has. Whatever another store has waiting, its share is at least its weight over the sum of weights, and it waits for one round.

use shared::id::{BatchId, StoreId};
use shared::store::Releasable;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// What one unit of weight sends in a round: the largest chunk there is, so that nobody's turn passes without one.
pub(super) const QUANTUM: i64 = 200;
/// A store may have its share and a half on the way to the workers, beside others: one that is taken slowly does not fill the broker.
const SHARES: (i64, i64) = (3, 2);

/// Remembers whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Fair {
    ring: VecDeque<StoreId>,
    /// What is left of a store's quanta.
    deficit: HashMap<StoreId, i64>,
    /// The room ended in the middle of this store's turn: it goes on without another quantum.
    interrupted: Option<StoreId>,
    /// The batch of each store that was served last.
    served: HashMap<StoreId, BatchId>,
}

struct Offer {
    weight: i64,
    batches: VecDeque<Waiting>,
    /// How much more of it may be on the way.
    room: i64,
}

struct Waiting {
    batch: BatchId,
    rows: i64,
    chunk: i64,
    chunks: i64,
}

impl Fair {
    /// Which batches send how many chunks, when `target` pushes may be on the way to the workers, and `in_flight` already are.
    pub(super) fn pick(
        &mut self,
        releasable: &[Releasable],
        in_flight: &HashMap<StoreId, i64>,
        target: i64,
    ) -> BTreeMap<BatchId, usize> {
        let mut room = target - in_flight.values().sum::<i64>();
        let mut offers = self.offers(releasable, in_flight, target);
        self.ring.retain(|store| offers.contains_key(store));
        self.deficit.retain(|store, _| offers.contains_key(store));
        self.served.retain(|store, _| offers.contains_key(store));
        for one in releasable {
            if !self.ring.contains(&one.store) {
                self.ring.push_back(one.store.clone());
            }
        }
        let mut picked = BTreeMap::new();
        let mut idle = 0;
        while room > 0 && idle < self.ring.len() {
            let Some(store) = self.ring.front().cloned() else {
                break;
            };
            let Some(offer) = offers.get_mut(&store) else {
                break;
            };
            let goes_on = self.interrupted.take().is_some_and(|one| one == store);
            let deficit = self.deficit.entry(store.clone()).or_default();
            if offer.has_any() && !goes_on {
                *deficit += QUANTUM * offer.weight;
            }
            let before = room;
            while room > 0
                && let Some((batch, cost)) = offer.next(*deficit)
            {
                *deficit -= cost;
                room -= cost;
                *picked.entry(batch.clone()).or_insert(0) += 1;
                self.served.insert(store.clone(), batch);
            }
            idle = if room == before { idle + 1 } else { 0 };
            if offer.batches.is_empty() {
                // Nobody saves up while there is nothing to send.
                *deficit = 0;
            } else if room <= 0 && offer.fits(*deficit) {
                self.interrupted = Some(store);
                break;
            }
            self.ring.rotate_left(1);
        }
        picked
    }

    fn offers(
        &self,
        releasable: &[Releasable],
        in_flight: &HashMap<StoreId, i64>,
        target: i64,
    ) -> HashMap<StoreId, Offer> {
        let mut offers: HashMap<StoreId, Offer> = HashMap::new();
        for one in releasable {
            let offer = offers.entry(one.store.clone()).or_insert_with(|| Offer {
                weight: one.weight.max(1),
                batches: VecDeque::new(),
                room: 0,
            });
            offer.batches.push_back(Waiting {
                batch: one.batch.clone(),
                rows: one.waiting,
                chunk: one.chunk_rows.clamp(1, QUANTUM),
                chunks: chunks_at_once(one),
            });
        }
        let weights: i64 = offers.values().map(|offer| offer.weight).sum();
        let alone = offers.len() == 1;
        for (store, offer) in &mut offers {
            let share = target * offer.weight / weights.max(1) * SHARES.0 / SHARES.1;
            // A whole turn always fits.
            let most = share.max(QUANTUM * (offer.weight + 1));
            let used = in_flight.get(store).copied().unwrap_or(0);
            offer.room = if alone { i64::MAX } else { most - used };
            if let Some(last) = self.served.get(store) {
                let next = offer.batches.iter().position(|one| one.batch > *last);
                offer.batches.rotate_left(next.unwrap_or(0));
            }
        }
        offers
    }
}

/// A batch with a limit sends at most a fifth of a second's worth at once.
fn chunks_at_once(one: &Releasable) -> i64 {
    one.max_per_second
        .map_or(i64::MAX, |rate| (rate / 5 / one.chunk_rows.max(1)).max(1))
}

impl Offer {
    fn has_any(&self) -> bool {
        self.room > 0 && !self.batches.is_empty()
    }

    fn cost(&self) -> Option<i64> {
        self.batches.front().map(|one| one.rows.min(one.chunk))
    }

    fn fits(&self, deficit: i64) -> bool {
        self.has_any() && self.cost().is_some_and(|cost| cost <= deficit)
    }

    /// The next chunk, when it fits, and what it costs. The batch goes behind the others.
    fn next(&mut self, deficit: i64) -> Option<(BatchId, i64)> {
        if !self.fits(deficit) {
            return None;
        }
        let cost = self.cost()?;
        let mut one = self.batches.pop_front()?;
        let batch = one.batch.clone();
        one.rows -= cost;
        one.chunks -= 1;
        self.room -= cost;
        if one.rows > 0 && one.chunks > 0 {
            self.batches.push_back(one);
        }
        Some((batch, cost))
    }
}

#[cfg(test)]
mod tests {
    use super::{Fair, QUANTUM};
    use proptest::prelude::*;
    use shared::id::{BatchId, StoreId};
    use shared::store::Releasable;
    use std::collections::{BTreeMap, HashMap};

    /// Batches that wait, and what of each store is on the way.
    struct Bed {
        fair: Fair,
        waiting: Vec<Releasable>,
        in_flight: HashMap<StoreId, i64>,
        sent: HashMap<StoreId, i64>,
    }

    fn batch(store: &StoreId, n: usize, weight: i64, waiting: i64, chunk_rows: i64) -> Releasable {
        Releasable {
            batch: BatchId::fresh(n as i64 * 1_000),
            store: store.clone(),
            weight,
            waiting,
            chunk_rows,
            max_per_second: None,
        }
    }

    impl Bed {
        fn new(waiting: Vec<Releasable>) -> Self {
            Self {
                fair: Fair::default(),
                waiting,
                in_flight: HashMap::new(),
                sent: HashMap::new(),
            }
        }

        /// One round, after which the workers have taken everything. Says what was sent of each batch.
        fn round(&mut self, target: i64) -> BTreeMap<BatchId, i64> {
            let picked = self.fair.pick(&self.waiting, &self.in_flight, target);
            let mut rows = BTreeMap::new();
            for one in &mut self.waiting {
                let chunks = picked.get(&one.batch).copied().unwrap_or(0) as i64;
                let sent = (chunks * one.chunk_rows).min(one.waiting);
                one.waiting -= sent;
                *self.sent.entry(one.store.clone()).or_default() += sent;
                rows.insert(one.batch.clone(), sent);
            }
            self.waiting.retain(|one| one.waiting > 0);
            rows
        }
    }

    fn stores(n: usize) -> Vec<StoreId> {
        (0..n).map(|n| StoreId::fresh(n as i64 * 1_000)).collect()
    }

    #[test]
    fn a_quiet_store_is_done_while_another_one_floods() {
        let all = stores(2);
        let flood = (0..50).map(|n| batch(&all[0], n, 1, 1_000_000, QUANTUM));
        let mut bed = Bed::new(flood.collect());
        for _ in 0..10 {
            bed.round(1_000);
        }
        bed.waiting.push(batch(&all[1], 99, 1, 50, QUANTUM));
        bed.round(1_000);
        assert_eq!(bed.sent[&all[1]], 50, "within one round");
    }

    #[test]
    fn what_nobody_has_taken_yet_counts_against_its_store() {
        let all = stores(2);
        let both = all.iter().enumerate();
        let mut bed = Bed::new(
            both.map(|(n, s)| batch(s, n, 1, 100_000, QUANTUM))
                .collect(),
        );
        bed.in_flight.insert(all[0].clone(), 3_000);
        bed.round(4_000);
        assert_eq!((bed.sent[&all[0]], bed.sent[&all[1]]), (0, 1_000));
        bed.in_flight.insert(all[0].clone(), 4_000);
        bed.sent.clear();
        bed.round(4_000);
        assert_eq!(bed.sent.values().sum::<i64>(), 0, "the target is a bound");
    }

    #[test]
    fn batches_of_a_store_take_turns_and_slow_ones_hold_up_nobody() {
        let all = stores(1);
        let mut waiting: Vec<_> = (0..3)
            .map(|n| batch(&all[0], n, 1, 10_000, QUANTUM))
            .collect();
        waiting[0].chunk_rows = 2;
        waiting[0].max_per_second = Some(10);
        let slow = waiting[0].batch.clone();
        let mut bed = Bed::new(waiting);
        let sent = bed.round(2_000);
        assert_eq!(sent[&slow], 2);
        let others: Vec<_> = sent
            .iter()
            .filter(|(b, _)| **b != slow)
            .map(|(_, n)| *n)
            .collect();
        assert!(
            others[0] > 0 && (others[0] - others[1]).abs() <= QUANTUM,
            "{others:?}"
        );
    }

    proptest! {
        #[test]
        fn shares_follow_weights_and_nobody_starves(
            weights in prop::collection::vec(1_i64..6, 2..8),
            chunks in prop::collection::vec(1_i64..=QUANTUM, 8),
            target in 200_i64..8_000,
            rounds in 20_usize..60,
        ) {
            let all = stores(weights.len());
            let waiting = all.iter().enumerate().map(|(n, store)| batch(store, n, weights[n], i64::MAX / 1_000, chunks[n])).collect();
            let mut bed = Bed::new(waiting);
            for _ in 0..rounds {
                let sent: i64 = bed.round(target).values().sum();
                prop_assert!(sent > 0 && sent < target + QUANTUM, "{} of {}", sent, target);
            }
            // Over any time the difference between two stores is bounded by what one round gives them, whatever the time.
            let per: Vec<f64> = all.iter().zip(&weights).map(|(s, w)| bed.sent.get(s).copied().unwrap_or(0) as f64 / *w as f64).collect();
            let (least, most) = (per.iter().copied().fold(f64::MAX, f64::min), per.iter().copied().fold(0.0, f64::max));
            prop_assert!(most - least <= 3.0 * QUANTUM as f64, "{:?} by {:?}", per, weights);
        }

        #[test]
        fn everything_is_sent_once_and_no_room_is_wasted(
            sizes in prop::collection::vec((0_usize..4, 1_i64..3_000, 1_i64..=QUANTUM), 1..20),
            target in 200_i64..3_000,
        ) {
            let all = stores(4);
            let total: i64 = sizes.iter().map(|(_, rows, _)| rows).sum();
            let waiting = sizes.iter().enumerate().map(|(n, (s, rows, chunk))| batch(&all[*s], n, 1, *rows, *chunk)).collect();
            let mut bed = Bed::new(waiting);
            let mut sent = 0;
            for round in 0..100_000 {
                if bed.waiting.is_empty() {
                    break;
                }
                let before: i64 = bed.waiting.iter().map(|one| one.waiting).sum();
                let now: i64 = bed.round(target).values().sum();
                // Shares are capped at twice their size: at least that much is always used.
                prop_assert!(now >= before.min(QUANTUM), "round {} sent {} of {}", round, now, before);
                sent += now;
            }
            prop_assert_eq!(sent, total);
        }
    }
}
