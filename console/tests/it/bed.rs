//! Countersign in one process, on loopback, with its real parts: the API, the workers, a simulated provider, two phones, and the pages.

use axum::Router;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use shared::broker::{Broker as _, Embedded, SharedBroker};
use shared::clock::{Clock as _, SharedClock, SystemClock};
use shared::crypto::ServerSecret;
use shared::domain::{ApnsCredential, FcmCredential, OpenPrompts, Provider, Rules};
use shared::id::{MessageId, PushId, StoreId};
use shared::intake::Intake;
use shared::message::Lane;
use shared::secret::Secret;
use shared::store::{Db, Handover, Outbox, PushPolicy, SealedPolicy, Store};
use shared::wait::Waits;
use simulator::{Behaviour, Fleet, Gateway, GatewayOptions, Phone};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use workers::fanout::{FanOut, Limits};
use workers::push::{Options, Providers};
use workers::relay::Relay;
use workers::sweeper::Sweeper;

pub(crate) const RP: &str = "payroll";
pub(crate) const IPHONE: &str = "Ada's iPhone";
pub(crate) const PIXEL: &str = "Ada's Pixel";
/// The first, as a path.
pub(crate) const IPHONE_PATH: &str = "/phone/Ada%27s%20iPhone";
/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) type Http = Client<HttpConnector, Full<Bytes>>;

pub(crate) fn http() -> Http {
    Client::builder(TokioExecutor::new()).build_http()
}

/// A running Countersign.
pub(crate) struct Bed {
    folder: PathBuf,
    db: Db,
    broker: Arc<Embedded>,
    pub(crate) store: Store,
    pub(crate) tenant: StoreId,
    key: Secret,
    pub(crate) fleet: Fleet,
    _gateway: Gateway,
    http: Http,
    /// `http://127.0.0.1:port`.
    pub(crate) url: String,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A push that was taken.
pub(crate) struct Asked {
    pub(crate) id: PushId,
    pub(crate) code: String,
}

fn now() -> i64 {
    SystemClock.now()
}

async fn policy(store: &Store, secret: &ServerSecret, tenant: &StoreId, gateway: &Gateway) {
    let apns = gateway.apns_key();
    let apns = ApnsCredential {
        team_id: apns.team_id,
        key_id: apns.key_id,
        topic: apns.topic,
        private_key: apns.p8,
        endpoint: gateway.apns_url().to_owned(),
    };
    let fcm = FcmCredential {
        service_account: gateway.service_account_json(),
        endpoint: gateway.fcm_url().to_owned(),
    };
    let seal = |provider, text: String| {
        let place = PushPolicy::place(tenant, RP, provider);
        Some(secret.seal(&place, &Secret::new(text)))
    };
    let sealed = SealedPolicy {
        rules: Rules {
            max_prompts: 1_000,
            open_prompts: OpenPrompts::Many,
            cooldown: 0,
            ..Rules::default()
        },
        name: "simulated".to_owned(),
        apns: seal(Provider::Apns, serde_json::to_string(&apns).unwrap()),
        fcm: seal(Provider::Fcm, serde_json::to_string(&fcm).unwrap()),
    };
    store
        .put_push_policy(tenant, RP, sealed, now())
        .await
        .unwrap();
}

impl Bed {
    #[expect(clippy::too_many_lines, reason = "one part after the other")]
    pub(crate) async fn start() -> Self {
        let folder =
            std::env::temp_dir().join(format!("countersign-console-{}", MessageId::fresh(0)));
        std::fs::create_dir_all(&folder).unwrap();
        let url = format!("sqlite:{}", folder.join("db.sqlite").display());
        let db = Db::open(&url).await.unwrap();
        db.migrate().await.unwrap();
        let clock: SharedClock = Arc::new(SystemClock);
        let embedded = Arc::new(Embedded::new(db.clone(), clock.clone()));
        let broker: SharedBroker = embedded.clone();
        let (handover, committed) = Handover::channel();
        let store = Store::new(db.clone(), handover.clone());
        let secret = Arc::new(ServerSecret::new(&ServerSecret::generate()).unwrap());
        let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());

        let tenant = store.add_store("dev", now()).await.unwrap().id;
        policy(&store, &secret, &tenant, &gateway).await;
        let key = secret.api_key();
        let scopes = ["*".to_owned()];
        store
            .add_key(Some(&tenant), &key.hash, &scopes, "test", now())
            .await
            .unwrap();

        let outbox = Outbox::new(db.clone());
        let relay = Relay::new(
            outbox,
            broker.clone(),
            clock.clone(),
            handover.clone(),
            committed,
        );
        tasks.spawn(relay.run(stop.clone()));
        let providers = Providers::new(Options {
            extra_ca_pem: Some(gateway.ca_pem().to_owned()),
            ..Options::default()
        });
        let credentials =
            workers::Credentials::new(store.clone(), secret.clone(), providers.unwrap());
        let fan_out = FanOut {
            store: store.clone(),
            broker: broker.clone(),
            clock: clock.clone(),
            credentials: Arc::new(credentials),
            lane: Lane::Interactive,
            limits: Limits::for_lane(Lane::Interactive),
        };
        tasks.spawn(fan_out.run(stop.clone()));
        let sweeper = Sweeper {
            store: store.clone(),
            clock: clock.clone(),
        };
        tasks.spawn(sweeper.run(stop.clone()));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = api::App::new(api::Options {
            batches: api::BatchLimits::default(),
            store: store.clone(),
            broker,
            clock: clock.clone(),
            secret,
            intake: Intake::start(&store, &clock, 1, &tasks),
            waits: Waits::default(),
            public_url: url.clone(),
            reply_queues: true,
            any_provider: true,
            stop: stop.clone(),
        });
        let fleet = Fleet::start(&gateway);
        let router: Router = api::router(app)
            .0
            .merge(console::phone_router(fleet.clone(), stop.clone()))
            .merge(console::console_router(
                store.clone(),
                tenant.clone(),
                stop.clone(),
            ));
        tasks.spawn(api::serve(listener, router, stop.clone()));

        let bed = Self {
            folder,
            db,
            broker: embedded,
            store,
            tenant,
            key: key.text,
            fleet,
            _gateway: gateway,
            http: http(),
            url,
            stop,
            tasks,
        };
        bed.seed().await;
        bed
    }

    /// Ada and her two phones, by the API.
    async fn seed(&self) {
        let ada = self
            .api(Method::POST, "users", &json!({"external_id": "ada"}))
            .await;
        let path = format!("users/{}/devices", ada["id"].as_str().unwrap());
        for (name, provider, platform) in [
            (IPHONE, Provider::Apns, "ios"),
            (PIXEL, Provider::Fcm, "android"),
        ] {
            let phone = Phone::new(provider, name);
            let device = json!({
                "name": name, "relying_party": RP, "platform": platform, "public_key": phone.public_jwk(),
                "push_address": {"provider": provider, "token": phone.push_token()},
            });
            let device = self.api(Method::POST, &path, &device).await;
            let id = device["id"].as_str().unwrap().parse().unwrap();
            let server_key = serde_json::from_value(device["server_key"].clone()).unwrap();
            phone.enrolled(id, self.tenant.clone(), server_key, &self.url);
            self.fleet.add(&phone, Behaviour::Manual);
        }
        // Nobody has to be told of the phones that were there from the beginning.
        for phone in self.fleet.phones() {
            for notice in phone.notices().await.unwrap() {
                phone.notice_seen(&notice.id).await.unwrap();
            }
        }
    }

    /// A caller's request that must succeed.
    pub(crate) async fn api(&self, method: Method, path: &str, body: &Value) -> Value {
        let path = format!("/v1/stores/{}/{path}", self.tenant);
        let authorization = format!("Bearer {}", self.key.expose());
        let headers = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/json"),
        ];
        let answer = self.send(method, &path, &headers, &body.to_string()).await;
        assert!(answer.status.is_success(), "{path}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap_or_default()
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let (parts, body) = self.http.request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// A form as a browser sends it from our own page.
    pub(crate) async fn post(&self, path: &str, form: &str) -> Answer {
        let headers = [
            ("content-type", "application/x-www-form-urlencoded"),
            ("sec-fetch-site", "same-origin"),
        ];
        self.send(Method::POST, path, &headers, form).await
    }

    /// Asks Ada, with these fields beside or instead of the usual ones.
    pub(crate) async fn ask(&self, fields: Value) -> Asked {
        let mut push = json!({
            "user": {"external_id": "ada"}, "relying_party": RP, "kind": "confirm", "title": "Sign in to Payroll",
        });
        let extra = fields.as_object().unwrap().clone();
        push.as_object_mut().unwrap().extend(extra);
        let taken = self.api(Method::POST, "pushes", &push).await;
        Asked {
            id: taken["id"].as_str().unwrap().parse().unwrap(),
            code: taken["match_code"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// Gets `path` until it shows `wanted`.
    pub(crate) async fn shows(&self, path: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let watching = async {
            loop {
                last = self.get(path).await.body;
                if wanted(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, watching).await.is_ok();
        assert!(seen, "{path} shows:\n{last}");
        last
    }

    /// An open event stream, with what it has said so far behind it.
    pub(crate) async fn stream(&self, path: &str) -> Stream {
        let request = Request::get(format!("{}{path}", self.url));
        let request = request.body(Full::default()).unwrap();
        let answer = self.http.request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        Stream(answer.into_body())
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        // Streams that are open must end too.
        let ended = tokio::time::timeout(PATIENCE, self.tasks.wait()).await;
        ended.expect("every task ends with the stop");
        self.broker.close().await;
        self.db.close().await;
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// An event stream.
pub(crate) struct Stream(hyper::body::Incoming);

impl Stream {
    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let frame = tokio::time::timeout(PATIENCE, self.0.frame()).await;
        let frame = frame.expect("an event comes in time")?.unwrap();
        let text = frame.into_data().unwrap();
        Some(String::from_utf8(text.to_vec()).unwrap())
    }
}

/// The part of the page that is one phone.
pub(crate) fn phone<'a>(page: &'a str, name: &str) -> &'a str {
    // As it is written in HTML: an apostrophe needs no escape in a text.
    let all = page
        .split("<section")
        .skip(1)
        .find(|part| part.contains(name));
    all.unwrap_or_else(|| panic!("no phone {name} in\n{page}"))
}
