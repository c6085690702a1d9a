//! What a receipt is made of: the proof is kept when the answer counts; the rest lies in the push, its deliveries and the audit log.

use super::db::{Arg, Error, Statement, Tx};
use super::{Answer, PushRow, Store, json, parsed, to_json};
use crate::audit::{Act, Entry};
use crate::clock::Millis;
use crate::id::PushId;
use crate::receipt::Evidence;

static KEEP: Statement = Statement::new(
    "INSERT INTO proofs (push_id, device_id, device_key, proof) VALUES ($1, $2, $3, $4)",
);
static KEPT: Statement = Statement::new("SELECT * FROM proofs WHERE push_id = $1");
static VERDICT: Statement =
    Statement::new("SELECT entry FROM audit_log WHERE push_id = $1 AND act {in:$2}");
static WAITING: Statement =
    Statement::new("SELECT id FROM audit_waiting WHERE push_id = $1 LIMIT 1");
static FETCHED: Statement = Statement::new(
    "SELECT MIN(fetched_at) AS at FROM deliveries WHERE push_id = $1 AND ($2 IS NULL OR device_id = $2)",
);

/// What there is for a receipt.
#[derive(Debug, Clone)]
pub enum ReceiptParts {
    /// Everything.
    Ready {
        /// The entry that tells the end.
        entry: Box<Entry>,
        /// What the device signed, where one decided.
        evidence: Option<Box<Evidence>>,
        /// When the device that decided fetched the prompt, or where none did, the first one.
        fetched_at: Option<Millis>,
    },
    /// The end has no place in the log yet.
    NotChained,
    /// The log does not know of it: it ended before there was one.
    Unknown,
}

/// Keeps what a device has signed, with the key that it was checked with.
pub(super) async fn keep_proof(tx: &mut Tx, answer: &Answer<'_>) -> Result<(), Error> {
    let args = [
        Arg::Text(answer.push.as_str()),
        Arg::Text(answer.device.as_str()),
        Arg::Text(&to_json(answer.key)),
        Arg::Text(answer.proof),
    ];
    tx.fetch(&KEEP, &args).await?;
    Ok(())
}

impl Store {
    /// What there is for the receipt of a push that has ended.
    pub async fn receipt_parts(&self, push: &PushRow) -> Result<ReceiptParts, Error> {
        let Some(entry) = self.verdict(&push.id).await? else {
            let waiting = [Arg::Text(push.id.as_str())];
            if !self.db.fetch(&WAITING, &waiting).await?.is_empty() {
                return Ok(ReceiptParts::NotChained);
            }
            // It may have got its place between the two looks.
            return Ok(match self.verdict(&push.id).await? {
                Some(_) => ReceiptParts::NotChained,
                None => ReceiptParts::Unknown,
            });
        };
        let of = [Arg::Text(push.id.as_str())];
        let kept = self.db.fetch(&KEPT, &of).await?;
        let evidence = match kept.first() {
            None => None,
            Some(row) => Some(Box::new(Evidence {
                device: parsed(row, "device_id")?,
                device_key: json(row, "device_key")?,
                proof: row.text("proof")?,
            })),
        };
        let device = evidence.as_ref().map(|one| one.device.as_str());
        let args = [Arg::Text(push.id.as_str()), Arg::MaybeText(device)];
        let fetched = self.db.fetch(&FETCHED, &args).await?;
        let fetched_at = fetched
            .first()
            .map_or(Ok(None), |row| row.maybe_int("at"))?;
        Ok(ReceiptParts::Ready {
            entry: Box::new(entry),
            evidence,
            fetched_at,
        })
    }

    async fn verdict(&self, push: &PushId) -> Result<Option<Entry>, Error> {
        let acts = to_json(&Act::VERDICTS);
        let args = [Arg::Text(push.as_str()), Arg::Text(&acts)];
        let rows = self.db.fetch(&VERDICT, &args).await?;
        rows.first().map(|row| json(row, "entry")).transpose()
    }
}
