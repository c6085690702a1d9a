//! Times in words.

use shared::clock::Millis;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

fn count(n: i64, unit: &str) -> String {
    if n == 1 {
        format!("1 {unit}")
    } else {
        format!("{n} {unit}s")
    }
}

/// What is left, as one reads it aloud. The script says the same.
pub(crate) fn left(ms: Millis) -> String {
    let seconds = (ms.max(0) + 999) / 1000;
    let (minutes, rest) = (seconds / 60, seconds % 60);
    match (minutes, rest) {
        (0, 0) => "no time".to_owned(),
        (0, _) => count(rest, "second"),
        (_, 0) => count(minutes, "minute"),
        (_, _) => format!("{} {}", count(minutes, "minute"), count(rest, "second")),
    }
}

/// How long ago. The script says the same.
pub(crate) fn ago(ms: Millis) -> String {
    let seconds = ms.max(0) / 1000;
    match seconds {
        0..=4 => "just now".to_owned(),
        5..=59 => format!("{seconds} s ago"),
        60..=3_599 => format!("{} min ago", seconds / 60),
        3_600..=86_399 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} ago", count(seconds / 86_400, "day")),
    }
}

/// A span on a timeline.
pub(crate) fn span(ms: Millis) -> String {
    match ms.max(0) {
        ms @ 0..=999 => format!("{ms} ms"),
        ms @ 1_000..=59_999 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        ms => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// One of our words, as one reads it.
pub(crate) fn plain(word: &str) -> String {
    word.replace('_', " ").replace(':', ": ")
}

/// Reads the API's form of a time.
pub(crate) fn millis(rfc3339: &str) -> Option<Millis> {
    let at = OffsetDateTime::parse(rfc3339, &Rfc3339).ok()?;
    Millis::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::{ago, left, millis, span};

    #[test]
    fn what_is_left_is_rounded_up() {
        let said = [-5, 0, 1, 1_000, 59_001, 60_001, 83_000, 120_000].map(left);
        let expected = [
            "no time",
            "no time",
            "1 second",
            "1 second",
            "1 minute",
            "1 minute 1 second",
            "1 minute 23 seconds",
            "2 minutes",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn ages_and_spans_are_short() {
        let ages = [0, 12_345, 61_000, 7_200_000, 90_000_000, 180_000_000].map(ago);
        let expected = [
            "just now",
            "12 s ago",
            "1 min ago",
            "2 h ago",
            "1 day ago",
            "2 days ago",
        ];
        assert_eq!(ages, expected);
        assert_eq!([7, 3_421, 65_000].map(span), ["7 ms", "3.4 s", "1 min 5 s"]);
    }

    #[test]
    fn the_form_of_the_api_is_read() {
        assert_eq!(millis("1970-01-01T00:00:01.250Z"), Some(1_250));
        assert_eq!(millis("soon"), None);
    }
}
