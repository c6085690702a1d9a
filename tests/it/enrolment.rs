//! A device gets in by a one-time code, once, and by nothing else.

use harness::{RP, World, footings};
use serde_json::{Value, json};
use shared::clock::{Clock as _, ManualClock, SystemClock};
use shared::domain::Provider;
use simulator::phone::{Link, Phone};

/// The active devices of the user.
async fn active(world: &World) -> usize {
    let path = format!("users/{}/devices", world.user);
    let listed = world.in_store("GET", &path, &Value::Null).await;
    let all = listed["data"].as_array().unwrap();
    all.iter().filter(|one| one["state"] == "active").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn must_07_a_device_is_bound_by_a_code_and_its_own_key_and_then_answers() {
    for footing in footings() {
        let world = World::start(footing, "enrol").await;
        let body = json!({"relying_party": RP});
        let path = format!("users/{}/enrolment-codes", world.user);
        let made = world.reply("POST", &path, &body, &[]).await;
        assert_eq!(made.status.as_u16(), 201, "{footing:?}");
        let (id, code) = (made.body["id"].as_str().unwrap(), &made.body["code"]);
        assert!(code.as_str().unwrap().len() >= 22, "128 bit and more");
        let link: Link = made.body["link"].as_str().unwrap().parse().unwrap();
        assert_eq!(link.url, "http://sign.example");
        assert_eq!(code, link.code.expose());
        let link = world.reachable(link);
        let phone = Phone::new(Provider::Apns, "new");
        let device = phone.enrol(&link).await.unwrap();
        // It heard nothing and repeats: the same device, and no other one.
        assert_eq!(phone.enrol(&link).await.unwrap(), device);
        assert_eq!(active(&world).await, 1);
        let shown = world
            .in_store("GET", &format!("{path}/{id}"), &Value::Null)
            .await;
        assert_eq!(
            (&shown["state"], &shown["device"]),
            (&json!("used"), &json!(device))
        );
        assert!(
            shown.get("code").is_none() && shown.get("link").is_none(),
            "shown once"
        );
        world.fleet.add(&phone, simulator::Behaviour::Manual);
        let (push, code) = world.send(&Value::Null).await;
        let prompt = world.rung(&phone, &push).await;
        world.approve(&phone, &prompt, code.as_deref()).await;
        assert_eq!(world.ended(&push).await["device"], json!(device));
        world.end().await;
    }
}

/// Every way in which a code or its proof can be wrong.
async fn wrong_tries(world: &World, link: &Link, phone: &Phone) -> Vec<(&'static str, Value)> {
    let good = phone.enrolment(link);
    let now = SystemClock.now() / 1000;
    let claims = json!({"ver": 1, "aud": link.store, "code_hash": shared::crypto::sha256_text(link.code.expose().as_bytes()),
        "server_key": link.kid, "iat": now});
    let signed_by = |who: &Phone, claims: &Value| {
        let mut body = good.clone();
        body["proof"] = who.sign_enrolment(claims).into();
        body
    };
    let with = |name: &str, value: Value| {
        let mut changed = claims.clone();
        changed[name] = value;
        signed_by(phone, &changed)
    };
    let other = world
        .ask("POST", "/v1/stores", &json!({"name": "Other"}))
        .await;
    let stranger = Phone::new(Provider::Apns, "stranger");
    let unknown = Link {
        code: shared::secret::Secret::new("AAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        ..link.clone()
    };
    let mut of_another_code = phone.enrolment(&unknown);
    of_another_code["code"] = link.code.expose().into();
    let old = Phone::load(phone.save()).unwrap();
    let old = old.with_clock(ManualClock::at(SystemClock.now() - 62_000));
    let mut foreign_key = good.clone();
    foreign_key["public_key"] = stranger.public_jwk();
    vec![
        ("an unknown code", phone.enrolment(&unknown)),
        ("a proof for another code", of_another_code),
        ("a proof by another key", signed_by(&stranger, &claims)),
        ("a key that it does not hold", foreign_key),
        ("another store", with("aud", other["id"].clone())),
        ("another server", with("server_key", "x".into())),
        ("another version", with("ver", 2.into())),
        ("one claim more", with("more", 1.into())),
        ("signed too long ago", old.enrolment(link)),
        ("signed ahead of time", with("iat", (now + 62).into())),
        ("no JWS", {
            let mut body = good.clone();
            body["proof"] = "a.b.c".into();
            body
        }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn must_34_whatever_is_wrong_with_a_code_gets_one_answer_and_harms_it_not() {
    for footing in footings() {
        let world = World::start(footing, "wrong-codes").await;
        let link = world.enrolment_link(&Value::Null).await;
        let phone = Phone::new(Provider::Apns, "new");
        let mut answers = Vec::new();
        for (what, body) in wrong_tries(&world, &link, &phone).await {
            answers.push((what, phone.send_enrolment(&link, &body).await.unwrap()));
        }
        let device = phone.enrol(&link).await.unwrap();
        let thief = Phone::new(Provider::Fcm, "thief");
        let used = thief.send_enrolment(&link, &thief.enrolment(&link)).await;
        answers.push(("used by another key", used.unwrap()));
        let revoked = world.enrolment_link(&Value::Null).await;
        let codes = format!("users/{}/enrolment-codes", world.user);
        let listed = world.in_store("GET", &codes, &Value::Null).await;
        let path = format!("{codes}/{}", listed["data"][0]["id"].as_str().unwrap());
        for _ in 0..2 {
            let gone = world.reply("DELETE", &path, &Value::Null, &[]).await;
            assert_eq!(gone.status.as_u16(), 204, "{footing:?}");
        }
        let spent = thief
            .send_enrolment(&revoked, &thief.enrolment(&revoked))
            .await;
        answers.push(("revoked", spent.unwrap()));
        for (what, answer) in &answers {
            assert_eq!(
                (answer.0, &answer.1["code"]),
                (422, &json!("enrolment_refused")),
                "{footing:?}: {what}"
            );
            assert_eq!(answer, &answers[0].1, "{footing:?}: {what}");
        }
        // The used one cannot be taken back; the device that used it can.
        let path = format!("{codes}/{}", listed["data"][1]["id"].as_str().unwrap());
        let late = world.reply("DELETE", &path, &Value::Null, &[]).await;
        assert_eq!(
            (late.status.as_u16(), &late.body["state"]),
            (409, &json!("used"))
        );
        // Its own repetition is no way back in once it was revoked.
        phone.revoke(&device).await.unwrap();
        let back = phone.send_enrolment(&link, &phone.enrolment(&link)).await;
        assert_eq!(
            back.unwrap(),
            answers[0].1,
            "{footing:?}: revoked meanwhile"
        );
        assert_eq!(active(&world).await, 0);
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_07_of_twenty_who_race_with_one_code_one_gets_in() {
    for footing in footings() {
        let world = World::start(footing, "enrol-race").await;
        let link = world.enrolment_link(&Value::Null).await;
        let phones: Vec<_> = (0..20)
            .map(|n| Phone::new(Provider::Apns, format!("racer {n}")))
            .collect();
        let tries = phones.iter().map(|phone| phone.enrol(&link));
        let results = futures_util::future::join_all(tries).await;
        assert_eq!(
            results.iter().filter(|one| one.is_ok()).count(),
            1,
            "{footing:?}"
        );
        assert_eq!(active(&world).await, 1, "{footing:?}");
        // The same phone twenty times is one phone.
        let link = world.enrolment_link(&Value::Null).await;
        let phone = Phone::new(Provider::Fcm, "eager");
        let tries = (0..20).map(|_| phone.enrol(&link));
        let results = futures_util::future::join_all(tries).await;
        let first = results[0].as_ref().unwrap();
        assert!(
            results.iter().all(|one| one.as_ref().unwrap() == first),
            "{footing:?}"
        );
        assert_eq!(active(&world).await, 2, "{footing:?}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_appkey_policy_decides_who_enrols_and_leaves_the_code_unharmed() {
    for footing in footings() {
        let world = World::start(footing, "enrol-policy").await;
        let policy = async |platforms: Value, most: u32| {
            let body =
                json!({"platforms": platforms, "max_devices": most, "user_verification": "none"});
            world
                .in_store("PUT", &format!("appkey-policies/{RP}"), &body)
                .await;
        };
        policy(json!(["android"]), 1).await;
        let link = world.enrolment_link(&Value::Null).await;
        let apple = Phone::new(Provider::Apns, "apple");
        let (status, body) = apple
            .send_enrolment(&link, &apple.enrolment(&link))
            .await
            .unwrap();
        assert_eq!(
            (status, &body["errors"][0]["pointer"]),
            (422, &json!("/platform")),
            "{footing:?}"
        );
        world.phone("google", Provider::Fcm).await;
        policy(json!(["ios", "android"]), 1).await;
        let (status, body) = apple
            .send_enrolment(&link, &apple.enrolment(&link))
            .await
            .unwrap();
        assert_eq!(
            (status, &body["code"]),
            (409, &json!("too_many_devices")),
            "{footing:?}"
        );
        policy(json!(["ios", "android"]), 2).await;
        apple.enrol(&link).await.unwrap();
        let mut bad = apple.enrolment(&link);
        bad["public_key"]["x"] = "AAAA".into();
        bad["push_address"]["token"] = "no hex".into();
        let (status, body) = apple.send_enrolment(&link, &bad).await.unwrap();
        assert_eq!((status, &body["code"]), (422, &json!("invalid")));
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_few_open_codes_and_a_locked_one_gets_none() {
    for footing in footings() {
        let world = World::start(footing, "many-codes").await;
        let path = format!("users/{}/enrolment-codes", world.user);
        let body = json!({"relying_party": RP, "expires_in": "60s"});
        let calls = (0..20).map(|_| world.reply("POST", &path, &body, &[]));
        let replies = futures_util::future::join_all(calls).await;
        let made = replies.iter().filter(|one| one.status.as_u16() == 201);
        assert_eq!(made.count(), 5, "{footing:?}");
        let refused = replies
            .iter()
            .filter(|one| one.body["code"] == "too_many_codes");
        assert_eq!(refused.count(), 15, "{footing:?}");
        for life in ["59s", "3601s", "60", "0s"] {
            let body = json!({"relying_party": RP, "expires_in": life});
            let reply = world.reply("POST", &path, &body, &[]).await;
            assert_eq!(reply.body["errors"][0]["pointer"], "/expires_in", "{life}");
        }
        let open = replies
            .iter()
            .find(|one| one.status.as_u16() == 201)
            .unwrap();
        let link = world.reachable(open.body["link"].as_str().unwrap().parse().unwrap());
        let status = async |word: &str| {
            let path = format!("users/{}", world.user);
            world
                .in_store("PATCH", &path, &json!({"status": word}))
                .await;
        };
        status("locked").await;
        let phone = Phone::new(Provider::Apns, "new");
        let (code, _) = phone
            .send_enrolment(&link, &phone.enrolment(&link))
            .await
            .unwrap();
        assert_eq!(code, 422, "{footing:?}: no device of a locked user");
        let none = world.reply("POST", &path, &body, &[]).await;
        assert_eq!(
            (none.status.as_u16(), &none.body["code"]),
            (409, &json!("user_inactive"))
        );
        status("active").await;
        phone.enrol(&link).await.unwrap();
        let nobody = "users/usr_00000000000000000000000000/enrolment-codes";
        let absent = world.reply("POST", nobody, &body, &[]).await;
        assert_eq!(absent.status.as_u16(), 404);
        world.end().await;
    }
}

/// Everything that the API offers, called by somebody who has no key, no code and no device.
#[tokio::test(flavor = "multi_thread")]
async fn must_07_40_no_call_without_a_code_a_proof_or_a_key_makes_or_changes_a_device() {
    for footing in footings() {
        let world = World::start(footing, "no-way-in").await;
        let victim = world.phone("victim", Provider::Apns).await;
        let device = victim.identity().unwrap().device;
        let phone = Phone::new(Provider::Apns, "intruder");
        let link = Link {
            url: world.address().to_owned(),
            store: world.store.clone(),
            code: shared::secret::Secret::new("guess"),
            kid: "k".to_owned(),
        };
        let document = world.ask("GET", "/openapi.json", &Value::Null).await;
        let mut tried = 0;
        let body = phone.enrolment(&link);
        for (path, operations) in document["paths"].as_object().unwrap() {
            let path = path
                .replace("{store}", world.store.as_str())
                .replace("{user}", &world.user)
                .replace("{device}", device.as_str());
            for method in ["post", "put", "patch", "delete"] {
                if operations.get(method).is_none() {
                    continue;
                }
                for authorization in [None, Some("Bearer cs_guess"), Some("Device a.b.c")] {
                    let headers: Vec<_> = authorization
                        .map(|a| ("authorization", a))
                        .into_iter()
                        .collect();
                    let status = world.anonymous(method, &path, &body, &headers).await;
                    assert!(
                        (400..500).contains(&status),
                        "{method} {path} gave {status}"
                    );
                    tried += 1;
                }
            }
        }
        assert!(tried > 40, "{tried}");
        assert_eq!(active(&world).await, 1, "{footing:?}");
        victim
            .fetch(&world.send(&Value::Null).await.0)
            .await
            .unwrap();
        world.end().await;
    }
}

/// The names of all fields and the words that they take.
fn names(value: &Value, found: &mut Vec<String>) {
    let fields = value["properties"].as_object().into_iter().flatten();
    found.extend(fields.map(|(name, _)| name.to_lowercase()));
    let words = value["enum"].as_array().into_iter().flatten();
    found.extend(words.filter_map(Value::as_str).map(str::to_lowercase));
    match value {
        Value::Object(map) => map.values().for_each(|one| names(one, found)),
        Value::Array(list) => list.iter().for_each(|one| names(one, found)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_10_no_prompt_code_or_notice_goes_by_mail() {
    for footing in footings() {
        let world = World::start(footing, "no-mail").await;
        // No field and no word in the whole interface takes an address of mail, so nothing can be sent to one.
        let document = world.ask("GET", "/openapi.json", &Value::Null).await;
        let mut words = Vec::new();
        names(&document, &mut words);
        assert!(words.len() > 100 && words.iter().any(|word| word == "apns"));
        let mail = |word: &&String| word.contains("mail") || word.contains("smtp");
        assert_eq!(words.iter().find(mail), None, "{footing:?}");
        let body = json!({"name": "x", "relying_party": RP, "platform": "ios", "public_key": Phone::new(Provider::Apns, "x").public_jwk(),
            "push_address": {"provider": "mail", "token": "ada.example"}});
        let path = format!("users/{}/devices", world.user);
        let refused = world.reply("POST", &path, &body, &[]).await;
        assert_eq!(refused.status.as_u16(), 422, "{footing:?}");
        world.end().await;
    }
}
