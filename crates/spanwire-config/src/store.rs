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
mod role;

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
pub(crate) use role::{NewDir, holds_identity, small};
pub use role::{Role, role};

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
    /// It is another kind of process's.
    #[error("{dir} is the state folder of {of}, and {not} has one of its own: name another with --state")]
    Foreign {
        /// The folder.
        dir: PathBuf,
        /// Whose it is.
        of: &'static str,
        /// Whose it is not.
        not: &'static str,
    },
    /// It lies in a directory that an agent keeps, and would be deleted there.
    #[error(
        "{path} is inside {out}, which the agent with the state folder {state} keeps, and which holds nothing else: \
         choose another place (or, if that agent is no more, delete its state folder)"
    )]
    Kept {
        /// What was to be used.
        path: PathBuf,
        /// What the agent keeps.
        out: PathBuf,
        /// Where that is noted.
        state: PathBuf,
    },
    /// A directory that an agent was to keep has a state folder in it, which would be deleted there.
    #[error(
        "{inside} is the state folder of {of}, and {out} is to hold nothing but what is published: stop that process and \
         move or delete the folder, or keep another directory (--out)"
    )]
    Inside {
        /// The folder.
        inside: PathBuf,
        /// Whose it is.
        of: &'static str,
        /// The directory.
        out: PathBuf,
    },
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
    /// It was made now, and may not be used.
    new: Option<role::New>,
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
            new: None,
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
mod tests;
