//! An approval: one question to several people, of whom a number must say yes. What it comes to is a pure function of how its members stand;
//! where that is counted: `store/approvals`. `docs/approvals.md` holds the same rules.

use super::state::{PushState, words};
use serde::{Deserialize, Serialize};

/// How many people one approval may ask.
pub const MAX_APPROVERS: usize = 20;

words! {
    /// Where an approval stands.
    ApprovalState {
        /// Its members may still decide it.
        Pending = "pending",
        /// Enough of them said yes.
        Approved = "approved",
        /// Too few are left who could, and at least one said no; or one reported fraud.
        Denied = "denied",
        /// Too few answered in time.
        Expired = "expired",
        /// Taken back, or too many of its members were.
        Cancelled = "cancelled",
        /// Too few could be asked.
        Failed = "failed",
    }
}

impl ApprovalState {
    /// No way leads out of these.
    pub fn is_terminal(self) -> bool {
        self != Self::Pending
    }

    /// May an approval go from `self` to `to`?
    pub fn may_become(self, to: Self) -> bool {
        !self.is_terminal() && to.is_terminal()
    }
}

words! {
    /// What one no means.
    OnDenial {
        /// The others may still reach the number.
        Continue = "continue",
        /// It is over.
        End = "end",
    }
}

/// The part of an approval that the person is shown and signs: that they are one of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// How many must say yes.
    pub required: u32,
    /// How many are asked.
    pub of: u32,
}

/// What decides an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How many must say yes.
    pub required: usize,
    /// What one no means.
    pub on_denial: OnDenial,
}

/// How one member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// May still answer.
    Open,
    /// Said yes.
    Approved,
    /// Said no.
    Denied,
    /// Said that nobody should have asked.
    Fraud,
    /// Did not answer in time.
    Expired,
    /// Was taken back.
    Cancelled,
    /// Could not be asked.
    Failed,
}

impl Standing {
    /// How the member stands whose push is in `state` for `reason`.
    pub fn of(state: PushState, reason: &str) -> Self {
        match state {
            PushState::Accepted | PushState::Pending | PushState::Opened => Self::Open,
            PushState::Approved => Self::Approved,
            PushState::Denied if reason == "fraud_reported" => Self::Fraud,
            PushState::Denied => Self::Denied,
            PushState::Expired => Self::Expired,
            PushState::Cancelled => Self::Cancelled,
            // Only a generic push completes, and none is a member.
            PushState::Failed | PushState::Completed => Self::Failed,
        }
    }
}

/// What an approval comes to, and why; `None` while it is open.
///
/// A report of fraud goes before everything: whoever reports it before the others' yes was counted is heard.
pub fn outcome(terms: Terms, members: &[Standing]) -> Option<(ApprovalState, &'static str)> {
    let count = |standing| members.iter().filter(|one| **one == standing).count();
    if count(Standing::Fraud) > 0 {
        return Some((ApprovalState::Denied, "fraud_reported"));
    }
    if terms.on_denial == OnDenial::End && count(Standing::Denied) > 0 {
        return Some((ApprovalState::Denied, "member_denied"));
    }
    let approved = count(Standing::Approved);
    if approved >= terms.required {
        return Some((ApprovalState::Approved, "enough_approved"));
    }
    if approved + count(Standing::Open) >= terms.required {
        return None;
    }
    let how = [
        (Standing::Denied, ApprovalState::Denied),
        (Standing::Expired, ApprovalState::Expired),
        (Standing::Failed, ApprovalState::Failed),
    ];
    let how = how.into_iter().find(|(standing, _)| count(*standing) > 0);
    let state = how.map_or(ApprovalState::Cancelled, |(_, state)| state);
    Some((state, "too_few_left"))
}

#[cfg(test)]
mod tests {
    use super::{ApprovalState, OnDenial, Standing, Terms, outcome};
    use proptest::prelude::*;
    use proptest::sample::select;

    const ENDS: [Standing; 6] = [
        Standing::Approved,
        Standing::Denied,
        Standing::Fraud,
        Standing::Expired,
        Standing::Cancelled,
        Standing::Failed,
    ];

    fn timelines() -> impl Strategy<Value = (Terms, Vec<Standing>)> {
        let ends = prop::collection::vec(select(&ENDS[..]), 2..8);
        (ends, select(OnDenial::ALL), any::<prop::sample::Index>()).prop_map(
            |(ends, on_denial, required)| {
                let required = required.index(ends.len()) + 1;
                let terms = Terms {
                    required,
                    on_denial,
                };
                (terms, ends)
            },
        )
    }

    proptest! {
        #[test]
        fn a_timeline_is_decided_at_the_first_moment_at_which_nothing_can_change_it((terms, ends) in timelines()) {
            let n = ends.len();
            let mut members = vec![Standing::Open; n];
            let (mut yes, mut no, mut stopped, mut decided) = (0, 0, false, None);
            prop_assert_eq!(outcome(terms, &members), None);
            for (at, end) in ends.iter().enumerate() {
                members[at] = *end;
                yes += usize::from(*end == Standing::Approved);
                no += usize::from(*end != Standing::Approved);
                stopped |= *end == Standing::Fraud || (*end == Standing::Denied && terms.on_denial == OnDenial::End);
                decided = outcome(terms, &members);
                let due = stopped || yes >= terms.required || n - no < terms.required;
                prop_assert_eq!(decided.is_some(), due);
                if due {
                    break;
                }
            }
            let (state, _) = decided.unwrap();
            prop_assert!(state.is_terminal());
            prop_assert_eq!(state == ApprovalState::Approved, !stopped && yes >= terms.required);
            if stopped {
                prop_assert_eq!(state, ApprovalState::Denied);
            }
        }

        #[test]
        fn who_ended_first_makes_no_difference((terms, ends) in timelines(), turn in any::<prop::sample::Index>()) {
            let mut turned = ends.clone();
            turned.rotate_left(turn.index(ends.len()));
            prop_assert_eq!(outcome(terms, &ends), outcome(terms, &turned));
            turned.reverse();
            prop_assert_eq!(outcome(terms, &ends), outcome(terms, &turned));
        }
    }

    #[test]
    fn what_too_few_come_to_is_said_by_those_who_did_not_say_yes() {
        use Standing::{Approved, Cancelled, Denied, Expired, Failed, Open};
        let terms = Terms {
            required: 2,
            on_denial: OnDenial::Continue,
        };
        for (members, wanted) in [
            ([Approved, Denied, Open], None),
            ([Denied, Denied, Open], Some(ApprovalState::Denied)),
            ([Approved, Denied, Expired], Some(ApprovalState::Denied)),
            ([Approved, Expired, Failed], Some(ApprovalState::Expired)),
            ([Cancelled, Failed, Open], Some(ApprovalState::Failed)),
            ([Cancelled, Cancelled, Open], Some(ApprovalState::Cancelled)),
            ([Approved, Denied, Approved], Some(ApprovalState::Approved)),
        ] {
            let state = outcome(terms, &members).map(|(state, _)| state);
            assert_eq!(state, wanted, "{members:?}");
        }
    }

    #[test]
    fn fraud_is_heard_even_beside_enough_approvals() {
        let members = [Standing::Approved, Standing::Approved, Standing::Fraud];
        let terms = Terms {
            required: 2,
            on_denial: OnDenial::Continue,
        };
        let denied = Some((ApprovalState::Denied, "fraud_reported"));
        assert_eq!(outcome(terms, &members), denied);
    }
}
