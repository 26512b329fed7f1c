//! A disk in memory that loses what was not synced, tears writes, fills up and fails.
//!
//! What a process sees is the page cache; what survives a power cut is what was synced, and any part of the
//! rest that the seed chooses: writes lost, torn and in another order, names made or not. After a failed sync
//! the cache still shows what will never be on the disk.
//!
//! Owns: bytes and faults. Never: real files or real time; the same seed gives the same disk.

use std::collections::BTreeMap;
use std::io;

use super::Disk;

/// When the machine stops, or fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// Operation number (from 0, of those that change something) at which the machine stops: a write of it is
    /// in the cache as far as `crash_part` says, and every later operation fails.
    pub crash_at: Option<u64>,
    /// How much of the write at which the machine stops has reached the cache, in 255ths.
    pub crash_part: u8,
    /// Operation number of a sync that fails.
    pub fail_sync_at: Option<u64>,
    /// Bytes in all files beyond which a write fails, with a part of it written.
    pub space: Option<u64>,
}

/// What comes back after the machine stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// Only the process died: all that it wrote.
    Kill,
    /// Power was cut, and nothing that was not synced got through.
    Nothing,
    /// Power was cut, and everything got through but what a failed sync lost.
    Everything,
    /// Power was cut; of what was not synced a seed chooses: whole writes, pieces, other orders.
    Some(u64),
}

#[derive(Clone, Debug)]
enum Pending {
    Write(u64, Vec<u8>),
    Len(u64),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What a process sees.
    cache: Vec<u8>,
    /// What a power cut leaves.
    disk: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
enum Named {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

/// The disk; a clone is another disk with the same content.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    naming: Vec<Named>,
    /// What the process has open. As long as nobody takes the folder away, it is what the names say.
    open: BTreeMap<String, usize>,
    /// No path names the folder any more.
    away: bool,
    faults: Faults,
    operations: u64,
    syncs: u64,
    stopped: bool,
}

/// SplitMix64.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn write(bytes: &mut Vec<u8>, at: u64, new: &[u8]) {
    let (at, end) = (at as usize, at as usize + new.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(new);
}

fn apply(bytes: &mut Vec<u8>, pending: &Pending) {
    match pending {
        Pending::Write(at, new) => write(bytes, *at, new),
        Pending::Len(len) => bytes.resize(*len as usize, 0),
    }
}

fn name(names: &mut BTreeMap<String, usize>, naming: &Named) {
    match naming {
        Named::Create(name, inode) => drop(names.insert(name.clone(), *inode)),
        Named::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        Named::Remove(name) => drop(names.remove(name)),
    }
}

/// What a torn write leaves: pieces of 16 bytes, chosen one by one, or a beginning.
fn torn(bytes: &mut Vec<u8>, at: u64, new: &[u8], seed: &mut u64) {
    if next(seed).is_multiple_of(2) {
        let len = next(seed) as usize % (new.len() + 1);
        return write(bytes, at, &new[..len]);
    }
    for (i, piece) in new.chunks(16).enumerate() {
        if next(seed).is_multiple_of(2) {
            write(bytes, at + 16 * i as u64, piece);
        }
    }
}

impl SimDisk {
    /// Empty, and without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The faults to come. Operations count on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// How many operations changed something, or tried to.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// How many syncs of a file succeeded.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// The disk that the next process finds. No faults, and operations count from 0.
    pub fn restart(&self, after: After) -> SimDisk {
        let mut inodes = self.inodes.clone();
        let (mut names, naming) = match after {
            After::Kill => {
                let (names, durable) = (self.names.clone(), self.durable.clone());
                let naming = self.naming.clone();
                return SimDisk { inodes, names, durable, naming, ..SimDisk::default() };
            }
            _ => (self.durable.clone(), &self.naming),
        };
        let mut seed = match after {
            After::Some(seed) => seed,
            _ => 0,
        };
        for inode in &mut inodes {
            let mut pending = std::mem::take(&mut inode.pending);
            match after {
                After::Everything => pending.iter().for_each(|p| apply(&mut inode.disk, p)),
                After::Some(_) => {
                    // Any order, and any part.
                    for i in (1..pending.len()).rev() {
                        pending.swap(i, next(&mut seed) as usize % (i + 1));
                    }
                    for p in &pending {
                        match (next(&mut seed) % 4, p) {
                            (0, _) => {}
                            (1, Pending::Write(at, new)) => torn(&mut inode.disk, *at, new, &mut seed),
                            _ => apply(&mut inode.disk, p),
                        }
                    }
                }
                _ => {}
            }
            inode.cache = inode.disk.clone();
        }
        for naming in naming {
            let through = match after {
                After::Everything => true,
                After::Some(_) => next(&mut seed).is_multiple_of(2),
                _ => false,
            };
            if through {
                name(&mut names, naming);
            }
        }
        SimDisk { inodes, durable: names.clone(), names, ..SimDisk::default() }
    }

    /// What a process sees of a file: for tests that damage it.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.names.get(name).map(|inode| self.inodes[*inode].cache.as_slice())
    }

    /// Replaces a file, durably, behind everybody's back.
    pub fn replace(&mut self, name: &str, bytes: Vec<u8>) {
        let inode = self.inodes.len();
        self.inodes.push(Inode { cache: bytes.clone(), disk: bytes, pending: Vec::new() });
        self.names.insert(name.to_owned(), inode);
        self.durable.insert(name.to_owned(), inode);
        self.open.remove(name);
    }

    /// Takes a file away, durably, behind everybody's back.
    pub fn lose(&mut self, name: &str) {
        self.names.remove(name);
        self.durable.remove(name);
        self.open.remove(name);
    }

    /// Takes the whole folder away while it is in use: what the process has open it goes on writing, and syncs,
    /// and no later one finds any of it.
    pub fn take_away(&mut self) {
        self.names.clear();
        self.durable.clear();
        self.naming.clear();
        self.away = true;
    }

    /// Counts an operation. `false`: this is the one at which the machine stops.
    fn step(&mut self) -> io::Result<bool> {
        if self.stopped {
            return Err(io::Error::other("the machine has stopped"));
        }
        let now = self.operations;
        self.operations += 1;
        self.stopped = self.faults.crash_at == Some(now);
        Ok(!self.stopped)
    }

    fn stop<T>() -> io::Result<T> {
        Err(io::Error::other("the machine stops"))
    }

    /// A file that the process has open, or opens now.
    fn opened(&mut self, file: &str) -> io::Result<usize> {
        if let Some(inode) = self.open.get(file) {
            return Ok(*inode);
        }
        let inode = *self.names.get(file).ok_or(io::ErrorKind::NotFound)?;
        self.open.insert(file.to_owned(), inode);
        Ok(inode)
    }

    fn inode(&mut self, file: &str) -> io::Result<usize> {
        match self.opened(file) {
            Err(_) if !self.away => {}
            found => return found,
        }
        let inode = self.inodes.len();
        self.inodes.push(Inode::default());
        self.names.insert(file.to_owned(), inode);
        self.naming.push(Named::Create(file.to_owned(), inode));
        self.opened(file)
    }

    fn change(&mut self, file: &str, pending: Pending) -> io::Result<()> {
        let inode = self.inode(file)?;
        let inode = &mut self.inodes[inode];
        apply(&mut inode.cache, &pending);
        inode.pending.push(pending);
        Ok(())
    }

    fn naming(&mut self, naming: Named) {
        name(&mut self.names, &naming);
        self.naming.push(naming);
    }
}

impl Disk for SimDisk {
    fn len(&mut self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.bytes(name).map(|bytes| bytes.len() as u64))
    }

    fn read_at(&mut self, name: &str, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let file = self.opened(name)?;
        let file = &self.inodes[file].cache;
        let end = offset as usize + bytes.len();
        bytes.copy_from_slice(file.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let goes = self.step()?;
        let used: u64 = self.names.values().map(|i| self.inodes[*i].cache.len() as u64).sum();
        let grows = (offset + bytes.len() as u64)
            .saturating_sub(self.opened(name).map_or(0, |i| self.inodes[i].cache.len() as u64));
        if let Some(space) = self.faults.space
            && used + grows > space
        {
            let fits = bytes.len() as u64 - (used + grows - space).min(bytes.len() as u64);
            if fits > 0 {
                self.change(name, Pending::Write(offset, bytes[..fits as usize].to_vec()))?;
            }
            return Err(io::ErrorKind::StorageFull.into());
        }
        if goes {
            return self.change(name, Pending::Write(offset, bytes.to_vec()));
        }
        let part = bytes.len() * usize::from(self.faults.crash_part) / 255;
        if part > 0 {
            self.change(name, Pending::Write(offset, bytes[..part].to_vec()))?;
        }
        Self::stop()
    }

    fn set_len(&mut self, name: &str, len: u64) -> io::Result<()> {
        let goes = self.step()?;
        self.change(name, Pending::Len(len))?;
        if goes { Ok(()) } else { Self::stop() }
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let now = self.operations;
        let goes = self.step()?;
        let inode = self.opened(name)?;
        if !goes {
            return Self::stop();
        }
        let inode = &mut self.inodes[inode];
        let pending = std::mem::take(&mut inode.pending);
        if self.faults.fail_sync_at == Some(now) {
            // The pages count as clean now, and are not on the disk.
            return Err(io::Error::other("the sync failed"));
        }
        pending.iter().for_each(|p| apply(&mut inode.disk, p));
        self.syncs += 1;
        Ok(())
    }

    fn is_in_place(&mut self, name: &str) -> io::Result<bool> {
        let open = self.opened(name)?;
        Ok(!self.away && self.names.get(name) == Some(&open))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let goes = self.step()?;
        if !self.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.naming(Named::Rename(from.to_owned(), to.to_owned()));
        self.open.remove(to);
        if let Some(inode) = self.open.remove(from) {
            self.open.insert(to.to_owned(), inode);
        }
        if goes { Ok(()) } else { Self::stop() }
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let goes = self.step()?;
        self.open.remove(name);
        if self.names.contains_key(name) {
            self.naming(Named::Remove(name.to_owned()));
        }
        if goes { Ok(()) } else { Self::stop() }
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let now = self.operations;
        if !self.step()? {
            return Self::stop();
        }
        if self.faults.fail_sync_at == Some(now) {
            // Names are in a journal: they wait for the next sync, or are lost with the power.
            return Err(io::Error::other("the sync failed"));
        }
        for naming in std::mem::take(&mut self.naming) {
            name(&mut self.durable, &naming);
        }
        Ok(())
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.names.keys().cloned().collect())
    }
}
