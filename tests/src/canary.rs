//! What must not get out: codes, texts that a person is shown, push tokens, keys. Every deployment of the suite remembers those that went through it and, at its end,
//! looks for them in what it has captured: each request to a provider, each message on the broker, each line of the logs.

use crate::world::Footing;
use futures_util::StreamExt as _;
use lapin::options::{
    BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde_json::Value;
use shared::broker::rabbit::topology::{Names, Topology};
use simulator::Gateway;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Fields of requests and answers whose texts are shown to a person, or are secrets.
const FIELDS: [&str; 12] = [
    "title",
    "message",
    "value",
    "match_code",
    "token",
    "code",
    "private_key",
    "key",
    "agent",
    "place",
    "account",
    "reference",
];
/// A shorter text is found anywhere by chance.
const LONG_ENOUGH: usize = 6;

/// What must not get out of one deployment, and what the broker carried.
#[derive(Default)]
pub(crate) struct Canaries {
    words: Mutex<BTreeMap<String, &'static str>>,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
    tap: tokio::sync::OnceCell<Connection>,
}

impl Canaries {
    /// Remembers what a request or an answer holds.
    pub(crate) fn remember(&self, body: &Value) {
        let mut words = self.words.lock().unwrap();
        walk(body, &mut |field, text| {
            let known = FIELDS.into_iter().find(|one| *one == field);
            // `code` is also the word of a problem, such as `not_found`.
            let word = field == "code" && !text.bytes().all(|b| b.is_ascii_digit());
            if let Some(field) = known.filter(|_| text.len() >= LONG_ENOUGH && !word) {
                words.insert(text.to_owned(), field);
            }
        });
    }

    /// Remembers one secret.
    pub(crate) fn secret(&self, text: &str) {
        self.words.lock().unwrap().insert(text.to_owned(), "key");
    }

    /// Copies everything that is published under `prefix` from now on.
    pub(crate) async fn tap(&self, url: &str, prefix: &str) {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        let exclusive = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel
            .queue_declare("".into(), exclusive, FieldTable::default())
            .await
            .unwrap();
        let topology = Topology::new(&Names::new(prefix), None);
        for exchange in &topology.exchanges {
            let of = |keys: &mut BTreeSet<&'static str>| {
                let bound = topology
                    .bindings
                    .iter()
                    .filter(|one| one.exchange == exchange.name);
                keys.extend(bound.map(|one| one.key));
            };
            let mut keys = BTreeSet::new();
            let kind = match exchange.kind {
                "topic" => {
                    keys.insert("#");
                    ExchangeKind::Topic
                }
                "direct" => {
                    of(&mut keys);
                    ExchangeKind::Direct
                }
                _ => {
                    keys.insert("");
                    ExchangeKind::Fanout
                }
            };
            let name: ShortString = exchange.name.as_str().into();
            let passive = ExchangeDeclareOptions {
                passive: true,
                ..ExchangeDeclareOptions::default()
            };
            channel
                .exchange_declare(name.clone(), kind, passive, FieldTable::default())
                .await
                .unwrap();
            for key in keys {
                channel
                    .queue_bind(
                        queue.name().clone(),
                        name.clone(),
                        key.into(),
                        QueueBindOptions::default(),
                        FieldTable::default(),
                    )
                    .await
                    .unwrap();
            }
        }
        let unacknowledged = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let mut consumer = channel
            .basic_consume(
                queue.name().clone(),
                "canary".into(),
                unacknowledged,
                FieldTable::default(),
            )
            .await
            .unwrap();
        let bodies = Arc::clone(&self.bodies);
        tokio::spawn(async move {
            // The channel lives as long as its consumer is read.
            let _channel = channel;
            while let Some(Ok(delivery)) = consumer.next().await {
                let headers = format!("{:?}", delivery.properties);
                let mut bodies = bodies.lock().unwrap();
                bodies.push(delivery.data);
                bodies.push(headers.into_bytes());
            }
        });
        self.tap.set(connection).ok();
    }

    /// Everything that got out, in words; each with the place where it was found.
    pub(crate) async fn leaks(
        &self,
        footing: Footing,
        gateway: &Gateway,
        folder: &Path,
    ) -> Vec<String> {
        let all = self.words.lock().unwrap().clone();
        let words = Wanted::new(all.clone());
        let mut leaks = Vec::new();
        // The token is the address itself: a provider must be told it.
        let for_providers = Wanted::new(all.into_iter().filter(|(_, field)| *field != "token"));
        for receipt in gateway.journal() {
            let body = receipt.body.expose().as_bytes();
            if let Some((word, field)) = for_providers.found(body) {
                leaks.push(format!("a provider was told the {field} {word:?}"));
            }
        }
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|end| end == "log")
                && let Some((word, field)) = words.found(&std::fs::read(&path).unwrap())
            {
                leaks.push(format!(
                    "the log {} holds the {field} {word:?}",
                    path.display()
                ));
            }
        }
        let mut bodies = self.bodies.lock().unwrap().clone();
        if footing == Footing::Embedded {
            bodies.extend(kept(folder).await);
        }
        for body in &bodies {
            if let Some((word, field)) = words.found(body) {
                let body = String::from_utf8_lossy(body);
                leaks.push(format!("the broker carried the {field} {word:?} in {body}"));
            }
        }
        leaks
    }
}

/// Lets SQLite keep a copy of every message that is queued there.
pub(crate) async fn keep(folder: &Path) {
    let pool = open(folder).await;
    for text in [
        "CREATE TABLE canary_messages (message TEXT NOT NULL)",
        "CREATE TRIGGER canary AFTER INSERT ON queue_messages BEGIN INSERT INTO canary_messages VALUES (NEW.message); END",
    ] {
        sqlx::query(text).execute(&pool).await.unwrap();
    }
    pool.close().await;
}

async fn kept(folder: &Path) -> Vec<Vec<u8>> {
    let pool = open(folder).await;
    let rows: Vec<(String,)> = sqlx::query_as("SELECT message FROM canary_messages")
        .fetch_all(&pool)
        .await
        .unwrap();
    pool.close().await;
    rows.into_iter().map(|(text,)| text.into_bytes()).collect()
}

async fn open(folder: &Path) -> sqlx::SqlitePool {
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(folder.join("db.sqlite"))
        .busy_timeout(std::time::Duration::from_secs(10));
    sqlx::SqlitePool::connect_with(options).await.unwrap()
}

fn walk(value: &Value, see: &mut impl FnMut(&str, &str)) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if let Value::String(text) = value {
                    see(name, text);
                }
                walk(value, see);
            }
        }
        Value::Array(items) => items.iter().for_each(|one| walk(one, see)),
        _ => {}
    }
}

/// What is looked for.
struct Wanted {
    /// Letters and digits only: found by taking the text apart, however many they are.
    plain: HashMap<String, &'static str>,
    other: Vec<(String, &'static str)>,
}

impl Wanted {
    fn new(words: impl IntoIterator<Item = (String, &'static str)>) -> Self {
        let (plain, other): (Vec<_>, Vec<_>) = words
            .into_iter()
            .partition(|(word, _)| word.chars().all(char::is_alphanumeric));
        Self {
            plain: plain.into_iter().collect(),
            other,
        }
    }

    /// The first of them in `text` that stands alone there: six digits inside of a longer number are no code.
    fn found(&self, text: &[u8]) -> Option<(&str, &'static str)> {
        let text = String::from_utf8_lossy(text);
        let mut parts = text.split(|c: char| !c.is_alphanumeric());
        let plain = parts.find_map(|part| self.plain.get_key_value(part));
        let alone = |word: &str| {
            text.match_indices(word).any(|(at, _)| {
                let before = text[..at].chars().next_back();
                let after = text[at + word.len()..].chars().next();
                [before, after]
                    .into_iter()
                    .flatten()
                    .all(|c| !c.is_alphanumeric())
            })
        };
        let other = || self.other.iter().find(|(word, _)| alone(word));
        plain
            .map(|(word, field)| (word.as_str(), *field))
            .or_else(|| other().map(|(word, field)| (word.as_str(), *field)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Canaries, Wanted};
    use serde_json::json;

    #[test]
    fn a_code_is_found_where_it_stands_alone() {
        let canaries = Canaries::default();
        canaries.remember(
            &json!({"code": "not_found", "deep": [{"match_code": "123456", "title": "short"}]}),
        );
        let words = canaries.words.lock().unwrap().clone();
        assert_eq!(words.len(), 1, "{words:?}");
        let words = Wanted::new(words.into_iter().chain([("two words".to_owned(), "title")]));
        assert!(words.found(b"{\"code\":\"123456\"}").is_some());
        assert!(words.found(b"code=123456 ").is_some());
        assert!(words.found(b"with two words in it").is_some());
        assert!(words.found(b"at 1712345678").is_none());
        assert!(words.found(b"12:00:00.123456Z").is_none());
    }
}
