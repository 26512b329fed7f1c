//! A connection of tcp, dialled or accepted.

use std::io;
use std::net::SocketAddr;

use mio::Interest;

use crate::transport::halves::Half;
use crate::transport::{Connection, Facts, Registrar, Stream, StreamReader, StreamWriter, sys};
use crate::wire::Sp;

pub(super) fn stream(socket: mio::net::TcpStream) -> Connection {
    Connection::Stream(Box::new(TcpStream { socket }), Box::new(Sp::TCP))
}

#[derive(Debug)]
pub(super) struct TcpStream {
    pub(super) socket: mio::net::TcpStream,
}

impl Stream for TcpStream {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        registrar.source(&mut self.socket, Interest::READABLE | Interest::WRITABLE)
    }

    fn establish(&mut self) -> io::Result<bool> {
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        let peer = match self.socket.peer_addr() {
            Ok(peer) => peer,
            // The event was a hint: the connect is still under way.
            Err(e) if e.kind() == io::ErrorKind::NotConnected => return Ok(false),
            Err(e) => return Err(e),
        };
        // A connect to a local port where nobody listens can be given that very port as its own and meet
        // itself; it would then keep the port from whoever is to listen there.
        if self.socket.local_addr().is_ok_and(|own| own == peer) {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "connected to itself"));
        }
        Ok(true)
    }

    fn short_read_is_empty(&self) -> bool {
        sys::SHORT_IS_EMPTY
    }

    fn facts(&self) -> Facts {
        let text = |address: io::Result<SocketAddr>| address.map_or(String::new(), |a| format!("tcp://{a}"));
        Facts::new(text(self.socket.local_addr()), text(self.socket.peer_addr()))
    }

    fn split(self: Box<Self>) -> io::Result<(Box<dyn StreamReader>, Box<dyn StreamWriter>)> {
        let (reader, writer) = Half::both(self.socket);
        Ok((Box::new(reader), Box::new(writer)))
    }
}
