//! The engine: who moves the bytes. Work in progress: the notifier and the writing state of a pipe.

mod notes;

pub use notes::Notifier;
pub(crate) use notes::Notes;

use crate::Message;

/// Writing state of a pipe.
#[derive(Debug, Default)]
pub(crate) struct Tx {}

impl Tx {
    pub(crate) fn reclaim(&mut self) -> Option<Message> {
        None
    }
}
