//! The two halves of a socket that several threads may read and write at once.
//!
//! Owns: nothing but a shared reference; the descriptor closes with the last half. Never: a lock (the kernel
//! lets one thread read while another writes) or a buffer.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

use super::StreamWriter;

/// One half of a socket.
#[derive(Debug)]
pub(super) struct Half<T>(Arc<T>);

impl<T> Half<T> {
    /// Two halves of `socket`.
    pub(super) fn both(socket: T) -> (Self, Self) {
        let socket = Arc::new(socket);
        (Half(socket.clone()), Half(socket))
    }
}

impl<T> Read for Half<T>
where
    for<'a> &'a T: Read,
{
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buf)
    }

    fn read_vectored(&mut self, bufs: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self.0).read_vectored(bufs)
    }
}

impl<T> Write for Half<T>
where
    for<'a> &'a T: Write,
{
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self.0).write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self.0).write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StreamWriter for Half<mio::net::TcpStream> {
    fn shutdown(&mut self) -> io::Result<bool> {
        self.0.shutdown(Shutdown::Write).map(|()| true)
    }
}

#[cfg(unix)]
impl StreamWriter for Half<mio::net::UnixStream> {
    fn shutdown(&mut self) -> io::Result<bool> {
        self.0.shutdown(Shutdown::Write).map(|()| true)
    }
}
