//! A connection of ipc, dialled or accepted.

use std::io;

use mio::Interest;

use crate::transport::halves::Half;
use crate::transport::{Connection, Facts, Registrar, Stream, StreamReader, StreamWriter, sys};
use crate::wire::Sp;

pub(super) fn stream(
    socket: mio::net::UnixStream,
    pending: bool,
    local: String,
    remote: String,
) -> Connection {
    Connection::Stream(Box::new(IpcStream { socket, pending, local, remote }), Box::new(Sp::IPC))
}

#[derive(Debug)]
struct IpcStream {
    socket: mio::net::UnixStream,
    /// The connect was under way when it was begun.
    pending: bool,
    local: String,
    remote: String,
}

impl Stream for IpcStream {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        registrar.source(&mut self.socket, Interest::READABLE | Interest::WRITABLE)
    }

    fn establish(&mut self) -> io::Result<bool> {
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        if self.pending {
            match self.socket.peer_addr() {
                Ok(_) => self.pending = false,
                Err(e) if e.kind() == io::ErrorKind::NotConnected => {}
                Err(e) => return Err(e),
            }
        }
        Ok(!self.pending)
    }

    fn short_read_is_empty(&self) -> bool {
        sys::SHORT_IS_EMPTY
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::new(self.local.clone(), self.remote.clone());
        if let Some(credentials) = sys::peer_credentials(&self.socket) {
            facts.more.set(credentials);
        }
        facts
    }

    fn split(self: Box<Self>) -> io::Result<(Box<dyn StreamReader>, Box<dyn StreamWriter>)> {
        let (reader, writer) = Half::both(self.socket);
        Ok((Box::new(reader), Box::new(writer)))
    }
}
