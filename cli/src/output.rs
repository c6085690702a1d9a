//! What people and programs read: data to standard output, words to standard error, a spinner only on a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// Where a command writes.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// JSON, one document a line, instead of words.
    pub json: bool,
}

impl Output {
    /// For one command.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line of data. A reader that has gone is no error of ours.
    pub fn line(&self, text: &str) {
        writeln!(std::io::stdout().lock(), "{text}").ok();
    }

    /// A document for programs, or the words for people.
    pub fn data(&self, document: &Value, words: &str) {
        if self.json {
            self.line(&document.to_string());
        } else {
            self.line(words);
        }
    }

    /// A word for people; silent with `--json`.
    pub fn note(&self, text: &str) {
        if !self.json {
            writeln!(std::io::stderr().lock(), "{text}").ok();
        }
    }

    /// An error, with its fix.
    pub fn error(&self, what: &str, fix: Option<&str>) {
        let mut to = std::io::stderr().lock();
        if self.json {
            let document = serde_json::json!({"error": what, "fix": fix});
            writeln!(to, "{document}").ok();
            return;
        }
        writeln!(to, "error: {what}").ok();
        if let Some(fix) = fix {
            writeln!(to, "fix: {fix}").ok();
        }
    }

    /// A bar for bytes of a known number; nothing off a terminal.
    pub fn bytes_bar(&self, length: u64) -> ProgressBar {
        let form = "{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
        self.bar(Some(length), form)
    }

    /// A bar for things, whose number comes later; nothing off a terminal.
    pub fn count_bar(&self) -> ProgressBar {
        let form = "{bar:30} {pos}/{len} sent, {per_sec}, {eta} left\n{wide_msg}";
        self.bar(None, form)
    }

    fn bar(self, length: Option<u64>, form: &str) -> ProgressBar {
        if self.json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(length.unwrap_or(0));
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        bar
    }

    /// A spinner that says what is waited for; nothing off a terminal.
    pub fn spinner(&self, what: &str) -> ProgressBar {
        if self.json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            spinner.set_style(style);
        }
        spinner.set_message(what.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(120));
        spinner
    }
}
