//! What is checked of a push beyond its schema: how fields go together, and times.

use super::process::window_faults;
use crate::app::App;
use crate::problem::Fault;
use serde_json::Value;
use shared::clock::Millis;
use shared::id::{DeviceId, StoreId};

pub(super) const EXPIRES_IN: Millis = 120_000;
const EXPIRES_IN_RANGE: std::ops::RangeInclusive<Millis> = 10_000..=600_000;
pub(super) const MAX_DURATION: Millis = 600_000;
const MAX_DURATION_RANGE: std::ops::RangeInclusive<Millis> = 60_000..=3_600_000;
const ESCALATE_RANGE: std::ops::RangeInclusive<Millis> = 1_000..=600_000;

/// Milliseconds of a text such as `120s`.
pub(crate) fn seconds(text: &str) -> Option<Millis> {
    let digits = text.strip_suffix('s')?;
    digits
        .parse::<Millis>()
        .ok()
        .map(|s| s.saturating_mul(1000))
}

/// The time that `pointer` holds, or `default`; outside of `range` it is a fault.
pub(in crate::routes) fn time_at(
    sent: &Value,
    pointer: &str,
    default: Millis,
    range: &std::ops::RangeInclusive<Millis>,
    faults: &mut Vec<Fault>,
) -> Millis {
    // What is no text of the right form is the schema's to tell.
    let Some(ms) = sent
        .pointer(pointer)
        .and_then(Value::as_str)
        .and_then(seconds)
    else {
        return default;
    };
    if !range.contains(&ms) {
        let detail = format!("from {}s to {}s", range.start() / 1000, range.end() / 1000);
        faults.push(Fault::new(pointer, "out_of_range", detail));
    }
    ms
}

/// What the schema cannot say: how fields go together.
pub(in crate::routes) fn more_faults(
    app: &App,
    store: &StoreId,
    sent: &Value,
    faults: &mut Vec<Fault>,
) {
    let text = |pointer: &str| sent.pointer(pointer).and_then(Value::as_str);
    let given = |pointer: &str| sent.pointer(pointer).is_some_and(|value| !value.is_null());
    let mut fault = |pointer: &str, code: &str, detail: &str| {
        faults.push(Fault::new(pointer, code, detail));
    };
    user_faults(sent, &mut fault);
    let mode = text("/target/mode").unwrap_or("all");
    if given("/target/escalate_after") && mode != "preferred" {
        fault(
            "/target/escalate_after",
            "not_allowed",
            "only with the mode preferred",
        );
    }
    let devices = sent.pointer("/target/devices").and_then(Value::as_array);
    if devices.is_none_or(Vec::is_empty) == (mode == "devices") {
        fault(
            "/target/devices",
            "not_allowed",
            "needed with the mode devices, and only then",
        );
    }
    for (n, device) in devices.into_iter().flatten().enumerate() {
        if device
            .as_str()
            .is_some_and(|id| id.parse::<DeviceId>().is_err())
        {
            fault(
                &format!("/target/devices/{n}"),
                "unknown_device",
                "no such device",
            );
        }
    }
    context_faults(sent, &mut fault);
    let kind = text("/kind").unwrap_or_default();
    if sent["match_code"] == Value::Bool(true) && kind != "confirm" {
        fault("/match_code", "not_allowed", "only with the kind confirm");
    }
    if kind != "confirm" && given("/payment") {
        fault("/payment", "not_allowed", "only with the kind confirm");
    }
    super::payments::faults(sent, &mut fault);
    if kind == "process" && !given("/process") {
        fault("/process", "required", "needed with the kind process");
    }
    if kind != "process" && given("/process") {
        fault("/process", "not_allowed", "only with the kind process");
    }
    if let Some(reply_to) = text("/reply_to") {
        if !app.reply_queues {
            fault(
                "/reply_to",
                "not_allowed",
                "the embedded queue has no queues of yours; use RabbitMQ",
            );
        } else if !reply_to.starts_with(&format!("ext.{store}.")) {
            let detail = format!("the name of your queue begins with ext.{store}.");
            fault("/reply_to", "not_allowed", &detail);
        }
    }
    correlation_faults(sent, &mut fault);
    parameter_faults(sent, &mut fault);
    let expires_in = time_at(sent, "/expires_in", EXPIRES_IN, &EXPIRES_IN_RANGE, faults);
    let escalate = time_at(sent, "/target/escalate_after", 0, &ESCALATE_RANGE, faults);
    if escalate >= expires_in {
        let detail = "must be shorter than expires_in";
        faults.push(Fault::new("/target/escalate_after", "out_of_range", detail));
    }
    let now = app.clock.now();
    window_faults(sent, now, now + expires_in, faults);
    let pointer = "/process/max_duration";
    time_at(sent, pointer, MAX_DURATION, &MAX_DURATION_RANGE, faults);
}

pub(in crate::routes) fn user_faults(sent: &Value, fault: &mut impl FnMut(&str, &str, &str)) {
    let given = |name: &str| !sent["user"][name].is_null();
    if sent["user"].is_object() && given("id") == given("external_id") {
        fault(
            "/user",
            "invalid",
            "exactly one of id and external_id is needed",
        );
    }
}

pub(in crate::routes) fn correlation_faults(
    sent: &Value,
    fault: &mut impl FnMut(&str, &str, &str),
) {
    let text = sent["correlation_id"].as_str();
    if text.is_some_and(|text| text.len() > 255) {
        // An AMQP short string.
        fault("/correlation_id", "too_long", "at most 255 bytes");
    }
}

/// An address that is none would be shown to somebody who decides by it.
fn context_faults(sent: &Value, fault: &mut impl FnMut(&str, &str, &str)) {
    let Some(context) = sent["context"].as_object() else {
        return;
    };
    if context.values().all(Value::is_null) {
        fault(
            "/context",
            "required",
            "at least one of ip, agent, place and session is needed",
        );
    }
    let ip = context.get("ip").and_then(Value::as_str);
    if ip.is_some_and(|text| text.parse::<std::net::IpAddr>().is_err()) {
        fault(
            "/context/ip",
            "wrong_form",
            "an IPv4 or IPv6 address is needed",
        );
    }
}

/// Parameters travel in the query of a page: few, short, and flat.
fn parameter_faults(sent: &Value, fault: &mut impl FnMut(&str, &str, &str)) {
    let parameters = sent
        .pointer("/process/parameters")
        .and_then(Value::as_object);
    let Some(parameters) = parameters else {
        return;
    };
    if parameters.len() > 20 {
        fault("/process/parameters", "too_many", "at most 20");
    }
    for (name, value) in parameters {
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        let named = (1..=50).contains(&name.len()) && name.bytes().all(sound);
        let flat = match value {
            Value::String(text) => text.len() <= 200,
            Value::Number(_) | Value::Bool(_) => true,
            Value::Null | Value::Array(_) | Value::Object(_) => false,
        };
        if !named || !flat || matches!(name.as_str(), "instance" | "push" | "report") {
            let detail = "names of 1 to 50 letters, digits, dots, hyphens and underscores; texts of at most 200 bytes, numbers, true and false";
            fault("/process/parameters", "invalid", detail);
            return;
        }
    }
}
