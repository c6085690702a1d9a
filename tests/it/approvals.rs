//! Approvals by several people, end to end: how they are decided, who is left alone then, who is told, and how one is used.

use futures_util::future::join_all;
use harness::{Footing, RP, Tap, World, footings, until};
use serde_json::{Value, json};
use shared::domain::Provider;
use shared::id::PushId;
use simulator::phone::{Decision, Phone};

/// A world in which these people have a phone each, of their own name.
async fn world_of(footing: Footing, test: &str, names: &[&str]) -> (World, Vec<Phone>) {
    let world = World::start(footing, test).await;
    let mut phones = Vec::new();
    for name in names {
        let user = match *name {
            "ada" => world.user.clone(),
            other => {
                let body = json!({"external_id": other});
                let made = world.in_store("POST", "users", &body).await;
                made["id"].as_str().unwrap().to_owned()
            }
        };
        let phone = Phone::new(Provider::Apns, *name);
        world.register_for(&user, &phone).await;
        phones.push(phone);
    }
    (world, phones)
}

/// What is asked of them, with `more` on top.
fn question(names: &[&str], required: usize, more: &Value) -> Value {
    let people = names
        .iter()
        .map(|name| json!({"user": {"external_id": name}}));
    let mut body = json!({"approvers": people.collect::<Vec<_>>(), "required": required, "relying_party": RP, "title": "Pay Acme",
        "payment": {"amount": "40000.00", "currency": "EUR", "payee": {"name": "Acme", "account": "DE89370400440532013000"}}});
    if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
        body.extend(more.clone());
    }
    body
}

/// An approval that was taken, and its members' pushes and codes.
struct Asked {
    id: String,
    pushes: Vec<PushId>,
    codes: Vec<Option<String>>,
}

async fn ask(world: &World, body: &Value) -> Asked {
    let made = world.in_store("POST", "approvals", body).await;
    assert_eq!(made["state"], "pending", "{made}");
    let members = made["members"].as_array().unwrap();
    Asked {
        id: made["id"].as_str().unwrap().to_owned(),
        pushes: members
            .iter()
            .map(|one| one["push"].as_str().unwrap().parse().unwrap())
            .collect(),
        codes: members
            .iter()
            .map(|one| one["match_code"].as_str().map(str::to_owned))
            .collect(),
    }
}

impl Asked {
    async fn show(&self, world: &World) -> Value {
        let path = format!("approvals/{}", self.id);
        world.in_store("GET", &path, &Value::Null).await
    }

    /// Waits for its end as a caller does.
    async fn ended(&self, world: &World) -> Value {
        let path = format!("approvals/{}", self.id);
        let prefer = [("prefer", "wait=30")];
        let reply = world.reply("GET", &path, &Value::Null, &prefer).await;
        assert_eq!(reply.status.as_u16(), 200, "{}", reply.body);
        for member in reply.body["members"].as_array().unwrap() {
            let open = matches!(member["state"].as_str(), Some("accepted" | "pending"));
            assert!(!open, "{}", reply.body);
        }
        reply.body
    }

    async fn answer(&self, phones: &[Phone], n: usize, yes: bool) -> u16 {
        let prompt = phones[n].fetch(&self.pushes[n]).await.unwrap();
        let decision = if yes {
            let code = self.codes[n].clone();
            Decision::Approve { code }
        } else {
            Decision::Deny { reason: None }
        };
        phones[n].answer(&prompt, &decision).await.unwrap().status
    }
}

fn came(shown: &Value) -> (&str, &str) {
    let text = |name: &str| shown[name].as_str().unwrap();
    (text("state"), text("reason"))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_approve_and_the_third_is_asked_no_more() {
    for footing in footings() {
        let names = ["ada", "grace", "alan"];
        let (world, phones) = world_of(footing, "quorum", &names).await;
        let body = question(&names, 2, &json!({"correlation_id": "payment 7"}));
        let asked = ask(&world, &body).await;
        assert!(asked.codes.iter().all(Option::is_some));
        assert_ne!(
            asked.codes[0], asked.codes[1],
            "each has a code of their own"
        );
        let prompt = world.rung(&phones[0], &asked.pushes[0]).await;
        assert_eq!(prompt.shown["approval"], json!({"required": 2, "of": 3}));
        world.rung(&phones[2], &asked.pushes[2]).await;
        // The hash covers it: a phone that was shown another number has proved nothing.
        let mut other = prompt.clone();
        other.shown["approval"]["required"] = json!(1);
        let code = asked.codes[0].clone();
        let proof = phones[0].proof(&other, &Decision::Approve { code });
        let refused = phones[0].send_proof(&prompt.push, &proof.unwrap()).await;
        assert_eq!(refused.unwrap().status, 422, "{footing:?}");
        // Somebody else's code is as good as none.
        let code = asked.codes[1].clone();
        let wrong = phones[0].answer(&prompt, &Decision::Approve { code }).await;
        assert_eq!(wrong.unwrap().status, 422, "{footing:?}");

        assert_eq!(asked.answer(&phones, 0, true).await, 200);
        assert_eq!(came(&asked.show(&world).await), ("pending", ""));
        let waiting = asked.ended(&world);
        let (shown, status) = tokio::join!(waiting, asked.answer(&phones, 1, true));
        assert_eq!(status, 200, "{footing:?}");
        assert_eq!(came(&shown), ("approved", "enough_approved"), "{footing:?}");
        assert_eq!(came(&shown["members"][2]), ("cancelled", "decided"));
        assert_eq!(shown["correlation_id"], "payment 7");
        assert_eq!((&shown["required"], &shown["of"]), (&json!(2), &json!(3)));
        assert!(phones[2].pending().await.unwrap().is_empty());
        assert_eq!(asked.answer(&phones, 2, true).await, 409, "{footing:?}");
        let member = world.show(&asked.pushes[0]).await;
        assert_eq!(member["approval"], asked.id.as_str());
        // Each approver's proof is in a receipt of its own.
        until(10, "the receipt", || async {
            let path = format!("pushes/{}/receipt", asked.pushes[1]);
            let reply = world.reply("GET", &path, &Value::Null, &[]).await;
            (reply.status.as_u16() == 200).then_some(())
        })
        .await;
        let list = world.in_store("GET", "approvals?state=approved", &Value::Null);
        let list = list.await;
        assert_eq!(list["data"][0]["id"], asked.id.as_str());
        assert!(list["data"][0].get("members").is_none());
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_end_it_when_too_few_are_left_or_when_one_is_said_to_or_is_fraud() {
    for footing in footings() {
        let names = ["ada", "grace", "alan"];
        let (world, phones) = world_of(footing, "denials", &names).await;
        let asked = ask(&world, &question(&names, 2, &Value::Null)).await;
        asked.answer(&phones, 0, false).await;
        assert_eq!(came(&asked.show(&world).await), ("pending", ""));
        asked.answer(&phones, 1, false).await;
        let shown = asked.ended(&world).await;
        assert_eq!(came(&shown), ("denied", "too_few_left"), "{footing:?}");

        let asked = ask(&world, &question(&names, 2, &json!({"on_denial": "end"}))).await;
        asked.answer(&phones, 0, false).await;
        let shown = asked.ended(&world).await;
        assert_eq!(came(&shown), ("denied", "member_denied"), "{footing:?}");

        let more = json!({"initiator": "session 1"});
        let asked = ask(&world, &question(&names, 1, &more)).await;
        let prompt = phones[2].fetch(&asked.pushes[2]).await.unwrap();
        let fraud = Decision::Deny {
            reason: Some("fraud_reported".to_owned()),
        };
        phones[2].answer(&prompt, &fraud).await.unwrap();
        let shown = asked.ended(&world).await;
        assert_eq!(came(&shown), ("denied", "fraud_reported"), "{footing:?}");
        assert_eq!(came(&shown["members"][0]), ("cancelled", "decided"));
        let locked = world
            .reply("POST", "approvals", &question(&names, 1, &more), &[])
            .await;
        assert_eq!(locked.body["code"], "initiator_locked", "{}", locked.body);
        assert_eq!(locked.body["approver"], 0);
        world.end().await;
    }
}

/// Bodies, and what is wrong with each; `names` are those of the user `user` and another one.
fn faulty(names: &[&str], user: &str) -> Vec<(Value, Vec<(String, String)>)> {
    let both = |n: usize, name: &str| (format!("/approvers/{n}/user"), name.to_owned());
    let ada = json!({"id": user});
    vec![
        (
            question(names, 1, &json!({"requested_by": ada})),
            vec![both(0, "four_eyes")],
        ),
        (
            question(
                names,
                1,
                &json!({"requested_by": {"external_id": "nobody"}}),
            ),
            vec![("/requested_by".to_owned(), "unknown_user".to_owned())],
        ),
        (
            question(names, 1, &json!({"requested_by": {}})),
            vec![("/requested_by".to_owned(), "invalid".to_owned())],
        ),
        // One person under two names.
        (
            question(
                names,
                1,
                &json!({"approvers": [{"user": {"external_id": "ada"}}, {"user": {"external_id": "grace"}}, {"user": ada}]}),
            ),
            vec![both(2, "duplicate")],
        ),
        (
            question(&["ada", "nobody"], 1, &Value::Null),
            vec![both(1, "unknown_user")],
        ),
        (
            question(&["ada"], 1, &Value::Null),
            vec![("/approvers".to_owned(), "too_few".to_owned())],
        ),
        (
            question(names, 3, &Value::Null),
            vec![("/required".to_owned(), "too_large".to_owned())],
        ),
        (
            question(names, 0, &Value::Null),
            vec![("/required".to_owned(), "too_small".to_owned())],
        ),
        (
            question(
                names,
                1,
                &json!({"kind": "generic", "user": ada, "expires_in": "5s"}),
            ),
            vec![
                ("/expires_in".to_owned(), "out_of_range".to_owned()),
                ("/kind".to_owned(), "unknown_field".to_owned()),
                ("/user".to_owned(), "unknown_field".to_owned()),
            ],
        ),
        (
            question(
                names,
                1,
                &json!({"target": {"mode": "devices", "devices": ["dev_00000000000000000000000000"]}}),
            ),
            vec![("/target/mode".to_owned(), "not_allowed".to_owned())],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_told_and_nobody_approves_what_they_want_themselves() {
    for footing in footings() {
        let names = ["ada", "grace"];
        let (world, _) = world_of(footing, "four-eyes", &names).await;
        for (body, wanted) in faulty(&names, &world.user) {
            let reply = world.reply("POST", "approvals", &body, &[]).await;
            assert_eq!(reply.status.as_u16(), 422, "{footing:?} {}", reply.body);
            let faults = reply.body["errors"].as_array().unwrap();
            let text = |fault: &Value, name: &str| fault[name].as_str().unwrap().to_owned();
            let mut told: Vec<_> = faults
                .iter()
                .map(|fault| (text(fault, "pointer"), text(fault, "code")))
                .collect();
            told.sort();
            assert_eq!(told, wanted, "{footing:?} {body}");
        }
        // Somebody who may not be asked is named, and nobody is asked.
        let path = format!("users/{}", world.user);
        world
            .in_store("PATCH", &path, &json!({"status": "locked"}))
            .await;
        let reply = world
            .reply(
                "POST",
                "approvals",
                &question(&["grace", "ada"], 1, &Value::Null),
                &[],
            )
            .await;
        let told = (&reply.body["code"], &reply.body["approver"]);
        assert_eq!(told, (&json!("user_inactive"), &json!(1)), "{footing:?}");
        let pushes = world.in_store("GET", "pushes", &Value::Null).await;
        assert_eq!(pushes["data"], json!([]), "{footing:?}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_expires_where_too_few_answer_and_fails_where_too_few_can_be_asked() {
    for footing in footings() {
        let names = ["ada", "grace"];
        let (world, phones) = world_of(footing, "approval-time", &names).await;
        let body = json!({"external_id": "phoneless"});
        world.in_store("POST", "users", &body).await;
        let late = ask(&world, &question(&names, 2, &json!({"expires_in": "10s"}))).await;
        assert_eq!(late.answer(&phones, 0, true).await, 200);
        let people = ["ada", "phoneless"];
        let lonely = ask(&world, &question(&people, 2, &Value::Null)).await;
        let shown = lonely.ended(&world).await;
        assert_eq!(came(&shown), ("failed", "too_few_left"), "{footing:?}");
        assert_eq!(came(&shown["members"][1]), ("failed", "no_devices"));
        let shown = late.ended(&world).await;
        assert_eq!(came(&shown), ("expired", "too_few_left"), "{footing:?}");
        assert_eq!(shown["members"][0]["state"], "approved");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_taken_back_once_and_one_key_asks_once() {
    for footing in footings() {
        let names = ["ada", "grace", "alan"];
        let (world, phones) = world_of(footing, "approval-back", &names).await;
        let body = question(&names, 2, &Value::Null);
        let key = [("idempotency-key", "payment-7")];
        let first = world.reply("POST", "approvals", &body, &key).await;
        assert_eq!(first.status.as_u16(), 202, "{}", first.body);
        let again = world.reply("POST", "approvals", &body, &key).await;
        assert_eq!(again.body, first.body, "the same codes too: {footing:?}");
        let other = question(&names, 3, &Value::Null);
        let other = world.reply("POST", "approvals", &other, &key).await;
        assert_eq!(other.body["code"], "idempotency_reused");
        let pushes = world.in_store("GET", "pushes", &Value::Null).await;
        assert_eq!(pushes["data"].as_array().unwrap().len(), 3);

        let path = format!("approvals/{}/cancel", first.body["id"].as_str().unwrap());
        let back = world.in_store("POST", &path, &Value::Null).await;
        assert_eq!(came(&back), ("cancelled", "by_sender"), "{footing:?}");
        for member in back["members"].as_array().unwrap() {
            assert_eq!(came(member), ("cancelled", "approval_cancelled"));
        }
        let twice = world.in_store("POST", &path, &Value::Null).await;
        assert_eq!(twice, back);
        let decided = ask(&world, &question(&names, 1, &Value::Null)).await;
        decided.answer(&phones, 0, true).await;
        decided.ended(&world).await;
        let path = format!("approvals/{}/cancel", decided.id);
        let late = world.reply("POST", &path, &Value::Null, &[]).await;
        let told = (&late.body["code"], &late.body["state"]);
        assert_eq!(told, (&json!("approval_ended"), &json!("approved")));
        // Of another store it is not there.
        let store = world
            .ask("POST", "/v1/stores", &json!({"name": "Other"}))
            .await;
        let path = format!(
            "/v1/stores/{}/approvals/{}",
            store["id"].as_str().unwrap(),
            decided.id
        );
        let wait = std::time::Duration::ZERO;
        let foreign = world.client.call("GET", &path, None, &[], wait).await;
        assert_eq!(foreign.unwrap().status.as_u16(), 404);
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_used_once_for_what_was_approved_and_its_parts_never() {
    for footing in footings() {
        let names = ["ada", "grace", "alan"];
        let (world, phones) = world_of(footing, "approval-use", &names).await;
        let body = question(&names, 2, &Value::Null);
        let asked = ask(&world, &body).await;
        let path = format!("approvals/{}/consume", asked.id);
        let payment = json!({"payment": body["payment"]});
        let early = world.reply("POST", &path, &payment, &[]).await;
        assert_eq!(early.body["code"], "not_approved", "{footing:?}");
        asked.answer(&phones, 0, true).await;
        asked.answer(&phones, 1, true).await;
        asked.ended(&world).await;
        let part = format!("pushes/{}/consume", asked.pushes[0]);
        let part = world.reply("POST", &part, &payment, &[]).await;
        let told = (&part.body["code"], &part.body["approval"]);
        assert_eq!(told, (&json!("member_of_approval"), &json!(asked.id)));
        let mut other = payment.clone();
        other["payment"]["amount"] = "40000.01".into();
        let other = world.reply("POST", &path, &other, &[]).await;
        assert_eq!(other.body["code"], "action_differs", "{footing:?}");
        let all = (0..5).map(|_| world.reply("POST", &path, &payment, &[]));
        let all = join_all(all).await;
        let used = all.iter().filter(|one| one.status.as_u16() == 200).count();
        assert_eq!(used, 1, "{footing:?}");
        assert!(asked.show(&world).await["consumed_at"].is_string());
        let log = until(10, "the log", || async {
            let (_, log, _) = world.run(&["audit", "export"]);
            log.contains("approval_consumed").then_some(log)
        })
        .await;
        for act in ["approval_made", "approval_ended", "approval_consumed"] {
            assert_eq!(log.matches(act).count(), 1, "{footing:?} {act}: {log}");
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_approves_at_the_same_moment_is_counted_and_it_is_told_once() {
    for footing in footings() {
        let names = ["ada", "grace", "alan"];
        let (world, phones) = world_of(footing, "approval-race", &names).await;
        let mut taps = None;
        let mut more = json!({"match_code": false, "correlation_id": "payment 9"});
        if footing == Footing::Servers {
            let (url, queue) = (world.amqp_url(), format!("ext.{}.engine", world.store));
            let exchange = format!("{}.status.ext", world.prefix);
            let events = format!("ext.{}.tap", world.prefix);
            let engine = Tap::open(&url, &queue, None).await;
            taps = Some((engine, Tap::open(&url, &events, Some(&exchange)).await));
            more["reply_to"] = json!(queue);
        }
        let mut all = Vec::new();
        for round in 0..6 {
            let asked = ask(&world, &question(&names, 2, &more)).await;
            // Yes from all three, or one no among them, at the same moment.
            let answers = (0..3).map(|n| asked.answer(&phones, n, round % 2 == 0 || n > 0));
            join_all(answers).await;
            let shown = asked.ended(&world).await;
            assert_eq!(came(&shown).0, "approved", "{footing:?} {shown}");
            all.push(asked.id);
        }
        if let Some((mut engine, mut events)) = taps {
            let told = engine.events(|seen| seen.len() >= all.len()).await;
            assert_eq!(
                told.len(),
                all.len(),
                "one each, and nothing of the members"
            );
            for (event, correlation) in &told {
                assert_eq!(event["type"], "countersign.approval.approved.v1");
                assert!(all.iter().any(|id| event["subject"] == id.as_str()));
                assert_eq!(correlation.as_deref(), Some("payment 9"));
                assert_eq!(event["data"]["members"].as_array().unwrap().len(), 3);
            }
            let of_approvals = |seen: &[(Value, Option<String>)]| {
                let kind = |event: &Value| event["type"].as_str().unwrap().contains(".approval.");
                seen.iter().filter(|(event, _)| kind(event)).count()
            };
            let of_members = |seen: &[(Value, Option<String>)]| {
                let member = |event: &Value| event["data"]["approval"].is_string();
                seen.iter().filter(|(event, _)| member(event)).count()
            };
            let members = 3 * all.len();
            let told = events
                .events(|seen| {
                    of_approvals(seen) >= all.len() && of_members(seen) >= members + all.len()
                })
                .await;
            let counts = (of_approvals(&told), of_members(&told));
            assert_eq!(counts, (all.len(), members + all.len()));
        }
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_asks_several_people_and_ends_as_they_decide() {
    for footing in footings() {
        let names = ["ada", "grace"];
        let (world, phones) = world_of(footing, "approval-cli", &names).await;
        let ask = |more: &[&str]| {
            let mut words = vec![
                "send",
                "ada,grace",
                "Pay Acme",
                "--required",
                "2",
                "--relying-party",
                RP,
                "--no-code",
            ];
            words.extend(more);
            world.run(&words)
        };
        let (status, id, said) = ask(&[]);
        assert!(status.success(), "{footing:?} {said}");
        let id = id.trim();
        let shown = world
            .in_store("GET", &format!("approvals/{id}"), &Value::Null)
            .await;
        let push: PushId = shown["members"][1]["push"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let prompt = phones[1].fetch(&push).await.unwrap();
        let no = Decision::Deny { reason: None };
        phones[1].answer(&prompt, &no).await.unwrap();
        let (status, said, _) = world.run(&["wait", id]);
        assert_eq!(status.code(), Some(10), "{footing:?} {said}");
        assert!(said.contains("denied (too_few_left)"), "{said}");
        let (status, _, said) = ask(&["--requested-by", "ada"]);
        assert_eq!(status.code(), Some(1), "{footing:?}");
        assert!(said.contains("four_eyes"), "{said}");
        let (status, _, _) = ask(&["--kind", "generic"]);
        assert_eq!(status.code(), Some(2), "{footing:?}");
        world.end().await;
    }
}
