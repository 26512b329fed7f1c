//! Any thread may use and close a socket; a forked child gets an answer, and the parent is unharmed.

use std::os::fd::RawFd;
use std::time::Duration;

use spanwire::{
    Error, Interest, Message, Pair, Poller, Pub, Pull, Push, RecvError, Rep, Req, RequestError, SendError,
    Sub,
};

use crate::common::*;

type Hand = Box<dyn FnOnce() + Send>;

/// Again and again until it fails: because the socket was closed, and for no other reason.
fn until_closed<T, E: std::fmt::Display>(
    mut call: impl FnMut() -> Result<T, E> + Send + 'static,
    is_closed: impl Fn(&E) -> bool + Send + 'static,
) -> Hand {
    Box::new(move || {
        let end = std::iter::repeat_with(&mut call).find_map(Result::err).expect("it goes on until an error");
        assert!(is_closed(&end), "not closed, but: {end}");
    })
}

/// A call that may be late, or find nothing, and has not failed then.
fn patient<T, E: std::fmt::Display>(
    mut call: impl FnMut() -> Result<T, E>,
    in_vain: impl Fn(&E) -> bool,
) -> impl FnMut() -> Result<(), E> {
    move || match call() {
        Err(e) if !in_vain(&e) => Err(e),
        _ => Ok(()),
    }
}

fn request_closed(e: &RequestError) -> bool {
    matches!(e, RequestError::Closed | RequestError::NotSent(SendError::Closed(_)))
}

/// Everybody who may be in the middle of something on a socket; each ends when it is closed.
fn hands(url: &str, push: &Push, pull: &Pull, req: &Req, rep: &Rep, pair: &Pair) -> Vec<Hand> {
    let (a, b, c) = (push.clone(), push.clone(), push.clone());
    let (d, e, f, g, h) = (pull.clone(), pull.clone(), pull.clone(), pull.clone(), pull.clone());
    let (i, j, k, l, m) = (req.clone(), req.clone(), rep.clone(), pair.clone(), pair.clone());
    let (n, o) = (push.clone(), url.to_owned());
    vec![
        until_closed(move || a.send(vec![7; 1000]), SendError::is_closed),
        until_closed(move || block_on(b.send_async(vec![7; 1000])), SendError::is_closed),
        until_closed(
            patient(
                move || c.send_timeout("x", Duration::from_micros(50)),
                |e| matches!(e, SendError::TimedOut(_)),
            ),
            SendError::is_closed,
        ),
        until_closed(move || d.recv(), RecvError::is_closed),
        until_closed(move || block_on(e.recv_async()), RecvError::is_closed),
        until_closed(patient(move || f.try_recv(), |e| *e == RecvError::Empty), RecvError::is_closed),
        Box::new(move || assert!(!g.wait_for_peers(usize::MAX, SOON * 2))),
        Box::new(move || {
            let mut poller = Poller::new().unwrap();
            poller.add(&h, Interest::RECV).unwrap();
            while !poller.wait(None).unwrap().iter().any(|ready| ready.closed) {
                let _ = h.try_recv();
            }
        }),
        until_closed(move || i.request("?"), request_closed),
        until_closed(move || block_on(j.request_async("?")), request_closed),
        // A reply that finds the socket closed says so in words of its own; the next `recv` is looked at.
        until_closed(move || k.recv().map(|request| drop(request.reply("!"))), RecvError::is_closed),
        until_closed(move || l.recv(), RecvError::is_closed),
        until_closed(move || m.send("x"), SendError::is_closed),
        Box::new(move || {
            loop {
                match n.connect(&o) {
                    Ok(endpoint) => endpoint.close(),
                    Err(e) => return assert!(e.is_closed()),
                }
                if let Ok(endpoint) = n.bind(&inproc()) {
                    endpoint.close();
                }
            }
        }),
    ]
}

#[test]
fn promise_12_close_in_the_midst_of_everything_wakes_everybody_with_closed() {
    let mut rng = Rng(12);
    for round in 0..8 {
        for url in urls() {
            let (push, pull) = (Push::new().unwrap(), Pull::new().unwrap());
            let (req, rep, pair) = (Req::new().unwrap(), Rep::new().unwrap(), Pair::new().unwrap());
            let of_reqs = rep.bind(&tcp()).unwrap();
            req.connect(of_reqs.url()).unwrap();
            let url = pull.bind(&url).unwrap().url().to_owned();
            // In some rounds nobody is connected, and most wait for a first peer.
            if round % 2 == 0 {
                push.connect(&url).unwrap();
            }
            pair.connect(&inproc()).unwrap();
            let threads: Vec<_> =
                hands(&url, &push, &pull, &req, &rep, &pair).into_iter().map(std::thread::spawn).collect();
            let spin = rng.below(20_000);
            (0..spin).for_each(|_| std::hint::spin_loop());
            let closers: Vec<Hand> = vec![
                Box::new(move || assert!(push.close(Duration::ZERO).is_ok())),
                Box::new(move || assert!(pull.close(Duration::ZERO).is_ok())),
                Box::new(move || assert!(req.close(Duration::ZERO).is_ok())),
                Box::new(move || assert!(rep.close(Duration::ZERO).is_ok())),
                Box::new(move || assert!(pair.close(Duration::ZERO).is_ok())),
            ];
            let closers: Vec<_> = closers.into_iter().map(std::thread::spawn).collect();
            for (n, t) in threads.iter().chain(&closers).enumerate() {
                until(format_args!("round {round}: hand {n} ends on {url}"), || t.is_finished());
            }
            threads.into_iter().chain(closers).for_each(|t| t.join().unwrap());
        }
    }
}

#[test]
fn promise_12_a_closed_socket_says_closed_to_every_call() {
    for url in urls() {
        let pair = Pair::new().unwrap();
        pair.bind(&url).unwrap();
        pair.close(SOON).unwrap();
        assert!(matches!(pair.send("x"), Err(SendError::Closed(m)) if m == "x"));
        assert!(matches!(pair.try_send("x"), Err(SendError::Closed(_))));
        assert!(matches!(pair.send_timeout("x", SOON), Err(SendError::Closed(_))));
        assert!(matches!(block_on(pair.send_async("x")), Err(SendError::Closed(_))));
        assert_eq!(pair.recv(), Err(RecvError::Closed));
        assert_eq!(pair.try_recv(), Err(RecvError::Closed));
        assert_eq!(pair.recv_timeout(SOON), Err(RecvError::Closed));
        assert_eq!(block_on(pair.recv_async()), Err(RecvError::Closed));
        assert!(matches!(pair.bind(&url), Err(Error::Closed)));
        assert!(matches!(pair.connect(&inproc()), Err(Error::Closed)));
        assert!(!pair.wait_for_peers(1, SOON));
        assert!(pair.events().recv().is_err());
        assert_eq!(pair.close(SOON).unwrap(), 0);
    }
}

fn flags(fd: RawFd) -> i32 {
    // SAFETY: no pointers; a wrong descriptor is an error.
    unsafe { libc::fcntl(fd, libc::F_GETFD) }
}

fn open() -> Vec<RawFd> {
    let listed: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    // Without that of the listing itself.
    listed.into_iter().filter(|fd| flags(*fd) >= 0).collect()
}

#[test]
fn promise_12_every_descriptor_is_closed_on_exec() {
    if !alone("p12_threads_and_forks::promise_12_every_descriptor_is_closed_on_exec") {
        return;
    }
    let before = open();
    let mut kept = Vec::new();
    for url in urls() {
        let (a, b) = (Pair::new().unwrap(), Pair::new().unwrap());
        b.connect(a.bind(&url).unwrap().url()).unwrap();
        b.send("x").unwrap();
        a.recv_timeout(SOON).unwrap();
        a.readable_fd().unwrap();
        b.bind(&ipc()).unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&a, Interest::RECV).unwrap();
        poller.wait(Some(Duration::ZERO)).unwrap();
        kept.push((a, b, poller));
    }
    let new: Vec<_> = open().into_iter().filter(|fd| !before.contains(fd)).collect();
    assert!(new.len() > 15, "{new:?}");
    for fd in new {
        let what = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        assert!(flags(fd) & libc::FD_CLOEXEC != 0, "{fd} {what:?} goes to children");
    }
}

/// Forks; the child runs `f`, whose number is its exit status, and must be done soon.
fn in_fork(f: impl FnOnce() -> i32) {
    // SAFETY: the child calls what this test is about and `_exit`; an alarm ends it if that hangs.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: both are async-signal-safe, and take no pointers.
        unsafe {
            libc::alarm(20);
            let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(99);
            libc::_exit(failed);
        }
    }
    assert!(pid > 0);
    let mut status = 0;
    until("the child ends", || {
        // SAFETY: one valid status.
        unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) == pid }
    });
    assert!(!libc::WIFSIGNALED(status), "the child hung or died of signal {}", libc::WTERMSIG(status));
    assert_eq!(libc::WEXITSTATUS(status), 0, "number of the check that failed in the child");
}

struct Sockets {
    push: Push,
    pull: Pull,
    req: Req,
    rep: Rep,
}

impl Sockets {
    fn new(url: &str) -> Sockets {
        let (push, pull) = (Push::new().unwrap(), Pull::new().unwrap());
        let (req, rep) = (Req::new().unwrap(), Rep::new().unwrap());
        push.connect(pull.bind(url).unwrap().url()).unwrap();
        req.connect(rep.bind(&tcp()).unwrap().url()).unwrap();
        Sockets { push, pull, req, rep }
    }

    fn work(&self) {
        for _ in 0..100 {
            self.push.send("x").unwrap();
            assert_eq!(self.pull.recv_timeout(SOON).unwrap(), "x");
        }
        let pending = self.req.start("?").unwrap();
        self.rep.recv_timeout(SOON).unwrap().reply("!").unwrap();
        assert_eq!(pending.wait_timeout(SOON).unwrap(), "!");
    }

    /// What a child sees: the number of the first check that fails.
    fn in_child(&self) -> i32 {
        let closed = |e: Result<_, Error>| matches!(e, Err(Error::Forked));
        let checks: [&dyn Fn() -> bool; 15] = [
            &|| matches!(self.push.send("x"), Err(SendError::Forked(_))),
            &|| matches!(self.push.try_send("x"), Err(SendError::Forked(_))),
            &|| matches!(self.push.send_timeout("x", SOON), Err(SendError::Forked(_))),
            &|| matches!(block_on(self.push.send_async("x")), Err(SendError::Forked(_))),
            &|| self.pull.recv() == Err(RecvError::Forked),
            &|| self.pull.try_recv() == Err(RecvError::Forked),
            &|| self.pull.recv_timeout(SOON) == Err(RecvError::Forked),
            &|| block_on(self.pull.recv_async()) == Err(RecvError::Forked),
            &|| matches!(self.pull.bind("inproc://child"), Err(Error::Forked)),
            &|| matches!(self.push.connect("inproc://child"), Err(Error::Forked)),
            &|| closed(self.push.close(SOON).map(drop)) && closed(self.pull.close(SOON).map(drop)),
            &|| matches!(self.pull.readable_fd(), Err(Error::Forked)),
            &|| !self.pull.wait_for_peers(1, SOON),
            &|| {
                matches!(
                    self.req.request("?"),
                    Err(RequestError::Forked | RequestError::NotSent(SendError::Forked(_)))
                )
            },
            &|| matches!(self.rep.recv(), Err(RecvError::Forked)),
        ];
        match checks.iter().position(|check| !check()) {
            Some(n) => n as i32 + 1,
            None => 0,
        }
    }
}

#[test]
fn promise_12_in_a_forked_child_every_call_is_an_error_and_the_parent_goes_on() {
    if !alone(
        "p12_threads_and_forks::promise_12_in_a_forked_child_every_call_is_an_error_and_the_parent_goes_on",
    ) {
        return;
    }
    for url in urls() {
        let sockets = Sockets::new(&url);
        sockets.work();
        in_fork(|| sockets.in_child());
        sockets.work();
        // A child that drops what it inherited, clones and all.
        let (held, of_parent) = (Sockets::new(&inproc()), &sockets);
        let mut held = Some(held);
        in_fork(|| {
            drop(held.take());
            of_parent.in_child()
        });
        if let Some(held) = held {
            held.work();
        }
        sockets.work();
    }
}

#[test]
fn promise_12_a_child_forked_while_a_lock_was_held_does_not_hang_either() {
    if !alone("p12_threads_and_forks::promise_12_a_child_forked_while_a_lock_was_held_does_not_hang_either") {
        return;
    }
    let sockets = Sockets::new(&tcp());
    sockets.work();
    let pull = sockets.pull.clone();
    // Under the lock of `pull`: in the child it stays locked for ever, as when another thread had it.
    sockets.pull.with(|_, _| {
        in_fork(|| {
            let peers = pull.peers();
            let stats = pull.stats();
            let events = pull.events();
            let ready = pull.readiness();
            if peers + stats.pipes.len() != 0 || ready.recv || events.recv().is_ok() {
                return 50;
            }
            let _ = format!("{pull:?}");
            if pull.try_recv() != Err(RecvError::Forked) || !matches!(pull.close(SOON), Err(Error::Forked)) {
                return 51;
            }
            0
        });
    });
    sockets.work();
}

#[test]
fn promise_12_a_child_may_have_sockets_of_its_own_and_the_parents_do_not_notice() {
    if !alone(
        "p12_threads_and_forks::promise_12_a_child_may_have_sockets_of_its_own_and_the_parents_do_not_notice",
    ) {
        return;
    }
    let sockets = Sockets::new(&tcp());
    sockets.work();
    let at = Pull::new().unwrap();
    let url = at.bind(&tcp()).unwrap().url().to_owned();
    in_fork(|| {
        for url in [tcp(), "inproc://of the child".to_owned()] {
            let own = Sockets::new(&url);
            own.work(); // by callers
            let mut got: Result<Message, RecvError> = Err(RecvError::Empty);
            block_on(own.push.send_async("y")).unwrap();
            block_on(async { got = own.pull.recv_async().await }); // by the driver
            if got != Ok("y".into()) {
                return 60;
            }
        }
        let push = Push::new().unwrap();
        push.connect(&url).unwrap();
        push.send("from the child").unwrap();
        i32::from(push.close(SOON).unwrap() != 0) * 61
    });
    assert_eq!(at.recv_timeout(SOON).unwrap(), "from the child");
    sockets.work();
    // The parent's driver is as before: nobody waits here, and things happen.
    let (publisher, sub) = (Pub::new().unwrap(), Sub::new().unwrap());
    sub.subscribe("");
    sub.connect(publisher.bind(&tcp()).unwrap().url()).unwrap();
    until("they meet", || publisher.peers() + sub.peers() == 2);
    publisher.send("z").unwrap();
    until("it comes", || sub.readiness().recv);
}

#[test]
fn promise_12_a_child_that_takes_sockets_out_of_a_poller_takes_none_from_its_parent() {
    if !alone(
        "p12_threads_and_forks::promise_12_a_child_that_takes_sockets_out_of_a_poller_takes_none_from_its_parent",
    ) {
        return;
    }
    let sockets = Sockets::new(&tcp());
    let mut poller = Poller::new().unwrap();
    let key = poller.add(&sockets.pull, Interest::RECV).unwrap();
    in_fork(|| {
        if !poller.remove(key) {
            return 60;
        }
        let own = Pull::new().unwrap();
        if !matches!(poller.add(&own, Interest::RECV), Err(Error::Forked))
            || !matches!(poller.wait(Some(SOON)), Err(Error::Forked))
        {
            return 61;
        }
        0
    });
    sockets.push.send("x").unwrap();
    assert_eq!(poller.wait(Some(SOON)).unwrap().len(), 1, "the parent hears of its socket");
    drop(poller);
    assert_eq!(sockets.pull.try_recv().unwrap(), "x");
    sockets.work();
}

#[test]
fn promise_12_a_child_drops_sockets_that_another_thread_was_connecting() {
    if !alone("p12_threads_and_forks::promise_12_a_child_drops_sockets_that_another_thread_was_connecting") {
        return;
    }
    for _ in 0..2000 {
        let url = inproc();
        let (push, pull) = (Push::new().unwrap(), Pull::new().unwrap());
        push.connect(pull.bind(&url).unwrap().url()).unwrap();
        // Most likely the driver is in the midst of it, with its locks.
        let mut held = Some((push, pull));
        in_fork(|| {
            drop(held.take());
            0
        });
    }
}
