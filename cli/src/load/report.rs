//! What was measured: one table, or one document.

use super::machine::{self, Costs};
use anyhow::Result;
use serde_json::{Value, json};
use std::io::Write as _;
use std::time::Duration;

/// One line.
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// What was measured.
    pub what: String,
    /// On what; empty for the bare client.
    pub footing: &'static str,
    /// How many.
    pub count: u64,
    /// Per second.
    pub rate: Option<f64>,
    /// The part of the bare client's rate next to it.
    pub ratio: Option<f64>,
    /// Milliseconds.
    pub times: Option<Times>,
    /// Microseconds of processor time for each one, by process.
    pub costs: Costs,
    /// Anything else.
    pub notes: Vec<(&'static str, Value)>,
}

/// Quantiles, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Half of them.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// All but one of a hundred.
    pub p99: f64,
}

impl Times {
    /// Of what was measured; `None` of nothing.
    pub fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort_unstable();
        let last = all.len().checked_sub(1)?;
        let at = |part: f64| all[(last as f64 * part).round() as usize].as_secs_f64() * 1e3;
        Some(Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
        })
    }
}

/// The middle one.
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

/// A word on standard error.
pub fn say(text: &str) {
    writeln!(std::io::stderr().lock(), "{text}").ok();
}

/// All of it.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<Line>,
    /// Nothing is said before the end.
    pub quiet: bool,
}

impl Report {
    /// A word on the way.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// Keeps a line, and says it at once.
    pub fn add(&mut self, line: Line) {
        self.say(&format!("  {}", text_of(&line).join(" | ")));
        self.lines.push(line);
    }

    /// To standard output.
    pub fn print(&self, as_json: bool) -> Result<()> {
        let mut to = std::io::stdout().lock();
        if as_json {
            let lines: Vec<_> = self.lines.iter().map(json_of).collect();
            let document = json!({"machine": machine::describe(), "load": machine::load_average(), "lines": lines});
            writeln!(to, "{document}")?;
            return Ok(());
        }
        writeln!(
            to,
            "{}; load average at the end {:.1}",
            machine::describe(),
            machine::load_average()
        )?;
        let head = [
            "what",
            "footing",
            "count",
            "rate/s",
            "of bare",
            "p50/p90/p99 ms",
            "us of processor each",
            "notes",
        ];
        let rows: Vec<_> = std::iter::once(head.map(str::to_owned).to_vec())
            .chain(self.lines.iter().map(text_of))
            .collect();
        let width = |n: usize| rows.iter().map(|row| row[n].len()).max().unwrap_or(0);
        let widths: Vec<_> = (0..head.len()).map(width).collect();
        for (n, row) in rows.iter().enumerate() {
            let cells: Vec<_> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(to, "| {} |", cells.join(" | "))?;
            if n == 0 {
                let rule: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
                writeln!(to, "| {} |", rule.join(" | "))?;
            }
        }
        Ok(())
    }
}

fn text_of(line: &Line) -> Vec<String> {
    let notes: Vec<_> = line
        .notes
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    vec![
        line.what.clone(),
        line.footing.to_owned(),
        line.count.to_string(),
        line.rate
            .map_or_else(String::new, |rate| format!("{rate:.0}")),
        line.ratio
            .map_or_else(String::new, |ratio| format!("{ratio:.3}")),
        line.times.map_or_else(String::new, |times| {
            format!("{:.1} / {:.1} / {:.1}", times.p50, times.p90, times.p99)
        }),
        machine::costs(&line.costs),
        notes.join(", "),
    ]
}

fn json_of(line: &Line) -> Value {
    let costs: serde_json::Map<_, _> = line
        .costs
        .iter()
        .map(|(name, us)| ((*name).to_owned(), json!(us)))
        .collect();
    let notes: serde_json::Map<_, _> = line
        .notes
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    json!({"what": line.what, "footing": line.footing, "count": line.count, "rate": line.rate, "of_bare": line.ratio,
        "p50_ms": line.times.map(|t| t.p50), "p90_ms": line.times.map(|t| t.p90), "p99_ms": line.times.map(|t| t.p99),
        "cost_us": costs, "notes": notes})
}

#[cfg(test)]
mod tests {
    use super::{Times, median};
    use std::time::Duration;

    #[test]
    fn quantiles_of_a_hundred() {
        let times = Times::of((0..=100).rev().map(Duration::from_millis).collect()).unwrap();
        let all = [times.p50, times.p90, times.p99].map(|ms| ms.round() as i64);
        assert_eq!(all, [50, 90, 99]);
        assert!(Times::of(vec![]).is_none());
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median(vec![9.0, 1.0, 5.0]) - 5.0).abs() < f64::EPSILON);
    }
}
