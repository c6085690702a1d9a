//! Where the fatigue governor ([`crate::domain::governor`]) finds what happened before, and what follows from its rulings, in the transaction
//! that takes the pushes: a caller who hears 202 or 409 hears the truth, and two pushes of one user cannot both be the newest.
//!
//! A row of `prompt_slots` for each user and relying party names the newest prompt. Writing it is what puts requests for one user in
//! line, on whatever processes they are taken. The slots are taken first, in one order, and by this module alone; then pushes, as everywhere.

use super::db::{Arg, Asked, Error, Rows, Statement, Tx};
use super::ending::{self, announce, rows_of};
use super::{NewPush, to_json};
use crate::clock::Millis;
use crate::domain::governor::{Past, Rules, Ruling, WINDOW, is_prompt, rule};
use crate::domain::{OpenPrompts, Profile};
use crate::id::{PushId, UserId};
use crate::message::{Lane, Message};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

static SLOTS: Statement = Statement::new(
    "INSERT INTO prompt_slots (user_id, rp, push_id) SELECT r.user_id, r.rp, r.push_id FROM {rows:1 user_id rp push_id} WHERE true
     ON CONFLICT (user_id, rp) DO UPDATE SET previous = prompt_slots.push_id, push_id = COALESCE(excluded.push_id, prompt_slots.push_id)
     RETURNING user_id, rp, previous",
);
static PUT_RIGHT: Statement = Statement::new(
    "UPDATE prompt_slots SET push_id = r.value->>'push' FROM {each:$1}
     WHERE prompt_slots.user_id = r.value->>'user' AND prompt_slots.rp = r.value->>'rp'",
);
static RECENT: Statement = Statement::new(
    "SELECT p.user_id, p.rp, COUNT(*) AS n FROM {texts:$1} JOIN users u ON u.id = r.value
     JOIN pushes p ON p.user_id = u.id || '' AND {since:p.user_id p.id u.id $2} AND p.created_at > $3 AND p.created_at > COALESCE(u.last_approved_at, 0)
     WHERE p.lane = 'interactive' AND p.reason NOT IN ('throttled', 'cooldown', 'fraud_lock') GROUP BY p.user_id, p.rp",
);
static OPEN: Statement = Statement::new(
    "SELECT p.id FROM {rows:2 user_id rp} JOIN prompt_slots s ON s.user_id = r.user_id AND s.rp = r.rp JOIN pushes p ON p.id = s.previous
     WHERE COALESCE(p.ended_at, 0) = 0 AND p.expires_at + 0 > $1 AND p.state IN ('accepted', 'pending') ORDER BY p.id {lock:p}",
);
static SUPERSEDE: Statement = Statement::new(
    "UPDATE pushes SET state = 'cancelled', reason = 'superseded', ended_at = $2, escalate_at = NULL, fan_out_due = NULL
     WHERE id {in:$1} AND COALESCE(ended_at, 0) = 0 RETURNING *",
);

/// A push that somebody wants to send, and what is known of its user.
pub(super) struct Asking<'a> {
    pub(super) push: &'a NewPush,
    pub(super) user: &'a UserId,
    pub(super) rules: Rules,
    /// The one in force.
    pub(super) profile: Profile,
    pub(super) approved_at: Option<Millis>,
    pub(super) denied_at: Option<Millis>,
    pub(super) locked_until: Option<Millis>,
}

impl Asking<'_> {
    fn takes_the_slot(&self) -> bool {
        is_prompt(self.push.content.kind) && self.rules.open_prompts != OpenPrompts::Many
    }
}

/// One user and one relying party, held until the end of the transaction.
#[derive(Default)]
struct Slot {
    /// What the slot names now, before it is known whether that push is taken.
    written: Option<PushId>,
    /// What it named.
    previous: Option<PushId>,
    /// Is that one open?
    open: bool,
    /// How many were let through lately.
    asked: i64,
    /// The prompts of this batch that are let through, oldest first.
    line: Vec<PushId>,
}

/// The rulings on one batch.
#[derive(Default)]
pub(super) struct Gate {
    slots: BTreeMap<(UserId, String), Slot>,
    rulings: HashMap<PushId, Ruling>,
}

/// What followed from them.
#[derive(Default)]
pub(super) struct Settled {
    /// The events of those that have ended.
    pub(super) messages: Vec<Message>,
    /// Why, and how many.
    counts: BTreeMap<&'static str, u64>,
    /// Which: there is nothing to send.
    pub(super) ended: HashSet<PushId>,
}

impl Gate {
    /// Rules on `asking`, oldest first. Bulk pushes are not looked at.
    pub(super) async fn open(
        tx: &mut Tx,
        asking: &[Asking<'_>],
        now: Millis,
    ) -> Result<Self, Error> {
        let mut gate = Self::default();
        let asking = || {
            asking
                .iter()
                .filter(|one| one.push.lane == Lane::Interactive)
        };
        for one in asking() {
            let slot = gate.slot(one);
            if one.takes_the_slot() {
                slot.written = Some(one.push.id.clone());
            }
        }
        if gate.slots.is_empty() {
            return Ok(gate);
        }
        gate.hold(tx, now).await?;
        for one in asking() {
            let slot = gate.slot(one);
            let past = Past {
                asked: slot.asked,
                open: slot.open || !slot.line.is_empty(),
                denied_at: one.denied_at,
                locked_until: one.locked_until,
                approved_at: one.approved_at,
            };
            let ruling = rule(one.push.content.kind, &one.rules, &past, now);
            if ruling == Ruling::Ask {
                slot.asked += 1;
                if one.takes_the_slot() {
                    slot.line.push(one.push.id.clone());
                }
            }
            gate.rulings.insert(one.push.id.clone(), ruling);
        }
        Ok(gate)
    }

    fn slot(&mut self, one: &Asking<'_>) -> &mut Slot {
        let key = (one.user.clone(), one.push.content.relying_party.clone());
        self.slots.entry(key).or_default()
    }

    /// Takes the slots, then those of the prompts they named that are open, and counts what their users were asked lately.
    async fn hold(&mut self, tx: &mut Tx, now: Millis) -> Result<(), Error> {
        let (mut all, mut written) = (Rows::default(), Rows::default());
        for ((user, rp), slot) in &self.slots {
            let push = slot.written.as_ref().map(PushId::as_str);
            if push.is_some() {
                written.row().text(user.as_str()).text(rp.as_str());
            }
            all.row()
                .text(user.as_str())
                .text(rp.as_str())
                .maybe_text(push);
        }
        let users: BTreeSet<_> = self.slots.keys().map(|(user, _)| user).collect();
        // Identifiers sort by time: the index finds the recent ones.
        let since = PushId::fresh(now - WINDOW);
        let slots = [Arg::Rows(&all)];
        let open = [Arg::Int(now), Arg::Rows(&written)];
        let recent = [
            Arg::Text(&to_json(&users)),
            Arg::Text(since.as_str()),
            Arg::Int(now - WINDOW),
        ];
        // Whoever held a slot before has committed when its statement returns, and the next statements see what that wrote.
        let asked: [Asked<'_>; 3] = [(&SLOTS, &slots), (&OPEN, &open), (&RECENT, &recent)];
        let [slots, open, recent] = tx.fetch_all(asked).await?;
        let open: HashSet<PushId> = open
            .iter()
            .map(|row| super::parsed(row, "id"))
            .collect::<Result<_, _>>()?;
        for row in slots {
            let key = (super::parsed(&row, "user_id")?, row.text("rp")?);
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.previous = super::maybe_parsed(&row, "previous")?;
                slot.open = slot.previous.as_ref().is_some_and(|id| open.contains(id));
            }
        }
        for row in recent {
            let key = (super::parsed(&row, "user_id")?, row.text("rp")?);
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.asked = row.int("n")?;
            }
        }
        Ok(())
    }

    /// Is this one not to be taken?
    pub(super) fn refuses(&self, push: &PushId) -> bool {
        self.rulings.get(push) == Some(&Ruling::Refuse)
    }

    /// Once it is known which were `added` (an idempotency key may have been used meanwhile): ends what was suppressed and what a newer prompt
    /// takes the place of, and leaves the newest in the slots.
    pub(super) async fn settle(
        self,
        tx: &mut Tx,
        added: &HashSet<String>,
        now: Millis,
    ) -> Result<Settled, Error> {
        let mut settled = Settled::default();
        let mut suppressed: BTreeMap<&'static str, Vec<PushId>> = BTreeMap::new();
        for (push, ruling) in self.rulings {
            match ruling {
                Ruling::Suppress(why) if added.contains(push.as_str()) => {
                    suppressed.entry(why.as_str()).or_default().push(push);
                }
                Ruling::Refuse => settled.count("prompt_open", 1),
                Ruling::Suppress(_) | Ruling::Ask => {}
            }
        }
        for (reason, pushes) in suppressed {
            settled
                .messages
                .extend(ending::fail(tx, &pushes, reason, now).await?);
            settled.count(reason, pushes.len());
            settled.ended.extend(pushes);
        }
        let (mut older, mut wrong) = (Vec::new(), Vec::new());
        for ((user, rp), mut slot) in self.slots {
            slot.line.retain(|push| added.contains(push.as_str()));
            let newest = slot.line.pop();
            if newest.is_some() {
                older.extend(slot.previous.clone().filter(|_| slot.open));
                older.extend(slot.line);
            }
            let newest = newest.or_else(|| slot.previous.clone());
            if newest != slot.written.or(slot.previous) {
                wrong.push(json!({"user": user, "rp": rp, "push": newest}));
            }
        }
        if !wrong.is_empty() {
            tx.send(&PUT_RIGHT, &[Arg::Text(&to_json(&wrong))])?;
        }
        if !older.is_empty() {
            let args = [Arg::Text(&to_json(&older)), Arg::Int(now)];
            let ended = rows_of(&tx.fetch(&SUPERSEDE, &args).await?);
            settled.count("superseded", ended.len());
            settled
                .messages
                .extend(announce(tx, &ended, &[], now).await?);
            settled.ended.extend(ended.into_iter().map(|push| push.id));
        }
        Ok(settled)
    }
}

impl Settled {
    fn count(&mut self, reason: &'static str, n: usize) {
        *self.counts.entry(reason).or_default() += n as u64;
    }

    /// Tells the metrics, once it is committed.
    pub(super) fn tell(&self) {
        for (reason, n) in &self.counts {
            metrics::counter!("countersign_suppressed_total", "reason" => *reason).increment(*n);
        }
    }
}
