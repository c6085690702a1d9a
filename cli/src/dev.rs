//! `countersign dev`: everything in one process on loopback. The API, the workers and the wait activity are the real ones, on SQLite and the
//! embedded queue; APNs, FCM and the phones are simulated, on real HTTP/2 + TLS and with real keys.

use crate::client::{Context, write_private};
use crate::exit::{Exit, Failure, chain};
use crate::output::Output;
use crate::roles::{Ground, Role, Running, listen};
use crate::settings::{BatchLimits, Settings};
use crate::telemetry;
use axum::Router;
use axum::extract::{Form, Query, State};
use axum::response::Redirect;
use axum::routing::get;
use shared::clock::{SharedClock, SystemClock};
use shared::crypto::{DeviceKey, ServerSecret};
use shared::domain::{ApnsCredential, FcmCredential, InstanceState, KeyAlgorithm, Provider, Rules};
use shared::id::{InstanceId, StoreId};
use shared::secret::Secret;
use shared::store::{Address, Definition, NewDevice, PushPolicy, SealedPolicy, Store};
use simulator::fleet::{Behaviour, Fleet};
use simulator::phone::{Phone, Saved};
use simulator::{Gateway, GatewayOptions};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The relying party of the seeded store.
pub const RELYING_PARTY: &str = "demo";
/// The seeded user.
pub const USER: &str = "ada";

/// How to run it.
pub struct Options {
    /// Where it listens.
    pub port: u16,
    /// Where its data stay; a folder of its own that goes with it when left out.
    pub data: Option<PathBuf>,
}

/// A folder that goes with this value.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            std::fs::remove_dir_all(&self.path).ok();
        }
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{what}: {}", chain(error)))
}

impl Folder {
    fn open(data: Option<PathBuf>) -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt as _;
        let keep = data.is_some();
        let path = data.unwrap_or_else(|| {
            let name = shared::id::MessageId::fresh(0);
            std::env::temp_dir().join(format!("countersign-dev-{name}"))
        });
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|error| failed(&format!("cannot make {}", path.display()), &error))?;
        Ok(Self { path, keep })
    }

    /// The text kept in a file; made on first use.
    fn text(&self, name: &str, make: impl FnOnce() -> String) -> Result<String, Failure> {
        let path = self.path.join(name);
        if let Ok(text) = std::fs::read_to_string(&path) {
            return Ok(text);
        }
        let text = make();
        write_private(&path, &text)
            .map_err(|error| failed(&format!("cannot write {}", path.display()), &error))?;
        Ok(text)
    }
}

/// A running development server.
pub struct Dev {
    /// The roles.
    pub running: Running,
    /// The simulated APNs and FCM.
    pub gateway: Gateway,
    /// The phones.
    pub fleet: Fleet,
    /// The way in.
    pub context: Context,
    folder: Folder,
    stop: CancellationToken,
}

/// What is seeded, remembered between runs.
#[derive(serde::Serialize, serde::Deserialize)]
struct Seed {
    store: StoreId,
    key: Secret,
    phones: Vec<Saved>,
}

async fn seed(
    store: &Store,
    secret: &ServerSecret,
    folder: &Folder,
    now: i64,
) -> Result<Seed, Failure> {
    let database = |error: shared::store::Error| failed("the database cannot be seeded", &error);
    let path = folder.path.join("dev.json");
    if let Ok(text) = std::fs::read_to_string(&path) {
        return serde_json::from_str(&text)
            .map_err(|error| failed(&format!("{} is not ours", path.display()), &error));
    }
    let tenant = store.add_store("Demo", now).await.map_err(database)?.id;
    let key = secret.api_key();
    store
        .add_key(Some(&tenant), &key.hash, &["*".to_owned()], "dev", now)
        .await
        .map_err(database)?;
    let user = store
        .add_user(&tenant, USER, now)
        .await
        .map_err(database)?
        .ok_or_else(|| Failure::new(Exit::Failed, "the seeded user exists already"))?;
    let mut phones = Vec::new();
    for (name, provider, platform, algorithm) in [
        ("Ada's iPhone", Provider::Apns, "ios", KeyAlgorithm::Es256),
        ("Ada's Pixel", Provider::Fcm, "android", KeyAlgorithm::EdDsa),
    ] {
        let phone = Phone::with_key(provider, name, algorithm);
        let key: DeviceKey = serde_json::from_value(phone.public_jwk())
            .map_err(|error| failed("a phone's key cannot be read", &error))?;
        let new = NewDevice {
            rp: RELYING_PARTY.to_owned(),
            name: name.to_owned(),
            platform: platform.to_owned(),
            key,
            address: Some(Address {
                provider,
                token: phone.push_token(),
            }),
        };
        let device = store
            .add_device(&tenant, &user, &new, 10, now)
            .await
            .map_err(database)?
            .map_err(|_| Failure::new(Exit::Failed, "a phone cannot be registered"))?;
        let server_key = secret.signer().public().clone();
        phone.enrolled(device.id, tenant.clone(), server_key, "");
        phones.push(phone.save());
    }
    // Nobody has to be told of the phones that were there from the beginning.
    for phone in phones.iter().filter_map(|saved| saved.identity.as_ref()) {
        for notice in store.notices(&phone.device).await.map_err(database)? {
            let seen = store.notice_seen(&phone.device, &notice.id).await;
            seen.map_err(database)?;
        }
    }
    let seed = Seed {
        store: tenant,
        key: key.text,
        phones,
    };
    let text = serde_json::to_string(&seed).unwrap_or_default();
    write_private(&path, &text)
        .map_err(|error| failed(&format!("cannot write {}", path.display()), &error))?;
    Ok(seed)
}

/// The simulated providers have fresh keys at each start.
async fn set_policies(
    store: &Store,
    secret: &ServerSecret,
    tenant: &StoreId,
    gateway: &Gateway,
    base: &str,
    now: i64,
) -> Result<(), shared::store::Error> {
    let key = gateway.apns_key();
    let apns = ApnsCredential {
        team_id: key.team_id,
        key_id: key.key_id,
        topic: key.topic,
        private_key: key.p8,
        endpoint: gateway.apns_url().to_owned(),
    };
    let fcm = FcmCredential {
        service_account: gateway.service_account_json(),
        endpoint: gateway.fcm_url().to_owned(),
    };
    let seal = |provider: Provider, text: String| {
        let place = PushPolicy::place(tenant, RELYING_PARTY, provider);
        secret.seal(&place, &Secret::new(text))
    };
    let sealed = SealedPolicy {
        name: "Simulated providers".to_owned(),
        // Somebody who tries things out is no attacker.
        rules: Rules {
            max_prompts: 100,
            cooldown: 0,
            ..Rules::default()
        },
        apns: Some(seal(
            Provider::Apns,
            serde_json::to_string(&apns).unwrap_or_default(),
        )),
        fcm: Some(seal(
            Provider::Fcm,
            serde_json::to_string(&fcm).unwrap_or_default(),
        )),
    };
    store
        .put_push_policy(tenant, RELYING_PARTY, sealed, now)
        .await?;
    let definition = Definition {
        name: "demo".to_owned(),
        // The newest of a tag counts, and the port may be another one each time.
        version: now,
        tag: Some("live".to_owned()),
        start_url: format!("{base}/demo/process"),
    };
    store.add_definition(tenant, &definition, now).await?;
    Ok(())
}

#[derive(Clone)]
struct Demo {
    store: Store,
    tenant: StoreId,
    clock: SharedClock,
}

/// Every way in which a child process goes on or ends, in the words of a button.
const DEMO_WAYS: [(&str, &str); 6] = [
    ("active", "It goes on"),
    ("review", "Somebody reviews it"),
    ("ended_success", "It succeeds"),
    ("ended_error", "It is declined"),
    ("terminated", "The user gives up"),
    ("process_error", "It breaks"),
];

/// A child process in its smallest form: a page with a button for each way.
async fn demo_process(
    Query(query): Query<BTreeMap<String, String>>,
) -> axum::response::Html<String> {
    use std::fmt::Write as _;
    let text = query.get("instance").map_or("", String::as_str);
    let instance: String = text
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect();
    let mut buttons = String::new();
    for (status, words) in DEMO_WAYS {
        // Writing to a String cannot fail.
        write!(
            buttons,
            "<p><button name=status value={status}>{words}</button></p>"
        )
        .ok();
    }
    axum::response::Html(format!(
        "<!doctype html><html lang=en><meta name=viewport content=\"width=device-width\"><title>Demo process</title>\
         <h1>Demo process</h1><p>A child process instance <code>{instance}</code> has started. How does it go on?</p>\
         <form method=post><input type=hidden name=instance value=\"{instance}\">{buttons}</form>"
    ))
}

async fn demo_report(
    State(demo): State<Demo>,
    Form(form): Form<BTreeMap<String, String>>,
) -> Redirect {
    let status = form
        .get("status")
        .and_then(|text| InstanceState::parse(text));
    let instance = form
        .get("instance")
        .and_then(|text| text.parse::<InstanceId>().ok());
    let (Some(status), Some(instance)) = (status, instance) else {
        return Redirect::to("/phone");
    };
    let now = demo.clock.now();
    let taken = demo
        .store
        .report_instance(&demo.tenant, &instance, status, now);
    if let Err(error) = taken.await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "a demo process could not be reported"
        );
    }
    if status.outcome().is_none() {
        return Redirect::to(&format!("/demo/process?instance={instance}"));
    }
    Redirect::to("/phone")
}

impl Dev {
    /// Starts everything. When it returns, all of it answers.
    pub async fn start(options: Options) -> Result<Self, Failure> {
        let folder = Folder::open(options.data)?;
        let secret = folder.text("secret", || ServerSecret::generate().expose().to_owned())?;
        let gateway = Gateway::start(GatewayOptions::default())
            .await
            .map_err(|error| failed("the simulated providers cannot start", &error))?;
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], options.port))).await?;
        let listening = listener
            .local_addr()
            .map_err(|error| failed("no address", &error))?;
        let base = format!("http://localhost:{}", listening.port());
        let settings = Settings {
            batches: BatchLimits::default(),
            listen: listening,
            public_url: base.clone(),
            secret: Secret::new(secret),
            database_url: Secret::new(database_in(&folder.path)),
            queue_url: Secret::new("embedded:"),
            queue_prefix: "cs".to_owned(),
            extra_ca_pem: Some(gateway.ca_pem().to_owned()),
            any_provider: true,
            fcm_per_minute: 600_000,
            probes: None,
            log_filter: String::new(),
            log_json: false,
        };
        let clock: SharedClock = Arc::new(SystemClock);
        let ground = Ground::open(&settings, clock.clone()).await?;
        let now = clock.now();
        let seed = seed(&ground.store, &ground.secret, &folder, now).await?;
        let (store, secret) = (ground.store.clone(), Arc::clone(&ground.secret));
        let fleet = Fleet::start(&gateway);
        let demo = Demo {
            store: store.clone(),
            tenant: seed.store.clone(),
            clock: clock.clone(),
        };
        let stop = CancellationToken::new();
        let extra = pages(&fleet, &demo, &stop);
        let roles = [Role::Api, Role::Worker, Role::Waiter];
        let running = ground
            .start(&settings, &roles, Some(extra), Some(listener))
            .await?;
        set_policies(&store, &secret, &seed.store, &gateway, &base, now)
            .await
            .map_err(|error| failed("the push policy cannot be set", &error))?;
        for saved in seed.phones {
            let phone = Phone::load(saved)
                .map_err(|error| failed("a saved phone cannot be read", &error))?;
            phone.moved(&format!("http://{listening}"));
            fleet.add(&phone, Behaviour::Manual);
        }
        Ok(Self {
            running,
            gateway,
            fleet,
            context: Context {
                url: base,
                key: seed.key,
                store: seed.store.to_string(),
            },
            folder,
            stop,
        })
    }

    /// What a newcomer reads.
    pub fn welcome(&self, output: &Output) {
        let url = &self.context.url;
        let kept = if self.folder.keep {
            format!("data in {}", self.folder.path.display())
        } else {
            "data gone at the end (--data DIR keeps it)".to_owned()
        };
        output.line(&format!(
            "countersign {} · dev · all in this process, {kept}",
            env!("CARGO_PKG_VERSION")
        ));
        output.line(&format!("  Console  {url}/"));
        output.line(&format!("  Phone    {url}/phone   <- open this"));
        output.line(&format!("  API      {url}/v1"));
        output.line(&format!("  Docs     {url}/docs"));
        output.line(&format!("  Metrics  {url}/metrics"));
        output.line(&format!(
            "  Store    {} with the user {USER} and two phones",
            self.context.store
        ));
        output.line("Loopback only. Not for production.");
        let program = program();
        output.line(&format!(
            "Next, in another terminal: {program} send {USER} \"Sign in to Payroll\" --wait"
        ));
    }

    /// Stops everything.
    pub async fn stop(self) -> bool {
        self.stop.cancel();
        let finished = self.running.stop().await;
        self.gateway.stop();
        finished
    }
}

/// How this program is called from here.
fn program() -> String {
    let name = "countersign".to_owned();
    let Ok(own) = std::env::current_exe() else {
        return name;
    };
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(&name) == own));
    if found {
        return name;
    }
    let here = std::env::current_dir().ok();
    let near = here.and_then(|here| own.strip_prefix(here).ok().map(Path::to_path_buf));
    near.unwrap_or(own).display().to_string()
}

/// The database of a data folder.
pub fn database_in(folder: &Path) -> String {
    format!("sqlite:{}", folder.join("countersign.db").display())
}

fn pages(fleet: &Fleet, demo: &Demo, stop: &CancellationToken) -> Router {
    let mut router = Router::new()
        .route("/demo/process", get(demo_process).post(demo_report))
        .with_state(demo.clone())
        .merge(console::phone_router(fleet.clone(), stop.clone()))
        .merge(console::console_router(
            demo.store.clone(),
            demo.tenant.clone(),
            stop.clone(),
        ));
    if let Some(handle) = telemetry::metrics() {
        let page = get(move || async move { handle.render() });
        router = router.route("/metrics", page);
    }
    router
}
