//! The kind process: a link that is opened once, and a child process instance whose end is the push's.

use harness::{Footing, World, footings};
use serde_json::{Value, json};
use shared::clock::{Clock as _, SystemClock, rfc3339};
use shared::crypto::{ServerSecret, report_mac};
use shared::domain::{InstanceState, Provider};
use shared::id::{InstanceId, PushId};
use shared::secret::Secret;
use simulator::phone::{Decision, Phone, Prompt};
use std::time::Duration;

/// The path of a process push's link.
fn path_of(prompt: &Prompt) -> &str {
    let link = prompt.shown["redirect_url"].as_str().unwrap();
    link.strip_prefix("http://sign.example").unwrap()
}

/// A process push as the phone has it.
async fn asked(world: &World, phone: &Phone, more: &Value) -> (PushId, Prompt) {
    let mut process =
        json!({"definition": "onboard", "tag": "live", "parameters": {"amount": "5 EUR", "n": 3}});
    if let (Some(process), Some(more)) = (process.as_object_mut(), more.as_object()) {
        process.extend(more.clone());
    }
    let ask = json!({"kind": "process", "process": process});
    let (push, _) = world.send(&ask).await;
    let prompt = world.rung(phone, &push).await;
    (push, prompt)
}

async fn start(footing: Footing, test: &str) -> (World, Phone) {
    let world = World::start(footing, test).await;
    let definition = json!({"name": "onboard", "version": 1, "tag": "live", "start_url": "https://bank.example/start?x=1"});
    world
        .in_store("POST", "process-definitions", &definition)
        .await;
    let phone = world.phone("apple", Provider::Apns).await;
    (world, phone)
}

/// A call of a browser or a scanner. Gives the status and everything behind it.
async fn browse(world: &World, method: &str, path: &str, accept: &str) -> (u16, String) {
    let accept = [("accept", accept)];
    harness::raw(world.address(), (method, path), &accept, "").await
}

/// Presses the button on the page of a link.
async fn press(world: &World, path: &str) -> (u16, String) {
    browse(world, "POST", path, "text/html").await
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let (head, _) = answer.split_once("\r\n\r\n")?;
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_a_link_spends_nothing_and_its_button_opens_it_once() {
    for footing in footings() {
        let (world, phone) = start(footing, "process-look").await;
        let (push, prompt) = asked(&world, &phone, &json!({})).await;
        let path = path_of(&prompt);
        // Mail scanners, previews and prefetching browsers.
        for (method, accept) in [("GET", "*/*"), ("HEAD", "*/*"), ("GET", "text/html")] {
            for _ in 0..3 {
                let (status, answer) = browse(&world, method, path, accept).await;
                assert_eq!(status, 200, "{footing:?} {method}");
                let policy = header(&answer, "content-security-policy").unwrap();
                assert!(
                    policy.starts_with("default-src 'none'; style-src 'sha256-"),
                    "{policy}"
                );
                assert_eq!(header(&answer, "cache-control"), Some("no-store"));
                assert_eq!(header(&answer, "referrer-policy"), Some("no-referrer"));
                let (_, body) = answer.split_once("\r\n\r\n").unwrap();
                assert_eq!(
                    body.contains("<form method=post>"),
                    method == "GET",
                    "{body}"
                );
                assert!(
                    !body.contains("Sign in") && !body.contains("<script"),
                    "{body}"
                );
            }
        }
        assert_eq!(world.show(&push).await["state"], "pending", "{footing:?}");
        let (status, answer) = press(&world, path).await;
        assert_eq!(status, 303, "{footing:?}");
        let instance = world.show(&push).await["instance"]
            .as_str()
            .unwrap()
            .to_owned();
        let to = header(&answer, "location").unwrap();
        let start = format!("https://bank.example/start?x=1&instance={instance}&push={push}&");
        assert!(to.starts_with(&start), "{to}");
        assert!(to.ends_with("&amount=5%20EUR&n=3"), "{to}");
        // Only where an engine can report over the broker is there something to sign it with.
        assert_eq!(to.contains("&report="), footing == Footing::Servers, "{to}");
        assert_eq!(header(&answer, "cache-control"), Some("no-store"));
        // Used: whoever comes later, and however.
        for method in ["POST", "GET"] {
            let (status, answer) = browse(&world, method, path, "text/html").await;
            assert_eq!(status, 410, "{footing:?}");
            assert!(
                answer.contains("This link was used or its time is over</h1>"),
                "{answer}"
            );
            let (status, answer) = browse(&world, method, path, "application/json").await;
            assert_eq!(status, 410);
            assert!(answer.contains("\"code\":\"link_spent\""), "{answer}");
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_who_press_the_button_at_once_start_one_child() {
    for footing in footings() {
        let (world, phone) = start(footing, "process-race").await;
        let (push, prompt) = asked(&world, &phone, &json!({})).await;
        let presses = (0..20).map(|_| press(&world, path_of(&prompt)));
        let answers = futures_util::future::join_all(presses).await;
        let opened = answers.iter().filter(|(status, _)| *status == 303).count();
        let spent = answers.iter().filter(|(status, _)| *status == 410).count();
        assert_eq!((opened, spent), (1, 19), "{footing:?}");
        assert_eq!(world.show(&push).await["state"], "opened");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_early_or_late_is_refused_and_early_does_no_harm() {
    for footing in footings() {
        let (world, phone) = start(footing, "process-window").await;
        let now = SystemClock.now();
        let soon = now + 4_000;
        let window = json!({"not_before": rfc3339(soon), "not_after": rfc3339(now + 60_000)});
        let (push, prompt) = asked(&world, &phone, &window).await;
        let path = path_of(&prompt);
        for method in ["GET", "POST"] {
            let (status, answer) = browse(&world, method, path, "application/json").await;
            assert!(SystemClock.now() < soon, "too slow for this test");
            assert_eq!(status, 409, "{footing:?}");
            assert!(answer.contains("\"code\":\"link_early\""), "{answer}");
            let (_, page) = browse(&world, method, path, "text/html").await;
            assert!(
                page.contains("This link cannot be opened yet</h1>"),
                "{page}"
            );
        }
        assert_eq!(world.show(&push).await["state"], "pending");
        let late = json!({"not_after": rfc3339(SystemClock.now() + 1_500)});
        let (_, missed) = asked(&world, &phone, &late).await;
        tokio::time::sleep(Duration::from_millis(4_100)).await;
        assert_eq!(
            press(&world, path).await.0,
            303,
            "{footing:?}: its time has come"
        );
        assert_eq!(
            press(&world, path_of(&missed)).await.0,
            410,
            "{footing:?}: too late"
        );
        for (bad, pointer) in [
            (
                json!({"not_before": "soon, I think so.... "}),
                "/process/not_before",
            ),
            (
                json!({"not_before": rfc3339(now + 700_000)}),
                "/process/not_before",
            ),
            (json!({"not_after": rfc3339(now - 1)}), "/process/not_after"),
            (
                json!({"not_after": rfc3339(now + 700_000)}),
                "/process/not_after",
            ),
            (
                json!({"not_before": rfc3339(now + 90_000), "not_after": rfc3339(now + 90_000)}),
                "/process/not_after",
            ),
        ] {
            let mut process = json!({"definition": "onboard"});
            process
                .as_object_mut()
                .unwrap()
                .extend(bad.as_object().unwrap().clone());
            let body = World::confirm(&json!({"kind": "process", "process": process}));
            let refused = world.reply("POST", "pushes", &body, &[]).await;
            assert_eq!(refused.status.as_u16(), 422, "{process}");
            assert_eq!(refused.body["errors"][0]["pointer"], pointer, "{process}");
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_of_the_child_means_its_outcome_and_ends_the_wait() {
    for footing in footings() {
        let (world, phone) = start(footing, "process-states").await;
        for (status, state, reason) in [
            ("ended_success", "approved", "ended_success"),
            ("ended_error", "denied", "policy"),
            ("terminated", "denied", "user_cancelled"),
            ("process_error", "failed", "internal"),
        ] {
            let (push, prompt) = asked(&world, &phone, &json!({"max_duration": "60s"})).await;
            // A proof cannot stand in for the link.
            let yes = Decision::Approve { code: None };
            assert_eq!(phone.answer(&prompt, &yes).await.unwrap().status, 422);
            press(&world, path_of(&prompt)).await;
            let instance = world.show(&push).await["instance"]
                .as_str()
                .unwrap()
                .to_owned();
            let path = format!("instances/{instance}");
            let begun = world.in_store("GET", &path, &Value::Null).await;
            assert_eq!(
                (&begun["status"], &begun["push"]),
                (&json!("pending"), &json!(push))
            );
            let mut ends = begun["expires_at"].as_str().unwrap().to_owned();
            for step in ["active", "review", "review"] {
                let progress = format!("{path}/progress");
                let shown = world
                    .in_store("POST", &progress, &json!({"status": step}))
                    .await;
                assert_eq!(
                    (&shown["status"], &shown["state"]),
                    (&json!(step), &json!("opened"))
                );
                let now = shown["expires_at"].as_str().unwrap().to_owned();
                assert_eq!(
                    now > ends,
                    step == "review" && begun["expires_at"] == ends,
                    "{step}"
                );
                ends = now;
            }
            let complete = format!("{path}/complete");
            let end = json!({"status": status});
            let waiting = world.ended(&push);
            let ending = world.in_store("POST", &complete, &end);
            let (ended, _) = tokio::join!(waiting, ending);
            assert_eq!(
                (&ended["state"], &ended["reason"]),
                (&json!(state), &json!(reason)),
                "{footing:?}"
            );
            assert_eq!(
                world
                    .reply("POST", &complete, &end, &[])
                    .await
                    .status
                    .as_u16(),
                200
            );
            let other = if status == "terminated" {
                "ended_success"
            } else {
                "terminated"
            };
            for (path, body) in [
                (complete, json!({"status": other})),
                (format!("{path}/progress"), json!({"status": "active"})),
            ] {
                let late = world.reply("POST", &path, &body, &[]).await;
                assert_eq!(
                    (late.status.as_u16(), &late.body["code"]),
                    (409, &json!("push_ended"))
                );
            }
            let shown = world.in_store("GET", &path, &Value::Null).await;
            assert_eq!(shown["status"], status);
        }
        let nowhere = "instances/ins_00000000000000000000000000";
        assert_eq!(
            world
                .reply("GET", nowhere, &Value::Null, &[])
                .await
                .status
                .as_u16(),
            404
        );
        world.end().await;
    }
}

/// A process engine of a third party: it may publish to the way in.
struct Engine {
    channel: lapin::Channel,
    exchange: String,
    parking: String,
    _connection: lapin::Connection,
}

impl Engine {
    async fn open(world: &World) -> Self {
        let properties = lapin::ConnectionProperties::default();
        let connection = lapin::Connection::connect(&world.amqp_url(), properties)
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(lapin::options::ConfirmSelectOptions::default())
            .await
            .unwrap();
        Self {
            channel,
            exchange: format!("{}.ingress", world.prefix),
            parking: format!("{}.parking", world.prefix),
            _connection: connection,
        }
    }

    async fn publish(&self, body: &str) {
        let options = lapin::options::BasicPublishOptions {
            mandatory: true,
            ..lapin::options::BasicPublishOptions::default()
        };
        let sent = self.channel.basic_publish(
            self.exchange.as_str().into(),
            "instance".into(),
            options,
            body.as_bytes(),
            lapin::BasicProperties::default(),
        );
        let confirmed = sent.await.unwrap().await.unwrap();
        assert!(
            matches!(confirmed, lapin::Confirmation::Ack(None)),
            "{confirmed:?}"
        );
    }

    async fn report(&self, child: &Child, status: &str) {
        self.publish(&child.report(status).to_string()).await;
    }

    /// The reason of the next parked message.
    async fn parked(&self) -> String {
        let options = lapin::options::BasicGetOptions { no_ack: true };
        harness::until(20, "parked", || async {
            let got = self
                .channel
                .basic_get(self.parking.as_str().into(), options)
                .await
                .unwrap()?;
            let headers = got.delivery.properties.headers().clone().unwrap();
            match headers.inner().get("park_reason") {
                Some(lapin::types::AMQPValue::LongString(text)) => Some(text.to_string()),
                other => panic!("{other:?}"),
            }
        })
        .await
    }
}

/// What the page that a link leads to was given.
#[derive(Clone)]
struct Child {
    push: PushId,
    instance: InstanceId,
    token: Secret,
}

impl Child {
    async fn begin(world: &World, phone: &Phone) -> Self {
        let (push, prompt) = asked(world, phone, &json!({})).await;
        let (status, answer) = press(world, path_of(&prompt)).await;
        assert_eq!(status, 303);
        let query = header(&answer, "location").unwrap();
        let part = |name: &str| {
            let found = query
                .split(['?', '&'])
                .find_map(|pair| pair.strip_prefix(name));
            found
                .unwrap_or_else(|| panic!("no {name} in {query}"))
                .to_owned()
        };
        let token = part("report=");
        world.secret(&token);
        Self {
            push,
            instance: part("instance=").parse().unwrap(),
            token: Secret::new(token),
        }
    }

    fn report(&self, status: &str) -> Value {
        let word = InstanceState::parse(status).unwrap();
        let mac = report_mac(&self.token, &self.instance, word);
        json!({"v": 1, "instance": self.instance, "status": status, "mac": mac})
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_engine_reports_over_amqp_and_each_end_ends_the_wait() {
    if !footings().contains(&Footing::Servers) {
        return;
    }
    let (world, phone) = start(Footing::Servers, "process-amqp").await;
    let engine = Engine::open(&world).await;
    for (status, state, reason) in [
        ("ended_success", "approved", "ended_success"),
        ("ended_error", "denied", "policy"),
        ("terminated", "denied", "user_cancelled"),
        ("process_error", "failed", "internal"),
    ] {
        let child = Child::begin(&world, &phone).await;
        let path = format!("instances/{}", child.instance);
        for step in ["active", "review"] {
            engine.report(&child, step).await;
            harness::until(20, step, || async {
                let shown = world.in_store("GET", &path, &Value::Null).await;
                (shown["status"] == step && shown["state"] == "opened").then_some(())
            })
            .await;
        }
        let waiting = world.ended(&child.push);
        let ending = async {
            // As often as the engine likes.
            for _ in 0..5 {
                engine.report(&child, status).await;
            }
        };
        let (ended, ()) = tokio::join!(waiting, ending);
        assert_eq!(
            (&ended["state"], &ended["reason"]),
            (&json!(state), &json!(reason))
        );
        // Too late: nothing changes, and nobody has to look at it.
        for late in ["ended_success", "terminated", "active"] {
            engine.report(&child, late).await;
        }
        let (push, _) = world.send(&Value::Null).await;
        world.rung(&phone, &push).await;
        let shown = world.in_store("GET", &path, &Value::Null).await;
        assert_eq!(
            (&shown["status"], &shown["state"]),
            (&json!(status), &json!(state))
        );
    }
    engine.publish("poison at the end").await;
    let first = engine.parked().await;
    assert!(
        first.starts_with("not a report of an instance"),
        "only the poison is parked: {first}"
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_forged_malformed_or_unknown_is_parked_and_changes_nothing() {
    if !footings().contains(&Footing::Servers) {
        return;
    }
    let (world, phone) = start(Footing::Servers, "process-forged").await;
    let engine = Engine::open(&world).await;
    let child = Child::begin(&world, &phone).await;
    let other = Child::begin(&world, &phone).await;
    let unsigned = "not signed with its report token";
    let of_another_token = Child {
        token: other.token.clone(),
        ..child.clone()
    };
    // The token is right, but it is for another status.
    let mut turned = child.report("ended_error");
    turned["status"] = "ended_success".into();
    let mut bare = child.report("ended_success");
    bare["mac"] = child.token.expose()[..10].into();
    let unknown: InstanceId = "ins_00000000000000000000000000".parse().unwrap();
    let known = ServerSecret::new(&Secret::new("0123456789".repeat(5))).unwrap();
    let nobody = Child {
        token: known.report_token(&unknown),
        instance: unknown,
        push: child.push.clone(),
    };
    let mut newer = child.report("ended_success");
    newer["v"] = 2.into();
    for (body, reason) in [
        (of_another_token.report("ended_success"), unsigned),
        (turned, unsigned),
        (bare, unsigned),
        (nobody.report("ended_success"), "no such instance"),
        (newer, "version 2 of a report is not known"),
        (child.report("pending"), "an instance is pending by itself"),
        (
            json!({"instance": child.instance}),
            "not a report of an instance",
        ),
        (json!([]), "not a report of an instance"),
    ] {
        engine.publish(&body.to_string()).await;
        let parked = engine.parked().await;
        assert!(parked.contains(reason), "{body}: {parked}");
    }
    assert_eq!(world.show(&child.push).await["state"], "opened");
    engine.report(&child, "ended_success").await;
    assert_eq!(world.ended(&child.push).await["state"], "approved");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_push_can_be_denied_and_bad_links_and_definitions_are_told() {
    for footing in footings() {
        let (world, phone) = start(footing, "process-deny").await;
        let (push, prompt) = asked(&world, &phone, &json!({})).await;
        let no = Decision::Deny {
            reason: Some("user_cancelled".to_owned()),
        };
        assert_eq!(
            phone.answer(&prompt, &no).await.unwrap().status,
            200,
            "{footing:?}"
        );
        assert_eq!(world.ended(&push).await["reason"], "user_cancelled");
        assert_eq!(press(&world, path_of(&prompt)).await.0, 410);
        let (status, answer) = press(&world, "/v1/process/nonsense").await;
        assert_eq!(status, 404);
        assert!(answer.contains("This link leads nowhere</h1>"), "{answer}");
        let (status, answer) = browse(&world, "GET", "/v1/process/nonsense", "*/*").await;
        assert_eq!(status, 404);
        assert!(answer.contains("\"code\":\"link_unknown\""), "{answer}");
        let unknown =
            World::confirm(&json!({"kind": "process", "process": {"definition": "nope"}}));
        let refused = world.reply("POST", "pushes", &unknown, &[]).await;
        assert_eq!(refused.status.as_u16(), 422);
        assert_eq!(refused.body["errors"][0]["pointer"], "/process/definition");
        world.end().await;
    }
}
