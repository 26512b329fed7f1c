//! SP over a byte stream, as nanomsg, nng and mangos speak it.
//!
//! Handshake `00 53 50 00 TT TT 00 00` (TT TT: the SP id), said by both at once; then frames: on tcp a length of
//! 64 bits big-endian and that many bytes, on ipc the byte `01` before it. (SP TCP mapping draft; nanomsg
//! `stcp.c`, `sipc.c`.) Reserved bytes must be 0, as the draft, nng and mangos have it.
//!
//! Owns: the decoder's place in the stream. Never: sends an ipc type other than 1 (nanomsg aborts its
//! process on one), and never trusts a length before the limit was compared.

use super::{Decoder, Encoding, Hello, Inbox, Input, PeerHello, Wire, WireError};

/// The SP wire. `Sp::TCP` for tcp and everything like it; `Sp::IPC` for ipc.
#[derive(Clone, Copy, Debug)]
pub struct Sp {
    ipc: bool,
}

impl Sp {
    /// Frames of length and content: tcp, tls, a socket pair, a child's standard streams.
    pub const TCP: Sp = Sp { ipc: false };
    /// The same behind a type byte `01`: ipc.
    pub const IPC: Sp = Sp { ipc: true };
}

impl Wire for Sp {
    fn name(&self) -> &'static str {
        "sp"
    }

    fn start(self: Box<Self>, me: &Hello, out: &mut Vec<u8>) -> (Box<dyn Decoder>, Encoding) {
        let [high, low] = me.info.id.to_be_bytes();
        out.extend_from_slice(&[0, b'S', b'P', 0, high, low, 0, 0]);
        let prefix: &'static [u8] = if self.ipc { b"\x01" } else { b"" };
        let decoder = SpDecoder { head: 8 + prefix.len(), max: me.recv_max, greeted: false };
        (Box::new(decoder), Encoding::LengthPrefixed(prefix))
    }
}

#[derive(Debug)]
struct SpDecoder {
    /// Bytes in front of a frame's content: 8 on tcp, 9 on ipc.
    head: usize,
    max: usize,
    greeted: bool,
}

impl Decoder for SpDecoder {
    fn input(&mut self, input: &mut Input<'_>, inbox: &mut Inbox) -> Result<(), WireError> {
        if !self.greeted {
            let got = input.bytes();
            // Refuse at the first wrong byte: a peer of another kind may never send eight.
            let expect = [0, b'S', b'P', 0];
            if got.iter().zip(expect).any(|(g, e)| *g != e) {
                return Err(WireError::BadHandshake);
            }
            let Some(hello) = got.get(..8) else { return Ok(()) };
            if hello[6..] != [0, 0] {
                return Err(WireError::BadHandshake);
            }
            inbox.peer = Some(PeerHello::sp(u16::from_be_bytes([hello[4], hello[5]])));
            self.greeted = true;
            input.advance(8);
        }
        while inbox.wants_more() {
            let Some(head) = input.bytes().get(..self.head) else { break };
            let (kind, length) = head.split_at(self.head - 8);
            if kind.first().is_some_and(|k| *k != 1) {
                return Err(WireError::BadFrame("ipc type byte is not 1"));
            }
            let size = length.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
            if size > self.max as u64 {
                return Err(WireError::TooBig { size, limit: self.max });
            }
            let size = size as usize;
            if input.len() - self.head < size {
                input.need(self.head.saturating_add(size));
                break;
            }
            input.advance(self.head);
            if !inbox.take(input, size) {
                break;
            }
        }
        Ok(())
    }
}
