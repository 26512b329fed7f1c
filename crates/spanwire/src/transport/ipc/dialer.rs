//! Dialing: a connect that does not wait, for which there is only one address.

use std::io;

use super::address::Place;
use super::options::IpcOptions;
use super::stream::stream;
use crate::transport::{Bag, Connection, Dialer, Target, invalid};

#[derive(Debug)]
pub(super) struct IpcDialer {
    place: Place,
    url: String,
    options: IpcOptions,
}

impl IpcDialer {
    pub(super) fn new(url: &str, options: &Bag) -> io::Result<Self> {
        let options = IpcOptions::from_bag(options)?;
        let place = Place::parse(url)?;
        if place == Place::Abstract(Vec::new()) {
            return Err(invalid("bad address: no name to connect to"));
        }
        Ok(IpcDialer { place, url: url.to_owned(), options })
    }
}

impl Dialer for IpcDialer {
    fn dial(&self, _: Option<&Target>) -> io::Result<Connection> {
        let socket = self.options.socket()?;
        let pending = match socket.connect(&self.place.address()?) {
            Ok(()) => false,
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => true,
            // Not "under way" but refused: nothing would ever be told of this socket.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    "the listener's backlog is full",
                ));
            }
            Err(e) => return Err(e),
        };
        let socket = mio::net::UnixStream::from_std(socket.into());
        Ok(stream(socket, pending, String::new(), self.url.clone()))
    }
}
