//! Load: deliveries end to end on data of their own, beside a client that does nothing but send, against the simulated providers.
//! `countersign bench` and the developers' `countersign-bench` both measure with it.

pub mod bare;
pub mod deliveries;
pub mod deployment;
pub mod machine;
pub mod mix;
pub mod report;
pub mod request;
pub mod seed;

use clap::{Args, ValueEnum};
use mix::Mix;
use shared::domain;
use simulator::{Gateway, Provider};
use std::time::Duration;

/// What a deployment stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Footing {
    /// SQLite and the embedded queue.
    Embedded,
    /// PostgreSQL and RabbitMQ.
    Servers,
}

impl Footing {
    /// The word in tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Servers => "servers",
        }
    }
}

/// How much of it, and how the simulated providers behave.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// Users, each with one device.
    #[arg(long, default_value_t = 2_000)]
    pub users: usize,
    /// Pushes of one run of deliveries.
    #[arg(long, default_value_t = 20_000)]
    pub pushes: usize,
    /// Requests in flight at the bare client.
    #[arg(long, default_value_t = 500)]
    pub flights: usize,
    /// How long the bare client runs, and what else takes a fixed time.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Runs of each measurement of deliveries; the median counts.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// What the simulated providers take per push, in milliseconds.
    #[arg(long, value_delimiter = ',', default_value = "0,20,80")]
    pub latency: Vec<u64>,
    /// How many streams the simulated providers allow on a connection; when left out, as the real ones: 1000 at APNs, 100 at FCM.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: Vec<u32>,
    /// Through which provider.
    #[arg(long, value_parser = provider, default_value = "apns")]
    pub provider: domain::Provider,
    /// What the simulated providers refuse, in percent of the pushes, such as `503:1,unregistered:0.1`. Words: 429, 500, 503,
    /// unregistered. It is for deliveries: the bare client and the others are always served well.
    #[arg(long, default_value = "")]
    pub errors: Mix,
    /// Which lanes of deliveries; both when left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub lane: Vec<LaneWord>,
}

fn provider(word: &str) -> Result<domain::Provider, String> {
    word.parse().map_err(|()| "it is apns or fcm".to_owned())
}

/// A lane, as an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LaneWord {
    /// Jobs of a few pushes.
    Interactive,
    /// Jobs of 200 pushes.
    Bulk,
}

impl Load {
    /// The lanes asked for.
    pub fn lanes(&self) -> Vec<LaneWord> {
        if self.lane.is_empty() {
            vec![LaneWord::Bulk, LaneWord::Interactive]
        } else {
            self.lane.clone()
        }
    }

    /// The stream limits asked for; `None` is the provider's own.
    pub fn stream_limits(&self) -> Vec<Option<u32>> {
        if self.streams.is_empty() {
            vec![None]
        } else {
            self.streams.iter().copied().map(Some).collect()
        }
    }

    /// Every latency with every limit of streams.
    pub fn wires(&self) -> Vec<Wire> {
        let with = |latency: &u64| {
            let latency = *latency;
            let limits = self.stream_limits().into_iter();
            limits.map(move |streams| Wire { latency, streams })
        };
        self.latency.iter().flat_map(with).collect()
    }

    /// The length of one step; at most a minute.
    pub fn step(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.05, 60.0))
    }
}

/// How the simulated provider is to be reached.
#[derive(Debug, Clone, Copy)]
pub struct Wire {
    /// Milliseconds for each push.
    pub latency: u64,
    /// Streams on a connection; `None` is the provider's own limit.
    pub streams: Option<u32>,
}

impl Wire {
    /// `20 ms`, `20 ms, 100 streams`.
    pub fn words(self) -> String {
        let latency = format!("{} ms", self.latency);
        match self.streams {
            Some(streams) => format!("{latency}, {streams} streams"),
            None => latency,
        }
    }

    /// For connections opened from now on.
    pub fn set(self, gateway: &Gateway, provider: domain::Provider) {
        gateway.set_latency(Duration::from_millis(self.latency));
        let (provider, own) = match provider {
            domain::Provider::Apns => (Provider::Apns, request::APNS_STREAMS),
            domain::Provider::Fcm => (Provider::Fcm, request::FCM_STREAMS),
        };
        gateway.set_max_streams(provider, self.streams.unwrap_or(own));
    }
}
