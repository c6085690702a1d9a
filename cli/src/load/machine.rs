//! The machine, and where its processor time goes.

use std::collections::BTreeMap;
use std::path::Path;

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Cores, kernel and load.
pub fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    let processor = read("/proc/cpuinfo");
    let model = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("", |(_, model)| model);
    format!("{cores} cores ({model}), Linux {}", kernel.trim())
}

/// The load average of the last minute.
pub fn load_average() -> f64 {
    let text = read("/proc/loadavg");
    let first = text.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// The fields of `/proc/PID/stat` from the state on, which is field 3 of proc(5).
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Processor time of a process so far, with that of children which have ended when asked for, in seconds.
fn seconds_of(fields: &[String], with_ended: bool) -> f64 {
    let last = if with_ended { 14 } else { 12 };
    let ticks = fields.get(11..=last).unwrap_or_default();
    let sum: f64 = ticks.iter().filter_map(|t| t.parse::<f64>().ok()).sum();
    // Hundredths of a second, on every Linux that runs here.
    sum / 100.0
}

/// Processor time of a process, in seconds.
pub fn process_seconds(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |fields| seconds_of(&fields, false))
}

/// Processor time of a process and of its children, in seconds.
fn family_seconds(pid: u32) -> f64 {
    let own = stat(pid).map_or(0.0, |fields| seconds_of(&fields, true));
    let children = std::fs::read_dir("/proc").ok().into_iter().flatten();
    let children = children
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(stat)
        .filter(|fields| fields.get(1).is_some_and(|of| *of == pid.to_string()));
    own + children
        .map(|fields| seconds_of(&fields, false))
        .sum::<f64>()
}

/// Processor time of all processes of a group that are alive, in seconds.
pub fn group_seconds(group: u32) -> f64 {
    let all = std::fs::read_dir("/proc").ok().into_iter().flatten();
    all.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(stat)
        .filter(|fields| fields.get(2).is_some_and(|of| *of == group.to_string()))
        .map(|fields| seconds_of(&fields, false))
        .sum()
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = read(format!("/proc/{pid}/status"));
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or_default();
    let first = line.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Microseconds of processor time for each one, by process.
pub type Costs = Vec<(&'static str, f64)>;

/// Processor time used by each of those who take part, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Usage(BTreeMap<&'static str, f64>);

/// The first number in a file beside a control program of `scripts/test`.
fn pid_beside(variable: &str, file: &str) -> Option<u32> {
    let control = std::env::var(variable).ok()?;
    let folder = Path::new(&control).parent()?.to_owned();
    let text = std::fs::read_to_string(folder.join(file)).ok()?;
    text.lines().next()?.trim().parse().ok()
}

impl Usage {
    /// Up to now: this process; the machine; PostgreSQL and RabbitMQ where `scripts/test` has started them by itself.
    pub fn now() -> Self {
        let mut all = BTreeMap::from([("bench", process_seconds(std::process::id()))]);
        let text = read("/proc/stat");
        let fields: Vec<f64> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|word| word.parse().ok())
            .collect();
        let idle: f64 = fields.get(3..5).unwrap_or_default().iter().sum();
        // Without what the host has taken away.
        let total: f64 = fields.iter().take(7).sum();
        all.insert("machine", (total - idle) / 100.0);
        let database = pid_beside(
            "COUNTERSIGN_TEST_DATABASE_CONTROL",
            "postgres/db/postmaster.pid",
        );
        if let Some(pid) = database {
            all.insert("postgres", family_seconds(pid));
        }
        if let Some(pid) = pid_beside("COUNTERSIGN_TEST_BROKER_CONTROL", "broker.pid") {
            all.insert("rabbitmq", family_seconds(pid));
        }
        Self(all)
    }

    /// Microseconds of each since `before`, per one of `count`.
    pub fn per(&self, before: &Self, count: u64) -> Costs {
        let of = |(name, after): (&&'static str, &f64)| {
            let used = after - before.0.get(name).copied().unwrap_or(0.0);
            (*name, used * 1e6 / count.max(1) as f64)
        };
        self.0.iter().map(of).collect()
    }
}

/// The mean of several runs of one length.
pub fn mean<'a>(runs: impl ExactSizeIterator<Item = &'a Costs> + Clone) -> Costs {
    let count = runs.len().max(1) as f64;
    let mut sums = BTreeMap::new();
    for (name, us) in runs.flatten() {
        *sums.entry(*name).or_insert(0.0) += us / count;
    }
    sums.into_iter().collect()
}

/// What all of ours cost together.
pub fn ours(costs: &Costs) -> f64 {
    let ours = costs.iter().filter(|(name, _)| *name != "machine");
    ours.map(|(_, us)| us).sum()
}

/// `bench 90, machine 180` and so on.
pub fn costs(costs: &Costs) -> String {
    let words: Vec<_> = costs
        .iter()
        .map(|(name, us)| format!("{name} {us:.0}"))
        .collect();
    words.join(", ")
}
