//! Send a batch: read while it comes, written in parts of up to a thousand lines, each in one transaction.
//!
//! A client that goes away takes the handler with it: what was written stays, the batch stays `receiving`, and the same upload under the same
//! `Idempotency-Key` goes on from there.

use super::lines::{Format, Lines};
use super::row::{BatchLine, faults_of_check, faults_of_line, row_of};
use super::show::{BatchView, view};
use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Code, Fault, Problem};
use crate::routes::pushes::create::key_of;
use crate::routes::{Query, bad_parameter};
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value, json};
use shared::crypto::sha256_text;
use shared::id::StoreId;
use shared::store::{Begun, Db, NewBatch, NewRow, PART, Refusal, RowCheck, Took, Upload};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use utoipa::ToSchema;

/// How long the lines of one transaction are at most.
const PART_BYTES: i64 = 1024 * 1024;
/// How many there are while somebody waits for an interactive push: on SQLite nobody else writes meanwhile.
const STEP: usize = 32;
const STEP_OF_SERVERS: usize = 64;
/// How long an upload may be silent.
const SILENCE: Duration = Duration::from_mins(1);
/// How often the database is asked once more before an upload fails with it.
const ATTEMPTS: u32 = 10;
const AGAIN: Duration = Duration::from_millis(500);
/// Every so many parts a look at the backlog; how long an upload is held when it is full.
const LOOK_EVERY: usize = 16;
const HELD: u32 = 40;
/// How many times as long as a part has taken an upload rests on one processor while somebody waits for an interactive push.
const REST: u32 = 16;
/// When to come back to a full backlog.
const RETRY_AFTER: u32 = 15;
/// How many faults the answer to `validate_only` shows.
const SHOWN: usize = 1_000;

/// What is said of the batch as a whole.
struct Parameters {
    name: String,
    max_per_second: Option<i64>,
    validate_only: bool,
    atomic: bool,
    /// For lines that leave them out.
    defaults: Map<String, Value>,
}

fn flag(query: &Query, name: &str) -> Result<bool, Problem> {
    match query.0.get(name).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(bad_parameter(&format!("{name} is true or false"))),
    }
}

fn parameters(query: &Query) -> Result<Parameters, Problem> {
    let mut defaults = Map::new();
    for (name, value) in &query.0 {
        match name.as_str() {
            "name" | "max_per_second" | "validate_only" | "atomic" => {}
            "relying_party" | "kind" | "title" | "message" | "expires_in" => {
                defaults.insert(name.clone(), json!(value));
            }
            _ => return Err(bad_parameter(&format!("there is no parameter {name}"))),
        }
    }
    let name = query.0.get("name").cloned().unwrap_or_default();
    if name.chars().count() > 100 || name.chars().any(char::is_control) {
        return Err(bad_parameter(
            "name has at most 100 characters, and no control characters",
        ));
    }
    let max_per_second = query
        .0
        .get("max_per_second")
        .map(|text| {
            let rate = text
                .parse()
                .ok()
                .filter(|rate| (1..=1_000_000).contains(rate));
            rate.ok_or_else(|| bad_parameter("max_per_second is a number from 1 to 1000000"))
        })
        .transpose()?;
    // A default that no line could do with is told once, not with every line.
    let mut probe = json!({"user": {"external_id": "x"}, "relying_party": "x", "title": "x"});
    if let Some(probe) = probe.as_object_mut() {
        probe.extend(defaults.clone());
    }
    let faults = faults_of_line(&probe);
    if !faults.is_empty() {
        return Err(Problem::faults(faults));
    }
    Ok(Parameters {
        name,
        max_per_second,
        validate_only: flag(query, "validate_only")?,
        atomic: flag(query, "atomic")?,
        defaults,
    })
}

fn header_word<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let text = headers.get(name)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or_default().trim())
}

/// How the lines are written, and are they packed?
fn format_of(headers: &HeaderMap) -> Result<(Format, bool), Problem> {
    let refuse = |detail: &str| Problem::new(Code::UnsupportedMedia).detail(detail);
    let format = match header_word(headers, &header::CONTENT_TYPE) {
        Some("application/x-ndjson" | "application/ndjson") => Format::Ndjson,
        Some("text/csv") => Format::Csv,
        Some(_) | None => return Err(refuse("a batch is application/x-ndjson or text/csv")),
    };
    let gzip = match header_word(headers, &header::CONTENT_ENCODING) {
        None | Some("identity") => false,
        Some("gzip") => true,
        Some(_) => return Err(refuse("a batch is packed with gzip or not at all")),
    };
    Ok((format, gzip))
}

/// Some hundred lines.
#[derive(Default)]
struct Part {
    rows: Vec<NewRow>,
    faulty: Vec<Refusal>,
    first: i64,
    last: i64,
    bytes: i64,
}

impl Part {
    fn add(&mut self, line: Result<NewRow, Refusal>) {
        let number = match &line {
            Ok(row) => row.line,
            Err(refusal) => refusal.line,
        };
        if self.first == 0 {
            self.first = number;
        }
        self.last = number;
        match line {
            Ok(row) => {
                self.bytes += row.bytes;
                self.rows.push(row);
            }
            Err(refusal) => self.faulty.push(refusal),
        }
    }

    fn is_full(&self, most: usize) -> bool {
        self.rows.len() + self.faulty.len() >= most || self.bytes >= PART_BYTES
    }

    fn is_empty(&self) -> bool {
        self.first == 0
    }
}

/// What would become of a batch.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct BatchCheck {
    /// The last line that was read.
    lines: i64,
    /// Lines that would be taken.
    valid: i64,
    /// Lines with faults.
    refused: i64,
    /// Lines whose key has made a push before, with the same request.
    duplicates: i64,
    /// The first thousand lines with faults.
    errors: Vec<CheckedLine>,
}

/// A line with faults.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CheckedLine {
    /// Its number.
    line: i64,
    /// The faults.
    #[schema(value_type = Vec<Fault>)]
    errors: Value,
}

impl BatchCheck {
    fn refuse(&mut self, line: i64, faults: &str) {
        self.refused += 1;
        if self.errors.len() < SHOWN {
            let errors = serde_json::from_str(faults).unwrap_or_default();
            self.errors.push(CheckedLine { line, errors });
        }
    }

    async fn add(&mut self, app: &App, store: &StoreId, part: Part) -> Result<(), Problem> {
        let checks = app.store.check_rows(store, &part.rows).await?;
        for one in &part.faulty {
            self.refuse(one.line, &one.faults);
        }
        for (row, check) in part.rows.iter().zip(&checks) {
            match (check, faults_of_check(check)) {
                (RowCheck::Duplicate(_), _) => self.duplicates += 1,
                (_, Some(faults)) => self.refuse(row.line, &faults),
                (_, None) => self.valid += 1,
            }
        }
        self.lines = part.last;
        self.errors.sort_by_key(|one| one.line);
        Ok(())
    }
}

/// Where parts go.
enum Sink {
    /// To the writer, which has words of its own for a failure.
    Writer(mpsc::Sender<Part>),
    /// Nowhere.
    Check(StoreId, BatchCheck),
}

impl Sink {
    async fn put(&mut self, app: &App, part: Part) -> Result<(), Problem> {
        match self {
            Self::Writer(to) => {
                let gone = |_| Problem::new(Code::Unavailable).retry_after(1);
                to.send(part).await.map_err(gone)
            }
            Self::Check(store, check) => check.add(app, store, part).await,
        }
    }
}

/// Reads the body and hands over parts.
async fn read(
    app: &App,
    request: Request,
    (format, gzip): (Format, bool),
    defaults: &Map<String, Value>,
    to: &mut Sink,
) -> Result<(), Problem> {
    let mut body = request.into_body().into_data_stream();
    let mut lines = Lines::new(format, gzip);
    let (mut found, mut part) = (Vec::new(), Part::default());
    let step = match app.store.db() {
        Db::Sqlite(_) => STEP,
        Db::Postgres(_) => STEP_OF_SERVERS,
    };
    let cut =
        || Problem::new(Code::UploadCut).detail("send it again with the same Idempotency-Key");
    loop {
        let stop = app.stop.clone();
        let next = tokio::select! {
            next = tokio::time::timeout(SILENCE, body.next()) => next.map_err(|_| cut())?,
            () = stop.cancelled() => return Err(Problem::new(Code::Unavailable).retry_after(1)),
        };
        let end = next.is_none();
        let bytes = next.transpose().map_err(|_| cut())?.unwrap_or_default();
        let mut portions = bytes.chunks(lines.portion());
        loop {
            match portions.next() {
                Some(portion) => lines.feed(portion, &mut found)?,
                None if end => lines.finish(&mut found)?,
                None => break,
            }
            for line in found.drain(..) {
                part.add(row_of(line, defaults, app.clock.now()));
                let asked = app.store.courtesy().is_asked();
                if part.is_full(if asked { step } else { PART }) {
                    to.put(app, std::mem::take(&mut part)).await?;
                }
            }
            if end {
                break;
            }
        }
        if end {
            break;
        }
    }
    if !part.is_empty() {
        to.put(app, part).await?;
    }
    Ok(())
}

/// Is there room for more?
async fn room(app: &App, store: &StoreId) -> Result<(), Problem> {
    let waiting = app.store.waiting(store).await?;
    let limits = &app.batches;
    let full = if waiting.of_store >= limits.waiting_of_store {
        "pushes of this store"
    } else if waiting.rows >= limits.waiting {
        "pushes"
    } else if waiting.bytes >= limits.waiting_bytes {
        "bytes"
    } else {
        return Ok(());
    };
    Err(Problem::new(Code::BacklogFull)
        .detail(format!("too many {full} wait to be sent"))
        .retry_after(RETRY_AFTER))
}

fn count(took: &Took) {
    for (result, n) in [
        ("accepted", took.new),
        ("again", took.again),
        ("duplicate", took.duplicates),
        ("refused", took.refused),
    ] {
        metrics::counter!("countersign_batch_lines_total", "result" => result).increment(n as u64);
    }
}

/// Writes parts until there are no more.
async fn write(app: App, upload: Upload, mut from: mpsc::Receiver<Part>) -> Result<(), Problem> {
    let store = &upload.batch.store;
    let mut parts = 0_usize;
    while let Some(part) = from.recv().await {
        parts += 1;
        let mut held = 0;
        while parts.is_multiple_of(LOOK_EVERY)
            && let Err(full) = room(&app, store).await
        {
            // The sender waits with us for a while: it need not send everything again.
            if held >= HELD {
                return Err(full);
            }
            held += 1;
            tokio::time::sleep(AGAIN).await;
        }
        let mut attempts = 0;
        let began = Instant::now();
        let took = loop {
            let lines = (part.first, part.last);
            let now = app.clock.now();
            let took = app
                .store
                .take_rows(
                    &upload,
                    &part.rows,
                    &part.faulty,
                    lines,
                    faults_of_check,
                    now,
                )
                .await;
            match took {
                Ok(took) => break took,
                Err(error) if error.is_permanent() || attempts >= ATTEMPTS => {
                    return Err(error.into());
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
            attempts += 1;
        };
        match took {
            Some(took) => count(&took),
            None => return Err(overtaken(&app, &upload).await),
        }
        // The sender is not in a hurry where somebody is.
        app.store.courtesy().rest(began.elapsed(), REST).await;
    }
    Ok(())
}

/// Why an upload may not add lines any more.
async fn overtaken(app: &App, upload: &Upload) -> Problem {
    let batch = &upload.batch;
    match app.store.batch(&batch.store, &batch.id).await {
        Ok(Some(now)) if now.state.is_terminal() => {
            Problem::new(Code::WrongState).with("state", now.state.as_str())
        }
        Ok(_) => Problem::new(Code::IdempotencyRunning)
            .detail("another upload of this batch has begun after this one"),
        Err(error) => error.into(),
    }
}

/// Send a batch: NDJSON with a `BatchLine` a line, or CSV with a header row, of any length, packed with gzip or not. It is read while it
/// comes, and sent while it comes, in fair turns with the batches of other stores, behind everything that somebody waits for. A line with
/// faults is passed over and told in `errors.ndjson`. An upload that was cut is sent again as a whole with the same `Idempotency-Key`: nobody
/// is asked twice.
#[utoipa::path(post, path = "/v1/stores/{store}/batches", tag = "batches",
    params(("store" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "Takes up the batch of this key where its upload was cut; without one it cannot be taken up"),
        ("Content-Encoding" = Option<String>, Header, description = "`gzip`, where it is packed"),
        ("name" = Option<String>, Query, description = "What people call it"),
        ("max_per_second" = Option<i64>, Query, description = "Send no more pushes a second than this"),
        ("validate_only" = Option<bool>, Query, description = "Only say what would become of it; writes nothing"),
        ("atomic" = Option<bool>, Query, description = "Send nothing before all lines are there, and nothing at all if one has faults"),
        ("relying_party" = Option<String>, Query, description = "For lines that leave it out"),
        ("kind" = Option<String>, Query, description = "For lines that leave it out"),
        ("title" = Option<String>, Query, description = "For lines that leave it out"),
        ("message" = Option<String>, Query, description = "For lines that leave it out"),
        ("expires_in" = Option<String>, Query, description = "For lines that leave it out")),
    request_body(content((BatchLine = "application/x-ndjson"), (String = "text/csv"))),
    responses((status = 202, body = BatchView, description = "All lines were read"),
        (status = 200, body = BatchCheck, description = "With `validate_only`"),
        (status = 409, body = Problem), (status = 429, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    query: Query,
    request: Request,
) -> Result<Response, Problem> {
    let store = caller.may(&app, &store, "pushes:write").await?;
    let key = key_of(request.headers())?;
    let format = format_of(request.headers())?;
    let parameters = parameters(&query)?;
    let place = app.uploads.clone().try_acquire_owned().map_err(|_| {
        Problem::new(Code::BacklogFull)
            .detail("too many uploads at once")
            .retry_after(RETRY_AFTER)
    })?;
    let defaults = &parameters.defaults;
    if parameters.validate_only {
        let mut sink = Sink::Check(store, BatchCheck::default());
        read(&app, request, format, defaults, &mut sink).await?;
        return Ok(match sink {
            Sink::Check(_, check) => Json(check).into_response(),
            Sink::Writer(_) => Problem::new(Code::Internal).into_response(),
        });
    }
    room(&app, &store).await?;
    let asked = json!({"name": parameters.name, "max_per_second": parameters.max_per_second, "atomic": parameters.atomic,
        "defaults": defaults});
    let new = NewBatch {
        store,
        name: parameters.name.clone(),
        idempotency: key.map(|key| (key, sha256_text(asked.to_string().as_bytes()))),
        atomic: parameters.atomic,
        max_per_second: parameters.max_per_second,
    };
    let upload = match app.store.begin_upload(&new, app.clock.now()).await? {
        Begun::Open(upload) => upload,
        Begun::KeyReused => return Err(Code::IdempotencyReused.into()),
        Begun::Replayed(row) => {
            // The sender wants to get rid of its body before it reads the answer.
            let mut body = request.into_body().into_data_stream();
            while let Ok(Some(Ok(_))) = tokio::time::timeout(SILENCE, body.next()).await {}
            let mut response =
                (StatusCode::ACCEPTED, Json(view(&app, &row).await?)).into_response();
            let (name, value) = (
                HeaderName::from_static("idempotent-replayed"),
                HeaderValue::from_static("true"),
            );
            response.headers_mut().insert(name, value);
            return Ok(response);
        }
    };
    // One part is written while the next one is read.
    let (to, from) = mpsc::channel(1);
    let writer = tokio::spawn(write(app.clone(), upload.clone(), from));
    let mut sink = Sink::Writer(to);
    let end = read(&app, request, format, defaults, &mut sink).await;
    drop(sink);
    let written = writer.await.map_err(|_| Problem::new(Code::Internal))?;
    written.and(end)?;
    drop(place);
    let ended = app.store.end_upload(&upload, app.clock.now()).await?;
    let Some(row) = ended else {
        return Err(overtaken(&app, &upload).await);
    };
    let mut response = (StatusCode::ACCEPTED, Json(view(&app, &row).await?)).into_response();
    let to = format!("/v1/stores/{}/batches/{}", row.store, row.id);
    if let Ok(to) = HeaderValue::from_str(&to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    Ok(response)
}
