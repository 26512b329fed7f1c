//! Checks: peers come, go, come back, and are known.

use spanwire::{Event, Pull, Push, Reason, Rep, Req};

use super::watch::Watch;
use super::{SOON, Setup};

/// A dialer waits for its listener, which comes later.
pub fn a_connect_may_come_before_the_bind(setup: &Setup) {
    let url = {
        let early = setup.on(Pull::builder()).build().expect("a socket");
        let url = setup.bind(&early).url().to_owned();
        early.close(SOON).expect("it closes");
        url
    };
    let push = setup.on(Push::builder()).build().expect("a socket");
    setup.connect(&push, &url);
    assert_eq!(push.peers(), 0);
    let pull = setup.on(Pull::builder()).build().expect("a socket");
    setup.bind_again(&pull, &url);
    push.send_timeout("late", SOON).expect("the peer came");
    assert_eq!(pull.recv_timeout(SOON).expect("a message"), "late");
}

/// One socket binds several addresses and dials several, all at once; each peer gets its turn.
pub fn one_socket_has_many_endpoints_of_both_kinds(setup: &Setup) {
    const BOUND: usize = 3;
    const DIALLED: usize = 2;
    let push = setup.on(Push::builder()).build().expect("a socket");
    let mut pulls = Vec::new();
    for _ in 0..BOUND {
        let at = setup.bind(&push);
        for _ in 0..2 {
            let pull = setup.on(Pull::builder()).build().expect("a socket");
            setup.connect(&pull, at.url());
            pulls.push(pull);
        }
    }
    for _ in 0..DIALLED {
        let pull = setup.on(Pull::builder()).build().expect("a socket");
        let at = setup.bind(&pull);
        setup.connect(&push, at.url());
        pulls.push(pull);
    }
    assert!(push.wait_for_peers(pulls.len(), SOON), "{} of {} peers came", push.peers(), pulls.len());
    for round in 0..3 {
        for _ in &pulls {
            push.send_timeout(format!("round {round}"), SOON).expect("there is room");
        }
    }
    for pull in &pulls {
        for round in 0..3 {
            let msg = pull.recv_timeout(SOON).expect("each gets its turn");
            assert_eq!(msg, format!("round {round}").as_str());
        }
    }
}

/// The listener is closed, its dialer hears of it; the address is bound again by another socket, and the dialer is there
/// again by itself.
pub fn a_dialer_comes_back_when_its_listener_does(setup: &Setup) {
    let push = setup.on(Push::builder()).build().expect("a socket");
    let mut watch = Watch::new(&push);
    let mut url = None;
    for round in 0..3 {
        let pull = setup.on(Pull::builder()).build().expect("a socket");
        match &url {
            None => {
                let at = setup.bind(&pull);
                setup.connect(&push, at.url());
                url = Some(at.url().to_owned());
            }
            Some(url) => drop(setup.bind_again(&pull, url)),
        }
        watch.until("a peer", |event| matches!(event, Event::Connected { .. }).then_some(()));
        push.send_timeout(format!("round {round}"), SOON).expect("the peer is there");
        assert_eq!(pull.recv_timeout(SOON).expect("a message"), format!("round {round}").as_str());
        pull.close(SOON).expect("it closes");
        watch.disconnected();
    }
}

/// Each end's `Connected` names its endpoint and who dialled; an address is known of the peer where one was
/// dialled, and one of the two where not.
pub fn both_ends_know_whom_they_talk_to(setup: &Setup) {
    let pull = setup.on(Pull::builder()).build().expect("a socket");
    let mut at_pull = Watch::new(&pull);
    let at = setup.bind(&pull);
    let push = setup.on(Push::builder()).build().expect("a socket");
    let mut at_push = Watch::new(&push);
    let to = setup.connect(&push, at.url());
    let connected = |event: &Event| match event {
        Event::Connected { pipe, endpoint, facts, dialed } => {
            Some((*pipe, *endpoint, facts.clone(), *dialed))
        }
        _ => None,
    };
    let (pipe, endpoint, facts, dialed) = at_push.until("a peer", connected);
    assert!(dialed && endpoint == to.id());
    assert!(!facts.remote.is_empty(), "the dialer knows no address of its peer");
    let stats = push.stats();
    let of_pipe = stats.pipes.iter().find(|p| p.pipe == pipe).expect("the pipe is attached");
    assert_eq!((of_pipe.endpoint, &of_pipe.remote), (to.id(), &facts.remote));
    let (_, endpoint, facts, dialed) = at_pull.until("a peer", connected);
    assert!(!dialed && endpoint == at.id());
    assert!(!(facts.remote.is_empty() && facts.local.is_empty()), "the listener knows no address at all");
    if setup.has_ports {
        assert!(!facts.remote.is_empty(), "the listener knows no address of its peer");
    }
}

/// A peer that is dropped is a `Disconnected` at the other end, on either side, and no peer any more.
pub fn a_peer_that_goes_is_reported(setup: &Setup) {
    let pull = setup.on(Pull::builder()).build().expect("a socket");
    let mut watch = Watch::new(&pull);
    let at = setup.bind(&pull);
    let push = setup.on(Push::builder()).build().expect("a socket");
    setup.connect(&push, at.url());
    assert!(push.wait_for_peers(1, SOON));
    drop(push);
    let by_peer = |reason| matches!(reason, Reason::Peer | Reason::Broken(_));
    let reason = watch.disconnected();
    assert!(by_peer(reason.clone()), "the listener's peer went: {reason}");
    assert_eq!(pull.peers(), 0);
    let push = setup.on(Push::builder()).build().expect("a socket");
    let mut watch = Watch::new(&push);
    setup.connect(&push, at.url());
    assert!(pull.wait_for_peers(1, SOON) && push.wait_for_peers(1, SOON));
    drop(pull);
    let reason = watch.disconnected();
    assert!(by_peer(reason.clone()), "the dialer's peer went: {reason}");
}

/// Sockets that are no partners refuse each other, both say why, and a right one is still welcome.
pub fn a_peer_of_a_strange_protocol_is_refused_at_both_ends(setup: &Setup) {
    let rep = setup.on(Rep::builder()).build().expect("a socket");
    let mut at_rep = Watch::new(&rep);
    let at = setup.bind(&rep);
    let push = setup.on(Push::builder()).build().expect("a socket");
    let mut at_push = Watch::new(&push);
    let stranger = setup.connect(&push, at.url());
    let mismatch = |event: &Event| match event {
        Event::Rejected { reason: Reason::Mismatch(peer), .. } => Some(peer.clone()),
        _ => None,
    };
    at_rep.until("Rejected with Reason::Mismatch where it was bound", mismatch);
    at_push.until("Rejected with Reason::Mismatch where it was dialled", mismatch);
    assert_eq!((rep.peers(), push.peers()), (0, 0));
    stranger.close();
    let req = setup.on(Req::builder()).build().expect("a socket");
    setup.connect(&req, at.url());
    let server = std::thread::spawn(move || rep.recv_timeout(SOON).map(|request| request.reply("welcome")));
    assert_eq!(req.request_timeout("who is there?", SOON).expect("a reply"), "welcome");
    server.join().expect("the server").expect("a request").expect("a reply can be sent");
}

/// Connections that come and go leave neither pipe nor endpoint behind, and the next one works.
pub fn a_thousand_connections_leave_nothing_behind(setup: &Setup) {
    let pull = setup.on(Pull::builder()).build().expect("a socket");
    let mut at_pull = Watch::new(&pull);
    let at = setup.bind(&pull);
    let push = setup.on(Push::builder()).build().expect("a socket");
    let mut at_push = Watch::new(&push);
    for n in 0..setup.cycles {
        let to = setup.connect(&push, at.url());
        assert!(push.wait_for_peers(1, SOON), "connection {n}");
        to.close();
        at_push.disconnected();
        at_pull.until("the end of a connection", |event| {
            matches!(event, Event::Disconnected { .. } | Event::Rejected { .. }).then_some(())
        });
    }
    for (socket, stats) in [("who bound", pull.stats()), ("who dialled", push.stats())] {
        assert_eq!(stats.attached, stats.detached, "{socket}: {stats:?}");
        assert!(stats.pipes.is_empty(), "{socket}: {stats:?}");
        assert_eq!(stats.events_lost, 0, "{socket}");
    }
    setup.connect(&push, at.url());
    push.send_timeout("the next", SOON).expect("the peer is there");
    assert_eq!(pull.recv_timeout(SOON).expect("a message"), "the next");
}
