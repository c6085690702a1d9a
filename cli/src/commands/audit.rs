//! The audit log: take it out, and check it anywhere.

use super::Server;
use crate::exit::{Exit, Failure, chain};
use crate::output::Output;
use clap::{Args, Subcommand};
use serde_json::json;
use shared::audit::{check, line_of};
use shared::crypto::ServerKey;
use std::path::{Path, PathBuf};

/// How many entries are asked for at once.
const PART: u64 = 200;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Write the whole log of a store to standard output, with its signed head as the last line.
    Export {
        #[command(flatten)]
        server: Server,
    },
    /// Show the signed end of the log: kept elsewhere, it pins everything before it.
    Head {
        #[command(flatten)]
        server: Server,
    },
    /// Check an exported log, without a server or settings.
    Verify {
        /// The exported log.
        file: PathBuf,
        #[command(flatten)]
        pin: Pin,
    },
}

/// Which key must have signed.
#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// The server's key: its fingerprint, or a file that holds it as a JWK.
    #[arg(long)]
    server_key: Option<String>,
}

impl Pin {
    /// The fingerprint.
    pub(crate) fn kid(&self) -> Result<Option<String>, Failure> {
        let Some(given) = &self.server_key else {
            return Ok(None);
        };
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if given.len() == 43 && given.bytes().all(fits) {
            return Ok(Some(given.clone()));
        }
        let text = read(Path::new(given))?;
        let key = ServerKey::from_jwk(&text).ok_or_else(|| {
            let what = format!("{given} holds no Ed25519 key as a JWK, and is no fingerprint");
            Failure::new(Exit::Usage, what).fix("countersign audit head")
        })?;
        Ok(Some(key.kid))
    }

    /// What is still open when no key was given.
    pub(crate) fn advise(&self, key: &ServerKey, output: Output) {
        if self.server_key.is_none() {
            let kid = &key.kid;
            output.note(&format!(
                "no key was given to compare with: all this holds if the server's key is {kid} (--server-key)"
            ));
        }
    }
}

/// The text of a file.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        let what = format!("cannot read {}: {error}", path.display());
        Failure::new(Exit::Failed, what)
    })
}

impl Action {
    pub(super) async fn run(&self, output: &Output) -> Result<Exit, Failure> {
        match self {
            Self::Export { server } => export(server, output).await,
            Self::Head { server } => {
                let client = server.client()?;
                let path = format!("/v1/stores/{}/audit/head", client.store());
                let head = client.ask("GET", &path, None).await?;
                let text = |pointer: &str| head.pointer(pointer).and_then(|v| v.as_str());
                let kid = text("/server_key/kid").unwrap_or_default();
                output.note(&format!("{} entries; the key is {kid}", head["seq"]));
                output.data(&head, text("/head").unwrap_or_default());
                Ok(Exit::Done)
            }
            Self::Verify { file, pin } => verify(file, pin, *output),
        }
    }
}

async fn export(server: &Server, output: &Output) -> Result<Exit, Failure> {
    let client = server.client()?;
    let log = format!("/v1/stores/{}/audit", client.store());
    let head = client.ask("GET", &format!("{log}/head"), None).await?;
    let end = head["seq"].as_u64().unwrap_or_default();
    let mut at = 0;
    while at < end {
        let limit = PART.min(end - at);
        let path = format!("{log}?cursor={at}&limit={limit}");
        let page = client.ask("GET", &path, None).await?;
        let entries = page["data"].as_array().cloned().unwrap_or_default();
        if entries.is_empty() {
            let what = format!("the server has no entry behind {at}, but its head says {end}");
            return Err(Failure::new(Exit::Failed, what));
        }
        for entry in &entries {
            output.line(&line_of(entry));
        }
        at += entries.len() as u64;
    }
    output.line(&json!({"head": head["head"]}).to_string());
    Ok(Exit::Done)
}

fn verify(file: &Path, pin: &Pin, output: Output) -> Result<Exit, Failure> {
    let kid = pin.kid()?;
    let opened = std::fs::File::open(file).map_err(|error| {
        let what = format!("cannot read {}: {error}", file.display());
        Failure::new(Exit::Failed, what)
    })?;
    let checked = check(std::io::BufReader::new(opened), kid.as_deref(), |_| {})
        .map_err(|broken| Failure::new(Exit::Failed, chain(&broken)))?;
    let head = &checked.head;
    output.data(
        &json!({"entries": head.seq, "store": head.store, "hash": head.hash, "at": head.at, "server_key": checked.key}),
        &format!("{} entries of {} hold, as signed at {}", head.seq, head.store, head.at),
    );
    pin.advise(&checked.key, output);
    Ok(Exit::Done)
}
