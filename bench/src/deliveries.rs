//! Deliveries end to end: taken into the store, published, claimed, sent, recorded. All roles and the simulator run in this process.

use crate::bare;
use crate::deployment::{Deployment, failed};
use crate::machine::{Costs, Usage, load, mean, ours};
use crate::options::{Footing, LaneWord, Options};
use crate::report::{Line, Report, median, say};
use crate::seed::Seed;
use anyhow::{Result, bail, ensure};
use cli::roles::{Ground, Role};
use serde_json::json;
use shared::clock::{Clock as _, SystemClock};
use shared::message::Lane;
use shared::store::db::Statement;
use shared::store::{Begun, NewBatch, Store, Taken};
use simulator::Gateway;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How many pushes one transaction takes.
const CHUNK: usize = 200;
/// How many lines of an upload one transaction takes, as in the API.
const PART: usize = 400;
/// How long one run may take.
const PATIENCE: Duration = Duration::from_mins(2);

static OPEN: Statement = Statement::new(
    "SELECT COUNT(*) AS n FROM deliveries WHERE state IN ('queued', 'sending', 'retry_wait')",
);
static SENT: Statement =
    Statement::new("SELECT COUNT(*) AS n FROM deliveries WHERE state = 'sent'");

/// One run.
struct Run {
    /// When the last push was taken.
    taken: Duration,
    /// When the provider had all.
    sent: Duration,
    /// When all were recorded.
    recorded: Duration,
    /// Calls beyond one for each push.
    again: u64,
    costs: Costs,
}

async fn count(store: &Store, statement: &Statement) -> Result<i64> {
    let rows = store.db().fetch(statement, &[]).await?;
    Ok(rows.first().map_or(Ok(0), |row| row.int("n"))?)
}

async fn take(store: &Store, seed: &Arc<Seed>, from: usize, to: usize) -> Result<()> {
    for begin in (from..to).step_by(CHUNK) {
        let pushes: Vec<_> = (begin..to.min(begin + CHUNK))
            .map(|n| seed.push(n, Lane::Interactive))
            .collect();
        let taken = store.take(&pushes, SystemClock.now()).await?;
        let new = taken.iter().all(|one| matches!(one, Taken::New(_)));
        ensure!(new, "a push was not taken: {taken:?}");
    }
    Ok(())
}

/// As a batch, the way that an upload goes.
async fn upload(store: &Store, seed: &Arc<Seed>, from: usize, to: usize) -> Result<()> {
    let new = NewBatch {
        store: seed.tenant.clone(),
        name: "bench".to_owned(),
        idempotency: None,
        atomic: false,
        max_per_second: None,
    };
    let Begun::Open(upload) = store.begin_upload(&new, SystemClock.now()).await? else {
        bail!("a new batch is not open");
    };
    for begin in (from..to).step_by(PART) {
        let end = to.min(begin + PART);
        let rows: Vec<_> = (begin..end).map(|n| seed.row(n, n - from + 1)).collect();
        let lines = ((begin - from + 1) as i64, (end - from) as i64);
        let took = store.take_rows(&upload, &rows, &[], lines, |_| None, SystemClock.now());
        let new = took.await?.map(|took| took.new);
        ensure!(new == Some(rows.len()), "lines were not taken: {new:?}");
    }
    store.end_upload(&upload, SystemClock.now()).await?;
    Ok(())
}

async fn run(
    options: &Options,
    footing: Footing,
    store: &Store,
    seed: &Arc<Seed>,
    gateway: &Gateway,
    lane: LaneWord,
) -> Result<Run> {
    let pushes = options.pushes;
    let wanted = pushes as u64;
    let (calls, sent) = (gateway.counts(), count(store, &SENT).await?);
    let writers = match footing {
        Footing::Embedded => 1,
        Footing::Servers => 3,
    };
    let (before, began) = (Usage::now(), Instant::now());
    let share = pushes.div_ceil(writers).next_multiple_of(CHUNK);
    let mut taking = JoinSet::new();
    for from in (0..pushes).step_by(share) {
        let (store, seed) = (store.clone(), Arc::clone(seed));
        let to = pushes.min(from + share);
        taking.spawn(async move {
            match lane {
                LaneWord::Interactive => take(&store, &seed, from, to).await,
                LaneWord::Bulk => upload(&store, &seed, from, to).await,
            }
        });
    }
    let taken = async {
        while let Some(ended) = taking.join_next().await {
            ended??;
        }
        anyhow::Ok(began.elapsed())
    };
    let accepted = async {
        while gateway.counts().accepted < calls.accepted + wanted {
            ensure!(
                began.elapsed() < PATIENCE,
                "not all pushes were sent in time"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(began.elapsed())
    };
    let (taken, accepted) = tokio::try_join!(taken, accepted)?;
    // Of a batch nothing is written before the result.
    while count(store, &OPEN).await? > 0 || count(store, &SENT).await? - sent < pushes as i64 {
        ensure!(
            began.elapsed() < PATIENCE,
            "not all deliveries were recorded in time"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let recorded = began.elapsed();
    let costs = Usage::now().per(&before, wanted);
    let now_sent = count(store, &SENT).await?;
    ensure!(
        now_sent - sent == i64::try_from(pushes)?,
        "{} deliveries are recorded as sent, not {pushes}",
        now_sent - sent
    );
    Ok(Run {
        taken,
        sent: accepted,
        recorded,
        again: gateway.counts().requests - calls.requests - wanted,
        costs,
    })
}

/// Deliveries in each lane, each run beside a run of the bare client.
pub(crate) async fn measure(
    options: &Options,
    deployment: &Deployment,
    seed: &Arc<Seed>,
    gateway: &Gateway,
    latency: u64,
    report: &mut Report,
) -> Result<()> {
    let ground = Ground::open(&deployment.settings, Arc::new(SystemClock))
        .await
        .map_err(failed)?;
    let store = ground.store.clone();
    let roles = [Role::Api, Role::Worker, Role::Waiter];
    let running = ground
        .start(&deployment.settings, &roles, None, None)
        .await
        .map_err(failed)?;
    let mut bares: Vec<bare::Bare> = Vec::new();
    let mut lanes: Vec<_> = options
        .lanes()
        .into_iter()
        .map(|lane| (lane, vec![]))
        .collect();
    for _ in 0..options.runs.max(1) {
        bares.push(bare::measure(options, gateway).await?);
        for (lane, runs) in &mut lanes {
            let one = run(options, deployment.footing, &store, seed, gateway, *lane).await?;
            say(&format!(
                "  {lane:?} {:.0}/s, load {:.1}",
                options.pushes as f64 / one.sent.as_secs_f64(),
                load()
            ));
            runs.push(one);
        }
    }
    ensure!(running.stop().await, "the roles did not stop in time");
    let bare = median(bares.iter().map(|bare| bare.rate).collect());
    let bare_costs = mean(bares.iter().map(|bare| &bare.costs));
    report.add(Line {
        what: format!("bare client, {} in flight, {latency} ms", options.flights),
        count: bares.iter().map(|bare| bare.count).sum(),
        rate: Some(bare),
        ratio: Some(1.0),
        costs: bare_costs.clone(),
        ..Line::default()
    });
    for (lane, runs) in lanes {
        let rate = |of: fn(&Run) -> Duration| {
            median(
                runs.iter()
                    .map(|run| options.pushes as f64 / of(run).as_secs_f64())
                    .collect(),
            )
        };
        let sent = rate(|run| run.sent);
        let costs = mean(runs.iter().map(|run| &run.costs));
        let part = ours(&bare_costs) / ours(&costs);
        let notes = vec![
            ("of bare by cost", json!((part * 1e3).round() / 1e3)),
            ("taken/s", json!(rate(|run| run.taken).round())),
            ("recorded/s", json!(rate(|run| run.recorded).round())),
            (
                "again",
                json!(runs.iter().map(|run| run.again).sum::<u64>()),
            ),
        ];
        report.add(Line {
            what: format!(
                "deliveries, {}, {latency} ms",
                format!("{lane:?}").to_lowercase()
            ),
            footing: deployment.footing.word(),
            count: (options.pushes * runs.len()) as u64,
            rate: Some(sent),
            ratio: Some(sent / bare),
            costs,
            notes,
            ..Line::default()
        });
    }
    Ok(())
}
