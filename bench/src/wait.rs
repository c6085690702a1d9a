//! Many callers wait for the ends of their pushes at one process, each on a connection of its own; then the pushes end.

use crate::accept;
use crate::files::file_limit;
use crate::http1::Connection;
use crate::options::Options;
use crate::server::{ALL, Server};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use cli::load::deployment::Deployment;
use cli::load::machine::{process_seconds, resident_kib};
use cli::load::report::{Line, Report, Times, say};
use cli::load::seed::Seed;
use serde_json::{Value, json};
use simulator::Gateway;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How many pushes are made, and ended, at the same time.
const CALLERS: usize = 16;
/// How many connections are opened at the same time.
const OPENING: usize = 64;
/// Files beside the connections.
const OTHER_FILES: usize = 500;
/// How long everybody may take to be released.
const PATIENCE: Duration = Duration::from_mins(2);

/// One push that is waited for.
struct Waited {
    path: String,
    /// When its end was asked for.
    ending: OnceLock<Instant>,
    /// When its end was answered: by then it is committed.
    ended: OnceLock<Instant>,
}

/// What every task needs.
#[derive(Clone)]
struct Ground {
    address: SocketAddr,
    seed: Arc<Seed>,
}

async fn make(ground: Ground, next: Arc<AtomicUsize>, count: usize) -> Result<Vec<Waited>> {
    let mut connection = Connection::open(ground.address, &ground.seed).await?;
    let mut made = Vec::new();
    let path = format!("/v1/stores/{}/pushes", ground.seed.tenant);
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= count {
            return Ok(made);
        }
        let body = accept::body(&ground.seed, n);
        let (status, answer) = connection.call("POST", &path, None, body).await?;
        ensure!(status == 202, "a push was not accepted: {status}");
        let answer: Value = serde_json::from_slice(&answer)?;
        let id = answer["id"].as_str().context("no identifier")?;
        made.push(Waited {
            path: format!("{path}/{id}"),
            ending: OnceLock::new(),
            ended: OnceLock::new(),
        });
    }
}

/// How one wait went.
struct Released {
    /// Since its end was asked for.
    since_asked: Duration,
    /// Since its end was answered; nothing when the waiter heard of it first.
    since_ended: Duration,
    /// How often the server's patience ended first.
    again: u64,
}

async fn wait(
    ground: Ground,
    pushes: Arc<Vec<Waited>>,
    n: usize,
    door: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
) -> Result<Released> {
    let place = door.acquire_owned().await?;
    let mut connection = Connection::open(ground.address, &ground.seed).await?;
    drop(place);
    waiting.fetch_add(1, Ordering::Relaxed);
    let mut again = 0;
    loop {
        let (status, _) = connection
            .call("GET", &pushes[n].path, Some("wait=30"), Bytes::new())
            .await?;
        let now = Instant::now();
        match status.as_u16() {
            200 => {
                let asked = pushes[n].ending.get().context("released before its end")?;
                let ended = pushes[n].ended.get();
                return Ok(Released {
                    since_asked: now - *asked,
                    since_ended: ended.map_or(Duration::ZERO, |at| now - *at),
                    again,
                });
            }
            202 => again += 1,
            _ => bail!("a wait was answered with {status}"),
        }
    }
}

async fn end(ground: Ground, pushes: Arc<Vec<Waited>>, next: Arc<AtomicUsize>) -> Result<()> {
    let mut connection = Connection::open(ground.address, &ground.seed).await?;
    loop {
        let Some(push) = pushes.get(next.fetch_add(1, Ordering::Relaxed)) else {
            return Ok(());
        };
        push.ending.set(Instant::now()).ok();
        let path = format!("{}/cancel", push.path);
        let (status, answer) = connection.call("POST", &path, None, Bytes::new()).await?;
        push.ended.set(Instant::now()).ok();
        ensure!(
            status == 200,
            "{status}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
}

/// Waits until a process has nothing to do, for at most ten seconds.
async fn idle(pid: u32) {
    for _ in 0..20 {
        let before = process_seconds(pid);
        tokio::time::sleep(Duration::from_millis(500)).await;
        if process_seconds(pid) - before < 0.05 {
            return;
        }
    }
}

/// Pushes that are delivered and open, made over HTTP.
async fn make_all(ground: &Ground, gateway: &Gateway, count: usize) -> Result<Arc<Vec<Waited>>> {
    let wanted = gateway.counts().accepted + count as u64;
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..CALLERS {
        tasks.spawn(make(ground.clone(), Arc::clone(&next), count));
    }
    let mut pushes = Vec::with_capacity(count);
    while let Some(made) = tasks.join_next().await {
        pushes.extend(made??);
    }
    let began = Instant::now();
    while gateway.counts().accepted < wanted {
        ensure!(began.elapsed() < PATIENCE, "the pushes were not delivered");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(Arc::new(pushes))
}

/// Starts a wait for each push, and returns when all requests are out.
async fn begin_all(
    ground: &Ground,
    pushes: &Arc<Vec<Waited>>,
) -> Result<JoinSet<Result<Released>>> {
    let door = Arc::new(Semaphore::new(OPENING));
    let waiting = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut waits = JoinSet::new();
    for n in 0..pushes.len() {
        let (ground, pushes) = (ground.clone(), Arc::clone(pushes));
        let (door, waiting) = (Arc::clone(&door), Arc::clone(&waiting));
        waits.spawn(wait(ground, pushes, n, door, waiting));
    }
    while waiting.load(Ordering::Relaxed) < pushes.len() {
        if let Some(ended) = waits.try_join_next() {
            ended??;
            bail!("a wait has ended before its push");
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "not everybody could begin to wait"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(waits)
}

/// Ends every push.
async fn end_all(ground: &Ground, pushes: &Arc<Vec<Waited>>) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut ends = JoinSet::new();
    for _ in 0..CALLERS {
        ends.spawn(end(ground.clone(), Arc::clone(pushes), Arc::clone(&next)));
    }
    while let Some(ended) = ends.join_next().await {
        ended??;
    }
    Ok(())
}

/// All of it.
pub(crate) async fn measure(
    options: &Options,
    deployment: &Deployment,
    seed: &Arc<Seed>,
    gateway: &Gateway,
    report: &mut Report,
) -> Result<()> {
    let polls = options.polls.min(file_limit().saturating_sub(OTHER_FILES));
    if polls < options.polls {
        say(&format!(
            "only {polls} waits: more files may not be opened (ulimit -n)"
        ));
    }
    let server = Server::start(deployment, ALL).await?;
    let (address, pid) = (server.address, server.pid());
    let seed = Arc::clone(seed);
    let ground = Ground { address, seed };
    let pushes = make_all(&ground, gateway, polls).await?;
    idle(pid).await;
    let resident_before = resident_kib(pid);
    let began = Instant::now();
    let mut waits = begin_all(&ground, &pushes).await?;
    let opened = began.elapsed();
    idle(pid).await;
    let (resident, processor) = (resident_kib(pid), process_seconds(pid));
    let began = Instant::now();
    end_all(&ground, &pushes).await?;
    let ended = began.elapsed();
    let mut all = Vec::with_capacity(polls);
    let released = tokio::time::timeout(PATIENCE, async {
        while let Some(released) = waits.join_next().await {
            all.push(released??);
        }
        anyhow::Ok(())
    });
    released.await.context("not everybody was released")??;
    let released = began.elapsed();
    let server_us = (process_seconds(pid) - processor) * 1e6 / polls.max(1) as f64;
    let each = resident.saturating_sub(resident_before) as f64 / polls.max(1) as f64;
    let again: u64 = all.iter().map(|one| one.again).sum();
    report.add(Line {
        what: format!("wait, {polls} released, since the end was asked for"),
        footing: deployment.footing.word(),
        count: polls as u64,
        rate: Some(polls as f64 / released.as_secs_f64()),
        times: Times::of(all.iter().map(|one| one.since_asked).collect()),
        costs: vec![("server", server_us)],
        notes: vec![
            ("resident KiB", json!(resident)),
            ("before the waits", json!(resident_before)),
            ("KiB each", json!((each * 10.0).round() / 10.0)),
            ("all out after ms", json!(opened.as_millis())),
            ("asked again", json!(again)),
        ],
        ..Line::default()
    });
    report.add(Line {
        what: "wait, since the end was answered".to_owned(),
        footing: deployment.footing.word(),
        count: polls as u64,
        rate: Some(polls as f64 / ended.as_secs_f64()),
        times: Times::of(all.iter().map(|one| one.since_ended).collect()),
        ..Line::default()
    });
    Ok(())
}
