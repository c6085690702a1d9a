//! Profiles: which rules a prompt follows beyond our own, what a payment is, and what an approval is worth. `docs/policies.md` says why.

use super::push::Kind;
use super::state::words;
use crate::clock::Millis;
use serde::{Deserialize, Serialize};

/// No answer counts later than this after a push was taken, whatever was asked for (NIST SP 800-63B-4, 3.1.3).
pub const LONGEST_ANSWER: Millis = 600_000;

words! {
    /// Whose rules. A push policy sets one for all; a request may ask for more, never for less.
    Profile {
        /// Our own.
        Default = "default",
        /// NIST SP 800-63B-4: an approval carries the code from the initiating channel.
        Nist = "nist",
        /// Delegated Regulation (EU) 2018/389: amount and payee are shown, and the proof is for them alone.
        Psd2 = "psd2",
    }
}

/// Why a push does not do under the profile in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// It asks for another profile than the policy's, which would leave out what that one demands.
    Weaker(Profile),
    /// It does without the typed code.
    MatchCode(Profile),
    /// Its verdict would come from a page, not from a proof.
    Process(Profile),
    /// It names no amount and payee.
    Payment(Profile),
}

/// What the rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// What is asked for.
    pub profile: Option<Profile>,
    /// Its kind.
    pub kind: Kind,
    /// Must the code be typed?
    pub match_required: bool,
    /// Does it name amount and payee?
    pub payment: bool,
}

impl Profile {
    /// The profile in force for a request under a policy of this one.
    pub fn governs(self, request: &Request) -> Result<Self, Lack> {
        let profile = match request.profile {
            None => self,
            Some(asked) if self == Self::Default || asked == self => asked,
            Some(_) => return Err(Lack::Weaker(self)),
        };
        match (profile, request.kind) {
            (Self::Nist | Self::Psd2, Kind::Process) => Err(Lack::Process(profile)),
            (Self::Nist, Kind::Confirm) if !request.match_required => Err(Lack::MatchCode(profile)),
            (Self::Psd2, Kind::Confirm) if !request.payment => Err(Lack::Payment(profile)),
            // A generic push is only told: it has no verdict that a rule could be about.
            (Self::Default, _) | (_, Kind::Generic | Kind::Confirm) => Ok(profile),
        }
    }

    /// Must an approval assert that the device verified its user? Without a typed code it is all that tells the person from the phone.
    pub fn wants_verification(self, kind: Kind, match_required: bool) -> bool {
        self == Self::Psd2 && kind == Kind::Confirm && !match_required
    }
}

/// Whom a payment goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payee {
    /// As the payer knows them.
    pub name: String,
    /// An IBAN or another account number.
    pub account: String,
}

/// A payment: shown, and covered by the proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Decimal text: a number would not come back as it was written.
    pub amount: String,
    /// ISO 4217.
    pub currency: String,
    /// To whom.
    pub payee: Payee,
}

impl Payment {
    /// Label and value, in the order of showing.
    pub fn lines(&self) -> [(&'static str, String); 3] {
        [
            ("Amount", format!("{} {}", self.amount, self.currency)),
            ("To", self.payee.name.clone()),
            ("Account", self.payee.account.clone()),
        ]
    }
}

words! {
    /// How many factors an approval has shown.
    Factors {
        /// Something the person has.
        Single = "single",
        /// And something they know or are, which the device has verified.
        Multi = "multi",
    }
}

/// What an approval is worth to whoever relies on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assurance {
    /// `multi` only where the proof says that the device verified its user, and the device was registered under a policy that demands it.
    pub factors: Factors,
    /// Always `false`: a code, or a tap, can be asked for by a false page (NIST SP 800-63B-4, 3.2.5).
    pub phishing_resistant: bool,
}

impl From<Factors> for Assurance {
    fn from(factors: Factors) -> Self {
        Self {
            factors,
            phishing_resistant: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Assurance, Factors, Lack, Profile, Request};
    use crate::domain::Kind;

    fn request(profile: Option<Profile>, kind: Kind) -> Request {
        Request {
            profile,
            kind,
            match_required: kind == Kind::Confirm,
            payment: true,
        }
    }

    #[test]
    fn must_38_a_request_can_tighten_the_policy_and_never_weaken_it() {
        for policy in Profile::ALL {
            let none = policy.governs(&request(None, Kind::Confirm));
            assert_eq!(none, Ok(*policy), "nothing asked for is the policy's");
            for asked in Profile::ALL {
                let got = policy.governs(&request(Some(*asked), Kind::Confirm));
                let expected = if *policy == Profile::Default || policy == asked {
                    Ok(*asked)
                } else {
                    Err(Lack::Weaker(*policy))
                };
                assert_eq!(got, expected, "{policy} {asked}");
            }
        }
    }

    #[test]
    fn a_profile_says_what_is_missing() {
        let bare = |profile| Request {
            match_required: false,
            payment: false,
            ..request(Some(profile), Kind::Confirm)
        };
        let of = |profile: Profile| Profile::Default.governs(&bare(profile));
        assert_eq!(of(Profile::Default), Ok(Profile::Default));
        assert_eq!(of(Profile::Nist), Err(Lack::MatchCode(Profile::Nist)));
        assert_eq!(of(Profile::Psd2), Err(Lack::Payment(Profile::Psd2)));
        for profile in [Profile::Nist, Profile::Psd2] {
            let process = profile.governs(&request(None, Kind::Process));
            assert_eq!(process, Err(Lack::Process(profile)));
            let told = profile.governs(&request(None, Kind::Generic));
            assert_eq!(told, Ok(profile));
        }
        assert!(Profile::Psd2.wants_verification(Kind::Confirm, false));
        assert!(!Profile::Psd2.wants_verification(Kind::Confirm, true));
    }

    #[test]
    fn must_12_no_approval_claims_to_resist_phishing() {
        for factors in Factors::ALL {
            assert!(!Assurance::from(*factors).phishing_resistant);
        }
    }
}
