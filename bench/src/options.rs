//! What is measured, and how much of it.

use clap::{Parser, ValueEnum};
use cli::load::{Footing, Load};

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
    /// A large batch uploaded over HTTP, and sign-ins beside it. Only when asked for: it takes minutes.
    Volume,
}

/// Measures Countersign on loopback, on its own data, which are removed afterwards.
#[derive(Debug, Parser)]
#[command(name = "countersign-bench", version)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) load: Load,
    /// Long polls.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) polls: usize,
    /// Which footings; both when left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) footing: Vec<Footing>,
    /// Which measurements; all but peers and volume when left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<Part>,
    /// A JSON document instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Fixed rates of accepts a second; half of the best one when left out.
    #[arg(long, value_delimiter = ',')]
    pub(crate) arrivals: Vec<u32>,
    /// Which configurations of peers, of those in bench/peers/run.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "prefork,threads,gevent,httpx,aioapns"
    )]
    pub(crate) pools: Vec<String>,
    /// Lines of the batch of volume.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) volume: usize,
    /// The roles of the process under load; its settings come by environment.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub(crate) serve: Vec<String>,
}

impl Options {
    /// Whether a measurement was asked for.
    pub(crate) fn does(&self, part: Part) -> bool {
        match part {
            Part::Peers | Part::Volume => self.only.contains(&part),
            _ => self.only.is_empty() || self.only.contains(&part),
        }
    }

    /// The footings asked for.
    pub(crate) fn footings(&self) -> Vec<Footing> {
        if self.footing.is_empty() {
            vec![Footing::Embedded, Footing::Servers]
        } else {
            self.footing.clone()
        }
    }
}
