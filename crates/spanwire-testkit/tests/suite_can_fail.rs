//! Transports that break one rule each: the check of that rule fails.

use std::io::{self, ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use spanwire::transport::{
    Bag, Connection, Dialer, Facts, Listener, Registrar, Stream, StreamReader, StreamWriter, Target, Tcp,
    Transport,
};
use spanwire_testkit::conformance::{self, Setup};

/// The rule that is broken.
#[derive(Clone, Copy, PartialEq)]
enum Break {
    Nothing,
    /// Takes whatever is written, and keeps what the system does not take.
    Bounds,
    /// One byte in the middle of a large read is another.
    Bytes,
    /// Nothing is known of peers.
    Facts,
    /// The address of a listener is the one that was asked for.
    Port,
    /// Any error is of another kind.
    Errors,
    /// A listener stays when it is dropped.
    Release,
}

struct Bad(Break);

impl Transport for Bad {
    fn schemes(&self) -> &'static [&'static str] {
        Tcp.schemes()
    }
    fn dialer(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Dialer>> {
        let inner = Tcp.dialer(url, options).map_err(|e| self.error(e))?;
        Ok(Box::new(BadDialer(inner, self.0)))
    }
    fn listen(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Listener>> {
        let inner = Tcp.listen(url, options).map_err(|e| self.error(e))?;
        Ok(Box::new(BadListener(Some(inner), self.0)))
    }
}

impl Bad {
    fn error(&self, error: io::Error) -> io::Error {
        if self.0 == Break::Errors { io::Error::other(error.to_string()) } else { error }
    }
}

struct BadDialer(Box<dyn Dialer>, Break);

impl Dialer for BadDialer {
    fn needs_resolve(&self) -> bool {
        self.0.needs_resolve()
    }
    fn resolve(&self) -> io::Result<Vec<Target>> {
        self.0.resolve()
    }
    fn dial(&self, target: Option<&Target>) -> io::Result<Connection> {
        self.0.dial(target).map(|connection| wrap(connection, self.1))
    }
}

struct BadListener(Option<Box<dyn Listener>>, Break);

impl BadListener {
    fn inner(&mut self) -> &mut dyn Listener {
        self.0.as_deref_mut().expect("taken in drop only")
    }
}

impl Listener for BadListener {
    fn url(&self) -> String {
        match &self.0 {
            Some(inner) if self.1 != Break::Port => inner.url(),
            _ => "tcp://127.0.0.1:0".into(),
        }
    }
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        self.inner().register(registrar)
    }
    fn accept(&mut self) -> io::Result<Connection> {
        let broken = self.1;
        self.inner().accept().map(|connection| wrap(connection, broken))
    }
}

impl Drop for BadListener {
    fn drop(&mut self) {
        if self.1 == Break::Release {
            std::mem::forget(self.0.take());
        }
    }
}

fn wrap(connection: Connection, broken: Break) -> Connection {
    match connection {
        Connection::Stream(inner, wire) => Connection::Stream(Box::new(BadStream(inner, broken)), wire),
        other => other,
    }
}

struct BadStream(Box<dyn Stream>, Break);

impl Stream for BadStream {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        self.0.register(registrar)
    }
    fn establish(&mut self) -> io::Result<bool> {
        self.0.establish()
    }
    fn facts(&self) -> Facts {
        if self.1 == Break::Facts { Facts::default() } else { self.0.facts() }
    }
    fn split(self: Box<Self>) -> io::Result<(Box<dyn StreamReader>, Box<dyn StreamWriter>)> {
        let (reader, writer) = self.0.split()?;
        Ok((Box::new(BadReader(reader, self.1)), Box::new(BadWriter(writer, self.1, Vec::new()))))
    }
}

struct BadReader(Box<dyn StreamReader>, Break);

impl Read for BadReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buf)?;
        if self.1 == Break::Bytes && n > 10_000 {
            buf[n / 2] ^= 1;
        }
        Ok(n)
    }
}

impl StreamReader for BadReader {}

struct BadWriter(Box<dyn StreamWriter>, Break, Vec<u8>);

impl Write for BadWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.1 != Break::Bounds {
            return self.0.write(buf);
        }
        self.2.extend_from_slice(buf);
        match self.flush() {
            Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
            _ => Ok(buf.len()),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        while !self.2.is_empty() {
            let n = self.0.write(&self.2)?;
            self.2.drain(..n);
        }
        self.0.flush()
    }
}

impl StreamWriter for BadWriter {
    fn shutdown(&mut self) -> io::Result<bool> {
        self.0.shutdown()
    }
}

fn passes(broken: Break, check: fn(&Setup)) -> bool {
    let setup = Setup::new(Bad(broken), || "tcp://127.0.0.1:0".into()).ports().bad_addresses(["tcp://"]);
    catch_unwind(AssertUnwindSafe(|| check(&setup))).is_ok()
}

#[track_caller]
fn only_passes_whole(broken: Break, check: fn(&Setup)) {
    assert!(passes(Break::Nothing, check), "the check fails on a transport that is right");
    assert!(!passes(broken, check), "the check passes on a transport that is not");
}

#[test]
fn a_transport_that_alters_bytes_is_found() {
    only_passes_whole(Break::Bytes, conformance::messages_of_every_size_arrive_whole_and_in_order);
}

#[test]
fn a_transport_without_bounds_is_found() {
    only_passes_whole(Break::Bounds, conformance::a_stopped_receiver_stops_its_sender_and_nothing_is_lost);
}

#[test]
fn a_transport_that_knows_no_peers_is_found() {
    only_passes_whole(Break::Facts, conformance::both_ends_know_whom_they_talk_to);
}

#[test]
fn a_transport_that_hides_its_port_is_found() {
    only_passes_whole(Break::Port, conformance::port_zero_becomes_a_real_port);
}

#[test]
fn a_transport_with_errors_of_any_kind_is_found() {
    only_passes_whole(Break::Errors, conformance::a_bad_address_is_an_error_that_names_it);
    only_passes_whole(Break::Errors, conformance::an_address_in_use_is_an_error_that_names_it);
}

#[test]
fn a_transport_that_keeps_its_address_is_found() {
    only_passes_whole(Break::Release, conformance::a_closed_address_is_free_again);
}
