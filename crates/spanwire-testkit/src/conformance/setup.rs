//! What the suite must know of a transport.
//!
//! Owns: the description. Never: decides what is right.

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spanwire::protocol::Protocol;
use spanwire::transport::{Bag, Dialer, Listener, Transport};
use spanwire::{Builder, Endpoint, Error, Socket};

use super::SOON;

type Apply = dyn Fn(&mut Bag) + Send + Sync;
type Reach = dyn Fn(&str) -> String + Send + Sync;

/// A transport under test.
pub struct Setup {
    transports: Vec<Shared>,
    fresh: Box<dyn Fn() -> String + Send + Sync>,
    reach: Option<Box<Reach>>,
    pub(super) cannot_bind: Option<String>,
    pub(super) has_ports: bool,
    pub(super) bad_to_bind: Vec<String>,
    pub(super) bad_to_dial: Vec<String>,
    pub(super) largest: usize,
    pub(super) in_transit: usize,
    pub(super) cycles: usize,
    pub(super) keeps_transit: bool,
}

impl Setup {
    /// A transport that dials and listens. `fresh` gives an address to bind that nothing else uses.
    pub fn new(transport: impl Transport, fresh: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Setup {
            transports: vec![Shared::new(transport)],
            fresh: Box::new(fresh),
            reach: None,
            cannot_bind: None,
            has_ports: false,
            bad_to_bind: Vec::new(),
            bad_to_dial: Vec::new(),
            largest: 1 << 20,
            in_transit: 16 << 20,
            cycles: 1000,
            keeps_transit: true,
        }
    }

    /// A transport that only dials. `listening` and `fresh` make the other end; `reach` tells what to dial for an
    /// address that is bound there.
    pub fn dial_only(
        transport: impl Transport,
        listening: impl Transport,
        fresh: impl Fn() -> String + Send + Sync + 'static,
        reach: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        let cannot_bind = Some(reach(&fresh()));
        let setup = Setup::new(listening, fresh);
        let transports = vec![Shared::new(transport), setup.transports[0].clone()];
        Setup { transports, reach: Some(Box::new(reach)), cannot_bind, ..setup }
    }

    /// Its addresses have ports, and those that `fresh` gives end with `:0`.
    #[must_use]
    pub fn ports(mut self) -> Self {
        self.has_ports = true;
        self
    }

    /// An option of the transport, for all sockets of the suite.
    #[must_use]
    pub fn option<T: Any + Clone + Send + Sync>(mut self, option: T) -> Self {
        for shared in &mut self.transports {
            let (before, option) = (shared.options.clone(), option.clone());
            shared.options = Arc::new(move |bag| {
                before(bag);
                bag.set(option.clone());
            });
        }
        self
    }

    /// Addresses that can neither be bound nor dialled.
    #[must_use]
    pub fn bad_addresses<'a>(mut self, urls: impl IntoIterator<Item = &'a str>) -> Self {
        for url in urls {
            self.bad_to_bind.push(url.to_owned());
            self.bad_to_dial.push(url.to_owned());
        }
        self
    }

    /// Addresses that cannot be dialled.
    #[must_use]
    pub fn bad_to_dial<'a>(mut self, urls: impl IntoIterator<Item = &'a str>) -> Self {
        self.bad_to_dial.extend(urls.into_iter().map(str::to_owned));
        self
    }

    /// Addresses that cannot be bound.
    #[must_use]
    pub fn bad_to_bind<'a>(mut self, urls: impl IntoIterator<Item = &'a str>) -> Self {
        self.bad_to_bind.extend(urls.into_iter().map(str::to_owned));
        self
    }

    /// Largest message to send, in bytes. Default: 1 MiB.
    #[must_use]
    pub fn largest(mut self, bytes: usize) -> Self {
        self.largest = bytes;
        self
    }

    /// How much the transport itself holds at most of what one end sent and the other has not received, in
    /// bytes: kernel buffers, queues of its own. It is part of the bound that back-pressure is checked
    /// against. Default: 16 MiB, which is more than the kernel gives a tcp connection.
    #[must_use]
    pub fn in_transit(mut self, bytes: usize) -> Self {
        self.in_transit = bytes;
        self
    }

    /// How many connections the check for what is left behind makes. Default: 1,000.
    #[must_use]
    pub fn cycles(mut self, connections: usize) -> Self {
        self.cycles = connections;
        self
    }

    /// What is on its way when its sender ends without having been able to finish may be lost (a child process that is ended with its
    /// connection). Default: the other end still receives it.
    #[must_use]
    pub fn loses_what_is_on_its_way(mut self) -> Self {
        self.keeps_transit = false;
        self
    }

    // ------------------------------------------------------------ for the checks

    /// The transports, and attempts that follow quickly.
    pub(super) fn on<P: Protocol, S>(&self, mut builder: Builder<P, S>) -> Builder<P, S> {
        for transport in &self.transports {
            builder = builder.transport(transport.clone());
        }
        builder.reconnect(Duration::from_millis(5), Duration::from_millis(50))
    }

    pub(super) fn fresh(&self) -> String {
        (self.fresh)()
    }

    #[track_caller]
    pub(super) fn bind<P: Protocol>(&self, socket: &Socket<P>) -> Endpoint {
        let url = self.fresh();
        socket.bind(&url).unwrap_or_else(|e| panic!("a fresh address is bound: {e}"))
    }

    /// Binds an address that was bound before, as soon as it is free.
    #[track_caller]
    pub(super) fn bind_again<P: Protocol>(&self, socket: &Socket<P>, url: &str) -> Endpoint {
        let deadline = Instant::now() + SOON;
        loop {
            match socket.bind(url) {
                Ok(endpoint) => return endpoint,
                Err(Error::Bind { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                {
                    std::thread::yield_now();
                }
                Err(e) => panic!("the address is bound again: {e}"),
            }
        }
    }

    #[track_caller]
    pub(super) fn connect<P: Protocol>(&self, socket: &Socket<P>, bound: &str) -> Endpoint {
        let url = self.reach.as_ref().map_or_else(|| bound.to_owned(), |reach| reach(bound));
        socket.connect(&url).unwrap_or_else(|e| panic!("a good address is dialled: {e}"))
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schemes: Vec<_> = self.transports.iter().map(|t| t.inner.schemes()).collect();
        f.debug_struct("Setup").field("schemes", &schemes).finish_non_exhaustive()
    }
}

/// One transport for many sockets, with options.
#[derive(Clone)]
struct Shared {
    inner: Arc<dyn Transport>,
    options: Arc<Apply>,
}

impl Shared {
    fn new(transport: impl Transport) -> Self {
        Shared { inner: Arc::new(transport), options: Arc::new(|_| {}) }
    }

    fn with(&self, options: &Bag) -> Bag {
        let mut options = options.clone();
        (self.options)(&mut options);
        options
    }
}

impl Transport for Shared {
    fn schemes(&self) -> &'static [&'static str] {
        self.inner.schemes()
    }
    fn dialer(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Dialer>> {
        self.inner.dialer(url, &self.with(options))
    }
    fn listen(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Listener>> {
        self.inner.listen(url, &self.with(options))
    }
}
