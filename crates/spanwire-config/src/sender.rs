//! The sending side: holds the state, and brings every pipe from what its node has to the newest revision.
//!
//! For each pipe there is a cursor (what the node acknowledged, what was sent), never a queue of commits. When
//! there is credit and a difference, the next transfer is chosen from what is known *now*: an empty step
//! where the content is equal, a step from the log (merged if the node is several commits behind), else a
//! snapshot. Transfers are encoded once and shared by all pipes. So nothing here grows with commits × nodes.
//!
//! What a node shows is compared with the log here. Where the log does not know it, the node gets beacons and no
//! data until whoever decides ([`NsAuthority`](crate::NsAuthority)) has judged it.
//!
//! Owns: cursors, `seq` and signing, the table of nodes. Never: decides what is committed or who is right, a
//! disk (what is published is durable), a clock, or a send that nobody gave credit for.

mod hear;
mod nodes;
mod offer;
mod relay;
mod session;
mod target;
mod transfer;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::{
    Cx, DropReason, Limit, PipeId, PipeMap, Protocol, ProtocolInfo, Reason, Reject, TimerKey, WaitKey,
};

pub use nodes::NodeStatus;
use nodes::Nodes;
use offer::Taking;
use relay::Part;
use session::{Session, Standing};
use target::{Shown as Beacon, Which};
use transfer::size;

use crate::faults::planted;
use crate::sign::Secret;
use crate::source::Batch;
use crate::wire::{Frame, GoodbyeCode, Level, Payload};
use crate::{
    AuthorityAction, AuthorityEvent, ChangeSet, ClusterId, Head, Id, Position, Published, RECEIVER, SENDER,
    ServerId, Shown, State, Verdict, chain,
};

/// Un-acknowledged deltas on their way to one node.
pub(crate) const FLIGHT: usize = 8;
const BEACON: TimerKey = TimerKey(0, 0);
/// Shortest and longest time between beacons.
pub(crate) const BEACONS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(60));
const REPORTS: WaitKey = WaitKey(SENDER as u32, 0);
const SHOWN: WaitKey = WaitKey(SENDER as u32, 1);
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

/// One step of the log.
#[derive(Clone, Debug)]
struct Step {
    base: Shown,
    changes: Arc<ChangeSet>,
    size: usize,
}

impl Step {
    fn new(base: Shown, changes: Arc<ChangeSet>) -> Step {
        Step { base, size: size(&changes), changes }
    }
}

/// The sender protocol, SP id 0xFCF0.
#[derive(Clone, Debug)]
pub struct Distributor {
    settings: Settings,
    /// The newest HEAD that is for all and its state; `None` until the first commit.
    published: Option<(Head, State)>,
    /// The newest, while it is for a cohort alone.
    canary: Option<(Head, State)>,
    /// HEADs are those of a server above, and go out as they came.
    passes: bool,
    /// Servers from the authority to here.
    path: Vec<ServerId>,
    /// The whole table is being told upward: it is yet to begin, or to end.
    telling: Option<Part>,
    seq: u64,
    log: VecDeque<Step>,
    log_bytes: usize,
    /// At most one encoded snapshot of each state: of the head, or of a revision that the log still reaches.
    snapshots: [Option<Arc<Payload>>; 2],
    /// Steps to a present head, by where they start and lead. `None`: a snapshot is cheaper.
    deltas: VecDeque<(Shown, Position, Option<Arc<Payload>>)>,
    sessions: PipeMap<Session>,
    nodes: Nodes,
    slots: usize,
    /// Pipes that wait for a slot, first come first served.
    waiting: VecDeque<PipeId>,
    /// Pipes to look at before the present call ends.
    work: VecDeque<PipeId>,
    /// What nodes showed and nobody has taken, one for each node; and whether the node waits for a verdict on it.
    shown: BTreeMap<Id, (Head, bool)>,
    /// A state that a node was asked for, and one that came (or will not) and nobody has taken.
    taking: Option<Taking>,
    offered: Option<(Id, Option<State>)>,
    ticking: bool,
}

impl Distributor {
    /// A sender of one namespace.
    ///
    /// A namespace name beyond its 128 bytes is cut, and a beacon time brought within its bounds.
    pub fn new(mut settings: Settings, origin: Origin) -> Self {
        let Origin { opened, last, canary, steps, passes } = origin;
        settings.beacon = settings.beacon.clamp(BEACONS.0, BEACONS.1);
        while settings.namespace.len() > crate::wire::MAX_NAMESPACE {
            settings.namespace.pop();
        }
        let opened = if planted("opened-not-in-seq") { 0 } else { opened };
        let mut this = Distributor {
            nodes: Nodes::new(settings.nodes, passes),
            passes,
            path: vec![settings.server],
            telling: None,
            settings,
            published: last,
            canary,
            seq: seq_of(opened),
            log: VecDeque::new(),
            log_bytes: 0,
            snapshots: [None, None],
            deltas: VecDeque::new(),
            sessions: PipeMap::default(),
            slots: 0,
            waiting: VecDeque::new(),
            work: VecDeque::new(),
            shown: BTreeMap::new(),
            taking: None,
            offered: None,
            ticking: false,
        };
        steps.into_iter().for_each(|step| this.append(step));
        this.published = this.published.take().map(|(head, state)| (this.issue(head), state));
        this.canary = this.canary.take().map(|(head, state)| (this.issue(head), state));
        this
    }

    /// The newest HEAD, be it for all or for a cohort; `None` before the first commit.
    pub fn head(&self) -> Option<&Head> {
        self.newest().map(|(head, _)| head)
    }

    /// The newest state, be it for all or for a cohort; `None` before the first commit.
    pub fn state(&self) -> Option<&State> {
        self.newest().map(|(_, state)| state)
    }

    /// Nodes known, connected or not, in the order of their ids.
    pub fn status(&self) -> Vec<NodeStatus> {
        self.nodes.status()
    }

    /// How many nodes are known to have reached `level` at `position` or later.
    pub fn reached(&self, position: Position, level: Level) -> usize {
        self.nodes.reached(position, level)
    }

    /// Woken whenever [`status`](Self::status) may have changed: wait with it until
    /// [`reached`](Self::reached) says enough.
    pub fn wait_key(&self) -> WaitKey {
        REPORTS
    }

    /// Number of steps and bytes in the log.
    pub fn log_size(&self) -> (usize, usize) {
        (self.log.len(), self.log_bytes)
    }

    /// Makes this the newest revision and sends it: to those of its audience, while what was for all before stays so
    /// for everybody else. It must be durable by now: nodes will hold it.
    ///
    /// # Errors
    /// [`Stale`] when it does not follow from what was published last; nothing changes.
    pub fn publish(&mut self, cx: &mut Cx<'_>, published: Published) -> Result<Position, Stale> {
        let Published { mut head, state, before, changes } = published;
        let newest = self.head().map(Head::shown);
        if before != newest {
            let position = |shown: Option<Shown>| shown.map(|shown| shown.base.position);
            return Err(Stale { follows: position(before), newest: position(newest) });
        }
        let position = head.position;
        let new_epoch = before.is_some_and(|before| before.base.position.epoch != position.epoch);
        if planted("prev-rev-forgotten") {
            head.prev_rev = 0;
        }
        let head = self.issue(head);
        if self.canary.is_some() {
            self.take_back();
        }
        if !planted("stale-deltas") {
            self.deltas.clear();
        }
        match before {
            Some(base) if !new_epoch => {
                let empty = planted("abort-step-empty") && self.canary.is_some();
                self.append(Step::new(base, if empty { Arc::default() } else { changes }));
            }
            // Steps lead to revisions of one epoch; equal content is recognised by its digest.
            _ => {
                self.log.clear();
                self.log_bytes = 0;
            }
        }
        (self.published, self.canary) = match head.audience.is_empty() {
            true => (Some((head, state)), None),
            false => (self.published.take(), Some((head, state))),
        };
        let pipes: Vec<PipeId> = self.sessions.keys().collect();
        for pipe in &pipes {
            // Shown before there was anything to compare it with; or what no longer contradicts.
            let open = |session: &Session| session.standing != Standing::Clear;
            if (before.is_none() || new_epoch || self.passes) && self.sessions.get(*pipe).is_some_and(open) {
                self.reassess(cx, *pipe);
                // It may hold this already, and know another audience of it: before anything that stands on it.
                self.beacon_now(cx, *pipe);
            }
        }
        if before.is_none() {
            // They were told `vacant` or `pending`.
            pipes.iter().for_each(|pipe| self.welcome(cx, *pipe));
        }
        self.work.extend(pipes);
        self.run(cx);
        Ok(position)
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
        match action {
            AuthorityAction::Publish(published) => drop(self.publish(cx, published)?),
            AuthorityAction::Show(head) => self.show_to(cx, head),
            AuthorityAction::Offer(node, head) => self.offer(cx, node, head),
            AuthorityAction::Judge { node, head, verdict } => self.judge(cx, node, &head, verdict),
            AuthorityAction::Reopened(opened) => self.seq = self.seq.max(seq_of(opened)),
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    /// Nodes showed or sent something that nobody has taken.
    pub fn has_shown(&self) -> bool {
        !self.shown.is_empty() || self.offered.is_some()
    }

    /// Woken when nodes showed something: wait with it until [`has_shown`](Self::has_shown), then
    /// [`take_shown`](Self::take_shown).
    pub fn shown_key(&self) -> WaitKey {
        SHOWN
    }

    /// What nodes showed in HELLO and WANT since this was last asked, for
    /// [`NsAuthority::handle`](crate::NsAuthority::handle): the last of each, but the first that waits for a
    /// verdict, so that no later word hides it. And what became of a state that a node was asked for.
    pub fn take_shown(&mut self) -> Vec<AuthorityEvent> {
        let issued = self.seq;
        let shown = std::mem::take(&mut self.shown).into_iter();
        let shown = shown.map(|(node, (head, _))| AuthorityEvent::Shown { node, head, issued });
        shown.chain(self.offered.take().map(|(node, state)| AuthorityEvent::Offered(node, state))).collect()
    }

    /// What this node showed is judged. A verdict on what it no longer shows changes nothing.
    pub fn judge(&mut self, cx: &mut Cx<'_>, node: Id, head: &Head, verdict: Verdict) {
        if verdict == Verdict::Recorded {
            // All is looked at again once there is something to serve, and at each beacon time.
            return;
        }
        self.nodes.judged(node, head, verdict == Verdict::Fine);
        let of_node = |(_, session): &(PipeId, &mut Session)| session.node == Some(node);
        let pipes: Vec<PipeId> = self.sessions.iter_mut().filter(of_node).map(|(pipe, _)| pipe).collect();
        for pipe in pipes {
            let Some(session) = self.sessions.get_mut(pipe) else { continue };
            let waits = session.standing == Standing::Unjudged;
            match &session.have {
                Some(have) if have == head => {}
                Some(have) if waits => {
                    let have = have.clone();
                    self.show(cx, node, have, true);
                    continue;
                }
                _ => continue,
            }
            match verdict {
                Verdict::Conflict => self.stand(cx, pipe, Standing::Conflict, None),
                Verdict::Fine if waits => {
                    // It may have gone back to what it shows to its readers in the meantime.
                    let stays = session.stays_at.take();
                    let shown = stays.map_or(Some(head.shown()), |at| self.known(at));
                    self.stand(cx, pipe, Standing::Clear, shown);
                    if let (Some(at), Some(session)) = (stays, self.sessions.get_mut(pipe)) {
                        session.floor = (at != Position::default()).then_some(at);
                    }
                }
                Verdict::Disregard if waits => self.stand(cx, pipe, Standing::Clear, None),
                _ => {}
            }
            self.work.push_back(pipe);
        }
        self.run(cx);
    }

    /// A HEAD with a `seq` of its own, signed if there is a key; that of a server above as it came.
    fn issue(&mut self, mut head: Head) -> Head {
        if self.passes && !planted("relay-issues") {
            return head;
        }
        self.seq += 1;
        head.seq = self.seq;
        if let Some(secret) = &self.settings.secret {
            secret.sign(&mut head);
        }
        head
    }

    /// Current HEADs, each with a `seq` of its own, as a beacon.
    fn beacon_message(&mut self, shown: Beacon) -> Message {
        let heads = match shown {
            Beacon::One(which) => vec![self.beacon_head(which)],
            Beacon::Both => vec![self.beacon_head(Which::All), self.beacon_head(Which::Canary)],
        };
        Message::from(Frame::Beacon(heads.into_iter().flatten().collect()).encode())
    }

    fn beacon_head(&mut self, which: Which) -> Option<Head> {
        let mut head = self.current(which).map(|(head, _)| head.clone());
        if planted("vacant-shows") && self.published.is_none() {
            head = self.sessions.iter().find_map(|(_, session)| session.have.clone());
        }
        if planted("chain-anew-for-beacon")
            && let Some(head) = &mut head
        {
            head.chain = chain(&head.chain, head.position.rev, &head.digest);
        }
        if planted("seq-stands-still") && !self.passes {
            self.seq -= 1;
        }
        head.map(|head| self.issue(head))
    }

    fn beacon_now(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let Some(session) = self.sessions.get(pipe) else { return };
        if session.wants && session.node.is_some() {
            let beacon = self.beacon_message(self.shown_to(session));
            // A full queue is a sign of life by itself; the next beacon comes.
            let _ = cx.put(pipe, beacon);
        }
    }

    fn tick(&mut self, cx: &mut Cx<'_>) {
        self.offer_tick(cx);
        let now = cx.now();
        // A node may leave little credit unsaid until its beacon time.
        let stall = self.settings.stall.max(self.settings.beacon * 2);
        let all = [Beacon::One(Which::All), Beacon::One(Which::Canary), Beacon::Both];
        let beacons = all.map(|shown| self.beacon_message(shown));
        let silent = Message::from(Frame::Beacon(Vec::new()).encode());
        for (pipe, session) in self.sessions.iter() {
            if session.node.is_none() {
                if now.saturating_since(session.opened) >= self.settings.hello
                    && !planted("hello-awaited-for-ever")
                {
                    cx.close(pipe, Reason::HandshakeTimeout);
                }
            } else if session.stalled(now, stall) && !planted("stopped-readers-kept") {
                cx.close(pipe, Reason::Slow);
            } else if cx.unsent(pipe).0 == 0 {
                // Never more than one is pending: what is still queued says "alive" as well.
                let message = match self.shown_to(session) {
                    _ if !session.wants => &silent,
                    Beacon::One(which) => &beacons[which as usize],
                    Beacon::Both => &beacons[2],
                };
                let _ = cx.put(pipe, message.clone());
            }
        }
        self.tell_places(cx);
        for which in [Which::All, Which::Canary] {
            let newest = self.current(which).map(|(head, _)| head.position);
            let unused =
                |s: &mut Arc<Payload>| Arc::strong_count(s) == 1 && Some(s.head().position) != newest;
            self.snapshots[which as usize].take_if(unused);
        }
        // Encoded again where it is wanted again.
        self.deltas.retain(|(.., delta)| delta.as_ref().is_none_or(|delta| Arc::strong_count(delta) > 1));
        if self.published.is_some() {
            // Who still waits for a verdict is shown again: the word may have found no place.
            let waits = self.sessions.iter().filter(|(_, session)| session.standing == Standing::Unjudged);
            let waits = waits.filter_map(|(_, session)| Some((session.node?, session.have.clone()?)));
            for (node, have) in waits.collect::<Vec<_>>() {
                self.show(cx, node, have, true);
            }
        }
    }
}

/// The first `seq` of a run, less one.
fn seq_of(opened: u32) -> u64 {
    u64::from(opened & 0x00ff_ffff) << SEQ_BITS
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
        self.waiting.retain(|waiting| *waiting != pipe);
        self.offer_lost(cx, pipe);
        if let Some(session) = self.sessions.remove(pipe) {
            if session.slot && !planted("slot-kept-on-close") {
                self.slots = self.slots.saturating_sub(1);
            }
            if let Some(node) = session.node {
                self.nodes.left(node, pipe, cx.now());
                // Words on their way over an old pipe may have come after those over the new one.
                let other =
                    |other: &Session| other.wants && (other.node, other.boot) == (Some(node), session.boot);
                if let Some((other, _)) = self.sessions.iter().find(|(_, session)| other(session)) {
                    self.nodes.here(node, session.boot, other);
                }
                cx.wake(REPORTS);
            }
        }
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
