//! One push as either provider wants it, made once and sent again and again.

use super::bare::{Sender, connect};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt as _, Full};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use shared::clock::{Clock as _, SystemClock};
use shared::domain::Provider;
use simulator::Gateway;

/// A push that the bare client sends.
pub type Prebuilt = Request<Full<Bytes>>;

const APNS: &str = r#"{"aps":{"alert":{"title":"Confirmation requested","body":"Open the app to answer."},"category":"COUNTERSIGN_PUSH","interruption-level":"time-sensitive","mutable-content":1,"sound":"default"},"push":"psh_00000000000000000000000000"}"#;
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const GRANT: &str = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";

/// What APNs allows on a connection.
pub const APNS_STREAMS: u32 = 1_000;
/// What FCM allows.
pub const FCM_STREAMS: u32 = 100;

/// Where a provider listens.
pub fn url(gateway: &Gateway, provider: Provider) -> &str {
    match provider {
        Provider::Apns => gateway.apns_url(),
        Provider::Fcm => gateway.fcm_url(),
    }
}

/// The push address of the `n`th device, as long as real ones are.
pub fn token(provider: Provider, n: usize) -> String {
    match provider {
        Provider::Apns => format!("{n:064x}"),
        Provider::Fcm => format!("bench-{n:0157}"),
    }
}

fn secret(text: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::try_from(text)?;
    value.set_sensitive(true);
    Ok(value)
}

fn apns(gateway: &Gateway) -> Result<Prebuilt> {
    let key = gateway.apns_key();
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(key.key_id);
    let now = SystemClock.now() / 1000;
    let signing = EncodingKey::from_ec_pem(key.p8.expose().as_bytes())?;
    let jwt = encode(&header, &json!({"iss": key.team_id, "iat": now}), &signing)?;
    let token = token(Provider::Apns, 0);
    let request = Request::post(format!("{}/3/device/{token}", gateway.apns_url()))
        .header("authorization", secret(format!("bearer {jwt}"))?)
        .header("apns-topic", key.topic)
        .header("apns-push-type", "alert")
        .header("apns-priority", "10")
        .header("apns-expiration", now + 120)
        .header("apns-id", "0198c0de-0000-7000-8000-000000000000")
        .header("apns-collapse-id", "psh_00000000000000000000000000");
    Ok(request.body(Full::new(Bytes::from_static(APNS.as_bytes())))?)
}

/// An access token of the service account.
async fn access(sender: &mut Sender, gateway: &Gateway) -> Result<String> {
    let account: Value = serde_json::from_str(gateway.service_account_json().expose())?;
    let text = |name: &str| account[name].as_str().context("the service account");
    let now = SystemClock.now() / 1000;
    let claims = json!({"iss": text("client_email")?, "aud": text("token_uri")?, "scope": SCOPE, "iat": now, "exp": now + 3600});
    let signing = EncodingKey::from_rsa_pem(text("private_key")?.as_bytes())?;
    let assertion = encode(&Header::new(Algorithm::RS256), &claims, &signing)?;
    let form = Bytes::from(format!("grant_type={GRANT}&assertion={assertion}"));
    let request = Request::post(format!("{}/token", gateway.fcm_url())).body(Full::new(form))?;
    let response = sender.send_request(request).await?;
    ensure!(response.status() == 200, "no access token");
    let body = response.into_body().collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&body)?;
    let token = answer["access_token"].as_str().context("no access token")?;
    Ok(token.to_owned())
}

async fn fcm(gateway: &Gateway) -> Result<Prebuilt> {
    let mut sender = connect(gateway, Provider::Fcm).await?;
    let access = access(&mut sender, gateway).await?;
    let url = format!(
        "{}/v1/projects/{}/messages:send",
        gateway.fcm_url(),
        gateway.project_id()
    );
    let body = json!({"message": {"token": token(Provider::Fcm, 0), "data": {"push": "psh_00000000000000000000000000"},
        "android": {"priority": "HIGH", "ttl": "120s"}}});
    let request = Request::post(url)
        .header("authorization", secret(format!("Bearer {access}"))?)
        .header("content-type", "application/json");
    Ok(request.body(Full::new(Bytes::from(body.to_string())))?)
}

/// A push to the first device.
pub async fn prebuilt(gateway: &Gateway, provider: Provider) -> Result<Prebuilt> {
    match provider {
        Provider::Apns => apns(gateway),
        Provider::Fcm => fcm(gateway).await,
    }
}
