//! The audit log of a store: what an entry is, how entries are chained, and how a chain is checked. No database here: a third party checks an
//! exported log with nothing but this. The format: `docs/audit.md`.

mod check;

pub use check::{Broken, Checked, Log, check};

use crate::clock::rfc3339;
use crate::crypto::{Signer, sha256_text};
use crate::domain::state::words;
use crate::id::{AuditId, StoreId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The version of the format that this build writes and reads.
pub const VERSION: u32 = 1;
/// What the hash of an entry begins with, so that no other hashed text can pass for an entry.
const DOMAIN: &[u8] = b"countersign-audit-entry-v1\n";
/// The `prev` of the first entry: 32 zero bytes, base64url.
pub const GENESIS: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
/// The `typ` of a signed head.
pub const HEAD_TYP: &str = "countersign-audit-head+jwt";

words! {
    /// What happened. The list with its facts is `docs/audit.md`; a test compares both.
    Act {
        /// A confirm or process push was approved.
        PushApproved = "push_approved",
        /// Denied.
        PushDenied = "push_denied",
        /// Its time was over.
        PushExpired = "push_expired",
        /// Taken back, or its user may not be asked any more.
        PushCancelled = "push_cancelled",
        /// It could not be asked, or was asked too often.
        PushFailed = "push_failed",
        /// Its approval was used for what it was given.
        PushConsumed = "push_consumed",
        /// A denial said that the person did not ask for this.
        FraudReported = "fraud_reported",
        /// What it had locked was lifted.
        FraudLockLifted = "fraud_lock_lifted",
        /// An answer did not count.
        ProofRefused = "proof_refused",
        /// More of them came for this push than are written one by one.
        ProofsMuted = "proofs_muted",
        /// A wrong code was typed.
        WrongCode = "wrong_code",
        /// It was one too many: nobody can type a code for this user for a while.
        CodesBlocked = "codes_blocked",
        /// A device that may not speak any more has signed a request.
        DeviceRefused = "device_refused",
        /// The link of a process push was opened: a child process instance runs.
        LinkOpened = "link_opened",
        /// It was opened once more, too late or too early.
        LinkRefused = "link_refused",
        /// Several people were asked for an approval.
        ApprovalMade = "approval_made",
        /// It was decided, or will not be.
        ApprovalEnded = "approval_ended",
        /// It was used.
        ApprovalConsumed = "approval_consumed",
        /// The store was made.
        StoreMade = "store_made",
        /// An API key was made.
        KeyMade = "key_made",
        /// An API key was ended.
        KeyRevoked = "key_revoked",
        /// A user was added.
        UserAdded = "user_added",
        /// A user's status or preferred device was set.
        UserChanged = "user_changed",
        /// A device was registered.
        DeviceRegistered = "device_registered",
        /// A device has a new push address.
        AddressChanged = "address_changed",
        /// An enrolment code was made.
        EnrolmentCodeMade = "enrolment_code_made",
        /// An enrolment code was taken back.
        EnrolmentCodeRevoked = "enrolment_code_revoked",
        /// A device was blocked, unblocked, revoked or renamed.
        DeviceChanged = "device_changed",
        /// A push policy was set.
        PushPolicySet = "push_policy_set",
        /// A push policy was dropped.
        PushPolicyDropped = "push_policy_dropped",
        /// An appkey policy was set.
        AppkeyPolicySet = "appkey_policy_set",
        /// A version of a process definition was added.
        DefinitionAdded = "definition_added",
    }
}

impl Act {
    /// Those that end a push: an entry of such an act is the push's verdict, and there is one.
    pub const VERDICTS: [Self; 5] = [
        Self::PushApproved,
        Self::PushDenied,
        Self::PushExpired,
        Self::PushCancelled,
        Self::PushFailed,
    ];
}

/// One entry of the log of a store, in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// [`VERSION`].
    pub v: u32,
    /// Its identifier, from the moment that it was written.
    pub id: AuditId,
    /// Whose log.
    pub store: StoreId,
    /// Its place: 1, 2, 3 and so on, without a gap.
    pub seq: u64,
    /// When it happened, RFC 3339. The places follow the order in which entries were chained, which is this order but for a second or so.
    pub at: String,
    /// A word of [`Act`]; a later release may know more.
    pub act: String,
    /// The push that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<String>,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Who did it: the API key whose holder did, or another device of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Identifiers, words, numbers and hashes.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub facts: Map<String, Value>,
    /// The hash of the entry before.
    pub prev: String,
    /// The hash of this one, over everything else in it.
    pub hash: String,
}

/// The hash of an entry without its own hash: base64url of the SHA-256 over a line that says what is hashed, and the entry's RFC 8785 form.
pub fn hash_of(entry: &Map<String, Value>) -> String {
    let mut bytes = DOMAIN.to_vec();
    // Texts, whole numbers and objects of them: there is nothing that RFC 8785 could refuse.
    bytes.extend(serde_json_canonicalizer::to_vec(entry).unwrap_or_default());
    sha256_text(&bytes)
}

/// Puts an entry into its place: what it was written with, and `seq`, `prev` and `hash`. Gives its line in the log.
pub fn chained(mut entry: Map<String, Value>, seq: u64, prev: &str) -> (String, String) {
    entry.insert("seq".to_owned(), seq.into());
    entry.insert("prev".to_owned(), prev.into());
    let hash = hash_of(&entry);
    entry.insert("hash".to_owned(), hash.clone().into());
    let line = serde_json_canonicalizer::to_string(&entry).unwrap_or_default();
    (line, hash)
}

/// An entry's line in an export: its RFC 8785 form.
pub fn line_of(entry: &Value) -> String {
    serde_json_canonicalizer::to_string(entry).unwrap_or_default()
}

/// How far a log went when it was signed: who holds a head can tell whether anything before it was changed or left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// [`VERSION`].
    pub v: u32,
    /// Whose log.
    pub store: StoreId,
    /// The place of the last entry; 0 while there is none.
    pub seq: u64,
    /// Its hash; [`GENESIS`] while there is none.
    pub hash: String,
    /// When it was signed, RFC 3339.
    pub at: String,
}

impl Head {
    /// The head of a log as it is at `now`.
    pub fn new(store: StoreId, seq: u64, hash: String, now: i64) -> Self {
        Self {
            v: VERSION,
            store,
            seq,
            hash,
            at: rfc3339(now),
        }
    }

    /// Signed by the server; the key goes with it.
    pub fn signed(&self, signer: &Signer) -> String {
        signer.sign_with_key(HEAD_TYP, self)
    }
}
