//! The measure of everything else: a client that does nothing but send, over TLS, to the same simulator.

use super::Load;
use super::machine::{Costs, Usage};
use super::request::{APNS_STREAMS, FCM_STREAMS, Prebuilt, prebuilt, url};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use shared::domain::Provider;
use simulator::Gateway;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::JoinSet;

/// With all in flight on one connection, the peer's window of 64 KiB would cut the bodies into crumbs, and it would hang up.
const CONNECTIONS: usize = 4;

/// As many connections as it takes to have all in flight.
fn connections(load: &Load, streams: Option<u32>) -> usize {
    let streams = streams.unwrap_or(match load.provider {
        Provider::Apns => APNS_STREAMS,
        Provider::Fcm => FCM_STREAMS,
    });
    load.flights.div_ceil(streams as usize).max(CONNECTIONS)
}

/// A handle to a connection.
pub type Sender = http2::SendRequest<Full<Bytes>>;

/// What it did.
pub struct Bare {
    /// Pushes.
    pub count: u64,
    /// Per second.
    pub rate: f64,
    /// Processor time of each.
    pub costs: Costs,
}

/// A warm connection to a provider.
pub async fn connect(gateway: &Gateway, provider: Provider) -> Result<Sender> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(gateway.ca_pem().as_bytes())?)?;
    let mut tls = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let address = url(gateway, provider).trim_start_matches("https://");
    let tcp = tokio::net::TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let name = ServerName::try_from("127.0.0.1")?;
    let stream = connector.connect(name, tcp).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn send(mut sender: Sender, request: Prebuilt, until: Instant) -> Result<u64> {
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
pub async fn measure(load: &Load, gateway: &Gateway, streams: Option<u32>) -> Result<Bare> {
    let request = prebuilt(gateway, load.provider).await?;
    let mut senders = vec![];
    for _ in 0..connections(load, streams) {
        let sender = connect(gateway, load.provider).await?;
        send(
            sender.clone(),
            request.clone(),
            Instant::now() + load.step() / 20,
        )
        .await?;
        senders.push(sender);
    }
    let (before, began) = (Usage::now(), Instant::now());
    let mut tasks = JoinSet::new();
    for flight in 0..load.flights {
        let sender = senders[flight % senders.len()].clone();
        tasks.spawn(send(sender, request.clone(), began + load.step()));
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
