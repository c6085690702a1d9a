//! The provider token of APNs: an ES256 JWT, checked as Apple does.

use super::keys::ApnsCredential;
use super::reasons::ApnsReason;
use crate::recent::Recent;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use shared::clock::Millis;
use std::sync::{Mutex, PoisonError};

/// Apple refuses tokens older than this.
const MAX_AGE_S: i64 = 3600;
/// How far ahead of ours a sender's clock may be.
const SKEW_S: i64 = 60;
/// Tokens whose signature need not be checked again.
const REMEMBERED: usize = 1024;

#[derive(Deserialize)]
struct Claims {
    iss: String,
    iat: i64,
}

/// Tokens with a good signature and their `iat`: checking one costs more than the rest of a request.
pub(super) struct Verified(Mutex<Recent<String, i64>>);

impl Default for Verified {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(REMEMBERED)))
    }
}

impl Verified {
    fn iat_of(&self, token: &str) -> Option<i64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(token).copied()
    }

    /// `false` where another request has brought the same token meanwhile.
    fn remember(&self, token: &str, iat: i64) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = false;
        known.entry(token.to_owned(), || {
            fresh = true;
            iat
        });
        fresh
    }
}

/// What a good token tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) iat: i64,
    pub(super) fresh: bool,
}

fn signed_iat(credential: &ApnsCredential, token: &str) -> Option<i64> {
    let mut rules = Validation::new(Algorithm::ES256);
    rules.required_spec_claims.clear();
    rules.validate_exp = false;
    rules.validate_aud = false;
    let read = jsonwebtoken::decode::<Claims>(token, &credential.verify, &rules).ok()?;
    let known = read.header.kid.as_deref() == Some(&credential.public.key_id)
        && read.claims.iss == credential.public.team_id;
    known.then_some(read.claims.iat)
}

/// Checks the value of an `authorization` header.
pub(super) fn check(
    credential: &ApnsCredential,
    verified: &Verified,
    header: Option<&str>,
    now: Millis,
) -> Result<Checked, ApnsReason> {
    let header = header.ok_or(ApnsReason::MissingProviderToken)?;
    let (scheme, token) = header
        .split_once(' ')
        .ok_or(ApnsReason::InvalidProviderToken)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(ApnsReason::MissingProviderToken);
    }
    let known = verified.iat_of(token);
    let iat = match known {
        Some(iat) => iat,
        None => signed_iat(credential, token).ok_or(ApnsReason::InvalidProviderToken)?,
    };
    // Subtraction saturates: a sender may write any number there.
    let age = (now / 1000).saturating_sub(iat);
    if age > MAX_AGE_S {
        return Err(ApnsReason::ExpiredProviderToken);
    }
    if age < -SKEW_S {
        return Err(ApnsReason::InvalidProviderToken);
    }
    let fresh = known.is_none() && verified.remember(token, iat);
    Ok(Checked { iat, fresh })
}

#[cfg(test)]
mod tests {
    use super::{ApnsCredential, Checked, Verified, check};
    use crate::gateway::ApnsReason;
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    use std::sync::Barrier;

    const NOW_S: i64 = 1_800_000_000;

    fn token(credential: &ApnsCredential, kid: &str, iss: &str, iat: i64) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(kid.to_owned());
        let key = EncodingKey::from_ec_pem(credential.public.p8.expose().as_bytes()).unwrap();
        encode(&header, &serde_json::json!({"iss": iss, "iat": iat}), &key).unwrap()
    }

    #[test]
    fn only_a_young_token_of_our_team_and_key_passes() {
        let ours = ApnsCredential::generate().unwrap();
        let other = ApnsCredential::generate().unwrap();
        let (kid, iss) = (&ours.public.key_id, &ours.public.team_id);
        let verified = Verified::default();
        let judge = |jwt: &str| {
            let header = format!("bearer {jwt}");
            check(&ours, &verified, Some(&header), NOW_S * 1000)
        };
        let good = token(&ours, kid, iss, NOW_S - 3599);
        let iat = NOW_S - 3599;
        assert_eq!(judge(&good), Ok(Checked { iat, fresh: true }));
        assert_eq!(judge(&good), Ok(Checked { iat, fresh: false }));

        let invalid = Err(ApnsReason::InvalidProviderToken);
        assert_eq!(judge(&token(&other, kid, iss, NOW_S)), invalid);
        assert_eq!(judge(&token(&ours, "OTHERKEY01", iss, NOW_S)), invalid);
        assert_eq!(judge(&token(&ours, kid, "OTHERTEAM1", NOW_S)), invalid);
        assert_eq!(judge(&token(&ours, kid, iss, NOW_S + 600)), invalid);
        assert_eq!(judge(&format!("{good}=")), invalid);
        assert_eq!(
            judge(&token(&ours, kid, iss, NOW_S - 3601)),
            Err(ApnsReason::ExpiredProviderToken)
        );
        assert_eq!(
            check(&ours, &verified, None, NOW_S * 1000),
            Err(ApnsReason::MissingProviderToken)
        );
    }

    #[test]
    fn a_token_that_several_bring_at_once_is_fresh_once() {
        const SENDERS: usize = 8;
        let ours = ApnsCredential::generate().unwrap();
        for n in 0..20 {
            let jwt = token(&ours, &ours.public.key_id, &ours.public.team_id, NOW_S + n);
            let header = format!("bearer {jwt}");
            let (verified, start) = (Verified::default(), Barrier::new(SENDERS));
            let fresh = std::thread::scope(|scope| {
                let send = || {
                    start.wait();
                    let checked = check(&ours, &verified, Some(&header), NOW_S * 1000);
                    usize::from(checked.unwrap().fresh)
                };
                let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
                let fresh = senders.into_iter().map(|sender| sender.join().unwrap());
                fresh.sum::<usize>()
            });
            assert_eq!(fresh, 1);
        }
    }

    #[test]
    fn a_remembered_token_still_grows_old() {
        let ours = ApnsCredential::generate().unwrap();
        let jwt = token(&ours, &ours.public.key_id, &ours.public.team_id, NOW_S);
        let header = format!("bearer {jwt}");
        let verified = Verified::default();
        assert!(check(&ours, &verified, Some(&header), NOW_S * 1000).is_ok());
        assert_eq!(
            check(&ours, &verified, Some(&header), (NOW_S + 3601) * 1000),
            Err(ApnsReason::ExpiredProviderToken)
        );
    }
}
