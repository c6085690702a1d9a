//! Sockets, TLS and HTTP/2: from a listening port to one call of a provider's handler per request.

use super::exchange::Connection;
use super::{Provider, State, apns, fcm};
use crate::Error;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const MAX_CONNECTIONS: usize = 1024;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// After a GOAWAY, how long streams in flight may take.
const DRAIN: Duration = Duration::from_secs(30);
/// As APNs was seen to announce.
const WINDOW: u32 = 65_535;
const HEADER_LIST: u32 = 8_000;

/// Listens, and says under which URL.
pub(super) async fn bind(address: SocketAddr) -> Result<(TcpListener, String), Error> {
    let failed = |cause| Error::Listen { address, cause };
    let socket = TcpListener::bind(address).await.map_err(failed)?;
    let bound = socket.local_addr().map_err(failed)?;
    Ok((socket, format!("https://{bound}")))
}

/// Accepts until stopped.
pub(super) async fn accept(
    provider: Provider,
    socket: TcpListener,
    tls: Arc<ServerConfig>,
    state: Arc<State>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => return,
            place = Arc::clone(&room).acquire_owned() => place,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: without a pause this would spin.
                    tracing::warn!(%error, "the simulator cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        let (acceptor, state, stop) = (acceptor.clone(), Arc::clone(&state), stop.clone());
        tokio::spawn(async move {
            let _open_connection = place;
            tokio::select! {
                () = stop.cancelled() => {}
                () = serve(provider, stream, acceptor, state) => {}
            }
        });
    }
}

async fn serve(provider: Provider, stream: TcpStream, acceptor: TlsAcceptor, state: Arc<State>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY on an accepted connection");
    }
    let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return tracing::debug!("a client did not offer h2");
    }
    state.journal.connected(provider);
    let streams = state.streams(provider).load(Ordering::Relaxed);
    let connection = Arc::new(Connection::new(state));
    let (goaway, cut) = (connection.goaway.clone(), connection.cut.clone());
    let service = service_fn(move |request| {
        let connection = Arc::clone(&connection);
        async move {
            Ok::<_, Infallible>(match provider {
                Provider::Apns => apns::serve(&connection, request).await,
                Provider::Fcm => fcm::serve(&connection, request).await,
            })
        }
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.max_concurrent_streams(streams)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(HEADER_LIST);
    let mut running = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = running.as_mut() => ended,
        () = cut.cancelled() => return,
        () = goaway.cancelled() => {
            running.as_mut().graceful_shutdown();
            tokio::select! {
                ended = running => ended,
                () = cut.cancelled() => return,
                () = tokio::time::sleep(DRAIN) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the simulator ended badly");
    }
}
