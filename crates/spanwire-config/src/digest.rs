//! The digest of a state: order-free and incremental.
//!
//! LtHash with 1,024 lanes of 16 bits (Lewi, Kim, Maykov, Weis: "Securing Update Propagation with Homomorphic
//! Hashing", 2019) over BLAKE3 as its expandable hash. An element is expanded to 2,048 bytes; a state's sum is
//! the lane-wise sum of its elements modulo 2^16. So a change costs as much as itself, whatever the size of
//! the state, and equal content has an equal digest whatever the way to it.
//!
//! Owns: the arithmetic and the fold. Never: which elements are in a state.

use std::fmt;

/// Lanes of the sum.
const LANES: usize = 1024;

/// A folded digest: 32 bytes that name the content of a state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        f.write_str("..")
    }
}

/// The additive sum of a set of elements.
#[derive(Clone, PartialEq, Eq)]
pub struct LtHash {
    lanes: Box<[u16; LANES]>,
}

impl Default for LtHash {
    /// The sum of no elements: all lanes zero.
    fn default() -> Self {
        LtHash { lanes: Box::new([0; LANES]) }
    }
}

impl fmt::Debug for LtHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LtHash({:04x} {:04x} ..)", self.lanes[0], self.lanes[1])
    }
}

/// Expands one element: BLAKE3 in extendable-output form over key length (u16, big-endian), key, flags (u16,
/// big-endian) and the BLAKE3 hash of the value.
fn expand(key: &[u8], flags: u16, value_hash: &[u8; 32]) -> [u8; 2 * LANES] {
    let mut hasher = blake3::Hasher::new();
    // Keys are at most 1,024 bytes (`Key`), so the cast loses nothing.
    hasher.update(&(key.len() as u16).to_be_bytes());
    hasher.update(key);
    hasher.update(&flags.to_be_bytes());
    hasher.update(value_hash);
    let mut out = [0; 2 * LANES];
    hasher.finalize_xof().fill(&mut out);
    out
}

/// By index, here and where it is called: unoptimised, in the tests, iterators over pairs take a quarter of all time.
fn lane(element: &[u8; 2 * LANES], n: usize) -> u16 {
    u16::from_le_bytes([element[2 * n], element[2 * n + 1]])
}

impl LtHash {
    /// Adds an element.
    pub fn add(&mut self, key: &[u8], flags: u16, value_hash: &[u8; 32]) {
        let element = expand(key, flags, value_hash);
        let mut n = 0;
        while n < LANES {
            self.lanes[n] = self.lanes[n].wrapping_add(lane(&element, n));
            n += 1;
        }
    }

    /// Takes an element out again; it must have been added.
    pub fn remove(&mut self, key: &[u8], flags: u16, value_hash: &[u8; 32]) {
        let element = expand(key, flags, value_hash);
        let mut n = 0;
        while n < LANES {
            self.lanes[n] = self.lanes[n].wrapping_sub(lane(&element, n));
            n += 1;
        }
    }

    /// Folds to 32 bytes: BLAKE3 of the lanes (little-endian, in order), the number of keys (u32,
    /// big-endian) and the number of bytes in keys and values (u64, big-endian).
    pub fn fold(&self, keys: u32, bytes: u64) -> Digest {
        let mut lanes = [0; 2 * LANES];
        let mut n = 0;
        while n < LANES {
            let [low, high] = self.lanes[n].to_le_bytes();
            (lanes[2 * n], lanes[2 * n + 1]) = (low, high);
            n += 1;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&lanes).update(&keys.to_be_bytes()).update(&bytes.to_be_bytes());
        Digest(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Element = (Vec<u8>, u16, [u8; 32]);

    fn sum(elements: &[Element]) -> LtHash {
        let mut hash = LtHash::default();
        elements.iter().for_each(|(k, f, v)| hash.add(k, *f, v));
        hash
    }

    fn elements() -> impl Strategy<Value = Vec<Element>> {
        let element = (proptest::collection::vec(any::<u8>(), 1..20), any::<u16>(), any::<[u8; 32]>());
        proptest::collection::vec(element, 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_sum_does_not_depend_on_the_order(mut set in elements()) {
            let forward = sum(&set);
            set.reverse();
            prop_assert_eq!(forward, sum(&set));
        }

        #[test]
        fn what_is_taken_out_leaves_no_trace(set in elements(), extra in elements()) {
            let mut hash = sum(&set);
            extra.iter().for_each(|(k, f, v)| hash.add(k, *f, v));
            extra.iter().rev().for_each(|(k, f, v)| hash.remove(k, *f, v));
            prop_assert_eq!(hash, sum(&set));
        }
    }

    #[test]
    fn every_part_of_an_element_counts() {
        let base = (b"ab".to_vec(), 1, [7; 32]);
        let others = [
            (b"ac".to_vec(), 1, [7; 32]),
            (b"ab".to_vec(), 2, [7; 32]),
            (b"ab".to_vec(), 1, [8; 32]),
            (b"abx".to_vec(), 1, [7; 32]),
        ];
        for other in others {
            assert_ne!(sum(std::slice::from_ref(&base)), sum(&[other]));
        }
        assert_ne!(sum(&[]).fold(0, 0), sum(&[]).fold(1, 0));
        assert_ne!(sum(&[]).fold(0, 0), sum(&[]).fold(0, 1));
    }
}
