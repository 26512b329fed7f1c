//! Runs one socket as its arguments say, and finds out how it ended.
//!
//! One loop for each kind of socket; opening, sending, printing and closing are shared. No wait here polls: a
//! signal closes the socket, and that ends the wait.
//!
//! Owns: the order of things and the meaning of the exit codes. Never: prints anything but messages to the
//! standard output.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use spanwire::protocol::{Protocol, Receives, Sends};
use spanwire::{
    Builder, Error, Event, Message, Pair, Pub, Pull, Push, RecvError, Rep, Req, RequestError, SendError,
    Socket, Sub,
};

use crate::args;
use crate::args::{Both, Common, Format, Receiving, Replier, Requester, Sender, Sending, Subscriber, Type};
use crate::events::Watch;
use crate::format::format;
use crate::stop::{SIGNALLED, Stop};

/// Why it did not end with everything done.
#[derive(Debug)]
pub(crate) enum End {
    Failed(String),
    Usage(String),
    TimedOut(String),
    Undelivered(usize),
    /// A signal came first.
    Signalled,
    /// Nobody reads the standard output any more.
    OutputClosed,
}

impl End {
    pub(crate) fn code(&self) -> u8 {
        match self {
            End::Failed(_) | End::OutputClosed => 1,
            End::Usage(_) => 2,
            End::TimedOut(_) => 3,
            End::Undelivered(_) => 4,
            End::Signalled => SIGNALLED,
        }
    }

    /// What to say of it; nothing of an end that somebody else wanted.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            End::Failed(text) | End::Usage(text) | End::TimedOut(text) => Some(text.clone()),
            End::Undelivered(1) => Some("1 message undelivered at the end of --linger".into()),
            End::Undelivered(count) => Some(format!("{count} messages undelivered at the end of --linger")),
            End::Signalled | End::OutputClosed => None,
        }
    }
}

fn failed(error: impl fmt::Display) -> End {
    End::Failed(error.to_string())
}

pub(crate) fn run(socket: Type) -> Result<(), End> {
    match socket {
        Type::Push(args) => send_all(args, true, |args| build(Push::builder(), &args.common, None)),
        Type::Pub(args) => send_all(args, false, |args| build(Pub::builder(), &args.common, None)),
        Type::Pull(args) => pull(args),
        Type::Sub(args) => sub(args),
        Type::Req(args) => req(args),
        Type::Rep(args) => rep(args),
        Type::Pair(args) => pair(args),
    }
}

/// `waits`: where there is no peer.
fn send_all<S, P>(args: Sender, waits: bool, build: impl FnOnce(&Sender) -> Result<S, End>) -> Result<(), End>
where
    S: Deref<Target = Socket<P>>,
    P: Sends<Item = Message>,
{
    let body = read(args.source.data.as_ref(), args.source.file.as_deref())?;
    let body = body.unwrap_or_default();
    let socket = build(&args)?;
    let sending = &args.sending;
    let count = args.count.or(if sending.interval.is_some() { None } else { Some(1) });
    Session::open(&socket, &args.common, count.is_none())?.run(|session| {
        session.before_sending(&socket, sending)?;
        if waits {
            session.tell_if_alone(&socket, sending.send_timeout);
        }
        let mut turns = Turns::new(sending.interval, count);
        while turns.next(&session.stop)? {
            send(&socket, body.clone(), sending.send_timeout)?;
        }
        Ok(())
    })
}

fn pull(args: args::Receiver) -> Result<(), End> {
    let socket = build(Pull::builder(), &args.common, args.receiving.recv_max)?;
    Session::open(&socket, &args.common, args.count.is_none())?
        .run(|_| print_all(&socket, &args.receiving, args.count))
}

fn sub(args: Subscriber) -> Result<(), End> {
    let Subscriber { receiver: args, mut subscribe } = args;
    let socket = build(Sub::builder(), &args.common, args.receiving.recv_max)?;
    if subscribe.is_empty() {
        subscribe.push(OsString::new());
    }
    for prefix in subscribe {
        socket.subscribe(prefix.as_encoded_bytes());
    }
    Session::open(&socket, &args.common, args.count.is_none())?
        .run(|_| print_all(&socket, &args.receiving, args.count))
}

fn req(args: Requester) -> Result<(), End> {
    let body = read(args.source.data.as_ref(), args.source.file.as_deref())?.unwrap_or_default();
    let mut builder = Req::builder();
    if let Some(resend) = args.resend {
        builder = builder.resend(Some(resend));
    }
    let socket = build(builder, &args.common, args.receiving.recv_max)?;
    let sending = &args.sending;
    let count = args.count.or(if sending.interval.is_some() { None } else { Some(1) });
    Session::open(&socket, &args.common, count.is_none())?.run(|session| {
        session.before_sending(&socket, sending)?;
        // A request is taken without a peer, and waits for one: this is what there is to time out.
        if let Some(limit) = sending.send_timeout {
            session.wait_for(&socket, 1, Some(limit))?;
        }
        session.tell_if_alone(&socket, sending.send_timeout.or(args.receiving.recv_timeout));
        let mut turns = Turns::new(sending.interval, count);
        while turns.next(&session.stop)? {
            let reply = match args.receiving.recv_timeout {
                Some(limit) => socket.request_timeout(body.clone(), limit),
                None => socket.request(body.clone()),
            };
            print(&reply.map_err(request_end)?, args.receiving.format())?;
        }
        Ok(())
    })
}

fn rep(args: Replier) -> Result<(), End> {
    let body = read(args.source.data.as_ref(), args.source.file.as_deref())?;
    let socket = build(Rep::builder(), &args.common, args.receiving.recv_max)?;
    Session::open(&socket, &args.common, args.count.is_none())?.run(|_| {
        let mut left = Countdown(args.count);
        while left.more() {
            let request = match args.receiving.recv_timeout {
                Some(limit) => socket.recv_timeout(limit),
                None => socket.recv(),
            };
            let request = request.map_err(|e| recv_end(&e))?;
            print(&request, args.receiving.format())?;
            if let Some(body) = &body {
                request.reply(body.clone()).map_err(|e| send_end(&e))?;
            }
        }
        Ok(())
    })
}

fn pair(args: Both) -> Result<(), End> {
    let body = read(args.source.data.as_ref(), args.source.file.as_deref())?;
    let sending = &args.sending;
    if body.is_none() && sending.any() {
        return Err(End::Usage("options for sending need --data or --file".to_owned()));
    }
    let socket = build(Pair::builder(), &args.common, args.receiving.recv_max)?;
    Session::open(&socket, &args.common, args.count.is_none())?.run(|session| {
        let Some(body) = body else { return print_all(&socket, &args.receiving, args.count) };
        session.before_sending(&socket, sending)?;
        session.tell_if_alone(&socket, sending.send_timeout);
        let mut left = Countdown(args.count);
        let mut heard = Instant::now();
        loop {
            let sent = Instant::now();
            send(&socket, body.clone(), sending.send_timeout)?;
            let Some(interval) = sending.interval else {
                return print_all(&socket, &args.receiving, left.0);
            };
            // Later than the clock can tell is never.
            let due = sent.checked_add(interval);
            loop {
                if !left.some() {
                    return Ok(());
                }
                let now = Instant::now();
                // Also when there is always something to take.
                if due.is_some_and(|due| due <= now) {
                    break;
                }
                // Whichever is first: the next turn to send, or having heard nothing for too long.
                let quiet = args.receiving.recv_timeout.and_then(|limit| heard.checked_add(limit));
                let until = due.into_iter().chain(quiet).min();
                let wait = until.map_or(FOREVER, |until| until.saturating_duration_since(now));
                match socket.recv_timeout(wait) {
                    Ok(msg) => {
                        print(&msg, args.receiving.format())?;
                        heard = Instant::now();
                        left.more();
                    }
                    Err(RecvError::TimedOut) if until == due => {}
                    Err(e) => return Err(recv_end(&e)),
                }
            }
        }
    })
}

fn print_all<P>(socket: &Socket<P>, receiving: &Receiving, count: Option<u64>) -> Result<(), End>
where
    P: Receives<Item = Message>,
{
    let mut left = Countdown(count);
    while left.more() {
        print(&recv(socket, receiving.recv_timeout)?, receiving.format())?;
    }
    Ok(())
}

fn build<P: Protocol, S>(builder: Builder<P, S>, common: &Common, recv_max: Option<usize>) -> Result<S, End> {
    let builder = builder.linger(common.linger);
    let builder = match recv_max {
        Some(bytes) => builder.recv_max_size(bytes),
        None => builder,
    };
    builder.build().map_err(failed)
}

/// One open socket, from its addresses to its close.
struct Session<'a, P: Protocol> {
    socket: &'a Socket<P>,
    linger: Duration,
    /// It has no end of its own, so being ended is not a failure.
    endless: bool,
    stop: Stop,
    watch: Option<Watch>,
    /// Only looked at when something did not happen in time.
    events: Receiver<Event>,
}

impl<'a, P: Protocol> Session<'a, P> {
    fn open(socket: &'a Socket<P>, common: &Common, endless: bool) -> Result<Self, End> {
        let stop = Stop::default();
        let closer = socket.clone();
        let linger = common.linger;
        stop.on_signal(move || closer.close(linger).map_err(|e| e.to_string())).map_err(failed)?;
        // Before the addresses, so that nothing happens unseen.
        let watch = common.events.then(|| Watch::start(socket.events()));
        let session = Session { socket, linger, endless, stop, watch, events: socket.events() };
        for url in common.ends.binds() {
            socket.bind(&url).map_err(address_end)?;
        }
        for url in common.ends.connects() {
            socket.connect(&url).map_err(address_end)?;
        }
        Ok(session)
    }

    /// Does the work, then closes, whatever came of it.
    fn run(self, work: impl FnOnce(&Self) -> Result<(), End>) -> Result<(), End> {
        let result = work(&self).map_err(|end| match end {
            End::TimedOut(text) => End::TimedOut(format!("{text}{}", why_alone(&self.events))),
            end => end,
        });
        let signalled = self.stop.signalled();
        let closed = match signalled {
            true => self.stop.closed(),
            false => self.socket.close(self.linger).map_err(|e| e.to_string()),
        };
        if let Some(watch) = self.watch {
            watch.finish();
        }
        match (result, closed) {
            (Err(End::OutputClosed), Ok(0)) if self.endless => Ok(()),
            // A signal ends every wait with an error that is not one.
            (Err(End::Signalled | End::Failed(_)), closed) if signalled => match closed {
                Ok(0) if self.endless => Ok(()),
                Ok(0) => Err(End::Signalled),
                Ok(left) => Err(End::Undelivered(left)),
                Err(text) => Err(End::Failed(text)),
            },
            (Err(end), _) => Err(end),
            (Ok(()), Ok(0)) => Ok(()),
            (Ok(()), Ok(left)) => Err(End::Undelivered(left)),
            (Ok(()), Err(text)) => Err(End::Failed(text)),
        }
    }

    fn before_sending(&self, socket: &Socket<P>, sending: &Sending) -> Result<(), End> {
        self.wait_for(socket, sending.peers, sending.send_timeout)?;
        match sending.delay {
            Some(delay) if !self.stop.sleep(delay) => Err(End::Signalled),
            _ => Ok(()),
        }
    }

    /// A send to nobody waits, perhaps for ever: then it says so, once.
    fn tell_if_alone(&self, socket: &Socket<P>, limit: Option<Duration>) {
        const PATIENCE: Duration = Duration::from_secs(2);
        if limit.is_none() && !socket.wait_for_peers(1, PATIENCE) && !self.stop.signalled() {
            eprintln!("spanwire: no peer yet, waiting for one{}", why_alone(&self.events));
        }
    }

    fn wait_for(&self, socket: &Socket<P>, peers: usize, limit: Option<Duration>) -> Result<(), End> {
        let limit = limit.unwrap_or(FOREVER);
        if peers == 0 || socket.wait_for_peers(peers, limit) {
            return Ok(());
        }
        match self.stop.signalled() {
            true => Err(End::Signalled),
            false => Err(End::TimedOut(format!("{} of {peers} peers came in time", socket.peers()))),
        }
    }
}

/// A hundred years, which every clock can add to its time.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// When to send: at once, then at each interval, as often as wanted.
struct Turns {
    interval: Duration,
    due: Option<Instant>,
    left: Countdown,
}

impl Turns {
    fn new(interval: Option<Duration>, count: Option<u64>) -> Self {
        Turns { interval: interval.unwrap_or_default(), due: None, left: Countdown(count) }
    }

    /// Waits for the next turn; `false`: there is none.
    fn next(&mut self, stop: &Stop) -> Result<bool, End> {
        if !self.left.more() {
            return Ok(false);
        }
        let now = Instant::now();
        let wait = self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now));
        // Counted from this turn's start: a turn that took too long is not made up for.
        self.due = (now + wait).checked_add(self.interval);
        match stop.sleep(wait) {
            true => Ok(true),
            false => Err(End::Signalled),
        }
    }
}

/// How many are still wanted; `None` is without end.
struct Countdown(Option<u64>);

impl Countdown {
    fn some(&self) -> bool {
        self.0 != Some(0)
    }

    /// Whether another is wanted, which is then no longer so.
    fn more(&mut self) -> bool {
        let some = self.some();
        self.0 = self.0.map(|left| left.saturating_sub(1));
        some
    }
}

fn send<P: Sends<Item = Message>>(
    socket: &Socket<P>,
    msg: Message,
    limit: Option<Duration>,
) -> Result<(), End> {
    let sent = match limit {
        Some(limit) => socket.send_timeout(msg, limit),
        None => socket.send(msg),
    };
    sent.map_err(|e| send_end(&e))
}

fn recv<P: Receives>(socket: &Socket<P>, limit: Option<Duration>) -> Result<P::Item, End> {
    let got = match limit {
        Some(limit) => socket.recv_timeout(limit),
        None => socket.recv(),
    };
    got.map_err(|e| recv_end(&e))
}

/// Of each address that could not be connected to or whose peer was refused, the last reason.
fn why_alone(events: &Receiver<Event>) -> String {
    let mut reasons = BTreeMap::new();
    for event in events.try_iter() {
        match event {
            Event::ConnectFailed { url, error, .. } => reasons.insert(url, error),
            Event::Rejected { remote, reason, .. } => reasons.insert(remote, format!("refused: {reason}")),
            _ => None,
        };
    }
    reasons.into_iter().map(|(at, why)| format!("; {at}: {why}")).collect()
}

fn address_end(error: Error) -> End {
    match &error {
        Error::UnknownScheme { .. } | Error::Connect { .. } => End::Usage(error.to_string()),
        Error::Bind { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
            End::Usage(error.to_string())
        }
        _ => failed(error),
    }
}

fn send_end(error: &SendError<Message>) -> End {
    match error {
        SendError::TimedOut(_) => End::TimedOut("the message could not be sent in time".to_owned()),
        other => failed(other),
    }
}

fn recv_end(error: &RecvError) -> End {
    match error {
        RecvError::TimedOut => End::TimedOut("nothing came in time".to_owned()),
        other => failed(other),
    }
}

fn request_end(error: RequestError) -> End {
    match error {
        RequestError::TimedOut => End::TimedOut("no reply came in time".to_owned()),
        other => failed(other),
    }
}

/// The message to send, if there is one.
fn read(data: Option<&OsString>, file: Option<&Path>) -> Result<Option<Message>, End> {
    let bytes = match (data, file) {
        (Some(data), _) => data.as_encoded_bytes().to_vec(),
        (None, Some(path)) => {
            read_file(path).map_err(|e| failed(format!("{}: {e}", named(path).display())))?
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(Message::from_bytes(bytes.into())))
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    if path != Path::new("-") {
        return std::fs::read(path);
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn named(path: &Path) -> PathBuf {
    if path == Path::new("-") { "failed to read the standard input".into() } else { path.into() }
}

/// Writes one message and flushes: whoever reads must not wait for the next one to see it.
fn print(body: &[u8], how: Format) -> Result<(), End> {
    let mut out = io::stdout().lock();
    match out.write_all(&format(body, how)).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(End::OutputClosed),
        Err(e) => Err(failed(format!("failed to write to the standard output: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_countdown_gives_as_many_as_wanted_and_without_a_count_never_ends() {
        let mut three = Countdown(Some(3));
        assert_eq!((0..5).map(|_| three.more()).collect::<Vec<_>>(), [true, true, true, false, false]);
        let mut endless = Countdown(None);
        assert!((0..100).all(|_| endless.more()));
    }

    #[test]
    fn turns_come_at_once_without_an_interval_and_end_with_the_count() {
        let stop = Stop::default();
        let mut turns = Turns::new(None, Some(2));
        let next = |turns: &mut Turns| turns.next(&stop).expect("no signal came");
        assert!(next(&mut turns) && next(&mut turns) && !next(&mut turns));
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let error = read(None, Some(Path::new("/no/such/file"))).expect_err("it does not exist");
        assert_eq!(error.code(), 1);
        assert!(error.text().is_some_and(|text| text.contains("/no/such/file")));
    }
}
