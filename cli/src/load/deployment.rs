//! A database and queues of a run's own, and the settings that lead to them.

use super::Footing;
use crate::exit::Failure;
use crate::settings::{BatchLimits, Settings};
use anyhow::{Context as _, Result, anyhow};
use shared::broker::{Broker as _, Rabbit, rabbit};
use shared::crypto::ServerSecret;
use shared::id::MessageId;
use shared::secret::Secret;
use shared::store::Db;
use shared::store::db::Statement;
use simulator::Gateway;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

/// Where one footing's run keeps its data.
pub struct Deployment {
    /// What it stands on.
    pub footing: Footing,
    /// Its settings.
    pub settings: Settings,
    /// Its files.
    pub folder: PathBuf,
    schema: Option<Schema>,
}

/// A failure of the program as an error of ours.
pub fn failed(failure: Failure) -> anyhow::Error {
    anyhow!(failure.what)
}

/// Runs a statement about schemas, whose names cannot be parameters.
async fn about_schema(url: &Secret, text: String) -> Result<()> {
    let db = Db::open(url.expose()).await?;
    // Two of them in the life of this process.
    let statement: &'static Statement = Box::leak(Box::new(Statement::new(text.leak())));
    let done = db.write(statement, &[]).await;
    db.close().await;
    done?;
    Ok(())
}

/// Where the data of a deployment go.
#[derive(Debug, Clone)]
pub enum Place {
    /// Into a folder of their own, inside this one.
    Folder(PathBuf),
    /// Into a schema of this PostgreSQL, and into queues of this RabbitMQ, which nobody else uses.
    Servers {
        /// `postgres://…`.
        database: Secret,
        /// `amqp://…`.
        queue: Secret,
    },
}

impl Place {
    /// What a deployment there stands on.
    pub fn footing(&self) -> Footing {
        match self {
            Self::Folder(_) => Footing::Embedded,
            Self::Servers { .. } => Footing::Servers,
        }
    }
}

/// A schema of a deployment's own.
struct Schema {
    database: Secret,
    name: String,
}

impl Deployment {
    /// A fresh one, whose pushes go to `gateway`.
    pub async fn open(place: &Place, gateway: &Gateway) -> Result<Self> {
        let unique = MessageId::fresh(0).to_string().replace("msg_", "");
        let above = match place {
            Place::Folder(folder) => folder.clone(),
            Place::Servers { .. } => std::env::temp_dir(),
        };
        let folder = above.join(format!("countersign-bench-{unique}"));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        std::fs::write(folder.join("ca.pem"), gateway.ca_pem())?;
        let (database, queue, schema) = match place {
            Place::Folder(_) => {
                let file = folder.join("db.sqlite");
                let database = Secret::new(format!("sqlite:{}", file.display()));
                (database, Secret::new("embedded:"), None)
            }
            Place::Servers { database, queue } => {
                let name = format!("bench_{unique}");
                about_schema(database, format!("CREATE SCHEMA {name}"))
                    .await
                    .context("a schema of its own cannot be made in the database")?;
                let url = database.expose();
                let joint = if url.contains('?') { '&' } else { '?' };
                let own = format!("{url}{joint}options=-csearch_path%3D{name}");
                let schema = Schema {
                    database: database.clone(),
                    name,
                };
                (Secret::new(own), queue.clone(), Some(schema))
            }
        };
        let settings = Settings {
            any_provider: true,
            // What is measured is the program and not its patience.
            fcm_per_minute: u32::MAX,
            batches: BatchLimits::default(),
            probes: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            public_url: "http://bench.example".to_owned(),
            secret: ServerSecret::generate(),
            database_url: database,
            queue_url: queue,
            queue_prefix: format!("b{}", &unique[unique.len() - 12..]),
            extra_ca_pem: Some(gateway.ca_pem().to_owned()),
            log_filter: "warn".to_owned(),
            log_json: false,
        };
        Ok(Self {
            footing: place.footing(),
            settings,
            folder,
            schema,
        })
    }

    /// The same settings for a process of their own.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
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
            (
                "COUNTERSIGN_PUSH__FCM_PER_MINUTE",
                settings.fcm_per_minute.to_string(),
            ),
            ("COUNTERSIGN_LOG__FILTER", settings.log_filter.clone()),
        ]
    }

    /// Removes everything that it made.
    pub async fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.folder)?;
        let Some(schema) = self.schema else {
            return Ok(());
        };
        let drop = format!("DROP SCHEMA {} CASCADE", schema.name);
        about_schema(&schema.database, drop).await?;
        let options = rabbit::Options {
            prefix: self.settings.queue_prefix.clone(),
            ..rabbit::Options::default()
        };
        let broker = Rabbit::connect(self.settings.queue_url.expose(), options).await?;
        let removed = broker.remove_topology().await;
        broker.close().await;
        Ok(removed?)
    }
}
