//! `POST /token`: exchanges a service account's signed assertion for an access token, as Google's OAuth2 endpoint does.

use super::State;
use super::exchange::{NoBody, Reply};
use super::keys::ServiceAccount;
use crate::random;
use crate::recent::Recent;
use bytes::Bytes;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde_json::json;
use shared::clock::Millis;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const SCOPES: [&str; 2] = [
    "https://www.googleapis.com/auth/firebase.messaging",
    "https://www.googleapis.com/auth/cloud-platform",
];
/// Google says one second less than the hour.
const LIFETIME_S: i64 = 3599;
const MAX_ASSERTION_S: i64 = 3600;
const SKEW_S: i64 = 60;
const MAX_TOKENS: usize = 4096;

/// Access tokens handed out and not yet forgotten, with the time until when they are good.
pub(super) struct AccessTokens(Mutex<Recent<String, Millis>>);

impl Default for AccessTokens {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(MAX_TOKENS)))
    }
}

impl AccessTokens {
    fn issue(&self, now: Millis) -> String {
        let token = format!("ya29.{}", random::base64url::<48>());
        let mut issued = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        issued.entry(token.clone(), || now + LIFETIME_S * 1000);
        token
    }

    pub(super) fn is_valid(&self, token: &str, now: Millis) -> bool {
        let issued = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        issued.get(token).is_some_and(|until| now < *until)
    }

    pub(super) fn revoke_all(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Recent::new(MAX_TOKENS);
    }
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    scope: String,
    iat: i64,
    exp: i64,
}

struct Refusal(&'static str, &'static str);

fn check(account: &ServiceAccount, form: &[u8], now: Millis) -> Result<(), Refusal> {
    let fields = form_fields(form);
    if fields.get("grant_type").map(String::as_str) != Some(GRANT) {
        return Err(Refusal(
            "unsupported_grant_type",
            "Invalid grant_type: only jwt-bearer is served",
        ));
    }
    let assertion = fields
        .get("assertion")
        .ok_or(Refusal("invalid_request", "Missing parameter: assertion"))?;
    let mut rules = Validation::new(Algorithm::RS256);
    rules.required_spec_claims.clear();
    // The times are judged below, with Google's limits and messages.
    rules.validate_exp = false;
    rules.validate_aud = false;
    let read = jsonwebtoken::decode::<Claims>(assertion, &account.verify, &rules)
        .map_err(|_| Refusal("invalid_grant", "Invalid JWT Signature."))?;
    let kid = read.header.kid.as_deref();
    if kid.is_some_and(|kid| kid != account.key_id) {
        return Err(Refusal("invalid_grant", "Invalid JWT Signature."));
    }
    let claims = read.claims;
    if claims.iss != account.client_email {
        return Err(Refusal("invalid_grant", "Invalid grant: account not found"));
    }
    if claims.aud != account.token_uri {
        return Err(Refusal(
            "invalid_grant",
            "Invalid JWT: Failed audience check.",
        ));
    }
    if !claims.scope.split(' ').any(|s| SCOPES.contains(&s)) {
        return Err(Refusal(
            "invalid_scope",
            "Invalid OAuth scope or ID token audience provided.",
        ));
    }
    let now_s = now / 1000;
    let lifetime = claims.exp.saturating_sub(claims.iat);
    let in_time = claims.iat <= now_s.saturating_add(SKEW_S)
        && claims.exp > now_s.saturating_sub(SKEW_S)
        && (1..=MAX_ASSERTION_S).contains(&lifetime);
    if !in_time {
        return Err(Refusal(
            "invalid_grant",
            "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim.",
        ));
    }
    Ok(())
}

/// Answers one request. It is no push, so it leaves no receipt.
pub(super) fn answer(state: &State, body: Result<&Bytes, &NoBody>) -> Reply {
    let now = State::now();
    let form = body.map_or(&[][..], |bytes| bytes);
    match check(&state.account, form, now) {
        Ok(()) => {
            state.journal.issued_token();
            let token = state.access.issue(now);
            Reply::json(
                200,
                None,
                &json!({"access_token": token, "expires_in": LIFETIME_S, "token_type": "Bearer"}),
            )
        }
        Err(Refusal(error, text)) => Reply::json(
            400,
            Some(error),
            &json!({"error": error, "error_description": text}),
        ),
    }
}

fn form_fields(form: &[u8]) -> HashMap<String, String> {
    let text = String::from_utf8_lossy(form);
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (unescape(name), unescape(value)))
        .collect()
}

/// Undoes `application/x-www-form-urlencoded`; a `%` without two digits stays as it is.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (escaped, bytes[at]) {
            (Some(byte), _) => {
                plain.push(byte);
                at += 2;
            }
            (None, b'+') => plain.push(b' '),
            (None, byte) => plain.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn escapes_are_undone_and_broken_ones_kept() {
        assert_eq!(unescape("urn%3Aietf+x"), "urn:ietf x");
        assert_eq!(unescape("50%"), "50%");
        assert_eq!(unescape("%zz%C3%A9é%"), "%zzéé%");
        assert_eq!(unescape("%+1"), "% 1");
    }
}
