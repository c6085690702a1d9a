//! The providers' tokens in the database, sealed, for every process of the deployment.

use crate::push::{Kept, KeptToken, Lease, Shelf, TokenKey, Unread};
use async_trait::async_trait;
use shared::clock::Millis;
use shared::crypto::ServerSecret;
use shared::store::{Error, PushToken, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the database may take: a push waits, and its delivery is leased.
const PATIENCE: Duration = Duration::from_secs(3);

/// The shelf that all processes share.
pub struct SharedTokens {
    /// The database.
    pub store: Store,
    /// Seals the tokens.
    pub secret: Arc<ServerSecret>,
}

/// The place that a token is sealed for.
fn place(key: &TokenKey) -> String {
    format!("push-token\u{1f}{key}")
}

async fn within<T>(work: impl Future<Output = Result<T, Error>> + Send) -> Result<T, Unread> {
    match timeout(PATIENCE, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the providers' tokens in the database could not be reached"
            );
            Err(Unread)
        }
        Err(_) => {
            tracing::warn!("the providers' tokens in the database took too long");
            Err(Unread)
        }
    }
}

#[async_trait]
impl Shelf for SharedTokens {
    async fn look(&self, key: &TokenKey) -> Result<Kept, Unread> {
        let Some(row) = within(self.store.push_token(key.as_str())).await? else {
            return Ok(Kept::default());
        };
        let text = row.sealed.as_ref().and_then(|sealed| {
            let opened = self.secret.open(&place(key), sealed);
            opened
                .inspect_err(
                    |error| tracing::error!(%key, %error, "a provider's token cannot be read"),
                )
                .ok()
        });
        Ok(Kept {
            token: text.map(|text| KeptToken {
                text,
                issued_at: row.issued_at,
                expires_at: row.expires_at,
            }),
            issued_at: row.issued_at,
            not_before: row.not_before,
        })
    }

    async fn lease(
        &self,
        key: &TokenKey,
        seen: Millis,
        now: Millis,
        until: Millis,
    ) -> Result<Option<Lease>, Unread> {
        let lease = Lease::fresh(key);
        let leasing = self
            .store
            .lease_push_token(key.as_str(), &lease.holder, seen, now, until);
        Ok(within(leasing).await?.then_some(lease))
    }

    async fn put(
        &self,
        lease: &Lease,
        token: &KeptToken,
        not_before: Millis,
    ) -> Result<bool, Unread> {
        let row = PushToken {
            sealed: Some(self.secret.seal(&place(&lease.key), &token.text)),
            issued_at: token.issued_at,
            expires_at: token.expires_at,
            not_before,
        };
        let putting = self
            .store
            .put_push_token(lease.key.as_str(), &lease.holder, &row);
        within(putting).await
    }

    async fn give_back(&self, lease: &Lease) -> Result<(), Unread> {
        let giving = self
            .store
            .give_back_push_token(lease.key.as_str(), &lease.holder);
        within(giving).await
    }

    async fn not_before(&self, key: &TokenKey, at: Millis) -> Result<(), Unread> {
        within(self.store.push_token_not_before(key.as_str(), at)).await
    }

    async fn not_after(&self, key: &TokenKey, at: Millis) -> Result<(), Unread> {
        within(self.store.push_token_not_after(key.as_str(), at)).await
    }
}
