//! The way to a server: TCP or a socket of the same machine, TLS where the address asks for it, and who we are.

use super::Failure;
use super::encryption::Encryption;
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::{Config, NoTls};

/// After how long without an answer the other end is asked whether it is there, how often, and how long it has for a word that it must confirm. Longer
/// than a statement may take.
const SILENCE: Duration = Duration::from_secs(20);
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK: u32 = 3;

/// What bytes go over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where a server is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Host(String, u16),
    Socket(PathBuf),
}

/// All that is needed for a connection.
pub(super) struct Way {
    pub(super) place: Place,
    pub(super) encryption: Encryption,
    /// Who we are, and what the connection is set to.
    pub(super) config: Config,
}

impl Way {
    /// A connection on which the server waits for what it is asked.
    pub(super) async fn open(&self) -> Result<Box<dyn Stream>, Failure> {
        let mut stream: Box<dyn Stream> = match &self.place {
            Place::Host(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                let stream = stream.map_err(Failure::Unreachable)?;
                stream.set_nodelay(true)?;
                watch(&stream)?;
                self.encrypted(stream, host).await?
            }
            Place::Socket(path) => {
                let stream = UnixStream::connect(path).await;
                Box::new(stream.map_err(Failure::Unreachable)?)
            }
        };
        // What it gives is not kept: behind the greeting the server says nothing by itself.
        let _greeted = self.config.connect_raw(&mut stream, NoTls).await?;
        Ok(stream)
    }

    async fn encrypted(
        &self,
        mut stream: TcpStream,
        host: &str,
    ) -> Result<Box<dyn Stream>, Failure> {
        if !self.encryption.is_wanted() {
            return Ok(Box::new(stream));
        }
        let connector = self.encryption.connector().map_err(io::Error::from)?;
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await?;
        if stream.read_u8().await? == b'S' {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            return Ok(Box::new(connector.connect(name, stream).await?));
        }
        self.encryption.without().map_err(io::Error::from)?;
        Ok(Box::new(stream))
    }
}

/// Has the system notice that the other end is gone without a word.
fn watch(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(SILENCE)
        .with_interval(ASK_EVERY)
        .with_retries(ASK);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    Ok(())
}
