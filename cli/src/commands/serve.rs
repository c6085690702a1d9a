//! Long-running commands, and those that prepare them.

use crate::client::Context;
use crate::dev::{Dev, Options};
use crate::exit::{Exit, Failure, chain};
use crate::output::Output;
use crate::roles::{Ground, Role, check_roles, listen, open_database};
use crate::settings::Settings;
use crate::telemetry;
use axum::Router;
use axum::routing::get;
use shared::clock::{Clock as _, SystemClock};
use shared::crypto::ServerSecret;
use shared::store::{Handover, Store};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Ends at the first SIGINT or SIGTERM.
pub(super) async fn told_to_stop() -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, error.to_string());
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn stopped(finished: bool) -> Result<Exit, Failure> {
    if finished {
        Ok(Exit::Done)
    } else {
        Err(Failure::new(
            Exit::Failed,
            "not everything was finished in time; another process will find it",
        ))
    }
}

pub(super) async fn dev(
    port: u16,
    data: Option<PathBuf>,
    output: &Output,
) -> Result<Exit, Failure> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned());
    telemetry::log(&filter, false);
    let mut dev = Dev::start(Options { port, data }).await?;
    let place = Context::path();
    if let Some(path) = &place
        && let Err(error) = dev.context.save(path)
    {
        let what = format!(
            "cannot write {}: {error}; give the commands --url, --key and --store",
            path.display()
        );
        output.note(&what);
    }
    if output.json {
        let context = &dev.context;
        let document =
            serde_json::json!({"url": context.url, "key": context.key, "store": context.store});
        output.line(&document.to_string());
    } else {
        dev.welcome(output);
    }
    let result = tokio::select! {
        told = told_to_stop() => told,
        failure = dev.running.failed() => Err(failure),
    };
    if let Some(path) = &place {
        forget(path, &dev.context);
    }
    let finished = dev.stop().await;
    result?;
    stopped(finished)
}

/// Removes the way to this server, unless another one has put its own there.
fn forget(path: &std::path::Path, context: &Context) {
    let ours = std::fs::read_to_string(path)
        .ok()
        .and_then(|text| serde_json::from_str::<Context>(&text).ok())
        .is_some_and(|saved| saved.key == context.key && saved.url == context.url);
    if ours {
        std::fs::remove_file(path).ok();
    }
}

pub(super) async fn serve(
    settings: &Settings,
    roles: &[Role],
    output: &Output,
) -> Result<Exit, Failure> {
    telemetry::log_by(settings);
    check_roles(settings, roles)?;
    // First of all: where a port is taken, nothing is started.
    let listener = if roles.contains(&Role::Api) {
        Some(listen(settings.listen).await?)
    } else {
        None
    };
    let probes = match settings.probes {
        Some(at) => Some(listen(at).await?),
        None => None,
    };
    let ground = Ground::open(settings, Arc::new(SystemClock)).await?;
    let metrics = telemetry::metrics().map_or_else(Router::new, |handle| {
        Router::new().route("/metrics", get(move || async move { handle.render() }))
    });
    let mut running = ground
        .start(settings, roles, Some(metrics.clone()), listener)
        .await?;
    if let Some(probes) = probes {
        running.start_probes(probes, metrics);
    }
    match running.address {
        Some(at) => output.note(&format!("ready: {roles:?}, listening on http://{at}")),
        None => output.note(&format!("ready: {roles:?}")),
    }
    let result = tokio::select! {
        told = told_to_stop() => told,
        failure = running.failed() => Err(failure),
    };
    output.note("stopping");
    let finished = running.stop().await;
    result?;
    stopped(finished)
}

pub(super) async fn migrate(settings: &Settings, output: &Output) -> Result<Exit, Failure> {
    let db = open_database(&settings.database_url).await?;
    db.close().await;
    output.data(
        &serde_json::json!({"schema": "up to date"}),
        "the schema is up to date",
    );
    Ok(Exit::Done)
}

pub(super) async fn key(settings: &Settings, name: &str, output: &Output) -> Result<Exit, Failure> {
    let secret = ServerSecret::new(&settings.secret)
        .ok_or_else(|| Failure::new(Exit::Settings, "server.secret is too short"))?;
    let db = open_database(&settings.database_url).await?;
    let store = Store::new(db, Handover::channel().0);
    let key = secret.api_key();
    let id = store
        .add_key(None, &key.hash, &["*".to_owned()], name, SystemClock.now())
        .await
        .map_err(|error| Failure::new(Exit::Failed, chain(&error)))?;
    store.db().close().await;
    output.data(
        &serde_json::json!({"id": id, "key": key.text}),
        key.text.expose(),
    );
    Ok(Exit::Done)
}
