//! Closing drains, or says what it could not send; nothing hangs.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use spanwire::transport::{StreamWriter, TcpOptions};
use spanwire::{Limit, Pair, Pub, Pull, Push, RecvError, Rep, Req, RequestError, Slow};

use crate::common::*;
use crate::tapped::{Tap, Tapped, tapped};

const MANY: u64 = 10_000;
/// Room for all of them.
const ROOMY: Limit = Limit::messages(20_000).and_bytes(64 << 20);
const TIGHT: Limit = Limit::messages(10);

fn body(n: u64) -> Vec<u8> {
    let mut body = n.to_be_bytes().to_vec();
    body.resize(100, 7);
    body
}

/// Closes with nobody to take what is queued: ends at its deadline, neither earlier nor much later.
#[track_caller]
fn close_in_vain(patience: Duration, close: impl FnOnce(Duration) -> usize) -> u64 {
    let began = Instant::now();
    let undelivered = close(patience);
    let took = began.elapsed();
    println!("a close with {patience:?} took {took:?}");
    assert!(took >= patience, "gave up after {took:?}");
    assert!(took < patience + LATE, "went on for {took:?}");
    assert!(undelivered > 0, "the test shows nothing");
    undelivered as u64
}

fn collect(n: u64, what: &str, mut recv: impl FnMut() -> Result<spanwire::Message, RecvError>) {
    for i in 0..n {
        assert_eq!(recv().unwrap_or_else(|e| panic!("{what}: {i} of {n}: {e}")), body(i)[..], "{what}");
    }
}

#[test]
fn promise_07_close_drains_all_of_a_backlog_on_every_transport() {
    for url in urls() {
        let pull = Pull::builder().recv_queue(TIGHT).build().unwrap();
        let url = pull.bind(&url).unwrap().url().to_owned();
        let push = Push::builder().send_queue(ROOMY).build().unwrap();
        push.connect(&url).unwrap();
        (0..MANY).for_each(|n| push.send(body(n)).unwrap());
        let closer = std::thread::spawn(move || push.close(SOON).unwrap());
        collect(MANY, &url, || pull.recv_timeout(SOON));
        assert_eq!(closer.join().unwrap(), 0, "{url}");
        assert_eq!(pull.try_recv(), Err(RecvError::Empty));
    }
}

#[test]
fn promise_07_what_a_peer_sent_before_it_went_is_received_though_a_write_finds_it_gone_first() {
    const SENT: u64 = 400;
    for url in streams() {
        let pair = Pair::builder().recv_queue(TIGHT).build().unwrap();
        let url = pair.bind(&url).unwrap().url().to_owned();
        let mut gone = peer(&url, PAIR);
        // In one piece, which the kernel's buffer holds.
        let frames: Vec<u8> = (0..SENT).flat_map(|n| frame(is_ipc(&url), &body(n))).collect();
        gone.write_all(&frames).unwrap();
        drop(gone);
        for n in 0..SENT {
            assert_eq!(pair.recv_timeout(SOON).unwrap(), body(n)[..], "{url}: {n} of {SENT}");
            let _ = pair.try_send("thanks"); // the first are taken, then one finds nobody there
        }
        // Who comes next finds the place free.
        let mut next = peer(&url, PAIR);
        next.write_all(&frame(is_ipc(&url), b"next")).unwrap();
        assert_eq!(pair.recv_timeout(SOON).unwrap(), "next", "{url}");
    }
}

#[test]
fn promise_07_a_dropped_socket_goes_on_sending_in_the_background() {
    for url in urls() {
        let pair = Pair::builder().recv_queue(TIGHT).build().unwrap();
        let url = pair.bind(&url).unwrap().url().to_owned();
        let other = Pair::builder().send_queue(ROOMY).linger(SOON).build().unwrap();
        other.connect(&url).unwrap();
        (0..MANY).for_each(|n| other.send(body(n)).unwrap());
        drop(other); // does not wait: nobody has received anything yet
        collect(MANY, &url, || pair.recv_timeout(SOON));
        until("the other end has gone", || pair.peers() == 0);
    }
}

#[test]
fn promise_07_a_process_that_exits_after_close_has_delivered_everything() {
    use std::io::{BufRead, BufReader};
    const NAME: &str = "p07_close::promise_07_a_process_that_exits_after_close_has_delivered_everything";
    if is_child() {
        let url = std::env::var("SPANWIRE_PROMISE_URL").unwrap();
        let push = Push::builder().send_queue(ROOMY).build().unwrap();
        push.connect(&url).unwrap();
        (0..MANY).for_each(|n| push.send(body(n)).unwrap());
        println!("undelivered {}", push.close(SOON).unwrap());
        std::process::exit(0);
    }
    for url in streams() {
        let pull = Pull::builder().recv_queue(TIGHT).build().unwrap();
        let url = pull.bind(&url).unwrap().url().to_owned();
        let mut child = command(NAME)
            .env("SPANWIRE_PROMISE_URL", &url)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        collect(MANY, &url, || pull.recv_timeout(SOON));
        let said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.into_iter().any(|line| line.ends_with("undelivered 0")), "{url}");
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn promise_07_with_a_peer_that_never_reads_close_ends_at_its_deadline_with_the_right_count() {
    let patience = Duration::from_millis(200);
    let small = TcpOptions::default().send_buffer(Some(16 << 10));
    for url in streams() {
        let ipc = is_ipc(&url);
        let push = Push::builder().send_queue(ROOMY).option(small.clone()).build().unwrap();
        let url = push.bind(&url).unwrap().url().to_owned();
        let mut stopped = small_peer(&url, PULL);
        (0..MANY).for_each(|n| push.send(body(n)).unwrap());
        let undelivered = close_in_vain(patience, |patience| push.close(patience).unwrap());
        // One that was begun is not delivered.
        let (frames, _cut) = read_to_end(&mut stopped, ipc);
        assert_eq!(frames.len() as u64 + undelivered, MANY, "{url}");
        assert_eq!(push.close(patience).unwrap(), 0, "told once");
    }
}

#[test]
fn promise_07_inproc_counts_exactly_what_a_stopped_peer_will_never_see() {
    let pull = Pull::builder().recv_queue(TIGHT).build().unwrap();
    let url = pull.bind(&inproc()).unwrap().url().to_owned();
    let push = Push::builder().send_queue(ROOMY).build().unwrap();
    push.connect(&url).unwrap();
    (0..MANY).for_each(|n| push.send(body(n)).unwrap());
    let undelivered = close_in_vain(Duration::from_millis(100), |patience| push.close(patience).unwrap());
    collect(MANY - undelivered, &url, || pull.recv_timeout(SOON));
    until("the peer has gone", || pull.peers() == 0);
    assert_eq!(pull.try_recv(), Err(RecvError::Empty));
}

#[test]
fn promise_07_a_publisher_counts_what_a_stopped_subscriber_did_not_get() {
    let small = TcpOptions::default().send_buffer(Some(16 << 10));
    let publisher = Pub::builder().slow(Slow::Wait).send_queue(ROOMY).option(small).build().unwrap();
    let url = publisher.bind(&tcp()).unwrap().url().to_owned();
    let mut stopped = small_peer(&url, SUB);
    assert!(publisher.wait_for_peers(1, SOON));
    (0..MANY).for_each(|n| publisher.send(body(n)).unwrap());
    let undelivered =
        close_in_vain(Duration::from_millis(100), |patience| publisher.close(patience).unwrap());
    let (frames, _cut) = read_to_end(&mut stopped, false);
    assert_eq!(frames.len() as u64 + undelivered, MANY);
}

#[test]
fn promise_07_a_replier_counts_the_replies_that_a_stopped_requester_did_not_get() {
    let small = TcpOptions::default().send_buffer(Some(16 << 10));
    let rep = Rep::builder().send_queue(ROOMY).option(small).build().unwrap();
    let url = rep.bind(&tcp()).unwrap().url().to_owned();
    let mut stopped = small_peer(&url, REQ);
    const REQUESTS: u32 = 500;
    for id in 0..REQUESTS {
        stopped.write_all(&frame(false, &(id | 0x8000_0000).to_be_bytes())).unwrap();
    }
    for _ in 0..REQUESTS {
        rep.recv_timeout(SOON).unwrap().reply(vec![7; 1000]).unwrap();
    }
    let undelivered = close_in_vain(Duration::from_millis(100), |patience| rep.close(patience).unwrap());
    let (frames, _cut) = read_to_end(&mut stopped, false);
    assert_eq!(frames.len() as u64 + undelivered, u64::from(REQUESTS));
}

#[test]
fn promise_07_closing_a_requester_waits_for_no_answers() {
    for url in urls() {
        let rep = Rep::new().unwrap();
        let url = rep.bind(&url).unwrap().url().to_owned();
        let req = Req::new().unwrap();
        req.connect(&url).unwrap();
        let pending = req.start("?").unwrap();
        let request = rep.recv_timeout(SOON).unwrap();
        let began = Instant::now();
        // The request has left: there is nothing to wait for, and nothing undelivered.
        assert_eq!(req.close(SOON).unwrap(), 0, "{url}");
        assert!(began.elapsed() < SOON / 2, "{url}: waited for an answer that nobody can collect");
        assert_eq!(pending.wait().unwrap_err(), RequestError::Closed);
        drop(request);
    }
    // One that never left is told, and not waited for either.
    let req = Req::new().unwrap();
    req.connect("tcp://127.0.0.1:1").unwrap();
    let pending = req.start("?").unwrap();
    let began = Instant::now();
    assert_eq!(req.close(SOON).unwrap(), 1);
    assert!(began.elapsed() < SOON / 2);
    assert_eq!(pending.wait().unwrap_err(), RequestError::Closed);
}

#[test]
fn promise_07_a_close_without_peers_ends_at_once_or_counts_what_was_kept_for_one() {
    let push = Push::new().unwrap();
    push.connect("tcp://127.0.0.1:1").unwrap();
    let began = Instant::now();
    assert_eq!(push.close(SOON).unwrap(), 0);
    assert!(began.elapsed() < SOON / 2);
    // A message that came back from a dead peer, and has no other.
    for url in urls() {
        let pull = Pull::builder().recv_queue(Limit::messages(1)).build().unwrap();
        let at = pull.bind(&url).unwrap();
        let push = Push::builder().send_queue(ROOMY).build().unwrap();
        push.connect(at.url()).unwrap();
        (0..5000).for_each(|_| push.send(vec![7; 1000]).unwrap());
        until("as much as fits has left", || push.stats().pipes.iter().any(|p| p.queued > 0));
        pull.close(Duration::ZERO).unwrap();
        until("the peer has gone", || push.peers() == 0);
        close_in_vain(Duration::from_millis(100), |patience| push.close(patience).unwrap());
    }
}

#[test]
fn promise_07_without_linger_a_drop_sends_no_more() {
    for url in urls() {
        let pull = Pull::builder().recv_queue(TIGHT).build().unwrap();
        let url = pull.bind(&url).unwrap().url().to_owned();
        let push = Push::builder().send_queue(ROOMY).linger(Duration::ZERO).build().unwrap();
        push.connect(&url).unwrap();
        (0..5000).for_each(|_| push.send(vec![7; 10_000]).unwrap());
        drop(push);
        // The peer attached, or does yet, and goes; a full queue does not see that.
        let mut n = 0;
        until("it has gone", || {
            n += std::iter::from_fn(|| pull.try_recv().ok()).count();
            pull.stats().detached == 1 && !pull.readiness().recv
        });
        assert!(n < 5000, "{url}");
    }
}

/// A writer that waits, in the midst of its call, for the test: tells that it is in a write, and goes on when it is told.
#[derive(Clone)]
struct Gate(Sender<()>, Receiver<()>);

impl Tap for Gate {
    fn write(&mut self, writer: &mut dyn StreamWriter, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() != 8 {
            // It is not the handshake.
            let _ = self.0.send(());
            let _ = self.1.recv();
        }
        writer.write(bytes)
    }
    fn shutdown(&mut self, _: &mut dyn StreamWriter) -> io::Result<bool> {
        Ok(true)
    }
}

#[test]
fn promise_07_a_close_that_ends_while_a_writer_is_at_work_counts_what_that_left() {
    let ((in_write, written), (go, gone)) = (unbounded(), unbounded());
    let pull = Pull::new().unwrap();
    let url = tapped(pull.bind(&tcp()).unwrap().url());
    let push = Push::builder().transport(Tapped::new(Gate(in_write, gone))).build().unwrap();
    push.connect(&url).unwrap();
    assert!(push.wait_for_peers(1, SOON));
    let writer = push.clone();
    let writer = std::thread::spawn(move || writer.send("first"));
    written.recv_timeout(SOON).unwrap();
    for _ in 0..5 {
        push.try_send("behind it").unwrap();
    }
    let (closing, events) = (push.clone(), push.events());
    let closer = std::thread::spawn(move || closing.close(Duration::ZERO).unwrap());
    while events.recv_timeout(SOON).is_ok() {} // ends when the close has given up
    go.send(()).unwrap();
    assert_eq!(closer.join().unwrap(), 5);
    writer.join().unwrap().unwrap();
    assert_eq!(pull.recv_timeout(SOON).unwrap(), "first");
    until("the pusher has gone", || pull.peers() == 0);
    assert!(pull.try_recv().is_err());
}
