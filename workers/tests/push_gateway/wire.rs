//! A peer that speaks HTTP/2 frame by frame, for what no library's server can be made to do: other limits in mid-connection, a
//! GOAWAY with a chosen last stream, single resets. It reads no headers: every HEADERS frame is a request.

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const PREFACE: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END: u8 = 1;

/// What the peer does about one request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// 200 without a body.
    Answer,
    /// Allows another number of streams.
    Settings(u32),
    /// `RST_STREAM` with this code.
    Reset(u32),
    /// `GOAWAY` with this last stream.
    GoAway(u32),
    /// Ends the connection.
    Cut,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) requests: u32,
    pub(crate) most_open: usize,
    /// Requests that came while more streams were open than ever allowed on their connection.
    pub(crate) exceeded: u32,
}

type Script = Arc<dyn Fn(u32) -> Vec<Step> + Send + Sync>;

pub(crate) struct Peer {
    pub(crate) url: String,
    pub(crate) ca_pem: String,
    seen: Arc<Mutex<Seen>>,
}

impl Peer {
    /// Allows `streams` on each connection, and does what `script` says about the n-th request, counted over all of them.
    pub(crate) async fn start(
        streams: u32,
        script: impl Fn(u32) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let names = vec!["127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (script, shared): (Script, _) = (Arc::new(script), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(tcp).await else {
                    continue;
                };
                let (script, seen) = (Arc::clone(&script), Arc::clone(&shared));
                let mut serving = Serving {
                    stream,
                    script,
                    seen,
                    open: HashSet::new(),
                    allowed: streams as usize,
                };
                tokio::spawn(async move { drop(serving.run(streams).await) });
            }
        });
        Self {
            url,
            ca_pem: cert.pem(),
            seen,
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

struct Serving {
    stream: TlsStream<TcpStream>,
    script: Script,
    seen: Arc<Mutex<Seen>>,
    open: HashSet<u32>,
    /// The most that was ever allowed here: a lower limit takes a while to reach the client.
    allowed: usize,
}

impl Serving {
    async fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await
    }

    async fn settings(&mut self, streams: u32) -> std::io::Result<()> {
        let mut setting = vec![0, 3];
        setting.extend(streams.to_be_bytes());
        self.frame(SETTINGS, 0, 0, &setting).await
    }

    async fn run(&mut self, streams: u32) -> std::io::Result<()> {
        let mut preface = [0; PREFACE];
        self.stream.read_exact(&mut preface).await?;
        self.settings(streams).await?;
        self.frame(WINDOW_UPDATE, 0, 0, &1_000_000_u32.to_be_bytes())
            .await?;
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).await?;
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match kind {
                SETTINGS if flags & 1 == 0 => self.frame(SETTINGS, 1, 0, &[]).await?,
                HEADERS => self.opened(stream),
                // A request is complete with its body, and none here has none.
                DATA if flags & END != 0 && !self.complete(stream).await? => return Ok(()),
                _ => {}
            }
        }
    }

    fn opened(&mut self, stream: u32) {
        self.open.insert(stream);
        let mut seen = self.seen.lock().unwrap();
        seen.most_open = seen.most_open.max(self.open.len());
        seen.exceeded += u32::from(self.open.len() > self.allowed);
    }

    /// Whether the connection goes on.
    async fn complete(&mut self, stream: u32) -> std::io::Result<bool> {
        let number = {
            let mut seen = self.seen.lock().unwrap();
            seen.requests += 1;
            seen.requests
        };
        for step in (self.script)(number) {
            match step {
                // 0x88 is `:status: 200` in the compression's fixed table; 4 ends the headers.
                Step::Answer => {
                    self.open.remove(&stream);
                    self.frame(HEADERS, END | 4, stream, &[0x88]).await?;
                }
                Step::Settings(streams) => {
                    self.allowed = self.allowed.max(streams as usize);
                    self.settings(streams).await?;
                }
                Step::Reset(code) => {
                    self.open.remove(&stream);
                    self.frame(RST_STREAM, 0, stream, &code.to_be_bytes())
                        .await?;
                }
                Step::GoAway(last) => {
                    let mut payload = last.to_be_bytes().to_vec();
                    payload.extend(0_u32.to_be_bytes());
                    self.frame(GOAWAY, 0, 0, &payload).await?;
                }
                Step::Cut => {
                    self.stream.shutdown().await?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
