//! Named crash points, for tests that kill a real process at the worst moment. Without the feature `failpoints` they are nothing.

/// Ends the process at once, as `kill -9` would, when `COUNTERSIGN_CRASH_AT` names this point.
#[cfg(feature = "failpoints")]
pub fn point(name: &str) {
    static AT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let at = AT.get_or_init(|| std::env::var("COUNTERSIGN_CRASH_AT").ok());
    if at.as_deref() == Some(name) {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn point(_name: &str) {}
