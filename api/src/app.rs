//! The application: its state, its routes, and how it is served.

use crate::auth::KeyCache;
use crate::device_auth::{Noted, Replays};
use crate::problem::{Code, Problem};
use crate::routes;
use crate::routes::batches::BatchCounts;
use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{self, Next};
use axum::response::Response;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use shared::broker::SharedBroker;
use shared::clock::SharedClock;
use shared::crypto::ServerSecret;
use shared::id::{PushId, StoreId};
use shared::intake::Intake;
use shared::store::Store;
use shared::wait::Waits;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

/// What the application is made of.
pub struct Options {
    /// The database.
    pub store: Store,
    /// For the readiness probe only.
    pub broker: SharedBroker,
    /// The time.
    pub clock: SharedClock,
    /// The server's secret.
    pub secret: Arc<ServerSecret>,
    /// The door for new pushes.
    pub intake: Intake,
    /// Who waits here.
    pub waits: Waits,
    /// How the outside reaches this server: the beginning of process links.
    pub public_url: String,
    /// Can a push be answered through a queue of the sender's?
    pub reply_queues: bool,
    /// May a push policy name providers other than Apple and Google?
    pub any_provider: bool,
    /// How much of batches may wait and come at once.
    pub batches: BatchLimits,
    /// Ends every wait and stream.
    pub stop: CancellationToken,
}

/// How much of batches may wait in the database, and come at once.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Pushes that wait, of all stores.
    pub waiting: i64,
    /// Pushes that wait, of one store.
    pub waiting_of_store: i64,
    /// The length of the lines that wait.
    pub waiting_bytes: i64,
    /// Uploads that one process reads at once: what bounds its memory.
    pub uploads: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            waiting: 5_000_000,
            waiting_of_store: 2_000_000,
            waiting_bytes: 4_000_000_000,
            uploads: 8,
        }
    }
}

/// The state behind every handler. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

/// What the handlers use. Its fields are this crate's own.
pub struct Inner {
    pub(crate) store: Store,
    pub(crate) broker: SharedBroker,
    pub(crate) clock: SharedClock,
    pub(crate) secret: Arc<ServerSecret>,
    pub(crate) intake: Intake,
    pub(crate) waits: Waits,
    pub(crate) public_url: String,
    pub(crate) reply_queues: bool,
    pub(crate) any_provider: bool,
    pub(crate) batches: BatchLimits,
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) counts: BatchCounts,
    pub(crate) stop: CancellationToken,
    pub(crate) keys: KeyCache,
    pub(crate) replays: Replays,
    pub(crate) noted: Noted,
    /// Idempotency keys whose first request is under way here.
    pub(crate) running: Mutex<HashSet<String>>,
}

impl std::ops::Deref for App {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    /// The application.
    pub fn new(options: Options) -> Self {
        Self(Arc::new(Inner {
            store: options.store,
            broker: options.broker,
            clock: options.clock,
            secret: options.secret,
            intake: options.intake,
            waits: options.waits,
            public_url: options.public_url.trim_end_matches('/').to_owned(),
            reply_queues: options.reply_queues,
            any_provider: options.any_provider,
            uploads: Arc::new(Semaphore::new(options.batches.uploads)),
            batches: options.batches,
            counts: BatchCounts::default(),
            stop: options.stop,
            keys: KeyCache::default(),
            replays: Replays::default(),
            noted: Noted::default(),
            running: Mutex::default(),
        }))
    }
}

impl Inner {
    /// The link of a process push. Derived, so that it lies in no database.
    pub(crate) fn process_link(&self, push: &PushId, nonce: &str) -> String {
        let token = self.secret.process_token(push, nonce);
        format!("{}/v1/process/{}", self.public_url, token.expose())
    }

    /// What a new device needs to enrol, for a QR code: where, in which store, with which code, and whose key to pin.
    pub(crate) fn enrolment_link(&self, store: &StoreId, code: &str) -> String {
        let url = encoded(&self.public_url);
        let kid = &self.secret.signer().public().kid;
        format!("countersign://enrol?url={url}&store={store}&code={code}&kid={kid}")
    }
}

/// Percent-encoded for a query (RFC 3986, unreserved characters kept).
pub(crate) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(out, "%{byte:02X}").ok();
        }
    }
    out
}

/// All routes, and the document that describes them.
pub fn router(app: App) -> (Router, OpenApi) {
    let (router, mut document) = OpenApiRouter::new().merge(routes::all()).split_for_parts();
    routes::docs::describe(&mut document);
    let router = router
        .with_state(app)
        .merge(routes::docs::router(document.clone()))
        .fallback(async || Problem::new(Code::NotFound))
        .method_not_allowed_fallback(async || Problem::new(Code::MethodNotAllowed))
        .layer(middleware::from_fn(measure));
    (router, document)
}

async fn measure(request: Request, next: Next) -> Response {
    let began = Instant::now();
    // Anybody may send any word as a method; each would become a series.
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD" | "OPTIONS") => {
            known.to_owned()
        }
        _ => "other".to_owned(),
    };
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::histogram!("countersign_http_server_request_duration_seconds",
        "method" => method, "route" => route, "status" => status)
    .record(began.elapsed().as_secs_f64());
    response
}

/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// How many requests one HTTP/2 connection carries at once.
const STREAMS: u32 = 1_000;
/// How long to wait when no more connections can be taken.
const BREATH: Duration = Duration::from_millis(50);
/// How long requests under way may take once the process is told to stop.
const DRAIN: Duration = Duration::from_secs(20);

/// Serves `router` over HTTP/1.1 and HTTP/2 until `stop`; requests under way are finished.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS);
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Out of file descriptors, or the client has gone; both pass.
                tracing::warn!(%error, "a connection was not taken");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "a socket without TCP_NODELAY");
        }
        let service = TowerToHyperService::new(router.clone());
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(socket), service)
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some requests did not end in time");
    }
    Ok(())
}
