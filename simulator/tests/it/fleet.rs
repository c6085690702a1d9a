//! From a push that the gateway takes to an answer at the API.

use crate::api::{Api, CODE};
use crate::client::{apns, connect, fcm, gateway, signed_in};
use shared::domain::Provider;
use shared::id::PushId;
use simulator::{Behaviour, Fleet, Gateway, Phone, Rang, Script};
use std::time::Duration;

const AT_ONCE: Duration = Duration::ZERO;

async fn ring(gateway: &Gateway, phone: &Phone, push: &PushId) -> u16 {
    let token = phone.push_token();
    match phone.provider() {
        Provider::Apns => {
            let mut connection = connect(gateway, gateway.apns_url()).await;
            let request = apns(gateway, &token.expose().to_ascii_uppercase(), push);
            connection.send(request).await.status
        }
        Provider::Fcm => {
            let (mut connection, access) = signed_in(gateway).await;
            let request = fcm(gateway, &access, token.expose(), push);
            connection.send(request).await.status
        }
    }
}

#[tokio::test]
async fn phones_of_both_providers_ring_and_rings_are_counted() {
    let gateway = gateway().await;
    let fleet = Fleet::start(&gateway);
    let mut rings = fleet.listen();
    let push = PushId::fresh(1);
    for provider in [Provider::Apns, Provider::Fcm] {
        let phone = Phone::new(provider, provider.as_str());
        fleet.add(&phone, Behaviour::Manual);
        for times in 1..=2 {
            assert_eq!(ring(&gateway, &phone, &push).await, 200);
            fleet.wait_for_rings(phone.name(), &push, times).await;
            let rang = Rang {
                phone: phone.name().to_owned(),
                device: None,
                push: push.clone(),
            };
            assert_eq!(rings.recv().await.unwrap(), rang);
        }
        assert_eq!(fleet.rings(phone.name(), &push), 2);
        assert_eq!(fleet.rings(phone.name(), &PushId::fresh(1)), 0);
    }
    assert_eq!(fleet.missed(), 0);
}

#[tokio::test]
async fn a_push_that_is_not_taken_rings_nowhere() {
    let gateway = gateway().await;
    let fleet = Fleet::start(&gateway);
    let mut rings = fleet.listen();
    let phone = Phone::new(Provider::Apns, "pocket");
    fleet.add(&phone, Behaviour::Manual);
    let (refused, cut) = (PushId::fresh(1), PushId::fresh(2));
    let token = phone.push_token();
    gateway.script_times(token.expose(), Script::BadToken, 1);
    assert_eq!(ring(&gateway, &phone, &refused).await, 400);
    // Taken, although the sender never hears of it.
    gateway.script_times(token.expose(), Script::ResetAfterAccept, 1);
    let mut connection = connect(&gateway, gateway.apns_url()).await;
    let request = apns(&gateway, token.expose(), &cut);
    assert!(connection.try_send(request).await.is_err());
    assert_eq!(rings.recv().await.unwrap().push, cut);
    assert_eq!(fleet.rings("pocket", &refused), 0);
}

#[tokio::test]
async fn a_phone_rings_under_its_new_token_only() {
    let gateway = gateway().await;
    let fleet = Fleet::start(&gateway);
    let (phone, push) = (Phone::new(Provider::Fcm, "pocket"), PushId::fresh(1));
    fleet.add(&phone, Behaviour::Ignore);
    let old = phone.push_token();
    phone.rotate_token();
    let (mut connection, access) = signed_in(&gateway).await;
    let request = fcm(&gateway, &access, old.expose(), &push);
    assert_eq!(connection.send(request).await.status, 200);
    assert_eq!(ring(&gateway, &phone, &push).await, 200);
    fleet.wait_for_rings("pocket", &push, 1).await;
    assert_eq!(fleet.rings("pocket", &push), 1);
    fleet.remove("pocket");
    assert!(fleet.phone("pocket").is_none());
}

#[tokio::test]
async fn people_answer_as_they_are() {
    let (gateway, api) = (gateway().await, Api::start().await);
    let fleet = Fleet::start(&gateway);
    let people = [
        ("yes", Behaviour::Approve { after: AT_ONCE }),
        ("no", Behaviour::Deny { after: AT_ONCE }),
        ("away", Behaviour::Ignore),
        ("by hand", Behaviour::Manual),
    ];
    let push = api.ask(false);
    let mut rings = fleet.listen();
    for (name, behaviour) in people {
        let phone = Phone::new(Provider::Apns, name);
        api.register(&phone);
        fleet.add(&phone, behaviour);
        // Twice: a second banner is not answered again.
        for times in 1..=2 {
            ring(&gateway, &phone, &push).await;
            fleet.wait_for_rings(name, &push, times).await;
        }
    }
    api.wait_for_proofs(2).await;
    let mut decisions: Vec<_> = api
        .proofs()
        .into_iter()
        .map(|(_, claims)| claims["decision"].as_str().unwrap().to_owned())
        .collect();
    decisions.sort();
    assert_eq!(decisions, ["approve", "deny"]);
    let mut heard = vec![];
    while let Ok(rang) = rings.try_recv() {
        assert!(rang.device.is_some());
        heard.push(rang.phone);
    }
    assert_eq!(heard, ["yes", "yes", "no", "no", "by hand", "by hand"]);
}

#[tokio::test]
async fn an_approval_waits_for_its_code_and_outlives_an_outage() {
    let (gateway, api) = (gateway().await, Api::start().await);
    let fleet = Fleet::start(&gateway);
    let phone = Phone::new(Provider::Apns, "pocket");
    api.register(&phone);
    fleet.add(&phone, Behaviour::Ignore);
    fleet.set_behaviour("pocket", Behaviour::Approve { after: AT_ONCE });
    let push = api.ask(true);
    api.fail(3);
    assert_eq!(ring(&gateway, &phone, &push).await, 200);
    fleet.codes().set(push, CODE);
    api.wait_for_proofs(1).await;
    assert_eq!(api.proofs()[0].1["decision"], "approve");
}
