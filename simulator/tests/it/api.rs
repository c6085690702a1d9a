//! The API's side of `docs/device-protocol.md`, as small as the phone's tests need it, and strict where the protocol is.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use shared::crypto::{ServerSecret, Signer};
use shared::id::{DeviceId, PushId, StoreId};
use simulator::Phone;
use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub(crate) const CODE: &str = "042137";
/// Written out by hand: RFC 8785 of what `ask` shows.
const CANONICAL: &str =
    r#"{"details":[{"label":"Place","value":"Cork"}],"kind":"confirm","title":"Sign in — Zürich"}"#;

/// What the API holds.
#[derive(Default)]
struct Held {
    keys: Vec<(DeviceId, Value)>,
    prompts: Vec<Value>,
    used: HashSet<String>,
    proofs: Vec<(String, Value)>,
    addresses: Vec<Value>,
    outages: u32,
    meddler: Option<Meddler>,
}

/// A running API.
#[derive(Clone)]
pub(crate) struct Api {
    held: Arc<Mutex<Held>>,
    answers: Arc<watch::Sender<usize>>,
    pub(crate) base: String,
    pub(crate) store: StoreId,
    secret: Arc<ServerSecret>,
}

/// Changes a prompt on its way.
type Meddler = Box<dyn Fn(&mut Value) + Send>;

impl Api {
    pub(crate) async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Self {
            held: Arc::default(),
            answers: Arc::new(watch::Sender::new(0)),
            base: format!("http://{}", socket.local_addr().unwrap()),
            store: StoreId::fresh(1),
            secret: Arc::new(ServerSecret::new(&ServerSecret::generate()).unwrap()),
        };
        let serving = api.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                let api = serving.clone();
                let service = service_fn(move |request| {
                    let api = api.clone();
                    async move { Ok::<_, Infallible>(api.serve(request).await) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        api
    }

    /// Registers a phone, as the device registration does.
    pub(crate) fn register(&self, phone: &Phone) -> DeviceId {
        let device = DeviceId::fresh(1);
        let mut held = self.held.lock().unwrap();
        held.keys.push((device.clone(), phone.public_jwk()));
        drop(held);
        phone.enrolled(
            device.clone(),
            self.store.clone(),
            self.secret.signer().public().clone(),
            &format!("{}/", self.base),
        );
        device
    }

    /// Asks everybody.
    pub(crate) fn ask(&self, match_required: bool) -> PushId {
        let push = PushId::fresh(1);
        self.held.lock().unwrap().prompts.push(json!({
            "push": push, "store": self.store, "state": "pending",
            "shown": {"title": "Sign in — Zürich", "kind": "confirm", "details": [{"value": "Cork", "label": "Place"}]},
            "content_hash": "not to be believed", "nonce": "nonce-of-this-push",
            "match_required": match_required, "expires_at": "2026-11-24T12:00:00.000Z", "added_later": 1,
        }));
        push
    }

    /// From now on somebody sits between the API and the phones.
    pub(crate) fn meddle(&self, meddler: impl Fn(&mut Value) + Send + 'static) {
        self.held.lock().unwrap().meddler = Some(Box::new(meddler));
    }

    /// Signs as the server does.
    pub(crate) fn signer(&self) -> &Signer {
        self.secret.signer()
    }

    /// The prompt as `device` gets it.
    fn signed(&self, prompt: &Value, device: &str, held: &Held) -> Value {
        let mut prompt = prompt.clone();
        let claims = json!({"ver": 1, "iss": prompt["store"], "aud": device, "sub": prompt["push"], "iat": 1, "state": prompt["state"],
            "nonce": prompt["nonce"], "kind": prompt["shown"]["kind"], "content_hash": sha256(CANONICAL.as_bytes()),
            "match_required": prompt["match_required"], "expires_at": prompt["expires_at"]});
        prompt["signature"] = self.signer().sign("countersign-prompt+jwt", &claims).into();
        if let Some(meddler) = &held.meddler {
            meddler(&mut prompt);
        }
        prompt
    }

    /// The next `times` requests get 503.
    pub(crate) fn fail(&self, times: u32) {
        self.held.lock().unwrap().outages = times;
    }

    /// The proofs that came in, with their claims.
    pub(crate) fn proofs(&self) -> Vec<(String, Value)> {
        self.held.lock().unwrap().proofs.clone()
    }

    pub(crate) fn addresses(&self) -> Vec<Value> {
        self.held.lock().unwrap().addresses.clone()
    }

    /// Returns as soon as `count` proofs came in.
    pub(crate) async fn wait_for_proofs(&self, count: usize) {
        let mut answers = self.answers.subscribe();
        answers.wait_for(|now| *now >= count).await.unwrap();
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let (status, answer) = self.judge(&parts, &body);
        let body = match answer {
            Value::Null => Bytes::new(),
            value => value.to_string().into(),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        response
    }

    fn judge(&self, parts: &http::request::Parts, body: &[u8]) -> (StatusCode, Value) {
        let mut held = self.held.lock().unwrap();
        if held.outages > 0 {
            held.outages -= 1;
            return (StatusCode::SERVICE_UNAVAILABLE, Value::Null);
        }
        let Some(device) = held.authenticate(parts, body) else {
            return (StatusCode::UNAUTHORIZED, json!({"code": "unauthorized"}));
        };
        let path = parts.uri.path();
        if path == "/v1/device/pushes" {
            let signed = held.prompts.iter();
            let data: Vec<_> = signed.map(|one| self.signed(one, &device, &held)).collect();
            return (StatusCode::OK, json!({"data": data}));
        }
        if path == "/v1/device/push-address" && parts.method == Method::PUT {
            held.addresses.push(serde_json::from_slice(body).unwrap());
            return (StatusCode::NO_CONTENT, Value::Null);
        }
        let name = path.strip_prefix("/v1/device/pushes/").unwrap();
        let push = name.strip_suffix("/answer").unwrap_or(name);
        let Some(prompt) = held.prompts.iter().find(|p| p["push"] == push).cloned() else {
            return (StatusCode::NOT_FOUND, json!({"code": "not_found"}));
        };
        if !name.ends_with("/answer") {
            return (StatusCode::OK, self.signed(&prompt, &device, &held));
        }
        let body: Value = serde_json::from_slice(body).unwrap();
        let proof = body["proof"].as_str().unwrap();
        let verified = held.verify(proof, "countersign-proof+jwt");
        let Some(claims) = verified.filter(|claims| holds(claims, &prompt)) else {
            return (
                StatusCode::UNPROCESSABLE_ENTITY,
                json!({"code": "proof_refused"}),
            );
        };
        let state = match claims["decision"].as_str() {
            Some("approve") => "approved",
            _ => "denied",
        };
        held.proofs.push((proof.to_owned(), claims));
        self.answers.send_replace(held.proofs.len());
        (
            StatusCode::OK,
            json!({"push": push, "state": state, "reason": null}),
        )
    }
}

impl Held {
    /// The claims of a JWS with a good signature of a known device.
    fn verify(&self, jws: &str, typ: &str) -> Option<Value> {
        let (signed, signature) = jws.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let json = |part: &str| -> Option<Value> {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
        };
        let header = json(header)?;
        let kid = header["kid"].as_str()?;
        let (_, key) = self.keys.iter().find(|(id, _)| id.as_str() == kid)?;
        let (alg, key) = public(key);
        if header != json!({"alg": alg, "typ": typ, "kid": kid}) {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        key.verify(signed.as_bytes(), &signature).ok()?;
        json(payload).filter(|claims| claims["iss"] == kid)
    }

    fn authenticate(&mut self, parts: &http::request::Parts, body: &[u8]) -> Option<String> {
        let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let claims = self.verify(value.strip_prefix("Device ")?, "countersign-request+jwt")?;
        let bound = claims["htm"] == parts.method.as_str()
            && claims["htu"] == parts.uri.path()
            && claims["bh"] == sha256(body)
            && claims["iat"].is_i64();
        let jti = claims["jti"].as_str()?;
        let once = (16..=64).contains(&jti.len()) && self.used.insert(jti.to_owned());
        let device = claims["iss"].as_str()?.to_owned();
        (bound && once).then_some(device)
    }
}

/// The algorithm and the key of a JWK: an uncompressed point, or the 32 bytes of RFC 8032.
fn public(jwk: &Value) -> (&'static str, UnparsedPublicKey<Vec<u8>>) {
    let part = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    match (jwk["kty"].as_str(), jwk["crv"].as_str()) {
        (Some("EC"), Some("P-256")) => {
            let point = [vec![4], part("x"), part("y")].concat();
            (
                "ES256",
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point),
            )
        }
        (Some("OKP"), Some("Ed25519")) => ("EdDSA", UnparsedPublicKey::new(&ED25519, part("x"))),
        _ => panic!("{jwk}"),
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, bytes))
}

fn holds(claims: &Value, prompt: &Value) -> bool {
    let nonce = prompt["nonce"].as_str().unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, nonce.as_bytes());
    let code = URL_SAFE_NO_PAD.encode(hmac::sign(&key, CODE.as_bytes()));
    let needs_code = prompt["match_required"] == true && claims["decision"] == "approve";
    claims["ver"] == 1
        && claims["aud"] == prompt["store"]
        && claims["sub"] == prompt["push"]
        && claims["nonce"] == prompt["nonce"]
        && claims["kind"] == prompt["shown"]["kind"]
        && claims["content_hash"] == sha256(CANONICAL.as_bytes())
        && claims["uv"] == "device"
        && (claims["decision"] == "deny") == claims["reason"].is_string()
        && claims.get("match") == needs_code.then(|| json!(code)).as_ref()
}
