//! The fatigue governor: how often a person is asked. Whoever has a password can make a phone ring; enough rings, and one of them is approved.
//!
//! Pushes of the interactive lane are counted by user and relying party over a minute, from the last approval on. What is over the limit is
//! not sent: it ends as `failed(throttled)`, with its event, so that nothing is suppressed in silence.

use super::db::{Arg, Error, Statement, Tx};
use super::to_json;
use crate::clock::Millis;
use crate::id::{PushId, UserId};
use std::collections::HashMap;

/// Over how long pushes are counted.
const WINDOW: Millis = 60_000;

// Two workers with pushes of one user count one after the other.
static LOCK: Statement = Statement::new(
    "SELECT id FROM users WHERE id IN (SELECT r.value FROM {texts:$1}) ORDER BY id {lock}",
);
static RECENT: Statement = Statement::new(
    "SELECT p.user_id, p.rp, COUNT(*) AS n FROM {texts:$1} JOIN users u ON u.id = r.value
     JOIN pushes p ON p.user_id = u.id AND p.id > $2 AND p.created_at > $3 AND p.created_at > COALESCE(u.last_approved_at, 0)
     WHERE p.lane = 'interactive' AND p.state <> 'accepted' AND p.reason <> 'throttled'
       AND p.id NOT IN (SELECT s.value FROM {texts_as_s:$4})
     GROUP BY p.user_id, p.rp",
);

/// A push that is about to be sent for the first time.
pub(super) struct Asking {
    pub(super) push: PushId,
    pub(super) user: UserId,
    pub(super) rp: String,
    /// The limit in force.
    pub(super) most: i64,
}

/// Of `asking`, oldest first, those that are one too many.
pub(super) async fn too_many(
    tx: &mut Tx,
    asking: &[Asking],
    now: Millis,
) -> Result<Vec<PushId>, Error> {
    if asking.is_empty() {
        return Ok(Vec::new());
    }
    let users: std::collections::BTreeSet<_> = asking.iter().map(|one| &one.user).collect();
    let users = to_json(&users);
    tx.fetch(&LOCK, &[Arg::Text(&users)]).await?;
    let pushes: Vec<_> = asking.iter().map(|one| &one.push).collect();
    let pushes = to_json(&pushes);
    // Identifiers sort by time: the index finds the recent ones.
    let since = PushId::fresh(now - WINDOW);
    let args = [
        Arg::Text(&users),
        Arg::Text(since.as_str()),
        Arg::Int(now - WINDOW),
        Arg::Text(&pushes),
    ];
    let mut counts: HashMap<(String, String), i64> = HashMap::new();
    for row in tx.fetch(&RECENT, &args).await? {
        counts.insert((row.text("user_id")?, row.text("rp")?), row.int("n")?);
    }
    let mut over = Vec::new();
    for one in asking {
        let count = counts
            .entry((one.user.to_string(), one.rp.clone()))
            .or_default();
        if *count >= one.most {
            over.push(one.push.clone());
        } else {
            *count += 1;
        }
    }
    Ok(over)
}
