//! What is measured, and how much of it.

use crate::mix::Mix;
use clap::{Parser, ValueEnum};
use shared::domain::Provider;
use std::time::Duration;

/// What a deployment stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Footing {
    /// SQLite and the embedded queue.
    Embedded,
    /// PostgreSQL and RabbitMQ.
    Servers,
}

impl Footing {
    /// The word in tables.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Servers => "servers",
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// From the first accept to the last call and the last record, beside a bare client.
    Deliveries,
    /// The queue and the calls alone, without the database.
    Storeless,
    /// What RabbitMQ takes and gives by itself.
    Rabbitmq,
    /// A pipeline of Celery, RabbitMQ and httpx or aioapns, beside our bulk lane. Only when asked for: it installs Python packages.
    Peers,
    /// `POST …/pushes` until its 202.
    Accept,
    /// Long polls, released by the end of their pushes.
    Wait,
}

/// Measures Countersign on loopback, on its own data, which are removed afterwards.
#[derive(Debug, Parser)]
#[command(name = "countersign-bench", version)]
pub(crate) struct Options {
    /// Users, each with one device.
    #[arg(long, default_value_t = 2_000)]
    pub(crate) users: usize,
    /// Pushes of one run of deliveries.
    #[arg(long, default_value_t = 20_000)]
    pub(crate) pushes: usize,
    /// Requests in flight at the bare client.
    #[arg(long, default_value_t = 500)]
    pub(crate) flights: usize,
    /// Long polls.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) polls: usize,
    /// How long the bare client and each step of `accept` run.
    #[arg(long, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// Runs of each measurement of deliveries; the median counts.
    #[arg(long, default_value_t = 3)]
    pub(crate) runs: usize,
    /// What the simulated providers take per push, in milliseconds.
    #[arg(long, value_delimiter = ',', default_value = "0,20,80")]
    pub(crate) latency: Vec<u64>,
    /// How many streams the simulated providers allow on a connection; when left out, as the real ones: 1000 at APNs, 100 at FCM.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) streams: Vec<u32>,
    /// Through which provider.
    #[arg(long, value_parser = provider, default_value = "apns")]
    pub(crate) provider: Provider,
    /// What the simulated providers refuse, in percent of the pushes, such as `503:1,unregistered:0.1`. Words: 429, 500, 503,
    /// unregistered. It is for deliveries: the bare client and the others are always served well.
    #[arg(long, default_value = "")]
    pub(crate) errors: Mix,
    /// Which footings; both when left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) footing: Vec<Footing>,
    /// Which measurements; all but peers when left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<Part>,
    /// Which lanes of deliveries; both when left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) lane: Vec<LaneWord>,
    /// A JSON document instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Which configurations of peers, of those in bench/peers/run.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "prefork,threads,gevent,httpx,aioapns"
    )]
    pub(crate) pools: Vec<String>,
    /// The process under load; its settings come by environment.
    #[arg(long, hide = true)]
    pub(crate) serve: bool,
}

fn provider(word: &str) -> Result<Provider, String> {
    word.parse().map_err(|()| "it is apns or fcm".to_owned())
}

/// A lane, as an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LaneWord {
    /// Jobs of a few pushes.
    Interactive,
    /// Jobs of 200 pushes.
    Bulk,
}

impl Options {
    /// The footings asked for.
    pub(crate) fn footings(&self) -> Vec<Footing> {
        if self.footing.is_empty() {
            vec![Footing::Embedded, Footing::Servers]
        } else {
            self.footing.clone()
        }
    }

    /// The lanes asked for.
    pub(crate) fn lanes(&self) -> Vec<LaneWord> {
        if self.lane.is_empty() {
            vec![LaneWord::Bulk, LaneWord::Interactive]
        } else {
            self.lane.clone()
        }
    }

    /// Whether a measurement was asked for.
    pub(crate) fn does(&self, part: Part) -> bool {
        match part {
            Part::Peers => self.only.contains(&part),
            _ => self.only.is_empty() || self.only.contains(&part),
        }
    }

    /// The stream limits asked for; `None` is the provider's own.
    pub(crate) fn stream_limits(&self) -> Vec<Option<u32>> {
        if self.streams.is_empty() {
            vec![None]
        } else {
            self.streams.iter().copied().map(Some).collect()
        }
    }

    /// The length of one step; at most a minute.
    pub(crate) fn step(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.05, 60.0))
    }
}
