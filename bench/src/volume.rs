//! A batch of any size, uploaded over HTTP as its sender would, and people who sign in meanwhile: what they notice of it, how much memory it takes, and what
//! a push costs at its beginning and at its end.

use crate::accept;
use crate::http1::Connection;
use crate::options::Options;
use crate::server::{ALL, Server};
use anyhow::{Context as _, Result, ensure};
use cli::load::deployment::Deployment;
use cli::load::machine::{Usage, process_seconds, resident_kib};
use cli::load::report::{Line, Report, Times};
use cli::load::request::token;
use cli::load::seed::{RP, Seed, plant};
use cli::load::{Footing, Wire};
use serde_json::{Value, json};
use shared::id::PushId;
use simulator::Gateway;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;

/// Users who sign in; the batch goes to the others.
const PEOPLE: usize = 20;
/// Sign-ins a second, of each of the two stores.
const LOGINS: f64 = 10.0;
/// How many of a store may be under way.
const CONNECTIONS: usize = 16;
/// Lines in one piece of the upload.
const PIECE: usize = 500;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How many pushes a second are the least to wait for.
const SLOWEST: u64 = 500;
/// The parts of the batch whose costs are told, up to so many pushes.
const PARTS: [u64; 4] = [10_000, 100_000, 300_000, 1_000_000];

/// When the provider got a push.
type Seen = Arc<Mutex<HashMap<PushId, Instant>>>;

/// Notes when pushes to those who sign in come to the provider.
async fn watch(gateway: Gateway, seen: Seen) {
    let people: HashSet<String> = [
        shared::domain::Provider::Apns,
        shared::domain::Provider::Fcm,
    ]
    .into_iter()
    .flat_map(|provider| (0..PEOPLE).map(move |n| token(provider, n)))
    .collect();
    let mut receipts = gateway.subscribe();
    loop {
        match receipts.recv().await {
            Ok(receipt) => {
                if let Some(push) = &receipt.push_id
                    && people.contains(receipt.token.expose())
                {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.entry(push.clone()).or_insert_with(Instant::now);
                }
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// A sign-in: when it was due, until its 202, and which push it is.
struct Login {
    due: Instant,
    accepted: Duration,
    push: PushId,
}

/// People of one store sign in at a fixed rate until told to stop.
async fn logins(address: SocketAddr, seed: Arc<Seed>, stop: Arc<AtomicBool>) -> Result<Vec<Login>> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for first in 0..CONNECTIONS {
        let mut connection = Connection::open(address, &seed).await?;
        let (seed, stop) = (Arc::clone(&seed), Arc::clone(&stop));
        tasks.spawn(async move {
            let path = format!("/v1/stores/{}/pushes", seed.tenant);
            let mut done = Vec::new();
            for n in (first..).step_by(CONNECTIONS) {
                let due = began + Duration::from_secs_f64(n as f64 / LOGINS);
                tokio::time::sleep_until(due.into()).await;
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let body = accept::body(&seed, n % PEOPLE);
                let (status, answer) = connection.call("POST", &path, None, body).await?;
                ensure!(status == 202, "a sign-in was answered with {status}");
                let answer: Value = serde_json::from_slice(&answer)?;
                let push = answer["id"].as_str().and_then(|id| id.parse().ok());
                done.push(Login {
                    due,
                    accepted: due.elapsed(),
                    push: push.context("a push without an identifier")?,
                });
            }
            anyhow::Ok(done)
        });
    }
    let mut all = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        all.extend(ended??);
    }
    Ok(all)
}

/// Uploads `count` lines in one request, made while they are sent.
async fn upload(address: SocketAddr, seed: Arc<Seed>, count: usize) -> Result<Duration> {
    let mut socket = TcpStream::connect(address).await?;
    let head = format!(
        "POST /v1/stores/{}/batches?relying_party={RP}&title=Payslip&expires_in=3600s HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: application/x-ndjson\r\nidempotency-key: volume\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
        seed.tenant,
        seed.key.expose()
    );
    let began = Instant::now();
    socket.write_all(head.as_bytes()).await?;
    let others = seed.users.len() - PEOPLE;
    for begin in (0..count).step_by(PIECE) {
        let line = |n: usize| {
            let user = PEOPLE + n % others;
            format!("{{\"user\":{{\"external_id\":\"user-{user}\"}},\"message\":\"Number {n}\"}}\n")
        };
        let lines: String = (begin..count.min(begin + PIECE)).map(line).collect();
        let piece = format!("{:x}\r\n{lines}\r\n", lines.len());
        socket.write_all(piece.as_bytes()).await?;
    }
    socket.write_all(b"0\r\n\r\n").await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let taken =
        answer.starts_with("HTTP/1.1 202") && answer.contains(&format!("\"accepted\":{count},"));
    ensure!(taken, "the batch was not taken whole: {answer}");
    Ok(began.elapsed())
}

/// A process under load, and its memory in KiB: before the batch, and the most.
struct Process {
    name: &'static str,
    server: Server,
    before: u64,
    most: u64,
}

/// All of them; the last one has the API.
struct Processes(Vec<Process>);

impl Processes {
    async fn start(deployment: &Deployment) -> Result<Self> {
        let roles = match deployment.footing {
            Footing::Embedded => vec![("all", ALL)],
            Footing::Servers => vec![("worker", "worker,waiter"), ("api", "api")],
        };
        let mut all = Vec::new();
        for (name, roles) in roles {
            let server = Server::start(deployment, roles).await?;
            all.push(Process {
                name,
                server,
                before: 0,
                most: 0,
            });
        }
        Ok(Self(all))
    }

    fn address(&self) -> Result<SocketAddr> {
        let last = self.0.last().context("no process")?;
        Ok(last.server.address)
    }

    /// Looks at their memory before the batch.
    fn begin(&mut self) {
        for one in &mut self.0 {
            one.before = resident_kib(one.server.pid());
        }
    }

    /// Looks at their memory.
    fn look(&mut self) {
        for one in &mut self.0 {
            one.most = one.most.max(resident_kib(one.server.pid()));
        }
    }

    fn seconds(&self) -> f64 {
        let pids = self.0.iter().map(|one| one.server.pid());
        pids.map(process_seconds).sum()
    }

    /// MiB of each, before and at most.
    fn memory(&self) -> Vec<(&'static str, Value)> {
        let of = |one: &Process| (one.name, json!([one.before / 1024, one.most / 1024]));
        self.0.iter().map(of).collect()
    }
}

/// One part of the batch, from `from` to `to` pushes.
struct Part {
    from: u64,
    to: u64,
    took: Duration,
    costs: Vec<(&'static str, f64)>,
}

/// Follows the deliveries of the batch to their end: costs by part, and memory.
async fn follow(gateway: &Gateway, processes: &mut Processes, count: u64) -> Result<Vec<Part>> {
    let start = gateway.counts().accepted;
    let began = Instant::now();
    let patience = Duration::from_secs(60 + count / SLOWEST);
    let mut parts = Vec::new();
    let mut ends: Vec<u64> = PARTS.into_iter().filter(|part| *part < count).collect();
    ends.push(count);
    let (mut from, mut at, mut before, mut own) = (0, began, Usage::now(), processes.seconds());
    for to in ends {
        loop {
            processes.look();
            // The few sign-ins are counted with them.
            let sent = gateway.counts().accepted - start;
            if sent >= to {
                break;
            }
            ensure!(
                began.elapsed() < patience,
                "only {sent} of {count} are sent"
            );
            tokio::time::sleep(LOOK).await;
        }
        let n = to - from;
        let mut costs = Usage::now().per(&before, n);
        costs.retain(|(name, _)| *name != "bench");
        let seconds = processes.seconds();
        costs.push(("ours", (seconds - own) * 1e6 / n as f64));
        let took = at.elapsed();
        parts.push(Part {
            from,
            to,
            took,
            costs,
        });
        (from, at, before, own) = (to, Instant::now(), Usage::now(), seconds);
    }
    Ok(parts)
}

/// The times from when sign-ins were due until their 202, and until the provider had them; and how many the provider never got.
fn times(done: &[Login], seen: &Seen) -> (Option<Times>, Option<Times>, usize) {
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let reached: Vec<_> = done
        .iter()
        .filter_map(|login| Some(seen.get(&login.push)?.saturating_duration_since(login.due)))
        .collect();
    let lost = done.len() - reached.len();
    let accepted = done.iter().map(|login| login.accepted).collect();
    (Times::of(accepted), Times::of(reached), lost)
}

/// Where people sign in, and what was seen of it.
struct Ground {
    address: SocketAddr,
    footing: &'static str,
    stores: [(&'static str, Arc<Seed>); 2],
    seen: Seen,
}

impl Ground {
    /// People sign in at both stores while `meanwhile` runs. Gives theirs, and what it gave.
    async fn beside<T>(
        &self,
        meanwhile: impl Future<Output = Result<T>>,
    ) -> Result<(Vec<Vec<Login>>, T)> {
        let stop = Arc::new(AtomicBool::new(false));
        let running = self.stores.iter().map(|(_, seed)| {
            tokio::spawn(logins(self.address, Arc::clone(seed), Arc::clone(&stop)))
        });
        let running: Vec<_> = running.collect();
        let given = meanwhile.await;
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for one in running {
            all.push(one.await??);
        }
        // The last ones are on their way.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok((all, given?))
    }

    /// A line for each store. Gives the 99th percentiles; `idle`: those of before.
    fn tell(&self, what: &str, all: &[Vec<Login>], idle: &[f64], report: &mut Report) -> Vec<f64> {
        let mut p99 = Vec::new();
        for (n, ((name, _), done)) in self.stores.iter().zip(all).enumerate() {
            let (accepted, reached, lost) = times(done, &self.seen);
            let most = reached.map_or(0.0, |times| times.p99);
            let mut notes = vec![("missing", json!(lost))];
            if let Some(accepted) = accepted {
                let [p50, p90, p99] =
                    [accepted.p50, accepted.p90, accepted.p99].map(|ms| (ms * 10.0).round() / 10.0);
                notes.push(("202 ms", json!([p50, p90, p99])));
            }
            if let Some(idle) = idle.get(n) {
                let times = (most / idle * 100.0).round() / 100.0;
                notes.push(("p99 of alone", json!(times)));
            }
            report.add(Line {
                what: format!("sign-ins {what}, {name}"),
                footing: self.footing,
                count: done.len() as u64,
                times: reached,
                notes,
                ..Line::default()
            });
            p99.push(most);
        }
        p99
    }
}

async fn pause(length: Duration) -> Result<()> {
    tokio::time::sleep(length).await;
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
    let load = &options.load;
    ensure!(load.users > PEOPLE, "volume needs more than {PEOPLE} users");
    let wire = Wire {
        latency: load.latency.first().copied().unwrap_or(20),
        streams: None,
    };
    wire.set(gateway, load.provider);
    let quiet = Arc::new(plant(deployment, gateway, load.provider, PEOPLE).await?);
    let mut processes = Processes::start(deployment).await?;
    let ground = Ground {
        address: processes.address()?,
        footing: deployment.footing.word(),
        stores: [
            ("in the batch's store", Arc::clone(seed)),
            ("in a quiet store", quiet),
        ],
        seen: Seen::default(),
    };
    let watching = tokio::spawn(watch(gateway.clone(), Arc::clone(&ground.seen)));
    // Connections, caches and prepared statements.
    ground.beside(pause(load.step() / 4)).await?;
    let (alone, ()) = ground.beside(pause(load.step())).await?;
    let idle = ground.tell("alone", &alone, &[], report);
    processes.begin();
    let count = options.volume;
    let batch = async {
        let taking = tokio::spawn(upload(ground.address, Arc::clone(seed), count));
        let taken = async { taking.await? };
        tokio::try_join!(taken, follow(gateway, &mut processes, count as u64))
    };
    let (all, (taken, parts)) = ground.beside(batch).await?;
    let what = format!("beside a batch of {count}");
    ground.tell(&what, &all, &idle, report);
    let line = |what: String, n: u64, took: Duration| Line {
        what,
        footing: ground.footing,
        count: n,
        rate: Some(n as f64 / took.as_secs_f64()),
        ..Line::default()
    };
    report.add(Line {
        notes: processes.memory(),
        ..line(format!("upload of {count} lines"), count as u64, taken)
    });
    for part in parts {
        let what = format!("batch of {count}, {} to {}", part.from, part.to);
        report.add(Line {
            costs: part.costs,
            ..line(what, part.to - part.from, part.took)
        });
    }
    watching.abort();
    Ok(())
}
