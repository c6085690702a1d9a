//! Completion events: exactly one per push, one per device, and one per approval. CloudEvents 1.0, structured JSON; several of one routing key travel as a batch.

use crate::clock::{Millis, rfc3339};
use crate::domain::{ApprovalState, Assurance, DeliveryState, Kind, PushState};
use crate::id::{
    ApprovalId, DeliveryId, DeviceId, EventId, LockId, MessageId, PushId, StoreId, UserId,
};
use crate::message::{EVENT, EVENT_BATCH, Event, Message, Route, Subject};
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
    /// The approval that it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalId>,
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

/// The data of an approval's completion event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalEnded {
    /// The approval.
    pub approval: ApprovalId,
    /// Its store.
    pub store: StoreId,
    /// A terminal state.
    pub state: ApprovalState,
    /// Why.
    pub reason: String,
    /// How many had to say yes.
    pub required: i64,
    /// The sender's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub ended_at: String,
    /// Everybody who was asked.
    pub members: Vec<MemberEnd>,
}

/// How it ended for one member of an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEnd {
    /// The push.
    pub push: PushId,
    /// Who was asked.
    pub user: UserId,
    /// The push's end state.
    pub state: PushState,
    /// Why.
    pub reason: String,
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

/// What the types of approvals' events begin with.
const OF_APPROVAL: &str = "countersign.approval.";

fn event(
    store: &StoreId,
    name: &str,
    id_parts: &[&str],
    subject: Subject,
    now: Millis,
    data: &impl Serialize,
) -> Event {
    Event {
        specversion: "1.0".to_owned(),
        id: EventId::derived(id_parts),
        source: format!("/v1/stores/{store}"),
        kind: format!("countersign.push.{name}.v1"),
        subject,
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
        let event = event(&ended.store, name, &id, (&ended.push).into(), now, ended);
        self.add(&ended.store, ended.kind.as_str(), name, event);
    }

    /// The approval has ended.
    pub fn approval_ended(&mut self, ended: &ApprovalEnded, now: Millis) {
        let name = ended.state.as_str();
        let id = [ended.approval.as_str(), "ended"];
        let subject = (&ended.approval).into();
        let mut event = event(&ended.store, name, &id, subject, now, ended);
        event.kind = format!("{OF_APPROVAL}{name}.v1");
        self.add(&ended.store, "approval", name, event);
    }

    /// It has ended for one device.
    pub fn device_done(&mut self, done: &DeviceDone, now: Millis) {
        let name = format!("device_{}", done.end.state);
        let id = [done.end.delivery.as_str(), "ended"];
        let event = event(&done.store, &name, &id, (&done.push).into(), now, done);
        self.add(&done.store, done.kind.as_str(), &name, event);
    }

    /// A user has reported fraud.
    pub fn fraud_reported(&mut self, report: &FraudReported, now: Millis) {
        let name = "fraud_reported";
        let id = [report.push.as_str(), name];
        let subject = (&report.push).into();
        let mut event = event(&report.store, name, &id, subject, now, report);
        FRAUD_REPORTED.clone_into(&mut event.kind);
        self.add(&report.store, report.kind.as_str(), name, event);
    }

    fn add(&mut self, store: &StoreId, kind: &str, name: &str, event: Event) {
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

/// What an event tells.
enum Tells {
    Push,
    Device,
    Approval,
    Fraud,
}

impl Event {
    fn tells(&self) -> Option<Tells> {
        if self.kind == FRAUD_REPORTED {
            Some(Tells::Fraud)
        } else if self.kind.starts_with(OF_APPROVAL) {
            Some(Tells::Approval)
        } else if self.kind.starts_with("countersign.push.device_") {
            Some(Tells::Device)
        } else {
            let push = self.kind.starts_with("countersign.push.");
            push.then_some(Tells::Push)
        }
    }

    fn data<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_value(self.data.clone())
    }

    /// Is it one of ours, with the data that its type says?
    fn check(&self) -> Result<(), String> {
        let read = match self.tells() {
            Some(Tells::Push) => self.data::<PushEnded>().map(|_| ()),
            Some(Tells::Device) => self.data::<DeviceDone>().map(|_| ()),
            Some(Tells::Approval) => self.data::<ApprovalEnded>().map(|_| ()),
            Some(Tells::Fraud) => self.data::<FraudReported>().map(|_| ()),
            None => {
                let shown: String = self.kind.chars().take(80).collect();
                return Err(format!("type {shown:?} is none of ours"));
            }
        };
        read.map_err(|error| format!("not the data of an event: {error}"))
    }

    /// The push's end, where this is the event of one.
    pub fn push_ended(&self) -> Option<PushEnded> {
        match self.tells()? {
            Tells::Push => self.data().ok(),
            Tells::Device | Tells::Approval | Tells::Fraud => None,
        }
    }

    /// The approval's end, where this is the event of one.
    pub fn approval_ended(&self) -> Option<ApprovalEnded> {
        match self.tells()? {
            Tells::Approval => self.data().ok(),
            Tells::Push | Tells::Device | Tells::Fraud => None,
        }
    }

    /// Does it tell the end of what somebody may wait for by queue?
    pub fn is_verdict(&self) -> bool {
        matches!(self.tells(), Some(Tells::Push | Tells::Approval))
    }
}
