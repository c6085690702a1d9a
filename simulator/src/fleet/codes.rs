//! The match codes that the people with the phones have read on the screen where the push began.

use crate::recent::Recent;
use shared::id::PushId;
use shared::secret::Secret;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// How many codes are remembered.
const CAPACITY: usize = 100_000;

struct Inner {
    known: Mutex<Recent<PushId, Secret>>,
    changed: Notify,
}

/// Codes by push. Clones share them. A phone that needs a code waits until it is set.
#[derive(Clone)]
pub struct Codes(Arc<Inner>);

impl Default for Codes {
    fn default() -> Self {
        Self(Arc::new(Inner {
            known: Mutex::new(Recent::new(CAPACITY)),
            changed: Notify::new(),
        }))
    }
}

impl std::fmt::Debug for Codes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Codes")
    }
}

impl Codes {
    /// The person has read the code of `push`.
    pub fn set(&self, push: PushId, code: impl Into<String>) {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known.entry(push, || Secret::new("")) = Secret::new(code);
        drop(known);
        self.0.changed.notify_waiters();
    }

    fn get(&self, push: &PushId) -> Option<Secret> {
        let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(push).cloned()
    }

    /// The code of `push`, as soon as it is set.
    pub async fn wait(&self, push: &PushId) -> Secret {
        loop {
            // Asked for before the look, so that a code set in between wakes it.
            let changed = self.0.changed.notified();
            if let Some(code) = self.get(push) {
                return code;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Codes;
    use shared::id::PushId;

    #[tokio::test]
    async fn a_code_is_waited_for() {
        let (codes, push) = (Codes::default(), PushId::fresh(1));
        let waiting = tokio::spawn({
            let (codes, push) = (codes.clone(), push.clone());
            async move { codes.wait(&push).await }
        });
        codes.set(PushId::fresh(1), "000000");
        codes.set(push.clone(), "111111");
        codes.set(push.clone(), "123456");
        let code = waiting.await.unwrap();
        assert!(["111111", "123456"].contains(&code.expose()));
        assert_eq!(codes.wait(&push).await.expose(), "123456");
    }
}
