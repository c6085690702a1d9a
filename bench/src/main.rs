//! `countersign-bench`: how much of a bare HTTP/2 client's rate is left once a push is stored, queued, fanned out and recorded; how soon a
//! push is accepted; how soon ten thousand waiting callers are released. See `README.md` beside this folder.

mod accept;
mod bare;
mod deliveries;
mod deployment;
mod http1;
mod machine;
mod mix;
mod options;
mod peers;
mod rabbitmq;
mod report;
mod request;
mod seed;
mod server;
mod storeless;
mod wait;

use anyhow::{Result, anyhow};
use clap::Parser as _;
use deliveries::Wire;
use deployment::Deployment;
use options::{Footing, Options, Part};
use report::Report;
use shared::domain;
use simulator::{Gateway, GatewayOptions, Provider};
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

/// Every latency with every limit of streams.
fn wires(options: &Options) -> Vec<Wire> {
    let with = |latency: &u64| {
        let latency = *latency;
        let limits = options.stream_limits().into_iter();
        limits.map(move |streams| Wire { latency, streams })
    };
    options.latency.iter().flat_map(with).collect()
}

/// For connections opened from now on.
fn set(gateway: &Gateway, provider: domain::Provider, wire: Wire) {
    gateway.set_latency(Duration::from_millis(wire.latency));
    let (provider, own) = match provider {
        domain::Provider::Apns => (Provider::Apns, request::APNS_STREAMS),
        domain::Provider::Fcm => (Provider::Fcm, request::FCM_STREAMS),
    };
    gateway.set_max_streams(provider, wire.streams.unwrap_or(own));
}

async fn one_footing(
    options: &Options,
    deployment: &Deployment,
    gateway: &Gateway,
    report: &mut Report,
) -> Result<()> {
    let seed = seed::plant(deployment, gateway, options.provider, options.users).await?;
    let seed = std::sync::Arc::new(seed);
    for wire in wires(options) {
        set(gateway, options.provider, wire);
        let peers = options.does(Part::Peers);
        if options.does(Part::Deliveries) || peers {
            let beside =
                deliveries::measure(options, deployment, &seed, gateway, wire, report).await?;
            if peers {
                peers::measure(options, deployment, gateway, wire, &beside, report).await?;
            }
        }
        if options.does(Part::Storeless) {
            storeless::measure(options, deployment, gateway, wire, report).await?;
        }
    }
    let wire = Wire {
        latency: 0,
        streams: None,
    };
    set(gateway, options.provider, wire);
    if options.does(Part::Rabbitmq) && deployment.footing == Footing::Servers {
        rabbitmq::measure(options, deployment, gateway, report).await?;
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
