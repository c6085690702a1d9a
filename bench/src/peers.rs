//! A pipeline as teams glue it together (`bench/peers`): Celery takes tasks from RabbitMQ and pushes with httpx or aioapns, to the same
//! simulator, beside our bulk lane.

use crate::options::Options;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use cli::load::Wire;
use cli::load::deliveries::Measured;
use cli::load::deployment::Deployment;
use cli::load::machine::{Costs, Usage, group_seconds, mean, ours};
use cli::load::report::{Line, Report, median, say};
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Connection, ConnectionProperties};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use shared::domain::Provider;
use simulator::Gateway;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};

const RUN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/run");
/// The most pushes of one run: its rate does not change with more.
const MOST: usize = 10_000;
/// Pushes before the first run, so that every process has its connection.
const WARM: usize = 2_000;
const PATIENCE: Duration = Duration::from_mins(3);
const START: Duration = Duration::from_secs(90);

/// Processes of one group. They are killed when dropped.
struct Group(Child);

impl Group {
    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Nothing of theirs is to be kept.
        kill_process_group(Pid::from_child(&self.0), Signal::KILL).ok();
        self.0.wait().ok();
    }
}

/// What every process of a configuration is told.
struct Ground<'a> {
    name: &'a str,
    folder: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Ground<'_> {
    fn command(&self, what: &str) -> Result<Command> {
        let mut command = Command::new(RUN);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())?;
        command
            .args([what, self.name])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.folder.join(format!("peers-{}.log", self.name))
    }

    /// The last of what they said.
    fn said(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

/// The producer, which enqueues as many as it is told.
struct Producer {
    group: Group,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Producer {
    fn start(ground: &Ground<'_>) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut command = ground.command("produce")?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.process_group(0).spawn()?;
        let to = child.stdin.take().context("no input")?;
        let from = child.stdout.take().context("no output")?;
        let from = BufReader::new(ChildStdout::from_std(from)?);
        Ok(Self {
            group: Group(child),
            to: ChildStdin::from_std(to)?,
            from: from.lines(),
        })
    }

    async fn hears(&mut self, word: &str) -> Result<()> {
        let line = tokio::time::timeout(PATIENCE, self.from.next_line()).await;
        let line = line.context("the producer says nothing")??;
        ensure!(line.as_deref() == Some(word), "the producer said {line:?}");
        Ok(())
    }

    async fn tell(&mut self, count: usize) -> Result<()> {
        self.to.write_all(format!("{count}\n").as_bytes()).await?;
        Ok(self.to.flush().await?)
    }
}

/// One run: its rate, its costs, when all were enqueued, and calls beyond one for each push.
struct Run {
    rate: f64,
    costs: Costs,
    enqueued: f64,
    again: u64,
}

async fn run(
    producer: &mut Producer,
    workers: &Group,
    gateway: &Gateway,
    pushes: usize,
    patience: Duration,
) -> Result<Run> {
    let seconds = || group_seconds(workers.pid()) + group_seconds(producer.group.pid());
    let (calls, wanted) = (gateway.counts(), pushes as u64);
    let (before, python, began) = (Usage::now(), seconds(), Instant::now());
    producer.tell(pushes).await?;
    let enqueued = async {
        producer.hears("enqueued").await?;
        Ok(pushes as f64 / began.elapsed().as_secs_f64())
    };
    let sent = async {
        while gateway.counts().accepted < calls.accepted + wanted {
            ensure!(began.elapsed() < patience, "not all was sent in time");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(began.elapsed())
    };
    let (enqueued, sent) = tokio::try_join!(enqueued, sent)?;
    let mut costs = Usage::now().per(&before, wanted);
    let python = group_seconds(workers.pid()) + group_seconds(producer.group.pid()) - python;
    costs.push(("python", python * 1e6 / wanted.max(1) as f64));
    Ok(Run {
        rate: pushes as f64 / sent.as_secs_f64(),
        costs,
        enqueued,
        again: gateway.counts().requests - calls.requests - wanted,
    })
}

async fn configuration(
    options: &Options,
    ground: &Ground<'_>,
    gateway: &Gateway,
) -> Result<Vec<Run>> {
    use std::os::unix::process::CommandExt as _;
    let workers = Group(ground.command("worker")?.process_group(0).spawn()?);
    let mut producer = Producer::start(ground)?;
    producer.hears("ready").await?;
    let pushes = options.load.pushes.min(MOST);
    run(&mut producer, &workers, gateway, pushes.min(WARM), START).await?;
    let mut runs = vec![];
    for _ in 0..options.load.runs.max(1) {
        runs.push(run(&mut producer, &workers, gateway, pushes, PATIENCE).await?);
    }
    Ok(runs)
}

async fn forget(url: &str, queue: &str) -> Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let (all, of_all) = (
        QueueDeleteOptions::default(),
        ExchangeDeleteOptions::default(),
    );
    channel.queue_delete(queue.into(), all).await?;
    channel.exchange_delete(queue.into(), of_all).await?;
    connection.close(200, "done".into()).await?;
    Ok(())
}

/// Why it cannot run here.
fn missing(options: &Options) -> Result<String, String> {
    if options.load.provider != Provider::Apns {
        return Err("it speaks APNs only".to_owned());
    }
    let url = std::env::var("COUNTERSIGN_TEST_AMQP_URL")
        .map_err(|_| "it needs RabbitMQ: run scripts/test -- COMMAND".to_owned())?;
    if !Path::new(RUN).exists() {
        return Err(format!("{RUN} is not there"));
    }
    say("preparing bench/peers");
    let made = Command::new(RUN)
        .arg("prepare")
        .stdin(Stdio::null())
        .output();
    let made = made.map_err(|error| format!("{RUN} cannot be run: {error}"))?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        return Err(said.trim().replace('\n', "; "));
    }
    Ok(url)
}

/// Every configuration, and how many times the best one's rate our bulk lane has.
pub(crate) async fn measure(
    options: &Options,
    deployment: &Deployment,
    gateway: &Gateway,
    wire: Wire,
    beside: &Measured,
    report: &mut Report,
) -> Result<()> {
    let url = match missing(options) {
        Ok(url) => url,
        Err(why) => {
            report.add(Line {
                what: "peers".to_owned(),
                notes: vec![("skipped", json!(why))],
                ..Line::default()
            });
            return Ok(());
        }
    };
    let key = gateway.apns_key();
    std::fs::write(deployment.folder.join("key.p8"), key.p8.expose())?;
    let mut best: Option<(f64, &str)> = None;
    for name in &options.pools {
        let queue = format!("{}.peers.{name}", deployment.settings.queue_prefix);
        let ground = Ground {
            name,
            folder: deployment.folder.clone(),
            environment: vec![
                ("PEERS_APNS_URL", gateway.apns_url().to_owned()),
                ("PEERS_TOPIC", key.topic.clone()),
                ("PEERS_KEY_ID", key.key_id.clone()),
                ("PEERS_TEAM_ID", key.team_id.clone()),
                ("PEERS_FOLDER", deployment.folder.display().to_string()),
                ("PEERS_BROKER", url.clone()),
                ("PEERS_QUEUE", queue.clone()),
            ],
        };
        let runs = configuration(options, &ground, gateway).await;
        forget(&url, &queue).await?;
        let runs = match runs {
            Ok(runs) => runs,
            Err(error) => bail!("peers, {name}: {error:#}: {}", ground.said()),
        };
        let rate = median(runs.iter().map(|run| run.rate).collect());
        let costs = mean(runs.iter().map(|run| &run.costs));
        let times = |of: f64| json!((of * 10.0).round() / 10.0);
        let mut notes = vec![
            (
                "enqueued/s",
                json!(median(runs.iter().map(|r| r.enqueued).collect()).round()),
            ),
            (
                "again",
                json!(runs.iter().map(|run| run.again).sum::<u64>()),
            ),
        ];
        if let Some((bulk, bulk_costs)) = &beside.bulk {
            notes.push(("our bulk, times", times(bulk / rate)));
            notes.push(("by cost", times(ours(&costs) / ours(bulk_costs))));
        }
        report.add(Line {
            what: format!("peers, Celery {name}, {}", wire.words()),
            footing: deployment.footing.word(),
            count: (options.load.pushes.min(MOST) * runs.len()) as u64,
            rate: Some(rate),
            ratio: Some(rate / beside.bare),
            costs,
            notes,
            ..Line::default()
        });
        if best.is_none_or(|(most, _)| rate > most) {
            best = Some((rate, name));
        }
    }
    let (rate, name) = best.ok_or_else(|| anyhow!("no configuration of peers was asked for"))?;
    if let Some((bulk, _)) = &beside.bulk {
        say(&format!(
            "our bulk lane has {:.1} times the rate of the best of peers, {name}",
            bulk / rate
        ));
    }
    Ok(())
}
