//! Times that the engine sets itself, on sockets that nobody waits on or somebody sleeps on.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use spanwire::protocol::{Cx, PipeId, Protocol, ProtocolInfo, Readiness, Reject, Time, TimerKey, WaitKey};
use spanwire::{Error, Event, Pull, Push, RecvError, SendError, Socket};

/// A PULL that shakes hands and then reads nothing.
fn deaf_pull(listener: &TcpListener) -> std::net::TcpStream {
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.write_all(&[0, b'S', b'P', 0, 0, 0x51, 0, 0]).expect("the peer is there");
    stream.read_exact(&mut [0; 8]).expect("its greeting");
    stream
}

#[test]
fn a_dropped_socket_gives_up_a_stuck_peer_when_its_linger_time_is_over() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let push = Push::builder().linger(Duration::from_millis(100)).build().expect("a socket");
    let events = push.events();
    push.connect(&format!("tcp://{}", listener.local_addr().expect("an address"))).expect("an address");
    let mut peer = deaf_pull(&listener);
    assert!(push.wait_for_peers(1, Duration::from_secs(10)));
    let large = vec![7; 1 << 20];
    // More than the system and the queue hold: the pipe is stuck, and the driver watches for room.
    loop {
        match push.send_timeout(&large[..], Duration::from_millis(50)) {
            Ok(()) => {}
            Err(SendError::TimedOut(_)) => break,
            Err(e) => panic!("{e}"),
        }
    }
    let dropped = Instant::now();
    drop(push);
    // The socket's end closes its event channels.
    let last = loop {
        match events.recv_timeout(Duration::from_secs(5)) {
            Ok(Event::Disconnected { .. }) => break true,
            Ok(_) => {}
            Err(_) => break false,
        }
    };
    assert!(last, "still there {:?} after its linger time", dropped.elapsed());
    let mut rest = Vec::new();
    // It ends, by whatever means.
    let _ = peer.read_to_end(&mut rest);
}

/// Says when its timer fires.
#[derive(Debug)]
struct Bell(std::sync::mpsc::Sender<()>);

impl Protocol for Bell {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x7001, "bell", 0x7001, "bell")
    }
    fn pipe_opened(&mut self, _: &mut Cx<'_>, _: PipeId) -> Result<(), Reject> {
        Ok(())
    }
    fn pipe_closed(&mut self, _: &mut Cx<'_>, _: PipeId) {}
    fn readable(&mut self, _: &mut Cx<'_>, _: PipeId) {}
    fn timer(&mut self, cx: &mut Cx<'_>, key: TimerKey) {
        if key.1 == 1 {
            self.0.send(()).expect("somebody listens");
            cx.wake(WaitKey(0x7001, 0));
        }
    }
    fn readiness(&self) -> Readiness {
        Readiness::default()
    }
}

#[test]
fn a_timer_set_lazily_fires_whoever_looks_after_the_socket() {
    let (rings, heard) = std::sync::mpsc::channel();
    let socket = Socket::new(Bell(rings)).expect("a socket");
    let lazily = |at: fn(&Cx<'_>) -> Time| {
        socket.with(|_, cx| {
            let at = at(cx);
            cx.set_timer_lazily(TimerKey(0, 1), at);
        });
    };
    let soon = |cx: &Cx<'_>| cx.now() + Duration::from_millis(1);
    let rung = || heard.recv_timeout(Duration::from_secs(10)).expect("it fires");
    // A later timer of the usual kind lets whoever polls sleep for longer.
    socket.with(|_, cx| cx.set_timer(TimerKey(0, 0), cx.now() + Duration::from_secs(100)));
    let nobody = || socket.wait(WaitKey(0x7001, 1), Some(Duration::from_millis(5)), |_, _| None::<()>);
    for _ in 0..5 {
        // Used a moment ago, by a caller who led.
        assert!(nobody().is_err());
        lazily(soon);
        rung();
        // By now the driver watches it, or is about to.
        lazily(|cx| cx.now());
        rung();
        std::thread::sleep(Duration::from_millis(10));
        lazily(soon);
        rung();
    }
    // A leader sleeps.
    let key = WaitKey(0x7001, 0);
    std::thread::scope(|scope| {
        let sleeps = scope.spawn(|| {
            let mut looks = 0;
            // It looks once before it sleeps, and again when it is told.
            socket.wait(key, Some(Duration::from_secs(10)), |_, _| {
                looks += 1;
                (looks > 1).then_some(())
            })
        });
        std::thread::sleep(Duration::from_millis(20));
        lazily(soon);
        rung();
        assert!(sleeps.join().expect("no panic").is_ok());
    });
}

#[test]
fn a_wait_that_spins_ends_at_its_deadline_with_a_message_and_with_its_socket() {
    let spin = Duration::from_millis(100);
    let pull = Pull::builder().spin(spin).build().expect("a socket");
    let push = Push::new().expect("a socket");
    push.connect(pull.bind("inproc://spins").expect("a name").url()).expect("an address");
    assert!(push.wait_for_peers(1, Duration::from_secs(10)));
    // Within the time that it spins, and beyond it.
    for wait in [spin / 20, spin * 2] {
        let began = Instant::now();
        assert!(matches!(pull.recv_timeout(wait), Err(RecvError::TimedOut)));
        assert!(began.elapsed() >= wait, "too soon: {:?}", began.elapsed());
    }
    for pause in [spin / 20, spin * 2] {
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| pull.recv_timeout(Duration::from_secs(10)));
            // Nobody tells whether it spins or sleeps by now: each is right.
            std::thread::sleep(pause);
            push.send("now").expect("there is room");
            assert_eq!(waits.join().expect("no panic").expect("it came"), "now");
        });
    }
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| pull.recv());
        pull.close(Duration::ZERO).expect("it was open");
        assert!(matches!(waits.join().expect("no panic"), Err(RecvError::Closed)));
    });
}

#[test]
fn a_wait_that_would_spin_for_long_is_refused() {
    match Pull::builder().spin(Duration::from_millis(101)).build() {
        Err(Error::InvalidOption { name: "spin", why }) => assert!(why.contains("100ms"), "{why}"),
        other => panic!("{other:?}"),
    }
}
