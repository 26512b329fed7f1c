//! Names are resolved apart from everything else, at every attempt; all addresses are tried.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use spanwire::transport::{
    Bag, Connection, Dialer, Facts, Listener, Registrar, Stream, StreamReader, StreamWriter, Target, Tcp,
    Transport,
};
use spanwire::wire::Sp;
use spanwire::{Event, Pull, Push};

use crate::common::*;

type Answer = io::Result<Vec<String>>;

/// `named://X`: tcp, with a resolver that answers when the test does. `hang` is an address that never answers.
#[derive(Clone)]
struct Named {
    asked: Arc<AtomicUsize>,
    answers: Receiver<Answer>,
}

impl Named {
    fn new() -> (Named, Sender<Answer>) {
        let (tell, answers) = unbounded();
        (Named { asked: Arc::default(), answers }, tell)
    }
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Transport for Named {
    fn schemes(&self) -> &'static [&'static str] {
        &["named"]
    }
    fn dialer(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(self.clone()))
    }
    fn listen(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Dialer for Named {
    fn needs_resolve(&self) -> bool {
        true
    }
    fn resolve(&self) -> io::Result<Vec<Target>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let urls = self.answers.recv().unwrap_or_else(|_| Err(io::Error::other("the test is over")))?;
        Ok(urls.into_iter().map(|url| Target::new(url.clone(), url)).collect())
    }
    fn dial(&self, target: Option<&Target>) -> io::Result<Connection> {
        let url = target.and_then(|t| t.data.downcast_ref::<String>()).expect("a target of our own");
        if url == "hang" {
            return Ok(Connection::Stream(Box::new(Hang), Box::new(Sp::TCP)));
        }
        Tcp.dialer(url, &Bag::default())?.dial(None)
    }
}

/// A black hole.
struct Hang;

impl Stream for Hang {
    fn register(&mut self, _: &Registrar<'_>) -> io::Result<()> {
        Ok(())
    }
    fn establish(&mut self) -> io::Result<bool> {
        Ok(false)
    }
    fn facts(&self) -> Facts {
        Facts::default()
    }
    fn split(self: Box<Self>) -> io::Result<(Box<dyn StreamReader>, Box<dyn StreamWriter>)> {
        Err(io::ErrorKind::NotConnected.into())
    }
}

fn pushing(named: &Named) -> Push {
    let (min, max) = (Duration::from_millis(1), Duration::from_millis(10));
    Push::builder().transport(named.clone()).reconnect(min, max).build().unwrap()
}

fn listener() -> (Pull, String) {
    let pull = Pull::new().unwrap();
    let url = pull.bind(&tcp()).unwrap().url().to_owned();
    (pull, url)
}

/// An address where nobody is.
fn nowhere() -> String {
    let (pull, url) = listener();
    pull.close(SOON).unwrap();
    url
}

#[test]
fn promise_21_a_dead_resolver_delays_its_own_dialer_and_nothing_else() {
    let (named, tell) = Named::new();
    let (pull, url) = listener();
    let push = pushing(&named);
    push.connect("named://dead").unwrap();
    until("the resolver is asked", || named.asked() == 1);
    // Another dialer of the same socket, and another socket.
    push.connect(&url).unwrap();
    let other = Push::new().unwrap();
    other.connect(&url).unwrap();
    let mut times: Vec<_> = (0..1000)
        .map(|_| {
            let began = Instant::now();
            push.send("same socket").unwrap();
            assert_eq!(pull.recv_timeout(SOON).unwrap(), "same socket");
            other.send("other socket").unwrap();
            assert_eq!(pull.recv_timeout(SOON).unwrap(), "other socket");
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("p99 of one message from each: {:?}", times[990]);
    assert_eq!((named.asked(), push.peers()), (1, 1), "it still hangs");
    // Nor does a socket wait for it when it closes.
    let closing = pushing(&named);
    closing.connect("named://dead").unwrap();
    until("the resolver is asked", || named.asked() == 2);
    let began = Instant::now();
    assert_eq!(closing.close(SOON).unwrap(), 0);
    assert!(began.elapsed() < SOON / 2);
    tell.send(Ok(vec![url.clone()])).unwrap();
    tell.send(Ok(vec![url])).unwrap();
    until("the name was found", || push.peers() == 2);
    assert_eq!(closing.peers(), 0);
}

#[test]
fn promise_21_a_name_is_looked_up_again_at_every_attempt_and_a_changed_record_is_used() {
    let (named, tell) = Named::new();
    let (first, url) = listener();
    let push = pushing(&named);
    let events = push.events();
    push.connect("named://moving").unwrap();
    tell.send(Err(io::Error::other("no such name"))).unwrap();
    let error = event(&events, |e| match e {
        Event::ConnectFailed { error, .. } => Some(error),
        _ => None,
    });
    assert_eq!(error, "no such name", "a resolver that fails is reported");
    tell.send(Ok(vec![])).unwrap();
    let error = event(&events, |e| match e {
        Event::ConnectFailed { error, .. } => Some(error),
        _ => None,
    });
    assert!(error.contains("no addresses"), "{error}");
    tell.send(Ok(vec![url])).unwrap();
    push.send("first").unwrap();
    assert_eq!(first.recv_timeout(SOON).unwrap(), "first");
    assert_eq!(named.asked(), 3);
    let (second, url) = listener();
    first.close(SOON).unwrap();
    tell.send(Ok(vec![url])).unwrap();
    until("the new record is used", || second.peers() == 1);
    push.send("second").unwrap();
    assert_eq!(second.recv_timeout(SOON).unwrap(), "second");
    assert_eq!(named.asked(), 4);
}

#[test]
fn promise_21_of_several_addresses_the_first_that_works_is_attached() {
    let (pull, good) = listener();
    let (another, other_good) = listener();
    // IPv6 is broken, and IPv4 works. Not even loopback may have it: then that fails at once, as well.
    let ipv6 = good.replace("127.0.0.1", "[::1]");
    for addresses in [
        vec![ipv6, good.clone()],
        vec![nowhere(), good.clone()],
        vec![nowhere(), nowhere(), good.clone(), other_good.clone()],
        // One that never answers: the next is tried beside it.
        vec!["hang".to_owned(), good.clone()],
        vec!["hang".to_owned(), nowhere(), "hang".to_owned(), good.clone()],
    ] {
        let (named, tell) = Named::new();
        let push = pushing(&named);
        let events = push.events();
        push.connect("named://several").unwrap();
        let began = Instant::now();
        tell.send(Ok(addresses.clone())).unwrap();
        event(&events, |e| matches!(e, Event::Connected { .. }).then_some(()));
        println!("{addresses:?}: attached after {:?}", began.elapsed());
        push.send("x").unwrap();
        assert_eq!(pull.recv_timeout(SOON).unwrap(), "x", "{addresses:?}");
        assert_eq!((push.peers(), named.asked()), (1, 1), "{addresses:?}");
        push.close(SOON).unwrap();
        until("it has gone", || pull.peers() == 0);
    }
    assert_eq!(another.stats().attached, 0);
}

#[test]
fn promise_21_a_real_name_is_found_and_a_wrong_one_reported() {
    let pull = Pull::new().unwrap();
    let url = pull.bind(&tcp()).unwrap().url().to_owned();
    let port = url.rsplit(':').next().unwrap();
    let push = Push::new().unwrap();
    let events = push.events();
    push.connect(&format!("tcp://localhost:{port}")).unwrap();
    push.send("x").unwrap();
    assert_eq!(pull.recv_timeout(SOON).unwrap(), "x");
    push.connect("tcp://no-such-host.invalid:1").unwrap();
    let url = event(&events, |e| match e {
        Event::ConnectFailed { url, .. } => Some(url),
        _ => None,
    });
    assert!(url.contains("no-such-host.invalid"));
}

/// Threads of resolvers end, also when nobody waits for them any more.
#[test]
fn promise_21_a_resolver_that_answers_after_its_socket_has_gone_harms_nobody() {
    let (named, tell) = Named::new();
    let push = pushing(&named);
    push.connect("named://late").unwrap();
    until("the resolver is asked", || named.asked() == 1);
    drop(push);
    let asked = named.asked.clone();
    drop(named);
    let (pull, url) = listener();
    tell.send(Ok(vec![url.clone()])).unwrap();
    until("the dialer, its thread and its socket have gone", || Arc::strong_count(&asked) == 1);
    assert_eq!(
        (pull.stats().accepted, asked.load(Ordering::SeqCst)),
        (0, 1),
        "nobody dials for a dead socket"
    );
    // And whoever drives in the background is well: nobody waits for this message.
    let push = Push::new().unwrap();
    push.connect(&url).unwrap();
    until("the two meet", || push.peers() + pull.peers() == 2);
    push.send("fine").unwrap();
    until("it comes by itself", || pull.readiness().recv);
    assert_eq!(pull.try_recv().unwrap(), "fine");
}
