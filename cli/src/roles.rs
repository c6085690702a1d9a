//! The roles of a process, started on one database and one broker, and stopped in order: no new work, what is under way finished, the outbox
//! flushed, the connections closed.

use crate::exit::{Exit, Failure, chain};
use crate::settings::Settings;
use api::{App, Options};
use axum::Router;
use axum::routing::get;
use clap::ValueEnum;
use http::StatusCode;
use shared::broker::{self, SharedBroker};
use shared::clock::SharedClock;
use shared::crypto::ServerSecret;
use shared::intake::Intake;
use shared::message::Lane;
use shared::secret::Secret;
use shared::store::{Db, Handover, Outbox, Store};
use shared::wait::Waits;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use workers::census;
use workers::chainer;
use workers::dispatcher::Dispatcher;
use workers::fanout::{FanOut, Limits};
use workers::forwarder::Forwarder;
use workers::instances::Instances;
use workers::push::{Options as PushOptions, Providers};
use workers::relay::Relay;
use workers::sweeper::Sweeper;
use workers::waiter::Waiter;
use workers::{Credentials, SharedTokens};

/// How long a stopping process may take to finish what is under way.
const GRACE: Duration = Duration::from_secs(25);
/// How many tasks take pushes: while the disk is waited for, or the database, the next transaction begins.
const WRITERS: usize = 2;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Takes pushes and answers; lets callers wait.
    Api,
    /// Fans out to the providers; releases batches; sweeps deadlines and lost work.
    Worker,
    /// The wait-on-push activity: passes completion events to the queues that wait, and to third parties.
    Waiter,
}

/// The ground that every role stands on.
pub struct Ground {
    /// The database.
    pub store: Store,
    /// The broker.
    pub broker: SharedBroker,
    /// The time.
    pub clock: SharedClock,
    /// The server's secret.
    pub secret: Arc<ServerSecret>,
    relay: Relay,
    alone: Option<Alone>,
}

/// The claim to an embedded deployment: one process. It goes with the process, however that ends.
struct Alone(#[expect(dead_code, reason = "held: the lock is gone when it is dropped")] File);

impl Alone {
    fn claim(settings: &Settings) -> Result<Option<Self>, Failure> {
        if !settings.queue_url.expose().starts_with("embedded:") {
            return Ok(None);
        }
        let url = settings.database_url.expose();
        let path = url.trim_start_matches("sqlite:").trim_start_matches("//");
        let path = path.split('?').next().unwrap_or_default();
        if path.is_empty() || path == ":memory:" {
            // It is refused when it is opened.
            return Ok(None);
        }
        let path = format!("{path}.lock");
        let failed = |what: String| Failure::new(Exit::Failed, what);
        let file =
            File::create(&path).map_err(|error| failed(format!("cannot make {path}: {error}")))?;
        file.try_lock().map_err(|_| {
            failed(format!(
                "another process serves {url}: the embedded queue is for one"
            ))
            .fix("stop the other one, or use PostgreSQL and RabbitMQ")
        })?;
        Ok(Some(Self(file)))
    }
}

/// A running process.
pub struct Running {
    /// Where the API listens, with the role.
    pub address: Option<SocketAddr>,
    /// The database.
    pub store: Store,
    /// The broker.
    pub broker: SharedBroker,
    /// The server's secret.
    pub secret: Arc<ServerSecret>,
    stop: CancellationToken,
    roles: JoinSet<Result<(), Failure>>,
    intake: TaskTracker,
    stop_relay: CancellationToken,
    relay: JoinHandle<()>,
    _alone: Option<Alone>,
}

/// Host and port of an address that may hold a password.
pub fn place_of(url: &Secret) -> String {
    let rest = url.expose();
    let Some((scheme, rest)) = rest.split_once("://") else {
        // A file, or nothing that can be shown for sure.
        return match rest.split_once(':') {
            Some(("sqlite", path)) => format!("sqlite:{path}"),
            Some((scheme, _)) => format!("{scheme}:"),
            None => "an address without a scheme".to_owned(),
        };
    };
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = host.split(['/', '?']).next().unwrap_or_default();
    format!("{scheme}://{host}")
}

/// The embedded queue is in one process, which then has to do everything.
pub fn check_roles(settings: &Settings, roles: &[Role]) -> Result<(), Failure> {
    let all = [Role::Api, Role::Worker, Role::Waiter];
    let embedded = settings.queue_url.expose().starts_with("embedded:");
    if !embedded || all.iter().all(|role| roles.contains(role)) {
        return Ok(());
    }
    let what = "queue.url: with embedded: one process has every role";
    Err(Failure::new(Exit::Settings, what)
        .fix("countersign serve --role api --role worker --role waiter, or queue.url (AMQP_URL)"))
}

/// Opens the database and brings its schema up to date.
pub async fn open_database(url: &Secret) -> Result<Db, Failure> {
    let failed = |error: &shared::store::Error| {
        Failure::new(
            Exit::Unreachable,
            format!("the database at {}: {}", place_of(url), chain(error)),
        )
        .fix("start it, or set database.url (DATABASE_URL) to one that runs")
    };
    let db = Db::open(url.expose()).await.map_err(|e| failed(&e))?;
    db.migrate().await.map_err(|e| failed(&e))?;
    Ok(db)
}

impl Ground {
    /// Opens everything; nothing runs yet.
    pub async fn open(settings: &Settings, clock: SharedClock) -> Result<Self, Failure> {
        let secret = ServerSecret::new(&settings.secret)
            .ok_or_else(|| Failure::new(Exit::Settings, "server.secret is too short"))?;
        let alone = Alone::claim(settings)?;
        let db = open_database(&settings.database_url).await?;
        let failed = |error: &broker::Error| {
            Failure::new(
                Exit::Unreachable,
                format!(
                    "the broker at {}: {}",
                    place_of(&settings.queue_url),
                    chain(error)
                ),
            )
            .fix("start it, or set queue.url (AMQP_URL) to one that runs")
        };
        let url = settings.queue_url.expose();
        let broker = broker::open(url, &settings.queue_prefix, &db, clock.clone())
            .await
            .map_err(|e| failed(&e))?;
        broker.apply_topology().await.map_err(|e| failed(&e))?;
        let (handover, committed) = Handover::channel();
        let relay = Relay::new(
            Outbox::new(db.clone()),
            broker.clone(),
            clock.clone(),
            handover.clone(),
            committed,
        );
        let handover = handover.beside(broker.in_database());
        Ok(Self {
            store: Store::new(db, handover),
            broker,
            clock,
            secret: Arc::new(secret),
            relay,
            alone,
        })
    }

    /// Starts `roles`. `extra` is served beside the API, which listens on `listener` where one is given.
    pub async fn start(
        self,
        settings: &Settings,
        roles: &[Role],
        extra: Option<Router>,
        mut listener: Option<TcpListener>,
    ) -> Result<Running, Failure> {
        let (stop, stop_relay) = (CancellationToken::new(), CancellationToken::new());
        let mut running = Running {
            address: None,
            store: self.store.clone(),
            broker: self.broker.clone(),
            secret: Arc::clone(&self.secret),
            stop: stop.clone(),
            roles: JoinSet::new(),
            intake: TaskTracker::new(),
            relay: tokio::spawn(self.relay.run(stop_relay.clone())),
            stop_relay,
            _alone: self.alone,
        };
        for role in roles {
            match role {
                Role::Api => {
                    let listener = match listener.take() {
                        Some(listener) => listener,
                        None => listen(settings.listen).await?,
                    };
                    running.start_api(settings, &self.clock, extra.clone(), listener);
                }
                Role::Worker => running.start_worker(settings, &self.clock)?,
                Role::Waiter => running.start_waiter(settings, &self.clock),
            }
        }
        Ok(running)
    }
}

/// Listens, or says what is in the way.
pub async fn listen(at: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(at).await.map_err(|error| {
        let what = if error.kind() == std::io::ErrorKind::AddrInUse {
            format!("port {} is taken by another process", at.port())
        } else {
            format!("cannot listen on {at}: {error}")
        };
        let other = at.port().checked_add(1).unwrap_or(7070);
        Failure::new(Exit::Failed, what).fix(format!(
            "choose another one: --port {other}, or server.listen = \"{}:{other}\"",
            at.ip()
        ))
    })
}

fn ended(result: Result<(), broker::Error>) -> Result<(), Failure> {
    result.map_err(|error| Failure::new(Exit::Unreachable, chain(&error)))
}

impl Running {
    fn start_api(
        &mut self,
        settings: &Settings,
        clock: &SharedClock,
        extra: Option<Router>,
        listener: TcpListener,
    ) {
        let waits = Waits::default();
        let (listening, broker, until) = (waits.clone(), self.broker.clone(), self.stop.clone());
        self.roles
            .spawn(async move { ended(listening.listen(&broker, until).await) });
        let app = App::new(Options {
            store: self.store.clone(),
            broker: self.broker.clone(),
            clock: clock.clone(),
            secret: Arc::clone(&self.secret),
            intake: Intake::start(&self.store, clock, WRITERS, &self.intake),
            waits,
            public_url: settings.public_url.clone(),
            reply_queues: !settings.queue_url.expose().starts_with("embedded:"),
            any_provider: settings.any_provider,
            batches: settings.batches,
            stop: self.stop.clone(),
        });
        let (mut router, _) = api::router(app);
        if let Some(extra) = extra {
            router = router.merge(extra);
        }
        self.address = listener.local_addr().ok();
        let until = self.stop.clone();
        self.roles.spawn(async move {
            api::serve(listener, router, until)
                .await
                .map_err(|error| Failure::new(Exit::Failed, error.to_string()))
        });
    }

    fn start_worker(&mut self, settings: &Settings, clock: &SharedClock) -> Result<(), Failure> {
        let providers = Providers::new(PushOptions {
            extra_ca_pem: settings.extra_ca_pem.clone(),
            fcm_per_minute: settings.fcm_per_minute,
            clock: clock.clone(),
            shelf: Arc::new(SharedTokens {
                store: self.store.clone(),
                secret: Arc::clone(&self.secret),
            }),
            ..PushOptions::default()
        })
        .map_err(|error| Failure::new(Exit::Settings, chain(&error)))?;
        let secret = Arc::clone(&self.secret);
        let credentials = Arc::new(Credentials::new(self.store.clone(), secret, providers));
        for lane in [Lane::Interactive, Lane::Bulk] {
            let fan_out = FanOut {
                store: self.store.clone(),
                broker: self.broker.clone(),
                clock: clock.clone(),
                credentials: Arc::clone(&credentials),
                lane,
                limits: Limits::for_lane(lane),
            };
            let until = self.stop.clone();
            self.roles
                .spawn(async move { ended(fan_out.run(until).await) });
        }
        let (store, until) = (self.store.clone(), self.stop.clone());
        let counting = census::run(store, clock.clone(), credentials, until);
        self.roles.spawn(async move {
            counting.await;
            Ok(())
        });
        let dispatcher = Dispatcher {
            store: self.store.clone(),
            broker: self.broker.clone(),
            clock: clock.clone(),
        };
        let until = self.stop.clone();
        self.roles.spawn(async move {
            dispatcher.run(until).await;
            Ok(())
        });
        let sweeper = Sweeper {
            store: self.store.clone(),
            clock: clock.clone(),
        };
        let until = self.stop.clone();
        self.roles.spawn(async move {
            sweeper.run(until).await;
            Ok(())
        });
        let (store, until) = (self.store.clone(), self.stop.clone());
        self.roles.spawn(async move {
            chainer::run(store, until).await;
            Ok(())
        });
        Ok(())
    }

    fn start_waiter(&mut self, settings: &Settings, clock: &SharedClock) {
        let waiter = Waiter {
            store: self.store.clone(),
            broker: self.broker.clone(),
            clock: clock.clone(),
        };
        let until = self.stop.clone();
        self.roles
            .spawn(async move { ended(waiter.run(until).await) });
        let forwarder = Forwarder {
            broker: self.broker.clone(),
        };
        let until = self.stop.clone();
        self.roles
            .spawn(async move { ended(forwarder.run(until).await) });
        // Nobody else can write to the embedded queue.
        if settings.queue_url.expose().starts_with("embedded:") {
            return;
        }
        let instances = Instances {
            store: self.store.clone(),
            broker: self.broker.clone(),
            clock: clock.clone(),
            secret: Arc::clone(&self.secret),
        };
        let until = self.stop.clone();
        self.roles
            .spawn(async move { ended(instances.run(until).await) });
    }

    /// Serves probes and `metrics` on a listener of their own.
    pub fn start_probes(&mut self, listener: TcpListener, metrics: Router) {
        let (store, broker) = (self.store.clone(), self.broker.clone());
        let ready = move || async move {
            let database = store.next_deadline().await.is_ok();
            let broker = broker.healthy().await;
            let status = if database {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            (status, format!("database {database}, broker {broker}\n"))
        };
        let router = metrics
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(ready));
        let until = self.stop.clone();
        self.roles.spawn(async move {
            api::serve(listener, router, until)
                .await
                .map_err(|error| Failure::new(Exit::Failed, error.to_string()))
        });
    }

    /// Ends when a role has ended by itself, which is a failure.
    pub async fn failed(&mut self) -> Failure {
        match self.roles.join_next().await {
            Some(Ok(Err(failure))) => failure,
            Some(Ok(Ok(()))) => Failure::new(Exit::Failed, "a role has ended by itself"),
            Some(Err(error)) => Failure::new(Exit::Failed, format!("a role has died: {error}")),
            None => std::future::pending().await,
        }
    }

    /// Ends every wait and stream.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Finishes what is under way and closes everything. `false`: not all of it within the grace.
    pub async fn stop(mut self) -> bool {
        self.stop.cancel();
        let finished = tokio::time::timeout(GRACE, async {
            while self.roles.join_next().await.is_some() {}
            self.intake.close();
            self.intake.wait().await;
        })
        .await
        .is_ok();
        self.roles.shutdown().await;
        // The last messages of the roles are published before the broker is closed; what fails is found by the next process' sweep.
        self.stop_relay.cancel();
        let flushed = tokio::time::timeout(GRACE, self.relay).await.is_ok();
        self.broker.close().await;
        self.store.db().close().await;
        finished && flushed
    }
}
