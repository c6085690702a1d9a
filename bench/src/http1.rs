//! A kept-alive HTTP/1.1 connection to the API.

use anyhow::Result;
use bytes::Bytes;
use cli::load::seed::Seed;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// One connection.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    authorization: String,
    host: String,
}

impl Connection {
    /// Connects, with the key of the seed.
    pub(crate) async fn open(to: SocketAddr, seed: &Seed) -> Result<Self> {
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            authorization: format!("Bearer {}", seed.key.expose()),
            host: to.to_string(),
        })
    }

    /// One request and its whole answer.
    pub(crate) async fn call(
        &mut self,
        method: &str,
        path: &str,
        wait: Option<&str>,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::AUTHORIZATION, &self.authorization)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(wait) = wait {
            request = request.header("prefer", wait);
        }
        self.sender.ready().await?;
        let response = self
            .sender
            .send_request(request.body(Full::new(body))?)
            .await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, body))
    }
}
