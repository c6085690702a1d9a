//! Which provider a claimed delivery goes through: the push policy's credential, opened and kept until the policy changes.

use crate::push::{Provider, Providers};
use shared::clock::Millis;
use shared::crypto::ServerSecret;
use shared::domain::{ApnsCredential, FcmCredential, Provider as Carrier};
use shared::id::StoreId;
use shared::store::{Claimed, Error, PushPolicy, Store};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

type Key = (StoreId, String, Carrier);
type Kept = (Millis, Option<Arc<dyn Provider>>);

/// The credentials of one process.
pub struct Credentials {
    store: Store,
    secret: Arc<ServerSecret>,
    providers: Providers,
    kept: Mutex<HashMap<Key, Kept>>,
}

impl Credentials {
    /// Opens credentials of `store` with `secret`.
    pub fn new(store: Store, secret: Arc<ServerSecret>, providers: Providers) -> Self {
        Self {
            store,
            secret,
            providers,
            kept: Mutex::default(),
        }
    }

    /// Says among how many workers the providers' quotas are shared.
    pub fn share_among(&self, workers: u32) {
        self.providers.share_among(workers);
    }

    /// The way for this delivery; `None` when its credential cannot be used, which is logged once for each change of the policy.
    pub async fn provider(&self, claimed: &Claimed) -> Result<Option<Arc<dyn Provider>>, Error> {
        let key = (claimed.store.clone(), claimed.rp.clone(), claimed.provider);
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((version, provider)) = kept.get(&key)
                && *version >= claimed.policy_version
            {
                return Ok(provider.clone());
            }
        }
        let policy = self.store.push_policy(&key.0, &key.1).await?;
        let version = policy
            .as_ref()
            .map_or(claimed.policy_version, |policy| policy.updated_at);
        let provider = policy.and_then(|policy| self.open(&policy, claimed.provider));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(key, (version, provider.clone()));
        Ok(provider)
    }

    fn open(&self, policy: &PushPolicy, carrier: Carrier) -> Option<Arc<dyn Provider>> {
        let place = PushPolicy::place(&policy.store, &policy.rp, carrier);
        let sealed = match carrier {
            Carrier::Apns => policy.sealed.apns.as_ref(),
            Carrier::Fcm => policy.sealed.fcm.as_ref(),
        }?;
        let refuse = |why: &dyn std::fmt::Display| {
            tracing::error!(store = %policy.store, rp = policy.rp, provider = %carrier, %why, "a push credential cannot be used");
        };
        let text = match self.secret.open(&place, sealed) {
            Ok(text) => text,
            Err(error) => {
                refuse(&error);
                return None;
            }
        };
        let name = format!("{}/{}", policy.store, policy.rp);
        let made = match carrier {
            Carrier::Apns => serde_json::from_str::<ApnsCredential>(text.expose())
                .ok()
                .map(|credential| self.providers.apns(&name, &credential)),
            Carrier::Fcm => serde_json::from_str::<FcmCredential>(text.expose())
                .ok()
                .map(|credential| self.providers.fcm(&name, &credential)),
        };
        match made {
            Some(Ok(provider)) => Some(provider),
            Some(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                refuse(&format!("{error}: {}", cause.unwrap_or_default()));
                None
            }
            None => {
                refuse(&"it is not of the form that this release writes");
                None
            }
        }
    }
}
