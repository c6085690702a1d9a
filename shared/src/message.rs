//! What goes over the broker: versioned, identifiers only, no secret and no text that a person reads.

use crate::clock::Millis;
use crate::domain::InstanceState;
use crate::id::{ApprovalId, ChunkId, DeliveryId, EventId, InstanceId, MessageId, PushId, StoreId};
use serde::{Deserialize, Serialize};

/// The queue class a job belongs to. Interactive jobs never wait behind bulk ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Somebody is waiting at a screen.
    Interactive,
    /// A batch.
    Bulk,
}

impl Lane {
    /// The word in routing keys and rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }
}

impl std::str::FromStr for Lane {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "interactive" => Ok(Self::Interactive),
            "bulk" => Ok(Self::Bulk),
            _ => Err(()),
        }
    }
}

/// One delay tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Retry {
    /// How long the tier holds a message.
    pub seconds: u32,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// To the workers.
    Jobs(Lane),
    /// To the workers, after a delay.
    Later(Retry, Lane),
    /// A completion event; the key is `v1.<store>.<kind>.<event>`.
    Status(String),
    /// A copy of a completion event for third parties, same key, on the exchange that their queues are bound to.
    External(String),
    /// Straight to one named queue: the `reply_to` of a push.
    Direct(String),
    /// Parked, with the reason.
    Parking(String),
}

/// The version that this build writes and reads.
pub const VERSION: u32 = 1;

/// One broker message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The same on every republish.
    pub id: MessageId,
    /// Where to.
    pub route: Route,
    /// [`JOB`], or the CloudEvents content type of a status message.
    pub content_type: String,
    /// What it belongs to: a push id, where there is one.
    pub correlation_id: Option<String>,
    /// W3C trace context, passed on untouched.
    pub traceparent: Option<String>,
    /// JSON; of a parked message whatever came.
    #[serde(with = "text_or_bytes")]
    pub body: Vec<u8>,
}

/// A body in a row: a text where it is one, which takes a third of the room of a list of numbers.
mod text_or_bytes {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Body {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(body: &[u8], to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(body) {
            Ok(text) => to.serialize_str(text),
            Err(_) => body.serialize(to),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Body::deserialize(from)? {
            Body::Text(text) => text.into_bytes(),
            Body::Bytes(bytes) => bytes,
        })
    }
}

/// The content type of a job.
pub const JOB: &str = "application/vnd.countersign.job.v1+json";
/// The content type of one event.
pub const EVENT: &str = "application/cloudevents+json";
/// The content type of several events of one routing key.
pub const EVENT_BATCH: &str = "application/cloudevents-batch+json";

/// The content type of a report of a child process instance.
pub const INSTANCE_REPORT: &str = "application/vnd.countersign.instance-report.v1+json";

/// What a process engine says about a child process instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceReport {
    /// [`VERSION`].
    pub v: u32,
    /// The instance.
    pub instance: InstanceId,
    /// How it stands.
    pub status: InstanceState,
    /// Shows that the engine has the instance's report token: [`crate::crypto::report_mac`].
    pub mac: String,
}

impl InstanceReport {
    /// Reads a report, or says why it is none.
    pub fn decode(body: &[u8]) -> Result<Self, String> {
        let read: Result<Self, _> = serde_json::from_slice(body);
        let report = read.map_err(|error| format!("not a report of an instance: {error}"))?;
        if report.v != VERSION {
            return Err(format!("version {} of a report is not known", report.v));
        }
        if report.status == InstanceState::Pending {
            return Err("an instance is pending by itself".to_owned());
        }
        Ok(report)
    }
}

/// The body of a job: one push or several hundred, or deliveries to try again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// [`VERSION`].
    pub v: u32,
    /// The store whose pushes these are.
    pub store: StoreId,
    /// Pushes to fan out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pushes: Vec<PushId>,
    /// Deliveries to try again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retries: Vec<RetryOf>,
    /// The chunk of a batch that the pushes are, when it was just released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<ChunkId>,
}

/// One delivery to try again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryOf {
    /// Which.
    pub delivery: DeliveryId,
    /// The attempt that failed; the claim is won only while this is still the last one.
    pub attempt: u32,
}

/// Why a body is no job.
#[derive(Debug, thiserror::Error)]
pub enum Undecodable {
    /// Not JSON, or not of this shape.
    #[error("not a job: {0}")]
    Shape(#[from] serde_json::Error),
    /// Written by a newer release.
    #[error("version {0} is not known here")]
    Version(u32),
    /// Nothing to do.
    #[error("names no push and no delivery")]
    Empty,
    /// Of another content type.
    #[error("content type {0:?} is not a job")]
    ContentType(String),
}

impl Job {
    /// The message that carries this job.
    pub fn into_message(self, route: Route, now: Millis) -> Message {
        let correlation_id = match (self.pushes.as_slice(), self.retries.as_slice()) {
            ([one], []) => Some(one.to_string()),
            _ => None,
        };
        Message {
            id: MessageId::fresh(now),
            route,
            content_type: JOB.to_owned(),
            correlation_id,
            traceparent: None,
            // Identifiers and numbers only: this cannot fail to serialise.
            body: serde_json::to_vec(&self).unwrap_or_default(),
        }
    }

    /// Reads a job back.
    pub fn decode(message: &Message) -> Result<Self, Undecodable> {
        if message.content_type != JOB {
            return Err(Undecodable::ContentType(
                message.content_type.chars().take(80).collect(),
            ));
        }
        let job: Self = serde_json::from_slice(&message.body)?;
        if job.v != VERSION {
            return Err(Undecodable::Version(job.v));
        }
        if job.pushes.is_empty() && job.retries.is_empty() {
            return Err(Undecodable::Empty);
        }
        Ok(job)
    }
}

/// What an event is about, and what somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Subject {
    /// A push.
    Push(PushId),
    /// An approval by several people.
    Approval(ApprovalId),
}

impl Subject {
    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Push(id) => id.as_str(),
            Self::Approval(id) => id.as_str(),
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<&PushId> for Subject {
    fn from(id: &PushId) -> Self {
        Self::Push(id.clone())
    }
}

impl From<&ApprovalId> for Subject {
    fn from(id: &ApprovalId) -> Self {
        Self::Approval(id.clone())
    }
}

/// A CloudEvents 1.0 event as we write it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// `1.0`.
    pub specversion: String,
    /// Follows from what happened, so that a second copy has the same one.
    pub id: EventId,
    /// `/v1/stores/<store>`.
    pub source: String,
    /// `countersign.push.approved.v1`, `countersign.push.device_answered.v1` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// The push or the approval.
    pub subject: Subject,
    /// RFC 3339, UTC.
    pub time: String,
    /// `application/json`.
    pub datacontenttype: String,
    /// Identifiers, state words and numbers.
    pub data: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job {
            v: VERSION,
            store: StoreId::fresh(1),
            pushes: vec![PushId::fresh(1)],
            retries: vec![],
            chunk: None,
        }
    }

    #[test]
    fn a_job_survives_the_wire() {
        let message = job().into_message(Route::Jobs(Lane::Interactive), 5);
        assert_eq!(Job::decode(&message).unwrap().pushes.len(), 1);
        assert!(message.correlation_id.is_some());
    }

    #[test]
    fn a_body_in_a_row_is_a_text_where_it_is_one_and_bytes_where_not() {
        let mut message = job().into_message(Route::Jobs(Lane::Bulk), 5);
        let text = serde_json::to_string(&message).unwrap();
        assert!(text.contains(r#""body":"{"#), "{text}");
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message);
        message.body = vec![0xff, 0, 7];
        let bytes = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<Message>(&bytes).unwrap(), message);
    }

    #[test]
    fn foreign_bodies_are_refused_with_a_reason() {
        let good = job().into_message(Route::Jobs(Lane::Bulk), 5);
        for body in [
            "",
            "{",
            "[]",
            r#"{"v":1}"#,
            r#"{"v":1,"store":"x","pushes":[]}"#,
        ] {
            let bad = Message {
                body: body.into(),
                ..good.clone()
            };
            assert!(Job::decode(&bad).is_err(), "{body}");
        }
        let mut newer = job();
        newer.v = 2;
        assert!(matches!(
            Job::decode(&newer.into_message(Route::Jobs(Lane::Bulk), 5)),
            Err(Undecodable::Version(2))
        ));
        let other = Message {
            content_type: "text/plain".to_owned(),
            ..good
        };
        assert!(matches!(
            Job::decode(&other),
            Err(Undecodable::ContentType(_))
        ));
    }
}
