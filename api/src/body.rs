//! Reading a body: JSON, checked against the very schema that the OpenAPI document publishes, all faults at once.

use crate::problem::{Code, Fault, Problem};
use axum::extract::{FromRequest, Request};
use http::header;
use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind as Kind;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::any::TypeId;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use utoipa::ToSchema;

/// No request of ours is longer, but for a push with a batch of payments; batches of pushes have their own door.
const MAX_BODY: usize = 64 * 1024;
/// Room for as many payments as one push may ask for, with names and references of some length.
const MAX_PUSH: usize = 512 * 1024;

/// A valid body, read into its type.
pub(crate) struct Valid<T> {
    pub(crate) value: T,
}

/// A push: a body that is JSON, of which more is to be checked than a schema can say.
pub(crate) struct Sent(pub(crate) Value);

fn validator<T: ToSchema + 'static>() -> Option<Arc<Validator>> {
    static ALL: OnceLock<RwLock<HashMap<TypeId, Arc<Validator>>>> = OnceLock::new();
    let all = ALL.get_or_init(RwLock::default);
    let id = TypeId::of::<T>();
    if let Some(known) = all.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
        return Some(Arc::clone(known));
    }
    let mut parts = Vec::new();
    T::schemas(&mut parts);
    let parts: Map<String, Value> = parts
        .into_iter()
        .filter_map(|(name, schema)| Some((name, serde_json::to_value(schema).ok()?)))
        .collect();
    let mut root = serde_json::to_value(T::schema()).ok()?;
    root["components"] = json!({"schemas": parts});
    let made = Arc::new(jsonschema::validator_for(&root).ok()?);
    all.write()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(id, Arc::clone(&made));
    Some(made)
}

/// `pointer/name`, escaped as RFC 6901 wants it.
fn beneath(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn add_faults(error: &jsonschema::ValidationError<'_>, faults: &mut Vec<Fault>) {
    let at = error.instance_path().as_str();
    let one = |code: &str, detail: String| Fault::new(at, code, detail);
    match error.kind() {
        Kind::AdditionalProperties { unexpected } => {
            faults.extend(unexpected.iter().map(|name| {
                Fault::new(
                    &beneath(at, name),
                    "unknown_field",
                    "no such field is known",
                )
            }));
        }
        Kind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            faults.push(Fault::new(
                &beneath(at, name),
                "required",
                "this field is needed",
            ));
        }
        Kind::Type { .. } => faults.push(one("wrong_type", "another type is needed".to_owned())),
        Kind::MaxLength { limit } => {
            faults.push(one("too_long", format!("at most {limit} characters")));
        }
        Kind::MinLength { limit } => {
            faults.push(one("too_short", format!("at least {limit} characters")));
        }
        Kind::MaxItems { limit } => faults.push(one("too_many", format!("at most {limit}"))),
        Kind::MinItems { limit } => faults.push(one("too_few", format!("at least {limit}"))),
        Kind::Maximum { limit } => faults.push(one("too_large", format!("at most {limit}"))),
        Kind::Minimum { limit } => faults.push(one("too_small", format!("at least {limit}"))),
        Kind::Enum { options } => faults.push(one("unknown_word", format!("one of {options}"))),
        Kind::Pattern { pattern } => {
            faults.push(one("wrong_form", format!("must match {pattern}")));
        }
        // An optional object is `null` or the object: the faults are those of the form that was meant.
        Kind::OneOfNotValid { context } | Kind::AnyOf { context } => {
            let other_type = |e: &jsonschema::ValidationError<'_>| {
                matches!(e.kind(), Kind::Type { .. }) && e.instance_path().as_str() == at
            };
            let meant = context.iter().find(|form| !form.iter().any(other_type));
            match meant {
                Some(form) => form.iter().for_each(|inner| add_faults(inner, faults)),
                None => faults.push(one("wrong_type", "another type is needed".to_owned())),
            }
        }
        // Everything else a schema can say; the pointer tells where.
        _ => faults.push(one("invalid", "this does not fit the schema".to_owned())),
    }
}

/// Characters that could make a person read something else than what is there.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{61c}')
}

fn walk(value: &Value, pointer: &str, faults: &mut Vec<Fault>) {
    match value {
        Value::String(text) if text.chars().any(is_deceptive) => faults.push(Fault::new(
            pointer,
            "control_character",
            "control, invisible and direction-changing characters are refused",
        )),
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                walk(item, &format!("{pointer}/{n}"), faults);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                // PEM and JSON documents hold line breaks; nobody is shown them.
                if !matches!(name.as_str(), "private_key" | "service_account") {
                    walk(field, &beneath(pointer, name), faults);
                }
            }
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// All faults of `sent` as a `T`.
pub(crate) fn faults_of<T: ToSchema + 'static>(sent: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    if let Some(validator) = validator::<T>() {
        for error in validator.iter_errors(sent) {
            add_faults(&error, &mut faults);
        }
    }
    walk(sent, "", &mut faults);
    faults
}

/// Reads at most `MAX_BODY` bytes.
pub(crate) async fn bytes_of(request: Request) -> Result<bytes::Bytes, Problem> {
    at_most(MAX_BODY, request).await
}

async fn at_most(length: usize, request: Request) -> Result<bytes::Bytes, Problem> {
    axum::body::to_bytes(request.into_body(), length)
        .await
        .map_err(|_| Code::TooLarge.into())
}

fn json_of(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        Problem::new(Code::MalformedJson).detail(place)
    })
}

/// Reads a `T` from JSON that has no `faults`.
pub(crate) fn typed<T: DeserializeOwned>(sent: Value, faults: Vec<Fault>) -> Result<T, Problem> {
    if !faults.is_empty() {
        return Err(Problem::faults(faults));
    }
    // The schema let through what the type does not take, for example an identifier of another kind.
    serde_json::from_value(sent).map_err(|error| Problem::fault("", "invalid", &error.to_string()))
}

/// Reads a valid `T` from bytes.
pub(crate) fn read<T: ToSchema + DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, Problem> {
    let sent = json_of(bytes)?;
    let faults = faults_of::<T>(&sent);
    typed(sent, faults)
}

impl<S: Send + Sync, T: ToSchema + DeserializeOwned + 'static> FromRequest<S> for Valid<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        must_be_json(&request)?;
        let value = read(&bytes_of(request).await?)?;
        Ok(Self { value })
    }
}

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        must_be_json(&request)?;
        json_of(&at_most(MAX_PUSH, request).await?).map(Self)
    }
}

fn must_be_json(request: &Request) -> Result<(), Problem> {
    let media = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_ascii_lowercase());
    if media.as_deref() == Some("application/json") {
        Ok(())
    } else {
        Err(Code::UnsupportedMedia.into())
    }
}
