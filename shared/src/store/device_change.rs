//! Changes of a device, and its end. What a device that is no longer trusted has under way ends with it, in the same transaction.

use super::audit::{Note, note};
use super::db::{Arg, Error, Statement, Tx};
use super::devices::device_of;
use super::ending::{device_done, rows_of};
use super::enrolment::{lock_user, revoke_of_maker};
use super::pushes::delivery_of;
use super::{Device, PushRow, Store, notices, to_json};
use crate::audit::Act;
use crate::clock::Millis;
use crate::domain::{DeviceState, NoticeWord};
use crate::event::{DeviceEnd, Events};
use crate::id::{DeviceId, PushId};
use crate::message::Message;
use std::collections::HashMap;

// Pushes before their user, and both before deliveries and devices, as everywhere.
static OPEN_PUSHES: Statement = Statement::new(
    "SELECT * FROM pushes WHERE user_id = $1 AND COALESCE(ended_at, 0) = 0 ORDER BY id {lock}",
);
static WITHDRAW: Statement = Statement::new(
    "UPDATE deliveries SET state = 'withdrawn', reason = 'device_revoked', updated_at = $3
     WHERE device_id = $2 AND push_id {in:$1} AND state NOT IN ('answered', 'withdrawn', 'expired')
     RETURNING *",
);
static CHANGE: Statement = Statement::new(
    "UPDATE devices SET state = COALESCE($3, state), name = COALESCE($4, name), updated_at = $5 WHERE id = $1 AND state = $2 RETURNING *",
);

/// Ends what is under way to a device, and gives the messages that say so.
async fn withdraw(
    tx: &mut Tx,
    open: &[PushRow],
    device: &DeviceId,
    now: Millis,
) -> Result<Vec<Message>, Error> {
    let ids = to_json(&open.iter().map(|push| &push.id).collect::<Vec<_>>());
    let args = [Arg::Text(&ids), Arg::Text(device.as_str()), Arg::Int(now)];
    let of: HashMap<&PushId, &PushRow> = open.iter().map(|push| (&push.id, push)).collect();
    let mut events = Events::default();
    for row in tx.fetch(&WITHDRAW, &args).await? {
        let row = delivery_of(&row)?;
        let Some(push) = of.get(&row.push) else {
            continue;
        };
        let end = DeviceEnd::from(row);
        events.device_done(&device_done(push, &end), now);
    }
    Ok(events.into_messages(now))
}

impl Store {
    /// Changes a device that stood as `device` says; `None` when it no longer does. The caller has checked the transition. A device that is
    /// blocked or revoked takes the enrolment codes it made with it, a revoked one its open deliveries too; the user's others are told.
    pub async fn change_device(
        &self,
        device: &Device,
        to: Option<DeviceState>,
        name: Option<&str>,
        now: Millis,
    ) -> Result<Option<Device>, Error> {
        let mut tx = self.db.begin().await?;
        let mut open = Vec::new();
        if to == Some(DeviceState::Revoked) {
            let of = [Arg::Text(device.user.as_str())];
            open = rows_of(&tx.fetch(&OPEN_PUSHES, &of).await?);
        }
        lock_user(&mut tx, &device.store, &device.user).await?;
        let messages = withdraw(&mut tx, &open, &device.id, now).await?;
        let args = [
            Arg::Text(device.id.as_str()),
            Arg::Text(device.state.as_str()),
            Arg::MaybeText(to.map(DeviceState::as_str)),
            Arg::MaybeText(name),
            Arg::Int(now),
        ];
        let rows = tx.fetch(&CHANGE, &args).await?;
        let Some(changed) = rows.first().map(device_of).transpose()? else {
            return Ok(None);
        };
        let facts = serde_json::json!({"state": to, "renamed": name.map(|_| true)});
        let change = Note::new(&changed.store, Act::DeviceChanged)
            .user(&changed.user)
            .device(&changed.id);
        let change = change.by(self.by.as_deref()).facts(facts);
        note(&mut tx, &[change], now).await?;
        let what = match to.filter(|to| *to != device.state) {
            None | Some(DeviceState::PendingBinding) => None,
            Some(DeviceState::Active) => Some(NoticeWord::Unblocked),
            Some(DeviceState::Blocked) => Some(NoticeWord::Blocked),
            Some(DeviceState::Revoked) => Some(NoticeWord::Revoked),
        };
        if let Some(what) = what {
            if changed.state != DeviceState::Active {
                revoke_of_maker(&mut tx, &changed, now).await?;
            }
            if changed.state == DeviceState::Revoked {
                notices::forget(&mut tx, &changed.id).await?;
            }
            notices::tell_others(&mut tx, &changed, what, now).await?;
        }
        self.commit(tx, messages, now).await?;
        Ok(Some(changed))
    }
}
