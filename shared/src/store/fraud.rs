//! What a fraud report locks: who made the push, as far as that is known, and never the user as a whole.
//!
//! A lock belongs to one API key: what people report about the pushes of one sender keeps no other sender from asking them. Where the sender has
//! named the initiator, that one is locked for all of the key's users; where not, there is nobody to lock, and the key's further prompts to this
//! user and relying party are kept back. The reasoning: `docs/policies.md`.

use super::audit::{Note, note};
use super::db::{Arg, Error, Row, Statement, Tx};
use super::{PushRow, Store, parsed};
use crate::audit::Act;
use crate::clock::{Millis, rfc3339};
use crate::domain::Rules;
use crate::event::{Events, FraudReported, LockTold};
use crate::id::{DeviceId, KeyId, LockId, PushId, StoreId, UserId};
use crate::message::Message;
use serde_json::json;

static LENGTH: Statement =
    Statement::new("SELECT fraud_lock FROM push_policies WHERE store_id = $1 AND rp = $2");
// As with denials: written last, by whoever has just ended the push.
static LOCK: Statement = Statement::new(
    "INSERT INTO fraud_locks (id, store_id, created_by, subject, user_id, rp, push_id, locked_at, locked_until)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
     ON CONFLICT (store_id, created_by, subject) DO UPDATE SET user_id = excluded.user_id, rp = excluded.rp, push_id = excluded.push_id,
       locked_at = excluded.locked_at, locked_until = excluded.locked_until RETURNING id",
);
static LIST: Statement = Statement::new(
    "SELECT * FROM fraud_locks WHERE store_id = $1 AND locked_until > $2 AND id > $3 AND ($4 IS NULL OR user_id = $4)
       AND ($5 IS NULL OR subject = $5) ORDER BY id LIMIT $6",
);
static LIFT: Statement =
    Statement::new("DELETE FROM fraud_locks WHERE store_id = $1 AND id = $2 RETURNING *");

/// What a lock of an initiator is about.
pub(super) fn of_initiator(hash: &str) -> String {
    format!("initiator:{hash}")
}

fn of_user(user: &UserId, rp: &str) -> String {
    format!("user:{user}:{rp}")
}

/// One lock in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FraudLock {
    /// Its identifier.
    pub id: LockId,
    /// Whose pushes it keeps back.
    pub key: KeyId,
    /// Is it the initiator that is locked? If not, it is the way from this key to the user.
    pub initiator: bool,
    /// Who reported it.
    pub user: UserId,
    /// Of which relying party.
    pub rp: String,
    /// About which push.
    pub push: PushId,
    /// When.
    pub locked_at: Millis,
    /// Until when it holds.
    pub until: Millis,
}

fn lock_of(row: &Row) -> Result<FraudLock, Error> {
    Ok(FraudLock {
        id: parsed(row, "id")?,
        key: parsed(row, "created_by")?,
        initiator: row.text("subject")?.starts_with("initiator:"),
        user: parsed(row, "user_id")?,
        rp: row.text("rp")?,
        push: parsed(row, "push_id")?,
        locked_at: row.int("locked_at")?,
        until: row.int("locked_until")?,
    })
}

/// Locks what a report is about, in the transaction of the report. Gives the messages that tell it.
pub(super) async fn reported(
    tx: &mut Tx,
    push: &PushRow,
    device: &DeviceId,
    now: Millis,
) -> Result<Vec<Message>, Error> {
    let args = [Arg::Text(push.store.as_str()), Arg::Text(&push.rp)];
    let policy = tx.fetch(&LENGTH, &args).await?;
    let length = match policy.first() {
        Some(row) => row.maybe_int("fraud_lock")?,
        None => None,
    };
    let length = length.unwrap_or(Rules::default().fraud_lock);
    let mut told = None;
    if let Some(key) = push.created_by.as_ref().filter(|_| length > 0) {
        let subject = match &push.initiator {
            Some(hash) => of_initiator(hash),
            None => of_user(&push.user, &push.rp),
        };
        let (id, until) = (LockId::fresh(now), now + length);
        let args = [
            Arg::Text(id.as_str()),
            Arg::Text(push.store.as_str()),
            Arg::Text(key.as_str()),
            Arg::Text(&subject),
            Arg::Text(push.user.as_str()),
            Arg::Text(&push.rp),
            Arg::Text(push.id.as_str()),
            Arg::Int(now),
            Arg::Int(until),
        ];
        let rows = tx.fetch(&LOCK, &args).await?;
        let row = rows.first().ok_or(Error::Row("fraud_locks"))?;
        told = Some(LockTold {
            id: parsed(row, "id")?,
            of: if push.initiator.is_some() {
                "initiator"
            } else {
                "user"
            }
            .to_owned(),
            until: rfc3339(until),
        });
    }
    let mut events = Events::default();
    let report = FraudReported {
        push: push.id.clone(),
        store: push.store.clone(),
        kind: push.kind,
        user: push.user.clone(),
        relying_party: push.rp.clone(),
        device: device.clone(),
        correlation_id: push.correlation_id.clone(),
        reported_at: rfc3339(now),
        lock: told,
    };
    events.fraud_reported(&report, now);
    Ok(events.into_messages(now))
}

impl Store {
    /// The locks in force, oldest first: of a user, of an initiator (its hash), or all.
    pub async fn fraud_locks(
        &self,
        store: &StoreId,
        user: Option<&UserId>,
        initiator: Option<&str>,
        (after, limit): (&str, i64),
        now: Millis,
    ) -> Result<Vec<FraudLock>, Error> {
        let subject = initiator.map(of_initiator);
        let args = [
            Arg::Text(store.as_str()),
            Arg::Int(now),
            Arg::Text(after),
            Arg::MaybeText(user.map(UserId::as_str)),
            Arg::MaybeText(subject.as_deref()),
            Arg::Int(limit),
        ];
        let rows = self.db.fetch(&LIST, &args).await?;
        rows.iter().map(lock_of).collect()
    }

    /// Lifts a lock. `false`: there is none.
    pub async fn lift_fraud_lock(
        &self,
        store: &StoreId,
        lock: &LockId,
        now: Millis,
    ) -> Result<bool, Error> {
        let mut tx = self.db.begin().await?;
        let args = [Arg::Text(store.as_str()), Arg::Text(lock.as_str())];
        let rows = tx.fetch(&LIFT, &args).await?;
        let Some(row) = rows.first() else {
            return Ok(false);
        };
        let lifted = lock_of(row)?;
        let facts = json!({"lock": lifted.id, "key": lifted.key, "of": if lifted.initiator { "initiator" } else { "user" }});
        let lift = Note::new(store, Act::FraudLockLifted).by(self.by.as_deref());
        let lift = lift.push(&lifted.push).user(&lifted.user).facts(facts);
        note(&mut tx, &[lift], now).await?;
        tx.commit().await?;
        Ok(true)
    }
}
