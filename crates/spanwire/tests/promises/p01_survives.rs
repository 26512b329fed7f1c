//! Nothing that a peer, the network or the system does ends the process, or touches another pipe.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Sender, bounded};
use spanwire::transport::StreamWriter;
use spanwire::{Pull, Push};

use crate::common::*;
use crate::tapped::{At, Tap, Tapped};

const MARK: &[u8] = b"the flow of the good pipe";

/// A pusher that counts up, a steady flow and not a flood: for each message it needs a credit, of which there are eight,
/// and whoever receives one gives its credit back. It ends when they do, and joins to what it has sent.
fn flow(url: &str) -> (Sender<()>, std::thread::JoinHandle<u64>) {
    let (credit, credits) = bounded(8);
    (0..8).for_each(|_| credit.send(()).unwrap());
    let push = Push::new().unwrap();
    push.connect(url).unwrap();
    let thread = std::thread::spawn(move || {
        let mut n = 0u64;
        for () in credits {
            push.send([MARK, &n.to_be_bytes()].concat()).unwrap();
            n += 1;
        }
        assert_eq!(push.close(SOON).unwrap(), 0);
        n
    });
    (credit, thread)
}

/// One hostile visit.
fn visit(url: &str, rng: &mut Rng) {
    let mut socket = dial(url);
    let ipc = is_ipc(url);
    // Whatever fails here, fails because the other side has had enough.
    let _ = (|| -> io::Result<()> {
        match rng.below(8) {
            0 => {
                let n = rng.below(200) as usize;
                socket.write_all(&rng.bytes(n))?;
            }
            1 => {
                // Right up to some byte.
                let mut bytes = handshake(PUSH).to_vec();
                bytes[rng.below(8) as usize] ^= 1 << rng.below(8);
                socket.write_all(&bytes)?;
            }
            2 => socket.write_all(&handshake(PUSH)[..rng.below(8) as usize])?,
            3 => {
                greet(&mut socket, PUSH);
                let n = rng.below(5000) as usize;
                socket.write_all(&rng.bytes(n))?;
            }
            4 => {
                // A frame that is cut, after some that are whole.
                greet(&mut socket, PUSH);
                for _ in 0..rng.below(3) {
                    let n = rng.below(100) as usize;
                    socket.write_all(&frame(ipc, &rng.bytes(n)))?;
                }
                let whole = frame(ipc, &rng.bytes(50));
                socket.write_all(&whole[..rng.below(whole.len() as u64) as usize])?;
            }
            5 => {
                greet(&mut socket, PUSH);
                let mut head = if ipc { vec![1] } else { Vec::new() };
                head.extend_from_slice(&(rng.next() >> rng.below(64)).to_be_bytes());
                socket.write_all(&head)?;
            }
            6 => socket.write_all(&handshake(rng.next() as u16))?,
            _ => {} // a port scan
        }
        match rng.below(4) {
            0 => socket.shutdown(Shutdown::Write)?,
            1 => socket.shutdown(Shutdown::Both)?,
            2 => {
                // Waits for the other side's last word, if it has one at once.
                socket.set_nonblocking(true)?;
                let _ = socket.read(&mut [0; 64]);
            }
            _ => {}
        }
        Ok(())
    })();
    if rng.below(2) == 0 {
        reset(socket);
    }
}

#[test]
fn promise_01_garbage_at_the_listener_leaves_process_and_other_pipes_alone() {
    for (seed, url) in streams().into_iter().enumerate() {
        let pull = Pull::new().unwrap();
        let at = pull.bind(&url).unwrap();
        let url = at.url().to_owned();
        let (credit, flow) = flow(&url);
        let barrage: Vec<_> = (0..2u64)
            .map(|t| {
                let (url, mut rng) = (url.clone(), Rng(seed as u64 * 2 + t));
                std::thread::spawn(move || (0..300).for_each(|_| visit(&url, &mut rng)))
            })
            .collect();
        let mut next = 0u64;
        let mut receive = |credit: Option<&Sender<()>>| {
            let msg = pull.recv_timeout(SOON).unwrap();
            if let Some(n) = msg.strip_prefix(MARK) {
                assert_eq!(n, next.to_be_bytes(), "{url}: the good pipe lost or doubled something");
                next += 1;
                credit.map(|credit| credit.send(()));
            }
            next
        };
        while !barrage.iter().all(|t| t.is_finished()) {
            receive(Some(&credit));
        }
        for t in barrage {
            t.join().unwrap();
        }
        // And still, after it.
        let mut received = receive(Some(&credit));
        let enough = received + 200;
        while received < enough {
            received = receive(Some(&credit));
        }
        drop(credit);
        let sent = flow.join().unwrap();
        while received < sent {
            received = receive(None);
        }
        until("all strangers are gone", || pull.peers() == 0);
    }
}

/// Tcp whose every call fails now and then, with any of the system's errors.
#[derive(Clone)]
struct Flaky(Arc<Fate>);

struct Fate {
    on: AtomicBool,
    seed: AtomicU64,
    injected: AtomicU64,
}

impl Fate {
    /// One call in `odds` fails.
    fn strike(&self, odds: u64) -> io::Result<()> {
        let n = Rng(self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)).next();
        if self.on.load(Ordering::Relaxed) && n.is_multiple_of(odds) {
            self.injected.fetch_add(1, Ordering::Relaxed);
            // Errors that a call on a descriptor may give: all but "try again", which promises an edge.
            let errno = 1 + (n >> 32) as i32 % 132;
            return match io::Error::from_raw_os_error(errno) {
                e if e.kind() == ErrorKind::WouldBlock => Err(io::Error::from_raw_os_error(libc::EIO)),
                e => Err(e),
            };
        }
        Ok(())
    }
}

impl Tap for Flaky {
    fn at(&self, at: At) -> io::Result<()> {
        match at {
            At::Resolve | At::Dial | At::Accept => self.0.strike(6),
            At::Register | At::Establish | At::Split => self.0.strike(20),
            At::Read | At::Write | At::Flush => self.0.strike(40),
            At::Shutdown => self.0.strike(4),
            At::Accepted | At::Facts => Ok(()),
        }
    }
    fn resolves(&self) -> bool {
        true
    }
    fn write_vectored(&mut self, writer: &mut dyn StreamWriter, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        writer.write_vectored(slices)
    }
}

#[test]
fn promise_01_every_error_from_every_call_of_a_transport_is_survived() {
    let fate = Arc::new(Fate { on: true.into(), seed: 1.into(), injected: 0.into() });
    let fast = std::time::Duration::from_millis(1);
    let pull = Pull::builder().transport(Tapped::new(Flaky(fate.clone()))).build().unwrap();
    let flaky = pull.bind("tapped://127.0.0.1:0").unwrap();
    let (credit, flow) = flow(pull.bind(&tcp()).unwrap().url());
    let push = Push::builder()
        .transport(Tapped::new(Flaky(fate.clone())))
        .reconnect(fast, fast * 20)
        .build()
        .unwrap();
    push.connect(flaky.url()).unwrap();
    let through = push.clone();
    let told = Arc::new(AtomicBool::new(false));
    let quiet = told.clone();
    let sender = std::thread::spawn(move || {
        while !quiet.load(Ordering::Relaxed) {
            through.send("through thick and thin").unwrap();
        }
    });
    let (mut good, mut others) = (0u64, 0u64);
    while fate.injected.load(Ordering::Relaxed) < 200 || good < 100 {
        let msg = pull.recv_timeout(SOON).unwrap();
        match msg.strip_prefix(MARK) {
            Some(n) => {
                assert_eq!(n, good.to_be_bytes());
                good += 1;
                credit.send(()).unwrap();
            }
            None => others += 1,
        }
    }
    assert!(others > 0, "some messages came through");
    fate.on.store(false, Ordering::Relaxed);
    told.store(true, Ordering::Relaxed);
    drop(credit);
    let drain = std::thread::spawn(move || {
        let mut last = false;
        while !last {
            last = pull.recv_timeout(SOON).unwrap() == "last";
        }
        pull
    });
    sender.join().unwrap();
    // When the errors end, so does the trouble. A connection that was struck just before may still swallow what it took.
    until("the last one comes through", || {
        push.send("last").unwrap();
        drain.is_finished()
    });
    drain.join().unwrap().close(SOON).unwrap();
    flow.join().unwrap();
}
