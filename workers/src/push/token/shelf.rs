//! Where tokens lie so that every process finds them: a port, since nothing here writes to the store.

use async_trait::async_trait;
use shared::clock::Millis;
use shared::crypto::{random_text, sha256_text};
use shared::secret::Secret;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which key a token is made with: a hash that tells nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenKey(String);

impl TokenKey {
    /// The name of a key. The same key in another layout is the same key: the providers count by key.
    pub(in crate::push) fn new(provider: &str, identity: &[&str], private_key: &Secret) -> Self {
        let mut text = format!("{provider}\u{1f}{}\u{1f}", identity.join("\u{1f}"));
        text.extend(private_key.expose().split_ascii_whitespace());
        Self(sha256_text(text.as_bytes()))
    }

    /// As it stands in a row.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A token that lies there.
#[derive(Debug, Clone)]
pub struct KeptToken {
    /// The token itself.
    pub text: Secret,
    /// By the clock of who made it.
    pub issued_at: Millis,
    /// When the provider refuses it.
    pub expires_at: Millis,
}

/// What lies there for one key.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The last token, where it can be read.
    pub token: Option<KeptToken>,
    /// When the last one was made, whether or not it can be read; 0 before the first.
    pub issued_at: Millis,
    /// No new one before.
    pub not_before: Millis,
}

/// The right to make the next token of a key.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Of which key.
    pub key: TokenKey,
    /// Known to its holder alone.
    pub holder: String,
}

impl Lease {
    /// One that nobody has yet.
    pub fn fresh(key: &TokenKey) -> Self {
        Self {
            key: key.clone(),
            holder: random_text::<12>(),
        }
    }
}

/// Nobody knows what lies there, nor whether it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shared tokens could not be reached")]
pub struct Unread;

/// Where tokens lie. Each method is one atomic step, and ends within some seconds.
#[async_trait]
pub trait Shelf: Send + Sync {
    /// What lies there.
    async fn look(&self, key: &TokenKey) -> Result<Kept, Unread>;

    /// The right to make the next token, where nobody else has it, the last token is the one of `seen` and the time for a new one
    /// has come.
    async fn lease(
        &self,
        key: &TokenKey,
        seen: Millis,
        now: Millis,
        until: Millis,
    ) -> Result<Option<Lease>, Unread>;

    /// Puts a token there and ends the lease; `false`, and nothing done, where somebody else has the lease by now.
    async fn put(
        &self,
        lease: &Lease,
        token: &KeptToken,
        not_before: Millis,
    ) -> Result<bool, Unread>;

    /// Ends a lease without a token.
    async fn give_back(&self, lease: &Lease) -> Result<(), Unread>;

    /// No new token before `at`, or before what was said already where that is later.
    async fn not_before(&self, key: &TokenKey, at: Millis) -> Result<(), Unread>;

    /// Lets a new token be made from `at` on, or from what was said already where that is sooner.
    async fn not_after(&self, key: &TokenKey, at: Millis) -> Result<(), Unread>;
}

/// The shelf of a process that shares with nobody.
#[derive(Default)]
pub(in crate::push) struct Alone(Mutex<HashMap<TokenKey, Place>>);

#[derive(Default)]
struct Place {
    kept: Kept,
    holder: Option<(String, Millis)>,
}

impl Alone {
    fn places(&self) -> MutexGuard<'_, HashMap<TokenKey, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Shelf for Alone {
    async fn look(&self, key: &TokenKey) -> Result<Kept, Unread> {
        let place = self.places();
        Ok(place.get(key).map(|p| p.kept.clone()).unwrap_or_default())
    }

    async fn lease(
        &self,
        key: &TokenKey,
        seen: Millis,
        now: Millis,
        until: Millis,
    ) -> Result<Option<Lease>, Unread> {
        let mut places = self.places();
        let place = places.entry(key.clone()).or_default();
        let held = place.holder.as_ref().is_some_and(|(_, to)| *to > now);
        if held || place.kept.issued_at != seen || place.kept.not_before > now {
            return Ok(None);
        }
        let lease = Lease::fresh(key);
        place.holder = Some((lease.holder.clone(), until));
        Ok(Some(lease))
    }

    async fn put(
        &self,
        lease: &Lease,
        token: &KeptToken,
        not_before: Millis,
    ) -> Result<bool, Unread> {
        let mut places = self.places();
        let place = places.entry(lease.key.clone()).or_default();
        let ours = place.holder.as_ref();
        if ours.is_none_or(|(holder, _)| *holder != lease.holder) {
            return Ok(false);
        }
        *place = Place {
            kept: Kept {
                token: Some(token.clone()),
                issued_at: token.issued_at,
                not_before: not_before.max(place.kept.not_before),
            },
            holder: None,
        };
        Ok(true)
    }

    async fn give_back(&self, lease: &Lease) -> Result<(), Unread> {
        if let Some(place) = self.places().get_mut(&lease.key)
            && (place.holder.as_ref()).is_some_and(|(holder, _)| *holder == lease.holder)
        {
            place.holder = None;
        }
        Ok(())
    }

    async fn not_before(&self, key: &TokenKey, at: Millis) -> Result<(), Unread> {
        let mut places = self.places();
        let kept = &mut places.entry(key.clone()).or_default().kept;
        kept.not_before = kept.not_before.max(at);
        Ok(())
    }

    async fn not_after(&self, key: &TokenKey, at: Millis) -> Result<(), Unread> {
        if let Some(place) = self.places().get_mut(key) {
            place.kept.not_before = place.kept.not_before.min(at);
        }
        Ok(())
    }
}
