//! Phones that wake up when the gateway takes a push for them, and the people who hold them.
//!
//! A fleet sees what a provider would deliver, and nothing else of the code under test: everything it learns of a push comes over
//! the phones' own calls.

mod codes;
mod index;
mod person;

pub use codes::Codes;
pub(crate) use index::Index;

use crate::gateway::{Gateway, Provider, Receipt};
use crate::phone::{Http, Phone};
use crate::recent::Recent;
use shared::id::{DeviceId, PushId};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, Semaphore, broadcast};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How many rings a slow listener may fall behind before it misses some.
const LISTENER_BACKLOG: usize = 4096;
/// Of how many (phone, push) the rings are counted.
const COUNTED: usize = 200_000;
/// How many phones speak with the API at the same time.
const CALLS: usize = 256;

/// What the person does when the phone rings for a push for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Nothing by itself: whoever listens answers.
    Manual,
    /// Approves, with the code from [`Fleet::codes`] where one is asked for.
    Approve {
        /// How long it takes to find the phone.
        after: Duration,
    },
    /// Says no.
    Deny {
        /// How long it takes to find the phone.
        after: Duration,
    },
    /// Does not hear it: rings are counted and not announced.
    Ignore,
}

/// A phone rang.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rang {
    /// The phone's name.
    pub phone: String,
    /// The device, once the phone is enrolled.
    pub device: Option<DeviceId>,
    /// For what.
    pub push: PushId,
}

struct Shared {
    index: Arc<Index>,
    rings: Mutex<Recent<(String, PushId), u64>>,
    rung: Notify,
    listeners: broadcast::Sender<Rang>,
    codes: Codes,
    calls: Semaphore,
    http: Http,
    missed: AtomicU64,
    stop: CancellationToken,
}

struct Handle {
    shared: Arc<Shared>,
    _stop_on_drop: DropGuard,
}

/// A fleet of phones. Clones are handles to the same one; it goes to sleep when the last is dropped.
#[derive(Clone)]
pub struct Fleet(Arc<Handle>);

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fleet")
    }
}

impl Fleet {
    /// An empty fleet under `gateway`. It sees what the gateway takes from now on.
    pub fn start(gateway: &Gateway) -> Self {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            index: Arc::default(),
            rings: Mutex::new(Recent::new(COUNTED)),
            rung: Notify::new(),
            listeners: broadcast::Sender::new(LISTENER_BACKLOG),
            codes: Codes::default(),
            calls: Semaphore::new(CALLS),
            http: Http::default(),
            missed: AtomicU64::new(0),
            stop: stop.clone(),
        });
        tokio::spawn(watch(gateway.subscribe(), Arc::clone(&shared)));
        Self(Arc::new(Handle {
            shared,
            _stop_on_drop: stop.drop_guard(),
        }))
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// Takes a phone in. Names are unique: a phone takes the place of its namesake.
    pub fn add(&self, phone: &Phone, behaviour: Behaviour) {
        let index = &self.shared().index;
        phone.follow(index);
        index.insert(phone.clone().with_http(&self.shared().http), behaviour);
    }

    /// Takes a phone out.
    pub fn remove(&self, name: &str) {
        self.shared().index.remove(name);
    }

    /// From the next ring on.
    pub fn set_behaviour(&self, name: &str, behaviour: Behaviour) {
        self.shared().index.set_behaviour(name, behaviour);
    }

    /// All phones, in no order.
    pub fn phones(&self) -> Vec<Phone> {
        self.shared().index.phones()
    }

    /// The phone of this name.
    pub fn phone(&self, name: &str) -> Option<Phone> {
        self.shared().index.phone(name)
    }

    /// Where the match codes go.
    pub fn codes(&self) -> &Codes {
        &self.shared().codes
    }

    /// Rings from now on.
    pub fn listen(&self) -> broadcast::Receiver<Rang> {
        self.shared().listeners.subscribe()
    }

    /// How often a phone rang for a push. Only the last 200,000 pairs are kept.
    pub fn rings(&self, phone: &str, push: &PushId) -> u64 {
        let rings = &self.shared().rings;
        let rings = rings.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (phone.to_owned(), push.clone());
        rings.get(&key).copied().unwrap_or(0)
    }

    /// Returns as soon as a phone has rung `times` times for a push.
    pub async fn wait_for_rings(&self, phone: &str, push: &PushId, times: u64) {
        loop {
            // Asked for before the look, so that a ring in between wakes it.
            let rung = self.shared().rung.notified();
            if self.rings(phone, push) >= times {
                return;
            }
            rung.await;
        }
    }

    /// Receipts that came faster than the fleet could read them; their phones did not ring. A test that counts rings asserts 0.
    pub fn missed(&self) -> u64 {
        self.shared().missed.load(Ordering::Relaxed)
    }
}

async fn watch(mut receipts: broadcast::Receiver<Arc<Receipt>>, shared: Arc<Shared>) {
    loop {
        let receipt = tokio::select! {
            () = shared.stop.cancelled() => return,
            receipt = receipts.recv() => receipt,
        };
        match receipt {
            Ok(receipt) => ring(&shared, &receipt),
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "the fleet fell behind the gateway");
                shared.missed.fetch_add(missed, Ordering::Relaxed);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn ring(shared: &Arc<Shared>, receipt: &Receipt) {
    let Some(push) = receipt.push_id.as_ref().filter(|_| receipt.accepted) else {
        return;
    };
    let token = receipt.token.expose();
    let owner = match receipt.provider {
        // The case of hex digits means nothing.
        Provider::Apns => shared.index.owner(&token.to_ascii_lowercase()),
        Provider::Fcm => shared.index.owner(token),
    };
    let Some((phone, behaviour)) = owner else {
        return;
    };
    let name = phone.name().to_owned();
    let first = {
        let mut rings = shared.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let count = rings.entry((name.clone(), push.clone()), || 0);
        *count += 1;
        *count == 1
    };
    if behaviour != Behaviour::Ignore {
        let rang = Rang {
            phone: name,
            device: phone.identity().map(|identity| identity.device),
            push: push.clone(),
        };
        // An error only says that nobody listens.
        drop(shared.listeners.send(rang));
    }
    // Last, so that whoever waited for the ring finds it announced.
    shared.rung.notify_waiters();
    // A second ring is the same banner again: the person has seen it.
    if first && let Some(person) = person::Person::of(behaviour) {
        let (shared, push) = (Arc::clone(shared), push.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = person.react(&shared, &phone, &push) => {}
            }
        });
    }
}
