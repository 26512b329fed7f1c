//! The sending side: holds the states, and brings every pipe from what its node has to the newest revisions.
//!
//! For each pipe there is a session (who is there, and its credit), and in each namespace that it wants a cursor (what
//! the node acknowledged, what was sent), never a queue of commits. When there is credit and a difference, the next
//! transfer is chosen from what is known *now*: an empty step where the content is equal, a step from the log (merged if
//! the node is several commits behind), else a snapshot. Transfers are encoded once and shared by all pipes. So nothing
//! here grows with commits × nodes. Namespaces that share a pipe send slice by slice in turn.
//!
//! What a node shows is compared with the log here. Where the log does not know it, the node gets beacons and no
//! data until whoever decides ([`NsAuthority`](crate::NsAuthority)) has judged it.
//!
//! Owns: sessions, namespaces, the slots for large transfers. Never: decides what is committed or who is right, a
//! disk (what is published is durable), a clock, or a send that nobody gave credit for.

mod claims;
mod cursor;
mod hear;
mod namespace;
mod nodes;
mod offer;
mod relay;
mod session;
mod talk;
mod target;
mod transfer;
mod turns;

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use spanwire::protocol::{
    Cx, DropReason, Limit, PipeId, PipeMap, Protocol, ProtocolInfo, Reason, Reject, TimerKey,
};

pub use namespace::Namespace;
use namespace::Step;
pub use nodes::NodeStatus;
use session::Session;

use crate::faults::planted;
use crate::sign::Secret;
use crate::source::Batch;
use crate::wire::{Frame, GoodbyeCode, MAX_NAMESPACE, MAX_WANTS};
use crate::{
    AuthorityAction, ClusterId, Head, Id, Position, Published, RECEIVER, RelayAction, SENDER, ServerId,
    Shown, State, Verdict,
};

/// Un-acknowledged deltas on their way to one node.
pub(crate) const FLIGHT: usize = 8;
const BEACON: TimerKey = TimerKey(0, 0);
/// Shortest and longest time between beacons.
pub(crate) const BEACONS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(60));
/// Low bits of `seq`: HEADs of one run. A thousand a second use them up in 35 years.
pub(crate) const SEQ_BITS: u32 = 40;

/// Settings of a [`Distributor`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster; nodes of another are turned away. Default: zeros.
    pub cluster: ClusterId,
    /// The namespace: at most 128 bytes. Default: `config`.
    pub namespace: String,
    /// This server. Default: zeros; give each its own.
    pub server: ServerId,
    /// Time between beacons: from 10 ms to 60 s, which nodes take as well. Default: 1 s.
    pub beacon: Duration,
    /// Most payload bytes on their way to one node, whatever window it offers. Default: 256 KiB.
    pub window: u32,
    /// Most commits in the log. Default: 10,000.
    pub log_commits: usize,
    /// Most bytes in the log. Default: 16 MiB.
    pub log_bytes: usize,
    /// Most transfers above one window at once. Default: 8.
    pub slots: usize,
    /// How long a node may hold bytes without taking any; at least two beacon times, since it need not say more often
    /// what it took. Default: 10 s.
    pub stall: Duration,
    /// How long a peer may take to say HELLO. Default: 10 s.
    pub hello: Duration,
    /// Most nodes in the table; who left longest ago is forgotten first. Default: 10,000.
    pub nodes: usize,
    /// Signs every HEAD that goes out. Default: none, they are unsigned.
    pub secret: Option<Secret>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            cluster: Id::default(),
            namespace: "config".into(),
            server: Id::default(),
            beacon: Duration::from_secs(1),
            window: 256 << 10,
            log_commits: 10_000,
            log_bytes: 16 << 20,
            slots: 8,
            stall: Duration::from_secs(10),
            hello: Duration::from_secs(10),
            nodes: 10_000,
            secret: None,
        }
    }
}

/// Where the history that a [`Distributor`] serves comes from: see [`NsAuthority::origin`](crate::NsAuthority::origin).
#[derive(Clone, Debug)]
pub struct Origin {
    opened: u32,
    last: Option<(Head, State)>,
    canary: Option<(Head, State)>,
    steps: Vec<Step>,
    passes: bool,
}

impl Origin {
    /// A history that is yet to begin; until then nodes are told that the server is vacant. `opened` says how often the store was
    /// opened, this time included, and must be durable: its low 24 bits lead every `seq` of this run.
    pub fn pending(opened: u32) -> Origin {
        Origin { opened, last: None, canary: None, steps: Vec::new(), passes: false }
    }

    /// A history that goes on from a stored state.
    pub fn restored(head: Head, state: State, opened: u32) -> Origin {
        Origin { opened, last: Some((head, state)), canary: None, steps: Vec::new(), passes: false }
    }

    /// What a relay serves: HEADs go out as they came, and the table of nodes is told upward. It begins with what
    /// it has verified, if anything.
    pub fn passed(last: Option<(Head, State)>) -> Origin {
        Origin { opened: 0, last, canary: None, steps: Vec::new(), passes: true }
    }

    /// With the batches that led to that state, oldest first, and what they begin from: who is behind by some of
    /// them needs no snapshot.
    #[must_use]
    pub fn with_log<'b>(mut self, base: Option<Shown>, batches: impl IntoIterator<Item = &'b Batch>) -> Self {
        let mut before = base;
        for batch in batches {
            match before {
                Some(base) if batch.head.prev_rev != 0 => self.steps.push(Step::new(base, batch.changes())),
                // Steps lead to revisions of one epoch.
                _ => self.steps.clear(),
            }
            before = Some(batch.head.shown());
        }
        self
    }

    /// With the state of an open rollout, which is the newest: its HEAD says whom it is for.
    #[must_use]
    pub fn with_canary(self, canary: Option<(Head, State)>) -> Self {
        Origin { canary, ..self }
    }
}

/// What is published does not follow from what was published before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it follows {follows:?}, but the newest is {newest:?}")]
pub struct Stale {
    /// What it follows.
    pub follows: Option<Position>,
    /// What is the newest now.
    pub newest: Option<Position>,
}

/// A sender does not serve a namespace beside the others, or a receiver does not hold it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotServed {
    /// There is one of this name.
    #[error("the namespace {0} is there already")]
    Twice(String),
    /// Its name is beyond 128 bytes.
    #[error("a namespace's name has at most 128 bytes, and this one {0}")]
    Long(usize),
    /// One sender or receiver has at most 64: more than one message may ask for.
    #[error("at most 64 namespaces share a pipe: give the others a server and receivers of their own")]
    TooMany,
}

/// The sender protocol, SP id 0xFCF0: serves one namespace, or several.
///
/// What is said of *the* namespace is said of the one that it was made with; a [`Distributor`] is read as that one.
/// [`namespace`](Self::namespace) gives any of them.
#[derive(Clone, Debug)]
pub struct Distributor {
    settings: Settings,
    /// Servers from the authority to here.
    path: Vec<ServerId>,
    sessions: PipeMap<Session>,
    /// At least one.
    namespaces: Vec<Namespace>,
    /// Namespaces and pipes that wait for a slot, first come first served.
    waiting: VecDeque<(usize, PipeId)>,
    /// Pipes to look at before the present call ends.
    work: VecDeque<PipeId>,
    ticking: bool,
}

impl Deref for Distributor {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.namespaces[0]
    }
}

impl DerefMut for Distributor {
    fn deref_mut(&mut self) -> &mut Namespace {
        &mut self.namespaces[0]
    }
}

impl Distributor {
    /// A sender of one namespace.
    ///
    /// A namespace name beyond its 128 bytes is cut, and a beacon time brought within its bounds.
    pub fn new(mut settings: Settings, origin: Origin) -> Self {
        settings.beacon = settings.beacon.clamp(BEACONS.0, BEACONS.1);
        while settings.namespace.len() > MAX_NAMESPACE {
            settings.namespace.pop();
        }
        Distributor {
            path: vec![settings.server],
            sessions: PipeMap::default(),
            namespaces: vec![Namespace::new(settings.clone(), 0, origin)],
            waiting: VecDeque::new(),
            work: VecDeque::new(),
            ticking: false,
            settings,
        }
    }

    /// Serves one more namespace, with the same settings. What bounds a server (window, slots) bounds all together; what
    /// bounds a log or a table of nodes bounds each.
    ///
    /// # Errors
    /// [`NotServed`].
    pub fn with_namespace(mut self, name: &str, origin: Origin) -> Result<Self, NotServed> {
        if name.len() > MAX_NAMESPACE {
            return Err(NotServed::Long(name.len()));
        }
        if self.index_of(name).is_some() {
            return Err(NotServed::Twice(name.into()));
        }
        let index = self.namespaces.len();
        if index >= MAX_WANTS {
            return Err(NotServed::TooMany);
        }
        let settings = Settings { namespace: name.into(), ..self.settings.clone() };
        self.namespaces.push(Namespace::new(settings, index as u32, origin));
        Ok(self)
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.namespaces.iter().position(|namespace| namespace.name() == name)
    }

    /// The namespaces that are served, in the order in which they were named.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// One of the namespaces, to have something done in it; `None` if it is not served here.
    pub fn namespace(&mut self, name: &str) -> Option<NamespaceMut<'_>> {
        let at = self.index_of(name)?;
        Some(NamespaceMut { sender: self, at })
    }

    fn first(&mut self) -> NamespaceMut<'_> {
        self.nth(0)
    }

    /// The one that was named as the `at`th, from 0; there is one.
    pub(crate) fn nth(&mut self, at: usize) -> NamespaceMut<'_> {
        NamespaceMut { sender: self, at }
    }

    /// Makes this the newest revision and sends it: to those of its audience, while what was for all before stays so
    /// for everybody else. It must be durable by now: nodes will hold it.
    ///
    /// # Errors
    /// [`Stale`] when it does not follow from what was published last; nothing changes.
    pub fn publish(&mut self, cx: &mut Cx<'_>, published: Published) -> Result<Position, Stale> {
        self.first().publish(cx, published)
    }

    /// Does what the machine of an authority wants of its sender; gives back what is not for nodes.
    ///
    /// # Errors
    /// As [`publish`](Self::publish): actions that came in another order than the machine gave them.
    pub fn perform(
        &mut self,
        cx: &mut Cx<'_>,
        action: AuthorityAction,
    ) -> Result<Option<AuthorityAction>, Stale> {
        self.first().perform(cx, action)
    }

    /// What this node showed is judged. A verdict on what it no longer shows changes nothing.
    pub fn judge(&mut self, cx: &mut Cx<'_>, node: Id, head: &Head, verdict: Verdict) {
        self.first().judge(cx, node, head, verdict);
    }

    /// Does what a relay wants of its sender; gives back what is not for nodes below.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn perform_relay(
        &mut self,
        cx: &mut Cx<'_>,
        action: RelayAction,
    ) -> Result<Option<RelayAction>, Stale> {
        self.first().perform_relay(cx, action)
    }

    /// Whether any namespace has something to tell a relay.
    pub fn has_relay_events(&self) -> bool {
        self.namespaces.iter().any(Namespace::has_relay_events)
    }

    /// The servers from the authority to here. WELCOME is said again when that changes.
    fn set_path(&mut self, cx: &mut Cx<'_>, server: ServerId, path: Vec<ServerId>) {
        let old = (self.settings.server, std::mem::replace(&mut self.path, path));
        self.settings.server = server;
        self.namespaces.iter_mut().for_each(|namespace| namespace.settings.server = server);
        if old.0 == server && old.1 == self.path || planted("path-not-said-again") {
            return;
        }
        let pipes: Vec<PipeId> = self.sessions.keys().collect();
        pipes.into_iter().for_each(|pipe| self.welcome(cx, pipe));
    }
}

/// One of the namespaces of a [`Distributor`], to have something done in it.
#[derive(Debug)]
pub struct NamespaceMut<'a> {
    sender: &'a mut Distributor,
    at: usize,
}

impl Deref for NamespaceMut<'_> {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.sender.namespaces[self.at]
    }
}

impl DerefMut for NamespaceMut<'_> {
    fn deref_mut(&mut self) -> &mut Namespace {
        &mut self.sender.namespaces[self.at]
    }
}

impl NamespaceMut<'_> {
    /// As [`Distributor::publish`].
    ///
    /// # Errors
    /// As there.
    pub fn publish(&mut self, cx: &mut Cx<'_>, published: Published) -> Result<Position, Stale> {
        let position = (**self).publish(cx, published)?;
        self.sender.run(cx);
        Ok(position)
    }

    /// As [`Distributor::perform`].
    ///
    /// # Errors
    /// As there.
    pub fn perform(
        &mut self,
        cx: &mut Cx<'_>,
        action: AuthorityAction,
    ) -> Result<Option<AuthorityAction>, Stale> {
        match action {
            AuthorityAction::Publish(published) => drop(self.publish(cx, published)?),
            AuthorityAction::Show(head) => self.show_to(cx, head),
            AuthorityAction::Offer(node, head) => self.offer(cx, node, head),
            AuthorityAction::Judge { node, head, verdict } => self.judge(cx, node, &head, verdict),
            AuthorityAction::Reopened(opened) => self.reopened(opened),
            other => return Ok(Some(other)),
        }
        self.sender.run(cx);
        Ok(None)
    }

    /// As [`Distributor::judge`].
    pub fn judge(&mut self, cx: &mut Cx<'_>, node: Id, head: &Head, verdict: Verdict) {
        (**self).judge(cx, node, head, verdict);
        self.sender.run(cx);
    }

    /// As [`Distributor::perform_relay`]. The path is that of the whole server.
    ///
    /// # Errors
    /// As there.
    pub fn perform_relay(
        &mut self,
        cx: &mut Cx<'_>,
        action: RelayAction,
    ) -> Result<Option<RelayAction>, Stale> {
        match action {
            RelayAction::Publish(published) => drop(self.publish(cx, published)?),
            RelayAction::Show(head) => self.show_as(cx, head),
            RelayAction::Judge { node, head, verdict } => self.judge(cx, node, &head, verdict),
            RelayAction::Path { server, path } => self.sender.set_path(cx, server, path),
            RelayAction::Stale { node, boot } => self.send_stale(cx, node, boot),
            other => return Ok(Some(other)),
        }
        self.sender.run(cx);
        Ok(None)
    }
}

impl Protocol for Distributor {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(SENDER, "config-send", RECEIVER, "config-recv")
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        // Small, so that `put` says Full in time; the window bounds what matters.
        cx.limit_send(pipe, Limit::messages(64).and_bytes(2 * self.settings.window as usize));
        self.sessions.insert(pipe, Session::new(cx.now()));
        if !self.ticking {
            self.ticking = true;
            cx.set_timer(BEACON, cx.now() + self.settings.beacon);
        }
        Ok(())
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.waiting.retain(|(_, waiting)| *waiting != pipe);
        self.sessions.remove(pipe);
        self.namespaces.iter_mut().for_each(|namespace| namespace.left(cx, pipe));
        self.run(cx);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        while let Some(message) = cx.take(pipe) {
            let frame = match Frame::decode(&message.into_bytes()) {
                Ok(frame) => frame,
                Err(crate::wire::DecodeError::Version(_)) => {
                    self.goodbye(cx, pipe, GoodbyeCode::Version, 0, "message of another version");
                    break;
                }
                Err(_) => {
                    cx.dropped(Some(pipe), DropReason::Malformed);
                    cx.close(pipe, Reason::Malformed);
                    break;
                }
            };
            if !self.on_frame(cx, pipe, frame) {
                break;
            }
        }
        self.work.push_back(pipe);
        self.run(cx);
    }

    fn writable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        if self.sessions.get(pipe).is_some_and(|session| session.owes_welcome) {
            self.welcome(cx, pipe);
        }
        self.work.push_back(pipe);
        self.run(cx);
    }

    fn timer(&mut self, cx: &mut Cx<'_>, _key: TimerKey) {
        if self.sessions.is_empty() {
            self.ticking = false;
            return;
        }
        self.tick(cx);
        cx.set_timer(BEACON, cx.now() + self.settings.beacon);
        self.run(cx);
    }

    fn closing(&mut self, cx: &mut Cx<'_>) {
        let pipes: Vec<PipeId> = self.sessions.keys().collect();
        for pipe in pipes {
            self.goodbye(cx, pipe, GoodbyeCode::Closing, 0, "closing");
        }
    }
}
