//! The same stack without the database: the real broker port and the real HTTP/2 pool, with nothing between them. What it leaves out of
//! a delivery: taking, outbox and relay, dispatcher, claim, push policy, record, events. On the embedded footing the queue itself still lives
//! in SQLite.

use crate::options::Options;
use anyhow::{Context as _, Result, ensure};
use cli::load::LaneWord;
use cli::load::Wire;
use cli::load::bare;
use cli::load::deployment::{Deployment, failed};
use cli::load::machine::{Costs, Usage, mean, ours};
use cli::load::report::{Line, Report, median};
use cli::load::request::token;
use cli::load::seed::{apns, fcm};
use cli::roles::open_database;
use serde_json::json;
use shared::broker::{self, Delivery, Queue, SharedBroker};
use shared::clock::{Clock as _, SystemClock};
use shared::domain::{Kind, Provider as Carrier};
use shared::id::{DeliveryId, PushId, StoreId};
use shared::message::{Job, Lane, Route, VERSION};
use shared::secret::Secret;
use simulator::Gateway;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use workers::fanout::Limits;
use workers::push::{Call, Options as PushOptions, Provider, Providers, PushResult};

/// How many pushes a bulk job carries.
const CHUNK: usize = 200;
/// How many jobs are published together.
const TOGETHER: usize = 100;
const PATIENCE: Duration = Duration::from_mins(2);

fn lane_of(word: LaneWord) -> (Lane, Queue, usize) {
    match word {
        LaneWord::Interactive => (Lane::Interactive, Queue::JobsInteractive, 1),
        LaneWord::Bulk => (Lane::Bulk, Queue::JobsBulk, CHUNK),
    }
}

async fn publish(broker: SharedBroker, pushes: usize, lane: Lane, chunk: usize) -> Result<()> {
    let store = StoreId::fresh(SystemClock.now());
    let sizes: Vec<_> = (0..pushes)
        .step_by(chunk)
        .map(|from| chunk.min(pushes - from))
        .collect();
    for group in sizes.chunks(TOGETHER) {
        let now = SystemClock.now();
        let message = |size: &usize| {
            let job = Job {
                v: VERSION,
                store: store.clone(),
                pushes: (0..*size).map(|_| PushId::fresh(now)).collect(),
                retries: vec![],
                chunk: None,
            };
            job.into_message(Route::Jobs(lane), now)
        };
        let messages: Vec<_> = group.iter().map(message).collect();
        for published in broker.publish(&messages).await {
            published?;
        }
    }
    Ok(())
}

/// The calls of one job, then its end.
async fn work(
    delivery: Delivery,
    job: Job,
    provider: Arc<dyn Provider>,
    carrier: Carrier,
    places: Arc<Semaphore>,
) -> Result<usize> {
    let mut calls = JoinSet::new();
    for (n, push) in job.pushes.into_iter().enumerate() {
        let place = Arc::clone(&places).acquire_owned().await?;
        let provider = Arc::clone(&provider);
        calls.spawn(async move {
            let call = Call {
                delivery: DeliveryId::derived(&[push.as_str()]),
                push,
                kind: Kind::Generic,
                lane: Lane::Bulk,
                token: Secret::new(token(carrier, n)),
                expires_at: SystemClock.now() + 600_000,
                attempt: 1,
                traceparent: None,
            };
            let result = provider.push(&call).await;
            drop(place);
            result
        });
    }
    let mut done = 0;
    while let Some(result) = calls.join_next().await {
        let result = result?;
        let accepted = matches!(result, PushResult::Accepted { .. });
        ensure!(accepted, "a call was not accepted: {}", result.label());
        done += 1;
    }
    delivery.ack().await;
    Ok(done)
}

/// The rate, and what each cost.
async fn run(
    broker: &SharedBroker,
    provider: &Arc<dyn Provider>,
    carrier: Carrier,
    pushes: usize,
    lane: LaneWord,
) -> Result<(f64, Costs)> {
    let (lane, queue, chunk) = lane_of(lane);
    let limits = Limits::for_lane(lane);
    let places = Arc::new(Semaphore::new(limits.in_flight));
    let mut jobs = broker.consume(queue, limits.prefetch).await?;
    let (before, began) = (Usage::now(), Instant::now());
    let publishing = tokio::spawn(publish(Arc::clone(broker), pushes, lane, chunk));
    let mut working = JoinSet::new();
    let (mut taken, mut done) = (0, 0);
    while done < pushes {
        let job = tokio::select! {
            job = jobs.recv(), if taken < pushes => Some(job.context("the queue has ended")?),
            Some(worked) = working.join_next() => {
                done += worked??;
                None
            }
            () = tokio::time::sleep_until((began + PATIENCE).into()) => anyhow::bail!("not all was sent in time"),
        };
        if let Some(delivery) = job {
            let message = delivery.message.as_ref();
            let message = message.map_err(|why| anyhow::anyhow!("no message: {why}"))?;
            let job = Job::decode(message)?;
            taken += job.pushes.len();
            let (provider, places) = (Arc::clone(provider), Arc::clone(&places));
            working.spawn(work(delivery, job, provider, carrier, places));
        }
    }
    let took = began.elapsed();
    publishing.await??;
    Ok((
        pushes as f64 / took.as_secs_f64(),
        Usage::now().per(&before, pushes as u64),
    ))
}

/// In each lane, each run beside one of the bare client.
pub(crate) async fn measure(
    options: &Options,
    deployment: &Deployment,
    gateway: &Gateway,
    wire: Wire,
    report: &mut Report,
) -> Result<()> {
    let settings = &deployment.settings;
    let db = open_database(&settings.database_url)
        .await
        .map_err(failed)?;
    let clock = Arc::new(SystemClock);
    let (url, prefix) = (settings.queue_url.expose(), &settings.queue_prefix);
    let broker = broker::open(url, prefix, &db, clock.clone()).await?;
    broker.apply_topology().await?;
    let providers = Providers::new(PushOptions {
        extra_ca_pem: settings.extra_ca_pem.clone(),
        fcm_per_minute: settings.fcm_per_minute,
        clock,
        ..PushOptions::default()
    })?;
    let carrier = options.load.provider;
    let provider = match carrier {
        Carrier::Apns => providers.apns("bench", &apns(gateway))?,
        Carrier::Fcm => providers.fcm("bench", &fcm(gateway))?,
    };
    let mut bares = vec![];
    let mut lanes: Vec<_> = options
        .load
        .lanes()
        .into_iter()
        .map(|l| (l, vec![]))
        .collect();
    for _ in 0..options.load.runs.max(1) {
        bares.push(bare::measure(&options.load, gateway, wire.streams).await?);
        for (lane, runs) in &mut lanes {
            runs.push(run(&broker, &provider, carrier, options.load.pushes, *lane).await?);
        }
    }
    broker.close().await;
    db.close().await;
    let bare = median(bares.iter().map(|bare| bare.rate).collect());
    let bare_costs = mean(bares.iter().map(|bare| &bare.costs));
    for (lane, runs) in lanes {
        let rate = median(runs.iter().map(|(rate, _)| *rate).collect());
        let costs = mean(runs.iter().map(|(_, costs)| costs));
        let part = ours(&bare_costs) / ours(&costs);
        report.add(Line {
            what: format!(
                "without database, {}, {}",
                format!("{lane:?}").to_lowercase(),
                wire.words()
            ),
            footing: deployment.footing.word(),
            count: (options.load.pushes * runs.len()) as u64,
            rate: Some(rate),
            ratio: Some(rate / bare),
            costs,
            notes: vec![("of bare by cost", json!((part * 1e3).round() / 1e3))],
            ..Line::default()
        });
    }
    Ok(())
}
