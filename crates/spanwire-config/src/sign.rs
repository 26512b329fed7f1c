//! Signatures of HEADs: Ed25519 over all bytes of a HEAD before its signature, the key's number included.
//!
//! A cluster has keys or it has none. With keys, who signs holds one secret; who verifies holds one or more
//! public ones, so that a key can be replaced: the new public key goes to every node first, then the secret
//! changes, then the old public key is taken away.
//!
//! Key files are lines of text: `spanwire-secret ID HEX` and `spanwire-public ID HEX`, 32 bytes in hex; `#`
//! begins a comment. ID is a number from 1. A line `spanwire-revoked ID HEX` beside public ones says that nothing
//! is believed of that key any more, not even what was accepted under it before.
//!
//! Owns: keys, signing and checking. Never: randomness that was not passed in; accepts what is not signed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::Head;
use crate::position::Signature;

/// Most public keys of one ring.
pub const MAX_KEYS: usize = 16;
/// Most revoked keys of one ring.
pub const MAX_REVOKED: usize = 1024;

/// What is wrong with a key file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// A line that is no key.
    #[error("line {line}: {why}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No key of the kind that was asked for, or more than may be.
    #[error("{0}")]
    Count(&'static str),
}

/// A secret key, its number, and the right to sign.
#[derive(Clone)]
pub struct Secret {
    id: u32,
    key: SigningKey,
}

impl fmt::Debug for Secret {
    /// The number alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.id)
    }
}

impl Secret {
    /// From 32 random bytes. `id` is from 1; 0 means *unsigned* in a HEAD, and becomes 1.
    pub fn from_seed(id: u32, seed: &[u8; 32]) -> Secret {
        Secret { id: id.max(1), key: SigningKey::from_bytes(seed) }
    }

    /// A new one, from the system's randomness.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn generate(id: u32) -> std::io::Result<Secret> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(std::io::Error::other)?;
        Ok(Secret::from_seed(id, &seed))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Signs: sets `key_id` and `sig`.
    pub fn sign(&self, head: &mut Head) {
        head.key_id = self.id;
        head.sig = Signature(self.key.sign(&signed_bytes(head)).to_bytes());
    }

    /// The ring that accepts what this signs, and nothing else.
    pub fn public(&self) -> Keyring {
        Keyring { keys: BTreeMap::from([(self.id, self.key.verifying_key())]), ..Keyring::default() }
    }

    /// As a key file, for permissions 0600.
    pub fn to_file(&self) -> String {
        format!("spanwire-secret {} {}\n", self.id, hex(&self.key.to_bytes()))
    }

    /// The one secret of a key file.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn from_file(text: &str) -> Result<Secret, KeyFileError> {
        let mut found = lines(text, &["spanwire-secret"])?;
        match (found.pop(), found.is_empty()) {
            (Some((.., id, seed)), true) => Ok(Secret::from_seed(id, &seed)),
            _ => Err(KeyFileError::Count("a secret key file holds one secret key")),
        }
    }
}

/// Public keys by number. Empty: nothing is checked, since the cluster has no keys.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    keys: BTreeMap<u32, VerifyingKey>,
    revoked: BTreeSet<[u8; 32]>,
}

/// A public key, so that it can be remembered under which one something was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// From its 32 bytes; `None` if they are none.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<PublicKey> {
        VerifyingKey::from_bytes(bytes).ok().filter(|key| !key.is_weak()).map(PublicKey)
    }

    /// Its 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Whether it signed this HEAD.
    pub fn signed(&self, head: &Head) -> bool {
        let (sig, bytes) = (ed25519_dalek::Signature::from_bytes(&head.sig.0), signed_bytes(head));
        // Strict: no signature has a second form, and no weak key passes.
        let judge = || self.0.verify_strict(&bytes, &sig).is_ok();
        #[cfg(feature = "testkit")]
        return judged::once([self.0.as_bytes(), &bytes, &head.sig.0], judge);
        #[cfg(not(feature = "testkit"))]
        judge()
    }
}

/// For simulated worlds, whose nodes all look at the same HEADs: what this thread has found of one is found again.
/// Nothing else can come of it, since it depends on these bytes alone.
#[cfg(feature = "testkit")]
mod judged {
    use std::cell::RefCell;
    use std::collections::HashMap;

    /// Then all is forgotten.
    const MOST: usize = 4_096;

    thread_local! {
        static KNOWN: RefCell<HashMap<[u8; 32], bool>> = RefCell::default();
    }

    pub(super) fn once(of: [&[u8]; 3], judge: impl FnOnce() -> bool) -> bool {
        let mut print = blake3::Hasher::new();
        // Two of the three have one length each, so no two triples are the same bytes.
        for part in of {
            print.update(part);
        }
        let print = *print.finalize().as_bytes();
        if let Some(known) = KNOWN.with_borrow(|known| known.get(&print).copied()) {
            return known;
        }
        let found = judge();
        KNOWN.with_borrow_mut(|known| {
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(print, found);
        });
        found
    }
}

impl fmt::Debug for Keyring {
    /// The numbers alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

impl Keyring {
    /// No keys: HEADs are not signed.
    pub fn new() -> Keyring {
        Keyring::default()
    }

    /// Whether nothing is checked. A ring whose keys were all revoked is not empty: it believes nobody.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.revoked.is_empty()
    }

    /// The numbers.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.keys.keys().copied()
    }

    /// Whether there is a key of this number.
    pub fn knows(&self, id: u32) -> bool {
        self.keys.contains_key(&id)
    }

    /// Accepts the keys of `other` too; its keys replace those of the same number. What either revoked is revoked.
    pub fn add(&mut self, other: &Keyring) {
        self.keys.extend(&other.keys);
        self.revoked.extend(&other.revoked);
        self.keys.retain(|_, key| !self.revoked.contains(key.as_bytes()));
    }

    /// Takes back the keys of `other`: nothing that they signed is believed any more.
    pub fn revoke(&mut self, other: &Keyring) {
        self.revoked.extend(other.keys.values().map(VerifyingKey::to_bytes));
        self.keys.retain(|_, key| !self.revoked.contains(key.as_bytes()));
    }

    /// Whether this key was taken back.
    pub fn has_revoked(&self, key: &PublicKey) -> bool {
        self.revoked.contains(&key.to_bytes())
    }

    /// Whether a HEAD is signed by a key of the ring. Without keys nothing is.
    pub fn verify(&self, head: &Head) -> bool {
        self.signer(head).is_some()
    }

    /// The key of the ring that signed a HEAD.
    pub fn signer(&self, head: &Head) -> Option<PublicKey> {
        self.keys.get(&head.key_id).map(|key| PublicKey(*key)).filter(|key| key.signed(head))
    }

    /// As a key file. What was revoked has lost its number and comes as 1.
    pub fn to_file(&self) -> String {
        let keys =
            self.keys.iter().map(|(id, key)| format!("spanwire-public {id} {}\n", hex(key.as_bytes())));
        keys.chain(self.revoked.iter().map(|key| format!("spanwire-revoked 1 {}\n", hex(key)))).collect()
    }

    /// The public keys of a key file: at least one, or one that was revoked.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn from_file(text: &str) -> Result<Keyring, KeyFileError> {
        let mut ring = Keyring::default();
        for (line, revoked, id, bytes) in lines(text, &["spanwire-public", "spanwire-revoked"])? {
            let Some(PublicKey(key)) = PublicKey::from_bytes(&bytes) else {
                return Err(KeyFileError::Line { line, why: "these bytes are no public key" });
            };
            if revoked == 1 {
                ring.revoked.insert(bytes);
            } else if ring.keys.insert(id, key).is_some() {
                return Err(KeyFileError::Line { line, why: "a second key of this number" });
            }
        }
        if ring.revoked.len() > MAX_REVOKED {
            return Err(KeyFileError::Count("more than 1,024 revoked keys"));
        }
        ring.keys.retain(|_, key| !ring.revoked.contains(key.as_bytes()));
        match ring.keys.len() {
            0 if ring.revoked.is_empty() => Err(KeyFileError::Count("no public key")),
            0..=MAX_KEYS => Ok(ring),
            _ => Err(KeyFileError::Count("more than 16 public keys")),
        }
    }
}

/// What a signature is over: all fields in their order, `key_id` included.
fn signed_bytes(head: &Head) -> Vec<u8> {
    let mut bytes = Vec::new();
    head.encode(&mut bytes);
    bytes.truncate(bytes.len() - head.sig.0.len());
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    if digits.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    out.iter_mut().zip(digits.chunks_exact(2)).for_each(|(byte, pair)| *byte = pair[0] << 4 | pair[1]);
    Some(out)
}

/// A line of a key file: its place from 1, which of the kinds it is, number, bytes.
type Line = (usize, usize, u32, [u8; 32]);

/// The keys of some kinds. Lines of another kind are an error, so that nobody hands out a secret in a file that was
/// meant to be public.
fn lines(text: &str, kinds: &[&str]) -> Result<Vec<Line>, KeyFileError> {
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let wrong = |why| KeyFileError::Line { line: i + 1, why };
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(word) = words.next() else { continue };
        let Some(kind) = kinds.iter().position(|kind| *kind == word) else {
            return Err(wrong("not a key of this kind"));
        };
        let id = words.next().and_then(|id| id.parse().ok()).filter(|id| *id > 0);
        let id = id.ok_or_else(|| wrong("the number of the key, from 1, is missing"))?;
        let bytes = words.next().and_then(unhex).ok_or_else(|| wrong("a key is 64 hex digits"))?;
        if words.next().is_some() {
            return Err(wrong("more than a key"));
        }
        found.push((i + 1, kind, id, bytes));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, Epoch, Id, Position};

    fn head() -> Head {
        Head {
            cluster: Id([1; 16]),
            namespace: "config".into(),
            position: Position { epoch: Epoch { number: 3, incarnation: Id([2; 16]) }, rev: 9 },
            prev_rev: 8,
            digest: Digest([3; 32]),
            keys: 4,
            bytes: 5,
            chain: [6; 32],
            audience: bytes::Bytes::new(),
            seq: 7,
            ..Head::default()
        }
    }

    #[test]
    fn a_signature_covers_every_field_and_only_the_right_key_passes() {
        let secret = Secret::from_seed(2, &[9; 32]);
        let ring = secret.public();
        let mut signed = head();
        secret.sign(&mut signed);
        assert!(ring.verify(&signed));
        let changes: [fn(&mut Head); 13] = [
            |h| h.cluster.0[0] ^= 1,
            |h| h.namespace.push('x'),
            |h| h.position.epoch.number += 1,
            |h| h.position.epoch.incarnation.0[15] ^= 1,
            |h| h.position.rev += 1,
            |h| h.prev_rev += 1,
            |h| h.digest.0[31] ^= 1,
            |h| h.keys += 1,
            |h| h.bytes += 1,
            |h| h.chain[0] ^= 1,
            |h| h.audience = bytes::Bytes::from_static(b"x"),
            |h| h.seq += 1,
            |h| h.key_id += 1,
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut other = signed.clone();
            change(&mut other);
            assert!(!ring.verify(&other), "field {i}");
        }
        for at in 0..64 {
            let mut other = signed.clone();
            other.sig.0[at] ^= 1;
            assert!(!ring.verify(&other), "byte {at} of the signature");
        }
        assert!(!Secret::from_seed(2, &[8; 32]).public().verify(&signed));
        assert!(!ring.verify(&head()), "unsigned");
        assert!(!Keyring::new().verify(&signed));
    }

    #[test]
    fn the_same_key_and_head_give_the_same_bytes() {
        let mut signed = head();
        Secret::from_seed(2, &[9; 32]).sign(&mut signed);
        let mut again = head();
        Secret::from_seed(2, &[9; 32]).sign(&mut again);
        assert_eq!(signed, again);
        // A test vector of RFC 8032 (7.1, test 1) shows that it is Ed25519 and nothing else.
        let seed = unhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").expect("hex");
        let ring = Secret::from_seed(1, &seed).public();
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(ring.to_file(), format!("spanwire-public 1 {public}\n"));
    }

    #[test]
    fn keys_survive_their_files_and_two_are_accepted_while_one_replaces_the_other() {
        let (old, new) = (Secret::from_seed(1, &[1; 32]), Secret::from_seed(2, &[2; 32]));
        let mut ring = old.public();
        ring.add(&new.public());
        let ring = Keyring::from_file(&format!("# both\n\n{}", ring.to_file())).expect("two keys");
        for secret in [&old, &new] {
            let secret = Secret::from_file(&secret.to_file()).expect("one key");
            let mut signed = head();
            secret.sign(&mut signed);
            assert!(ring.verify(&signed));
        }
        let mut signed = head();
        Secret::from_seed(3, &[1; 32]).sign(&mut signed);
        assert!(!ring.verify(&signed), "an unknown number");
        assert!(!format!("{old:?}").contains("01"), "a secret is not printed");
    }

    #[test]
    fn a_revoked_key_signs_nothing_whatever_else_says_that_it_does() {
        let (old, new) = (Secret::from_seed(1, &[1; 32]), Secret::from_seed(2, &[2; 32]));
        let text = format!(
            "{}{}{}",
            old.public().to_file(),
            new.public().to_file(),
            old.public().to_file().replace("public", "revoked")
        );
        let ring = Keyring::from_file(&text).expect("a ring");
        assert_eq!(ring.ids().collect::<Vec<_>>(), [2]);
        let mut signed = head();
        old.sign(&mut signed);
        let signer = old.public().signer(&signed).expect("it signed that");
        assert!(!ring.verify(&signed) && ring.has_revoked(&signer) && signer.signed(&signed));
        assert_eq!(PublicKey::from_bytes(&signer.to_bytes()), Some(signer));
        // Neither its file nor another ring brings it back.
        let mut again = Keyring::from_file(&ring.to_file()).expect("a ring");
        again.add(&old.public());
        assert_eq!(again, ring);
        let mut ring = old.public();
        ring.revoke(&old.public());
        assert!(!ring.is_empty() && ring.has_revoked(&signer), "without a key it believes nobody");
        // The file that keygen made holds this key alone, and is where it is revoked.
        let alone = Keyring::from_file(&old.public().to_file().replace("public", "revoked")).expect("a ring");
        assert_eq!(alone, ring);
    }

    #[test]
    fn what_is_no_key_file_is_refused_with_its_line() {
        let public = Secret::from_seed(1, &[1; 32]).public().to_file();
        let secret = Secret::from_seed(1, &[1; 32]).to_file();
        let line = |text: &str| match Keyring::from_file(text) {
            Err(KeyFileError::Line { line, .. }) => line,
            other => panic!("{other:?}"),
        };
        assert_eq!(line(&secret), 1, "a secret is no public key");
        assert_eq!(line(&format!("{public}{public}")), 2, "twice");
        assert_eq!(line(&format!("{public}spanwire-public 2 abcd")), 2);
        assert_eq!(line(&public.replace(" 1 ", " 0 ")), 1);
        assert_eq!(line(&format!("{} x", public.trim())), 1);
        assert_eq!(line(&format!("spanwire-public 1 {}", "0".repeat(64))), 1, "a weak key");
        assert!(matches!(Keyring::from_file(""), Err(KeyFileError::Count(_))));
        assert!(matches!(Secret::from_file(&format!("{secret}{secret}")), Err(KeyFileError::Count(_))));
    }
}
