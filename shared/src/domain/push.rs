//! What is asked, of whom, and how it ended.

use super::approval::Quorum;
use super::payments::Payments;
use super::profile::Payment;
use super::state::{PushState, words};
use crate::id::DeviceId;
use serde::{Deserialize, Serialize};

words! {
    /// What the push asks for.
    Kind {
        /// Accept opens a link; a child process instance decides.
        Process = "process",
        /// Contents are shown; each device that accepts is counted.
        Generic = "generic",
        /// A signed approve or deny, with a match code.
        Confirm = "confirm",
    }
}

/// Which of the user's devices are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Target {
    /// Every active device.
    All,
    /// The preferred device; the oldest active one where none is marked.
    Preferred {
        /// Ask the others after this many milliseconds without an answer, or at once after a hard failure.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        escalate_after: Option<i64>,
    },
    /// These.
    Devices {
        /// Identifiers of the user's devices.
        devices: Vec<DeviceId>,
    },
}

/// One line of typed details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// At most 36 characters.
    pub label: String,
    /// At most 128 characters.
    pub value: String,
}

/// From where the question comes, as the initiating channel saw it. Shown, so that a person notices a question from elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// An IPv4 or IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The program that is used there, such as a browser; at most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Where that is, as people say it; at most 100 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The sender's own name of the session; at most 100 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

impl Context {
    /// Label and value of what there is, in the order of showing.
    pub fn lines(&self) -> Vec<(&'static str, &str)> {
        [
            ("Place", &self.place),
            ("IP address", &self.ip),
            ("Program", &self.agent),
            ("Session", &self.session),
        ]
        .into_iter()
        .filter_map(|(label, value)| Some((label, value.as_deref()?)))
        .collect()
    }
}

/// Exactly what the person is shown; the proof covers its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// `process`, `generic` or `confirm`: a proof for one never verifies as another.
    pub kind: Kind,
    /// Who asks.
    pub relying_party: String,
    /// At most 100 characters.
    pub title: String,
    /// At most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// At most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Field>,
    /// What is to be paid, and to whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment: Option<Payment>,
    /// The same for a batch of payments, in place of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payments: Option<Payments>,
    /// From where the question comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Context>,
    /// Where several people are asked: how many of them must say yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Quorum>,
    /// For `process`: the link that an accept opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_url: Option<String>,
}

impl Content {
    /// Does it name amount and payee?
    pub fn pays(&self) -> bool {
        self.payment.is_some() || self.payments.is_some()
    }
}

/// How a push ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// A terminal state.
    pub state: PushState,
    /// A stable word, such as `user_declined`.
    pub reason: String,
    /// The device whose answer decided, where one did.
    pub device: Option<DeviceId>,
}

/// What the fan-out knows of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub device: DeviceId,
    /// When it was registered: the oldest is preferred where none is marked.
    pub created_at: i64,
}

impl Target {
    /// Which of `active`, the user's active devices for the relying party, are asked.
    pub fn chosen<'a>(
        &self,
        active: &'a [Candidate],
        preferred: Option<&DeviceId>,
    ) -> Vec<&'a Candidate> {
        match self {
            Self::All => active.iter().collect(),
            Self::Preferred { .. } => {
                let marked = active.iter().find(|one| Some(&one.device) == preferred);
                let oldest = || {
                    active
                        .iter()
                        .min_by_key(|one| (one.created_at, &one.device))
                };
                marked.or_else(oldest).into_iter().collect()
            }
            Self::Devices { devices } => active
                .iter()
                .filter(|one| devices.contains(&one.device))
                .collect(),
        }
    }

    /// How long to wait for the preferred device before all others are asked, where that was wished for.
    pub fn escalate_after(&self) -> Option<i64> {
        match self {
            Self::Preferred { escalate_after } => *escalate_after,
            Self::All | Self::Devices { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Candidate, Target};
    use crate::id::DeviceId;

    fn devices() -> Vec<Candidate> {
        [30, 10, 20]
            .into_iter()
            .map(|at| Candidate {
                device: DeviceId::fresh(at),
                created_at: at,
            })
            .collect()
    }

    #[test]
    fn the_preferred_device_is_the_marked_one_or_else_the_oldest() {
        let all = devices();
        let target = Target::Preferred {
            escalate_after: None,
        };
        let marked = target.chosen(&all, Some(&all[2].device));
        assert_eq!(marked, [&all[2]]);
        assert_eq!(target.chosen(&all, None), [&all[1]]);
        let gone = DeviceId::fresh(99);
        assert_eq!(target.chosen(&all, Some(&gone)), [&all[1]]);
        assert!(target.chosen(&[], None).is_empty());
    }

    #[test]
    fn named_devices_must_be_active_ones() {
        let all = devices();
        let target = Target::Devices {
            devices: vec![all[0].device.clone(), DeviceId::fresh(99)],
        };
        assert_eq!(target.chosen(&all, None), [&all[0]]);
        assert_eq!(Target::All.chosen(&all, None).len(), 3);
    }
}
