//! Any bytes on an SP stream, cut anywhere: no panic, nothing over the limit, and the cut changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spanwire::Message;
use spanwire::protocol::ProtocolInfo;
use spanwire::wire::{Hello, Inbox, Input, PeerHello, Side, Sp, Wire, WireError};

const MAX: usize = 1000;

type Seen = (Option<PeerHello>, Vec<Message>, Option<WireError>);

fn decode(ipc: bool, bytes: &[u8], cut: usize) -> Seen {
    let info = ProtocolInfo::new(0x51, "pull", 0x50, "push");
    let wire = Box::new(if ipc { Sp::IPC } else { Sp::TCP });
    let (mut decoder, _) = wire.start(&Hello::new(info, Side::Listener, MAX, ""), &mut Vec::new());
    let mut inbox = Inbox::with_budget(1 << 20);
    let mut buffer = Vec::new();
    for piece in bytes.chunks(cut) {
        buffer.extend_from_slice(piece);
        let mut input = Input::new(&buffer);
        let result = decoder.input(&mut input, &mut inbox);
        let left = input.len();
        buffer.drain(..buffer.len() - left);
        if let Err(e) = result {
            return (inbox.peer.take(), inbox.messages().drain(..).collect(), Some(e));
        }
        assert!(buffer.len() <= MAX + 9, "a whole frame was left");
    }
    (inbox.peer.take(), inbox.messages().drain(..).collect(), None)
}

fuzz_target!(|data: (bool, u8, &[u8])| {
    let (ipc, cut, bytes) = data;
    // Half of the runs begin with a good handshake, to come further.
    let mut stream = Vec::new();
    if cut & 1 == 0 {
        stream.extend_from_slice(b"\0SP\0\0\x50\0\0");
    }
    stream.extend_from_slice(bytes);
    let small = decode(ipc, &stream, usize::from(cut) + 1);
    assert!(small.1.iter().all(|m| m.len() <= MAX));
    assert_eq!(small, decode(ipc, &stream, 1));
});
