//! As much of the WebDriver protocol (W3C) as one test needs: a real Chromium, driven through its own chromedriver.

use crate::bed::{Http, http};
use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

const DRIVER: &str = "COUNTERSIGN_TEST_CHROMEDRIVER";
/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// The key under which an element's name comes.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A running chromedriver. Killed when dropped.
pub(crate) struct Driver {
    child: Child,
    url: String,
    http: Http,
}

/// One browser window.
pub(crate) struct Browser<'a> {
    driver: &'a Driver,
    path: String,
}

impl Driver {
    /// `None` where a run leaves it out by its own wish.
    pub(crate) async fn start() -> Option<Self> {
        let Ok(program) = std::env::var(DRIVER) else {
            assert!(
                std::env::var("COUNTERSIGN_TEST_EMBEDDED_ONLY").is_ok(),
                "no browser: run scripts/test, set {DRIVER} to a chromedriver, or set COUNTERSIGN_TEST_EMBEDDED_ONLY=1 to leave it out"
            );
            return None;
        };
        let mut child = Command::new(&program)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{DRIVER} names {program}, which does not start: {error}")
            });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = tokio::time::timeout(PATIENCE, async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, port)) = line.rsplit_once("started successfully on port ") {
                    return port.trim_end_matches('.').parse::<u16>().ok();
                }
            }
            None
        });
        let port = port.await.ok().flatten();
        let port = port.expect("chromedriver says which port it listens on");
        // It must not choke on what nobody reads.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
            http: http(),
        })
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value, Value> {
        let body = if method == Method::POST {
            body.to_string()
        } else {
            String::new()
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .body(Full::<Bytes>::from(body))
            .unwrap();
        let answering = async {
            let answer = self.http.request(request).await.unwrap();
            let good = answer.status().is_success();
            let bytes = answer.into_body().collect().await.unwrap().to_bytes();
            let mut answer: Value = serde_json::from_slice(&bytes).unwrap();
            let value = answer["value"].take();
            if good { Ok(value) } else { Err(value) }
        };
        let answer = tokio::time::timeout(PATIENCE, answering).await;
        answer.unwrap_or_else(|_| panic!("chromedriver does not answer {path}"))
    }

    pub(crate) async fn browser(&self) -> Browser<'_> {
        let mut options = json!({"args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
            "--no-first-run", "--window-size=1000,1100", "--lang=en",
            // Nothing from elsewhere, whatever the page or the browser wishes.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]});
        if let Ok(program) = std::env::var("COUNTERSIGN_TEST_CHROMIUM") {
            options["binary"] = program.into();
        }
        let wanted = json!({"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}});
        let session = self.call(Method::POST, "/session", &wanted).await;
        let session = session.expect("a browser starts");
        let id = session["sessionId"].as_str().unwrap();
        Browser {
            driver: self,
            path: format!("/session/{id}"),
        }
    }

    pub(crate) async fn end(mut self) {
        self.child.kill().await.unwrap();
    }
}

impl Browser<'_> {
    async fn post(&self, path: &str, body: Value) -> Value {
        let path = format!("{}/{path}", self.path);
        let answer = self.driver.call(Method::POST, &path, &body).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) async fn open(&self, url: &str) {
        self.post("url", json!({"url": url})).await;
    }

    /// What `expression` is in the page.
    pub(crate) async fn eval(&self, expression: &str) -> Value {
        let script = format!("return ({expression});");
        self.post("execute/sync", json!({"script": script, "args": []}))
            .await
    }

    /// Returns when `expression` is true in the page.
    pub(crate) async fn until(&self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.eval(&format!("!!({expression})")).await != json!(true) {
            if Instant::now() > deadline {
                let page = self.eval("document.body.innerText").await;
                panic!("never true: {expression}\n{}", page.as_str().unwrap());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn find(&self, css: &str) -> String {
        let found = self
            .post("element", json!({"using": "css selector", "value": css}))
            .await;
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// A real click: it fails when something lies above.
    pub(crate) async fn click(&self, css: &str) {
        let element = self.find(css).await;
        self.post(&format!("element/{element}/click"), json!({}))
            .await;
    }

    pub(crate) async fn type_into(&self, css: &str, text: &str) {
        let element = self.find(css).await;
        self.post(&format!("element/{element}/value"), json!({"text": text}))
            .await;
    }

    /// Keeps a picture where the environment names a folder for them.
    pub(crate) async fn picture(&self, name: &str) {
        let Ok(folder) = std::env::var("COUNTERSIGN_TEST_PICTURES") else {
            return;
        };
        let path = format!("{}/screenshot", self.path);
        let png = self.driver.call(Method::GET, &path, &Value::Null).await;
        let png = base64::engine::general_purpose::STANDARD
            .decode(png.unwrap().as_str().unwrap())
            .unwrap();
        std::fs::write(std::path::Path::new(&folder).join(name), png).unwrap();
    }

    /// Dark or light, and how wide.
    pub(crate) async fn look(&self, scheme: &str, (width, height): (u32, u32)) {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", media).await;
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size)
            .await;
    }

    pub(crate) async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post(
            "goog/cdp/execute",
            json!({"cmd": command, "params": parameters}),
        )
        .await
    }

    pub(crate) async fn close(&self) {
        let closed = self
            .driver
            .call(Method::DELETE, &self.path, &Value::Null)
            .await;
        closed.expect("the browser closes");
    }
}
