//! Peers that die and come back, and this side doing the same to them.

use spanwire::{Event, Message, Pull, Push, Req, RequestError};

use crate::harness::{Kind, Net, PATIENCE, Peer, Place, Role, Told, await_event, each, ours, same};

const ALL: [Peer; 4] = [Peer::Nanocat, Peer::Nngcat, Peer::Pynng, Peer::Nanomsg];

#[test]
fn a_push_finds_its_peer_again_after_that_one_was_killed() {
    for peer in ALL {
        each(|net, role| {
            let place = Place::new();
            let push = ours(Push::builder());
            let events = push.events();
            let url = place.meet(&push, net, role);
            for life in ["first", "second", "third"] {
                let theirs = peer.start(Kind::Pull, role, &url, &Told::default());
                push.send_timeout(life, PATIENCE).expect("the peer comes again");
                theirs.must_see(&[life.as_bytes()]);
                drop(theirs);
                await_event(&events, |event| matches!(event, Event::Disconnected { .. }));
            }
        });
    }
}

#[test]
fn a_peer_finds_us_again_after_our_socket_was_closed_and_bound_anew() {
    for peer in ALL {
        for net in [Net::Tcp, Net::Ipc] {
            let place = Place::new();
            let url = place.free(net);
            let files = [place.file("body", b"still here")];
            let told = Told { files: &files, again: true, ..Told::default() };
            let start = || peer.start(Kind::Push, Role::Connects, &url, &told);
            let (mut theirs, mut crashes) = (start(), 0);
            for _ in 0..3 {
                let pull = ours(Pull::builder());
                // Now and then a process that another test is just starting still has a copy of our listener.
                let began = std::time::Instant::now();
                while let Err(e) = pull.bind(&url) {
                    assert!(began.elapsed() < PATIENCE, "the address is not free again: {e}");
                    std::thread::yield_now();
                }
                let began = std::time::Instant::now();
                let got = loop {
                    match pull.recv_timeout(PATIENCE / 100) {
                        Ok(got) => break got,
                        Err(e) => assert!(began.elapsed() < PATIENCE, "{theirs:?} does not come again: {e}"),
                    }
                    // A push of nng 1.5 reads what it has freed when its connection ends at a certain moment, and dies
                    // of it now and then. Another takes its place; more than a few would be something else.
                    if let Some(signal) = theirs.crashed() {
                        crashes += 1;
                        let nng = matches!(peer, Peer::Nngcat | Peer::Pynng);
                        assert!(nng && crashes <= 3, "{theirs:?} ended by signal {signal}");
                        println!("{theirs:?} ended by signal {signal}");
                        theirs = start();
                    }
                };
                same(&got, b"still here");
                pull.close(PATIENCE).expect("a pull has nothing left to send");
            }
        }
    }
}

#[test]
fn a_request_made_while_nobody_is_there_is_answered_by_the_first_who_comes() {
    for peer in ALL {
        each(|net, role| {
            let place = Place::new();
            let req = ours(Req::builder());
            let url = place.meet(&req, net, role);
            let pending = req.start(Message::from("anybody?")).expect("it waits for a peer");
            let files = [place.file("reply", b"me")];
            let theirs = peer.start(Kind::Rep, role, &url, &Told { files: &files, ..Told::default() });
            same(&pending.wait_timeout(PATIENCE).expect("they answer"), b"me");
            theirs.must_see(&[b"anybody?"]);
        });
    }
}

#[test]
fn a_request_that_died_with_its_peer_is_sent_to_the_next_one() {
    for peer in ALL {
        each(|net, role| {
            let place = Place::new();
            // It would be sent again by time too, but long after the patience of this test.
            let req = ours(Req::builder().resend(Some(PATIENCE * 10)));
            let url = place.meet(&req, net, role);
            let pending = req.start(Message::from("to whom?")).expect("it waits for a peer");
            let silent = peer.start(Kind::Rep, role, &url, &Told::default());
            silent.must_see(&[b"to whom?"]);
            drop(silent);
            let files = [place.file("reply", b"to me")];
            let next = peer.start(Kind::Rep, role, &url, &Told { files: &files, ..Told::default() });
            same(&pending.wait_timeout(PATIENCE).expect("the next one answers"), b"to me");
            next.must_see(&[b"to whom?"]);
        });
    }
}

#[test]
fn with_resend_off_a_request_fails_with_its_peer() {
    for peer in ALL {
        let place = Place::new();
        let req = ours(Req::builder().resend(None));
        let url = place.meet(&req, Net::Tcp, Role::Binds);
        let pending = req.start(Message::from("only once")).expect("it waits for a peer");
        let silent = peer.start(Kind::Rep, Role::Binds, &url, &Told::default());
        silent.must_see(&[b"only once"]);
        drop(silent);
        assert_eq!(
            pending.wait_timeout(PATIENCE).expect_err("nobody answered"),
            RequestError::ConnectionLost
        );
    }
}
