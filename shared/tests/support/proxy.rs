//! A TCP proxy in front of the broker that can cut its connections or let them go silent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does with the connections through it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Passes bytes on.
    Open,
    /// Keeps the connection and swallows what the broker says: confirms are lost.
    Deaf,
}

/// What one connection through the proxy obeys: later connections may have another.
type Moods = Arc<Mutex<Arc<watch::Sender<Mood>>>>;

/// The proxy. It ends with the test's runtime.
pub(crate) struct Proxy {
    at: SocketAddr,
    mood: Moods,
    /// Counts the cuts: a connection lives for as long as the number stays.
    cut: Arc<watch::Sender<u32>>,
}

impl Proxy {
    pub(crate) async fn before(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let mood: Moods = Arc::new(Mutex::new(Arc::new(watch::Sender::new(Mood::Open))));
        let cut = Arc::new(watch::Sender::new(0));
        let (moods, cuts) = (Arc::clone(&mood), Arc::clone(&cut));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                let mood = moods.lock().unwrap().subscribe();
                let upstream = upstream.clone();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(upstream).await else {
                        return;
                    };
                    let (near_in, near_out) = near.into_split();
                    let (far_in, far_out) = far.into_split();
                    // When either direction ends, or at a cut, both sockets are dropped.
                    tokio::select! {
                        () = pass(near_in, far_out, None) => {}
                        () = pass(far_in, near_out, Some(mood)) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { at, mood, cut }
    }

    /// `url` with the proxy in the place of the broker.
    pub(crate) fn url(&self, url: &str) -> String {
        url.replace(authority(url), &self.at.to_string())
    }

    /// Cuts every connection. New ones are let through.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// From now on nothing that the broker says arrives.
    pub(crate) fn go_deaf(&self) {
        self.mood.lock().unwrap().send_replace(Mood::Deaf);
    }

    /// All hear again what is said from now on.
    pub(crate) fn hear(&self) {
        self.mood.lock().unwrap().send_replace(Mood::Open);
    }

    /// The connections of now stay as they are for ever; what is said later concerns new ones.
    pub(crate) fn forget(&self) {
        let mood = *self.mood.lock().unwrap().borrow();
        *self.mood.lock().unwrap() = Arc::new(watch::Sender::new(mood));
    }
}

/// Host and port in an address.
pub(crate) fn authority(url: &str) -> &str {
    let rest = url.split_once("://").unwrap().1;
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap()
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mood: Option<watch::Receiver<Mood>>,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if mood
            .as_ref()
            .is_some_and(|mood| *mood.borrow() == Mood::Deaf)
        {
            continue;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
