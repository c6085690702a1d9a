//! What the engine needs on the broker, as data. Arguments hold only what a queue means; limits that an operator tunes
//! belong into policies, since an argument is frozen when its queue is declared.
//!
//! It works on RabbitMQ 3.10 and 4: every queue names its type, none is transient unless exclusive, and no argument is
//! one that a version refuses.

use super::super::{DELIVERY_LIMIT, Queue, RETRY_TIERS, tier_for};
use crate::message::{Lane, Retry};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a completion event waits for a waiter.
const EVENT_LIFE: Duration = Duration::from_hours(24);
/// What is parked or waits for third parties is bounded: the oldest goes first.
const PARKING_LIMIT: i64 = 1_000_000;
const LOOKS: i64 = 1_000_000;
const FORWARD_LIMIT: i64 = 500_000;
const INGRESS_LIMIT: i64 = 100_000;
const UNROUTED_LIMIT: i64 = 10_000;
/// The events that one process may lag behind.
pub(super) const OWN_LIMIT: i64 = 65_536;

/// A queue argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Argument {
    /// A number.
    Int(i64),
    /// A text.
    Text(String),
}

impl From<i64> for Argument {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Argument {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

/// Arguments by name.
pub type Arguments = BTreeMap<&'static str, Argument>;

/// A durable exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// `direct`, `fanout` or `topic`.
    pub kind: &'static str,
    /// Its arguments.
    pub arguments: Arguments,
}

/// A durable queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DurableQueue {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub arguments: Arguments,
}

/// A binding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// From.
    pub exchange: String,
    /// To.
    pub queue: String,
    /// The routing key or pattern.
    pub key: &'static str,
}

/// Everything that `apply_topology` declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// Declared first.
    pub exchanges: Vec<Exchange>,
    /// Declared second.
    pub queues: Vec<DurableQueue>,
    /// Made last.
    pub bindings: Vec<Binding>,
}

/// The names of one deployment: everything begins with its prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(String);

impl Names {
    /// Names that begin with `prefix`, a dot, and a word.
    pub fn new(prefix: &str) -> Self {
        Self(prefix.to_owned())
    }

    pub(super) fn of(&self, what: &str) -> String {
        format!("{}.{what}", self.0)
    }

    /// The exchange and the queue of a delay tier.
    pub(super) fn tier(&self, retry: Retry) -> String {
        let tier = tier_for(Duration::from_secs(u64::from(retry.seconds)));
        self.of(&format!("retry.{}s", tier.seconds))
    }

    /// The name of a durable queue; `None` for the one that each consumer makes for itself.
    pub(super) fn queue(&self, queue: &Queue) -> Option<String> {
        Some(self.of(match queue {
            Queue::JobsInteractive => "jobs.interactive",
            Queue::JobsBulk => "jobs.bulk",
            Queue::StatusWait => "status.wait",
            Queue::StatusForward => "status.forward",
            Queue::Instances => "ingress.instances",
            Queue::Parking => "parking",
            Queue::StatusOwn => return None,
        }))
    }
}

fn arguments<const N: usize>(pairs: [(&'static str, Argument); N]) -> Arguments {
    Arguments::from(pairs)
}

impl Topology {
    /// The topology under `names`. `max_length` bounds each queue of jobs; a full one refuses.
    pub fn new(names: &Names, max_length: Option<u32>) -> Self {
        let mut topology = Self {
            exchanges: Vec::new(),
            queues: Vec::new(),
            bindings: Vec::new(),
        };
        let dlx = names.of("dlx");
        // At-least-once dead-lettering works only together with reject-publish. Poison goes to the parking queue.
        let safe = |target: &str| {
            arguments([
                ("x-queue-type", "quorum".into()),
                ("x-overflow", "reject-publish".into()),
                ("x-dead-letter-exchange", target.into()),
                ("x-dead-letter-strategy", "at-least-once".into()),
            ])
        };
        let counted = |mut arguments: Arguments| {
            arguments.insert("x-delivery-limit", DELIVERY_LIMIT.into());
            arguments
        };
        // Looked at as often as anybody likes: RabbitMQ 4 drops what was handed back twenty times unless told otherwise.
        let bounded = |limit: i64| {
            arguments([
                ("x-queue-type", "quorum".into()),
                ("x-max-length", limit.into()),
                ("x-delivery-limit", LOOKS.into()),
            ])
        };

        topology.exchange(names.of("jobs"), "direct", Arguments::new());
        for lane in [Lane::Interactive, Lane::Bulk] {
            let mut arguments = counted(safe(&dlx));
            if let Some(limit) = max_length {
                arguments.insert("x-max-length", i64::from(limit).into());
            }
            let queue = names.of(&format!("jobs.{}", lane.as_str()));
            topology.queue(queue, arguments, &names.of("jobs"), lane.as_str());
        }

        // The tier keeps the message's own routing key, its lane, and hands it back under it.
        for tier in RETRY_TIERS {
            let name = names.of(&format!("retry.{}s", tier.as_secs()));
            let mut arguments = safe(&names.of("jobs"));
            arguments.insert("x-message-ttl", (tier.as_millis() as i64).into());
            topology.exchange(name.clone(), "fanout", Arguments::new());
            topology.queue(name.clone(), arguments, &name, "");
        }

        topology.exchange(dlx.clone(), "topic", Arguments::new());
        topology.queue(names.of("parking"), bounded(PARKING_LIMIT), &dlx, "#");

        let unrouted = names.of("unrouted");
        topology.exchange(unrouted.clone(), "fanout", Arguments::new());
        topology.queue(unrouted.clone(), bounded(UNROUTED_LIMIT), &unrouted, "");

        let status = names.of("status");
        topology.exchange(
            status.clone(),
            "topic",
            arguments([("alternate-exchange", unrouted.as_str().into())]),
        );
        let mut wait = counted(safe(&dlx));
        wait.insert("x-message-ttl", (EVENT_LIFE.as_millis() as i64).into());
        topology.queue(names.of("status.wait"), wait, &status, "v1.#");
        // It drops its oldest instead of refusing: a refusal would be one to our own publisher of the event.
        // What falls off its end is not parked: it would push out what is poison.
        let forward = bounded(FORWARD_LIMIT);
        topology.queue(names.of("status.forward"), forward, &status, "v1.#");

        topology.exchange(names.of("status.ext"), "topic", Arguments::new());

        // The one way in for third parties: they may write to this exchange and to nothing else of ours. A full queue refuses.
        let ingress = names.of("ingress");
        topology.exchange(ingress.clone(), "direct", Arguments::new());
        let mut reports = counted(safe(&dlx));
        reports.insert("x-max-length", INGRESS_LIMIT.into());
        topology.queue(names.of("ingress.instances"), reports, &ingress, "instance");
        topology
    }

    fn exchange(&mut self, name: String, kind: &'static str, arguments: Arguments) {
        self.exchanges.push(Exchange {
            name,
            kind,
            arguments,
        });
    }

    fn queue(&mut self, name: String, arguments: Arguments, exchange: &str, key: &'static str) {
        self.bindings.push(Binding {
            exchange: exchange.to_owned(),
            queue: name.clone(),
            key,
        });
        self.queues.push(DurableQueue { name, arguments });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(topology: &Topology, queue: &str, argument: &str) -> Option<Argument> {
        let found = topology.queues.iter().find(|q| q.name == queue).unwrap();
        found.arguments.get(argument).cloned()
    }

    /// The contract that operators and other clients read is this data.
    #[test]
    fn the_published_topology_is_the_one_declared() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../contracts/topology.json");
        let mut ours =
            serde_json::to_string_pretty(&Topology::new(&Names::new("cs"), None)).unwrap();
        ours.push('\n');
        if std::env::var_os("COUNTERSIGN_WRITE_CONTRACTS").is_some() {
            std::fs::write(file, &ours).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(file).unwrap(),
            ours,
            "run the test again with COUNTERSIGN_WRITE_CONTRACTS=1 if the change is meant"
        );
    }

    #[test]
    fn at_least_once_never_stands_without_reject_publish() {
        for queue in Topology::new(&Names::new("cs"), Some(5)).queues {
            assert_eq!(queue.arguments["x-queue-type"], "quorum".into());
            let safe = queue.arguments.contains_key("x-dead-letter-strategy");
            let refuses = queue.arguments.get("x-overflow") == Some(&"reject-publish".into());
            assert_eq!(safe, refuses, "{}", queue.name);
        }
    }

    #[test]
    fn every_tier_hands_back_to_the_jobs_and_never_to_itself() {
        let topology = Topology::new(&Names::new("x"), None);
        for tier in RETRY_TIERS {
            let name = Names::new("x").tier(Retry {
                seconds: tier.as_secs() as u32,
            });
            assert_eq!(
                text(&topology, &name, "x-dead-letter-exchange"),
                Some("x.jobs".into())
            );
            assert_eq!(
                text(&topology, &name, "x-message-ttl"),
                Some((tier.as_millis() as i64).into())
            );
        }
    }
}
