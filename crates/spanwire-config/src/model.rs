//! Keys, entries, states and changes of one namespace.
//!
//! A [`State`] is an ordered map that carries its own digest. A clone costs nothing and shares all that does
//! not change afterwards, so a reader can keep a whole revision while newer ones are built.
//!
//! Owns: content, counts and limits. Never: positions or messages.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Digest, LtHash};

/// A key: 1 to 1,024 bytes, ordered by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

/// A key that is empty or too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a key has 1 to {max} bytes, not {0}", max = Key::MAX)]
pub struct KeyError(pub usize);

impl Key {
    /// Longest key, in bytes.
    pub const MAX: usize = 1024;

    /// Checks and copies.
    ///
    /// # Errors
    /// When it is empty or longer than [`Key::MAX`].
    pub fn new(key: impl AsRef<[u8]>) -> Result<Key, KeyError> {
        let key = key.as_ref();
        if key.is_empty() || key.len() > Key::MAX {
            return Err(KeyError(key.len()));
        }
        Ok(Key(key.into()))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// What a key holds: flags of the application's, and a value. An empty value is a value.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    flags: u16,
    value: Bytes,
    hash: [u8; 32],
}

impl Entry {
    /// An entry. The value is kept as it is given; what is a slice of something larger keeps all of that.
    pub fn new(flags: u16, value: impl Into<Bytes>) -> Entry {
        let value = value.into();
        let hash = *blake3::hash(&value).as_bytes();
        Entry { flags, value, hash }
    }

    /// The flags.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// The value.
    pub fn value(&self) -> &Bytes {
        &self.value
    }

    /// BLAKE3 of the value.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({:#x}, {} bytes)", self.flags, self.value.len())
    }
}

/// One operation of a change set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The key gets this entry.
    Put(Entry),
    /// The key goes; nothing happens if it is absent.
    Delete,
}

/// Puts and deletes that are applied together, at most one for each key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChangeSet(BTreeMap<Key, Change>);

impl ChangeSet {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The key is to get this value; replaces what was said of the key before.
    pub fn put(&mut self, key: Key, flags: u16, value: impl Into<Bytes>) {
        self.set(key, Change::Put(Entry::new(flags, value)));
    }

    /// The key is to go; replaces what was said of the key before.
    pub fn delete(&mut self, key: Key) {
        self.set(key, Change::Delete);
    }

    /// One operation; replaces what was said of the key before.
    pub fn set(&mut self, key: Key, change: Change) {
        self.0.insert(key, change);
    }

    /// What is said of a key.
    pub fn get(&self, key: &Key) -> Option<&Change> {
        self.0.get(key)
    }

    /// In key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Change)> {
        self.0.iter()
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.keys()
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes over the operations of a later set.
    pub fn merge(&mut self, later: &ChangeSet) {
        for (key, change) in later.iter() {
            self.set(key.clone(), change.clone());
        }
    }
}

/// Bounds of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest value, in bytes. Default: 1 MiB.
    pub value: usize,
    /// Most keys. Default: 100,000.
    pub keys: u32,
    /// Most bytes in keys and values. Default: 64 MiB.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { value: 1 << 20, keys: 100_000, bytes: 64 << 20 }
    }
}

/// Which limit would be exceeded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OverLimit {
    /// One value is too large.
    #[error("the value of {key} has {size} bytes; the limit is {limit}")]
    Value {
        /// Whose value.
        key: Key,
        /// Its size, in bytes.
        size: usize,
        /// In bytes.
        limit: usize,
    },
    /// Too many keys.
    #[error("{keys} keys; the limit is {limit}")]
    Keys {
        /// So many.
        keys: u32,
        /// At most.
        limit: u32,
    },
    /// Too many bytes.
    #[error("{bytes} bytes in keys and values; the limit is {limit}")]
    Bytes {
        /// So many.
        bytes: u64,
        /// At most.
        limit: u64,
    },
}

impl Limits {
    /// Whether a state of this size is within them.
    ///
    /// # Errors
    /// Which one it exceeds.
    pub fn check(&self, keys: u32, bytes: u64) -> Result<(), OverLimit> {
        if keys > self.keys {
            return Err(OverLimit::Keys { keys, limit: self.keys });
        }
        if bytes > self.bytes {
            return Err(OverLimit::Bytes { bytes, limit: self.bytes });
        }
        Ok(())
    }

    /// Largest request of a client that a server with these limits takes, in bytes: a commit of all that they allow,
    /// with room for its framing.
    pub(crate) fn request(&self) -> u64 {
        self.bytes.saturating_add(16 * u64::from(self.keys)).saturating_add(1 << 20)
    }

    /// Whether all that is put could be within them.
    ///
    /// # Errors
    /// What would exceed them, whatever is there before.
    pub(crate) fn check_puts(&self, changes: &ChangeSet) -> Result<(), OverLimit> {
        self.check_values(changes)?;
        let (mut keys, mut bytes) = (0u32, 0u64);
        for (key, change) in changes.iter() {
            if let Change::Put(entry) = change {
                keys = keys.saturating_add(1);
                bytes = bytes.saturating_add((key.as_bytes().len() + entry.value.len()) as u64);
            }
        }
        self.check(keys, bytes)
    }

    /// Whether each value put is within them.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_values(&self, changes: &ChangeSet) -> Result<(), OverLimit> {
        for (key, change) in changes.iter() {
            if let Change::Put(entry) = change
                && entry.value.len() > self.value
            {
                return Err(OverLimit::Value {
                    key: key.clone(),
                    size: entry.value.len(),
                    limit: self.value,
                });
            }
        }
        Ok(())
    }
}

/// Entries in a chunk before it splits into two halves. A change copies one chunk and the list of chunks: half of it is
/// dearer for states of 10,000 keys and more, and no cheaper for small ones.
const CHUNK: usize = 128;

/// Shared one by one, so that a copy of a chunk counts up once for each.
type Chunk = Vec<Arc<(Key, Entry)>>;

/// The content of a namespace: an ordered map with its counts and digest.
///
/// Sorted chunks behind shared pointers: a clone is O(1), a change of a shared state copies one chunk and one
/// pointer for each other chunk.
#[derive(Clone, Default)]
pub struct State {
    /// Invariant: no chunk is empty, and keys rise within and across chunks.
    chunks: Arc<Vec<Arc<Chunk>>>,
    keys: u32,
    bytes: u64,
    sum: Arc<LtHash>,
}

impl State {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Index of the chunk that holds `key` or would.
    fn chunk_of(&self, key: &[u8]) -> usize {
        self.chunks
            .partition_point(|chunk| chunk.first().is_some_and(|first| first.0.as_bytes() <= key))
            .saturating_sub(1)
    }

    fn find(&self, key: &[u8]) -> Option<(usize, Result<usize, usize>)> {
        let at = self.chunk_of(key);
        let chunk = self.chunks.get(at)?;
        Some((at, chunk.binary_search_by(|at| at.0.as_bytes().cmp(key))))
    }

    /// What `key` holds.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<&Entry> {
        let (at, Ok(index)) = self.find(key.as_ref())? else { return None };
        self.chunks.get(at)?.get(index).map(|at| &at.1)
    }

    /// Sets `key`; returns what it held.
    pub fn put(&mut self, key: Key, entry: Entry) -> Option<Entry> {
        Arc::make_mut(&mut self.sum).add(key.as_bytes(), entry.flags, &entry.hash);
        self.bytes += (key.as_bytes().len() + entry.value.len()) as u64;
        let Some((at, found)) = self.find(key.as_bytes()) else {
            Arc::make_mut(&mut self.chunks).push(Arc::new(vec![Arc::new((key, entry))]));
            self.keys += 1;
            return None;
        };
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[at]);
        match found {
            Ok(index) => {
                let old = std::mem::replace(&mut chunk[index], Arc::new((key, entry)));
                self.forget(&old);
                Some(entry_of(old))
            }
            Err(index) => {
                chunk.insert(index, Arc::new((key, entry)));
                self.keys += 1;
                if chunk.len() > CHUNK {
                    let upper = chunk.split_off(CHUNK / 2);
                    // Where keys come in order it does not grow again.
                    chunk.shrink_to_fit();
                    chunks.insert(at + 1, Arc::new(upper));
                }
                None
            }
        }
    }

    /// Takes `key` out; returns what it held.
    pub fn remove(&mut self, key: impl AsRef<[u8]>) -> Option<Entry> {
        let (at, Ok(index)) = self.find(key.as_ref())? else { return None };
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[at]);
        let old = chunk.remove(index);
        if chunk.is_empty() {
            chunks.remove(at);
        } else if let Some(next) = chunks.get(at + 1)
            && chunks[at].len() + next.len() <= CHUNK / 2
        {
            // So that many deletes do not leave many small chunks.
            let next = chunks.remove(at + 1);
            Arc::make_mut(&mut chunks[at]).extend(next.iter().cloned());
        }
        self.keys -= 1;
        self.forget(&old);
        Some(entry_of(old))
    }

    fn forget(&mut self, (key, old): &(Key, Entry)) {
        Arc::make_mut(&mut self.sum).remove(key.as_bytes(), old.flags, &old.hash);
        self.bytes -= (key.as_bytes().len() + old.value.len()) as u64;
    }

    /// Applies all of `changes`.
    pub fn apply(&mut self, changes: &ChangeSet) {
        for (key, change) in changes.iter() {
            match change {
                Change::Put(entry) => drop(self.put(key.clone(), entry.clone())),
                Change::Delete => drop(self.remove(key.as_bytes())),
            }
        }
    }

    /// All entries, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().map(|at| (&at.0, &at.1)))
    }

    /// Entries from `key` on, in key order, found without a look at those before.
    pub fn iter_from(&self, key: impl AsRef<[u8]>) -> impl Iterator<Item = (&Key, &Entry)> {
        let (at, found) = self.find(key.as_ref()).unwrap_or((0, Ok(0)));
        let first = found.unwrap_or_else(|before| before);
        self.chunks.iter().skip(at).flat_map(|chunk| chunk.iter()).skip(first).map(|at| (&at.0, &at.1))
    }

    /// Number of keys.
    pub fn keys(&self) -> u32 {
        self.keys
    }

    /// Bytes in keys and values.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// The digest of the content, kept up to date by every change.
    pub fn digest(&self) -> Digest {
        self.sum.fold(self.keys, self.bytes)
    }

    /// The digest computed anew from every entry, values included: for checks of memory and disk.
    pub fn recompute(&self) -> Digest {
        let (mut sum, mut keys, mut bytes) = (LtHash::default(), 0, 0);
        for (key, entry) in self.iter() {
            sum.add(key.as_bytes(), entry.flags, blake3::hash(&entry.value).as_bytes());
            keys += 1;
            bytes += (key.as_bytes().len() + entry.value.len()) as u64;
        }
        sum.fold(keys, bytes)
    }

    /// The changes that lead from here to `to`. Of states that one came from the other by a few changes only the
    /// chunks that differ are looked at.
    pub fn diff(&self, to: &State) -> ChangeSet {
        let mut changes = ChangeSet::new();
        let (mut old, mut new) = (Walk::of(self), Walk::of(to));
        loop {
            Walk::skip_shared(&mut old, &mut new);
            let order = match (old.peek(), new.peek()) {
                (None, None) => return changes,
                (Some(a), Some(b)) if std::ptr::eq(a, b) => {
                    old.next();
                    new.next();
                    continue;
                }
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let gone = if order.is_le() { old.next() } else { None };
            let come = if order.is_ge() { new.next() } else { None };
            match (gone, come) {
                (Some((key, _)), None) => changes.delete(key.clone()),
                (Some((_, a)), Some((_, b))) if a == b => {}
                (_, Some((key, entry))) => changes.set(key.clone(), Change::Put(entry.clone())),
                (None, None) => {}
            }
        }
    }

    /// `changes` without what would change nothing here.
    pub fn effective(&self, changes: &ChangeSet) -> ChangeSet {
        let mut kept = ChangeSet::new();
        for (key, change) in changes.iter() {
            let same = match (self.get(key.as_bytes()), change) {
                (Some(old), Change::Put(new)) => old == new,
                (None, Change::Delete) => true,
                _ => false,
            };
            if !same {
                kept.set(key.clone(), change.clone());
            }
        }
        kept
    }
}

fn entry_of(old: Arc<(Key, Entry)>) -> Entry {
    Arc::try_unwrap(old).map_or_else(|shared| shared.1.clone(), |(_, entry)| entry)
}

/// The entries of a state in order, from a place on.
struct Walk<'s> {
    /// Chunks from the one it is in on.
    chunks: &'s [Arc<Chunk>],
    /// Index of the next entry in the first of them.
    at: usize,
}

impl<'s> Walk<'s> {
    fn of(state: &'s State) -> Walk<'s> {
        Walk { chunks: &state.chunks, at: 0 }
    }

    fn peek(&self) -> Option<&'s (Key, Entry)> {
        self.chunks.first()?.get(self.at).map(|at| &**at)
    }

    fn next(&mut self) -> Option<&'s (Key, Entry)> {
        let (first, rest) = self.chunks.split_first()?;
        let next = first.get(self.at).map(|at| &**at);
        self.at += 1;
        if self.at >= first.len() {
            (self.chunks, self.at) = (rest, 0);
        }
        next
    }

    /// Both go on behind chunks that both have, if both are before them.
    fn skip_shared(a: &mut Walk<'s>, b: &mut Walk<'s>) {
        while let (([x, rest_a @ ..], 0), ([y, rest_b @ ..], 0)) = ((a.chunks, a.at), (b.chunks, b.at))
            && Arc::ptr_eq(x, y)
        {
            (a.chunks, b.chunks) = (rest_a, rest_b);
        }
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.keys == other.keys && self.bytes == other.bytes && self.iter().eq(other.iter())
    }
}

impl Eq for State {}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State({} keys, {} bytes, {:?})", self.keys, self.bytes, self.digest())
    }
}

impl FromIterator<(Key, Entry)> for State {
    fn from_iter<I: IntoIterator<Item = (Key, Entry)>>(entries: I) -> Self {
        let mut state = State::new();
        for (key, entry) in entries {
            state.put(key, entry);
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u16) -> Key {
        Key::new(format!("k{n:05}")).expect("short")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_state_is_an_ordered_map_whose_digest_is_that_of_its_content(
            ops in proptest::collection::vec((any::<u16>(), 0u8..4), 0..600)
        ) {
            let (mut state, mut model) = (State::new(), BTreeMap::new());
            for (n, op) in ops {
                let k = key(n % 400);
                if op == 0 {
                    prop_assert_eq!(state.remove(k.as_bytes()), model.remove(&k));
                } else {
                    let entry = Entry::new(u16::from(op), vec![op; usize::from(op)]);
                    prop_assert_eq!(state.put(k.clone(), entry.clone()), model.insert(k, entry));
                }
            }
            prop_assert!(state.iter().eq(model.iter()));
            for from in [key(0), key(57), key(199), key(400)].iter().chain(model.keys().nth(model.len() / 2)) {
                prop_assert!(state.iter_from(from.as_bytes()).eq(model.range(from.clone()..)));
            }
            prop_assert!(state.iter().all(|(k, e)| state.get(k.as_bytes()) == Some(e)));
            prop_assert_eq!(state.keys() as usize, model.len());
            prop_assert_eq!(state.digest(), state.recompute());
        }

        #[test]
        fn the_difference_leads_from_one_state_to_the_other(
            a in proptest::collection::btree_map(0u16..50, 0u8..3, 0..40),
            b in proptest::collection::btree_map(0u16..50, 0u8..3, 0..40),
        ) {
            let make = |m: BTreeMap<u16, u8>| -> State {
                m.into_iter().map(|(k, v)| (key(k), Entry::new(0, vec![v]))).collect()
            };
            let (mut from, to) = (make(a), make(b));
            let changes = from.diff(&to);
            prop_assert_eq!(from.effective(&changes), changes.clone());
            from.apply(&changes);
            prop_assert_eq!(&from, &to);
            prop_assert_eq!(from.digest(), to.digest());
            prop_assert!(from.diff(&to).is_empty());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn states_that_share_chunks_differ_by_exactly_what_was_changed(
            ops in proptest::collection::vec((0u16..1000, 0u8..3), 0..300)
        ) {
            let from: State = (0..1000).step_by(2).map(|n| (key(n), Entry::new(0, "x"))).collect();
            let mut to = from.clone();
            for (n, op) in ops {
                match op {
                    0 => drop(to.remove(key(n).as_bytes())),
                    op => drop(to.put(key(n), Entry::new(0, vec![b'w' + op]))),
                }
            }
            // Without a chunk that both have.
            let apart: State = from.iter().map(|(k, e)| (k.clone(), e.clone())).collect();
            prop_assert_eq!(from.diff(&to), apart.diff(&to));
            prop_assert_eq!(to.diff(&from), to.diff(&apart));
            let mut back = to.clone();
            back.apply(&to.diff(&from));
            prop_assert_eq!(back, from);
        }
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut state: State = (0..1000).map(|n| (key(n), Entry::new(0, "x"))).collect();
        let pinned = state.clone();
        let before = pinned.digest();
        (0..1000).step_by(3).for_each(|n| drop(state.remove(key(n).as_bytes())));
        state.put(key(1), Entry::new(0, "y"));
        assert_eq!((pinned.keys(), pinned.digest(), pinned.recompute()), (1000, before, before));
        assert_ne!(state.digest(), before);
    }

    #[test]
    fn keys_are_checked() {
        assert_eq!(Key::new(""), Err(KeyError(0)));
        assert!(Key::new([b'x'; 1024]).is_ok());
        assert_eq!(Key::new([b'x'; 1025]), Err(KeyError(1025)));
    }

    #[test]
    fn limits_name_what_is_over() {
        let limits = Limits { value: 3, keys: 2, bytes: 10 };
        let mut changes = ChangeSet::new();
        changes.put(key(1), 0, "1234");
        assert!(matches!(limits.check_values(&changes), Err(OverLimit::Value { size: 4, .. })));
        assert!(matches!(limits.check(3, 0), Err(OverLimit::Keys { .. })));
        assert!(matches!(limits.check(2, 11), Err(OverLimit::Bytes { .. })));
        assert_eq!(limits.check(2, 10), Ok(()));
    }
}
