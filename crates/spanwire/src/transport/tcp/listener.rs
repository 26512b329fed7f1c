//! Binding and accepting.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use mio::Interest;
use socket2::{Domain, SockRef, Socket, Type};

use super::address::{Host, Parsed, parse};
use super::options::TcpOptions;
use super::stream::stream;
use crate::transport::{Bag, Connection, Listener, Registrar, invalid, sys};

#[derive(Debug)]
pub(super) struct TcpListener {
    pub(super) listener: mio::net::TcpListener,
    url: String,
    options: TcpOptions,
}

impl Listener for TcpListener {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        registrar.source(&mut self.listener, Interest::READABLE)
    }

    fn accept(&mut self) -> io::Result<Connection> {
        self.next().map(stream)
    }
}

impl TcpListener {
    pub(super) fn new(url: &str, options: &Bag) -> io::Result<Self> {
        let options = TcpOptions::from_bag(options)?;
        let Parsed { source, host, port } = parse(url)?;
        if source.is_some() {
            let what = "a source address is for connecting";
            return Err(invalid(format!("bad address: {what}")));
        }
        let socket = match &host {
            Host::Any => match bound(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), &options) {
                // A machine without IPv6 says so in one of several ways.
                Err(e) if no_ipv6(&e) && !options.v6only => {
                    bound(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), &options)?
                }
                other => other?,
            },
            Host::Ip(ip, scope) => bound(Host::addr(*ip, *scope, port), &options)?,
            Host::Name(name) => {
                let addresses = local_addresses(name, port).map_err(|e| {
                    invalid(format!("bad address: no network interface or host {name:?} ({e})"))
                })?;
                first_bound(&addresses, &options)?
            }
        };
        let listener = mio::net::TcpListener::from_std(socket.into());
        let local = listener.local_addr()?;
        Ok(TcpListener { listener, url: format!("tcp://{local}"), options })
    }

    pub(super) fn next(&self) -> io::Result<mio::net::TcpStream> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    // It may have been reset already, and then some systems refuse options. Reading will tell.
                    let _ = self.options.set_liveness(&SockRef::from(&socket));
                    return Ok(socket);
                }
                // That one is gone; it is no trouble of the listener, and each turn takes one off its queue.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Addresses of an interface or else of a host name, IPv4 first: what a bound name most often means.
fn local_addresses(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = sys::interface_addresses(name);
    addresses.iter_mut().for_each(|address| address.set_port(port));
    if addresses.is_empty() {
        addresses = (name, port).to_socket_addrs()?.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
    }
    Ok(addresses)
}

/// Binds the first address that can be had; the error is that of the first.
fn first_bound(addresses: &[SocketAddr], options: &TcpOptions) -> io::Result<Socket> {
    let mut first_error = None;
    for address in addresses {
        match bound(*address, options) {
            Ok(socket) => return Ok(socket),
            // Another process has the port: to move to the other family would hide that.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Err(e),
            Err(e) => first_error = first_error.or(Some(e)),
        }
    }
    Err(first_error.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

fn no_ipv6(error: &io::Error) -> bool {
    if matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported) {
        return true;
    }
    #[cfg(unix)]
    let codes = [libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::ENOPROTOOPT];
    // WSAEAFNOSUPPORT, WSAEPROTONOSUPPORT, WSAENOPROTOOPT.
    #[cfg(not(unix))]
    let codes = [10047, 10043, 10042];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// A listening, non-blocking, close-on-exec socket.
fn bound(at: SocketAddr, options: &TcpOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    // A restarted server must not wait until its old connections leave TIME_WAIT. Not on Windows, where the
    // option lets another process take the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if at.is_ipv6() {
        // Only the wildcard can serve both; systems differ in their default.
        socket.set_only_v6(options.v6only || !at.ip().is_unspecified())?;
    }
    options.set_buffers(&SockRef::from(&socket))?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(options.backlog as i32)?;
    Ok(socket)
}
