//! What processes keep: a state folder, with a space for each namespace, and the shipped log on a disk of the world.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use spanwire_config::rollout::Plan;
use spanwire_config::source::{
    Batch, Disk, Embedded, Health, Record, Recovered, Snapshot, Source, SourceError,
};
use spanwire_config::{Epoch, Head, Id, Level, State};
use spanwire_testkit::sim::{self, SyncError};

use super::NAMES;

/// What a state folder holds: a server's or a node's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Folder {
    pub(crate) id: Id,
    /// How often it was opened.
    pub(crate) opened: u32,
    /// One for each namespace of the world.
    pub(crate) spaces: Vec<Space>,
}

/// … of one namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Space {
    /// What is in it: a node's cache, or the newest of a server's log.
    pub(crate) history: Option<(Head, State)>,
    pub(crate) level: Option<Level>,
    /// A relay's cache before the newest.
    pub(crate) before: Option<(Head, State)>,
    /// A server's log, file by file.
    pub(crate) files: BTreeMap<String, Arc<Vec<u8>>>,
    /// The epoch with which an empty store begins.
    pub(crate) begin: Epoch,
    /// A node's word of two histories that contradict each other: what it holds, and the other.
    pub(crate) conflict: Option<Arc<(Head, Head)>>,
}

impl Space {
    /// What a node finds in it of a contradiction: a held HEAD of a higher epoch has ended it.
    pub(crate) fn contradiction(&self) -> Option<(Head, Head)> {
        let number = |head: &Head| head.position.epoch.number;
        let noted = self.conflict.as_deref();
        let holds = self.history.as_ref();
        noted.filter(|(mine, _)| holds.is_none_or(|(held, _)| number(held) <= number(mine))).cloned()
    }
}

/// The place of the world's disk, which a process holds only while it handles an event.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    disk: Arc<Mutex<sim::Disk<Folder>>>,
    /// The namespace whose space it is, by number.
    at: usize,
    /// What the log holds once it is synced.
    next: Arc<Mutex<Option<(Head, State)>>>,
}

impl Shelf {
    pub(crate) fn new(at: usize) -> Shelf {
        let empty = Arc::new(Mutex::new(sim::Disk::new(Folder::default())));
        Shelf { disk: empty, at, next: Arc::default() }
    }

    fn disk(&self) -> MutexGuard<'_, sim::Disk<Folder>> {
        self.disk.lock().expect("nobody panics with it")
    }

    fn next(&self) -> MutexGuard<'_, Option<(Head, State)>> {
        self.next.lock().expect("nobody panics with it")
    }

    pub(crate) fn lend<R>(&self, disk: &mut sim::Disk<Folder>, f: impl FnOnce(&Shelf) -> R) -> R {
        std::mem::swap(&mut *self.disk(), disk);
        let result = f(self);
        std::mem::swap(&mut *self.disk(), disk);
        result
    }

    fn file<R>(&self, name: &str, f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let mut disk = self.disk();
        f(Arc::make_mut(disk.write().spaces[self.at].files.entry(name.to_owned()).or_default()))
    }
}

fn io_error(error: SyncError) -> io::Error {
    io::Error::other(format!("{error:?}"))
}

impl Disk for Shelf {
    fn len(&mut self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.disk().read().spaces[self.at].files.get(name).map(|bytes| bytes.len() as u64))
    }

    fn read_at(&mut self, name: &str, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let disk = self.disk();
        let file = disk.read().spaces[self.at].files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        bytes.copy_from_slice(file.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        self.file(name, |file| {
            file.resize(file.len().max(end), 0);
            file[start..end].copy_from_slice(bytes);
        });
        Ok(())
    }

    fn set_len(&mut self, name: &str, len: u64) -> io::Result<()> {
        self.file(name, |file| file.resize(len as usize, 0));
        Ok(())
    }

    /// The world knows one sync, of all files.
    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut disk = self.disk();
        if name == "log"
            && let Some(next) = self.next().take()
        {
            disk.write().spaces[self.at].history = Some(next);
        }
        disk.sync().map_err(io_error)
    }

    fn is_in_place(&mut self, _name: &str) -> io::Result<bool> {
        Ok(true)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let files = &mut disk.write().spaces[self.at].files;
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk().write().spaces[self.at].files.remove(name);
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.disk().sync().map_err(io_error)
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.disk().read().spaces[self.at].files.keys().cloned().collect())
    }
}

/// The shipped log, which also tells the oracle what it holds.
#[derive(Debug)]
pub(crate) struct Log {
    log: Embedded<Shelf>,
    shelf: Shelf,
    /// The plan of the newest, and the request that brought it.
    plan: Option<(Arc<Plan>, Id)>,
}

impl Log {
    pub(crate) fn new(shelf: Shelf) -> Log {
        Log { log: Embedded::new(shelf.clone(), Id::default(), NAMES[shelf.at]), shelf, plan: None }
    }
}

impl Source for Log {
    fn load(&mut self) -> Result<Option<Recovered>, SourceError> {
        let loaded = self.log.load()?;
        let rollout = loaded.as_ref().and_then(|loaded| loaded.rollout.as_ref());
        self.plan = rollout.map(|open| (open.plan.clone(), open.rollout));
        Ok(loaded)
    }

    fn append_durable(&mut self, record: &Record) -> Result<(), SourceError> {
        let before = self.shelf.disk().read().spaces[self.shelf.at].history.clone();
        if let Record::Batch(batch) = record {
            let mut state = before.as_ref().map(|(_, state)| state.clone()).unwrap_or_default();
            batch.commits.iter().for_each(|commit| state.apply(&commit.changes));
            *self.shelf.next() = Some((batch.head.clone(), state));
            self.plan = batch.plan.clone().map(|plan| (plan, batch.commits[0].request));
        }
        if let (Record::Mark(mark), Some((head, state)), Some((plan, rollout))) =
            (record, &before, &self.plan)
        {
            let stage = if mark.passed { usize::MAX } else { usize::from(mark.stage) };
            let head = Head { audience: plan.audience(*rollout, stage), ..head.clone() };
            *self.shelf.next() = Some((head, state.clone()));
        }
        let result = self.log.append_durable(record);
        self.shelf.next().take();
        if result.is_err() && !self.shelf.disk().is_crashed() {
            self.shelf.disk().write().spaces[self.shelf.at].history = before;
        }
        result
    }

    fn range_since(&mut self, rev: u64) -> Result<Vec<Batch>, SourceError> {
        self.log.range_since(rev)
    }

    fn compact(&mut self, base: &Snapshot) -> Result<(), SourceError> {
        self.log.compact(base)
    }

    fn health(&self) -> Health {
        self.log.health()
    }

    fn raise_opened(&mut self, above: u32) -> Result<u32, SourceError> {
        self.log.raise_opened(above)
    }

    fn chain_at(&mut self, rev: u64) -> Result<Option<[u8; 32]>, SourceError> {
        self.log.chain_at(rev)
    }
}
