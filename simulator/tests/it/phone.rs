//! A phone against an API that checks everything.

use crate::api::{Api, CODE};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use shared::clock::ManualClock;
use shared::crypto::ServerSecret;
use shared::domain::{KeyAlgorithm, Provider};
use shared::id::{DeviceId, PushId, StoreId};
use simulator::phone::{Error, PromptFault, Saved};
use simulator::{Decision, Phone};
use tokio::net::TcpListener;

fn approve(code: &str) -> Decision {
    Decision::Approve {
        code: Some(code.to_owned()),
    }
}

async fn enrolled() -> (Api, Phone) {
    let api = Api::start().await;
    let phone = Phone::new(Provider::Apns, "pocket");
    api.register(&phone);
    (api, phone)
}

#[tokio::test]
async fn a_phone_fetches_and_approves_with_the_code() {
    let (api, phone) = enrolled().await;
    let push = api.ask(true);
    let prompt = phone.fetch(&push).await.unwrap();
    assert_eq!(prompt.shown["title"], "Sign in — Zürich");
    let answered = phone.answer(&prompt, &approve(CODE)).await.unwrap();
    assert_eq!(
        (answered.status, &answered.body["state"]),
        (200, &"approved".into())
    );
    let [(_, claims)] = &api.proofs()[..] else {
        panic!("one proof");
    };
    assert_eq!(claims["decision"], "approve");
}

#[tokio::test]
async fn an_ed25519_phone_signs_with_eddsa() {
    let api = Api::start().await;
    let phone = Phone::with_key(Provider::Fcm, "pocket", KeyAlgorithm::EdDsa);
    api.register(&phone);
    let again = Phone::load(phone.save()).unwrap();
    assert_eq!(again.public_jwk(), phone.public_jwk());
    let prompt = again.fetch(&api.ask(true)).await.unwrap();
    let answered = again.answer(&prompt, &approve(CODE)).await.unwrap();
    assert_eq!(answered.body["state"], "approved");
}

/// The phone's refusal of a prompt that `meddler` has changed, the same for one prompt and for the list.
async fn refusal(
    api: &Api,
    phone: &Phone,
    meddler: impl Fn(&mut Value) + Send + 'static,
) -> PromptFault {
    let push = api.ask(true);
    phone.fetch(&push).await.unwrap();
    api.meddle(meddler);
    let (Err(Error::NotGenuine(one)), Err(Error::NotGenuine(list))) =
        (phone.fetch(&push).await, phone.pending().await)
    else {
        panic!("taken");
    };
    assert_eq!(one, list);
    api.meddle(|_| {});
    one
}

type Change = fn(&mut Value);

#[tokio::test]
async fn a_prompt_that_the_server_has_not_signed_so_is_refused() {
    let (api, phone) = enrolled().await;
    let unsigned = |prompt: &mut Value| prompt["signature"] = Value::Null;
    assert_eq!(refusal(&api, &phone, unsigned).await, PromptFault::Unsigned);

    let changed: [(Change, PromptFault); 9] = [
        (
            |p| p["shown"]["title"] = "Pay 9000".into(),
            PromptFault::Content,
        ),
        (|p| p["shown"]["added"] = 1.into(), PromptFault::Content),
        (
            |p| p["shown"]["kind"] = "generic".into(),
            PromptFault::Content,
        ),
        (|p| p["nonce"] = "another".into(), PromptFault::Changed),
        (|p| p["state"] = "approved".into(), PromptFault::Changed),
        (|p| p["match_required"] = false.into(), PromptFault::Changed),
        (
            |p| p["expires_at"] = "2036-11-24T12:00:00.000Z".into(),
            PromptFault::Changed,
        ),
        (
            |p| p["push"] = PushId::fresh(9).to_string().into(),
            PromptFault::Push,
        ),
        (
            |p| p["store"] = StoreId::fresh(9).to_string().into(),
            PromptFault::Device,
        ),
    ];
    for (change, fault) in changed {
        assert_eq!(refusal(&api, &phone, change).await, fault);
    }
}

#[tokio::test]
async fn a_prompt_signed_by_another_key_or_as_something_else_is_refused() {
    let (api, phone) = enrolled().await;
    let claims = |prompt: &Value| -> Value {
        let payload = prompt["signature"]
            .as_str()
            .unwrap()
            .split('.')
            .nth(1)
            .unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
    };
    let other = Box::new(ServerSecret::new(&ServerSecret::generate()).unwrap());
    let forged = move |prompt: &mut Value| {
        prompt["signature"] = other
            .signer()
            .sign("countersign-prompt+jwt", &claims(prompt))
            .into();
    };
    assert_eq!(refusal(&api, &phone, forged).await, PromptFault::Signature);
    let signing = api.clone();
    let receipt = move |prompt: &mut Value| {
        prompt["signature"] = signing
            .signer()
            .sign("countersign-receipt+jwt", &claims(prompt))
            .into();
    };
    assert_eq!(refusal(&api, &phone, receipt).await, PromptFault::Signature);
    let signing = api.clone();
    let older = move |prompt: &mut Value| {
        let mut claims = claims(prompt);
        claims["ver"] = 0.into();
        prompt["signature"] = signing
            .signer()
            .sign("countersign-prompt+jwt", &claims)
            .into();
    };
    assert_eq!(refusal(&api, &phone, older).await, PromptFault::Signature);
}

#[tokio::test]
async fn a_prompt_for_another_device_or_another_push_is_refused() {
    let (api, phone) = enrolled().await;
    let second = Phone::new(Provider::Fcm, "second");
    api.register(&second);
    let push = api.ask(true);
    let foreign = second.fetch(&push).await.unwrap().signature.unwrap();
    let device = move |prompt: &mut Value| prompt["signature"] = foreign.clone().into();
    assert_eq!(refusal(&api, &phone, device).await, PromptFault::Device);

    // All of it genuine, but not what was asked for.
    let first = api.ask(false);
    let kept = std::sync::Mutex::new(None);
    api.meddle(move |prompt| {
        let mut kept = kept.lock().unwrap();
        *prompt = kept.get_or_insert_with(|| prompt.clone()).clone();
    });
    phone.fetch(&first).await.unwrap();
    let swapped = phone.fetch(&api.ask(false)).await;
    assert!(matches!(swapped, Err(Error::NotGenuine(PromptFault::Push))));
}

#[tokio::test]
async fn without_the_code_or_with_another_an_approval_is_refused() {
    let (api, phone) = enrolled().await;
    let prompt = phone.fetch(&api.ask(true)).await.unwrap();
    for decision in [approve("000000"), Decision::Approve { code: None }] {
        let answered = phone.answer(&prompt, &decision).await.unwrap();
        assert_eq!(answered.status, 422);
        assert_eq!(answered.body["code"], "proof_refused");
    }
}

#[tokio::test]
async fn a_denial_is_signed_and_says_why() {
    let (api, phone) = enrolled().await;
    let prompt = phone.fetch(&api.ask(true)).await.unwrap();
    let reason = Some("fraud_reported".to_owned());
    let answered = phone.answer(&prompt, &Decision::Deny { reason }).await;
    assert_eq!(answered.unwrap().body["state"], "denied");
    assert_eq!(api.proofs()[0].1["reason"], "fraud_reported");
}

#[tokio::test]
async fn the_same_proof_can_be_sent_twice_and_a_changed_one_is_refused() {
    let (api, phone) = enrolled().await;
    let prompt = phone.fetch(&api.ask(false)).await.unwrap();
    let decision = Decision::Approve { code: None };
    let proof = phone.proof(&prompt, &decision).unwrap();
    for _ in 0..2 {
        let answered = phone.send_proof(&prompt.push, &proof).await.unwrap();
        assert_eq!(answered.status, 200);
    }
    assert_eq!(api.proofs()[0].0, api.proofs()[1].0);
    assert_ne!(phone.proof(&prompt, &decision).unwrap(), proof);

    let mut claims = phone.proof_claims(&prompt, &decision).unwrap();
    claims["sub"] = PushId::fresh(9).to_string().into();
    let bad = phone.sign_proof(&claims).unwrap();
    let answered = phone.send_proof(&prompt.push, &bad).await.unwrap();
    assert_eq!(answered.status, 422);
}

#[tokio::test]
async fn what_waits_comes_oldest_first_and_another_push_is_not_found() {
    let (api, phone) = enrolled().await;
    let pushes = [api.ask(true), api.ask(false)];
    let pending = phone.pending().await.unwrap();
    let named: Vec<_> = pending.iter().map(|prompt| prompt.push.clone()).collect();
    assert_eq!(named, pushes);
    let Err(Error::Refused { status, code }) = phone.fetch(&PushId::fresh(9)).await else {
        panic!("refused");
    };
    assert_eq!((status.as_u16(), code.as_deref()), (404, Some("not_found")));
}

#[tokio::test]
async fn a_new_token_is_put_without_registering_again() {
    let (api, phone) = enrolled().await;
    let old = phone.push_token();
    let new = phone.rotate_token();
    assert_ne!(old, new);
    phone.put_address().await.unwrap();
    let [address] = &api.addresses()[..] else {
        panic!("one address");
    };
    assert_eq!(address["provider"], "apns");
    assert_eq!(address["token"], new.expose());
}

#[tokio::test]
async fn a_stranger_gets_nowhere() {
    let (api, phone) = enrolled().await;
    let stranger = Phone::new(Provider::Apns, "stranger");
    let Err(Error::NotEnrolled) = stranger.pending().await else {
        panic!("nobody yet");
    };
    // The other's name, but not the other's key.
    let identity = phone.identity().unwrap();
    stranger.enrolled(
        identity.device,
        identity.store,
        identity.server_key,
        &api.base,
    );
    let Err(Error::Refused { status, .. }) = stranger.pending().await else {
        panic!("refused");
    };
    assert_eq!(status.as_u16(), 401);
}

#[tokio::test]
async fn a_saved_phone_is_the_same_phone() {
    let (api, phone) = enrolled().await;
    let text = serde_json::to_string(&phone.save()).unwrap();
    let saved: Saved = serde_json::from_str(&text).unwrap();
    let again = Phone::load(saved).unwrap();
    assert_eq!(again.name(), "pocket");
    assert_eq!(again.push_token(), phone.push_token());
    assert_eq!(again.public_jwk(), phone.public_jwk());
    assert_eq!(again.identity(), phone.identity());
    let prompt = again.fetch(&api.ask(true)).await.unwrap();
    let answered = again.answer(&prompt, &approve(CODE)).await.unwrap();
    assert_eq!(answered.status, 200);
}

#[tokio::test]
async fn requests_are_dated_by_the_phone_s_clock() {
    let (api, phone) = enrolled().await;
    let phone = phone.with_clock(ManualClock::at(1_700_000_000_000));
    let prompt = phone.fetch(&api.ask(false)).await.unwrap();
    let decision = Decision::Approve { code: None };
    let claims = phone.proof_claims(&prompt, &decision).unwrap();
    assert_eq!(claims["iat"], 1_700_000_000);
}

#[tokio::test]
async fn nobody_at_home_is_told_apart_from_no() {
    let phone = Phone::new(Provider::Fcm, "pocket");
    let secret = ServerSecret::new(&ServerSecret::generate()).unwrap();
    let enrol = |base: &str| {
        let key = secret.signer().public().clone();
        phone.enrolled(DeviceId::fresh(1), StoreId::fresh(1), key, base);
    };
    // Somebody hangs up at once.
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    enrol(&format!("http://{}", socket.local_addr().unwrap()));
    tokio::spawn(async move { while socket.accept().await.is_ok() {} });
    assert!(matches!(phone.pending().await, Err(Error::Unreachable(_))));
    for base in ["ftp://127.0.0.1", "127.0.0.1:80", "", "https://127.0.0.1"] {
        enrol(base);
        assert!(
            matches!(phone.pending().await, Err(Error::Base(_))),
            "{base}"
        );
    }
}

#[test]
fn nothing_printed_gives_a_secret_away() {
    let phone = Phone::new(Provider::Fcm, "pocket");
    let saved = phone.save();
    let prompt: simulator::Prompt = serde_json::from_value(serde_json::json!({
        "push": PushId::fresh(1), "store": StoreId::fresh(1), "state": "pending",
        "shown": {"title": "canary"}, "content_hash": "canary", "nonce": "canary",
        "match_required": true, "expires_at": "",
    }))
    .unwrap();
    let shown = format!("{phone:?} {saved:?} {prompt:?} {:?}", approve("canary"));
    for secret in ["canary", saved.key.expose(), saved.token.expose()] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn tokens_have_the_providers_forms() {
    let apns = Phone::new(Provider::Apns, "a").push_token();
    let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(hex(apns.expose()));
    let fcm = Phone::new(Provider::Fcm, "f").push_token();
    let (instance, rest) = fcm.expose().split_once(":APA91b").unwrap();
    assert_eq!((instance.len(), rest.len()), (22, 134));
    let key: Value = Phone::new(Provider::Fcm, "f").public_jwk();
    assert_eq!(key["x"].as_str().map(str::len), Some(43));
}
