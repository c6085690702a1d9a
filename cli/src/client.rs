//! The commands' HTTP client, and where it finds its server.

use crate::exit::{Exit, Failure, chain};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::secret::Secret;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;

/// How long a server may take to answer, beside the time that a wait was asked for.
const PATIENCE: Duration = Duration::from_secs(15);

/// Which server, with which key, and which store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Context {
    /// `http://host:port` or `https://host`.
    pub url: String,
    /// The API key.
    pub key: Secret,
    /// The store's identifier.
    pub store: String,
}

impl Context {
    /// Where `countersign dev` leaves the way to itself.
    pub fn path() -> Option<PathBuf> {
        let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
        Some(config.or_else(home)?.join("countersign").join("dev.json"))
    }

    /// Leaves it there, readable by this user only.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_private(path, &serde_json::to_string(self).unwrap_or_default())
    }

    /// From what was given, then the environment, then a running `countersign dev`.
    pub fn find(
        url: Option<String>,
        key: Option<String>,
        store: Option<String>,
    ) -> Result<Self, Failure> {
        let saved: Option<Self> = Self::path()
            .and_then(|path| std::fs::read_to_string(path).ok())
            .and_then(|text| serde_json::from_str(&text).ok());
        let from = |given: Option<String>, variable: &str, saved: Option<String>| {
            given.or_else(|| std::env::var(variable).ok()).or(saved)
        };
        // The key of a development server is for that server only.
        let asked = url
            .clone()
            .or_else(|| std::env::var("COUNTERSIGN_URL").ok());
        let saved = saved.filter(|saved| asked.as_ref().is_none_or(|url| *url == saved.url));
        let of = |part: fn(&Self) -> String| saved.as_ref().map(part);
        let url = from(url, "COUNTERSIGN_URL", of(|c| c.url.clone()));
        let key = from(key, "COUNTERSIGN_KEY", of(|c| c.key.expose().to_owned()));
        let store = from(store, "COUNTERSIGN_STORE", of(|c| c.store.clone()));
        match (url, key, store) {
            (Some(url), Some(key), Some(store)) => Ok(Self {
                url: url.trim_end_matches('/').to_owned(),
                key: Secret::new(key),
                store,
            }),
            _ => Err(Failure::new(
                Exit::Settings,
                "no server is known: neither --url, --key and --store, nor COUNTERSIGN_URL, COUNTERSIGN_KEY and COUNTERSIGN_STORE, \
                 nor a running `countersign dev`",
            )
            .fix("countersign dev")),
        }
    }
}

/// Writes a file that only this user can read.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    private_file(path)?.write_all(text.as_bytes())
}

/// Makes an empty file that only this user can read.
pub(crate) fn private_file(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The body; null when there is none or it is no JSON.
    pub body: Value,
    /// The body as text where it is no JSON.
    pub text: String,
    /// When to come again, in seconds, where it says so.
    pub retry_after: Option<u64>,
}

/// A connection at work; it ends with this value.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A client of one server.
pub struct Client {
    context: Context,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Client {
    /// For a context.
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// The store.
    pub fn store(&self) -> &str {
        &self.context.store
    }

    async fn connect(&self) -> Result<(Box<dyn Stream>, String), Failure> {
        let url = &self.context.url;
        let malformed = || {
            Failure::new(
                Exit::Settings,
                format!("{url} is not of the form http://host:port"),
            )
        };
        let (scheme, host) = url.split_once("://").ok_or_else(malformed)?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(malformed()),
        };
        let default = if tls { ":443" } else { ":80" };
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port {
            host.to_owned()
        } else {
            format!("{host}{default}")
        };
        let away = |error: &dyn std::error::Error| {
            Failure::new(
                Exit::Unreachable,
                format!("no server at {url}: {}", chain(error)),
            )
            .fix("countersign dev")
        };
        let socket = TcpStream::connect(&address).await.map_err(|e| away(&e))?;
        socket.set_nodelay(true).ok();
        if !tls {
            return Ok((Box::new(socket), host.to_owned()));
        }
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = address
            .rsplit_once(':')
            .map_or(host, |(name, _)| name)
            .to_owned();
        let name = ServerName::try_from(name).map_err(|e| away(&e))?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, socket)
            .await
            .map_err(|e| away(&e))?;
        Ok((Box::new(stream), host.to_owned()))
    }

    fn away(&self, what: &str) -> Failure {
        Failure::new(Exit::Unreachable, format!("{}: {what}", self.context.url))
    }

    /// Sends one request on a connection of its own. The answer's body is still to come.
    async fn exchange<B>(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: B,
    ) -> Result<(Response<Incoming>, Driver), Failure>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (stream, host) = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.away(&chain(&error)))?;
        let driver = Driver(tokio::spawn(async move {
            connection.await.ok();
        }));
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .header(
                "authorization",
                format!("Bearer {}", self.context.key.expose()),
            );
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(body)
            .map_err(|error| Failure::new(Exit::Failed, chain(&error)))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.away(&chain(&error)))?;
        Ok((response, driver))
    }

    async fn reply(&self, response: Response<Incoming>) -> Result<Reply, Failure> {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(http::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|error| self.away(&chain(&error)))?
            .to_bytes();
        let body = serde_json::from_slice(&bytes);
        let text = match &body {
            Ok(_) => String::new(),
            Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
        };
        Ok(Reply {
            status,
            body: body.unwrap_or_default(),
            text,
            retry_after,
        })
    }

    /// Calls the server. `wait`: how long it was asked to hold the answer back.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
        wait: Duration,
    ) -> Result<Reply, Failure> {
        let exchange = async {
            let mut headers = headers.to_vec();
            let bytes = body.map_or_else(Bytes::new, |body| {
                headers.push(("content-type", "application/json"));
                Bytes::from(body.to_string())
            });
            let (response, _driver) = self
                .exchange(method, path, &headers, Full::new(bytes))
                .await?;
            self.reply(response).await
        };
        tokio::time::timeout(PATIENCE + wait, exchange)
            .await
            .unwrap_or_else(|_| Err(self.away("no answer in time")))
    }

    /// Sends a file as it is read, of any length, and tells how much of it has gone.
    pub async fn upload(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        file: &Path,
        sent: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Reply, Failure> {
        let failed = |error: std::io::Error| Failure::new(Exit::Failed, chain(&error));
        let file = tokio::fs::File::open(file).await.map_err(failed)?;
        let length = file.metadata().await.map_err(failed)?.len().to_string();
        let mut headers = headers.to_vec();
        headers.push(("content-length", &length));
        let parts = futures_util::stream::try_unfold((file, 0), move |(mut file, mut gone)| {
            let sent = Arc::clone(&sent);
            async move {
                let mut part = vec![0; 64 * 1024];
                let read = file.read(&mut part).await?;
                part.truncate(read);
                gone += read as u64;
                sent(gone);
                let more = (read > 0).then(|| (Frame::data(Bytes::from(part)), (file, gone)));
                std::io::Result::Ok(more)
            }
        });
        let body = StreamBody::new(Box::pin(parts));
        let (response, _driver) = self.exchange("POST", path, &headers, body).await?;
        self.reply(response).await
    }

    /// Reads an answer of any length as it comes.
    pub async fn download(
        &self,
        path: &str,
        mut to: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), Failure> {
        let (response, _driver) = self
            .exchange("GET", path, &[], Full::new(Bytes::new()))
            .await?;
        if !response.status().is_success() {
            return Err(refused(&self.reply(response).await?));
        }
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.away(&chain(&error)))?;
            if let Some(data) = frame.data_ref()
                // A reader that has gone is no error of ours.
                && to(data).is_err()
            {
                break;
            }
        }
        Ok(())
    }

    /// Calls the server and takes nothing but success.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let reply = self.call(method, path, body, &[], Duration::ZERO).await?;
        if reply.status.is_success() {
            return Ok(reply.body);
        }
        Err(refused(&reply))
    }
}

/// What a problem says, in words.
pub fn refused(reply: &Reply) -> Failure {
    let text = |name: &str| reply.body[name].as_str().unwrap_or_default().to_owned();
    let mut what = format!("{} ({})", text("title"), text("code"));
    if !text("detail").is_empty() {
        what = format!("{what}: {}", text("detail"));
    }
    for fault in reply.body["errors"].as_array().into_iter().flatten() {
        let part = |name: &str| fault[name].as_str().unwrap_or_default().to_owned();
        what = format!(
            "{what}\n  {}: {} ({})",
            part("pointer"),
            part("detail"),
            part("code")
        );
    }
    let exit = match reply.status.as_u16() {
        401 | 403 | 404 => Exit::Refused,
        503 => Exit::Unreachable,
        _ => Exit::Failed,
    };
    Failure::new(exit, what)
}
