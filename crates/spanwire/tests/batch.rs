//! Requests by the batch, end to end: started, collected and answered many at a time.

#[path = "common/executor.rs"]
mod executor;
#[path = "common/wait.rs"]
mod wait;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use spanwire::{
    DropReason, Failed, Limit, Message, RecvError, Rep, Reply, Req, ReqId, Request, RequestSet, SendError,
};

use executor::block_on;
use wait::{SOON, until};

const NONE: Duration = Duration::ZERO;

fn pair() -> (Req, Rep) {
    let (req, rep) = (Req::new().unwrap(), Rep::new().unwrap());
    req.connect(rep.bind("tcp://127.0.0.1:0").unwrap().url()).unwrap();
    (req, rep)
}

fn numbers(range: std::ops::Range<u32>) -> VecDeque<Message> {
    range.map(|n| n.to_string().into()).collect()
}

/// Starts all of `msgs`, which there is room for.
fn start(set: &RequestSet, mut msgs: VecDeque<Message>) -> Vec<ReqId> {
    let (mut ids, all) = (Vec::new(), msgs.len());
    assert_eq!(set.start_many(&mut msgs, &mut ids), Ok(all));
    assert_eq!((ids.len(), msgs.len()), (all, 0));
    ids
}

fn receive(rep: &Rep, n: usize) -> Vec<Request> {
    let mut got = Vec::new();
    while got.len() < n {
        let more = n - got.len();
        rep.recv_many(&mut got, more).unwrap();
    }
    got
}

/// Each with its own body.
fn echoes(requests: Vec<Request>) -> VecDeque<(Request, Message)> {
    requests.into_iter().map(|request| (request.body().clone(), request)).map(|(b, r)| (r, b)).collect()
}

fn late(req: &Req) -> u64 {
    req.stats().dropped(DropReason::Late)
}

#[test]
fn each_gets_its_own_reply_on_every_transport_in_whichever_order_they_are_answered() {
    const ALL: u32 = 3_000;
    let dir = tempfile::tempdir().unwrap();
    let ipc = format!("ipc://{}/batch", dir.path().display());
    for url in ["tcp://127.0.0.1:0", &ipc, "inproc://batch"] {
        let rep = Rep::new().unwrap();
        let req = Req::builder().max_open(200).build().unwrap();
        req.connect(rep.bind(url).unwrap().url()).unwrap();
        let server = thread::spawn(move || {
            let mut left = ALL as usize;
            while left > 0 {
                let got = receive(&rep, 1.max(left.min(50)));
                left -= got.len();
                let mut replies: VecDeque<_> = echoes(got).into_iter().rev().collect();
                let all = replies.len();
                assert_eq!(rep.reply_many(&mut replies), Ok(all));
                assert!(replies.is_empty());
            }
            rep.close(SOON).unwrap()
        });
        let set = req.request_set().unwrap();
        let (mut msgs, mut ids, mut replies) = (numbers(0..ALL), Vec::new(), Vec::<Reply>::new());
        while replies.len() < ALL as usize {
            match set.start_many(&mut msgs, &mut ids) {
                Ok(_) | Err(SendError::Full(())) => {}
                Err(e) => panic!("{e}"),
            }
            assert!(req.outstanding() <= 200);
            let n = set.recv_many(&mut replies, 70).unwrap();
            assert!((1..=70).contains(&n));
        }
        let by_id: HashMap<ReqId, Message> =
            replies.into_iter().map(|reply| (reply.id, reply.result.unwrap())).collect();
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(by_id[id], *n.to_string());
        }
        assert_eq!(set.recv_many(&mut Vec::new(), 1), Err(RecvError::Empty));
        assert_eq!((req.outstanding(), late(&req)), (0, 0));
        server.join().unwrap();
    }
}

#[test]
fn as_many_start_as_may_be_open_and_the_others_stay() {
    let rep = Rep::new().unwrap();
    let req = Req::builder().max_open(10).build().unwrap();
    req.connect(rep.bind("tcp://127.0.0.1:0").unwrap().url()).unwrap();
    let set = req.request_set().unwrap();
    let (mut msgs, mut ids) = (numbers(0..25), Vec::new());
    assert_eq!(set.start_many(&mut msgs, &mut ids), Ok(10));
    assert_eq!((ids.len(), msgs.len()), (10, 15));
    assert_eq!(msgs[0], "10", "the oldest of those that stay");
    assert_eq!(set.start_many(&mut msgs, &mut ids), Err(SendError::Full(())));
    assert!(matches!(set.start("one"), Err(SendError::Full(msg)) if msg == "one"));
    assert!(matches!(req.start("one"), Err(SendError::Full(msg)) if msg == "one"));
    rep.reply_many(&mut echoes(receive(&rep, 10))).unwrap();
    // What is there and not collected counts.
    let mut got = Vec::new();
    assert_eq!(set.recv_many(&mut got, 4), Ok(4));
    assert_eq!(set.start_many(&mut msgs, &mut ids), Ok(4));
    assert_eq!((ids.len(), msgs.len()), (14, 11));
    assert_eq!(set.start_many(&mut VecDeque::new(), &mut ids), Ok(0));
    // A request that waits for a place gets one.
    thread::scope(|scope| {
        let waits = scope.spawn(|| req.request_timeout("waits", SOON).unwrap());
        set.recv_many(&mut got, 99).unwrap();
        rep.reply_many(&mut echoes(receive(&rep, 5))).unwrap();
        assert_eq!(waits.join().unwrap(), "waits");
    });
}

#[test]
fn a_request_that_takes_too_long_is_cancelled_by_its_id_and_the_others_stay() {
    let (req, rep) = pair();
    let set = req.request_set().unwrap();
    let ids = start(&set, numbers(0..3));
    let requests = receive(&rep, 3);
    let mut got = Vec::new();
    assert_eq!(set.recv_many_timeout(&mut got, 9, NONE), Err(RecvError::TimedOut));
    assert_eq!(set.recv_timeout(NONE), Err(RecvError::TimedOut));
    assert_eq!((got.len(), set.in_flight()), (0, (3, 0)));
    assert!(set.cancel(ids[1]) && !set.cancel(ids[1]));
    assert!(!req.request_set().unwrap().cancel(ids[0]), "it is of another set");
    rep.reply_many(&mut echoes(requests)).unwrap();
    let got = [set.recv_timeout(SOON).unwrap(), set.recv().unwrap()];
    assert_eq!(got.map(|reply| reply.id), [ids[0], ids[2]]);
    assert_eq!(set.recv(), Err(RecvError::Empty));
    until("the late reply is counted", || late(&req) == 1);
}

#[test]
fn when_a_peer_dies_in_the_middle_each_request_has_an_end_of_its_own() {
    let rep = Rep::new().unwrap();
    let req = Req::builder().resend(None).build().unwrap();
    req.connect(rep.bind("tcp://127.0.0.1:0").unwrap().url()).unwrap();
    let set = req.request_set().unwrap();
    let ids = start(&set, numbers(0..100));
    let mut requests = receive(&rep, 100);
    requests.truncate(30);
    rep.reply_many(&mut echoes(requests)).unwrap();
    rep.close(SOON).unwrap();
    let mut got = Vec::new();
    while got.len() < 100 {
        set.recv_many_timeout(&mut got, 100, SOON).unwrap();
    }
    let (good, bad) = got.split_at(30);
    assert!(good.iter().zip(&ids).all(|(reply, id)| reply.id == *id && reply.result.is_ok()));
    assert!(bad.iter().all(|reply| reply.result == Err(Failed::ConnectionLost)));
    assert_eq!(got.iter().map(|reply| reply.id).collect::<HashSet<_>>().len(), 100);
    assert_eq!(set.recv(), Err(RecvError::Empty));
}

#[test]
fn with_resending_another_peer_answers_what_the_dead_one_did_not() {
    let (req, rep) = pair();
    let set = req.request_set().unwrap();
    let ids = start(&set, numbers(0..100));
    let mut requests = receive(&rep, 100);
    let second = Rep::new().unwrap();
    req.connect(second.bind("tcp://127.0.0.1:0").unwrap().url()).unwrap();
    requests.truncate(30);
    rep.reply_many(&mut echoes(requests)).unwrap();
    rep.close(SOON).unwrap();
    second.reply_many(&mut echoes(receive(&second, 70))).unwrap();
    let mut got = Vec::new();
    while got.len() < 100 {
        set.recv_many_timeout(&mut got, 100, SOON).unwrap();
    }
    for (n, reply) in got.into_iter().enumerate() {
        assert_eq!(reply.id, ids[n]);
        assert_eq!(reply.result.unwrap(), *n.to_string());
    }
}

#[test]
fn a_set_that_is_dropped_with_replies_on_their_way_disturbs_nobody() {
    let (req, rep) = pair();
    let (gone, set) = (req.request_set().unwrap(), req.request_set().unwrap());
    start(&gone, numbers(0..50));
    let ids = start(&set, numbers(50..60));
    let lone = req.start("lone").unwrap();
    let mut first = receive(&rep, 61);
    let rest = first.split_off(20);
    rep.reply_many(&mut echoes(first)).unwrap();
    assert_eq!(gone.recv_timeout(SOON).unwrap().result.unwrap(), "0");
    drop(gone); // some are collected, some have come, some are on their way
    assert_eq!(req.outstanding(), 11);
    rep.reply_many(&mut echoes(rest)).unwrap();
    assert_eq!(lone.wait_timeout(SOON).unwrap(), "lone");
    let mut got = Vec::new();
    set.recv_many(&mut got, 99).unwrap();
    assert_eq!(got.iter().map(|reply| reply.id).collect::<Vec<_>>(), ids);
    assert_eq!((req.outstanding(), late(&req)), (0, 49));
}

#[test]
fn threads_and_tasks_that_collect_get_each_reply_once_and_all_are_told_the_end() {
    let (req, rep) = pair();
    let set = req.request_set().unwrap();
    let ids = start(&set, numbers(0..900));
    let seen = Mutex::new(HashSet::new());
    let note = |got: &mut Vec<Reply>| {
        let mut seen = seen.lock().unwrap();
        for reply in got.drain(..) {
            assert!(reply.result.is_ok() && seen.insert(reply.id), "twice");
        }
    };
    thread::scope(|scope| {
        for max in [1, 7, 1000] {
            let (set, note) = (&set, &note);
            scope.spawn(move || {
                let mut got = Vec::new();
                while set.recv_many(&mut got, max).is_ok() {
                    note(&mut got);
                }
            });
            scope.spawn(move || {
                block_on(async {
                    let mut got = Vec::new();
                    while set.recv_many_async(&mut got, max).await.is_ok() {
                        note(&mut got);
                        if let Ok(one) = set.recv_async().await {
                            note(&mut vec![one]);
                        }
                    }
                });
            });
        }
        for _ in 0..9 {
            rep.reply_many(&mut echoes(receive(&rep, 100))).unwrap();
        }
    });
    assert_eq!(*seen.lock().unwrap(), ids.into_iter().collect());
}

#[test]
fn a_requester_that_does_not_read_holds_up_its_own_replies_and_no_others() {
    const ASKED: u32 = 32;
    const LARGE: usize = 1 << 20; // together more than the system's buffers hold
    let rep = Rep::builder().send_queue(Limit::messages(4)).build().unwrap();
    let at = rep.bind("tcp://127.0.0.1:0").unwrap();
    let mut deaf = TcpStream::connect(at.url().trim_start_matches("tcp://")).unwrap();
    deaf.write_all(b"\0SP\0\0\x30\0\0").unwrap();
    for id in 0..ASKED {
        deaf.write_all(&4u64.to_be_bytes()).unwrap();
        deaf.write_all(&(0x8000_0000 | id).to_be_bytes()).unwrap();
    }
    let large = Message::from(vec![7; LARGE]);
    let mut replies: VecDeque<_> = receive(&rep, 32).into_iter().map(|one| (one, large.clone())).collect();
    let req = Req::new().unwrap();
    req.connect(at.url()).unwrap();
    let set = req.request_set().unwrap();
    start(&set, numbers(0..2));
    replies.extend(echoes(receive(&rep, 2)));
    assert_eq!(rep.reply_many_timeout(&mut replies, NONE), Err(SendError::TimedOut(())));
    assert!((1..ASKED as usize).contains(&replies.len()), "{} are left", replies.len());
    assert_eq!([set.recv().unwrap(), set.recv().unwrap()].map(|reply| reply.result.unwrap()), ["0", "1"]);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            deaf.read_exact(&mut [0; 8]).unwrap();
            let mut frame = vec![0; 8 + 4 + LARGE];
            let ids = (0..ASKED).map(|_| {
                deaf.read_exact(&mut frame).unwrap();
                u32::from_be_bytes(frame[8..12].try_into().unwrap()) & !0x8000_0000
            });
            ids.collect::<Vec<u32>>()
        });
        let left = replies.len();
        assert_eq!(block_on(rep.reply_many_async(&mut replies)), Ok(left));
        assert_eq!(reader.join().unwrap(), (0..ASKED).collect::<Vec<_>>(), "in their order");
    });
    assert_eq!(req.outstanding(), 0);
}

#[test]
fn replies_of_another_socket_or_of_a_closed_one_come_back() {
    let (req, rep) = pair();
    let set = req.request_set().unwrap();
    start(&set, numbers(0..3));
    let mut replies = echoes(receive(&rep, 3));
    let other = Rep::new().unwrap();
    assert!(matches!(other.reply_many(&mut replies), Err(SendError::Invalid((), _))));
    rep.close(SOON).unwrap();
    assert_eq!(rep.reply_many(&mut replies), Err(SendError::Closed(())));
    assert_eq!(block_on(rep.reply_many_async(&mut replies)), Err(SendError::Closed(())));
    assert_eq!(replies.len(), 3);
}

#[test]
fn a_closed_socket_says_so_to_who_starts_and_who_collects() {
    let (req, _rep) = pair();
    let set = req.request_set().unwrap();
    start(&set, numbers(0..2));
    thread::scope(|scope| {
        let waits = scope.spawn(|| set.recv());
        req.close(NONE).unwrap();
        assert_eq!(waits.join().unwrap(), Err(RecvError::Closed));
    });
    let mut msgs = numbers(0..3);
    assert_eq!(set.start_many(&mut msgs, &mut Vec::new()), Err(SendError::Closed(())));
    assert_eq!(msgs.len(), 3);
    assert!(matches!(set.start("x"), Err(SendError::Closed(msg)) if msg == "x"));
    assert!(req.request_set().is_err());
}
