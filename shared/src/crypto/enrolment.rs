//! What a new device signs to be bound: that it holds the key it registers, for this code, store and server. The format:
//! `docs/device-protocol.md`.

use super::device::MAX_LENGTH;
use super::jws::Jws;
use super::{DeviceKey, REQUEST_TOLERANCE_S, same_text, sha256_text};
use crate::clock::Millis;
use crate::id::StoreId;
use serde::Deserialize;

/// Keeps a proof of possession from passing as anything else that a device signs.
const TYPE: &str = "countersign-enrolment+jwt";

/// What a proof of possession must be bound to.
pub struct Binding<'a> {
    /// The code's store.
    pub store: &'a StoreId,
    /// The code.
    pub code: &'a str,
    /// The thumbprint of the server's key.
    pub server_key: &'a str,
}

/// Why a proof of possession does not hold. For the operator's log; the caller learns only that the enrolment is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BindingFault {
    /// Not a JWS of the right type, or claims that we do not know.
    #[error("form")]
    Form,
    /// Another algorithm than that of the key that is to be registered.
    #[error("algorithm")]
    Algorithm,
    /// The signature does not fit the key that is to be registered.
    #[error("signature")]
    Signature,
    /// Made for another code, store, server or version.
    #[error("binding")]
    Binding,
    /// Signed too long ago or ahead of time.
    #[error("time")]
    Time,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    ver: u32,
    aud: String,
    code_hash: String,
    server_key: String,
    iat: i64,
}

impl Binding<'_> {
    /// Does whoever signed `jws` hold the private half of `key`, and meant this code, store and server?
    pub fn check(&self, jws: &str, key: &DeviceKey, now: Millis) -> Result<(), BindingFault> {
        let jws = Jws::read(jws, TYPE, MAX_LENGTH).ok_or(BindingFault::Form)?;
        if !key.fits(&jws) {
            return Err(BindingFault::Algorithm);
        }
        if !key.has_signed(&jws) {
            return Err(BindingFault::Signature);
        }
        let claims: Claims = jws.claims().ok_or(BindingFault::Form)?;
        let bound = claims.ver == 1
            && claims.aud == self.store.as_str()
            && same_text(&claims.code_hash, &sha256_text(self.code.as_bytes()))
            && claims.server_key == self.server_key;
        if !bound {
            return Err(BindingFault::Binding);
        }
        if (now / 1000).abs_diff(claims.iat) > REQUEST_TOLERANCE_S.unsigned_abs() {
            return Err(BindingFault::Time);
        }
        Ok(())
    }
}
