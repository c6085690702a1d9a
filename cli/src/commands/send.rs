//! Ask, and wait.

use super::Server;
use super::audit::read;
use crate::client::{Client, refused};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the server holds one answer back.
const HOLD: u64 = 25;
/// How long to wait before a server that is away is asked again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A signed approve or deny.
    Confirm,
    /// Contents are shown; each device that accepts is counted.
    Generic,
    /// A link opens and a child process instance decides.
    Process,
}

/// How long to wait.
#[derive(Debug, Args)]
pub(crate) struct Patience {
    /// Give up after this many seconds; the push goes on.
    #[arg(long, default_value_t = 660)]
    timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Whom to ask: your own identifier of the user, or `usr_…`. With `--required` several of them, with commas between.
    user: String,
    /// The question, in one line.
    title: String,
    /// The question, in more words.
    #[arg(long)]
    message: Option<String>,
    /// A typed detail, such as `Place=Cork`; may be given several times.
    #[arg(long = "detail", value_name = "LABEL=VALUE")]
    details: Vec<String>,
    /// With `confirm`: what is to be paid, and to whom.
    #[arg(long, num_args = 4, value_names = ["AMOUNT", "CURRENCY", "NAME", "ACCOUNT"], conflicts_with = "payments")]
    payment: Vec<String>,
    /// With `confirm`: a batch of payments, a file with a JSON list of them.
    #[arg(long, value_name = "FILE")]
    payments: Option<PathBuf>,
    /// From where the question comes: a place as people say it.
    #[arg(long)]
    place: Option<String>,
    /// From where the question comes: an IPv4 or IPv6 address.
    #[arg(long)]
    ip: Option<String>,
    /// From where the question comes: the program that is used there.
    #[arg(long)]
    agent: Option<String>,
    /// Which app asks.
    #[arg(long, default_value = crate::dev::RELYING_PARTY)]
    relying_party: String,
    #[arg(long, value_enum, default_value = "confirm")]
    kind: Kind,
    /// `all`, `preferred`, or a device's identifier.
    #[arg(long, default_value = "all")]
    device: String,
    /// With `--device preferred`: ask the others after this time, such as `15s`.
    #[arg(long)]
    escalate_after: Option<String>,
    /// How long an answer counts.
    #[arg(long, default_value = "120s")]
    expires_in: String,
    /// Do not ask for the six digits.
    #[arg(long)]
    no_code: bool,
    /// Ask several people, of whom so many must approve.
    #[arg(long, value_name = "N")]
    required: Option<u32>,
    /// With `--required`: who wants it, and must not be among those asked.
    #[arg(long, value_name = "USER", requires = "required")]
    requested_by: Option<String>,
    /// With `--required`: one denial ends it.
    #[arg(long, requires = "required")]
    end_on_denial: bool,
    /// With `--kind process`: the definition.
    #[arg(long, default_value = "demo")]
    definition: String,
    /// The same key asks once.
    #[arg(long)]
    idempotency_key: Option<String>,
    /// Wait for the answer.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    server: Server,
}

impl Send {
    fn body(&self) -> Result<Value, Failure> {
        let mut details = Vec::new();
        for text in &self.details {
            let (label, value) = text.split_once('=').ok_or_else(|| {
                Failure::new(
                    Exit::Usage,
                    format!("--detail {text} is not of the form LABEL=VALUE"),
                )
            })?;
            details.push(json!({"label": label, "value": value}));
        }
        let mut target = match self.device.as_str() {
            mode @ ("all" | "preferred") => json!({"mode": mode}),
            device => json!({"mode": "devices", "devices": [device]}),
        };
        if let Some(after) = &self.escalate_after {
            target["escalate_after"] = json!(after);
        }
        let kind = match self.kind {
            Kind::Confirm => "confirm",
            Kind::Generic => "generic",
            Kind::Process => "process",
        };
        let mut body = json!({"user": named(&self.user), "relying_party": self.relying_party, "kind": kind, "title": self.title,
            "details": details, "target": target, "expires_in": self.expires_in});
        if let Some(message) = &self.message {
            body["message"] = json!(message);
        }
        for (name, value) in [
            ("place", &self.place),
            ("ip", &self.ip),
            ("agent", &self.agent),
        ] {
            if let Some(value) = value {
                body["context"][name] = json!(value);
            }
        }
        if let [amount, currency, name, account] = self.payment.as_slice() {
            body["payment"] = json!({"amount": amount, "currency": currency, "payee": {"name": name, "account": account}});
        }
        if let Some(file) = &self.payments {
            let list: Value = serde_json::from_str(&read(file)?).map_err(|error| {
                Failure::new(Exit::Usage, format!("{}: {error}", file.display()))
            })?;
            body["payments"] = list;
        }
        match self.kind {
            Kind::Confirm => body["match_code"] = json!(!self.no_code),
            Kind::Process => body["process"] = json!({"definition": self.definition}),
            Kind::Generic => {}
        }
        if let (Some(required), Some(body)) = (self.required, body.as_object_mut()) {
            self.group(required, body)?;
        }
        Ok(body)
    }

    /// Makes of a question to one person one to several.
    fn group(&self, required: u32, body: &mut Map<String, Value>) -> Result<(), Failure> {
        if !matches!(self.kind, Kind::Confirm) {
            let what = "--required is for the kind confirm, which is approved or denied";
            return Err(Failure::new(Exit::Usage, what));
        }
        body.remove("kind");
        body.remove("user");
        let people = self
            .user
            .split(',')
            .map(|name| json!({"user": named(name)}));
        body.insert("approvers".to_owned(), people.collect());
        body.insert("required".to_owned(), json!(required));
        if let Some(name) = &self.requested_by {
            body.insert("requested_by".to_owned(), named(name));
        }
        if self.end_on_denial {
            body.insert("on_denial".to_owned(), json!("end"));
        }
        Ok(())
    }

    pub(super) async fn run(&self, output: &Output) -> Result<Exit, Failure> {
        let client = self.server.client()?;
        let body = self.body()?;
        let what = if self.required.is_some() {
            "approvals"
        } else {
            "pushes"
        };
        let path = format!("/v1/stores/{}/{what}", client.store());
        let key = match &self.idempotency_key {
            Some(key) => key.clone(),
            None => shared::crypto::random_text::<16>(),
        };
        let headers = [("idempotency-key", key.as_str())];
        let reply = client
            .call("POST", &path, Some(&body), &headers, Duration::ZERO)
            .await?;
        if !reply.status.is_success() {
            return Err(refused(&reply));
        }
        let id = reply.body["id"].as_str().unwrap_or_default().to_owned();
        if let Some(code) = reply.body["match_code"].as_str() {
            output.note(&format!("Type this number on the phone:  {code}"));
        }
        for member in reply.body["members"].as_array().into_iter().flatten() {
            let text = |name: &str| member[name].as_str().unwrap_or_default();
            if !text("match_code").is_empty() {
                let (code, user) = (text("match_code"), text("user"));
                output.note(&format!("{user} types this number:  {code}"));
            }
        }
        if !self.wait {
            output.data(&reply.body, &id);
            return Ok(Exit::Done);
        }
        if output.json {
            output.line(&reply.body.to_string());
        }
        wait(&client, &id, &self.patience, output).await
    }
}

/// How the API names a user.
fn named(user: &str) -> Value {
    if user.starts_with("usr_") {
        json!({"id": user})
    } else {
        json!({"external_id": user})
    }
}

fn summary(push: &Value, since: Instant) -> String {
    let text = |name: &str| push[name].as_str().unwrap_or_default();
    let mut words = vec![text("state").to_owned()];
    if !text("reason").is_empty() {
        words.push(format!("({})", text("reason")));
    }
    if !text("device").is_empty() {
        words.push(format!("by {}", text("device")));
    }
    words.push(format!(
        "· {:.1} s · {}",
        since.elapsed().as_secs_f64(),
        text("id")
    ));
    words.join(" ")
}

/// Waits for the end of a push or an approval, and ends as it did.
pub(super) async fn wait(
    client: &Client,
    id: &str,
    patience: &Patience,
    output: &Output,
) -> Result<Exit, Failure> {
    let began = Instant::now();
    let until = Duration::from_secs(patience.timeout);
    let spinner = output.spinner("waiting for the phone");
    let what = if id.starts_with("apr_") {
        "approvals"
    } else {
        "pushes"
    };
    let path = format!("/v1/stores/{}/{what}/{id}", client.store());
    loop {
        let left = until.saturating_sub(began.elapsed());
        let hold = left.as_secs().clamp(1, HOLD);
        let prefer = format!("wait={hold}");
        let headers = [("prefer", prefer.as_str())];
        let reply = match client
            .call("GET", &path, None, &headers, Duration::from_secs(hold))
            .await
        {
            // A server that restarts comes back; the push goes on meanwhile.
            Err(failure) if failure.exit == Exit::Unreachable && began.elapsed() < until => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            other => other?,
        };
        if reply.status.as_u16() == 503 && began.elapsed() < until {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        if !reply.status.is_success() {
            spinner.finish_and_clear();
            return Err(refused(&reply));
        }
        let text = |name: &str| reply.body[name].as_str().unwrap_or_default();
        if let Some(exit) = Exit::of_push(text("state"), text("reason")) {
            spinner.finish_and_clear();
            output.data(&reply.body, &summary(&reply.body, began));
            return Ok(exit);
        }
        if began.elapsed() >= until {
            spinner.finish_and_clear();
            output.data(&reply.body, &format!("still {} · {id}", text("state")));
            return Ok(Exit::GaveUp);
        }
    }
}
