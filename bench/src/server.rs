//! The program in a process of its own: `countersign serve`.

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use cli::commands::{Arguments, run};
use cli::load::deployment::{Deployment, failed};
use cli::output::Output;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The roles of a process that does everything.
pub(crate) const ALL: &str = "api,worker,waiter";
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves with these roles until SIGTERM: what the hidden option `--serve` does.
pub(crate) async fn serve(roles: &[String]) -> Result<()> {
    let program = ["countersign".to_owned(), "serve".to_owned()].into_iter();
    let roles = roles.iter().map(|role| format!("--role={role}"));
    let arguments = Arguments::try_parse_from(program.chain(roles))?;
    run(arguments, &Output::new(false)).await.map_err(failed)?;
    Ok(())
}

/// The process. It is killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// Where its API listens, if it has one.
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts one with these roles, separated by commas, on a deployment.
    pub(crate) async fn start(deployment: &Deployment, roles: &str) -> Result<Self> {
        let log = deployment.folder.join(format!("{roles}.log"));
        let file = std::fs::File::create(&log)?;
        let mut command = Command::new(std::env::current_exe()?);
        for (name, _) in std::env::vars() {
            let ours = name.starts_with("COUNTERSIGN_");
            if ours || matches!(name.as_str(), "DATABASE_URL" | "AMQP_URL" | "RUST_LOG") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(["--serve", roles])
            .current_dir(&deployment.folder)
            .envs(deployment.environment())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        // Killed when this fails.
        let mut server = Self {
            child,
            address: deployment.settings.listen,
        };
        let began = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log)?;
            if let Some((_, rest)) = said.split_once("ready: ")
                && let Some((line, _)) = rest.split_once('\n')
            {
                if let Some((_, address)) = line.split_once("listening on http://") {
                    server.address = address.trim().parse().context("the server's address")?;
                }
                return Ok(server);
            }
            if server.child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                bail!("the server is not ready: {said}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its data go, too: there is nothing to finish.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
