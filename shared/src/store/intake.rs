//! Taking pushes: many in one transaction, each with the outbox row of its job. Only after its commit may a caller be told 202.

use super::db::{Arg, Asked, Error, Row, Rows, Statement, Tx};
use super::fraud::of_initiator;
use super::governor::{Asking, Gate, Settled};
use super::policies::rules_of;
use super::pushes::push_of;
use super::{PushRow, Store, parsed, payments, to_json};
use crate::clock::Millis;
use crate::domain::governor::is_prompt;
use crate::domain::profile::Request;
use crate::domain::{Content, Lack, PaymentItem, Profile, Rules, Target, UserStatus};
use crate::id::{ApprovalId, KeyId, PushId, StoreId, UserId};
use crate::message::{Job, Lane, Message, Route, VERSION};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};

/// How many pushes one job carries at most. An interactive push waits for no other one, so its jobs stay small.
const JOB_INTERACTIVE: usize = 16;
pub(super) const JOB_BULK: usize = 200;

static USERS: Statement = Statement::new(
    "SELECT f.n, u.id, u.status, u.codes_blocked_until, u.last_approved_at, dn.denied_at, pp.max_prompts, pp.open_prompts, pp.cooldown, pp.fraud_lock, pp.profile,
       fi.locked_until AS initiator_until, fu.locked_until AS locked_until
     FROM (SELECT r.value->>'n' AS n, r.value->>'rp' AS rp, r.value->>'key' AS made_by, r.value->>'initiator' AS initiator, u.id FROM {each:$1} JOIN users u
         ON u.store_id = r.value->>'store' AND u.id = r.value->>'user'
       UNION ALL
       SELECT r.value->>'n', r.value->>'rp', r.value->>'key', r.value->>'initiator', u.id FROM {each:$2} JOIN users u
         ON u.store_id = r.value->>'store' AND u.external_id = r.value->>'user') AS f
     JOIN users u ON u.id = f.id
     LEFT JOIN push_policies pp ON pp.store_id = u.store_id AND pp.rp = f.rp
     LEFT JOIN denials dn ON dn.user_id = f.id AND dn.rp = f.rp
     LEFT JOIN fraud_locks fi ON fi.store_id = u.store_id AND fi.created_by = f.made_by AND fi.subject = f.initiator
     LEFT JOIN fraud_locks fu ON fu.store_id = u.store_id AND fu.created_by = f.made_by AND fu.subject = 'user:' || f.id || ':' || f.rp",
);
static KNOWN: Statement = Statement::new(
    "SELECT p.*, p.idem_key AS used_key, p.idem_hash AS used_hash FROM {each:$1}
     JOIN pushes p ON p.store_id || '' = r.value->>'store' AND p.idem_key = r.value->>'key'
     WHERE p.idem_key {among:$1 key}",
);
macro_rules! insert {
    ($then:literal) => {
        Statement::new(concat!(
    "INSERT INTO pushes (id, store_id, user_id, rp, kind, lane, state, reason, target, nonce, content, content_hash, match_required,
       wrong_codes, idem_key, idem_hash, reply_to, correlation_id, traceparent, token_hash, escalate_at, created_at, expires_at,
       fan_out_due, profile, created_by, initiator, approval_id, definition, parameters, max_duration, not_before, not_after, expire_due)
     SELECT r.id, r.store_id, r.user_id, r.rp, r.kind, r.lane, 'accepted', '', r.target, r.nonce, r.content, r.content_hash, r.match_required,
       0, r.idem_key, r.idem_hash, r.reply_to, r.correlation_id, r.traceparent, r.token_hash, r.escalate_at, r.created_at, r.expires_at,
       r.fan_out_due, r.profile, r.created_by, r.initiator, r.approval_id, r.definition, r.parameters, r.max_duration, r.not_before, r.not_after,
       r.expires_at
     FROM {rows:1 id store_id user_id rp kind lane target nonce content content_hash match_required:int idem_key idem_hash reply_to correlation_id
       traceparent token_hash escalate_at:int created_at:int expires_at:int fan_out_due:int profile created_by initiator approval_id definition
       parameters max_duration:int not_before:int not_after:int}
     WHERE true", $then
        ))
    };
}
static ADD: Statement = insert!(" ON CONFLICT DO NOTHING RETURNING id");
static ADD_ALL: Statement = insert!("");

/// What is done about a row that stands in the way of a new one: somebody else has taken the idempotency key since it was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conflicts {
    /// It is waited for which rows are new.
    Told,
    /// All are taken for new, and nothing is waited for. If they are not, the transaction fails, and is to be made once more.
    Unlikely,
}

/// How a caller names a user.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UserRef {
    /// By our identifier.
    Id(UserId),
    /// By theirs.
    External(String),
}

/// What a process push starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewProcess {
    /// `name` and version of the definition, and its page.
    pub definition: super::Definition,
    /// The caller's, passed on to the page.
    pub parameters: Value,
    /// How long the child may take once the link was opened.
    pub max_duration: Millis,
    /// From when the link may be opened.
    pub not_before: Option<Millis>,
    /// Until when, where that is before the push expires.
    pub not_after: Option<Millis>,
    /// The hash of the link's token.
    pub token_hash: String,
}

/// On whose terms a push is sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// The profile asked for, where it is not the policy's.
    pub profile: Option<Profile>,
    /// The API key that sends it.
    pub key: Option<KeyId>,
    /// The hash of what the sender calls the initiator.
    pub initiator: Option<String>,
    /// The approval that it is a member of.
    pub approval: Option<ApprovalId>,
}

/// A validated push, not yet taken.
#[derive(Debug, Clone)]
pub struct NewPush {
    /// Its identifier.
    pub id: PushId,
    /// The store.
    pub store: StoreId,
    /// Whom to ask.
    pub user: UserRef,
    /// What is shown, without the link of a process push.
    pub content: Content,
    /// The hash of what is shown, with the link.
    pub content_hash: String,
    /// The payments of a batch; what is shown of them is in `content`.
    pub payments: Vec<PaymentItem>,
    /// Which devices.
    pub target: Target,
    /// Single-use.
    pub nonce: String,
    /// How urgent.
    pub lane: Lane,
    /// Must the code be typed?
    pub match_required: bool,
    /// The idempotency key and the hash of the request that came with it.
    pub idempotency: Option<(String, String)>,
    /// The queue that wants the answer.
    pub reply_to: Option<String>,
    /// The sender's own.
    pub correlation_id: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// For `process`.
    pub process: Option<NewProcess>,
    /// On whose terms.
    pub terms: Terms,
    /// When it was received.
    pub created_at: Millis,
    /// Until when an answer counts.
    pub expires_at: Millis,
}

/// What became of one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Durable. The user's identifier goes with it.
    New(UserId),
    /// The same request came before; this is the push it made.
    Replayed(Box<PushRow>),
    /// The idempotency key was used for another request.
    KeyReused,
    /// The store has no such user.
    NoUser,
    /// The user may not be asked.
    UserInactive(UserStatus),
    /// Too many wrong codes were typed for this user: nothing that wants one is asked until this time.
    CodesBlocked(Millis),
    /// A fraud report has locked its initiator until this time.
    InitiatorLocked(Millis),
    /// The profile in force wants what this push does not have.
    Lacks(Lack),
    /// The push policy allows one open prompt, and there is one.
    PromptOpen,
}

/// How long a push may wait for a worker before its job counts as lost.
pub(super) fn unseen(lane: Lane) -> Millis {
    match lane {
        Lane::Interactive => 15_000,
        // Hundreds of thousands may wait for their turn.
        Lane::Bulk => 300_000,
    }
}

fn add_to(rows: &mut Rows, new: &NewPush, user: &UserId, profile: Profile) {
    let content = &new.content;
    let process = new.process.as_ref();
    let definition = process.map(|p| {
        let definition = &p.definition;
        json!({"name": definition.name, "version": definition.version, "start_url": definition.start_url}).to_string()
    });
    let (key, hash) = new
        .idempotency
        .as_ref()
        .map_or((None, None), |(key, hash)| (Some(key), Some(hash)));
    let escalate = new.target.escalate_after();
    rows.row()
        .text(new.id.as_str())
        .text(new.store.as_str())
        .text(user.as_str())
        .text(content.relying_party.as_str())
        .text(content.kind.as_str())
        .text(new.lane.as_str())
        .text(to_json(&new.target))
        .text(new.nonce.as_str())
        .text(to_json(content))
        .text(new.content_hash.as_str())
        .int(i64::from(new.match_required))
        .maybe_text(key.map(String::as_str))
        .maybe_text(hash.map(String::as_str))
        .maybe_text(new.reply_to.as_deref())
        .maybe_text(new.correlation_id.as_deref())
        .maybe_text(new.traceparent.as_deref())
        .maybe_text(process.map(|p| p.token_hash.as_str()))
        .maybe_int(escalate.map(|after| new.created_at + after))
        .int(new.created_at)
        .int(new.expires_at)
        .int(new.created_at + unseen(new.lane))
        .text(profile.as_str())
        .maybe_text(new.terms.key.as_ref().map(KeyId::as_str))
        .maybe_text(new.terms.initiator.as_deref())
        .maybe_text(new.terms.approval.as_ref().map(ApprovalId::as_str))
        .maybe_text(definition)
        .maybe_text(process.map(|p| p.parameters.to_string()))
        .maybe_int(process.map(|p| p.max_duration))
        .maybe_int(process.and_then(|p| p.not_before))
        .maybe_int(process.and_then(|p| p.not_after));
}

/// The jobs that send `pushes` on their way, a few messages for many pushes.
pub(super) fn jobs<'a>(
    pushes: impl Iterator<Item = (&'a StoreId, Lane, &'a PushId)>,
    now: Millis,
) -> Vec<Message> {
    let mut groups: BTreeMap<(&StoreId, &str), (Lane, Vec<PushId>)> = BTreeMap::new();
    for (store, lane, push) in pushes {
        let group = groups
            .entry((store, lane.as_str()))
            .or_insert((lane, Vec::new()));
        group.1.push(push.clone());
    }
    let mut messages = Vec::new();
    for ((store, _), (lane, ids)) in groups {
        let size = match lane {
            Lane::Interactive => JOB_INTERACTIVE,
            Lane::Bulk => JOB_BULK,
        };
        messages.extend(ids.chunks(size).map(|part| {
            let job = Job {
                v: VERSION,
                store: store.clone(),
                pushes: part.to_vec(),
                retries: vec![],
                chunk: None,
            };
            job.into_message(Route::Jobs(lane), now)
        }));
    }
    messages
}

/// Whom a push is for.
struct Person {
    id: UserId,
    status: UserStatus,
    codes_blocked_until: Option<Millis>,
    approved_at: Option<Millis>,
    denied_at: Option<Millis>,
    initiator_until: Option<Millis>,
    locked_until: Option<Millis>,
    rules: Rules,
}

impl Person {
    /// Why this person may not be asked at all.
    fn refusal(&self, push: &NewPush, now: Millis) -> Option<Taken> {
        if self.status != UserStatus::Active {
            return Some(Taken::UserInactive(self.status));
        }
        let locked = self.initiator_until.filter(|until| *until > now);
        let asks = is_prompt(push.content.kind) && push.lane == Lane::Interactive;
        if let Some(until) = locked.filter(|_| asks) {
            return Some(Taken::InitiatorLocked(until));
        }
        let blocked = self.codes_blocked_until.filter(|until| *until > now);
        let blocked = blocked.filter(|_| push.match_required);
        blocked
            .map(Taken::CodesBlocked)
            .or_else(|| self.profile(push).err().map(Taken::Lacks))
    }

    /// The profile in force.
    fn profile(&self, push: &NewPush) -> Result<Profile, Lack> {
        self.rules.profile.governs(&Request {
            profile: push.terms.profile,
            kind: push.content.kind,
            match_required: push.match_required,
            payment: push.content.pays(),
        })
    }

    fn asking<'a>(&'a self, push: &'a NewPush) -> Asking<'a> {
        Asking {
            push,
            user: &self.id,
            rules: self.rules,
            profile: self.profile(push).unwrap_or(self.rules.profile),
            approved_at: self.approved_at,
            denied_at: self.denied_at,
            locked_until: self.locked_until,
        }
    }
}

type People = HashMap<usize, Person>;

/// The parameters of [`USERS`].
fn whom(new: &[NewPush]) -> [String; 2] {
    let (mut by_id, mut by_external) = (Vec::new(), Vec::new());
    for (n, push) in new.iter().enumerate() {
        let initiator = push.terms.initiator.as_deref().map(of_initiator);
        let mut row = json!({"n": n.to_string(), "store": push.store, "rp": push.content.relying_party, "key": push.terms.key,
            "initiator": initiator});
        match &push.user {
            UserRef::Id(user) => {
                row["user"] = json!(user);
                by_id.push(row);
            }
            UserRef::External(user) => {
                row["user"] = json!(user);
                by_external.push(row);
            }
        }
    }
    [to_json(&by_id), to_json(&by_external)]
}

fn people_of(rows: &[Row]) -> Result<People, Error> {
    rows.iter()
        .map(|row| {
            let n = row.text("n")?.parse().map_err(|_| Error::Row("n"))?;
            let person = Person {
                id: parsed(row, "id")?,
                status: parsed(row, "status")?,
                codes_blocked_until: row.maybe_int("codes_blocked_until")?,
                approved_at: row.maybe_int("last_approved_at")?,
                denied_at: row.maybe_int("denied_at")?,
                initiator_until: row.maybe_int("initiator_until")?,
                locked_until: row.maybe_int("locked_until")?,
                rules: rules_of(row)?,
            };
            Ok((n, person))
        })
        .collect()
}

type Known = HashMap<(StoreId, String), (String, PushRow)>;

/// The parameter of [`KNOWN`].
fn keys_of(new: &[NewPush]) -> Option<String> {
    let keys: Vec<_> = new
        .iter()
        .filter_map(|push| {
            let (key, _) = push.idempotency.as_ref()?;
            Some(json!({"store": push.store, "key": key}))
        })
        .collect();
    (!keys.is_empty()).then(|| to_json(&keys))
}

fn known_of(rows: &[Row]) -> Result<Known, Error> {
    rows.iter()
        .map(|row| {
            let push = push_of(row)?;
            let key = (push.store.clone(), row.text("used_key")?);
            Ok((key, (row.text("used_hash")?, push)))
        })
        .collect()
}

fn replayed(push: &NewPush, known: &Known) -> Option<Taken> {
    let (key, hash) = push.idempotency.as_ref()?;
    let (used_hash, row) = known.get(&(push.store.clone(), key.clone()))?;
    Some(if used_hash == hash {
        Taken::Replayed(Box::new(row.clone()))
    } else {
        Taken::KeyReused
    })
}

/// Writes those that are let in. Gives the identifiers of those that are there now because of it.
async fn add(
    tx: &mut Tx,
    asking: &[Asking<'_>],
    gate: &Gate,
    conflicts: Conflicts,
) -> Result<HashSet<String>, Error> {
    let mut admitted: Vec<_> = asking
        .iter()
        .filter(|one| !gate.refuses(&one.push.id))
        .collect();
    // Two batches with the same keys take them in one order, and neither waits for the other in a circle.
    admitted.sort_by_key(|one| {
        let push = one.push;
        let key = push.idempotency.as_ref();
        key.map(|(key, _)| (&push.store, key))
    });
    if admitted.is_empty() {
        return Ok(HashSet::new());
    }
    let mut rows = Rows::default();
    for one in &admitted {
        add_to(&mut rows, one.push, one.user, one.profile);
    }
    // On SQLite there is nobody to wait for.
    if conflicts == Conflicts::Unlikely && !tx.is_alone() {
        tx.send(&ADD_ALL, &[Arg::Rows(&rows)])?;
        let ids = admitted.iter().map(|one| one.push.id.as_str().to_owned());
        return Ok(ids.collect());
    }
    let added = tx.fetch(&ADD, &[Arg::Rows(&rows)]).await?;
    added.iter().map(|row| row.text("id")).collect()
}

impl Store {
    /// The push that an idempotency key has made, and the hash of the request that came with it.
    pub async fn push_of_key(
        &self,
        store: &StoreId,
        key: &str,
    ) -> Result<Option<(String, PushRow)>, Error> {
        let wanted = json!([{"store": store, "key": key}]).to_string();
        let rows = self.db.fetch(&KNOWN, &[Arg::Text(&wanted)]).await?;
        if !rows.is_empty() {
            self.db.all_safe().await?;
        }
        rows.first()
            .map(|row| Ok((row.text("used_hash")?, push_of(row)?)))
            .transpose()
    }

    /// Takes pushes, in one transaction: one answer for each, in order. Of two with the same idempotency key one is new.
    pub async fn take(&self, new: &[NewPush], now: Millis) -> Result<Vec<Taken>, Error> {
        let conflicts = if has_twins(new) {
            Conflicts::Told
        } else {
            Conflicts::Unlikely
        };
        match self.take_once(new, conflicts, now).await {
            Err(error) if error.is_conflict() && conflicts == Conflicts::Unlikely => {
                self.take_once(new, Conflicts::Told, now).await
            }
            taken => taken,
        }
    }

    async fn take_once(
        &self,
        new: &[NewPush],
        conflicts: Conflicts,
        now: Millis,
    ) -> Result<Vec<Taken>, Error> {
        let mut tx = self.db.begin_open().await?;
        let admitted = admit(&mut tx, new, conflicts, now).await?;
        if admitted
            .taken
            .iter()
            .any(|one| matches!(one, Taken::New(_)))
        {
            self.keep(tx, admitted, now).await
        } else {
            drop(tx);
            admitted.settled.tell();
            // What is told of again may have been taken at this moment; who is not there, or locked, rests on no push.
            let by_push = |one: &Taken| {
                matches!(
                    one,
                    Taken::Replayed(_) | Taken::KeyReused | Taken::PromptOpen
                )
            };
            if admitted.taken.iter().any(by_push) {
                self.db.all_safe().await?;
            }
            Ok(admitted.taken)
        }
    }

    /// Commits what was admitted, and sends it on its way. Somebody waits for it: lines of batches are taken elsewhere.
    pub(super) async fn keep(
        &self,
        mut tx: Tx,
        admitted: Admitted,
        now: Millis,
    ) -> Result<Vec<Taken>, Error> {
        let Admitted {
            taken,
            messages,
            settled,
        } = admitted;
        self.courtesy.somebody_waits();
        crate::crash::point("A2");
        let to_settle = std::mem::take(&mut tx.to_settle);
        let tell = move || {
            crate::crash::point("A3");
            settled.tell();
        };
        self.commit_promises(tx, messages, tell, now).await?;
        self.settle_now(to_settle, now).await;
        Ok(taken)
    }
}

/// Does one idempotency key come twice?
fn has_twins(new: &[NewPush]) -> bool {
    let mut keys = HashSet::new();
    new.iter().any(|push| {
        let key = push.idempotency.as_ref();
        key.is_some_and(|(key, _)| !keys.insert((&push.store, key)))
    })
}

/// What was admitted in a transaction that is still open.
pub(super) struct Admitted {
    /// One answer for each, in order.
    pub(super) taken: Vec<Taken>,
    messages: Vec<Message>,
    settled: Settled,
}

/// Writes those of `new` that may be taken.
pub(super) async fn admit(
    tx: &mut Tx,
    new: &[NewPush],
    conflicts: Conflicts,
    now: Millis,
) -> Result<Admitted, Error> {
    let keys = keys_of(new);
    let [by_id, by_external] = whom(new);
    let whom = [Arg::Text(&by_id), Arg::Text(&by_external)];
    let (known, people) = if let Some(keys) = &keys {
        let keys = [Arg::Text(keys)];
        let asked: [Asked<'_>; 2] = [(&KNOWN, &keys), (&USERS, &whom)];
        let [known, people] = tx.fetch_all(asked).await?;
        (known_of(&known)?, people_of(&people)?)
    } else {
        (Known::new(), people_of(&tx.fetch(&USERS, &whom).await?)?)
    };
    let done: Vec<Option<Taken>> = new
        .iter()
        .enumerate()
        .map(|(n, push)| {
            replayed(push, &known).or_else(|| match people.get(&n) {
                None => Some(Taken::NoUser),
                Some(person) => person.refusal(push, now),
            })
        })
        .collect();
    let asking: Vec<_> = (0..new.len())
        .filter(|n| done[*n].is_none())
        .filter_map(|n| Some(people.get(&n)?.asking(&new[n])))
        .collect();
    let gate = Gate::open(tx, &asking, now).await?;
    let added = add(tx, &asking, &gate, conflicts).await?;
    payments::add(tx, new, &added)?;
    // Somebody else took the key between the look and the insert, or it came twice in this batch.
    let raced = done
        .iter()
        .zip(new)
        .any(|(done, push)| done.is_none() && !added.contains(push.id.as_str()));
    let known = match &keys {
        Some(keys) if raced => known_of(&tx.fetch(&KNOWN, &[Arg::Text(keys)]).await?)?,
        _ => known,
    };
    let taken: Vec<Taken> = done
        .into_iter()
        .enumerate()
        .map(|(n, done)| {
            let push = &new[n];
            done.or_else(|| {
                let person = people.get(&n).filter(|_| added.contains(push.id.as_str()));
                person.map(|person| Taken::New(person.id.clone()))
            })
            .or_else(|| replayed(push, &known))
            .or_else(|| gate.refuses(&push.id).then_some(Taken::PromptOpen))
            .unwrap_or(Taken::NoUser)
        })
        .collect();
    let settled = gate.settle(tx, &added, now).await?;
    let fresh = new
        .iter()
        .filter(|push| added.contains(push.id.as_str()) && !settled.ended.contains(&push.id))
        .map(|push| (&push.store, push.lane, &push.id));
    let mut messages = jobs(fresh, now);
    messages.extend_from_slice(&settled.messages);
    Ok(Admitted {
        taken,
        messages,
        settled,
    })
}
