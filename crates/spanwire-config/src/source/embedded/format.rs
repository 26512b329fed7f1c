//! The bytes of frames, slots and blocks.
//!
//! Owns: layout and hashes. Never: a file.

use super::{CHAIN, FRAME, HASH};
use crate::Id;
use crate::wire::Write;

/// What frames of the log `id` begin with.
pub(super) fn sync_word(id: &Id) -> [u8; 8] {
    let mut word = [0; 8];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0).update(b"frame");
    word.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    word
}

pub(super) fn frame(id: &Id, index: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FRAME + payload.len() + HASH);
    out.raw(&sync_word(id));
    out.u64(index);
    out.u64(payload.len() as u64);
    out.raw(payload);
    let hash = hash(id, &out);
    out.raw(&hash);
    out
}

pub(super) fn hash(id: &Id, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0).update(bytes);
    *hasher.finalize().as_bytes()
}

/// The payload of the whole frame at `at`, and its index.
pub(super) fn frame_at(
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

pub(super) fn slot(body: &[u8]) -> Vec<u8> {
    let mut out = body.to_vec();
    out.raw(blake3::hash(body).as_bytes());
    out
}

pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

pub(super) fn chain_file(epoch: u64) -> String {
    format!("{CHAIN}{epoch:016x}")
}

pub(super) fn block_hash(epoch: u64, offset: u64, rows: &[u8]) -> [u8; 28] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&epoch.to_be_bytes()).update(&offset.to_be_bytes()).update(rows);
    let mut out = [0; 28];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..28]);
    out
}
