//! `countersign-bench`: how much of a bare HTTP/2 client's rate is left once a push is stored, queued, fanned out and recorded; how soon a
//! push is accepted; how soon ten thousand waiting callers are released. See `README.md` beside this folder.

mod accept;
mod files;
mod http1;
mod options;
mod peers;
mod rabbitmq;
mod server;
mod storeless;
mod volume;
mod wait;

use anyhow::{Context as _, Result, anyhow};
use clap::Parser as _;
use cli::load::deployment::{Deployment, Place};
use cli::load::report::{Report, say};
use cli::load::{Footing, Wire, deliveries, seed};
use options::{Options, Part};
use shared::secret::Secret;
use simulator::{Gateway, GatewayOptions};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

async fn measure(options: &Options) -> Result<Report> {
    let mut report = Report::default();
    let gateway = Gateway::start(GatewayOptions::default()).await?;
    for footing in options.footings() {
        let deployment = Deployment::open(&place(footing)?, &gateway).await?;
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

fn provided(name: &str) -> Result<Secret> {
    let value = std::env::var(name).with_context(|| {
        format!("{name} is not set: run scripts/test -- COMMAND, or give --footing embedded")
    })?;
    Ok(Secret::new(value))
}

fn place(footing: Footing) -> Result<Place> {
    Ok(match footing {
        Footing::Embedded => Place::Folder(std::env::temp_dir()),
        Footing::Servers => Place::Servers {
            database: provided("COUNTERSIGN_TEST_DATABASE_URL")?,
            queue: provided("COUNTERSIGN_TEST_AMQP_URL")?,
        },
    })
}

async fn one_footing(
    options: &Options,
    deployment: &Deployment,
    gateway: &Gateway,
    report: &mut Report,
) -> Result<()> {
    let seed = seed::plant(
        deployment,
        gateway,
        options.load.provider,
        options.load.users,
    )
    .await?;
    let seed = std::sync::Arc::new(seed);
    for wire in options.load.wires() {
        wire.set(gateway, options.load.provider);
        let peers = options.does(Part::Peers);
        if options.does(Part::Deliveries) || peers {
            let beside =
                deliveries::measure(&options.load, deployment, &seed, gateway, wire, report)
                    .await?;
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
    wire.set(gateway, options.load.provider);
    if options.does(Part::Rabbitmq) && deployment.footing == Footing::Servers {
        rabbitmq::measure(options, deployment, gateway, report).await?;
    }
    if options.does(Part::Accept) {
        accept::measure(options, deployment, &seed, gateway, report).await?;
    }
    if options.does(Part::Wait) {
        wait::measure(options, deployment, &seed, gateway, report).await?;
    }
    if options.does(Part::Volume) {
        volume::measure(options, deployment, &seed, gateway, report).await?;
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
    if !options.serve.is_empty() {
        return runtime.block_on(server::serve(&options.serve));
    }
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()))
        .with_writer(std::io::stderr)
        .init();
    files::raise_file_limit();
    let report = runtime.block_on(measure(&options))?;
    report.print(options.json)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
