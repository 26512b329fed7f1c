//! Reading and writing of integers, strings and byte strings, big-endian.
//!
//! Owns: bounds checks. Never: allocates by a length that the bytes do not bear out.

use bytes::Bytes;

use super::DecodeError;

/// Takes values off the front of bytes.
pub(crate) struct Reader<'a> {
    whole: &'a Bytes,
    at: usize,
}

type Result<T> = std::result::Result<T, DecodeError>;

impl<'a> Reader<'a> {
    pub(crate) fn new(whole: &'a Bytes) -> Self {
        Reader { whole, at: 0 }
    }

    /// The next `n` bytes, shared with the whole.
    pub(crate) fn take(&mut self, n: usize) -> Result<Bytes> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.whole.len()).ok_or(DecodeError::Short)?;
        let taken = self.whole.slice(self.at..end);
        self.at = end;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes =
            self.whole.get(self.at..).and_then(|rest| rest.first_chunk()).ok_or(DecodeError::Short)?;
        self.at += N;
        Ok(*bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array().map(|[b]| b)
    }
    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }
    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }
    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn bool(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Value("flag")),
        }
    }

    /// A string with a u16 length of at most `max` bytes.
    pub(crate) fn string(&mut self, max: usize, what: &'static str) -> Result<String> {
        let bytes = self.short(max, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Value(what))
    }

    /// A byte string with a u16 length of at most `max`.
    pub(crate) fn short(&mut self, max: usize, what: &'static str) -> Result<Bytes> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(DecodeError::TooLong(what));
        }
        self.take(len)
    }

    /// A byte string with a u32 length.
    pub(crate) fn long(&mut self) -> Result<Bytes> {
        let len = self.u32()?;
        self.take(usize::try_from(len).map_err(|_| DecodeError::Short)?)
    }

    /// A list with a length of at most `max`. Each element takes at least a byte off the message, so the
    /// list cannot outgrow it.
    pub(crate) fn list<T>(
        &mut self,
        len: usize,
        max: usize,
        what: &'static str,
        mut one: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        if len > max {
            return Err(DecodeError::TooLong(what));
        }
        let mut list = Vec::new();
        for _ in 0..len {
            list.push(one(self)?);
        }
        Ok(list)
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.whole.len()
    }

    pub(crate) fn end(self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}

/// Appends values to bytes.
pub(crate) trait Write {
    fn u8(&mut self, v: u8);
    fn u16(&mut self, v: u16);
    fn u32(&mut self, v: u32);
    fn u64(&mut self, v: u64);
    fn raw(&mut self, v: &[u8]);
    /// With a u16 length. What is longer is cut: the callers' types are within it.
    fn short(&mut self, v: &[u8]);
    /// With a u32 length.
    fn long(&mut self, v: &[u8]);
    /// A string of at most `max` bytes, with a u16 length; what is longer is cut between characters.
    fn text(&mut self, v: &str, max: usize);
}

impl Write for Vec<u8> {
    fn u8(&mut self, v: u8) {
        self.push(v);
    }
    fn u16(&mut self, v: u16) {
        self.raw(&v.to_be_bytes());
    }
    fn u32(&mut self, v: u32) {
        self.raw(&v.to_be_bytes());
    }
    fn u64(&mut self, v: u64) {
        self.raw(&v.to_be_bytes());
    }
    fn raw(&mut self, v: &[u8]) {
        self.extend_from_slice(v);
    }
    fn short(&mut self, v: &[u8]) {
        let v = &v[..v.len().min(usize::from(u16::MAX))];
        self.u16(v.len() as u16);
        self.raw(v);
    }
    fn long(&mut self, v: &[u8]) {
        let v = &v[..v.len().min(u32::MAX as usize)];
        self.u32(v.len() as u32);
        self.raw(v);
    }
    fn text(&mut self, v: &str, max: usize) {
        let mut end = v.len().min(max);
        while !v.is_char_boundary(end) {
            end -= 1;
        }
        self.short(&v.as_bytes()[..end]);
    }
}
