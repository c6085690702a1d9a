//! What devices do: fetch a prompt, and answer it. The first valid answer wins, by compare-and-set.

use super::audit::{Note, note};
use super::db::{Arg, Error, Statement, Tx};
use super::ending::{announce, device_done, rows_of};
use super::fraud;
use super::pushes::{delivery_of, push_of};
use super::{Device, PushRow, Store, maybe_parsed, parsed, receipts};
use crate::audit::Act;
use crate::clock::{Millis, rfc3339};
use crate::crypto::DeviceKey;
use crate::domain::profile::LONGEST_ANSWER;
use crate::domain::{Candidate, DeliveryState, Kind, PushState};
use crate::event::{DeviceEnd, Events};
use crate::id::{DeliveryId, DeviceId, PushId, StoreId, UserId};
use crate::message::{Lane, Message};
use serde_json::json;

/// Wrong codes in a row that one user may type, over all pushes: a new code does not start the count again (NIST SP 800-63B-4, 3.1.3).
const WRONG_CODES: i64 = 5;
/// How long nobody can type a code for this user after that.
const CODES_BLOCKED: Millis = 15 * 60_000;
/// How many refused answers to one push the audit log tells one by one.
const REFUSALS: i64 = 20;
/// How many prompts a device is shown at once.
const PROMPTS: i64 = 50;

static OPEN: Statement = Statement::new(
    "SELECT p.*, u.preferred_device, d.state AS delivery_state FROM pushes p JOIN users u ON u.id = p.user_id
     LEFT JOIN deliveries d ON d.push_id = p.id AND d.device_id = $5
     WHERE p.user_id = $1 AND p.rp = $2 AND COALESCE(p.ended_at, 0) = 0 AND p.expires_at + 0 > $3 AND p.state IN ('accepted', 'pending')
       AND (p.state = 'accepted' AND p.batch_id IS NULL OR p.state = 'pending' AND p.batch_id IS NOT NULL OR d.id IS NOT NULL)
       AND (d.id IS NULL OR d.state <> 'answered') ORDER BY p.id DESC LIMIT $4",
);
static FOR_DEVICE: Statement = Statement::new(
    "SELECT p.*, u.preferred_device FROM pushes p JOIN users u ON u.id = p.user_id WHERE p.id = $1 AND p.user_id = $2 AND p.rp = $3
       AND (p.state <> 'accepted' OR p.batch_id IS NULL)",
);
static SIBLINGS: Statement = Statement::new(
    "SELECT id, created_at FROM devices WHERE user_id = $1 AND rp = $2 AND state = 'active'",
);
static HAS_DELIVERY: Statement =
    Statement::new("SELECT 1 AS one FROM deliveries WHERE push_id = $1 AND device_id = $2");
// The push is held while it is written: an end at the same moment then finds this delivery, or this finds the end.
static FETCHED: Statement = Statement::new(
    "INSERT INTO deliveries (id, push_id, device_id, state, reason, attempt, due_at, created_at, updated_at, fetched_at)
     SELECT r.value->>'id', p.id, $2, 'fetched', '', 0, $3, $3, $3, $3 FROM {each:$1} JOIN pushes p ON p.id = r.value->>'push'
     WHERE p.id {among:$1 push} AND COALESCE(p.ended_at, 0) = 0 AND p.expires_at + 0 > $3 {share:p}
     ON CONFLICT (push_id, device_id) DO UPDATE SET state = 'fetched', updated_at = excluded.updated_at, fetched_at = COALESCE(deliveries.fetched_at, excluded.fetched_at)
       WHERE deliveries.state NOT IN ('fetched', 'answered', 'withdrawn', 'expired')",
);
static DECIDE: Statement = Statement::new(
    "UPDATE pushes SET state = $2, reason = $3, ended_at = $4, answered_by = $5, proof_hash = $6, escalate_at = NULL,
       factors = CASE WHEN $2 = 'denied' THEN NULL WHEN $7 = 1 AND (SELECT f.multi_factor FROM devices f WHERE f.id = $5) = 1 THEN 'multi' ELSE 'single' END
     WHERE id = $1 AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $4 AND created_at + 0 > $8 AND state IN ('accepted', 'pending')
       AND EXISTS (SELECT 1 FROM devices v WHERE v.id = $5 AND v.state = 'active') RETURNING *",
);
static LOCK: Statement = Statement::new(
    "UPDATE pushes SET state = state WHERE id = $1 AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $2 AND state IN ('accepted', 'pending')
     RETURNING *",
);
static ANSWERED: Statement = Statement::new(
    "INSERT INTO deliveries (id, push_id, device_id, state, reason, attempt, due_at, created_at, updated_at, decision, proof_hash)
     VALUES ($1, $2, $3, 'answered', '', 0, $4, $4, $4, $5, $6)
     ON CONFLICT (push_id, device_id) DO UPDATE SET state = 'answered', updated_at = excluded.updated_at, decision = excluded.decision,
       proof_hash = excluded.proof_hash WHERE deliveries.state NOT IN ('answered', 'withdrawn', 'expired') RETURNING *",
);
static ANSWERS: Statement =
    Statement::new("SELECT device_id FROM deliveries WHERE push_id = $1 AND state = 'answered'");
static PREFERRED: Statement = Statement::new("SELECT preferred_device FROM users WHERE id = $1");
static COMPLETE: Statement = Statement::new(
    "UPDATE pushes SET state = 'completed', reason = 'all_answered', ended_at = $2, escalate_at = NULL WHERE id = $1 AND COALESCE(ended_at, 0) = 0 RETURNING *",
);
// The user's open pushes first, as everywhere, then the user.
static OPEN_OF_USER: Statement = Statement::new(
    "SELECT id FROM pushes WHERE user_id = (SELECT o.user_id FROM pushes o WHERE o.id = $1) AND COALESCE(ended_at, 0) = 0 ORDER BY id {lock}",
);
static WRONG_CODE: Statement = Statement::new(
    "UPDATE pushes SET wrong_codes = wrong_codes + 1 WHERE id = $1 AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $2 RETURNING user_id, store_id",
);
static REFUSED: Statement = Statement::new(
    "UPDATE pushes SET refused_proofs = refused_proofs + 1 WHERE id = $1 AND store_id = $2 RETURNING refused_proofs",
);
static COUNT_CODE: Statement = Statement::new(
    "UPDATE users SET code_failures = code_failures + 1,
       codes_blocked_until = CASE WHEN code_failures + 1 >= $2 THEN $3 ELSE codes_blocked_until END
     WHERE id = $1 RETURNING code_failures",
);
static CODES_SPENT: Statement = Statement::new(
    "UPDATE pushes SET state = 'failed', reason = 'code_attempts', ended_at = $2, escalate_at = NULL
     WHERE user_id = $1 AND match_required = 1 AND COALESCE(ended_at, 0) = 0 RETURNING *",
);
static APPROVED: Statement = Statement::new(
    "UPDATE users SET last_approved_at = $3, code_failures = CASE WHEN $2 = 1 THEN 0 ELSE code_failures END,
       codes_blocked_until = CASE WHEN $2 = 1 THEN NULL ELSE codes_blocked_until END WHERE id = $1",
);
// Only whoever has just ended the push writes here, and takes nothing that others hold after it.
static DENIED: Statement = Statement::new(
    "INSERT INTO denials (user_id, rp, denied_at) VALUES ($1, $2, $3) ON CONFLICT (user_id, rp) DO UPDATE SET denied_at = excluded.denied_at",
);
static STORED: Statement =
    Statement::new("SELECT * FROM deliveries WHERE push_id = $1 AND device_id = $2");

/// A push as one of its devices may see it.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The push.
    pub push: PushRow,
    /// Does its delivery say already that the device has it?
    pub seen: bool,
}

/// A verified answer.
#[derive(Debug, Clone)]
pub struct Answer<'a> {
    /// What was answered.
    pub push: &'a PushId,
    /// Its kind.
    pub kind: Kind,
    /// By whom.
    pub device: &'a DeviceId,
    /// Yes or no.
    pub approves: bool,
    /// `user_approved`, or the reason of a denial.
    pub reason: &'a str,
    /// Does the proof say that the device verified its user?
    pub verified: bool,
    /// The hash of the proof: the same proof again gets the same answer.
    pub proof_hash: &'a str,
    /// The proof, and the key that it was checked with: kept for the receipt.
    pub proof: &'a str,
    /// See `proof`.
    pub key: &'a DeviceKey,
}

/// What became of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// It counted, or had counted before.
    Counted {
        /// The push's state now.
        state: PushState,
        /// Why.
        reason: String,
    },
    /// The push has already ended otherwise.
    Ended {
        /// How.
        state: PushState,
        /// Why.
        reason: String,
    },
    /// Too late by our clock.
    TooLate,
}

impl Store {
    async fn siblings(&self, device: &Device) -> Result<Vec<Candidate>, Error> {
        let args = [Arg::Text(device.user.as_str()), Arg::Text(&device.rp)];
        candidates(&self.db.fetch(&SIBLINGS, &args).await?)
    }

    /// What waits for a device, newest first, whether or not its wake-up ever came.
    pub async fn prompts(&self, device: &Device, now: Millis) -> Result<Vec<Prompt>, Error> {
        let args = [
            Arg::Text(device.user.as_str()),
            Arg::Text(&device.rp),
            Arg::Int(now),
            Arg::Int(PROMPTS),
            Arg::Text(device.id.as_str()),
        ];
        let rows = self.db.fetch(&OPEN, &args).await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let active = self.siblings(device).await?;
        let mut prompts = Vec::new();
        for row in &rows {
            let push = push_of(row)?;
            let preferred: Option<DeviceId> = maybe_parsed(row, "preferred_device")?;
            let chosen = push.target.chosen(&active, preferred.as_ref());
            let state: Option<DeliveryState> = maybe_parsed(row, "delivery_state")?;
            // Once it was fanned out, the deliveries say who is asked; those of a chunk are written after the call.
            let asked = state.is_some() || chosen.iter().any(|one| one.device == device.id);
            if asked {
                let seen = state == Some(DeliveryState::Fetched);
                prompts.push(Prompt { push, seen });
            }
        }
        Ok(prompts)
    }

    /// One push, if this device is among those asked.
    pub async fn prompt(&self, device: &Device, push: &PushId) -> Result<Option<Prompt>, Error> {
        let args = [
            Arg::Text(push.as_str()),
            Arg::Text(device.user.as_str()),
            Arg::Text(&device.rp),
        ];
        let rows = self.db.fetch(&FOR_DEVICE, &args).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let found = push_of(row)?;
        let preferred: Option<DeviceId> = maybe_parsed(row, "preferred_device")?;
        let active = self.siblings(device).await?;
        let chosen = found.target.chosen(&active, preferred.as_ref());
        let unwritten = found.state == PushState::Accepted
            || (found.state == PushState::Pending && found.lane == Lane::Bulk);
        if unwritten && chosen.iter().any(|one| one.device == device.id) {
            return Ok(Some(Prompt {
                push: found,
                seen: false,
            }));
        }
        let args = [Arg::Text(push.as_str()), Arg::Text(device.id.as_str())];
        let asked = !self.db.fetch(&HAS_DELIVERY, &args).await?.is_empty();
        Ok(asked.then_some(Prompt {
            push: found,
            seen: false,
        }))
    }

    /// The device has seen these prompts.
    pub async fn fetched(
        &self,
        device: &DeviceId,
        pushes: &[&PushId],
        now: Millis,
    ) -> Result<(), Error> {
        if pushes.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = pushes
            .iter()
            .map(|push| {
                let id = DeliveryId::of(push, device);
                serde_json::json!({"id": id, "push": push})
            })
            .collect();
        let rows = super::to_json(&rows);
        let args = [Arg::Text(&rows), Arg::Text(device.as_str()), Arg::Int(now)];
        self.db.write(&FETCHED, &args).await?;
        Ok(())
    }

    /// Counts a wrong code against the user. The last one allowed ends every open push that wants one, and blocks codes for a while. `false`: the
    /// push has ended, so that nothing was tried.
    pub async fn wrong_code(
        &self,
        push: &PushId,
        device: &DeviceId,
        now: Millis,
    ) -> Result<bool, Error> {
        let mut tx = self.db.begin().await?;
        let args = [Arg::Text(push.as_str()), Arg::Int(now)];
        tx.fetch(&OPEN_OF_USER, &args[..1]).await?;
        let rows = tx.fetch(&WRONG_CODE, &args).await?;
        let Some(row) = rows.first() else {
            return Ok(false);
        };
        let (user, store): (UserId, StoreId) = (parsed(row, "user_id")?, parsed(row, "store_id")?);
        let args = [
            Arg::Text(user.as_str()),
            Arg::Int(WRONG_CODES),
            Arg::Int(now + CODES_BLOCKED),
        ];
        let counted = tx.fetch(&COUNT_CODE, &args).await?;
        let failures = counted
            .first()
            .map_or(Ok(0), |row| row.int("code_failures"))?;
        let wrong = Note::new(&store, Act::WrongCode).push(push).user(&user);
        let wrong = wrong.device(device).facts(json!({"in_a_row": failures}));
        note(&mut tx, &[wrong], now).await?;
        let mut messages = Vec::new();
        if failures >= WRONG_CODES {
            let until = json!({"until": rfc3339(now + CODES_BLOCKED)});
            let blocked = Note::new(&store, Act::CodesBlocked).user(&user);
            note(&mut tx, &[blocked.facts(until)], now).await?;
            let args = [Arg::Text(user.as_str()), Arg::Int(now)];
            let ended = rows_of(&tx.fetch(&CODES_SPENT, &args).await?);
            messages = announce(&mut tx, &ended, &[], now).await?;
        }
        self.commit(tx, messages, now).await?;
        Ok(true)
    }

    /// Notes what was refused about a push of `store`: what is precise here is one and the same answer for the caller. The first ones of a push are written
    /// one by one, then they are only counted, so that garbage cannot fill the log.
    pub async fn refused(
        &self,
        act: Act,
        store: &StoreId,
        push: &PushId,
        device: Option<&DeviceId>,
        fault: &str,
        now: Millis,
    ) -> Result<(), Error> {
        let mut tx = self.db.begin().await?;
        let args = [Arg::Text(push.as_str()), Arg::Text(store.as_str())];
        let rows = tx.fetch(&REFUSED, &args).await?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let act = match row.int("refused_proofs")? - REFUSALS {
            ..=0 => Some((act, json!({"fault": fault}))),
            1 => Some((Act::ProofsMuted, json!({"after": REFUSALS}))),
            2.. => None,
        };
        if let Some((act, facts)) = act {
            let refused = Note::new(store, act).push(push).device(device);
            note(&mut tx, &[refused.facts(facts)], now).await?;
        }
        tx.commit().await
    }

    /// Lets a verified answer count, once.
    pub async fn answer(&self, answer: &Answer<'_>, now: Millis) -> Result<Answered, Error> {
        let mut tx = self.db.begin().await?;
        let delivery = DeliveryId::of(answer.push, answer.device);
        crate::crash::point("D1");
        let (push, messages) = match answer.kind {
            Kind::Confirm | Kind::Process => {
                let state = if answer.approves {
                    PushState::Approved
                } else {
                    PushState::Denied
                };
                let args = [
                    Arg::Text(answer.push.as_str()),
                    Arg::Text(state.as_str()),
                    Arg::Text(answer.reason),
                    Arg::Int(now),
                    Arg::Text(answer.device.as_str()),
                    Arg::Text(answer.proof_hash),
                    Arg::Int(i64::from(answer.verified)),
                    Arg::Int(now - LONGEST_ANSWER),
                ];
                let ended = rows_of(&tx.fetch(&DECIDE, &args).await?);
                if ended.is_empty() {
                    drop(tx);
                    return self.stored_answer(answer, now).await;
                }
                mark_answered(&mut tx, &delivery, answer, now).await?;
                receipts::keep_proof(&mut tx, answer).await?;
                let mut messages = match ended.first() {
                    Some(push) => remember(&mut tx, push, answer, now).await?,
                    None => Vec::new(),
                };
                messages.extend(announce(&mut tx, &ended, &[delivery.as_str()], now).await?);
                (ended, messages)
            }
            Kind::Generic => {
                let args = [Arg::Text(answer.push.as_str()), Arg::Int(now)];
                let open = rows_of(&tx.fetch(&LOCK, &args).await?);
                let end = match open.first() {
                    Some(_) => mark_answered(&mut tx, &delivery, answer, now).await?,
                    None => None,
                };
                let (Some(push), Some(end)) = (open.first(), end) else {
                    drop(tx);
                    return self.stored_answer(answer, now).await;
                };
                let mut events = Events::default();
                events.device_done(&device_done(push, &end), now);
                let mut messages = events.into_messages(now);
                if all_answered(&mut tx, push).await? {
                    let ended = rows_of(&tx.fetch(&COMPLETE, &args).await?);
                    messages.extend(announce(&mut tx, &ended, &[], now).await?);
                    (ended, messages)
                } else {
                    (open, messages)
                }
            }
        };
        if let Some(push) = push.first().filter(|_| answer.reason == "fraud_reported") {
            let fraud = Note::new(&push.store, Act::FraudReported).push(&push.id);
            let fraud = fraud.user(&push.user).device(answer.device);
            note(&mut tx, &[fraud], now).await?;
        }
        self.commit(tx, messages, now).await?;
        crate::crash::point("D2");
        let (state, reason) = push
            .into_iter()
            .next()
            .map_or((PushState::Pending, String::new()), |push| {
                (push.state, push.reason)
            });
        Ok(Answered::Counted { state, reason })
    }

    /// What to tell somebody whose answer came second.
    async fn stored_answer(&self, answer: &Answer<'_>, now: Millis) -> Result<Answered, Error> {
        let Some(push) = self.push(answer.push).await? else {
            return Ok(Answered::TooLate);
        };
        let args = [
            Arg::Text(answer.push.as_str()),
            Arg::Text(answer.device.as_str()),
        ];
        let mine = self.db.fetch(&STORED, &args).await?;
        let mine = mine.first().map(delivery_of).transpose()?;
        let same = mine.is_some_and(|row| row.proof_hash.as_deref() == Some(answer.proof_hash));
        let (state, reason) = (push.state, push.reason);
        Ok(if same {
            Answered::Counted { state, reason }
        } else if state == PushState::Expired
            || (!state.is_terminal()
                && (push.expires_at <= now || push.created_at + LONGEST_ANSWER <= now))
        {
            Answered::TooLate
        } else {
            Answered::Ended { state, reason }
        })
    }
}

/// What the governor is to know of a decision. Gives the messages that a fraud report brings.
async fn remember(
    tx: &mut Tx,
    push: &PushRow,
    answer: &Answer<'_>,
    now: Millis,
) -> Result<Vec<Message>, Error> {
    let user = Arg::Text(push.user.as_str());
    if answer.approves {
        let coded = Arg::Int(i64::from(push.match_required));
        tx.fetch(&APPROVED, &[user, coded, Arg::Int(now)]).await?;
    } else if push.lane == Lane::Interactive {
        // Somebody who declines an advertisement has not said no to a sign-in.
        let args = [user, Arg::Text(&push.rp), Arg::Int(now)];
        tx.fetch(&DENIED, &args).await?;
        if answer.reason == "fraud_reported" {
            return fraud::reported(tx, push, answer.device, now).await;
        }
    }
    Ok(Vec::new())
}

/// Has every device that this push asks answered, those too that it has not reached yet?
async fn all_answered(tx: &mut Tx, push: &PushRow) -> Result<bool, Error> {
    let user = [Arg::Text(push.user.as_str()), Arg::Text(&push.rp)];
    let active = tx.fetch(&SIBLINGS, &user).await?;
    let active = candidates(&active)?;
    let preferred = tx.fetch(&PREFERRED, &user[..1]).await?;
    let preferred = match preferred.first() {
        Some(row) => maybe_parsed::<DeviceId>(row, "preferred_device")?,
        None => None,
    };
    let answered = tx.fetch(&ANSWERS, &[Arg::Text(push.id.as_str())]).await?;
    let answered: Vec<String> = answered
        .iter()
        .map(|row| row.text("device_id"))
        .collect::<Result<_, _>>()?;
    let asked = push.target.chosen(&active, preferred.as_ref());
    Ok(asked
        .iter()
        .all(|one| answered.iter().any(|device| device == one.device.as_str())))
}

fn candidates(rows: &[super::db::Row]) -> Result<Vec<Candidate>, Error> {
    rows.iter()
        .map(|row| {
            Ok(Candidate {
                device: parsed(row, "id")?,
                created_at: row.int("created_at")?,
            })
        })
        .collect()
}

async fn mark_answered(
    tx: &mut Tx,
    delivery: &DeliveryId,
    answer: &Answer<'_>,
    now: Millis,
) -> Result<Option<DeviceEnd>, Error> {
    let decision = if answer.approves { "approve" } else { "deny" };
    let args = [
        Arg::Text(delivery.as_str()),
        Arg::Text(answer.push.as_str()),
        Arg::Text(answer.device.as_str()),
        Arg::Int(now),
        Arg::Text(decision),
        Arg::Text(answer.proof_hash),
    ];
    let rows = tx.fetch(&ANSWERED, &args).await?;
    rows.first()
        .map(|row| delivery_of(row).map(DeviceEnd::from))
        .transpose()
}
