//! Real sockets on the loopback, by hand.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::dialer::alternate;
use super::stream::TcpStream;
use super::*;
use crate::transport::Stream;
use crate::transport::harness::{Loop, bag, refuses, stream};

fn listener(url: &str, options: &TcpOptions) -> TcpListener {
    TcpListener::new(url, &bag(options.clone())).unwrap()
}

fn has_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

#[test]
fn bytes_go_both_ways_and_an_end_is_seen_over_both_families_and_by_name() {
    let urls: &[&str] = &["tcp://127.0.0.1:0", "tcp://[::1]:0", "tcp://localhost:0", "tcp://lo:0"];
    for url in urls {
        if url.contains("::") && !has_ipv6() || url.contains("lo:") && !cfg!(target_os = "linux") {
            continue;
        }
        let mut turn = Loop::new();
        let (mut a, mut b) = turn.connect(&Tcp, url, &Bag::default());
        assert_eq!((&a.facts.local, &a.facts.remote), (&b.facts.remote, &b.facts.local), "{url}");
        turn.carries(&mut a, &mut b, "there");
        turn.carries(&mut b, &mut a, "and back");
        assert!(a.writer.shutdown().unwrap());
        turn.ends(&mut b);
        turn.carries(&mut b, &mut a, "still open");
    }
}

/// Where the system minds the mark. On loopback what was written has arrived when the write returns.
#[cfg(target_os = "linux")]
#[test]
fn an_event_waits_for_the_low_water_mark_but_not_at_the_end_or_for_what_cannot_come() {
    let mut turn = Loop::new();
    let (mut a, mut b) = turn.connect(&Tcp, "tcp://127.0.0.1:0", &Bag::default());
    let mut all = vec![0; 900_000];
    turn.readable();
    b.reader.set_low_water(500_000);
    assert_eq!(a.writer.write(&[1; 100_000]).unwrap(), 100_000);
    assert_eq!(turn.readable(), [], "fewer than were asked for");
    let mut written = 100_000;
    let mut got = 0;
    turn.until("the rest", || {
        written += a.writer.write(&vec![1; 600_000 - written]).unwrap_or(0);
        match b.reader.read(&mut all) {
            // Tried at the writer's events too: only what it brings at once counts.
            Ok(n) => got += n,
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
        }
        (got == 600_000).then_some(())
    });
    // Already there when it is asked for: an event tells.
    turn.readable();
    assert_eq!(a.writer.write(&[1; 10_000]).unwrap(), 10_000);
    assert_eq!(turn.readable(), [], "the mark is still in force");
    b.reader.set_low_water(1);
    assert_eq!(turn.readable().len(), 1, "of what was there before");
    // The end.
    b.reader.set_low_water(500_000);
    assert!(a.writer.shutdown().unwrap());
    turn.until("the end", || matches!(b.reader.read(&mut all), Ok(0)).then_some(()));
    // More than a buffer of fixed size can hold.
    let small = TcpOptions::default().recv_buffer(Some(64 << 10));
    let (mut a, mut b) = turn.connect(&Tcp, "tcp://127.0.0.1:0", &bag(small));
    turn.readable();
    b.reader.set_low_water(1 << 20);
    assert_eq!(a.writer.write(&[1; 1000]).unwrap(), 1000);
    assert_eq!(turn.readable().len(), 1, "no mark at all");
    let wanted = b.reader.read(&mut all);
    assert_eq!(wanted.unwrap(), 1000);
}

#[test]
fn a_name_is_resolved_to_targets_of_alternating_families() {
    let mut turn = Loop::new();
    let mut listener = listener("tcp://*:0", &TcpOptions::default());
    turn.register(|r| listener.register(r));
    let port = listener.listener.local_addr().unwrap().port();
    let dialer = Tcp.dialer(&format!("tcp://localhost:{port}"), &Bag::default()).unwrap();
    assert!(dialer.needs_resolve());
    let (mut a, mut b) = turn.meet(&*dialer, &mut listener);
    turn.carries(&mut a, &mut b, "by name");

    let parse = |list: &[&str]| -> Vec<SocketAddr> { list.iter().map(|a| a.parse().unwrap()).collect() };
    let mixed = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
    let turns = parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
    assert_eq!(alternate(mixed), turns);
    assert_eq!(alternate(vec![]), []);
}

#[test]
fn a_wildcard_takes_both_families_unless_told_otherwise() {
    for (url, v6only) in
        [("tcp://*:0", false), ("tcp://:0", false), ("tcp://[::]:0", false), ("tcp://*:0", true)]
    {
        let mut turn = Loop::new();
        let mut listener = listener(url, &TcpOptions::default().v6only(v6only));
        turn.register(|r| listener.register(r));
        let port = listener.listener.local_addr().unwrap().port();
        assert_ne!(port, 0);
        if has_ipv6() {
            let six = Tcp.dialer(&format!("tcp://[::1]:{port}"), &Bag::default()).unwrap();
            turn.meet(&*six, &mut listener);
        }
        // An address of the loopback that nobody else listens on.
        let four = Tcp.dialer(&format!("tcp://127.13.7.99:{port}"), &Bag::default()).unwrap();
        if !v6only {
            turn.meet(&*four, &mut listener);
            continue;
        }
        let mut refused = stream(four.dial(None).unwrap());
        turn.register(|r| refused.register(r));
        let error = turn.until("refusal", || refused.establish().err());
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn the_url_of_a_listener_has_the_real_port_and_a_second_one_there_is_refused() {
    let first = listener("tcp://127.0.0.1:0", &TcpOptions::default());
    let port = first.listener.local_addr().unwrap().port();
    assert_eq!(first.url(), format!("tcp://127.0.0.1:{port}"));
    let second = Tcp.listen(&first.url(), &Bag::default()).err().unwrap();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn options_are_in_force_at_both_ends() {
    let custom = TcpOptions::default()
        .nodelay(false)
        .keepalive(Some(Keepalive {
            idle: Duration::from_secs(7),
            interval: Duration::from_secs(5),
            count: 4,
        }))
        .user_timeout(Some(Duration::from_millis(9_000)))
        .send_buffer(Some(40_000))
        .recv_buffer(Some(50_000));
    for options in [TcpOptions::default(), custom, TcpOptions::default().keepalive(None).user_timeout(None)] {
        let mut turn = Loop::new();
        let mut listener = listener("tcp://127.0.0.1:0", &options);
        turn.register(|r| listener.register(r));
        let dialer = TcpDialer::new(&listener.url(), &bag(options.clone())).unwrap();
        let dialled = dialer.begin(None).unwrap();
        let accepted = turn.until("accept", || listener.next().ok());
        for socket in [&dialled, &accepted] {
            let socket = SockRef::from(socket);
            assert_eq!(socket.tcp_nodelay().unwrap(), options.nodelay);
            assert_eq!(socket.keepalive().unwrap(), options.keepalive.is_some());
            if let Some(Keepalive { idle, interval, count }) = options.keepalive {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), idle);
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), interval);
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), count);
            }
            #[cfg(target_os = "linux")]
            assert_eq!(socket.tcp_user_timeout().unwrap(), options.user_timeout);
            // Linux doubles what is asked for.
            if let Some(bytes) = options.send_buffer {
                assert!([bytes, 2 * bytes].contains(&socket.send_buffer_size().unwrap()));
            }
            if let Some(bytes) = options.recv_buffer {
                assert!([bytes, 2 * bytes].contains(&socket.recv_buffer_size().unwrap()));
            }
            #[cfg(unix)]
            assert!(socket.nonblocking().unwrap());
        }
        #[cfg(target_os = "linux")]
        for fd in {
            use std::os::fd::AsRawFd;
            [dialled.as_raw_fd(), accepted.as_raw_fd(), listener.listener.as_raw_fd()]
        } {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap();
            let flags = i64::from_str_radix(flags.trim(), 8).unwrap();
            assert_ne!(flags & i64::from(libc::O_CLOEXEC), 0, "descriptor would pass to children");
        }
    }
}

#[test]
fn a_connection_comes_from_the_source_that_was_asked_for() {
    if !cfg!(target_os = "linux") {
        return; // Elsewhere loopback has one address only.
    }
    for (source, from) in [("127.0.0.9", "tcp://127.0.0.9:"), ("lo", "tcp://127.0.0.1:"), ("*", "tcp://127.")]
    {
        let mut turn = Loop::new();
        let mut listener = listener("tcp://127.0.0.1:0", &TcpOptions::default());
        turn.register(|r| listener.register(r));
        let url = listener.url().replace("//", &format!("//{source};"));
        let dialer = Tcp.dialer(&url, &Bag::default()).unwrap();
        let (a, b) = turn.meet(&*dialer, &mut listener);
        assert!(a.facts.local.starts_with(from), "{}", a.facts.local);
        assert_eq!(b.facts.remote, a.facts.local);
    }
    let dialer = Tcp.dialer("tcp://nosuchif0;127.0.0.1:9", &Bag::default()).unwrap();
    let error = dialer.dial(None).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    assert!(error.to_string().contains("nosuchif0"), "{error}");
}

#[test]
fn a_refused_connect_is_told_by_establish() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dialer = Tcp.dialer(&format!("tcp://127.0.0.1:{port}"), &Bag::default()).unwrap();
    let mut turn = Loop::new();
    let mut stream = stream(dialer.dial(None).unwrap());
    turn.register(|r| stream.register(r));
    let error = turn.until("refusal", || stream.establish().err());
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_connection_to_itself_is_refused() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let own = socket.local_addr().unwrap();
    if socket.connect(&own).is_err() {
        return; // This system does not connect a socket to itself.
    }
    let mut stream = TcpStream { socket: mio::net::TcpStream::from_std(socket.into()) };
    assert_eq!(stream.establish().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_bad_address_is_refused_in_words_that_say_why() {
    let both = [
        ("tcp://", "no port"),
        ("tcp://127.0.0.1", "no port"),
        ("tcp://[::1]", "no port"),
        ("tcp://::1:5555", "needs brackets"),
        ("tcp://[::1:5555", "']'"),
        ("tcp://[]:5555", "not an IPv6 address"),
        ("tcp://[127.0.0.1]:5555", "not an IPv6 address"),
        ("tcp://[fe80::1%nosuchif0]:5555", "no network interface \"nosuchif0\""),
        ("tcp://127.0.0.1:", "not a number"),
        ("tcp://127.0.0.1:http", "not a number"),
        ("tcp://127.0.0.1:65536", "not a number"),
        ("tcp://127.0.0.1:+5", "not a number"),
        ("tcp://127.0.0.1:-5", "not a number"),
        ("tcp://127.0.0.1:5555/", "not a number"),
        ("tcp://127.0.0:5555", "not an IPv4 address"),
        ("tcp://256.0.0.1:5555", "not an IPv4 address"),
        ("tcp://a b:5555", "' ' in host name"),
        ("tcp://user@host:5555", "'@' in host name"),
        ("tcp://ho/st:5555", "'/' in host name"),
        ("tcp://a;b;c:5555", "';' in host name"),
    ];
    for (url, text) in both {
        refuses(Tcp.listen(url, &Bag::default()), url, text);
        refuses(Tcp.dialer(url, &Bag::default()), url, text);
    }
    for (url, text) in [
        ("tcp://127.0.0.1:0", "port 0 cannot be connected to"),
        ("tcp://*:5555", "no host to connect to"),
        ("tcp://:5555", "no host to connect to"),
        ("tcp://[::1];127.0.0.1:5555", "one of source and host is IPv4"),
    ] {
        refuses(Tcp.dialer(url, &Bag::default()), url, text);
    }
    refuses(Tcp.listen("tcp://lo;*:0", &Bag::default()), "tcp://lo;*:0", "is for connecting");
    let long = format!("tcp://{}:5555", "a".repeat(254));
    refuses(Tcp.dialer(&long, &Bag::default()), &long, "longer than 253");
}

#[test]
fn an_option_out_of_range_is_refused_when_bound_or_connected() {
    let keepalive = |idle, interval, count| {
        let (idle, interval) = (Duration::from_secs(idle), Duration::from_secs(interval));
        TcpOptions::default().keepalive(Some(Keepalive { idle, interval, count }))
    };
    for (options, text) in [
        (keepalive(0, 1, 1), "idle and interval"),
        (keepalive(1, 40_000, 1), "idle and interval"),
        (keepalive(1, 1, 0), "count"),
        (TcpOptions::default().user_timeout(Some(Duration::ZERO)), "user timeout"),
        (TcpOptions::default().user_timeout(Some(Duration::MAX)), "user timeout"),
        (TcpOptions::default().backlog(0), "backlog"),
        (TcpOptions::default().send_buffer(Some(0)), "buffer sizes"),
        (TcpOptions::default().recv_buffer(Some(usize::MAX)), "buffer sizes"),
    ] {
        let bag = bag(options);
        for error in [Tcp.dialer("tcp://[::1]:1", &bag).err(), Tcp.listen("tcp://[::1]:0", &bag).err()] {
            let error = error.unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
