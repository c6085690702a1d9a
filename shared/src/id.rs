//! Typed identifiers: a prefix that says the kind, then a UUIDv7 in lower-case Crockford base32, so that text order is time order.

use crate::clock::Millis;
use serde::{Deserialize, Serialize};
use uuid::{NoContext, Timestamp, Uuid};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

fn encode(prefix: &str, uuid: Uuid) -> String {
    let bits = uuid.as_u128();
    let mut text = String::with_capacity(prefix.len() + 27);
    text.push_str(prefix);
    text.push('_');
    for place in (0..26).rev() {
        let digit = usize::try_from((bits >> (place * 5)) & 31).unwrap_or(0);
        text.push(char::from(ALPHABET[digit]));
    }
    text
}

fn well_formed(prefix: &str, text: &str) -> bool {
    text.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'))
        .is_some_and(|rest| rest.len() == 26 && rest.bytes().all(is_digit))
}

/// Is it in the alphabet? Every push is read with a dozen identifiers.
const fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'h' | b'j' | b'k' | b'm' | b'n' | b'p'..=b't' | b'v'..=b'z')
}

/// The text that counts on from `text`, its last digit the lowest.
fn successor(text: &str) -> Option<String> {
    let mut bytes = text.as_bytes().to_vec();
    for byte in bytes.iter_mut().rev() {
        let digit = ALPHABET.iter().position(|one| one == byte)?;
        *byte = ALPHABET[(digit + 1) % ALPHABET.len()];
        if digit + 1 < ALPHABET.len() {
            return String::from_utf8(bytes).ok();
        }
    }
    None
}

/// A text that is not an identifier of the kind asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an identifier of the form {0}_ followed by 26 characters")]
pub struct Malformed(&'static str);

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A fresh identifier that sorts by `now`.
            pub fn fresh(now: Millis) -> Self {
                let ms = u64::try_from(now).unwrap_or(0);
                let stamp = Timestamp::from_unix(NoContext, ms / 1000, u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000);
                Self(encode($prefix, Uuid::new_v7(stamp)))
            }

            /// The identifier that follows from `parts`: the same parts always give the same one.
            pub fn derived(parts: &[&str]) -> Self {
                Self(encode($prefix, Uuid::new_v5(&Uuid::NAMESPACE_OID, parts.join("\u{1f}").as_bytes())))
            }

            /// The identifier that follows `other` in text order; `None` behind the last one.
            pub fn behind(other: &str) -> Option<Self> {
                let text = successor(other)?;
                Self::try_from(text).ok()
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = Malformed;
            fn from_str(text: &str) -> Result<Self, Malformed> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = Malformed;
            fn try_from(text: String) -> Result<Self, Malformed> {
                if well_formed($prefix, &text) { Ok(Self(text)) } else { Err(Malformed($prefix)) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    )*};
}

ids! {
    /// An identity store: the tenant.
    StoreId = "sto";
    /// A user of a store.
    UserId = "usr";
    /// A registered device.
    DeviceId = "dev";
    /// A push request.
    PushId = "psh";
    /// One push to one device.
    DeliveryId = "dlv";
    /// A batch.
    BatchId = "bat";
    /// An approval by several people.
    ApprovalId = "apr";
    /// A part of a batch that is sent as one job.
    ChunkId = "chk";
    /// A completion event.
    EventId = "evt";
    /// A broker message.
    MessageId = "msg";
    /// An API key.
    KeyId = "key";
    /// What a fraud report has locked.
    LockId = "lck";
    /// A child process instance.
    InstanceId = "ins";
    /// An enrolment code.
    EnrolmentId = "enr";
    /// A notice to a device.
    NoticeId = "ntc";
    /// An entry of an audit log.
    AuditId = "aud";
}

/// How many digits of an identifier say when it was made.
const TIME: usize = 10;

impl DeliveryId {
    /// The delivery of a push to a device: always the same one. It takes its time from the push, so that the deliveries of one time lie together in an
    /// index.
    pub fn of(push: &PushId, device: &DeviceId) -> Self {
        let Self(hash) = Self::derived(&[push.as_str(), device.as_str()]);
        let prefix = hash.len() - 26;
        let begin = push.0.len() - 26;
        Self(format!(
            "{}{}{}",
            &hash[..prefix],
            &push.0[begin..begin + TIME],
            &hash[prefix + TIME..]
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{ALPHABET, DeliveryId, DeviceId, PushId, is_digit};

    #[test]
    fn the_digits_are_those_of_the_alphabet() {
        for byte in 0..=u8::MAX {
            assert_eq!(is_digit(byte), ALPHABET.contains(&byte), "{byte}");
        }
    }

    #[test]
    fn a_delivery_follows_from_push_and_device_and_sorts_by_the_push() {
        let (push, later) = (PushId::fresh(1_000), PushId::fresh(2_000));
        let (one, other) = (DeviceId::fresh(3_000), DeviceId::fresh(9_000));
        let id = DeliveryId::of(&push, &one);
        assert_eq!(id, DeliveryId::of(&push, &one));
        assert_ne!(id, DeliveryId::of(&push, &other));
        assert!(DeliveryId::of(&push, &other) < DeliveryId::of(&later, &one));
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
    }

    #[test]
    fn text_order_is_time_order() {
        assert!(PushId::fresh(1_000) < PushId::fresh(2_000));
    }

    #[test]
    fn a_derived_identifier_is_stable_and_parts_do_not_run_together() {
        assert_eq!(
            DeliveryId::derived(&["a", "b"]),
            DeliveryId::derived(&["a", "b"])
        );
        assert_ne!(
            DeliveryId::derived(&["ab", "c"]),
            DeliveryId::derived(&["a", "bc"])
        );
    }

    #[test]
    fn what_follows_an_identifier_sorts_behind_it() {
        let id = PushId::try_from("psh_0000000000000000000000000z".to_owned()).unwrap();
        let next = PushId::behind(id.as_str()).unwrap();
        assert_eq!(next.as_str(), "psh_00000000000000000000000010");
        assert!(next > id);
        assert_eq!(PushId::behind(&format!("psh_{}", "z".repeat(26))), None);
        assert_eq!(PushId::behind(""), None);
    }

    #[test]
    fn another_kind_is_refused() {
        let id = PushId::fresh(5).to_string();
        assert!(id.parse::<PushId>().is_ok());
        assert!(id.parse::<DeliveryId>().is_err());
        assert!("psh_".parse::<PushId>().is_err());
        assert!("psh_é".parse::<PushId>().is_err());
    }
}
