//! `tapped://`: tcp with a test's [`Tap`] in it, through which every call passes; the tap may look, wait, fail or panic.
//!
//! Owns: the passing on, of everything. Never: does anything itself.

use std::io::{self, IoSlice, Read, Write};

use spanwire::transport::{
    Bag, Connection, Dialer, Facts, Listener, Registrar, Stream, StreamReader, StreamWriter, Target, Tcp,
    Transport,
};

/// A call of the transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum At {
    Resolve,
    Dial,
    Accept,
    /// A connection was accepted; a failure drops it.
    Accepted,
    Register,
    Establish,
    Facts,
    Split,
    Read,
    Write,
    Flush,
    Shutdown,
}

/// What a test does to connections. Each has a clone, and each half of it another; by default all passes.
pub(crate) trait Tap: Clone + Send + Sync + 'static {
    /// Before each call; of [`At::Facts`] only a panic counts.
    fn at(&self, _: At) -> io::Result<()> {
        Ok(())
    }
    /// Whether its dialers resolve; if not, they dial the address that they were given.
    fn resolves(&self) -> bool {
        false
    }
    /// The addresses of tcp to which this one of tcp resolves.
    fn resolve(&self, url: &str) -> Vec<String> {
        vec![url.to_owned()]
    }
    fn registered(&self, _: &Registrar<'_>) {}
    fn read(&mut self, reader: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
        reader.read(into)
    }
    fn write(&mut self, writer: &mut dyn StreamWriter, bytes: &[u8]) -> io::Result<usize> {
        writer.write(bytes)
    }
    fn write_vectored(&mut self, writer: &mut dyn StreamWriter, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        self.write(writer, first.map_or(&[], |slice| slice))
    }
    fn flush(&mut self, writer: &mut dyn StreamWriter) -> io::Result<()> {
        writer.flush()
    }
    fn shutdown(&mut self, writer: &mut dyn StreamWriter) -> io::Result<bool> {
        writer.shutdown()
    }
}

/// The transport; and, around a part of tcp, that part of it.
pub(crate) struct Tapped<P, T>(P, T);

impl<T: Tap> Tapped<(), T> {
    pub(crate) fn new(tap: T) -> Self {
        Tapped((), tap)
    }
}

/// The address of tcp that is meant by one of ours.
pub(crate) fn plain(url: &str) -> String {
    url.replacen("tapped:", "tcp:", 1)
}

/// Our address for one of tcp.
pub(crate) fn tapped(url: &str) -> String {
    url.replacen("tcp:", "tapped:", 1)
}

impl<T: Tap> Transport for Tapped<(), T> {
    fn schemes(&self) -> &'static [&'static str] {
        &["tapped"]
    }
    fn dialer(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(Tapped((plain(url), options.clone()), self.1.clone())))
    }
    fn listen(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(Tapped(Tcp.listen(&plain(url), options)?, self.1.clone())))
    }
}

fn tap<T: Tap>(connection: Connection, tap: &T) -> Connection {
    match connection {
        Connection::Stream(stream, wire) => Connection::Stream(Box::new(Tapped(stream, tap.clone())), wire),
        other => other,
    }
}

impl<T: Tap> Dialer for Tapped<(String, Bag), T> {
    fn needs_resolve(&self) -> bool {
        self.1.resolves()
    }
    fn resolve(&self) -> io::Result<Vec<Target>> {
        self.1.at(At::Resolve)?;
        Ok(self.1.resolve(&self.0.0).into_iter().map(|url| Target::new(url, ())).collect())
    }
    fn dial(&self, target: Option<&Target>) -> io::Result<Connection> {
        self.1.at(At::Dial)?;
        let url = target.map_or(&self.0.0, |target| &target.label);
        Ok(tap(Tcp.dialer(url, &self.0.1)?.dial(None)?, &self.1))
    }
}

impl<T: Tap> Listener for Tapped<Box<dyn Listener>, T> {
    fn url(&self) -> String {
        tapped(&self.0.url())
    }
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        self.0.register(registrar)
    }
    fn accept(&mut self) -> io::Result<Connection> {
        self.1.at(At::Accept)?;
        let connection = self.0.accept()?;
        self.1.at(At::Accepted)?;
        Ok(tap(connection, &self.1))
    }
}

impl<T: Tap> Stream for Tapped<Box<dyn Stream>, T> {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        self.1.at(At::Register)?;
        self.1.registered(registrar);
        self.0.register(registrar)
    }
    fn establish(&mut self) -> io::Result<bool> {
        self.1.at(At::Establish)?;
        self.0.establish()
    }
    fn facts(&self) -> Facts {
        let _ = self.1.at(At::Facts);
        self.0.facts()
    }
    fn split(self: Box<Self>) -> io::Result<(Box<dyn StreamReader>, Box<dyn StreamWriter>)> {
        self.1.at(At::Split)?;
        let (reader, writer) = self.0.split()?;
        Ok((Box::new(Tapped(reader, self.1.clone())), Box::new(Tapped(writer, self.1))))
    }
}

impl<T: Tap> Read for Tapped<Box<dyn StreamReader>, T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.1.at(At::Read)?;
        self.1.read(&mut *self.0, into)
    }
}

impl<T: Tap> StreamReader for Tapped<Box<dyn StreamReader>, T> {
    fn set_low_water(&mut self, bytes: usize) {
        self.0.set_low_water(bytes);
    }
}

impl<T: Tap> Write for Tapped<Box<dyn StreamWriter>, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.at(At::Write)?;
        self.1.write(&mut *self.0, bytes)
    }
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.1.at(At::Write)?;
        self.1.write_vectored(&mut *self.0, slices)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.1.at(At::Flush)?;
        self.1.flush(&mut *self.0)
    }
}

impl<T: Tap> StreamWriter for Tapped<Box<dyn StreamWriter>, T> {
    fn shutdown(&mut self) -> io::Result<bool> {
        self.1.at(At::Shutdown)?;
        self.1.shutdown(&mut *self.0)
    }
}
