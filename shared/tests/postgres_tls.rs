//! PostgreSQL behind TLS, with each `sslmode`: a door in front of the real server encrypts, or says that it does not.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use shared::store::Db;
use shared::store::db::{Arg, Asked, Statement};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

static ECHO: Statement = Statement::new("SELECT CAST($1 AS TEXT) AS text");
static ONE: Statement = Statement::new("SELECT 'one' AS word");
/// The request for TLS (postgresql.org/docs/17/protocol-message-formats.html, SSLRequest).
const REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// A server's certificate for `localhost`, and the file of who has signed it.
fn certificate() -> (TlsAcceptor, PathBuf) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let server = params.signed_by(&key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![server.der().clone()], key)
        .unwrap();
    let unique = shared::id::MessageId::fresh(0);
    let file = std::env::temp_dir().join(format!("countersign-tls {unique}.pem"));
    std::fs::write(&file, authority.pem()).unwrap();
    (TlsAcceptor::from(Arc::new(config)), file)
}

/// What stands before the host of an address, host and port, and what stands behind.
fn parts(url: &str) -> (String, &str, &str) {
    let (before, behind) = match url.split_once('@') {
        Some((user, rest)) => (format!("{user}@"), rest),
        None => ("postgres://".to_owned(), url.split_once("//").unwrap().1),
    };
    let (authority, path) = behind.split_once('/').unwrap();
    (before, authority, path)
}

/// A door to the server at `inner`. Gives its port, and counts who came in encrypted.
async fn door(inner: String, tls: Option<TlsAcceptor>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    open(listener, inner, tls)
}

fn open(listener: TcpListener, inner: String, tls: Option<TlsAcceptor>) -> (u16, Arc<AtomicUsize>) {
    let encrypted = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&encrypted);
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut outer, _) = listener.accept().await.unwrap();
            let (inner, tls, counting) = (inner.clone(), tls.clone(), Arc::clone(&counting));
            tokio::spawn(async move {
                let mut request = [0; 8];
                outer.read_exact(&mut request).await.ok()?;
                let mut inner = TcpStream::connect(inner).await.unwrap();
                if request != REQUEST {
                    inner.write_all(&request).await.ok()?;
                    return copy_bidirectional(&mut outer, &mut inner).await.ok();
                }
                let Some(tls) = tls else {
                    outer.write_all(b"N").await.ok()?;
                    return copy_bidirectional(&mut outer, &mut inner).await.ok();
                };
                outer.write_all(b"S").await.ok()?;
                let mut outer = tls.accept(outer).await.ok()?;
                counting.fetch_add(1, Ordering::Relaxed);
                copy_bidirectional(&mut outer, &mut inner).await.ok()
            });
        }
    });
    (port, encrypted)
}

/// What becomes of a question to the server at this address.
async fn ask(url: &str) -> Result<String, String> {
    let told = |error: shared::store::Error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    };
    let db = Db::open(url).await.map_err(told)?;
    let rows = db.fetch(&ONE, &[]).await.map_err(told)?;
    db.close().await;
    rows[0].text("word").map_err(told)
}

#[tokio::test]
async fn each_mode_trusts_whom_it_says() {
    let Ok(url) = std::env::var("COUNTERSIGN_TEST_DATABASE_URL") else {
        assert!(
            std::env::var("COUNTERSIGN_TEST_EMBEDDED_ONLY").is_ok(),
            "no PostgreSQL: run scripts/test, or set COUNTERSIGN_TEST_EMBEDDED_ONLY=1 to leave it out"
        );
        return;
    };
    let (before, authority, path) = parts(&url);
    let (acceptor, file) = certificate();
    let (encrypted, came_in) = door(authority.to_owned(), Some(acceptor)).await;
    let (plain, _) = door(authority.to_owned(), None).await;
    let joint = if path.contains('?') { '&' } else { '?' };
    let at = |host: &str, port: u16, mode: &str| {
        format!("{before}{host}:{port}/{path}{joint}sslmode={mode}")
    };
    let trusting = format!(
        "&sslrootcert={}",
        file.display().to_string().replace(' ', "%20")
    );
    for (n, mode) in ["prefer", "require"].into_iter().enumerate() {
        assert_eq!(ask(&at("127.0.0.1", encrypted, mode)).await.unwrap(), "one");
        assert_eq!(came_in.load(Ordering::Relaxed), n + 1, "{mode}");
    }
    assert_eq!(
        ask(&at("127.0.0.1", encrypted, "disable")).await.unwrap(),
        "one"
    );
    assert_eq!(came_in.load(Ordering::Relaxed), 2, "nobody asked for it");
    for mode in ["disable", "prefer"] {
        assert_eq!(ask(&at("127.0.0.1", plain, mode)).await.unwrap(), "one");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = ask(&at("localhost", plain, mode)).await.unwrap_err();
        assert!(error.contains("TLS"), "{mode}: {error}");
    }
    for mode in ["verify-ca", "verify-full"] {
        let url = at("localhost", encrypted, mode);
        let error = ask(&url).await.unwrap_err();
        assert!(error.contains("certificate"), "{mode}: {error}");
        assert_eq!(ask(&format!("{url}{trusting}")).await.unwrap(), "one");
    }
    let elsewhere = |mode| format!("{}{trusting}", at("127.0.0.1", encrypted, mode));
    assert_eq!(ask(&elsewhere("verify-ca")).await.unwrap(), "one");
    let error = ask(&elsewhere("verify-full")).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let missing = format!(
        "{}&sslrootcert=/nowhere.pem",
        at("localhost", encrypted, "verify-full")
    );
    let error = ask(&missing).await.unwrap_err();
    assert!(error.contains("sslrootcert"), "{error}");
    let half = format!(
        "{}&sslcert=/etc/hostname",
        at("localhost", encrypted, "require")
    );
    let error = ask(&half).await.unwrap_err();
    assert!(error.contains("sslkey"), "{error}");
    // More than goes at once, in both directions.
    let db = Db::open(&at("127.0.0.1", encrypted, "require"))
        .await
        .unwrap();
    let text = "x".repeat(2_000_000);
    let args = [Arg::Text(&text)];
    let mut tx = db.begin().await.unwrap();
    let asked: [Asked<'_>; 4] = [(&ECHO, &args); 4];
    for rows in tx.fetch_all(asked).await.unwrap() {
        assert_eq!(rows[0].text("text").unwrap().len(), text.len());
    }
    tx.commit().await.unwrap();
    db.close().await;
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn a_server_that_comes_a_moment_later_is_waited_for() {
    let Ok(url) = std::env::var("COUNTERSIGN_TEST_DATABASE_URL") else {
        return;
    };
    let (before, authority, path) = parts(&url);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = closed.local_addr().unwrap();
    drop(closed);
    let joint = if path.contains('?') { '&' } else { '?' };
    let address = format!("{before}{at}/{path}{joint}sslmode=disable");
    let asking = tokio::spawn(async move { ask(&address).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!asking.is_finished(), "nobody is there yet");
    open(
        TcpListener::bind(at).await.unwrap(),
        authority.to_owned(),
        None,
    );
    assert_eq!(asking.await.unwrap().unwrap(), "one");
}
