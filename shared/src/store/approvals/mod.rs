//! Approvals by several people: taking them, with a push for each member, and reading them. What they come to: `settle.rs`.

mod consume;
mod settle;

pub use settle::Cancelled;
pub(super) use settle::promise;

use super::audit::{Note, note};
use super::db::{Arg, Error, Row, Statement, Tx};
use super::intake::Conflicts;
use super::pushes::push_of;
use super::{NewPush, PushRow, Store, Taken, intake, maybe_parsed, parsed};
use crate::audit::Act;
use crate::clock::{Millis, rfc3339};
use crate::domain::{ApprovalState, OnDenial};
use crate::id::{ApprovalId, KeyId, PushId, StoreId, UserId};
use serde_json::json;

static ADD: Statement = Statement::new(
    "INSERT INTO approvals (id, store_id, rp, state, reason, required, member_count, on_denial, requested_by, idem_key, idem_hash, reply_to,
       correlation_id, traceparent, created_by, created_at, expires_at)
     VALUES ($1, $2, $3, 'pending', '', $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ON CONFLICT DO NOTHING RETURNING id",
);
static ONE: Statement = Statement::new("SELECT * FROM approvals WHERE id = $1");
static BY_KEY: Statement =
    Statement::new("SELECT * FROM approvals WHERE store_id = $1 AND idem_key = $2");
static LIST: Statement = Statement::new(
    "SELECT * FROM approvals WHERE store_id = $1 AND id < $2 AND ($3 IS NULL OR state = $3) ORDER BY id DESC LIMIT $4",
);
static MEMBERS: Statement =
    Statement::new("SELECT * FROM pushes WHERE approval_id = $1 ORDER BY id");

/// A validated approval, not yet taken.
#[derive(Debug, Clone)]
pub struct NewApproval {
    /// Its identifier.
    pub id: ApprovalId,
    /// The store.
    pub store: StoreId,
    /// Who asks.
    pub rp: String,
    /// How many must say yes.
    pub required: i64,
    /// What one no means.
    pub on_denial: OnDenial,
    /// Who wants it, and is none of those asked.
    pub requested_by: Option<UserId>,
    /// The idempotency key and the hash of the request that came with it.
    pub idempotency: Option<(String, String)>,
    /// The queue that wants the verdict.
    pub reply_to: Option<String>,
    /// The sender's own.
    pub correlation_id: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The API key that sends it.
    pub key: KeyId,
    /// When it was received.
    pub created_at: Millis,
    /// Until when an answer counts.
    pub expires_at: Millis,
    /// A push for each of those asked: all of the same content and time.
    pub members: Vec<NewPush>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakenApproval {
    /// Durable.
    New,
    /// The same request came before; this is the approval it made.
    Replayed(Box<ApprovalRow>),
    /// The idempotency key was used for another request.
    KeyReused,
    /// This member may not be asked, so nobody is.
    Refused(usize, Taken),
}

/// An approval as it lies in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovalRow {
    /// Its identifier.
    pub id: ApprovalId,
    /// The store.
    pub store: StoreId,
    /// Who asks.
    pub rp: String,
    /// Where it stands.
    pub state: ApprovalState,
    /// Why, once it has ended.
    pub reason: String,
    /// How many must say yes.
    pub required: i64,
    /// How many are asked.
    pub of: i64,
    /// What one no means.
    pub on_denial: OnDenial,
    /// Who wants it.
    pub requested_by: Option<UserId>,
    /// The sender's own.
    pub correlation_id: Option<String>,
    /// When it was taken.
    pub created_at: Millis,
    /// Until when an answer counts.
    pub expires_at: Millis,
    /// When it ended.
    pub ended_at: Option<Millis>,
    /// When it was used.
    pub consumed_at: Option<Millis>,
}

fn approval_of(row: &Row) -> Result<ApprovalRow, Error> {
    Ok(ApprovalRow {
        id: parsed(row, "id")?,
        store: parsed(row, "store_id")?,
        rp: row.text("rp")?,
        state: parsed(row, "state")?,
        reason: row.text("reason")?,
        required: row.int("required")?,
        of: row.int("member_count")?,
        on_denial: parsed(row, "on_denial")?,
        requested_by: maybe_parsed(row, "requested_by")?,
        correlation_id: row.maybe_text("correlation_id")?,
        created_at: row.int("created_at")?,
        expires_at: row.int("expires_at")?,
        ended_at: row.maybe_int("ended_at")?,
        consumed_at: row.maybe_int("consumed_at")?,
    })
}

/// Writes the row. `false`: its idempotency key was used before.
async fn add(tx: &mut Tx, new: &NewApproval) -> Result<bool, Error> {
    let key = new.idempotency.as_ref();
    let args = [
        Arg::Text(new.id.as_str()),
        Arg::Text(new.store.as_str()),
        Arg::Text(&new.rp),
        Arg::Int(new.required),
        Arg::Int(i64::try_from(new.members.len()).unwrap_or(i64::MAX)),
        Arg::Text(new.on_denial.as_str()),
        Arg::MaybeText(new.requested_by.as_ref().map(UserId::as_str)),
        Arg::MaybeText(key.map(|(key, _)| key.as_str())),
        Arg::MaybeText(key.map(|(_, hash)| hash.as_str())),
        Arg::MaybeText(new.reply_to.as_deref()),
        Arg::MaybeText(new.correlation_id.as_deref()),
        Arg::MaybeText(new.traceparent.as_deref()),
        Arg::Text(new.key.as_str()),
        Arg::Int(new.created_at),
        Arg::Int(new.expires_at),
    ];
    Ok(!tx.fetch(&ADD, &args).await?.is_empty())
}

async fn note_made(
    tx: &mut Tx,
    new: &NewApproval,
    by: Option<&str>,
    now: Millis,
) -> Result<(), Error> {
    let pushes: Vec<&PushId> = new.members.iter().map(|member| &member.id).collect();
    let content_hash = new.members.first().map(|member| &member.content_hash);
    let facts = json!({"approval": new.id, "required": new.required, "on_denial": new.on_denial, "requested_by": new.requested_by,
        "pushes": pushes, "content_hash": content_hash, "relying_party": new.rp, "correlation_id": new.correlation_id,
        "expires_at": rfc3339(new.expires_at)});
    let made = Note::new(&new.store, Act::ApprovalMade).by(by).facts(facts);
    note(tx, &[made], now).await
}

impl Store {
    /// Takes an approval with all its members, or nothing of it.
    pub async fn take_approval(
        &self,
        new: &NewApproval,
        now: Millis,
    ) -> Result<TakenApproval, Error> {
        let mut tx = self.db.begin().await?;
        // First: of two with the same key the second waits here, holding nothing.
        if !add(&mut tx, new).await? {
            drop(tx);
            let (key, hash) = new.idempotency.as_ref().ok_or(Error::Row("idem_key"))?;
            let known = self.approval_of_key(&new.store, key).await?;
            let (known, row) = known.ok_or(Error::Row("idem_key"))?;
            return Ok(if known == *hash {
                TakenApproval::Replayed(Box::new(row))
            } else {
                TakenApproval::KeyReused
            });
        }
        let mut admitted = intake::admit(&mut tx, &new.members, Conflicts::Told, now).await?;
        let refused = |one: &Taken| !matches!(one, Taken::New(_));
        if let Some(member) = admitted.taken.iter().position(refused) {
            return Ok(TakenApproval::Refused(
                member,
                admitted.taken.swap_remove(member),
            ));
        }
        note_made(&mut tx, new, self.by.as_deref(), now).await?;
        self.keep(tx, admitted, now).await?;
        Ok(TakenApproval::New)
    }

    /// The approval that an idempotency key has made, and the hash of the request that came with it.
    pub async fn approval_of_key(
        &self,
        store: &StoreId,
        key: &str,
    ) -> Result<Option<(String, ApprovalRow)>, Error> {
        let args = [Arg::Text(store.as_str()), Arg::Text(key)];
        let rows = self.db.fetch(&BY_KEY, &args).await?;
        rows.first()
            .map(|row| Ok((row.text("idem_hash")?, approval_of(row)?)))
            .transpose()
    }

    /// One approval, of whatever store.
    pub async fn approval(&self, id: &ApprovalId) -> Result<Option<ApprovalRow>, Error> {
        let rows = self.db.fetch(&ONE, &[Arg::Text(id.as_str())]).await?;
        rows.first().map(approval_of).transpose()
    }

    /// Approvals of a store, newest first.
    pub async fn approvals(
        &self,
        store: &StoreId,
        before: Option<&ApprovalId>,
        state: Option<ApprovalState>,
        limit: i64,
    ) -> Result<Vec<ApprovalRow>, Error> {
        let args = [
            Arg::Text(store.as_str()),
            // Behind every identifier, since the alphabet ends with z.
            Arg::Text(before.map_or("apr_~", ApprovalId::as_str)),
            Arg::MaybeText(state.map(ApprovalState::as_str)),
            Arg::Int(limit),
        ];
        let rows = self.db.fetch(&LIST, &args).await?;
        rows.iter().map(approval_of).collect()
    }

    /// The pushes of an approval, in the order in which its sender named the people.
    pub async fn members(&self, approval: &ApprovalId) -> Result<Vec<PushRow>, Error> {
        let args = [Arg::Text(approval.as_str())];
        let rows = self.db.fetch(&MEMBERS, &args).await?;
        rows.iter().map(push_of).collect()
    }
}
