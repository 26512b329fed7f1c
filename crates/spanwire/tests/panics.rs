//! Panics in a user's own protocol or transport: a transport's costs its connection, a protocol's its socket, and
//! neither the driver nor any other socket.

use std::io::{self, Read};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use spanwire::protocol::*;
use spanwire::transport::StreamWriter;
use spanwire::{Event, Interest, Message, Poller, Pull, Push, RecvError, Socket};

#[path = "common/tapped.rs"]
mod tapped;
#[path = "common/wait.rs"]
mod wait;

use tapped::{At, Tap, Tapped, plain, tapped};
use wait::{SOON, until};

const TCP: &str = "tcp://127.0.0.1:0";

/// A pull that panics at messages of these words, in the method that they name.
#[derive(Debug, Default)]
struct Touchy {
    queue: FairQueue,
}

impl Protocol for Touchy {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x51, "touchy", 0x50, "push")
    }
    fn pipe_opened(&mut self, _: &mut Cx<'_>, _: PipeId) -> Result<(), Reject> {
        Ok(())
    }
    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.queue.keep(cx, pipe);
    }
    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        match cx.peek(pipe).map(|msg| &**msg) {
            Some(b"readable") => panic!("as asked"),
            Some(b"timer") => cx.set_timer(TimerKey(1, 0), cx.now() + Duration::from_millis(5)),
            Some(b"readiness") => {}
            _ => {}
        }
        self.queue.readable(cx, pipe);
    }
    fn timer(&mut self, _: &mut Cx<'_>, _: TimerKey) {
        panic!("as asked");
    }
    fn readiness(&self) -> Readiness {
        Readiness { send: false, recv: !self.queue.is_empty() }
    }
}

impl Receives for Touchy {
    type Item = Message;
    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Message> {
        let msg = self.queue.take_any(cx)?;
        assert!(msg != "recv", "as asked");
        Some(msg)
    }
}

struct Pair2 {
    touchy: Socket<Touchy>,
    push: Push,
}

fn pair() -> Pair2 {
    let touchy = Socket::builder(Touchy::default()).build().expect("a socket");
    let push = Push::new().expect("a socket");
    push.connect(touchy.bind(TCP).expect("a free port").url()).expect("a good address");
    assert!(push.wait_for_peers(1, SOON) && touchy.wait_for_peers(1, SOON));
    Pair2 { touchy, push }
}

/// The driver, and all that it minds, go on.
#[track_caller]
fn others_work(bystander: &(Pull, Push)) {
    bystander.1.send("x").expect("a peer");
    // Nobody waits for it: the driver alone brings it in.
    until("the driver brings a message in", || bystander.0.readiness().recv);
    assert_eq!(bystander.0.try_recv().expect("a message"), "x");
    let fresh = bystander_pair();
    fresh.1.send("y").expect("a peer");
    assert_eq!(fresh.0.recv_timeout(SOON).expect("a message"), "y");
}

fn bystander_pair() -> (Pull, Push) {
    let (pull, push) = (Pull::new().expect("a socket"), Push::new().expect("a socket"));
    push.connect(pull.bind(TCP).expect("a free port").url()).expect("a good address");
    assert!(push.wait_for_peers(1, SOON));
    (pull, push)
}

#[test]
fn in_the_drivers_thread_a_protocols_panic_ends_its_socket_and_nothing_else() {
    for word in ["readable", "timer"] {
        let bystander = bystander_pair();
        let Pair2 { touchy, push } = pair();
        let events = touchy.events();
        let mut future = pin!(async { touchy.recv_async().await });
        let mut cx = Context::from_waker(Waker::noop());
        // A task waits, so nobody but the driver reads.
        assert!(future.as_mut().poll(&mut cx).is_pending());
        if word == "timer" {
            // The first message is the task's.
            push.send("timer").expect("a peer");
        } else {
            push.send(word).expect("a peer");
        }
        until("the last event", || events.try_iter().any(|event| matches!(event, Event::Panicked)));
        if word == "readable" {
            assert!(matches!(future.as_mut().poll(&mut cx), Poll::Ready(Err(RecvError::Closed))));
        }
        assert_eq!(touchy.recv().map_err(|e| e == RecvError::Closed), Err(true), "{word}");
        until("its peer sees it go", || push.peers() == 0);
        others_work(&bystander);
    }
}

#[test]
fn in_a_callers_thread_it_unwinds_there_and_the_others_are_told() {
    for word in ["readable", "recv"] {
        let bystander = bystander_pair();
        let Pair2 { touchy, push } = pair();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let touchy = touchy.clone();
                std::thread::spawn(move || touchy.recv())
            })
            .collect();
        push.send(word).expect("a peer");
        let ends: Vec<_> = waiting.into_iter().map(std::thread::JoinHandle::join).collect();
        // One of them at most was in the protocol; the driver may have been.
        assert!(ends.iter().filter(|end| end.is_err()).count() <= 1, "{word}");
        for end in ends.into_iter().flatten() {
            assert_eq!(end, Err(RecvError::Closed), "{word}");
        }
        assert_eq!(touchy.recv_timeout(SOON), Err(RecvError::Closed), "{word}");
        assert!(touchy.bind(TCP).is_err(), "{word}");
        others_work(&bystander);
    }
}

#[test]
fn the_end_of_a_socket_whose_loop_was_in_the_panic_takes_no_other_out_of_the_drivers_poll() {
    let Pair2 { touchy, push } = pair();
    // This thread most likely leads; what it leaves behind must not be known by a number that is used again.
    push.send("readable").expect("a peer");
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| touchy.recv()));
    until("it is closed for all", || touchy.try_recv() == Err(RecvError::Closed));
    let fresh: Vec<_> = (0..8).map(|_| bystander_pair()).collect();
    drop(touchy);
    fresh.iter().for_each(others_work);
}

#[test]
fn a_poller_that_waits_for_more_than_one_keeps_the_others() {
    let bystander = bystander_pair();
    let Pair2 { touchy, push } = pair();
    let mut poller = Poller::new().expect("a poller");
    let key = poller.add(&touchy, Interest::RECV).expect("room");
    let other = poller.add(&bystander.0, Interest::RECV).expect("room");
    push.send("readable").expect("a peer");
    // It panics here, or the driver was faster.
    let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poller.wait(Some(SOON))));
    if let Ok(ready) = waited {
        let ready = ready.expect("a poll");
        assert!(ready.iter().any(|r| r.key == key && r.closed));
    }
    until("it is closed for all", || touchy.try_recv() == Err(RecvError::Closed));
    let ready = poller.wait(Some(SOON)).expect("a poll");
    assert!(ready.iter().all(|r| r.key == key && r.closed) && !ready.is_empty());
    assert!(poller.remove(key));
    bystander.1.send("x").expect("a peer");
    let ready = poller.wait(Some(SOON)).expect("a poll");
    assert_eq!((ready.len(), ready[0].key, ready[0].recv), (1, other, true));
    drop(poller);
    assert_eq!(bystander.0.try_recv().expect("a message"), "x");
    others_work(&bystander);
}

/// Panics at this call, the first time only; at a read or a write when the bytes `boom` pass.
#[derive(Clone)]
struct Shaky(At, Arc<AtomicUsize>);

impl Shaky {
    fn over_tcp(at: At) -> Tapped<(), Shaky> {
        Tapped::new(Shaky(at, Arc::default()))
    }
    #[track_caller]
    fn panic_at(&self, at: At) {
        assert!(self.0 != at || self.1.fetch_add(1, Ordering::Relaxed) > 0, "as asked");
    }
}

impl Tap for Shaky {
    fn at(&self, at: At) -> io::Result<()> {
        if !matches!(at, At::Read | At::Write) {
            self.panic_at(at);
        }
        Ok(())
    }
    fn resolves(&self) -> bool {
        self.0 == At::Resolve
    }
    fn read(&mut self, reader: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
        let n = reader.read(into)?;
        if into[..n].windows(4).any(|w| w == b"boom") {
            self.panic_at(At::Read);
        }
        Ok(n)
    }
    fn write(&mut self, writer: &mut dyn StreamWriter, bytes: &[u8]) -> io::Result<usize> {
        if bytes.windows(4).any(|w| w == b"boom") {
            self.panic_at(At::Write);
        }
        writer.write(bytes)
    }
}

#[test]
fn a_transports_panic_while_it_connects_is_a_failed_attempt() {
    for at in [At::Resolve, At::Dial, At::Register, At::Establish, At::Facts, At::Split] {
        let bystander = bystander_pair();
        let pull = Pull::new().expect("a socket");
        let url = tapped(pull.bind(TCP).expect("a free port").url());
        let push = Push::builder().transport(Shaky::over_tcp(at)).build().expect("a socket");
        let events = push.events();
        push.connect(&url).expect("a good address");
        push.send("x").expect("the second attempt makes it");
        assert_eq!(pull.recv_timeout(SOON).expect("a message"), "x");
        let told: Vec<Event> = events.try_iter().collect();
        let says = |event: &Event| match event {
            Event::ConnectFailed { error, .. } => error.contains("panicked: as asked"),
            Event::Rejected { reason, .. } => reason.to_string().contains("panicked: as asked"),
            _ => false,
        };
        assert_eq!(told.iter().filter(|event| says(event)).count(), 1, "{at:?}: {told:?}");
        others_work(&bystander);
    }
}

#[test]
fn a_transports_panic_costs_its_connection_and_no_other() {
    for at in [At::Read, At::Write] {
        let bystander = bystander_pair();
        let (pull_at, push_at) = if at == At::Read { (at, At::Accepted) } else { (At::Resolve, at) };
        let pull = Pull::builder().transport(Shaky::over_tcp(pull_at)).build().expect("a socket");
        let url = pull.bind("tapped://127.0.0.1:0").expect("a free port").url().to_owned();
        let good = Push::new().expect("a socket");
        good.connect(&plain(&url)).expect("a good address");
        let bad = Push::builder().transport(Shaky::over_tcp(push_at)).build().expect("a socket");
        bad.connect(&url).expect("a good address");
        assert!(good.wait_for_peers(1, SOON) && bad.wait_for_peers(1, SOON) && pull.wait_for_peers(2, SOON));
        let events = if at == At::Read { pull.events() } else { bad.events() };
        bad.send("boom").expect("a peer");
        let reason = loop {
            if let Event::Disconnected { reason, .. } = events.recv_timeout(SOON).expect("it is told") {
                break reason.to_string();
            }
        };
        assert!(reason.contains("panicked: as asked"), "{at:?}: {reason}");
        good.send("x").expect("a peer");
        // What the writer had not begun when it panicked goes to the next connection.
        let mut got = vec![pull.recv_timeout(SOON).expect("a message")];
        if at == At::Write {
            got.push(pull.recv_timeout(SOON).expect("a message"));
            assert!(got.iter().any(|msg| *msg == "boom"), "{got:?}");
        }
        assert!(got.iter().any(|msg| *msg == "x"), "{at:?}");
        until("it has connected again", || pull.peers() == 2);
        others_work(&bystander);
    }
}

#[test]
fn a_listeners_panic_pauses_it() {
    let pull = Pull::builder().transport(Shaky::over_tcp(At::Accepted)).build().expect("a socket");
    let events = pull.events();
    let url = plain(pull.bind("tapped://127.0.0.1:0").expect("a free port").url());
    let push = Push::new().expect("a socket");
    push.connect(&url).expect("a good address");
    push.send("x").expect("kept until there is a peer");
    assert_eq!(pull.recv_timeout(SOON).expect("the second attempt makes it"), "x");
    assert!(events.try_iter().any(
        |event| matches!(event, Event::AcceptFailed { error, .. } if error.contains("panicked: as asked"))
    ));
}
