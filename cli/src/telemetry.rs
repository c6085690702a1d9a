//! Logs to standard error, metrics for `/metrics`.

use crate::settings::Settings;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

const UPKEEP: Duration = Duration::from_secs(5);
/// lapin logs whole returned messages there; ours hold no secret, but a stranger's may.
const NEVER: &str = "lapin::returned_messages=off";

/// Can this be a filter?
pub(crate) fn is_filter(filter: &str) -> bool {
    EnvFilter::try_new(filter).is_ok()
}

/// Starts logging. A second call changes nothing.
pub(crate) fn log(filter: &str, json: bool) {
    let filter = EnvFilter::try_new(format!("{filter},{NEVER}"))
        .unwrap_or_else(|_| EnvFilter::new(format!("info,{NEVER}")));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error says that logging has started already.
    if json {
        lines.json().try_init().ok();
    } else {
        lines.try_init().ok();
    }
}

/// As the settings say.
pub(crate) fn log_by(settings: &Settings) {
    log(&settings.log_filter, settings.log_json);
}

/// Starts counting; `None` when something else in this process counts already.
pub(crate) fn metrics() -> Option<PrometheusHandle> {
    let buckets = [
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ];
    let handle = PrometheusBuilder::new()
        .set_buckets(&buckets)
        .ok()?
        .install_recorder()
        .ok()?;
    let upkeep = handle.clone();
    // Without it samples pile up until somebody scrapes, which may be never.
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Some(handle)
}
