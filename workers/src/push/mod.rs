//! Wake-ups on their way to phones: APNs and FCM v1 behind one seam.
//!
//! A push carries the push's identifier and a generic text, nothing else; the phone fetches the rest over its own channel. What
//! is here calls a provider once and says what came of it. It never sleeps until a retry is due, never writes to the
//! store, and never decides that a device is gone: [`retry`] turns a result into a decision, and the caller carries it out.

mod apns;
mod fcm;
mod guard;
mod pool;
mod providers;
pub mod retry;
mod token;

pub use apns::KeyError;
pub use fcm::AccountError;
pub use guard::{Condition, Pause};
pub use pool::TlsError;
pub use providers::{Error, Options, Providers};
pub use token::{Kept, KeptToken, Lease, Shelf, TokenKey, Unread};

use async_trait::async_trait;
use pool::{ConnectError, SendError};
use shared::clock::Millis;
use shared::domain::Kind;
use shared::id::{DeliveryId, PushId};
use shared::message::Lane;
use shared::secret::Secret;
use std::borrow::Cow;
use std::time::Duration;
use tokio::time::Instant;

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
    /// Interactive pushes never wait behind bulk ones, for a stream or a turn.
    pub lane: Lane,
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
    /// Not called, so not an attempt: more would be too much for the project, and waiting here would take too long.
    Paced {
        /// When there is likely to be room.
        after: Duration,
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
            Self::Paced { .. } => "paced",
            Self::Expired => "expired",
        }
    }
}

/// Somebody who wakes phones.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Sends once and says what came of it. Ends within [`Options::timeout`], whatever the peer does; a refused access token costs a
    /// second one and a second send, each with the same bound. A turn in a provider's quota may be waited for, for some seconds.
    async fn push(&self, call: &Call) -> PushResult;
}

/// When it is too late to send: waiting for a token or a stream must not make a push late.
fn latest(call: &Call, now: Millis) -> Instant {
    let left = u64::try_from(call.expires_at.saturating_sub(now)).unwrap_or(0);
    let far = Duration::from_secs(LONGEST_WAIT_S);
    Instant::now() + Duration::from_millis(left).min(far)
}

/// What it means when there is no answer.
fn transport(error: &SendError) -> PushResult {
    let unprocessed = |why: &'static str| PushResult::Unprocessed { reason: why.into() };
    match *error {
        SendError::Full => unprocessed("queue_full"),
        SendError::NoStream => unprocessed("no_stream"),
        // No retry mends a certificate, so this is the peer being out of order; anything else may be gone in a second.
        SendError::NoConnection { error, after } if error == ConnectError::Certificate => {
            PushResult::Unavailable {
                after: Some(after),
                reason: error.as_str().into(),
            }
        }
        SendError::NoConnection { error, .. } => unprocessed(error.as_str()),
        SendError::Unprocessed(why) => unprocessed(why),
        SendError::Ambiguous(why) => PushResult::Ambiguous { reason: why.into() },
    }
}

/// The word for an address that cannot be one, found out before anything is sent.
const MALFORMED: &str = "malformed_address";

/// The longest word of a stranger that is kept.
const LONGEST_WORD: usize = 40;

/// Makes a stranger's word fit to be kept: letters, digits, `_`, `-` and `.`, cut after [`LONGEST_WORD`].
fn cleaned(word: &str) -> Reason {
    let word: String = word
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        .take(LONGEST_WORD)
        .collect();
    if word.is_empty() {
        Reason::Borrowed("unknown")
    } else {
        Reason::Owned(word)
    }
}

/// Reads `Retry-After`, in either of its forms.
fn retry_after(headers: &http::HeaderMap, now: Millis) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds.min(LONGEST_WAIT_S)));
    }
    let format = &time::format_description::well_known::Rfc2822;
    let at = time::OffsetDateTime::parse(text.trim(), format).ok()?;
    let wait = at.unix_timestamp().saturating_sub(now / 1000);
    let seconds = u64::try_from(wait).unwrap_or(0);
    Some(Duration::from_secs(seconds.min(LONGEST_WAIT_S)))
}

/// A day: a longer wait is a mistake of whoever asks for it.
const LONGEST_WAIT_S: u64 = 86_400;

#[cfg(test)]
mod tests {
    use super::{cleaned, retry_after};
    use http::HeaderMap;
    use std::time::Duration;

    fn wait(text: &'static str, now: i64) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", text.parse().unwrap());
        retry_after(&headers, now).as_ref().map(Duration::as_secs)
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        assert_eq!(wait("120", 0), Some(120));
        assert_eq!(wait("99999999999", 0), Some(86_400));
        assert_eq!(wait("-1", 0), None);
        assert_eq!(wait("soon", 0), None);
        let then = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(wait(then, (784_111_777 - 30) * 1000), Some(30));
        assert_eq!(wait(then, (784_111_777 + 30) * 1000), Some(0));
    }

    #[test]
    fn a_strangers_word_is_cut_and_cleaned() {
        assert_eq!(cleaned("New\nReason\" token=é"), "NewReasontoken");
        assert_eq!(cleaned("<>"), "unknown");
        assert_eq!(cleaned(&"x".repeat(500)).len(), 40);
    }
}
