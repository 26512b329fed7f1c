//! The state folder of a node or an authority: who it is, and the last verified revisions.
//!
//! Two slots are written in turn, each beside and then renamed, so that a crash at any moment leaves at least
//! one whole. The revision that the node acted on last keeps its slot until a later one takes that part; while newer
//! ones fail, a third slot takes its turn. A later HEAD of the newest revision (it is for more nodes, or for all) takes the
//! place of that. A slot is believed only if its own hash is right *and* its content has the digest that its HEAD names.
//! Files have permissions 0600, the folder 0700.
//!
//! With keys ([`Store::set_trust`]) a slot remembers under which one its HEAD was accepted, and is believed under that
//! one, also when it is no longer trusted for what is new; a revoked key voids it.
//!
//! Owns: the files of the folder, and the lock on it. Never: repairs what is damaged; it says what it found
//! and passes it over.

mod conflict;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::FlockOperation;

use crate::sign::{Keyring, PublicKey};
use crate::wire::{Reader, Write, decode_state, encode_state};
use crate::{Base, Head, Id, Position, State};

pub use conflict::Contradiction;
pub(crate) use conflict::Evidence;

const MAGIC: &[u8; 8] = b"spwcfg\x00\x02";
/// The form before this one, without the key.
const OLD_MAGIC: &[u8; 8] = b"spwcfg\x00\x01";
const IDENTITY: &[u8; 8] = b"spwnode\x01";
/// How long a lock may stay that a process before this one held: a command that it started has a copy until it runs.
const LET_GO: Duration = Duration::from_millis(500);
/// The last is in use only while the others hold the newest revision and the one acted on last.
const SLOTS: [&str; 3] = ["slot-a", "slot-b", "slot-c"];
const THIRD: usize = SLOTS.len() - 1;

/// Why a state folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file of it cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// Another process uses it.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    move |error| StoreError::Io { path: path.to_owned(), error }
}

/// Who a process is to its peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The node or server.
    pub id: Id,
    /// How often the folder was opened, this time included.
    pub opened: u32,
    /// [`opened`](Self::opened) in the high 32 bits, random low ones.
    pub boot: u64,
}

/// What the slots hold.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The newest revision that is whole.
    pub newest: Option<(Head, State)>,
    /// The one before it.
    pub before: Option<(Head, State)>,
    /// The one that the node acted on last ([`Store::set_applied`]); it may be the newest.
    pub applied: Option<(Head, State)>,
    /// What was found damaged and passed over, for people.
    pub damaged: Vec<String>,
}

/// An open state folder.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// Held for as long as the store is open.
    _lock: File,
    identity: Identity,
    /// What was found damaged when it was opened.
    damaged: Vec<String>,
    /// What each slot holds, as far as it is whole; believed or not.
    held: [Option<Base>; SLOTS.len()],
    /// The slot of the newest revision.
    newest: Option<usize>,
    /// Whose HEADs are believed.
    trust: Keyring,
}

impl Store {
    /// Opens the folder, makes it if it is absent, locks it, and counts the start in it durably.
    ///
    /// # Errors
    /// [`StoreError`]. Damage is none: a folder whose identity is damaged gets a new one, and
    /// [`damaged`](Self::damaged) says so.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        let path = dir.join("lock");
        let lock = private().truncate(false).open(&path).map_err(at(&path))?;
        let latest = Instant::now() + LET_GO;
        while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            match error {
                rustix::io::Errno::WOULDBLOCK if Instant::now() < latest => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                rustix::io::Errno::WOULDBLOCK => return Err(StoreError::InUse(dir.to_owned())),
                error => return Err(at(&path)(error.into())),
            }
        }
        let mut store = Store {
            dir: dir.to_owned(),
            _lock: lock,
            identity: fresh(None, 0)?,
            damaged: Vec::new(),
            held: Default::default(),
            newest: None,
            trust: Keyring::new(),
        };
        match store.known("identity", parse_identity) {
            Ok(Some((id, opened))) => store.identity = fresh(Some(id), opened)?,
            Ok(None) => {}
            Err(why) => store.damaged.push(format!("{why}; this is a new node to the others")),
        }
        if let Err(why) = store.known("applied", parse_applied) {
            store.damaged.push(format!("{why}; what the node acted on last is not known"));
        }
        store.damaged.extend(store.conflict_damage());
        store.write_identity()?;
        Ok(store)
    }

    /// Whose HEADs are believed, for [`load`](Self::load) and [`save`](Self::save). Without keys, which is so at first,
    /// everybody's.
    pub fn set_trust(&mut self, trust: Keyring) {
        self.trust = trust;
    }

    /// What was found damaged when the folder was opened, for people.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// What a small file says; `None` if there is no such file.
    fn known<T>(&self, name: &str, parse: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, String> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => {
                parse(&bytes).map(Some).ok_or_else(|| format!("{}: not as it was written", path.display()))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("{}: {e}", path.display())),
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Who this process is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Raises the start number above `boot`, durably: a server knew a higher one (the folder was put back).
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn raise_above(&mut self, boot: u64) -> Result<Identity, StoreError> {
        let known = self.identity.opened.max((boot >> 32) as u32);
        self.identity = fresh(Some(self.identity.id), known)?;
        self.write_identity()?;
        Ok(self.identity)
    }

    /// Takes a new node id, durably: this folder has a living twin.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn renew(&mut self) -> Result<Identity, StoreError> {
        self.identity = fresh(None, 0)?;
        self.write_identity()?;
        Ok(self.identity)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// One block, overwritten in place, so that a full disk does not matter.
    fn write_identity(&self) -> Result<(), StoreError> {
        let mut block = IDENTITY.to_vec();
        block.raw(&self.identity.id.0);
        block.u32(self.identity.opened);
        let hash = blake3::hash(&block);
        block.raw(hash.as_bytes());
        let path = self.path("identity");
        let new = !path.exists();
        let mut file = private().truncate(false).open(&path).map_err(at(&path))?;
        file.write_all(&block).and_then(|()| file.sync_all()).map_err(at(&path))?;
        if new { self.sync_dir() } else { Ok(()) }
    }

    fn sync_dir(&self) -> Result<(), StoreError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(at(&self.dir))
    }

    /// Writes a small file beside and renames it.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let (temp, path) = (self.path(&format!("{name}.new")), self.path(name));
        let mut file = private().truncate(true).open(&temp).map_err(at(&temp))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(&temp))?;
        fs::rename(&temp, &path).map_err(at(&path))?;
        self.sync_dir()
    }

    /// Reads the slots. `most` bounds the bytes in keys and values.
    pub fn load(&mut self, most: u64) -> Loaded {
        let (mut loaded, applied) = (Loaded::default(), self.applied());
        let mut found: Vec<(usize, Head, State)> = Vec::new();
        (self.held, self.newest) = Default::default();
        for (index, name) in SLOTS.iter().enumerate() {
            let path = self.path(name);
            let read = read_slot(&path, most).and_then(|slot| {
                self.held[index] = slot.as_ref().map(|slot| slot.head.base());
                slot.map(|slot| slot.believed(&self.trust)).transpose()
            });
            match read {
                Ok(Some((head, state))) => {
                    if applied == Some(head.base()) {
                        loaded.applied = Some((head.clone(), state.clone()));
                    }
                    found.push((index, head, state));
                }
                Ok(None) => {}
                Err(why) => loaded.damaged.push(format!("{}: {why}", path.display())),
            }
        }
        // Two incarnations of one epoch number have no order; a node never stores the second.
        found.sort_by(|a, b| a.1.position.partial_cmp(&b.1.position).unwrap_or(std::cmp::Ordering::Equal));
        if let Some((index, head, state)) = found.pop() {
            self.newest = Some(index);
            loaded.newest = Some((head, state));
        }
        loaded.before = found.pop().map(|(_, head, state)| (head, state));
        loaded
    }

    /// Writes a revision into a slot that holds neither the newest nor the one acted on last; a later HEAD of the newest
    /// one into the slot of that. When this returns, it is on disk.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the slots of those two are as they were, and the one written may be.
    pub fn save(&mut self, head: &Head, state: &State) -> Result<(), StoreError> {
        let mut bytes = MAGIC.to_vec();
        bytes.raw(&self.trust.signer(head).map_or([0; 32], |key| key.to_bytes()));
        head.encode(&mut bytes);
        let entries = encode_state(state);
        bytes.u64(entries.len() as u64);
        bytes.raw(&entries);
        let hash = blake3::hash(&bytes);
        bytes.raw(hash.as_bytes());
        let acted = self.acted();
        let renewed = self.newest.filter(|slot| self.held[*slot] == Some(head.base()));
        let slot = renewed.unwrap_or_else(|| self.free(acted));
        self.replace(SLOTS[slot], &bytes)?;
        (self.held[slot], self.newest) = (Some(head.base()), Some(slot));
        if slot != THIRD && acted != Some(THIRD) {
            // Nobody needs it any more. If it stays, it is taken away or written another time.
            let _ = self.remove(SLOTS[THIRD]);
            self.held[THIRD] = None;
        }
        Ok(())
    }

    /// The slot of the revision that the node acted on last.
    fn acted(&self) -> Option<usize> {
        let applied = self.applied()?;
        let holds = |slot: &usize| self.held[*slot] == Some(applied);
        self.newest.filter(holds).or_else(|| (0..SLOTS.len()).find(holds))
    }

    /// The slot to write next: of the first two, the one that holds nothing or the older, unless both are needed.
    fn free(&self, acted: Option<usize>) -> usize {
        let age = |slot: &usize| self.held[*slot].map(|base| (base.position.epoch.number, base.position.rev));
        let unneeded = |slot: &usize| self.newest != Some(*slot) && acted != Some(*slot);
        (0..THIRD).filter(unneeded).min_by_key(age).unwrap_or(THIRD)
    }

    /// Notes that the node acted on this revision.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn set_applied(&self, base: Base) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        bytes.u64(base.position.epoch.number);
        bytes.raw(&base.position.epoch.incarnation.0);
        bytes.u64(base.position.rev);
        bytes.raw(&base.chain);
        let hash = blake3::hash(&bytes);
        bytes.raw(hash.as_bytes());
        self.replace("applied", &bytes)
    }

    /// The revision that the node acted on last; `None` if that is not known.
    pub fn applied(&self) -> Option<Base> {
        self.known("applied", parse_applied).ok().flatten()
    }

    /// A note of the application's, such as which folder belongs to this one.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn set_note(&self, name: &str, text: &[u8]) -> Result<(), StoreError> {
        self.replace(name, text)
    }

    /// What [`set_note`](Self::set_note) wrote.
    pub fn note(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.path(name)).ok()
    }
}

/// The newest whole revision of a state folder, whoever uses it: for tools that look from outside.
pub fn peek(dir: &Path, most: u64) -> Option<(Head, State)> {
    let slots = SLOTS.iter().filter_map(|name| read_slot(&dir.join(name), most).ok().flatten());
    slots.map(|slot| (slot.head, slot.state)).reduce(|a, b| if a.0.position < b.0.position { b } else { a })
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    options
}

fn fresh(id: Option<Id>, opened_before: u32) -> Result<Identity, StoreError> {
    let random = || Id::random().map_err(at(Path::new("randomness")));
    let id = match id {
        Some(id) => id,
        None => random()?,
    };
    let opened = opened_before.saturating_add(1);
    let low = random()?.0;
    let low = u32::from_be_bytes([low[0], low[1], low[2], low[3]]);
    Ok(Identity { id, opened, boot: u64::from(opened) << 32 | u64::from(low) })
}

fn parse_identity(bytes: &[u8]) -> Option<(Id, u32)> {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut r = Reader::new(&bytes);
    let magic: [u8; 8] = r.array().ok()?;
    let (id, opened) = (Id(r.array().ok()?), r.u32().ok()?);
    let body = &bytes[..r.at()];
    (magic == *IDENTITY && r.array::<32>().ok()? == *blake3::hash(body).as_bytes()).then_some((id, opened))
}

fn parse_applied(bytes: &[u8]) -> Option<Base> {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut r = Reader::new(&bytes);
    let epoch = crate::Epoch { number: r.u64().ok()?, incarnation: Id(r.array().ok()?) };
    let base = Base { position: Position { epoch, rev: r.u64().ok()? }, chain: r.array().ok()? };
    let body = bytes.len().checked_sub(32)?;
    (r.array::<32>().ok()? == *blake3::hash(&bytes[..body]).as_bytes()).then_some(base)
}

/// What a slot holds.
struct Slot {
    /// Under which its HEAD was accepted.
    key: Option<PublicKey>,
    head: Head,
    state: State,
}

impl Slot {
    /// Its revision, if it may be shown: where there are keys, under the one that it remembers.
    fn believed(self, trust: &Keyring) -> Result<(Head, State), String> {
        let Slot { key, head, state } = self;
        let key = key.or_else(|| trust.signer(&head));
        let refused = match key {
            _ if trust.is_empty() => None,
            None => Some("no trusted key signed its HEAD"),
            Some(key) if trust.has_revoked(&key) => Some("the key that signed its HEAD is revoked"),
            Some(key) if !key.signed(&head) => Some("its HEAD is not signed by the key that it names"),
            Some(_) => None,
        };
        refused.map_or(Ok((head, state)), |why| Err(why.into()))
    }
}

/// What is in a slot; `None` if there is no such file.
fn read_slot(path: &Path, most: u64) -> Result<Option<Slot>, String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let len = file.seek(io::SeekFrom::End(0)).and_then(|len| file.rewind().map(|()| len));
    // Keys and values, and their framing: 8 bytes a key, so for all but the tiniest values at most as much again.
    let limit = most.saturating_mul(2).saturating_add(1 << 20);
    if len.map_err(|e| e.to_string())? > limit {
        return Err(format!("larger than {limit} bytes"));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let bytes = Bytes::from(bytes);
    let body = bytes.len().checked_sub(32).ok_or("cut short")?;
    if blake3::hash(&bytes[..body]).as_bytes()[..] != bytes[body..] {
        return Err("its hash is wrong: torn or changed by hand".into());
    }
    let mut r = Reader::new(&bytes);
    let parsed = (|| {
        let magic: [u8; 8] = r.array()?;
        let key = if magic == *OLD_MAGIC { [0; 32] } else { r.array()? };
        let head = Head::decode(&mut r)?;
        let len = r.u64()?;
        let entries = r.take(usize::try_from(len).map_err(|_| crate::wire::DecodeError::Short)?)?;
        Ok::<_, crate::wire::DecodeError>((magic, key, head, decode_state(&entries)?))
    })();
    let (magic, key, head, state) = parsed.map_err(|e| e.to_string())?;
    if magic != *MAGIC && magic != *OLD_MAGIC {
        return Err("not a slot of this version".into());
    }
    if (state.keys(), state.bytes(), state.digest()) != (head.keys, head.bytes, head.digest) {
        return Err("its content does not have the digest that its HEAD names".into());
    }
    Ok(Some(Slot { key: PublicKey::from_bytes(&key), head, state }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sign::Secret;
    use crate::{Entry, Epoch, Key};

    fn revision(rev: u64, value: &str) -> (Head, State) {
        let mut state = State::new();
        state.put(Key::new("k").expect("short"), Entry::new(0, value.to_owned()));
        let position = Position { epoch: Epoch { number: 1, incarnation: Id([1; 16]) }, rev };
        let head = Head {
            position,
            digest: state.digest(),
            keys: state.keys(),
            bytes: state.bytes(),
            ..Head::default()
        };
        (head, state)
    }

    fn open(dir: &tempfile::TempDir) -> Store {
        Store::open(&dir.path().join("state")).expect("a writable folder")
    }

    #[test]
    fn the_newest_whole_revision_comes_back_with_permissions_0600() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut store = open(&dir);
        for rev in 1..=3 {
            let (head, state) = revision(rev, &rev.to_string());
            store.save(&head, &state).expect("saved");
        }
        drop(store);
        let mut store = open(&dir);
        let loaded = store.load(1 << 20);
        assert_eq!(loaded.newest, Some(revision(3, "3")));
        assert_eq!(loaded.before, Some(revision(2, "2")));
        assert!(loaded.damaged.is_empty());
        for file in fs::read_dir(store.dir()).expect("it exists") {
            let meta = file.and_then(|f| f.metadata()).expect("readable");
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::metadata(store.dir()).expect("it exists").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_later_head_of_the_newest_revision_takes_the_slot_of_that_and_of_no_other() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut store = open(&dir);
        let ((one, s1), (mut two, s2), (three, s3)) = (revision(1, "1"), revision(2, "2"), revision(3, "3"));
        store.save(&one, &s1).expect("saved");
        store.save(&two, &s2).expect("saved");
        for (seq, again) in [(7, false), (8, true)] {
            if again {
                // What was written before is known.
                drop(store);
                store = open(&dir);
                store.load(1 << 20);
            }
            two.seq = seq;
            store.save(&two, &s2).expect("saved");
            let loaded = store.load(1 << 20);
            assert_eq!(loaded.newest, Some((two.clone(), s2.clone())));
            assert_eq!(loaded.before, Some((one.clone(), s1.clone())));
        }
        store.save(&three, &s3).expect("saved");
        let loaded = store.load(1 << 20);
        assert_eq!((loaded.newest, loaded.before), (Some((three, s3)), Some((two, s2))));
    }

    #[test]
    fn a_torn_or_tampered_slot_is_refused_and_reported_and_the_other_serves() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut store = open(&dir);
        let ((h1, s1), (h2, s2)) = (revision(1, "one"), revision(2, "two"));
        store.save(&h1, &s1).expect("saved");
        store.save(&h2, &s2).expect("saved");
        let path = store.path(SLOTS[1]);
        let whole = fs::read(&path).expect("written");
        // Every byte counts, and so does every length.
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).expect("writable");
            let loaded = store.load(1 << 20);
            assert_eq!(
                (loaded.newest.map(|(h, _)| h.position.rev), loaded.damaged.len()),
                (Some(1), 1),
                "byte {at}"
            );
            fs::write(&path, &whole[..at]).expect("writable");
            assert_eq!(store.load(1 << 20).newest.map(|(h, _)| h.position.rev), Some(1), "cut at {at}");
        }
        // A right hash does not help content that is not what the HEAD names.
        let mut forged = whole[..whole.len() - 32].to_vec();
        let last = forged.len() - 1;
        forged[last] = b'X';
        let hash = blake3::hash(&forged);
        forged.extend_from_slice(hash.as_bytes());
        fs::write(&path, &forged).expect("writable");
        let loaded = store.load(1 << 20);
        assert_eq!(loaded.newest.map(|(h, _)| h.position.rev), Some(1));
        assert!(loaded.damaged[0].contains("digest"), "{:?}", loaded.damaged);
        // The next save takes the damaged slot's place, not the good one's.
        store.save(&h2, &s2).expect("saved");
        assert_eq!(store.load(1 << 20).before.map(|(h, _)| h.position.rev), Some(1));
    }

    #[test]
    fn invariant_05_a_slot_is_believed_under_the_key_that_it_was_accepted_under_until_that_is_revoked() {
        let dir = tempfile::tempdir().expect("a folder");
        let (old, new) = (Secret::from_seed(1, &[1; 32]), Secret::from_seed(1, &[2; 32]));
        let (mut head, state) = revision(1, "one");
        old.sign(&mut head);
        let mut store = open(&dir);
        store.set_trust(old.public());
        store.save(&head, &state).expect("saved");
        let found = |store: &mut Store, trust: Keyring| {
            store.set_trust(trust);
            let loaded = store.load(1 << 20);
            (loaded.newest.is_some(), loaded.damaged.join(" "))
        };
        // Retired, and another key has its number; no keys any more; revoked.
        assert_eq!(found(&mut store, new.public()), (true, String::new()));
        assert_eq!(found(&mut store, Keyring::new()), (true, String::new()));
        let mut trust = new.public();
        trust.revoke(&old.public());
        let (there, why) = found(&mut store, trust);
        assert!(!there && why.contains("revoked"), "{why}");
        // What was stored before there were keys has to be signed by one of them.
        let (head, state) = revision(2, "two");
        store.set_trust(Keyring::new());
        store.save(&head, &state).expect("saved");
        let (there, why) = found(&mut store, new.public());
        assert!(there && why.contains("no trusted key"), "the older slot serves: {why}");
        assert_eq!(store.load(1 << 20).newest.map(|(head, _)| head.position.rev), Some(1));
    }

    #[test]
    fn a_slot_of_the_form_before_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut store = open(&dir);
        let (head, state) = revision(1, "one");
        store.save(&head, &state).expect("saved");
        let path = store.path(SLOTS[0]);
        let now = fs::read(&path).expect("written");
        let mut old = [&OLD_MAGIC[..], &now[8 + 32..now.len() - 32]].concat();
        let hash = blake3::hash(&old);
        old.extend_from_slice(hash.as_bytes());
        fs::write(&path, &old).expect("writable");
        assert_eq!(store.load(1 << 20).newest, Some((head, state)));
    }

    #[test]
    fn every_start_has_a_higher_number_and_the_same_id() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = open(&dir).identity();
        let mut store = open(&dir);
        let second = store.identity();
        assert_eq!((first.id, first.opened + 1), (second.id, second.opened));
        assert!(first.boot < second.boot);
        let third = store.raise_above(second.boot + (9 << 32)).expect("raised");
        assert!(third.boot > second.boot + (9 << 32));
        drop(store);
        assert!(open(&dir).identity().boot > third.boot);
    }

    #[test]
    fn a_folder_is_used_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(&dir);
        assert!(matches!(Store::open(store.dir()), Err(StoreError::InUse(_))));
    }

    #[test]
    fn what_was_applied_is_remembered_unless_damaged() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(&dir);
        assert_eq!(store.applied(), None);
        let base = revision(7, "x").0.base();
        store.set_applied(base).expect("written");
        assert_eq!(store.applied(), Some(base));
        fs::write(store.path("applied"), b"garbage").expect("writable");
        assert_eq!(store.applied(), None);
    }

    /// What a process finds that starts upon a copy of the folder as it is now.
    fn found(store: &Store) -> (Option<u64>, Option<u64>) {
        let copy = tempfile::tempdir().expect("a folder");
        for file in fs::read_dir(store.dir()).expect("it exists") {
            let file = file.expect("readable");
            fs::copy(file.path(), copy.path().join(file.file_name())).expect("writable");
        }
        let loaded = Store::open(copy.path()).expect("writable").load(1 << 20);
        let rev = |found: Option<(Head, State)>| found.map(|(head, _)| head.position.rev);
        (rev(loaded.newest), rev(loaded.applied))
    }

    #[test]
    fn the_revision_acted_on_last_is_there_after_each_step_however_many_newer_ones_failed() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut store = open(&dir);
        let (mut newest, mut applied) = (None, None);
        // Which of them are acted on: every pattern of four.
        for (round, pattern) in (0..16_u32).enumerate() {
            for step in 0..4 {
                let rev = round as u64 * 4 + step + 1;
                let (head, state) = revision(rev, &rev.to_string());
                // Killed in the midst of writing.
                fs::write(store.path(&format!("{}.new", SLOTS[0])), b"half").expect("writable");
                assert_eq!(found(&store), (newest, applied));
                store.save(&head, &state).expect("saved");
                newest = Some(rev);
                assert_eq!(found(&store), (newest, applied));
                if pattern >> step & 1 == 1 {
                    store.set_applied(head.base()).expect("written");
                    applied = Some(rev);
                    assert_eq!(found(&store), (newest, applied));
                }
                if rev.is_multiple_of(7) {
                    drop(store);
                    store = open(&dir);
                    store.load(1 << 20);
                }
            }
        }
        // Where all are acted on, two are kept.
        for rev in 3000..3004 {
            let (head, state) = revision(rev, "x");
            store.save(&head, &state).expect("saved");
            store.set_applied(head.base()).expect("written");
        }
        let there: Vec<bool> = SLOTS.iter().map(|name| store.path(name).exists()).collect();
        assert_eq!(there, [true, true, false]);
    }

    #[test]
    fn a_newer_revision_never_takes_the_slot_of_one_that_is_needed_though_two_hold_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut store = open(&dir);
        let (head, state) = revision(1, "one");
        store.set_applied(head.base()).expect("written");
        for _ in 0..3 {
            store.save(&head, &state).expect("saved");
        }
        for rev in 2..6 {
            let (head, state) = revision(rev, "more");
            let newest = store.newest.expect("saved");
            store.save(&head, &state).expect("saved");
            assert_ne!(store.newest, Some(newest));
            assert_eq!(found(&store), (Some(rev), Some(1)));
        }
    }

    #[test]
    fn what_is_damaged_is_told_when_the_folder_is_opened() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(&dir);
        assert!(store.damaged().is_empty());
        let (first, [identity, applied]) = (store.identity(), ["identity", "applied"].map(|n| store.path(n)));
        drop(store);
        fs::write(identity, b"spwnode").expect("writable");
        fs::write(applied, b"").expect("writable");
        let store = open(&dir);
        assert_ne!(store.identity().id, first.id);
        let told = store.damaged();
        assert!(told[0].contains("identity") && told[1].contains("applied"), "{told:?}");
        drop(store);
        // The identity is whole again; nobody has written the other.
        assert_eq!(open(&dir).damaged().len(), 1);
    }
}
