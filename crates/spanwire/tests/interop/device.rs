//! Through the peers' devices: the stack of channel words that they put in front must come back as it was.

use std::thread;

use spanwire::device::bridge;
use spanwire::protocol::raw::{RawRep, RawReq};
use spanwire::{Message, Pair, Pub, Pull, Push, Rep, Req, Socket, Sub};

use crate::harness::{Net, PATIENCE, Peer, Place, filled, ours, same};

/// Calls `check` with the two addresses of a device of each library on each network.
fn devices(pattern: &str, check: impl Fn(&str, &str)) {
    for peer in [Peer::Nanomsg, Peer::Pynng] {
        for net in [Net::Tcp, Net::Ipc] {
            println!("{peer:?} {net:?}"); // shown when the check fails
            let place = Place::new();
            let (front, back) = (place.free(net), place.free(net));
            let _device = peer.device(pattern, &front, &back);
            check(&front, &back);
        }
    }
}

#[test]
fn requests_pass_a_device_and_every_reply_finds_its_own() {
    devices("req", |front, back| {
        let rep = ours(Rep::builder());
        rep.connect(back).expect("a good address");
        let server = rep.clone();
        // Echoes until the socket is closed.
        let echo = thread::spawn(move || {
            while let Ok(request) = server.recv() {
                let body = Message::from_slice(&request);
                request.reply(body).expect("the device is there");
            }
        });
        let clients: Vec<_> = (0..3)
            .map(|client| {
                let req = ours(Req::builder());
                req.connect(front).expect("a good address");
                thread::spawn(move || {
                    for i in 0..20 {
                        let body = [format!("{client}:{i}").into_bytes(), filled(i * 100)].concat();
                        let reply = req.request_timeout(Message::from_slice(&body), PATIENCE);
                        same(&reply.expect("the reply comes back"), &body);
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("every reply was its own");
        }
        rep.close(PATIENCE).expect("it closes");
        echo.join().expect("every reply was taken");
    });
}

#[test]
fn a_request_passes_two_devices_in_a_row() {
    let place = Place::new();
    // The second is asked by a connection of its own kind: nanomsg's device binds both ends, so a device of
    // ours joins them.
    let (front, middle_a) = (place.free(Net::Tcp), place.free(Net::Tcp));
    let (middle_b, back) = (place.free(Net::Tcp), place.free(Net::Tcp));
    let _first = Peer::Nanomsg.device("req", &front, &middle_a);
    let _second = Peer::Pynng.device("req", &middle_b, &back);
    let from = ours(Socket::builder(RawRep::new()));
    let to = ours(Socket::builder(RawReq::new()));
    from.connect(&middle_a).expect("a good address");
    to.connect(&middle_b).expect("a good address");
    let (a, b) = (from.clone(), to.clone());
    let ours_between = thread::spawn(move || bridge(&a, &b));

    let rep = ours(Rep::builder());
    rep.connect(&back).expect("a good address");
    let req = ours(Req::builder());
    req.connect(&front).expect("a good address");
    let pending = req.start(Message::from("through three")).expect("it waits for a peer");
    let request = rep.recv_timeout(PATIENCE).expect("the request passes");
    same(&request, b"through three");
    request.reply(Message::from("and back")).expect("the device is there");
    same(&pending.wait_timeout(PATIENCE).expect("the reply comes back"), b"and back");

    from.close(PATIENCE).expect("it closes");
    to.close(PATIENCE).expect("it closes");
    ours_between.join().expect("it does not panic").expect("the two are partners");
}

#[test]
fn pushed_messages_pass_a_device_in_order() {
    devices("push", |front, back| {
        let (push, pull) = (ours(Push::builder()), ours(Pull::builder()));
        push.connect(front).expect("a good address");
        pull.connect(back).expect("a good address");
        for i in 0..100 {
            push.send_timeout(format!("{i}"), PATIENCE).expect("the device is there");
        }
        for i in 0..100 {
            same(&pull.recv_timeout(PATIENCE).expect("it passes"), format!("{i}").as_bytes());
        }
    });
}

#[test]
fn published_messages_pass_a_device() {
    devices("pub", |front, back| {
        let (publisher, sub) = (ours(Pub::builder()), ours(Sub::builder()));
        sub.subscribe(b"topic");
        publisher.connect(front).expect("a good address");
        sub.connect(back).expect("a good address");
        assert!(publisher.wait_for_peers(1, PATIENCE) && sub.wait_for_peers(1, PATIENCE));
        // The device may not yet know the sub: said until it is heard.
        let mut tries = (0..400).filter_map(|_| {
            publisher.send("other").expect("it never waits");
            publisher.send("topic").expect("it never waits");
            sub.recv_timeout(PATIENCE / 400).ok()
        });
        same(&tries.next().expect("it is heard in the end"), b"topic");
    });
}

#[test]
fn pairs_talk_through_a_device() {
    devices("pair", |front, back| {
        let (one, other) = (ours(Pair::builder()), ours(Pair::builder()));
        one.connect(front).expect("a good address");
        other.connect(back).expect("a good address");
        one.send_timeout("there", PATIENCE).expect("the device is there");
        same(&other.recv_timeout(PATIENCE).expect("it passes"), b"there");
        other.send_timeout("back", PATIENCE).expect("the device is there");
        same(&one.recv_timeout(PATIENCE).expect("it passes"), b"back");
    });
}
