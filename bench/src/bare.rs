//! The measure of everything else: a client that does nothing but send, over TLS, to the same simulator.

use crate::machine::{Costs, Usage};
use crate::options::Options;
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use shared::clock::{Clock as _, SystemClock};
use simulator::Gateway;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::JoinSet;

/// With all in flight on one connection, the peer's window of 64 KiB would cut the bodies into crumbs, and it would hang up.
const CONNECTIONS: usize = 4;
const PAYLOAD: &str = r#"{"aps":{"alert":{"title":"Confirmation requested","body":"Open the app to answer."},"category":"COUNTERSIGN_PUSH","interruption-level":"time-sensitive","mutable-content":1,"sound":"default"},"push":"psh_00000000000000000000000000"}"#;

type Sender = http2::SendRequest<Full<Bytes>>;

/// What it did.
pub(crate) struct Bare {
    /// Pushes.
    pub(crate) count: u64,
    /// Per second.
    pub(crate) rate: f64,
    /// Processor time of each.
    pub(crate) costs: Costs,
}

async fn connect(gateway: &Gateway) -> Result<Sender> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(gateway.ca_pem().as_bytes())?)?;
    let mut tls = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let address = gateway.apns_url().trim_start_matches("https://");
    let tcp = tokio::net::TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let name = ServerName::try_from("127.0.0.1")?;
    let stream = connector.connect(name, tcp).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn request(gateway: &Gateway) -> Result<http::Request<Full<Bytes>>> {
    let key = gateway.apns_key();
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
    header.kid = Some(key.key_id);
    let claims = serde_json::json!({"iss": key.team_id, "iat": SystemClock.now() / 1000});
    let signing = jsonwebtoken::EncodingKey::from_ec_pem(key.p8.expose().as_bytes())?;
    let jwt = jsonwebtoken::encode(&header, &claims, &signing)?;
    let mut authorization = http::HeaderValue::try_from(format!("bearer {jwt}"))?;
    authorization.set_sensitive(true);
    Ok(http::Request::post(format!(
        "{}/3/device/{}",
        gateway.apns_url(),
        "a1".repeat(32)
    ))
    .header("authorization", authorization)
    .header("apns-topic", key.topic)
    .header("apns-push-type", "alert")
    .header("apns-priority", "10")
    .header("apns-expiration", SystemClock.now() / 1000 + 120)
    .header("apns-id", "0198c0de-0000-7000-8000-000000000000")
    .header("apns-collapse-id", "psh_00000000000000000000000000")
    .body(Full::new(Bytes::from_static(PAYLOAD.as_bytes())))?)
}

async fn send(
    mut sender: Sender,
    request: http::Request<Full<Bytes>>,
    until: Instant,
) -> Result<u64> {
    let mut count = 0;
    while Instant::now() < until {
        let response = sender.send_request(request.clone()).await?;
        ensure!(
            response.status() == 200,
            "the simulator refused a bare push"
        );
        response.into_body().collect().await?;
        count += 1;
    }
    Ok(count)
}

/// Sends for one step. The connections are warm before it begins.
pub(crate) async fn measure(options: &Options, gateway: &Gateway) -> Result<Bare> {
    let request = request(gateway)?;
    let mut senders = vec![];
    for _ in 0..CONNECTIONS {
        let sender = connect(gateway).await?;
        send(
            sender.clone(),
            request.clone(),
            Instant::now() + options.step() / 20,
        )
        .await?;
        senders.push(sender);
    }
    let (before, began) = (Usage::now(), Instant::now());
    let mut tasks = JoinSet::new();
    for flight in 0..options.flights {
        let sender = senders[flight % CONNECTIONS].clone();
        tasks.spawn(send(sender, request.clone(), began + options.step()));
    }
    let mut count = 0;
    while let Some(ended) = tasks.join_next().await {
        count += ended.context("a bare sender")??;
    }
    Ok(Bare {
        count,
        rate: count as f64 / began.elapsed().as_secs_f64(),
        costs: Usage::now().per(&before, count),
    })
}
