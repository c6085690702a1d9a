//! Uploads of batches, over a bare socket, so that a test can cut them where it likes.

use crate::world::World;
use serde_json::Value;
use shared::id::PushId;
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What is sent.
#[derive(Debug, Clone)]
pub struct Upload<'a> {
    /// The part of the address behind `batches?`.
    pub query: &'a str,
    /// `application/x-ndjson` or `text/csv`.
    pub content_type: &'a str,
    /// Packed with gzip?
    pub gzip: bool,
    /// The idempotency key.
    pub key: &'a str,
    /// All of it.
    pub body: &'a [u8],
}

impl<'a> Upload<'a> {
    /// Lines of JSON.
    pub fn lines(query: &'a str, key: &'a str, body: &'a [u8]) -> Self {
        Self {
            query,
            content_type: "application/x-ndjson",
            gzip: false,
            key,
            body,
        }
    }
}

/// The lines of a batch: notices to the user `ada`.
pub fn payslips(count: usize) -> Vec<u8> {
    let line =
        |n: usize| format!("{{\"user\":{{\"external_id\":\"ada\"}},\"title\":\"Payslip {n}\"}}\n");
    (1..=count).map(line).collect::<String>().into_bytes()
}

impl World {
    /// How often the providers were called for each push.
    pub fn calls(&self) -> BTreeMap<PushId, u32> {
        let mut calls = BTreeMap::new();
        for receipt in self.gateway.journal() {
            *calls.entry(receipt.push_id.clone().unwrap()).or_default() += 1;
        }
        calls
    }

    fn head(&self, store: &str, upload: &Upload<'_>) -> String {
        let encoding = if upload.gzip {
            "content-encoding: gzip\r\n"
        } else {
            ""
        };
        format!(
            "POST /v1/stores/{store}/batches?{} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: {}\r\n{encoding}\
             idempotency-key: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            upload.query,
            self.key.expose(),
            upload.content_type,
            upload.key,
            upload.body.len()
        )
    }

    async fn socket(&self) -> TcpStream {
        let at = self.address().trim_start_matches("http://");
        TcpStream::connect(at).await.unwrap()
    }

    /// Sends a batch to a store. Gives the status and the answer; 0 when the server has gone.
    pub async fn upload_to(&self, store: &str, upload: &Upload<'_>) -> (u16, Value) {
        self.upload_in_parts(store, upload, &[upload.body], async |_| {})
            .await
    }

    /// The same, in these parts, behind each of which the sender waits for `meanwhile`.
    pub async fn upload_in_parts(
        &self,
        store: &str,
        upload: &Upload<'_>,
        parts: &[&[u8]],
        mut meanwhile: impl AsyncFnMut(usize),
    ) -> (u16, Value) {
        let mut socket = self.socket().await;
        let head = self.head(store, upload);
        let sent = async {
            socket.write_all(head.as_bytes()).await?;
            for (n, part) in parts.iter().enumerate() {
                socket.write_all(part).await?;
                meanwhile(n).await;
            }
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let Ok(answer) = sent.await else {
            return (0, Value::Null);
        };
        let text = String::from_utf8_lossy(&answer);
        let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (
            status.unwrap_or(0),
            serde_json::from_str(body).unwrap_or_default(),
        )
    }

    /// Sends a batch, which must be taken.
    pub async fn upload(&self, upload: &Upload<'_>) -> Value {
        let (status, batch) = self.upload_to(self.store.as_str(), upload).await;
        assert_eq!(status, 202, "{:?} {batch}", self.footing);
        batch
    }

    /// Sends the first `at` bytes of a batch, lets the server write what it has, and hangs up.
    pub async fn upload_cut(&self, upload: &Upload<'_>, at: usize) {
        let mut socket = self.socket().await;
        let head = self.head(self.store.as_str(), upload);
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&upload.body[..at]).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    }

    /// The lines of an NDJSON report of the store.
    pub async fn report(&self, path: &str) -> Vec<Value> {
        let report = self.try_report(path).await;
        report.unwrap_or_else(|answer| panic!("{path}: {answer}"))
    }

    /// The same, or the answer as it came.
    pub async fn try_report(&self, path: &str) -> Result<Vec<Value>, String> {
        let mut socket = self.socket().await;
        let head = format!(
            "GET /v1/stores/{}/{path} HTTP/1.0\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
            self.store,
            self.key.expose()
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let lines = match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.contains(" 200 ") => body.lines(),
            _ => return Err(answer),
        };
        let lines: Result<_, _> = lines.map(serde_json::from_str).collect();
        lines.map_err(|_| answer)
    }
}
