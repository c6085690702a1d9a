//! Claiming deliveries: who holds the lease calls the provider.
//!
//! Statements that look rows up by their identifiers hide the conditions of the partial indexes behind `+ 0`, `|| ''` and `COALESCE`: with old
//! statistics PostgreSQL takes such an index for empty, and would compare every open row with every identifier.
//!
//! A claim moves a delivery to `sending`, counts the attempt and sets a lease. The attempt fences everything after it: a result is
//! written only while it is still the last one. A job that comes twice claims nothing the second time; a job whose worker died is
//! found by the sweep once the lease has run out.

use super::db::{Arg, Asked, Error, Row, Rows, Statement, Tx};
use super::{Store, ending, json, maybe_parsed, parsed, record, to_json};
use crate::broker::tier_for;
use crate::clock::Millis;
use crate::domain::{AddressState, Candidate, DeliveryState, Kind, Provider, Target, UserStatus};
use crate::id::{DeliveryId, DeviceId, PushId, StoreId};
use crate::message::{Job, Lane, Message, RetryOf, Route, VERSION};
use crate::secret::Secret;
use serde_json::json;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

/// A retry that comes this much too early is due all the same: a tier's clock is not ours.
const EARLY: Millis = 1_000;

// Every transaction that touches deliveries of several pushes takes the pushes first, in one order, so that none waits in a circle.
static LOCK: Statement = Statement::new(
    "SELECT COUNT(*) AS n FROM (SELECT id FROM pushes WHERE id {in:$1} ORDER BY id {lock}) AS l",
);
// The limit keeps the condition outside: those that have not ended are to be locked too.
static LOCK_AND_TELL_ENDED: Statement = Statement::new(
    "SELECT l.id, l.state FROM (SELECT id, state, ended_at FROM pushes WHERE id {in:$1} ORDER BY id
       LIMIT 1000000 {lock}) AS l WHERE l.ended_at IS NOT NULL",
);
static PUSHES_OF: Statement = Statement::new(
    "SELECT DISTINCT d.push_id FROM {each:$1} JOIN deliveries d ON d.id = r.value->>'delivery' WHERE d.id {among:$1 delivery}",
);
static ESCALATED: Statement =
    Statement::new("UPDATE pushes SET target = $2, escalate_at = NULL WHERE id {in:$1}");
static BEGIN: Statement = Statement::new(
    "UPDATE pushes SET state = 'pending', fan_out_due = NULL WHERE id {in:$1}
       AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $2 AND state IN ('accepted', 'pending') RETURNING id",
);
pub(super) static ASKED: Statement = Statement::new(
    "SELECT p.id, p.store_id, p.rp, p.kind, p.lane, p.target, p.expires_at, p.traceparent, u.preferred_device, u.status,
       d.id AS device_id, d.created_at AS device_created_at, d.address_state, d.address_provider, d.address, d.address_registered_at,
       pp.updated_at AS policy_version, CAST(CASE WHEN pp.apns IS NULL THEN 0 ELSE 1 END AS BIGINT) AS apns,
       CAST(CASE WHEN pp.fcm IS NULL THEN 0 ELSE 1 END AS BIGINT) AS fcm
     FROM pushes p JOIN users u ON u.id = p.user_id || ''
     LEFT JOIN devices d ON d.user_id = p.user_id || '' AND d.rp = p.rp AND d.state = 'active'
     LEFT JOIN push_policies pp ON pp.store_id = p.store_id || '' AND pp.rp = p.rp WHERE p.id {in:$1} AND COALESCE(p.ended_at, 0) = 0",
);
static CLAIM: Statement = Statement::new(
    "INSERT INTO deliveries (id, push_id, device_id, state, reason, attempt, due_at, created_at, updated_at)
     SELECT r.id, r.push_id, r.device_id, r.state, r.reason, r.attempt, $2, $1, $1
     FROM {rows:3 id push_id device_id state reason attempt:int} WHERE (SELECT COALESCE(p.ended_at, 0) FROM pushes p WHERE p.id = r.push_id) = 0
     ON CONFLICT (push_id, device_id) DO UPDATE SET state = 'sending', attempt = deliveries.attempt + 1, due_at = excluded.due_at,
       updated_at = excluded.updated_at
       WHERE excluded.state = 'sending' AND (deliveries.state = 'queued' OR (deliveries.state = 'sending' AND deliveries.due_at <= $1))
     RETURNING id, attempt, calls, state",
);
static CLAIM_RETRY: Statement = Statement::new(
    "UPDATE deliveries SET state = 'sending', attempt = attempt + 1, due_at = $3, updated_at = $2 FROM {each:$1}
     WHERE deliveries.id = r.value->>'delivery' AND deliveries.id {among:$1 delivery} AND attempt = CAST(r.value->>'attempt' AS BIGINT) AND state || '' = 'retry_wait' AND due_at + 0 <= $4
       AND EXISTS (SELECT 1 FROM pushes p WHERE p.id = push_id AND COALESCE(p.ended_at, 0) = 0 AND p.expires_at + 0 > $2
         AND p.state IN ('accepted', 'pending'))
     RETURNING deliveries.id, attempt, calls",
);
static EARLY_ONES: Statement = Statement::new(
    "SELECT d.id, d.attempt, d.due_at, p.store_id, p.lane FROM {each:$1}
     JOIN deliveries d ON d.id = r.value->>'delivery' AND d.attempt = CAST(r.value->>'attempt' AS BIGINT) AND d.state || '' = 'retry_wait'
       AND d.due_at + 0 > $2 AND d.id {among:$1 delivery}
     JOIN pushes p ON p.id = d.push_id AND COALESCE(p.ended_at, 0) = 0",
);
static RETRIED: Statement = Statement::new(
    "SELECT d.id AS delivery_id, p.id, p.store_id, p.rp, p.kind, p.lane, p.expires_at, p.traceparent,
       v.id AS device_id, v.address_state, v.address_provider, v.address, v.address_registered_at, v.state AS device_state,
       pp.updated_at AS policy_version, CAST(CASE WHEN pp.apns IS NULL THEN 0 ELSE 1 END AS BIGINT) AS apns,
       CAST(CASE WHEN pp.fcm IS NULL THEN 0 ELSE 1 END AS BIGINT) AS fcm
     FROM deliveries d JOIN pushes p ON p.id = d.push_id JOIN devices v ON v.id = d.device_id
     LEFT JOIN push_policies pp ON pp.store_id = p.store_id AND pp.rp = p.rp WHERE d.id {in:$1}",
);
static SKIP: Statement = Statement::new(
    "UPDATE deliveries SET state = 'failed', reason = r.value->>'reason', updated_at = $2 FROM {each:$1}
     WHERE deliveries.id = r.value->>'id' AND deliveries.id {among:$1 id} AND state || '' = 'sending'",
);

/// What jobs ask for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Pushes to fan out.
    pub pushes: Vec<PushId>,
    /// Deliveries to try again.
    pub retries: Vec<RetryOf>,
}

/// One call to a provider that is ours to make.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The fence: grows with every claim.
    pub attempt: u32,
    /// How often the provider was called before.
    pub calls: u32,
    /// The push.
    pub push: PushId,
    /// Its store.
    pub store: StoreId,
    /// Its relying party.
    pub rp: String,
    /// Its kind.
    pub kind: Kind,
    /// How urgent.
    pub lane: Lane,
    /// The device.
    pub device: DeviceId,
    /// Through whom.
    pub provider: Provider,
    /// The provider's token.
    pub token: Secret,
    /// When it was registered.
    pub registered_at: Millis,
    /// Which version of the push policy holds the credential.
    pub policy_version: Millis,
    /// Until when an answer counts.
    pub expires_at: Millis,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Its row is written with the result (`bulk.rs`).
    pub unwritten: bool,
}

/// What was claimed.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// The calls to make.
    pub claimed: Vec<Claimed>,
}

/// Where a wake-up would go, or why it cannot.
fn address_of(row: &Row) -> Result<Result<(Provider, Secret), &'static str>, Error> {
    let state: AddressState = parsed(row, "address_state")?;
    let provider: Option<Provider> = maybe_parsed(row, "address_provider")?;
    let (Some(provider), Some(token), AddressState::Valid) =
        (provider, row.maybe_text("address")?, state)
    else {
        return Ok(Err("no_address"));
    };
    let credential = match provider {
        Provider::Apns => row.int("apns")?,
        Provider::Fcm => row.int("fcm")?,
    };
    if row.maybe_int("policy_version")?.is_none() || credential == 0 {
        return Ok(Err("no_credential"));
    }
    Ok(Ok((provider, Secret::new(token))))
}

fn claimed_of(
    row: &Row,
    delivery: DeliveryId,
    (provider, token): (Provider, Secret),
) -> Result<Claimed, Error> {
    Ok(Claimed {
        delivery,
        attempt: 1,
        calls: 0,
        registered_at: row.maybe_int("address_registered_at")?.unwrap_or(0),
        push: parsed(row, "id")?,
        store: parsed(row, "store_id")?,
        rp: row.text("rp")?,
        kind: parsed(row, "kind")?,
        lane: parsed(row, "lane")?,
        device: parsed(row, "device_id")?,
        provider,
        token,
        policy_version: row.maybe_int("policy_version")?.unwrap_or(0),
        expires_at: row.int("expires_at")?,
        traceparent: row.maybe_text("traceparent")?,
        unwritten: false,
    })
}

/// What is to be done for the pushes of one claim.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) send: Vec<Claimed>,
    /// The rows of the deliveries that are written before the call, and of those without one.
    pub(super) rows: Rows,
    /// Pushes of which a device is skipped.
    pub(super) skipped: Vec<PushId>,
    /// Pushes whose user has no device.
    pub(super) nobody: Vec<PushId>,
    /// Pushes whose user may not be asked any more.
    pub(super) blocked: Vec<PushId>,
    /// Pushes whose preferred device cannot be woken.
    pub(super) escalated: Vec<PushId>,
}

impl Plan {
    /// Is there nothing to do but to write deliveries and to send some of them?
    fn only_sends(&self) -> bool {
        self.rows.count() > 0
            && self.nobody.is_empty()
            && self.blocked.is_empty()
            && self.escalated.is_empty()
    }
}

/// The deliveries of one push. `written`: there is a row before the call.
fn plan(rows: &[&Row], written: bool, plan: &mut Plan) -> Result<(), Error> {
    let Some(first) = rows.first() else {
        return Ok(());
    };
    let push: PushId = parsed(first, "id")?;
    if parsed::<UserStatus>(first, "status")? != UserStatus::Active {
        plan.blocked.push(push);
        return Ok(());
    }
    let mut target: Target = json(first, "target")?;
    let preferred: Option<DeviceId> = maybe_parsed(first, "preferred_device")?;
    let mut active = Vec::new();
    let mut by_device = HashMap::new();
    for row in rows {
        if let Some(device) = maybe_parsed::<DeviceId>(row, "device_id")? {
            by_device.insert(device.clone(), *row);
            active.push(Candidate {
                created_at: row.int("device_created_at")?,
                device,
            });
        }
    }
    let chosen = target.chosen(&active, preferred.as_ref());
    if target.escalate_after().is_some()
        && let [only] = chosen.as_slice()
        && let Some(row) = by_device.get(&only.device)
        && address_of(row)?.is_err()
    {
        // The preferred device cannot be woken: that is the hard failure which the others were to be asked after.
        target = Target::All;
        plan.escalated.push(push.clone());
    }
    let chosen = target.chosen(&active, preferred.as_ref());
    for one in &chosen {
        let Some(row) = by_device.get(&one.device) else {
            continue;
        };
        let id = DeliveryId::of(&push, &one.device);
        let (state, reason, attempt) = match address_of(row)? {
            Ok(address) => {
                let mut claimed = claimed_of(row, id.clone(), address)?;
                claimed.unwritten = !written;
                plan.send.push(claimed);
                (DeliveryState::Sending, "", 1)
            }
            Err(reason) => {
                plan.skipped.push(push.clone());
                (DeliveryState::Skipped, reason, 0)
            }
        };
        if written || state == DeliveryState::Skipped {
            plan.rows
                .row()
                .text(id.as_str())
                .text(push.as_str())
                .text(one.device.as_str())
                .text(state.as_str())
                .text(reason)
                .int(attempt);
        }
    }
    if chosen.is_empty() {
        plan.nobody.push(push);
    }
    Ok(())
}

/// Messages that bring retries back: one for each store, lane and tier.
pub(super) fn retry_jobs(
    retries: impl Iterator<Item = (StoreId, Lane, Millis, RetryOf)>,
    now: Millis,
) -> Vec<Message> {
    let mut groups: BTreeMap<(StoreId, &str, u32), (Route, Vec<RetryOf>)> = BTreeMap::new();
    for (store, lane, after, retry) in retries {
        let (route, seconds) = if after <= 0 {
            (Route::Jobs(lane), 0)
        } else {
            let tier = tier_for(Duration::from_millis(after.unsigned_abs()));
            (Route::Later(tier, lane), tier.seconds)
        };
        let group = groups
            .entry((store, lane.as_str(), seconds))
            .or_insert((route, Vec::new()));
        group.1.push(retry);
    }
    groups
        .into_iter()
        .flat_map(|((store, _, _), (route, retries))| {
            let messages: Vec<_> = retries
                .chunks(100)
                .map(|part| {
                    let job = Job {
                        v: VERSION,
                        store: store.clone(),
                        pushes: vec![],
                        retries: part.to_vec(),
                        chunk: None,
                    };
                    job.into_message(route.clone(), now)
                })
                .collect();
            messages
        })
        .collect()
}

impl Store {
    /// Claims what `wanted` asks for and nobody else holds, until `now + lease`. Pushes without any device end here.
    pub async fn claim(&self, wanted: &Wanted, now: Millis, lease: Millis) -> Result<Claim, Error> {
        if wanted.pushes.is_empty() && wanted.retries.is_empty() {
            return Ok(Claim::default());
        }
        let mut tx = self.db.begin_repeatable().await?;
        let mut messages = Vec::new();
        let mut claimed = Vec::new();
        if !wanted.pushes.is_empty() {
            let plan = begin_fan_out(&mut tx, &wanted.pushes, now).await?;
            if wanted.retries.is_empty() && plan.only_sends() {
                let args = claim_args(&plan.rows, now, lease);
                let won = tx.fetch_last(&CLAIM, &args).await?;
                let claimed = keep_won(plan.send, &won)?;
                return Ok(Claim { claimed });
            }
            claimed = fan_out(&mut tx, plan, now, lease, &mut messages).await?;
        }
        if !wanted.retries.is_empty() {
            claimed.extend(retry(&mut tx, &wanted.retries, now, lease, &mut messages).await?);
        }
        self.commit(tx, messages, now).await?;
        Ok(Claim { claimed })
    }
}

/// Locks pushes, in the order of their identifiers.
pub(super) fn lock(tx: &mut Tx, pushes: &[impl serde::Serialize]) -> Result<(), Error> {
    if !tx.is_alone() {
        tx.send(&LOCK, &[Arg::Text(&to_json(&pushes))])?;
    }
    Ok(())
}

/// Locks pushes, in the order of their identifiers. Gives the identifiers and states of those that have ended.
pub(super) async fn lock_and_tell_ended(
    tx: &mut Tx,
    pushes: &[impl serde::Serialize],
) -> Result<Vec<Row>, Error> {
    let ids = to_json(&pushes);
    tx.fetch(&LOCK_AND_TELL_ENDED, &[Arg::Text(&ids)]).await
}

/// Begins with pushes that are open: what is to be done for them.
async fn begin_fan_out(tx: &mut Tx, pushes: &[PushId], now: Millis) -> Result<Plan, Error> {
    let mut ids: Vec<&PushId> = pushes.iter().collect();
    ids.sort();
    ids.dedup();
    if ids.len() > 1 {
        // One alone is locked by its change.
        lock(tx, &ids)?;
    }
    let ids = to_json(&ids);
    let begin = [Arg::Text(&ids), Arg::Int(now)];
    let asked: [Asked<'_>; 2] = [(&BEGIN, &begin), (&ASKED, &begin[..1])];
    let [open, asked] = tx.fetch_all(asked).await?;
    let open: HashSet<String> = ids_of(&open)?.into_iter().collect();
    planned(&asked, Some(&open))
}

async fn fan_out(
    tx: &mut Tx,
    planned: Plan,
    now: Millis,
    lease: Millis,
    messages: &mut Vec<Message>,
) -> Result<Vec<Claimed>, Error> {
    for (pushes, reason) in [
        (&planned.nobody, "no_devices"),
        (&planned.blocked, "user_blocked"),
    ] {
        if !pushes.is_empty() {
            messages.extend(ending::fail(tx, pushes, reason, now).await?);
        }
    }
    widen(tx, &planned.escalated)?;
    let won = write(tx, &planned.rows, now, lease).await?;
    keep_won(planned.send, &won)
}

pub(super) fn ids_of(rows: &[Row]) -> Result<Vec<String>, Error> {
    rows.iter().map(|row| row.text("id")).collect()
}

/// What is to be done for the pushes that these rows tell of. `begun`: only for these, each of whose deliveries is written before its call.
pub(super) fn planned(rows: &[Row], begun: Option<&HashSet<String>>) -> Result<Plan, Error> {
    let mut planned = Plan::default();
    let mut by_push: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let push = row.text("id")?;
        if begun.is_none_or(|begun| begun.contains(&push)) {
            by_push.entry(push).or_default().push(row);
        }
    }
    let written = begun.is_some();
    for (push, rows) in &by_push {
        match plan(rows, written, &mut planned) {
            Err(error) if !written => {
                // It is found again as one that was not sent, and its job is parked with the reason.
                tracing::error!(push, %error, "a push of a batch cannot be read");
            }
            result => result?,
        }
    }
    Ok(planned)
}

/// Asks all devices of these pushes.
pub(super) fn widen(tx: &mut Tx, pushes: &[PushId]) -> Result<(), Error> {
    if pushes.is_empty() {
        return Ok(());
    }
    let all = to_json(&Target::All);
    let args = [Arg::Text(&to_json(&pushes)), Arg::Text(&all)];
    tx.send(&ESCALATED, &args)
}

/// Writes deliveries as they are before a call. Gives those that are won by it.
pub(super) async fn write(
    tx: &mut Tx,
    deliveries: &Rows,
    now: Millis,
    lease: Millis,
) -> Result<Vec<Row>, Error> {
    if deliveries.count() == 0 {
        return Ok(Vec::new());
    }
    tx.fetch(&CLAIM, &claim_args(deliveries, now, lease)).await
}

fn claim_args(deliveries: &Rows, now: Millis, lease: Millis) -> [Arg<'_>; 3] {
    [Arg::Int(now), Arg::Int(now + lease), Arg::Rows(deliveries)]
}

/// Of `send` those that this transaction has won, with their attempt.
fn keep_won(send: Vec<Claimed>, won: &[Row]) -> Result<Vec<Claimed>, Error> {
    let mut attempts = HashMap::new();
    for row in won {
        attempts.insert(row.text("id")?, (row.int("attempt")?, row.int("calls")?));
    }
    Ok(send
        .into_iter()
        .filter_map(|mut one| {
            let (attempt, calls) = attempts.get(one.delivery.as_str())?;
            one.attempt = u32::try_from(*attempt).unwrap_or(u32::MAX);
            one.calls = u32::try_from(*calls).unwrap_or(u32::MAX);
            Some(one)
        })
        .collect())
}

async fn retry(
    tx: &mut Tx,
    retries: &[RetryOf],
    now: Millis,
    lease: Millis,
    messages: &mut Vec<Message>,
) -> Result<Vec<Claimed>, Error> {
    let wanted = to_json(&retries);
    let pushes = tx.fetch(&PUSHES_OF, &[Arg::Text(&wanted)]).await?;
    let pushes: Vec<String> = pushes
        .iter()
        .map(|row| row.text("push_id"))
        .collect::<Result<_, _>>()?;
    lock(tx, &pushes)?;
    let due = now + EARLY;
    let args = [
        Arg::Text(&wanted),
        Arg::Int(now),
        Arg::Int(now + lease),
        Arg::Int(due),
    ];
    let won = tx.fetch(&CLAIM_RETRY, &args).await?;
    if won.len() < retries.len() {
        let early = tx
            .fetch(&EARLY_ONES, &[Arg::Text(&wanted), Arg::Int(due)])
            .await?;
        let early: Vec<_> = early
            .iter()
            .map(|row| {
                let retry = RetryOf {
                    delivery: parsed(row, "id")?,
                    attempt: u32::try_from(row.int("attempt")?).unwrap_or(u32::MAX),
                };
                Ok((
                    parsed(row, "store_id")?,
                    parsed(row, "lane")?,
                    row.int("due_at")? - now,
                    retry,
                ))
            })
            .collect::<Result<_, Error>>()?;
        messages.extend(retry_jobs(early.into_iter(), now));
    }
    if won.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<String> = won
        .iter()
        .map(|row| row.text("id"))
        .collect::<Result<_, _>>()?;
    let rows = tx.fetch(&RETRIED, &[Arg::Text(&to_json(&ids))]).await?;
    let (mut send, mut dropped, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let delivery: DeliveryId = parsed(row, "delivery_id")?;
        let active = row.text("device_state")? == "active";
        match address_of(row)?.and_then(|a| if active { Ok(a) } else { Err("device_blocked") }) {
            Ok(address) => send.push(claimed_of(row, delivery, address)?),
            Err(reason) => {
                lost.push(row.text("id")?);
                dropped.push(json!({"id": delivery, "reason": reason}));
            }
        }
    }
    if !dropped.is_empty() {
        tx.send(&SKIP, &[Arg::Text(&to_json(&dropped)), Arg::Int(now)])?;
        let lost = lost.iter().map(String::as_str).collect();
        messages.extend(record::escalate(tx, &lost, now).await?);
    }
    keep_won(send, &won)
}
