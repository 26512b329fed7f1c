//! Any bytes as a config-broadcast message (of nodes or of clients), export or payload: no panic, and what decodes encodes to the same meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spanwire_config::client::Export;
use spanwire_config::wire::client::{Ask, Reply};
use spanwire_config::wire::{Frame, decode_changes, decode_state, encode_changes, encode_state};

fuzz_target!(|data: &[u8]| {
    let bytes = data.to_vec().into();
    if let Ok(frame) = Frame::decode(&bytes) {
        let again = Frame::decode(&frame.encode().into());
        assert_eq!(again.as_ref(), Ok(&frame));
    }
    if let Ok(ask) = Ask::decode(&bytes) {
        assert_eq!(Ask::decode(&ask.encode().into()).as_ref(), Ok(&ask));
    }
    if let Ok(reply) = Reply::decode(&bytes) {
        assert_eq!(Reply::decode(&reply.encode().into()).as_ref(), Ok(&reply));
    }
    if let Ok(export) = Export::decode(&bytes) {
        assert_eq!(export.encode(), data, "one export has one encoding");
    }
    if let Ok(changes) = decode_changes(&bytes) {
        assert_eq!(decode_changes(&encode_changes(&changes).into()).as_ref(), Ok(&changes));
    }
    if let Ok(state) = decode_state(&bytes) {
        assert_eq!(encode_state(&state), data, "one state has one encoding");
    }
});
