//! One verdict over a batch of payments: the Merkle root that is shown and signed with its totals and payees, and the proof that one payment belongs to it, which
//! anybody can check without a server. The form: `docs/receipts.md`.

use crate::crypto::merkle::{Hash, leaf_hash, path, root, root_of};
use crate::domain::{PaymentItem, Payments, PushState};
use crate::id::PushId;
use crate::receipt::Receipt;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a payment is hashed as: its RFC 8785 form.
fn leaf(item: &PaymentItem) -> Hash {
    // Texts and objects of them: there is nothing that RFC 8785 could refuse.
    leaf_hash(&serde_json_canonicalizer::to_vec(item).unwrap_or_default())
}

fn leaves(items: &[PaymentItem]) -> Vec<Hash> {
    items.iter().map(leaf).collect()
}

fn text(hash: &Hash) -> String {
    URL_SAFE_NO_PAD.encode(hash)
}

fn hash(text: &str) -> Option<Hash> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// What is shown of a batch. `None` where an amount is none.
pub fn shown(items: &[PaymentItem]) -> Option<Payments> {
    Payments::of(items, text(&root(&leaves(items))))
}

/// That one payment belongs to a batch, at its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemProof {
    /// The push that asked for the batch.
    pub push: PushId,
    /// The place of the payment: 0 is the first.
    pub index: u64,
    /// How many payments there are.
    pub tree_size: u64,
    /// The payment.
    pub item: PaymentItem,
    /// The hash of its RFC 8785 form as a leaf, base64url.
    pub leaf_hash: String,
    /// From the leaf to the root (RFC 6962, 2.1.1): the other halves' hashes, from below.
    pub path: Vec<String>,
    /// The root that was shown and signed.
    pub root: String,
}

/// Why a payment is not shown to be one of those that were approved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ItemBroken {
    /// Not of the form.
    #[error("this is no proof of a payment: {0}")]
    Form(String),
    /// Nothing was approved.
    #[error("nothing was approved: the push ended as {0}")]
    NotApproved(PushState),
    /// The receipt holds the content by its hash only.
    #[error(
        "what was shown is in the receipt by its hash only: get it with its content (receipt get --content)"
    )]
    NoContent,
    /// It was no batch.
    #[error("the push asked for no batch of payments")]
    NoPayments,
    /// Of another push.
    #[error("the payment is of another push, {0}")]
    Push(PushId),
    /// Of a batch of another size.
    #[error("the payment is one of {found}, and {approved} were approved")]
    Size {
        /// What the proof says.
        found: u64,
        /// What was signed.
        approved: u64,
    },
    /// Of a batch with another root.
    #[error("the payment is of another batch: its root is not the one that was signed")]
    Root,
    /// The payment was changed.
    #[error("the payment was changed: its hash is another one")]
    Leaf,
    /// It is not there.
    #[error(
        "the payment is not among those that were approved: its path does not lead to the root"
    )]
    Path,
}

/// The proof that the payment at `index` belongs to `items`.
pub fn prove(push: &PushId, items: &[PaymentItem], index: usize) -> Option<ItemProof> {
    let item = items.get(index)?;
    let leaves = leaves(items);
    Some(ItemProof {
        push: push.clone(),
        index: index as u64,
        tree_size: items.len() as u64,
        item: item.clone(),
        leaf_hash: text(&leaf(item)),
        path: path(index, &leaves).iter().map(text).collect(),
        root: text(&root(&leaves)),
    })
}

impl ItemProof {
    /// Reads a proof. What is in the file and not in the proof would be believed without being proven, so there may be none.
    pub fn read(file: &str) -> Result<Self, ItemBroken> {
        let form = |error: serde_json::Error| ItemBroken::Form(error.to_string());
        let proof: Self = serde_json::from_str(file).map_err(form)?;
        let whole: Value = serde_json::from_str(file).map_err(form)?;
        let same = serde_json::to_value(&proof).is_ok_and(|read| read == whole);
        same.then_some(proof).ok_or_else(|| {
            ItemBroken::Form("it holds something that this program does not know".to_owned())
        })
    }

    /// Is the payment one of those that `push` has asked for?
    pub fn check(&self, push: &PushId, asked: &Payments) -> Result<(), ItemBroken> {
        if self.push != *push {
            return Err(ItemBroken::Push(self.push.clone()));
        }
        if self.tree_size != asked.count {
            return Err(ItemBroken::Size {
                found: self.tree_size,
                approved: asked.count,
            });
        }
        if self.root != asked.root {
            return Err(ItemBroken::Root);
        }
        let leaf = leaf(&self.item);
        if self.leaf_hash != text(&leaf) {
            return Err(ItemBroken::Leaf);
        }
        let path: Option<Vec<_>> = self.path.iter().map(|one| hash(one)).collect();
        let found = path.and_then(|path| root_of(self.index, self.tree_size, &leaf, &path));
        match found {
            Some(found) if text(&found) == asked.root => Ok(()),
            Some(_) | None => Err(ItemBroken::Path),
        }
    }
}

impl Receipt {
    /// Is this one of the payments that the receipt, which has been checked, says were approved?
    pub fn covers(&self, proof: &ItemProof) -> Result<(), ItemBroken> {
        if self.state != PushState::Approved {
            return Err(ItemBroken::NotApproved(self.state));
        }
        let content = self.content.as_ref().ok_or(ItemBroken::NoContent)?;
        let payments = content.get("payments").ok_or(ItemBroken::NoPayments)?;
        let payments =
            Payments::deserialize(payments).map_err(|error| ItemBroken::Form(error.to_string()))?;
        proof.check(&self.push, &payments)
    }
}

#[cfg(test)]
mod tests {
    use super::{ItemBroken, ItemProof, prove, shown};
    use crate::domain::{Payee, PaymentItem, Payments};
    use crate::id::PushId;

    fn items(count: usize) -> Vec<PaymentItem> {
        let item = |n: usize| PaymentItem {
            amount: format!("{n}.50"),
            currency: "EUR".to_owned(),
            payee: Payee {
                name: format!("Payee {}", n % 3),
                account: format!("IE{}", n % 3),
            },
            reference: n.is_multiple_of(2).then(|| format!("invoice-{n}")),
        };
        (0..count).map(item).collect()
    }

    fn batch(count: usize) -> (PushId, Vec<PaymentItem>, Payments) {
        let items = items(count);
        let shown = shown(&items).unwrap();
        (PushId::fresh(1), items, shown)
    }

    fn text(proof: &ItemProof) -> String {
        serde_json::to_string_pretty(proof).unwrap()
    }

    #[test]
    fn must_32_every_payment_of_a_batch_of_any_size_is_shown_to_be_in_it() {
        for count in (2..40).chain([64, 65, 1_000]) {
            let (push, items, approved) = batch(count);
            // Of the largest one the ends and the places around halves.
            let some = |index: &usize| {
                count < 100 || [0, 1, 255, 256, 511, 512, 767, 998, 999].contains(index)
            };
            for index in (0..count).filter(some) {
                let proof = prove(&push, &items, index).unwrap();
                let read = ItemProof::read(&text(&proof)).unwrap();
                assert_eq!(read.check(&push, &approved), Ok(()), "{index} of {count}");
            }
            assert_eq!(prove(&push, &items, count), None);
        }
    }

    #[test]
    fn must_32_what_is_changed_in_a_batch_is_another_batch() {
        let (push, whole, approved) = batch(11);
        let mut changes = Vec::new();
        let mut with = |change: &dyn Fn(&mut Vec<PaymentItem>)| {
            let mut other = whole.clone();
            change(&mut other);
            changes.push(other);
        };
        with(&|all| all[4].amount = "400.50".to_owned());
        with(&|all| all[4].amount = "4.5".to_owned());
        with(&|all| all[4].currency = "CHF".to_owned());
        with(&|all| all[4].payee.name = "Mallory".to_owned());
        with(&|all| all[4].payee.account = "IE00".to_owned());
        with(&|all| all[4].reference = None);
        with(&|all| drop(all.remove(4)));
        with(&|all| all.swap(3, 4));
        with(&|all| all.push(all[4].clone()));
        // Amounts that leave the total as it is.
        with(&|all| {
            all[3].amount = "4.50".to_owned();
            all[4].amount = "3.50".to_owned();
        });
        for other in changes {
            let shown = shown(&other).unwrap();
            assert_ne!(shown.root, approved.root);
            // Nothing of the other batch is in this one, also where the payment itself is the same.
            for index in [0, 4] {
                let proof = prove(&push, &other, index).unwrap();
                let refused = proof.check(&push, &approved).unwrap_err();
                let size = matches!(refused, ItemBroken::Size { .. });
                assert!(size || refused == ItemBroken::Root, "{refused}");
                let claimed = ItemProof {
                    tree_size: approved.count,
                    root: approved.root.clone(),
                    ..proof
                };
                assert_eq!(claimed.check(&push, &approved), Err(ItemBroken::Path));
            }
        }
    }

    #[test]
    fn must_32_a_proof_with_one_changed_byte_is_refused() {
        let (push, items, approved) = batch(13);
        let whole = text(&prove(&push, &items, 8).unwrap());
        let same: serde_json::Value = serde_json::from_str(&whole).unwrap();
        let mut refused = 0;
        for at in 0..whole.len() {
            for other in [whole.as_bytes()[at] ^ 1, b'A', b'0', b'7'] {
                let mut bytes = whole.clone().into_bytes();
                bytes[at] = other;
                let Ok(changed) = String::from_utf8(bytes) else {
                    continue;
                };
                // What says the very same in JSON is the very same.
                if serde_json::from_str::<serde_json::Value>(&changed).is_ok_and(|v| v == same) {
                    continue;
                }
                let held = ItemProof::read(&changed).map(|read| read.check(&push, &approved));
                assert!(!matches!(held, Ok(Ok(()))), "byte {at}: {changed}");
                refused += 1;
            }
        }
        assert!(refused > 2 * whole.len(), "{refused}");
        for added in [
            whole.replacen("\"amount\"", "\"note\": \"x\", \"amount\"", 1),
            whole.replacen("\"name\"", "\"title\": \"x\", \"name\"", 1),
            whole.replacen("\"push\"", "\"paid\": true, \"push\"", 1),
            whole.replacen("\"amount\"", "\"amount\": \"9\", \"amount\"", 1),
            whole.replacen("\"account\"", "\"name\": \"x\", \"account\"", 1),
            format!("{whole} {whole}"),
        ] {
            assert_ne!(added, whole);
            assert!(
                matches!(ItemProof::read(&added), Err(ItemBroken::Form(_))),
                "{added}"
            );
        }
        let proof = prove(&push, &items, 8).unwrap();
        let other = PushId::fresh(2);
        let refused = proof.check(&other, &approved);
        assert_eq!(refused, Err(ItemBroken::Push(push)));
    }
}
