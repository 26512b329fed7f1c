//! `tcp://HOST:PORT`, a byte stream over TCP.
//!
//! Owns: the addresses' meaning, socket options, the non-blocking connect, accept. Never: a frame, a
//! handshake, a retry or a wait (the engine's); a name is looked up where the engine allows blocking.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::time::Duration;

use mio::Interest;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use super::halves::Half;
use super::{
    Bag, Connection, Dialer, Facts, Listener, Registrar, Stream, StreamWriter, Target, Transport, address,
    invalid, sys,
};
use crate::wire::Sp;

/// The tcp transport: `tcp://HOST:PORT`. Its options are [`TcpOptions`].
///
/// HOST is an IPv4 address, an IPv6 address in brackets (with `%eth0` or `%2` where it needs a scope), or a
/// name, which is looked up again before every attempt; its addresses are tried with the families in turn.
///
/// To bind, HOST may also be `*` or nothing for all interfaces, or the name of an interface
/// (`tcp://eth0:5555`), and PORT 0 for any that is free. All interfaces means both families on every
/// system, or IPv4 alone where the machine has no IPv6. Of the addresses of a name one is bound, IPv4 before
/// IPv6.
///
/// To connect, `tcp://SOURCE;HOST:PORT` also says the address or interface to connect from (as nanomsg's
/// `nn_tcp` has it).
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

/// How tcp sockets are set up, for dialers and listeners alike.
///
/// ```
/// use spanwire::transport::{Keepalive, TcpOptions};
/// use std::time::Duration;
/// let options = TcpOptions::default()
///     .keepalive(Some(Keepalive { idle: Duration::from_secs(5), ..Keepalive::default() }))
///     .recv_buffer(Some(1 << 20));
/// assert!(options.nodelay);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpOptions {
    /// Small writes leave at once (`TCP_NODELAY`): the engine gathers messages itself. Default `true`.
    pub nodelay: bool,
    /// Probes on an idle connection, so that a dead link is found. Default: [`Keepalive::default`].
    pub keepalive: Option<Keepalive>,
    /// The connection fails when data, or the connect, goes unacknowledged for this long
    /// (`TCP_USER_TIMEOUT`, rounded down to milliseconds). It finds a dead link that has data on its way much sooner than
    /// the system does by itself (some 15 minutes on Linux). But Linux counts the time for which a peer
    /// that is alive has no room, too: set it to more than any peer may pause in reading. Default `None`, so that
    /// back-pressure never costs a connection; idle links are found by [`keepalive`](Self::keepalive).
    /// Linux only, ignored elsewhere.
    pub user_timeout: Option<Duration>,
    /// Kernel send buffer in bytes (`SO_SNDBUF`). Default: the system's, which adapts.
    pub send_buffer: Option<usize>,
    /// Kernel receive buffer in bytes (`SO_RCVBUF`). Default: the system's, which adapts.
    pub recv_buffer: Option<usize>,
    /// Connections that may wait for accept; the kernel may lower it. At least 1. Default 1024.
    pub backlog: u32,
    /// A bound `[::]` or `*` takes no IPv4 connections. Default `false`, on every system.
    pub v6only: bool,
}

/// Probes on an idle tcp connection.
///
/// A dead link without data on its way is found after `idle + interval * count`, by default one minute; for
/// one with data see [`TcpOptions::user_timeout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe. From 1 s to 32767 s, whole seconds. Default 30 s.
    pub idle: Duration,
    /// Time between probes. From 1 s to 32767 s, whole seconds. Default 10 s. Not on OpenBSD.
    pub interval: Duration,
    /// Unanswered probes that end the connection. From 1 to 127. Default 3. Not on OpenBSD.
    pub count: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Keepalive { idle: Duration::from_secs(30), interval: Duration::from_secs(10), count: 3 }
    }
}

impl Default for TcpOptions {
    fn default() -> Self {
        TcpOptions {
            nodelay: true,
            keepalive: Some(Keepalive::default()),
            user_timeout: None,
            send_buffer: None,
            recv_buffer: None,
            backlog: 1024,
            v6only: false,
        }
    }
}

impl TcpOptions {
    /// Sets [`nodelay`](TcpOptions#structfield.nodelay).
    #[must_use]
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// Sets [`keepalive`](TcpOptions#structfield.keepalive); `None`: no probes.
    #[must_use]
    pub fn keepalive(mut self, keepalive: Option<Keepalive>) -> Self {
        self.keepalive = keepalive;
        self
    }

    /// Sets [`user_timeout`](TcpOptions#structfield.user_timeout).
    #[must_use]
    pub fn user_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.user_timeout = timeout;
        self
    }

    /// Sets [`send_buffer`](TcpOptions#structfield.send_buffer).
    #[must_use]
    pub fn send_buffer(mut self, bytes: Option<usize>) -> Self {
        self.send_buffer = bytes;
        self
    }

    /// Sets [`recv_buffer`](TcpOptions#structfield.recv_buffer).
    #[must_use]
    pub fn recv_buffer(mut self, bytes: Option<usize>) -> Self {
        self.recv_buffer = bytes;
        self
    }

    /// Sets [`backlog`](TcpOptions#structfield.backlog).
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Sets [`v6only`](TcpOptions#structfield.v6only).
    #[must_use]
    pub fn v6only(mut self, only: bool) -> Self {
        self.v6only = only;
        self
    }

    fn from_bag(options: &Bag) -> io::Result<Self> {
        let options = options.get::<TcpOptions>().cloned().unwrap_or_default();
        // Said here, where the caller sees it, and not at each connection.
        if let Some(Keepalive { idle, interval, count }) = options.keepalive {
            let seconds = 1..=32_767;
            if !seconds.contains(&idle.as_secs()) || !seconds.contains(&interval.as_secs()) {
                return Err(invalid("tcp keepalive idle and interval must be from 1 s to 32767 s"));
            }
            if !(1..=127).contains(&count) {
                return Err(invalid("tcp keepalive count must be from 1 to 127"));
            }
        }
        if options.user_timeout.is_some_and(|t| !(1..=i32::MAX as u128).contains(&t.as_millis())) {
            return Err(invalid("tcp user timeout must be from 1 ms to 24 days"));
        }
        if options.backlog == 0 || options.backlog > i32::MAX as u32 {
            return Err(invalid("tcp backlog must be at least 1"));
        }
        let size_ok = |size: Option<usize>| size.is_none_or(|s| (1..=i32::MAX as usize).contains(&s));
        if !size_ok(options.send_buffer) || !size_ok(options.recv_buffer) {
            return Err(invalid("tcp buffer sizes must be from 1 byte to 2 GiB - 1"));
        }
        Ok(options)
    }

    /// Buffers must be set before the connection is made: they decide the window scale.
    fn set_buffers(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if let Some(bytes) = self.send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.recv_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        Ok(())
    }

    fn set_liveness(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_nodelay(self.nodelay)?;
        if let Some(Keepalive { idle, interval, count }) = self.keepalive {
            let probes = TcpKeepalive::new().with_time(idle);
            #[cfg(not(target_os = "openbsd"))]
            let probes = probes.with_interval(interval).with_retries(count);
            #[cfg(target_os = "openbsd")]
            let _ = (interval, count);
            socket.set_tcp_keepalive(&probes)?;
        }
        #[cfg(any(target_os = "android", target_os = "linux"))]
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        Ok(())
    }
}

/// A host as written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// `*`, or nothing.
    Any,
    /// An address; the scope is 0 where it has none.
    Ip(IpAddr, u32),
    /// An interface, or a name to look up.
    Name(String),
}

impl Host {
    fn parse(text: &str) -> Result<Host, String> {
        if text.is_empty() || text == "*" {
            return Ok(Host::Any);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let inner = rest.strip_suffix(']').ok_or("'[' without ']'")?;
            let (ip, scope) = match inner.split_once('%') {
                None => (inner, 0),
                Some((ip, zone)) => {
                    let index = zone.parse().ok().or_else(|| sys::interface_index(zone));
                    (ip, index.ok_or_else(|| format!("no network interface {zone:?}"))?)
                }
            };
            let ip: Ipv6Addr = ip.parse().map_err(|_| format!("{ip:?} is not an IPv6 address"))?;
            return Ok(Host::Ip(ip.into(), scope));
        }
        if text.contains(':') {
            return Err("an IPv6 address needs brackets, as in [::1]".into());
        }
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Ok(Host::Ip(ip.into(), 0));
        }
        // An interface may be called eth0.1 or br_lan; what no name can hold is a mistake in the address.
        if let Some(bad) =
            text.chars().find(|c| c.is_whitespace() || c.is_control() || "/?#@[];\\".contains(*c))
        {
            return Err(format!("{bad:?} in host name"));
        }
        if text.len() > 253 {
            return Err("host name is longer than 253 bytes".into());
        }
        // What looks like an IPv4 address and is none would be asked of the resolver, which has ideas of its own.
        if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(format!("{text:?} is not an IPv4 address"));
        }
        Ok(Host::Name(text.to_owned()))
    }

    fn addr(ip: IpAddr, scope: u32, port: u16) -> SocketAddr {
        match ip {
            IpAddr::V4(ip) => (ip, port).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
        }
    }
}

/// An address as written: the source to connect from, the host, the port.
#[derive(Debug)]
struct Parsed {
    source: Option<Host>,
    host: Host,
    port: u16,
}

fn parse(url: &str) -> io::Result<Parsed> {
    let rest = address(url, "tcp")?;
    let bad = |what: String| invalid(format!("bad address: {what}"));
    let (source, rest) = match rest.split_once(';') {
        Some((source, rest)) => (Some(Host::parse(source).map_err(bad)?), rest),
        None => (None, rest),
    };
    let (host, port) = match rest.rsplit_once(':') {
        // `[::1]` and `::1` end in what is no port.
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => return Err(bad("no port".into())),
    };
    let host = Host::parse(host).map_err(bad)?;
    // `parse` alone would take "+5".
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse().ok().filter(|_| digits);
    let port = port.ok_or_else(|| bad("the port is not a number from 0 to 65535".into()))?;
    Ok(Parsed { source, host, port })
}

impl Transport for Tcp {
    fn schemes(&self) -> &'static [&'static str] {
        &["tcp"]
    }

    fn dialer(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(TcpDialer::new(url, options)?))
    }

    fn listen(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpListener::new(url, options)?))
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

struct TcpDialer {
    source: Option<Host>,
    host: Host,
    port: u16,
    options: TcpOptions,
}

impl TcpDialer {
    fn new(url: &str, options: &Bag) -> io::Result<Self> {
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
    fn begin(&self, target: Option<&Target>) -> io::Result<mio::net::TcpStream> {
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

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Any => f.write_str("*"),
            Host::Ip(ip, _) => ip.fmt(f),
            Host::Name(name) => f.write_str(name),
        }
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
fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
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

#[derive(Debug)]
struct TcpListener {
    listener: mio::net::TcpListener,
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
    fn new(url: &str, options: &Bag) -> io::Result<Self> {
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

    fn next(&self) -> io::Result<mio::net::TcpStream> {
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

fn stream(socket: mio::net::TcpStream) -> Connection {
    Connection::Stream(Box::new(TcpStream { socket }), Box::new(Sp::TCP))
}

#[derive(Debug)]
struct TcpStream {
    socket: mio::net::TcpStream,
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

    fn split(self: Box<Self>) -> io::Result<(Box<dyn io::Read + Send>, Box<dyn StreamWriter>)> {
        let (reader, writer) = Half::both(self.socket);
        Ok((Box::new(reader), Box::new(writer)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{Loop, bag, refuses, stream};
    use super::*;

    fn listener(url: &str, options: &TcpOptions) -> TcpListener {
        TcpListener::new(url, &bag(options.clone())).unwrap()
    }

    fn has_ipv6() -> bool {
        std::net::TcpListener::bind("[::1]:0").is_ok()
    }

    #[test]
    fn bytes_go_both_ways_and_an_end_is_seen_over_both_families_and_by_name() {
        let urls: &[&str] = &["tcp://127.0.0.1:0", "tcp://[::1]:0", "tcp://localhost:0", "tcp://lo:0"];
        for url in urls {
            if url.contains("::") && !has_ipv6() || url.contains("lo:") && !cfg!(target_os = "linux") {
                continue;
            }
            let mut turn = Loop::new();
            let (mut a, mut b) = turn.connect(&Tcp, url, &Bag::default());
            assert_eq!((&a.facts.local, &a.facts.remote), (&b.facts.remote, &b.facts.local), "{url}");
            turn.carries(&mut a, &mut b, "there");
            turn.carries(&mut b, &mut a, "and back");
            assert!(a.writer.shutdown().unwrap());
            turn.ends(&mut b);
            turn.carries(&mut b, &mut a, "still open");
        }
    }

    #[test]
    fn a_name_is_resolved_to_targets_of_alternating_families() {
        let mut turn = Loop::new();
        let mut listener = listener("tcp://*:0", &TcpOptions::default());
        turn.register(|r| listener.register(r));
        let port = listener.listener.local_addr().unwrap().port();
        let dialer = Tcp.dialer(&format!("tcp://localhost:{port}"), &Bag::default()).unwrap();
        assert!(dialer.needs_resolve());
        let (mut a, mut b) = turn.meet(&*dialer, &mut listener);
        turn.carries(&mut a, &mut b, "by name");

        let parse = |list: &[&str]| -> Vec<SocketAddr> { list.iter().map(|a| a.parse().unwrap()).collect() };
        let mixed = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        let turns = parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(alternate(mixed), turns);
        assert_eq!(alternate(vec![]), []);
    }

    #[test]
    fn a_wildcard_takes_both_families_unless_told_otherwise() {
        for (url, v6only) in
            [("tcp://*:0", false), ("tcp://:0", false), ("tcp://[::]:0", false), ("tcp://*:0", true)]
        {
            let mut turn = Loop::new();
            let mut listener = listener(url, &TcpOptions::default().v6only(v6only));
            turn.register(|r| listener.register(r));
            let port = listener.listener.local_addr().unwrap().port();
            assert_ne!(port, 0);
            if has_ipv6() {
                let six = Tcp.dialer(&format!("tcp://[::1]:{port}"), &Bag::default()).unwrap();
                turn.meet(&*six, &mut listener);
            }
            let four = Tcp.dialer(&format!("tcp://127.0.0.1:{port}"), &Bag::default()).unwrap();
            if !v6only {
                turn.meet(&*four, &mut listener);
                continue;
            }
            let mut refused = stream(four.dial(None).unwrap());
            turn.register(|r| refused.register(r));
            let error = turn.until("refusal", || refused.establish().err());
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
    }

    #[test]
    fn the_url_of_a_listener_has_the_real_port_and_a_second_one_there_is_refused() {
        let first = listener("tcp://127.0.0.1:0", &TcpOptions::default());
        let port = first.listener.local_addr().unwrap().port();
        assert_eq!(first.url(), format!("tcp://127.0.0.1:{port}"));
        let second = Tcp.listen(&first.url(), &Bag::default()).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn options_are_in_force_at_both_ends() {
        let custom = TcpOptions::default()
            .nodelay(false)
            .keepalive(Some(Keepalive {
                idle: Duration::from_secs(7),
                interval: Duration::from_secs(5),
                count: 4,
            }))
            .user_timeout(Some(Duration::from_millis(9_000)))
            .send_buffer(Some(40_000))
            .recv_buffer(Some(50_000));
        for options in
            [TcpOptions::default(), custom, TcpOptions::default().keepalive(None).user_timeout(None)]
        {
            let mut turn = Loop::new();
            let mut listener = listener("tcp://127.0.0.1:0", &options);
            turn.register(|r| listener.register(r));
            let dialer = TcpDialer::new(&listener.url(), &bag(options.clone())).unwrap();
            let dialled = dialer.begin(None).unwrap();
            let accepted = turn.until("accept", || listener.next().ok());
            for socket in [&dialled, &accepted] {
                let socket = SockRef::from(socket);
                assert_eq!(socket.tcp_nodelay().unwrap(), options.nodelay);
                assert_eq!(socket.keepalive().unwrap(), options.keepalive.is_some());
                if let Some(Keepalive { idle, interval, count }) = options.keepalive {
                    assert_eq!(socket.tcp_keepalive_time().unwrap(), idle);
                    assert_eq!(socket.tcp_keepalive_interval().unwrap(), interval);
                    assert_eq!(socket.tcp_keepalive_retries().unwrap(), count);
                }
                #[cfg(target_os = "linux")]
                assert_eq!(socket.tcp_user_timeout().unwrap(), options.user_timeout);
                // Linux doubles what is asked for.
                if let Some(bytes) = options.send_buffer {
                    assert!([bytes, 2 * bytes].contains(&socket.send_buffer_size().unwrap()));
                }
                if let Some(bytes) = options.recv_buffer {
                    assert!([bytes, 2 * bytes].contains(&socket.recv_buffer_size().unwrap()));
                }
                #[cfg(unix)]
                assert!(socket.nonblocking().unwrap());
            }
            #[cfg(target_os = "linux")]
            for fd in {
                use std::os::fd::AsRawFd;
                [dialled.as_raw_fd(), accepted.as_raw_fd(), listener.listener.as_raw_fd()]
            } {
                let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
                let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap();
                let flags = i64::from_str_radix(flags.trim(), 8).unwrap();
                assert_ne!(flags & i64::from(libc::O_CLOEXEC), 0, "descriptor would pass to children");
            }
        }
    }

    #[test]
    fn a_connection_comes_from_the_source_that_was_asked_for() {
        if !cfg!(target_os = "linux") {
            return; // Elsewhere loopback has one address only.
        }
        for (source, from) in
            [("127.0.0.9", "tcp://127.0.0.9:"), ("lo", "tcp://127.0.0.1:"), ("*", "tcp://127.")]
        {
            let mut turn = Loop::new();
            let mut listener = listener("tcp://127.0.0.1:0", &TcpOptions::default());
            turn.register(|r| listener.register(r));
            let url = listener.url().replace("//", &format!("//{source};"));
            let dialer = Tcp.dialer(&url, &Bag::default()).unwrap();
            let (a, b) = turn.meet(&*dialer, &mut listener);
            assert!(a.facts.local.starts_with(from), "{}", a.facts.local);
            assert_eq!(b.facts.remote, a.facts.local);
        }
        let dialer = Tcp.dialer("tcp://nosuchif0;127.0.0.1:9", &Bag::default()).unwrap();
        let error = dialer.dial(None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.to_string().contains("nosuchif0"), "{error}");
    }

    #[test]
    fn a_refused_connect_is_told_by_establish() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dialer = Tcp.dialer(&format!("tcp://127.0.0.1:{port}"), &Bag::default()).unwrap();
        let mut turn = Loop::new();
        let mut stream = stream(dialer.dial(None).unwrap());
        turn.register(|r| stream.register(r));
        let error = turn.until("refusal", || stream.establish().err());
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_connection_to_itself_is_refused() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let own = socket.local_addr().unwrap();
        if socket.connect(&own).is_err() {
            return; // This system does not connect a socket to itself.
        }
        let mut stream = TcpStream { socket: mio::net::TcpStream::from_std(socket.into()) };
        assert_eq!(stream.establish().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_bad_address_is_refused_in_words_that_say_why() {
        let both = [
            ("tcp://", "no port"),
            ("tcp://127.0.0.1", "no port"),
            ("tcp://[::1]", "no port"),
            ("tcp://::1:5555", "needs brackets"),
            ("tcp://[::1:5555", "']'"),
            ("tcp://[]:5555", "not an IPv6 address"),
            ("tcp://[127.0.0.1]:5555", "not an IPv6 address"),
            ("tcp://[fe80::1%nosuchif0]:5555", "no network interface \"nosuchif0\""),
            ("tcp://127.0.0.1:", "not a number"),
            ("tcp://127.0.0.1:http", "not a number"),
            ("tcp://127.0.0.1:65536", "not a number"),
            ("tcp://127.0.0.1:+5", "not a number"),
            ("tcp://127.0.0.1:-5", "not a number"),
            ("tcp://127.0.0.1:5555/", "not a number"),
            ("tcp://127.0.0:5555", "not an IPv4 address"),
            ("tcp://256.0.0.1:5555", "not an IPv4 address"),
            ("tcp://a b:5555", "' ' in host name"),
            ("tcp://user@host:5555", "'@' in host name"),
            ("tcp://ho/st:5555", "'/' in host name"),
            ("tcp://a;b;c:5555", "';' in host name"),
        ];
        for (url, text) in both {
            refuses(Tcp.listen(url, &Bag::default()), url, text);
            refuses(Tcp.dialer(url, &Bag::default()), url, text);
        }
        for (url, text) in [
            ("tcp://127.0.0.1:0", "port 0 cannot be connected to"),
            ("tcp://*:5555", "no host to connect to"),
            ("tcp://:5555", "no host to connect to"),
            ("tcp://[::1];127.0.0.1:5555", "one of source and host is IPv4"),
        ] {
            refuses(Tcp.dialer(url, &Bag::default()), url, text);
        }
        refuses(Tcp.listen("tcp://lo;*:0", &Bag::default()), "tcp://lo;*:0", "is for connecting");
        let long = format!("tcp://{}:5555", "a".repeat(254));
        refuses(Tcp.dialer(&long, &Bag::default()), &long, "longer than 253");
    }

    #[test]
    fn an_option_out_of_range_is_refused_when_bound_or_connected() {
        let keepalive = |idle, interval, count| {
            let (idle, interval) = (Duration::from_secs(idle), Duration::from_secs(interval));
            TcpOptions::default().keepalive(Some(Keepalive { idle, interval, count }))
        };
        for (options, text) in [
            (keepalive(0, 1, 1), "idle and interval"),
            (keepalive(1, 40_000, 1), "idle and interval"),
            (keepalive(1, 1, 0), "count"),
            (TcpOptions::default().user_timeout(Some(Duration::ZERO)), "user timeout"),
            (TcpOptions::default().user_timeout(Some(Duration::MAX)), "user timeout"),
            (TcpOptions::default().backlog(0), "backlog"),
            (TcpOptions::default().send_buffer(Some(0)), "buffer sizes"),
            (TcpOptions::default().recv_buffer(Some(usize::MAX)), "buffer sizes"),
        ] {
            let bag = bag(options);
            for error in [Tcp.dialer("tcp://[::1]:1", &bag).err(), Tcp.listen("tcp://[::1]:0", &bag).err()] {
                let error = error.unwrap();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                assert!(error.to_string().contains(text), "{error}");
            }
        }
    }
}
