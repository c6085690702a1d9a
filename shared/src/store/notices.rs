//! Notices: what a user's other devices are told when one is added, changed or removed.
//!
//! A notice waits until its device has shown it. There is one for each device, subject and word, so that repeated changes renew it instead of
//! piling up; and it is no push, so that neither the governor nor a sender can hold it back.

use super::db::{Arg, Error, Statement, Tx};
use super::{Device, Store, parsed, to_json};
use crate::clock::Millis;
use crate::domain::NoticeWord;
use crate::id::{DeviceId, NoticeId};

/// How many notices a device is given at once.
const MOST: i64 = 50;

static OTHERS: Statement = Statement::new(
    "SELECT id FROM devices WHERE user_id = $1 AND rp = $2 AND state = 'active' AND id <> $3 ORDER BY id",
);
static ADD: Statement = Statement::new(
    "INSERT INTO notices (id, device_id, about, what, created_at)
     SELECT r.value->>'id', r.value->>'device', $2, $3, $4 FROM {each:$1} WHERE true
     ON CONFLICT (device_id, about, what) DO UPDATE SET id = excluded.id, created_at = excluded.created_at",
);
static LIST: Statement = Statement::new(
    "SELECT n.id, n.what, n.about, n.created_at, d.name, d.platform FROM notices n JOIN devices d ON d.id = n.about
     WHERE n.device_id = $1 ORDER BY n.created_at DESC, n.id LIMIT $2",
);
static SEEN: Statement =
    Statement::new("DELETE FROM notices WHERE id = $1 AND device_id = $2 RETURNING id");
static DROP: Statement = Statement::new("DELETE FROM notices WHERE device_id = $1");

/// What one device is told about another one of its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Its identifier: another one whenever the same thing happens again.
    pub id: NoticeId,
    /// What happened.
    pub what: NoticeWord,
    /// To which device.
    pub about: DeviceId,
    /// What its owner calls that device.
    pub name: String,
    /// `ios`, `android` or `web`.
    pub platform: String,
    /// When.
    pub created_at: Millis,
}

/// Tells the other active devices of the same user and relying party, in the transaction of the change itself.
pub(super) async fn tell_others(
    tx: &mut Tx,
    about: &Device,
    what: NoticeWord,
    now: Millis,
) -> Result<(), Error> {
    let of = [
        Arg::Text(about.user.as_str()),
        Arg::Text(&about.rp),
        Arg::Text(about.id.as_str()),
    ];
    let others = tx.fetch(&OTHERS, &of).await?;
    let rows = others
        .iter()
        .map(|row| {
            let device = row.text("id")?;
            let parts = [&device, about.id.as_str(), what.as_str(), &now.to_string()];
            Ok(serde_json::json!({"id": NoticeId::derived(&parts), "device": device}))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    if rows.is_empty() {
        return Ok(());
    }
    let rows = to_json(&rows);
    let args = [
        Arg::Text(&rows),
        Arg::Text(about.id.as_str()),
        Arg::Text(what.as_str()),
        Arg::Int(now),
    ];
    tx.fetch(&ADD, &args).await?;
    Ok(())
}

/// Forgets what a device that is gone was to be told.
pub(super) async fn forget(tx: &mut Tx, device: &DeviceId) -> Result<(), Error> {
    tx.fetch(&DROP, &[Arg::Text(device.as_str())]).await?;
    Ok(())
}

impl Store {
    /// What a device has not shown yet, newest first.
    pub async fn notices(&self, device: &DeviceId) -> Result<Vec<Notice>, Error> {
        let args = [Arg::Text(device.as_str()), Arg::Int(MOST)];
        let rows = self.db.fetch(&LIST, &args).await?;
        rows.iter()
            .map(|row| {
                Ok(Notice {
                    id: parsed(row, "id")?,
                    what: parsed(row, "what")?,
                    about: parsed(row, "about")?,
                    name: row.text("name")?,
                    platform: row.text("platform")?,
                    created_at: row.int("created_at")?,
                })
            })
            .collect()
    }

    /// The device has shown a notice. `false`: it has none of this identifier.
    pub async fn notice_seen(&self, device: &DeviceId, id: &NoticeId) -> Result<bool, Error> {
        let args = [Arg::Text(id.as_str()), Arg::Text(device.as_str())];
        Ok(!self.db.write(&SEEN, &args).await?.is_empty())
    }
}
