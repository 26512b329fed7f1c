//! What a log that is opened holds, and whether what is broken at its end was ever acknowledged.
//!
//! Owns: what recovery believes. Never: repairs damage.

use bytes::Bytes;

use super::format::{block_hash, chain_file, frame_at, number, slot, sync_word};
use super::{
    BLOCK, Begin, Block, CHAIN, Embedded, FRAME, Frame, HASH, HEADER, LOG, Log, MAGIC, MARK, OPENS, ROW,
    Result, SLOT, create_opens, damaged, io, mark, named, raise, read, read_all,
};
use crate::rollout::Open;
use crate::source::{Disk, Record, Recovered, Snapshot, SourceError};
use crate::wire::{Reader, decode_state};
use crate::{Head, Id, State, chain};

impl<D: Disk> Embedded<D> {
    pub(super) fn open(&mut self) -> Result<Option<(Log, Recovered)>> {
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

        let (last, frozen, rollout) = replay(begin.base.as_ref(), &records)?;
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
        let opened = log.opened;
        let recovered = Recovered { opened, base: begin.base, records, last, frozen, rollout, cut };
        Ok(Some((log, recovered)))
    }

    /// Makes durable what was read, whatever the page cache pretends.
    pub(super) fn settle(&mut self, log: &mut Log, bytes: &Bytes, durable: u64) -> Result<()> {
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

    pub(super) fn count_opening(&mut self, log: &mut Log) -> Result<()> {
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
    pub(super) fn read_chain(&mut self, begin: &Begin) -> Result<Vec<Block>> {
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

    pub(super) fn read_block(&mut self, epoch: u64, at: u64, end: u64) -> Result<(Block, Vec<u8>)> {
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

    pub(super) fn parse_begin(&self, payload: &Bytes) -> Result<Begin> {
        let wrong = |e: crate::wire::DecodeError| damaged(LOG, HEADER, e.to_string());
        let mut r = Reader::new(payload);
        let cluster = Id(r.array().map_err(wrong)?);
        let namespace = r.string(crate::wire::MAX_NAMESPACE, "namespace").map_err(wrong)?;
        if (cluster, &namespace) != (self.cluster, &self.namespace) {
            return Err(SourceError::Foreign { cluster, namespace });
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
}

/// The namespace that a log file of these first bytes is of, as they say, unchecked: opening it checks them.
#[cfg(all(unix, feature = "sync"))]
pub(crate) fn namespace_of(first: &[u8]) -> Option<String> {
    // Magic, id and the head of frame 0, whose payload begins with the cluster.
    let payload =
        first.strip_prefix(MAGIC)?.get(HEADER as usize - MAGIC.len() + FRAME + size_of::<Id>()..)?;
    let payload = Bytes::copy_from_slice(payload);
    Reader::new(&payload).string(crate::wire::MAX_NAMESPACE, "namespace").ok()
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
pub(super) fn slots<const N: usize>(bytes: Option<&[u8]>) -> [Option<[u8; N]>; 2] {
    [0, SLOT as usize].map(|at| {
        let slot = bytes?.get(at..at + N + HASH)?;
        let (body, sum) = slot.split_at(N);
        (blake3::hash(body).as_bytes()[..] == *sum).then(|| body.try_into().ok()).flatten()
    })
}

pub(super) fn agrees(head: &Head, state: &State) -> std::result::Result<(), &'static str> {
    match (head.keys, head.bytes, head.digest) == (state.keys(), state.bytes(), state.digest()) {
        true => Ok(()),
        false => Err("content does not have the digest that its HEAD names"),
    }
}

/// Whether `head` may follow `last`.
pub(super) fn follows(last: Option<&Head>, head: &Head) -> bool {
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

type Replayed = (Option<Snapshot>, Option<Head>, Option<Open>);

/// Applies all records and checks every digest on the way.
fn replay(base: Option<&Snapshot>, records: &[Record]) -> Result<Replayed> {
    let (mut last, mut frozen, mut open) = (base.cloned(), None, None);
    for record in records {
        match record {
            Record::Batch(batch) => {
                let wrong = |why| damaged(LOG, 0, format!("revision {}: {why}", batch.head.position.rev));
                if !follows(last.as_ref().map(|last| &last.head), &batch.head) {
                    return Err(wrong("it does not follow from the one before"));
                }
                let before = last.take();
                let mut state = before.as_ref().map(|last| last.state.clone()).unwrap_or_default();
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
                // Whatever follows a rollout ends it.
                open = match (&batch.plan, &batch.commits[..], before) {
                    (None, ..) if batch.head.audience.is_empty() => None,
                    (Some(plan), [commit], Some(for_all)) if batch.head.prev_rev != 0 => Some(Open {
                        plan: plan.clone(),
                        rollout: commit.request,
                        stage: 0,
                        paused: false,
                        members: None,
                        for_all,
                    }),
                    _ => return Err(wrong("it is for a cohort, and opens no rollout")),
                };
                last = Some(Snapshot { head: batch.head.clone(), state });
            }
            Record::Frozen(head) => frozen = Some(head.clone()),
            Record::Mark(mark) => {
                let Some(last) = last.as_mut().filter(|last| last.head.position == mark.at) else {
                    return Err(damaged(LOG, 0, format!("a step of {}, which is not the newest", mark.at)));
                };
                if mark.passed {
                    (open, last.head.audience) = (None, Bytes::new());
                } else if let Some(open) = &mut open {
                    // Where there is none, what opened it is below the base, and over.
                    open.step(mark);
                    last.head.audience = open.audience();
                }
            }
        }
    }
    Ok((last, frozen, open))
}
