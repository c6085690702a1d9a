//! Look after a user's devices.
use super::enrol::Enrol;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// List a user's devices.
    List {
        /// Your own identifier of the user, or `usr_…`.
        user: String,
    },
    /// Let a new device in: print a QR code, and wait until a phone has used it.
    Enrol(Enrol),
    /// Make a device the one that is asked first.
    Prefer {
        /// The user.
        user: String,
        /// The device.
        device: String,
    },
    /// Set a device aside; it may come back.
    Block {
        /// The user.
        user: String,
        /// The device.
        device: String,
    },
    /// Take a blocked device back.
    Unblock {
        /// The user.
        user: String,
        /// The device.
        device: String,
    },
    /// End a device for good.
    Revoke {
        /// The user.
        user: String,
        /// The device.
        device: String,
    },
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

pub(super) async fn path_of(client: &Client, user: &str) -> Result<String, Failure> {
    let users = format!("/v1/stores/{}/users", client.store());
    if user.starts_with("usr_") {
        return Ok(format!("{users}/{user}"));
    }
    let found = client
        .ask(
            "GET",
            &format!("{users}?external_id={}", encoded(user)),
            None,
        )
        .await?;
    match found["data"][0]["id"].as_str() {
        Some(id) => Ok(format!("{users}/{id}")),
        None => Err(Failure::new(
            Exit::Refused,
            format!("there is no user {user} in this store"),
        )),
    }
}

fn row(device: &Value, preferred: Option<&str>) -> String {
    let text = |name: &str| device[name].as_str().unwrap_or("-").to_owned();
    let star = if preferred == device["id"].as_str() {
        "*"
    } else {
        " "
    };
    format!(
        "{star} {}  {:<8}  {:<8}  {:<7}  {}",
        text("id"),
        text("state"),
        text("platform"),
        text("push_address"),
        text("name")
    )
}

impl Action {
    pub(super) async fn run(&self, client: &Client, output: &Output) -> Result<Exit, Failure> {
        let (user, device, change) = match self {
            Self::Enrol(enrol) => return enrol.run(client, output).await,
            Self::List { user } => return list(client, user, output).await,
            Self::Prefer { user, device } => {
                let path = path_of(client, user).await?;
                let change = json!({"preferred_device": device});
                let changed = client.ask("PATCH", &path, Some(&change)).await?;
                output.data(&changed, "preferred");
                return Ok(Exit::Done);
            }
            Self::Block { user, device } => (user, device, "blocked"),
            Self::Unblock { user, device } => (user, device, "active"),
            Self::Revoke { user, device } => (user, device, "revoked"),
        };
        let path = format!("{}/devices/{device}", path_of(client, user).await?);
        let changed = client
            .ask("PATCH", &path, Some(&json!({"state": change})))
            .await?;
        output.data(&changed, change);
        Ok(Exit::Done)
    }
}

async fn list(client: &Client, user: &str, output: &Output) -> Result<Exit, Failure> {
    let path = path_of(client, user).await?;
    let owner = client.ask("GET", &path, None).await?;
    let devices = client.ask("GET", &format!("{path}/devices"), None).await?;
    for device in devices["data"].as_array().into_iter().flatten() {
        output.data(device, &row(device, owner["preferred_device"].as_str()));
    }
    Ok(Exit::Done)
}
