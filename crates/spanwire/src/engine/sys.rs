//! The few things that the standard library and mio do not offer: the only `unsafe` of the engine.
//!
//! - A socket's own poll nested in the driver's, armed and disarmed for 0.4 µs (Linux epoll: `EPOLL_CTL_MOD`
//!   with an empty mask; mio could only add and delete, at four times the cost).
//! - Waiting for less than a millisecond, which mio's timeouts cannot.
//! - Knowing that this process is a forked child, for the price of one relaxed load.
//! - An eventfd as the exported readiness descriptor.
//!
//! Where there is no epoll, and on Linux with `--cfg spanwire_portable`, the nested poll stays armed and the
//! driver drives always; callers park. What is Linux-only stands in this file.
#![cfg_attr(unix, expect(unsafe_code, reason = "system calls that nobody wraps; each says why it is sound"))]

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Whether callers may drive their sockets' loops.
pub(crate) const CALLERS_LEAD: bool = cfg!(all(target_os = "linux", not(spanwire_portable)));

static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// How many forks lie between the process that loaded this library and this one.
#[inline]
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Starts counting forks; called before the first socket exists.
pub(crate) fn count_forks() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // SAFETY: `in_child` is a function of the program's life and does nothing but add to an atomic,
        // which is allowed between fork and exec.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

#[cfg(all(target_os = "linux", not(spanwire_portable)))]
pub(crate) mod nested {
    //! A socket's epoll within the driver's, by `epoll_ctl`.

    use std::io;
    use std::os::fd::{AsRawFd, RawFd};

    const ON: u32 = (libc::EPOLLIN | libc::EPOLLET) as u32;

    /// The driver's poll, for adding to it.
    #[derive(Debug)]
    pub(crate) struct Parent(RawFd);

    impl Parent {
        /// `poll` must live as long as the process.
        pub(crate) fn of(poll: &mio::Poll) -> io::Result<Parent> {
            Ok(Parent(poll.as_raw_fd()))
        }
    }

    /// The place of one socket's poll in the driver's.
    #[derive(Debug)]
    pub(crate) struct Nested {
        parent: RawFd,
        inner: RawFd,
        token: usize,
    }

    impl Nested {
        /// Adds the inner poll, disarmed.
        pub(crate) fn add(parent: &Parent, inner: &mio::Poll, token: usize) -> io::Result<Nested> {
            let nested = Nested { parent: parent.0, inner: inner.as_raw_fd(), token };
            nested.ctl(libc::EPOLL_CTL_ADD, 0)?;
            Ok(nested)
        }

        fn ctl(&self, op: i32, events: u32) -> io::Result<()> {
            let mut event = libc::epoll_event { events, u64: self.token as u64 };
            // SAFETY: `event` is valid for the call. The parent lives as long as the process, the inner poll as
            // long as the socket that owns this; a wrong descriptor would be an error, not undefined behaviour.
            match unsafe { libc::epoll_ctl(self.parent, op, self.inner, &mut event) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }

        pub(crate) fn set(&self, on: bool) {
            // It fails only for descriptors that are not there, which `add` has ruled out.
            let _ = self.ctl(libc::EPOLL_CTL_MOD, if on { ON } else { 0 });
        }

        /// Before the inner poll closes: a forked child may still hold a copy of it.
        pub(crate) fn remove(&self) {
            let _ = self.ctl(libc::EPOLL_CTL_DEL, 0);
        }
    }
}

#[cfg(not(all(target_os = "linux", not(spanwire_portable))))]
pub(crate) mod nested {
    //! A socket's poll within the driver's, by mio: armed for ever.

    use std::io;
    use std::os::fd::{AsRawFd, RawFd};

    use mio::unix::SourceFd;
    use mio::{Interest, Registry, Token};

    /// The driver's poll, for adding to it.
    #[derive(Debug)]
    pub(crate) struct Parent(Registry);

    impl Parent {
        pub(crate) fn of(poll: &mio::Poll) -> io::Result<Parent> {
            Ok(Parent(poll.registry().try_clone()?))
        }
    }

    /// The place of one socket's poll in the driver's.
    #[derive(Debug)]
    pub(crate) struct Nested {
        parent: Registry,
        inner: RawFd,
    }

    impl Nested {
        /// Adds the inner poll.
        pub(crate) fn add(parent: &Parent, inner: &mio::Poll, token: usize) -> io::Result<Nested> {
            let nested = Nested { parent: parent.0.try_clone()?, inner: inner.as_raw_fd() };
            nested.parent.register(&mut SourceFd(&nested.inner), Token(token), Interest::READABLE)?;
            Ok(nested)
        }

        pub(crate) fn set(&self, _on: bool) {}

        pub(crate) fn remove(&self) {
            let _ = self.parent.deregister(&mut SourceFd(&self.inner));
        }
    }
}

/// Waits until the poll has events or `left` is over; finer than mio's milliseconds where the system can.
pub(crate) fn wait_fine(poll: &mio::Poll, left: std::time::Duration) {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let time = libc::timespec {
            tv_sec: left.as_secs().min(1) as libc::time_t,
            tv_nsec: left.subsec_nanos() as libc::c_long,
        };
        let mut fd = libc::pollfd { fd: poll.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, one valid timespec, no signal mask.
        unsafe { libc::ppoll(&mut fd, 1, &time, std::ptr::null()) };
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = poll;
        std::thread::sleep(left);
    }
}

/// This thread's timers may be exact to a microsecond: the default slack of 50 µs would stretch the driver's
/// visits.
pub(crate) fn exact_timers() {
    #[cfg(target_os = "linux")]
    // SAFETY: affects the calling thread's timers only.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_000 as libc::c_ulong);
    }
}

/// A descriptor that is readable while its level is up.
#[derive(Debug)]
pub(crate) struct Level {
    read: std::fs::File,
    #[cfg(not(target_os = "linux"))]
    write: std::io::PipeWriter,
    up: bool,
}

impl Level {
    #[cfg(target_os = "linux")]
    pub(crate) fn new() -> io::Result<Level> {
        use std::os::fd::FromRawFd;
        // SAFETY: no pointers; the flags are valid.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Level { read: unsafe { std::fs::File::from_raw_fd(fd) }, up: false })
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn new() -> io::Result<Level> {
        let (read, write) = std::io::pipe()?;
        Ok(Level { read: std::fs::File::from(std::os::fd::OwnedFd::from(read)), write, up: false })
    }

    /// An eventfd between 0 and 1 never blocks, nor does a pipe of at most 8 bytes: this may be called under a lock.
    pub(crate) fn show(&mut self, up: bool) {
        use std::io::{Read, Write};
        if up == self.up {
            return;
        }
        self.up = up;
        if up {
            #[cfg(target_os = "linux")]
            let _ = self.read.write(&1u64.to_ne_bytes());
            #[cfg(not(target_os = "linux"))]
            let _ = self.write.write(&1u64.to_ne_bytes());
        } else {
            let _ = self.read.read(&mut [0; 8]);
        }
    }
}

impl std::os::fd::AsRawFd for Level {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.read.as_raw_fd()
    }
}
