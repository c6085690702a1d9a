//! One request and its answer, with a word for each way in which that can fail.

use super::Pool;
use super::connect::{self, ConnectError, Peer};
use super::connection::Connection;
use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response, StatusCode};
use rustls::ClientConfig;
use shared::message::Lane;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// No more of an answer's body is read.
const MAX_BODY: usize = 64 * 1024;
/// How often a request is sent again at once when it is proved that nobody processed it.
const RESENDS: u32 = 2;

const GOAWAY: &str = "goaway";
const TIMEOUT: &str = "timeout";

/// An answer.
#[derive(Debug)]
pub(in crate::push) struct Reply {
    pub(in crate::push) status: StatusCode,
    pub(in crate::push) headers: HeaderMap,
    /// Cut at [`MAX_BODY`].
    pub(in crate::push) body: Bytes,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::push) enum SendError {
    /// Too many wait already. Not sent.
    Full,
    /// No stream became free within the deadline. Not sent.
    NoStream,
    /// The peer cannot be reached. Not sent.
    NoConnection {
        error: ConnectError,
        after: Duration,
    },
    /// The peer says that it did not process it.
    Unprocessed(&'static str),
    /// Sent, and nobody knows.
    Ambiguous(&'static str),
}

impl Pool {
    /// Sends what `request` makes and waits for the answer. `request` is called again for a request that nobody processed.
    /// Nothing leaves from `latest` on.
    pub(in crate::push) async fn send(
        &self,
        lane: Lane,
        request: impl Fn() -> Request<()>,
        body: &Bytes,
        latest: Instant,
    ) -> Result<Reply, SendError> {
        let deadline = Instant::now() + self.0.limits.timeout;
        let latest = latest.min(deadline);
        let mut resends = 0;
        loop {
            let Ok(slot) = timeout_at(latest, self.0.stream(lane)).await else {
                return Err(SendError::NoStream);
            };
            let slot = slot?;
            let connection = &slot.connection;
            let before = connection.answers.load(Ordering::Relaxed);
            let started = start(&connection.sender, request(), body);
            let (response, _rest) = match started {
                Ok(streams) => streams,
                Err(NotStarted { elsewhere }) => {
                    self.0.retire(connection, GOAWAY);
                    if elsewhere && resends < RESENDS && Instant::now() < latest {
                        resends += 1;
                        continue;
                    }
                    return Err(SendError::Unprocessed(GOAWAY));
                }
            };
            match answer(response, deadline, connection).await {
                Err(SendError::Unprocessed(why))
                    if resends < RESENDS && Instant::now() < latest =>
                {
                    resends += 1;
                    if why == GOAWAY {
                        self.0.retire(connection, why);
                    }
                }
                Err(SendError::Ambiguous(why)) => {
                    // Nothing at all came back in the whole time: the peer is taken for dead.
                    if why == TIMEOUT && connection.answers.load(Ordering::Relaxed) == before {
                        self.0.retire(connection, "silent");
                    }
                    return Err(SendError::Ambiguous(why));
                }
                ended => return ended,
            }
        }
    }
}

impl Pool {
    /// No new streams on connections that are older than this: the peer wants a fresh one.
    pub(in crate::push) fn renew(&self, opened_before: Instant) {
        self.0.retire_older(opened_before);
    }
}

type Started = (ResponseFuture, h2::SendStream<Bytes>);

/// Nothing has left this machine.
struct NotStarted {
    /// Another connection might do.
    elsewhere: bool,
}

fn start(
    sender: &SendRequest<Bytes>,
    request: Request<()>,
    body: &Bytes,
) -> Result<Started, NotStarted> {
    // A clone has no memory of an earlier stream that is still to be opened; it costs a lock.
    let started = sender.clone().send_request(request, false);
    let (response, mut stream) = started.map_err(|error| NotStarted {
        elsewhere: error.is_io() || error.is_go_away() || error.is_reset(),
    })?;
    // Fails only where the stream has been ended meanwhile, and a request without its end is not processed.
    let sent = stream.send_data(body.clone(), true);
    sent.map_err(|_| NotStarted { elsewhere: true })?;
    Ok((response, stream))
}

async fn answer(
    response: ResponseFuture,
    deadline: Instant,
    connection: &Connection,
) -> Result<Reply, SendError> {
    let Ok(response) = timeout_at(deadline, response).await else {
        return Err(SendError::Ambiguous(TIMEOUT));
    };
    let response = response.map_err(|error| lost(&error))?;
    connection.answers.fetch_add(1, Ordering::Relaxed);
    Ok(reply(response, deadline).await)
}

async fn reply(response: Response<RecvStream>, deadline: Instant) -> Reply {
    let (parts, stream) = response.into_parts();
    let body = if stream.is_end_stream() {
        Bytes::new()
    } else {
        read(stream, deadline).await
    };
    Reply {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

/// The body as far as it comes. The status is known by now, so a body that breaks off is no reason to doubt the answer.
async fn read(mut stream: RecvStream, deadline: Instant) -> Bytes {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while !stream.is_end_stream() {
        let chunk = timeout_at(deadline, poll_fn(|cx| stream.poll_data(cx))).await;
        let Ok(Some(Ok(chunk))) = chunk else {
            break;
        };
        let taken = stream.flow_control().release_capacity(chunk.len());
        if taken.is_err() {
            break;
        }
        if first.is_empty() {
            first = chunk;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&chunk);
        }
        if first.len().max(rest.len()) >= MAX_BODY {
            break;
        }
    }
    let mut body = if rest.is_empty() {
        first
    } else {
        rest.freeze()
    };
    body.truncate(MAX_BODY);
    body
}

/// What an error after sending proves.
fn lost(error: &h2::Error) -> SendError {
    if error.is_remote() && error.is_go_away() {
        // The library fails exactly the streams above the last one that the peer says it may have processed.
        SendError::Unprocessed(GOAWAY)
    } else if error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) {
        SendError::Unprocessed("refused_stream")
    } else if error.is_reset() {
        SendError::Ambiguous("stream_reset")
    } else {
        SendError::Ambiguous("connection_lost")
    }
}

/// One request on a connection of its own: for what is asked once an hour.
pub(in crate::push) async fn once(
    peer: &Peer,
    tls: &Arc<ClientConfig>,
    request: Request<()>,
    body: Bytes,
    within: Duration,
) -> Result<Reply, SendError> {
    let deadline = Instant::now() + within;
    let halves = connect::connect(peer, tls, 1).await;
    let (sender, transport) = halves.map_err(|error| SendError::NoConnection {
        error,
        after: Duration::ZERO,
    })?;
    // Ends by itself when the last handle is gone.
    tokio::spawn(async move {
        if let Err(error) = transport.await {
            tracing::debug!(%error, "a connection to a token endpoint ended");
        }
    });
    let started = start(&sender, request, &body);
    let (response, _rest) = started.map_err(|_| SendError::Unprocessed(GOAWAY))?;
    let Ok(response) = timeout_at(deadline, response).await else {
        return Err(SendError::Ambiguous(TIMEOUT));
    };
    Ok(reply(response.map_err(|error| lost(&error))?, deadline).await)
}
