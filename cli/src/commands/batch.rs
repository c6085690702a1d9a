//! Batches from a file.

use super::Server;
use crate::client::{Client, Reply, refused};
use crate::exit::{Exit, Failure, chain};
use crate::output::Output;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use serde_json::Value;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a batch that is watched is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// The longest wait before an upload that was cut is sent again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A JSON object a line.
    Ndjson,
    /// A header row, then a row a line.
    Csv,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Send a file: a push a line. One that was sent before, or whose upload was cut, asks nobody twice.
    Send(Send),
    /// Show a batch.
    Status {
        /// The batch.
        batch: String,
    },
    /// Follow a batch to its end.
    Watch {
        /// The batch.
        batch: String,
        #[command(flatten)]
        until: Until,
    },
    /// List batches, newest first.
    List,
    /// Write the lines that became no push, with their faults, as NDJSON.
    Errors {
        /// The batch.
        batch: String,
    },
    /// Write what became of each line, as NDJSON.
    Results {
        /// The batch.
        batch: String,
    },
    /// Send nothing more until it is resumed.
    Pause {
        /// The batch.
        batch: String,
    },
    /// Go on.
    Resume {
        /// The batch.
        batch: String,
    },
    /// Take it back: what has not ended is cancelled.
    Cancel {
        /// The batch.
        batch: String,
    },
}

/// How long to follow a batch.
#[derive(Debug, Args)]
pub(crate) struct Until {
    /// Stop when everything is sent, and do not wait for the answers.
    #[arg(long)]
    sent: bool,
    /// Give up after this many seconds; the batch goes on.
    #[arg(long)]
    timeout: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// NDJSON or CSV, or one of them packed by gzip, which its name says: `.ndjson`, `.jsonl`, `.csv`, and `.gz`. `-`: standard input.
    file: PathBuf,
    /// What the name does not say.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// What people call it; the file's name.
    #[arg(long)]
    name: Option<String>,
    /// Which app asks, for lines that do not say it.
    #[arg(long)]
    relying_party: Option<String>,
    /// For lines that do not say it.
    #[arg(long)]
    title: Option<String>,
    /// For lines that do not say it.
    #[arg(long)]
    message: Option<String>,
    /// How long an answer counts, for lines that do not say it.
    #[arg(long)]
    expires_in: Option<String>,
    /// Send no more pushes a second than this.
    #[arg(long)]
    max_per_second: Option<u32>,
    /// Only say what would become of it.
    #[arg(long)]
    validate_only: bool,
    /// Send nothing at all if one line has faults.
    #[arg(long)]
    atomic: bool,
    /// The same key asks once; follows from the file and the options when left out.
    #[arg(long)]
    idempotency_key: Option<String>,
    /// Follow the batch once it is there.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    until: Until,
    /// How long to go on trying, in seconds, while the server is away or full.
    #[arg(long, default_value_t = 600)]
    patience: u64,
}

/// A file that was copied here from standard input. It goes with this value.
struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

fn unreadable(path: &Path, error: &dyn std::error::Error) -> Failure {
    let what = format!("{} cannot be read: {}", path.display(), chain(error));
    Failure::new(Exit::Failed, what)
}

/// Standard input as a file: it may have to be sent again.
fn spool() -> Result<Spool, Failure> {
    let name = format!("countersign-{}", shared::crypto::random_text::<16>());
    let path = std::env::temp_dir().join(name);
    let copied = crate::client::private_file(&path)
        .and_then(|mut file| std::io::copy(&mut std::io::stdin().lock(), &mut file));
    let spool = Spool(path);
    copied.map_err(|error| unreadable(Path::new("standard input"), &error))?;
    Ok(spool)
}

impl Send {
    /// The content type, and is it packed?
    fn kind(&self) -> Result<(&'static str, bool), Failure> {
        let name = self.file.to_string_lossy().to_lowercase();
        let (plain, gzip) = match name.strip_suffix(".gz") {
            Some(plain) => (plain.to_owned(), true),
            None => (name, false),
        };
        let by_name = match plain.rsplit_once('.').map(|(_, end)| end) {
            Some("ndjson" | "jsonl") => Some(Format::Ndjson),
            Some("csv") => Some(Format::Csv),
            _ => None,
        };
        let content_type = match self.format.or(by_name) {
            Some(Format::Ndjson) => "application/x-ndjson",
            Some(Format::Csv) => "text/csv",
            None => {
                let what = format!(
                    "{}: the name does not say how it is written",
                    self.file.display()
                );
                return Err(Failure::new(Exit::Usage, what).fix("--format ndjson, or --format csv"));
            }
        };
        Ok((content_type, gzip))
    }

    fn query(&self) -> String {
        let name = self.name.clone().or_else(|| {
            let name = self.file.file_name()?.to_string_lossy().into_owned();
            Some(name).filter(|name| name != "-")
        });
        let pairs = [
            ("name", name),
            ("relying_party", self.relying_party.clone()),
            ("title", self.title.clone()),
            ("message", self.message.clone()),
            ("expires_in", self.expires_in.clone()),
            ("max_per_second", self.max_per_second.map(|n| n.to_string())),
            (
                "validate_only",
                self.validate_only.then(|| "true".to_owned()),
            ),
            ("atomic", self.atomic.then(|| "true".to_owned())),
        ];
        let given = pairs
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", escaped(&value?))));
        given.collect::<Vec<_>>().join("&")
    }

    async fn run(&self, client: &Client, output: &Output) -> Result<Exit, Failure> {
        let (content_type, gzip) = self.kind()?;
        let spooled = (self.file.as_os_str() == "-").then(spool).transpose()?;
        let path = spooled
            .as_ref()
            .map_or(self.file.as_path(), |spool| &spool.0);
        let query = self.query();
        let key = if let Some(key) = &self.idempotency_key {
            key.clone()
        } else {
            let file = std::fs::File::open(path).map_err(|e| unreadable(path, &e))?;
            let hash = shared::crypto::sha256_of(file).map_err(|e| unreadable(path, &e))?;
            shared::crypto::sha256_text(format!("{query} {hash}").as_bytes())
        };
        let mut headers = vec![("content-type", content_type), ("idempotency-key", &key)];
        if gzip {
            headers.push(("content-encoding", "gzip"));
        }
        let target = format!("/v1/stores/{}/batches?{query}", client.store());
        let reply = self.upload(client, &target, &headers, path, output).await?;
        if !reply.status.is_success() {
            return Err(refused(&reply));
        }
        let batch = &reply.body;
        if self.validate_only {
            output.data(batch, &checked(batch));
            let good = number(batch, "/refused") == 0;
            return Ok(if good { Exit::Done } else { Exit::Partly });
        }
        output.data(batch, &summary(batch));
        let id = batch["id"].as_str().unwrap_or_default();
        if number(batch, "/counts/refused") > 0 {
            output.note(&format!(
                "what is wrong with the others: countersign batch errors {id}"
            ));
        }
        if self.watch {
            return watch(client, id, &self.until, output).await;
        }
        Ok(end_of(batch))
    }

    /// Sends the file until it is there. An upload that was cut is sent again as a whole: the server knows the lines that it has.
    async fn upload(
        &self,
        client: &Client,
        target: &str,
        headers: &[(&str, &str)],
        path: &Path,
        output: &Output,
    ) -> Result<Reply, Failure> {
        let length = std::fs::metadata(path)
            .map_err(|e| unreadable(path, &e))?
            .len();
        let bar = output.bytes_bar(length);
        let began = Instant::now();
        let patience = Duration::from_secs(self.patience);
        let mut wait = Duration::from_secs(1);
        loop {
            bar.set_position(0);
            let moved = bar.clone();
            let sent = std::sync::Arc::new(move |sent| moved.set_position(sent));
            let end = client.upload(target, headers, path, sent).await;
            let again = match &end {
                Ok(reply) => {
                    let cut = reply.body["code"] == "upload_cut";
                    (cut || matches!(reply.status.as_u16(), 429 | 502..=504))
                        .then_some(reply.retry_after)
                }
                Err(failure) => (failure.exit == Exit::Unreachable).then_some(None),
            };
            let Some(after) = again.filter(|_| began.elapsed() < patience) else {
                bar.finish_and_clear();
                return end;
            };
            let said = match &end {
                Ok(reply) => refused(reply).what,
                Err(failure) => failure.what.clone(),
            };
            let wait_for = after.map_or(wait, Duration::from_secs);
            bar.suspend(|| output.note(&format!("{said}; again in {} s", wait_for.as_secs())));
            tokio::time::sleep(wait_for).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

/// A text as it stands in a query (RFC 3986, 2.3).
fn escaped(text: &str) -> String {
    let one = |byte: u8| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(one).collect()
}

fn number(batch: &Value, pointer: &str) -> i64 {
    batch.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn checked(check: &Value) -> String {
    let mut words = vec![format!(
        "{} lines: {} good, {} with faults, {} sent before",
        number(check, "/lines"),
        number(check, "/valid"),
        number(check, "/refused"),
        number(check, "/duplicates")
    )];
    for one in check["errors"].as_array().into_iter().flatten() {
        for fault in one["errors"].as_array().into_iter().flatten() {
            let part = |name: &str| fault[name].as_str().unwrap_or_default();
            let (pointer, detail, code) = (part("pointer"), part("detail"), part("code"));
            let line = &one["line"];
            words.push(format!("  line {line}: {pointer} {detail} ({code})"));
        }
    }
    words.join("\n")
}

/// How far it is, in one line.
fn summary(batch: &Value) -> String {
    let text = |name: &str| batch[name].as_str().unwrap_or_default();
    let mut words = vec![
        format!("{} {}", text("state"), text("reason"))
            .trim()
            .to_owned(),
    ];
    words.push(format!("{} accepted", number(batch, "/accepted")));
    for (pointer, what) in [
        ("/counts/refused", "refused"),
        ("/counts/duplicates", "sent before"),
        ("/counts/waiting", "waiting"),
        ("/counts/in_flight", "in flight"),
        ("/counts/pending", "pending"),
    ] {
        let count = number(batch, pointer);
        if count > 0 {
            words.push(format!("{count} {what}"));
        }
    }
    let ended = batch.pointer("/counts/ended").and_then(Value::as_object);
    for (state, reasons) in ended.into_iter().flatten() {
        let count: i64 = reasons
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(_, n)| n.as_i64())
            .sum();
        words.push(format!("{count} {state}"));
    }
    words.push(text("id").to_owned());
    words.join(" · ")
}

/// As a batch stands that nobody waits for any more.
fn end_of(batch: &Value) -> Exit {
    if batch["state"] == "cancelled" {
        Exit::Cancelled
    } else if number(batch, "/counts/refused") > 0 {
        Exit::Partly
    } else {
        Exit::Done
    }
}

fn show(bar: &ProgressBar, batch: &Value) {
    let (accepted, ended) = (number(batch, "/accepted"), batch["ended_at"].is_string());
    let left = number(batch, "/counts/waiting") + number(batch, "/counts/in_flight");
    let sent = if ended {
        accepted
    } else {
        (accepted - left).max(0)
    };
    bar.set_length(accepted.unsigned_abs());
    bar.set_position(sent.unsigned_abs());
    bar.set_message(summary(batch));
}

/// Follows a batch to its end, or until everything is sent.
async fn watch(client: &Client, id: &str, until: &Until, output: &Output) -> Result<Exit, Failure> {
    let began = Instant::now();
    let patience = until.timeout.map(Duration::from_secs);
    let path = format!("/v1/stores/{}/batches/{id}", client.store());
    let bar = output.count_bar();
    let mut last = Value::Null;
    loop {
        let given_up = patience.is_some_and(|patience| began.elapsed() >= patience);
        let batch = match client.ask("GET", &path, None).await {
            // A server that restarts comes back; the batch goes on meanwhile.
            Err(failure) if failure.exit == Exit::Unreachable && !given_up => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            other => other?,
        };
        show(&bar, &batch);
        let left = number(&batch, "/counts/waiting") + number(&batch, "/counts/in_flight");
        let sent = until.sent && left == 0 && batch["received_at"].is_string();
        let over = batch["ended_at"].is_string() || sent;
        if over || given_up {
            bar.finish_and_clear();
            output.data(&batch, &summary(&batch));
            return Ok(if over { end_of(&batch) } else { Exit::GaveUp });
        }
        if output.json && batch != last {
            output.line(&batch.to_string());
            last = batch;
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Action {
    pub(super) async fn run(&self, server: &Server, output: &Output) -> Result<Exit, Failure> {
        let client = server.client()?;
        let base = format!("/v1/stores/{}/batches", client.store());
        let (method, path) = match self {
            Self::Send(send) => return send.run(&client, output).await,
            Self::Watch { batch, until } => return watch(&client, batch, until, output).await,
            Self::Errors { batch } => {
                return report(&client, &format!("{base}/{batch}/errors.ndjson")).await;
            }
            Self::Results { batch } => {
                return report(&client, &format!("{base}/{batch}/results.ndjson")).await;
            }
            Self::List => return list(&client, &base, output).await,
            Self::Status { batch } => ("GET", format!("{base}/{batch}")),
            Self::Pause { batch } => ("POST", format!("{base}/{batch}/pause")),
            Self::Resume { batch } => ("POST", format!("{base}/{batch}/resume")),
            Self::Cancel { batch } => ("POST", format!("{base}/{batch}/cancel")),
        };
        let batch = client.ask(method, &path, None).await?;
        output.data(&batch, &summary(&batch));
        Ok(Exit::Done)
    }
}

async fn list(client: &Client, base: &str, output: &Output) -> Result<Exit, Failure> {
    let mut cursor = String::new();
    loop {
        let page = client
            .ask("GET", &format!("{base}?limit=200{cursor}"), None)
            .await?;
        for batch in page["data"].as_array().into_iter().flatten() {
            let words = [
                summary(batch),
                batch["name"].as_str().unwrap_or_default().to_owned(),
            ];
            output.data(batch, words.join(" · ").trim_end_matches(" · "));
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(Exit::Done),
        }
    }
}

/// Writes a report to standard output as it comes, whatever its length.
async fn report(client: &Client, path: &str) -> Result<Exit, Failure> {
    let write = |bytes: &[u8]| std::io::stdout().lock().write_all(bytes);
    client.download(path, write).await?;
    Ok(Exit::Done)
}
