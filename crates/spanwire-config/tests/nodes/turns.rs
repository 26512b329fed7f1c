//! Many namespaces on few pipes, by seed: commits, wants, refusals, slow readers and broken pipes in any order. Whatever
//! happens, the window holds for each pipe, each transfer comes whole, and in the end everybody has everything.

use std::collections::{BTreeMap, BTreeSet};

use spanwire_config::State;
use spanwire_config::wire::{Nack, SLICE, decode_changes, decode_state};

use super::namespaces::{Server, ack, hello};
use super::*;

const NAMES: [&str; 3] = ["a", "b", "c"];
const WINDOW: u64 = 64 << 10;
const PEERS: u8 = 4;

struct Dice(u64);

impl Dice {
    /// Below `n`.
    fn roll(&mut self, n: u64) -> u64 {
        // xorshift64* (Vigna 2016).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.roll(NAMES.len() as u64) as usize]
    }
}

/// What a node has of one namespace.
#[derive(Default)]
struct Held {
    head: Option<Head>,
    state: State,
    coming: Option<Slice>,
    bytes: Vec<u8>,
    refused: BTreeSet<u64>,
    /// It asked anew, or the pipe is: a transfer that was under way is not continued.
    awaiting: bool,
}

impl Held {
    fn want(&mut self, name: &str, retry: bool) -> Want {
        self.awaiting = true;
        if retry {
            self.refused.clear();
        }
        let refused = self.refused.iter().map(|rev| {
            let epoch = self.head.as_ref().map_or(epoch(0), |head| head.position.epoch);
            (Position { epoch, rev: *rev }, NackCode::Validator)
        });
        Want {
            namespace: name.into(),
            have: self.head.clone().into_iter().collect(),
            refused: refused.collect(),
        }
    }

    /// A slice; the whole transfer, if it was the last.
    fn take(&mut self, slice: &Slice) -> Option<(Slice, Vec<u8>)> {
        if slice.offset == 0 {
            (self.coming, self.awaiting) = (Some(slice.clone()), false);
            self.bytes.clear();
        }
        let Some(coming) = &self.coming else {
            assert!(self.awaiting, "the middle of a transfer that did not begin");
            return None;
        };
        assert_eq!((slice.offset, &slice.head), (self.bytes.len() as u64, &coming.head));
        self.bytes.extend_from_slice(&slice.bytes);
        let whole = slice.last.then(|| (self.coming.take(), std::mem::take(&mut self.bytes)))?;
        self.awaiting = true;
        Some((whole.0?, whole.1))
    }
}

/// A node, spoken by hand.
struct Peer {
    node: u8,
    attempt: u32,
    pipe: PipeId,
    held: BTreeMap<&'static str, Held>,
    /// Payload that came over this pipe, and what of it was credited.
    came: u64,
    credited: u64,
}

impl Peer {
    fn new(server: &mut Server, node: u8) -> Peer {
        let pipe = server.sender.open(64);
        let mut peer = Peer { node, attempt: 0, pipe, held: BTreeMap::new(), came: 0, credited: 0 };
        peer.greet(server);
        peer
    }

    fn greet(&mut self, server: &mut Server) {
        self.attempt += 1;
        let mut hello = hello(self.node, []);
        (hello.attempt, hello.window) = (self.attempt, WINDOW as u32);
        hello.wants = self.held.iter_mut().map(|(name, held)| held.want(name, false)).collect();
        server.hear(self.pipe, Frame::Hello(hello));
    }

    fn again(&mut self, server: &mut Server) {
        (self.pipe, self.came, self.credited) = (server.sender.open(64), 0, 0);
        self.held.values_mut().for_each(|held| held.coming = None);
        self.greet(server);
    }

    fn want(&mut self, server: &mut Server, name: &'static str, reason: WantReason) {
        let want = self.held.entry(name).or_default().want(name, reason == WantReason::Retry);
        let has = want.have.first().map(Head::claim);
        server.hear(self.pipe, Frame::Want(reason, vec![want]));
        // What it reported while another transfer was under way was not believed.
        has.into_iter().for_each(|has| server.hear(self.pipe, ack(name, has)));
    }

    fn credit(&mut self, server: &mut Server) {
        self.credited = self.came;
        server.hear(self.pipe, Frame::Credit(self.came));
    }

    /// Reads as many messages; refuses one transfer of `refuse`.
    fn read(&mut self, server: &mut Server, most: usize, dice: &mut Dice, refuse: u64) {
        let down: Vec<Frame> = server.sender.drain(self.pipe, most).iter().map(frame).collect();
        for frame in down {
            let Frame::Slice(slice) = frame else { continue };
            self.came += slice.bytes.len() as u64;
            assert!(self.came - self.credited <= WINDOW + SLICE as u64, "over the window of the pipe");
            let name = NAMES.into_iter().find(|name| *name == slice.head.namespace).expect("served");
            let held = self.held.get_mut(name).expect("it was wanted");
            let Some((first, bytes)) = held.take(&slice) else { continue };
            let (head, bytes) = (first.head, Bytes::from(bytes));
            let has = held.head.as_ref().map(Head::base);
            let state = match first.base {
                None => decode_state(&bytes).expect("a state"),
                Some(base) if Some(base) == has => {
                    let mut state = held.state.clone();
                    state.apply(&decode_changes(&bytes).expect("changes"));
                    state
                }
                // On top of what was refused.
                Some(base) if held.refused.contains(&base.position.rev) => continue,
                Some(_) => {
                    self.want(server, name, WantReason::Other);
                    continue;
                }
            };
            assert_eq!(state.digest(), head.digest, "{name}");
            if let Some(has) = has.filter(|has| has.position >= head.position) {
                // The sender forgot that it had sent it, for a word that was under way.
                match has.position == head.position {
                    true => server.hear(self.pipe, ack(name, has.claim())),
                    false => self.want(server, name, WantReason::Other),
                }
                continue;
            }
            if refuse > 0 && dice.roll(refuse) == 0 {
                held.refused.insert(head.position.rev);
                let nack = Nack {
                    namespace: name.into(),
                    position: head.position,
                    mark: head.claim().mark,
                    stays_at: has.map(|has| has.position).unwrap_or_default(),
                    code: NackCode::Validator,
                    text: String::new(),
                };
                server.hear(self.pipe, Frame::Nack(nack));
                continue;
            }
            let claim = head.claim();
            (held.head, held.state) = (Some(head), state);
            server.hear(self.pipe, ack(name, claim));
        }
    }

    fn has_all(&self, server: &Server) -> bool {
        self.held.iter().all(|(name, held)| {
            let newest = server.memories[*name].machine.durable();
            newest.is_none_or(|newest| {
                let position = held.head.as_ref().map(|head| head.position);
                position == Some(newest.head.position) && held.state == newest.state
            })
        })
    }
}

fn step(server: &mut Server, peers: &mut [Peer], dice: &mut Dice) {
    let peer = &mut peers[dice.roll(PEERS.into()) as usize];
    let name = dice.name();
    match dice.roll(16) {
        0..=3 => {
            // Most are small, and some above the window.
            let size = [10, 1_000, 30_000, 200_000][dice.roll(4) as usize];
            let value = vec![dice.roll(256) as u8; size];
            let mut changes = ChangeSet::new();
            changes.put(key(&format!("k{}", dice.roll(6))), 0, value);
            server.commit(name, &changes);
        }
        4 | 5 => peer.want(server, name, WantReason::New),
        6 => {
            let reason = [WantReason::Digest, WantReason::Retry, WantReason::Other][dice.roll(3) as usize];
            if peer.held.contains_key(name) {
                peer.want(server, name, reason);
            }
        }
        7 => {
            server.sender.lose(peer.pipe);
            peer.again(server);
        }
        8 => server.beacon_time(),
        9 | 10 => peer.credit(server),
        _ => {
            let most = 1 + dice.roll(8) as usize;
            peer.read(server, most, dice, 12);
        }
    }
    for peer in peers {
        if !server.sender.is_open(peer.pipe) {
            peer.again(server);
        }
    }
}

#[test]
fn invariants_19_and_23_whatever_shares_a_pipe_everybody_ends_with_everything() {
    for seed in 1..=150 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let settings = Settings { slots: 2, window: WINDOW as u32, ..Settings::default() };
        let mut server = Server::new(settings, NAMES);
        let mut peers: Vec<Peer> = (1..=PEERS).map(|node| Peer::new(&mut server, node)).collect();
        for _ in 0..120 {
            step(&mut server, &mut peers, &mut dice);
        }
        // Nothing is refused any more, and everybody reads on.
        for peer in &mut peers {
            for name in peer.held.keys().copied().collect::<Vec<_>>() {
                peer.want(&mut server, name, WantReason::Retry);
            }
        }
        let (mut rounds, mut came) = (0, true);
        while came || !peers.iter().all(|peer| peer.has_all(&server)) {
            rounds += 1;
            assert!(rounds < 500, "seed {seed}: somebody waits for ever");
            came = false;
            for peer in &mut peers {
                peer.read(&mut server, usize::MAX, &mut dice, 0);
                came |= peer.came > peer.credited;
                peer.credit(&mut server);
            }
            server.beacon_time();
        }
        for name in NAMES {
            let newest = server.memories[name].machine.position();
            let holds = |peer: &Peer| peer.held.get(name).is_some_and(|held| held.head.is_some());
            for peer in peers.iter().filter(|peer| holds(peer)) {
                let of_node = |node: &spanwire_config::NodeStatus| node.node == Id([peer.node; 16]);
                let status = server.status(name).into_iter().find(of_node).expect("known");
                assert_eq!((status.applied, status.connected), (newest, true), "seed {seed}, {name}");
            }
        }
    }
}
