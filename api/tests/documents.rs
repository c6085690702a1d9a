//! What is written down about the API is what it does: the OpenAPI document, the problem codes, the codes of faults.

#![expect(clippy::unwrap_used, reason = "a test may panic: that is its failing")]

use api::{App, BatchLimits, CODES, Options};
use axum::Router;
use axum::body::Body;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use shared::broker::Embedded;
use shared::clock::{SharedClock, SystemClock};
use shared::crypto::ServerSecret;
use shared::id::MessageId;
use shared::intake::Intake;
use shared::store::{Db, Handover, Store};
use shared::wait::Waits;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// An API on a database of its own.
struct Bed {
    folder: PathBuf,
    store: Store,
    router: Router,
    document: Value,
    key: String,
}

impl Bed {
    async fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("countersign-api-{}", MessageId::fresh(0)));
        std::fs::create_dir_all(&folder).unwrap();
        let url = format!("sqlite:{}", folder.join("db.sqlite").display());
        let db = Db::open(&url).await.unwrap();
        db.migrate().await.unwrap();
        let clock: SharedClock = Arc::new(SystemClock);
        let secret = Arc::new(ServerSecret::new(&ServerSecret::generate()).unwrap());
        let store = Store::new(db.clone(), Handover::channel().0);
        let key = secret.api_key();
        store
            .add_key(None, &key.hash, &["*".to_owned()], "test", clock.now())
            .await
            .unwrap();
        let app = App::new(Options {
            store: store.clone(),
            broker: Arc::new(Embedded::new(db, clock.clone())),
            clock: clock.clone(),
            secret,
            intake: Intake::start(&store, &clock, 1, &TaskTracker::new()),
            waits: Waits::default(),
            public_url: "http://sign.example".to_owned(),
            reply_queues: true,
            any_provider: false,
            batches: BatchLimits::default(),
            stop: CancellationToken::new(),
        });
        let (router, document) = api::router(app);
        Self {
            folder,
            store,
            router,
            document: serde_json::to_value(document).unwrap(),
            key: key.text.expose().to_owned(),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key));
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let request = request.body(body).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn end(self) {
        self.store.db().close().await;
        std::fs::remove_dir_all(self.folder).unwrap();
    }
}

/// Every operation of the document, as `get /path`.
fn operations(document: &Value) -> BTreeMap<String, &Value> {
    let mut all = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "put", "post", "delete", "patch"] {
            if let Some(operation) = item.get(method) {
                all.insert(format!("{method} {path}"), operation);
            }
        }
    }
    all
}

/// The rows of the tables in `text`, as their cells.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter_map(|line| {
        let inner = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(inner.split('|').map(str::trim).collect())
    })
}

/// What stands in backticks, where that is all.
fn quoted(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}

fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    rest.split_once("\n## ").map_or(rest, |(part, _)| part)
}

#[tokio::test]
async fn the_published_openapi_document_is_the_one_served() {
    let bed = Bed::new().await;
    let (status, served) = bed.call(Method::GET, "/openapi.json", None).await;
    assert_eq!((status, &served), (StatusCode::OK, &bed.document));
    let file = root().join("contracts/openapi.json");
    if std::env::var_os("COUNTERSIGN_WRITE_CONTRACTS").is_some() {
        let mut text = serde_json::to_string_pretty(&bed.document).unwrap();
        text.push('\n');
        std::fs::write(&file, text).unwrap();
    }
    let published: Value = serde_json::from_str(&read("contracts/openapi.json")).unwrap();
    assert!(
        published == bed.document,
        "run the test again with COUNTERSIGN_WRITE_CONTRACTS=1 if the change is meant"
    );
    bed.end().await;
}

#[tokio::test]
async fn every_operation_says_who_may_call_it_and_how_it_refuses() {
    let bed = Bed::new().await;
    let all = operations(&bed.document);
    assert!(all.len() > 25, "{}", all.len());
    for (name, operation) in &all {
        let scheme = &operation["security"][0];
        let answers = operation["responses"].as_object().unwrap();
        let wanted: &[&str] = if name.contains(" /v1/stores") {
            assert!(scheme.get("api_key").is_some(), "{name}");
            &["401", "403", "503"]
        } else if name.contains(" /v1/device/") {
            assert!(scheme.get("device_signature").is_some(), "{name}");
            &["401", "503"]
        } else {
            assert_eq!(operation["security"], json!([]), "{name}");
            &[]
        };
        for status in wanted {
            assert!(answers.contains_key(*status), "{name} {status}");
        }
        if operation.get("requestBody").is_some() {
            for status in ["400", "413", "422"] {
                assert!(answers.contains_key(status), "{name} {status}");
            }
        }
        for (status, answer) in answers {
            assert!(answer["description"].is_string(), "{name} {status}");
            if status.starts_with('4') || status.starts_with('5') {
                let content = answer["content"].as_object().unwrap();
                let kinds: Vec<_> = content.keys().collect();
                assert_eq!(kinds, ["application/problem+json"], "{name} {status}");
            }
        }
        let declared: BTreeSet<_> = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|one| one["in"] == "path")
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        let in_path: BTreeSet<_> = name
            .split('{')
            .skip(1)
            .map(|rest| rest.split_once('}').unwrap().0)
            .collect();
        assert_eq!(declared, in_path, "{name}");
    }
    let names: BTreeSet<_> = all
        .values()
        .map(|one| one["operationId"].as_str())
        .collect();
    assert_eq!(names.len(), all.len(), "{names:?}");
    assert_eq!(bed.document["info"]["license"]["name"], "Apache-2.0");
    assert!(bed.document["info"].get("contact").is_none());
    let text = bed.document.to_string();
    for part in text.split("\"$ref\":\"#").skip(1) {
        let (pointer, _) = part.split_once('"').unwrap();
        assert!(bed.document.pointer(pointer).is_some(), "{pointer}");
    }
    bed.end().await;
}

#[tokio::test]
async fn what_is_declared_is_what_a_stranger_meets() {
    let bed = Bed::new().await;
    for (name, operation) in operations(&bed.document) {
        let (method, path) = name.split_once(' ').unwrap();
        let method: Method = method.to_uppercase().parse().unwrap();
        let path = path.replace(['{', '}'], "");
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::empty()).unwrap();
        let response = bed.router.clone().oneshot(request).await.unwrap();
        let needs_key = operation["security"] != json!([]);
        let refused = response.status() == StatusCode::UNAUTHORIZED;
        assert_eq!(refused, needs_key, "{name} {}", response.status());
    }
    bed.end().await;
}

#[test]
fn every_problem_code_is_documented_and_no_other() {
    let text = read("docs/errors.md");
    let written: BTreeSet<_> = rows(section(&text, "Problem codes"))
        .filter_map(|row| Some((quoted(row[0])?, row[1].parse::<u16>().ok()?)))
        .collect();
    let ours: BTreeSet<_> = CODES
        .iter()
        .map(|(status, code, _)| (*code, *status))
        .collect();
    assert_eq!(written, ours);
}

/// The texts in quotes between `text`'s start, which follows an opening bracket, and the bracket that closes it.
fn literals(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut found) = (1, None, Vec::new());
    let bytes = text.as_bytes();
    for (n, byte) in bytes.iter().enumerate() {
        match (from, byte) {
            (Some(start), b'"') if bytes[n - 1] != b'\\' => {
                found.push(&text[start..n]);
                from = None;
            }
            (None, b'"') => from = Some(n + 1),
            (None, b'(') => depth += 1,
            (None, b')') => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            (Some(_) | None, _) => {}
        }
    }
    found
}

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|end| end == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// There is no list of them in the code: they are read from the places where faults are made.
#[test]
fn every_code_of_a_fault_is_documented_and_no_other() {
    let mut code = String::new();
    sources(&root().join("api/src"), &mut code);
    let mut ours = BTreeSet::new();
    for call in ["Fault::new(", "fault(", "one("] {
        for (_, rest) in code
            .match_indices(call)
            .map(|(at, _)| code.split_at(at + call.len()))
        {
            let word = literals(rest).into_iter().find(|text| {
                !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            });
            ours.extend(word);
        }
    }
    let text = read("docs/errors.md");
    let written: BTreeSet<_> = rows(section(&text, "Codes of faults"))
        .filter_map(|row| quoted(row[0]))
        .collect();
    assert_eq!(written, ours);
}

#[tokio::test]
async fn an_error_looks_as_the_page_says() {
    let bed = Bed::new().await;
    let wrong = json!({"name": "", "colour": "red"});
    let (status, problem) = bed.call(Method::POST, "/v1/stores", Some(&wrong)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let text = read("docs/errors.md");
    let (_, example) = text.split_once("```json\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let mut written: Value = serde_json::from_str(example).unwrap();
    let mut problem = problem;
    for one in [&mut written, &mut problem] {
        let faults = one["errors"].as_array_mut().unwrap();
        faults.sort_by_key(|fault| fault["pointer"].to_string());
    }
    assert_eq!(problem, written);
    bed.end().await;
}
