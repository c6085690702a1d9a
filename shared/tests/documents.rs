//! What is written down is what the code does: the state machines and tables of `docs/data-model.md`, the messages of `contracts/`.

#![expect(clippy::unwrap_used, reason = "a test may panic: that is its failing")]

use serde_json::{Value, json};
use shared::audit::Act;
use shared::broker::rabbit::topology::{Names, Topology};
use shared::domain::{
    AddressState, ApprovalState, BatchState, DeliveryState, DeviceState, Factors, InstanceState,
    Kind, PushState, UserStatus,
};
use shared::event::{
    ApprovalEnded, DeviceDone, DeviceEnd, Events, FraudReported, MemberEnd, PushEnded, decode,
};
use shared::id::{ApprovalId, DeliveryId, DeviceId, PushId, StoreId, UserId};
use shared::message::{
    EVENT, EVENT_BATCH, Event, INSTANCE_REPORT, InstanceReport, JOB, Job, Lane, Message, Route,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json_of(path: &str) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

/// What follows a heading, up to the next one of its level or above.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).unwrap();
    let level = heading.split_once(' ').unwrap().0;
    let end = (1..=level.len())
        .filter_map(|n| rest.find(&format!("\n{} ", "#".repeat(n))))
        .min();
    &rest[..end.unwrap_or(rest.len())]
}

/// The words in backticks.
fn words(cell: &str) -> BTreeSet<String> {
    let parts = cell.split('`').skip(1).step_by(2);
    parts.map(str::to_owned).collect()
}

/// The rows of tables, as their cells, without the lines that are no content.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter_map(|line| {
        let inner = line.strip_prefix('|')?.strip_suffix('|')?;
        let cells: Vec<_> = inner.split('|').map(str::trim).collect();
        cells[0].starts_with('`').then_some(cells)
    })
}

/// The first table of a section: from each word to those that may follow.
fn transitions(heading: &str) -> BTreeMap<String, BTreeSet<String>> {
    let text = read("docs/data-model.md");
    let table = section(&text, heading);
    let (_, table) = table.split_once("| from |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    rows(table)
        .map(|row| (words(row[0]).pop_first().unwrap(), words(row[1])))
        .collect()
}

fn compare<T: Copy + Display>(heading: &str, all: &[T], may: impl Fn(T, T) -> bool) {
    let written = transitions(heading);
    let known: BTreeSet<_> = all.iter().map(ToString::to_string).collect();
    let from: BTreeSet<_> = written.keys().cloned().collect();
    assert_eq!(from, known, "{heading}");
    for from in all {
        for to in all {
            let row = &written[&from.to_string()];
            assert_eq!(
                row.contains(&to.to_string()),
                may(*from, *to),
                "{heading}: {from} to {to}"
            );
            assert!(row.is_subset(&known), "{heading}: {row:?}");
        }
    }
}

#[test]
fn the_written_state_machines_are_those_of_the_domain() {
    compare("## Push", PushState::ALL, PushState::may_become);
    compare("## Approval", ApprovalState::ALL, ApprovalState::may_become);
    compare("## Batch", BatchState::ALL, BatchState::may_become);
    compare("## Delivery", DeliveryState::ALL, DeliveryState::may_become);
    compare("## Device", DeviceState::ALL, DeviceState::may_become);
    let heading = "## Child process instance";
    compare(heading, InstanceState::ALL, InstanceState::may_become);
    for state in PushState::ALL {
        let none = transitions("## Push")[state.as_str()].is_empty();
        assert_eq!(none, state.is_terminal(), "{state}");
    }
}

/// These two have no rule in the domain: any change is one statement of its own.
#[test]
fn every_word_of_address_and_user_is_written() {
    let text = read("docs/data-model.md");
    let first = |heading: &str| -> BTreeSet<String> {
        let found = rows(section(&text, heading)).map(|row| words(row[0]).pop_first().unwrap());
        found.collect()
    };
    let address: BTreeSet<_> = AddressState::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(first("## Push address"), address);
    let user: BTreeSet<_> = UserStatus::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(first("## User"), user);
}

fn sources(folder: &Path, end: &str, text: &mut String) {
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    for path in found {
        if path.is_dir() {
            sources(&path, end, text);
        } else if path.extension().is_some_and(|one| one == end) {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_written_reason_is_in_the_code() {
    let mut code = String::new();
    for part in ["shared/src", "api/src", "workers/src"] {
        sources(&root().join(part), "rs", &mut code);
    }
    let text = read("docs/data-model.md");
    let (_, pushes) = section(&text, "## Push").split_once("| reason |").unwrap();
    let (_, deliveries) = section(&text, "## Delivery")
        .split_once("| reason |")
        .unwrap();
    let reasons: Vec<_> = rows(pushes)
        .map(|row| (words(row[0]), words(row[1])))
        .chain(rows(deliveries).map(|row| (BTreeSet::new(), words(row[0]))))
        .collect();
    assert!(reasons.len() > 20);
    for (states, reasons) in reasons {
        for state in states {
            assert!(PushState::parse(&state).is_some_and(PushState::is_terminal));
        }
        for reason in reasons {
            let word = reason.split(':').next().unwrap();
            let there =
                code.contains(&format!("\"{word}\"")) || code.contains(&format!("'{word}'"));
            assert!(there, "{reason}");
        }
    }
}

/// Tables and their columns, from the migrations of one database.
fn schema(database: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut sql = String::new();
    sources(&root().join("migrations").join(database), "sql", &mut sql);
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for statement in sql.split(';') {
        let statement = statement.trim();
        if let Some(rest) = statement.strip_prefix("CREATE TABLE ") {
            let (name, columns) = rest.split_once('(').unwrap();
            // What stands in inner brackets holds no column of ours.
            let mut depth = 0;
            let flat: String = columns
                .chars()
                .filter(|c| {
                    depth += i32::from(*c == '(');
                    let keep = depth == 0;
                    depth -= i32::from(*c == ')');
                    keep
                })
                .collect();
            let columns = flat
                .split(',')
                .filter_map(|column| column.split_whitespace().next())
                .filter(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            tables.insert(name.trim().to_owned(), columns.map(str::to_owned).collect());
        } else if let Some(rest) = statement.strip_prefix("ALTER TABLE ") {
            // Constraints and storage are no columns.
            let Some((name, column)) = rest.split_once(" ADD COLUMN ") else {
                continue;
            };
            let column = column.split_whitespace().next().unwrap().to_owned();
            tables.get_mut(name).unwrap().insert(column);
        }
    }
    tables
}

#[test]
fn the_written_tables_are_those_of_the_migrations() {
    let lite = schema("sqlite");
    let mut servers = schema("postgres");
    servers.insert("queue_messages".to_owned(), lite["queue_messages"].clone());
    assert_eq!(lite, servers, "both databases hold the same");
    let text = read("docs/data-model.md");
    let (_, table) = section(&text, "## Tables").split_once("| table |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    let written: BTreeSet<_> = rows(table).flat_map(|row| words(row[0])).collect();
    assert_eq!(written, lite.keys().cloned().collect());
    for name in ["pushes", "deliveries", "devices"] {
        let columns = section(&text, &format!("### Columns of {name}"));
        let written: BTreeSet<_> = rows(columns).flat_map(|row| words(row[0])).collect();
        assert_eq!(written, lite[name], "{name}");
    }
}

#[test]
fn the_written_acts_of_the_audit_log_are_those_of_the_code() {
    let text = read("docs/audit.md");
    let acts = section(&text, "## Acts");
    let (acts, faults) = acts.split_once("| fault |").unwrap();
    let written: Vec<_> = rows(acts).flat_map(|row| words(row[0])).collect();
    let known: BTreeSet<_> = Act::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(written.len(), known.len(), "none twice");
    assert_eq!(written.into_iter().collect::<BTreeSet<_>>(), known);
    let mut code = String::new();
    for part in ["shared/src", "api/src"] {
        sources(&root().join(part), "rs", &mut code);
    }
    for fault in rows(faults).flat_map(|row| words(row[0])) {
        assert!(code.contains(&format!("\"{fault}\"")), "{fault}");
    }
}

/// The examples by name, each with the name of its schema.
fn examples() -> Vec<(String, &'static str, Value)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join("contracts/examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let schema = match name.split(['-', '.']).next().unwrap() {
            "push" => "push-ended.v1",
            "device" => "device-done.v1",
            "approval" => "approval-ended.v1",
            "user" => "fraud-reported.v1",
            "job" => "job.v1",
            "instance" => "instance-report.v1",
            "events" => "batch",
            other => panic!("{other}"),
        };
        let value = json_of(&format!("contracts/examples/{name}"));
        found.push((name, schema, value));
    }
    found
}

/// Single events and jobs, those inside batches too.
fn singles() -> Vec<(String, &'static str, Value)> {
    let mut all = Vec::new();
    for (name, schema, value) in examples() {
        match value {
            Value::Array(list) => {
                for one in list {
                    let kind = one["type"].as_str().unwrap();
                    let device = kind.starts_with("countersign.push.device_");
                    let schema = if device {
                        "device-done.v1"
                    } else {
                        "push-ended.v1"
                    };
                    all.push((name.clone(), schema, one));
                }
            }
            one => all.push((name, schema, one)),
        }
    }
    all
}

fn schema_of(name: &str) -> Value {
    json_of(&format!("contracts/schemas/{name}.json"))
}

fn must_be_valid(schema: &Value, value: &Value, what: &str) {
    let validator = jsonschema::draft202012::new(schema).unwrap();
    let faults: Vec<_> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(faults.is_empty(), "{what}: {faults:?}");
}

#[test]
fn every_schema_is_one_and_every_example_fits_its_own() {
    for name in [
        "push-ended.v1",
        "device-done.v1",
        "approval-ended.v1",
        "fraud-reported.v1",
        "job.v1",
        "instance-report.v1",
    ] {
        let schema = schema_of(name);
        assert_eq!(
            schema["$schema"],
            "https://json-schema.org/draft/2020-12/schema"
        );
        must_be_valid(&json!({"$ref": schema["$schema"]}), &schema, name);
    }
    for (name, schema, value) in singles() {
        must_be_valid(&schema_of(schema), &value, &name);
    }
}

#[test]
fn the_schema_of_reports_refuses_what_the_code_refuses() {
    let schema = jsonschema::draft202012::new(&schema_of("instance-report.v1")).unwrap();
    let good = json_of("contracts/examples/instance-report.v1.json");
    for state in InstanceState::ALL {
        let mut one = good.clone();
        one["status"] = json!(state);
        let taken = InstanceReport::decode(one.to_string().as_bytes()).is_ok();
        assert_eq!(schema.is_valid(&one), taken, "{state}");
        assert_eq!(taken, *state != InstanceState::Pending);
    }
    for (field, value) in [
        ("v", json!(2)),
        ("instance", json!("psh_01m86ptpg3fk6sn9kd5hyxyx1z")),
        ("status", json!("done")),
        ("store", json!("x")),
    ] {
        let mut one = good.clone();
        one[field] = value;
        assert!(
            InstanceReport::decode(one.to_string().as_bytes()).is_err(),
            "{one}"
        );
        assert!(!schema.is_valid(&one), "{one}");
    }
}

#[test]
fn a_schema_refuses_what_the_code_refuses() {
    let schema = jsonschema::draft202012::new(&schema_of("job.v1")).unwrap();
    let good = json_of("contracts/examples/job.v1.json");
    let mut bad = vec![json!({"v": 1, "store": good["store"]}), json!([])];
    for (field, value) in [
        ("v", json!(2)),
        ("store", json!("sto_1")),
        ("pushes", json!(["dlv_1"])),
        ("colour", json!("red")),
    ] {
        let mut one = good.clone();
        one[field] = value;
        bad.push(one);
    }
    for body in bad {
        let message = Message {
            content_type: JOB.to_owned(),
            body: body.to_string().into_bytes(),
            ..message_of(&good)
        };
        assert!(Job::decode(&message).is_err(), "{body}");
        assert!(!schema.is_valid(&body), "{body}");
    }
}

fn message_of(value: &Value) -> Message {
    let content_type = match value {
        Value::Array(_) => EVENT_BATCH,
        one if one.get("specversion").is_some() => EVENT,
        _ => JOB,
    };
    let route = Route::Jobs(Lane::Interactive);
    let job = Job {
        v: 1,
        store: StoreId::fresh(1),
        pushes: vec![PushId::fresh(1)],
        retries: vec![],
        chunk: None,
    };
    Message {
        content_type: content_type.to_owned(),
        body: value.to_string().into_bytes(),
        ..job.into_message(route, 1)
    }
}

#[test]
fn every_example_is_read_and_written_back_the_same() {
    let mut kinds = BTreeSet::new();
    for (name, schema, value) in examples() {
        let message = message_of(&value);
        if schema == "instance-report.v1" {
            let report = InstanceReport::decode(value.to_string().as_bytes()).unwrap();
            assert_eq!(serde_json::to_value(&report).unwrap(), value, "{name}");
            let token = shared::secret::Secret::new("ZTl0Z3VlLWV4YW1wbGUtdG9rZW4tb2YtNDMtY2hhcnM");
            let mac = shared::crypto::report_mac(&token, &report.instance, report.status);
            assert_eq!(report.mac, mac, "with the token of docs/events.md");
            assert!(read("docs/events.md").contains(token.expose()));
            continue;
        }
        if schema == "job.v1" {
            let job = Job::decode(&message).unwrap();
            assert_eq!(serde_json::to_value(job).unwrap(), value, "{name}");
            continue;
        }
        let events = decode(&message).unwrap();
        let back = match events.as_slice() {
            [one] => serde_json::to_value(one).unwrap(),
            many => serde_json::to_value(many).unwrap(),
        };
        assert_eq!(back, value, "{name}");
        for event in events {
            let data = match event.push_ended() {
                Some(ended) => serde_json::to_value(ended).unwrap(),
                None if schema == "approval-ended.v1" => {
                    serde_json::to_value(event.approval_ended()).unwrap()
                }
                None if schema == "fraud-reported.v1" => {
                    serde_json::to_value(fraud_reported_of(&event)).unwrap()
                }
                None => serde_json::to_value(device_done_of(&event)).unwrap(),
            };
            assert_eq!(data, event.data, "{name}");
            kinds.insert(event.kind);
        }
    }
    assert_eq!(kinds, all_kinds(), "an example for each type");
}

fn fraud_reported_of(event: &Event) -> FraudReported {
    serde_json::from_value(event.data.clone()).unwrap()
}

fn device_done_of(event: &Event) -> DeviceDone {
    serde_json::from_value(event.data.clone()).unwrap()
}

/// The types of events that the code can write.
fn all_kinds() -> BTreeSet<String> {
    let pushes = PushState::ALL.iter().filter(|state| state.is_terminal());
    let devices = DeliveryState::ALL
        .iter()
        .filter(|state| state.is_terminal());
    pushes
        .map(|state| format!("countersign.push.{state}.v1"))
        .chain(devices.map(|state| format!("countersign.push.device_{state}.v1")))
        .chain(
            ApprovalState::ALL
                .iter()
                .filter(|state| state.is_terminal())
                .map(|state| format!("countersign.approval.{state}.v1")),
        )
        .chain(["countersign.user.fraud_reported.v1".to_owned()])
        .collect()
}

/// The very same events, identifiers and all, made by the code.
#[test]
fn the_code_makes_the_examples() {
    for (name, schema, value) in singles() {
        let event: Event = match schema {
            "job.v1" | "instance-report.v1" => continue,
            _ => serde_json::from_value(value.clone()).unwrap(),
        };
        let now = millis(&event.time);
        let mut events = Events::default();
        match event.push_ended() {
            Some(ended) => events.push_ended(&ended, now),
            None if schema == "approval-ended.v1" => {
                events.approval_ended(&event.approval_ended().unwrap(), now);
            }
            None if schema == "fraud-reported.v1" => {
                events.fraud_reported(&fraud_reported_of(&event), now);
            }
            None => events.device_done(&device_done_of(&event), now),
        }
        let messages = events.into_messages(now);
        let made: Value = serde_json::from_slice(&messages[0].body).unwrap();
        assert_eq!(made, value, "{name}");
        let name = event.kind.split('.').nth(2).unwrap();
        let data = &event.data;
        let store = data["store"].as_str().unwrap();
        let kind = data["kind"].as_str().unwrap_or("approval");
        let key = format!("v1.{store}.{kind}.{name}");
        assert_eq!(messages[0].route, Route::Status(key));
        if schema == "approval-ended.v1" {
            continue;
        }
        let (push, device) = (data["push"].as_str().unwrap(), data.get("delivery"));
        if let Some(delivery) = device {
            let of = DeliveryId::of(
                &push.parse().unwrap(),
                &data["device"].as_str().unwrap().parse().unwrap(),
            );
            assert_eq!(*delivery, json!(of));
        }
    }
}

fn millis(text: &str) -> i64 {
    let format = &time::format_description::well_known::Rfc3339;
    let at = time::OffsetDateTime::parse(text, format).unwrap();
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap()
}

fn device_end(state: DeliveryState, decision: Option<&str>, reason: &str) -> DeviceEnd {
    DeviceEnd {
        delivery: DeliveryId::fresh(5),
        device: DeviceId::fresh(5),
        state,
        decision: decision.map(str::to_owned),
        reason: reason.to_owned(),
        attempts: 3,
    }
}

/// Every combination of words, with and without what may be absent.
#[test]
fn whatever_the_code_makes_fits_the_schemas() {
    let (of_push, of_device) = (schema_of("push-ended.v1"), schema_of("device-done.v1"));
    for kind in Kind::ALL {
        for full in [false, true] {
            for state in PushState::ALL.iter().filter(|state| state.is_terminal()) {
                let mut events = Events::default();
                let ended = PushEnded {
                    push: PushId::fresh(1),
                    store: StoreId::fresh(1),
                    kind: *kind,
                    state: *state,
                    reason: "policy".to_owned(),
                    device: full.then(|| DeviceId::fresh(1)),
                    correlation_id: full.then(|| "x".repeat(200)),
                    approval: full.then(|| ApprovalId::fresh(1)),
                    assurance: full.then(|| Factors::Multi.into()),
                    created_at: shared::clock::rfc3339(0),
                    ended_at: shared::clock::rfc3339(1_795_521_600_000),
                    deliveries: DeliveryState::ALL
                        .iter()
                        .filter(|state| full && state.is_terminal())
                        .map(|state| device_end(*state, Some("deny"), "no_address"))
                        .collect(),
                };
                events.push_ended(&ended, 1_795_521_600_000);
                check(events, &of_push);
            }
            for state in DeliveryState::ALL
                .iter()
                .filter(|state| state.is_terminal())
            {
                let mut events = Events::default();
                let done = DeviceDone {
                    push: PushId::fresh(1),
                    store: StoreId::fresh(1),
                    kind: *kind,
                    end: device_end(
                        *state,
                        full.then_some("approve"),
                        if full { "x" } else { "" },
                    ),
                };
                events.device_done(&done, 1);
                check(events, &of_device);
            }
        }
    }
}

#[test]
fn whatever_the_code_makes_of_an_approval_fits_the_schema() {
    let schema = schema_of("approval-ended.v1");
    for state in ApprovalState::ALL.iter().filter(|one| one.is_terminal()) {
        let member = |state: &PushState| MemberEnd {
            push: PushId::fresh(1),
            user: UserId::fresh(1),
            state: *state,
            reason: "x".to_owned(),
        };
        let ends = PushState::ALL.iter().filter(|one| one.is_terminal());
        // Only a generic push completes, and none is a member.
        let ends = ends.filter(|one| **one != PushState::Completed);
        let ended = ApprovalEnded {
            approval: ApprovalId::fresh(1),
            store: StoreId::fresh(1),
            state: *state,
            reason: "too_few_left".to_owned(),
            required: 2,
            correlation_id: Some("x".repeat(200)),
            created_at: shared::clock::rfc3339(0),
            ended_at: shared::clock::rfc3339(1_795_521_600_000),
            members: ends.map(member).collect(),
        };
        let mut events = Events::default();
        events.approval_ended(&ended, 1_795_521_600_000);
        check(events, &schema);
    }
}

fn check(events: Events, schema: &Value) {
    for message in events.into_messages(7) {
        let value: Value = serde_json::from_slice(&message.body).unwrap();
        must_be_valid(schema, &value, &value.to_string());
    }
}

/// Names of fields, with the path to them; lists are passed through.
fn fields(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| fields(item, at, found)),
        Value::Object(map) => {
            for (name, field) in map {
                let path = format!("{at}/{name}");
                fields(field, &path, found);
                found.insert(path);
            }
        }
        _ => {}
    }
}

fn declared(schema: &Value, whole: &Value, at: &str, found: &mut BTreeSet<String>) {
    if let Some(pointer) = schema["$ref"].as_str() {
        let pointer = pointer.strip_prefix('#').unwrap();
        declared(whole.pointer(pointer).unwrap(), whole, at, found);
    }
    if schema["items"].is_object() {
        declared(&schema["items"], whole, at, found);
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{at}/{name}");
        declared(field, whole, &path, found);
        found.insert(path);
    }
}

#[test]
fn the_examples_use_every_field_of_the_schemas_and_no_other() {
    for name in [
        "push-ended.v1",
        "device-done.v1",
        "approval-ended.v1",
        "fraud-reported.v1",
        "job.v1",
        "instance-report.v1",
    ] {
        let (mut used, mut known) = (BTreeSet::new(), BTreeSet::new());
        for (_, schema, value) in singles() {
            if schema == name {
                fields(&value, "", &mut used);
            }
        }
        let schema = schema_of(name);
        declared(&schema, &schema, "", &mut known);
        assert_eq!(used, known, "{name}");
    }
}

#[test]
fn pages_and_channels_name_every_type_key_and_exchange() {
    let written: BTreeSet<_> = rows(section(&read("docs/events.md"), "## Types"))
        .flat_map(|row| words(row[0]))
        .collect();
    assert_eq!(written, all_kinds());
    let mut in_schemas = BTreeSet::new();
    for name in [
        "push-ended.v1",
        "device-done.v1",
        "approval-ended.v1",
        "fraud-reported.v1",
    ] {
        let types = &schema_of(name)["properties"]["type"]["enum"];
        in_schemas.extend(
            types
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one.as_str().unwrap().to_owned()),
        );
    }
    assert_eq!(in_schemas, all_kinds());
    let channels = read("contracts/asyncapi.yaml");
    for kind in all_kinds() {
        let name = kind.split('.').nth(2).unwrap();
        assert!(
            channels.contains(&format!("          - {name}\n")),
            "{name}"
        );
    }
    for kind in Kind::ALL {
        assert!(channels.contains(kind.as_str()));
    }
    for content_type in [EVENT, EVENT_BATCH, JOB, INSTANCE_REPORT] {
        assert!(channels.contains(content_type), "{content_type}");
        assert!(
            read("docs/events.md").contains(content_type),
            "{content_type}"
        );
    }
    for (_, rest) in channels
        .match_indices("'./")
        .map(|(at, _)| channels.split_at(at + 3))
    {
        let file = rest.split('\'').next().unwrap();
        assert!(root().join("contracts").join(file).exists(), "{file}");
    }
    let topology = Topology::new(&Names::new("cs"), None);
    for (_, rest) in channels
        .match_indices("name: cs.")
        .map(|(at, _)| channels.split_at(at + 6))
    {
        let name = rest.split_whitespace().next().unwrap();
        assert!(
            topology.exchanges.iter().any(|one| one.name == name),
            "{name}"
        );
    }
}

/// Names in backticks that begin with `start`.
fn named(text: &str, start: &str) -> BTreeSet<String> {
    let all = words(&text.replace("```", ""));
    all.into_iter()
        .filter(|word| word.starts_with(start) && !word.contains([' ', '<', '*']))
        .collect()
}

#[test]
fn the_runbook_names_queues_metrics_and_reasons_that_exist() {
    let text = read("docs/runbook.md");
    let topology = Topology::new(&Names::new("cs"), None);
    let ours: BTreeSet<_> = topology.queues.iter().map(|one| one.name.clone()).collect();
    let table = section(&text, "## Queues");
    let tiers = ours.iter().filter(|name| name.starts_with("cs.retry."));
    let mut written: BTreeSet<_> = rows(table).flat_map(|row| words(row[0])).collect();
    assert!(written.remove("cs.retry.<n>s"));
    written.extend(tiers.cloned());
    assert_eq!(written, ours);
    let mut code = String::new();
    // The simulated providers know the words of the real ones.
    for part in ["shared", "api", "workers", "cli", "simulator"].map(|one| format!("{one}/src")) {
        sources(&root().join(part), "rs", &mut code);
    }
    let metrics = named(&text, "countersign_");
    assert!(metrics.len() > 8);
    for name in metrics {
        assert!(code.contains(&format!("\"{name}\"")), "{name}");
    }
    let (_, reasons) = section(&text, "## Parked messages")
        .split_once("| reason |")
        .unwrap();
    let reasons = rows(reasons).map(|row| words(row[0])).collect::<Vec<_>>();
    assert!(reasons.len() > 3);
    for reason in reasons.into_iter().flatten() {
        let part = reason
            .split('…')
            .map(str::trim)
            .max_by_key(|part| part.len())
            .unwrap();
        assert!(code.contains(part), "{reason}");
    }
    for row in rows(section(&text, "## Paused credentials")) {
        for word in words(row[0]) {
            assert!(code.contains(&word), "{word}");
        }
    }
}
