//! The receiving side: assembles, verifies, and only then gives a whole revision to the application.
//!
//! What is *visible* (the application accepted it), what is *given* (the application looks at it) and what is
//! *ready* (verified, waiting) are separate; a refusal goes back to visible, and nothing else ever goes back.
//! One pipe is in use; others are kept in reserve, in the order of their endpoints, and take over when it
//! dies.
//!
//! Owns: verification, the order of positions, what is said upward. Never: publishes what did not have the
//! digest that its HEAD names; a disk, a hook, a validator (the application's, between
//! [`recv`](spanwire::protocol::Receives::recv) and [`Replica::ack`] or [`Replica::nack`]).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use spanwire::Message;
use spanwire::protocol::{
    Cx, DropReason, PipeId, PipeMap, Protocol, ProtocolInfo, Readiness, Reason, Receives, Reject, Time,
    TimerKey, WaitKey,
};

use crate::faults::planted;
use crate::wire::{
    Ack, Frame, Goodbye, GoodbyeCode, Hello, Level, MIN_CHUNK, Nack, NackCode, NamespaceStatus, NodeKind,
    SLICE, Slice, VERSION, Want, WantReason, Welcome, decode_changes, decode_state, snapshot_size,
};
use crate::{
    Base, Change, ChangeSet, ClusterId, Head, Id, Key, Limits, OverLimit, Position, RECEIVER, SENDER,
    ServerId, State, chain,
};

const TICK: TimerKey = TimerKey(0, 0);
const CHANGED: WaitKey = WaitKey(RECEIVER as u32, 0);
/// Beacon times without a word after which an upstream is dead.
const PATIENCE: u32 = 3;

/// Settings of a [`Replica`].
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// The cluster. Default: zeros.
    pub cluster: ClusterId,
    /// The namespace to hold: at most 128 bytes. Default: `config`.
    pub namespace: String,
    /// This node: random, and kept across restarts. Default: zeros; give each its own.
    pub node: Id,
    /// Start number: high 32 bits counted on disk at each start, low 32 bits random.
    pub boot: u64,
    /// For people: at most 256 bytes.
    pub name: String,
    /// At most 16 pairs of at most 96 bytes each.
    pub labels: Vec<(String, String)>,
    /// How many payload bytes may be on their way. Default: 256 KiB.
    pub window: u32,
    /// Largest slice, in bytes; at least 4 KiB. Default: 64 KiB.
    pub max_chunk: u32,
    /// What this node can hold. Larger states are refused.
    pub limits: Limits,
    /// How long *fresh* lasts after a sign of life of the authority. Default: 10 s.
    pub fresh: Duration,
    /// Time between beacons until an upstream says its own. Default: 1 s.
    pub beacon: Duration,
}

impl Default for ReplicaSettings {
    fn default() -> Self {
        ReplicaSettings {
            cluster: Id::default(),
            namespace: "config".into(),
            node: Id::default(),
            boot: 0,
            name: String::new(),
            labels: Vec::new(),
            window: 256 << 10,
            max_chunk: SLICE as u32,
            limits: Limits::default(),
            fresh: Duration::from_secs(10),
            beacon: Duration::from_secs(1),
        }
    }
}

/// A verified revision, whole.
#[derive(Clone, Debug)]
pub struct Update {
    /// Its HEAD, as it arrived.
    pub head: Head,
    /// Keys whose entries differ from the revision accepted before, in order. Empty when only the position
    /// rose.
    pub changed: Vec<Key>,
    /// All of its content. It stays as it is for as long as it is kept.
    pub state: State,
}

impl Update {
    /// Its position.
    pub fn position(&self) -> Position {
        self.head.position
    }
}

/// Where a replica stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Data {
    /// Nothing verified yet.
    Empty,
    /// From disk, not confirmed by an upstream.
    Cached,
    /// Confirmed, and nothing newer is known.
    Live,
    /// Something newer is known and on its way.
    Behind,
    /// Something newer was refused; the last good one stays visible.
    Held,
    /// Two histories claim one place; what is visible stays, until a higher epoch comes.
    Conflict,
}

/// State of a replica, for people and for its application.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// Where it stands.
    pub data: Data,
    /// What the application accepted.
    pub visible: Option<Position>,
    /// The newest that is known.
    pub newest: Option<Position>,
    /// The authority gave a sign of life within the time set, by this node's clock.
    pub fresh: bool,
    /// The server of the pipe in use.
    pub upstream: Option<ServerId>,
    /// What that server says of the namespace.
    pub namespace: Option<NamespaceStatus>,
    /// A server knows a higher start number of this node than its own: this one.
    pub stale_boot: Option<u64>,
    /// The HEADs that contradict each other.
    pub evidence: Option<(Head, Head)>,
}

/// The application named a revision that it was not given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} is neither given nor visible")]
pub struct Unexpected(pub Position);

#[derive(Clone, Debug)]
struct Held {
    head: Head,
    state: State,
}

/// One pipe to a server.
#[derive(Debug)]
struct Up {
    opened: u64,
    heard: Time,
    beacon: Duration,
    server: Option<ServerId>,
    status: Option<NamespaceStatus>,
    taken: u64,
    credited: u64,
    /// The smaller of both sides' windows: half of it is credited at once, or the sender would wait.
    window: u32,
    /// Words that found no room.
    owed: BTreeSet<Word>,
}

/// What is said upward again when there is room again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Word {
    Want(WantReason),
    Credit,
    Report,
    Refusals,
}

/// A transfer that arrives.
#[derive(Debug)]
struct Assembly {
    head: Head,
    base: Option<Base>,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Refusal {
    position: Position,
    code: NackCode,
    text: String,
}

enum Verdict {
    Ignore,
    /// It names what is held.
    Same,
    Newer,
}

/// The receiver protocol, SP id 0xFCF1.
#[derive(Debug)]
pub struct Replica {
    settings: ReplicaSettings,
    attempt: u32,
    pipes: PipeMap<Up>,
    opened: u64,
    active: Option<PipeId>,
    visible: Option<Held>,
    given: Option<Held>,
    ready: Option<Held>,
    ready_changed: BTreeSet<Key>,
    /// The last level said of `visible`.
    report: Option<Ack>,
    hook_failed: Option<Refusal>,
    /// At most two, newest last.
    refused: Vec<Refusal>,
    assembly: Option<Assembly>,
    /// A fresh start was asked for: what does not fit is dropped without a word until it comes.
    awaiting: bool,
    /// The newest HEAD above what is verified.
    target: Option<Head>,
    /// Since when there is a target and nothing of it arrived.
    behind: Option<Time>,
    confirmed: bool,
    conflict: Option<(Head, Head)>,
    /// Highest `seq` seen in the epoch of the last HEAD, and when it last rose.
    seq: Option<(Position, u64)>,
    fresh: Option<Time>,
    was_fresh: bool,
    stale_boot: Option<u64>,
    ticking: bool,
}

impl Replica {
    /// A replica that holds nothing. A namespace name beyond 128 bytes matches no server's.
    pub fn new(mut settings: ReplicaSettings) -> Self {
        settings.max_chunk = settings.max_chunk.max(MIN_CHUNK);
        settings.window = settings.window.max(1);
        Replica {
            settings,
            attempt: 0,
            pipes: PipeMap::default(),
            opened: 0,
            active: None,
            visible: None,
            given: None,
            ready: None,
            ready_changed: BTreeSet::new(),
            report: None,
            hook_failed: None,
            refused: Vec::new(),
            assembly: None,
            awaiting: false,
            target: None,
            behind: None,
            confirmed: false,
            conflict: None,
            seq: None,
            fresh: None,
            was_fresh: false,
            stale_boot: None,
            ticking: false,
        }
    }

    /// A replica that begins with what its disk holds, which the application shows already. `level` is what
    /// was reached for it. `state` must have been checked against `head` (as [`store`](crate::store) does).
    pub fn restored(settings: ReplicaSettings, head: Head, state: State, level: Level) -> Self {
        let mut replica = Self::new(settings);
        replica.report = Some(replica.ack_of(head.position, level, false));
        replica.visible = Some(Held { head, state });
        replica
    }

    /// The revision that the application accepted last.
    pub fn visible(&self) -> Option<(&Head, &State)> {
        self.visible.as_ref().map(|held| (&held.head, &held.state))
    }

    /// Where it stands, at `now`.
    pub fn status(&self, now: Time) -> ReplicaStatus {
        let up = self.active.and_then(|pipe| self.pipes.get(pipe));
        ReplicaStatus {
            data: self.data(),
            visible: self.visible.as_ref().map(|held| held.head.position),
            newest: self.target.as_ref().or(self.tip().map(|held| &held.head)).map(|head| head.position),
            fresh: self.fresh.is_some_and(|at| now.saturating_since(at) <= self.settings.fresh),
            upstream: up.and_then(|up| up.server),
            namespace: up.and_then(|up| up.status),
            stale_boot: self.stale_boot,
            evidence: self.conflict.clone(),
        }
    }

    fn data(&self) -> Data {
        let newest = self.tip().map(|held| held.head.position);
        if self.conflict.is_some() {
            Data::Conflict
        } else if self.target.is_some() || self.ready.is_some() || self.given.is_some() {
            Data::Behind
        } else if self.refused.iter().any(|r| newest.is_none_or(|newest| r.position > newest)) {
            Data::Held
        } else if newest.is_none() {
            Data::Empty
        } else if self.confirmed {
            Data::Live
        } else {
            Data::Cached
        }
    }

    /// Woken when [`status`](Self::status) may have changed.
    pub fn wait_key(&self) -> WaitKey {
        CHANGED
    }

    /// The node took another start number or id, after a server had said that it knows a higher start number
    /// of it. Pipes opened from now on say it.
    pub fn set_identity(&mut self, node: Id, boot: u64) {
        self.settings.node = node;
        self.settings.boot = boot;
        self.attempt = 0;
        self.stale_boot = None;
    }

    /// Asks for what was refused to be offered again: the cause (a full disk) may have passed.
    pub fn retry(&mut self, cx: &mut Cx<'_>) {
        self.refused.clear();
        self.ask(cx, WantReason::Retry);
    }

    /// The application reached `level` with the revision at `position`: the one given, or the visible one. At
    /// any level the one given becomes visible. `volatile`: it is not on disk.
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
        if self.given.as_ref().is_some_and(|given| given.head.position == position) {
            self.visible = self.given.take();
            self.hook_failed = None;
            self.report = None;
        } else if self.visible.as_ref().is_none_or(|visible| visible.head.position != position) {
            return Err(Unexpected(position));
        }
        if level == Level::Applied {
            self.hook_failed = None;
        }
        let said = self.report.as_ref().map(|ack| (ack.level, !ack.volatile));
        // Levels of one revision only add up.
        let (level, kept) = said.map_or((level, !volatile), |(l, k)| (l.max(level), k || !volatile));
        let level = if planted("level-lowered") { level.min(Level::Visible) } else { level };
        self.report = Some(self.ack_of(position, level, !kept));
        self.say(cx, Word::Report);
        if planted("credit-by-ack") {
            self.say(cx, Word::Credit);
        }
        cx.wake(CHANGED);
        Ok(())
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
        let refusal = Refusal { position, code, text: text.to_owned() };
        if code == NackCode::Hook {
            if self.visible.as_ref().is_none_or(|visible| visible.head.position != position) {
                return Err(Unexpected(position));
            }
            self.hook_failed = Some(refusal);
        } else {
            if self.given.as_ref().is_none_or(|given| given.head.position != position) {
                return Err(Unexpected(position));
            }
            self.refuse(refusal);
            // What is built on the refused one goes with it; the sender starts again from visible.
            self.given = None;
            let built_on_it = if planted("nack-does-not-go-back") { None } else { self.ready.take() };
            self.ready_changed.clear();
            self.assembly = None;
            self.awaiting = true;
            self.not_beyond(position);
            if let (Some(held), None) = (built_on_it, &self.target) {
                // It is known, and comes again from what is visible.
                self.target = Some(held.head);
                self.behind = Some(cx.now());
            }
        }
        self.say(cx, Word::Refusals);
        cx.wake(CHANGED);
        Ok(())
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.refused.retain(|r| r.position != refusal.position);
        self.refused.push(refusal);
        if self.refused.len() > 2 {
            self.refused.remove(0);
        }
    }

    fn ack_of(&self, position: Position, level: Level, volatile: bool) -> Ack {
        Ack { namespace: self.settings.namespace.clone(), position, level, volatile }
    }

    /// The newest that is verified.
    fn tip(&self) -> Option<&Held> {
        self.ready.as_ref().or(self.given.as_ref()).or(self.visible.as_ref())
    }

    fn want(&self) -> Want {
        Want {
            namespace: self.settings.namespace.clone(),
            have: self.tip().map(|held| held.head.clone()).into_iter().collect(),
            refused: self.refused.iter().map(|r| (r.position, r.code)).collect(),
        }
    }

    fn nack_of(&self, refusal: &Refusal) -> Nack {
        Nack {
            namespace: self.settings.namespace.clone(),
            position: refusal.position,
            stays_at: self.visible.as_ref().map(|held| held.head.position).unwrap_or_default(),
            code: refusal.code,
            text: refusal.text.clone(),
        }
    }

    fn frames(&self, word: Word, up: &Up) -> Vec<Frame> {
        match word {
            Word::Want(reason) => vec![Frame::Want(reason, vec![self.want()])],
            Word::Credit => vec![Frame::Credit(up.taken)],
            Word::Report => self.report.iter().cloned().map(Frame::Ack).collect(),
            Word::Refusals => {
                let conflict = self.conflict.as_ref().map(|(_, other)| Refusal {
                    position: other.position,
                    code: NackCode::Conflict,
                    text: "another history claims this place".into(),
                });
                // Only what still stands: what is above visible, a failed hook, a conflict.
                let visible = self.visible.as_ref().map(|held| held.head.position);
                let standing = self.refused.iter().filter(|r| visible.is_none_or(|v| r.position > v));
                (standing.chain(&self.hook_failed).chain(&conflict))
                    .map(|refusal| Frame::Nack(self.nack_of(refusal)))
                    .collect()
            }
        }
    }

    /// Says something on the pipe in use: now, or when there is room.
    fn say(&mut self, cx: &mut Cx<'_>, word: Word) {
        if let Some(pipe) = self.active {
            self.say_on(cx, pipe, word);
        }
    }

    fn say_on(&mut self, cx: &mut Cx<'_>, pipe: PipeId, word: Word) {
        let Some(up) = self.pipes.get(pipe) else { return };
        // Nothing is said before WELCOME but HELLO, which shows what is held.
        let mut fits = up.server.is_some() || word == Word::Credit;
        for frame in self.frames(word, up) {
            fits = fits && cx.put(pipe, Message::from(frame.encode())).is_ok();
        }
        let Some(up) = self.pipes.get_mut(pipe) else { return };
        match (fits, word) {
            (true, Word::Credit) => up.credited = up.taken,
            (true, _) => drop(up.owed.remove(&word)),
            (false, _) => drop(up.owed.insert(word)),
        }
    }

    fn pay(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let Some(up) = self.pipes.get_mut(pipe) else { return };
        for word in std::mem::take(&mut up.owed) {
            self.say_on(cx, pipe, word);
        }
    }

    /// Asks for a fresh start from what is verified.
    fn ask(&mut self, cx: &mut Cx<'_>, reason: WantReason) {
        self.assembly = None;
        self.awaiting = true;
        self.say(cx, Word::Want(reason));
    }

    /// Any HEAD: freshness, conflicts, and whether it is news (the six rules of a replica).
    fn on_head(&mut self, cx: &mut Cx<'_>, head: &Head) -> Verdict {
        if head.cluster != self.settings.cluster || head.namespace != self.settings.namespace {
            cx.dropped(self.active, DropReason::Own("foreign-head"));
            return Verdict::Ignore;
        }
        let tip = self.tip().map(|held| held.head.clone());
        if let Some(tip) = &tip {
            let (mine, theirs) = (tip.position.epoch, head.position.epoch);
            if theirs.number < mine.number && !planted("no-epoch") {
                cx.count("upstream-behind", 1);
                return Verdict::Ignore;
            }
            if theirs.number == mine.number && theirs != mine && planted("conflict-ignored") {
                return Verdict::Ignore;
            }
            if theirs.number == mine.number && theirs != mine {
                self.contradict(cx, tip.clone(), head.clone());
                return Verdict::Ignore;
            }
        }
        if self
            .conflict
            .as_ref()
            .is_some_and(|(one, _)| head.position.epoch.number <= one.position.epoch.number)
        {
            // Only a higher epoch ends it, whatever became of the revision that showed it.
            return Verdict::Ignore;
        }
        if !head.audience.is_empty() && !planted("audience-ignored") {
            return Verdict::Ignore;
        }
        self.note_seq(cx, head);
        let Some(tip) = tip else { return self.news(cx, head) };
        match order(&head.position, &tip.position) {
            Some(std::cmp::Ordering::Less) | None => Verdict::Ignore,
            Some(std::cmp::Ordering::Equal) => {
                if (head.digest, head.prev_rev, head.chain) != (tip.digest, tip.prev_rev, tip.chain)
                    && !planted("chain-unchecked")
                {
                    self.contradict(cx, tip, head.clone());
                    return Verdict::Ignore;
                }
                self.confirm(head);
                Verdict::Same
            }
            Some(std::cmp::Ordering::Greater) => {
                let next = head.position.epoch == tip.position.epoch && head.prev_rev == tip.position.rev;
                if next
                    && head.chain != chain(&tip.chain, head.position.rev, &head.digest)
                    && !planted("fork-unchecked")
                {
                    self.contradict(cx, tip, head.clone());
                    return Verdict::Ignore;
                }
                self.news(cx, head)
            }
        }
    }

    fn news(&mut self, cx: &mut Cx<'_>, head: &Head) -> Verdict {
        if self.refused.iter().any(|r| r.position == head.position) && !planted("refusal-forgotten") {
            // Who shows it does not send what comes before it.
            self.not_beyond(head.position);
            return Verdict::Ignore;
        }
        if let Err(over) = self.settings.limits.check(head.keys, head.bytes)
            && !planted("limits-ignored")
        {
            self.too_large(cx, head.position, &over);
            return Verdict::Ignore;
        }
        if self.target.as_ref().is_none_or(|target| {
            !matches!(target.position.partial_cmp(&head.position), Some(std::cmp::Ordering::Greater))
        }) {
            self.target = Some(head.clone());
        }
        self.behind.get_or_insert(cx.now());
        Verdict::Newer
    }

    fn too_large(&mut self, cx: &mut Cx<'_>, position: Position, over: &OverLimit) {
        self.refuse(Refusal { position, code: NackCode::TooLarge, text: over.to_string() });
        self.assembly = None;
        self.awaiting = true;
        self.not_beyond(position);
        self.say(cx, Word::Refusals);
        cx.wake(CHANGED);
    }

    /// A refusal: what it names and what comes before it is not sent any more, so there is nothing to be behind of,
    /// unless something newer is known.
    fn not_beyond(&mut self, refused: Position) {
        if self.target.as_ref().is_some_and(|target| target.position <= refused) {
            self.target = None;
            self.behind = None;
        }
    }

    /// An upstream shows what is held.
    fn confirm(&mut self, head: &Head) {
        self.confirmed = true;
        let held = self.ready.as_mut().or(self.given.as_mut()).or(self.visible.as_mut());
        if let Some(held) = held
            && head.seq > held.head.seq
        {
            held.head = head.clone();
        }
    }

    fn note_seq(&mut self, cx: &Cx<'_>, head: &Head) {
        let epoch = Position { epoch: head.position.epoch, rev: 0 };
        let rose = match self.seq {
            // The first of a process life only sets the mark.
            None => planted("first-seq-is-fresh"),
            Some((known, seq)) if known == epoch => {
                if head.seq <= seq && !planted("forget-seq") {
                    return;
                }
                true
            }
            // An old epoch's HEAD may be a repeated one; that of another incarnation says nothing of this one.
            Some((known, _)) => match epoch.partial_cmp(&known) {
                Some(std::cmp::Ordering::Less) => return,
                order => order.is_some(),
            },
        };
        self.seq = Some((epoch, head.seq));
        if rose {
            self.fresh = Some(cx.now());
        }
    }

    fn contradict(&mut self, cx: &mut Cx<'_>, mine: Head, other: Head) {
        if self.conflict.is_none() {
            cx.count("conflicts", 1);
            self.conflict = Some((mine, other));
            self.assembly = None;
            self.target = None;
            self.behind = None;
            self.say(cx, Word::Refusals);
            cx.wake(CHANGED);
        }
    }

    fn on_slice(&mut self, cx: &mut Cx<'_>, pipe: PipeId, slice: Slice) {
        if let Some(up) = self.pipes.get_mut(pipe) {
            // Credited as it is taken, whether it is kept or not.
            up.taken += slice.bytes.len() as u64;
            if up.taken - up.credited >= u64::from(up.window / 2) && !planted("credit-by-ack") {
                self.say_on(cx, pipe, Word::Credit);
            }
        }
        if self.active != Some(pipe) {
            cx.dropped(Some(pipe), DropReason::Own("not-in-use"));
            return;
        }
        if slice.offset == 0 {
            self.assembly = None;
        }
        let verdict = self.on_head(cx, &slice.head);
        if !matches!(verdict, Verdict::Newer) {
            self.assembly = None;
            cx.dropped(Some(pipe), DropReason::Own("not-news"));
            if matches!(verdict, Verdict::Same) && slice.last {
                // The sender does not know that it is here.
                self.say(cx, Word::Report);
            }
            return;
        }
        if slice.offset == 0 && !self.start(cx, &slice) {
            return;
        }
        self.behind = Some(cx.now());
        let Some(assembly) = &mut self.assembly else {
            // The rest of a transfer whose start was dropped.
            cx.dropped(Some(pipe), DropReason::Own("out-of-step"));
            return;
        };
        let fits = assembly.head.position == slice.head.position
            && assembly.base == slice.base
            && (assembly.bytes.len() as u64 == slice.offset || planted("accept-holes"));
        if !fits {
            self.ask(cx, WantReason::Other);
            return;
        }
        let size = slice.offset + slice.bytes.len() as u64;
        let most = match slice.base {
            None => snapshot_size(slice.head.keys, slice.head.bytes),
            // Puts are within the new state; deletes within the old one, whose keys the limits bound.
            Some(_) => snapshot_size(self.settings.limits.keys, self.settings.limits.bytes).saturating_mul(2),
        };
        if size > most {
            self.failed(cx, pipe, slice.base.is_some());
            return;
        }
        assembly.bytes.extend_from_slice(&slice.bytes);
        if (slice.last || planted("half-snapshot"))
            && let Some(whole) = self.assembly.take()
        {
            self.verify(cx, pipe, whole);
        }
    }

    /// The first slice of a transfer. `false`: it does not fit what is held.
    fn start(&mut self, cx: &mut Cx<'_>, slice: &Slice) -> bool {
        if let Some(base) = slice.base
            && self.tip().map(|held| held.head.base()) != Some(base)
            && !planted("skip-base")
        {
            if !self.awaiting {
                self.ask(cx, WantReason::Other);
            }
            return false;
        }
        self.awaiting = false;
        self.assembly = Some(Assembly { head: slice.head.clone(), base: slice.base, bytes: Vec::new() });
        true
    }

    /// A whole transfer: applied to a copy, and kept only if the copy has the digest that its HEAD names.
    fn verify(&mut self, cx: &mut Cx<'_>, pipe: PipeId, assembly: Assembly) {
        let Assembly { head, base, bytes } = assembly;
        let bytes = Bytes::from(bytes);
        let before = self.tip().map(|held| held.state.clone()).unwrap_or_default();
        let built = match base {
            Some(_) => decode_changes(&bytes).map(|changes| {
                let mut state = before.clone();
                let changes = if planted("deletes-ignored") { puts_of(&changes) } else { changes };
                let over = self.settings.limits.check_values(&changes);
                state.apply(&changes);
                (state, changes.keys().cloned().collect::<Vec<_>>(), over)
            }),
            None => decode_state(&bytes).map(|state| {
                let state = if planted("snapshot-over-state") { over(&before, &state) } else { state };
                let changes = before.diff(&state);
                let over = self.settings.limits.check_values(&changes);
                (state, changes.keys().cloned().collect(), over)
            }),
        };
        let Ok((state, changed, over)) = built else { return self.failed(cx, pipe, base.is_some()) };
        let named = (head.keys, head.bytes, head.digest);
        if (state.keys(), state.bytes(), state.digest()) != named && !unchecked() {
            return self.failed(cx, pipe, base.is_some());
        }
        if let Err(over) = over {
            return self.too_large(cx, head.position, &over);
        }
        cx.count("verified", 1);
        self.accept(cx, Held { head, state }, changed);
    }

    fn accept(&mut self, cx: &mut Cx<'_>, held: Held, changed: Vec<Key>) {
        let position = held.head.position;
        if planted("ack-early") {
            self.report = Some(self.ack_of(position, Level::Stored, false));
            self.say(cx, Word::Report);
        }
        if planted("changes-forgotten") {
            self.ready_changed.clear();
        }
        self.ready_changed.extend(changed);
        self.ready = Some(held);
        self.confirmed = true;
        // Only a higher epoch gets here while two histories contradict each other: it ends that.
        self.conflict = None;
        if self
            .target
            .as_ref()
            .is_some_and(|target| target.position.partial_cmp(&position) != Some(std::cmp::Ordering::Greater))
        {
            self.target = None;
            self.behind = None;
        }
        cx.wake(CHANGED);
    }

    /// What arrived is not what its HEAD names.
    fn failed(&mut self, cx: &mut Cx<'_>, pipe: PipeId, delta: bool) {
        cx.count("digest-failures", 1);
        cx.dropped(Some(pipe), DropReason::Own("digest"));
        if delta {
            self.ask(cx, WantReason::Digest);
        } else {
            self.assembly = None;
            cx.close(pipe, Reason::Protocol("a snapshot without the digest that its HEAD names"));
        }
    }

    fn on_welcome(&mut self, cx: &mut Cx<'_>, pipe: PipeId, welcome: Welcome) {
        let Some(up) = self.pipes.get_mut(pipe) else { return };
        let first = up.server.is_none();
        up.server = Some(welcome.server);
        up.beacon = Duration::from_millis(u64::from(welcome.beacon_ms.clamp(10, 60_000)));
        up.window = self.settings.window.min(welcome.window);
        let mine = welcome.namespaces.iter().find(|(name, _)| *name == self.settings.namespace);
        up.status = mine.map(|(_, status)| *status);
        if self.active == Some(pipe) && first && !planted("reports-not-repeated") {
            // The last pipe may have lost them.
            self.say(cx, Word::Report);
            self.say(cx, Word::Refusals);
        }
        if first {
            self.pay(cx, pipe);
        }
        self.schedule(cx);
        cx.wake(CHANGED);
    }

    fn on_goodbye(&mut self, cx: &mut Cx<'_>, pipe: PipeId, goodbye: &Goodbye) {
        if goodbye.code == GoodbyeCode::StaleBoot && goodbye.detail > self.settings.boot {
            self.stale_boot = Some(goodbye.detail);
            cx.wake(CHANGED);
        }
        cx.count("goodbyes", 1);
        cx.close(
            pipe,
            Reason::Protocol(match goodbye.code {
                GoodbyeCode::Version => "server speaks another version",
                GoodbyeCode::Cluster => "server of another cluster",
                GoodbyeCode::Denied => "server denies this node",
                GoodbyeCode::Loop => "servers form a loop",
                GoodbyeCode::Busy => "server is busy",
                GoodbyeCode::Limits => "server is at its limits",
                GoodbyeCode::StaleBoot => "server knows a later start of this node",
                GoodbyeCode::Closing => "server is closing",
            }),
        );
    }

    /// One message of a server. `false`: the pipe is given up.
    fn on_frame(&mut self, cx: &mut Cx<'_>, pipe: PipeId, frame: Frame) -> bool {
        if let Some(up) = self.pipes.get_mut(pipe) {
            up.heard = cx.now();
        }
        match frame {
            Frame::Welcome(welcome) => self.on_welcome(cx, pipe, welcome),
            Frame::Beacon(_) if planted("beacon-ignored") => {}
            Frame::Beacon(heads) if self.active == Some(pipe) => {
                let before = self.data();
                for head in &heads {
                    // A beacon never moves what is visible.
                    self.on_head(cx, head);
                }
                if self.data() != before {
                    cx.wake(CHANGED);
                }
            }
            Frame::Beacon(_) => {}
            Frame::Slice(slice) => self.on_slice(cx, pipe, *slice),
            Frame::Goodbye(goodbye) => {
                self.on_goodbye(cx, pipe, &goodbye);
                return false;
            }
            Frame::Unknown { optional: true, .. } => cx.dropped(Some(pipe), DropReason::Unexpected),
            Frame::Unknown { .. } => {
                let code = GoodbyeCode::Version;
                let goodbye = Goodbye { code, detail: 0, retry_after_ms: 0, alternates: Vec::new() };
                let _ = cx.put(pipe, Message::from(Frame::Goodbye(goodbye).encode()));
                cx.finish(pipe, Reason::Protocol("message of unknown type"));
                return false;
            }
            _ => {
                cx.dropped(Some(pipe), DropReason::Malformed);
                cx.close(pipe, Reason::Malformed);
                return false;
            }
        }
        true
    }

    fn greet(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        self.attempt = self.attempt.saturating_add(1);
        let wants = if self.active == Some(pipe) { vec![self.want()] } else { Vec::new() };
        let hello = Frame::Hello(Hello {
            node: self.settings.node,
            boot: self.settings.boot,
            attempt: self.attempt,
            kind: NodeKind::Replica,
            name: self.settings.name.clone(),
            labels: self.settings.labels.clone(),
            proto_min: VERSION,
            proto_max: VERSION,
            cluster: self.settings.cluster,
            window: self.settings.window,
            max_chunk: self.settings.max_chunk,
            wants,
        });
        cx.put(pipe, Message::from(hello.encode())).map(|_| ()).map_err(|_| Reason::Slow)
    }

    /// The pipe in use is gone: the first in reserve takes over.
    fn fail_over(&mut self, cx: &mut Cx<'_>) {
        self.assembly = None;
        self.awaiting = false;
        self.confirmed = false;
        let endpoint = |pipe| cx.info(pipe).map_or(u32::MAX, |info| info.endpoint);
        let next =
            self.pipes.iter().min_by_key(|(pipe, up)| (up.server.is_none(), endpoint(*pipe), up.opened));
        self.active = next.map(|(pipe, _)| pipe);
        self.behind_anew(cx);
        if self.active.is_some() && !planted("reserve-silent") {
            self.say(cx, Word::Want(WantReason::New));
            self.say(cx, Word::Report);
            self.say(cx, Word::Refusals);
        }
        cx.wake(CHANGED);
    }

    /// Another upstream: it has not withheld anything yet.
    fn behind_anew(&mut self, cx: &Cx<'_>) {
        self.behind = self.behind.map(|_| cx.now());
    }

    fn schedule(&mut self, cx: &mut Cx<'_>) {
        let shortest = self.pipes.iter().map(|(_, up)| up.beacon).min();
        match shortest {
            Some(beacon) => cx.set_timer(TICK, cx.now() + beacon),
            None => cx.clear_timer(TICK),
        }
        self.ticking = shortest.is_some();
    }

    fn tick(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now();
        let pipes: Vec<PipeId> = self.pipes.keys().collect();
        for pipe in pipes {
            let Some(up) = self.pipes.get(pipe) else { continue };
            if now.saturating_since(up.heard) > up.beacon * PATIENCE && !planted("dead-upstream-kept") {
                cx.close(pipe, Reason::Protocol("no word for three beacon times"));
            } else if up.taken > up.credited && !planted("credit-by-ack") && !planted("small-credit-kept") {
                self.say_on(cx, pipe, Word::Credit);
            }
        }
        if self.target.is_some()
            && !planted("withheld-data-tolerated")
            && self.behind.is_some_and(|since| now.saturating_since(since) >= self.settings.fresh * 3)
        {
            self.behind = Some(now);
            match self.active {
                // It shows that there is more and does not send it.
                Some(pipe) if self.pipes.len() > 1 => cx.close(pipe, Reason::Protocol("withholds data")),
                _ => self.ask(cx, WantReason::Other),
            }
        }
        let fresh = self.fresh.is_some_and(|at| now.saturating_since(at) <= self.settings.fresh);
        if std::mem::replace(&mut self.was_fresh, fresh) != fresh {
            cx.wake(CHANGED);
        }
    }
}

/// Planted faults that let through what was not verified.
fn unchecked() -> bool {
    ["skip-digest", "accept-holes", "snapshot-over-state", "deletes-ignored", "half-snapshot"]
        .into_iter()
        .any(planted)
}

fn puts_of(changes: &ChangeSet) -> ChangeSet {
    let mut puts = ChangeSet::new();
    let kept = changes.iter().filter(|(_, change)| matches!(change, Change::Put(_)));
    kept.for_each(|(key, change)| puts.set(key.clone(), change.clone()));
    puts
}

fn over(before: &State, state: &State) -> State {
    let mut both = before.clone();
    state.iter().for_each(|(key, entry)| drop(both.put(key.clone(), entry.clone())));
    both
}

/// The order of two positions.
fn order(a: &Position, b: &Position) -> Option<std::cmp::Ordering> {
    if planted("no-epoch") {
        return Some(a.rev.cmp(&b.rev));
    }
    match a.partial_cmp(b) {
        Some(std::cmp::Ordering::Less) if planted("old-position-taken") => Some(std::cmp::Ordering::Greater),
        order => order,
    }
}

impl Protocol for Replica {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(RECEIVER, "config-recv", SENDER, "config-send")
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        let alone = self.active.is_none();
        if alone {
            self.active = Some(pipe);
            self.behind_anew(cx);
        }
        if let Err(reject) = self.greet(cx, pipe) {
            if alone {
                self.active = None;
            }
            return Err(reject);
        }
        self.opened += 1;
        let up = Up {
            opened: self.opened,
            heard: cx.now(),
            beacon: self.settings.beacon,
            server: None,
            status: None,
            taken: 0,
            credited: 0,
            window: self.settings.window,
            owed: BTreeSet::new(),
        };
        self.pipes.insert(pipe, up);
        if !self.ticking {
            self.schedule(cx);
        }
        Ok(())
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.pipes.remove(pipe);
        if self.active == Some(pipe) {
            self.active = None;
            if planted("conflict-ends") {
                self.conflict = None;
            }
            if !planted("no-fail-over") {
                self.fail_over(cx);
            }
        }
        if self.pipes.is_empty() {
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
    }

    fn timer(&mut self, cx: &mut Cx<'_>, _key: TimerKey) {
        self.tick(cx);
        self.schedule(cx);
    }

    fn readiness(&self) -> Readiness {
        Readiness { recv: self.ready.is_some(), ..Readiness::default() }
    }

    fn closing(&mut self, cx: &mut Cx<'_>) {
        let goodbye =
            Goodbye { code: GoodbyeCode::Closing, detail: 0, retry_after_ms: 0, alternates: Vec::new() };
        let message = Message::from(Frame::Goodbye(goodbye).encode());
        for (pipe, _) in self.pipes.iter() {
            let _ = cx.put(pipe, message.clone());
            cx.finish(pipe, Reason::Local);
        }
    }
}

impl Receives for Replica {
    type Item = Update;

    /// The newest verified revision, once. Each is to be answered by [`Replica::ack`] or [`Replica::nack`];
    /// asking for the next without an answer says that the last is visible (and nothing of a disk).
    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Update> {
        self.ready.as_ref()?;
        if let Some(position) = self.given.as_ref().map(|given| given.head.position) {
            // It is the one given, so this cannot fail.
            let _ = self.ack(cx, position, Level::Visible, true);
        }
        let held = self.ready.take()?;
        let changed = std::mem::take(&mut self.ready_changed);
        self.given = Some(held.clone());
        Some(Update { head: held.head, changed: changed.into_iter().collect(), state: held.state })
    }
}
