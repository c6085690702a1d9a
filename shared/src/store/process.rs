//! Process pushes: the link is opened once, a child process instance runs, and its end is the push's.

use super::audit::{Note, note};
use super::db::{Arg, Error, Statement};
use super::ending::{announce_by, rows_of};
use super::pushes::push_of;
use super::{PushRow, Store, json, parsed};
use crate::audit::Act;
use crate::clock::Millis;
use crate::domain::PushState;
use crate::id::{InstanceId, StoreId};
use serde_json::Value;

static OPEN: Statement = Statement::new(
    "UPDATE pushes SET state = 'opened', opened_at = $2, instance_id = $3, expires_at = $2 + COALESCE(max_duration, 0), escalate_at = NULL
     WHERE token_hash = $1 AND opened_at IS NULL AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $2 AND state IN ('accepted', 'pending')
     RETURNING *",
);
static BY_TOKEN: Statement = Statement::new("SELECT * FROM pushes WHERE token_hash = $1");
static END: Statement = Statement::new(
    "UPDATE pushes SET state = $3, reason = $4, ended_at = $5
     WHERE store_id = $1 AND instance_id = $2 AND state = 'opened' AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $5 RETURNING *",
);
static BY_INSTANCE: Statement =
    Statement::new("SELECT * FROM pushes WHERE store_id = $1 AND instance_id = $2");

/// A started child process instance.
#[derive(Debug, Clone)]
pub struct Started {
    /// The instance.
    pub instance: InstanceId,
    /// The push that started it.
    pub push: PushRow,
    /// The page to open.
    pub start_url: String,
    /// The caller's parameters.
    pub parameters: Value,
}

/// What became of a link.
#[derive(Debug, Clone)]
pub enum Opened {
    /// A child process instance has started.
    Started(Box<Started>),
    /// The link was used before.
    Used,
    /// The push has ended.
    Ended,
    /// There is no such link.
    Unknown,
}

/// How a child process instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceEnd {
    /// Accepted.
    Success,
    /// Declined.
    Error,
    /// Abandoned.
    Terminated,
    /// Broken.
    ProcessError,
}

impl InstanceEnd {
    /// What it means for the push.
    pub fn outcome(self) -> (PushState, &'static str) {
        match self {
            Self::Success => (PushState::Approved, "ended_success"),
            Self::Error => (PushState::Denied, "policy"),
            Self::Terminated => (PushState::Denied, "user_cancelled"),
            Self::ProcessError => (PushState::Failed, "internal"),
        }
    }
}

impl Store {
    /// Opens a process link, once.
    pub async fn open_process(&self, token_hash: &str, now: Millis) -> Result<Opened, Error> {
        let instance = InstanceId::fresh(now);
        let args = [
            Arg::Text(token_hash),
            Arg::Int(now),
            Arg::Text(instance.as_str()),
        ];
        let mut tx = self.db.begin().await?;
        let rows = tx.fetch(&OPEN, &args).await?;
        if let Some(row) = rows.first() {
            let push = push_of(row)?;
            let facts = serde_json::json!({"instance": instance});
            let opened = Note::new(&push.store, Act::LinkOpened).push(&push.id);
            note(&mut tx, &[opened.user(&push.user).facts(facts)], now).await?;
            tx.commit().await?;
            let definition: Value = json(row, "definition")?;
            let start_url = definition["start_url"].as_str().unwrap_or_default();
            return Ok(Opened::Started(Box::new(Started {
                instance,
                push,
                start_url: start_url.to_owned(),
                parameters: json(row, "parameters")?,
            })));
        }
        drop(tx);
        let rows = self.db.fetch(&BY_TOKEN, &[Arg::Text(token_hash)]).await?;
        let Some(row) = rows.first() else {
            return Ok(Opened::Unknown);
        };
        let (opened, fault) = if row.maybe_int("opened_at")?.is_some() {
            (Opened::Used, "used")
        } else {
            (Opened::Ended, "ended")
        };
        let (push, store) = (parsed(row, "id")?, parsed(row, "store_id")?);
        self.refused(Act::LinkRefused, &store, &push, None, fault, now)
            .await?;
        Ok(opened)
    }

    /// Ends a child process instance, and with it the push. The first end counts; the push tells which it was.
    pub async fn end_instance(
        &self,
        store: &StoreId,
        instance: &InstanceId,
        end: InstanceEnd,
        now: Millis,
    ) -> Result<Option<(bool, PushRow)>, Error> {
        let (state, reason) = end.outcome();
        let mut tx = self.db.begin().await?;
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(instance.as_str()),
            Arg::Text(state.as_str()),
            Arg::Text(reason),
            Arg::Int(now),
        ];
        let ended = rows_of(&tx.fetch(&END, &args).await?);
        if let Some(push) = ended.first().cloned() {
            let messages = announce_by(&mut tx, &ended, &[], self.by.as_deref(), now).await?;
            self.commit(tx, messages, now).await?;
            return Ok(Some((true, push)));
        }
        let rows = tx.fetch(&BY_INSTANCE, &args[..2]).await?;
        let push = rows.first().map(push_of).transpose()?;
        Ok(push.map(|push| (false, push)))
    }
}
