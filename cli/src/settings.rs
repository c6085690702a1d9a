//! Settings: defaults, then a TOML file, then the environment. Every fault is told at once, each with its key.

use crate::telemetry;
pub use api::BatchLimits;
use shared::crypto::ServerSecret;
use shared::secret::Secret;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// One key that may be set.
struct Key {
    name: &'static str,
    default: Option<&'static str>,
    help: &'static str,
}

const fn key(name: &'static str, default: Option<&'static str>, help: &'static str) -> Key {
    Key {
        name,
        default,
        help,
    }
}

/// Every key, in the order of `docs/settings.md`, which a test compares.
const KEYS: &[Key] = &[
    key(
        "server.listen",
        Some("127.0.0.1:7070"),
        "Where the API listens.",
    ),
    key(
        "server.public_url",
        Some("http://127.0.0.1:7070"),
        "How the outside reaches the API: the beginning of process links.",
    ),
    key(
        "server.secret",
        None,
        "The server's secret, at least 43 characters, the same in every process; `countersign secret` makes one.",
    ),
    key(
        "server.secret_file",
        None,
        "A file that holds the server's secret.",
    ),
    key(
        "database.url",
        Some("sqlite:countersign.db"),
        "`sqlite:PATH` or `postgres://…`.",
    ),
    key(
        "queue.url",
        Some("embedded:"),
        "`embedded:` (needs SQLite, one process) or `amqp://…`, `amqps://…`.",
    ),
    key(
        "queue.prefix",
        Some("cs"),
        "What the names of all queues and exchanges on RabbitMQ begin with.",
    ),
    key(
        "push.extra_ca_file",
        None,
        "A PEM file of certificate authorities to trust towards push providers, beside the system's.",
    ),
    key(
        "push.any_provider",
        Some("false"),
        "`true`: push policies may name providers other than Apple and Google, such as a simulator or a proxy.",
    ),
    key(
        "push.fcm_per_minute",
        Some("600000"),
        "How many messages Google lets a Firebase project send in a minute. Workers share four fifths of it.",
    ),
    key(
        "batches.max_waiting",
        Some("5000000"),
        "How many pushes of batches may wait to be sent; beyond that an upload gets 429.",
    ),
    key(
        "batches.max_waiting_per_store",
        Some("2000000"),
        "The same for one store.",
    ),
    key(
        "batches.max_waiting_bytes",
        Some("4000000000"),
        "How long the lines that wait may be together.",
    ),
    key(
        "batches.max_uploads",
        Some("8"),
        "How many uploads one process reads at once; beyond that they get 429.",
    ),
    key(
        "probes.listen",
        None,
        "Where `/livez`, `/readyz` and `/metrics` are served apart from the API; for processes without it.",
    ),
    key(
        "log.filter",
        Some("info"),
        "What is logged, as `RUST_LOG` writes it.",
    ),
    key("log.format", Some("text"), "`text` or `json`."),
];

/// What a process runs with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// The beginning of process links.
    pub public_url: String,
    /// The server's secret.
    pub secret: Secret,
    /// `sqlite:` or `postgres:`.
    pub database_url: Secret,
    /// `embedded:` or `amqp:`.
    pub queue_url: Secret,
    /// What the names of queues begin with.
    pub queue_prefix: String,
    /// Certificate authorities to trust towards providers, PEM.
    pub extra_ca_pem: Option<String>,
    /// May push policies name any provider?
    pub any_provider: bool,
    /// What Google lets a Firebase project send in a minute.
    pub fcm_per_minute: u32,
    /// How much of batches may wait and come at once.
    pub batches: BatchLimits,
    /// Where probes are served apart from the API.
    pub probes: Option<SocketAddr>,
    /// What is logged.
    pub log_filter: String,
    /// JSON instead of text.
    pub log_json: bool,
}

/// What is wrong with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, or the file.
    pub key: String,
    /// What is wrong.
    pub what: String,
}

/// A value and where it came from.
#[derive(Debug, Clone)]
struct Value {
    text: String,
    origin: String,
}

type Values = BTreeMap<&'static str, Value>;

/// The environment, as a function, so that tests bring their own.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

fn known(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// How many single letters apart two words are.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(before + 1);
        }
    }
    row[b.len()]
}

fn unknown(name: &str) -> String {
    let nearest = KEYS.iter().min_by_key(|key| distance(key.name, name));
    match nearest.filter(|key| distance(key.name, name) <= 4) {
        Some(key) => format!("no such key; did you mean {}?", key.name),
        None => "no such key".to_owned(),
    }
}

fn from_file(path: &Path, values: &mut Values, faults: &mut Vec<Fault>) {
    let origin = path.display().to_string();
    let mut fault = |key: &str, what: String| {
        faults.push(Fault {
            key: key.to_owned(),
            what,
        });
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return fault(&origin, format!("cannot be read: {error}")),
    };
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        // The message shows the line; a secret could stand there.
        Err(error) => {
            let at = error.span().map_or(0, |span| {
                text.get(..span.start)
                    .map_or(0, |before| before.lines().count())
            });
            return fault(&origin, format!("is not TOML, near line {}", at.max(1)));
        }
    };
    for (section, fields) in table {
        let toml::Value::Table(fields) = fields else {
            fault(&section, "must be a section".to_owned());
            continue;
        };
        for (field, value) in fields {
            let name = format!("{section}.{field}");
            let Some(key) = known(&name) else {
                fault(&name, unknown(&name));
                continue;
            };
            let toml::Value::String(text) = value else {
                fault(&name, "must be a text in quotes".to_owned());
                continue;
            };
            let origin = origin.clone();
            values.insert(key.name, Value { text, origin });
        }
    }
}

fn from_environment(environment: Environment<'_>, values: &mut Values) {
    let also = [
        ("DATABASE_URL", "database.url"),
        ("AMQP_URL", "queue.url"),
        ("RUST_LOG", "log.filter"),
    ];
    let own = KEYS.iter().map(|key| {
        let name = key.name.to_uppercase().replace('.', "__");
        (format!("COUNTERSIGN_{name}"), key.name)
    });
    let all = also
        .into_iter()
        .map(|(variable, name)| (variable.to_owned(), name))
        .chain(own);
    for (variable, name) in all {
        if let Some(text) = environment(&variable) {
            values.insert(
                name,
                Value {
                    text,
                    origin: variable,
                },
            );
        }
    }
}

impl Settings {
    /// Reads them all. `file`: one that must exist. `variables`: the names of all variables, of which none may be a setting that is not known.
    pub fn read(
        file: Option<&Path>,
        environment: Environment<'_>,
        variables: &[String],
    ) -> Result<Self, Vec<Fault>> {
        let (mut values, mut faults) = (Values::new(), Vec::new());
        for variable in variables {
            // Two underscores: a setting, and not one of the commands' own variables.
            let name = variable
                .strip_prefix("COUNTERSIGN_")
                .filter(|name| name.contains("__"));
            let name = name.map(|name| name.to_lowercase().replace("__", "."));
            if let Some(name) = name.filter(|name| known(name).is_none()) {
                faults.push(Fault {
                    key: variable.clone(),
                    what: unknown(&name),
                });
            }
        }
        let file = file
            .map(Path::to_path_buf)
            .or_else(|| environment("COUNTERSIGN_CONFIG").map(PathBuf::from))
            .or_else(|| Some(PathBuf::from("countersign.toml")).filter(|path| path.exists()));
        if let Some(path) = &file {
            from_file(path, &mut values, &mut faults);
        }
        from_environment(environment, &mut values);
        Self::check(&values, faults)
    }

    #[expect(clippy::too_many_lines, reason = "one key after the other")]
    fn check(values: &Values, mut faults: Vec<Fault>) -> Result<Self, Vec<Fault>> {
        let mut fault = |key: &str, what: &str| {
            let origin = values
                .get(key)
                .map_or_else(String::new, |value| format!(" (from {})", value.origin));
            faults.push(Fault {
                key: key.to_owned(),
                what: format!("{what}{origin}"),
            });
        };
        let text = |name: &str| {
            let default = known(name).and_then(|key| key.default);
            values
                .get(name)
                .map(|value| value.text.clone())
                .or_else(|| default.map(str::to_owned))
                .unwrap_or_default()
        };
        let listen = text("server.listen").parse().unwrap_or_else(|_| {
            fault(
                "server.listen",
                "must be an address and a port, such as 127.0.0.1:7070",
            );
            SocketAddr::from(([127, 0, 0, 1], 7070))
        });
        let public_url = text("server.public_url");
        if !public_url.starts_with("http://") && !public_url.starts_with("https://") {
            fault("server.public_url", "must begin with http:// or https://");
        }
        let mut secret = text("server.secret");
        if let Some(path) = values.get("server.secret_file") {
            match std::fs::read_to_string(&path.text) {
                Ok(read) => read.trim().clone_into(&mut secret),
                Err(error) => fault("server.secret_file", &format!("cannot be read: {error}")),
            }
        }
        if secret.len() < ServerSecret::MIN_LENGTH {
            let what = "must be set, to at least 43 characters; `countersign secret` makes one";
            fault("server.secret", what);
        }
        let (database_url, queue_url) = (text("database.url"), text("queue.url"));
        let sqlite = database_url.starts_with("sqlite:");
        if !sqlite
            && !database_url.starts_with("postgres://")
            && !database_url.starts_with("postgresql://")
        {
            fault("database.url", "must begin with sqlite: or postgres://");
        }
        if queue_url.starts_with("embedded:") {
            if !sqlite {
                fault(
                    "queue.url",
                    "embedded: keeps its queues in SQLite; use amqp: with PostgreSQL",
                );
            }
        } else if !queue_url.starts_with("amqp://") && !queue_url.starts_with("amqps://") {
            fault(
                "queue.url",
                "must begin with embedded:, amqp:// or amqps://",
            );
        }
        let queue_prefix = text("queue.prefix");
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if queue_prefix.is_empty() || queue_prefix.len() > 40 || !queue_prefix.bytes().all(sound) {
            fault(
                "queue.prefix",
                "must be 1 to 40 letters, digits, hyphens and underscores",
            );
        }
        let extra_ca_pem = values.get("push.extra_ca_file").and_then(|path| {
            std::fs::read_to_string(&path.text)
                .inspect_err(|error| {
                    fault("push.extra_ca_file", &format!("cannot be read: {error}"));
                })
                .ok()
        });
        let any_provider = text("push.any_provider");
        if !matches!(any_provider.as_str(), "true" | "false") {
            fault("push.any_provider", "must be true or false");
        }
        let mut number = |name: &str| {
            let read = text(name).parse::<i64>().ok().filter(|n| *n > 0);
            if read.is_none() {
                fault(name, "must be a number above 0");
            }
            read.unwrap_or(1)
        };
        let fcm_per_minute = u32::try_from(number("push.fcm_per_minute")).unwrap_or(u32::MAX);
        let batches = BatchLimits {
            waiting: number("batches.max_waiting"),
            waiting_of_store: number("batches.max_waiting_per_store"),
            waiting_bytes: number("batches.max_waiting_bytes"),
            uploads: usize::try_from(number("batches.max_uploads").min(10_000)).unwrap_or(1),
        };
        let probes = values.get("probes.listen").and_then(|value| {
            let parsed = value.text.parse().ok();
            if parsed.is_none() {
                fault(
                    "probes.listen",
                    "must be an address and a port, such as 127.0.0.1:7071",
                );
            }
            parsed
        });
        if !telemetry::is_filter(&text("log.filter")) {
            fault(
                "log.filter",
                "is not a filter, such as info or countersign=debug,warn",
            );
        }
        let log_format = text("log.format");
        if !matches!(log_format.as_str(), "text" | "json") {
            fault("log.format", "must be text or json");
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            listen,
            public_url,
            secret: Secret::new(secret),
            database_url: Secret::new(database_url),
            queue_url: Secret::new(queue_url),
            queue_prefix,
            extra_ca_pem,
            any_provider: any_provider == "true",
            fcm_per_minute,
            batches,
            probes,
            log_filter: text("log.filter"),
            log_json: log_format == "json",
        })
    }

    /// The keys with their defaults and meanings, as `docs/settings.md` lists them.
    pub fn table() -> String {
        let row = |key: &Key| {
            let default = key
                .default
                .map_or_else(String::new, |text| format!("`{text}`"));
            let variable = key.name.to_uppercase().replace('.', "__");
            format!(
                "| `{}` | `COUNTERSIGN_{variable}` | {default} | {} |",
                key.name, key.help
            )
        };
        KEYS.iter().map(row).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;
    use std::path::Path;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    fn with(name: &'static str, value: &'static str) -> impl Fn(&str) -> Option<String> {
        let secret = "s".repeat(43);
        move |asked| match asked {
            "COUNTERSIGN_SERVER__SECRET" => Some(secret.clone()),
            _ if asked == name => Some(value.to_owned()),
            _ => None,
        }
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_key_and_no_secret() {
        let path = std::env::temp_dir().join(format!("countersign-{}.toml", std::process::id()));
        std::fs::write(
            &path,
            "[server]\nlisten = \"nowhere\"\nlisen = \"x\"\nsecret = \"canary\"\n[queue]\nurl = 5\n[log]\nformat = \"xml\"\n",
        )
        .unwrap();
        let faults = Settings::read(
            Some(&path),
            &nothing,
            &["COUNTERSIGN_SERVER__LISEN".to_owned()],
        )
        .unwrap_err();
        std::fs::remove_file(&path).unwrap();
        let mut keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "COUNTERSIGN_SERVER__LISEN",
                "log.format",
                "queue.url",
                "server.lisen",
                "server.listen",
                "server.secret"
            ]
        );
        let all = format!("{faults:?}");
        assert!(
            all.contains("did you mean server.listen?") && !all.contains("canary"),
            "{all}"
        );
    }

    #[test]
    fn the_environment_wins_and_pairs_are_checked() {
        let settings =
            Settings::read(None, &with("DATABASE_URL", "sqlite:/tmp/x.db"), &[]).unwrap();
        assert_eq!(settings.database_url.expose(), "sqlite:/tmp/x.db");
        let faults = Settings::read(None, &with("DATABASE_URL", "postgres://u:canary@h/d"), &[])
            .unwrap_err();
        assert_eq!(faults[0].key, "queue.url");
        assert!(!format!("{faults:?}").contains("canary"));
    }

    #[test]
    fn a_file_that_must_exist_must_exist() {
        let faults =
            Settings::read(Some(Path::new("/nowhere.toml")), &with("", ""), &[]).unwrap_err();
        assert_eq!(faults[0].key, "/nowhere.toml");
    }

    #[test]
    fn settings_cannot_be_printed_with_their_secrets() {
        let settings = Settings::read(None, &with("AMQP_URL", "amqp://u:canary@h"), &[]).unwrap();
        let shown = format!("{settings:?}");
        assert!(
            !shown.contains("canary") && !shown.contains("sss"),
            "{shown}"
        );
    }
}
