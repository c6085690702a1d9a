//! The Merkle tree of RFC 6962, section 2.1, with SHA-256: one hash over an ordered list, and paths which show that an entry is in it, at its place.

use aws_lc_rs::digest::{Context, SHA256, digest};

/// A hash of the tree.
pub(crate) type Hash = [u8; 32];

fn hashed(prefix: &[u8], parts: [&[u8]; 2]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(prefix);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The hash of an entry.
pub(crate) fn leaf_hash(entry: &[u8]) -> Hash {
    hashed(&[0], [entry, &[]])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    hashed(&[1], [left, right])
}

/// How many of `size` leaves, two or more, are in the left half: the largest power of two below it.
fn left(size: u64) -> Option<u64> {
    size.checked_next_power_of_two().map(|power| power / 2)
}

fn halves(leaves: &[Hash]) -> (&[Hash], &[Hash]) {
    leaves.split_at(leaves.len().next_power_of_two() / 2)
}

/// The root of the tree over leaves, in their order.
pub(crate) fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => {
            let mut empty = [0; 32];
            empty.copy_from_slice(digest(&SHA256, &[]).as_ref());
            empty
        }
        [leaf] => *leaf,
        _ => {
            let (left, right) = halves(leaves);
            node(&root(left), &root(right))
        }
    }
}

/// The path from a leaf to the root, from below (RFC 6962, 2.1.1); nothing where there is no such leaf.
pub(crate) fn path(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() < 2 || index >= leaves.len() {
        return Vec::new();
    }
    let (left, right) = halves(leaves);
    let (mut path, other) = if index < left.len() {
        (path(index, left), root(right))
    } else {
        (path(index - left.len(), right), root(left))
    };
    path.push(other);
    path
}

/// The root of a tree of `size` leaves in which this leaf stands at `index`, by its path. `None` where no such path has this length.
pub(crate) fn root_of(index: u64, size: u64, leaf: &Hash, path: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    if size == 1 {
        return path.is_empty().then_some(*leaf);
    }
    let (other, below) = path.split_last()?;
    let left = left(size)?;
    Some(if index < left {
        node(&root_of(index, left, leaf, below)?, other)
    } else {
        node(other, &root_of(index - left, size - left, leaf, below)?)
    })
}

#[cfg(test)]
mod tests {
    use super::{Hash, leaf_hash, path, root, root_of};
    use proptest::prelude::*;

    // The tree that RFC 6962's reference implementation and its successors test with: entries, and the root of the first n of them
    // (google/certificate-transparency, cpp/merkletree/merkle_tree_test.cc; transparency-dev/merkle, testonly/constants.go).
    const ENTRIES: [&str; 8] = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    const ROOTS: [&str; 9] = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    // Paths of the same tests (cpp/merkletree/merkle_tree_test.cc; transparency-dev/merkle, proof/verify_test.go): place, size, path.
    const PATHS: [(usize, usize, &[&str]); 5] = [
        (0, 1, &[]),
        (
            0,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            5,
            8,
            &[
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (
            2,
            3,
            &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
        ),
        (
            1,
            5,
            &[
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        let pair = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(pair).collect()
    }

    fn hash(hex: &str) -> Hash {
        bytes(hex).try_into().unwrap()
    }

    fn tree(size: usize) -> Vec<Hash> {
        let entries = ENTRIES.iter().take(size);
        entries.map(|entry| leaf_hash(&bytes(entry))).collect()
    }

    #[test]
    fn must_32_the_published_trees_have_their_roots_and_paths() {
        for (size, expected) in ROOTS.iter().enumerate() {
            assert_eq!(root(&tree(size)), hash(expected), "{size}");
        }
        for (index, size, expected) in PATHS {
            let expected: Vec<_> = expected.iter().map(|one| hash(one)).collect();
            assert_eq!(path(index, &tree(size)), expected, "{index} of {size}");
            let leaf = tree(size)[index];
            let found = root_of(index as u64, size as u64, &leaf, &expected);
            assert_eq!(found, Some(hash(ROOTS[size])), "{index} of {size}");
        }
    }

    proptest! {
        #[test]
        fn must_32_a_path_leads_to_the_root_from_its_own_leaf_at_its_own_place_and_from_nothing_else(
            size in 1_usize..80, at in 0_usize..80, other in 0_usize..80, bit in 0_usize..256, step in 0_usize..8,
        ) {
            let index = at % size;
            let leaves: Vec<_> = (0..size).map(|n| leaf_hash(&n.to_be_bytes())).collect();
            let (top, path) = (root(&leaves), path(index, &leaves));
            let (place, full) = (index as u64, size as u64);
            prop_assert_eq!(root_of(place, full, &leaves[index], &path), Some(top));
            // Another leaf, one flipped bit, a longer or a shorter path, another place.
            let other = other % size;
            if other != index {
                prop_assert_ne!(root_of(place, full, &leaves[other], &path), Some(top));
                prop_assert_ne!(root_of(other as u64, full, &leaves[index], &path), Some(top));
            }
            let mut flipped = leaves[index];
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(root_of(place, full, &flipped, &path), Some(top));
            let mut longer = path.clone();
            longer.push(top);
            prop_assert_eq!(root_of(place, full, &leaves[index], &longer), None);
            if !path.is_empty() {
                let mut bent = path.clone();
                bent[step % path.len()][bit / 8] ^= 1 << (bit % 8);
                prop_assert_ne!(root_of(place, full, &leaves[index], &bent), Some(top));
                prop_assert_eq!(root_of(place, full, &leaves[index], &path[1..]), None);
            }
            prop_assert_eq!(root_of(full, full, &leaves[index], &path), None);
            prop_assert_eq!(root_of(place, u64::MAX, &leaves[index], &path), None);
        }
    }
}
