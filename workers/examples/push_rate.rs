//! How many pushes per second go through the providers, beside a bare HTTP/2 client, both against the simulator in this process.
//!
//! `cargo run --release -p workers --example push_rate [-- SECONDS [IN_FLIGHT [STREAMS]]]`

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring tool: it prints, and a failure is its end"
)]

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use shared::clock::{Clock as _, SystemClock};
use shared::domain::{ApnsCredential, FcmCredential, Kind};
use shared::id::{DeliveryId, PushId};
use shared::message::Lane;
use shared::secret::Secret;
use simulator::{Gateway, GatewayOptions};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use workers::push::{Call, Options, Provider, Providers, PushResult};

const PAYLOAD: &str = r#"{"aps":{"alert":{"title":"Confirmation requested","body":"Open the app to answer."},"category":"COUNTERSIGN_PUSH","interruption-level":"time-sensitive","mutable-content":1,"sound":"default"},"push":"psh_00000000000000000000000000"}"#;

fn token() -> String {
    "a1".repeat(32)
}

fn call() -> Call {
    let now = SystemClock.now();
    Call {
        delivery: DeliveryId::fresh(now),
        push: PushId::fresh(now),
        kind: Kind::Confirm,
        lane: Lane::Bulk,
        token: Secret::new(token()),
        expires_at: now + 120_000,
        attempt: 1,
        traceparent: None,
    }
}

/// Processor time of this process so far, in microseconds. It tells more than the rate where others use the machine, too.
fn processor_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |place| {
        fields
            .split_whitespace()
            .nth(place)
            .and_then(|t| t.parse::<f64>().ok())
    };
    // Hundredths of a second, on every Linux that runs here.
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) * 10_000.0
}

/// Pushes per second, and microseconds of processor time per push, the simulator's share included.
#[derive(Default, Clone, Copy)]
struct Rate {
    per_second: f64,
    cost: f64,
}

impl Rate {
    fn better(self, other: Self) -> Self {
        Self {
            per_second: self.per_second.max(other.per_second),
            cost: if self.cost == 0.0 {
                other.cost
            } else {
                self.cost.min(other.cost)
            },
        }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:7.0}/s {:5.1} us", self.per_second, self.cost)
    }
}

/// Runs `one` over and over in `flights` tasks and says how often per second it ended well.
async fn rate<F, R>(flights: usize, length: Duration, one: F) -> Rate
where
    F: Fn(usize) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = bool> + Send,
{
    // The first second warms up connections and tokens.
    let good = Arc::new(AtomicU64::new(0));
    let all = Arc::new(AtomicU64::new(0));
    let from = Instant::now() + Duration::from_secs(1);
    let to = from + length;
    let before = processor_us();
    let tasks = (0..flights).map(|flight| {
        let (one, good, all) = (one.clone(), Arc::clone(&good), Arc::clone(&all));
        tokio::spawn(async move {
            while Instant::now() < to {
                let ended_well = one(flight).await;
                assert!(ended_well, "a push failed");
                all.fetch_add(1, Ordering::Relaxed);
                if Instant::now() >= from {
                    good.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for ended in join_all(tasks).await {
        ended.unwrap();
    }
    Rate {
        per_second: good.load(Ordering::Relaxed) as f64 / length.as_secs_f64(),
        cost: (processor_us() - before) / all.load(Ordering::Relaxed) as f64,
    }
}

type Bare = http2::SendRequest<Full<Bytes>>;

async fn bare_connection(gateway: &Gateway, url: &str) -> Bare {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(gateway.ca_pem().as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let address = url.strip_prefix("https://").unwrap();
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = connector.connect(name, tcp).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// With all in flight on one connection, the peer's window of 64 KiB would cut the bodies into crumbs, and it would hang up.
const BARE_CONNECTIONS: usize = 4;

/// A client that does nothing but send: one token, one set of headers, some connections.
async fn bare(gateway: &Gateway, flights: usize, length: Duration) -> Rate {
    let key = gateway.apns_key();
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
    header.kid = Some(key.key_id);
    let claims = serde_json::json!({"iss": key.team_id, "iat": SystemClock.now() / 1000});
    let signing = jsonwebtoken::EncodingKey::from_ec_pem(key.p8.expose().as_bytes()).unwrap();
    let jwt = jsonwebtoken::encode(&header, &claims, &signing).unwrap();
    let mut authorization = http::HeaderValue::try_from(format!("bearer {jwt}")).unwrap();
    authorization.set_sensitive(true);
    let uri: http::Uri = format!("{}/3/device/{}", gateway.apns_url(), token())
        .parse()
        .unwrap();
    let request = http::Request::post(uri)
        .header("authorization", authorization)
        .header("apns-topic", key.topic)
        .header("apns-push-type", "alert")
        .header("apns-priority", "10")
        .header("apns-expiration", SystemClock.now() / 1000 + 120)
        .header("apns-id", "0198c0de-0000-7000-8000-000000000000")
        .header("apns-collapse-id", "psh_00000000000000000000000000")
        .body(Full::new(Bytes::from_static(PAYLOAD.as_bytes())))
        .unwrap();
    let mut senders = vec![];
    for _ in 0..BARE_CONNECTIONS {
        senders.push(bare_connection(gateway, gateway.apns_url()).await);
    }
    rate(flights, length, move |flight| {
        let mut sender = senders[flight % BARE_CONNECTIONS].clone();
        let request = request.clone();
        async move {
            let response = sender.send_request(request).await.unwrap();
            let good = response.status() == 200;
            response.into_body().collect().await.unwrap();
            good
        }
    })
    .await
}

async fn provided(provider: Arc<dyn Provider>, flights: usize, length: Duration) -> Rate {
    rate(flights, length, move |_| {
        let provider = Arc::clone(&provider);
        async move {
            let result = provider.push(&call()).await;
            matches!(result, PushResult::Accepted { .. })
        }
    })
    .await
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| {
        arguments
            .next()
            .map_or(default, |text| text.parse().unwrap())
    };
    let (seconds, flights, max_streams) = (number(3), number(500), number(128));
    let length = Duration::from_secs(seconds as u64);
    let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
    let providers = Providers::new(Options {
        extra_ca_pem: Some(gateway.ca_pem().to_owned()),
        max_streams,
        fcm_per_minute: u32::MAX,
        ..Options::default()
    })
    .unwrap();
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
    let apns = providers.apns("measured", &apns).unwrap();
    let fcm = providers.fcm("measured", &fcm).unwrap();
    for latency in [0, 20] {
        gateway.set_latency(Duration::from_millis(latency));
        // Alternating: a busy machine then slows both.
        let mut best = [Rate::default(); 3];
        for _ in 0..3 {
            best[0] = best[0].better(bare(&gateway, flights, length).await);
            best[1] = best[1].better(provided(Arc::clone(&apns), flights, length).await);
            best[2] = best[2].better(provided(Arc::clone(&fcm), flights, length).await);
        }
        let [bare, apns, fcm] = best;
        println!(
            "latency {latency:2} ms, {flights} in flight: bare {bare}   APNs {apns} ({:.2} of the rate, {:.2} of the cost)   FCM {fcm}",
            apns.per_second / bare.per_second,
            apns.cost / bare.cost
        );
    }
    println!("connections: {:?}", gateway.counts().connections);
}
