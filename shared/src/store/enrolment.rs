//! Enrolment codes: one lets one device register its own key.
//!
//! Only a keyed hash is kept. A code is used by compare-and-set in the transaction that adds the device, so of many who hold it one gets in.
//! Whoever makes a code, revokes one, uses one or takes its maker away holds the user's row: none of them can pass another one by.

use super::audit::{Note, note};
use super::db::{Arg, Error, Row, Statement, Tx};
use super::devices::{NewDevice, Refused, Why, by_id, place};
use super::{Device, Store, maybe_parsed, parsed};
use crate::audit::Act;
use crate::clock::Millis;
use crate::domain::{CodeState, DeviceState, UserStatus};
use crate::id::{DeviceId, EnrolmentId, StoreId, UserId};

/// How many codes of one user may be open.
pub const MAX_OPEN_CODES: i64 = 5;
/// How many codes a list shows.
const LISTED: i64 = 50;

static LOCK_USER: Statement = Statement::new(
    "UPDATE users SET status = status WHERE store_id = $1 AND id = $2 RETURNING status",
);
static OPEN: Statement = Statement::new(
    "SELECT COUNT(*) AS n FROM enrolment_codes WHERE user_id = $1 AND expires_at > $2 AND used_at IS NULL AND revoked_at IS NULL",
);
static ADD: Statement = Statement::new(
    "INSERT INTO enrolment_codes (id, store_id, user_id, rp, hash, made_by, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
);
static BY_HASH: Statement = Statement::new("SELECT * FROM enrolment_codes WHERE hash = $1");
static ONE: Statement = Statement::new(
    "SELECT * FROM enrolment_codes WHERE store_id = $1 AND user_id = $2 AND id = $3",
);
static LIST: Statement = Statement::new(
    "SELECT * FROM enrolment_codes WHERE store_id = $1 AND user_id = $2 ORDER BY id DESC LIMIT $3",
);
static REVOKE: Statement = Statement::new(
    "UPDATE enrolment_codes SET revoked_at = $2 WHERE id = $1 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > $2 RETURNING *",
);
static REVOKE_OF_MAKER: Statement = Statement::new(
    "UPDATE enrolment_codes SET revoked_at = $3 WHERE user_id = $1 AND made_by = $2 AND used_at IS NULL AND revoked_at IS NULL
       AND expires_at > $3",
);
static USE: Statement = Statement::new(
    "UPDATE enrolment_codes SET used_at = $2 WHERE id = $1 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > $2 RETURNING *",
);
static USED_BY: Statement =
    Statement::new("UPDATE enrolment_codes SET device_id = $2 WHERE id = $1");

/// An enrolment code. The code itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolmentCode {
    /// Its identifier: not what opens anything.
    pub id: EnrolmentId,
    /// The store.
    pub store: StoreId,
    /// For whose device.
    pub user: UserId,
    /// For which relying party.
    pub rp: String,
    /// The device that made it; none: an API key did.
    pub made_by: Option<DeviceId>,
    /// When it was made.
    pub created_at: Millis,
    /// Until when it counts.
    pub expires_at: Millis,
    /// When it was used.
    pub used_at: Option<Millis>,
    /// By which device.
    pub device: Option<DeviceId>,
    /// When it was taken back.
    pub revoked_at: Option<Millis>,
}

impl EnrolmentCode {
    /// What it is good for at `now`.
    pub fn state(&self, now: Millis) -> CodeState {
        if self.used_at.is_some() {
            CodeState::Used
        } else if self.revoked_at.is_some() {
            CodeState::Revoked
        } else if self.expires_at <= now {
            CodeState::Expired
        } else {
            CodeState::Open
        }
    }
}

/// A code to keep.
pub struct NewCode<'a> {
    /// The store.
    pub store: &'a StoreId,
    /// For whose device.
    pub user: &'a UserId,
    /// For which relying party.
    pub rp: &'a str,
    /// The keyed hash of the code.
    pub hash: &'a str,
    /// The device that makes it; none: an API key does.
    pub made_by: Option<&'a DeviceId>,
    /// Until when it counts.
    pub expires_at: Millis,
}

/// Why no code was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeRefused {
    /// The store has no such user.
    NoUser,
    /// Nobody enrols a device of a user who may not be asked.
    UserInactive(UserStatus),
    /// The device that wants to make it is no longer active.
    MakerGone,
    /// The user has [`MAX_OPEN_CODES`] open ones.
    TooMany,
}

/// Why a code let no device in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnrolRefused {
    /// Used by another key, revoked, too old, or its user may not be asked.
    Spent,
    /// The code is unharmed: the device itself cannot be added.
    Device(Refused),
}

fn code_of(row: &Row) -> Result<EnrolmentCode, Error> {
    Ok(EnrolmentCode {
        id: parsed(row, "id")?,
        store: parsed(row, "store_id")?,
        user: parsed(row, "user_id")?,
        rp: row.text("rp")?,
        made_by: maybe_parsed(row, "made_by")?,
        created_at: row.int("created_at")?,
        expires_at: row.int("expires_at")?,
        used_at: row.maybe_int("used_at")?,
        device: maybe_parsed(row, "device_id")?,
        revoked_at: row.maybe_int("revoked_at")?,
    })
}

/// Locks a user's row and says how the user stands; `None`: no such user.
pub(super) async fn lock_user(
    tx: &mut Tx,
    store: &StoreId,
    user: &UserId,
) -> Result<Option<UserStatus>, Error> {
    let of = [Arg::Text(store.as_str()), Arg::Text(user.as_str())];
    let rows = tx.fetch(&LOCK_USER, &of).await?;
    rows.first().map(|row| parsed(row, "status")).transpose()
}

/// The open codes of a device that is no longer trusted die with it. The caller holds the user's row.
pub(super) async fn revoke_of_maker(tx: &mut Tx, maker: &Device, now: Millis) -> Result<(), Error> {
    let args = [
        Arg::Text(maker.user.as_str()),
        Arg::Text(maker.id.as_str()),
        Arg::Int(now),
    ];
    tx.fetch(&REVOKE_OF_MAKER, &args).await?;
    Ok(())
}

impl Store {
    /// Keeps a fresh code.
    pub async fn add_enrolment_code(
        &self,
        new: &NewCode<'_>,
        now: Millis,
    ) -> Result<Result<EnrolmentCode, CodeRefused>, Error> {
        let mut tx = self.db.begin().await?;
        match lock_user(&mut tx, new.store, new.user).await? {
            None => return Ok(Err(CodeRefused::NoUser)),
            Some(UserStatus::Active) => {}
            Some(status) => return Ok(Err(CodeRefused::UserInactive(status))),
        }
        if let Some(maker) = new.made_by {
            let maker = by_id(&mut tx, maker).await?;
            if maker.is_none_or(|one| one.state != DeviceState::Active) {
                return Ok(Err(CodeRefused::MakerGone));
            }
        }
        let args = [Arg::Text(new.user.as_str()), Arg::Int(now)];
        let open = tx.fetch(&OPEN, &args).await?;
        if open.first().map_or(Ok(0), |row| row.int("n"))? >= MAX_OPEN_CODES {
            return Ok(Err(CodeRefused::TooMany));
        }
        let id = EnrolmentId::fresh(now);
        let args = [
            Arg::Text(id.as_str()),
            Arg::Text(new.store.as_str()),
            Arg::Text(new.user.as_str()),
            Arg::Text(new.rp),
            Arg::Text(new.hash),
            Arg::MaybeText(new.made_by.map(DeviceId::as_str)),
            Arg::Int(now),
            Arg::Int(new.expires_at),
        ];
        tx.fetch(&ADD, &args).await?;
        let made = Note::new(new.store, Act::EnrolmentCodeMade).user(new.user);
        let by = new.made_by.map(DeviceId::as_str).or(self.by.as_deref());
        let facts = serde_json::json!({"enrolment": id, "relying_party": new.rp});
        note(&mut tx, &[made.by(by).facts(facts)], now).await?;
        tx.commit().await?;
        Ok(Ok(EnrolmentCode {
            id,
            store: new.store.clone(),
            user: new.user.clone(),
            rp: new.rp.to_owned(),
            made_by: new.made_by.cloned(),
            created_at: now,
            expires_at: new.expires_at,
            used_at: None,
            device: None,
            revoked_at: None,
        }))
    }

    /// The code with this hash, whatever it is still good for.
    pub async fn enrolment_code_of(&self, hash: &str) -> Result<Option<EnrolmentCode>, Error> {
        let rows = self.db.fetch(&BY_HASH, &[Arg::Text(hash)]).await?;
        rows.first().map(code_of).transpose()
    }

    /// One code of a user.
    pub async fn enrolment_code(
        &self,
        store: &StoreId,
        user: &UserId,
        id: &EnrolmentId,
    ) -> Result<Option<EnrolmentCode>, Error> {
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(user.as_str()),
            Arg::Text(id.as_str()),
        ];
        let rows = self.db.fetch(&ONE, &args).await?;
        rows.first().map(code_of).transpose()
    }

    /// A user's last codes, newest first.
    pub async fn enrolment_codes(
        &self,
        store: &StoreId,
        user: &UserId,
    ) -> Result<Vec<EnrolmentCode>, Error> {
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(user.as_str()),
            Arg::Int(LISTED),
        ];
        let rows = self.db.fetch(&LIST, &args).await?;
        rows.iter().map(code_of).collect()
    }

    /// Takes an open code back; `false` when it is open no more.
    pub async fn revoke_enrolment_code(
        &self,
        code: &EnrolmentCode,
        now: Millis,
    ) -> Result<bool, Error> {
        let mut tx = self.db.begin().await?;
        lock_user(&mut tx, &code.store, &code.user).await?;
        let args = [Arg::Text(code.id.as_str()), Arg::Int(now)];
        let revoked = !tx.fetch(&REVOKE, &args).await?.is_empty();
        if revoked {
            let note_of = Note::new(&code.store, Act::EnrolmentCodeRevoked).user(&code.user);
            let facts = serde_json::json!({"enrolment": code.id});
            let by = self.by.as_deref();
            note(&mut tx, &[note_of.by(by).facts(facts)], now).await?;
        }
        tx.commit().await?;
        Ok(revoked)
    }

    /// Lets a device in, once. The very device that used the code may repeat and gets itself again. The caller has checked that the device
    /// holds the key and that the policy takes it.
    pub async fn enrol(
        &self,
        code: &EnrolmentCode,
        new: &NewDevice,
        max_devices: i64,
        now: Millis,
    ) -> Result<Result<Device, EnrolRefused>, Error> {
        let mut tx = self.db.begin().await?;
        let status = lock_user(&mut tx, &code.store, &code.user).await?;
        if status != Some(UserStatus::Active) {
            return Ok(Err(EnrolRefused::Spent));
        }
        let args = [Arg::Text(code.id.as_str()), Arg::Int(now)];
        if tx.fetch(&USE, &args).await?.is_empty() {
            let of = [
                Arg::Text(code.store.as_str()),
                Arg::Text(code.user.as_str()),
                Arg::Text(code.id.as_str()),
            ];
            let rows = tx.fetch(&ONE, &of).await?;
            let used = rows.first().map(code_of).transpose()?;
            let Some(device) = used.and_then(|code| code.device) else {
                return Ok(Err(EnrolRefused::Spent));
            };
            let device = by_id(&mut tx, &device).await?;
            let same = device.filter(|one| one.key == new.key && one.state == DeviceState::Active);
            return Ok(same.ok_or(EnrolRefused::Spent));
        }
        let why = Why {
            enrolment: Some(&code.id),
            ..Why::default()
        };
        let placed = place(&mut tx, &code.store, &code.user, new, max_devices, why, now).await?;
        let device = match placed {
            Ok(device) => device,
            // Rolled back: the code may be used again.
            Err(why) => return Ok(Err(EnrolRefused::Device(why))),
        };
        let args = [Arg::Text(code.id.as_str()), Arg::Text(device.id.as_str())];
        tx.fetch(&USED_BY, &args).await?;
        tx.commit().await?;
        Ok(Ok(device))
    }
}
