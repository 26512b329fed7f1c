//! Invariant 20 in bytes of the heap, which the simulated world does not have. Alone in its process: the allocator counts
//! all that is live.

#[path = "../../spanwire/tests/promises/memory.rs"]
mod memory;

use bytes::Bytes;
use spanwire::protocol::PipeId;
use spanwire::protocol::script::Script;
use spanwire_config::wire::{Frame, NamespaceStatus, SLICE, Slice, Welcome, encode_state};
use spanwire_config::{
    Entry, Epoch, Head, Id, Key, Level, Limits, Position, Replica, ReplicaSettings, State, chain,
};

const WINDOW: usize = 256 << 10;
/// For pipes, queues, and what else has nothing to do with content.
const SMALL: usize = 64 << 10;

/// 4 MiB of content that no other revision has.
fn state(fill: u8) -> State {
    let value = |n: u8| Entry::new(0, vec![fill ^ n; 64 << 10]);
    (0..64).map(|n| (Key::new(format!("key/{n:02}")).expect("short"), value(n))).collect()
}

fn head(rev: u64, state: &State) -> Head {
    let epoch = Epoch { number: 1, incarnation: Id([1; 16]) };
    let (digest, keys, bytes) = (state.digest(), state.keys(), state.bytes());
    Head {
        namespace: "config".into(),
        position: Position { epoch, rev },
        digest,
        keys,
        bytes,
        chain: chain(&[0; 32], rev, &digest),
        seq: rev,
        ..Head::default()
    }
}

/// The slices of a snapshot; each is made when it is asked for.
fn snapshot(head: &Head, state: &State) -> impl Iterator<Item = Vec<u8>> {
    let (head, all) = (head.clone(), encode_state(state));
    (0..all.len()).step_by(SLICE).map(move |at| {
        let end = all.len().min(at + SLICE);
        let bytes = Bytes::copy_from_slice(&all[at..end]);
        let (offset, last) = (at as u64, end == all.len());
        Frame::Slice(Box::new(Slice { head: head.clone(), base: None, offset, last, bytes })).encode()
    })
}

/// A slice arrives, and what is answered leaves.
fn take(r: &mut Script<Replica>, pipe: PipeId, slice: Vec<u8>) {
    assert_eq!(r.arrive(pipe, [slice]), 1);
    drop(r.drain(pipe, usize::MAX));
}

/// A replica that holds nothing, and its server has greeted it.
fn welcomed(limits: Limits) -> (Script<Replica>, PipeId) {
    let settings = ReplicaSettings { node: Id([7; 16]), limits, ..ReplicaSettings::default() };
    let mut r = Script::new(Replica::new(settings));
    let pipe = r.open(64);
    let welcome = Welcome {
        server: Id([9; 16]),
        path: Vec::new(),
        beacon_ms: 1_000,
        window: WINDOW as u32,
        namespaces: vec![("config".into(), NamespaceStatus::Known)],
    };
    take(&mut r, pipe, Frame::Welcome(welcome).encode());
    (r, pipe)
}

#[test]
fn invariant_20_a_receiver_has_memory_for_what_came_and_never_for_what_was_announced() {
    let (first, second) = (state(1), state(100));
    let size = first.bytes() as usize;
    let (one, two) = (head(1, &first), head(2, &second));
    let all: Vec<Vec<u8>> = snapshot(&one, &first).collect();
    let next: Vec<Vec<u8>> = snapshot(&two, &second).collect();
    drop((first, second));
    let allocations = memory::count();
    let before = memory::watch();

    let (mut r, pipe) = welcomed(Limits { bytes: 1 << 40, ..Limits::default() });

    // A HEAD may announce what it likes: this one half a terabyte, within the limits.
    let huge = Head { bytes: 1 << 39, ..head(9, &State::new()) };
    let slice = Slice { head: huge, base: None, offset: 0, last: false, bytes: vec![0; 4_096].into() };
    take(&mut r, pipe, Frame::Slice(Box::new(slice)).encode());
    assert!(memory::peak() - before < SMALL, "{} bytes for 4 KiB", memory::peak() - before);
    assert!(r.protocol.memory().transfer.is_some_and(|transfer| transfer.bytes == 4_096));
    drop(r);

    let (mut r, pipe) = welcomed(Limits::default());
    all.iter().for_each(|slice| take(&mut r, pipe, slice.clone()));
    let at = r.recv().expect("verified").position();
    r.call(|r, cx| r.ack(cx, at, Level::Applied, false)).expect("given");
    drop(r.drain(pipe, usize::MAX));
    let visible = memory::live() - before;
    assert!((size..size + SMALL).contains(&visible), "{visible} bytes for {size} that are visible");

    // While the next is on its way: what is visible, twice what has come, and a window.
    let mut came = 0;
    for slice in &next[..next.len() - 1] {
        take(&mut r, pipe, slice.clone());
        came += SLICE;
        let live = memory::live() - before;
        assert!(live <= visible + 2 * came + WINDOW, "{live} bytes when {came} had come");
    }
    memory::watch();
    take(&mut r, pipe, next[next.len() - 1].clone());
    // For the moment in which it is verified it is there twice: as it came, and as a state.
    assert!(memory::peak() - before <= visible + 3 * size + WINDOW);
    assert!(memory::live() - before <= visible + size + WINDOW);
    let at = r.recv().expect("verified").position();
    r.call(|r, cx| r.ack(cx, at, Level::Applied, false)).expect("given");
    drop(r.drain(pipe, usize::MAX));
    assert!(memory::live() - before <= size + SMALL, "what was visible before is given up");

    drop(r);
    assert_eq!((memory::count(), memory::live()), (allocations, before), "nothing stays");
}
