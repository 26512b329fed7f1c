//! A source in a folder: one append-only log with a state at its beginning.
//!
//! A log of our own and not an embedded database (redb was the other choice), because what is asked is a log:
//! one write and one sync for a batch, a state below it, and at the next start a sure answer to one question,
//! whether what is broken at the end was ever acknowledged. A B-tree with copy-on-write answers it for its own
//! pages only, costs more bytes for each sync, and would hide the writes between which a crash must be tried.
//!
//! | file | what |
//! |---|---|
//! | `log` | 8 bytes of magic, 16 random bytes (its id), frames. Frame 0: namespace, the base state, and how many of the frames that follow were there when the file was made. Then one frame for each record |
//! | `mark` | how many frames of which log are durable, in two slots written in turn, without a sync of their own |
//! | `opens` | how often the store was opened, in two slots, synced |
//! | `chain-E` | of epoch E, revision and chain (40 bytes) of each HEAD that left the log, in blocks with a hash |
//!
//! A frame is: 8 bytes that follow from the log's id, index (u64), length (u64), payload, BLAKE3 over the id and
//! all of these. At most one frame is written and not synced at any time. So where a frame does not check:
//!
//! - the mark, the file's own count, or a whole frame with a higher index behind it shows that it had been
//!   durable: **damage**, the store does not open;
//! - else it is a **torn tail**, never acknowledged, and is cut off.
//!
//! A mark is written only after the sync that it tells of, so it never says too much; lost with the page cache
//! in a power cut, it leaves open only whether the very last frame was torn or rotted. Frames not known to be
//! durable are written anew and synced at the next start: after a failed sync the page cache may show what the
//! disk does not have.
//!
//! Compaction writes a new log beside and renames it.
//!
//! A sync tells of the file that is open. Whether that is still what the path names is looked up after it: of a
//! folder that somebody removed or moved the next start would find nothing.
//!
//! Owns: the files, and what recovery believes. Never: repairs damage, or retries a failed sync.

mod compact;
mod format;
mod recover;

use std::io;

use bytes::Bytes;
use format::{chain_file, frame, frame_at, number, slot};
#[cfg(all(unix, feature = "sync"))]
pub(crate) use recover::namespace_of;
use recover::{agrees, follows};

use super::{Batch, Disk, Health, Record, Recovered, Snapshot, Source, SourceError};
use crate::wire::{Write, encode_state};
use crate::{ClusterId, Epoch, Head, Id};

const LOG: &str = "log";
const NEW: &str = "log.new";
const MARK: &str = "mark";
const OPENS: &str = "opens";
const CHAIN: &str = "chain-";

const MAGIC: &[u8; 8] = b"spwlog\x00\x01";
/// Magic and id.
const HEADER: u64 = 24;
/// Sync word, index, length.
const FRAME: usize = 24;
const HASH: usize = 32;
/// Where the second slot of `mark` and `opens` is: a page away, so that one torn write cannot reach both.
const SLOT: u64 = 4096;
/// Rows of `chain-E`: a block is one row (zeros u64, count u32, 28 bytes of hash) and `count` rows (revision,
/// chain).
const ROW: usize = 40;
/// Most rows of one block.
const BLOCK: usize = 10_000;
/// Bytes gathered for one write while a new log is written.
const CHUNK: usize = 1 << 20;
/// The open count has 24 bits in `seq`.
const MAX_OPENED: u32 = 0x00ff_ffff;

/// One frame of the log in use.
#[derive(Clone, Copy, Debug)]
struct Frame {
    offset: u64,
    /// Bytes of payload.
    len: u64,
    /// The HEAD that it holds: epoch, revision, chain. `None`: another kind of record.
    head: Option<(Epoch, u64, [u8; 32])>,
}

/// A block of `chain-E`.
#[derive(Clone, Copy, Debug)]
struct Block {
    offset: u64,
    rows: u32,
    first: u64,
    last: u64,
}

/// The log that is open.
#[derive(Debug)]
struct Log {
    id: Id,
    /// Frames 1 and up.
    frames: Vec<Frame>,
    len: u64,
    /// HEAD of the base; `None`: the log begins with the first commit.
    base: Option<Head>,
    /// The newest HEAD.
    last: Option<Head>,
    marks: u64,
    opened: u32,
    opens_slot: u64,
    /// Number of the epoch whose chains are in a file of their own, and how much of it counts.
    chain_epoch: u64,
    chain_len: u64,
    blocks: Vec<Block>,
}

#[derive(Debug)]
enum Phase {
    New,
    /// Loaded, and there is nothing.
    Absent,
    Open(Log),
    /// Why. What the log held when it was last whole may still be read: chains of HEADs.
    Stopped(String, Option<Log>),
}

/// A durable source in a folder: one append-only log with a state at its beginning. Its files are described in
/// `docs/config-broadcast.md`.
#[derive(Debug)]
pub struct Embedded<D> {
    disk: D,
    cluster: ClusterId,
    namespace: String,
    phase: Phase,
}

type Result<T> = std::result::Result<T, SourceError>;

fn io(what: &'static str, file: &str) -> impl FnOnce(io::Error) -> SourceError {
    let what = format!("{what} {file}");
    move |error| SourceError::Io { what, error }
}

fn damaged(file: &str, at: u64, why: impl Into<String>) -> SourceError {
    SourceError::Damaged { file: file.into(), at, why: why.into() }
}

/// What is durable under this name is so for the next start, too.
fn in_place(disk: &mut dyn Disk, file: &str) -> Result<()> {
    match disk.is_in_place(file).map_err(io("look at", file))? {
        true => Ok(()),
        false => Err(SourceError::Gone { file: file.into() }),
    }
}

fn read_all(disk: &mut dyn Disk, file: &str) -> Result<Option<Vec<u8>>> {
    let Some(len) = disk.len(file).map_err(io("look at", file))? else { return Ok(None) };
    read(disk, file, 0, len).map(Some)
}

fn read(disk: &mut dyn Disk, file: &str, at: u64, len: u64) -> Result<Vec<u8>> {
    let size = usize::try_from(len).map_err(|_| damaged(file, at, "longer than memory"))?;
    let mut bytes = vec![0; size];
    disk.read_at(file, at, &mut bytes).map_err(io("read", file))?;
    Ok(bytes)
}

/// Frame 0: what the log begins with.
struct Begin {
    base: Option<Snapshot>,
    /// Frames that were durable when the file got its name.
    sealed: u64,
    chain_epoch: u64,
    chain_len: u64,
}

impl<D: Disk> Embedded<D> {
    /// A source of one namespace in the folder that `disk` is. Nothing is read before
    /// [`load`](Source::load).
    pub fn new(disk: D, cluster: ClusterId, namespace: &str) -> Self {
        Embedded { disk, cluster, namespace: namespace.into(), phase: Phase::New }
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The disk, so that a test can arm its faults.
    #[cfg(any(test, feature = "testkit"))]
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    /// Gives the disk back.
    pub fn into_disk(self) -> D {
        self.disk
    }

    /// Syncs the mark, so that even a power cut leaves no question about the last frame. For an orderly end.
    ///
    /// # Errors
    /// The system's; nothing is lost by it.
    pub fn close(mut self) -> io::Result<()> {
        self.sync_mark()
    }

    fn sync_mark(&mut self) -> io::Result<()> {
        match self.phase {
            Phase::Open(_) => self.disk.sync(MARK).and_then(|()| self.disk.sync_dir()),
            _ => Ok(()),
        }
    }

    fn log(&self) -> Result<&Log> {
        match &self.phase {
            Phase::Open(log) => Ok(log),
            Phase::Stopped(why, _) => Err(SourceError::Stopped(why.clone())),
            Phase::New => Err(SourceError::Misuse("not loaded")),
            Phase::Absent => Err(SourceError::Misuse("there is nothing yet")),
        }
    }

    /// Takes the log out while `act` writes; after any error nothing is written any more.
    fn write<T>(&mut self, act: impl FnOnce(&mut D, &mut Log) -> Result<T>) -> Result<T> {
        let mut log = match std::mem::replace(&mut self.phase, Phase::Stopped("interrupted".into(), None)) {
            Phase::Open(log) => log,
            other => {
                self.phase = other;
                self.log()?;
                return Err(SourceError::Misuse("not open"));
            }
        };
        match act(&mut self.disk, &mut log) {
            Ok(done) => {
                self.phase = Phase::Open(log);
                Ok(done)
            }
            Err(error) => {
                self.phase = Phase::Stopped(error.to_string(), Some(log));
                Err(error)
            }
        }
    }

    fn begin_payload(&self, begin: &Begin) -> Vec<u8> {
        let mut out = Vec::new();
        out.raw(&self.cluster.0);
        out.text(&self.namespace, crate::wire::MAX_NAMESPACE);
        out.u64(begin.sealed);
        out.u64(begin.chain_epoch);
        out.u64(begin.chain_len);
        out.u8(u8::from(begin.base.is_some()));
        if let Some(Snapshot { head, state }) = &begin.base {
            head.encode(&mut out);
            out.raw(&encode_state(state));
        }
        out
    }

    /// Makes a store without commits.
    fn create(&mut self) -> Result<Log> {
        let id = Id::random().map_err(io("get randomness for", LOG))?;
        let begin = Begin { base: None, sealed: 0, chain_epoch: 0, chain_len: 0 };
        let mut bytes = MAGIC.to_vec();
        bytes.raw(&id.0);
        bytes.raw(&frame(&id, 0, &self.begin_payload(&begin)));
        let disk = &mut self.disk;
        disk.remove(NEW).map_err(io("remove", NEW))?;
        disk.write_at(NEW, 0, &bytes).map_err(|error| match error.kind() {
            // The folder is.
            io::ErrorKind::NotFound => SourceError::Gone { file: LOG.into() },
            _ => io("write", NEW)(error),
        })?;
        disk.sync(NEW).map_err(io("sync", NEW))?;
        disk.rename(NEW, LOG).map_err(io("rename", NEW))?;
        disk.sync_dir().map_err(io("sync the folder of", LOG))?;
        let mut log = Log {
            id,
            frames: Vec::new(),
            len: bytes.len() as u64,
            base: None,
            last: None,
            marks: 0,
            opened: 0,
            opens_slot: 0,
            chain_epoch: 0,
            chain_len: 0,
            blocks: Vec::new(),
        };
        create_opens(disk)?;
        log.opens_slot = 1;
        raise(disk, &mut log, 1)?;
        Ok(log)
    }

    /// Reads one frame again, and checks it again.
    fn read_frame(&mut self, id: &Id, index: u64, known: Frame) -> Result<Bytes> {
        let whole = FRAME as u64 + known.len + HASH as u64;
        let bytes = Bytes::from(read(&mut self.disk, LOG, known.offset, whole)?);
        match frame_at(id, &bytes, 0) {
            Ok((found, payload)) if found == index => Ok(bytes.slice(payload)),
            _ => Err(damaged(LOG, known.offset, "a frame changed since it was written")),
        }
    }
}

fn create_opens(disk: &mut dyn Disk) -> Result<()> {
    let mut bytes = vec![0; SLOT as usize];
    let zero = slot(&0u32.to_be_bytes());
    bytes[..zero.len()].copy_from_slice(&zero);
    bytes.raw(&zero);
    disk.write_at(OPENS, 0, &bytes).map_err(io("write", OPENS))?;
    disk.sync(OPENS).map_err(io("sync", OPENS))?;
    disk.sync_dir().map_err(io("sync the folder of", OPENS))
}

/// Makes the open count durable, in the slot that does not hold the present one.
fn raise(disk: &mut dyn Disk, log: &mut Log, to: u32) -> Result<()> {
    if to > MAX_OPENED {
        return Err(SourceError::Misuse("opened 2^24 times; begin a new store"));
    }
    let next = 1 - log.opens_slot;
    disk.write_at(OPENS, next * SLOT, &slot(&to.to_be_bytes())).map_err(io("write", OPENS))?;
    disk.sync(OPENS).map_err(io("sync", OPENS))?;
    in_place(disk, OPENS)?;
    log.opened = to;
    log.opens_slot = next;
    Ok(())
}

/// Notes how much is durable. A hint that may be lost, so its failure is none.
fn mark(disk: &mut dyn Disk, log: &mut Log) {
    log.marks += 1;
    let mut body = Vec::with_capacity(40 + HASH);
    body.raw(&log.id.0);
    body.u64(log.frames.len() as u64);
    body.u64(log.len);
    body.u64(log.marks);
    let _ = disk.write_at(MARK, log.marks % 2 * SLOT, &slot(&body));
}

fn named(record: &Record) -> Option<(Epoch, u64, [u8; 32])> {
    match record {
        Record::Batch(Batch { head, .. }) => Some((head.position.epoch, head.position.rev, head.chain)),
        Record::Frozen(_) | Record::Mark(_) => None,
    }
}

impl<D: Disk> Source for Embedded<D> {
    fn load(&mut self) -> Result<Option<Recovered>> {
        if !matches!(self.phase, Phase::New) {
            return Err(SourceError::Misuse("loaded before"));
        }
        match self.open() {
            Ok(Some((log, recovered))) => {
                self.phase = Phase::Open(log);
                Ok(Some(recovered))
            }
            Ok(None) => {
                self.phase = Phase::Absent;
                Ok(None)
            }
            Err(error) => {
                self.phase = Phase::Stopped(error.to_string(), None);
                Err(error)
            }
        }
    }

    fn append_durable(&mut self, record: &Record) -> Result<()> {
        if matches!(self.phase, Phase::Absent) {
            self.phase = match self.create() {
                Ok(log) => Phase::Open(log),
                Err(error) => {
                    self.phase = Phase::Stopped(error.to_string(), None);
                    return Err(error);
                }
            };
        }
        let last = self.log()?.last.as_ref();
        if let Record::Batch(batch) = record
            && (batch.commits.is_empty() || !follows(last, &batch.head))
        {
            return Err(SourceError::Misuse("a batch that does not follow from the newest"));
        }
        if let Record::Mark(mark) = record
            && last.map(|last| last.position) != Some(mark.at)
        {
            return Err(SourceError::Misuse("a step of a rollout that is not the newest's"));
        }
        let payload = record.encode();
        self.write(|disk, log| {
            let bytes = frame(&log.id, log.frames.len() as u64 + 1, &payload);
            disk.write_at(LOG, log.len, &bytes).map_err(io("write", LOG))?;
            disk.sync(LOG).map_err(io("sync", LOG))?;
            in_place(disk, LOG)?;
            log.frames.push(Frame { offset: log.len, len: payload.len() as u64, head: named(record) });
            log.len += bytes.len() as u64;
            if let Record::Batch(batch) = record {
                log.last = Some(batch.head.clone());
            }
            mark(disk, log);
            Ok(())
        })
    }

    fn range_since(&mut self, rev: u64) -> Result<Vec<Batch>> {
        let log = self.log()?;
        if let Some(base) = log.base.as_ref().filter(|base| base.position.rev > rev) {
            return Err(SourceError::Compacted { oldest: base.position.rev });
        }
        let id = log.id;
        let wanted: Vec<(u64, Frame)> = (log.frames.iter().enumerate())
            .filter(|(_, frame)| frame.head.is_some_and(|(_, of, _)| of > rev))
            .map(|(i, frame)| (i as u64 + 1, *frame))
            .collect();
        let mut batches = Vec::new();
        for (index, known) in wanted {
            let payload = self.read_frame(&id, index, known)?;
            match Record::decode(&payload).map_err(|e| damaged(LOG, known.offset, e.to_string()))? {
                Record::Batch(batch) => batches.push(batch),
                Record::Frozen(_) | Record::Mark(_) => {}
            }
        }
        Ok(batches)
    }

    fn compact(&mut self, base: &Snapshot) -> Result<()> {
        let log = self.log()?;
        if log.base.as_ref() == Some(&base.head) {
            return Ok(());
        }
        let wanted = (base.head.position.epoch, base.head.position.rev, base.head.chain);
        let Some(at) = log.frames.iter().position(|frame| frame.head == Some(wanted)) else {
            return Err(SourceError::Misuse("no HEAD of the log has this base"));
        };
        if agrees(&base.head, &base.state).is_err() {
            return Err(SourceError::Misuse("a base without its digest"));
        }
        // Before anything is made in a folder that may be another's.
        self.write(|disk, _| in_place(disk, LOG))?;
        let old = match std::mem::replace(&mut self.phase, Phase::Stopped("interrupted".into(), None)) {
            Phase::Open(log) => log,
            other => {
                self.phase = other;
                return Err(SourceError::Misuse("not open"));
            }
        };
        let new = match self.write_compacted(&old, base, at + 1) {
            Ok(new) => new,
            // The old log is untouched, so a full disk here stops nothing.
            Err(error) => {
                let _ = self.disk.remove(NEW);
                self.phase = Phase::Open(old);
                return Err(error);
            }
        };
        self.phase = Phase::Open(new);
        self.write(|disk, log| {
            if log.chain_len > 0 {
                let file = chain_file(log.chain_epoch);
                disk.sync(&file).map_err(io("sync", &file))?;
            }
            disk.sync(NEW).map_err(io("sync", NEW))?;
            // The new log must not get its name before the chain file has one.
            disk.sync_dir().map_err(io("sync the folder of", NEW))?;
            disk.rename(NEW, LOG).map_err(io("rename", NEW))?;
            disk.sync_dir().map_err(io("sync the folder of", LOG))?;
            mark(disk, log);
            if old.chain_epoch != log.chain_epoch && old.chain_len > 0 {
                // Left behind it harms nobody.
                let _ = disk.remove(&chain_file(old.chain_epoch));
            }
            Ok(())
        })
    }

    fn health(&self) -> Health {
        match &self.phase {
            Phase::Open(log) => Health {
                stopped: None,
                bytes: log.len + log.chain_len,
                heads: log.frames.iter().filter(|frame| frame.head.is_some()).count() as u64,
                chains: log.blocks.iter().map(|block| u64::from(block.rows)).sum(),
            },
            Phase::Stopped(why, _) => Health { stopped: Some(why.clone()), ..Health::default() },
            Phase::New | Phase::Absent => Health::default(),
        }
    }

    fn raise_opened(&mut self, above: u32) -> Result<u32> {
        if matches!(self.phase, Phase::Absent) {
            return Err(SourceError::Misuse("there is nothing yet"));
        }
        self.write(|disk, log| {
            let to = log.opened.max(above).saturating_add(1);
            raise(disk, log, to)?;
            Ok(to)
        })
    }

    fn chain_at(&mut self, rev: u64) -> Result<Option<[u8; 32]>> {
        let log = match &self.phase {
            Phase::Stopped(_, Some(log)) => log,
            _ => self.log()?,
        };
        let Some(epoch) = log.last.as_ref().map(|last| last.position.epoch) else { return Ok(None) };
        if let Some(base) = log.base.as_ref().filter(|b| b.position.epoch == epoch && b.position.rev == rev) {
            return Ok(Some(base.chain));
        }
        let framed = log.frames.iter().filter_map(|frame| frame.head);
        if let Some((.., chain)) = framed.into_iter().find(|(of, at, _)| (*of, *at) == (epoch, rev)) {
            return Ok(Some(chain));
        }
        if log.chain_epoch != epoch.number {
            return Ok(None);
        }
        let at = log.blocks.partition_point(|block| block.last < rev);
        let Some(block) = log.blocks.get(at).filter(|block| block.first <= rev) else { return Ok(None) };
        let (offset, end) = (block.offset, log.chain_len);
        let (_, body) = self.read_block(epoch.number, offset, end)?;
        let found = body.chunks_exact(ROW).find(|row| number(&row[..8]) == rev);
        Ok(found.and_then(|row| row[8..].try_into().ok()))
    }

    fn end(&mut self) {
        // A hint for the next start, so its failure is none.
        let _ = self.sync_mark();
    }
}
