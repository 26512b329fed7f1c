//! A connection on its way: from the moment that it exists, or is begun, until it may become a pipe.
//!
//! Owns: the stages of that way. Never: blocks, trusts what it hears, or lets a panic of a transport or a wire
//! out.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;

use super::contain::contain;
use super::core::Core;
use super::rx::{Filled, Rx, StreamRx, broken};
use super::tx::Writer;
use crate::protocol::{Reason, Time};
use crate::queue::Frames;
use crate::transport::{Facts, MessagePipe, Stream, StreamWriter};
use crate::wire::{Encoding, Hello, Inbox, PeerHello, Side, Wire};

/// A connection on its way.
pub(crate) struct Opening {
    pub(crate) endpoint: u32,
    pub(crate) side: Side,
    pub(crate) url: Arc<str>,
    pub(crate) deadline: Time,
    /// The connection exists (as against a connect that is under way).
    pub(crate) established: bool,
    /// The peer's address, once it is known.
    pub(crate) remote: String,
    pub(crate) stage: Stage,
    /// The peer has ended its direction already.
    pub(crate) ending: bool,
}

impl Opening {
    /// The peer has ended its direction: no other event will say so.
    pub(crate) fn end_is_near(&mut self) {
        self.ending = true;
        match &mut self.stage {
            Stage::Greeting(greeting) => greeting.rx.end_is_near(),
            Stage::Ready(attach) => attach.rx.end_is_near(),
            Stage::Stream(..) | Stage::Pipe(_) | Stage::Gone => {}
        }
    }
}

/// How far it is.
pub(crate) enum Stage {
    Stream(Box<dyn Stream>, Box<dyn Wire>),
    Greeting(Box<Greeting>),
    Pipe(Box<dyn MessagePipe>),
    Ready(Box<Attach>),
    Gone,
}

pub(crate) struct Greeting {
    rx: StreamRx,
    writer: Box<dyn StreamWriter>,
    encoding: Encoding,
    out: Vec<u8>,
    facts: Facts,
    wire: &'static str,
    inbox: Inbox,
}

/// All that a pipe is made of.
pub(crate) struct Attach {
    pub(crate) rx: Rx,
    pub(crate) writer: Writer,
    pub(crate) has_control: bool,
    pub(crate) peer: PeerHello,
    pub(crate) facts: Arc<Facts>,
    pub(crate) wire: &'static str,
    pub(crate) inbox: Inbox,
}

/// Moves a connection on its way as far as it goes: `true` when it is ready to attach.
pub(crate) fn advance(core: &Core, opening: &mut Opening, scratch: &mut Vec<u8>) -> Result<bool, Reason> {
    contain(|| Ok(go_on(core, opening, scratch))).unwrap_or_else(|e| Err(broken(&e)))
}

fn go_on(core: &Core, opening: &mut Opening, scratch: &mut Vec<u8>) -> Result<bool, Reason> {
    loop {
        match std::mem::replace(&mut opening.stage, Stage::Gone) {
            Stage::Stream(mut stream, wire) => {
                let established = stream.establish();
                if !matches!(established, Ok(true)) {
                    opening.stage = Stage::Stream(stream, wire);
                    established.map_err(|e| broken(&e))?;
                    return Ok(false);
                }
                opening.established = true;
                let (facts, short_is_empty) = (stream.facts(), stream.short_read_is_empty());
                opening.remote.clone_from(&facts.remote);
                let (reader, writer) = stream.split().map_err(|e| broken(&e))?;
                let name = wire.name();
                let mut out = Vec::new();
                let (decoder, encoding) = wire.start(&hello(core, opening), &mut out);
                let mut rx = StreamRx::new(reader, decoder, short_is_empty, core.cfg.recv_max_size);
                if opening.ending {
                    rx.end_is_near();
                }
                let inbox = Inbox::default();
                opening.stage = Stage::Greeting(Box::new(Greeting {
                    rx,
                    writer,
                    encoding,
                    out,
                    facts,
                    wire: name,
                    inbox,
                }));
            }
            Stage::Greeting(mut greeting) => {
                let done = greet(&mut greeting, scratch);
                if !matches!(done, Ok(true)) {
                    opening.stage = Stage::Greeting(greeting);
                    done?;
                    return Ok(false);
                }
                opening.stage = Stage::Ready(Box::new(attach_stream(core, *greeting)?));
                return Ok(true);
            }
            Stage::Pipe(mut pipe) => {
                let greeted = pipe.handshake(&hello(core, opening));
                match greeted {
                    Ok(Some(peer)) => {
                        opening.established = true;
                        let facts = Arc::new(pipe.facts());
                        opening.remote.clone_from(&facts.remote);
                        admit(core, &peer, &facts)?;
                        let (reader, writer) = pipe.split().map_err(|e| broken(&e))?;
                        opening.stage = Stage::Ready(Box::new(Attach {
                            rx: Rx::Messages(reader),
                            writer: Writer::Messages { pipe: writer, batch: VecDeque::new() },
                            has_control: false,
                            peer,
                            facts,
                            wire: "messages",
                            inbox: Inbox::default(),
                        }));
                        return Ok(true);
                    }
                    Ok(None) => {
                        opening.stage = Stage::Pipe(pipe);
                        return Ok(false);
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        opening.stage = Stage::Pipe(pipe);
                        return Ok(false);
                    }
                    Err(e) => {
                        opening.stage = Stage::Pipe(pipe);
                        return Err(broken(&e));
                    }
                }
            }
            stage => {
                opening.stage = stage;
                return Ok(false);
            }
        }
    }
}

fn hello(core: &Core, opening: &Opening) -> Hello {
    Hello::new(core.info, opening.side, core.cfg.recv_max_size, &*opening.url)
}

/// Both directions of a stream's handshake, as far as they go now.
fn greet(g: &mut Greeting, scratch: &mut Vec<u8>) -> Result<bool, Reason> {
    while g.inbox.peer.is_none() {
        match g.rx.fill(scratch, &mut g.inbox) {
            Filled::End(Reason::Peer) => {
                let _ = push_out(g); // our own half of the handshake may still tell the peer something
                return Err(Reason::Peer);
            }
            Filled::End(reason) => {
                g.out.append(&mut g.inbox.reply);
                let _ = push_out(g);
                return Err(reason);
            }
            Filled::Empty if g.inbox.peer.is_none() => {
                g.out.append(&mut g.inbox.reply);
                push_out(g)?;
                return Ok(false);
            }
            _ => {}
        }
        if g.inbox.peer.is_none() {
            // What is left is a part of the handshake, not messages that wait for room: it takes more bytes.
            g.rx.still_greets();
        }
        g.out.append(&mut g.inbox.reply);
        push_out(g)?;
    }
    push_out(g)?;
    Ok(g.out.is_empty())
}

fn push_out(g: &mut Greeting) -> Result<(), Reason> {
    while !g.out.is_empty() {
        match g.writer.write(&g.out) {
            Ok(0) => return Err(Reason::Broken("the connection takes no bytes".into())),
            Ok(n) => {
                g.out.drain(..n);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(broken(&e)),
        }
    }
    let _ = g.writer.flush();
    Ok(())
}

fn attach_stream(core: &Core, g: Greeting) -> Result<Attach, Reason> {
    let Greeting { mut rx, writer: stream, encoding, facts, wire, mut inbox, .. } = g;
    let Some(peer) = inbox.peer.take() else { return Err(Reason::BadHandshake) };
    let facts = Arc::new(facts);
    admit(core, &peer, &facts)?;
    rx.greeted();
    let (writer, has_control) = match encoding {
        Encoding::LengthPrefixed(prefix) => {
            (Writer::Framed { stream, current: Frames::new(prefix), reply: Vec::new() }, false)
        }
        Encoding::Custom(encoder) => {
            (Writer::Encoded { stream, encoder, bytes: Vec::new(), at: 0, messages: 0 }, true)
        }
    };
    Ok(Attach { rx: Rx::Stream(rx), writer, has_control, peer, facts, wire, inbox })
}

/// Whether the peer is a partner, and the application wants it.
fn admit(core: &Core, peer: &PeerHello, facts: &Facts) -> Result<(), Reason> {
    if !core.info.accepts(peer) {
        return Err(Reason::Mismatch(format!(
            "{peer} where {} (SP id {:#x}) was expected",
            core.info.peer_name, core.info.peer
        )));
    }
    match &core.cfg.accept {
        Some(accept) => contain(|| Ok(accept.0(facts)))
            .unwrap_or_else(|e| Err(format!("the application's own check: {e}")))
            .map_err(Reason::Denied),
        None => Ok(()),
    }
}
