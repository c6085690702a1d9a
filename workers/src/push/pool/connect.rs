//! From a host name to a connection that speaks HTTP/2 over TLS, or a word for what was in the way.

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::uri::{Authority, Scheme};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const ALPN: &[u8] = b"h2";
/// Name look-up, TCP and TLS together.
const DEADLINE: Duration = Duration::from_secs(5);
/// What the peer may send before we have read it: answers are small, and a peer that floods is stopped here.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Answers have a handful of headers.
const HEADER_LIST: u32 = 16 * 1024;

/// Why TLS cannot be set up at all.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The extra authority is no PEM certificate.
    #[error("the extra certificate authority is not a PEM certificate")]
    ExtraAuthority,
    /// Neither the system nor the settings name an authority.
    #[error("no certificate authority is trusted: the system has none and no extra one is set")]
    NoAuthority,
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// Trusts the system's authorities and `extra` ones (PEM), and speaks HTTP/2 only: there is nothing to fall back to.
pub(in crate::push) fn tls_config(extra: Option<&str>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a certificate authority of the system cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(pem) = extra {
        let before = roots.len();
        for authority in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let authority = authority.map_err(|_| TlsError::ExtraAuthority)?;
            let added = roots.add(authority);
            added.map_err(|_| TlsError::ExtraAuthority)?;
        }
        if roots.len() == before {
            return Err(TlsError::ExtraAuthority);
        }
    }
    if roots.is_empty() {
        return Err(TlsError::NoAuthority);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Where to connect to.
#[derive(Clone)]
pub(in crate::push) struct Peer {
    pub(in crate::push) authority: Authority,
    name: ServerName<'static>,
    port: u16,
}

impl Peer {
    /// Reads `https://host` or `https://host:port`. Anything else is refused: what is sent authenticates us.
    pub(in crate::push) fn parse(url: &str) -> Option<Self> {
        let parts = url.parse::<http::Uri>().ok()?.into_parts();
        if parts.scheme != Some(Scheme::HTTPS) {
            return None;
        }
        let authority = parts.authority?;
        if authority.as_str().contains('@') {
            return None;
        }
        let host = authority.host().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).ok()?;
        let port = authority.port_u16().unwrap_or(443);
        Some(Self {
            authority,
            name,
            port,
        })
    }
}

/// Why there is no connection. Each is a word for events and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::push) enum ConnectError {
    Name,
    Refused,
    Timeout,
    /// The peer's certificate is not to be trusted: nothing that a retry can mend.
    Certificate,
    Tls,
    NoHttp2,
}

impl ConnectError {
    pub(in crate::push) fn as_str(self) -> &'static str {
        match self {
            Self::Name => "connect_name",
            Self::Refused => "connect_refused",
            Self::Timeout => "connect_timeout",
            Self::Certificate => "tls_certificate",
            Self::Tls => "tls_handshake",
            Self::NoHttp2 => "tls_no_http2",
        }
    }

    fn of_tls(error: &io::Error) -> Self {
        let cause = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match cause {
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                Self::Certificate
            }
            Some(rustls::Error::NoApplicationProtocol) => Self::NoHttp2,
            _ => Self::Tls,
        }
    }
}

/// What requests are put into, and what has to be polled for them to move.
pub(in crate::push) type Halves = (SendRequest<Bytes>, Connection<Unvectored, Bytes>);

async fn dial(
    peer: &Peer,
    tls: &Arc<ClientConfig>,
    streams: usize,
) -> Result<Halves, ConnectError> {
    let host = peer.authority.host().trim_matches(['[', ']']);
    let found = tokio::net::lookup_host((host, peer.port)).await;
    let addresses: Vec<_> = found.map_err(|_| ConnectError::Name)?.collect();
    let tcp = TcpStream::connect(addresses.as_slice()).await;
    let tcp = tcp.map_err(|_| ConnectError::Refused)?;
    // Without it small frames wait for acknowledgements: 4,500 requests a second instead of 50,000.
    tcp.set_nodelay(true).map_err(|_| ConnectError::Refused)?;
    let connector = TlsConnector::from(Arc::clone(tls));
    let stream = connector.connect(peer.name.clone(), tcp).await;
    let stream = stream.map_err(|error| ConnectError::of_tls(&error))?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(ConnectError::NoHttp2);
    }
    h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .initial_max_send_streams(streams)
        .handshake(Unvectored(stream))
        .await
        .map_err(|_| ConnectError::NoHttp2)
}

/// Connects. Until the peer has said how many streams it allows, `streams` are assumed.
pub(in crate::push) async fn connect(
    peer: &Peer,
    tls: &Arc<ClientConfig>,
    streams: usize,
) -> Result<Halves, ConnectError> {
    match tokio::time::timeout(DEADLINE, dial(peer, tls, streams)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    }
}

/// A TLS stream that does not admit to vectored writes. With them the codec hands each body over by itself, which makes one TLS
/// record and one system call of every push; without them it collects small frames first.
pub(in crate::push) struct Unvectored(TlsStream<TcpStream>);

impl AsyncRead for Unvectored {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Unvectored {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::{Peer, tls_config};

    #[test]
    fn only_https_without_credentials_is_a_peer() {
        let port = |url| Peer::parse(url).map(|peer| peer.port);
        assert_eq!(port("https://api.push.apple.com"), Some(443));
        assert_eq!(port("https://api.push.apple.com:2197"), Some(2197));
        assert_eq!(port("https://[::1]:8443"), Some(8443));
        assert_eq!(port("https://127.0.0.1:8443"), Some(8443));
        assert_eq!(port("http://api.push.apple.com"), None);
        assert_eq!(port("https://user@api.push.apple.com"), None);
        assert_eq!(port("api.push.apple.com"), None);
        assert_eq!(port("/path"), None);
    }

    #[test]
    fn a_broken_authority_is_refused_and_not_skipped() {
        assert!(tls_config(Some("no PEM")).is_err());
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(tls_config(Some(broken)).is_err());
    }
}
