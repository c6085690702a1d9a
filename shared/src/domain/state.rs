//! The state machines. `docs/data-model.md` holds the same tables and a test compares them.

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every value, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in rows, messages and documents.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// Reads the word back.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }

        impl std::str::FromStr for $name {
            type Err = ();
            fn from_str(word: &str) -> Result<Self, ()> {
                Self::parse(word).ok_or(())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// The life of a push request.
    PushState {
        /// Taken and durable; no worker has seen it yet.
        Accepted = "accepted",
        /// Fanned out; the person may answer.
        Pending = "pending",
        /// The process link was opened on a phone; the child instance runs.
        Opened = "opened",
        /// Yes, with a valid proof.
        Approved = "approved",
        /// No. Never sent again.
        Denied = "denied",
        /// Nobody answered in time.
        Expired = "expired",
        /// Taken back by the sender.
        Cancelled = "cancelled",
        /// It could not be asked.
        Failed = "failed",
        /// A `generic` push has run its course.
        Completed = "completed",
    }
}

impl PushState {
    /// No way leads out of these.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Accepted | Self::Pending | Self::Opened => false,
            Self::Approved
            | Self::Denied
            | Self::Expired
            | Self::Cancelled
            | Self::Failed
            | Self::Completed => true,
        }
    }

    /// May a push go from `self` to `to`?
    pub fn may_become(self, to: Self) -> bool {
        match self {
            // An answer may overtake the worker: a phone that polls can see an accepted push.
            Self::Accepted => to != Self::Accepted,
            Self::Pending => !matches!(to, Self::Accepted | Self::Pending),
            Self::Opened => matches!(
                to,
                Self::Approved | Self::Denied | Self::Expired | Self::Cancelled | Self::Failed
            ),
            Self::Approved
            | Self::Denied
            | Self::Expired
            | Self::Cancelled
            | Self::Failed
            | Self::Completed => false,
        }
    }
}

words! {
    /// The life of one push on its way to one device.
    DeliveryState {
        /// Waiting for a worker, or for its turn in an escalation.
        Queued = "queued",
        /// A worker holds the lease and is calling the provider.
        Sending = "sending",
        /// The provider took it; nothing more is known.
        Sent = "sent",
        /// Waiting for the next attempt.
        RetryWait = "retry_wait",
        /// The device has fetched the prompt.
        Fetched = "fetched",
        /// This device's answer counted.
        Answered = "answered",
        /// Another device answered, or the push was cancelled.
        Withdrawn = "withdrawn",
        /// The push expired.
        Expired = "expired",
        /// The provider refused for good, or the attempts ran out. The device may still fetch.
        Failed = "failed",
        /// Never tried: no address, or no time left. The device may still fetch.
        Skipped = "skipped",
    }
}

impl DeliveryState {
    /// No way leads out of these.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Answered | Self::Withdrawn | Self::Expired)
    }

    /// The provider will not be called again.
    pub fn transport_is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Sending | Self::RetryWait)
    }

    /// May a delivery go from `self` to `to`?
    pub fn may_become(self, to: Self) -> bool {
        if self.is_terminal() || self == to {
            return false;
        }
        // A phone fetches and answers whatever the provider did, and the end of the push ends every delivery.
        if matches!(
            to,
            Self::Fetched | Self::Answered | Self::Withdrawn | Self::Expired
        ) {
            return true;
        }
        match self {
            Self::Queued => matches!(to, Self::Sending | Self::Skipped),
            Self::Sending => matches!(
                to,
                Self::Sent | Self::RetryWait | Self::Failed | Self::Skipped
            ),
            Self::RetryWait => matches!(to, Self::Sending | Self::Failed),
            Self::Sent
            | Self::Fetched
            | Self::Answered
            | Self::Withdrawn
            | Self::Expired
            | Self::Failed
            | Self::Skipped => false,
        }
    }
}

words! {
    /// The life of a device's key.
    DeviceState {
        /// Registered, not yet proved.
        PendingBinding = "pending_binding",
        /// In use.
        Active = "active",
        /// Set aside; may come back.
        Blocked = "blocked",
        /// Gone for good.
        Revoked = "revoked",
    }
}

impl DeviceState {
    /// May a device go from `self` to `to`?
    pub fn may_become(self, to: Self) -> bool {
        match self {
            Self::PendingBinding => matches!(to, Self::Active | Self::Revoked),
            Self::Active => matches!(to, Self::Blocked | Self::Revoked),
            Self::Blocked => matches!(to, Self::Active | Self::Revoked),
            Self::Revoked => false,
        }
    }
}

words! {
    /// The push address lives apart from the key: losing it never kills the key.
    AddressState {
        /// None registered: the device is reached by its own fetching only.
        None = "none",
        /// In use.
        Valid = "valid",
        /// The provider says that it is gone.
        Invalid = "invalid",
    }
}

words! {
    /// The life of a child process instance, as its process engine tells it.
    InstanceState {
        /// The link was opened; the engine has not said anything yet.
        Pending = "pending",
        /// It runs.
        Active = "active",
        /// Somebody else looks at it: it may take longer.
        Review = "review",
        /// Accepted.
        EndedSuccess = "ended_success",
        /// Declined.
        EndedError = "ended_error",
        /// Abandoned by the user.
        Terminated = "terminated",
        /// Broken.
        ProcessError = "process_error",
    }
}

impl InstanceState {
    /// What the end of an instance means for its push, and why; `None` while it goes on.
    pub fn outcome(self) -> Option<(PushState, &'static str)> {
        match self {
            Self::Pending | Self::Active | Self::Review => None,
            Self::EndedSuccess => Some((PushState::Approved, "ended_success")),
            Self::EndedError => Some((PushState::Denied, "policy")),
            Self::Terminated => Some((PushState::Denied, "user_cancelled")),
            Self::ProcessError => Some((PushState::Failed, "internal")),
        }
    }

    /// May an instance go from `self` to `to`? An engine may leave steps out, but never begin again.
    pub fn may_become(self, to: Self) -> bool {
        self.outcome().is_none() && to != Self::Pending && to != self
    }
}

words! {
    /// What an enrolment code is good for.
    CodeState {
        /// It lets one device in.
        Open = "open",
        /// It has let one in.
        Used = "used",
        /// Its time is over.
        Expired = "expired",
        /// Taken back, or its maker is no longer trusted.
        Revoked = "revoked",
    }
}

words! {
    /// What a user's other devices are told.
    NoticeWord {
        /// A device was added.
        Added = "added",
        /// It was set aside.
        Blocked = "blocked",
        /// It came back.
        Unblocked = "unblocked",
        /// It is gone for good.
        Revoked = "revoked",
        /// Its wake-ups go somewhere else.
        AddressChanged = "address_changed",
    }
}

words! {
    /// Whether a user may be asked.
    UserStatus {
        /// Yes.
        Active = "active",
        /// Not now.
        Locked = "locked",
        /// No longer.
        Disabled = "disabled",
    }
}

#[cfg(test)]
mod tests {
    use super::{DeliveryState, DeviceState, InstanceState, PushState};
    use proptest::prelude::*;
    use proptest::sample::select;

    proptest! {
        #[test]
        fn a_push_has_one_terminal_state_ever(steps in prop::collection::vec(select(PushState::ALL), 0..40)) {
            let (mut state, mut ends) = (PushState::Accepted, 0);
            for to in steps {
                if state.may_become(to) {
                    state = to;
                    ends += usize::from(to.is_terminal());
                }
            }
            prop_assert!(ends <= 1);
            prop_assert_eq!(ends == 1, state.is_terminal());
        }

        #[test]
        fn a_delivery_ends_once_and_is_never_sent_after_its_end(steps in prop::collection::vec(select(DeliveryState::ALL), 0..60)) {
            let mut state = DeliveryState::Queued;
            for to in steps {
                if state.may_become(to) {
                    prop_assert!(!state.is_terminal());
                    prop_assert!(to != DeliveryState::Queued);
                    state = to;
                }
            }
        }
    }

    #[test]
    fn a_revoked_device_never_comes_back() {
        assert!(
            DeviceState::ALL
                .iter()
                .all(|to| !DeviceState::Revoked.may_become(*to))
        );
    }

    #[test]
    fn an_instance_that_has_ended_stays_ended() {
        for from in InstanceState::ALL {
            let ways = InstanceState::ALL.iter().filter(|to| from.may_become(**to));
            let none = ways.count() == 0;
            assert_eq!(none, from.outcome().is_some(), "{from}");
            let sound = from
                .outcome()
                .is_none_or(|(state, _)| PushState::Opened.may_become(state));
            assert!(sound, "{from}");
        }
    }

    #[test]
    fn denial_is_terminal() {
        assert!(
            PushState::ALL
                .iter()
                .all(|to| !PushState::Denied.may_become(*to))
        );
    }

    #[test]
    fn words_read_back() {
        for state in PushState::ALL {
            assert_eq!(PushState::parse(state.as_str()), Some(*state));
        }
        assert_eq!(PushState::parse("nonsense"), None);
    }
}
