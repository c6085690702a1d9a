//! Load on this machine, or on the servers of the settings, without touching what is there.

use super::SettingsFile;
use super::serve::told_to_stop;
use crate::exit::{Exit, Failure, chain};
use crate::load::deployment::{Deployment, Place};
use crate::load::report::Report;
use crate::load::{Footing, Load, deliveries, seed};
use crate::output::Output;
use crate::telemetry;
use clap::Args;
use shared::secret::Secret;
use simulator::{Gateway, GatewayOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(flatten)]
    load: Load,
    /// On what; that of the settings when left out, and embedded where there are none.
    #[arg(long, value_enum)]
    footing: Option<Footing>,
    #[command(flatten)]
    settings: SettingsFile,
}

/// Whether somebody has said where the data are.
fn has_settings(settings: &SettingsFile) -> bool {
    settings.config.is_some()
        || Path::new("countersign.toml").exists()
        || ["DATABASE_URL", "COUNTERSIGN_DATABASE__URL"]
            .iter()
            .any(|name| std::env::var_os(name).is_some())
}

/// Beside the database of the settings, which is on the disk that counts.
fn folder_of(database: &Secret) -> PathBuf {
    let path = database.expose().trim_start_matches("sqlite:");
    let path = path.trim_start_matches("//");
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let above = match Path::new(path).parent() {
        Some(here) if here.as_os_str().is_empty() && !path.starts_with(':') => Path::new("."),
        Some(above) if above.is_dir() => above,
        _ => return std::env::temp_dir(),
    };
    above.to_path_buf()
}

impl Bench {
    fn place(&self) -> Result<Place, Failure> {
        let embedded = self.footing == Some(Footing::Embedded);
        let nothing_said = self.footing.is_none() && !has_settings(&self.settings);
        if nothing_said || (embedded && !has_settings(&self.settings)) {
            return Ok(Place::Folder(std::env::temp_dir()));
        }
        let settings = self.settings.read()?;
        let sqlite = settings.database_url.expose().starts_with("sqlite:");
        match self.footing {
            Some(Footing::Servers) if sqlite => Err(Failure::new(
                Exit::Settings,
                "the settings name no PostgreSQL and no RabbitMQ",
            )
            .fix("set database.url and queue.url, or give --footing embedded")),
            Some(Footing::Embedded) if !sqlite => Ok(Place::Folder(std::env::temp_dir())),
            _ if sqlite => Ok(Place::Folder(folder_of(&settings.database_url))),
            _ => Ok(Place::Servers {
                database: settings.database_url,
                queue: settings.queue_url,
            }),
        }
    }

    async fn measure(
        &self,
        deployment: &Deployment,
        gateway: &Gateway,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let load = &self.load;
        let seed = seed::plant(deployment, gateway, load.provider, load.users).await?;
        let seed = Arc::new(seed);
        for wire in load.wires() {
            wire.set(gateway, load.provider);
            deliveries::measure(load, deployment, &seed, gateway, wire, report).await?;
        }
        Ok(())
    }

    pub(super) async fn run(&self, output: &Output) -> Result<Exit, Failure> {
        // Its queues go away while connections end: the library calls that an error. Our own lines tell of real ones.
        let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn,lapin=off".to_owned());
        telemetry::log(&filter, output.json);
        let place = self.place()?;
        let failed = |error: anyhow::Error| Failure::new(Exit::Failed, format!("{error:#}"));
        let gateway = Gateway::start(GatewayOptions::default())
            .await
            .map_err(|error| Failure::new(Exit::Failed, chain(&error)))?;
        let deployment = Deployment::open(&place, &gateway).await.map_err(failed)?;
        let mut report = Report::default();
        report.quiet = output.json;
        let measured = tokio::select! {
            measured = self.measure(&deployment, &gateway, &mut report) => measured.map_err(failed),
            told = told_to_stop() => told.and(Err(Failure::new(Exit::Failed, "told to stop"))),
        };
        // Also when it was stopped or has failed.
        deployment.remove().await.map_err(failed)?;
        measured?;
        report.print(output.json).map_err(failed)?;
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::folder_of;
    use shared::secret::Secret;
    use std::path::Path;

    #[test]
    fn data_go_beside_the_database_where_that_is_a_file() {
        let of = |url: &str| folder_of(&Secret::new(url));
        assert_eq!(of("sqlite:/tmp/x.db"), Path::new("/tmp"));
        assert_eq!(of("sqlite:///tmp/x.db?mode=rwc"), Path::new("/tmp"));
        assert_eq!(of("sqlite::memory:"), std::env::temp_dir());
        assert_eq!(of("sqlite:/nowhere/x.db"), std::env::temp_dir());
        assert_eq!(of("sqlite:x.db"), Path::new("."));
    }
}
