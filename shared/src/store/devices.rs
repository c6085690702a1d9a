//! Devices: a key, and apart from it a push address.

use super::audit::{Note, note};
use super::db::{Arg, Error, Row, Statement, Tx};
use super::enrolment::lock_user;
use super::{Store, json, maybe_parsed, notices, parsed, to_json};
use crate::audit::Act;
use crate::clock::Millis;
use crate::crypto::{DeviceKey, sha256_text};
use crate::domain::{AddressState, DeviceState, NoticeWord, Provider};
use crate::id::{DeviceId, EnrolmentId, StoreId, UserId};
use crate::secret::Secret;

static SAME_KEY: Statement = Statement::new(
    "SELECT * FROM devices WHERE user_id = $1 AND rp = $2 AND public_key = $3 AND state <> 'revoked'",
);
static COUNT: Statement = Statement::new(
    "SELECT COUNT(*) AS n FROM devices WHERE user_id = $1 AND rp = $2 AND state <> 'revoked'",
);
static ADD: Statement = Statement::new(
    "INSERT INTO devices (id, store_id, user_id, rp, name, platform, public_key, state, address_state, address_provider, address,
       address_registered_at, created_at, updated_at, multi_factor)
     VALUES ($1, $2, $3, $4, $5, $6, $7, 'active', $8, $9, $10, $11, $12, $12,
       COALESCE((SELECT CASE WHEN a.user_verification = 'none' THEN 0 ELSE 1 END FROM appkey_policies a WHERE a.store_id = $2 AND a.rp = $4), 0))",
);
static ONE: Statement = Statement::new("SELECT * FROM devices WHERE id = $1");
static TRUSTED: Statement = Statement::new(
    "SELECT d.* FROM devices d JOIN users u ON u.id = d.user_id WHERE d.id = $1 AND d.state = 'active' AND u.status = 'active'",
);
static RENAME: Statement =
    Statement::new("UPDATE devices SET name = $2, updated_at = $3 WHERE id = $1 RETURNING *");
// Both devices of a swap, in one order.
static LOCK: Statement = Statement::new(
    "SELECT id, address, address_provider, address_state FROM devices WHERE id = $1 OR (address = $2 AND store_id = (SELECT o.store_id FROM devices o WHERE o.id = $1))
     ORDER BY id {lock}",
);
static OF_USER: Statement =
    Statement::new("SELECT * FROM devices WHERE store_id = $1 AND user_id = $2 ORDER BY id");
// One token belongs to one device: a phone that changed hands must not ring for its former owner.
static FREE_ADDRESS: Statement = Statement::new(
    "UPDATE devices SET address_state = 'invalid', updated_at = $3
     WHERE address = $1 AND address_provider = $2 AND address_state = 'valid' AND store_id = $4 AND id <> $5",
);
static SET_ADDRESS: Statement = Statement::new(
    "UPDATE devices SET address_state = 'valid', address_provider = $2, address = $3, address_registered_at = $4, updated_at = $4
     WHERE id = $1 AND state = 'active' RETURNING *",
);

/// Where a device's wake-ups go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Through whom.
    pub provider: Provider,
    /// The provider's token.
    pub token: Secret,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its identifier.
    pub id: DeviceId,
    /// The store.
    pub store: StoreId,
    /// Whose.
    pub user: UserId,
    /// For which relying party.
    pub rp: String,
    /// What its owner calls it.
    pub name: String,
    /// `ios`, `android` or `web`.
    pub platform: String,
    /// Its key.
    pub key: DeviceKey,
    /// The key's state.
    pub state: DeviceState,
    /// The address' state.
    pub address_state: AddressState,
    /// Through whom it is reached.
    pub address_provider: Option<Provider>,
    /// When the address was registered.
    pub address_registered_at: Option<Millis>,
    /// When it was registered.
    pub created_at: Millis,
}

/// A device to register.
pub struct NewDevice {
    /// For which relying party.
    pub rp: String,
    /// What its owner calls it.
    pub name: String,
    /// `ios`, `android` or `web`.
    pub platform: String,
    /// Its key.
    pub key: DeviceKey,
    /// Where its wake-ups go.
    pub address: Option<Address>,
}

/// Why a device was not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The store has no such user.
    NoUser,
    /// The user has as many devices as the appkey policy allows.
    TooMany,
    /// A device with this key is blocked.
    Blocked,
}

pub(super) fn device_of(row: &Row) -> Result<Device, Error> {
    Ok(Device {
        id: parsed(row, "id")?,
        store: parsed(row, "store_id")?,
        user: parsed(row, "user_id")?,
        rp: row.text("rp")?,
        name: row.text("name")?,
        platform: row.text("platform")?,
        key: json(row, "public_key")?,
        state: parsed(row, "state")?,
        address_state: parsed(row, "address_state")?,
        address_provider: maybe_parsed(row, "address_provider")?,
        address_registered_at: row.maybe_int("address_registered_at")?,
        created_at: row.int("created_at")?,
    })
}

/// One device, in the caller's transaction.
pub(super) async fn by_id(tx: &mut Tx, id: &DeviceId) -> Result<Option<Device>, Error> {
    let rows = tx.fetch(&ONE, &[Arg::Text(id.as_str())]).await?;
    rows.first().map(device_of).transpose()
}

/// On whose word a device is added.
#[derive(Clone, Copy, Default)]
pub(super) struct Why<'a> {
    /// Whose key.
    pub(super) by: Option<&'a str>,
    /// With which code.
    pub(super) enrolment: Option<&'a EnrolmentId>,
}

/// Adds a device for a user whose row the caller holds, and tells the others. The same key again is the same device.
pub(super) async fn place(
    tx: &mut Tx,
    store: &StoreId,
    user: &UserId,
    new: &NewDevice,
    max_devices: i64,
    why: Why<'_>,
    now: Millis,
) -> Result<Result<Device, Refused>, Error> {
    let key = to_json(&new.key);
    let same = [
        Arg::Text(user.as_str()),
        Arg::Text(&new.rp),
        Arg::Text(&key),
    ];
    if let Some(row) = tx.fetch(&SAME_KEY, &same).await?.first() {
        let known = device_of(row)?;
        if known.state != DeviceState::Active {
            return Ok(Err(Refused::Blocked));
        }
        if let Some(address) = &new.address {
            set_address(tx, &known.id, address, now).await?;
        }
        let args = [
            Arg::Text(known.id.as_str()),
            Arg::Text(&new.name),
            Arg::Int(now),
        ];
        let rows = tx.fetch(&RENAME, &args).await?;
        let renamed = rows.first().map(device_of).transpose()?;
        return Ok(Ok(renamed.unwrap_or(known)));
    }
    let count = tx
        .fetch(&COUNT, &[Arg::Text(user.as_str()), Arg::Text(&new.rp)])
        .await?;
    if count.first().map_or(Ok(0), |row| row.int("n"))? >= max_devices {
        return Ok(Err(Refused::TooMany));
    }
    let device = insert(tx, store, user, new, now).await?;
    let facts = serde_json::json!({"relying_party": new.rp, "platform": new.platform, "key": sha256_text(key.as_bytes()),
        "enrolment": why.enrolment});
    let added = Note::new(store, Act::DeviceRegistered).user(user);
    let added = added.device(&device.id).by(why.by).facts(facts);
    note(tx, &[added], now).await?;
    notices::tell_others(tx, &device, NoticeWord::Added, now).await?;
    Ok(Ok(device))
}

async fn insert(
    tx: &mut Tx,
    store: &StoreId,
    user: &UserId,
    new: &NewDevice,
    now: Millis,
) -> Result<Device, Error> {
    let id = DeviceId::fresh(now);
    let state = if new.address.is_some() {
        AddressState::Valid
    } else {
        AddressState::None
    };
    let token = new.address.as_ref().map(|a| a.token.expose());
    let provider = new.address.as_ref().map(|a| a.provider.as_str());
    if let (Some(token), Some(provider)) = (token, provider) {
        let args = [
            Arg::Text(token),
            Arg::Text(provider),
            Arg::Int(now),
            Arg::Text(store.as_str()),
            Arg::Text(id.as_str()),
        ];
        tx.fetch(&FREE_ADDRESS, &args).await?;
    }
    let key = to_json(&new.key);
    let args = [
        Arg::Text(id.as_str()),
        Arg::Text(store.as_str()),
        Arg::Text(user.as_str()),
        Arg::Text(&new.rp),
        Arg::Text(&new.name),
        Arg::Text(&new.platform),
        Arg::Text(&key),
        Arg::Text(state.as_str()),
        Arg::MaybeText(provider),
        Arg::MaybeText(token),
        Arg::MaybeInt(token.map(|_| now)),
        Arg::Int(now),
    ];
    tx.fetch(&ADD, &args).await?;
    Ok(Device {
        id,
        store: store.clone(),
        user: user.clone(),
        rp: new.rp.clone(),
        name: new.name.clone(),
        platform: new.platform.clone(),
        key: new.key.clone(),
        state: DeviceState::Active,
        address_state: state,
        address_provider: new.address.as_ref().map(|a| a.provider),
        address_registered_at: token.map(|_| now),
        created_at: now,
    })
}

impl Store {
    /// Registers a device on the word of an API key. The same key again is the same device, so a caller who heard nothing may repeat. Two
    /// registrations at once cannot exceed `max_devices`: the user's row is locked.
    pub async fn add_device(
        &self,
        store: &StoreId,
        user: &UserId,
        new: &NewDevice,
        max_devices: i64,
        now: Millis,
    ) -> Result<Result<Device, Refused>, Error> {
        let mut tx = self.db.begin().await?;
        if lock_user(&mut tx, store, user).await?.is_none() {
            return Ok(Err(Refused::NoUser));
        }
        let why = Why {
            by: self.by.as_deref(),
            enrolment: None,
        };
        let placed = place(&mut tx, store, user, new, max_devices, why, now).await?;
        if placed.is_ok() {
            tx.commit().await?;
        }
        Ok(placed)
    }

    /// One device, of whatever store.
    pub async fn device(&self, id: &DeviceId) -> Result<Option<Device>, Error> {
        let rows = self.db.fetch(&ONE, &[Arg::Text(id.as_str())]).await?;
        rows.first().map(device_of).transpose()
    }

    /// A device whose word counts: active, and of a user who may be asked.
    pub async fn trusted_device(&self, id: &DeviceId) -> Result<Option<Device>, Error> {
        let rows = self.db.fetch(&TRUSTED, &[Arg::Text(id.as_str())]).await?;
        rows.first().map(device_of).transpose()
    }

    /// Notes that a device was refused which has signed its request.
    pub async fn refused_device(
        &self,
        device: &Device,
        fault: &str,
        now: Millis,
    ) -> Result<(), Error> {
        let mut tx = self.db.begin().await?;
        let refused = Note::new(&device.store, Act::DeviceRefused)
            .user(&device.user)
            .device(&device.id);
        let facts = serde_json::json!({"fault": fault});
        note(&mut tx, &[refused.facts(facts)], now).await?;
        tx.commit().await
    }

    /// A user's devices, oldest first.
    pub async fn devices(&self, store: &StoreId, user: &UserId) -> Result<Vec<Device>, Error> {
        let args = [Arg::Text(store.as_str()), Arg::Text(user.as_str())];
        let rows = self.db.fetch(&OF_USER, &args).await?;
        rows.iter().map(device_of).collect()
    }

    /// Gives an active device a new push address, and tells the others. `false`: it is not active, or not there.
    pub async fn set_address(
        &self,
        device: &DeviceId,
        address: &Address,
        now: Millis,
    ) -> Result<bool, Error> {
        let mut tx = self.db.begin().await?;
        let set = set_address(&mut tx, device, address, now).await?;
        tx.commit().await?;
        Ok(set)
    }
}

async fn set_address(
    tx: &mut Tx,
    device: &DeviceId,
    address: &Address,
    now: Millis,
) -> Result<bool, Error> {
    let token = address.token.expose();
    let provider = address.provider.as_str();
    let locked = tx
        .fetch(&LOCK, &[Arg::Text(device.as_str()), Arg::Text(token)])
        .await?;
    let mut known = false;
    for row in &locked {
        known |= row.text("id")? == device.as_str()
            && row.maybe_text("address")?.as_deref() == Some(token)
            && row.maybe_text("address_provider")?.as_deref() == Some(provider)
            && row.text("address_state")? == "valid";
    }
    let args = [
        Arg::Text(device.as_str()),
        Arg::Text(provider),
        Arg::Text(token),
        Arg::Int(now),
    ];
    let rows = tx.fetch(&SET_ADDRESS, &args).await?;
    let Some(changed) = rows.first().map(device_of).transpose()? else {
        return Ok(false);
    };
    let args = [
        Arg::Text(token),
        Arg::Text(provider),
        Arg::Int(now),
        Arg::Text(changed.store.as_str()),
        Arg::Text(device.as_str()),
    ];
    tx.fetch(&FREE_ADDRESS, &args).await?;
    // An app registers the address it has at every start; only a new one is news.
    if !known {
        let facts = serde_json::json!({"provider": address.provider});
        let new = Note::new(&changed.store, Act::AddressChanged).user(&changed.user);
        note(tx, &[new.device(device).facts(facts)], now).await?;
        notices::tell_others(tx, &changed, NoticeWord::AddressChanged, now).await?;
    }
    Ok(true)
}
