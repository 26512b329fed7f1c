//! What an operator or a program asks of an authority: commit, read, wait, watch, go back.
//!
//! A [`Client`] is a REQ socket to the control address of an authority, and the messages of [`wire::client`]. Every
//! commit has a request id, so a request may be sent again (the socket does, when its connection ends) and is
//! committed once.
//!
//! ```no_run
//! use spanwire_config::client::{Client, Commit};
//! use spanwire_config::{ChangeSet, Key};
//!
//! let client = Client::connect("ipc:///run/config.ipc", "config")?;
//! let mut changes = ChangeSet::new();
//! changes.put(Key::new("db/host")?, 0, "10.0.0.2");
//! let done = client.commit(&Commit::new(changes)?)?;
//! println!("revision {} of epoch {}", done.at.rev, done.at.epoch);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Owns: pages put together, deadlines, errors in words. Never: decides for its caller that a conflict may be
//! overwritten.
//!
//! [`wire::client`]: crate::wire::client

mod export;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use spanwire::{Event, Req, RequestError};

use crate::rollout::Plan;
use crate::wire::DecodeError;
use crate::wire::client::{
    Ask, BeginAsk, BeginWith, CommitAsk, Commits, Holding, ImportAsk, InvalidCode, LogAsk, Nodes, Order,
    ReadAsk, Reply, RevertAsk, RolloutAsk, Selector, StatusAsk, Step, Tip, WaitAsk, Waited, Writable,
};
use crate::{ChangeSet, Digest, Entry, Id, Key, Level, Limits, Place, State};

pub use export::{Export, ExportError};

/// Largest reply that is taken, in bytes: a page, or one large value.
const MAX_REPLY: usize = 65 << 20;

/// A request of so many bytes is taken by every server, whatever its limits.
const SMALL: usize = 1 << 20;

/// A client of one namespace at one authority.
#[derive(Clone, Debug)]
pub struct Client {
    req: Req,
    namespace: String,
    timeout: Duration,
    attempts: Arc<Attempts>,
}

/// How connecting went.
#[derive(Debug)]
struct Attempts {
    events: Receiver<Event>,
    /// What the last one that failed met with.
    last: Mutex<Option<String>>,
}

/// A commit to ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Names the request: the same for a repeat of it, another for another.
    pub request: Id,
    /// Only if the newest position is this; (0, 0): only as the first.
    pub expect: Option<Place>,
    /// What to change.
    pub changes: ChangeSet,
    /// Who: at most 256 bytes.
    pub author: String,
    /// Why: at most 1 KiB.
    pub note: String,
    /// For a cohort first, by this plan: it opens a rollout. Default: for all at once.
    pub rollout: Option<Plan>,
    /// If a rollout is open, this ends it, and changes the content that all others have; what is expected is the
    /// rollout's revision. Default: not, and [`ClientError::Rollout`] says that one is open.
    pub supersede: bool,
}

impl Commit {
    /// These changes, whatever the newest position is, under a new request id.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new(changes: ChangeSet) -> std::io::Result<Commit> {
        let (author, note) = (String::new(), String::new());
        let request = Id::random()?;
        Ok(Commit { request, expect: None, changes, author, note, rollout: None, supersede: false })
    }
}

/// A commit that gives the namespace the content of an earlier revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revert {
    /// As in [`Commit`].
    pub request: Id,
    /// As in [`Commit`].
    pub expect: Option<Place>,
    /// The earlier revision.
    pub to: Place,
    /// Who: at most 256 bytes.
    pub author: String,
    /// Why: at most 1 KiB.
    pub note: String,
    /// As in [`Commit`].
    pub rollout: Option<Plan>,
    /// As in [`Commit`].
    pub supersede: bool,
}

/// A new epoch, and who begins it. Of an [`Id`] alone: nobody, whatever the newest revision is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begin {
    /// Names the request, and is the incarnation of the epoch. Random: a repeat with the same begins no further one.
    pub request: Id,
    /// As in [`Commit`].
    pub expect: Option<Place>,
    /// Who: at most 256 bytes.
    pub author: String,
    /// Why: at most 1 KiB; if empty, that an epoch begins.
    pub note: String,
}

impl From<Id> for Begin {
    fn from(request: Id) -> Begin {
        Begin { request, expect: None, author: String::new(), note: String::new() }
    }
}

/// Who takes a step of a rollout. Of an [`Id`] alone: nobody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stepping {
    /// Names the request: random, the same for a repeat.
    pub request: Id,
    /// Who: at most 256 bytes.
    pub author: String,
    /// Why: at most 1 KiB; if empty, what was done.
    pub note: String,
}

impl From<Id> for Stepping {
    fn from(request: Id) -> Stepping {
        Stepping { request, author: String::new(), note: String::new() }
    }
}

/// A commit is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Where it is.
    pub at: Place,
    /// Digest of the content there.
    pub digest: Digest,
    /// An earlier copy of the request did it.
    pub replay: bool,
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The newest position is another than expected; nothing was done.
    #[error("conflict: the newest revision is {}:{}, another than expected", .head.epoch, .head.rev)]
    Conflict {
        /// The newest.
        head: Place,
    },
    /// It will never succeed as it is; nothing was done.
    #[error("{text}")]
    Invalid {
        /// What is wrong.
        code: InvalidCode,
        /// The oldest position kept, for [`InvalidCode::Compacted`].
        oldest: Place,
        /// In words.
        text: String,
    },
    /// The authority is busy, and was for as long as there was time; nothing was done.
    #[error("the server is busy; try again")]
    Busy,
    /// A rollout is open, of this: it has to end first, or be superseded. Nothing was done.
    #[error("the rollout of {}:{} is open: promote it, abort it, or supersede it", .at.epoch, .at.rev)]
    Rollout {
        /// Its revision.
        at: Place,
    },
    /// The authority takes no changes.
    #[error("read-only: {text}")]
    ReadOnly {
        /// Why.
        why: Writable,
        /// In words, and what to do.
        text: String,
    },
    /// What was waited for belongs to an epoch that is over.
    #[error("lost: the epoch changed; the newest revision is {}:{}", .head.epoch, .head.rev)]
    Lost {
        /// The newest.
        head: Place,
    },
    /// The rollout of what was waited for was aborted.
    #[error("its rollout was aborted")]
    Aborted,
    /// No answer came in time, or none can come. A commit may be durable all the same: its repeat, under the same
    /// request id, tells.
    #[error("no answer: {0}")]
    Unanswered(RequestError),
    /// There never was a connection, so nothing was asked and nothing was done: as [`Client::trouble`].
    #[error("{0}")]
    Unreachable(String),
    /// The socket cannot be used.
    #[error(transparent)]
    Socket(#[from] spanwire::Error),
    /// The answer is no answer to the request.
    #[error("the answer cannot be understood: {0}")]
    Answer(Misunderstood),
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Misunderstood {
    /// It is no message.
    #[error(transparent)]
    Bytes(#[from] DecodeError),
    /// It answers another kind of request.
    #[error("it is of another kind than the request")]
    Kind,
    /// The entries are not the content that they are said to be.
    #[error("the content has another digest than the revision")]
    Digest,
}

type Result<T> = std::result::Result<T, ClientError>;

impl Client {
    /// A client at this address; it connects in the background, and again when the connection is lost.
    ///
    /// # Errors
    /// An address that makes no sense, or the system's.
    pub fn connect(url: &str, namespace: impl Into<String>) -> Result<Client> {
        let req = Req::builder().recv_max_size(MAX_REPLY).build()?;
        let attempts = Arc::new(Attempts { events: req.events(), last: Mutex::default() });
        req.connect(url)?;
        Ok(Client { req, namespace: namespace.into(), timeout: Duration::from_secs(10), attempts })
    }

    /// Why there has been no connection so far, in words; `None` once there was one, and as long as no attempt failed.
    /// Attempts go on: a server may be about to start.
    pub fn trouble(&self) -> Option<String> {
        let mut last = self.attempts.last.lock().unwrap_or_else(PoisonError::into_inner);
        for event in self.attempts.events.try_iter() {
            match event {
                Event::ConnectFailed { url, error, .. } => {
                    *last = Some(format!("cannot reach {url}: {error}"))
                }
                Event::Rejected { remote, reason, .. } => {
                    *last = Some(format!("{remote} answers as no control address does: {reason}"));
                }
                _ => {}
            }
        }
        // Events may have been lost.
        last.clone().filter(|_| self.req.stats().attached == 0)
    }

    /// How long an answer may take; for what waits, beyond that. Default: 10 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Client {
        self.timeout = timeout;
        self
    }

    /// A client of another namespace at the same authority, over the same connection if it is that of a clone.
    #[must_use]
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Client {
        self.namespace = namespace.into();
        self
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Makes a commit.
    ///
    /// # Errors
    /// [`ClientError::Conflict`], [`ClientError::Invalid`], [`ClientError::ReadOnly`], [`ClientError::Rollout`], or no
    /// answer.
    pub fn commit(&self, commit: &Commit) -> Result<Committed> {
        let Commit { request, expect, changes, author, note, rollout, supersede } = commit.clone();
        let namespace = self.namespace.clone();
        let ask = CommitAsk { request, namespace, expect, author, note, rollout, supersede, changes };
        self.committed(&Ask::Commit(ask))
    }

    /// Makes a commit with the content of an earlier revision.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn revert(&self, revert: &Revert) -> Result<Committed> {
        let Revert { request, expect, to, author, note, rollout, supersede } = revert.clone();
        let namespace = self.namespace.clone();
        let ask = RevertAsk { request, namespace, expect, author, note, rollout, supersede, to };
        self.committed(&Ask::Revert(ask))
    }

    /// Puts `state` in the place of all there is, in a new epoch.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn import(&self, begin: impl Into<Begin>, state: State) -> Result<Committed> {
        let (Begin { request, expect, author, note }, namespace) = (begin.into(), self.namespace.clone());
        self.committed(&Ask::Import(ImportAsk { request, namespace, expect, author, note, state }))
    }

    /// A step of the rollout that is open at `position`: the answer is that position, after an abort the one that
    /// ended it. Who and why are that commit's, and in the server's log. A repeat under the same id changes nothing.
    ///
    /// # Errors
    /// [`ClientError::Conflict`] where the newest revision is another; [`ClientError::Invalid`] where it is no
    /// rollout's (any more); or as [`commit`](Self::commit).
    pub fn rollout(&self, by: impl Into<Stepping>, position: Place, step: Step) -> Result<Committed> {
        let (Stepping { request, author, note }, namespace) = (by.into(), self.namespace.clone());
        self.committed(&Ask::Rollout(RolloutAsk { request, namespace, position, step, author, note }))
    }

    /// Begins a new epoch.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); [`InvalidCode::NotNow`] where it is not possible now.
    pub fn begin(&self, begin: impl Into<Begin>, with: BeginWith) -> Result<Committed> {
        let (Begin { request, expect, author, note }, namespace) = (begin.into(), self.namespace.clone());
        self.committed(&Ask::Begin(BeginAsk { request, namespace, expect, author, note, with }))
    }

    /// What nodes hold and how many hold it, the highest first: for an authority that has nothing.
    ///
    /// # Errors
    /// No answer.
    pub fn holdings(&self) -> Result<Vec<Holding>> {
        match self.ask(&Ask::Holdings(self.namespace.clone()), Duration::ZERO)? {
            Reply::Holdings(holdings) => Ok(holdings),
            other => Err(unexpected(other)),
        }
    }

    fn committed(&self, ask: &Ask) -> Result<Committed> {
        match self.ask(ask, Duration::ZERO)? {
            Reply::Committed { at, digest, replay } => Ok(Committed { at, digest, replay }),
            other => Err(unexpected(other)),
        }
    }

    /// What a key holds in a revision (`None`: the newest), and which revision that is.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] where there is no such revision; or no answer.
    pub fn get(&self, key: &Key, at: Option<Place>) -> Result<(Tip, Option<Entry>)> {
        let prefix = Bytes::copy_from_slice(key.as_bytes());
        // Where it exists, the key is the first that begins with itself.
        let page = self.read(ReadAsk { at, prefix, max: 1, ..ReadAsk::default() })?;
        Ok((page.of, page.entries.get(key.as_bytes()).cloned()))
    }

    /// All entries of a revision (`None`: the newest) whose keys begin with `prefix`, and which revision that is.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`Misunderstood::Digest`] where a whole revision is not what it is said to be.
    pub fn list(&self, prefix: &[u8], at: Option<Place>) -> Result<(Tip, State)> {
        self.list_with(prefix, at, |_, _| {})
    }

    /// The same; `came` is shown what came so far, after each page.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn list_with(
        &self,
        prefix: &[u8],
        at: Option<Place>,
        mut came: impl FnMut(&Tip, &State),
    ) -> Result<(Tip, State)> {
        let mut ask = ReadAsk { at, prefix: Bytes::copy_from_slice(prefix), ..ReadAsk::default() };
        let mut all = State::new();
        loop {
            let page = self.read(ask.clone())?;
            let last = page.entries.iter().last().map(|(key, _)| Bytes::copy_from_slice(key.as_bytes()));
            page.entries.iter().for_each(|(key, entry)| drop(all.put(key.clone(), entry.clone())));
            came(&page.of, &all);
            match last.filter(|_| page.more) {
                // The pages after the first are of its revision, whatever is committed meanwhile.
                Some(last) => (ask.at, ask.after) = (Some(page.of.position.into()), last),
                None if prefix.is_empty() && all.digest() != page.of.digest => {
                    return Err(ClientError::Answer(Misunderstood::Digest));
                }
                None => return Ok((page.of, all)),
            }
        }
    }

    fn read(&self, ask: ReadAsk) -> Result<crate::wire::client::Entries> {
        let ask = ReadAsk { namespace: self.namespace.clone(), ..ask };
        match self.ask(&Ask::Read(ask), Duration::ZERO)? {
            Reply::Entries(page) => Ok(*page),
            other => Err(unexpected(other)),
        }
    }

    /// The commits below `before` (`None`: all), newest first, at most `max` of them (0: a page).
    ///
    /// # Errors
    /// No answer.
    pub fn log(&self, before: Option<Place>, max: u16) -> Result<Commits> {
        self.commits(Order::Back, before.unwrap_or_default(), max, Duration::ZERO)
    }

    /// The commits above `after`, oldest first; if there is none, waits for one up to `wait`.
    ///
    /// # Errors
    /// [`InvalidCode::Compacted`] where the next one is not kept any more; or no answer.
    pub fn follow(&self, after: Place, wait: Duration) -> Result<Commits> {
        self.commits(Order::Forward, after, 0, wait)
    }

    fn commits(&self, order: Order, bound: Place, max: u16, wait: Duration) -> Result<Commits> {
        let ask = LogAsk { namespace: self.namespace.clone(), order, bound, max, wait_ms: ms(wait) };
        match self.ask(&Ask::Log(ask), wait)? {
            Reply::Commits(page) => Ok(page),
            other => Err(unexpected(other)),
        }
    }

    /// The authority and all of its nodes.
    ///
    /// # Errors
    /// No answer.
    pub fn status(&self) -> Result<Nodes> {
        let mut before = Vec::new();
        loop {
            let after = before.last().map(|node: &crate::wire::client::NodeLine| node.node.node);
            let ask = StatusAsk { namespace: self.namespace.clone(), after };
            let mut page = match self.ask(&Ask::Status(ask), Duration::ZERO)? {
                Reply::Nodes(page) => page,
                other => return Err(unexpected(other)),
            };
            let more = page.more && !page.nodes.is_empty();
            before.append(&mut page.nodes);
            if !more {
                return Ok(Nodes { nodes: before, ..*page });
            }
        }
    }

    /// The limits of the namespace, as the authority has them.
    ///
    /// # Errors
    /// No answer.
    pub fn limits(&self) -> Result<Limits> {
        // Above every node: none is listed.
        let ask = StatusAsk { namespace: self.namespace.clone(), after: Some(Id([0xff; 16])) };
        match self.ask(&Ask::Status(ask), Duration::ZERO)? {
            Reply::Nodes(page) => Ok(page.limits),
            other => Err(unexpected(other)),
        }
    }

    /// What is larger than the authority's socket takes ends the connection instead of being answered; said here, in the
    /// words in which the authority would. All that it takes is for it to judge: it may be the repeat of what was done.
    fn deliverable(&self, ask: &Ask, len: usize) -> Result<()> {
        if len <= SMALL {
            return Ok(());
        }
        let limits = self.limits()?;
        if len as u64 <= limits.request() {
            return Ok(());
        }
        let over = match ask {
            Ask::Commit(ask) => limits.check_puts(&ask.changes),
            Ask::Import(ask) => limits.check(ask.state.keys(), ask.state.bytes()),
            _ => Ok(()),
        };
        let large = || format!("the request has {len} bytes; the limit is {}", limits.request());
        let text = over.map_or_else(|over| over.to_string(), |()| large());
        Err(ClientError::Invalid { code: InvalidCode::OverLimit, oldest: Place::default(), text })
    }

    /// Waits until every selected node has reached or refused `position`, or `timeout` is over.
    ///
    /// # Errors
    /// [`ClientError::Lost`] where the epoch changed; [`ClientError::Invalid`] where there is no such position; or
    /// no answer.
    pub fn wait(
        &self,
        position: Place,
        level: Level,
        timeout: Duration,
        selector: &Selector,
    ) -> Result<Waited> {
        let (namespace, selector) = (self.namespace.clone(), selector.clone());
        let ask = WaitAsk { namespace, position, level, timeout_ms: ms(timeout), selector };
        match self.ask(&Ask::Wait(ask), timeout)? {
            Reply::Waited(waited) => Ok(waited),
            other => Err(unexpected(other)),
        }
    }

    /// Asks; while the authority is busy and there is time, again.
    fn ask(&self, ask: &Ask, beyond: Duration) -> Result<Reply> {
        let message = Bytes::from(ask.encode());
        self.deliverable(ask, message.len())?;
        let latest = Instant::now() + self.timeout.saturating_add(beyond).min(Duration::from_secs(1 << 30));
        loop {
            let left = latest.saturating_duration_since(Instant::now());
            let reply = self.req.request_timeout(message.clone(), left).map_err(|error| {
                self.trouble().map_or(ClientError::Unanswered(error), ClientError::Unreachable)
            })?;
            let reply = Reply::decode(&reply.into_bytes())
                .map_err(|error| ClientError::Answer(Misunderstood::Bytes(error)))?;
            match reply {
                Reply::Busy { after_ms, rollout: None } => {
                    let pause = Duration::from_millis(u64::from(after_ms.clamp(1, 10_000)));
                    if pause >= latest.saturating_duration_since(Instant::now()) {
                        return Err(ClientError::Busy);
                    }
                    // No word comes when there is room: the authority said after which time to ask.
                    std::thread::sleep(pause);
                }
                other => return Ok(other),
            }
        }
    }
}

fn ms(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// A reply that is no result.
fn unexpected(reply: Reply) -> ClientError {
    match reply {
        Reply::Conflict(head) => ClientError::Conflict { head },
        Reply::Invalid { code, oldest, text } => ClientError::Invalid { code, oldest, text },
        Reply::ReadOnly { why, text } => ClientError::ReadOnly { why, text },
        Reply::Lost(head) => ClientError::Lost { head },
        Reply::Aborted => ClientError::Aborted,
        Reply::Busy { rollout: Some(at), .. } => ClientError::Rollout { at },
        Reply::Busy { .. } => ClientError::Busy,
        _ => ClientError::Answer(Misunderstood::Kind),
    }
}
