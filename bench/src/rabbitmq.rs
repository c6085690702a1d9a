//! What RabbitMQ takes and gives by itself: jobs of the two sizes, persistent and confirmed, on our own queues, through bare channels.

use crate::options::Options;
use anyhow::{Context as _, Result, ensure};
use cli::load::bare;
use cli::load::deployment::Deployment;
use cli::load::machine::Usage;
use cli::load::report::{Line, Report};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::json;
use shared::broker::{Broker as _, Rabbit, rabbit};
use shared::clock::{Clock as _, SystemClock};
use shared::id::{PushId, StoreId};
use shared::message::{Job, Lane, Route, VERSION};
use simulator::Gateway;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Publishes without a confirm at once.
const WINDOW: usize = 500;
/// Messages at the consumer without an ack.
const PREFETCH: u16 = 1_000;
/// One ack for so many.
const ACK_EVERY: u64 = 100;
/// The most messages of one step, whatever its length.
const MOST: u64 = 200_000;

/// A queue of ours, and what goes through it.
struct Jobs {
    connection: Connection,
    prefix: String,
    lane: Lane,
    body: Vec<u8>,
}

/// When publishing ends.
#[derive(Clone, Copy)]
enum Until {
    /// Once the channel stands, and at least one.
    Time(Duration),
    Count(u64),
}

fn body(pushes: usize) -> Vec<u8> {
    let now = SystemClock.now();
    let job = Job {
        v: VERSION,
        store: StoreId::fresh(now),
        pushes: (0..pushes).map(|_| PushId::fresh(now)).collect(),
        retries: vec![],
        chunk: None,
    };
    job.into_message(Route::Jobs(Lane::Bulk), now).body
}

impl Jobs {
    async fn publish(&self, until: Until) -> Result<u64> {
        let channel = self.connection.create_channel().await?;
        let on = ConfirmSelectOptions::default();
        channel.confirm_select(on).await?;
        let exchange = format!("{}.jobs", self.prefix);
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let mut open = VecDeque::with_capacity(WINDOW);
        let mut count = 0;
        let began = Instant::now();
        loop {
            let more = match until {
                Until::Time(step) => count == 0 || (began.elapsed() < step && count < MOST),
                Until::Count(all) => count < all,
            };
            if open.len() == WINDOW || !more {
                let Some(oldest) = open.pop_front() else {
                    break;
                };
                let confirmation: Confirmation = oldest.await?;
                let taken = matches!(confirmation, Confirmation::Ack(None));
                ensure!(taken, "RabbitMQ did not take a message");
            }
            if more {
                let (to, key) = (exchange.as_str().into(), self.lane.as_str().into());
                let sent = channel.basic_publish(to, key, options, &self.body, persistent.clone());
                open.push_back(sent.await?);
                count += 1;
            }
        }
        channel.close(200, "done".into()).await?;
        Ok(count)
    }

    async fn consumer(&self) -> Result<(Channel, lapin::Consumer)> {
        let channel = self.connection.create_channel().await?;
        let qos = BasicQosOptions::default();
        channel.basic_qos(PREFETCH, qos).await?;
        let queue = format!("{}.jobs.{}", self.prefix, self.lane.as_str());
        let consumer = channel.basic_consume(
            queue.as_str().into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = consumer.await?;
        Ok((channel, consumer))
    }

    async fn consume(&self, count: u64) -> Result<()> {
        let (channel, mut consumer) = self.consumer().await?;
        for n in 1..=count {
            let delivery = consumer.next().await.context("the consumer has ended")??;
            if n % ACK_EVERY == 0 || n == count {
                let all = BasicAckOptions { multiple: true };
                delivery.ack(all).await?;
            }
        }
        channel.close(200, "done".into()).await?;
        Ok(())
    }
}

/// Publishing, consuming, and both at once, of jobs of one push and of 200.
pub(crate) async fn measure(
    options: &Options,
    deployment: &Deployment,
    gateway: &Gateway,
    report: &mut Report,
) -> Result<()> {
    let bare = bare::measure(&options.load, gateway, None).await?.rate;
    let settings = &deployment.settings;
    let (url, prefix) = (settings.queue_url.expose(), settings.queue_prefix.clone());
    let options_of = rabbit::Options {
        prefix: prefix.clone(),
        ..rabbit::Options::default()
    };
    let broker = Rabbit::connect(url, options_of).await?;
    broker.apply_topology().await?;
    for (lane, pushes) in [(Lane::Interactive, 1_usize), (Lane::Bulk, 200)] {
        let jobs = Jobs {
            connection: Connection::connect(url, ConnectionProperties::default()).await?,
            prefix: prefix.clone(),
            lane,
            body: body(pushes),
        };
        let mut add = |what: &str, count: u64, took: Duration, before: &Usage| {
            let rate = count as f64 / took.as_secs_f64();
            let carried = rate * pushes as f64;
            report.add(Line {
                what: format!("RabbitMQ, {what}, jobs of {pushes}, {} B", jobs.body.len()),
                footing: deployment.footing.word(),
                count,
                rate: Some(rate),
                ratio: Some(carried / bare),
                costs: Usage::now().per(before, count),
                notes: vec![("pushes/s", json!(carried.round()))],
                ..Line::default()
            });
        };
        let (before, began) = (Usage::now(), Instant::now());
        let count = jobs.publish(Until::Time(options.load.step())).await?;
        add("publish", count, began.elapsed(), &before);
        let (before, began) = (Usage::now(), Instant::now());
        jobs.consume(count).await?;
        add("consume", count, began.elapsed(), &before);
        let (before, began) = (Usage::now(), Instant::now());
        tokio::try_join!(jobs.publish(Until::Count(count)), jobs.consume(count))?;
        add("both at once", count, began.elapsed(), &before);
        jobs.connection.close(200, "done".into()).await?;
    }
    broker.close().await;
    Ok(())
}
