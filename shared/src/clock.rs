//! Time comes in as a parameter, so that a test can move it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, UTC: the only form of time in rows and messages.
pub type Millis = i64;

/// Where the current time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Now, by this clock.
    fn now(&self) -> Millis;
}

/// A clock that can be handed around.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        // A clock set before 1970 is read as 1970: every deadline then lies ahead and nothing is sent late.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as Millis)
    }
}

/// A clock that only moves when told to.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that stands at `now`.
    pub fn at(now: Millis) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(now)))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Millis) {
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Millis {
        self.0.load(Ordering::SeqCst)
    }
}

/// The form of a time in documents and events: RFC 3339, UTC, milliseconds.
pub fn rfc3339(at: Millis) -> String {
    let nanos = i128::from(at) * 1_000_000;
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (time.date(), time.time());
    format!(
        "{date}T{:02}:{:02}:{:02}.{:03}Z",
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.millisecond()
    )
}

/// The time that an RFC 3339 text names; `None` where it is none.
pub fn millis(text: &str) -> Option<Millis> {
    let format = &time::format_description::well_known::Rfc3339;
    let at = time::OffsetDateTime::parse(text, format).ok()?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::{millis, rfc3339};

    #[test]
    fn times_read_back_in_any_zone() {
        assert_eq!(millis(&rfc3339(1_795_521_600_123)), Some(1_795_521_600_123));
        assert_eq!(millis("1970-01-01T02:00:01+02:00"), Some(1_000));
        for bad in ["", "yesterday", "1970-01-01", "1970-13-01T00:00:00Z"] {
            assert_eq!(millis(bad), None, "{bad}");
        }
    }
}
