//! The two halves of a socket that several threads may read and write at once.
//!
//! Owns: nothing but a shared reference; the descriptor closes with the last half. Never: a lock (the kernel
//! lets one thread read while another writes), a buffer, or a SIGPIPE: a peer that goes must not end a process
//! which has not switched that signal off, such as a C program with this library in it.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

use super::{StreamReader, StreamWriter, sys};

/// What a half needs of its socket.
#[cfg(unix)]
pub(super) trait Socket: std::os::fd::AsFd {}
#[cfg(unix)]
impl<T: std::os::fd::AsFd> Socket for T {}
/// What a half needs of its socket.
#[cfg(not(unix))]
pub(super) trait Socket {}
#[cfg(not(unix))]
impl<T> Socket for T {}

/// One half of a socket.
#[derive(Debug)]
pub(super) struct Half<T>(Arc<T>);

/// `IOV_MAX` on the systems that have it small enough to matter; the rest is for the next write.
#[cfg(unix)]
const MAX_SLICES: usize = 1024;
/// Apple's systems have an option on the socket instead.
#[cfg(all(unix, not(target_vendor = "apple")))]
const FLAGS: i32 = libc::MSG_NOSIGNAL;
#[cfg(target_vendor = "apple")]
const FLAGS: i32 = 0;

impl<T: Socket> Half<T> {
    /// Two halves of `socket`.
    pub(super) fn both(socket: T) -> (Self, Self) {
        #[cfg(target_vendor = "apple")]
        let _ = socket2::SockRef::from(&socket).set_nosigpipe(true);
        let socket = Arc::new(socket);
        (Half(socket.clone()), Half(socket))
    }
}

#[cfg(unix)]
impl<T: std::os::fd::AsRawFd> Half<T> {
    /// The descriptor, as long as this half is there.
    pub(super) fn fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }

    /// Ends the sending direction.
    pub(super) fn end(&self) -> io::Result<()>
    where
        T: std::os::fd::AsFd,
    {
        socket2::SockRef::from(&*self.0).shutdown(Shutdown::Write)
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

impl StreamReader for Half<mio::net::TcpStream> {
    fn set_low_water(&mut self, bytes: usize) {
        sys::set_low_water(&*self.0, bytes);
    }
}

/// Linux minds no low-water mark when it tells of a Unix socket.
#[cfg(unix)]
impl StreamReader for Half<mio::net::UnixStream> {}

#[cfg(unix)]
impl<T: Socket> Write for Half<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        socket2::SockRef::from(&*self.0).send_with_flags(buf, FLAGS)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let bufs = &bufs[..bufs.len().min(MAX_SLICES)];
        socket2::SockRef::from(&*self.0).send_vectored_with_flags(bufs, FLAGS)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Through mio, which must see each `WouldBlock` there to ask for the next event.
#[cfg(not(unix))]
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
