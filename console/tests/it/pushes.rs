//! The console, without a browser.

use crate::bed::{Bed, IPHONE_PATH};
use http::StatusCode;
use serde_json::json;
use shared::clock::{Clock as _, SystemClock};
use shared::id::PushId;

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_listed_and_its_life_is_told() {
    let bed = Bed::start().await;
    let empty = bed.get("/").await.body;
    assert!(empty.contains("No push yet"), "{empty}");
    let mut stream = bed.stream("/console/events").await;
    stream.next().await.unwrap();

    let asked = bed
        .ask(json!({"title": "Pay <b>500</b>", "details": [{"label": "To", "value": "Grace"}]}))
        .await;
    stream.next().await.unwrap();
    let id = asked.id.to_string();
    let list = bed.shows("/", |page| page.contains("pending")).await;
    for part in [
        "Pay &lt;b&gt;500&lt;/b&gt;",
        "ada",
        "confirm",
        "just now",
        &format!("href=\"/p/{id}\""),
    ] {
        assert!(list.contains(part), "no {part} in {list}");
    }
    assert!(list.contains("1 open, 0 approved"), "{list}");

    let path = format!("/p/{id}");
    let page = bed
        .shows(&path, |page| page.matches("called once").count() == 2)
        .await;
    // Only now: a phone that looks before it is woken is not woken any more.
    bed.shows("/phone", |page| page.matches("<article").count() == 2)
        .await;
    for part in [
        "Taken",
        "Ada's iPhone",
        "Ada's Pixel",
        "Grace",
        "must be typed",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    let mut follow = bed.stream(&format!("{path}/events")).await;
    follow.next().await.unwrap();
    let form = format!("push={id}&decision=approve&code={}", asked.code);
    bed.post(&format!("{IPHONE_PATH}/answer"), &form).await;
    follow.next().await.unwrap();
    let page = bed.get(&path).await.body;
    for part in [
        "Ended",
        "answered on Ada's iPhone, signature checked",
        "its answer: approve",
        "taken off the phone",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    // It says nothing of the code that was typed, and what is over needs no stream.
    assert!(
        !page.contains(&asked.code) && !page.contains("data-events"),
        "{page}"
    );
    let list = bed.get("/").await.body;
    assert!(list.contains("0 open, 1 approved"), "{list}");
    bed.end().await;
    while stream.next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn other_stores_pushes_are_absent() {
    let bed = Bed::start().await;
    let other = bed.store.add_store("other", 1).await.unwrap();
    let asked = bed.ask(json!({})).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let router = console::console_router(bed.store.clone(), other.id, stop.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(api::serve(listener, router, stop.clone()));
    let client = crate::bed::http();
    for (path, status) in [
        (format!("/p/{}", asked.id), StatusCode::NOT_FOUND),
        ("/".to_owned(), StatusCode::OK),
    ] {
        let request = http::Request::get(format!("{url}{path}"));
        let request = request.body(http_body_util::Full::default()).unwrap();
        assert_eq!(client.request(request).await.unwrap().status(), status);
    }
    let fresh = PushId::fresh(SystemClock.now());
    let absent = bed.get(&format!("/p/{fresh}")).await;
    assert_eq!(absent.status, StatusCode::NOT_FOUND);
    assert!(absent.body.contains("No such push"), "{}", absent.body);
    stop.cancel();
    drop(client);
    serving.await.unwrap().unwrap();
    bed.end().await;
}
