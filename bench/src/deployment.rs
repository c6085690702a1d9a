//! A database and queues of a run's own, and the settings that lead to them.

use crate::options::Footing;
use anyhow::{Context as _, Result, anyhow};
use cli::exit::Failure;
use cli::settings::{BatchLimits, Settings};
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Connection, ConnectionProperties};
use shared::broker::rabbit::topology::{Names, Topology};
use shared::crypto::ServerSecret;
use shared::id::MessageId;
use shared::secret::Secret;
use shared::store::Db;
use shared::store::db::Statement;
use simulator::Gateway;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Where one footing's run keeps its data.
pub(crate) struct Deployment {
    /// What it stands on.
    pub(crate) footing: Footing,
    /// Its settings.
    pub(crate) settings: Settings,
    /// Its files.
    pub(crate) folder: PathBuf,
    schema: Option<String>,
}

/// A failure of the program as an error of ours.
pub(crate) fn failed(failure: Failure) -> anyhow::Error {
    anyhow!(failure.what)
}

fn provided(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| {
        format!("{name} is not set: run scripts/test -- COMMAND, or give --footing embedded")
    })
}

/// Runs a statement about schemas, whose names cannot be parameters.
async fn about_schema(text: String) -> Result<()> {
    let db = Db::open(&provided("COUNTERSIGN_TEST_DATABASE_URL")?).await?;
    // Two of them in the life of this process.
    let statement: &'static Statement = Box::leak(Box::new(Statement::new(text.leak())));
    let done = db.write(statement, &[]).await;
    db.close().await;
    done?;
    Ok(())
}

impl Deployment {
    /// A fresh one, whose pushes go to `gateway`.
    pub(crate) async fn open(footing: Footing, gateway: &Gateway) -> Result<Self> {
        let unique = MessageId::fresh(0).to_string().replace("msg_", "");
        let folder = std::env::temp_dir().join(format!("countersign-bench-{unique}"));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("ca.pem"), gateway.ca_pem())?;
        let (database, queue, schema) = match footing {
            Footing::Embedded => {
                let file = folder.join("db.sqlite");
                let database = format!("sqlite:{}", file.display());
                (database, "embedded:".to_owned(), None)
            }
            Footing::Servers => {
                let name = format!("bench_{unique}");
                let url = provided("COUNTERSIGN_TEST_DATABASE_URL")?;
                about_schema(format!("CREATE SCHEMA {name}")).await?;
                let joint = if url.contains('?') { '&' } else { '?' };
                let own = format!("{url}{joint}options=-csearch_path%3D{name}");
                (own, provided("COUNTERSIGN_TEST_AMQP_URL")?, Some(name))
            }
        };
        let settings = Settings {
            any_provider: true,
            batches: BatchLimits::default(),
            probes: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            public_url: "http://bench.example".to_owned(),
            secret: ServerSecret::generate(),
            database_url: Secret::new(database),
            queue_url: Secret::new(queue),
            queue_prefix: format!("b{}", &unique[unique.len() - 12..]),
            extra_ca_pem: Some(gateway.ca_pem().to_owned()),
            log_filter: "warn".to_owned(),
            log_json: false,
        };
        Ok(Self {
            footing,
            settings,
            folder,
            schema,
        })
    }

    /// The same settings for a process of their own.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let settings = &self.settings;
        vec![
            ("COUNTERSIGN_SERVER__LISTEN", settings.listen.to_string()),
            (
                "COUNTERSIGN_SERVER__PUBLIC_URL",
                settings.public_url.clone(),
            ),
            (
                "COUNTERSIGN_SERVER__SECRET",
                settings.secret.expose().to_owned(),
            ),
            (
                "COUNTERSIGN_DATABASE__URL",
                settings.database_url.expose().to_owned(),
            ),
            (
                "COUNTERSIGN_QUEUE__URL",
                settings.queue_url.expose().to_owned(),
            ),
            ("COUNTERSIGN_QUEUE__PREFIX", settings.queue_prefix.clone()),
            (
                "COUNTERSIGN_PUSH__EXTRA_CA_FILE",
                self.folder.join("ca.pem").display().to_string(),
            ),
            ("COUNTERSIGN_LOG__FILTER", settings.log_filter.clone()),
        ]
    }

    /// Removes everything that it made.
    pub(crate) async fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.folder)?;
        let Some(schema) = self.schema else {
            return Ok(());
        };
        about_schema(format!("DROP SCHEMA {schema} CASCADE")).await?;
        let url = self.settings.queue_url.expose();
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let topology = Topology::new(&Names::new(&self.settings.queue_prefix), None);
        for queue in topology.queues {
            let (name, options) = (queue.name.as_str().into(), QueueDeleteOptions::default());
            channel.queue_delete(name, options).await?;
        }
        for exchange in topology.exchanges {
            let (name, options) = (
                exchange.name.as_str().into(),
                ExchangeDeleteOptions::default(),
            );
            channel.exchange_delete(name, options).await?;
        }
        connection.close(200, "done".into()).await?;
        Ok(())
    }
}
