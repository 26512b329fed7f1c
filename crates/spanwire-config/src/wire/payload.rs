//! What transfers carry: a change set, or a whole state, encoded and cut into slices.
//!
//! Owns: the encoding of entries and operations, canonical (keys rise, none twice). Never: what a payload is
//! based on.

use bytes::Bytes;
use spanwire::Message;

use super::{DecodeError, Reader, SLICE, Slice, Write};
use crate::{Base, Change, ChangeSet, Entry, Head, Key, State};

const PUT: u8 = 1;
const DELETE: u8 = 2;

fn put_entry(out: &mut Vec<u8>, key: &Key, entry: &Entry) {
    out.short(key.as_bytes());
    out.u16(entry.flags());
    out.long(entry.value());
}

fn get_key(r: &mut Reader<'_>, before: Option<&Key>) -> Result<Key, DecodeError> {
    let key = Key::new(r.short(Key::MAX, "key")?).map_err(|_| DecodeError::Value("key"))?;
    if before.is_some_and(|before| *before >= key) {
        return Err(DecodeError::Order);
    }
    Ok(key)
}

fn get_entry(r: &mut Reader<'_>) -> Result<Entry, DecodeError> {
    let flags = r.u16()?;
    // Copied: a small value must not keep the whole transfer in memory.
    Ok(Entry::new(flags, Bytes::copy_from_slice(&r.long()?)))
}

/// Bytes of an encoded state with so many keys, and so many bytes in keys and values.
pub fn snapshot_size(keys: u32, bytes: u64) -> u64 {
    bytes.saturating_add(8 * u64::from(keys))
}

/// The payload of a DELTA: for each operation in key order its kind (1 put, 2 delete), the key (u16 length),
/// and for a put flags (u16) and value (u32 length).
pub fn encode_changes(changes: &ChangeSet) -> Vec<u8> {
    let mut out = Vec::new();
    changes.iter().for_each(|(key, change)| put_change(&mut out, key, change));
    out
}

fn put_change(out: &mut Vec<u8>, key: &Key, change: &Change) {
    match change {
        Change::Put(entry) => {
            out.u8(PUT);
            put_entry(out, key, entry);
        }
        Change::Delete => {
            out.u8(DELETE);
            out.short(key.as_bytes());
        }
    }
}

/// The change set that a DELTA's payload is.
///
/// # Errors
/// What is wrong with it.
pub fn decode_changes(bytes: &Bytes) -> Result<ChangeSet, DecodeError> {
    let (mut r, mut changes, mut before) = (Reader::new(bytes), ChangeSet::new(), None);
    while !r.is_empty() {
        let kind = r.u8()?;
        let key = get_key(&mut r, before.as_ref())?;
        let change = match kind {
            PUT => Change::Put(get_entry(&mut r)?),
            DELETE => Change::Delete,
            _ => return Err(DecodeError::Value("operation")),
        };
        changes.set(key.clone(), change);
        before = Some(key);
    }
    Ok(changes)
}

/// The payload of a SNAPSHOT: for each entry in key order the key (u16 length), flags (u16) and the value
/// (u32 length).
pub fn encode_state(state: &State) -> Vec<u8> {
    let mut out = Vec::new();
    state.iter().for_each(|(key, entry)| put_entry(&mut out, key, entry));
    out
}

/// The state that a SNAPSHOT's payload is.
///
/// # Errors
/// What is wrong with it.
pub fn decode_state(bytes: &Bytes) -> Result<State, DecodeError> {
    let (mut r, mut state, mut before) = (Reader::new(bytes), State::new(), None);
    while !r.is_empty() {
        let key = get_key(&mut r, before.as_ref())?;
        state.put(key.clone(), get_entry(&mut r)?);
        before = Some(key);
    }
    Ok(state)
}

/// A transfer, encoded once and shared by every pipe that sends it.
#[derive(Debug)]
pub(crate) struct Payload {
    head: Head,
    base: Option<Base>,
    /// Whole messages, each with a slice of [`SLICE`] bytes but the last. At least one.
    slices: Vec<Message>,
    size: u64,
    prefix: usize,
}

impl Payload {
    /// The step from `base` to `head`.
    pub(crate) fn delta(head: &Head, base: Base, changes: &ChangeSet) -> Payload {
        let mut build = Building::new(head, Some(base));
        let mut one = Vec::new();
        for (key, change) in changes.iter() {
            one.clear();
            put_change(&mut one, key, change);
            build.add(&one);
        }
        build.finish()
    }

    /// All of `state`, which is at `head`.
    pub(crate) fn snapshot(head: &Head, state: &State) -> Payload {
        let mut build = Building::new(head, None);
        let mut one = Vec::new();
        for (key, entry) in state.iter() {
            one.clear();
            put_entry(&mut one, key, entry);
            build.add(&one);
        }
        build.finish()
    }

    /// Where it leads.
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// Bytes of payload.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The message with the slice at `offset`, at most `max` bytes of payload, and how many those are.
    /// `None` beyond the end.
    pub(crate) fn slice(&self, offset: u64, max: usize) -> Option<(Message, usize)> {
        let index = usize::try_from(offset / SLICE as u64).ok()?;
        let within = (offset % SLICE as u64) as usize;
        let message = self.slices.get(index)?;
        // The prefix ends with the u32 length of the payload.
        let payload = message.body().get(self.prefix + within..)?;
        if within == 0 && max >= payload.len() {
            return Some((message.clone(), payload.len()));
        }
        let part = &payload[..payload.len().min(max)];
        let last = offset + part.len() as u64 == self.size;
        let mut out = Slice::prefix(&self.head, self.base.as_ref(), offset, last);
        out.long(part);
        Some((Message::from(out), part.len()))
    }
}

/// Cuts while it encodes, so that the payload is in memory once.
struct Building<'a> {
    head: &'a Head,
    base: Option<Base>,
    full: Vec<Vec<u8>>,
    now: Vec<u8>,
}

impl<'a> Building<'a> {
    fn new(head: &'a Head, base: Option<Base>) -> Self {
        Building { head, base, full: Vec::new(), now: Vec::new() }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while self.now.len() + bytes.len() > SLICE {
            let (fits, rest) = bytes.split_at(SLICE - self.now.len());
            self.now.extend_from_slice(fits);
            self.full.push(std::mem::take(&mut self.now));
            bytes = rest;
        }
        self.now.extend_from_slice(bytes);
    }

    fn finish(mut self) -> Payload {
        if !self.now.is_empty() || self.full.is_empty() {
            self.full.push(self.now);
        }
        let size = self.full.iter().map(|slice| slice.len() as u64).sum();
        let count = self.full.len();
        let mut prefix = 0;
        let slices = (self.full.into_iter().enumerate())
            .map(|(i, slice)| {
                let offset = (i * SLICE) as u64;
                let mut out = Slice::prefix(self.head, self.base.as_ref(), offset, i + 1 == count);
                prefix = out.len() + 4;
                out.long(&slice);
                Message::from(out)
            })
            .collect();
        Payload { head: self.head.clone(), base: self.base, slices, size, prefix }
    }
}
