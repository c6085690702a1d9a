//! Identity stores and their API keys.

use super::audit::{Note, note};
use super::db::{Arg, Error, Row, Statement};
use super::{Store, maybe_parsed, parsed};
use crate::audit::Act;
use crate::clock::Millis;
use crate::id::{KeyId, StoreId};
use serde_json::json;

static ADD_STORE: Statement =
    Statement::new("INSERT INTO stores (id, name, created_at) VALUES ($1, $2, $3)");
static STORE: Statement = Statement::new("SELECT id, name, created_at FROM stores WHERE id = $1");
static STORES: Statement =
    Statement::new("SELECT id, name, created_at FROM stores WHERE id > $1 ORDER BY id LIMIT $2");
static ADD_KEY: Statement = Statement::new(
    "INSERT INTO api_keys (id, store_id, hash, scopes, created_at, name) VALUES ($1, $2, $3, $4, $5, $6)",
);
static OWNER: Statement = Statement::new(
    "SELECT id, store_id, scopes FROM api_keys WHERE hash = $1 AND revoked_at IS NULL",
);
static KEYS: Statement = Statement::new(
    "SELECT id, store_id, scopes, created_at, revoked_at, name FROM api_keys WHERE store_id = $1 ORDER BY id",
);
static REVOKE: Statement = Statement::new(
    "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $3) WHERE id = $1 AND store_id = $2 RETURNING id",
);

/// One identity store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreRow {
    /// Its identifier.
    pub id: StoreId,
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created_at: Millis,
}

/// Whose key it is and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyOwner {
    /// The key.
    pub id: KeyId,
    /// The only store it opens; `None`: all of them.
    pub store: Option<StoreId>,
    /// Words such as `pushes:write`.
    pub scopes: Vec<String>,
}

/// One API key, without its text, which nobody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// The key and its scopes.
    pub owner: KeyOwner,
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created_at: Millis,
    /// Since when it opens nothing.
    pub revoked_at: Option<Millis>,
}

fn store_of(row: &Row) -> Result<StoreRow, Error> {
    Ok(StoreRow {
        id: parsed(row, "id")?,
        name: row.text("name")?,
        created_at: row.int("created_at")?,
    })
}

fn owner_of(row: &Row) -> Result<KeyOwner, Error> {
    Ok(KeyOwner {
        id: parsed(row, "id")?,
        store: maybe_parsed(row, "store_id")?,
        scopes: row
            .text("scopes")?
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    })
}

impl Store {
    /// Makes a store.
    pub async fn add_store(&self, name: &str, now: Millis) -> Result<StoreRow, Error> {
        let id = StoreId::fresh(now);
        let args = [Arg::Text(id.as_str()), Arg::Text(name), Arg::Int(now)];
        let mut tx = self.db.begin().await?;
        tx.fetch(&ADD_STORE, &args).await?;
        let made = Note::new(&id, Act::StoreMade).by(self.by.as_deref());
        note(&mut tx, &[made], now).await?;
        tx.commit().await?;
        Ok(StoreRow {
            id,
            name: name.to_owned(),
            created_at: now,
        })
    }

    /// One store.
    pub async fn store(&self, id: &StoreId) -> Result<Option<StoreRow>, Error> {
        let rows = self.db.fetch(&STORE, &[Arg::Text(id.as_str())]).await?;
        rows.first().map(store_of).transpose()
    }

    /// Stores behind `after`, oldest first.
    pub async fn stores(&self, after: &str, limit: i64) -> Result<Vec<StoreRow>, Error> {
        let rows = self
            .db
            .fetch(&STORES, &[Arg::Text(after), Arg::Int(limit)])
            .await?;
        rows.iter().map(store_of).collect()
    }

    /// Keeps a key's hash.
    pub async fn add_key(
        &self,
        store: Option<&StoreId>,
        hash: &str,
        scopes: &[String],
        name: &str,
        now: Millis,
    ) -> Result<KeyId, Error> {
        let id = KeyId::fresh(now);
        let args = [
            Arg::Text(id.as_str()),
            Arg::MaybeText(store.map(StoreId::as_str)),
            Arg::Text(hash),
            Arg::Text(&scopes.join(" ")),
            Arg::Int(now),
            Arg::Text(name),
        ];
        let mut tx = self.db.begin().await?;
        tx.fetch(&ADD_KEY, &args).await?;
        // A key of the whole deployment is in no store's log.
        if let Some(store) = store {
            let facts = json!({"key": id, "scopes": scopes});
            let made = Note::new(store, Act::KeyMade).facts(facts);
            note(&mut tx, &[made.by(self.by.as_deref())], now).await?;
        }
        tx.commit().await?;
        Ok(id)
    }

    /// Whose key this is; `None` for unknown and revoked ones.
    pub async fn key_owner(&self, hash: &str) -> Result<Option<KeyOwner>, Error> {
        let rows = self.db.fetch(&OWNER, &[Arg::Text(hash)]).await?;
        rows.first().map(owner_of).transpose()
    }

    /// Every key of a store.
    pub async fn keys(&self, store: &StoreId) -> Result<Vec<KeyRow>, Error> {
        let rows = self.db.fetch(&KEYS, &[Arg::Text(store.as_str())]).await?;
        rows.iter()
            .map(|row| {
                Ok(KeyRow {
                    owner: owner_of(row)?,
                    name: row.text("name")?,
                    created_at: row.int("created_at")?,
                    revoked_at: row.maybe_int("revoked_at")?,
                })
            })
            .collect()
    }

    /// Ends a key. `false`: the store has no such key.
    pub async fn revoke_key(
        &self,
        store: &StoreId,
        key: &KeyId,
        now: Millis,
    ) -> Result<bool, Error> {
        let args = [
            Arg::Text(key.as_str()),
            Arg::Text(store.as_str()),
            Arg::Int(now),
        ];
        let mut tx = self.db.begin().await?;
        if tx.fetch(&REVOKE, &args).await?.is_empty() {
            return Ok(false);
        }
        let revoked = Note::new(store, Act::KeyRevoked).facts(json!({"key": key}));
        note(&mut tx, &[revoked.by(self.by.as_deref())], now).await?;
        tx.commit().await?;
        Ok(true)
    }
}
