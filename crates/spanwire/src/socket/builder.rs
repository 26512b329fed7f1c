//! Settings of a socket, and of one endpoint: typed, checked, with their defaults and units.
//!
//! Owns: the defaults. Never: settings of a protocol (constructor arguments and verbs) or of a transport
//! ([`Builder::option`]).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Socket;
use crate::engine::{Accept, Config, Core, EndpointConfig};
use crate::error::Error;
use crate::protocol::Protocol;
use crate::queue::Limit;
use crate::transport::{Bag, Facts, Schemes, Transport};

/// The longest that a wait may keep a CPU busy.
const SPIN: Duration = Duration::from_millis(100);

type Wrap<P, S> = Box<dyn FnOnce(Socket<P>) -> S + Send>;

/// Builds a socket. From `Push::builder()` and its like, or [`Socket::builder`].
#[must_use = "call build()"]
pub struct Builder<P, S = Socket<P>> {
    pub(crate) protocol: P,
    cfg: Config,
    wrap: Wrap<P, S>,
}

impl<P: Protocol, S> Builder<P, S> {
    /// For a typed socket of your own: `wrap` makes it from the plain one.
    pub fn new(protocol: P, wrap: impl FnOnce(Socket<P>) -> S + Send + 'static) -> Self {
        let cfg = Config {
            send_limit: Limit::DEFAULT,
            recv_limit: Limit::DEFAULT,
            linger: Duration::from_secs(1),
            spin: Duration::ZERO,
            recv_max_size: 1 << 20,
            handshake_timeout: Duration::from_secs(10),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
            reconnect: true,
            send_priority: 8,
            recv_priority: 8,
            options: Bag::default(),
            schemes: Schemes::default(),
            accept: None,
        };
        Builder { protocol, cfg, wrap: Box::new(wrap) }
    }

    pub(crate) fn rewrap(mut self, wrap: impl FnOnce(Socket<P>) -> S + Send + 'static) -> Self {
        self.wrap = Box::new(wrap);
        self
    }

    /// Bounds of the outbound queue of each pipe. Default: 1,000 messages and 8 MiB.
    pub fn send_queue(mut self, limit: Limit) -> Self {
        self.cfg.send_limit = limit;
        self
    }

    /// Bounds of the inbound queue of each pipe; a full one stops reading its stream. Default: 1,000
    /// messages and 8 MiB. Besides it a stream holds at most one read of 256 KiB, and one frame on its way;
    /// inproc holds 1,024 messages and 1 MiB in each direction, beyond this limit and the sender's.
    pub fn recv_queue(mut self, limit: Limit) -> Self {
        self.cfg.recv_limit = limit;
        self
    }

    /// How long a dropped socket goes on sending what is queued, in the background. Default: 1 s; zero:
    /// what has not left is lost.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.cfg.linger = linger;
        self
    }

    /// How long a call that waits looks again and again before its thread sleeps. Default: zero, which sleeps at once; at
    /// most 100 ms. What comes within that time is found without waking a thread, at the price of a CPU that is busy
    /// meanwhile: for a process that has CPUs to spare, as many as it has such calls at a time. It holds for each wait anew; of
    /// several threads that wait on one socket one spins, and tasks do not.
    pub fn spin(mut self, time: Duration) -> Self {
        self.cfg.spin = time;
        self
    }

    /// Largest message (header and body) to accept, in bytes; a larger one closes its connection, with an
    /// event that names peer, size and limit. Default: 1 MiB, as nanomsg and mangos have it.
    pub fn recv_max_size(mut self, bytes: usize) -> Self {
        self.cfg.recv_max_size = bytes;
        self
    }

    /// How long connecting and the peer's handshake may take together. Default: 10 s; not zero.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.cfg.handshake_timeout = timeout;
        self
    }

    /// Bounds of the delay before a lost or failed connection is tried again: it doubles from `min` to `max`, each time a random
    /// half to the whole of it, and starts over after a connection that lived for a second and for at least the last
    /// delay; if this side ended it for what the peer did, for at least `max`. Default: 100 ms to 5 s.
    pub fn reconnect(mut self, min: Duration, max: Duration) -> Self {
        (self.cfg.reconnect_min, self.cfg.reconnect_max, self.cfg.reconnect) = (min, max, true);
        self
    }

    /// Never tries again: an endpoint ends with its first failure or loss.
    pub fn no_reconnect(mut self) -> Self {
        self.cfg.reconnect = false;
        self
    }

    /// Priority of endpoints for sending, 1 (first) to 16. Default: 8.
    pub fn send_priority(mut self, priority: u8) -> Self {
        self.cfg.send_priority = priority;
        self
    }

    /// Priority of endpoints for receiving, 1 (first) to 16. Default: 8.
    pub fn recv_priority(mut self, priority: u8) -> Self {
        self.cfg.recv_priority = priority;
        self
    }

    /// An option of a transport, by its type: [`TcpOptions`](crate::transport::TcpOptions) and the like.
    pub fn option<T: Send + Sync + 'static>(mut self, option: T) -> Self {
        self.cfg.options.set(option);
        self
    }

    /// A transport for this socket alone; it goes before one of the same scheme that was
    /// [registered](crate::transport::register).
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.cfg.schemes.add(Arc::new(transport));
        self
    }

    /// Asks before a peer is attached; `Err` with a text refuses it. Called without any lock, on the thread that drives
    /// the socket at that moment: it must not wait.
    pub fn accept(mut self, ask: impl Fn(&Facts) -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.cfg.accept = Some(Accept(Arc::new(ask)));
        self
    }

    /// Makes the socket.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the setting that cannot be; [`Error::System`].
    pub fn build(self) -> Result<S, Error> {
        let Builder { protocol, cfg, wrap } = self;
        check_priority("send_priority", cfg.send_priority)?;
        check_priority("recv_priority", cfg.recv_priority)?;
        if cfg.handshake_timeout.is_zero() {
            let why = "no handshake can be over at once; take seconds".to_owned();
            return Err(Error::InvalidOption { name: "handshake_timeout", why });
        }
        check_reconnect(cfg.reconnect_min, cfg.reconnect_max)?;
        if cfg.spin > SPIN {
            let why = format!("{:?} is above {SPIN:?}: who waits for so long sleeps", cfg.spin);
            return Err(Error::InvalidOption { name: "spin", why });
        }
        Ok(wrap(Socket::from_core(Core::new(Box::new(protocol), cfg)?)))
    }
}

impl<P, S> fmt::Debug for Builder<P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("cfg", &self.cfg).finish_non_exhaustive()
    }
}

fn check_priority(name: &'static str, priority: u8) -> Result<(), Error> {
    if (1..=16).contains(&priority) {
        return Ok(());
    }
    Err(Error::InvalidOption { name, why: format!("{priority} is not between 1 (first) and 16") })
}

fn check_reconnect(min: Duration, max: Duration) -> Result<(), Error> {
    if min <= max {
        return Ok(());
    }
    let why = format!("the minimum of {min:?} is above the maximum of {max:?}");
    Err(Error::InvalidOption { name: "reconnect", why })
}

/// Settings of one endpoint; what is not set is the socket's.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct EndpointOptions {
    send_priority: Option<u8>,
    recv_priority: Option<u8>,
    reconnect: Option<Option<(Duration, Duration)>>,
}

impl EndpointOptions {
    /// Priority for sending, 1 (first) to 16.
    pub fn send_priority(mut self, priority: u8) -> Self {
        self.send_priority = Some(priority);
        self
    }

    /// Priority for receiving, 1 (first) to 16.
    pub fn recv_priority(mut self, priority: u8) -> Self {
        self.recv_priority = Some(priority);
        self
    }

    /// Bounds of the delay before the next attempt, as [`Builder::reconnect`].
    pub fn reconnect(mut self, min: Duration, max: Duration) -> Self {
        self.reconnect = Some(Some((min, max)));
        self
    }

    /// The endpoint ends with its first failure or loss.
    pub fn no_reconnect(mut self) -> Self {
        self.reconnect = Some(None);
        self
    }

    pub(crate) fn resolve(self, cfg: &Config) -> Result<EndpointConfig, Error> {
        let own = (cfg.reconnect_min, cfg.reconnect_max);
        let (reconnect, (reconnect_min, reconnect_max)) = match self.reconnect {
            Some(Some(bounds)) => (true, bounds),
            Some(None) => (false, own),
            None => (cfg.reconnect, own),
        };
        let resolved = EndpointConfig {
            send_priority: self.send_priority.unwrap_or(cfg.send_priority),
            recv_priority: self.recv_priority.unwrap_or(cfg.recv_priority),
            reconnect_min,
            reconnect_max,
            reconnect,
        };
        check_priority("send_priority", resolved.send_priority)?;
        check_priority("recv_priority", resolved.recv_priority)?;
        check_reconnect(reconnect_min, reconnect_max)?;
        Ok(resolved)
    }
}
