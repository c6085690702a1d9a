//! Completion events: exactly one per push, and one per device. CloudEvents 1.0, structured JSON; several of one routing key travel as a batch.

use crate::clock::{Millis, rfc3339};
use crate::domain::{Assurance, DeliveryState, Kind, PushState};
use crate::id::{DeliveryId, DeviceId, EventId, LockId, MessageId, PushId, StoreId, UserId};
use crate::message::{EVENT, EVENT_BATCH, Event, Message, Route};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many events one message carries at most.
const BATCH: usize = 100;

/// The data of a push's completion event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushEnded {
    /// The push.
    pub push: PushId,
    /// Its store.
    pub store: StoreId,
    /// Its kind.
    pub kind: Kind,
    /// A terminal state.
    pub state: PushState,
    /// Why.
    pub reason: String,
    /// The device whose answer decided, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// The sender's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// What the approval is worth, where a proof approved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assurance: Option<Assurance>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub ended_at: String,
    /// Every device that was asked.
    pub deliveries: Vec<DeviceEnd>,
}

/// How it ended for one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceEnd {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The device.
    pub device: DeviceId,
    /// Its end state.
    pub state: DeliveryState,
    /// `approve` or `deny`, where this device answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// Why it was not sent, where it was not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How often a provider was called.
    pub attempts: i64,
}

/// The data of a device's completion event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDone {
    /// The push.
    pub push: PushId,
    /// Its store.
    pub store: StoreId,
    /// Its kind.
    pub kind: Kind,
    /// How it ended for the device.
    #[serde(flatten)]
    pub end: DeviceEnd,
}

/// The data of a fraud report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FraudReported {
    /// The push that was denied by it.
    pub push: PushId,
    /// Its store.
    pub store: StoreId,
    /// Its kind.
    pub kind: Kind,
    /// Who reports it.
    pub user: UserId,
    /// Who asked.
    pub relying_party: String,
    /// On which device.
    pub device: DeviceId,
    /// The sender's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// RFC 3339.
    pub reported_at: String,
    /// What it has locked, where it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockTold>,
}

/// What a fraud report has locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockTold {
    /// The lock.
    pub id: LockId,
    /// `initiator` or `user`.
    pub of: String,
    /// RFC 3339.
    pub until: String,
}

/// The type of a fraud report.
const FRAUD_REPORTED: &str = "countersign.user.fraud_reported.v1";

/// Gathers the events of one transaction.
#[derive(Default)]
pub struct Events(BTreeMap<String, Vec<Event>>);

fn event(
    store: &StoreId,
    name: &str,
    id_parts: &[&str],
    subject: &PushId,
    now: Millis,
    data: &impl Serialize,
) -> Event {
    Event {
        specversion: "1.0".to_owned(),
        id: EventId::derived(id_parts),
        source: format!("/v1/stores/{store}"),
        kind: format!("countersign.push.{name}.v1"),
        subject: subject.clone(),
        time: rfc3339(now),
        datacontenttype: "application/json".to_owned(),
        // Identifiers, words and numbers: this cannot fail to serialise.
        data: serde_json::to_value(data).unwrap_or_default(),
    }
}

impl Events {
    /// The push has ended.
    pub fn push_ended(&mut self, ended: &PushEnded, now: Millis) {
        let name = ended.state.as_str();
        let id = [ended.push.as_str(), "ended"];
        let event = event(&ended.store, name, &id, &ended.push, now, ended);
        self.add(&ended.store, ended.kind, name, event);
    }

    /// It has ended for one device.
    pub fn device_done(&mut self, done: &DeviceDone, now: Millis) {
        let name = format!("device_{}", done.end.state);
        let id = [done.end.delivery.as_str(), "ended"];
        let event = event(&done.store, &name, &id, &done.push, now, done);
        self.add(&done.store, done.kind, &name, event);
    }

    /// A user has reported fraud.
    pub fn fraud_reported(&mut self, report: &FraudReported, now: Millis) {
        let name = "fraud_reported";
        let id = [report.push.as_str(), name];
        let mut event = event(&report.store, name, &id, &report.push, now, report);
        FRAUD_REPORTED.clone_into(&mut event.kind);
        self.add(&report.store, report.kind, name, event);
    }

    fn add(&mut self, store: &StoreId, kind: Kind, name: &str, event: Event) {
        let key = format!("v1.{store}.{kind}.{name}");
        self.0.entry(key).or_default().push(event);
    }

    /// The messages that carry them.
    pub fn into_messages(self, now: Millis) -> Vec<Message> {
        let mut messages = Vec::new();
        for (key, events) in self.0 {
            for part in events.chunks(BATCH) {
                let (content_type, body, correlation_id) = match part {
                    [one] => (
                        EVENT,
                        serde_json::to_vec(one),
                        Some(one.subject.to_string()),
                    ),
                    many => (EVENT_BATCH, serde_json::to_vec(many), None),
                };
                messages.push(Message {
                    id: MessageId::fresh(now),
                    route: Route::Status(key.clone()),
                    content_type: content_type.to_owned(),
                    correlation_id,
                    traceparent: None,
                    body: body.unwrap_or_default(),
                });
            }
        }
        messages
    }
}

/// Reads the events of a status message.
pub fn decode(message: &Message) -> Result<Vec<Event>, String> {
    let read: Result<Vec<Event>, _> = match message.content_type.as_str() {
        EVENT => serde_json::from_slice(&message.body).map(|one| vec![one]),
        EVENT_BATCH => serde_json::from_slice(&message.body),
        other => {
            let shown: String = other.chars().take(80).collect();
            return Err(format!("content type {shown:?} is no event"));
        }
    };
    let events = read.map_err(|error| format!("not an event: {error}"))?;
    for event in &events {
        event.check()?;
    }
    Ok(events)
}

impl Event {
    fn is_of_device(&self) -> bool {
        self.kind.starts_with("countersign.push.device_")
    }

    /// Is it one of ours, with the data that its type says?
    fn check(&self) -> Result<(), String> {
        let fraud = self.kind == FRAUD_REPORTED;
        if !fraud && !self.kind.starts_with("countersign.push.") {
            let shown: String = self.kind.chars().take(80).collect();
            return Err(format!("type {shown:?} is none of ours"));
        }
        let read = if fraud {
            serde_json::from_value::<FraudReported>(self.data.clone()).map(|_| ())
        } else if self.is_of_device() {
            serde_json::from_value::<DeviceDone>(self.data.clone()).map(|_| ())
        } else {
            serde_json::from_value::<PushEnded>(self.data.clone()).map(|_| ())
        };
        read.map_err(|error| format!("not the data of an event: {error}"))
    }

    /// The push's end, where this is the event of one.
    pub fn push_ended(&self) -> Option<PushEnded> {
        if self.is_of_device() || self.kind == FRAUD_REPORTED {
            return None;
        }
        serde_json::from_value(self.data.clone()).ok()
    }
}
