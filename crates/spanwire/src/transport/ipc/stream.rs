//! A connection of ipc, dialled or accepted.
//!
//! Owns: its socket, and what the event loop is told of it. Never: has anybody woken for room that nobody waits for. A
//! Unix socket tells of room with each read of its peer (tcp only after it was full): the one who waits for an answer
//! would wake twice for each, and the driver with every read of a receiver.

use std::io::{self, IoSlice, Write};

use mio::Interest;
use mio::net::UnixStream;
use mio::unix::SourceFd;

use crate::transport::halves::Half;
use crate::transport::{Connection, Facts, Registrar, Registration, Stream, StreamReader, StreamWriter, sys};
use crate::wire::Sp;

pub(super) fn stream(socket: UnixStream, pending: bool, local: String, remote: String) -> Connection {
    let stream = IpcStream { socket, registration: None, pending, local, remote };
    Connection::Stream(Box::new(stream), Box::new(Sp::IPC))
}

#[derive(Debug)]
struct IpcStream {
    socket: UnixStream,
    registration: Option<Registration>,
    /// The connect was under way when it was begun.
    pending: bool,
    local: String,
    remote: String,
}

impl Stream for IpcStream {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        self.registration = Some(registrar.registration());
        // Room tells of a connect that is done.
        registrar.source(&mut self.socket, BOTH)
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
        let (reader, half) = Half::both(self.socket);
        // The first write that leaves whole, the greeting, ends the waiting for room.
        let writer = IpcWriter { half, registration: self.registration, waits: true };
        Ok((Box::new(reader), Box::new(writer)))
    }
}

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// The writing half.
#[derive(Debug)]
struct IpcWriter {
    half: Half<UnixStream>,
    registration: Option<Registration>,
    /// The event loop tells of room.
    waits: bool,
}

impl IpcWriter {
    /// What a write of `wanted` bytes says of room.
    fn wrote(&mut self, wanted: usize, result: io::Result<usize>) -> io::Result<usize> {
        match &result {
            // If there is room again by now, that is told: nothing is missed.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(true)?,
            // Less than all: the next write finds it full.
            // What is told in vain does no harm, and these bytes have left.
            Ok(n) if *n == wanted => drop(self.wait(false)),
            _ => {}
        }
        result
    }

    fn wait(&mut self, waits: bool) -> io::Result<()> {
        let Some(registration) = self.registration.as_ref().filter(|_| self.waits != waits) else {
            return Ok(());
        };
        registration.change(&mut SourceFd(&self.half.fd()), if waits { BOTH } else { Interest::READABLE })?;
        self.waits = waits;
        Ok(())
    }
}

impl Write for IpcWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let result = self.half.write(buf);
        self.wrote(buf.len(), result)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let result = self.half.write_vectored(bufs);
        self.wrote(bufs.iter().map(|buf| buf.len()).sum(), result)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StreamWriter for IpcWriter {
    fn shutdown(&mut self) -> io::Result<bool> {
        self.half.end().map(|()| true)
    }
}
