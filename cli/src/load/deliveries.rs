//! Deliveries end to end: taken into the store, published, claimed, sent, recorded. All roles and the simulator run in this process.

use super::bare;
use super::deployment::{Deployment, failed};
use super::machine::{Costs, Usage, load_average, mean, ours};
use super::report::{Line, Report, median};
use super::seed::Seed;
use super::{Footing, LaneWord, Load, Wire};
use crate::roles::{Ground, Role};
use anyhow::{Result, bail, ensure};
use serde_json::json;
use shared::clock::{Clock as _, SystemClock};
use shared::message::Lane;
use shared::store::db::{Row, Statement};
use shared::store::{Begun, NewBatch, PART, Store, Taken};
use simulator::Gateway;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How many pushes one transaction takes.
const CHUNK: usize = 200;
/// How long one run may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// After this long without another accepted push only retries are left, of which one is at least a second away.
const QUIET: Duration = Duration::from_millis(400);
/// Where some are refused, the rate is that of the time until this part of what was ever accepted.
const BULK_OF_IT: f64 = 0.95;
const OPEN: [&str; 3] = ["queued", "sending", "retry_wait"];

static STATES: Statement =
    Statement::new("SELECT state, COUNT(*) AS n FROM deliveries GROUP BY state");
// What a run's mix has killed lives again in the next one.
static REVIVE: Statement =
    Statement::new("UPDATE devices SET address_state = 'valid' WHERE address_state = 'invalid'");

/// How many deliveries are in each state.
type States = BTreeMap<String, i64>;

/// One run.
struct Run {
    /// When the last push was taken.
    taken: Duration,
    /// Accepted by the provider, per second.
    rate: f64,
    /// When all were recorded.
    recorded: Duration,
    /// Calls beyond one for each push.
    again: i64,
    /// What became of the deliveries.
    states: States,
    costs: Costs,
}

async fn states(store: &Store) -> Result<States> {
    let rows = store.db().fetch(&STATES, &[]).await?;
    let state = |row: &Row| anyhow::Ok((row.text("state")?, row.int("n")?));
    rows.iter().map(state).collect()
}

/// What has come since `before`, and whether that is all.
fn settled(before: &States, now: &States, pushes: usize) -> (States, bool) {
    let mut new = now.clone();
    for (state, n) in &mut new {
        *n -= before.get(state).copied().unwrap_or(0);
    }
    new.retain(|_, n| *n != 0);
    // Of a batch nothing is written before the result.
    let all = new.values().sum::<i64>() == pushes as i64;
    let open = OPEN.iter().any(|state| new.contains_key(*state));
    (new, all && !open)
}

/// The time until all of `wanted` were accepted; where some are refused, until nothing more comes for now, with what came when.
async fn accepted(
    gateway: &Gateway,
    began: Instant,
    from: u64,
    wanted: u64,
    some_refused: bool,
) -> Result<Vec<(Duration, u64)>> {
    let mut seen: Vec<(Duration, u64)> = vec![];
    loop {
        let (at, count) = (began.elapsed(), gateway.counts().accepted - from);
        let last = seen.last().copied().unwrap_or_default();
        if count > last.1 {
            seen.push((at, count));
        }
        let quiet = some_refused && count > 0 && count == last.1 && at > last.0 + QUIET;
        if count >= wanted || quiet {
            return Ok(seen);
        }
        ensure!(at < PATIENCE, "not all pushes were sent in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
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
    load: &Load,
    footing: Footing,
    store: &Store,
    seed: &Arc<Seed>,
    gateway: &Gateway,
    lane: LaneWord,
) -> Result<Run> {
    let pushes = load.pushes;
    let wanted = pushes as u64;
    store.db().write(&REVIVE, &[]).await?;
    let (calls, written) = (gateway.counts(), states(store).await?);
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
    let some_refused = !load.errors.is_empty();
    let sending = accepted(gateway, began, calls.accepted, wanted, some_refused);
    let (taken, mut seen) = tokio::try_join!(taken, sending)?;
    let states = loop {
        let (new, done) = settled(&written, &states(store).await?, pushes);
        seen.push((began.elapsed(), gateway.counts().accepted - calls.accepted));
        if done {
            break new;
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "not all deliveries were recorded in time: {new:?}"
        );
        // Each look counts all deliveries of all runs.
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let recorded = began.elapsed();
    let costs = Usage::now().per(&before, wanted);
    let total = gateway.counts().accepted - calls.accepted;
    let sent = states.get("sent").copied().unwrap_or(0);
    ensure!(
        sent == total as i64 && (some_refused || total == wanted),
        "{sent} deliveries are recorded as sent, {total} were accepted, of {pushes}"
    );
    let skipped = states.get("skipped").copied().unwrap_or(0);
    let part = if some_refused { BULK_OF_IT } else { 1.0 };
    let enough = (total as f64 * part).ceil() as u64;
    let (at, count) = seen
        .into_iter()
        .find(|(_, count)| *count >= enough)
        .unwrap_or((recorded, total));
    Ok(Run {
        taken,
        rate: count as f64 / at.as_secs_f64(),
        recorded,
        again: (gateway.counts().requests - calls.requests) as i64 - (pushes as i64 - skipped),
        states,
        costs,
    })
}

/// What other measurements are compared with.
pub struct Measured {
    /// The bare client's rate.
    pub bare: f64,
    /// Our bulk lane's rate and costs, where it was asked for.
    pub bulk: Option<(f64, Costs)>,
}

/// Deliveries in each lane, each run beside a run of the bare client.
pub async fn measure(
    load: &Load,
    deployment: &Deployment,
    seed: &Arc<Seed>,
    gateway: &Gateway,
    wire: Wire,
    report: &mut Report,
) -> Result<Measured> {
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
    let mut lanes: Vec<_> = load
        .lanes()
        .into_iter()
        .map(|lane| (lane, vec![]))
        .collect();
    for _ in 0..load.runs.max(1) {
        bares.push(bare::measure(load, gateway, wire.streams).await?);
        gateway.set_mix(load.errors.shares.clone());
        for (lane, runs) in &mut lanes {
            let one = run(load, deployment.footing, &store, seed, gateway, *lane).await?;
            report.say(&format!(
                "  {lane:?} {:.0}/s, load {:.1}",
                one.rate,
                load_average()
            ));
            runs.push(one);
        }
        gateway.set_mix(vec![]);
    }
    ensure!(running.stop().await, "the roles did not stop in time");
    let bare = median(bares.iter().map(|bare| bare.rate).collect());
    let bare_costs = mean(bares.iter().map(|bare| &bare.costs));
    report.add(Line {
        what: format!("bare client, {} in flight, {}", load.flights, wire.words()),
        count: bares.iter().map(|bare| bare.count).sum(),
        rate: Some(bare),
        ratio: Some(1.0),
        costs: bare_costs.clone(),
        ..Line::default()
    });
    let mut measured = Measured { bare, bulk: None };
    for (lane, runs) in lanes {
        let per_second = |of: fn(&Run) -> Duration| {
            let all = runs.iter().map(of);
            let rates = all.map(|time| load.pushes as f64 / time.as_secs_f64());
            json!(median(rates.collect()).round())
        };
        let rate = median(runs.iter().map(|run| run.rate).collect());
        let costs = mean(runs.iter().map(|run| &run.costs));
        if lane == LaneWord::Bulk {
            measured.bulk = Some((rate, costs.clone()));
        }
        let part = ours(&bare_costs) / ours(&costs);
        let mut notes = vec![
            ("of bare by cost", json!((part * 1e3).round() / 1e3)),
            ("taken/s", per_second(|run| run.taken)),
            ("recorded/s", per_second(|run| run.recorded)),
            (
                "again",
                json!(runs.iter().map(|run| run.again).sum::<i64>()),
            ),
        ];
        let mut what = format!(
            "deliveries, {}, {}",
            format!("{lane:?}").to_lowercase(),
            wire.words()
        );
        if !load.errors.is_empty() {
            what = format!("{what}, errors {}", load.errors.text);
            let mut all = States::new();
            for (state, n) in runs.iter().flat_map(|run| &run.states) {
                *all.entry(state.clone()).or_default() += n;
            }
            notes.push(("deliveries", json!(all)));
        }
        report.add(Line {
            what,
            footing: deployment.footing.word(),
            count: (load.pushes * runs.len()) as u64,
            rate: Some(rate),
            ratio: Some(rate / bare),
            costs,
            notes,
            ..Line::default()
        });
    }
    Ok(measured)
}
