//! Users of a store.

use super::audit::{Note, note};
use super::db::{Arg, Error, Row, Statement};
use super::{Store, ending, maybe_parsed, parsed};
use crate::audit::Act;
use crate::clock::Millis;
use crate::domain::UserStatus;
use crate::id::{DeviceId, StoreId, UserId};
use serde_json::json;

static ADD: Statement = Statement::new(
    "INSERT INTO users (id, store_id, external_id, status, created_at) VALUES ($1, $2, $3, 'active', $4)
     ON CONFLICT (store_id, external_id) DO NOTHING RETURNING id",
);
static ONE: Statement = Statement::new(
    "SELECT id, store_id, external_id, status, preferred_device, created_at FROM users WHERE store_id = $1 AND id = $2",
);
static BY_EXTERNAL: Statement = Statement::new(
    "SELECT id, store_id, external_id, status, preferred_device, created_at FROM users WHERE store_id = $1 AND external_id = $2",
);
static LIST: Statement = Statement::new(
    "SELECT id, store_id, external_id, status, preferred_device, created_at FROM users
     WHERE store_id = $1 AND id > $2 ORDER BY id LIMIT $3",
);
static CHANGE: Statement = Statement::new(
    "UPDATE users SET status = COALESCE($3, status), code_failures = CASE WHEN $3 = 'active' THEN 0 ELSE code_failures END,
       codes_blocked_until = CASE WHEN $3 = 'active' THEN NULL ELSE codes_blocked_until END, preferred_device = CASE WHEN $4 IS NULL THEN preferred_device ELSE NULLIF($4, '') END
     WHERE store_id = $1 AND id = $2
       AND ($4 IS NULL OR $4 = '' OR EXISTS (SELECT 1 FROM devices d WHERE d.id = $4 AND d.user_id = $2 AND d.state = 'active'))
     RETURNING id, store_id, external_id, status, preferred_device, created_at",
);

// Pushes before their user, as everywhere.
static OPEN: Statement = Statement::new(
    "SELECT id FROM pushes WHERE user_id = $1 AND COALESCE(ended_at, 0) = 0 ORDER BY id {lock}",
);

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Our identifier.
    pub id: UserId,
    /// The store.
    pub store: StoreId,
    /// The caller's identifier.
    pub external_id: String,
    /// May they be asked?
    pub status: UserStatus,
    /// The device asked first.
    pub preferred_device: Option<DeviceId>,
    /// When they were added.
    pub created_at: Millis,
}

fn user_of(row: &Row) -> Result<User, Error> {
    Ok(User {
        id: parsed(row, "id")?,
        store: parsed(row, "store_id")?,
        external_id: row.text("external_id")?,
        status: parsed(row, "status")?,
        preferred_device: maybe_parsed(row, "preferred_device")?,
        created_at: row.int("created_at")?,
    })
}

impl Store {
    /// Adds a user; `None` when the external identifier is taken.
    pub async fn add_user(
        &self,
        store: &StoreId,
        external_id: &str,
        now: Millis,
    ) -> Result<Option<UserId>, Error> {
        let id = UserId::fresh(now);
        let args = [
            Arg::Text(id.as_str()),
            Arg::Text(store.as_str()),
            Arg::Text(external_id),
            Arg::Int(now),
        ];
        let mut tx = self.db.begin().await?;
        if tx.fetch(&ADD, &args).await?.is_empty() {
            return Ok(None);
        }
        let added = Note::new(store, Act::UserAdded).user(&id);
        note(&mut tx, &[added.by(self.by.as_deref())], now).await?;
        tx.commit().await?;
        Ok(Some(id))
    }

    /// One user.
    pub async fn user(&self, store: &StoreId, user: &UserId) -> Result<Option<User>, Error> {
        let args = [Arg::Text(store.as_str()), Arg::Text(user.as_str())];
        let rows = self.db.fetch(&ONE, &args).await?;
        rows.first().map(user_of).transpose()
    }

    /// The user with the caller's own identifier.
    pub async fn user_by_external(
        &self,
        store: &StoreId,
        external_id: &str,
    ) -> Result<Option<User>, Error> {
        let args = [Arg::Text(store.as_str()), Arg::Text(external_id)];
        let rows = self.db.fetch(&BY_EXTERNAL, &args).await?;
        rows.first().map(user_of).transpose()
    }

    /// Users behind `after`, oldest first.
    pub async fn users(
        &self,
        store: &StoreId,
        after: &str,
        limit: i64,
    ) -> Result<Vec<User>, Error> {
        let args = [Arg::Text(store.as_str()), Arg::Text(after), Arg::Int(limit)];
        let rows = self.db.fetch(&LIST, &args).await?;
        rows.iter().map(user_of).collect()
    }

    /// Changes what is given. A preferred device must be an active one of this user; an empty text unsets it. `None`: no such user or
    /// device. A user who may not be asked any more is not asked any more: their open pushes are cancelled.
    pub async fn change_user(
        &self,
        store: &StoreId,
        user: &UserId,
        status: Option<UserStatus>,
        preferred: Option<&str>,
        now: Millis,
    ) -> Result<Option<User>, Error> {
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(user.as_str()),
            Arg::MaybeText(status.map(UserStatus::as_str)),
            Arg::MaybeText(preferred),
        ];
        let mut tx = self.db.begin().await?;
        if status.is_some_and(|status| status != UserStatus::Active) {
            tx.fetch(&OPEN, &[Arg::Text(user.as_str())]).await?;
        }
        let rows = tx.fetch(&CHANGE, &args).await?;
        let changed = rows.first().map(user_of).transpose()?;
        let blocked = changed
            .as_ref()
            .is_some_and(|user| user.status != UserStatus::Active);
        if changed.is_some() {
            let facts = json!({"status": status, "preferred_device": preferred});
            let changed = Note::new(store, Act::UserChanged).user(user).facts(facts);
            note(&mut tx, &[changed.by(self.by.as_deref())], now).await?;
        }
        let messages = if blocked {
            ending::cancel_of_user(&mut tx, user, self.by.as_deref(), now).await?
        } else {
            Vec::new()
        };
        self.commit(tx, messages, now).await?;
        Ok(changed)
    }
}
