//! How soon a push is accepted over HTTP, by a server of its own process that also delivers it.

use crate::http1::Connection;
use crate::options::Options;
use crate::server::{ALL, Server};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use cli::load::deployment::Deployment;
use cli::load::machine::{Usage, process_seconds};
use cli::load::report::{Line, Report, Times};
use cli::load::seed::{RP, Seed};
use serde_json::json;
use simulator::Gateway;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

/// Clients of the closed loops; the last one finds the peak.
const CLIENTS: [usize; 3] = [1, 8, 64];
/// Connections of the open loop.
const CONNECTIONS: usize = 128;
/// How long deliveries may lag behind what was accepted.
const DRAIN: Duration = Duration::from_mins(1);

fn path(seed: &Seed) -> String {
    format!("/v1/stores/{}/pushes", seed.tenant)
}

/// The `n`th request.
pub(crate) fn body(seed: &Seed, n: usize) -> Bytes {
    let user = n % seed.users.len();
    let body = json!({"user": {"external_id": format!("user-{user}")}, "relying_party": RP, "kind": "confirm",
        "title": "Sign in to Payroll", "details": [{"label": "Place", "value": "Cork"}], "expires_in": "600s"});
    body.to_string().into()
}

async fn post(connection: &mut Connection, seed: &Seed, n: usize) -> Result<()> {
    let (status, answer) = connection
        .call("POST", &path(seed), None, body(seed, n))
        .await?;
    ensure!(
        status == 202,
        "{status}: {}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

/// The times of one step, and how long it took.
struct Step {
    times: Vec<Duration>,
    took: Duration,
}

/// Each client asks again as soon as it is answered.
async fn closed(
    server: &Server,
    seed: &Arc<Seed>,
    clients: usize,
    length: Duration,
) -> Result<Step> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = Vec::with_capacity(clients);
    for _ in 0..clients {
        connections.push(Connection::open(server.address, seed).await?);
    }
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        let (seed, next) = (Arc::clone(seed), Arc::clone(&next));
        tasks.spawn(async move {
            let mut times = Vec::new();
            while began.elapsed() < length {
                let sent = Instant::now();
                post(&mut connection, &seed, next.fetch_add(1, Ordering::Relaxed)).await?;
                times.push(sent.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended??);
    }
    Ok(Step {
        times,
        took: began.elapsed(),
    })
}

/// Requests come at a fixed rate, whatever becomes of them; a time counts from when the request was due.
async fn open(server: &Server, seed: &Arc<Seed>, rate: f64, length: Duration) -> Result<Step> {
    let (to, from) = mpsc::unbounded_channel::<(usize, Instant)>();
    let from = Arc::new(Mutex::new(from));
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::open(server.address, seed).await?;
        let (seed, from) = (Arc::clone(seed), Arc::clone(&from));
        tasks.spawn(async move {
            let mut times = Vec::new();
            loop {
                let next = from.lock().await.recv().await;
                let Some((n, due)) = next else {
                    return anyhow::Ok(times);
                };
                post(&mut connection, &seed, n).await?;
                times.push(due.elapsed());
            }
        });
    }
    let began = Instant::now();
    let total = (rate * length.as_secs_f64()).ceil() as usize;
    for n in 0..total {
        let due = began + Duration::from_secs_f64(n as f64 / rate);
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        to.send((n, due)).context("nobody takes requests")?;
    }
    drop(to);
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended??);
    }
    Ok(Step {
        times,
        took: began.elapsed(),
    })
}

/// Waits until everything accepted was delivered. Says how long that took.
async fn drain(gateway: &Gateway, wanted: u64) -> Result<Duration> {
    let began = Instant::now();
    while gateway.counts().accepted < wanted {
        ensure!(began.elapsed() < DRAIN, "accepted pushes are not delivered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(began.elapsed())
}

/// How requests come.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// So many clients, each its next one after the answer.
    Clients(usize),
    /// So many a second.
    Rate(u32),
    HalfOfThePeak,
}

/// All steps.
pub(crate) async fn measure(
    options: &Options,
    deployment: &Deployment,
    seed: &Arc<Seed>,
    gateway: &Gateway,
    report: &mut Report,
) -> Result<()> {
    let server = Server::start(deployment, ALL).await?;
    // Connections, caches and prepared statements.
    let warm = closed(&server, seed, 8, options.load.step() / 4).await?;
    let mut wanted = gateway.counts().accepted;
    wanted = wanted.max(warm.times.len() as u64);
    drain(gateway, wanted).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut peak = 0.0_f64;
    let closed_loops = CLIENTS.map(Load::Clients).into_iter();
    let rates = options.arrivals.iter().copied().map(Load::Rate);
    let half = options.arrivals.is_empty().then_some(Load::HalfOfThePeak);
    for load in closed_loops.chain(rates).chain(half) {
        let delivered = gateway.counts().accepted;
        let (before, own) = (Usage::now(), process_seconds(server.pid()));
        let (what, step) = match load {
            Load::Clients(clients) => (
                format!("accept, {clients} in a closed loop"),
                closed(&server, seed, clients, options.load.step()).await?,
            ),
            Load::Rate(rate) => (
                format!("accept, {rate}/s"),
                open(&server, seed, rate.into(), options.load.step()).await?,
            ),
            Load::HalfOfThePeak => (
                format!("accept, {:.0}/s, half of the peak", peak / 2.0),
                open(&server, seed, peak / 2.0, options.load.step()).await?,
            ),
        };
        let count = step.times.len() as u64;
        let rate = count as f64 / step.took.as_secs_f64();
        peak = peak.max(rate);
        let lag = drain(gateway, delivered + count).await?;
        let mut costs = Usage::now().per(&before, count);
        let server_us = (process_seconds(server.pid()) - own) * 1e6 / count.max(1) as f64;
        costs.push(("server", server_us));
        report.add(Line {
            what,
            footing: deployment.footing.word(),
            count,
            rate: Some(rate),
            times: Times::of(step.times),
            costs,
            notes: vec![("delivered ms later", json!(lag.as_millis()))],
            ..Line::default()
        });
    }
    Ok(())
}
