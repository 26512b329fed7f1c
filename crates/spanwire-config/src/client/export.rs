//! A revision in a file: what `export` writes and an import begins an epoch with.
//!
//! ```text
//! 73 70 77 65 78 70 00 01   magic, version 1
//! namespace                 string (u16 length)
//! epoch, incarnation, rev   where it was: for people, an import goes elsewhere
//! digest, keys, bytes       of the content, which is checked against them
//! entries                   byte string (u32 length), as in a SNAPSHOT
//! hash                      BLAKE3 of all bytes before it
//! ```
//!
//! Owns: the layout. Never: a file.

use bytes::Bytes;

use crate::State;
use crate::wire::client::Tip;
use crate::wire::{DecodeError, MAX_NAMESPACE, Reader, Write, decode_state, encode_state};

const MAGIC: [u8; 8] = *b"spwexp\0\x01";

/// A revision outside of any store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// The namespace that it was in.
    pub namespace: String,
    /// Where it was, and what it is.
    pub of: Tip,
    /// The content.
    pub state: State,
}

/// Why bytes are no export.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// They begin in another way.
    #[error("this is no export, or one of a newer version")]
    Magic,
    /// They are damaged.
    #[error("damaged: {0}")]
    Bytes(#[from] DecodeError),
    /// They are not those that were written.
    #[error("damaged: not the bytes that were written")]
    Hash,
    /// The content is not what it is said to be.
    #[error("damaged: the content has another digest than the revision")]
    Digest,
}

impl Export {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.text(&self.namespace, MAX_NAMESPACE);
        self.of.encode(&mut out);
        out.long(&encode_state(&self.state));
        let hash = blake3::hash(&out);
        out.raw(hash.as_bytes());
        out
    }

    /// The export that these bytes are: whole, with the digest that it names.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &Bytes) -> Result<Export, ExportError> {
        let mut r = Reader::new(bytes);
        if r.array() != Ok(MAGIC) {
            return Err(ExportError::Magic);
        }
        let (namespace, of) = (r.string(MAX_NAMESPACE, "namespace")?, Tip::decode(&mut r)?);
        let entries = r.long()?;
        let hash: [u8; 32] = r.array()?;
        r.end()?;
        if blake3::hash(&bytes[..bytes.len() - hash.len()]) != hash {
            return Err(ExportError::Hash);
        }
        let state = decode_state(&entries)?;
        if (state.keys(), state.bytes(), state.digest()) != (of.keys, of.bytes, of.digest) {
            return Err(ExportError::Digest);
        }
        Ok(Export { namespace, of, state })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Entry, Key};

    fn export(pairs: Vec<(u8, Vec<u8>)>) -> Export {
        let one = |(key, value)| (Key::new([key]).expect("one byte"), Entry::new(u16::from(key), value));
        let state: State = pairs.into_iter().map(one).collect();
        let (digest, keys, bytes) = (state.digest(), state.keys(), state.bytes());
        Export { namespace: "n".into(), of: Tip { digest, keys, bytes, ..Tip::default() }, state }
    }

    proptest! {
        #[test]
        fn an_export_goes_round_and_no_changed_byte_of_it_is_taken(
            pairs in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..9)), 0..9),
            at in any::<prop::sample::Index>(), flip in 1u8..=255
        ) {
            let export = export(pairs);
            let mut bytes = export.encode();
            prop_assert_eq!(Export::decode(&bytes.clone().into()), Ok(export.clone()));
            let at = at.index(bytes.len());
            prop_assert!(Export::decode(&Bytes::copy_from_slice(&bytes[..at])).is_err());
            bytes[at] ^= flip;
            prop_assert!(Export::decode(&bytes.into()).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Export::decode(&Bytes::from([&MAGIC[..], &bytes].concat()));
            let _ = Export::decode(&bytes.into());
        }
    }
}
