//! How a command ends: the exit codes of `docs/cli.md`.

use std::process::ExitCode;

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or approved.
    Done = 0,
    /// Something failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The settings are wrong.
    Settings = 3,
    /// The server said that this is not allowed, or not there.
    Refused = 4,
    /// The server, the database or the broker cannot be reached.
    Unreachable = 5,
    /// Still open when the patience ended.
    GaveUp = 6,
    /// Denied.
    Denied = 10,
    /// Denied, and reported as fraud.
    Fraud = 11,
    /// Nobody answered.
    Expired = 12,
    /// It could not be asked.
    Undeliverable = 13,
    /// Taken back.
    Cancelled = 14,
    /// A batch was taken, and some of its lines were not.
    Partly = 15,
}

impl Exit {
    /// For the shell.
    pub fn code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }

    /// How a push ended; `None` while it is open.
    pub fn of_push(state: &str, reason: &str) -> Option<Self> {
        Some(match state {
            "approved" | "completed" => Self::Done,
            "denied" if reason == "fraud_reported" => Self::Fraud,
            "denied" => Self::Denied,
            "expired" => Self::Expired,
            "failed" => Self::Undeliverable,
            "cancelled" => Self::Cancelled,
            _ => return None,
        })
    }
}

/// Why a command failed: what, and the fix as something that can be typed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened.
    pub what: String,
    /// What to do.
    pub fix: Option<String>,
}

impl Failure {
    /// A failure without a known fix.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            fix: None,
        }
    }

    /// With a fix.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = next.source();
    }
    text
}
