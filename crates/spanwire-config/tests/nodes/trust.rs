//! Whom a replica believes, and which server it leaves.

use spanwire_config::sign::{Keyring, Secret};

use super::*;

fn secret(n: u8) -> Secret {
    Secret::from_seed(u32::from(n), &[n; 32])
}

fn signing(n: u8) -> Settings {
    Settings { secret: Some(secret(n)), ..Settings::default() }
}

fn trusting(trust: Keyring) -> Script<Replica> {
    let settings = ReplicaSettings { node: Id([1; 16]), trust, ..ReplicaSettings::default() };
    Script::new(Replica::new(settings))
}

/// Changes the HEAD of a message on its way down.
fn forged(message: Message, change: impl Fn(&mut Head)) -> Message {
    let mut frame = frame(&message);
    match &mut frame {
        Frame::Slice(slice) => change(&mut slice.head),
        Frame::Beacon(heads) => heads.iter_mut().for_each(change),
        _ => {}
    }
    frame.encode().into()
}

#[test]
fn invariant_05_only_what_a_trusted_key_signed_becomes_visible() {
    let signed = || {
        let mut a = authority(signing(1));
        commit(&mut a, &puts([("a", "1")]));
        a
    };
    let mut both = secret(1).public();
    both.add(&secret(2).public());
    // The key, and the key beside one that replaces it.
    for trust in [secret(1).public(), both] {
        let (mut a, mut r) = (signed(), trusting(trust));
        let mut link = Link::new(&mut a, &mut r);
        link.flow(&mut a, &mut r);
        assert_eq!(accept(&mut r, Level::Applied).position().rev, 1);
    }
    // Another key, under its own number and under the number of the trusted one.
    for ring in [secret(2).public(), Secret::from_seed(1, &[9; 32]).public()] {
        let (mut a, mut r) = (signed(), trusting(ring));
        let mut link = Link::new(&mut a, &mut r);
        link.flow(&mut a, &mut r);
        assert!(r.recv().is_none() && r.protocol.visible().is_none());
        assert_eq!(data(&r), Data::Empty);
    }
    // Unsigned.
    let (mut a, mut r) = (authority(Settings::default()), trusting(secret(1).public()));
    commit(&mut a, &puts([("a", "1")]));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert!(r.recv().is_none());
    assert_eq!(r.protocol.status(r.now()).newest, None);
}

#[test]
fn invariant_05_a_forged_head_is_no_news_no_conflict_and_no_sign_of_life() {
    let changes: [fn(&mut Head); 7] = [
        |h| h.seq += 1 << 41,
        |h| h.position.rev += 1,
        |h| h.position.epoch.number += 1,
        |h| h.position.epoch.incarnation.0[0] ^= 1,
        |h| h.chain[0] ^= 1,
        |h| h.cluster.0[0] ^= 1,
        |h| {
            h.seq += 1 << 41;
            Secret::from_seed(1, &[9; 32]).sign(h);
        },
    ];
    for (n, change) in changes.iter().enumerate() {
        let (mut a, mut r) = (authority(signing(1)), trusting(secret(1).public()));
        commit(&mut a, &puts([("a", "1")]));
        let mut link = Link::new(&mut a, &mut r);
        link.flow(&mut a, &mut r);
        accept(&mut r, Level::Applied);
        link.flow(&mut a, &mut r);
        let before = (data(&r), r.protocol.status(r.now()).newest);
        a.advance(BEACON);
        r.advance(BEACON);
        link.flow_with(&mut a, &mut r, |message| Some(forged(message, change)));
        let status = r.protocol.status(r.now());
        assert_eq!((status.data, status.newest, status.fresh), (before.0, before.1, false), "change {n}");
        assert!(status.evidence.is_none() && r.recv().is_none(), "change {n}");
        assert!(r.is_open(link.below), "once is not enough to leave");
        // The honest one after it counts.
        a.advance(BEACON);
        link.flow(&mut a, &mut r);
        assert!(r.protocol.status(r.now()).fresh, "change {n}");
    }
}

#[test]
fn invariant_05_who_shows_three_forged_heads_in_a_row_is_left_and_comes_last() {
    let mut a = authority(signing(2));
    commit(&mut a, &puts([("a", "forged")]));
    let mut r = trusting(secret(1).public());
    let mut link = Link::new(&mut a, &mut r);
    for beacons in 0.. {
        link.flow(&mut a, &mut r);
        if !r.is_open(link.below) {
            break;
        }
        assert!(beacons < 3, "it listens to them for ever");
        a.advance(BEACON);
        r.advance(BEACON);
    }
    assert_eq!(r.counted("upstreams-left"), 1);
    // An honest one in between begins the count anew.
    let (mut b, mut r) = (authority(signing(1)), trusting(secret(1).public()));
    commit(&mut b, &puts([("a", "1")]));
    let mut link = Link::new(&mut b, &mut r);
    link.flow(&mut b, &mut r);
    accept(&mut r, Level::Applied);
    for turn in 0..12 {
        b.advance(BEACON);
        r.advance(BEACON);
        link.flow_with(&mut b, &mut r, |m| Some(if turn % 3 < 2 { forged(m, |h| h.seq += 9) } else { m }));
        assert!(r.is_open(link.below), "turn {turn}");
    }
}

#[test]
fn invariant_18_a_server_that_lives_and_shows_nothing_new_is_left_for_one_that_stands_by() {
    let fresh = ReplicaSettings::default().fresh;
    let (mut a, mut r, mut link) = pair();
    let second = Settings { server: Id([7; 16]), ..Settings::default() };
    let mut b = Authority::new(second, a.memory.reopen(usize::MAX));
    let mut other = Link::new(&mut b, &mut r);
    other.flow(&mut b, &mut r);
    let mut last = None;
    let mut left_at = None;
    for tick in 0..60 {
        a.advance(BEACON);
        b.advance(BEACON);
        r.advance(BEACON);
        other.flow(&mut b, &mut r);
        // From the fifth on, the server repeats one beacon: it is alive, and shows nothing new.
        link.flow_with(&mut a, &mut r, |message| match frame(&message) {
            Frame::Beacon(_) if tick >= 5 => last.clone(),
            Frame::Beacon(_) => {
                last = Some(message.clone());
                Some(message)
            }
            _ => Some(message),
        });
        if !r.is_open(link.below) {
            left_at = Some(tick);
            break;
        }
    }
    let left_at = left_at.expect("it stays with a frozen server for ever");
    assert!(left_at >= 5 + fresh.as_secs() as usize - 1, "too early: {left_at}");
    assert_eq!(r.protocol.status(r.now()).upstream, Some(Id([7; 16])));
}

#[test]
fn invariant_18_the_only_server_is_not_left_though_it_shows_nothing_new() {
    let (mut a, mut r, mut link) = pair();
    for _ in 0..60 {
        a.advance(BEACON);
        r.advance(BEACON);
        link.flow_with(&mut a, &mut r, |message| match frame(&message) {
            Frame::Beacon(_) => Some(Frame::Beacon(Vec::new()).encode().into()),
            _ => Some(message),
        });
    }
    assert!(r.is_open(link.below));
    assert_eq!((data(&r), r.protocol.status(r.now()).fresh), (Data::Live, false));
}

#[test]
fn invariant_18_a_server_that_is_slow_to_beacon_is_not_left_for_that() {
    let slow = Duration::from_secs(9);
    let mut a = authority(Settings { beacon: slow, ..Settings::default() });
    commit(&mut a, &puts([("a", "1")]));
    let settings = ReplicaSettings { fresh: slow / 2, ..ReplicaSettings::default() };
    let mut r = Script::new(Replica::new(settings));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    accept(&mut r, Level::Applied);
    let second = Settings { server: Id([7; 16]), beacon: slow, ..Settings::default() };
    let mut b = Authority::new(second, a.memory.reopen(usize::MAX));
    let mut other = Link::new(&mut b, &mut r);
    other.flow(&mut b, &mut r);
    for _ in 0..30 {
        for _ in 0..3 {
            a.advance(slow / 3);
            b.advance(slow / 3);
            r.advance(slow / 3);
            link.flow(&mut a, &mut r);
            other.flow(&mut b, &mut r);
        }
        assert!(r.is_open(link.below) && r.is_open(other.below));
    }
    assert_eq!(r.counted("upstreams-left"), 0);
}
