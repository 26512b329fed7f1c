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
//! Owns: the files, and what recovery believes. Never: repairs damage, or retries a failed sync.

use std::io;

use bytes::Bytes;

use super::{Batch, Disk, Health, Record, Recovered, Snapshot, Source, SourceError};
use crate::wire::{Reader, Write, decode_state, encode_state};
use crate::{ClusterId, Epoch, Head, Id, State, chain};

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
#[expect(clippy::large_enum_variant, reason = "one for each store, and open for nearly all of its life")]
enum Phase {
    New,
    /// Loaded, and there is nothing.
    Absent,
    Open(Log),
    Stopped(String),
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

/// What frames of the log `id` begin with.
fn sync_word(id: &Id) -> [u8; 8] {
    let mut word = [0; 8];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0).update(b"frame");
    word.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    word
}

fn frame(id: &Id, index: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FRAME + payload.len() + HASH);
    out.raw(&sync_word(id));
    out.u64(index);
    out.u64(payload.len() as u64);
    out.raw(payload);
    let hash = hash(id, &out);
    out.raw(&hash);
    out
}

fn hash(id: &Id, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0).update(bytes);
    *hasher.finalize().as_bytes()
}

/// The payload of the whole frame at `at`, and its index.
fn frame_at(
    id: &Id,
    bytes: &[u8],
    at: usize,
) -> std::result::Result<(u64, std::ops::Range<usize>), &'static str> {
    let head = bytes.get(at..).and_then(|rest| rest.first_chunk::<FRAME>()).ok_or("cut short")?;
    if head[..8] != sync_word(id) {
        return Err("no frame begins here");
    }
    let number = |at: usize| {
        let mut n = [0; 8];
        n.copy_from_slice(&head[at..at + 8]);
        u64::from_be_bytes(n)
    };
    let (index, len) = (number(8), number(16));
    let start = at + FRAME;
    let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len)).ok_or("cut short")?;
    let sum = bytes.get(end..).and_then(|rest| rest.first_chunk::<HASH>()).ok_or("cut short")?;
    if *sum != hash(id, &bytes[at..end]) {
        return Err("its hash is wrong");
    }
    Ok((index, start..end))
}

/// Whether a whole frame with an index above `index` begins behind `at`. A copy of an older frame inside a
/// value does not count.
fn later_frame(id: &Id, bytes: &[u8], at: usize, index: u64) -> bool {
    let word = sync_word(id);
    let rest = bytes.get(at..).unwrap_or_default();
    (rest.windows(8).enumerate())
        .filter(|(_, window)| **window == word)
        .any(|(i, _)| frame_at(id, bytes, at + i).is_ok_and(|(found, _)| found > index))
}

/// Two slots of one file: the numbers in each that checks.
fn slots<const N: usize>(bytes: Option<&[u8]>) -> [Option<[u8; N]>; 2] {
    [0, SLOT as usize].map(|at| {
        let slot = bytes?.get(at..at + N + HASH)?;
        let (body, sum) = slot.split_at(N);
        (blake3::hash(body).as_bytes()[..] == *sum).then(|| body.try_into().ok()).flatten()
    })
}

fn slot(body: &[u8]) -> Vec<u8> {
    let mut out = body.to_vec();
    out.raw(blake3::hash(body).as_bytes());
    out
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn chain_file(epoch: u64) -> String {
    format!("{CHAIN}{epoch:016x}")
}

fn block_hash(epoch: u64, offset: u64, rows: &[u8]) -> [u8; 28] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&epoch.to_be_bytes()).update(&offset.to_be_bytes()).update(rows);
    let mut out = [0; 28];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..28]);
    out
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
        match self.phase {
            Phase::Open(_) => self.disk.sync(MARK).and_then(|()| self.disk.sync_dir()),
            _ => Ok(()),
        }
    }

    fn log(&self) -> Result<&Log> {
        match &self.phase {
            Phase::Open(log) => Ok(log),
            Phase::Stopped(why) => Err(SourceError::Stopped(why.clone())),
            Phase::New => Err(SourceError::Misuse("not loaded")),
            Phase::Absent => Err(SourceError::Misuse("there is nothing yet")),
        }
    }

    /// Takes the log out while `act` writes; any error keeps it out for good.
    fn write<T>(&mut self, act: impl FnOnce(&mut D, &mut Log) -> Result<T>) -> Result<T> {
        let mut log = match std::mem::replace(&mut self.phase, Phase::Stopped("interrupted".into())) {
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
                self.phase = Phase::Stopped(error.to_string());
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

    fn parse_begin(&self, payload: &Bytes) -> Result<Begin> {
        let wrong = |e: crate::wire::DecodeError| damaged(LOG, HEADER, e.to_string());
        let mut r = Reader::new(payload);
        let cluster = Id(r.array().map_err(wrong)?);
        let namespace = r.string(crate::wire::MAX_NAMESPACE, "namespace").map_err(wrong)?;
        if (cluster, &namespace) != (self.cluster, &self.namespace) {
            return Err(SourceError::Foreign(format!(
                "the store belongs to namespace {namespace:?} of cluster {cluster}"
            )));
        }
        let (sealed, chain_epoch) = (r.u64().map_err(wrong)?, r.u64().map_err(wrong)?);
        let chain_len = r.u64().map_err(wrong)?;
        let base = match r.bool().map_err(wrong)? {
            false => None,
            true => {
                let head = Head::decode(&mut r).map_err(wrong)?;
                let state = decode_state(&payload.slice(r.at()..)).map_err(wrong)?;
                agrees(&head, &state).map_err(|why| damaged(LOG, HEADER, why))?;
                Some(Snapshot { head, state })
            }
        };
        Ok(Begin { base, sealed, chain_epoch, chain_len })
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
        disk.write_at(NEW, 0, &bytes).map_err(io("write", NEW))?;
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

    fn open(&mut self) -> Result<Option<(Log, Recovered)>> {
        let names = self.disk.list().map_err(io("list", "the folder"))?;
        let Some(bytes) = read_all(&mut self.disk, LOG)?.map(Bytes::from) else {
            if let Some(name) =
                names.iter().find(|n| [MARK, OPENS].contains(&n.as_str()) || n.starts_with(CHAIN))
            {
                return Err(damaged(LOG, 0, format!("it is gone, but {name} is there")));
            }
            return Ok(None);
        };
        if bytes.get(..8).is_none_or(|magic| magic != MAGIC) {
            return Err(damaged(LOG, 0, "not a log of this version"));
        }
        let id = Id(*bytes[8..].first_chunk().ok_or_else(|| damaged(LOG, 8, "cut short"))?);
        let (index, payload) =
            frame_at(&id, &bytes, HEADER as usize).map_err(|why| damaged(LOG, HEADER, why))?;
        if index != 0 {
            return Err(damaged(LOG, HEADER, "its first frame is another"));
        }
        let begin = self.parse_begin(&bytes.slice(payload.clone()))?;

        let mark_bytes = read_all(&mut self.disk, MARK)?;
        let marks = slots::<40>(mark_bytes.as_deref()).map(|slot| {
            let slot = slot?;
            Some((slot[..16] == id.0, number(&slot[16..24]), number(&slot[32..40])))
        });
        let own = marks.iter().flatten().filter(|(own, ..)| *own).map(|(_, frames, _)| *frames);
        let durable = own.max().unwrap_or(0).max(begin.sealed);

        let mut at = payload.end + HASH;
        let (mut frames, mut records) = (Vec::new(), Vec::new());
        while at < bytes.len() {
            let index = frames.len() as u64 + 1;
            let payload = match frame_at(&id, &bytes, at) {
                Ok((found, payload)) if found == index => payload,
                found => {
                    let why = found.err().unwrap_or("a frame out of order");
                    if index <= durable || later_frame(&id, &bytes, at, index) {
                        return Err(damaged(LOG, at as u64, why));
                    }
                    break;
                }
            };
            let record = Record::decode(&bytes.slice(payload.clone()))
                .map_err(|e| damaged(LOG, at as u64, e.to_string()))?;
            frames.push(Frame { offset: at as u64, len: payload.len() as u64, head: named(&record) });
            records.push(record);
            at = payload.end + HASH;
        }
        if (frames.len() as u64) < durable {
            return Err(damaged(
                LOG,
                at as u64,
                format!("{} of {durable} frames are gone", durable - frames.len() as u64),
            ));
        }

        let (last, frozen) = replay(begin.base.as_ref(), &records)?;
        let blocks = self.read_chain(&begin)?;
        let mut log = Log {
            id,
            len: at as u64,
            base: begin.base.as_ref().map(|base| base.head.clone()),
            last: last.as_ref().map(|last| last.head.clone()),
            marks: marks.iter().flatten().map(|(.., count)| *count).max().unwrap_or(0),
            opened: 0,
            opens_slot: 0,
            chain_epoch: begin.chain_epoch,
            chain_len: begin.chain_len,
            blocks,
            frames,
        };
        self.settle(&mut log, &bytes, durable)?;
        self.count_opening(&mut log)?;
        let cut = bytes.len() as u64 - log.len;
        let recovered = Recovered { opened: log.opened, base: begin.base, records, last, frozen, cut };
        Ok(Some((log, recovered)))
    }

    /// Makes durable what was read, whatever the page cache pretends.
    fn settle(&mut self, log: &mut Log, bytes: &Bytes, durable: u64) -> Result<()> {
        let disk = &mut self.disk;
        if bytes.len() as u64 > log.len {
            disk.set_len(LOG, log.len).map_err(io("cut", LOG))?;
        }
        for known in log.frames.iter().skip(usize::try_from(durable).unwrap_or(usize::MAX)) {
            let start = known.offset as usize;
            let end = start + FRAME + known.len as usize + HASH;
            disk.write_at(LOG, known.offset, &bytes[start..end]).map_err(io("write", LOG))?;
        }
        disk.sync(LOG).map_err(io("sync", LOG))?;
        // The name too: a rename may have been the last thing before a crash.
        disk.sync_dir().map_err(io("sync the folder of", LOG))?;
        mark(disk, log);
        Ok(())
    }

    fn count_opening(&mut self, log: &mut Log) -> Result<()> {
        let bytes = read_all(&mut self.disk, OPENS)?;
        let found = slots::<4>(bytes.as_deref()).map(|slot| slot.map(|n| number(&n) as u32));
        let highest = found.iter().flatten().max();
        match highest {
            Some(highest) => {
                // If the other slot is broken, it may have been the newer one.
                log.opened = highest + u32::from(found.contains(&None));
                log.opens_slot = u64::from(found[1] == Some(*highest));
                // It may be in the page cache alone; made durable before the other slot is touched.
                let again = slot(&highest.to_be_bytes());
                let disk = &mut self.disk;
                disk.write_at(OPENS, log.opens_slot * SLOT, &again).map_err(io("write", OPENS))?;
                disk.sync(OPENS).map_err(io("sync", OPENS))?;
            }
            // A crash while the store was made: no HEAD went out.
            None if log.last.is_none() => {
                create_opens(&mut self.disk)?;
                log.opens_slot = 1;
            }
            None => return Err(damaged(OPENS, 0, "how often the store was opened is not known any more")),
        }
        let next = log.opened + 1;
        raise(&mut self.disk, log, next)
    }

    /// Checks the chains of HEADs that left the log.
    fn read_chain(&mut self, begin: &Begin) -> Result<Vec<Block>> {
        let (mut blocks, mut at) = (Vec::new(), 0);
        let file = chain_file(begin.chain_epoch);
        while at < begin.chain_len {
            let block = self.read_block(begin.chain_epoch, at, begin.chain_len)?.0;
            if blocks.last().is_some_and(|before: &Block| before.last >= block.first) {
                return Err(damaged(&file, at, "revisions do not rise"));
            }
            at += (ROW as u64) * (1 + u64::from(block.rows));
            blocks.push(block);
        }
        Ok(blocks)
    }

    fn read_block(&mut self, epoch: u64, at: u64, end: u64) -> Result<(Block, Vec<u8>)> {
        let file = chain_file(epoch);
        let wrong = |why| damaged(&file, at, why);
        let disk = &mut self.disk;
        if disk.len(&file).map_err(io("look at", &file))?.is_none_or(|len| len < end) {
            return Err(wrong("it is shorter than it was"));
        }
        let head = read(disk, &file, at, ROW as u64)?;
        let rows = number(&head[8..12]);
        let start = at + ROW as u64;
        if head[..8] != [0; 8] || rows == 0 || rows > BLOCK as u64 || start + rows * ROW as u64 > end {
            return Err(wrong("no block begins here"));
        }
        let body = read(disk, &file, start, rows * ROW as u64)?;
        if head[12..] != block_hash(epoch, at, &body) {
            return Err(wrong("its hash is wrong"));
        }
        let rev = |row: usize| number(&body[row * ROW..row * ROW + 8]);
        let block = Block { offset: at, rows: rows as u32, first: rev(0), last: rev(rows as usize - 1) };
        Ok((block, body))
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

    /// Writes the new log beside. Before the rename nothing of the old one is touched.
    fn write_compacted(&mut self, old: &Log, base: &Snapshot, keep: usize) -> Result<Log> {
        let id = Id::random().map_err(io("get randomness for", NEW))?;
        let epoch = old.last.as_ref().map_or(0, |head| head.position.epoch.number);
        let known_len = if old.chain_epoch == epoch { old.chain_len } else { 0 };
        let rows: Vec<(u64, [u8; 32])> = (old.frames[..keep].iter())
            .filter_map(|frame| frame.head)
            .filter(|(of, ..)| of.number == epoch)
            .map(|(_, rev, chain)| (rev, chain))
            .collect();
        let mut chain = Vec::new();
        let mut blocks = if known_len > 0 { old.blocks.clone() } else { Vec::new() };
        for rows in rows.chunks(BLOCK) {
            let offset = known_len + chain.len() as u64;
            let mut body = Vec::with_capacity(rows.len() * ROW);
            for (rev, chain) in rows {
                body.u64(*rev);
                body.raw(chain);
            }
            chain.u64(0);
            chain.u32(rows.len() as u32);
            chain.raw(&block_hash(epoch, offset, &body));
            chain.raw(&body);
            let (first, last) = (rows[0].0, rows[rows.len() - 1].0);
            blocks.push(Block { offset, rows: rows.len() as u32, first, last });
        }
        let chain_len = known_len + chain.len() as u64;
        let begin = Begin {
            base: Some(base.clone()),
            sealed: (old.frames.len() - keep) as u64,
            chain_epoch: epoch,
            chain_len,
        };
        let mut new = Log {
            id,
            frames: Vec::new(),
            len: 0,
            base: Some(base.head.clone()),
            last: old.last.clone(),
            marks: old.marks,
            opened: old.opened,
            opens_slot: old.opens_slot,
            chain_epoch: epoch,
            chain_len,
            blocks,
        };
        self.disk.remove(NEW).map_err(io("remove", NEW))?;
        let mut out = MAGIC.to_vec();
        out.raw(&id.0);
        out.raw(&frame(&id, 0, &self.begin_payload(&begin)));
        for (i, known) in old.frames.iter().enumerate().skip(keep) {
            let payload = self.read_frame(&old.id, i as u64 + 1, *known)?;
            let offset = new.len + out.len() as u64;
            new.frames.push(Frame { offset, ..*known });
            out.raw(&frame(&id, new.frames.len() as u64, &payload));
            if out.len() >= CHUNK {
                self.disk.write_at(NEW, new.len, &out).map_err(io("write", NEW))?;
                new.len += out.len() as u64;
                out.clear();
            }
        }
        self.disk.write_at(NEW, new.len, &out).map_err(io("write", NEW))?;
        new.len += out.len() as u64;
        if !chain.is_empty() {
            let file = chain_file(epoch);
            self.disk.write_at(&file, known_len, &chain).map_err(io("write", &file))?;
        }
        Ok(new)
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

fn agrees(head: &Head, state: &State) -> std::result::Result<(), &'static str> {
    match (head.keys, head.bytes, head.digest) == (state.keys(), state.bytes(), state.digest()) {
        true => Ok(()),
        false => Err("content does not have the digest that its HEAD names"),
    }
}

fn named(record: &Record) -> Option<(Epoch, u64, [u8; 32])> {
    match record {
        Record::Batch(Batch { head, .. }) => Some((head.position.epoch, head.position.rev, head.chain)),
        Record::Frozen(_) => None,
    }
}

/// Whether `head` may follow `last`.
fn follows(last: Option<&Head>, head: &Head) -> bool {
    let (epoch, rev) = (head.position.epoch, head.position.rev);
    if last.is_some_and(|last| last.position.rev >= rev) {
        return false;
    }
    let previous = match last {
        Some(last) if last.position.epoch == epoch => {
            if head.prev_rev != last.position.rev {
                return false;
            }
            last.chain
        }
        last => {
            let above = last.is_none_or(|last| last.position.epoch.number < epoch.number);
            if head.prev_rev != 0 || !above {
                return false;
            }
            [0; 32]
        }
    };
    head.chain == chain(&previous, rev, &head.digest)
}

type Replayed = (Option<Snapshot>, Option<Head>);

/// Applies all records and checks every digest on the way.
fn replay(base: Option<&Snapshot>, records: &[Record]) -> Result<Replayed> {
    let (mut last, mut frozen) = (base.cloned(), None);
    for record in records {
        match record {
            Record::Batch(batch) => {
                let wrong = |why| damaged(LOG, 0, format!("revision {}: {why}", batch.head.position.rev));
                if !follows(last.as_ref().map(|last| &last.head), &batch.head) {
                    return Err(wrong("it does not follow from the one before"));
                }
                let mut state = last.take().map(|last| last.state).unwrap_or_default();
                for commit in &batch.commits {
                    state.apply(&commit.changes);
                    if state.digest() != commit.digest {
                        return Err(wrong("a commit does not have its digest"));
                    }
                }
                agrees(&batch.head, &state).map_err(wrong)?;
                if batch.head.prev_rev == 0 {
                    frozen = None;
                }
                last = Some(Snapshot { head: batch.head.clone(), state });
            }
            Record::Frozen(head) => frozen = Some(head.clone()),
        }
    }
    Ok((last, frozen))
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
                self.phase = Phase::Stopped(error.to_string());
                Err(error)
            }
        }
    }

    fn append_durable(&mut self, record: &Record) -> Result<()> {
        if matches!(self.phase, Phase::Absent) {
            self.phase = match self.create() {
                Ok(log) => Phase::Open(log),
                Err(error) => {
                    self.phase = Phase::Stopped(error.to_string());
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
        let payload = record.encode();
        self.write(|disk, log| {
            let bytes = frame(&log.id, log.frames.len() as u64 + 1, &payload);
            disk.write_at(LOG, log.len, &bytes).map_err(io("write", LOG))?;
            disk.sync(LOG).map_err(io("sync", LOG))?;
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
                Record::Frozen(_) => {}
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
        let old = match std::mem::replace(&mut self.phase, Phase::Stopped("interrupted".into())) {
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
            Phase::Stopped(why) => Health { stopped: Some(why.clone()), ..Health::default() },
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
        let log = self.log()?;
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
}
