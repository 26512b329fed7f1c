//! What an authority answers its clients: behind the control socket, a desk for each namespace.
//!
//! One thread takes requests and answers each at once, at the desk of the namespace that it begins with; only what has to
//! wait (WAIT, and LOG for a commit that is not there yet) is put aside, for a second thread of that desk that is woken by
//! reports and revisions. Where a directory is what is published, all that would change the namespace is refused.
//!
//! Owns: the meaning of the client's messages. Never: decides a commit (the machine does), or waits for a client.

mod write;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use spanwire::protocol::{Time, WaitKey};
use spanwire::{Rep, WaitError};

use crate::process::{Log, ProcessError};
use crate::serve::{Authority, Config, bind};
use crate::source::LogCommit;
use crate::wait::{Goal, Look, Outcome, Wait};
use crate::wire::client::{
    Ask, CommitLine, Commits, Entries, InvalidCode, LogAsk, MAX_COMMITS, MAX_LISTED, Named, NodeLine, Nodes,
    Order, PAGE, ReadAsk, Reply, RolloutLine, StatusAsk, Tip, WaitAsk, Writable,
};
use crate::{
    Change, Head, Intent, Invalid, Limits, Mode, Namespace, NodeStatus, NsAuthority, Place, Position,
    ReadOnly, Request, State,
};
use write::{Write, begin, holdings, read_only, refused};

/// Most requests that wait at once.
const MAX_PARKED: usize = 1024;
/// Longest that a request waits.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);
/// Beside the keys that a namespace has by itself: woken when a request is put aside.
const PARKED: u64 = 16;
/// How long a reply waits for room: who does not take replies gets none.
const ROOM: Duration = Duration::from_millis(10);

/// Listens for clients; says where in `heard`.
pub(crate) fn listen(config: &Config, heard: &mut Vec<String>) -> Result<Rep, ProcessError> {
    let largest = usize::try_from(config.limits.request()).unwrap_or(usize::MAX);
    let rep = Rep::builder().recv_max_size(largest).build()?;
    for url in &config.control {
        let endpoint = bind(&rep, url)?;
        heard.push(format!("clients at {}", endpoint.url()));
    }
    Ok(rep)
}

/// The desks of a running server, and who takes requests to them.
pub(crate) struct Control {
    rep: Rep,
    asks: JoinHandle<()>,
    waits: Vec<JoinHandle<()>>,
}

impl Control {
    /// For each namespace its machine, what is served of it, and where it logs.
    pub(crate) fn start<'s>(
        rep: Rep,
        served: impl IntoIterator<Item = (&'s Arc<Authority>, &'s Config, &'s Log)>,
    ) -> Control {
        let desk = |(authority, config, log): (&Arc<Authority>, &Config, &Log)| {
            let directory = config.dir.as_ref().map(|dir| {
                format!("{} on the server is what is published: make the change there", dir.display())
            });
            let WaitKey(of, key) = authority.with(|d, _| d.wait_key());
            Arc::new(Desk {
                authority: authority.clone(),
                rep: rep.clone(),
                namespace: config.namespace.clone(),
                limits: config.limits,
                directory,
                keys: (WaitKey(of, key), WaitKey(of, key | PARKED)),
                open: Mutex::default(),
                log: log.clone(),
            })
        };
        let desks: Vec<Arc<Desk>> = served.into_iter().map(desk).collect();
        let waits =
            (desks.iter().cloned()).map(|desk| std::thread::spawn(move || desk.serve_parked())).collect();
        let asks = std::thread::spawn({
            let rep = rep.clone();
            move || rep.iter().for_each(|request| take(&desks, request))
        });
        Control { rep, asks, waits }
    }

    /// Takes no request any more; what waits is not answered, and its clients ask again.
    pub(crate) fn close(&self) {
        let _ = self.rep.close(Duration::from_secs(1));
    }

    /// Once both sockets are closed.
    pub(crate) fn join(self) {
        let _ = self.asks.join();
        self.waits.into_iter().for_each(|waits| drop(waits.join()));
    }
}

/// One request, from its bytes to its answer.
fn take(desks: &[Arc<Desk>], request: spanwire::Request) {
    let Some(first) = desks.first() else { return };
    let reply = match Ask::decode(&request.body().clone().into_bytes()) {
        Ok(Ask::Unknown(kind)) => {
            invalid(InvalidCode::Malformed, format!("request type {kind} is not known here: a newer client?"))
        }
        Ok(ask) => match desks.iter().find(|desk| ask.namespace() == Some(&desk.namespace)) {
            Some(desk) => return desk.take(request, ask),
            None => {
                let asked = ask.namespace().unwrap_or_default();
                invalid(InvalidCode::Namespace, not_served(desks, asked))
            }
        },
        Err(why) => invalid(InvalidCode::Malformed, format!("not understood: {why}")),
    };
    first.reply(request, &reply);
}

/// The highest that nodes show.
fn shown(machine: &NsAuthority) -> Place {
    machine.holdings().first().map(|(held, ..)| held.position.into()).unwrap_or_default()
}

/// Which namespaces there are, as far as a text has room.
fn not_served(desks: &[Arc<Desk>], asked: &str) -> String {
    let names: Vec<&str> = desks.iter().map(|desk| &desk.namespace[..]).collect();
    match names[..] {
        [name] => format!("there is no namespace {asked:?}: the namespace served here is {name}"),
        _ => format!(
            "there is no namespace {asked:?}: the {} namespaces served here are {}",
            names.len(),
            names.join(", ")
        ),
    }
}

/// A request that waits, and for what.
struct Parked {
    request: spanwire::Request,
    deadline: Instant,
    until: Until,
}

enum Until {
    Reached(Wait),
    Commit(LogAsk),
}

#[derive(Default)]
struct Open {
    parked: Vec<Parked>,
    /// One was added since somebody looked for the next deadline.
    added: bool,
}

/// What came of a request that waited.
enum Ended {
    With(Reply),
    Look(LogAsk),
    /// The rollout of what is waited for is over: promoted, or aborted.
    Settled(Wait, Instant),
}

impl Open {
    /// Takes out what has ended by now: all whose time is over, and all that has what it waits for.
    fn take_ended(&mut self, sender: &Namespace, now: Instant) -> Vec<(spanwire::Request, Ended)> {
        if self.parked.is_empty() {
            return Vec::new();
        }
        let head = sender.head().map(|head| head.position).unwrap_or_default();
        let reports = self.parked.iter().any(|parked| matches!(parked.until, Until::Reached(_)));
        let status = if reports { sender.status() } else { Vec::new() };
        let mut ended = Vec::new();
        for index in (0..self.parked.len()).rev() {
            let parked = &self.parked[index];
            let over = now >= parked.deadline;
            let reply = match &parked.until {
                Until::Reached(wait) => match wait.look(sender, &status, over) {
                    Look::Open => None,
                    Look::Ended(outcome) => Some(Ended::With(wait_reply(outcome))),
                    Look::Settled => Some(Ended::Settled(wait.clone(), parked.deadline)),
                },
                Until::Commit(ask) => {
                    (over || Place::from(head) > ask.bound).then(|| Ended::Look(ask.clone()))
                }
            };
            if let Some(reply) = reply {
                ended.push((self.parked.swap_remove(index).request, reply));
            }
        }
        ended
    }
}

/// The answer to WAIT.
fn wait_reply(outcome: Outcome) -> Reply {
    match outcome {
        Outcome::Waited(waited) => Reply::Waited(waited),
        Outcome::Aborted => Reply::Aborted,
        Outcome::Lost(head) => Reply::Lost(head),
        Outcome::NoSuch => nothing_yet(),
    }
}

struct Desk {
    authority: Arc<Authority>,
    rep: Rep,
    namespace: String,
    limits: Limits,
    /// Why clients may not commit.
    directory: Option<String>,
    /// Woken when reports or revisions come, and when a request is put aside.
    keys: (WaitKey, WaitKey),
    /// Taken within the sender's socket and around the clients', never around the sender's or the machine.
    open: Mutex<Open>,
    log: Log,
}

/// What comes of a request at once.
enum Said {
    Now(Reply),
    Write(Write),
}

/// A request that cannot be answered now.
struct Later(Duration, Until);

impl Desk {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, request: spanwire::Request, ask: Ask) {
        match self.answer(ask) {
            Ok(Said::Now(reply)) => self.reply(request, &reply),
            Ok(Said::Write(write)) => self.write(request, write),
            Err(later) => self.park(request, later),
        }
    }

    fn reply(&self, mut request: spanwire::Request, reply: &Reply) {
        match request.reply_timeout(reply.encode(), ROOM) {
            Ok(()) | Err(spanwire::SendError::Closed(_)) => {}
            Err(error) => {
                self.log.say(format_args!("a client takes no replies; this one is dropped: {error}"))
            }
        }
    }

    fn park(&self, request: spanwire::Request, Later(time, until): Later) {
        let parked = Parked { request, deadline: Instant::now() + time.min(MAX_WAIT), until };
        let mut open = self.open();
        if open.parked.len() >= MAX_PARKED {
            // Whose connection is gone asks again by another, or not at all.
            self.rep.with(|_, cx| open.parked.retain(|parked| cx.info(parked.request.pipe()).is_some()));
        }
        if open.parked.len() >= MAX_PARKED {
            drop(open);
            return self.reply(parked.request, &busy(1000));
        }
        open.parked.push(parked);
        open.added = true;
        drop(open);
        self.authority.with(|_, cx| {
            cx.wake(self.keys.0);
            cx.wake(self.keys.1);
        });
    }

    /// Answers what waits, until the nodes' socket is closed.
    fn serve_parked(&self) {
        let (reports, added) = self.keys;
        loop {
            // Every report of every node would wake this thread for nothing.
            let key = if self.open().parked.is_empty() { added } else { reports };
            let next = self.open().parked.iter().map(|parked| parked.deadline).min();
            let left = next.map(|next| next.saturating_duration_since(Instant::now()));
            let (mut looks, mut cost) = (0, Duration::ZERO);
            let ended = self.authority.wait(key, left, |d| {
                let now = Instant::now();
                let mut open = self.open();
                let ended = open.take_ended(&d, now);
                looks += 1;
                cost = now.elapsed();
                // The second look in a row is the last: see below.
                let enough = std::mem::take(&mut open.added) || looks > 1 || !ended.is_empty();
                enough.then_some(ended)
            });
            let ended = match ended {
                Ok(ended) => ended,
                Err(WaitError::TimedOut) => {
                    self.authority.with(|d, _| self.open().take_ended(&d, Instant::now()))
                }
                Err(_) => return,
            };
            for (request, ended) in ended {
                let reply = match ended {
                    Ended::With(reply) => reply,
                    Ended::Look(ask) => self.log(&ask),
                    Ended::Settled(wait, deadline) => {
                        match self.authority.look(|machine| wait.settle(machine)) {
                            Err(outcome) => wait_reply(outcome),
                            Ok(wait) => {
                                let left = deadline.saturating_duration_since(Instant::now());
                                self.park(request, Later(left, Until::Reached(wait)));
                                continue;
                            }
                        }
                    }
                };
                self.reply(request, &reply);
            }
            // Reports come in swarms, and each look is at all nodes: a tenth of the time at most goes to looking. The rest is
            // a pause on purpose, which no condition may end.
            std::thread::sleep(cost.saturating_mul(9).min(Duration::from_millis(200)));
        }
    }

    fn answer(&self, ask: Ask) -> Result<Said, Later> {
        Ok(Said::Now(match ask {
            Ask::Commit(ask) => {
                return Ok(Said::Write(Write::Commit(Request {
                    request: ask.request,
                    expect: ask.expect,
                    intent: Intent::Change(ask.changes),
                    author: ask.author,
                    note: ask.note,
                    stamp: now_ms(),
                    rollout: ask.rollout,
                    supersede: ask.supersede,
                })));
            }
            Ask::Revert(ask) => {
                return Ok(Said::Write(Write::Commit(Request {
                    request: ask.request,
                    expect: ask.expect,
                    intent: Intent::Revert(ask.to),
                    author: ask.author,
                    note: ask.note,
                    stamp: now_ms(),
                    rollout: ask.rollout,
                    supersede: ask.supersede,
                })));
            }
            Ask::Import(ask) => {
                let who = write::by(ask.expect, ask.author, ask.note);
                return Ok(Said::Write(Write::Import(ask.request, who, ask.state)));
            }
            Ask::Rollout(ask) => return Ok(Said::Write(Write::Step(ask))),
            Ask::Begin(ask) => match self.authority.look(|machine| begin(machine, &ask)) {
                Ok(write) => return Ok(Said::Write(write)),
                Err(reply) => *reply,
            },
            Ask::Holdings(_) => {
                self.authority.judge_shown();
                self.authority.look(holdings)
            }
            Ask::Read(ask) => self.authority.look(|machine| read(machine, &ask)),
            Ask::Status(ask) => self.status(&ask),
            Ask::Log(ask) => {
                let newest = self.newest();
                let waits = ask.order == Order::Forward && ask.bound >= newest && ask.wait_ms > 0;
                if waits {
                    return Err(Later(Duration::from_millis(ask.wait_ms.into()), Until::Commit(ask)));
                }
                self.log(&ask)
            }
            Ask::Wait(ask) => self.wait(&ask)?,
            Ask::Unknown(_) => invalid(InvalidCode::Malformed, "unknown".into()),
        }))
    }

    fn newest(&self) -> Place {
        self.authority.look(|machine| machine.position().map(Place::from).unwrap_or_default())
    }

    fn status(&self, ask: &StatusAsk) -> Reply {
        // What is told of a rollout is not older than what is told of its nodes.
        self.authority.count_cohort();
        let now = self.authority.with(|_, cx| cx.now());
        let mut nodes = self.authority.look(|machine| {
            let (writable, text) = match (machine.mode(), &self.directory) {
                (Mode::ReadOnly(why), _) => read_only(why, machine.highest()),
                (_, Some(text)) => (Writable::Directory, text.clone()),
                (Mode::Vacant, None) => read_only(&ReadOnly::Vacant, shown(machine)),
                (Mode::Serving, None) => (Writable::Yes, String::new()),
            };
            let tip = machine.durable().map(|durable| tip(&durable.head)).unwrap_or_default();
            let (oldest, limits) = (machine.oldest(), self.limits);
            let rollout = rollout_line(machine, now);
            Nodes { tip, writable, text, oldest, limits, rollout, more: false, nodes: Vec::new() }
        });
        let mut size = 0;
        for status in self.authority.with(|d, _| d.status()) {
            if ask.after.is_some_and(|after| status.node <= after) {
                continue;
            }
            if size >= PAGE {
                nodes.more = true;
                break;
            }
            let line = node_line(status);
            size += size_of(|out| line.encode(out));
            nodes.nodes.push(line);
        }
        Reply::Nodes(Box::new(nodes))
    }

    fn log(&self, ask: &LogAsk) -> Reply {
        self.authority.look(|machine| log(machine, ask))
    }

    fn wait(&self, ask: &WaitAsk) -> Result<Reply, Later> {
        let goal = match self.authority.look(|machine| (Goal::of(machine, ask), machine.position())) {
            (Ok(goal), _) => goal,
            (Err(Outcome::NoSuch), Some(_)) => return Ok(refused(&Invalid::NoSuch(ask.position))),
            (Err(outcome), _) => return Ok(wait_reply(outcome)),
        };
        self.authority.with(|d, _| {
            let status = d.status();
            let wait = Wait::new(&goal, &ask.selector, &status);
            match wait.look(&d, &status, ask.timeout_ms == 0) {
                Look::Ended(outcome) => Ok(wait_reply(outcome)),
                Look::Open | Look::Settled => {
                    Err(Later(Duration::from_millis(ask.timeout_ms.into()), Until::Reached(wait)))
                }
            }
        })
    }
}

/// Bytes that something takes in a message.
fn size_of(encode: impl FnOnce(&mut Vec<u8>)) -> usize {
    let mut out = Vec::new();
    encode(&mut out);
    out.len()
}

pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn busy(after_ms: u32) -> Reply {
    Reply::Busy { after_ms, rollout: None }
}

fn invalid(code: InvalidCode, text: String) -> Reply {
    Reply::Invalid { code, oldest: Place::default(), text }
}

fn nothing_yet() -> Reply {
    invalid(InvalidCode::NoSuch, "nothing was committed here yet".into())
}

fn tip(head: &Head) -> Tip {
    Tip { position: head.position, digest: head.digest, keys: head.keys, bytes: head.bytes }
}

fn rollout_line(machine: &NsAuthority, now: Time) -> Option<RolloutLine> {
    let (open, tally, lasts) = machine.rollout(now)?;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Some(RolloutLine {
        at: machine.position()?.into(),
        for_all: open.for_all.head.position.into(),
        plan: (*open.plan).clone(),
        stage: u8::try_from(open.stage).unwrap_or(u8::MAX),
        paused: open.paused,
        nodes: count(tally.nodes),
        applied: count(tally.applied),
        refused: count(tally.refused),
        lasts_ms: u32::try_from(lasts.as_millis()).unwrap_or(u32::MAX),
    })
}

fn node_line(status: NodeStatus) -> NodeLine {
    let place = |position: Option<Position>| position.map(Place::from).unwrap_or_default();
    NodeLine {
        stored: place(status.stored),
        visible: place(status.visible),
        applied: place(status.applied),
        node: Named { node: status.node, name: status.name },
        labels: status.labels,
        kind: status.kind,
        connected: status.connected,
        conflict: status.conflict,
        refused: status.refused.into_iter().map(|(at, code, text)| (at.into(), code, text)).collect(),
    }
}

fn read(machine: &NsAuthority, ask: &ReadAsk) -> Reply {
    let (position, state) = match machine.read(ask.at) {
        Ok(read) => read,
        Err(Invalid::NoSuch(place)) if place == Place::default() => return nothing_yet(),
        Err(why) => return refused(&why),
    };
    let of = Tip { position, digest: state.digest(), keys: state.keys(), bytes: state.bytes() };
    let mut page = Entries { of, more: false, entries: State::new() };
    for (key, entry) in state.iter_from((&ask.after).max(&ask.prefix)) {
        if *key.as_bytes() == ask.after[..] {
            continue;
        }
        if !key.as_bytes().starts_with(&ask.prefix) {
            break;
        }
        let full = page.entries.bytes() >= PAGE as u64 || page.entries.keys() >= PAGE as u32 / 16;
        if full || ask.max > 0 && page.entries.keys() >= ask.max {
            page.more = true;
            break;
        }
        page.entries.put(key.clone(), entry.clone());
    }
    Reply::Entries(Box::new(page))
}

fn log(machine: &NsAuthority, ask: &LogAsk) -> Reply {
    let head = machine.position().map(Place::from).unwrap_or_default();
    let oldest = machine.oldest();
    if ask.order == Order::Forward && ask.bound < oldest {
        return refused(&Invalid::Compacted { oldest });
    }
    let mut page = Commits { head, ..Commits::default() };
    let most = if ask.max == 0 { MAX_COMMITS } else { usize::from(ask.max).min(MAX_COMMITS) };
    let mut size = 0;
    let mut add = |(position, commit): (Position, &LogCommit)| {
        if size >= PAGE || page.commits.len() >= most {
            page.more = true;
            return false;
        }
        let line = commit_line(position.into(), commit);
        size += size_of(|out| line.encode(out));
        page.commits.push(line);
        true
    };
    match ask.order {
        Order::Back => {
            let all = ask.bound == Place::default();
            let mut older = machine.history().filter(|(at, _)| all || Place::from(*at) < ask.bound);
            while older.next().is_some_and(&mut add) {}
        }
        Order::Forward => {
            let newer: Vec<_> =
                machine.history().take_while(|(at, _)| Place::from(*at) > ask.bound).collect();
            let mut newer = newer.into_iter().rev();
            while newer.next().is_some_and(&mut add) {}
        }
    }
    Reply::Commits(page)
}

fn commit_line(at: Place, commit: &LogCommit) -> CommitLine {
    let put = |change: &Change| matches!(change, Change::Put(_));
    let puts = commit.changes.iter().filter(|(_, change)| put(change)).count();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    CommitLine {
        at,
        request: commit.request,
        author: commit.author.clone(),
        note: commit.note.clone(),
        stamp: commit.stamp,
        digest: commit.digest,
        puts: count(puts),
        deletes: count(commit.changes.len() - puts),
        keys: (commit.changes.iter().take(MAX_LISTED))
            .map(|(key, change)| (key.clone(), put(change)))
            .collect(),
    }
}
