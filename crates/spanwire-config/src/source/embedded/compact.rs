//! The log written anew with a later base.
//!
//! Owns: the new file, and the chains of HEADs that leave. Never: touches the old log.

use super::format::{block_hash, chain_file, frame};
use super::{BLOCK, Begin, Block, CHUNK, Embedded, Frame, Log, MAGIC, NEW, ROW, Result, io};
use crate::Id;
use crate::source::{Disk, Snapshot};
use crate::wire::Write;

impl<D: Disk> Embedded<D> {
    /// Writes the new log beside. Before the rename nothing of the old one is touched.
    pub(super) fn write_compacted(&mut self, old: &Log, base: &Snapshot, keep: usize) -> Result<Log> {
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
