//! Sender and receiver, joined by hand (and in `sockets`, by real sockets): what each of them says, keeps and bounds.

mod adopt;
mod history;
mod library;
mod memory;
mod namespaces;
mod relays;
mod reports;
mod rollouts;
mod several;
mod sockets;
mod transfers;
mod trust;
mod turns;

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use bytes::Bytes;
use memory::Memory;
use spanwire::Message;
use spanwire::protocol::PipeId;
use spanwire::protocol::script::Script;
use spanwire_config::wire::{
    Ack, Frame, GoodbyeCode, Nack, NackCode, NamespaceStatus, Slice, Want, WantReason,
};
use spanwire_config::{
    AuthorityAction, ChangeSet, Claim, Data, Distributor, Epoch, Head, Id, Key, Level, Limits, NsSettings,
    Position, Replica, ReplicaSettings, Settings, Update,
};

const BEACON: Duration = Duration::from_secs(1);

fn key(k: &str) -> Key {
    Key::new(k).expect("1 to 1,024 bytes")
}

fn puts<const N: usize>(pairs: [(&str, &str); N]) -> ChangeSet {
    let mut set = ChangeSet::new();
    pairs.iter().for_each(|(k, v)| set.put(key(k), 0, v.to_string()));
    set
}

fn epoch(number: u64) -> Epoch {
    Epoch { number, incarnation: Id([number as u8; 16]) }
}

/// A machine with its store, and the sender that it speaks through.
struct Authority {
    memory: Memory,
    sender: Script<Distributor>,
}

impl Deref for Authority {
    type Target = Script<Distributor>;
    fn deref(&self) -> &Script<Distributor> {
        &self.sender
    }
}

impl DerefMut for Authority {
    fn deref_mut(&mut self) -> &mut Script<Distributor> {
        &mut self.sender
    }
}

impl Authority {
    fn new(settings: Settings, memory: Memory) -> Authority {
        let sender = Script::new(Distributor::new(settings, memory.machine.origin()));
        Authority { memory, sender }
    }

    fn bring(&mut self, actions: Vec<AuthorityAction>) {
        for action in actions {
            self.sender.call(|d, cx| d.perform(cx, action)).expect("in order");
        }
    }

    /// The machine looks at what nodes show.
    fn look(&mut self) {
        while self.sender.protocol.has_shown() {
            for event in self.sender.call(|d, _| d.take_shown()) {
                let left = self.memory.tell(event);
                self.bring(left);
            }
        }
    }

    /// Messages of a node arrive, and what it shows is judged.
    fn arrive<M: Into<Message>>(&mut self, pipe: PipeId, messages: impl IntoIterator<Item = M>) {
        self.sender.arrive(pipe, messages);
        self.look();
    }

    fn new_epoch(&mut self, number: u64) -> Position {
        let (position, left) = self.memory.new_epoch(number);
        self.bring(left);
        // What contradicted the old history is looked at again.
        self.look();
        position
    }
}

fn authority(settings: Settings) -> Authority {
    authority_of(settings, NsSettings::default(), epoch(1).incarnation)
}

fn authority_of(settings: Settings, machine: NsSettings, incarnation: Id) -> Authority {
    Authority::new(settings, Memory::new(machine, incarnation))
}

#[track_caller]
fn commit(a: &mut Authority, changes: &ChangeSet) -> Position {
    let (position, left) = a.memory.commit(changes);
    a.bring(left);
    position
}

fn replica(n: u8) -> Script<Replica> {
    let settings = ReplicaSettings { node: Id([n; 16]), name: format!("n{n}"), ..ReplicaSettings::default() };
    Script::new(Replica::new(settings))
}

/// One link between a sender and a receiver, with the messages that went over it.
struct Link {
    above: PipeId,
    below: PipeId,
    down: Vec<Frame>,
    up: Vec<Frame>,
}

fn frame(message: &Message) -> Frame {
    Frame::decode(&message.clone().into_bytes()).expect("what a protocol says can be read")
}

impl Link {
    fn new(a: &mut Authority, r: &mut Script<Replica>) -> Link {
        Link { above: a.open(64), below: r.open(64), down: Vec::new(), up: Vec::new() }
    }

    /// Moves what is there, through `change` on the way down, until nothing moves.
    fn flow_with(
        &mut self,
        a: &mut Authority,
        r: &mut Script<Replica>,
        mut change: impl FnMut(Message) -> Option<Message>,
    ) {
        loop {
            let (down, up) = (a.drain(self.above, usize::MAX), r.drain(self.below, usize::MAX));
            if down.is_empty() && up.is_empty() {
                return;
            }
            self.down.extend(down.iter().map(frame));
            self.up.extend(up.iter().map(frame));
            r.arrive(self.below, down.into_iter().filter_map(&mut change));
            a.arrive(self.above, up);
        }
    }

    fn flow(&mut self, a: &mut Authority, r: &mut Script<Replica>) {
        self.flow_with(a, r, Some);
    }

    fn slices(&self) -> Vec<&Slice> {
        self.down.iter().filter_map(|f| if let Frame::Slice(s) = f { Some(&**s) } else { None }).collect()
    }

    fn payload(&self) -> u64 {
        self.slices().iter().map(|s| s.bytes.len() as u64).sum()
    }
}

fn accept(r: &mut Script<Replica>, level: Level) -> Update {
    let update = r.recv().expect("an update is ready");
    r.call(|p, cx| p.ack(cx, update.position(), level, false)).expect("it was given");
    update
}

fn data(r: &Script<Replica>) -> Data {
    r.protocol.status(r.now()).data
}

/// Both ends, with one commit applied on the node.
fn pair() -> (Authority, Script<Replica>, Link) {
    let (mut a, mut r) = (authority(Settings::default()), replica(1));
    commit(&mut a, &puts([("a", "1"), ("b", "2"), ("z", &"z".repeat(400))]));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    accept(&mut r, Level::Applied);
    link.flow(&mut a, &mut r);
    (a, r, link)
}
