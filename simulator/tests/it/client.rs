//! A sender as small as can be: HTTP/2 over TLS, with the gateway's certificate authority and nobody else's.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use shared::clock::{Clock as _, SystemClock};
use shared::id::PushId;
use simulator::{Gateway, GatewayOptions};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

pub(crate) const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

pub(crate) async fn gateway() -> Gateway {
    Gateway::start(GatewayOptions::default()).await.unwrap()
}

pub(crate) fn now_s() -> i64 {
    SystemClock.now() / 1000
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// One connection.
pub(crate) struct Connection {
    pub(crate) sender: http2::SendRequest<Full<Bytes>>,
    /// Ends when the connection does.
    pub(crate) driver: JoinHandle<hyper::Result<()>>,
    url: String,
}

async fn tls(
    url: &str,
    ca_pem: &str,
    alpn: &[u8],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(url.strip_prefix("https://").unwrap()).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await
}

/// Only the handshake, with any certificate authority and protocol.
pub(crate) async fn handshake(url: &str, ca_pem: &str, alpn: &[u8]) -> std::io::Result<()> {
    tls(url, ca_pem, alpn).await.map(drop)
}

/// A connection that the caller drives, to see the peer's settings.
pub(crate) async fn undriven(
    gateway: &Gateway,
    url: &str,
) -> (
    http2::SendRequest<Full<Bytes>>,
    http2::Connection<
        TokioIo<tokio_rustls::client::TlsStream<TcpStream>>,
        Full<Bytes>,
        TokioExecutor,
    >,
) {
    let stream = tls(url, gateway.ca_pem(), b"h2").await.unwrap();
    http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap()
}

pub(crate) async fn connect(gateway: &Gateway, url: &str) -> Connection {
    let (sender, connection) = undriven(gateway, url).await;
    Connection {
        sender,
        driver: tokio::spawn(connection),
        url: url.to_owned(),
    }
}

pub(crate) async fn read(response: Response<hyper::body::Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

impl Connection {
    pub(crate) async fn try_send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Answer> {
        self.sender.ready().await?;
        Ok(read(self.sender.send_request(request).await?).await)
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Answer {
        self.try_send(request).await.unwrap()
    }

    /// Exchanges an assertion for an access token.
    pub(crate) async fn exchange(&mut self, assertion: &str) -> Answer {
        let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
        let form = format!("grant_type={grant}&assertion={assertion}");
        self.send(post(&format!("{}/token", self.url), form)).await
    }
}

pub(crate) fn post(url: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(url).body(Full::new(body.into())).unwrap()
}

/// A provider token signed by the gateway's own key.
pub(crate) fn provider_token(gateway: &Gateway, iat: i64) -> String {
    let key = gateway.apns_key();
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(key.key_id.clone());
    let signer = EncodingKey::from_ec_pem(key.p8.expose().as_bytes()).unwrap();
    encode(&header, &json!({"iss": key.team_id, "iat": iat}), &signer).unwrap()
}

/// A push as a good sender makes it.
pub(crate) fn apns(gateway: &Gateway, token: &str, push: &PushId) -> Request<Full<Bytes>> {
    let body = json!({"aps": {"alert": {"title": "Sign in?"}}, "push": push}).to_string();
    let mut request = post(&format!("{}/3/device/{token}", gateway.apns_url()), body);
    let bearer = format!("bearer {}", provider_token(gateway, now_s()));
    for (name, value) in [
        ("authorization", bearer.as_str()),
        ("apns-topic", &gateway.apns_key().topic),
        ("apns-push-type", "alert"),
        ("apns-priority", "10"),
        ("apns-expiration", "1900000000"),
        ("apns-collapse-id", push.as_str()),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

/// An assertion as a good sender makes it, with `change` made to its claims.
pub(crate) fn assertion(gateway: &Gateway, change: impl FnOnce(&mut Value)) -> String {
    let account: Value = serde_json::from_str(gateway.service_account_json().expose()).unwrap();
    let text = |name: &str| account[name].as_str().unwrap();
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(text("private_key_id").to_owned());
    let mut claims = json!({
        "iss": text("client_email"), "aud": text("token_uri"), "scope": SCOPE,
        "iat": now_s(), "exp": now_s() + 3600,
    });
    change(&mut claims);
    let signer = EncodingKey::from_rsa_pem(text("private_key").as_bytes()).unwrap();
    encode(&header, &claims, &signer).unwrap()
}

/// A connection to FCM and an access token got over it.
pub(crate) async fn signed_in(gateway: &Gateway) -> (Connection, String) {
    let mut connection = connect(gateway, gateway.fcm_url()).await;
    let answer = connection.exchange(&assertion(gateway, |_| ())).await;
    let token = answer.json()["access_token"].as_str().unwrap().to_owned();
    (connection, token)
}

/// A push as a good sender makes it.
pub(crate) fn fcm(
    gateway: &Gateway,
    access: &str,
    token: &str,
    push: &PushId,
) -> Request<Full<Bytes>> {
    let android = json!({"priority": "HIGH", "ttl": "120s"});
    let message = json!({"token": token, "data": {"push": push}, "android": android});
    fcm_body(gateway, access, &json!({"message": message}))
}

/// Any body, well authorised.
pub(crate) fn fcm_body(gateway: &Gateway, access: &str, body: &Value) -> Request<Full<Bytes>> {
    let project = gateway.project_id();
    let url = format!("{}/v1/projects/{project}/messages:send", gateway.fcm_url());
    let mut request = post(&url, body.to_string());
    let bearer = format!("Bearer {access}").parse().unwrap();
    request.headers_mut().insert("authorization", bearer);
    request
}
