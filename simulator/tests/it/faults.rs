//! What goes wrong between a sender and a provider, on purpose.

use crate::client::{
    Connection, apns, connect, fcm, gateway, handshake, read, signed_in, undriven,
};
use shared::id::PushId;
use simulator::gateway::{Gateway, GatewayOptions};
use simulator::{Error, Provider, Script};
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::time::timeout;

const TOKEN: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const OTHER: &str = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// Nothing here takes as long unless it hangs.
const LONG: Duration = Duration::from_secs(20);

async fn started() -> (Gateway, Connection) {
    let gateway = gateway().await;
    let connection = connect(&gateway, gateway.apns_url()).await;
    (gateway, connection)
}

#[tokio::test]
async fn a_connection_told_to_go_away_answers_first_and_takes_nothing_more() {
    let (gateway, mut connection) = started().await;
    gateway.script_times(TOKEN, Script::GoAway, 1);
    gateway.script(OTHER, Script::Slow(Duration::from_millis(50)));
    // One that is in flight when the other shuts the connection down: it too gets its answer.
    connection.sender.ready().await.unwrap();
    let slow = apns(&gateway, OTHER, &PushId::fresh(1));
    let slow = connection.sender.send_request(slow);
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    assert_eq!(connection.send(request).await.status, 200);
    assert_eq!(slow.await.unwrap().status(), 200);
    let ended = timeout(LONG, connection.driver).await;
    ended.unwrap().unwrap().unwrap();
    let mut late = connection.sender;
    assert!(late.ready().await.is_err());

    let mut connection = connect(&gateway, gateway.apns_url()).await;
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    assert_eq!(connection.send(request).await.status, 200);
    assert_eq!(gateway.counts().connections[&Provider::Apns], 2);
    assert_eq!(gateway.counts().accepted, 3);
}

#[tokio::test]
async fn a_push_can_be_taken_and_its_answer_lost() {
    let (gateway, mut connection) = started().await;
    gateway.script_times(TOKEN, Script::ResetAfterAccept, 1);
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    assert!(connection.try_send(request).await.is_err());
    let receipt = &gateway.receipts_for(TOKEN)[0];
    assert_eq!((receipt.accepted, receipt.status), (true, None));
    assert_eq!(gateway.counts().unanswered, 1);

    let mut connection = connect(&gateway, gateway.apns_url()).await;
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    assert_eq!(connection.send(request).await.status, 200);
}

#[tokio::test]
async fn a_hanging_push_holds_its_stream_and_no_other() {
    let (gateway, mut connection) = started().await;
    let mut receipts = gateway.subscribe();
    gateway.script(TOKEN, Script::Hang);
    connection.sender.ready().await.unwrap();
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    let mut hanging = pin!(connection.sender.send_request(request));
    let never = timeout(Duration::from_millis(50), hanging.as_mut());
    assert!(never.await.is_err());
    assert!(!receipts.recv().await.unwrap().accepted);
    let mut other = connection.sender.clone();
    let request = apns(&gateway, OTHER, &PushId::fresh(1));
    assert_eq!(other.send_request(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn both_providers_announce_their_stream_limits() {
    let gateway = gateway().await;
    gateway.set_max_streams(Provider::Fcm, 7);
    let urls = [(gateway.apns_url(), 1000), (gateway.fcm_url(), 7)];
    for (url, limit) in urls {
        let (mut sender, connection) = undriven(&gateway, url).await;
        let mut connection = pin!(connection);
        let request = apns(&gateway, TOKEN, &PushId::fresh(1));
        let mut answer = pin!(sender.send_request(request));
        tokio::select! {
            answer = answer.as_mut() => drop(read(answer.unwrap())),
            ended = connection.as_mut() => panic!("{ended:?}"),
        }
        assert_eq!(connection.current_max_send_streams(), limit);
    }
}

#[tokio::test]
async fn a_stream_above_the_limit_waits_for_its_turn() {
    let options = GatewayOptions {
        apns_streams: 1,
        ..GatewayOptions::default()
    };
    let gateway = Gateway::start(options).await.unwrap();
    let mut connection = connect(&gateway, gateway.apns_url()).await;
    // The limit is known once the first answer is in.
    let request = apns(&gateway, OTHER, &PushId::fresh(1));
    assert_eq!(connection.send(request).await.status, 200);

    let pause = Duration::from_millis(60);
    gateway.script_times(TOKEN, Script::Slow(pause), 1);
    let push = PushId::fresh(1);
    let first = connection.sender.send_request(apns(&gateway, TOKEN, &push));
    let second = connection.sender.send_request(apns(&gateway, TOKEN, &push));
    let (first, second) = tokio::join!(first, second);
    assert_eq!(
        (first.unwrap().status(), second.unwrap().status()),
        (http::StatusCode::OK, http::StatusCode::OK)
    );
    let times: Vec<_> = gateway
        .receipts_for(TOKEN)
        .iter()
        .map(|r| r.at_ms)
        .collect();
    // Both ends are rounded down to the millisecond.
    assert!(times[1] - times[0] >= 59, "{times:?}");
}

#[tokio::test]
async fn an_outage_hits_every_push_and_no_token_exchange() {
    let (gateway, mut connection) = started().await;
    gateway.set_outage(true);
    let push = PushId::fresh(1);
    let answer = connection.send(apns(&gateway, TOKEN, &push)).await;
    assert_eq!(
        (answer.status, &answer.json()["reason"]),
        (503, &"ServiceUnavailable".into())
    );
    let (mut google, access) = signed_in(&gateway).await;
    let answer = google.send(fcm(&gateway, &access, TOKEN, &push)).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["status"]),
        (503, &"UNAVAILABLE".into())
    );
    gateway.set_outage(false);
    assert_eq!(
        connection.send(apns(&gateway, TOKEN, &push)).await.status,
        200
    );
    assert_eq!(
        google
            .send(fcm(&gateway, &access, TOKEN, &push))
            .await
            .status,
        200
    );
    assert_eq!(gateway.counts().accepted, 2);
}

#[tokio::test]
async fn a_slow_push_takes_its_time_and_so_does_everything_under_latency() {
    let (gateway, mut connection) = started().await;
    let pause = Duration::from_millis(40);
    gateway.script(TOKEN, Script::Slow(pause));
    let started = Instant::now();
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    assert_eq!(connection.send(request).await.status, 200);
    assert!(started.elapsed() >= pause);

    gateway.clear_scripts();
    gateway.set_latency(pause);
    let started = Instant::now();
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    assert_eq!(connection.send(request).await.status, 200);
    assert!(started.elapsed() >= pause);

    // All wait at the same time, and not one after the other.
    gateway.set_latency(Duration::from_hours(1));
    let mut receipts = gateway.subscribe();
    let requests = (0..20).map(|_| {
        let request = apns(&gateway, TOKEN, &PushId::fresh(1));
        connection.sender.send_request(request)
    });
    let waiting: Vec<_> = requests.collect();
    for _ in &waiting {
        assert!(receipts.recv().await.unwrap().accepted);
    }
}

#[tokio::test]
async fn a_throttled_token_says_when_to_come_back() {
    let (gateway, mut connection) = started().await;
    let script = Script::Throttled {
        times: 2,
        retry_after_secs: 30,
    };
    gateway.script(TOKEN, script.clone());
    gateway.script("a-token-of-google", script);
    let (mut google, access) = signed_in(&gateway).await;
    let push = PushId::fresh(1);
    for _ in 0..2 {
        let answer = connection.send(apns(&gateway, TOKEN, &push)).await;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (429, Some("30"))
        );
        let request = fcm(&gateway, &access, "a-token-of-google", &push);
        let answer = google.send(request).await;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (429, Some("30"))
        );
    }
    assert_eq!(
        connection.send(apns(&gateway, TOKEN, &push)).await.status,
        200
    );
    let request = fcm(&gateway, &access, "a-token-of-google", &push);
    assert_eq!(google.send(request).await.status, 200);
}

#[tokio::test]
async fn a_flaky_token_fails_and_then_works() {
    let (gateway, mut connection) = started().await;
    gateway.script(TOKEN, Script::Flaky { failures: 2 });
    let mut seen = vec![];
    for _ in 0..3 {
        let request = apns(&gateway, TOKEN, &PushId::fresh(1));
        seen.push(connection.send(request).await.status);
    }
    assert_eq!(seen, [500, 500, 200]);
    gateway.script(TOKEN, Script::Refuse);
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    let answer = connection.send(request).await;
    assert_eq!(
        (answer.status, &answer.json()["reason"]),
        (403, &"InvalidProviderToken".into())
    );
}

#[tokio::test]
async fn a_stopped_gateway_cuts_its_connections() {
    let (gateway, mut connection) = started().await;
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    assert_eq!(connection.send(request).await.status, 200);
    gateway.stop();
    // How the end looks depends on the moment; that it comes does not.
    drop(timeout(LONG, connection.driver).await.unwrap().unwrap());
    assert!(connection.sender.ready().await.is_err());
}

#[tokio::test]
async fn only_http_2_under_the_right_authority_gets_in() {
    let (gateway, other) = (gateway().await, gateway().await);
    let url = gateway.apns_url();
    assert!(handshake(url, gateway.ca_pem(), b"h2").await.is_ok());
    assert!(handshake(url, gateway.ca_pem(), b"http/1.1").await.is_err());
    assert!(handshake(url, other.ca_pem(), b"h2").await.is_err());
}

#[tokio::test]
async fn a_gateway_never_listens_beyond_the_machine() {
    let at = |listen: &str| GatewayOptions {
        listen: listen.parse().unwrap(),
        ..GatewayOptions::default()
    };
    let refused = Gateway::start(at("0.0.0.0:0")).await;
    assert!(matches!(refused, Err(Error::NotLoopback(_))));
    let refused = Gateway::start(at("127.0.0.1:65535")).await;
    assert!(matches!(refused, Err(Error::NoSecondPort(65535))));
    let taken = gateway().await;
    let address = taken.apns_url().strip_prefix("https://").unwrap();
    let refused = Gateway::start(at(address)).await;
    assert!(matches!(refused, Err(Error::Listen { .. })));
}

#[tokio::test]
async fn nothing_printed_gives_a_secret_away() {
    let (gateway, mut connection) = started().await;
    let request = apns(&gateway, TOKEN, &PushId::fresh(1));
    connection.send(request).await;
    let (journal, key) = (gateway.journal(), gateway.apns_key());
    let shown = format!(
        "{gateway:?} {journal:?} {key:?} {:?}",
        gateway.service_account_json()
    );
    for secret in [TOKEN, "PRIVATE KEY", "Sign in?"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}
