//! `countersign-bench`: how much of a bare HTTP/2 client's rate is left once a push is stored, queued, fanned out and recorded; how soon a
//! push is accepted; how soon ten thousand waiting callers are released. See `README.md` beside this folder.

mod accept;
mod bare;
mod deliveries;
mod deployment;
mod http1;
mod machine;
mod options;
mod report;
mod seed;
mod server;
mod wait;

use anyhow::{Result, anyhow};
use clap::Parser as _;
use deployment::Deployment;
use options::{Options, Part};
use report::Report;
use simulator::{Gateway, GatewayOptions};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

async fn measure(options: &Options) -> Result<Report> {
    let mut report = Report::default();
    let gateway = Gateway::start(GatewayOptions::default()).await?;
    for footing in options.footings() {
        let deployment = Deployment::open(footing, &gateway).await?;
        let measured = tokio::select! {
            measured = one_footing(options, &deployment, &gateway, &mut report) => measured,
            told = told_to_stop() => told.and(Err(anyhow!("told to stop"))),
        };
        deployment.remove().await?;
        measured?;
    }
    Ok(report)
}

/// Ends at SIGINT or SIGTERM: what was made is then removed all the same.
async fn told_to_stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        told = tokio::signal::ctrl_c() => told?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn one_footing(
    options: &Options,
    deployment: &Deployment,
    gateway: &Gateway,
    report: &mut Report,
) -> Result<()> {
    let seed = seed::plant(deployment, gateway, options.users).await?;
    let seed = std::sync::Arc::new(seed);
    if options.does(Part::Deliveries) {
        for latency in &options.latency {
            gateway.set_latency(Duration::from_millis(*latency));
            deliveries::measure(options, deployment, &seed, gateway, *latency, report).await?;
        }
        gateway.set_latency(Duration::ZERO);
    }
    if options.does(Part::Accept) {
        accept::measure(options, deployment, &seed, gateway, report).await?;
    }
    if options.does(Part::Wait) {
        wait::measure(options, deployment, &seed, gateway, report).await?;
    }
    Ok(())
}

fn run() -> Result<()> {
    let options = Options::parse();
    // Fails only where one is installed already.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    if options.serve {
        return runtime.block_on(server::serve());
    }
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()))
        .with_writer(std::io::stderr)
        .init();
    machine::raise_file_limit();
    let report = runtime.block_on(measure(&options))?;
    report.print(options.json)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
