//! The two protocols in real sockets.

use std::time::Duration;

use spanwire::{Builder, Event, Socket};
use spanwire_config::{
    ChangeSet, Distributor, Id, Key, Level, NodeKind, NsSettings, Position, Replica, ReplicaSettings,
    Settings,
};

use crate::memory::Memory;

const LIMIT: Option<Duration> = Some(Duration::from_secs(20));

fn authority() -> (Memory, Socket<Distributor>) {
    let settings = Settings { beacon: Duration::from_millis(100), ..Settings::default() };
    let memory = Memory::new(NsSettings::default(), Id([1; 16]));
    let socket = Socket::new(Distributor::new(settings, memory.machine.origin())).expect("a socket");
    (memory, socket)
}

fn commit(memory: &mut Memory, socket: &Socket<Distributor>, changes: &ChangeSet) -> Position {
    let (position, left) = memory.commit(changes);
    for action in left {
        socket.with(|d, cx| d.perform(cx, action)).expect("in order");
    }
    position
}

/// A replica whose application applies whatever comes, in a thread that ends with the socket.
fn replica(n: u8, url: &str) -> Socket<Replica> {
    let settings = ReplicaSettings { node: Id([n; 16]), ..ReplicaSettings::default() };
    let socket = Socket::new(Replica::new(settings)).expect("a socket");
    socket.connect(url).expect("an address");
    let user = socket.clone();
    std::thread::spawn(move || {
        for update in user.iter() {
            assert_eq!(update.state.recompute(), update.head.digest);
            let _ = user.with(|r, cx| r.ack(cx, update.position(), Level::Applied, true));
        }
    });
    socket
}

fn changes(keys: std::ops::Range<u32>, fill: u8, size: usize) -> ChangeSet {
    let mut set = ChangeSet::new();
    keys.for_each(|n| set.put(Key::new(format!("key/{n:05}")).expect("short"), 0, vec![fill; size]));
    set
}

fn everybody_applies_every_commit(url: &str) {
    let (mut memory, authority) = authority();
    let at = authority.bind(url).expect("an address");
    let replicas: Vec<_> = (1..=3).map(|n| replica(n, at.url())).collect();
    // 5 MiB: twenty windows for each of three, and then small steps.
    let mut commits = vec![changes(0..80, 1, 64 << 10)];
    commits.extend((0..20).map(|n| changes(n..n + 2, 2, 100)));
    for commit in commits {
        let position = self::commit(&mut memory, &authority, &commit);
        let key = authority.with(|d, _| d.wait_key());
        authority
            .wait(key, LIMIT, |d, _| (d.reached(position, Level::Applied) == 3).then_some(()))
            .unwrap_or_else(|e| panic!("{e}: {:?}", authority.with(|d, _| d.status())));
    }
    let newest = authority.with(|d, _| d.state().cloned()).expect("committed");
    for replica in &replicas {
        assert!(replica.with(|r, _| r.visible().is_some_and(|(_, state)| *state == newest)));
    }
    for replica in replicas {
        replica.close(Duration::from_secs(5)).expect("closed");
    }
    let left = authority.wait(authority.with(|d, _| d.wait_key()), LIMIT, |d, _| {
        d.status().iter().all(|node| !node.connected).then_some(())
    });
    left.expect("all said goodbye");
}

#[test]
fn everybody_applies_every_commit_over_tcp() {
    everybody_applies_every_commit("tcp://127.0.0.1:0");
}

#[test]
fn everybody_applies_every_commit_over_inproc() {
    everybody_applies_every_commit("inproc://config");
}

#[test]
fn a_replica_may_be_there_before_its_authority() {
    let early = replica(1, "inproc://late");
    let (mut memory, authority) = authority();
    authority.bind("inproc://late").expect("an address");
    let position = commit(&mut memory, &authority, &changes(0..3, 1, 10));
    let key = authority.with(|d, _| d.wait_key());
    let reached = |d: &mut Distributor| (d.reached(position, Level::Applied) == 1).then_some(());
    authority.wait(key, LIMIT, |d, _| reached(d)).expect("applied");
    early.close(Duration::from_secs(5)).expect("closed");
}

#[test]
fn promise_14_who_is_refused_dials_more_and_more_rarely() {
    let (min, max) = (Duration::from_millis(4), Duration::from_millis(60));
    let server = Id([9; 16]);
    let settings = Settings { server, nodes: 1, ..Settings::default() };
    let stranger = ReplicaSettings { cluster: Id([7; 16]), ..ReplicaSettings::default() };
    // WELCOME shows it itself.
    let round = ReplicaSettings { node: server, kind: NodeKind::Relay, ..ReplicaSettings::default() };
    let one_more = ReplicaSettings { node: Id([8; 16]), ..ReplicaSettings::default() };
    for (what, node, others) in [("cluster", stranger, 0), ("loop", round, 0), ("limits", one_more, 1)] {
        let memory = Memory::new(NsSettings::default(), Id([1; 16]));
        let authority =
            Socket::new(Distributor::new(settings.clone(), memory.machine.origin())).expect("a socket");
        let at = authority.bind("tcp://127.0.0.1:0").expect("an address");
        let others: Vec<_> = (0..others).map(|n| self::replica(n, at.url())).collect();
        let key = authority.with(|d, _| d.wait_key());
        let there = |d: &mut Distributor| (d.status().len() == others.len()).then_some(());
        authority.wait(key, LIMIT, |d, _| there(d)).expect("they are there");
        let replica = Builder::new(Replica::new(node), |socket| socket).reconnect(min, max).build();
        let replica = replica.expect("a socket");
        let events = replica.events();
        replica.connect(at.url()).expect("an address");
        for attempt in 0..7 {
            let delay =
                std::iter::from_fn(|| events.recv_timeout(Duration::from_secs(20)).ok()).find_map(|event| {
                    if let Event::ConnectRetry { delay, .. } = event { Some(delay) } else { None }
                });
            let ceiling = (min * (1 << attempt)).min(max);
            let delay = delay.unwrap_or_else(|| panic!("{what}: it is refused"));
            assert!((ceiling / 2..=ceiling).contains(&delay), "{what}: attempt {attempt} waits {delay:?}");
        }
    }
}
