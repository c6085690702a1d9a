//! What the gateway saw: exact counters for everything, and the last receipts in full.

use shared::clock::Millis;
use shared::id::PushId;
use shared::secret::Secret;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;

/// How many receipts a slow subscriber may fall behind before it misses some.
const SUBSCRIBER_BACKLOG: usize = 32_768;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Provider {
    /// Apple Push Notification service.
    Apns,
    /// Firebase Cloud Messaging, HTTP v1.
    Fcm,
}

/// One push request as a provider saw it.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// When the request was judged, before any scripted delay.
    pub at_ms: Millis,
    /// Who got it.
    pub provider: Provider,
    /// The push token; empty when the request named none.
    pub token: Secret,
    /// APNs: the `apns-id` of the request or the one made for it. FCM: the message id, when accepted.
    pub apns_id: Option<String>,
    /// `apns-collapse-id` or `android.collapse_key`.
    pub collapse_id: Option<String>,
    /// The push that the payload names.
    pub push_id: Option<PushId>,
    /// `apns-expiration` as sent (Unix seconds), or FCM's `ttl` in whole seconds.
    pub expiration: Option<i64>,
    /// `apns-priority` or `android.priority`.
    pub priority: Option<String>,
    /// `apns-push-type`.
    pub push_type: Option<String>,
    /// Whether the provider took it: the phone gets it, whatever became of the answer.
    pub accepted: bool,
    /// The status answered; `None` when no answer was given.
    pub status: Option<u16>,
    /// APNs' reason, or FCM's error code.
    pub reason: Option<String>,
    /// The request body.
    pub body: Secret,
}

impl Receipt {
    pub(super) fn new(provider: Provider, at_ms: Millis) -> Self {
        Self {
            at_ms,
            provider,
            token: Secret::new(""),
            apns_id: None,
            collapse_id: None,
            push_id: None,
            expiration: None,
            priority: None,
            push_type: None,
            accepted: false,
            status: None,
            reason: None,
            body: Secret::new(""),
        }
    }
}

/// Exact totals since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Push requests.
    pub requests: u64,
    /// Taken.
    pub accepted: u64,
    /// Left without an answer.
    pub unanswered: u64,
    /// By provider, status and reason (empty when there is none).
    pub answers: BTreeMap<(Provider, u16, String), u64>,
    /// Distinct `iat` among APNs provider tokens with a good signature.
    pub distinct_iats: u64,
    /// Distinct APNs provider tokens with a good signature.
    pub provider_tokens: u64,
    /// TLS connections opened, by provider.
    pub connections: BTreeMap<Provider, u64>,
    /// FCM access tokens handed out.
    pub tokens_issued: u64,
}

#[derive(Default)]
struct Book {
    ring: VecDeque<Arc<Receipt>>,
    counts: Counts,
    iats: BTreeSet<i64>,
}

/// The journal.
pub(super) struct Journal {
    book: Mutex<Book>,
    capacity: usize,
    feed: broadcast::Sender<Arc<Receipt>>,
}

impl Journal {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            book: Mutex::default(),
            capacity: capacity.max(1),
            feed: broadcast::Sender::new(SUBSCRIBER_BACKLOG),
        }
    }

    fn with<T>(&self, read: impl FnOnce(&mut Book) -> T) -> T {
        read(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn record(&self, receipt: Receipt) {
        let receipt = Arc::new(receipt);
        self.with(|book| {
            let counts = &mut book.counts;
            counts.requests += 1;
            counts.accepted += u64::from(receipt.accepted);
            match receipt.status {
                None => counts.unanswered += 1,
                Some(status) => {
                    let reason = receipt.reason.clone().unwrap_or_default();
                    *counts
                        .answers
                        .entry((receipt.provider, status, reason))
                        .or_default() += 1;
                }
            }
            if book.ring.len() == self.capacity {
                book.ring.pop_front();
            }
            book.ring.push_back(Arc::clone(&receipt));
        });
        // An error only says that nobody listens.
        drop(self.feed.send(receipt));
    }

    pub(super) fn saw_provider_token(&self, iat: i64) {
        self.with(|book| {
            book.counts.provider_tokens += 1;
            // A token is valid for an hour around now, so this set stays small however long the gateway runs.
            if book.iats.insert(iat) {
                book.counts.distinct_iats += 1;
            }
        });
    }

    pub(super) fn connected(&self, provider: Provider) {
        self.with(|book| *book.counts.connections.entry(provider).or_default() += 1);
    }

    pub(super) fn issued_token(&self) {
        self.with(|book| book.counts.tokens_issued += 1);
    }

    pub(super) fn counts(&self) -> Counts {
        self.with(|book| book.counts.clone())
    }

    pub(super) fn all(&self) -> Vec<Arc<Receipt>> {
        self.with(|book| book.ring.iter().cloned().collect())
    }

    pub(super) fn of(&self, token: &str) -> Vec<Arc<Receipt>> {
        self.with(|book| {
            let same = |receipt: &&Arc<Receipt>| match receipt.provider {
                Provider::Apns => receipt.token.expose().eq_ignore_ascii_case(token),
                Provider::Fcm => receipt.token.expose() == token,
            };
            book.ring.iter().filter(same).cloned().collect()
        })
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<Receipt>> {
        self.feed.subscribe()
    }
}

/// The push that a payload names: the first push id among its texts, not deeper than payloads go.
pub(super) fn push_named_in(value: &serde_json::Value) -> Option<PushId> {
    fn search(value: &serde_json::Value, depth: u8) -> Option<PushId> {
        match value {
            serde_json::Value::String(text) => text.parse().ok(),
            serde_json::Value::Object(map) if depth > 0 => {
                map.values().find_map(|inner| search(inner, depth - 1))
            }
            _ => None,
        }
    }
    search(value, 5)
}

#[cfg(test)]
mod tests {
    use super::{Journal, Provider, Receipt, push_named_in};
    use shared::id::PushId;
    use shared::secret::Secret;

    #[test]
    fn the_ring_forgets_and_the_counters_do_not() {
        let journal = Journal::new(2);
        for n in 0..5 {
            journal.record(Receipt {
                token: Secret::new(format!("t{n}")),
                status: Some(200),
                accepted: true,
                ..Receipt::new(Provider::Fcm, n)
            });
        }
        assert_eq!(journal.all().len(), 2);
        assert_eq!(journal.counts().requests, 5);
        assert_eq!(
            journal.counts().answers[&(Provider::Fcm, 200, String::new())],
            5
        );
        assert!(journal.of("t0").is_empty());
        assert_eq!(journal.of("t4").len(), 1);
    }

    #[test]
    fn a_push_is_found_beside_aps_and_in_data() {
        let id = PushId::fresh(7);
        let apns = serde_json::json!({"aps": {"alert": {"title": "t"}}, "push": id});
        let fcm = serde_json::json!({"message": {"token": "x", "data": {"push": id}}});
        assert_eq!(push_named_in(&apns), Some(id.clone()));
        assert_eq!(push_named_in(&fcm), Some(id));
        assert_eq!(push_named_in(&serde_json::json!({"aps": 1})), None);
    }
}
