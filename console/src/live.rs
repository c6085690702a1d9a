//! Event streams that say only that something changed; the page then asks for what it shows.

use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Streams of one router at the same time: each looks once a second.
const STREAMS: usize = 16;
/// How long a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_secs(15);

/// How many may watch.
#[derive(Clone)]
pub(crate) struct Seats(Arc<Semaphore>);

impl Default for Seats {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS)))
    }
}

/// A seat, taken for as long as a stream lasts.
pub(crate) struct Seat(#[expect(dead_code, reason = "held, not used")] OwnedSemaphorePermit);

impl Seats {
    pub(crate) fn take(&self) -> Option<Seat> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(Seat)
    }
}

/// The answer when every seat is taken. The browser does not try again by itself; the page still works by reloading.
pub(crate) fn full() -> Response {
    let headers = [(header::RETRY_AFTER, "5")];
    (
        StatusCode::SERVICE_UNAVAILABLE,
        headers,
        "too many pages watch",
    )
        .into_response()
}

/// One event for each version that `versions` gives.
pub(crate) fn events(versions: impl Stream<Item = u64> + Send + 'static) -> Response {
    use futures_util::StreamExt as _;
    let events = versions.map(|version| {
        let event = Event::default().event("changed").retry(RETRY);
        Ok::<_, Infallible>(event.data(version.to_string()))
    });
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(QUIET))
        .into_response()
}
