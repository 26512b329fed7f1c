//! The receiving side: assembles, verifies, and only then gives a whole revision to the application.
//!
//! For each pipe there is a session (whose it is, and its credit), and for each namespace an [`NsReplica`], which knows
//! nothing of pipes. One pipe is in use, for all namespaces; others are kept in reserve, in the order of their endpoints,
//! and take over when it dies. What is said of one namespace touches no other.
//!
//! Owns: pipes, and what is said on them. Never: publishes what did not have the digest that its HEAD names; a disk, a
//! hook, a validator (the application's, between [`recv`](spanwire::protocol::Receives::recv) and [`Replica::ack`] or
//! [`Replica::nack`]).

mod handle;
mod heads;
mod memory;
mod namespace;
mod offer;
mod relay;
mod reports;
mod session;
mod status;
mod talk;
mod transfer;
mod trust;
mod words;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use spanwire::protocol::{
    Cx, DropReason, PipeId, PipeMap, Protocol, ProtocolInfo, Readiness, Reason, Receives, Reject, Time,
    TimerKey,
};

use crate::faults::planted;
use crate::wire::{Frame, GoodbyeCode, Level, MAX_NAMESPACE, MAX_WANTS, MIN_CHUNK, NackCode, WantReason};
use crate::{Head, Id, NotServed, Position, RECEIVER, RelayAction, RelayEvent, SENDER, State};

pub use handle::NsReplicaMut;
pub use memory::{Arriving, Memory};
use namespace::Word;
pub use namespace::{Kept, NsReplica};
use session::Session;
pub use status::{Data, ReplicaSettings, ReplicaStatus, Unexpected, Update};

const TICK: TimerKey = TimerKey(0, 0);
/// Beacon times without a word after which an upstream is dead.
const PATIENCE: u32 = 3;

/// The receiver protocol, SP id 0xFCF1: holds one namespace, or several.
///
/// What is said of *the* namespace is said of the one that it was made with; a [`Replica`] is read as that one.
/// [`namespace`](Self::namespace) gives any of them.
#[derive(Clone, Debug)]
pub struct Replica {
    settings: ReplicaSettings,
    attempt: u32,
    sessions: PipeMap<Session>,
    opened: u64,
    active: Option<PipeId>,
    /// Endpoints whose server was left, and when: they come last for a while.
    left: BTreeMap<u32, Time>,
    /// At least one.
    namespaces: Vec<NsReplica>,
    /// The namespace that is given first, if it has something.
    turn: usize,
    stale_boot: Option<u64>,
    conversations: u64,
    /// In which the pipe in use is.
    conversation: Option<(PipeId, u64)>,
    ticking: bool,
}

impl Deref for Replica {
    type Target = NsReplica;
    fn deref(&self) -> &NsReplica {
        &self.namespaces[0]
    }
}

impl DerefMut for Replica {
    fn deref_mut(&mut self) -> &mut NsReplica {
        &mut self.namespaces[0]
    }
}

impl Replica {
    /// A replica that holds nothing. A namespace name beyond 128 bytes matches no server's.
    pub fn new(settings: ReplicaSettings) -> Self {
        Self::keeping(settings, Kept::default())
    }

    /// A replica that begins with what its disk holds, which the application shows already. `level` is what
    /// was reached for it. `state` must have been checked against `head` (as [`store`](crate::store) does).
    pub fn restored(settings: ReplicaSettings, head: Head, state: State, level: Level) -> Self {
        Self::keeping(settings, Kept::revision(head, state, level))
    }

    /// A replica that begins with what its disk holds.
    pub fn keeping(mut settings: ReplicaSettings, kept: Kept) -> Self {
        settings.max_chunk = settings.max_chunk.max(MIN_CHUNK);
        settings.window = settings.window.max(1);
        Replica {
            namespaces: vec![NsReplica::new(settings.clone(), 0, kept)],
            settings,
            attempt: 0,
            sessions: PipeMap::default(),
            opened: 0,
            active: None,
            left: BTreeMap::new(),
            turn: 0,
            stale_boot: None,
            conversations: 0,
            conversation: None,
            ticking: false,
        }
    }

    /// The same, where two HEADs contradict each other since an earlier life: what is held, and the other. What is
    /// visible stays until a HEAD of a higher epoch comes.
    #[must_use]
    pub fn in_conflict(mut self, heads: Option<(Head, Head)>) -> Self {
        self.namespaces[0].conflict = Kept::default().in_conflict(heads).conflict;
        self
    }

    /// Holds one more namespace, over the same pipes and with the same settings: limits are those of each, the window is
    /// that of all together.
    ///
    /// # Errors
    /// [`NotServed`].
    pub fn with_namespace(mut self, name: &str, kept: Kept) -> Result<Self, NotServed> {
        self.enter(name, kept)?;
        Ok(self)
    }

    /// The same while pipes are open: it is asked for on the one in use.
    ///
    /// # Errors
    /// As [`with_namespace`](Self::with_namespace).
    pub fn add_namespace(&mut self, cx: &mut Cx<'_>, name: &str, kept: Kept) -> Result<(), NotServed> {
        let at = self.enter(name, kept)?;
        self.namespaces[at].moved(cx.now());
        if !planted("added-not-asked-for") {
            self.namespaces[at].owed.extend([
                Word::Want(WantReason::New),
                Word::Past,
                Word::Report,
                Word::Refusals,
            ]);
        }
        self.speak(cx, at);
        Ok(())
    }

    fn enter(&mut self, name: &str, kept: Kept) -> Result<usize, NotServed> {
        if name.len() > MAX_NAMESPACE {
            return Err(NotServed::Long(name.len()));
        }
        if self.index_of(name).is_some() {
            return Err(NotServed::Twice(name.into()));
        }
        let at = self.namespaces.len();
        if at >= MAX_WANTS {
            return Err(NotServed::TooMany);
        }
        let settings = ReplicaSettings { namespace: name.into(), ..self.settings.clone() };
        self.namespaces.push(NsReplica::new(settings, at, kept));
        Ok(at)
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.namespaces.iter().position(|ns| ns.name() == name)
    }

    /// The namespaces that it holds, in the order in which they were named.
    pub fn namespaces(&self) -> &[NsReplica] {
        &self.namespaces
    }

    /// One of the namespaces, to have something done in it; `None` if it was not asked for.
    pub fn namespace(&mut self, name: &str) -> Option<NsReplicaMut<'_>> {
        let at = self.index_of(name)?;
        Some(NsReplicaMut { replica: self, at })
    }

    fn first(&mut self) -> NsReplicaMut<'_> {
        NsReplicaMut { replica: self, at: 0 }
    }

    /// Where it stands, at `now`.
    pub fn status(&self, now: Time) -> ReplicaStatus {
        self.status_at(0, now)
    }

    /// Where one of the namespaces stands, at `now`; `None` if it was not asked for.
    pub fn status_of(&self, name: &str, now: Time) -> Option<ReplicaStatus> {
        self.index_of(name).map(|at| self.status_at(at, now))
    }

    fn status_at(&self, at: usize, now: Time) -> ReplicaStatus {
        let (ns, session) = (&self.namespaces[at], self.active.and_then(|pipe| self.sessions.get(pipe)));
        ReplicaStatus {
            upstream: session.and_then(|session| session.server),
            namespace: session.and_then(|session| session.status_of(ns.name())),
            stale_boot: self.stale_boot,
            ..ns.status(now)
        }
    }

    /// The node took another start number or id, after a server had said that it knows a higher start number
    /// of it. It is said on every pipe, at the next beacon time at the latest.
    pub fn set_identity(&mut self, node: Id, boot: u64) {
        self.settings.node = node;
        self.settings.boot = boot;
        self.attempt = 0;
        self.stale_boot = None;
        self.sessions.iter_mut().for_each(|(_, session)| session.owes_hello = true);
        for ns in &mut self.namespaces {
            (ns.settings.node, ns.settings.boot) = (node, boot);
            // What was reported was reported of another process.
            ns.owed.extend([Word::Past, Word::Report, Word::Refusals]);
        }
    }

    /// Asks for what was refused to be offered again: the cause (a full disk) may have passed.
    pub fn retry(&mut self, cx: &mut Cx<'_>) {
        self.first().retry(cx);
    }

    /// The application reached `level` with the revision at `position`: the one given, or the visible one. At
    /// any level the one given becomes visible. `volatile`: it is not on disk.
    ///
    /// It is said upward at once, but in a stream of changes (more than four, each within a quarter of a second after the
    /// one before): then what is reached gathers for three times the time between two of them, and no longer than that.
    ///
    /// # Errors
    /// [`Unexpected`] when `position` is neither; nothing changes.
    pub fn ack(
        &mut self,
        cx: &mut Cx<'_>,
        position: Position,
        level: Level,
        volatile: bool,
    ) -> Result<(), Unexpected> {
        self.first().ack(cx, position, level, volatile)
    }

    /// The same, where what follows ([`ack`](Self::ack) of a higher level, or [`nack`](Self::nack)) is expected soon: it
    /// is said together with that, or after a few milliseconds without.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub fn ack_in_passing(
        &mut self,
        cx: &mut Cx<'_>,
        position: Position,
        level: Level,
        volatile: bool,
    ) -> Result<(), Unexpected> {
        self.first().ack_in_passing(cx, position, level, volatile)
    }

    /// The revision given is visible now, in memory alone. Nothing is said: an [`ack`](Self::ack) follows at once.
    pub(crate) fn show(&mut self, position: Position) -> Result<(), Unexpected> {
        self.namespaces[0].note(position, Level::Visible, true)
    }

    /// The application refuses the revision given, or (code [`NackCode::Hook`]) could not act on the visible
    /// one, which then stays visible. `text` is for people; what is beyond 1 KiB is cut.
    ///
    /// # Errors
    /// [`Unexpected`] when `position` is not that revision; nothing changes.
    pub fn nack(
        &mut self,
        cx: &mut Cx<'_>,
        position: Position,
        code: NackCode,
        text: &str,
    ) -> Result<(), Unexpected> {
        self.first().nack(cx, position, code, text)
    }

    /// What happened that a relay is to be told.
    pub fn relay_events(&mut self, cx: &mut Cx<'_>) -> Vec<RelayEvent> {
        self.first().relay_events(cx)
    }

    /// Whether any namespace has something to tell a relay.
    pub fn has_relay_events(&self) -> bool {
        let upstream = self.upstream();
        self.namespaces.iter().any(|ns| ns.has_relay_events(upstream.as_ref()))
    }

    /// Does what a relay wants of its receiver; gives back what is not for servers above.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub fn perform_relay(
        &mut self,
        cx: &mut Cx<'_>,
        action: RelayAction,
    ) -> Result<Option<RelayAction>, Unexpected> {
        self.first().perform_relay(cx, action)
    }
}

fn endpoint(cx: &Cx<'_>, pipe: PipeId) -> u32 {
    cx.info(pipe).map_or(u32::MAX, |info| info.endpoint)
}

impl Protocol for Replica {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(RECEIVER, "config-recv", SENDER, "config-send")
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        let alone = self.active.is_none() || planted("newest-way-taken");
        if alone {
            self.active = Some(pipe);
            self.namespaces.iter_mut().for_each(|ns| ns.moved(cx.now()));
        }
        if let Err(reject) = self.greet(cx, pipe) {
            if alone {
                self.active = None;
            }
            return Err(reject);
        }
        self.opened += 1;
        let session = Session::new(self.opened, cx.now(), self.settings.beacon, self.settings.window);
        self.sessions.insert(pipe, session);
        if !self.ticking {
            self.schedule(cx);
        }
        Ok(())
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.sessions.remove(pipe);
        if self.active == Some(pipe) {
            self.active = None;
            self.namespaces.iter_mut().for_each(|ns| ns.left(cx));
            if !planted("no-fail-over") {
                self.fail_over(cx);
            }
        }
        if self.sessions.is_empty() {
            self.schedule(cx);
        }
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        while let Some(message) = cx.take(pipe) {
            let Ok(frame) = Frame::decode(&message.into_bytes()) else {
                cx.dropped(Some(pipe), DropReason::Malformed);
                cx.close(pipe, Reason::Malformed);
                return;
            };
            if !self.on_frame(cx, pipe, frame) {
                return;
            }
        }
    }

    fn writable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.pay(cx, pipe);
        self.send_up(cx);
    }

    fn timer(&mut self, cx: &mut Cx<'_>, key: TimerKey) {
        if key == TICK {
            self.tick(cx);
            self.schedule(cx);
        } else if !planted("gathered-reports-lost") {
            let at = key.1 as usize;
            self.namespaces[at].gathered();
            self.speak(cx, at);
        }
    }

    fn readiness(&self) -> Readiness {
        let recv = self.namespaces.iter().any(|ns| ns.ready.is_some());
        Readiness { recv, ..Readiness::default() }
    }

    fn closing(&mut self, cx: &mut Cx<'_>) {
        self.sessions.keys().for_each(|pipe| self.goodbye(cx, pipe, GoodbyeCode::Closing, "closing"));
    }
}

impl Receives for Replica {
    type Item = Update;

    /// The newest verified revision of a namespace, once; that of each in turn. It is to be answered by [`Replica::ack`] or
    /// [`Replica::nack`] (those of [`Replica::namespace`], if there are several); asking for the next of a namespace without
    /// an answer says that the last is visible (and nothing of a disk).
    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Update> {
        let count = self.namespaces.len();
        let next = (self.turn..count).chain(0..self.turn).find(|at| self.namespaces[*at].ready.is_some())?;
        self.turn = (next + 1) % count;
        NsReplicaMut { replica: self, at: next }.recv(cx)
    }
}
