//! A connection that can be broken: a listener that hands on bytes to a server whose address may change.
//!
//! Owns: what passes between one dialler and one server. Never: changes a byte; outlives its test by more than a
//! connection's end.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a link does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Open,
    /// Nothing is connected; who tries is turned away.
    Cut,
    /// Connections stay, and nothing passes.
    Silent,
    /// The test is over.
    Over,
}

#[derive(Debug)]
struct Inner {
    mode: Mode,
    target: Option<SocketAddr>,
    open: Vec<TcpStream>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// One link.
#[derive(Debug)]
pub(crate) struct Link {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Link {
    pub(crate) fn new() -> std::io::Result<Link> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let inner = Inner { mode: Mode::Open, target: None, open: Vec::new() };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new() });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for dialler in listener.incoming() {
                match (dialler, accepting.lock().mode) {
                    (_, Mode::Over) => return,
                    (Err(_), _) | (_, Mode::Cut) => {}
                    (Ok(dialler), _) => {
                        let shared = accepting.clone();
                        std::thread::spawn(move || shared.join(dialler));
                    }
                }
            }
        });
        Ok(Link { shared, address })
    }

    pub(crate) fn url(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// Where the server listens now, if it does.
    pub(crate) fn lead_to(&self, target: Option<SocketAddr>) {
        self.shared.lock().target = target;
    }

    pub(crate) fn set(&self, mode: Mode) {
        let mut inner = self.shared.lock();
        inner.mode = mode;
        if matches!(mode, Mode::Cut | Mode::Over) {
            for stream in inner.open.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        drop(inner);
        self.shared.changed.notify_all();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.set(Mode::Over);
        // Wakes the listener, which sees that it is over.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the link is silent; whether it is open then.
    fn pass(&self) -> bool {
        let silent = |inner: &mut Inner| inner.mode == Mode::Silent;
        let inner = self.changed.wait_while(self.lock(), silent).unwrap_or_else(PoisonError::into_inner);
        inner.mode == Mode::Open
    }

    fn join(self: Arc<Shared>, dialler: TcpStream) {
        // Who dials into silence hears nothing, rather than a refusal.
        if !self.pass() {
            return;
        }
        let Some(target) = self.lock().target else { return };
        let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(1)) else { return };
        let streams = [dialler.try_clone(), server.try_clone()];
        {
            let mut inner = self.lock();
            if !matches!(inner.mode, Mode::Open | Mode::Silent) {
                return;
            }
            inner.open.retain(|stream| stream.take_error().is_ok() && stream.peer_addr().is_ok());
            for stream in streams.into_iter().flatten() {
                let _ = stream.set_nodelay(true);
                inner.open.push(stream);
            }
        }
        let (Ok(up_from), Ok(down_to)) = (dialler.try_clone(), server.try_clone()) else { return };
        let back = self.clone();
        std::thread::spawn(move || back.pump(server, dialler));
        self.pump(up_from, down_to);
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = vec![0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            if !self.pass() || to.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}
