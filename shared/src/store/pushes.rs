//! Reading pushes and their deliveries.

use super::db::{Arg, Error, Row, Statement};
use super::{Store, json, maybe_parsed, parsed};
use crate::clock::Millis;
use crate::domain::{
    Content, DeliveryState, Factors, InstanceState, Kind, Profile, PushState, Target,
};
use crate::event::DeviceEnd;
use crate::id::{ApprovalId, DeliveryId, DeviceId, InstanceId, KeyId, PushId, StoreId, UserId};
use crate::message::Lane;

static ONE: Statement = Statement::new("SELECT * FROM pushes WHERE id = $1");
static LIST: Statement = Statement::new(
    "SELECT * FROM pushes WHERE store_id = $1 AND id < $2 AND ($3 IS NULL OR state = $3) AND ($4 IS NULL OR user_id = $4)
     ORDER BY id DESC LIMIT $5",
);
pub(super) static DELIVERIES: Statement =
    Statement::new("SELECT * FROM deliveries WHERE push_id {in:$1} ORDER BY id");

/// A push as it lies in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRow {
    /// Its identifier.
    pub id: PushId,
    /// The store.
    pub store: StoreId,
    /// Who is asked.
    pub user: UserId,
    /// Who asks.
    pub rp: String,
    /// What for.
    pub kind: Kind,
    /// How urgent.
    pub lane: Lane,
    /// Where it stands.
    pub state: PushState,
    /// Why, once it has ended.
    pub reason: String,
    /// Which devices.
    pub target: Target,
    /// Single-use.
    pub nonce: String,
    /// What is shown, without the link of a process push.
    pub content: Content,
    /// The hash of what is shown.
    pub content_hash: String,
    /// Must the code be typed?
    pub match_required: bool,
    /// How often a wrong one was.
    pub wrong_codes: i64,
    /// The queue that wants the answer.
    pub reply_to: Option<String>,
    /// The sender's own.
    pub correlation_id: Option<String>,
    /// The child process instance, once the link was opened.
    pub instance: Option<InstanceId>,
    /// How it stands.
    pub instance_state: Option<InstanceState>,
    /// The API key that sent it.
    pub created_by: Option<KeyId>,
    /// The hash of what its sender calls the initiator.
    pub initiator: Option<String>,
    /// The approval that it is a member of.
    pub approval: Option<ApprovalId>,
    /// Whose rules it follows.
    pub profile: Profile,
    /// What its approval is worth, where a proof approved it.
    pub factors: Option<Factors>,
    /// When its approval was used.
    pub consumed_at: Option<Millis>,
    /// The device whose answer decided.
    pub answered_by: Option<DeviceId>,
    /// The hash of the proof that decided.
    pub proof_hash: Option<String>,
    /// How many answers did not count.
    pub refused_proofs: i64,
    /// When it was taken.
    pub created_at: Millis,
    /// Until when an answer counts.
    pub expires_at: Millis,
    /// When it ended.
    pub ended_at: Option<Millis>,
}

/// A delivery as it lies in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its identifier.
    pub id: DeliveryId,
    /// The push.
    pub push: PushId,
    /// The device.
    pub device: DeviceId,
    /// Where it stands.
    pub state: DeliveryState,
    /// Why.
    pub reason: String,
    /// How often a provider was called.
    pub attempts: i64,
    /// `approve` or `deny`, once this device has answered.
    pub decision: Option<String>,
    /// The hash of its proof.
    pub proof_hash: Option<String>,
    /// The last change.
    pub updated_at: Millis,
}

impl From<DeliveryRow> for DeviceEnd {
    fn from(row: DeliveryRow) -> Self {
        Self {
            delivery: row.id,
            device: row.device,
            state: row.state,
            decision: row.decision,
            reason: row.reason,
            attempts: row.attempts,
        }
    }
}

/// Which part of a list.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Only behind this one.
    pub before: Option<PushId>,
    /// Only in this state.
    pub state: Option<PushState>,
    /// Only of this user.
    pub user: Option<UserId>,
    /// How many.
    pub limit: i64,
}

pub(super) fn push_of(row: &Row) -> Result<PushRow, Error> {
    Ok(PushRow {
        id: parsed(row, "id")?,
        store: parsed(row, "store_id")?,
        user: parsed(row, "user_id")?,
        rp: row.text("rp")?,
        kind: parsed(row, "kind")?,
        lane: parsed(row, "lane")?,
        state: parsed(row, "state")?,
        reason: row.text("reason")?,
        target: json(row, "target")?,
        nonce: row.text("nonce")?,
        content: json(row, "content")?,
        content_hash: row.text("content_hash")?,
        match_required: row.int("match_required")? != 0,
        wrong_codes: row.int("wrong_codes")?,
        reply_to: row.maybe_text("reply_to")?,
        correlation_id: row.maybe_text("correlation_id")?,
        instance: maybe_parsed(row, "instance_id")?,
        instance_state: maybe_parsed(row, "instance_state")?,
        created_by: maybe_parsed(row, "created_by")?,
        initiator: row.maybe_text("initiator")?,
        approval: maybe_parsed(row, "approval_id")?,
        profile: maybe_parsed(row, "profile")?.unwrap_or(Profile::Default),
        factors: maybe_parsed(row, "factors")?,
        consumed_at: row.maybe_int("consumed_at")?,
        answered_by: maybe_parsed(row, "answered_by")?,
        proof_hash: row.maybe_text("proof_hash")?,
        refused_proofs: row.int("refused_proofs")?,
        created_at: row.int("created_at")?,
        expires_at: row.int("expires_at")?,
        ended_at: row.maybe_int("ended_at")?,
    })
}

pub(super) fn delivery_of(row: &Row) -> Result<DeliveryRow, Error> {
    Ok(DeliveryRow {
        id: parsed(row, "id")?,
        push: parsed(row, "push_id")?,
        device: parsed(row, "device_id")?,
        state: parsed(row, "state")?,
        reason: row.text("reason")?,
        attempts: row.int("calls")?,
        decision: row.maybe_text("decision")?,
        proof_hash: row.maybe_text("proof_hash")?,
        updated_at: row.int("updated_at")?,
    })
}

impl Store {
    /// One push, of whatever store.
    pub async fn push(&self, id: &PushId) -> Result<Option<PushRow>, Error> {
        let rows = self.db.fetch(&ONE, &[Arg::Text(id.as_str())]).await?;
        rows.first().map(push_of).transpose()
    }

    /// Pushes of a store, newest first.
    pub async fn pushes(&self, store: &StoreId, page: &Page) -> Result<Vec<PushRow>, Error> {
        let args = [
            Arg::Text(store.as_str()),
            // Behind every identifier, since the alphabet ends with z.
            Arg::Text(page.before.as_ref().map_or("psh_~", PushId::as_str)),
            Arg::MaybeText(page.state.map(PushState::as_str)),
            Arg::MaybeText(page.user.as_ref().map(UserId::as_str)),
            Arg::Int(page.limit),
        ];
        let rows = self.db.fetch(&LIST, &args).await?;
        rows.iter().map(push_of).collect()
    }

    /// The deliveries of a push.
    pub async fn deliveries(&self, push: &PushId) -> Result<Vec<DeliveryRow>, Error> {
        let ids = super::to_json(&[push]);
        let rows = self.db.fetch(&DELIVERIES, &[Arg::Text(&ids)]).await?;
        rows.iter().map(delivery_of).collect()
    }
}
