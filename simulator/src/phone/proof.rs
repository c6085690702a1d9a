//! The claims that a phone signs, as `docs/device-protocol.md` lists them.

use super::Error;
use super::prompt::{Decision, Prompt};
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use shared::clock::Millis;
use shared::id::DeviceId;

pub(super) const REQUEST: &str = "countersign-request+jwt";
pub(super) const PROOF: &str = "countersign-proof+jwt";

pub(super) fn sha256(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, bytes))
}

/// SHA-256 over the RFC 8785 form of what was shown.
pub(super) fn content_hash(shown: &Value) -> Result<String, Error> {
    let canonical = serde_json_canonicalizer::to_vec(shown).map_err(Error::Unreadable)?;
    Ok(sha256(&canonical))
}

/// Ties the typed code to this push: HMAC-SHA-256 with the nonce's text as the key.
pub(super) fn match_of(nonce: &str, code: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, nonce.as_bytes());
    URL_SAFE_NO_PAD.encode(hmac::sign(&key, code.as_bytes()))
}

/// The payload of an answer.
pub(super) fn claims(
    device: &DeviceId,
    prompt: &Prompt,
    decision: &Decision,
    jti: &str,
    now: Millis,
) -> Result<Value, Error> {
    let mut claims = json!({
        "ver": 1,
        "iss": device,
        "aud": prompt.store,
        "sub": prompt.push,
        "jti": jti,
        "iat": now / 1000,
        "nonce": prompt.nonce,
        "decision": decision.as_str(),
        "kind": prompt.shown["kind"],
        "content_hash": content_hash(&prompt.shown)?,
        "uv": "device",
    });
    match decision {
        Decision::Approve { code: Some(code) } if prompt.match_required => {
            claims["match"] = match_of(prompt.nonce.expose(), code).into();
        }
        Decision::Approve { .. } => {}
        Decision::Deny { reason } => {
            claims["reason"] = reason.as_deref().unwrap_or("user_declined").into();
        }
    }
    Ok(claims)
}

/// The payload that authenticates one request.
pub(super) fn request_claims(
    device: &DeviceId,
    (method, path, body): (&str, &str, &[u8]),
    jti: &str,
    now: Millis,
) -> Value {
    json!({
        "iss": device,
        "htm": method,
        "htu": path,
        "iat": now / 1000,
        "jti": jti,
        "bh": sha256(body),
    })
}

#[cfg(test)]
mod tests {
    use super::{Decision, Prompt, claims, content_hash, match_of, sha256};
    use serde_json::{Value, json};
    use shared::id::{DeviceId, PushId, StoreId};

    fn prompt(match_required: bool) -> Prompt {
        serde_json::from_value(json!({
            "push": PushId::fresh(1), "store": StoreId::fresh(1), "state": "pending",
            "shown": {"kind": "confirm", "title": "Sign in"}, "content_hash": "", "nonce": "n-1",
            "match_required": match_required, "expires_at": "2026-11-24T12:00:00.000Z",
        }))
        .unwrap()
    }

    fn made(match_required: bool, decision: &Decision) -> Value {
        let device = DeviceId::fresh(1);
        claims(&device, &prompt(match_required), decision, "j", 1_700).unwrap()
    }

    #[test]
    fn the_hash_is_over_the_canonical_form() {
        // Keys sorted by UTF-16 code units, no space, characters outside ASCII as they are.
        let shown: Value =
            serde_json::from_str(r#"{ "title": "Zürich", "kind":"confirm", "details":[{"value":"5.00","label":"Sum"}] }"#)
                .unwrap();
        let canonical =
            r#"{"details":[{"label":"Sum","value":"5.00"}],"kind":"confirm","title":"Zürich"}"#;
        assert_eq!(content_hash(&shown).unwrap(), sha256(canonical.as_bytes()));
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            sha256(b"abc"),
            "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0"
        );
    }

    #[test]
    fn the_match_is_keyed_with_the_nonce() {
        // RFC 4231, test case 2.
        assert_eq!(
            match_of("Jefe", "what do ya want for nothing?"),
            "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM"
        );
        assert_ne!(match_of("n-1", "123456"), match_of("n-2", "123456"));
    }

    #[test]
    fn only_an_approval_that_needs_it_carries_the_match() {
        let approve = Decision::Approve {
            code: Some("123456".into()),
        };
        assert_eq!(made(true, &approve)["match"], match_of("n-1", "123456"));
        assert_eq!(made(true, &approve).get("reason"), None);
        assert_eq!(made(false, &approve).get("match"), None);
        assert_eq!(
            made(true, &Decision::Approve { code: None }).get("match"),
            None
        );
    }

    #[test]
    fn a_denial_says_why_and_carries_no_match() {
        let denial = made(true, &Decision::Deny { reason: None });
        assert_eq!(denial["reason"], "user_declined");
        assert_eq!(denial["decision"], "deny");
        assert_eq!(denial.get("match"), None);
        let reason = Some("fraud_reported".to_owned());
        assert_eq!(
            made(true, &Decision::Deny { reason })["reason"],
            "fraud_reported"
        );
    }
}
