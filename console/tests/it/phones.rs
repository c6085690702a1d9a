//! The phones, without a browser.

use crate::bed::{Bed, IPHONE, IPHONE_PATH, PIXEL, phone};
use http::{Method, StatusCode};
use serde_json::json;
use shared::domain::PushState;

const PIXEL_PATH: &str = "/phone/Ada%27s%20Pixel";

fn form(push: &impl std::fmt::Display, decision: &str, code: &str) -> String {
    format!("push={push}&decision={decision}&code={code}")
}

/// Both phones show the push.
async fn arrived(bed: &Bed, push: &impl std::fmt::Display) -> String {
    let id = push.to_string();
    let both = |page: &str| {
        [IPHONE, PIXEL]
            .iter()
            .all(|name| phone(page, name).contains(&id))
    };
    bed.shows("/phone", both).await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_phones_wait_then_show_the_push_and_one_answer_clears_them() {
    let bed = Bed::start().await;
    let page = bed.get("/phone").await.body;
    for name in [IPHONE, PIXEL] {
        let screen = phone(&page, name);
        assert!(screen.contains("Waiting for a push"), "{screen}");
        assert!(screen.contains("Live"), "{screen}");
    }
    let asked = bed
        .ask(json!({"message": "Was this you <script>?", "details": [{"label": "Place", "value": "Cork & \"Kerry\""}],
            "context": {"ip": "203.0.113.7", "place": "Lagos", "agent": "<b>Firefox</b>"}}))
        .await;
    let page = arrived(&bed, &asked.id).await;
    let screen = phone(&page, IPHONE);
    for part in [
        "payroll",
        "Sign in to Payroll",
        "Was this you &lt;script&gt;?",
        "Place",
        "Cork &amp; &quot;Kerry&quot;",
        "Where this comes from",
        "203.0.113.7",
        "Lagos",
        "&lt;b&gt;Firefox&lt;/b&gt;",
        " left</span>",
        "Approve",
        "Deny",
        "This wasn't me",
        "name=\"code\"",
    ] {
        assert!(screen.contains(part), "no {part} in {screen}");
    }
    assert!(!page.contains("Was this you <script>"));

    let answer = bed
        .post(
            &format!("{IPHONE_PATH}/answer"),
            &form(&asked.id, "approve", &asked.code),
        )
        .await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    assert_eq!(answer.header("location"), "/phone");
    // Told at once, on both phones.
    let page = bed.get("/phone/screens").await.body;
    assert!(phone(&page, IPHONE).contains("Approved"), "{page}");
    assert!(
        phone(&page, PIXEL).contains("Answered on another device"),
        "{page}"
    );
    assert!(!page.contains("<article"), "{page}");
    let push = bed.store.push(&asked.id).await.unwrap().unwrap();
    assert_eq!(push.state, PushState::Approved);
    // A second click is no second answer.
    let path = format!("{PIXEL_PATH}/answer");
    let again = bed.post(&path, &form(&asked.id, "deny", "")).await;
    assert_eq!(again.status, StatusCode::SEE_OTHER);
    let push = bed.store.push(&asked.id).await.unwrap().unwrap();
    assert_eq!(push.state, PushState::Approved);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_and_a_batch_show_amounts_and_every_payee() {
    let bed = Bed::start().await;
    let payment = |amount: &str, name: &str| json!({"amount": amount, "currency": "EUR", "payee": {"name": name, "account": "IE29"}});
    let asked = bed
        .ask(json!({"payment": payment("12.50", "Cork & Cycles")}))
        .await;
    let page = arrived(&bed, &asked.id).await;
    let screen = phone(&page, IPHONE);
    for part in ["12.50 EUR", "Cork &amp; Cycles", "IE29"] {
        assert!(screen.contains(part), "no {part} in {screen}");
    }
    let batch: Vec<_> = (0..150)
        .map(|n| payment("0.10", &format!("Payee {n:03}")))
        .collect();
    let asked = bed.ask(json!({"payments": batch})).await;
    let page = arrived(&bed, &asked.id).await;
    let screen = phone(&page, IPHONE);
    assert!(
        screen.contains("<td>150</td>") && screen.contains("<td>15.00 EUR</td>"),
        "{screen}"
    );
    for n in 0..150 {
        let line = format!("Payee {n:03}, IE29: 0.10 EUR");
        assert!(screen.contains(&line), "no {line} in {screen}");
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_sees_that_and_is_asked_no_more_once_it_is_taken_back() {
    let bed = Bed::start().await;
    let other = json!({"external_id": "grace"});
    bed.api(Method::POST, "users", &other).await;
    let body = json!({"approvers": [{"user": {"external_id": "ada"}}, {"user": other}], "required": 1, "relying_party": "payroll",
        "title": "Pay Acme"});
    let asked = bed.api(Method::POST, "approvals", &body).await;
    let push = asked["members"][0]["push"].as_str().unwrap();
    let page = arrived(&bed, &push).await;
    let screen = phone(&page, IPHONE);
    let said = "You are one of 2 who are asked. 1 must approve.";
    assert!(screen.contains(said), "{screen}");
    let back = format!("approvals/{}/cancel", asked["id"].as_str().unwrap());
    bed.api(Method::POST, &back, &json!(null)).await;
    bed.shows("/phone", |page| !page.contains(said)).await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_code_is_told_and_the_card_stays() {
    let bed = Bed::start().await;
    let asked = bed.ask(json!({})).await;
    arrived(&bed, &asked.id).await;
    let path = format!("{IPHONE_PATH}/answer");
    let send = async |decision: &str, code: &str| {
        bed.post(&path, &form(&asked.id, decision, code)).await;
        bed.get("/phone/screens").await.body
    };
    let page = send("approve", "12").await;
    assert!(phone(&page, IPHONE).contains("Type all six digits first"));
    let push = bed.store.push(&asked.id).await.unwrap().unwrap();
    assert_eq!(push.wrong_codes, 0, "nothing was sent");

    let wrong = if asked.code == "000000" {
        "111111"
    } else {
        "000000"
    };
    let page = send("approve", wrong).await;
    let screen = phone(&page, IPHONE);
    assert!(screen.contains("That code was not right"), "{screen}");
    assert!(screen.contains("aria-invalid=\"true\""), "{screen}");
    assert!(!phone(&page, PIXEL).contains("not right"), "{page}");
    let push = bed.store.push(&asked.id).await.unwrap().unwrap();
    assert_eq!((push.wrong_codes, push.ended_at), (1, None));

    for _ in 0..4 {
        send("approve", wrong).await;
    }
    let page = bed.get("/phone/screens").await.body;
    assert!(
        phone(&page, IPHONE).contains("Ended after too many wrong codes"),
        "{page}"
    );
    assert!(
        phone(&page, PIXEL).contains("Ended without an answer"),
        "{page}"
    );
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_typed_in_groups_counts() {
    let bed = Bed::start().await;
    let asked = bed.ask(json!({})).await;
    arrived(&bed, &asked.id).await;
    let (left, right) = asked.code.split_at(3);
    let code = format!("+{left}+{right}");
    bed.post(
        &format!("{IPHONE_PATH}/answer"),
        &form(&asked.id, "approve", &code),
    )
    .await;
    let page = bed.get("/phone/screens").await.body;
    assert!(phone(&page, IPHONE).contains("Approved"), "{page}");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_may_report_fraud() {
    let bed = Bed::start().await;
    for (decision, reason, shown) in [
        ("deny", "user_declined", "Denied"),
        ("fraud", "fraud_reported", "Denied and reported"),
    ] {
        let asked = bed.ask(json!({})).await;
        arrived(&bed, &asked.id).await;
        // The form of a denial has an empty code.
        bed.post(
            &format!("{IPHONE_PATH}/answer"),
            &form(&asked.id, decision, ""),
        )
        .await;
        let page = bed.get("/phone/screens").await.body;
        assert!(phone(&page, IPHONE).contains(shown), "{page}");
        let push = bed.store.push(&asked.id).await.unwrap().unwrap();
        assert_eq!(
            (push.state, push.reason.as_str()),
            (PushState::Denied, reason)
        );
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_and_expired_prompts_vanish_and_say_why() {
    let bed = Bed::start().await;
    let cancelled = bed.ask(json!({"title": "Taken back"})).await;
    let expired = bed
        .ask(json!({"title": "Too late", "expires_in": "10s"}))
        .await;
    arrived(&bed, &expired.id).await;
    bed.api(
        Method::POST,
        &format!("pushes/{}/cancel", cancelled.id),
        &json!({}),
    )
    .await;
    let said = |what: &'static str| {
        move |page: &str| {
            [IPHONE, PIXEL]
                .iter()
                .all(|name| phone(page, name).contains(what))
        }
    };
    bed.shows("/phone/screens", said("Cancelled by the sender"))
        .await;
    bed.shows("/phone/screens", said("Expired")).await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generic_push_is_accepted_on_each_phone() {
    let bed = Bed::start().await;
    let asked = bed.ask(json!({"kind": "generic"})).await;
    let page = arrived(&bed, &asked.id).await;
    assert!(!page.contains("name=\"code\""), "{page}");
    bed.post(
        &format!("{IPHONE_PATH}/answer"),
        &form(&asked.id, "approve", ""),
    )
    .await;
    let page = bed.get("/phone/screens").await.body;
    let (first, second) = (phone(&page, IPHONE), phone(&page, PIXEL));
    assert!(
        first.contains("Accepted") && !first.contains("<article"),
        "{first}"
    );
    assert!(second.contains("<article"), "{second}");
    bed.post(
        &format!("{PIXEL_PATH}/answer"),
        &form(&asked.id, "approve", ""),
    )
    .await;
    let page = bed.get("/phone/screens").await.body;
    assert!(phone(&page, PIXEL).contains("Accepted"), "{page}");
    let push = bed.store.push(&asked.id).await.unwrap().unwrap();
    assert_eq!(push.state, PushState::Completed);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_push_is_a_link_and_its_end_is_told() {
    let bed = Bed::start().await;
    let start_url = format!("{}/livez", bed.url);
    let definition = json!({"name": "onboard", "version": 1, "start_url": start_url});
    bed.api(Method::POST, "process-definitions", &definition)
        .await;
    let asked = bed
        .ask(json!({"kind": "process", "process": {"definition": "onboard"}}))
        .await;
    let page = arrived(&bed, &asked.id).await;
    let screen = phone(&page, IPHONE);
    assert!(!screen.contains("value=\"approve\""), "{screen}");
    assert!(screen.contains("value=\"deny\""), "{screen}");
    let link = screen.split("href=\"").nth(1).unwrap();
    let link = link.split('"').next().unwrap();
    let link = link.strip_prefix(&bed.url).unwrap();
    let looked = bed.get(link).await;
    assert_eq!(looked.status, StatusCode::OK);
    assert!(
        looked.body.contains("<form method=post><button>"),
        "{looked:?}"
    );
    let opened = bed.post(link, "").await;
    assert_eq!(opened.status, StatusCode::SEE_OTHER);
    let page = bed
        .shows("/phone/screens", |page| page.contains("Opened: it goes on"))
        .await;
    assert!(!page.contains("<article"), "{page}");
    let push = bed.store.push(&asked.id).await.unwrap().unwrap();
    let instance = push.instance.unwrap();
    bed.api(
        Method::POST,
        &format!("instances/{instance}/complete"),
        &json!({"status": "ended_success"}),
    )
    .await;
    bed.shows("/phone/screens", |page| {
        page.contains("The process ended: approved")
    })
    .await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_in_airplane_mode_sees_nothing_until_it_lands() {
    let bed = Bed::start().await;
    let path = format!("{IPHONE_PATH}/airplane");
    assert_eq!(
        bed.post(&path, "on=true").await.status,
        StatusCode::SEE_OTHER
    );
    let mut rings = bed.fleet.listen();
    let asked = bed.ask(json!({})).await;
    let id = asked.id.to_string();
    let page = bed
        .shows("/phone/screens", |page| phone(page, PIXEL).contains(&id))
        .await;
    let screen = phone(&page, IPHONE);
    assert!(
        screen.contains("Airplane mode: pushes do not arrive"),
        "{screen}"
    );
    assert!(screen.contains("aria-checked=\"true\""), "{screen}");
    assert!(!screen.contains("<article"), "{screen}");
    bed.fleet.wait_for_rings(IPHONE, &asked.id, 1).await;
    // The other may have looked before it was woken; this one was woken and not heard.
    while let Ok(rang) = rings.try_recv() {
        assert_eq!(rang.phone, PIXEL);
    }
    bed.post(&path, "on=false").await;
    let page = bed.get("/phone/screens").await.body;
    assert!(phone(&page, IPHONE).contains(&id), "{page}");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_tells_what_comes_and_goes_and_ends_with_the_server() {
    let bed = Bed::start().await;
    let mut stream = bed.stream("/phone/events").await;
    let first = stream.next().await.unwrap();
    assert!(first.contains("event: changed"), "{first}");
    let asked = bed.ask(json!({})).await;
    let id = asked.id.to_string();
    let until = async |stream: &mut crate::bed::Stream, there: bool| {
        loop {
            stream.next().await.unwrap();
            let page = bed.get("/phone/screens").await.body;
            if phone(&page, PIXEL).contains(&format!("card-1-{id}")) == there {
                return;
            }
        }
    };
    until(&mut stream, true).await;
    bed.api(Method::POST, &format!("pushes/{id}/cancel"), &json!({}))
        .await;
    until(&mut stream, false).await;
    bed.end().await;
    while stream.next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_not_endless_seats() {
    let bed = Bed::start().await;
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(bed.stream("/phone/events").await);
    }
    let refused = bed.get("/phone/events").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    drop(streams.pop());
    // The seat is free once the server has noticed.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let headers = [("accept", "text/event-stream")];
        let request = bed.send(Method::HEAD, "/phone/events", &headers, "").await;
        if request.status == StatusCode::OK {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "no seat became free");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    drop(streams);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_of_other_sites_and_other_names_are_refused() {
    let bed = Bed::start().await;
    let asked = bed.ask(json!({})).await;
    arrived(&bed, &asked.id).await;
    let path = format!("{IPHONE_PATH}/answer");
    let body = form(&asked.id, "approve", &asked.code);
    let kind = ("content-type", "application/x-www-form-urlencoded");
    for from in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "http://127.0.0.1:1"),
        ("host", "evil.example"),
    ] {
        let refused = bed.send(Method::POST, &path, &[kind, from], &body).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{from:?}");
    }
    let read = bed
        .send(Method::GET, "/phone", &[("host", "evil.example")], "")
        .await;
    assert_eq!(read.status, StatusCode::FORBIDDEN);
    assert!(!read.body.contains("Payroll"));
    let push = bed.store.push(&asked.id).await.unwrap().unwrap();
    assert_eq!(push.ended_at, None);

    let absent = bed.post("/phone/nobody/answer", &body).await;
    assert_eq!(absent.status, StatusCode::NOT_FOUND);
    for nonsense in ["", "push=x&decision=approve", &form(&asked.id, "maybe", "")] {
        let refused = bed.post(&path, nonsense).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{nonsense}");
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_allow_nothing_from_elsewhere() {
    let bed = Bed::start().await;
    for path in ["/phone", "/phone/screens", "/", "/p/nonsense"] {
        let page = bed.get(path).await;
        let policy = page.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none';"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(page.header("cache-control"), "no-store", "{path}");
        assert_eq!(page.header("x-content-type-options"), "nosniff", "{path}");
        for inline in [" style=", " onclick=", "<style", "javascript:"] {
            assert!(!page.body.contains(inline), "{path} has {inline}");
        }
        for address in page.body.split("src=\"").skip(1) {
            assert!(address.starts_with('/'), "{path}: {address}");
        }
    }
    for (name, kind, part) in [
        ("app.js", "text/javascript", "EventSource"),
        ("app.css", "text/css", "prefers-color-scheme"),
        ("icon.svg", "image/svg+xml", "<svg"),
    ] {
        for place in ["/phone", "/console"] {
            let file = bed.get(&format!("{place}/{name}")).await;
            assert!(file.header("content-type").starts_with(kind), "{name}");
            assert!(file.body.contains(part), "{name}");
        }
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_lets_another_in_by_a_qr_code_and_takes_it_away_again() {
    let bed = Bed::start().await;
    let invite = format!("{IPHONE_PATH}/invite");
    let page = async || bed.get("/phone/screens").await.body;
    assert!(!page().await.contains("<svg"));
    assert_eq!(bed.post(&invite, "").await.status, StatusCode::SEE_OTHER);
    let shown = page().await;
    let screen = phone(&shown, IPHONE).to_owned();
    assert!(
        screen.contains("<svg") && !screen.contains("<?xml"),
        "{screen}"
    );
    let link = screen.split("value=\"countersign:").nth(1).unwrap();
    let link = link.split('"').next().unwrap().replace("&amp;", "&");
    // Percent-encoded once more, as a form does.
    let bytes = format!("countersign:{link}").into_bytes();
    let bytes: Vec<_> = bytes.iter().map(|b| format!("%{b:02X}")).collect();
    let form = bytes.concat();
    let bad = bed
        .post("/phone/enrol", "link=https://evil.example&provider=fcm")
        .await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    let form = format!("link={form}&provider=fcm");
    assert_eq!(
        bed.post("/phone/enrol", &form).await.status,
        StatusCode::SEE_OTHER
    );
    let spent = bed.post("/phone/enrol", &form).await;
    assert_eq!(spent.status, StatusCode::BAD_REQUEST, "it works once");
    let added = |page: &str| phone(page, IPHONE).contains("Phone 3 was added to your account");
    let shown = bed.shows("/phone/screens", added).await;
    assert!(
        !phone(&shown, IPHONE).contains("<svg"),
        "the link is spent and gone"
    );
    let asked = bed.ask(json!({})).await;
    bed.shows("/phone/screens", |page| {
        phone(page, "Phone 3</h2>").contains(&asked.id.to_string())
    })
    .await;
    // One phone has seen it, the other one takes the new phone away.
    let notice = |page: &str, name: &str| {
        let rest = phone(page, name)
            .split("name=\"notice\" value=\"")
            .nth(1)
            .unwrap()
            .to_owned();
        rest.split('"').next().unwrap().to_owned()
    };
    let shown = page().await;
    let seen = format!("notice={}&act=seen", notice(&shown, IPHONE));
    bed.post(&format!("{IPHONE_PATH}/notice"), &seen).await;
    assert!(!phone(&page().await, IPHONE).contains("Phone 3 was added"));
    let remove = format!("notice={}&act=remove", notice(&shown, PIXEL));
    bed.post(&format!("{PIXEL_PATH}/notice"), &remove).await;
    let gone = |page: &str| {
        phone(page, "Phone 3</h2>").contains("Not registered")
            && phone(page, IPHONE).contains("Phone 3 was removed")
    };
    bed.shows("/phone/screens", gone).await;
    bed.end().await;
}
