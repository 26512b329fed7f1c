//! `inproc://NAME`, whole messages handed from one socket of the process to another.
//!
//! Messages are moved in batches, their bodies never copied, their header words apart. The receiver is told when
//! its lane was empty, the sender, if it found no room, at half: a batch costs one notice.
//!
//! Owns: the table of names, and those queues. Never: copies a body, waits, or holds the table's lock while
//! messages move.
//!
//! Locks: the table's, then a link's meeting; a lane's lock stands alone. None is held when a notice is given.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::{
    Bag, Connection, Dialer, Facts, Listener, MessagePipe, MessageReader, MessageWriter, Notifier, Registrar,
    Target, Transport, address, invalid,
};
use crate::Message;
use crate::wire::{Hello, Inbox, PeerHello, WireError};

/// Messages that one direction holds at most.
const MAX_MESSAGES: usize = 1024;
/// Bytes, headers and bodies, that one direction holds at most; a larger message passes alone.
const MAX_BYTES: usize = 1024 * 1024;

/// The inproc transport: `inproc://NAME`. It has no options.
///
/// NAME is any text that is not empty; case matters. A connect may come before the bind and waits for it;
/// when a listener goes, those who wait go on waiting for the next one of that name.
///
/// Between the queues of the two sockets each direction has one of its own, on top of what the sockets allow: at
/// most 1,024 messages and 1 MiB of headers and bodies; a larger message passes alone. What lies in it when
/// its receiver goes is lost, as are bytes in the kernel's buffers when a stream's peer goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inproc;

impl Transport for Inproc {
    fn schemes(&self) -> &'static [&'static str] {
        &["inproc"]
    }

    fn dialer(&self, url: &str, _: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(InprocDialer { name: parse(url)? }))
    }

    fn listen(&self, url: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        let name = parse(url)?;
        let mut names = names();
        let entry = names.entry(name.clone()).or_default();
        if entry.bound {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        entry.bound = true;
        Ok(Box::new(InprocListener { process: std::process::id(), name }))
    }
}

fn parse(url: &str) -> io::Result<String> {
    match address(url, "inproc")? {
        "" => Err(invalid("bad address: no name")),
        name => Ok(name.to_owned()),
    }
}

/// What is known of a name. It is in the table while it is bound or waited for.
#[derive(Default)]
struct Name {
    bound: bool,
    /// Of the listener, once it is registered.
    notifier: Option<Notifier>,
    /// Dialled and not yet accepted, in order of arrival.
    waiting: BTreeMap<u64, Arc<Link>>,
}

fn names() -> MutexGuard<'static, HashMap<String, Name>> {
    static NAMES: OnceLock<Mutex<HashMap<String, Name>>> = OnceLock::new();
    lock(NAMES.get_or_init(Mutex::default))
}

/// Nothing here panics while it holds a lock, so what a poisoned one guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct InprocDialer {
    name: String,
}

impl Dialer for InprocDialer {
    fn dial(&self, _: Option<&Target>) -> io::Result<Connection> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let link = Arc::new(Link { process, name: self.name.clone(), number, ..Link::default() });
        Ok(Connection::Messages(Box::new(Pipe::new(link, DIALER))))
    }
}

#[derive(Debug)]
struct InprocListener {
    /// As in a link.
    process: u32,
    name: String,
}

impl Listener for InprocListener {
    fn url(&self) -> String {
        format!("inproc://{}", self.name)
    }

    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        let notifier = registrar.notifier();
        if let Some(entry) = names().get_mut(&self.name) {
            entry.notifier = Some(notifier.clone());
        }
        // For those who waited already.
        notifier.notify();
        Ok(())
    }

    fn accept(&mut self) -> io::Result<Connection> {
        let next = names().get_mut(&self.name).and_then(|entry| entry.waiting.pop_first());
        let (_, link) = next.ok_or(io::ErrorKind::WouldBlock)?;
        Ok(Connection::Messages(Box::new(Pipe::new(link, LISTENER))))
    }
}

impl Drop for InprocListener {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        let mut names = names();
        if let Some(entry) = names.get_mut(&self.name) {
            entry.bound = false;
            entry.notifier = None;
            if entry.waiting.is_empty() {
                names.remove(&self.name);
            }
        }
    }
}

/// The sides of a link, as indices.
const DIALER: usize = 0;
const LISTENER: usize = 1;

/// What the two ends of a connection share.
#[derive(Default)]
struct Link {
    /// The process: in a forked child a lock here may be held by a thread that does not exist there.
    process: u32,
    name: String,
    /// Of the dial: the order in which they wait.
    number: u64,
    meeting: Mutex<Meeting>,
    /// By the side that sends.
    lanes: [Mutex<Lane>; 2],
}

/// How two sides come to know each other, by side.
#[derive(Default)]
struct Meeting {
    hello: [Option<PeerHello>; 2],
    notifier: [Option<Notifier>; 2],
    gone: [bool; 2],
}

/// One direction.
#[derive(Default)]
struct Lane {
    queue: VecDeque<Message>,
    bytes: usize,
    /// The largest that came since the queue was empty.
    largest: usize,
    /// The sender has something that did not fit.
    wants_room: bool,
    /// Nothing more will be sent.
    ended: bool,
    /// Nothing more will be received.
    deaf: bool,
}

impl Lane {
    /// Takes a whole batch at once, at the price of one message.
    fn take_batch(&mut self, batch: &mut VecDeque<Message>, bytes: usize, largest: usize) -> bool {
        let whole = self.queue.is_empty() && batch.len() <= MAX_MESSAGES && bytes <= MAX_BYTES;
        if whole {
            std::mem::swap(&mut self.queue, batch);
            (self.bytes, self.largest) = (bytes, largest);
        }
        whole
    }

    fn fits(&self, len: usize) -> bool {
        self.queue.is_empty()
            || (self.queue.len() < MAX_MESSAGES && self.bytes.saturating_add(len) <= MAX_BYTES)
    }
}

impl Link {
    /// This is a forked child's copy: the peer is in its parent, and hears nothing of its end.
    fn is_inherited(&self) -> bool {
        self.process != std::process::id()
    }
    fn end(&self, side: usize) {
        lock(&self.lanes[side]).ended = true;
    }

    fn deafen(&self, side: usize) {
        let unread = {
            let mut lane = lock(&self.lanes[1 - side]);
            lane.deaf = true;
            lane.bytes = 0;
            std::mem::take(&mut lane.queue)
        };
        // Not under the lock: a body's owner may run code of its own when it is freed.
        drop(unread);
    }
}

/// One end of a connection, until it is split.
struct Pipe {
    link: Arc<Link>,
    side: usize,
    recv_max: usize,
    split: bool,
}

impl Pipe {
    fn new(link: Arc<Link>, side: usize) -> Self {
        Pipe { link, side, recv_max: 0, split: false }
    }
}

impl MessagePipe for Pipe {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        let own = registrar.notifier();
        lock(&self.link.meeting).notifier[self.side] = Some(own.clone());
        if self.side == DIALER {
            let listener = {
                let mut names = names();
                let entry = names.entry(self.link.name.clone()).or_default();
                entry.waiting.insert(self.link.number, self.link.clone());
                entry.notifier.clone()
            };
            if let Some(listener) = listener {
                listener.notify();
            }
        }
        // A descriptor would be writable now; the first call of `handshake` must not depend on the peer.
        own.notify();
        Ok(())
    }

    fn handshake(&mut self, me: &Hello) -> io::Result<Option<PeerHello>> {
        self.recv_max = me.recv_max;
        let (peer, tell, gone) = {
            let mut meeting = lock(&self.link.meeting);
            let first_time = meeting.hello[self.side].is_none();
            if first_time {
                let mut hello = PeerHello::sp(me.info.id);
                hello.name = Some(me.info.name.to_owned());
                meeting.hello[self.side] = Some(hello);
            }
            let other = 1 - self.side;
            let tell = meeting.notifier[other].clone().filter(|_| first_time);
            (meeting.hello[other].clone(), tell, meeting.gone[other])
        };
        if let Some(notifier) = tell {
            notifier.notify();
        }
        // The peer's name comes before its end: one that went because the protocols do not fit is told apart
        // from one that just went.
        if peer.is_none() && gone {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(peer)
    }

    fn waiting(&self) -> bool {
        let meeting = lock(&self.link.meeting);
        self.side == DIALER && meeting.notifier[1 - DIALER].is_none() && !meeting.gone[1 - DIALER]
    }

    fn facts(&self) -> Facts {
        let url = format!("inproc://{}", self.link.name);
        Facts::new(url.clone(), url)
    }

    fn split(mut self: Box<Self>) -> io::Result<(Box<dyn MessageReader>, Box<dyn MessageWriter>)> {
        let (own, peer) = {
            let meeting = lock(&self.link.meeting);
            (meeting.notifier[self.side].clone(), meeting.notifier[1 - self.side].clone())
        };
        let (Some(own), Some(peer)) = (own, peer) else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "split before the handshake was over"));
        };
        self.split = true;
        let reader =
            Reader { link: self.link.clone(), side: self.side, peer: peer.clone(), max: self.recv_max };
        let writer = Writer { link: self.link.clone(), side: self.side, peer };
        // What came before there was a reader gave its notice to the handshake.
        own.notify();
        Ok((Box::new(reader), Box::new(writer)))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if self.split || self.link.is_inherited() {
            return;
        }
        if self.side == DIALER {
            let mut names = names();
            if let Some(entry) = names.get_mut(&self.link.name) {
                entry.waiting.remove(&self.link.number);
                if entry.waiting.is_empty() && !entry.bound {
                    names.remove(&self.link.name);
                }
            }
        }
        self.link.end(self.side);
        self.link.deafen(self.side);
        let peer = {
            let mut meeting = lock(&self.link.meeting);
            meeting.gone[self.side] = true;
            meeting.notifier[1 - self.side].clone()
        };
        if let Some(peer) = peer {
            peer.notify();
        }
    }
}

/// Takes from the peer's lane.
struct Reader {
    link: Arc<Link>,
    side: usize,
    peer: Notifier,
    max: usize,
}

impl MessageReader for Reader {
    fn recv(&mut self, inbox: &mut Inbox) -> io::Result<bool> {
        let (result, room) = {
            let mut lane = lock(&self.link.lanes[1 - self.side]);
            let before = lane.queue.len();
            let mut too_big = None;
            if lane.largest <= self.max {
                let bytes = lane.bytes;
                if inbox.take_all(&mut lane.queue, bytes) {
                    lane.bytes = 0;
                }
            }
            while inbox.wants_more() {
                // One over the limit stays where it is: the pipe is at its end, whoever asks again.
                let len = match lane.queue.front().map(Message::wire_len) {
                    Some(len) if len > self.max => {
                        too_big = Some(WireError::TooBig { size: len as u64, limit: self.max });
                        break;
                    }
                    Some(len) => len,
                    None => break,
                };
                if let Some(msg) = lane.queue.pop_front() {
                    lane.bytes -= len;
                    inbox.push(msg);
                }
            }
            let left = lane.queue.len();
            if left == 0 {
                lane.largest = 0;
            }
            let result = match too_big {
                Some(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                None if left == 0 && lane.ended => Err(io::ErrorKind::UnexpectedEof.into()),
                None => Ok(left == 0),
            };
            // Not at the first free place: the sender would be called for each message.
            let room =
                lane.wants_room && left < before && left <= MAX_MESSAGES / 2 && lane.bytes <= MAX_BYTES / 2;
            if room {
                lane.wants_room = false;
            }
            (result, room)
        };
        if room {
            self.peer.notify();
        }
        result
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.link.is_inherited() {
            self.link.deafen(self.side);
            self.peer.notify();
        }
    }
}

/// Puts into its own lane.
struct Writer {
    link: Arc<Link>,
    side: usize,
    peer: Notifier,
}

impl MessageWriter for Writer {
    fn send(&mut self, batch: &mut VecDeque<Message>) -> io::Result<bool> {
        // Summed before the lock is taken: the reader must not wait for that.
        // More than fit go one by one, as far as they fit; a long backlog is not summed again at each call.
        let (bytes, largest) = batch
            .iter()
            .take(MAX_MESSAGES + 1)
            .map(Message::wire_len)
            .fold((0usize, 0), |(sum, most), len| (sum.saturating_add(len), len.max(most)));
        let (tell, behind) = {
            let mut lane = lock(&self.link.lanes[self.side]);
            if lane.deaf || lane.ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let was_empty = lane.queue.is_empty();
            if was_empty {
                lane.take_batch(batch, bytes, largest);
            }
            while let Some(len) = batch.front().map(Message::wire_len).filter(|len| lane.fits(*len)) {
                lane.bytes = lane.bytes.saturating_add(len);
                lane.largest = lane.largest.max(len);
                lane.queue.extend(batch.pop_front());
            }
            lane.wants_room = !batch.is_empty();
            (was_empty && !lane.queue.is_empty(), !was_empty)
        };
        if tell {
            self.peer.notify();
        }
        Ok(behind)
    }

    fn shutdown(&mut self) -> io::Result<bool> {
        self.link.end(self.side);
        self.peer.notify();
        Ok(true)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.link.is_inherited() {
            self.link.end(self.side);
            self.peer.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{Loop, refuses};
    use super::*;
    use crate::protocol::ProtocolInfo;
    use crate::wire::Side;
    use mio::Token;

    const MAX: usize = 1 << 20;

    fn pipe(connection: Connection) -> Box<dyn MessagePipe> {
        match connection {
            Connection::Messages(pipe) => pipe,
            Connection::Stream(..) => panic!("not a message pipe"),
        }
    }

    fn dial(turn: &mut Loop, url: &str) -> (Token, Box<dyn MessagePipe>) {
        let mut pipe = pipe(Inproc.dialer(url, &Bag::default()).unwrap().dial(None).unwrap());
        (turn.register(|r| pipe.register(r)), pipe)
    }

    fn bind(turn: &mut Loop, url: &str) -> Box<dyn Listener> {
        let mut listener = Inproc.listen(url, &Bag::default()).unwrap();
        turn.register(|r| listener.register(r));
        listener
    }

    fn accept(turn: &mut Loop, listener: &mut dyn Listener) -> (Token, Box<dyn MessagePipe>) {
        let mut pipe = pipe(turn.accept(listener));
        (turn.register(|r| pipe.register(r)), pipe)
    }

    fn hello(id: u16) -> Hello {
        Hello::new(ProtocolInfo::new(id, "one", id, "other"), Side::Dialer, MAX, "inproc://x")
    }

    struct End {
        token: Token,
        reader: Box<dyn MessageReader>,
        writer: Box<dyn MessageWriter>,
    }

    /// Both ends of a connection over `url`; the second one receives at most `max` bytes.
    fn ends(turn: &mut Loop, url: &str, max: usize) -> (End, End) {
        let mut listener = bind(turn, url);
        let (a_token, mut a) = dial(turn, url);
        let (b_token, mut b) = accept(turn, &mut *listener);
        let mut limited = hello(2);
        limited.recv_max = max;
        assert_eq!(a.handshake(&hello(1)).unwrap(), None);
        assert_eq!(b.handshake(&limited).unwrap().and_then(|p| p.sp_id), Some(1));
        assert_eq!(a.handshake(&hello(1)).unwrap().and_then(|p| p.sp_id), Some(2));
        let (a, b) = (a.split().unwrap(), b.split().unwrap());
        turn.notices();
        (End { token: a_token, reader: a.0, writer: a.1 }, End { token: b_token, reader: b.0, writer: b.1 })
    }

    fn batch(n: usize, len: usize) -> VecDeque<Message> {
        (0..n).map(|i| Message::from(vec![i as u8; len])).collect()
    }

    fn known(url: &str) -> bool {
        names().contains_key(url.strip_prefix("inproc://").unwrap())
    }

    #[test]
    fn connect_may_come_before_or_after_bind() {
        let url = "inproc://either-order";
        for bind_first in [true, false] {
            let mut turn = Loop::new();
            let early = bind_first.then(|| bind(&mut turn, url));
            let (_, mut a) = dial(&mut turn, url);
            assert_eq!(a.handshake(&hello(1)).unwrap(), None);
            let mut listener = early.unwrap_or_else(|| bind(&mut turn, url));
            let (_, mut b) = accept(&mut turn, &mut *listener);
            assert_eq!(b.handshake(&hello(2)).unwrap().and_then(|p| p.sp_id), Some(1));
            assert_eq!(a.handshake(&hello(1)).unwrap().and_then(|p| p.sp_id), Some(2));
            assert_eq!((a.facts().local, b.facts().remote), (url.to_owned(), url.to_owned()));
        }
        assert!(!known(url));
    }

    #[test]
    fn each_step_of_a_meeting_gives_a_notice_to_whoever_must_act() {
        let url = "inproc://notices";
        let mut turn = Loop::new();
        let mut listener = Inproc.listen(url, &Bag::default()).unwrap();
        let bound = turn.register(|r| listener.register(r));
        assert_eq!(turn.notices(), [bound]);
        let (a_token, mut a) = dial(&mut turn, url);
        assert_eq!(turn.notices(), [bound, a_token]);
        a.handshake(&hello(1)).unwrap();
        assert_eq!(turn.notices(), []);
        let (b_token, mut b) = accept(&mut turn, &mut *listener);
        assert_eq!(turn.notices(), [b_token]);
        b.handshake(&hello(2)).unwrap();
        assert_eq!(turn.notices(), [a_token]);
        drop(b);
        assert_eq!(turn.notices(), [a_token]);
    }

    #[test]
    fn a_name_is_bound_once_at_a_time_and_case_matters() {
        let url = "inproc://Bound-Once";
        let first = Inproc.listen(url, &Bag::default()).unwrap();
        assert_eq!(first.url(), url);
        let second = Inproc.listen(url, &Bag::default()).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        let other = Inproc.listen("inproc://bound-once", &Bag::default()).unwrap();
        drop((first, other));
        Inproc.listen(url, &Bag::default()).unwrap();
        assert!(!known(url));
    }

    #[test]
    fn a_bad_address_is_refused_in_words_that_say_why() {
        refuses(Inproc.dialer("inproc://", &Bag::default()), "inproc://", "no name");
        refuses(Inproc.listen("inproc://", &Bag::default()), "inproc://", "no name");
    }

    #[test]
    fn promise_23_dialers_that_give_up_before_accept_leave_nothing_behind() {
        let url = "inproc://given-up";
        let mut turn = Loop::new();
        for _ in 0..100 {
            let (_, mut pipe) = dial(&mut turn, url);
            pipe.handshake(&hello(1)).unwrap();
        }
        assert!(!known(url));
        let mut listener = bind(&mut turn, url);
        let (_, gives_up) = dial(&mut turn, url);
        let (b_token, _b) = dial(&mut turn, url);
        drop(gives_up);
        accept(&mut turn, &mut *listener);
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(turn.notices().contains(&b_token), "the peer's end must be told");
        drop(listener);
        assert!(!known(url));
    }

    #[test]
    fn those_who_wait_outlive_a_listener_and_meet_the_next_in_order() {
        let url = "inproc://next-listener";
        let mut turn = Loop::new();
        let first = bind(&mut turn, url);
        let (_, mut a) = dial(&mut turn, url);
        let (_, mut b) = dial(&mut turn, url);
        a.handshake(&hello(1)).unwrap();
        b.handshake(&hello(2)).unwrap();
        drop(first);
        let mut second = bind(&mut turn, url);
        for id in [1, 2] {
            let (_, mut pipe) = accept(&mut turn, &mut *second);
            assert_eq!(pipe.handshake(&hello(3)).unwrap().and_then(|p| p.sp_id), Some(id));
        }
    }

    #[test]
    fn a_peer_that_goes_after_its_hello_is_still_known_and_one_without_is_an_end() {
        let url = "inproc://gone-in-handshake";
        let mut turn = Loop::new();
        let mut listener = bind(&mut turn, url);
        let (_, mut a) = dial(&mut turn, url);
        let (_, mut b) = accept(&mut turn, &mut *listener);
        a.handshake(&hello(1)).unwrap();
        b.handshake(&hello(9)).unwrap();
        drop(b); // Refused: the protocols do not fit.
        assert_eq!(a.handshake(&hello(1)).unwrap().and_then(|p| p.sp_id), Some(9));
        let (mut reader, mut writer) = a.split().unwrap();
        assert_eq!(writer.send(&mut batch(1, 1)).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let end = reader.recv(&mut Inbox::with_budget(1)).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);

        let (_, mut a) = dial(&mut turn, url);
        let (_, b) = accept(&mut turn, &mut *listener);
        drop(b);
        assert_eq!(a.handshake(&hello(1)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn messages_keep_order_header_and_place_in_memory() {
        let mut turn = Loop::new();
        let (mut a, mut b) = ends(&mut turn, "inproc://moves", MAX);
        let mut big = Message::from(vec![7; 1000]);
        big.push_word_front(0x8000_0001);
        let place = big.body().as_ptr();
        let mut sent = VecDeque::from([Message::from("first"), big.clone()]);
        a.writer.send(&mut sent).unwrap();
        assert!(sent.is_empty());
        let mut inbox = Inbox::with_budget(10);
        assert!(b.reader.recv(&mut inbox).unwrap());
        assert_eq!(inbox.messages().pop_front().unwrap(), "first");
        let got = inbox.messages().pop_front().unwrap();
        assert_eq!(got, big);
        assert_eq!((got.header_len(), got.body().as_ptr()), (1, place));
    }

    #[test]
    fn a_full_link_keeps_the_rest_of_the_batch_and_calls_the_sender_at_half() {
        let mut turn = Loop::new();
        let (mut a, mut b) = ends(&mut turn, "inproc://bounded", MAX);
        let mut sent = batch(MAX_MESSAGES + 10, 1);
        a.writer.send(&mut sent).unwrap();
        assert_eq!(sent.len(), 10);
        assert_eq!(turn.notices(), [b.token]);
        a.writer.send(&mut sent).unwrap();
        assert_eq!((sent.len(), turn.notices()), (10, vec![]));
        let half = MAX_MESSAGES / 2;
        assert!(!b.reader.recv(&mut Inbox::with_budget(half - 1)).unwrap());
        assert_eq!(turn.notices(), []);
        assert!(!b.reader.recv(&mut Inbox::with_budget(1)).unwrap());
        assert_eq!(turn.notices(), [a.token]);
        a.writer.send(&mut sent).unwrap();
        assert!(sent.is_empty());
        assert_eq!(turn.notices(), [], "the receiver has not come to the end");
        let mut inbox = Inbox::with_budget(usize::MAX);
        assert!(b.reader.recv(&mut inbox).unwrap());
        assert_eq!(inbox.messages().len(), half + 10);
        assert_eq!(turn.notices(), [], "the sender wants no room");
        a.writer.send(&mut batch(1, 1)).unwrap();
        assert_eq!(turn.notices(), [b.token]);
    }

    #[test]
    fn bytes_are_bounded_too_and_a_larger_message_passes_alone() {
        let mut turn = Loop::new();
        let (mut a, mut b) = ends(&mut turn, "inproc://bytes", usize::MAX);
        let mut sent = batch(10, MAX_BYTES / 4);
        a.writer.send(&mut sent).unwrap();
        assert_eq!(sent.len(), 6);
        assert!(b.reader.recv(&mut Inbox::with_budget(4)).unwrap());
        sent = batch(2, MAX_BYTES * 2);
        a.writer.send(&mut sent).unwrap();
        assert_eq!(sent.len(), 1);
        turn.notices();
        assert!(b.reader.recv(&mut Inbox::with_budget(4)).unwrap());
        assert_eq!(turn.notices(), [a.token]);
        a.writer.send(&mut sent).unwrap();
        assert!(sent.is_empty());
    }

    #[test]
    fn an_inbox_without_budget_leaves_messages_where_they_are() {
        let mut turn = Loop::new();
        let (mut a, mut b) = ends(&mut turn, "inproc://no-budget", MAX);
        a.writer.send(&mut batch(2, 1)).unwrap();
        assert!(!b.reader.recv(&mut Inbox::with_budget(0)).unwrap());
        assert!(!b.reader.recv(&mut Inbox::with_budget(1)).unwrap());
        assert!(b.reader.recv(&mut Inbox::with_budget(1)).unwrap());
    }

    #[test]
    fn the_end_comes_after_what_was_sent_by_shutdown_and_by_drop() {
        for by_shutdown in [true, false] {
            let mut turn = Loop::new();
            let (mut a, mut b) = ends(&mut turn, "inproc://drained", MAX);
            a.writer.send(&mut batch(3, 1)).unwrap();
            turn.notices();
            if by_shutdown {
                assert!(a.writer.shutdown().unwrap());
                assert_eq!(a.writer.send(&mut batch(1, 1)).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            } else {
                drop(a.writer);
            }
            assert_eq!(turn.notices(), [b.token]);
            let mut inbox = Inbox::with_budget(2);
            assert!(!b.reader.recv(&mut inbox).unwrap());
            let mut inbox = Inbox::with_budget(10);
            let end = b.reader.recv(&mut inbox).unwrap_err();
            assert_eq!((end.kind(), inbox.messages().len()), (io::ErrorKind::UnexpectedEof, 1));
            // The other direction lives.
            b.writer.send(&mut batch(1, 1)).unwrap();
            assert!(a.reader.recv(&mut Inbox::with_budget(2)).unwrap());
        }
    }

    #[test]
    fn when_the_receiver_has_gone_the_sender_is_told_and_keeps_its_batch() {
        let mut turn = Loop::new();
        let (mut a, b) = ends(&mut turn, "inproc://deaf", MAX);
        a.writer.send(&mut batch(3, 1)).unwrap();
        turn.notices();
        drop(b.reader);
        assert_eq!(turn.notices(), [a.token]);
        let mut sent = batch(2, 1);
        assert_eq!(a.writer.send(&mut sent).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(sent.len(), 2);
        assert_eq!(a.writer.send(&mut VecDeque::new()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn promise_08_a_message_over_the_receivers_limit_ends_the_pipe_after_those_before_it() {
        let mut turn = Loop::new();
        let (mut a, mut b) = ends(&mut turn, "inproc://too-big", 100);
        let mut over = Message::from(vec![0; 97]);
        over.push_word_front(1); // Header words count: 101 bytes.
        let mut sent = VecDeque::from([Message::from(vec![0; 100]), over, Message::from("after")]);
        a.writer.send(&mut sent).unwrap();
        let mut inbox = Inbox::with_budget(10);
        for _ in 0..2 {
            let error = b.reader.recv(&mut inbox).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let cause = error.get_ref().and_then(|e| e.downcast_ref::<WireError>());
            assert_eq!(cause, Some(&WireError::TooBig { size: 101, limit: 100 }));
        }
        assert_eq!(inbox.messages().len(), 1);
    }

    #[test]
    fn a_million_messages_cross_two_threads_without_a_lost_notice() {
        const COUNT: usize = 1_000_000;
        let mut turn = Loop::new();
        // A loop for each side, so that each waits only for its own notices.
        let mut there = Loop::new();
        let url = "inproc://threads";
        let mut listener = bind(&mut turn, url);
        let mut a = pipe(Inproc.dialer(url, &Bag::default()).unwrap().dial(None).unwrap());
        there.register(|r| a.register(r));
        let (_, mut b) = accept(&mut turn, &mut *listener);
        a.handshake(&hello(1)).unwrap();
        b.handshake(&hello(2)).unwrap();
        let (_reader, mut writer) = a.split().unwrap();
        let (mut reader, _writer) = b.split().unwrap();
        let sender = std::thread::spawn(move || {
            let mut next = 0..COUNT as u64;
            let mut out = VecDeque::new();
            loop {
                out.extend(next.by_ref().take(50).map(|i| Message::from(i.to_be_bytes())));
                if out.is_empty() {
                    return;
                }
                there.until("room", || {
                    writer.send(&mut out).unwrap();
                    out.is_empty().then_some(())
                });
            }
        });
        let mut got = 0u64;
        turn.until("the end", || {
            loop {
                let mut inbox = Inbox::with_budget(70);
                let left = reader.recv(&mut inbox);
                for msg in inbox.messages() {
                    assert_eq!(*msg, &got.to_be_bytes());
                    got += 1;
                }
                match left {
                    Ok(false) => {}
                    Ok(true) => return None,
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Some(()),
                    Err(e) => panic!("{e}"),
                }
            }
        });
        assert_eq!(got, COUNT as u64);
        sender.join().unwrap();
    }
}
