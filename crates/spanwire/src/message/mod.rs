//! A message: protocol header words apart from the body, small payloads without allocation.
//!
//! Up to [`Message::INLINE`] bytes of body live inside the message itself, together with a few header
//! words in front of them; larger bodies are a shared [`Bytes`], cheap to clone. Inline, header and body
//! are one contiguous run, so moving a word from the body to the header (what a receiver of an SP
//! backtrace does) only moves a boundary, and encoding is one copy.
//!
//! Owns: the representation. Never: knows what the words mean (the protocols do) or how they are framed
//! (the wires do).

mod body;
pub(crate) mod pool;
mod unique;
mod words;

use bytes::Bytes;
use std::fmt;
use std::ops::Deref;

use body::Body;
use words::Words;

/// Room in front of an inline body for header words: three, so a request with its id and the id of one
/// device still fits.
const HEAD: usize = 12;
const BUF: usize = HEAD + Message::INLINE;

/// What sockets send and receive: a body of bytes, and the header words of its protocol.
///
/// Applications see the body: it dereferences to `[u8]`. The header belongs to protocols: [`header`](Message::header),
/// [`push_word_front`](Message::push_word_front) and [`pop_word`](Message::pop_word) are for those who write one, or a device.
///
/// ```
/// use spanwire::Message;
/// let m = Message::from("hello");
/// assert_eq!(&m[..], b"hello");
/// assert_eq!(m.len(), 5);
/// ```
#[derive(Clone)]
pub struct Message(Repr);

#[derive(Clone)]
enum Repr {
    /// Header `buf[off..mid]`, big-endian words; body `buf[mid..end]`.
    Inline {
        off: u8,
        mid: u8,
        end: u8,
        buf: [u8; BUF],
    },
    Shared {
        words: Words,
        body: Body,
    },
}

/// Copies so few bytes, and as many, that a call would cost more: by two pieces that overlap.
#[inline]
fn copy_few(to: &mut [u8], from: &[u8]) {
    fn ends<const N: usize>(to: &mut [u8], from: &[u8]) -> bool {
        let (Some(first), Some(last)) = (from.first_chunk::<N>(), from.last_chunk::<N>()) else {
            return false;
        };
        let at = to.len() - N;
        to[at..].copy_from_slice(last);
        to[..N].copy_from_slice(first);
        from.len() <= 2 * N
    }
    if from.len() > 2 * 16 || !(ends::<16>(to, from) || ends::<8>(to, from) || ends::<4>(to, from)) {
        to.copy_from_slice(from);
    }
}

impl Message {
    /// Largest body, in bytes, that needs no allocation, with up to three header words in front.
    pub const INLINE: usize = 64;

    /// Most bytes with which a message is [filled](Self::fill).
    pub(crate) const MOST_FILLED: usize = Body::MOST_COPIED;

    /// An empty message.
    pub fn new() -> Self {
        Self::from_slice(&[])
    }

    /// An empty one, made in one piece: to be [filled](Self::fill).
    pub(crate) const EMPTY: Message =
        Message(Repr::Inline { off: HEAD as u8, mid: HEAD as u8, end: HEAD as u8, buf: [0; BUF] });

    /// Copies `body`.
    #[inline]
    pub fn from_slice(body: &[u8]) -> Self {
        // Not looked at here, it stays in one piece; in pieces it would be moved to where the caller keeps it, and the
        // processor would wait for what was stored in other pieces than it is loaded in.
        let mut msg = Self::EMPTY;
        msg.set(body);
        msg
    }

    /// Makes an empty message that lies where it is to be one with this body.
    #[inline(never)]
    fn set(&mut self, body: &[u8]) {
        if body.len() > BUF {
            *self = Self::copied(body);
        } else if let Repr::Inline { off, mid, end, buf } = &mut self.0 {
            // What is larger than `INLINE` takes room from the header: words that came in front of a small body are as
            // many bytes less of it when they are taken off.
            let start = HEAD.min(BUF - body.len());
            copy_few(&mut buf[start..start + body.len()], body);
            (*off, *mid, *end) = (start as u8, start as u8, (start + body.len()) as u8);
        }
    }

    #[inline(always)]
    fn copied(body: &[u8]) -> Self {
        Message(Repr::Shared { words: Words::default(), body: Body::copy(body) })
    }

    /// Makes an empty message that lies where it is to be one with the first `len` bytes of `bytes`, if there are as many,
    /// and if that can be done in pieces of fixed size: of a small body more bytes must follow, and what is too much is
    /// never looked at. (Made elsewhere and moved there, a message is stored in odd pieces and loaded in even ones, which a
    /// processor does slowly.)
    #[inline]
    pub(crate) fn fill(&mut self, bytes: &[u8], len: usize) -> bool {
        const REST: usize = 16; // more than HEAD
        if len > BUF {
            let Some(body) = bytes.get(..len) else { return false };
            *self = Self::copied(body);
            return true;
        }
        let Repr::Inline { off, mid, end, buf } = &mut self.0 else { return false };
        let Some(piece) = bytes.first_chunk::<{ Self::INLINE }>() else { return false };
        let start = if len <= Self::INLINE {
            HEAD
        } else {
            let Some(rest) = bytes.get(..len).and_then(<[u8]>::last_chunk::<REST>) else { return false };
            let Some(start) = BUF.checked_sub(len) else { return false };
            buf[BUF - REST..].copy_from_slice(rest);
            start
        };
        buf[start..start + Self::INLINE].copy_from_slice(piece);
        (*off, *mid, *end) = (start as u8, start as u8, (start + len) as u8);
        true
    }

    /// Takes `body` as it is when it is large, and copies it when it is small.
    #[inline]
    pub fn from_bytes(body: Bytes) -> Self {
        if body.len() <= BUF {
            Self::from_slice(&body)
        } else {
            Message(Repr::Shared { words: Words::default(), body: Body::Own(body) })
        }
    }

    /// The payload, without header words.
    #[inline]
    pub fn body(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { mid, end, buf, .. } => &buf[*mid as usize..*end as usize],
            Repr::Shared { body, .. } => body.as_slice(),
        }
    }

    /// The payload as [`Bytes`]: shared when large, copied when small. Header words are left behind.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Repr::Inline { mid, end, buf, .. } => Bytes::copy_from_slice(&buf[mid as usize..end as usize]),
            Repr::Shared { body, .. } => body.into_bytes(),
        }
    }

    /// Length of the body in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.body().len()
    }

    /// Whether the body is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.body().is_empty()
    }

    /// Header words, first first. Empty for what applications send and receive.
    pub fn header(&self) -> Header<'_> {
        Header(match &self.0 {
            Repr::Inline { off, mid, buf, .. } => HeaderRepr::Bytes(&buf[*off as usize..*mid as usize]),
            Repr::Shared { words, .. } => HeaderRepr::Words(words.as_slice()),
        })
    }

    /// Number of header words.
    #[inline]
    pub fn header_len(&self) -> usize {
        match &self.0 {
            Repr::Inline { off, mid, .. } => (mid - off) as usize / 4,
            Repr::Shared { words, .. } => words.as_slice().len(),
        }
    }

    /// Bytes that header and body take on a wire, its framing not counted.
    #[inline]
    pub fn wire_len(&self) -> usize {
        match &self.0 {
            Repr::Inline { off, end, .. } => (end - off) as usize,
            Repr::Shared { words, body } => words.as_slice().len() * 4 + body.as_slice().len(),
        }
    }

    /// Puts a word in front of the header.
    pub fn push_word_front(&mut self, word: u32) {
        match &mut self.0 {
            Repr::Inline { off, buf, .. } if *off >= 4 => {
                *off -= 4;
                buf[*off as usize..*off as usize + 4].copy_from_slice(&word.to_be_bytes());
            }
            Repr::Inline { .. } => {
                self.share();
                self.push_word_front(word);
            }
            Repr::Shared { words, .. } => words.push_front(word),
        }
    }

    /// Replaces the header by `words`.
    pub fn set_header(&mut self, words: &[u32]) {
        self.clear_header();
        for &word in words.iter().rev() {
            self.push_word_front(word);
        }
    }

    /// Takes away all header words.
    pub fn clear_header(&mut self) {
        match &mut self.0 {
            Repr::Inline { off, mid, .. } => *off = *mid,
            Repr::Shared { words, .. } => *words = Words::default(),
        }
    }

    /// Takes the first header word off; `None` when there is none. The body is not looked at.
    pub fn pop_header(&mut self) -> Option<u32> {
        match &mut self.0 {
            Repr::Inline { off, mid, buf, .. } => {
                if off == mid {
                    return None;
                }
                let word = word_at(buf, *off as usize)?;
                *off += 4;
                Some(word)
            }
            Repr::Shared { words, .. } => words.pop_front(),
        }
    }

    /// Takes the next protocol word off: from the header if it has any (transports that keep it apart:
    /// inproc), else from the front of the body (streams deliver them joined). `None`: fewer than four
    /// bytes are left, and nothing was taken.
    pub fn pop_word(&mut self) -> Option<u32> {
        if let Some(word) = self.pop_header() {
            return Some(word);
        }
        match &mut self.0 {
            Repr::Inline { off, mid, end, buf } => {
                if *end - *mid < 4 {
                    return None;
                }
                let word = word_at(buf, *mid as usize)?;
                *mid += 4;
                *off = *mid;
                Some(word)
            }
            Repr::Shared { body, .. } => {
                let word = word_at(body.as_slice(), 0)?;
                body.advance(4);
                Some(word)
            }
        }
    }

    /// Moves one word from the front of the body to the end of the header and returns it. `None`: the body
    /// is shorter than four bytes, and nothing moved.
    pub fn shift_word(&mut self) -> Option<u32> {
        match &mut self.0 {
            Repr::Inline { mid, end, buf, .. } => {
                if *end - *mid < 4 {
                    return None;
                }
                let word = word_at(buf, *mid as usize)?;
                *mid += 4;
                Some(word)
            }
            Repr::Shared { words, body } => {
                let word = word_at(body.as_slice(), 0)?;
                body.advance(4);
                words.push(word);
                Some(word)
            }
        }
    }

    /// The same message as a stream transport delivers it: header words at the front of the body.
    pub fn joined(mut self) -> Message {
        match &mut self.0 {
            Repr::Inline { off, mid, .. } => {
                *mid = *off;
                self
            }
            Repr::Shared { words, .. } if words.as_slice().is_empty() => self,
            Repr::Shared { .. } => {
                let mut all = Vec::with_capacity(self.wire_len());
                self.append_to(&mut all);
                Message::from_bytes(all.into())
            }
        }
    }

    /// Appends header and body as they go on a wire.
    #[inline]
    pub fn append_to(&self, out: &mut Vec<u8>) {
        match &self.0 {
            Repr::Inline { off, end, buf, .. } => out.extend_from_slice(&buf[*off as usize..*end as usize]),
            Repr::Shared { words, body } => {
                for word in words.as_slice() {
                    out.extend_from_slice(&word.to_be_bytes());
                }
                out.extend_from_slice(body.as_slice());
            }
        }
    }

    /// The body if it is large, or the caller's own: what a writer may send by reference.
    pub(crate) fn shared_body(&self) -> Option<&Bytes> {
        match &self.0 {
            Repr::Shared { body: Body::Own(bytes), .. } => Some(bytes),
            _ => None,
        }
    }

    fn share(&mut self) {
        if let Repr::Inline { mid, end, buf, .. } = &self.0 {
            let body = Body::copy(&buf[*mid as usize..*end as usize]);
            let mut words = Words::default();
            for word in self.header() {
                words.push(word);
            }
            self.0 = Repr::Shared { words, body };
        }
    }
}

#[inline]
fn word_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|w| w.try_into().ok()).map(u32::from_be_bytes)
}

/// The header words of a message, in order.
#[derive(Clone)]
pub struct Header<'a>(HeaderRepr<'a>);

#[derive(Clone)]
enum HeaderRepr<'a> {
    Bytes(&'a [u8]),
    Words(&'a [u32]),
}

impl Iterator for Header<'_> {
    type Item = u32;
    fn next(&mut self) -> Option<u32> {
        match &mut self.0 {
            HeaderRepr::Bytes(b) => {
                let word = word_at(b, 0)?;
                *b = &b[4..];
                Some(word)
            }
            HeaderRepr::Words(w) => {
                let (first, rest) = w.split_first()?;
                *w = rest;
                Some(*first)
            }
        }
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        let n = match &self.0 {
            HeaderRepr::Bytes(b) => b.len() / 4,
            HeaderRepr::Words(w) => w.len(),
        };
        (n, Some(n))
    }
}

impl ExactSizeIterator for Header<'_> {}

impl fmt::Debug for Header<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone().map(|w| format!("{w:#010x}"))).finish()
    }
}

impl Default for Message {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Message {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        self.body()
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        self.body()
    }
}

impl From<&[u8]> for Message {
    #[inline]
    fn from(body: &[u8]) -> Self {
        Self::from_slice(body)
    }
}

impl<const N: usize> From<&[u8; N]> for Message {
    #[inline]
    fn from(body: &[u8; N]) -> Self {
        Self::from_slice(body)
    }
}

impl<const N: usize> From<[u8; N]> for Message {
    fn from(body: [u8; N]) -> Self {
        Self::from_slice(&body)
    }
}

impl From<&str> for Message {
    #[inline]
    fn from(body: &str) -> Self {
        Self::from_slice(body.as_bytes())
    }
}

impl From<String> for Message {
    fn from(body: String) -> Self {
        Self::from(body.into_bytes())
    }
}

impl From<Vec<u8>> for Message {
    fn from(body: Vec<u8>) -> Self {
        Self::from_bytes(Bytes::from(body))
    }
}

impl From<Bytes> for Message {
    fn from(body: Bytes) -> Self {
        Self::from_bytes(body)
    }
}

impl From<Message> for Bytes {
    fn from(m: Message) -> Bytes {
        m.into_bytes()
    }
}

impl From<Message> for Vec<u8> {
    fn from(m: Message) -> Vec<u8> {
        m.into_bytes().into()
    }
}

/// Two messages are equal if their headers and bodies are.
impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.body() == other.body() && self.header().eq(other.header())
    }
}

impl Eq for Message {}

impl PartialEq<[u8]> for Message {
    fn eq(&self, other: &[u8]) -> bool {
        self.body() == other
    }
}

impl PartialEq<&[u8]> for Message {
    fn eq(&self, other: &&[u8]) -> bool {
        self.body() == *other
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for Message {
    fn eq(&self, other: &&[u8; N]) -> bool {
        self.body() == *other
    }
}

impl PartialEq<str> for Message {
    fn eq(&self, other: &str) -> bool {
        self.body() == other.as_bytes()
    }
}

impl PartialEq<&str> for Message {
    fn eq(&self, other: &&str) -> bool {
        self.body() == other.as_bytes()
    }
}

/// Shows the header words, and the body up to 64 bytes with its length.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.body()[..self.len().min(64)];
        if self.header_len() > 0 {
            write!(f, "{:?}", self.header())?;
        }
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if shown.len() < self.len() {
            write!(f, "… ({} bytes)", self.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_eighty_bytes() {
        assert_eq!(std::mem::size_of::<Message>(), 80);
        assert_eq!(std::mem::size_of::<Option<Message>>(), 80);
    }

    /// Every operation must give the same whether a body is inline or shared.
    fn sizes() -> impl Iterator<Item = Vec<u8>> {
        [0, 1, 3, 4, 5, 8, 63, 64, 65, 68, 75, 76, 77, 1000]
            .into_iter()
            .map(|n| (0..n).map(|i| i as u8).collect())
    }

    #[test]
    fn bodies_come_back_whole_at_every_size() {
        for body in sizes() {
            let m = Message::from(body.clone());
            assert_eq!(m, body[..]);
            assert_eq!(m.wire_len(), body.len());
            assert_eq!(m.clone().into_bytes(), body);
            assert_eq!(Message::from_slice(&body), m);
            let followed = [&body[..], &[7; 100]].concat();
            let mut filled = Message::new();
            assert!(filled.fill(&followed, body.len()));
            assert_eq!(filled, m);
            assert!(!Message::new().fill(&body, body.len() + 1), "there are fewer");
        }
    }

    #[test]
    fn a_small_body_is_inline_with_the_words_that_came_in_front_of_it() {
        let body = [7; Message::INLINE];
        let mut m = Message::from_slice(&[&[0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0, 0, 3][..], &body].concat());
        assert_eq!([m.shift_word(), m.shift_word(), m.shift_word()], [Some(1), Some(2), Some(0x8000_0003)]);
        assert_eq!((m.body(), m.header_len(), m.shared_body()), (&body[..], 3, None));
    }

    #[test]
    fn header_words_keep_their_order_and_join_in_front_of_the_body() {
        for body in sizes() {
            for n in 0..10u32 {
                let words: Vec<u32> = (1..=n).collect();
                let mut m = Message::from(body.clone());
                m.set_header(&words);
                assert_eq!(m.header().collect::<Vec<_>>(), words);
                assert_eq!((m.header_len(), m.body()), (n as usize, &body[..]));
                let mut wire = vec![];
                m.append_to(&mut wire);
                assert_eq!(wire.len(), m.wire_len());
                let joined = m.clone().joined();
                assert_eq!(joined, wire[..]);
                let mut back = joined;
                for w in &words {
                    assert_eq!(back.shift_word(), Some(*w));
                }
                assert_eq!(back, m);
                for w in &words {
                    assert_eq!(back.pop_word(), Some(*w));
                }
                assert_eq!(back, body[..]);
            }
        }
    }

    #[test]
    fn words_are_taken_from_the_header_first_and_never_from_too_short_a_body() {
        let mut m = Message::from(&[0, 0, 0, 7, 9, 9, 9]);
        m.push_word_front(5);
        assert_eq!(m.pop_word(), Some(5));
        assert_eq!(m.pop_word(), Some(7));
        assert_eq!(m.pop_word(), None);
        assert_eq!(m.shift_word(), None);
        assert_eq!(m.pop_header(), None);
        assert_eq!(m, &[9, 9, 9]);
    }

    #[test]
    fn a_hundred_words_fit() {
        let mut m = Message::from("x");
        for w in 0..100 {
            m.push_word_front(w);
        }
        assert_eq!(m.header().len(), 100);
        assert_eq!(m.pop_header(), Some(99));
        assert_eq!(m.wire_len(), 99 * 4 + 1);
    }
}
