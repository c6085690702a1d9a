//! The provider token: an ES256 JWT that every push of one key carries.
//!
//! Apple refuses tokens older than an hour and senders that make more than one in twenty minutes, so there is one signer per
//! key, however many credentials, topics and connections use it, and it signs once for all who ask at the same time.

use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;
use shared::clock::{Millis, SharedClock};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// When a token is replaced: ten minutes before Apple refuses it, so that requests in flight do not meet the change.
const RENEW_AFTER: Millis = 50 * 60_000;
/// No new token this soon after the last.
const MIN_AGE: Millis = 20 * 60_000;

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: i64,
}

/// The key is not one that can sign.
#[derive(Debug, thiserror::Error)]
#[error("the APNs key cannot sign: it has to be an EC P-256 key, PKCS#8, PEM")]
pub struct KeyError;

/// A token in the form in which it goes on the wire.
#[derive(Clone)]
pub(super) struct ProviderToken {
    pub(super) header: HeaderValue,
    pub(super) minted_at: Millis,
}

/// Signs for one key.
pub(in crate::push) struct Signer {
    team_id: String,
    key_id: String,
    key: EncodingKey,
    clock: SharedClock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<ProviderToken>,
    /// No new token before.
    frozen_until: Millis,
    minted: u64,
}

impl Signer {
    pub(in crate::push) fn new(
        team_id: &str,
        key_id: &str,
        pem: &str,
        clock: SharedClock,
    ) -> Result<Self, KeyError> {
        let signer = Self {
            team_id: team_id.to_owned(),
            key_id: key_id.to_owned(),
            key: EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|_| KeyError)?,
            clock,
            state: Mutex::default(),
        };
        // A key on another curve is found out here and not by the first push.
        signer.token()?;
        Ok(signer)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token to use now. Signing takes a fifth of a millisecond, once in 50 minutes, so those who come together wait for it.
    pub(super) fn token(&self) -> Result<ProviderToken, KeyError> {
        let now = self.clock.now();
        let mut state = self.state();
        if let Some(token) = &state.token {
            // A clock that was set back leaves a token from the future, which Apple refuses.
            let age = now - token.minted_at;
            if (0..RENEW_AFTER).contains(&age) || now < state.frozen_until {
                return Ok(token.clone());
            }
        }
        self.mint(&mut state, now)
    }

    /// After Apple called `used` too old: another token, unless that one is younger than Apple allows to replace.
    pub(super) fn renewed(&self, used: &ProviderToken) -> Result<Option<ProviderToken>, KeyError> {
        let now = self.clock.now();
        let mut state = self.state();
        if let Some(token) = &state.token {
            if token.minted_at != used.minted_at {
                return Ok(Some(token.clone()));
            }
            if now - token.minted_at < MIN_AGE || now < state.frozen_until {
                return Ok(None);
            }
        }
        self.mint(&mut state, now).map(Some)
    }

    /// After Apple complained about too many tokens. Somebody else signs with this key, too.
    pub(super) fn freeze(&self) {
        let now = self.clock.now();
        let mut state = self.state();
        if now >= state.frozen_until {
            tracing::error!(team = %self.team_id, key = %self.key_id, "APNs sees too many provider tokens: another sender uses this key");
        }
        state.frozen_until = now + MIN_AGE;
    }

    /// How many tokens were signed.
    #[cfg(test)]
    pub(super) fn minted(&self) -> u64 {
        self.state().minted
    }

    fn mint(&self, state: &mut State, now: Millis) -> Result<ProviderToken, KeyError> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        let claims = Claims {
            iss: &self.team_id,
            iat: now / 1000,
        };
        let jwt = encode(&header, &claims, &self.key).map_err(|_| KeyError)?;
        let header = HeaderValue::try_from(format!("bearer {jwt}"));
        let mut header = header.map_err(|_| KeyError)?;
        // Never into the compression table, as Apple asks, and never into a log.
        header.set_sensitive(true);
        let token = ProviderToken {
            header,
            minted_at: now,
        };
        state.minted += 1;
        state.token = Some(token.clone());
        Ok(token)
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::Signer;
    use shared::clock::ManualClock;
    use std::sync::Arc;

    const MINUTE: i64 = 60_000;

    fn signer(clock: &Arc<ManualClock>) -> Signer {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Signer::new("TEAM", "KEY", &pair.serialize_pem(), clock.clone()).unwrap()
    }

    #[test]
    fn one_token_serves_everybody_for_fifty_minutes() {
        let clock = ManualClock::at(1_800_000_000_000);
        let signer = signer(&clock);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| drop(signer.token().unwrap())));
            }
        });
        assert_eq!(signer.minted(), 1);
        clock.advance(50 * MINUTE - 1);
        signer.token().unwrap();
        assert_eq!(signer.minted(), 1);
        clock.advance(1);
        signer.token().unwrap();
        assert_eq!(signer.minted(), 2);
    }

    #[test]
    fn a_young_token_is_not_replaced_whatever_apple_says() {
        let clock = ManualClock::at(1_800_000_000_000);
        let signer = signer(&clock);
        let used = signer.token().unwrap();
        clock.advance(20 * MINUTE - 1);
        assert!(signer.renewed(&used).unwrap().is_none());
        clock.advance(1);
        assert!(signer.renewed(&used).unwrap().is_some());
        // The second of two that were refused together takes the first one's token.
        assert!(signer.renewed(&used).unwrap().is_some());
        assert_eq!(signer.minted(), 2);
    }

    #[test]
    fn a_frozen_signer_keeps_its_token() {
        let clock = ManualClock::at(1_800_000_000_000);
        let signer = signer(&clock);
        clock.advance(45 * MINUTE);
        signer.freeze();
        clock.advance(10 * MINUTE);
        let used = signer.token().unwrap();
        assert!(signer.renewed(&used).unwrap().is_none());
        assert_eq!(signer.minted(), 1);
        clock.advance(10 * MINUTE);
        signer.token().unwrap();
        assert_eq!(signer.minted(), 2);
    }

    #[test]
    fn a_key_of_another_kind_is_refused_at_once() {
        let clock = ManualClock::at(0);
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(Signer::new("T", "K", &pair.serialize_pem(), clock.clone()).is_err());
        assert!(Signer::new("T", "K", "-----BEGIN", clock).is_err());
    }
}
