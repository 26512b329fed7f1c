//! Dialing: names to addresses, and the connect that does not wait.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use socket2::{Domain, SockRef, Socket, Type};

use super::address::{Host, Parsed, parse};
use super::options::TcpOptions;
use super::stream::stream;
use crate::transport::{Bag, Connection, Dialer, Target, invalid, sys};

pub(super) struct TcpDialer {
    source: Option<Host>,
    host: Host,
    port: u16,
    options: TcpOptions,
}

impl TcpDialer {
    pub(super) fn new(url: &str, options: &Bag) -> io::Result<Self> {
        let options = TcpOptions::from_bag(options)?;
        let Parsed { source, host, port } = parse(url)?;
        if port == 0 {
            return Err(invalid("bad address: port 0 cannot be connected to"));
        }
        if host == Host::Any {
            return Err(invalid("bad address: no host to connect to"));
        }
        if let (Some(Host::Ip(source, _)), Host::Ip(host, _)) = (&source, &host)
            && source.is_ipv4() != host.is_ipv4()
        {
            let what = "one of source and host is IPv4, the other IPv6";
            return Err(invalid(format!("bad address: {what}")));
        }
        Ok(TcpDialer { source: source.filter(|s| *s != Host::Any), host, port, options })
    }

    /// Where to connect from, for a peer at `to`.
    fn source_for(&self, to: SocketAddr) -> io::Result<Option<SocketAddr>> {
        let fits = |from: &SocketAddr| from.is_ipv4() == to.is_ipv4();
        match &self.source {
            None | Some(Host::Any) => Ok(None),
            Some(Host::Ip(ip, scope)) => Ok(Some(Host::addr(*ip, *scope, 0)).filter(fits)),
            // Looked up each time: interfaces come and go.
            Some(Host::Name(name)) => Ok(sys::interface_addresses(name).into_iter().find(fits)),
        }
        .and_then(|found| match (found, &self.source) {
            (None, Some(source)) => Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("the source {source} has no address of the family of {to}"),
            )),
            (found, _) => Ok(found),
        })
    }

    /// A socket with its options, on its way to the peer.
    pub(super) fn begin(&self, target: Option<&Target>) -> io::Result<mio::net::TcpStream> {
        let to = match (target, &self.host) {
            (Some(target), _) => *target
                .data
                .downcast_ref::<SocketAddr>()
                .ok_or_else(|| invalid(format!("{:?} is not a target of tcp", target.label)))?,
            (None, Host::Ip(ip, scope)) => Host::addr(*ip, *scope, self.port),
            (None, host) => return Err(invalid(format!("the name {host} was not resolved"))),
        };
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        self.options.set_buffers(&SockRef::from(&socket))?;
        self.options.set_liveness(&SockRef::from(&socket))?;
        if let Some(from) = self.source_for(to)? {
            socket.bind(&from.into())?;
        }
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            #[cfg(unix)]
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(e) => return Err(e),
        }
        Ok(mio::net::TcpStream::from_std(socket.into()))
    }
}

impl Dialer for TcpDialer {
    fn needs_resolve(&self) -> bool {
        matches!(self.host, Host::Name(_))
    }

    fn resolve(&self) -> io::Result<Vec<Target>> {
        let Host::Name(name) = &self.host else { return Ok(Vec::new()) };
        let mut found: Vec<SocketAddr> = (name.as_str(), self.port).to_socket_addrs()?.collect();
        if let Some(Host::Ip(source, _)) = self.source {
            found.retain(|to| to.is_ipv4() == source.is_ipv4());
        }
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no usable address of {name:?}")));
        }
        Ok(alternate(found).into_iter().map(|to| Target::new(format!("tcp://{to}"), to)).collect())
    }

    fn dial(&self, target: Option<&Target>) -> io::Result<Connection> {
        self.begin(target).map(stream)
    }
}

/// Takes the families in turn, beginning with that of the first, so that one which is broken costs one
/// attempt and not all (as RFC 8305 section 4 orders them).
pub(super) fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut these, mut those): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|a| a.is_ipv6() == first_is_v6);
    let mut ordered = Vec::with_capacity(these.len() + those.len());
    let (mut these, mut those) = (these.drain(..), those.drain(..));
    loop {
        let (one, other) = (these.next(), those.next());
        if one.is_none() && other.is_none() {
            return ordered;
        }
        ordered.extend(one.into_iter().chain(other));
    }
}
