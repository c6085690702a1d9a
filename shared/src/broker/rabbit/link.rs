//! One supervised connection: made when first needed, watched, and replaced when it is lost.
//!
//! The client library's own recovery is off: it gives up after a while, replays only what a channel declared, and has been
//! seen to stay silent for good after a restart of the broker. Here a connection that fails is dropped whole; whoever used
//! it notices and builds its channels anew.

use super::super::Error;
use backon::{ExponentialBuilder, Retryable as _};
use futures_util::StreamExt as _;
use lapin::protocol::{AMQPErrorKind, AMQPHardError};
use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ErrorKind, Event};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long one attempt to connect may take, with its handshakes.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a polite goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long a connection under suspicion has to answer.
const PROBE: Duration = Duration::from_secs(3);
/// Found dead within twice this, in seconds. Below five the broker's documentation warns of false alarms.
const HEARTBEAT: u16 = 10;
/// The second look at a connection, should its events not say that it ended.
const LOOK: Duration = Duration::from_millis(500);

/// Where to connect to, and as whom. It has no `Debug`: it holds a password.
pub(super) struct Target {
    uri: AMQPUri,
    ca: Option<String>,
    /// Host and port.
    pub(super) at: String,
}

impl Target {
    pub(super) fn new(url: &str, ca: Option<String>) -> Result<Self, Error> {
        // The parser's own error repeats the address, and with it the password.
        let mut uri: AMQPUri = url.parse().map_err(|_| {
            Error::Refused("a RabbitMQ address reads amqp://USER:PASSWORD@HOST:PORT/VHOST".into())
        })?;
        if uri.vhost.is_empty() {
            uri.vhost.push('/');
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let at = format!("{}:{}", uri.authority.host, uri.authority.port);
        Ok(Self { uri, ca, at })
    }

    async fn connect(&self, purpose: &str) -> Result<Connection, Error> {
        let name = format!("countersign {purpose}");
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = OwnedTLSConfig {
            identity: None,
            cert_chain: self.ca.clone(),
        };
        let runtime = lapin::runtime::default_runtime().map_err(|error| self.error(error))?;
        let connecting =
            Connection::connect_uri_with_config(self.uri.clone(), properties, tls, runtime);
        match timeout(CONNECT, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.error(error)),
            Err(_) => Err(self.unreachable()),
        }
    }

    /// The port's error for the library's.
    pub(super) fn error(&self, error: lapin::Error) -> Error {
        match error.kind() {
            ErrorKind::ProtocolError(said) if refuses(said.kind()) => {
                Error::Refused(said.get_message().to_string())
            }
            _ => Error::Unreachable {
                at: self.at.clone(),
                cause: Box::new(error),
            },
        }
    }

    pub(super) fn unreachable(&self) -> Error {
        Error::Unreachable {
            at: self.at.clone(),
            cause: Box::new(std::io::Error::from(std::io::ErrorKind::TimedOut)),
        }
    }
}

/// Everything that another attempt would not change; the rest is an outage.
fn refuses(kind: &AMQPErrorKind) -> bool {
    match kind {
        AMQPErrorKind::Soft(_) => true,
        AMQPErrorKind::Hard(hard) => matches!(
            hard,
            AMQPHardError::NOTALLOWED | AMQPHardError::INVALIDPATH | AMQPHardError::NOTIMPLEMENTED
        ),
    }
}

struct Inner {
    target: Arc<Target>,
    purpose: &'static str,
    current: watch::Sender<Option<Arc<Connection>>>,
    suspected: Notify,
    started: AtomicBool,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A supervised connection.
#[derive(Clone)]
pub(super) struct Link(Arc<Inner>);

impl Link {
    /// A link that connects when it is first used.
    pub(super) fn lazy(
        target: Arc<Target>,
        purpose: &'static str,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        Self(Arc::new(Inner {
            target,
            purpose,
            current: watch::Sender::new(None),
            suspected: Notify::new(),
            started: AtomicBool::new(false),
            stop,
            tasks,
        }))
    }

    /// Connects now, or says why that fails.
    pub(super) async fn start(&self) -> Result<(), Error> {
        let connection = self.0.target.connect(self.0.purpose).await?;
        self.keep(Some(connection));
        Ok(())
    }

    fn keep(&self, connection: Option<Connection>) {
        if !self.0.started.swap(true, Ordering::SeqCst) {
            self.0.tasks.spawn(Arc::clone(&self.0).keep(connection));
        }
    }

    /// Where the link goes to.
    pub(super) fn target(&self) -> &Target {
        &self.0.target
    }

    /// The connection, if there is one and it may be written to.
    pub(super) fn now(&self) -> Option<Arc<Connection>> {
        let current = self.0.current.borrow();
        current
            .as_ref()
            .filter(|c| c.status().connected() && !c.status().blocked())
            .cloned()
    }

    /// The broker has asked this connection to hold back.
    pub(super) fn blocked(&self) -> bool {
        let current = self.0.current.borrow();
        current.as_ref().is_some_and(|c| c.status().blocked())
    }

    /// The connection, waited for as long as `patience` lasts.
    pub(super) async fn get(&self, patience: Duration) -> Result<Arc<Connection>, Error> {
        self.keep(None);
        let mut current = self.0.current.subscribe();
        let found = tokio::select! {
            found = timeout(patience, current.wait_for(Option::is_some)) => found,
            () = self.0.stop.cancelled() => return Err(self.0.target.unreachable()),
        };
        match found {
            Ok(Ok(found)) => found.clone().ok_or_else(|| self.0.target.unreachable()),
            _ => Err(self.0.target.unreachable()),
        }
    }

    /// Ends when `connection` is no longer the one to use.
    pub(super) async fn left(&self, connection: &Arc<Connection>) {
        let mut current = self.0.current.subscribe();
        let other = |now: &Option<Arc<Connection>>| {
            now.as_ref().is_none_or(|now| !Arc::ptr_eq(now, connection))
        };
        // An error says that the link is gone, which is an end too.
        current.wait_for(other).await.ok();
    }

    /// Is `connection` still the one to use?
    pub(super) fn serves(&self, connection: &Arc<Connection>) -> bool {
        self.now().is_some_and(|now| Arc::ptr_eq(&now, connection))
    }

    /// Something went unanswered: the connection is to be tried, and replaced if it is dead.
    pub(super) fn suspect(&self) {
        self.0.suspected.notify_one();
    }
}

impl Inner {
    async fn keep(self: Arc<Self>, mut first: Option<Connection>) {
        loop {
            let connection = match first.take() {
                Some(connection) => connection,
                None => match self.reconnect().await {
                    Some(connection) => connection,
                    None => return,
                },
            };
            let connection = Arc::new(connection);
            self.current.send_replace(Some(Arc::clone(&connection)));
            let stopped = tokio::select! {
                () = self.stop.cancelled() => true,
                () = self.lost(&connection) => false,
            };
            self.current.send_replace(None);
            let goodbye = timeout(GOODBYE, connection.close(200, "OK".into()));
            if stopped {
                goodbye.await.ok();
                return;
            }
            tracing::warn!(at = %self.target.at, connection = self.purpose, "the connection to the broker is lost; making a new one");
            // A connection that is half dead does not answer: nobody waits for it.
            let old = Arc::clone(&connection);
            self.tasks.spawn(async move {
                timeout(GOODBYE, old.close(200, "OK".into())).await.ok();
            });
        }
    }

    /// Tries until it succeeds; `None` at shutdown.
    async fn reconnect(&self) -> Option<Connection> {
        let delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(2))
            .with_jitter()
            .without_max_times();
        let connecting = (|| self.target.connect(self.purpose))
            .retry(delays)
            .notify(|error, _| {
                tracing::warn!(
                    connection = self.purpose,
                    error = error as &dyn std::error::Error,
                    "no connection to the broker yet"
                );
            });
        tokio::select! {
            () = self.stop.cancelled() => None,
            connection = connecting => connection.ok(),
        }
    }

    /// Ends when `connection` is dead.
    async fn lost(&self, connection: &Connection) {
        let mut events = std::pin::pin!(connection.events_listener());
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    None | Some(Event::Error(_)) => return,
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(connection = self.purpose, reason, "the broker takes no messages for now");
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::info!(connection = self.purpose, "the broker takes messages again");
                    }
                    Some(_) => {}
                },
                () = self.suspected.notified() => {
                    // One that is blocked answers nothing, and is not dead.
                    let alive = connection.status().blocked()
                        || matches!(timeout(PROBE, connection.create_channel()).await, Ok(Ok(_)));
                    if !alive {
                        return;
                    }
                }
                _ = look.tick() => {}
            }
            if !connection.status().connected() {
                return;
            }
        }
    }
}
