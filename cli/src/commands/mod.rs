//! The commands.

mod audit;
mod batch;
mod bench;
mod device;
mod doctor;
mod enrol;
mod receipt;
mod send;
mod serve;

use crate::client::{Client, Context};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::roles::Role;
use crate::settings::Settings;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Out-of-band authentication by push: your server asks, the user's own phone answers, signed.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// JSON instead of words, one document a line.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  countersign dev                                      everything in one process, with a phone in the browser
  countersign send ada \"Sign in to Payroll\" --wait     ask, and wait for the answer
  countersign serve --role api --role worker           a process of a deployment

Exit codes: 0 done or approved, 1 failed, 2 usage, 3 settings, 4 not allowed, 5 unreachable, 6 gave up waiting,
10 denied, 11 reported as fraud, 12 expired, 13 undeliverable, 14 cancelled,
15 sent in part.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in one process on loopback, with simulated providers and phones.
    Dev {
        /// Where to listen.
        #[arg(long, default_value_t = 7070)]
        port: u16,
        /// Keep the data in this folder.
        #[arg(long)]
        data: Option<PathBuf>,
    },
    /// Run a process of a deployment.
    Serve {
        /// What it does; give it several times for several roles.
        #[arg(long = "role", value_enum, required = true)]
        roles: Vec<Role>,
        /// Where to listen, instead of server.listen's port.
        #[arg(long)]
        port: Option<u16>,
        #[command(flatten)]
        settings: SettingsFile,
    },
    /// Bring the database's schema up to date.
    Migrate {
        #[command(flatten)]
        settings: SettingsFile,
    },
    /// Make an API key of the whole deployment, straight in the database.
    Key {
        /// What people call it.
        #[arg(long, default_value = "admin")]
        name: String,
        #[command(flatten)]
        settings: SettingsFile,
    },
    /// Make a fresh text for server.secret.
    Secret,
    /// Look at the settings, the database, the broker and the server, and say what is wrong.
    Doctor {
        #[command(flatten)]
        settings: SettingsFile,
    },
    /// Measure deliveries on this machine, on data of their own, beside a client that does nothing but send.
    Bench(Box<bench::Bench>),
    /// Ask a user something, or several people of whom some must approve.
    Send(Box<send::Send>),
    /// Wait for the end of a push or an approval.
    Wait {
        /// The push, `psh_…`, or the approval, `apr_…`.
        push: String,
        #[command(flatten)]
        patience: send::Patience,
        #[command(flatten)]
        server: Server,
    },
    /// Take out a store's audit log, or check one.
    Audit {
        #[command(subcommand)]
        action: audit::Action,
    },
    /// Get the receipt of a push, or check one.
    Receipt {
        #[command(subcommand)]
        action: receipt::Action,
    },
    /// Look after a user's devices.
    Device {
        #[command(subcommand)]
        action: device::Action,
        #[command(flatten)]
        server: Server,
    },
    /// Send many pushes from a file, and follow them.
    Batch {
        #[command(subcommand)]
        action: batch::Action,
        #[command(flatten)]
        server: Server,
    },
}

/// Which settings.
#[derive(Debug, Args)]
struct SettingsFile {
    /// The settings file; `countersign.toml` in this folder when there is one.
    #[arg(long)]
    config: Option<PathBuf>,
}

impl SettingsFile {
    fn read(&self) -> Result<Settings, Failure> {
        let environment = |name: &str| std::env::var(name).ok();
        let variables: Vec<String> = std::env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok())
            .collect();
        Settings::read(self.config.as_deref(), &environment, &variables).map_err(|faults| {
            let lines: Vec<_> = faults
                .iter()
                .map(|fault| format!("  {}: {}", fault.key, fault.what))
                .collect();
            let what = format!("the settings have faults\n{}", lines.join("\n"));
            Failure::new(Exit::Settings, what)
        })
    }
}

/// Which server. A running `countersign dev` is found by itself.
#[derive(Debug, Args)]
pub struct Server {
    /// The server's address; COUNTERSIGN_URL.
    #[arg(long, global = true)]
    url: Option<String>,
    /// The API key; better as COUNTERSIGN_KEY, which other users of this machine cannot see.
    #[arg(long, global = true, hide_env_values = true)]
    key: Option<String>,
    /// The store's identifier; COUNTERSIGN_STORE.
    #[arg(long, global = true)]
    store: Option<String>,
}

impl Server {
    fn client(&self) -> Result<Client, Failure> {
        let (url, key, store) = (self.url.clone(), self.key.clone(), self.store.clone());
        Context::find(url, key, store).map(Client::new)
    }
}

/// Runs a command.
pub async fn run(arguments: Arguments, output: &Output) -> Result<Exit, Failure> {
    match arguments.command {
        Command::Dev { port, data } => serve::dev(port, data, output).await,
        Command::Serve {
            roles,
            port,
            settings,
        } => {
            let mut settings = settings.read()?;
            if let Some(port) = port {
                settings.listen.set_port(port);
            }
            serve::serve(&settings, &roles, output).await
        }
        Command::Migrate { settings } => serve::migrate(&settings.read()?, output).await,
        Command::Key { name, settings } => serve::key(&settings.read()?, &name, output).await,
        Command::Secret => {
            let secret = shared::crypto::ServerSecret::generate();
            output.data(&serde_json::json!({"secret": secret}), secret.expose());
            Ok(Exit::Done)
        }
        Command::Doctor { settings } => doctor::doctor(&settings.read()?, output).await,
        Command::Bench(bench) => bench.run(output).await,
        Command::Send(send) => send.run(output).await,
        Command::Wait {
            push,
            patience,
            server,
        } => send::wait(&server.client()?, &push, &patience, output).await,
        Command::Audit { action } => action.run(output).await,
        Command::Receipt { action } => action.run(output).await,
        Command::Batch { action, server } => action.run(&server, output).await,
        Command::Device { action, server } => action.run(&server.client()?, output).await,
    }
}
