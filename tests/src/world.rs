//! One deployment for one test: a database and queues of its own, processes, providers, phones, and a way in.

use crate::canary::{self, Canaries};
use crate::process::Process;
use crate::tap;
use cli::client::{Client, Context, Reply};
use serde_json::{Value, json};
use shared::domain::Provider;
use shared::id::{DeviceId, MessageId, PushId, StoreId};
use shared::secret::Secret;
use simulator::fleet::{Behaviour, Fleet};
use simulator::phone::{Decision, Link, Phone, Prompt};
use simulator::{Gateway, GatewayOptions};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How a process ends at a crash point.
const SIGABRT: i32 = 6;

/// The relying party of every test.
pub const RP: &str = "payroll";

/// What a deployment stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Footing {
    /// One process, SQLite, the embedded queue.
    Embedded,
    /// A process for each role, PostgreSQL, RabbitMQ.
    Servers,
}

/// Both; the embedded one alone where that was asked for by name.
pub fn footings() -> Vec<Footing> {
    if std::env::var("COUNTERSIGN_TEST_EMBEDDED_ONLY").is_ok() {
        vec![Footing::Embedded]
    } else {
        vec![Footing::Embedded, Footing::Servers]
    }
}

/// Runs a test on every footing, at the same time: much of a test of crashes is waiting for leases to run out.
pub async fn on_each(test: impl AsyncFn(Footing)) {
    futures_util::future::join_all(footings().into_iter().map(|footing| test(footing))).await;
}

fn provided(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run scripts/test, or set COUNTERSIGN_TEST_EMBEDDED_ONLY=1")
    })
}

/// Runs a control program of `scripts/test`: `what` is `DATABASE` or `BROKER`, `act` is `kill`, `start` or `restart`. `false` when the
/// server is not ours to kill.
pub fn control(what: &str, act: &str) -> bool {
    let Ok(program) = std::env::var(format!("COUNTERSIGN_TEST_{what}_CONTROL")) else {
        return false;
    };
    let status = std::process::Command::new(program)
        .arg(act)
        .status()
        .unwrap();
    assert!(status.success(), "{what} {act}");
    true
}

/// Waits until `look` gives something, for at most `seconds`.
pub async fn until<T, F: Future<Output = Option<T>>>(
    seconds: u64,
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            began.elapsed() < Duration::from_secs(seconds),
            "{what}: not within {seconds} s"
        );
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// A call of an API at `address`, as it stands. Gives the status, and the answer as it came.
pub async fn raw(
    address: &str,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let host = address.trim_start_matches("http://");
    let mut socket = tokio::net::TcpStream::connect(host).await.unwrap();
    let lines: Vec<_> = headers
        .iter()
        .map(|(n, v)| format!("{n}: {v}\r\n"))
        .collect();
    let headers = lines.concat();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}content-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

/// A deployment.
pub struct World {
    /// What it stands on.
    pub footing: Footing,
    /// The simulated providers.
    pub gateway: Gateway,
    /// The phones.
    pub fleet: Fleet,
    /// The way in, with a key for everything.
    pub client: Client,
    /// The store.
    pub store: StoreId,
    /// The user's identifier.
    pub user: String,
    /// `api`, `worker`, `waiter`; all the same one on the embedded footing.
    pub processes: Vec<(String, Process)>,
    /// What names of queues begin with.
    pub prefix: String,
    /// Where its logs and files are.
    pub folder: PathBuf,
    canaries: Canaries,
    address: String,
    environment: Vec<(String, String)>,
    schema: Option<String>,
    pub(crate) key: Secret,
}

impl World {
    /// A deployment with a store, the user `ada`, and no device yet.
    pub async fn start(footing: Footing, test: &str) -> Self {
        Self::start_with(footing, test, &[]).await
    }

    /// The same, with settings of its own, by the names of the environment.
    pub async fn start_with(footing: Footing, test: &str, settings: &[(&str, &str)]) -> Self {
        let unique = MessageId::fresh(0).to_string().replace("msg_", "");
        let folder = std::env::temp_dir().join(format!("countersign-it-{test}-{unique}"));
        std::fs::create_dir_all(&folder).unwrap();
        let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, gateway.ca_pem()).unwrap();
        let prefix = format!("t{}", &unique[unique.len() - 12..]);
        let mut environment = vec![
            (
                "COUNTERSIGN_SERVER__SECRET".to_owned(),
                "0123456789".repeat(5),
            ),
            (
                "COUNTERSIGN_SERVER__LISTEN".to_owned(),
                "127.0.0.1:0".to_owned(),
            ),
            (
                "COUNTERSIGN_SERVER__PUBLIC_URL".to_owned(),
                "http://sign.example".to_owned(),
            ),
            (
                "COUNTERSIGN_PUSH__EXTRA_CA_FILE".to_owned(),
                ca.display().to_string(),
            ),
            ("COUNTERSIGN_QUEUE__PREFIX".to_owned(), prefix.clone()),
            ("COUNTERSIGN_LOG__FILTER".to_owned(), "info".to_owned()),
            (
                "COUNTERSIGN_PUSH__ANY_PROVIDER".to_owned(),
                "true".to_owned(),
            ),
        ];
        let own = settings.iter().map(|(name, value)| (*name, *value));
        environment.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let mut schema = None;
        let (database, queue) = match footing {
            Footing::Embedded => {
                let file = folder.join("db.sqlite");
                (format!("sqlite:{}", file.display()), "embedded:".to_owned())
            }
            Footing::Servers => {
                let name = format!("it_{unique}");
                let url = provided("COUNTERSIGN_TEST_DATABASE_URL");
                let admin = sqlx::PgPool::connect(&url).await.unwrap();
                let text = sqlx::AssertSqlSafe(format!("CREATE SCHEMA {name}"));
                sqlx::query(text).execute(&admin).await.unwrap();
                admin.close().await;
                let joint = if url.contains('?') { '&' } else { '?' };
                let own = format!("{url}{joint}options=-csearch_path%3D{name}");
                schema = Some(name);
                (own, provided("COUNTERSIGN_TEST_AMQP_URL"))
            }
        };
        environment.push(("COUNTERSIGN_DATABASE__URL".to_owned(), database));
        environment.push(("COUNTERSIGN_QUEUE__URL".to_owned(), queue));
        let (status, key, said) = Process::run(&["key"], &environment);
        assert!(status.success(), "no key: {said}");
        let fleet = Fleet::start(&gateway);
        let context = Context {
            url: String::new(),
            key: Secret::new(key.trim()),
            store: String::new(),
        };
        let mut world = Self {
            footing,
            gateway,
            fleet,
            client: Client::new(context.clone()),
            store: StoreId::fresh(0),
            user: String::new(),
            processes: Vec::new(),
            prefix,
            folder,
            canaries: Canaries::default(),
            address: String::new(),
            environment,
            schema,
            key: context.key.clone(),
        };
        for role in world.roles() {
            world.start_role(role, None).await;
        }
        world.client = Client::new(Context {
            url: world.address.clone(),
            ..context.clone()
        });
        world.settle_in(context).await;
        world
    }

    /// A store, a user, a push policy for the simulated providers.
    async fn settle_in(&mut self, context: Context) {
        self.canaries.secret(context.key.expose());
        self.canaries.secret(&"0123456789".repeat(5));
        match self.footing {
            Footing::Embedded => canary::keep(&self.folder).await,
            Footing::Servers => self.canaries.tap(&self.amqp_url(), &self.prefix).await,
        }
        let made = self
            .ask("POST", "/v1/stores", &json!({"name": "Acme"}))
            .await;
        self.store = made["id"].as_str().unwrap().parse().unwrap();
        self.client = Client::new(Context {
            url: self.address.clone(),
            store: self.store.to_string(),
            ..context
        });
        let user = self
            .in_store("POST", "users", &json!({"external_id": "ada"}))
            .await;
        user["id"].as_str().unwrap().clone_into(&mut self.user);
        // Tests ask one user much at once; those of the limits set their own.
        self.policy(
            &json!({"max_prompts": 1000, "open_prompts": "many", "cooldown_after_denial": "0s"}),
        )
        .await;
    }

    /// Sets the push policy: the simulated providers, and `more`.
    pub async fn policy(&self, more: &Value) -> Value {
        let key = self.gateway.apns_key();
        let mut policy = json!({"name": "simulated",
            "apns": {"team_id": key.team_id, "key_id": key.key_id, "topic": key.topic, "private_key": key.p8.expose(),
                "endpoint": self.gateway.apns_url()},
            "fcm": {"service_account": self.gateway.service_account_json().expose(), "endpoint": self.gateway.fcm_url()}});
        if let (Some(policy), Some(more)) = (policy.as_object_mut(), more.as_object()) {
            policy.extend(more.clone());
        }
        self.in_store("PUT", &format!("push-policies/{RP}"), &policy)
            .await
    }

    /// The roles, each with a process of its own on servers.
    pub fn roles(&self) -> Vec<&'static str> {
        match self.footing {
            Footing::Embedded => vec!["all"],
            Footing::Servers => vec!["api", "worker", "waiter"],
        }
    }

    /// The role in whose process `role` runs here.
    pub fn process_of(&self, role: &'static str) -> &'static str {
        match self.footing {
            Footing::Embedded => "all",
            Footing::Servers => role,
        }
    }

    /// Starts a process, in place of the one it had. The API keeps its port.
    pub async fn start_role(&mut self, role: &str, crash: Option<&str>) {
        let mut environment = self.environment.clone();
        if let Some(point) = crash {
            environment.push(("COUNTERSIGN_CRASH_AT".to_owned(), point.to_owned()));
        }
        if let Some((_, port)) = self.address.rsplit_once(':') {
            environment.push((
                "COUNTERSIGN_SERVER__LISTEN".to_owned(),
                format!("127.0.0.1:{port}"),
            ));
        }
        let arguments: Vec<&str> = match role {
            "all" => vec![
                "serve", "--role", "api", "--role", "worker", "--role", "waiter",
            ],
            one => vec!["serve", "--role", one],
        };
        let log = self
            .folder
            .join(format!("{role}-{}.log", MessageId::fresh(0)));
        let mut process = Process::start(&arguments, &environment, log);
        let answers = matches!(role, "all" | "api");
        let mark = if answers { "listening on " } else { "ready: " };
        // Work that was left may bring it to its point before it is ready.
        match (process.says_or_crashes(mark).await, crash) {
            (Ok(said), _) if answers => said.trim().clone_into(&mut self.address),
            (Ok(_), _) => {}
            (Err(status), Some(point)) => {
                let crashed = status.signal() == Some(SIGABRT);
                assert!(crashed, "{point}: {status}\n{}", process.said());
            }
            (Err(status), None) => panic!("ended with {status}:\n{}", process.said()),
        }
        self.processes.retain(|(of, _)| of != role);
        self.processes.push((role.to_owned(), process));
    }

    /// Runs a command of the program against this deployment. Gives the status, standard output and standard error.
    pub fn run(&self, arguments: &[&str]) -> (std::process::ExitStatus, String, String) {
        Process::run(arguments, &self.environment_of_client())
    }

    /// The same, while the test goes on.
    pub fn run_beside(&self, arguments: &[&str]) -> Process {
        let log = self.folder.join(format!("{}.log", MessageId::fresh(0)));
        Process::start(arguments, &self.environment_of_client(), log)
    }

    fn environment_of_client(&self) -> [(String, String); 3] {
        [
            ("COUNTERSIGN_URL", self.address.clone()),
            ("COUNTERSIGN_KEY", self.key.expose().to_owned()),
            ("COUNTERSIGN_STORE", self.store.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// The process of a role.
    pub fn process(&mut self, role: &'static str) -> &mut Process {
        let of = self.process_of(role);
        let found = self.processes.iter_mut().find(|(name, _)| name == of);
        &mut found.unwrap().1
    }

    /// The API's address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The broker's address.
    pub fn amqp_url(&self) -> String {
        provided("COUNTERSIGN_TEST_AMQP_URL")
    }

    /// A call that must succeed.
    pub async fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.canaries.remember(body);
        let body = Some(body).filter(|body| !body.is_null());
        let answer = self.client.ask(method, path, body).await;
        let answer = answer.unwrap_or_else(|failure| panic!("{method} {path}: {}", failure.what));
        self.canaries.remember(&answer);
        answer
    }

    /// A call beneath the store that must succeed.
    pub async fn in_store(&self, method: &str, path: &str, body: &Value) -> Value {
        self.ask(method, &format!("/v1/stores/{}/{path}", self.store), body)
            .await
    }

    /// A call beneath the store, whatever its answer.
    pub async fn reply(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Reply {
        self.canaries.remember(body);
        let body = Some(body).filter(|body| !body.is_null());
        let path = format!("/v1/stores/{}/{path}", self.store);
        let wait = Duration::from_mins(1);
        let reply = self.client.call(method, &path, body, headers, wait).await;
        let reply = reply.unwrap_or_else(|failure| panic!("{method} {path}: {}", failure.what));
        self.canaries.remember(&reply.body);
        reply
    }

    /// A call by somebody who may have no API key. Gives the status.
    pub async fn anonymous(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> u16 {
        let method = method.to_uppercase();
        let body = body.to_string();
        let answer = raw(self.address(), (&method, path), headers, &body).await;
        answer.0
    }

    /// A new phone of the user, registered and in the fleet.
    pub async fn phone(&self, name: &str, provider: Provider) -> Phone {
        let phone = Phone::new(provider, name);
        self.register(&phone).await;
        phone
    }

    /// What a QR code for the user says, with the address at which this test reaches the API.
    pub async fn enrolment_link(&self, more: &Value) -> Link {
        let mut body = json!({"relying_party": RP});
        if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
            body.extend(more.clone());
        }
        let path = format!("users/{}/enrolment-codes", self.user);
        let made = self.in_store("POST", &path, &body).await;
        self.reachable(made["link"].as_str().unwrap().parse().unwrap())
    }

    /// The same link, at the address at which this test reaches the API.
    pub fn reachable(&self, link: Link) -> Link {
        self.canaries.secret(link.code.expose());
        let url = self.address.clone();
        Link { url, ..link }
    }

    /// One more process of the API, beside the one it has. Gives it and its address; the embedded footing has one process only.
    pub async fn another_api(&self) -> Option<(Process, String)> {
        if self.footing == Footing::Embedded {
            return None;
        }
        let log = self.folder.join("another-api.log");
        let mut process = Process::start(&["serve", "--role", "api"], &self.environment, log);
        let address = process.says("listening on ").await;
        Some((process, address.trim().to_owned()))
    }

    /// Registers a phone for the user `ada`. Gives the device.
    pub async fn register(&self, phone: &Phone) -> DeviceId {
        self.register_for(&self.user, phone).await
    }

    /// Registers a phone for a user. Gives the device.
    pub async fn register_for(&self, user: &str, phone: &Phone) -> DeviceId {
        let platform = match phone.provider() {
            Provider::Apns => "ios",
            Provider::Fcm => "android",
        };
        let body = json!({"name": phone.name(), "relying_party": RP, "platform": platform, "public_key": phone.public_jwk(),
            "push_address": {"provider": phone.provider(), "token": phone.push_token().expose()}});
        let made = self
            .in_store("POST", &format!("users/{user}/devices"), &body)
            .await;
        let device: DeviceId = made["id"].as_str().unwrap().parse().unwrap();
        let server_key = serde_json::from_value(made["server_key"].clone()).unwrap();
        phone.enrolled(
            device.clone(),
            self.store.clone(),
            server_key,
            &self.address,
        );
        self.fleet.add(phone, Behaviour::Manual);
        device
    }

    /// The body of a confirm push to the user, with `more` on top.
    pub fn confirm(more: &Value) -> Value {
        let mut body = json!({"user": {"external_id": "ada"}, "relying_party": RP, "kind": "confirm", "title": "Sign in to Payroll",
            "details": [{"label": "Place", "value": "Cork"}]});
        if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
            body.extend(more.clone());
        }
        body
    }

    /// Sends a push that must be taken. Gives it and its match code.
    pub async fn send(&self, more: &Value) -> (PushId, Option<String>) {
        let made = self.in_store("POST", "pushes", &Self::confirm(more)).await;
        let code = made["match_code"].as_str().map(str::to_owned);
        (made["id"].as_str().unwrap().parse().unwrap(), code)
    }

    /// The push as its sender sees it.
    pub async fn show(&self, push: &PushId) -> Value {
        self.in_store("GET", &format!("pushes/{push}"), &Value::Null)
            .await
    }

    /// Waits for the end of a push as a caller does: by long poll.
    pub async fn ended(&self, push: &PushId) -> Value {
        for _ in 0..4 {
            let reply = self
                .reply(
                    "GET",
                    &format!("pushes/{push}"),
                    &Value::Null,
                    &[("prefer", "wait=30")],
                )
                .await;
            if reply.status.as_u16() == 200 {
                return reply.body;
            }
            assert_eq!(reply.status.as_u16(), 202, "{}", reply.body);
        }
        panic!("{push} does not end: {}", self.show(push).await);
    }

    /// The states of a push's deliveries, by device.
    pub async fn delivery(&self, push: &PushId, phone: &Phone) -> Option<Value> {
        let device = phone.identity()?.device;
        let shown = self.show(push).await;
        let all = shown["deliveries"].as_array()?.clone();
        all.into_iter().find(|one| one["device"] == device.as_str())
    }

    /// Waits until a delivery is in `state`.
    pub async fn delivery_is(&self, push: &PushId, phone: &Phone, state: &str) -> Value {
        until(
            40,
            &format!("{:?}: delivery {state}", self.footing),
            || async {
                self.delivery(push, phone)
                    .await
                    .filter(|one| one["state"] == state)
            },
        )
        .await
    }

    /// Waits for a phone's ring and fetches the prompt.
    pub async fn rung(&self, phone: &Phone, push: &PushId) -> Prompt {
        let ring = self.fleet.wait_for_rings(phone.name(), push, 1);
        tokio::time::timeout(Duration::from_mins(1), ring)
            .await
            .unwrap_or_else(|_| panic!("{:?}: {} never rang", self.footing, phone.name()));
        phone.fetch(push).await.unwrap()
    }

    /// Approves with the code.
    pub async fn approve(&self, phone: &Phone, prompt: &Prompt, code: Option<&str>) -> Value {
        let decision = Decision::Approve {
            code: code.map(str::to_owned),
        };
        let answered = phone.answer(prompt, &decision).await.unwrap();
        assert_eq!(answered.status, 200, "{}", answered.body);
        answered.body
    }

    /// From now on `text` must not get out.
    pub fn secret(&self, text: &str) {
        self.canaries.secret(text);
    }

    /// What got out that must not, to providers, over the broker or into a log.
    pub async fn leaks(&self) -> Vec<String> {
        let (footing, gateway) = (self.footing, &self.gateway);
        self.canaries.leaks(footing, gateway, &self.folder).await
    }

    /// Stops every process by SIGTERM, which must succeed, looks for what must not have got out, and removes what was made.
    pub async fn end(mut self) {
        for (role, mut process) in std::mem::take(&mut self.processes) {
            let status = process.terminate().await;
            assert!(
                status.success(),
                "{role} ended with {status}:\n{}",
                process.said()
            );
        }
        assert_eq!(
            self.leaks().await,
            Vec::<String>::new(),
            "{:?}",
            self.footing
        );
        self.remove().await;
    }

    /// Removes what was made, whatever state the processes are in.
    pub async fn remove(mut self) {
        self.processes.clear();
        self.gateway.stop();
        if let Some(schema) = self.schema.take() {
            tap::remove(&self.amqp_url(), &self.prefix).await;
            let url = provided("COUNTERSIGN_TEST_DATABASE_URL");
            let admin = sqlx::PgPool::connect(&url).await.unwrap();
            let text = sqlx::AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"));
            sqlx::query(text).execute(&admin).await.unwrap();
            admin.close().await;
        }
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}
