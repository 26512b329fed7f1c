//! Binding and accepting.

use std::io;

use mio::Interest;
use socket2::{SockRef, Socket};

use super::address::{Place, escape};
use super::file::{OwnFile, listen_at};
use super::options::IpcOptions;
use super::stream::stream;
use crate::transport::{Bag, Connection, Listener, Registrar};

#[derive(Debug)]
pub(super) struct IpcListener {
    // Fields are dropped in this order: the file goes while the socket still listens.
    _file: Option<OwnFile>,
    listener: mio::net::UnixListener,
    url: String,
    options: IpcOptions,
}

impl IpcListener {
    pub(super) fn new(url: &str, options: &Bag) -> io::Result<Self> {
        let options = IpcOptions::from_bag(options)?;
        let (socket, url, file) = match Place::parse(url)? {
            Place::File(path) => {
                let (socket, file) = listen_at(&path, &options)?;
                (socket, url.to_owned(), Some(file))
            }
            place => {
                let socket = options.socket()?;
                socket.bind(&place.address()?)?;
                socket.listen(options.backlog as i32)?;
                let name = abstract_name(&socket)?;
                (socket, format!("abstract://{}", escape(&name)), None)
            }
        };
        let listener = mio::net::UnixListener::from_std(socket.into());
        Ok(IpcListener { _file: file, listener, url, options })
    }
}

impl Listener for IpcListener {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        registrar.source(&mut self.listener, Interest::READABLE)
    }

    fn accept(&mut self) -> io::Result<Connection> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    self.options.set_buffers(&SockRef::from(&socket))?;
                    return Ok(stream(socket, false, self.url.clone(), String::new()));
                }
                // That one is gone; each turn takes one off the listener's queue.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(any(target_os = "android", target_os = "linux"))]
fn abstract_name(socket: &Socket) -> io::Result<Vec<u8>> {
    let address = socket.local_addr()?;
    Ok(address.as_abstract_namespace().unwrap_or_default().to_vec())
}

#[cfg(not(any(target_os = "android", target_os = "linux")))]
fn abstract_name(_socket: &Socket) -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::Unsupported.into())
}
