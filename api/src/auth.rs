//! API keys: who calls, and for which store.

use crate::app::App;
use crate::problem::{Code, Problem};
use axum::extract::FromRequestParts;
use http::header;
use http::request::Parts;
use shared::id::{KeyId, StoreId};
use shared::store::{KeyOwner, Store};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a key's rights are remembered: the bound on how late a revocation is seen.
const REMEMBERED: Duration = Duration::from_secs(2);
/// How many keys are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// What a key may be allowed to do. `*` stands for all.
pub const SCOPES: &[&str] = &[
    "stores",
    "keys",
    "directory",
    "policies",
    "pushes:write",
    "pushes:read",
    "processes",
    "audit:read",
];

/// What is remembered of a key.
enum Remembered {
    Owner(KeyOwner),
    /// The key opens nothing.
    Nobody,
    Nothing,
}

/// The keys seen lately, unknown ones too.
#[derive(Default)]
pub(crate) struct KeyCache(Mutex<HashMap<String, (Option<KeyOwner>, Instant)>>);

impl KeyCache {
    fn get(&self, hash: &str) -> Remembered {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(hash) {
            Some((owner, at)) if at.elapsed() < REMEMBERED => {
                owner.clone().map_or(Remembered::Nobody, Remembered::Owner)
            }
            Some(_) | None => Remembered::Nothing,
        }
    }

    fn put(&self, hash: String, owner: Option<KeyOwner>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_REMEMBERED {
            known.retain(|_, (_, at)| at.elapsed() < REMEMBERED);
        }
        if known.len() < MAX_REMEMBERED {
            known.insert(hash, (owner, Instant::now()));
        }
    }
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    owner: KeyOwner,
}

impl Caller {
    /// The store in the hands of this caller: the audit log names the key.
    pub(crate) fn store(&self, app: &App) -> Store {
        app.store.by(&self.owner.id)
    }

    /// Its key.
    pub(crate) fn key(&self) -> &KeyId {
        &self.owner.id
    }

    /// Has its key this scope?
    pub(crate) fn has(&self, scope: &str) -> bool {
        self.owner
            .scopes
            .iter()
            .any(|one| one == "*" || one == scope)
    }

    /// May this caller use `scope` in `store`? A foreign store is as absent as one that never was; both cost the same.
    pub(crate) async fn may(
        &self,
        app: &App,
        store: &str,
        scope: &str,
    ) -> Result<StoreId, Problem> {
        let id: StoreId = store.parse().map_err(|_| Problem::new(Code::NotFound))?;
        let there = match &self.owner.store {
            Some(own) => *own == id,
            None => app.store.store(&id).await?.is_some(),
        };
        if !there {
            return Err(Code::NotFound.into());
        }
        if self.has(scope) {
            Ok(id)
        } else {
            Err(Problem::new(Code::Forbidden).detail(format!("it needs the scope {scope}")))
        }
    }

    /// May this caller act on all stores?
    pub(crate) fn may_everywhere(&self, scope: &str) -> Result<(), Problem> {
        if self.owner.store.is_none() && self.has(scope) {
            Ok(())
        } else {
            Err(Problem::new(Code::Forbidden)
                .detail("it needs a key of the whole deployment, not of one store"))
        }
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let key = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| Problem::new(Code::Unauthenticated))?;
        let hash = app.secret.api_key_hash(key.trim());
        let owner = match app.keys.get(&hash) {
            Remembered::Owner(owner) => Some(owner),
            Remembered::Nobody => None,
            Remembered::Nothing => {
                let owner = app.store.key_owner(&hash).await?;
                app.keys.put(hash, owner.clone());
                owner
            }
        };
        owner
            .map(|owner| Self { owner })
            .ok_or_else(|| Code::Unauthenticated.into())
    }
}
