//! `countersign dev` as a newcomer meets it: start, ask, answer on the phone, and start again on the same data.

use cli::client::{Client, Context};
use harness::{Process, until};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Dev {
    process: Process,
    context: Context,
}

impl Dev {
    async fn start(folder: &Path) -> Self {
        let data = folder.join("data").display().to_string();
        let arguments = ["--json", "dev", "--port", "0", "--data", &data];
        let log = folder.join(format!("dev-{}.log", shared::id::MessageId::fresh(0)));
        let mut process = Process::start(&arguments, &environment(folder), log);
        let rest = process.says("{").await;
        let context = serde_json::from_str(&format!("{{{rest}")).unwrap();
        Self { process, context }
    }

    /// Sends the form of a phone's page until the push has ended: the page may not know of it yet.
    async fn answer(&self, phone: &str, push: &str, form: &str) {
        let address = self.context.url.replace("http://localhost", "127.0.0.1");
        let client = Client::new(self.context.clone());
        let path = format!("/v1/stores/{}/pushes/{push}", self.context.store);
        until(20, "the phone's answer", || async {
            assert_eq!(browse(&address, "GET", "/phone", "").await, 200);
            let answer = format!("/phone/{phone}/answer");
            assert_eq!(browse(&address, "POST", &answer, form).await, 303);
            let shown = client
                .call("GET", &path, None, &[], Duration::ZERO)
                .await
                .unwrap();
            shown.body["ended_at"].is_string().then_some(())
        })
        .await;
    }

    async fn stop(mut self) {
        let status = self.process.terminate().await;
        assert!(status.success(), "{}", self.process.said());
    }
}

fn environment(folder: &Path) -> Vec<(String, String)> {
    let place = folder.display().to_string();
    vec![
        ("XDG_CONFIG_HOME".to_owned(), place.clone()),
        ("HOME".to_owned(), place),
    ]
}

/// What a browser sends when the phones' page is opened, and for the form on it. Gives the status.
async fn browse(address: &str, method: &str, path: &str, form: &str) -> u16 {
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nsec-fetch-site: same-origin\r\nconnection: close\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_asks_answers_on_the_phone_and_finds_it_again_after_a_restart() {
    let folder = std::env::temp_dir().join(format!(
        "countersign-dev-{}",
        shared::id::MessageId::fresh(0)
    ));
    std::fs::create_dir_all(&folder).unwrap();
    let dev = Dev::start(&folder).await;
    // No address, key or store: the command finds them.
    let log = folder.join("send.log");
    let ask = ["--json", "send", "ada", "Sign in to Payroll", "--wait"];
    let mut send = Process::start(&ask, &environment(&folder), log);
    let rest = send.says("{").await;
    let taken: Value = serde_json::from_str(&format!("{{{rest}")).unwrap();
    let (push, code) = (
        taken["id"].as_str().unwrap(),
        taken["match_code"].as_str().unwrap(),
    );
    let form = format!("push={push}&decision=approve&code={code}");
    dev.answer("Ada%27s%20iPhone", push, &form).await;
    let status = send.ended().await;
    assert_eq!(status.code(), Some(0), "{}", send.said());
    assert!(send.said().contains("\"approved\""), "{}", send.said());
    // A new phone, by the code that the command prints and the page takes.
    let enrol = ["--json", "device", "enrol", "ada"];
    let mut enrol = Process::start(&enrol, &environment(&folder), folder.join("enrol.log"));
    let rest = enrol.says("{").await;
    let made: Value = serde_json::from_str(&format!("{{{rest}")).unwrap();
    let link = made["link"]
        .as_str()
        .unwrap()
        .replace('%', "%25")
        .replace('&', "%26");
    let address = &dev.context.url.replace("http://localhost", "127.0.0.1");
    let form = format!("link={link}&provider=apns");
    assert_eq!(browse(address, "POST", "/phone/enrol", &form).await, 303);
    assert_eq!(enrol.ended().await.code(), Some(0), "{}", enrol.said());
    assert!(
        enrol.said().contains("\"state\":\"used\""),
        "{}",
        enrol.said()
    );
    let key = dev.context.key.clone();
    dev.stop().await;
    let dev = Dev::start(&folder).await;
    assert_eq!(dev.context.key, key, "the same way in");
    let client = Client::new(dev.context.clone());
    let path = format!("/v1/stores/{}/pushes/{push}", dev.context.store);
    let found = client
        .call("GET", &path, None, &[], Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(found.body["state"], "approved", "{}", found.body);
    let denied = ["--json", "send", "ada", "Again", "--no-code", "--wait"];
    let mut send = Process::start(&denied, &environment(&folder), folder.join("again.log"));
    let rest = send.says("{").await;
    let taken: Value = serde_json::from_str(&format!("{{{rest}")).unwrap();
    let form = format!("push={}&decision=fraud", taken["id"].as_str().unwrap());
    dev.answer("Ada%27s%20Pixel", taken["id"].as_str().unwrap(), &form)
        .await;
    assert_eq!(
        send.ended().await.code(),
        Some(11),
        "reported as fraud: {}",
        send.said()
    );
    dev.stop().await;
    let (status, _, said) = Process::run(&["send", "ada", "x"], &environment(&folder));
    assert_eq!(status.code(), Some(3), "nothing is left of it: {said}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn bad_settings_are_told_all_at_once_and_nothing_starts() {
    let bad = [
        ("COUNTERSIGN_SERVER__LISTEN", "nowhere"),
        ("COUNTERSIGN_SERVER__SECRET", "canary"),
        ("COUNTERSIGN_QUEUE__URL", "ftp://x"),
        ("COUNTERSIGN_SERVER__LISEN", "x"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let (status, out, said) = Process::run(&["serve", "--role", "api"], &bad);
    assert_eq!((status.code(), out.as_str()), (Some(3), ""), "{said}");
    for key in [
        "server.listen",
        "server.secret",
        "queue.url",
        "COUNTERSIGN_SERVER__LISEN",
    ] {
        assert!(said.contains(key), "{key} is not in {said}");
    }
    assert!(!said.contains("canary"));
}

#[test]
fn a_taken_port_and_an_absent_server_are_told_with_what_where_and_the_fix() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (status, _, said) = Process::run(&["dev", "--port", &port], &[]);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(&port) && said.contains("fix: "), "{said}");
    drop(taken);
    let environment = [
        (
            "COUNTERSIGN_SERVER__SECRET",
            "0123456789012345678901234567890123456789012345",
        ),
        ("COUNTERSIGN_SERVER__LISTEN", "127.0.0.1:0"),
        ("DATABASE_URL", "postgres://u:canary@127.0.0.1:1/d"),
        ("AMQP_URL", "amqp://u:canary@127.0.0.1:1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let (status, _, said) = Process::run(&["serve", "--role", "worker"], &environment);
    assert_eq!(status.code(), Some(5), "{said}");
    assert!(
        said.contains("127.0.0.1:1") && said.contains("fix: ") && !said.contains("canary"),
        "{said}"
    );
    let (status, _, said) = Process::run(&["doctor"], &environment);
    assert_eq!(status.code(), Some(5), "{said}");
}
