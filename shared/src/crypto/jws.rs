//! Compact JWS (RFC 7515), read strictly: three parts of base64url without padding or stray bits; a header of exactly `alg`, `typ` and `kid`, so
//! that `crit`, `jwk`, `b64` and whatever comes next are refused; no member twice.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    jwk: Option<IgnoredAny>,
}

/// A text in the form of a JWS. Nothing of it is proven yet.
pub(super) struct Jws<'a> {
    /// What the signature is over.
    pub(super) signed: &'a str,
    /// The signature.
    pub(super) signature: Vec<u8>,
    header: Header,
    claims: Vec<u8>,
}

/// A JSON object; serde would also take the fields of a struct as an array.
fn object<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let found = bytes.trim_ascii_start().first() == Some(&b'{');
    serde_json::from_slice(bytes).ok().filter(|_| found)
}

impl<'a> Jws<'a> {
    /// Reads a text of at most `longest` bytes that says it is a `typ`.
    pub(super) fn read(text: &'a str, typ: &str, longest: usize) -> Option<Self> {
        Self::read_with_key(text, typ, longest).filter(|jws| jws.header.jwk.is_none())
    }

    /// The same; a key in the header (`jwk`) is no fault, and is not looked at.
    pub(super) fn read_with_key(text: &'a str, typ: &str, longest: usize) -> Option<Self> {
        if text.len() > longest {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        // A further dot is no character of base64url.
        let part = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let header: Header = object(&part(header)?).filter(|header: &Header| header.typ == typ)?;
        Some(Self {
            signed,
            signature: part(signature)?,
            header,
            claims: part(claims)?,
        })
    }

    /// The algorithm that the header names. A verifier compares it with its key's; it never chooses by it.
    pub(super) fn alg(&self) -> &str {
        &self.header.alg
    }

    /// Whose key it claims.
    pub(super) fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// What is claimed. Call it after the signature was verified.
    pub(super) fn claims<T: DeserializeOwned>(&self) -> Option<T> {
        object(&self.claims)
    }
}
