//! The kind process: a link that is opened once, and a child process instance whose end is the push's.

use harness::{World, footings};
use serde_json::{Value, json};
use shared::clock::{Clock as _, SystemClock, rfc3339};
use shared::domain::Provider;
use shared::id::PushId;
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

async fn start(footing: harness::Footing, test: &str) -> (World, Phone) {
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
        let start = format!(
            "https://bank.example/start?x=1&instance={instance}&push={push}&amount=5%20EUR&n=3"
        );
        assert!(to.starts_with(&start), "{to}");
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
