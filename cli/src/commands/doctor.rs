//! `countersign doctor`: looks at the real wiring and says what is wrong.

use crate::exit::{Exit, Failure, chain};
use crate::output::Output;
use crate::roles::place_of;
use crate::settings::Settings;
use shared::broker::{self, Queue};
use shared::clock::SystemClock;
use shared::store::Db;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

struct Check {
    name: &'static str,
    result: Result<String, String>,
}

/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks at the database without changing it.
async fn database(settings: &Settings) -> (Option<Db>, Result<String, String>) {
    let place = place_of(&settings.database_url);
    let url = settings.database_url.expose();
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path
            .trim_start_matches("//")
            .split('?')
            .next()
            .unwrap_or_default();
        if !std::path::Path::new(path).exists() {
            return (
                None,
                Ok(format!("{place} is not there yet; serve makes it")),
            );
        }
    }
    let look = async {
        let db = Db::open(url).await?;
        let pending = db.pending_migrations().await?;
        Ok::<_, shared::store::Error>((db, pending))
    };
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok((db, 0))) => (
            Some(db),
            Ok(format!("{place} answers, its schema is up to date")),
        ),
        Ok(Ok((db, pending))) if pending > 0 => {
            let what =
                format!("{place} answers; {pending} migrations are to be run: countersign migrate");
            (Some(db), Err(what))
        }
        Ok(Ok((db, _))) => {
            let what =
                format!("{place} answers; its schema is of a newer release than this program");
            (Some(db), Err(what))
        }
        Ok(Err(error)) => (None, Err(format!("{place}: {}", chain(&error)))),
        Err(_) => (
            None,
            Err(format!("{place} does not answer within {PATIENCE:?}")),
        ),
    }
}

pub(super) async fn doctor(settings: &Settings, output: &Output) -> Result<Exit, Failure> {
    let mut checks = vec![Check {
        name: "settings",
        result: Ok("every key is sound".to_owned()),
    }];
    let (db, result) = database(settings).await;
    checks.push(Check {
        name: "database",
        result,
    });
    if let Some(db) = &db {
        let place = place_of(&settings.queue_url);
        let url = settings.queue_url.expose();
        let look = async {
            let broker =
                broker::open(url, &settings.queue_prefix, db, Arc::new(SystemClock)).await?;
            let waiting = broker.depth(Queue::JobsInteractive).await?.ready;
            let parked = broker.depth(Queue::Parking).await?.ready;
            broker.close().await;
            Ok::<_, broker::Error>((waiting, parked))
        };
        let result = match tokio::time::timeout(PATIENCE, look).await {
            Ok(Ok((waiting, parked))) => Ok(format!(
                "{place} answers, its queues are there; {waiting} jobs wait, {parked} messages are parked"
            )),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("{place} does not answer within {PATIENCE:?}")),
        };
        checks.push(Check {
            name: "broker",
            result,
        });
        db.close().await;
    }
    let server = TcpStream::connect(settings.listen).await;
    let what = if server.is_ok() {
        format!("something listens on {}", settings.listen)
    } else {
        format!("nothing listens on {} now", settings.listen)
    };
    checks.push(Check {
        name: "server",
        result: Ok(what),
    });
    let mut healthy = true;
    for check in &checks {
        let (mark, text) = match &check.result {
            Ok(text) => ("ok", text),
            Err(text) => {
                healthy = false;
                ("WRONG", text)
            }
        };
        let document =
            serde_json::json!({"check": check.name, "ok": check.result.is_ok(), "detail": text});
        output.data(&document, &format!("{mark:<6} {:<9} {text}", check.name));
    }
    Ok(if healthy {
        Exit::Done
    } else {
        Exit::Unreachable
    })
}
