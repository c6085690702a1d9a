//! The other two kinds: generic and process.

use harness::{World, footings};
use serde_json::{Value, json};
use shared::domain::Provider;
use simulator::phone::Decision;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_generic_push_counts_every_device_and_completes_with_the_last() {
    for footing in footings() {
        let world = World::start(footing, "generic").await;
        let apple = world.phone("apple", Provider::Apns).await;
        let google = world.phone("google", Provider::Fcm).await;
        let (push, code) = world.send(&json!({"kind": "generic"})).await;
        assert_eq!(code, None, "nothing to type");
        let (one, two) = tokio::join!(world.rung(&apple, &push), world.rung(&google, &push));
        let answer = world.approve(&apple, &one, None).await;
        assert_eq!(answer["state"], "pending", "{footing:?}");
        let no = Decision::Deny { reason: None };
        assert_eq!(google.answer(&two, &no).await.unwrap().status, 200);
        let ended = world.ended(&push).await;
        assert_eq!(ended["state"], "completed");
        let mut decisions: Vec<_> = ended["deliveries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d["decision"].clone())
            .collect();
        decisions.sort_by_key(Value::to_string);
        assert_eq!(decisions, [json!("approve"), json!("deny")]);
        world.end().await;
    }
}

async fn process(
    world: &World,
) -> (
    shared::id::PushId,
    simulator::phone::Prompt,
    simulator::phone::Phone,
) {
    let definition = json!({"name": "onboard", "version": 1, "tag": "live", "start_url": "https://bank.example/start?x=1"});
    world
        .in_store("POST", "process-definitions", &definition)
        .await;
    let phone = world.phone("apple", Provider::Apns).await;
    let ask = json!({"kind": "process", "process": {"definition": "onboard", "tag": "live", "parameters": {"amount": "5 EUR", "n": 3}}});
    let (push, _) = world.send(&ask).await;
    let prompt = world.rung(&phone, &push).await;
    (push, prompt, phone)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_link_starts_a_child_once_and_its_end_ends_the_wait() {
    for footing in footings() {
        let world = World::start(footing, "process").await;
        let (push, prompt, phone) = process(&world).await;
        let link = prompt.shown["redirect_url"].as_str().unwrap();
        let path = link.strip_prefix("http://sign.example").unwrap();
        // A proof cannot stand in for the link.
        let yes = Decision::Approve { code: None };
        assert_eq!(phone.answer(&prompt, &yes).await.unwrap().status, 422);
        let opened = world
            .client
            .call("GET", path, None, &[], Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(opened.status.as_u16(), 303, "{footing:?}");
        let again = world
            .client
            .call("GET", path, None, &[], Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(
            (again.status.as_u16(), &again.body["code"]),
            (410, &json!("link_spent"))
        );
        let shown = world.show(&push).await;
        assert_eq!(shown["state"], "opened");
        let instance = shown["instance"].as_str().unwrap();
        let path = format!("instances/{instance}/complete");
        let waiting = world.ended(&push);
        let ending = async {
            let ended = world
                .in_store("POST", &path, &json!({"status": "ended_success"}))
                .await;
            assert_eq!(ended["state"], "approved");
        };
        let (ended, ()) = tokio::join!(waiting, ending);
        assert_eq!(
            (&ended["state"], &ended["reason"]),
            (&json!("approved"), &json!("ended_success"))
        );
        let same = world
            .reply("POST", &path, &json!({"status": "ended_success"}), &[])
            .await;
        assert_eq!(same.status.as_u16(), 200);
        let other = world
            .reply("POST", &path, &json!({"status": "ended_error"}), &[])
            .await;
        assert_eq!(
            (other.status.as_u16(), &other.body["code"]),
            (409, &json!("push_ended"))
        );
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_push_can_be_denied_and_bad_links_and_definitions_are_told() {
    for footing in footings() {
        let world = World::start(footing, "process-deny").await;
        let (push, prompt, phone) = process(&world).await;
        let no = Decision::Deny {
            reason: Some("user_cancelled".to_owned()),
        };
        assert_eq!(
            phone.answer(&prompt, &no).await.unwrap().status,
            200,
            "{footing:?}"
        );
        assert_eq!(world.ended(&push).await["reason"], "user_cancelled");
        let link = prompt.shown["redirect_url"].as_str().unwrap();
        let path = link.strip_prefix("http://sign.example").unwrap();
        let spent = world
            .client
            .call("GET", path, None, &[], Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(spent.status.as_u16(), 410);
        let none = world
            .client
            .call("GET", "/v1/process/nonsense", None, &[], Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(
            (none.status.as_u16(), &none.body["code"]),
            (404, &json!("link_unknown"))
        );
        let unknown =
            World::confirm(&json!({"kind": "process", "process": {"definition": "nope"}}));
        let refused = world.reply("POST", "pushes", &unknown, &[]).await;
        assert_eq!(refused.status.as_u16(), 422);
        assert_eq!(refused.body["errors"][0]["pointer"], "/process/definition");
        world.end().await;
    }
}
