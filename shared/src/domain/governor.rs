//! The fatigue governor: whether a person is asked now. Whoever has a password can make a phone ring; enough rings, and one of them is approved
//! (NIST SP 800-63B-4, 3.1.3: limit the rate or number of pushes since the last success). A pure function of what happened before; where that
//! is found: `store/governor.rs`. What it means for a caller: `docs/policies.md`.

use super::profile::Profile;
use super::push::Kind;
use super::state::words;
use crate::clock::Millis;
use serde::{Deserialize, Serialize};

/// Over how long pushes are counted.
pub const WINDOW: Millis = 60_000;

words! {
    /// What becomes of an open prompt when the same user is asked again by the same relying party.
    OpenPrompts {
        /// The newer one takes its place: the older ends as `cancelled(superseded)`.
        Supersede = "supersede",
        /// The newer one is refused.
        Refuse = "refuse",
        /// Both stay open.
        Many = "many",
    }
}

words! {
    /// Why a push is taken and not sent. It ends as `failed` with this reason, so that nothing is suppressed in silence.
    Suppression {
        /// The user was asked as often as allowed within a minute, without an approval.
        Throttled = "throttled",
        /// The user has reported fraud by the same sender, who does not say who the initiator is.
        FraudLock = "fraud_lock",
        /// The user has just said no.
        Cooldown = "cooldown",
    }
}

/// The part of a push policy that this module follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How often a user may be asked in a minute without an approval.
    pub max_prompts: i64,
    /// What becomes of an open prompt.
    pub open_prompts: OpenPrompts,
    /// How long after a denial the user is left alone.
    pub cooldown: Millis,
    /// How long a fraud report locks the initiator.
    pub fraud_lock: Millis,
    /// Whose rules a prompt follows.
    pub profile: Profile,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max_prompts: 3,
            open_prompts: OpenPrompts::Supersede,
            cooldown: 30_000,
            fraud_lock: 3_600_000,
            profile: Profile::Default,
        }
    }
}

/// What happened before, to one user by one relying party.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Past {
    /// How many pushes of the interactive lane were let through within [`WINDOW`] and since the last approval.
    pub asked: i64,
    /// Is a prompt open?
    pub open: bool,
    /// The last denial.
    pub denied_at: Option<Millis>,
    /// Until when a fraud report keeps the sender from this user.
    pub locked_until: Option<Millis>,
    /// The last approval, of whatever relying party.
    pub approved_at: Option<Millis>,
}

/// What is to be done with a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Send it.
    Ask,
    /// Take it and end it at once.
    Suppress(Suppression),
    /// Do not take it: a prompt is open.
    Refuse,
}

/// Is this kind a prompt, of which one is open at a time and a denial means no? A generic push is only told.
pub fn is_prompt(kind: Kind) -> bool {
    match kind {
        Kind::Confirm | Kind::Process => true,
        Kind::Generic => false,
    }
}

/// Whether a push of the interactive lane is sent.
pub fn rule(kind: Kind, rules: &Rules, past: &Past, now: Millis) -> Ruling {
    if is_prompt(kind) {
        if past.open && rules.open_prompts == OpenPrompts::Refuse {
            return Ruling::Refuse;
        }
        if past.locked_until.is_some_and(|until| now < until) {
            return Ruling::Suppress(Suppression::FraudLock);
        }
        // Without a cooldown no clock of another process can make one.
        let no = past
            .denied_at
            .filter(|no| rules.cooldown > 0 && past.approved_at < Some(*no));
        if no.is_some_and(|no| now < no + rules.cooldown) {
            return Ruling::Suppress(Suppression::Cooldown);
        }
    }
    if past.asked >= rules.max_prompts {
        return Ruling::Suppress(Suppression::Throttled);
    }
    Ruling::Ask
}

#[cfg(test)]
mod tests {
    use super::{OpenPrompts, Past, Rules, Ruling, WINDOW, rule};
    use crate::clock::Millis;
    use crate::domain::Kind;
    use proptest::prelude::*;
    use proptest::sample::select;

    /// What a timeline consists of; an answer is to the newest open prompt.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Push(Kind),
        Approve,
        Deny,
        Expire,
    }

    /// One user and one relying party, remembered in full.
    #[derive(Default)]
    struct Timeline {
        let_through: Vec<Millis>,
        open: usize,
        denied_at: Option<Millis>,
        approved_at: Option<Millis>,
    }

    impl Timeline {
        fn past(&self, now: Millis) -> Past {
            let since = self.approved_at.unwrap_or(-1).max(now - WINDOW);
            let asked = self.let_through.iter().filter(|at| **at > since).count();
            Past {
                asked: i64::try_from(asked).unwrap(),
                open: self.open > 0,
                denied_at: self.denied_at,
                approved_at: self.approved_at,
                locked_until: None,
            }
        }

        fn push(&mut self, kind: Kind, rules: &Rules, now: Millis) -> Ruling {
            let ruling = rule(kind, rules, &self.past(now), now);
            if ruling == Ruling::Ask {
                self.let_through.push(now);
                if kind != Kind::Generic {
                    let stay = rules.open_prompts == OpenPrompts::Many;
                    self.open = if stay { self.open + 1 } else { 1 };
                }
            }
            ruling
        }
    }

    fn steps() -> impl Strategy<Value = Vec<(Millis, Step)>> {
        let step = prop_oneof![
            8 => select(Kind::ALL).prop_map(Step::Push),
            1 => Just(Step::Approve),
            1 => Just(Step::Deny),
            1 => Just(Step::Expire),
        ];
        // Bursts, pauses, and both sides of the edges.
        let gap = prop_oneof![6 => 0..50_i64, 2 => 0..20_000_i64, 1 => select(vec![29_999, 30_000, 59_999, 60_000, 60_001])];
        prop::collection::vec((gap, step), 0..120)
    }

    fn rules() -> impl Strategy<Value = Rules> {
        let words = select(OpenPrompts::ALL);
        (1..6_i64, words, 0..60_000_i64).prop_map(|(max_prompts, open_prompts, cooldown)| Rules {
            max_prompts,
            open_prompts,
            cooldown,
            ..Rules::default()
        })
    }

    proptest! {
        #[test]
        fn must_09_on_no_timeline_is_a_user_asked_more_often_than_the_rules_say(steps in steps(), rules in rules()) {
            let (mut line, mut now) = (Timeline::default(), 0);
            for (gap, step) in steps {
                now += gap;
                match step {
                    Step::Push(kind) => {
                        let before = line.past(now);
                        let ruling = line.push(kind, &rules, now);
                        let within = line.let_through.iter().filter(|at| **at > now - WINDOW && Some(**at) > line.approved_at).count();
                        prop_assert!(i64::try_from(within).unwrap() <= rules.max_prompts);
                        if rules.open_prompts != OpenPrompts::Many {
                            prop_assert!(line.open <= 1);
                        }
                        let left_alone = kind != Kind::Generic && before.denied_at > before.approved_at
                            && before.denied_at.is_some_and(|no| now < no + rules.cooldown);
                        if left_alone {
                            prop_assert!(ruling != Ruling::Ask);
                        }
                        // Nothing is kept back without a cause.
                        if before.asked < rules.max_prompts && !left_alone && !before.open {
                            prop_assert_eq!(ruling, Ruling::Ask);
                        }
                    }
                    Step::Approve if line.open > 0 => {
                        line.open -= 1;
                        line.approved_at = Some(now);
                    }
                    Step::Deny if line.open > 0 => {
                        line.open -= 1;
                        line.denied_at = Some(now);
                    }
                    Step::Expire => line.open = line.open.saturating_sub(1),
                    Step::Approve | Step::Deny => {}
                }
            }
        }
    }

    #[test]
    fn an_approval_lifts_the_cooldown_and_its_edge_is_exclusive() {
        let rules = Rules::default();
        let past = |approved_at| Past {
            denied_at: Some(1_000),
            approved_at,
            ..Past::default()
        };
        let ask = |past: &Past, now| rule(Kind::Confirm, &rules, past, now) == Ruling::Ask;
        assert!(!ask(&past(None), 30_999));
        assert!(ask(&past(None), 31_000));
        assert!(!ask(&past(Some(999)), 30_999));
        assert!(ask(&past(Some(1_001)), 1_002));
        let locked = Past {
            locked_until: Some(2_000),
            approved_at: Some(1_500),
            ..Past::default()
        };
        assert!(!ask(&locked, 1_999), "an approval lifts no lock");
        assert!(ask(&locked, 2_000));
        let told = rule(Kind::Generic, &rules, &past(None), 1_001);
        assert_eq!(told, Ruling::Ask, "a generic push asks nothing");
    }
}
