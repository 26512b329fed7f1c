//! From an empty message to the most that every peer takes by default.

use spanwire::protocol::Reason;
use spanwire::{Event, Message, Pull, Push, Rep, Req};

use crate::harness::{Kind, Net, PATIENCE, Peer, Place, Role, Told, await_event, each, filled, ours, same};

/// nanomsg's limit of 1 MiB counts header words too; 64 bytes leave room for more than any device adds.
const LARGEST: usize = (1 << 20) - 64;

/// Around the limits of small messages, of read buffers, and of what is written with the frame's head.
const SIZES: [usize; 14] =
    [0, 1, 63, 64, 65, 4_095, 4_096, 16_385, 65_535, 65_536, 262_136, 262_137, 262_145, LARGEST];

fn all_sizes_to(peer: Peer) {
    each(|net, role| {
        let place = Place::new();
        let push = ours(Push::builder());
        let url = place.meet(&push, net, role);
        let theirs = peer.start(Kind::Pull, role, &url, &Told::default());
        for size in SIZES {
            push.send_timeout(Message::from_slice(&filled(size)), PATIENCE).expect("a peer takes it");
        }
        for size in SIZES {
            same(&theirs.saw(), &filled(size));
        }
    });
}

fn largest_from(peer: Peer) {
    each(|net, role| {
        let place = Place::new();
        let pull = ours(Pull::builder());
        let url = place.meet(&pull, net, role);
        let files = [place.file("large", &filled(LARGEST))];
        let _theirs =
            peer.start(Kind::Push, role, &url, &Told { files: &files, again: true, ..Told::default() });
        for _ in 0..peer.repeats() {
            same(&pull.recv_timeout(PATIENCE).expect("they send"), &filled(LARGEST));
        }
    });
}

#[test]
fn messages_of_all_sizes_reach_nanocat() {
    all_sizes_to(Peer::Nanocat);
}

#[test]
fn messages_of_all_sizes_reach_nngcat() {
    all_sizes_to(Peer::Nngcat);
}

#[test]
fn messages_of_all_sizes_reach_pynng() {
    all_sizes_to(Peer::Pynng);
}

#[test]
fn the_largest_message_comes_from_nanocat() {
    largest_from(Peer::Nanocat);
}

#[test]
fn the_largest_message_comes_from_nngcat() {
    largest_from(Peer::Nngcat);
}

#[test]
fn messages_of_all_sizes_come_from_pynng() {
    each(|net, role| {
        let place = Place::new();
        let pull = ours(Pull::builder());
        let url = place.meet(&pull, net, role);
        let files = SIZES.map(|size| place.file(&size.to_string(), &filled(size)));
        let _theirs = Peer::Pynng.start(
            Kind::Push,
            role,
            &url,
            &Told { files: &files, again: true, ..Told::default() },
        );
        for size in SIZES {
            same(&pull.recv_timeout(PATIENCE).expect("they send"), &filled(size));
        }
    });
}

#[test]
fn the_largest_request_and_reply_pass_both_ways() {
    for peer in [Peer::Nanomsg, Peer::Pynng] {
        each(|net, role| {
            let place = Place::new();
            let files = [place.file("large", &filled(LARGEST))];
            let told = Told { files: &files, ..Told::default() };

            let req = ours(Req::builder());
            let url = place.meet(&req, net, role);
            let theirs = peer.start(Kind::Rep, role, &url, &told);
            let reply = req.request_timeout(Message::from_slice(&filled(LARGEST)), PATIENCE);
            same(&reply.expect("they answer"), &filled(LARGEST));
            same(&theirs.saw(), &filled(LARGEST));

            let rep = ours(Rep::builder());
            let url = place.meet(&rep, net, role);
            let theirs = peer.start(Kind::Req, role, &url, &told);
            let request = rep.recv_timeout(PATIENCE).expect("they ask");
            same(&request, &filled(LARGEST));
            request.reply(Message::from_slice(&filled(LARGEST))).expect("they are still there");
            same(&theirs.saw(), &filled(LARGEST));
        });
    }
}

#[test]
fn a_message_over_our_limit_closes_the_connection_with_its_size_as_the_reason() {
    for peer in [Peer::Nanocat, Peer::Nngcat, Peer::Pynng] {
        let place = Place::new();
        let pull = ours(Pull::builder().recv_max_size(1_000));
        let events = pull.events();
        let url = place.meet(&pull, Net::Tcp, Role::Connects);
        let files = [place.file("limit", &filled(1_000)), place.file("over", &filled(1_001))];
        let theirs =
            peer.start(Kind::Push, Role::Connects, &url, &Told { files: &files[..1], ..Told::default() });
        same(&pull.recv_timeout(PATIENCE).expect("at the limit it passes"), &filled(1_000));
        drop(theirs);
        let _theirs =
            peer.start(Kind::Push, Role::Connects, &url, &Told { files: &files[1..], ..Told::default() });
        let too_big = Reason::TooBig { size: 1_001, limit: 1_000 };
        await_event(
            &events,
            |event| matches!(event, Event::Disconnected { reason, .. } if *reason == too_big),
        );
        assert!(pull.try_recv().is_err());
    }
}
