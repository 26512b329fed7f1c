//! Two ends in one thread, notice by notice; and at last in two.

use std::collections::VecDeque;

use mio::Token;

use super::lane::{MAX_BYTES, MAX_MESSAGES};
use super::*;
use crate::Message;
use crate::protocol::ProtocolInfo;
use crate::transport::harness::{Loop, refuses};
use crate::transport::{Connection, MessagePipe, MessageReader, MessageWriter};
use crate::wire::{Hello, Inbox, Side, WireError};

const MAX: usize = 1 << 20;

fn pipe(connection: Connection) -> Box<dyn MessagePipe> {
    match connection {
        Connection::Messages(pipe) => pipe,
        Connection::Stream(..) => panic!("not a message pipe"),
    }
}

fn dial(turn: &mut Loop, url: &str) -> (Token, Box<dyn MessagePipe>) {
    let mut pipe = pipe(Inproc.dialer(url, &Bag::default()).unwrap().dial(None).unwrap());
    (turn.register(|r| pipe.register(r)), pipe)
}

fn bind(turn: &mut Loop, url: &str) -> Box<dyn Listener> {
    let mut listener = Inproc.listen(url, &Bag::default()).unwrap();
    turn.register(|r| listener.register(r));
    listener
}

fn accept(turn: &mut Loop, listener: &mut dyn Listener) -> (Token, Box<dyn MessagePipe>) {
    let mut pipe = pipe(turn.accept(listener));
    (turn.register(|r| pipe.register(r)), pipe)
}

fn hello(id: u16) -> Hello {
    Hello::new(ProtocolInfo::new(id, "one", id, "other"), Side::Dialer, MAX, "inproc://x")
}

struct End {
    token: Token,
    reader: Box<dyn MessageReader>,
    writer: Box<dyn MessageWriter>,
}

/// Both ends of a connection over `url`; the second one receives at most `max` bytes.
fn ends(turn: &mut Loop, url: &str, max: usize) -> (End, End) {
    let mut listener = bind(turn, url);
    let (a_token, mut a) = dial(turn, url);
    let (b_token, mut b) = accept(turn, &mut *listener);
    let mut limited = hello(2);
    limited.recv_max = max;
    assert_eq!(a.handshake(&hello(1)).unwrap(), None);
    assert_eq!(b.handshake(&limited).unwrap().and_then(|p| p.sp_id), Some(1));
    assert_eq!(a.handshake(&hello(1)).unwrap().and_then(|p| p.sp_id), Some(2));
    let (a, b) = (a.split().unwrap(), b.split().unwrap());
    turn.notices();
    (End { token: a_token, reader: a.0, writer: a.1 }, End { token: b_token, reader: b.0, writer: b.1 })
}

fn batch(n: usize, len: usize) -> VecDeque<Message> {
    (0..n).map(|i| Message::from(vec![i as u8; len])).collect()
}

fn known(url: &str) -> bool {
    names().contains_key(url.strip_prefix("inproc://").unwrap())
}

#[test]
fn connect_may_come_before_or_after_bind() {
    let url = "inproc://either-order";
    for bind_first in [true, false] {
        let mut turn = Loop::new();
        let early = bind_first.then(|| bind(&mut turn, url));
        let (_, mut a) = dial(&mut turn, url);
        assert_eq!(a.handshake(&hello(1)).unwrap(), None);
        let mut listener = early.unwrap_or_else(|| bind(&mut turn, url));
        let (_, mut b) = accept(&mut turn, &mut *listener);
        assert_eq!(b.handshake(&hello(2)).unwrap().and_then(|p| p.sp_id), Some(1));
        assert_eq!(a.handshake(&hello(1)).unwrap().and_then(|p| p.sp_id), Some(2));
        assert_eq!((a.facts().local, b.facts().remote), (url.to_owned(), url.to_owned()));
    }
    assert!(!known(url));
}

#[test]
fn each_step_of_a_meeting_gives_a_notice_to_whoever_must_act() {
    let url = "inproc://notices";
    let mut turn = Loop::new();
    let mut listener = Inproc.listen(url, &Bag::default()).unwrap();
    let bound = turn.register(|r| listener.register(r));
    assert_eq!(turn.notices(), [bound]);
    let (a_token, mut a) = dial(&mut turn, url);
    assert_eq!(turn.notices(), [bound, a_token]);
    a.handshake(&hello(1)).unwrap();
    assert_eq!(turn.notices(), []);
    let (b_token, mut b) = accept(&mut turn, &mut *listener);
    assert_eq!(turn.notices(), [b_token]);
    b.handshake(&hello(2)).unwrap();
    assert_eq!(turn.notices(), [a_token]);
    drop(b);
    assert_eq!(turn.notices(), [a_token]);
}

#[test]
fn a_name_is_bound_once_at_a_time_and_case_matters() {
    let url = "inproc://Bound-Once";
    let first = Inproc.listen(url, &Bag::default()).unwrap();
    assert_eq!(first.url(), url);
    let second = Inproc.listen(url, &Bag::default()).err().unwrap();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    let other = Inproc.listen("inproc://bound-once", &Bag::default()).unwrap();
    drop((first, other));
    Inproc.listen(url, &Bag::default()).unwrap();
    assert!(!known(url));
}

#[test]
fn a_bad_address_is_refused_in_words_that_say_why() {
    refuses(Inproc.dialer("inproc://", &Bag::default()), "inproc://", "no name");
    refuses(Inproc.listen("inproc://", &Bag::default()), "inproc://", "no name");
}

#[test]
fn promise_23_dialers_that_give_up_before_accept_leave_nothing_behind() {
    let url = "inproc://given-up";
    let mut turn = Loop::new();
    for _ in 0..100 {
        let (_, mut pipe) = dial(&mut turn, url);
        pipe.handshake(&hello(1)).unwrap();
    }
    assert!(!known(url));
    let mut listener = bind(&mut turn, url);
    let (_, gives_up) = dial(&mut turn, url);
    let (b_token, _b) = dial(&mut turn, url);
    drop(gives_up);
    accept(&mut turn, &mut *listener);
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(turn.notices().contains(&b_token), "the peer's end must be told");
    drop(listener);
    assert!(!known(url));
}

#[test]
fn those_who_wait_outlive_a_listener_and_meet_the_next_in_order() {
    let url = "inproc://next-listener";
    let mut turn = Loop::new();
    let first = bind(&mut turn, url);
    let (_, mut a) = dial(&mut turn, url);
    let (_, mut b) = dial(&mut turn, url);
    a.handshake(&hello(1)).unwrap();
    b.handshake(&hello(2)).unwrap();
    drop(first);
    let mut second = bind(&mut turn, url);
    for id in [1, 2] {
        let (_, mut pipe) = accept(&mut turn, &mut *second);
        assert_eq!(pipe.handshake(&hello(3)).unwrap().and_then(|p| p.sp_id), Some(id));
    }
}

#[test]
fn a_peer_that_goes_after_its_hello_is_still_known_and_one_without_is_an_end() {
    let url = "inproc://gone-in-handshake";
    let mut turn = Loop::new();
    let mut listener = bind(&mut turn, url);
    let (_, mut a) = dial(&mut turn, url);
    let (_, mut b) = accept(&mut turn, &mut *listener);
    a.handshake(&hello(1)).unwrap();
    b.handshake(&hello(9)).unwrap();
    drop(b); // Refused: the protocols do not fit.
    assert_eq!(a.handshake(&hello(1)).unwrap().and_then(|p| p.sp_id), Some(9));
    let (mut reader, mut writer) = a.split().unwrap();
    assert_eq!(writer.send(&mut batch(1, 1)).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let end = reader.recv(&mut Inbox::with_budget(1)).unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);

    let (_, mut a) = dial(&mut turn, url);
    let (_, b) = accept(&mut turn, &mut *listener);
    drop(b);
    assert_eq!(a.handshake(&hello(1)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn messages_keep_order_header_and_place_in_memory() {
    let mut turn = Loop::new();
    let (mut a, mut b) = ends(&mut turn, "inproc://moves", MAX);
    let mut big = Message::from(vec![7; 1000]);
    big.push_word_front(0x8000_0001);
    let place = big.body().as_ptr();
    let mut sent = VecDeque::from([Message::from("first"), big.clone()]);
    a.writer.send(&mut sent).unwrap();
    assert!(sent.is_empty());
    let mut inbox = Inbox::with_budget(10);
    assert!(b.reader.recv(&mut inbox).unwrap());
    assert_eq!(inbox.messages().pop_front().unwrap(), "first");
    let got = inbox.messages().pop_front().unwrap();
    assert_eq!(got, big);
    assert_eq!((got.header_len(), got.body().as_ptr()), (1, place));
}

#[test]
fn a_full_link_keeps_the_rest_of_the_batch_and_calls_the_sender_at_half() {
    let mut turn = Loop::new();
    let (mut a, mut b) = ends(&mut turn, "inproc://bounded", MAX);
    let mut sent = batch(MAX_MESSAGES + 10, 1);
    a.writer.send(&mut sent).unwrap();
    assert_eq!(sent.len(), 10);
    assert_eq!(turn.notices(), [b.token]);
    a.writer.send(&mut sent).unwrap();
    assert_eq!((sent.len(), turn.notices()), (10, vec![]));
    let half = MAX_MESSAGES / 2;
    assert!(!b.reader.recv(&mut Inbox::with_budget(half - 1)).unwrap());
    assert_eq!(turn.notices(), []);
    assert!(!b.reader.recv(&mut Inbox::with_budget(1)).unwrap());
    assert_eq!(turn.notices(), [a.token]);
    a.writer.send(&mut sent).unwrap();
    assert!(sent.is_empty());
    assert_eq!(turn.notices(), [], "the receiver has not come to the end");
    let mut inbox = Inbox::with_budget(usize::MAX);
    assert!(b.reader.recv(&mut inbox).unwrap());
    assert_eq!(inbox.messages().len(), half + 10);
    assert_eq!(turn.notices(), [], "the sender wants no room");
    a.writer.send(&mut batch(1, 1)).unwrap();
    assert_eq!(turn.notices(), [b.token]);
}

#[test]
fn bytes_are_bounded_too_and_a_larger_message_passes_alone() {
    let mut turn = Loop::new();
    let (mut a, mut b) = ends(&mut turn, "inproc://bytes", usize::MAX);
    let mut sent = batch(10, MAX_BYTES / 4);
    a.writer.send(&mut sent).unwrap();
    assert_eq!(sent.len(), 6);
    assert!(b.reader.recv(&mut Inbox::with_budget(4)).unwrap());
    sent = batch(2, MAX_BYTES * 2);
    a.writer.send(&mut sent).unwrap();
    assert_eq!(sent.len(), 1);
    turn.notices();
    assert!(b.reader.recv(&mut Inbox::with_budget(4)).unwrap());
    assert_eq!(turn.notices(), [a.token]);
    a.writer.send(&mut sent).unwrap();
    assert!(sent.is_empty());
}

#[test]
fn an_inbox_without_budget_leaves_messages_where_they_are() {
    let mut turn = Loop::new();
    let (mut a, mut b) = ends(&mut turn, "inproc://no-budget", MAX);
    a.writer.send(&mut batch(2, 1)).unwrap();
    assert!(!b.reader.recv(&mut Inbox::with_budget(0)).unwrap());
    assert!(!b.reader.recv(&mut Inbox::with_budget(1)).unwrap());
    assert!(b.reader.recv(&mut Inbox::with_budget(1)).unwrap());
}

#[test]
fn the_end_comes_after_what_was_sent_by_shutdown_and_by_drop() {
    for by_shutdown in [true, false] {
        let mut turn = Loop::new();
        let (mut a, mut b) = ends(&mut turn, "inproc://drained", MAX);
        a.writer.send(&mut batch(3, 1)).unwrap();
        turn.notices();
        if by_shutdown {
            assert!(a.writer.shutdown().unwrap());
            assert_eq!(a.writer.send(&mut batch(1, 1)).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        } else {
            drop(a.writer);
        }
        assert_eq!(turn.notices(), [b.token]);
        let mut inbox = Inbox::with_budget(2);
        assert!(!b.reader.recv(&mut inbox).unwrap());
        let mut inbox = Inbox::with_budget(10);
        let end = b.reader.recv(&mut inbox).unwrap_err();
        assert_eq!((end.kind(), inbox.messages().len()), (io::ErrorKind::UnexpectedEof, 1));
        // The other direction lives.
        b.writer.send(&mut batch(1, 1)).unwrap();
        assert!(a.reader.recv(&mut Inbox::with_budget(2)).unwrap());
    }
}

#[test]
fn when_the_receiver_has_gone_the_sender_is_told_and_keeps_its_batch() {
    let mut turn = Loop::new();
    let (mut a, b) = ends(&mut turn, "inproc://deaf", MAX);
    a.writer.send(&mut batch(3, 1)).unwrap();
    turn.notices();
    drop(b.reader);
    assert_eq!(turn.notices(), [a.token]);
    let mut sent = batch(2, 1);
    assert_eq!(a.writer.send(&mut sent).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(sent.len(), 2);
    assert_eq!(a.writer.send(&mut VecDeque::new()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn promise_08_a_message_over_the_receivers_limit_ends_the_pipe_after_those_before_it() {
    let mut turn = Loop::new();
    let (mut a, mut b) = ends(&mut turn, "inproc://too-big", 100);
    let mut over = Message::from(vec![0; 97]);
    over.push_word_front(1); // Header words count: 101 bytes.
    let mut sent = VecDeque::from([Message::from(vec![0; 100]), over, Message::from("after")]);
    a.writer.send(&mut sent).unwrap();
    let mut inbox = Inbox::with_budget(10);
    for _ in 0..2 {
        let error = b.reader.recv(&mut inbox).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let cause = error.get_ref().and_then(|e| e.downcast_ref::<WireError>());
        assert_eq!(cause, Some(&WireError::TooBig { size: 101, limit: 100 }));
    }
    assert_eq!(inbox.messages().len(), 1);
}

#[test]
fn a_million_messages_cross_two_threads_without_a_lost_notice() {
    const COUNT: usize = 1_000_000;
    let mut turn = Loop::new();
    // A loop for each side, so that each waits only for its own notices.
    let mut there = Loop::new();
    let url = "inproc://threads";
    let mut listener = bind(&mut turn, url);
    let mut a = pipe(Inproc.dialer(url, &Bag::default()).unwrap().dial(None).unwrap());
    there.register(|r| a.register(r));
    let (_, mut b) = accept(&mut turn, &mut *listener);
    a.handshake(&hello(1)).unwrap();
    b.handshake(&hello(2)).unwrap();
    let (_reader, mut writer) = a.split().unwrap();
    let (mut reader, _writer) = b.split().unwrap();
    let sender = std::thread::spawn(move || {
        let mut next = 0..COUNT as u64;
        let mut out = VecDeque::new();
        loop {
            out.extend(next.by_ref().take(50).map(|i| Message::from(i.to_be_bytes())));
            if out.is_empty() {
                return;
            }
            there.until("room", || {
                writer.send(&mut out).unwrap();
                out.is_empty().then_some(())
            });
        }
    });
    let mut got = 0u64;
    turn.until("the end", || {
        loop {
            let mut inbox = Inbox::with_budget(70);
            let left = reader.recv(&mut inbox);
            for msg in inbox.messages() {
                assert_eq!(*msg, &got.to_be_bytes());
                got += 1;
            }
            match left {
                Ok(false) => {}
                Ok(true) => return None,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Some(()),
                Err(e) => panic!("{e}"),
            }
        }
    });
    assert_eq!(got, COUNT as u64);
    sender.join().unwrap();
}
