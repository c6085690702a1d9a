//! A receipt: the verdict on one push as a small file, which anybody can check without a server. The format: `docs/receipts.md`.

use crate::audit::{Act, Entry, HEAD_TYP, Head, hash_of};
use crate::clock::rfc3339;
use crate::crypto::{DeviceKey, Expected, Proof, ServerKey, Signer, sha256_text};
use crate::domain::{Assurance, Factors, Kind, PushState};
use crate::id::{DeviceId, PushId, StoreId, UserId};
use crate::store::PushRow;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The `typ` of a receipt.
pub const TYP: &str = "countersign-receipt+jwt";
/// The version of the format that this build writes and reads.
pub const VERSION: u32 = 1;

/// What a receipt says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// [`VERSION`].
    pub v: u32,
    /// The store.
    pub store: StoreId,
    /// The push.
    pub push: PushId,
    /// Who was asked.
    pub user: UserId,
    /// Who asked.
    pub relying_party: String,
    /// `confirm` or `process`.
    pub kind: Kind,
    /// How it ended.
    pub state: PushState,
    /// Why.
    pub reason: String,
    /// What the approval is worth, where a proof approved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assurance: Option<Assurance>,
    /// base64url of the SHA-256 over the RFC 8785 form of what was shown.
    pub content_hash: String,
    /// What was shown, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    /// The challenge, used once.
    pub nonce: String,
    /// Did an approval need the six digits?
    pub match_required: bool,
    /// RFC 3339, as all times here, by the server's clock.
    pub created_at: String,
    /// When the device that decided fetched the prompt; where none decided, the first that did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_at: Option<String>,
    /// When the answer counted, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<String>,
    /// Until when an answer counted.
    pub expires_at: String,
    /// When it ended.
    pub ended_at: String,
    /// What the device signed, where a device decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// The entry of the audit log that tells this end.
    pub entry: Entry,
    /// The log's head at this very entry, signed: a JWS. It pins the entry and everything before it.
    pub head: String,
    /// When the receipt was made.
    pub issued_at: String,
}

/// A device's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Which device.
    pub device: DeviceId,
    /// Its public key at that time, a JWK.
    pub device_key: DeviceKey,
    /// What it signed: a JWS.
    pub proof: String,
}

/// What a receipt is made of.
pub struct Parts {
    /// The push, which has ended.
    pub push: PushRow,
    /// What was shown, where that is wished for.
    pub content: Option<Value>,
    /// See [`Receipt`].
    pub fetched_at: Option<i64>,
    /// See [`Receipt`].
    pub evidence: Option<Evidence>,
    /// See [`Receipt`].
    pub entry: Entry,
}

/// Writes a receipt: one line, a compact JWS (RFC 7515) that brings the server's key along.
pub fn issue(parts: Parts, signer: &Signer, now: i64) -> String {
    let Parts {
        push,
        content,
        fetched_at,
        evidence,
        entry,
    } = parts;
    let head = Head::new(push.store.clone(), entry.seq, entry.hash.clone(), now);
    // An entry of an older release does not tell it, and what the log does not tell is not in a receipt.
    let told = entry.facts.contains_key("factors");
    let ended_at = rfc3339(push.ended_at.unwrap_or_default());
    let receipt = Receipt {
        v: VERSION,
        store: push.store,
        push: push.id,
        user: push.user,
        relying_party: push.rp,
        kind: push.kind,
        state: push.state,
        reason: push.reason,
        assurance: push.factors.filter(|_| told).map(Into::into),
        content_hash: push.content_hash,
        content,
        nonce: push.nonce,
        match_required: push.match_required,
        created_at: rfc3339(push.created_at),
        fetched_at: fetched_at.map(rfc3339),
        answered_at: evidence.as_ref().map(|_| ended_at.clone()),
        expires_at: rfc3339(push.expires_at),
        ended_at,
        evidence,
        entry,
        head: head.signed(signer),
        issued_at: rfc3339(now),
    };
    signer.sign_with_key(TYP, &receipt) + "\n"
}

/// What is wrong with a receipt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Not one line of three parts in base64url.
    #[error("this is no receipt: a receipt is one line, a compact JWS, and nothing else")]
    Form,
    /// Signed by somebody else.
    #[error("the receipt is signed by {found}, not by the expected key {expected}")]
    Key {
        /// The fingerprint in the file.
        found: String,
        /// The one that was given.
        expected: String,
    },
    /// The server's signature does not fit.
    #[error("the server's signature does not fit: the receipt was changed")]
    Signature,
    /// Signed, but not of a form that is known here.
    #[error("the receipt says what this program does not understand: {0}")]
    Claims(String),
    /// What was shown is not what was signed.
    #[error("the content in the receipt is not what was shown: its hash is another one")]
    Content,
    /// The audit entry's hash is not its own.
    #[error("the audit entry in the receipt was changed")]
    EntryHash,
    /// The audit entry tells something else.
    #[error("the audit entry in the receipt tells something else: {0}")]
    Entry(&'static str),
    /// The head does not pin the entry.
    #[error("the signed head of the log does not stand at the receipt's entry")]
    Head,
    /// There must be a proof.
    #[error("a device decided, but its proof is not in the receipt")]
    NoProof,
    /// There must be none.
    #[error("the receipt holds a proof that decided nothing")]
    IdleProof,
    /// The proof does not hold.
    #[error("the device's proof does not hold: {0}")]
    Proof(&'static str),
}

/// A receipt that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What it says.
    pub receipt: Receipt,
    /// Who signed it. Where no key was expected, its fingerprint is for the reader to compare.
    pub key: ServerKey,
}

/// Checks a receipt. `pinned`: the fingerprint of the server's key, where it is known.
pub fn verify(text: &str, pinned: Option<&str>) -> Result<Verified, Broken> {
    let jws = text.strip_suffix('\n').unwrap_or(text);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !jws.bytes().all(plain) || jws.split('.').count() != 3 {
        return Err(Broken::Form);
    }
    let key = ServerKey::of_signed(jws).ok_or(Broken::Form)?;
    if let Some(expected) = pinned.filter(|kid| *kid != key.kid) {
        return Err(Broken::Key {
            found: key.kid,
            expected: expected.to_owned(),
        });
    }
    let claims: Claims = key.verified(jws, TYP).ok_or(Broken::Signature)?;
    let receipt: Receipt =
        serde_json::from_value(claims.0).map_err(|error| Broken::Claims(error.to_string()))?;
    if receipt.v != VERSION {
        return Err(Broken::Claims(format!("version {}", receipt.v)));
    }
    content_holds(&receipt)?;
    entry_holds(&receipt)?;
    let head: Head = key.verified(&receipt.head, HEAD_TYP).ok_or(Broken::Head)?;
    let entry = &receipt.entry;
    if (&head.store, head.seq, &head.hash) != (&receipt.store, entry.seq, &entry.hash) {
        return Err(Broken::Head);
    }
    proof_holds(&receipt)?;
    Ok(Verified { receipt, key })
}

#[derive(Clone, Deserialize)]
struct Claims(Value);

fn content_holds(receipt: &Receipt) -> Result<(), Broken> {
    let Some(content) = &receipt.content else {
        return Ok(());
    };
    let canonical = serde_json_canonicalizer::to_vec(content).map_err(|_| Broken::Content)?;
    if sha256_text(&canonical) == receipt.content_hash {
        Ok(())
    } else {
        Err(Broken::Content)
    }
}

/// The entry is the one of this push, and says the same of it.
fn entry_holds(receipt: &Receipt) -> Result<(), Broken> {
    let entry = &receipt.entry;
    let Ok(Value::Object(mut map)) = serde_json::to_value(entry) else {
        return Err(Broken::EntryHash);
    };
    map.remove("hash");
    if hash_of(&map) != entry.hash {
        return Err(Broken::EntryHash);
    }
    let act = format!("push_{}", receipt.state);
    if !Act::VERDICTS.iter().any(|known| known.as_str() == act) {
        return Err(Broken::Claims(format!(
            "a push that ended as {}",
            receipt.state
        )));
    }
    let device = receipt.evidence.as_ref().map(|one| one.device.as_str());
    let fact = |name: &str| entry.facts.get(name).and_then(Value::as_str);
    let proof_hash = receipt
        .evidence
        .as_ref()
        .map(|one| sha256_text(one.proof.as_bytes()));
    let told = [
        ("act", Some(entry.act.as_str()), Some(act.as_str())),
        (
            "store",
            Some(entry.store.as_str()),
            Some(receipt.store.as_str()),
        ),
        ("push", entry.push.as_deref(), Some(receipt.push.as_str())),
        ("user", entry.user.as_deref(), Some(receipt.user.as_str())),
        ("device", entry.device.as_deref(), device),
        ("reason", fact("reason"), Some(receipt.reason.as_str())),
        ("kind", fact("kind"), Some(receipt.kind.as_str())),
        (
            "relying_party",
            fact("relying_party"),
            Some(receipt.relying_party.as_str()),
        ),
        (
            "content_hash",
            fact("content_hash"),
            Some(receipt.content_hash.as_str()),
        ),
        ("proof_hash", fact("proof_hash"), proof_hash.as_deref()),
        (
            "factors",
            fact("factors"),
            receipt.assurance.map(|worth| worth.factors.as_str()),
        ),
        ("created_at", fact("created_at"), Some(&receipt.created_at)),
        ("expires_at", fact("expires_at"), Some(&receipt.expires_at)),
        ("ended_at", fact("ended_at"), Some(&receipt.ended_at)),
    ];
    match told.into_iter().find(|(_, entry, here)| entry != here) {
        // The device's part has words of its own.
        Some(("device" | "proof_hash", Some(_), None)) => Err(Broken::NoProof),
        Some(("device" | "proof_hash", None, Some(_))) => Err(Broken::IdleProof),
        Some((name, _, _)) => Err(Broken::Entry(name)),
        None => Ok(()),
    }
}

/// What the device signed is bound to everything that the receipt says, and said what the receipt tells.
fn proof_holds(receipt: &Receipt) -> Result<(), Broken> {
    let Some(Evidence {
        device,
        device_key,
        proof,
    }) = &receipt.evidence
    else {
        // An approved confirm push rests on nothing else; the end of a child instance decides a process push.
        let bare = receipt.kind == Kind::Confirm
            && matches!(receipt.state, PushState::Approved | PushState::Denied);
        return if bare { Err(Broken::NoProof) } else { Ok(()) };
    };
    let expected = Expected {
        device,
        store: &receipt.store,
        push: &receipt.push,
        nonce: &receipt.nonce,
        kind: receipt.kind,
        content_hash: &receipt.content_hash,
        // Whether the digits were right was judged when the answer came: nobody has them any more.
        code: None,
    };
    let proof =
        Proof::check(proof, device_key, &expected).map_err(|fault| Broken::Proof(fault.word()))?;
    let right = match receipt.state {
        PushState::Approved => proof.approves() && receipt.reason == "user_approved",
        PushState::Denied => {
            let reason = proof.reason.as_deref().unwrap_or("user_declined");
            !proof.approves() && receipt.reason == reason
        }
        PushState::Accepted
        | PushState::Pending
        | PushState::Opened
        | PushState::Expired
        | PushState::Cancelled
        | PushState::Failed
        | PushState::Completed => false,
    };
    if !right {
        return Err(Broken::Proof("it says something else"));
    }
    let worth = receipt.assurance;
    if worth.is_some_and(|worth| worth.phishing_resistant) {
        return Err(Broken::Claims("no approval resists phishing".to_owned()));
    }
    if worth.is_some_and(|worth| worth.factors == Factors::Multi) && proof.uv == "none" {
        return Err(Broken::Proof("the device did not verify its user"));
    }
    if receipt.match_required && proof.approves() && !proof.tells_code() {
        return Err(Broken::Proof("no code was typed"));
    }
    Ok(())
}
