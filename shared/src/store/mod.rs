//! The store port: the only SQL. The database is the truth; every row that promises a message is written in the
//! transaction of the state that it reports.

mod answer;
mod approvals;
mod audit;
mod batches;
mod bulk;
mod census;
mod claim;
mod consume;
pub mod db;
mod device_change;
mod devices;
mod ending;
mod enrolment;
mod fraud;
mod governor;
mod intake;
mod notices;
mod outbox;
mod payments;
mod policies;
mod process;
mod push_tokens;
mod pushes;
mod receipts;
mod record;
mod reply;
mod requests;
mod sweep;
mod tenants;
mod users;

pub use answer::{Answer, Answered, Prompt};
pub use approvals::{ApprovalRow, Cancelled, NewApproval, TakenApproval};
pub use audit::HeadRow;
pub use batches::{
    BatchRow, Begun, Counts, InFlight, LineResult, NewBatch, NewRow, PART, Refusal, Releasable,
    Released, RowCheck, Took, Upload, Waiting,
};
pub use bulk::Chunk;
pub use claim::{Claim, Claimed, Wanted};
pub use consume::{Action, Consumed, USABLE};
pub use db::{Db, Error};
pub use devices::{Address, Device, NewDevice, Refused as DeviceRefused};
pub use enrolment::{CodeRefused, EnrolRefused, EnrolmentCode, MAX_OPEN_CODES, NewCode};
pub use fraud::FraudLock;
pub use intake::{NewProcess, NewPush, Taken, Terms, UserRef};
pub use notices::Notice;
pub use outbox::{Class, Committed, Handover, LEASE, Outbox};
pub use payments::PaymentRow;
pub use policies::{AppkeyPolicy, Definition, PushPolicy, SealedPolicy};
pub use process::{Destination, LONGEST_INSTANCE, Opened, ProcessLink, Started};
pub use push_tokens::PushToken;
pub use pushes::{DeliveryRow, Page, PushRow};
pub use receipts::ReceiptParts;
pub use record::{Recorded, Result as DeliveryResult};
pub use requests::REQUEST_MEMORY;
pub use sweep::BATCH as SWEEP_BATCH;
pub use tenants::{KeyOwner, KeyRow, StoreRow};
pub use users::User;

use crate::courtesy::Courtesy;
use crate::message::Message;
use db::Tx;
use std::sync::Arc;
use tokio::sync::Notify;

/// All operations on one database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: Db,
    handover: Handover,
    /// For whom: it goes into the audit log with what is done.
    by: Option<String>,
    /// Rings when the backlog has something new for the dispatcher of the same process.
    backlog_news: Arc<Notify>,
    courtesy: Arc<Courtesy>,
}

impl Store {
    /// The store in `db`. What it promises is handed to the relay behind `handover`.
    pub fn new(db: Db, handover: Handover) -> Self {
        Self {
            db,
            handover,
            by: None,
            backlog_news: Arc::default(),
            courtesy: Arc::default(),
        }
    }

    /// The same store, for somebody whose identifier the audit log is to tell: that of an API key, or of a device.
    pub fn by(&self, who: &impl ToString) -> Self {
        Self {
            by: Some(who.to_string()),
            ..self.clone()
        }
    }

    /// Who waits in this process, to whom batches give way.
    pub fn courtesy(&self) -> &Courtesy {
        &self.courtesy
    }

    /// The database below.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Writes the promises, commits, and hands them over. Approvals that it has ended members of are counted next.
    async fn commit(&self, mut tx: Tx, messages: Vec<Message>, now: i64) -> Result<(), Error> {
        let to_settle = std::mem::take(&mut tx.to_settle);
        self.commit_promises(tx, messages, || (), now).await?;
        self.settle_now(to_settle, now).await;
        Ok(())
    }

    /// Writes the promises, commits, does what is to be done `before` they are handed over, and hands them over.
    async fn commit_promises(
        &self,
        mut tx: Tx,
        messages: Vec<Message>,
        before: impl FnOnce() + Send + 'static,
        now: i64,
    ) -> Result<(), Error> {
        let promised = self
            .handover
            .promise(&mut tx, messages, now + LEASE)
            .await?;
        let handover = self.handover.clone();
        // Those who hear of it must not hear of something that a crash takes back.
        let told = tx.is_repeatable() && promised.is_told_outside();
        if tx.commits_at_once() && !told {
            let gives_way = tx.gives_way();
            // There is no point where a caller could hang up.
            tx.commit_only().await?;
            before();
            handover.keep(promised);
            if gives_way {
                tokio::task::yield_now().await;
            }
            return Ok(());
        }
        // Its own task: a caller who hangs up meanwhile undoes no commit, and what is committed is sent on.
        let db = self.db.clone();
        let committed = tokio::spawn(async move {
            tx.commit_only().await?;
            if told && let Err(error) = db.all_safe().await {
                before();
                if matches!(db, Db::Sqlite(_)) {
                    return Err(error);
                }
                // It is committed, and its messages are in the outbox: a sweep publishes them.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what was committed may not be on the disk yet"
                );
                return Ok(());
            }
            before();
            handover.keep(promised);
            Ok(())
        });
        match committed.await {
            Ok(result) => result,
            Err(died) => match died.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down; whether it is committed, the next process sees.
                Err(_) => Err(Error::Stopped),
            },
        }
    }
}

/// Reads a column that holds one of our words or identifiers.
fn parsed<T: std::str::FromStr>(row: &db::Row, column: &'static str) -> Result<T, Error> {
    row.text(column)?.parse().map_err(|_| Error::Row(column))
}

fn maybe_parsed<T: std::str::FromStr>(
    row: &db::Row,
    column: &'static str,
) -> Result<Option<T>, Error> {
    row.maybe_text(column)?
        .map(|text| text.parse().map_err(|_| Error::Row(column)))
        .transpose()
}

/// Reads a column that holds JSON.
fn json<T: serde::de::DeserializeOwned>(row: &db::Row, column: &'static str) -> Result<T, Error> {
    serde_json::from_str(&row.text(column)?).map_err(|_| Error::Row(column))
}

/// A JSON text of values that cannot fail to serialise: identifiers, texts, numbers.
fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
