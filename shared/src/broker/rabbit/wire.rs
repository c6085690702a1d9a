//! A message on the wire: its body is the body, everything else travels in properties and two headers of ours.
//!
//! Headers that a broker adds on the way (`x-death` and its kin) are never sent again: brokers before 4.0 take a message
//! that carries them for one that goes in circles and drop it.

use super::super::{PublishError, Queue, may_be_aimed_at};
use super::topology::Names;
use crate::clock::Millis;
use crate::id::MessageId;
use crate::message::{EVENT, EVENT_BATCH, JOB, Lane, Message, Route, VERSION};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// Above this a message is refused here: identifiers do not need it, and older brokers differ in what they take.
const MAX_BODY: usize = 8 << 20;
/// Longer texts are cut, longer trace contexts left out: both must fit into one frame.
const MAX_HEADER: usize = 500;
const PERSISTENT: u8 = 2;
const APP: &str = concat!("countersign/", env!("CARGO_PKG_VERSION"));
const SCHEMA: &str = "schema";
const TRACEPARENT: &str = "traceparent";
const PARK_REASON: &str = "park_reason";

/// Which publishing connection a message takes: none of them waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Somebody waits.
    Interactive,
    /// Batches.
    Bulk,
    /// To queues that are not ours: one that is full or slow must not delay our own.
    Foreign,
}

/// One message, ready to be published.
pub(super) struct Outgoing<'a> {
    pub(super) class: Class,
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
    pub(super) mandatory: bool,
    pub(super) properties: BasicProperties,
    pub(super) body: &'a [u8],
}

fn short(text: &str) -> Result<ShortString, PublishError> {
    ShortString::try_new(text).map_err(|_| PublishError::Refused)
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// What to publish for `message`, or why it is not published at all.
pub(super) fn outgoing<'a>(
    message: &'a Message,
    names: &Names,
    now: Millis,
) -> Result<Outgoing<'a>, PublishError> {
    let of = |lane: Lane| match lane {
        Lane::Interactive => Class::Interactive,
        Lane::Bulk => Class::Bulk,
    };
    let events = || match message.content_type.as_str() {
        EVENT_BATCH => Class::Bulk,
        _ => Class::Interactive,
    };
    let mut headers = FieldTable::default();
    let (class, exchange, key, mandatory) = match &message.route {
        Route::Jobs(lane) => (of(*lane), names.of("jobs"), lane.as_str(), true),
        Route::Later(retry, lane) => (of(*lane), names.tier(*retry), lane.as_str(), true),
        Route::Status(key) => (events(), names.of("status"), key.as_str(), true),
        // Nobody has to be bound here.
        Route::External(key) => (Class::Foreign, names.of("status.ext"), key.as_str(), false),
        Route::Direct(queue) if may_be_aimed_at(queue) => {
            (Class::Foreign, String::new(), queue.as_str(), true)
        }
        Route::Direct(_) => return Err(PublishError::Refused),
        Route::Parking(reason) => {
            let cut: String = reason.chars().take(MAX_HEADER).collect();
            headers.insert(PARK_REASON.into(), long(&cut));
            (Class::Interactive, names.of("dlx"), "park", true)
        }
    };
    if message.body.len() > MAX_BODY {
        return Err(PublishError::Refused);
    }
    headers.insert(SCHEMA.into(), AMQPValue::LongInt(VERSION as i32));
    if let Some(context) = message
        .traceparent
        .as_deref()
        .filter(|c| c.len() <= MAX_HEADER)
    {
        headers.insert(TRACEPARENT.into(), long(context));
    }
    let kind = match message.content_type.as_str() {
        JOB => "countersign.job.v1",
        EVENT => "countersign.event.v1",
        EVENT_BATCH => "countersign.events.v1",
        _ => "countersign.message.v1",
    };
    let mut properties = BasicProperties::default()
        .with_message_id(short(message.id.as_str())?)
        .with_content_type(short(&message.content_type)?)
        .with_type(kind.into())
        .with_app_id(APP.into())
        .with_timestamp(u64::try_from(now / 1000).unwrap_or(0))
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers);
    if let Some(id) = &message.correlation_id {
        properties = properties.with_correlation_id(short(id)?);
    }
    Ok(Outgoing {
        class,
        exchange: short(&exchange)?,
        key: short(key)?,
        mandatory,
        properties,
        body: &message.body,
    })
}

fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    let table = properties.headers().as_ref()?.inner();
    match table.get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        _ => None,
    }
}

/// Why something is parked: what our own publisher said, or what the broker noted.
fn park_reason(properties: &BasicProperties) -> String {
    header(properties, PARK_REASON).unwrap_or_else(|| {
        let text = |name| header(properties, name).unwrap_or_else(|| "unknown".to_owned());
        format!(
            "dead-lettered by the broker from {}: {}",
            text("x-first-death-queue"),
            text("x-first-death-reason")
        )
    })
}

fn route(delivery: &Delivery, from: &Queue) -> Route {
    match from {
        Queue::JobsInteractive => Route::Jobs(Lane::Interactive),
        Queue::JobsBulk => Route::Jobs(Lane::Bulk),
        Queue::StatusWait | Queue::StatusOwn | Queue::StatusForward => {
            Route::Status(delivery.routing_key.to_string())
        }
        // A foreign message that looks like one of ours leads nowhere else.
        Queue::Instances => Route::Parking("it came by the way in".to_owned()),
        Queue::Parking => Route::Parking(park_reason(&delivery.properties)),
    }
}

/// The message in `delivery`, whose body is taken out of it, or the reason why it is none.
pub(super) fn incoming(
    delivery: &mut Delivery,
    from: &Queue,
) -> (Result<Message, String>, bytes::Bytes) {
    let raw = bytes::Bytes::from(std::mem::take(&mut delivery.data));
    (read(delivery, &raw, from), raw)
}

fn read(delivery: &Delivery, raw: &[u8], from: &Queue) -> Result<Message, String> {
    let properties = &delivery.properties;
    let content_type = properties
        .content_type()
        .as_ref()
        .ok_or("it has no content type")?
        .as_str();
    if ![JOB, EVENT, EVENT_BATCH].contains(&content_type) {
        return Err("its content type is none of ours".to_owned());
    }
    let id = properties
        .message_id()
        .as_ref()
        .ok_or("it has no message_id")?
        .as_str()
        .parse::<MessageId>()
        .map_err(|error| format!("its message_id is {error}"))?;
    if let Some(schema) = properties
        .headers()
        .as_ref()
        .and_then(|h| h.inner().get(SCHEMA))
        && *schema != AMQPValue::LongInt(VERSION as i32)
    {
        return Err("its schema is one that this release does not know".to_owned());
    }
    serde_json::from_slice::<serde::de::IgnoredAny>(raw)
        .map_err(|error| format!("its body is not JSON: {error}"))?;
    Ok(Message {
        id,
        route: route(delivery, from),
        content_type: content_type.to_owned(),
        correlation_id: properties
            .correlation_id()
            .as_ref()
            .map(ToString::to_string),
        traceparent: header(properties, TRACEPARENT),
        body: raw.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Retry;

    fn message(route: Route) -> Message {
        Message {
            id: MessageId::fresh(1),
            route,
            content_type: JOB.to_owned(),
            correlation_id: Some("psh_x".to_owned()),
            traceparent: Some("00-a-b-01".to_owned()),
            body: b"{}".to_vec(),
        }
    }

    fn arrived(sent: &Outgoing<'_>) -> Delivery {
        let mut delivery = Delivery::mock(
            1,
            sent.exchange.clone(),
            sent.key.clone(),
            false,
            sent.body.to_vec(),
        );
        delivery.properties = sent.properties.clone();
        delivery
    }

    #[test]
    fn a_message_survives_the_wire() {
        let names = Names::new("cs");
        for (route, from) in [
            (Route::Jobs(Lane::Bulk), Queue::JobsBulk),
            (
                Route::Status("v1.s.confirm.approved".to_owned()),
                Queue::StatusWait,
            ),
            (Route::Parking("too old".to_owned()), Queue::Parking),
        ] {
            let sent = message(route);
            let out = outgoing(&sent, &names, 5_000).unwrap();
            assert_eq!(*out.properties.timestamp(), Some(5));
            assert_eq!(*out.properties.delivery_mode(), Some(2));
            let (got, raw) = incoming(&mut arrived(&out), &from);
            assert_eq!(got.unwrap(), sent);
            assert_eq!(&raw[..], b"{}");
        }
    }

    #[test]
    fn only_the_name_spaces_of_third_parties_can_be_aimed_at() {
        let names = Names::new("cs");
        let class = |queue: &str| {
            outgoing(&message(Route::Direct(queue.to_owned())), &names, 0).map(|out| out.class)
        };
        assert_eq!(class("ext.acme.erp"), Ok(Class::Foreign));
        assert_eq!(class("wait.x"), Ok(Class::Foreign));
        for queue in ["", "cs.jobs.bulk", "cs.parking", "external", " ext.a"] {
            assert_eq!(class(queue), Err(PublishError::Refused), "{queue}");
        }
        assert_eq!(
            class(&format!("ext.{}", "x".repeat(300))),
            Err(PublishError::Refused)
        );
    }

    #[test]
    fn what_a_broker_added_is_not_sent_again_and_odd_delays_find_a_tier() {
        let names = Names::new("cs");
        let sent = message(Route::Later(Retry { seconds: 7 }, Lane::Bulk));
        let out = outgoing(&sent, &names, 0).unwrap();
        assert_eq!(
            (out.exchange.as_str(), out.key.as_str()),
            ("cs.retry.5s", "bulk")
        );
        let headers = out.properties.headers().as_ref().unwrap().inner();
        let known: Vec<_> = headers.keys().map(ShortString::as_str).collect();
        assert_eq!(known, [SCHEMA, TRACEPARENT]);
    }

    #[test]
    fn what_is_not_ours_is_named_as_such() {
        let names = Names::new("cs");
        let sent = message(Route::Jobs(Lane::Bulk));
        let reason = |change: &dyn Fn(&mut Delivery)| {
            let mut delivery = arrived(&outgoing(&sent, &names, 0).unwrap());
            change(&mut delivery);
            incoming(&mut delivery, &Queue::JobsBulk).0.unwrap_err()
        };
        let only =
            |properties: BasicProperties| move |d: &mut Delivery| d.properties = properties.clone();
        let plain = BasicProperties::default();
        assert!(reason(&|d| d.data = b"{oops".to_vec()).contains("not JSON"));
        assert!(reason(&only(plain.clone())).contains("no content type"));
        assert!(
            reason(&only(plain.clone().with_content_type("text/plain".into())))
                .contains("none of ours")
        );
        assert!(
            reason(&only(plain.clone().with_content_type(JOB.into()))).contains("no message_id")
        );
        let foreign = plain
            .with_content_type(JOB.into())
            .with_message_id("7".into());
        assert!(reason(&only(foreign)).contains("not an identifier"));
    }
}
