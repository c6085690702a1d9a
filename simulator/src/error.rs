//! Why the gateway did not start.

use std::net::SocketAddr;

/// The gateway did not start. None of these heals by itself: change the options or the machine, then start again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its keys are made up, so it never listens where another machine could reach it.
    #[error("{0} is not a loopback address; listen on 127.0.0.1 or ::1")]
    NotLoopback(SocketAddr),
    /// A fixed port leaves no room for the second listener.
    #[error("port {0} has no following port for FCM; choose a lower one or 0")]
    NoSecondPort(u16),
    /// The port is taken or not allowed.
    #[error("cannot listen on {address}: {cause}; choose another port or 0")]
    Listen {
        /// Where it wanted to listen.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A key or certificate could not be made.
    #[error("cannot make a key or certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A key that was just made could not be read back.
    #[error("cannot use a fresh key: {0}")]
    Key(#[from] jsonwebtoken::errors::Error),
    /// TLS refused its settings.
    #[error("cannot set TLS up: {0}")]
    Tls(#[from] rustls::Error),
}
