//! What real peers sent and were sent, byte by byte, against our wire and our protocols.
//!
//! The streams in `vectors/` were recorded (its README tells the format). Read back in any cutting they must
//! give the peer's messages; our own handshake and frames must be the same bytes as the peer's in its role,
//! ids apart; and what is wrong in them must be refused as the rules of SP say.

use std::fs;
use std::path::Path;

use serde_json::Value;
use spanwire::Message;
use spanwire::protocol::pair::Pair;
use spanwire::protocol::publish::Pub;
use spanwire::protocol::push::Push;
use spanwire::protocol::raw::{RawRep, RawReq};
use spanwire::protocol::rep::Rep;
use spanwire::protocol::req::Req;
use spanwire::protocol::script::Script;
use spanwire::protocol::{DropReason, PipeInfo, ProtocolInfo, Reason, Sends};
use spanwire::wire::{Encoding, Hello, Inbox, Input, PeerHello, Side, Sp, Wire, WireError};

const MIB: usize = 1 << 20;

struct Step {
    received: bool,
    side: String,
    bytes: Vec<u8>,
}

struct Scenario {
    name: String,
    ipc: bool,
    peer: u16,
    steps: Vec<Step>,
}

fn scenarios() -> Vec<Scenario> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("the vectors").map(|f| f.expect("a file").path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "json"));
    files.sort();
    files.iter().map(|file| scenario(&fs::read_to_string(file).expect("text"))).collect()
}

fn scenario(text: &str) -> Scenario {
    let json: Value = serde_json::from_str(text).expect("JSON");
    let field = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_string();
    let id = field(&json, "protocol_id");
    Scenario {
        name: field(&json, "name"),
        ipc: field(&json, "transport") == "ipc",
        peer: u16::from_str_radix(id.trim_start_matches("0x"), 16).expect("an SP id"),
        steps: json["steps"]
            .as_array()
            .expect("steps")
            .iter()
            .map(|step| Step {
                received: field(step, "dir") == "in",
                side: field(step, "side"),
                bytes: unhex(&field(step, "hex")),
            })
            .filter(|step| !step.bytes.is_empty())
            .collect(),
    }
}

/// The scenarios whose name ends so, of all peers.
fn named(end: &str) -> Vec<Scenario> {
    let found: Vec<_> = scenarios().into_iter().filter(|s| s.name.ends_with(end)).collect();
    assert!(!found.is_empty(), "{end}");
    found
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |n: u8| char::from(n).to_digit(16).expect("hex") as u8;
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

impl Scenario {
    fn wire(&self) -> Sp {
        if self.ipc { Sp::IPC } else { Sp::TCP }
    }

    /// What one direction carried, a step an element; an SP header begins a connection.
    fn streams(&self, received: bool) -> Vec<Vec<&[u8]>> {
        let mut streams: Vec<(&str, Vec<&[u8]>)> = vec![];
        for step in self.steps.iter().filter(|step| step.received == received) {
            if step.bytes.starts_with(b"\0SP") {
                streams.push((&step.side, vec![&step.bytes]));
                continue;
            }
            let open = streams.iter_mut().rev().find(|(side, _)| *side == step.side);
            open.expect("a connection begins with a header").1.push(&step.bytes);
        }
        streams.into_iter().map(|(_, steps)| steps).collect()
    }

    /// All that was sent to the peer, as one piece.
    fn sent(&self) -> Vec<u8> {
        self.steps.iter().filter(|step| !step.received).flat_map(|step| step.bytes.clone()).collect()
    }

    /// The messages of one direction, cut out of their frames.
    fn messages(&self, received: bool) -> Vec<Message> {
        let streams = self.streams(received);
        streams.iter().flat_map(|s| &s[1..]).map(|frame| self.content(frame)).collect()
    }

    fn content(&self, frame: &[u8]) -> Message {
        Message::from(&frame[if self.ipc { 9 } else { 8 }..])
    }
}

fn partner(id: u16) -> u16 {
    match id {
        0x20 | 0x30 | 0x50 | 0x62 => id + 1,
        0x21 | 0x31 | 0x51 | 0x63 => id - 1,
        other => other,
    }
}

/// The socket with this id.
fn role(id: u16) -> ProtocolInfo {
    ProtocolInfo::new(id, "own", partner(id), "partner")
}

/// Own bytes: the handshake of `info` and a frame for each message, as [`Encoding`] defines them. (That the
/// queues frame like this is their own tests' matter.)
fn encode(wire: Sp, info: ProtocolInfo, messages: &[Message]) -> Vec<u8> {
    let mut bytes = vec![];
    let (_, encoding) = Box::new(wire).start(&Hello::new(info, Side::Dialer, MIB, ""), &mut bytes);
    let Encoding::LengthPrefixed(prefix) = encoding else { panic!("SP frames are length-prefixed") };
    for msg in messages {
        bytes.extend_from_slice(prefix);
        bytes.extend_from_slice(&(msg.wire_len() as u64).to_be_bytes());
        msg.append_to(&mut bytes);
    }
    bytes
}

/// What `info` understands of `bytes` that arrive in pieces that end at `cuts`.
fn decode(
    wire: Sp,
    info: ProtocolInfo,
    max: usize,
    bytes: &[u8],
    cuts: impl IntoIterator<Item = usize>,
) -> (Option<PeerHello>, Vec<Message>, Result<(), WireError>) {
    let (mut decoder, _) = Box::new(wire).start(&Hello::new(info, Side::Listener, max, ""), &mut vec![]);
    let mut inbox = Inbox::with_budget(1000);
    let mut done = 0;
    let mut result = Ok(());
    for cut in cuts.into_iter().chain([bytes.len()]) {
        let mut input = Input::new(&bytes[done..cut.clamp(done, bytes.len())]);
        let there = input.len();
        result = decoder.input(&mut input, &mut inbox);
        done += there - input.len();
        if result.is_err() {
            break;
        }
    }
    (inbox.peer.clone(), inbox.messages().drain(..).collect(), result)
}

/// What our socket in the peer's place makes of all that was sent to the peer.
fn in_its_place(s: &Scenario, max: usize) -> (Option<PeerHello>, Vec<Message>, Result<(), WireError>) {
    decode(s.wire(), role(s.peer), max, &s.sent(), [])
}

#[test]
fn every_stream_of_every_peer_is_understood_in_every_cutting() {
    let mut streams = 0;
    let mut random = 1u64;
    for s in scenarios() {
        for steps in s.streams(true) {
            let bytes = steps.concat();
            let id = u16::from_be_bytes([bytes[4], bytes[5]]);
            let me = role(partner(id));
            let want: Vec<Message> = steps[1..].iter().map(|frame| s.content(frame)).collect();
            let check = |cuts: Vec<usize>| {
                let (peer, messages, result) = decode(s.wire(), me, MIB, &bytes, cuts);
                assert_eq!((result, messages), (Ok(()), want.clone()), "{}", s.name);
                let peer = peer.expect("the handshake is over");
                assert!(peer == PeerHello::sp(id) && me.accepts(&peer), "{}", s.name);
            };
            check(vec![]);
            check((1..bytes.len()).collect());
            for cut in 1..bytes.len() {
                check(vec![cut]);
            }
            for _ in 0..20 {
                let mut cuts = vec![];
                for _ in 0..bytes.len() / 8 {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    cuts.push((random >> 33) as usize % bytes.len());
                }
                cuts.sort_unstable();
                check(cuts);
            }
            streams += 1;
        }
    }
    assert!(streams >= 180, "{streams}");
}

#[test]
fn our_handshake_and_frames_are_the_bytes_of_every_peer_in_the_same_role() {
    for s in scenarios() {
        for steps in s.streams(true) {
            let id = u16::from_be_bytes([steps[0][4], steps[0][5]]);
            let messages: Vec<Message> = steps[1..].iter().map(|frame| s.content(frame)).collect();
            assert_eq!(encode(s.wire(), role(id), &messages), steps.concat(), "{}", s.name);
        }
    }
}

fn sends_like_the_peer<P: Sends<Item = Message>>(end: &str, protocol: impl Fn() -> P) {
    for s in named(end).into_iter().filter(|s| !s.name.contains("-bad-")) {
        let mut script = Script::new(protocol());
        let pipe = script.open(99);
        for msg in s.messages(true) {
            script.send(msg).expect("there is room");
        }
        let sent = script.drain(pipe, 99);
        let info = script.protocol.info();
        assert_eq!(encode(s.wire(), info, &sent), s.streams(true)[0].concat(), "{}", s.name);
    }
}

#[test]
fn push_pub_and_pair_send_the_bytes_of_every_peer() {
    sends_like_the_peer("-push", Push::new);
    sends_like_the_peer("-pub", Pub::default);
    sends_like_the_peer("-pair0", Pair::new);
}

#[test]
fn req_sends_the_bytes_of_every_peer_apart_from_ids_and_takes_the_answers_they_take() {
    let mut answers = 0;
    for s in named("-req") {
        let mut script = Script::new(Req::new());
        let pipe = script.open(99);
        let mut open = None;
        for step in s.steps.iter().filter(|step| !step.bytes.starts_with(b"\0SP")) {
            let mut msg = s.content(&step.bytes);
            let theirs = msg.pop_word().expect("an id");
            if step.received {
                let id = script.call(|p, cx| p.open(cx, msg.clone(), None)).expect("few are open");
                let sent = encode(s.wire(), role(0x30), &script.drain(pipe, 1));
                let mut want = encode(s.wire(), role(0x30), &[]);
                want.extend_from_slice(&step.bytes);
                let at = want.len() - msg.len() - 4;
                want[at..at + 4].copy_from_slice(&id.word().to_be_bytes());
                assert_eq!(sent, want, "{}", s.name);
                assert!(id.word() & theirs & 0x8000_0000 != 0, "{}", s.name);
                open = Some((theirs, id));
            } else {
                // The same answer, to our id; a wrong id stays as wrong.
                let (asked, id) = open.expect("an answer follows a request");
                let mut answer = msg.clone();
                answer.push_word_front(theirs ^ asked ^ id.word());
                script.arrive(pipe, [answer.joined()]);
                let told = (theirs == asked).then_some(Ok(msg));
                answers += usize::from(told.is_some());
                assert_eq!(script.protocol.poll(id), told, "{}", s.name);
            }
        }
    }
    assert!(answers > 10, "{answers}");
}

#[test]
fn rep_answers_with_the_bytes_of_every_peer() {
    for s in named("-rep") {
        let mut script = Script::new(Rep::new());
        let pipe = script.open(99);
        script.arrive(pipe, s.messages(false));
        for mut msg in s.messages(true) {
            // The recorded applications leave some requests unanswered; ours may, too.
            let request = std::iter::from_fn(|| script.recv())
                .find(|request| msg.starts_with(&request.trace.words()[0].to_be_bytes()))
                .expect("a request for each answer");
            request
                .trace
                .words()
                .iter()
                .for_each(|word| assert_eq!(msg.pop_word(), Some(*word), "{}", s.name));
            script.call(|p, cx| p.reply(cx, &request, msg)).expect("there is room");
        }
        let sent = script.drain(pipe, 99);
        assert_eq!(encode(s.wire(), role(0x31), &sent), s.streams(true)[0].concat(), "{}", s.name);
    }
}

#[test]
fn a_device_of_raw_sockets_passes_what_the_peers_devices_pass() {
    for s in named("-device-reqrep") {
        let (mut front, mut back) = (Script::new(RawRep::new()), Script::new(RawReq::new()));
        let (a, b) = (front.open(99), back.open(99));
        let mut channel = 0;
        for step in s.steps.iter().filter(|step| !step.bytes.starts_with(b"\0SP")) {
            let msg = s.content(&step.bytes);
            match (step.side.as_str(), step.received) {
                ("A", false) => {
                    front.arrive(a, [msg]);
                    while let Some(request) = front.recv() {
                        back.send(request).expect("there is room");
                    }
                }
                ("B", true) => {
                    let mut ours = back.drain(b, 1).pop().expect("the device passes it on");
                    let mut theirs = msg;
                    assert_eq!(ours.pop_word(), Some(a.word()));
                    channel = theirs.pop_word().expect("a channel word");
                    assert_eq!(ours, theirs, "{}", s.name);
                }
                ("B", false) => {
                    let mut answer = msg;
                    let word = answer.pop_word().expect("a channel word");
                    let routed = if word == channel { a.word() } else { 0x7fff_ffff };
                    answer.push_word_front(routed);
                    back.arrive(b, [answer.joined()]);
                    while let Some(reply) = back.recv() {
                        front.send(reply).expect("never refused");
                    }
                }
                _ => assert_eq!(front.drain(a, 1), [msg], "{}", s.name),
            }
        }
        assert_eq!((front.unsent(a), back.unsent(b)), (0, 0), "{}", s.name);
    }
}

#[test]
fn any_changed_byte_of_the_header_makes_the_handshake_fail() {
    for info in [role(0x10), role(0x30), role(0x21)] {
        for wire in [Sp::TCP, Sp::IPC] {
            let good = encode(wire, role(info.peer), &[]);
            assert_eq!(good.len(), 8);
            let (peer, _, result) = decode(wire, info, MIB, &good, []);
            assert!(result.is_ok() && info.accepts(&peer.expect("a whole header")));
            for at in 0..8 {
                for value in (0..=255).filter(|value| *value != good[at]) {
                    let mut bad = good.clone();
                    bad[at] = value;
                    let (peer, _, result) = decode(wire, info, MIB, &bad, []);
                    let accepted = result.is_ok() && peer.is_some_and(|peer| info.accepts(&peer));
                    assert!(!accepted, "byte {at} is {value}");
                }
            }
        }
    }
}

#[test]
fn a_header_that_is_none_is_refused() {
    for end in ["-bad-magic", "-bad-version", "-bad-reserved"] {
        for s in named(end) {
            assert_eq!(in_its_place(&s, MIB), (None, vec![], Err(WireError::BadHandshake)), "{}", s.name);
        }
    }
    // Nothing is refused that may still become a header; a deadline does that.
    for end in ["-bad-half-header", "-bad-silent"] {
        for s in named(end) {
            assert_eq!(in_its_place(&s, MIB), (None, vec![], Ok(())), "{}", s.name);
        }
    }
}

#[test]
fn a_peer_of_another_kind_is_no_partner() {
    for end in ["-bad-protocol", "-bad-role", "-bad-pair1-pair0"] {
        for s in named(end) {
            let (peer, _, result) = in_its_place(&s, MIB);
            assert!(result.is_ok() && !role(s.peer).accepts(&peer.expect("a whole header")), "{}", s.name);
        }
    }
    for s in named("-bad-second-pair") {
        let mut script = Script::new(Pair::new());
        let first = script.open(9);
        assert_eq!(script.open_with(PipeInfo::default()), Err(Reason::Busy));
        script.arrive(first, [s.messages(false).pop().expect("a message on the first connection")]);
        assert_eq!(script.recv(), Some("still".into()));
    }
}

#[test]
fn a_length_over_the_limit_is_refused_before_its_body_and_the_limit_itself_passes() {
    for (end, limit, size) in [
        ("-bad-too-long", 100, 101),
        ("-bad-default-max", MIB, MIB as u64 + 1),
        ("-bad-huge-length", MIB, 1 << 63),
        ("-bad-max-length", usize::MAX >> 1, u64::MAX),
    ] {
        for s in named(end) {
            assert_eq!(in_its_place(&s, limit).2, Err(WireError::TooBig { size, limit }), "{}", s.name);
        }
    }
    for s in named("-bad-exact-max") {
        let (_, messages, result) = in_its_place(&s, 100);
        assert_eq!((messages.len(), messages[0].len(), result), (1, 100, Ok(())), "{}", s.name);
    }
    for s in named("-bad-truncated") {
        assert_eq!((in_its_place(&s, MIB).1, in_its_place(&s, MIB).2), (vec!["whole".into()], Ok(())));
    }
}

#[test]
fn an_ipc_frame_of_another_type_is_refused() {
    for end in ["-bad-ipc-type-0", "-bad-ipc-type-2"] {
        for s in named(end) {
            assert!(matches!(in_its_place(&s, MIB).2, Err(WireError::BadFrame(_))), "{}", s.name);
        }
    }
}

#[test]
fn malformed_requests_and_those_over_the_ttl_are_dropped_and_the_connection_stays() {
    for (end, why, good) in [
        ("-bad-short-request", Some(DropReason::Malformed), Some("good")),
        ("-bad-no-bottom", Some(DropReason::Malformed), Some("good")),
        ("-tcp-ttl-8", None, Some("ttl")),
        ("-tcp-ttl-9", Some(DropReason::Ttl), None),
    ] {
        for s in named(end) {
            let mut script = Script::new(Rep::new());
            let pipe = script.open(9);
            // nng closes at a malformed one, so its recording may lack the good request behind it.
            let mut messages = s.messages(false);
            if good == Some("good") && messages.len() == 1 {
                messages.push(Message::from(&[0x80, 0, 0, 1, b'g', b'o', b'o', b'd']));
            }
            script.arrive(pipe, messages);
            let body = script.recv().map(|request| request.body);
            assert_eq!(body, good.map(Message::from), "{}", s.name);
            assert_eq!(script.all_drops(), u64::from(why.is_some()), "{}", s.name);
            assert!(why.is_none_or(|why| script.drops(why) == 1) && script.closed.is_empty(), "{}", s.name);
        }
    }
}

#[test]
fn malformed_answers_are_dropped_and_the_good_one_counts() {
    for end in ["-bad-short-reply", "-bad-clear-bit-reply"] {
        for s in named(end) {
            let mut script = Script::new(Req::new());
            let pipe = script.open(9);
            let id = script.call(|p, cx| p.open(cx, "q".into(), None)).expect("few are open");
            let theirs = s.messages(true)[0].clone().pop_word().expect("an id");
            let bad = s.messages(false).swap_remove(0);
            for mut msg in [bad, {
                let mut m = Message::from("good");
                m.push_word_front(theirs);
                m.joined()
            }] {
                if let Some(word) = msg.pop_word() {
                    msg.push_word_front(word ^ theirs ^ id.word());
                }
                script.arrive(pipe, [msg.joined()]);
            }
            assert_eq!(script.protocol.poll(id), Some(Ok("good".into())), "{}", s.name);
            assert_eq!((script.drops(DropReason::Malformed), script.closed.len()), (1, 0), "{}", s.name);
        }
    }
}

#[test]
fn what_is_sent_to_a_publisher_or_a_pusher_is_dropped_and_the_connection_stays() {
    for s in named("-bad-to-pub") {
        let mut script = Script::new(Pub::default());
        let pipe = script.open(9);
        script.arrive(pipe, s.messages(false));
        assert_eq!((script.drops(DropReason::Unexpected), script.closed.len()), (1, 0), "{}", s.name);
    }
    for s in named("-bad-to-push") {
        let mut script = Script::new(Push::new());
        let pipe = script.open(9);
        script.arrive(pipe, s.messages(false));
        assert_eq!((script.drops(DropReason::Unexpected), script.closed.len()), (1, 0), "{}", s.name);
    }
}
