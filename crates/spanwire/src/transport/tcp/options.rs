//! The options of tcp: what may be set, in which range, and how it reaches the socket.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::transport::{Bag, invalid, sizes};

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

    pub(super) fn from_bag(options: &Bag) -> io::Result<Self> {
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
        sizes::check("tcp", options.backlog, [options.send_buffer, options.recv_buffer])?;
        Ok(options)
    }

    /// Buffers must be set before the connection is made: they decide the window scale.
    pub(super) fn set_buffers(&self, socket: &SockRef<'_>) -> io::Result<()> {
        sizes::set_buffers(socket, self.send_buffer, self.recv_buffer)
    }

    pub(super) fn set_liveness(&self, socket: &SockRef<'_>) -> io::Result<()> {
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
