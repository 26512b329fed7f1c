//! A tiny event loop for the transports' own tests: no engine, no sleeping.
//!
//! Owns: a `Poll` and the notices beside it. Never: waits longer than ten seconds for anything.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry, Token, Waker};

use super::{
    Bag, Connection, Dialer, Facts, Listener, Registrar, Stream, StreamReader, StreamWriter, Target,
    Transport,
};
use crate::engine::Notes;

/// Registers, waits, and takes notices.
pub(super) struct Loop {
    poll: Poll,
    registry: Arc<Registry>,
    events: Events,
    notes: Arc<Notes>,
    next: usize,
}

/// The established ends of one connection, split.
pub(super) struct End {
    pub(super) facts: Facts,
    pub(super) reader: Box<dyn StreamReader>,
    pub(super) writer: Box<dyn StreamWriter>,
}

impl Loop {
    pub(super) fn new() -> Loop {
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(usize::MAX)).unwrap();
        let registry = Arc::new(poll.registry().try_clone().unwrap());
        Loop { poll, registry, events: Events::with_capacity(64), notes: Notes::new(waker), next: 0 }
    }

    /// Calls `register` with a registrar of its own.
    pub(super) fn register(&mut self, register: impl FnOnce(&Registrar<'_>) -> io::Result<()>) -> Token {
        let token = Token(self.next);
        self.next += 1;
        let registrar = Registrar { registry: &self.registry, token, notifier: self.notes.notifier(token) };
        register(&registrar).unwrap();
        token
    }

    /// The notices given since the last call.
    pub(super) fn notices(&mut self) -> Vec<Token> {
        let mut tokens = Vec::new();
        self.notes.take(&mut tokens);
        tokens
    }

    /// Tries `step` at once and after each event, until it gives something.
    #[track_caller]
    pub(super) fn until<T>(&mut self, what: &str, mut step: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(value) = step() {
                return value;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain: {what}");
            if self.notes.sleep() {
                self.poll.poll(&mut self.events, Some(left)).unwrap();
                self.notes.awake();
            }
            self.notices();
        }
    }

    /// Takes the events that are there, without waiting, and says of which tokens something can be read.
    pub(super) fn readable(&mut self) -> Vec<Token> {
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).unwrap();
        self.events.iter().filter(|event| event.is_readable()).map(mio::event::Event::token).collect()
    }

    /// Takes the events that are there, without waiting, and says how many tell of room to write.
    pub(super) fn told_of_room(&mut self) -> usize {
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).unwrap();
        self.events.iter().filter(|event| event.is_writable()).count()
    }

    /// The next connection of `listener`.
    #[track_caller]
    pub(super) fn accept(&mut self, listener: &mut dyn Listener) -> Connection {
        self.until("accept", || match listener.accept() {
            Ok(connection) => Some(connection),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) => panic!("accept: {e}"),
        })
    }

    /// Registers, establishes and splits a stream.
    #[track_caller]
    pub(super) fn end(&mut self, connection: Connection) -> End {
        let mut stream = stream(connection);
        self.register(|r| stream.register(r));
        self.until("establish", || stream.establish().unwrap().then_some(()));
        let facts = stream.facts();
        let (reader, writer) = stream.split().unwrap();
        End { facts, reader, writer }
    }

    /// Binds with `transport`, connects to what the listener says, and gives both ends, the dialer's first.
    #[track_caller]
    pub(super) fn connect(&mut self, transport: &dyn Transport, url: &str, options: &Bag) -> (End, End) {
        let mut listener = transport.listen(url, options).unwrap();
        self.register(|r| listener.register(r));
        let dialer = transport.dialer(&listener.url(), options).unwrap();
        self.meet(&*dialer, &mut *listener)
    }

    /// Connects `dialer` and accepts.
    #[track_caller]
    pub(super) fn meet(&mut self, dialer: &dyn Dialer, listener: &mut dyn Listener) -> (End, End) {
        let target: Option<Target> = dialer.needs_resolve().then(|| dialer.resolve().unwrap().remove(0));
        let dialled = dialer.dial(target.as_ref()).unwrap();
        let accepted = self.accept(listener);
        (self.end(dialled), self.end(accepted))
    }

    /// Writes a text at `from` and reads it at `to`.
    #[track_caller]
    pub(super) fn carries(&mut self, from: &mut End, to: &mut End, text: &str) {
        let parts = text.as_bytes().split_at(text.len() / 2);
        let parts = [io::IoSlice::new(parts.0), io::IoSlice::new(parts.1)];
        assert_eq!(from.writer.write_vectored(&parts).unwrap(), text.len());
        let mut got = Vec::new();
        self.until("bytes", || {
            let mut buf = [0; 256];
            loop {
                match to.reader.read(&mut buf) {
                    Ok(0) => panic!("end of stream after {got:?}"),
                    Ok(n) => got.extend_from_slice(&buf[..n]),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => panic!("read: {e}"),
                }
            }
            (got.len() >= text.len()).then_some(())
        });
        assert_eq!(got, text.as_bytes());
    }

    /// Waits for the end of the stream.
    #[track_caller]
    pub(super) fn ends(&mut self, at: &mut End) {
        self.until("end of stream", || match at.reader.read(&mut [0; 16]) {
            Ok(0) => Some(()),
            Ok(n) => panic!("{n} bytes more"),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) => panic!("read: {e}"),
        });
    }
}

/// The stream of a connection.
#[track_caller]
pub(super) fn stream(connection: Connection) -> Box<dyn Stream> {
    match connection {
        Connection::Stream(stream, wire) => {
            assert_eq!(wire.name(), "sp");
            stream
        }
        Connection::Messages(_) => panic!("not a stream"),
    }
}

/// Options with one value.
pub(super) fn bag<T: Send + Sync + 'static>(value: T) -> Bag {
    let mut bag = Bag::default();
    bag.set(value);
    bag
}

/// `bind` or `connect` must refuse `url` as invalid, in words that hold `text`.
#[track_caller]
pub(super) fn refuses<T>(result: io::Result<T>, url: &str, text: &str) {
    let error = result.err().unwrap_or_else(|| panic!("{url} was taken"));
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{url}: {error}");
    let said = error.to_string();
    // The socket's error names the address before it: once is enough.
    assert!(said.contains(text) && !said.contains(&format!("{url:?}")), "{url}: {said}");
}
