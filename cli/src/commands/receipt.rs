//! The receipt of a push: get it, and check it anywhere.

use super::Server;
use super::audit::{Pin, read};
use crate::client::refused;
use crate::exit::{Exit, Failure, chain};
use crate::output::Output;
use clap::Subcommand;
use serde_json::json;
use shared::audit::check;
use shared::payments::{ItemBroken, ItemProof};
use shared::receipt::{Receipt, Verified, verify};
use std::fmt::Write as _;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a receipt is asked for whose end has no place in the log yet, and how long between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Write the receipt of a push that has ended to standard output.
    Get {
        /// The push.
        push: String,
        /// Put what was shown into it too, not only its hash.
        #[arg(long)]
        content: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Write the proof that a payment belongs to a batch to standard output.
    Item {
        /// The push that asked for the batch.
        push: String,
        /// The place of the payment: 0 is the first.
        index: u64,
        #[command(flatten)]
        server: Server,
    },
    /// Check a receipt, without a server or settings.
    Verify {
        /// The receipt.
        file: PathBuf,
        #[command(flatten)]
        pin: Pin,
        /// The audit log that it must be in, as `countersign audit export` writes it.
        #[arg(long)]
        log: Option<PathBuf>,
        /// A payment that must be one of those that were approved, as `countersign receipt item` writes it.
        #[arg(long)]
        item: Option<PathBuf>,
    },
}

impl Action {
    pub(super) async fn run(&self, output: &Output) -> Result<Exit, Failure> {
        match self {
            Self::Get {
                push,
                content,
                server,
            } => get(push, *content, server, output).await,
            Self::Item {
                push,
                index,
                server,
            } => item(push, *index, server, output).await,
            Self::Verify {
                file,
                pin,
                log,
                item,
            } => check_file(file, pin, log.as_deref(), item.as_deref(), *output),
        }
    }
}

async fn get(push: &str, content: bool, server: &Server, output: &Output) -> Result<Exit, Failure> {
    let client = server.client()?;
    let store = client.store();
    let path = format!("/v1/stores/{store}/pushes/{push}/receipt?content={content}");
    let mut tries = 0;
    loop {
        let reply = client.call("GET", &path, None, &[], Duration::ZERO).await?;
        if reply.status.is_success() {
            output.line(reply.text.trim_end_matches('\n'));
            return Ok(Exit::Done);
        }
        tries += 1;
        if reply.body["code"] != "receipt_pending" || tries >= TRIES {
            return Err(refused(&reply));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn item(push: &str, index: u64, server: &Server, output: &Output) -> Result<Exit, Failure> {
    let client = server.client()?;
    let store = client.store();
    let path = format!("/v1/stores/{store}/pushes/{push}/payments/{index}");
    let proof = client.ask("GET", &path, None).await?;
    output.line(&proof.to_string());
    Ok(Exit::Done)
}

fn check_file(
    file: &Path,
    pin: &Pin,
    log: Option<&Path>,
    item: Option<&Path>,
    output: Output,
) -> Result<Exit, Failure> {
    let kid = pin.kid()?;
    let text = read(file)?;
    let verified = verify(&text, kid.as_deref())
        .map_err(|broken| Failure::new(Exit::Failed, chain(&broken)))?;
    if let Some(log) = log {
        in_log(&verified, log)?;
    }
    let Verified { receipt, key } = &verified;
    let mut data = json!({"receipt": receipt, "server_key": key});
    let mut said = words(receipt, log.is_some());
    if let Some(path) = item {
        let proof = covered(receipt, path)?;
        let paid = &proof.item;
        write!(
            said,
            "\npayment {} of {} is one of those approved: {} {} to {}, {}",
            proof.index + 1,
            proof.tree_size,
            paid.amount,
            paid.currency,
            paid.payee.name,
            paid.payee.account
        )
        .ok();
        data["item"] = json!(proof);
    }
    output.data(&data, &said);
    pin.advise(key, output);
    Ok(Exit::Done)
}

/// The payment in a file, which is one of those that the receipt says were approved.
fn covered(receipt: &Receipt, path: &Path) -> Result<ItemProof, Failure> {
    let broken = |what: &ItemBroken| {
        Failure::new(Exit::Failed, format!("{}: {}", path.display(), chain(what)))
    };
    let proof = ItemProof::read(&read(path)?).map_err(|fault| broken(&fault))?;
    receipt.covers(&proof).map_err(|fault| broken(&fault))?;
    Ok(proof)
}

/// The log holds, and has the receipt's entry in its place.
fn in_log(Verified { receipt, key }: &Verified, path: &Path) -> Result<(), Failure> {
    let broken = |what: String| Failure::new(Exit::Failed, format!("{}: {what}", path.display()));
    let file =
        std::fs::File::open(path).map_err(|error| broken(format!("cannot be read: {error}")))?;
    let seq = receipt.entry.seq;
    let mut found = None;
    let checked = check(BufReader::new(file), Some(&key.kid), |entry| {
        if entry.seq == seq {
            found = Some(entry.clone());
        }
    })
    .map_err(|error| broken(chain(&error)))?;
    if checked.head.store != receipt.store {
        return Err(broken("it is the log of another store".to_owned()));
    }
    match found {
        Some(entry) if entry == receipt.entry => Ok(()),
        Some(_) => Err(broken(format!(
            "entry {seq} is another one than the receipt's: the log was rewritten"
        ))),
        None => Err(broken(format!(
            "entry {seq} is missing: the log ends before the receipt's entry"
        ))),
    }
}

fn words(receipt: &Receipt, in_log: bool) -> String {
    let Receipt {
        push,
        store,
        user,
        state,
        reason,
        ended_at,
        entry,
        ..
    } = receipt;
    let decided = match &receipt.evidence {
        Some(evidence) => format!("signed by device {}", evidence.device),
        None => "no device decided".to_owned(),
    };
    let log = if in_log {
        "which is there"
    } else {
        "which was not looked at (--log)"
    };
    let content = match &receipt.content {
        Some(_) => "what was shown is in the receipt",
        None => "what was shown is in the receipt by its hash only",
    };
    format!(
        "{state} ({reason}) at {ended_at}\npush {push} of {store}, asked of {user}\n{decided}\nentry {} of the audit log, {log}\n{content}",
        entry.seq
    )
}
