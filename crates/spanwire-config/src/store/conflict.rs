//! Two histories that claim one place: kept with the folder until a higher epoch ends it, or the node's operator.
//!
//! Owns: the file with the two HEADs; throwing away what the folder holds. Never: a word about who is right.

use std::fs;
use std::io;
use std::time::Instant;

use bytes::Bytes;

use super::{SLOTS, Store, StoreError, at};
use crate::Head;
use crate::again::{self, Again};
use crate::wire::{Reader, Write};

const FILE: &str = "conflict";

/// The HEAD that is held, and the one that contradicts it.
pub type Contradiction = (Head, Head);

impl Store {
    /// Notes that two HEADs contradict each other, or that they do no more. When this returns, it is on disk.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn set_conflict(&self, heads: Option<&Contradiction>) -> Result<(), StoreError> {
        let Some((mine, other)) = heads else {
            self.remove(FILE)?;
            return self.sync_dir();
        };
        let mut bytes = Vec::new();
        mine.encode(&mut bytes);
        other.encode(&mut bytes);
        let hash = blake3::hash(&bytes);
        bytes.raw(hash.as_bytes());
        self.replace(FILE, &bytes)
    }

    /// The HEADs that contradict each other, if they do still: a held HEAD of a higher epoch (`newest`) has ended it.
    pub fn conflict(&self, newest: Option<&Head>) -> Option<Contradiction> {
        let noted = self.known(FILE, parse).ok().flatten();
        let number = |head: &Head| head.position.epoch.number;
        noted.filter(|(mine, _)| newest.is_none_or(|newest| number(newest) <= number(mine)))
    }

    /// What is wrong with the note, for people.
    pub(super) fn conflict_damage(&self) -> Option<String> {
        let why = self.known(FILE, parse).err()?;
        Some(format!("{why}; two histories claimed one place, and it is not known which"))
    }

    /// Throws away what the folder holds of history, so that the next process begins with whatever its server has:
    /// the revisions, what was applied, and the word of a conflict. Who it is stays, with a start number raised when the
    /// folder was opened.
    ///
    /// # Errors
    /// [`StoreError::Io`]; done again it goes on where it stopped.
    pub fn discard(&mut self) -> Result<(), StoreError> {
        for name in SLOTS.into_iter().chain(["applied"]) {
            self.remove(name)?;
        }
        (self.held, self.newest) = Default::default();
        self.sync_dir()?;
        // The last: as long as anything else is there, so is this.
        self.set_conflict(None)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            _ => Ok(()),
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Contradiction> {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut r = Reader::new(&bytes);
    let heads = (Head::decode(&mut r).ok()?, Head::decode(&mut r).ok()?);
    let body = &bytes[..r.at()];
    (r.array::<32>().ok()? == *blake3::hash(body).as_bytes() && bytes.len() == body.len() + 32)
        .then_some(heads)
}

/// What a running process has noted of it.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    noted: Option<Contradiction>,
    /// It could not be noted: try again then.
    again: Again,
}

impl Evidence {
    /// What the folder holds already.
    pub(crate) fn new(noted: Option<Contradiction>) -> Evidence {
        Evidence { noted, again: Again::default() }
    }

    /// When to note again what could not be noted.
    pub(crate) fn at(&self) -> Option<Instant> {
        self.again.at()
    }

    /// Whether this is still to be noted.
    pub(crate) fn is_news(&self, now: Option<&Contradiction>) -> bool {
        self.noted.as_ref() != now
    }

    /// Notes what stands at `now`. What failed is tried again when this is called after a while, and told once.
    pub(crate) fn keep(
        &mut self,
        store: &Store,
        stands: Option<&Contradiction>,
        now: Instant,
    ) -> Result<(), String> {
        if !self.is_news(stands) {
            self.again.done();
            return Ok(());
        }
        if self.again.at().is_some_and(|at| at > now) {
            return Ok(());
        }
        match store.set_conflict(stands) {
            Ok(()) => {
                *self = Evidence::new(stands.cloned());
                Ok(())
            }
            Err(error) if self.again.failed(now, again::random()) => {
                Err(format!("the conflict is not noted, and forgotten at a restart: {error}"))
            }
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Id, Position, State};

    fn head(number: u64, rev: u64) -> Head {
        let epoch = Epoch { number, incarnation: Id([number as u8; 16]) };
        Head { position: Position { epoch, rev }, ..Head::default() }
    }

    #[test]
    fn a_conflict_is_kept_until_a_higher_epoch_is_held_or_all_is_discarded() {
        let dir = tempfile::tempdir().expect("a folder");
        let heads = (head(3, 7), head(3, 8));
        let mut store = Store::open(dir.path()).expect("writable");
        assert_eq!(store.conflict(None), None);
        store.save(&heads.0, &State::new()).expect("written");
        store.set_conflict(Some(&heads)).expect("written");
        let identity = store.identity();
        drop(store);
        let mut store = Store::open(dir.path()).expect("writable");
        assert_eq!(store.conflict(Some(&heads.0)), Some(heads.clone()));
        assert_eq!(store.conflict(Some(&head(4, 1))), None);
        store.discard().expect("writable");
        assert_eq!(store.conflict(None), None);
        assert!(store.load(1 << 20).newest.is_none());
        assert_eq!((store.identity().id, store.identity().boot > identity.boot), (identity.id, true));
        // Damage is told.
        store.set_conflict(Some(&heads)).expect("written");
        fs::write(store.path(FILE), b"?").expect("writable");
        drop(store);
        let store = Store::open(dir.path()).expect("writable");
        assert!(store.damaged().iter().any(|why| why.contains("two histories")), "{:?}", store.damaged());
    }

    #[test]
    fn what_is_not_noted_is_told_once_and_tried_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("writable");
        let (heads, mut evidence) = ((head(3, 7), head(3, 8)), Evidence::default());
        fs::create_dir(store.path("conflict.new")).expect("writable");
        let begin = Instant::now();
        assert_eq!(evidence.at(), None);
        assert!(evidence.keep(&store, Some(&heads), begin).is_err());
        let due = evidence.at().expect("tried again");
        assert!(due > begin);
        evidence.keep(&store, Some(&heads), due).expect("told already");
        let later = evidence.at().filter(|at| *at > due).expect("tried again and again");
        fs::remove_dir(store.path("conflict.new")).expect("ours");
        evidence.keep(&store, Some(&heads), due).expect("not yet");
        assert_eq!(store.conflict(None), None);
        evidence.keep(&store, Some(&heads), later).expect("written");
        assert_eq!((store.conflict(None), evidence.at()), (Some(heads), None));
        evidence.keep(&store, None, later).expect("written");
        assert_eq!(store.conflict(None), None);
    }
}
