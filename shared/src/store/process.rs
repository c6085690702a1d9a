//! Process pushes: the link is opened once, a child process instance runs, and its end is the push's.

use super::audit::{Note, note};
use super::db::{Arg, Error, Row, Statement};
use super::ending::{announce_by, rows_of};
use super::pushes::push_of;
use super::{PushRow, Store, json, parsed};
use crate::audit::Act;
use crate::clock::Millis;
use crate::domain::InstanceState;
use crate::id::{InstanceId, StoreId};
use serde_json::Value;

/// However often an instance goes to review: it is over this long after its link was opened.
pub const LONGEST_INSTANCE: Millis = 3_600_000;

static OPEN: Statement = Statement::new(
    "UPDATE pushes SET state = 'opened', opened_at = $2, instance_id = $3, instance_state = 'pending',
       expires_at = $2 + COALESCE(max_duration, 0), expire_due = $2 + COALESCE(max_duration, 0), escalate_at = NULL
     WHERE token_hash = $1 AND opened_at IS NULL AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $2 AND state IN ('accepted', 'pending')
       AND COALESCE(not_before, 0) <= $2 AND COALESCE(not_after, expires_at) > $2
     RETURNING *",
);
static BY_TOKEN: Statement = Statement::new("SELECT * FROM pushes WHERE token_hash = $1");
macro_rules! later_by_review {
    () => {
        "CASE WHEN $3 <> 'review' OR expires_at > $4 + COALESCE(max_duration, 0) THEN expires_at
         WHEN opened_at + $5 < $4 + COALESCE(max_duration, 0) THEN opened_at + $5
         ELSE $4 + COALESCE(max_duration, 0) END"
    };
}
static GO_ON: Statement = Statement::new(concat!(
    "UPDATE pushes SET instance_state = $3, expires_at = ",
    later_by_review!(),
    ", expire_due = ",
    later_by_review!(),
    " WHERE store_id = $1 AND instance_id = $2 AND state = 'opened' AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $4
       AND COALESCE(instance_state, 'pending') <> $3 RETURNING *",
));
static END: Statement = Statement::new(
    "UPDATE pushes SET state = $3, reason = $4, ended_at = $5, instance_state = $6
     WHERE store_id = $1 AND instance_id = $2 AND state = 'opened' AND COALESCE(ended_at, 0) = 0 AND expires_at + 0 > $5 RETURNING *",
);
static BY_INSTANCE: Statement =
    Statement::new("SELECT * FROM pushes WHERE store_id = $1 AND instance_id = $2");
static STORE_OF_INSTANCE: Statement =
    Statement::new("SELECT store_id FROM pushes WHERE instance_id = $1");

/// Where a link leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Who asks.
    pub rp: String,
    /// The page of the process definition.
    pub start_url: String,
}

/// How a link stands, looked at and not touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessLink {
    /// It can be opened.
    Ready(Destination),
    /// It can be opened from this time on.
    Early(Millis),
    /// It was opened, or its time is over.
    Spent,
    /// There is no such link.
    Unknown,
}

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
    /// None has: this is how the link stands.
    Not(ProcessLink),
}

fn start_url(row: &Row) -> Result<String, Error> {
    let definition: Value = json(row, "definition")?;
    Ok(definition["start_url"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

fn link_of(row: &Row, now: Millis) -> Result<ProcessLink, Error> {
    let push = push_of(row)?;
    let late = row.maybe_int("not_after")?.is_some_and(|at| at <= now);
    let over = push.ended_at.is_some() || push.expires_at <= now || late;
    if over || row.maybe_int("opened_at")?.is_some() {
        return Ok(ProcessLink::Spent);
    }
    if let Some(at) = row.maybe_int("not_before")?.filter(|at| *at > now) {
        return Ok(ProcessLink::Early(at));
    }
    let start_url = start_url(row)?;
    let rp = push.rp;
    Ok(ProcessLink::Ready(Destination { rp, start_url }))
}

impl Store {
    /// How a process link stands. Looking at it does not spend it: mail scanners and previews of links look too.
    pub async fn process_link(&self, token_hash: &str, now: Millis) -> Result<ProcessLink, Error> {
        let rows = self.db.fetch(&BY_TOKEN, &[Arg::Text(token_hash)]).await?;
        rows.first()
            .map_or(Ok(ProcessLink::Unknown), |row| link_of(row, now))
    }

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
        let Some(row) = rows.first() else {
            drop(tx);
            return self.refused_link(token_hash, now).await.map(Opened::Not);
        };
        let push = push_of(row)?;
        let facts = serde_json::json!({"instance": instance});
        let opened = Note::new(&push.store, Act::LinkOpened).push(&push.id);
        note(&mut tx, &[opened.user(&push.user).facts(facts)], now).await?;
        tx.commit().await?;
        Ok(Opened::Started(Box::new(Started {
            instance,
            push,
            start_url: start_url(row)?,
            parameters: json(row, "parameters")?,
        })))
    }

    /// Why a link did not open, noted.
    async fn refused_link(&self, token_hash: &str, now: Millis) -> Result<ProcessLink, Error> {
        let rows = self.db.fetch(&BY_TOKEN, &[Arg::Text(token_hash)]).await?;
        let Some(row) = rows.first() else {
            return Ok(ProcessLink::Unknown);
        };
        // Read as ready: taken by somebody else in between.
        let link = match link_of(row, now)? {
            ProcessLink::Ready(_) => ProcessLink::Spent,
            other => other,
        };
        let used = row.maybe_int("opened_at")?.is_some();
        let fault = match link {
            ProcessLink::Early(_) => "early",
            _ if used => "used",
            _ => "ended",
        };
        let (push, store) = (parsed(row, "id")?, parsed(row, "store_id")?);
        self.refused(Act::LinkRefused, &store, &push, None, fault, now)
            .await?;
        Ok(link)
    }

    /// The store of a child process instance.
    pub async fn store_of_instance(&self, instance: &InstanceId) -> Result<Option<StoreId>, Error> {
        let args = [Arg::Text(instance.as_str())];
        let rows = self.db.fetch(&STORE_OF_INSTANCE, &args).await?;
        rows.first().map(|row| parsed(row, "store_id")).transpose()
    }

    /// The push of a child process instance.
    pub async fn push_of_instance(
        &self,
        store: &StoreId,
        instance: &InstanceId,
    ) -> Result<Option<PushRow>, Error> {
        let args = [Arg::Text(store.as_str()), Arg::Text(instance.as_str())];
        let rows = self.db.fetch(&BY_INSTANCE, &args).await?;
        rows.first().map(push_of).transpose()
    }

    /// Takes a report of a child process instance: it goes on, or it ends and its push with it. The first end counts; the push tells which it
    /// was, and whether this report has changed anything. `None`: the store has no such instance.
    pub async fn report_instance(
        &self,
        store: &StoreId,
        instance: &InstanceId,
        to: InstanceState,
        now: Millis,
    ) -> Result<Option<(bool, PushRow)>, Error> {
        let mut tx = self.db.begin().await?;
        let of = [Arg::Text(store.as_str()), Arg::Text(instance.as_str())];
        let changed = match to.outcome() {
            Some((state, reason)) => {
                let args = [
                    of[0],
                    of[1],
                    Arg::Text(state.as_str()),
                    Arg::Text(reason),
                    Arg::Int(now),
                    Arg::Text(to.as_str()),
                ];
                rows_of(&tx.fetch(&END, &args).await?)
            }
            // How it begins is for us to say.
            None if to == InstanceState::Pending => Vec::new(),
            None => {
                let args = [
                    of[0],
                    of[1],
                    Arg::Text(to.as_str()),
                    Arg::Int(now),
                    Arg::Int(LONGEST_INSTANCE),
                ];
                rows_of(&tx.fetch(&GO_ON, &args).await?)
            }
        };
        let Some(push) = changed.first().cloned() else {
            let rows = tx.fetch(&BY_INSTANCE, &of).await?;
            let push = rows.first().map(push_of).transpose()?;
            return Ok(push.map(|push| (false, push)));
        };
        let messages = match to.outcome() {
            Some(_) => announce_by(&mut tx, &changed, &[], self.by.as_deref(), now).await?,
            None => Vec::new(),
        };
        self.commit(tx, messages, now).await?;
        Ok(Some((true, push)))
    }
}
