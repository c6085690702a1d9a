//! How a phone becomes a device: by the link that a person scans.

use super::proof::sha256;
use super::{Error, Phone, accepted, read};
use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::crypto::ServerKey;
use shared::domain::Provider;
use shared::id::{DeviceId, StoreId};
use shared::secret::Secret;
use std::fmt::Write as _;

const ENROLMENTS: &str = "/v1/enrolments";
const CODES: &str = "/v1/device/enrolment-codes";
const ENROLMENT: &str = "countersign-enrolment+jwt";

/// What a QR code says: `countersign://enrol?url=…&store=…&code=…&kid=…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where the API is.
    pub url: String,
    /// The store.
    pub store: StoreId,
    /// The one-time code.
    pub code: Secret,
    /// The thumbprint of the server's key.
    pub kid: String,
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let pair = [rest.next()?, rest.next()?];
            let pair = std::str::from_utf8(&pair).ok()?;
            bytes.push(u8::from_str_radix(pair, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

impl std::str::FromStr for Link {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let query = text.trim().strip_prefix("countersign://enrol?");
        let part = |name: &str| -> Result<String, Error> {
            let mut pairs = query.into_iter().flat_map(|query| query.split('&'));
            pairs
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
                .and_then(decoded)
                .filter(|value| !value.is_empty())
                .ok_or(Error::Link)
        };
        Ok(Self {
            url: part("url")?.trim_end_matches('/').to_owned(),
            store: part("store")?.parse().map_err(|_| Error::Link)?,
            code: Secret::new(part("code")?),
            kid: part("kid")?,
        })
    }
}

impl std::fmt::Display for Link {
    /// The text of the QR code. It holds the code: it is shown, and never logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut url = String::with_capacity(self.url.len());
        for byte in self.url.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                url.push(char::from(byte));
            } else {
                write!(url, "%{byte:02X}")?;
            }
        }
        let (store, code, kid) = (&self.store, self.code.expose(), &self.kid);
        write!(
            f,
            "countersign://enrol?url={url}&store={store}&code={code}&kid={kid}"
        )
    }
}

#[derive(Deserialize)]
struct Enrolled {
    device: DeviceId,
    store: StoreId,
    server_key: Value,
}

/// RFC 7638 over an Ed25519 key.
fn thumbprint(key: &Value) -> String {
    let member = |name: &str| key[name].as_str().unwrap_or_default();
    let (crv, kty, x) = (member("crv"), member("kty"), member("x"));
    sha256(format!(r#"{{"crv":"{crv}","kty":"{kty}","x":"{x}"}}"#).as_bytes())
}

impl Phone {
    /// What it sends to enrol, signed now. A dishonest phone changes it.
    pub fn enrolment(&self, link: &Link) -> Value {
        let claims = json!({"ver": 1, "aud": link.store, "code_hash": sha256(link.code.expose().as_bytes()),
            "server_key": link.kid, "iat": self.clock.now() / 1000});
        let platform = match self.provider() {
            Provider::Apns => "ios",
            Provider::Fcm => "android",
        };
        json!({"code": link.code, "name": self.name(), "platform": platform, "public_key": self.public_jwk(),
            "push_address": {"provider": self.provider(), "token": self.push_token()},
            "proof": self.sign_enrolment(&claims)})
    }

    /// Signs any claims as a proof of possession.
    pub fn sign_enrolment(&self, claims: &Value) -> String {
        self.inner.key.sign(ENROLMENT, self.name(), claims)
    }

    /// Sends an enrolment, whatever it says, and gives the status and the body of the answer.
    pub async fn send_enrolment(&self, link: &Link, body: &Value) -> Result<(u16, Value), Error> {
        let body = Bytes::from(body.to_string());
        let at = (link.url.as_str(), ENROLMENTS);
        let (status, body) = self.http.call(Method::POST, at, None, body).await?;
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Ok((status.as_u16(), body))
    }

    /// Enrols with a scanned link. A server whose key is not the one that the link named is refused.
    pub async fn enrol(&self, link: &Link) -> Result<DeviceId, Error> {
        let body = Bytes::from(self.enrolment(link).to_string());
        let at = (link.url.as_str(), ENROLMENTS);
        let answer = self.http.call(Method::POST, at, None, body).await?;
        let enrolled: Enrolled = read(answer)?;
        let server_key: ServerKey =
            serde_json::from_value(enrolled.server_key.clone()).map_err(Error::Unreadable)?;
        let named = thumbprint(&enrolled.server_key) == link.kid && server_key.kid == link.kid;
        if !named || enrolled.store != link.store {
            return Err(Error::ServerKey);
        }
        let Enrolled { device, store, .. } = enrolled;
        self.enrolled(device.clone(), store, server_key, &link.url);
        Ok(device)
    }

    /// Makes a link for another phone of the same person.
    pub async fn invite(&self) -> Result<Link, Error> {
        let answer = self.call(Method::POST, CODES, Bytes::new()).await?;
        let body: Value = read(answer)?;
        body["link"].as_str().unwrap_or_default().parse()
    }

    /// Takes a device of the same person away, for good; this one too.
    pub async fn revoke(&self, device: &DeviceId) -> Result<(), Error> {
        let path = format!("/v1/device/devices/{device}");
        accepted(self.call(Method::DELETE, &path, Bytes::new()).await?).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::{Link, thumbprint};
    use serde_json::json;
    use shared::id::StoreId;

    fn link_of(text: &str) -> Link {
        text.parse().unwrap()
    }

    #[test]
    fn a_link_reads_back_and_a_foreign_one_is_none() {
        let store = StoreId::fresh(1);
        let text = format!(
            " countersign://enrol?url=http%3A%2F%2Fh%3A1%2F&store={store}&code=abc&kid=k\n"
        );
        let link: Link = text.parse().unwrap();
        assert_eq!(
            (link.url.as_str(), link.code.expose()),
            ("http://h:1", "abc")
        );
        assert_eq!((link.store, link.kid.as_str()), (store.clone(), "k"));
        assert_eq!(
            link_of(&text).to_string().parse::<Link>().unwrap(),
            link_of(&text)
        );
        for bad in [
            "",
            "https://evil.example",
            "countersign://enrol?",
            &text.replace("code=abc", "code="),
            &text.replace("sto_", "usr_"),
            &text.replace("%3A1", "%3"),
        ] {
            assert!(bad.parse::<Link>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        // Appendix A.3.
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        assert_eq!(
            thumbprint(&key),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
        );
    }
}
