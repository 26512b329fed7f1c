//! Every pattern, in both directions, over tcp and ipc, with the peer binding and with the peer connecting.

use spanwire::{DropReason, Message, Pair, Pub, Pull, Push, Rep, Req, Sub};

use crate::harness::{Kind, Net, PATIENCE, Peer, Place, Role, Told, each, filled, ours, same};

/// Text, nothing, every byte, and more than fits into a small message.
fn bodies() -> [Vec<u8>; 4] {
    [b"hello".to_vec(), Vec::new(), (0..=255).collect(), filled(5_000)]
}

const REPLY: &[u8] = b"the reply \xff\x00\n";

fn push_to(peer: Peer, net: Net, role: Role) {
    let place = Place::new();
    let push = ours(Push::builder());
    let url = place.meet(&push, net, role);
    let theirs = peer.start(Kind::Pull, role, &url, &Told::default());
    for body in &bodies() {
        push.send_timeout(Message::from_slice(body), PATIENCE).expect("a peer comes");
    }
    theirs.must_see(&bodies().each_ref().map(Vec::as_slice));
}

fn pull_from(peer: Peer, net: Net, role: Role) {
    for body in bodies() {
        let place = Place::new();
        let pull = ours(Pull::builder());
        let url = place.meet(&pull, net, role);
        let files = [place.file("body", &body)];
        let _theirs =
            peer.start(Kind::Push, role, &url, &Told { files: &files, again: true, ..Told::default() });
        for _ in 0..peer.repeats() {
            same(&pull.recv_timeout(PATIENCE).expect("they send"), &body);
        }
    }
}

fn pub_to(peer: Peer, net: Net, role: Role) {
    let place = Place::new();
    let publisher = ours(Pub::builder());
    let url = place.meet(&publisher, net, role);
    let theirs = peer.start(Kind::Sub, role, &url, &Told { topic: Some("topic"), ..Told::default() });
    assert!(publisher.wait_for_peers(1, PATIENCE), "{theirs:?}");
    // Attached at this end is not yet attached at the other: said until it is heard.
    let mut tries = (0..400).filter_map(|_| {
        publisher.send("other: not for them").expect("it never waits");
        publisher.send("topic: begin").expect("it never waits");
        theirs.saw_within(PATIENCE / 400)
    });
    same(&tries.next().expect("it is heard in the end"), b"topic: begin");
    let said = bodies().map(|body| [b"topic".to_vec(), body].concat());
    for body in &said {
        publisher.send(Message::from_slice(body)).expect("it never waits");
    }
    let heard = std::iter::repeat_with(|| theirs.saw()).skip_while(|body| body == b"topic: begin");
    for (said, heard) in said.iter().zip(heard) {
        same(&heard, said);
    }
}

fn sub_to(peer: Peer, net: Net, role: Role) {
    let place = Place::new();
    let sub = ours(Sub::builder());
    sub.subscribe(b"topic");
    let body = [b"topic".to_vec(), filled(3_000)].concat();
    // One of them says only what was not subscribed.
    let [_other, _theirs] = [("other", &b"not subscribed"[..]), ("topic", &body)].map(|(name, said)| {
        let files = [place.file(name, said)];
        let url = place.meet(&sub, net, role);
        peer.start(Kind::Pub, role, &url, &Told { files: &files, again: true, ..Told::default() })
    });
    let mut times = 0;
    while times <= peer.repeats() || sub.stats().dropped(DropReason::Filtered) == 0 {
        same(&sub.recv_timeout(PATIENCE).expect("they send"), &body);
        times += 1;
    }
}

fn req_to(peer: Peer, net: Net, role: Role) {
    let place = Place::new();
    let req = ours(Req::builder());
    let url = place.meet(&req, net, role);
    let files = [place.file("reply", REPLY)];
    let theirs = peer.start(Kind::Rep, role, &url, &Told { files: &files, ..Told::default() });
    for body in &bodies() {
        let reply = req.request_timeout(Message::from_slice(body), PATIENCE).expect("they answer");
        same(&reply, REPLY);
        same(&theirs.saw(), body);
    }
    // By the batch: they answer one after the other.
    let set = req.request_set().expect("the socket is open");
    let (mut msgs, mut ids) = (bodies().map(Message::from).into(), Vec::new());
    set.start_many(&mut msgs, &mut ids).expect("few are open");
    for (body, id) in bodies().iter().zip(ids) {
        let reply = set.recv_timeout(PATIENCE).expect("they answer");
        assert_eq!(reply.id, id);
        same(&reply.result.expect("they are still there"), REPLY);
        same(&theirs.saw(), body);
    }
}

fn rep_to(peer: Peer, net: Net, role: Role) {
    for body in bodies() {
        let place = Place::new();
        let rep = ours(Rep::builder());
        let url = place.meet(&rep, net, role);
        let files = [place.file("request", &body)];
        let theirs = peer.start(Kind::Req, role, &url, &Told { files: &files, ..Told::default() });
        let request = rep.recv_timeout(PATIENCE).expect("they ask");
        same(&request, &body);
        request.reply(Message::from_slice(REPLY)).expect("they are still there");
        same(&theirs.saw(), REPLY);
    }
}

fn pair_to(peer: Peer, net: Net, role: Role) {
    let place = Place::new();
    let pair = ours(Pair::builder());
    let url = place.meet(&pair, net, role);
    let theirs = peer.start(Kind::Pair, role, &url, &Told::default());
    for body in &bodies() {
        pair.send_timeout(Message::from_slice(body), PATIENCE).expect("a peer comes");
    }
    theirs.must_see(&bodies().each_ref().map(Vec::as_slice));
}

fn pair_from(peer: Peer, net: Net, role: Role) {
    let place = Place::new();
    let pair = ours(Pair::builder());
    let url = place.meet(&pair, net, role);
    let body = filled(3_000);
    let files = [place.file("body", &body)];
    let theirs = peer.start(Kind::Pair, role, &url, &Told { files: &files, again: true, ..Told::default() });
    for _ in 0..peer.repeats() {
        same(&pair.recv_timeout(PATIENCE).expect("they send"), &body);
    }
    pair.send_timeout("and back", PATIENCE).expect("the peer is there");
    theirs.must_see(&[b"and back"]);
}

macro_rules! matrix {
    ($($name:ident: $peer:expr,)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn gets_what_our_push_sends() {
                each(|net, role| push_to($peer, net, role));
            }

            #[test]
            fn sends_what_our_pull_gets() {
                each(|net, role| pull_from($peer, net, role));
            }

            #[test]
            fn hears_what_it_subscribed_to_of_our_pub() {
                each(|net, role| pub_to($peer, net, role));
            }

            #[test]
            fn publishes_and_our_sub_hears_what_it_subscribed_to() {
                each(|net, role| sub_to($peer, net, role));
            }

            #[test]
            fn answers_our_req() {
                each(|net, role| req_to($peer, net, role));
            }

            #[test]
            fn is_answered_by_our_rep() {
                each(|net, role| rep_to($peer, net, role));
            }

            #[test]
            fn gets_what_our_pair_sends() {
                each(|net, role| pair_to($peer, net, role));
            }

            #[test]
            fn talks_both_ways_with_our_pair() {
                each(|net, role| pair_from($peer, net, role));
            }
        }
    )*};
}

matrix! {
    nanocat: Peer::Nanocat,
    nngcat: Peer::Nngcat,
    pynng: Peer::Pynng,
    nanomsg: Peer::Nanomsg,
}
