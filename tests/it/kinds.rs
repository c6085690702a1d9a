//! The kind generic.

use harness::{World, footings};
use serde_json::{Value, json};
use shared::domain::Provider;
use simulator::phone::Decision;

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
