//! Wake-ups on their way to phones: APNs and FCM v1 behind one seam.
//!
//! A push carries the push's identifier and a generic text, nothing else; the phone fetches the rest over its own channel. What
//! is here calls a provider once and says what came of it. It never sleeps until a retry is due, never writes to the
//! store, and never decides that a device is gone: [`retry`] turns a result into a decision, and the caller carries it out.

pub mod retry;

use async_trait::async_trait;
use shared::clock::Millis;
use shared::domain::Kind;
use shared::id::{DeliveryId, PushId};
use shared::secret::Secret;
use std::borrow::Cow;
use std::time::Duration;

/// A short stable word, fit for a row, an event or a metric: the provider's own where it is documented, else one of ours. Never a
/// token, never a text that a stranger chose: what is not documented is cut and cleaned first.
pub type Reason = Cow<'static, str>;

/// One call of a provider.
#[derive(Debug, Clone)]
pub struct Call {
    /// Stays the same on every retry, and so does the `apns-id` made of it.
    pub delivery: DeliveryId,
    /// What the phone is told to fetch.
    pub push: PushId,
    /// What the push asks for. Providers are not told.
    pub kind: Kind,
    /// The device's push address.
    pub token: Secret,
    /// Nothing is sent from here on.
    pub expires_at: Millis,
    /// Counts from 1.
    pub attempt: u32,
    /// W3C trace context, passed on.
    pub traceparent: Option<String>,
}

/// Whom a 429 slows down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// This device.
    Device,
    /// Everything that is sent with this credential.
    Credential,
}

/// What came of one call. Exhaustive on purpose: whoever matches says what happens in each case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushResult {
    /// The provider took it. Nothing is known about the phone.
    Accepted {
        /// The provider's name for the message.
        provider_id: Option<String>,
    },
    /// The address is dead, on the provider's word. Drop it only by compare-and-set on the token and on `since`.
    AddressGone {
        /// From when on; an address registered later than this is another one.
        since: Option<Millis>,
        /// Could also come of a wrong setting on our side.
        guarded: bool,
        /// The provider's word.
        reason: Reason,
    },
    /// Too much.
    Throttled {
        /// Not before.
        after: Duration,
        /// Who has to slow down.
        scope: Scope,
        /// The provider's word.
        reason: Reason,
    },
    /// The provider cannot at the moment, by its own word or because its certificate is not to be trusted.
    Unavailable {
        /// Not before, where somebody said so.
        after: Option<Duration>,
        /// The provider's word, or ours for what happened.
        reason: Reason,
    },
    /// Provably never processed: a retry cannot double anything.
    Unprocessed {
        /// Our word for what happened.
        reason: Reason,
    },
    /// Sent, and no answer: the phone may get it.
    Ambiguous {
        /// Our word for what happened.
        reason: Reason,
    },
    /// This job cannot succeed; the address and the credential are not to blame.
    Rejected {
        /// The provider's word, or ours for what is wrong.
        reason: Reason,
    },
    /// The credential does not authenticate, or may not do this.
    Credentials {
        /// The provider's word, or ours for what is wrong.
        reason: Reason,
    },
    /// Not called, so not an attempt: the credential is paused or its circuit is open.
    Paused {
        /// When it is worth asking again.
        after: Duration,
        /// Why it is paused.
        reason: Reason,
    },
    /// Not called, so not an attempt: it was too late.
    Expired,
}

impl PushResult {
    /// The word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::AddressGone { .. } => "unregistered",
            Self::Throttled { .. } => "throttled",
            Self::Unavailable { .. } | Self::Unprocessed { .. } => "retryable",
            Self::Ambiguous { .. } => "timeout",
            Self::Rejected { .. } => "permanent",
            Self::Credentials { .. } => "credentials",
            Self::Paused { .. } => "breaker_open",
            Self::Expired => "expired",
        }
    }
}

/// Somebody who wakes phones.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Sends once and says what came of it. Ends within the timeout, whatever the peer does; a refused access token costs a
    /// second one and a second send, each with the same bound.
    async fn push(&self, call: &Call) -> PushResult;
}
