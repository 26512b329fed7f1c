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

mod heads;
mod memory;
mod offer;
mod relay;
mod reports;
mod transfer;
mod trust;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::{
    Cx, DropReason, PipeId, PipeMap, Protocol, ProtocolInfo, Readiness, Reason, Receives, Reject, Time,
    TimerKey, WaitKey,
};

use crate::faults::planted;
use crate::sender::BEACONS;
use crate::sign::Keyring;
use crate::wire::{
    Frame, Goodbye, GoodbyeCode, Level, MIN_CHUNK, NackCode, NamespaceStatus, NodeKind, SLICE, WantReason,
    Welcome,
};
use crate::{Base, ClusterId, Head, Id, Key, Limits, Position, RECEIVER, SENDER, ServerId, State};

pub use memory::{Arriving, Memory};

const TICK: TimerKey = TimerKey(0, 0);
const REPORT: TimerKey = TimerKey(0, 1);
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
    /// A relay serves to others what it holds; its node id is its server id. Default: a replica.
    pub kind: NodeKind,
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
    /// Whose HEADs are believed. Empty: everybody's, since the cluster has no keys. Default: empty.
    pub trust: Keyring,
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
            kind: NodeKind::Replica,
            boot: 0,
            name: String::new(),
            labels: Vec::new(),
            window: 256 << 10,
            max_chunk: SLICE as u32,
            limits: Limits::default(),
            trust: Keyring::new(),
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
    /// How long ago that was; `None`: not in this process life.
    pub rose: Option<Duration>,
    /// Bytes of a snapshot that is on its way: how many came, and of how many.
    pub arriving: Option<(u64, u64)>,
    /// The server sends to others first; its place among those that wait, 1 for the next.
    pub waiting: Option<u32>,
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
#[derive(Clone, Debug)]
struct Up {
    opened: u64,
    heard: Time,
    beacon: Duration,
    server: Option<ServerId>,
    path: Vec<ServerId>,
    status: Option<NamespaceStatus>,
    taken: u64,
    credited: u64,
    /// Payload bytes that were sent up, and that the server has taken.
    sent_up: u64,
    taken_up: u64,
    /// The smaller of both sides' windows: half of it is credited at once, or the sender would wait.
    window: u32,
    /// Words that found no room.
    owed: BTreeSet<Word>,
    /// HEADs in a row that are not to be believed.
    doubted: u32,
}

/// What is said upward again when there is room again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Word {
    /// Who it is, once more: another boot, or another pipe in use.
    Hello,
    Want(WantReason),
    Credit,
    Report,
    Refusals,
}

/// A transfer that arrives.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub struct Replica {
    settings: ReplicaSettings,
    attempt: u32,
    pipes: PipeMap<Up>,
    opened: u64,
    active: Option<PipeId>,
    /// Since when that pipe is in use.
    active_since: Time,
    /// Endpoints whose server was left, and when: they come last for a while.
    left: BTreeMap<u32, Time>,
    /// The last HEAD that a trusted key signed: all slices of a transfer carry the same.
    signed: Option<Head>,
    visible: Option<Held>,
    given: Option<Held>,
    ready: Option<Held>,
    ready_changed: BTreeSet<Key>,
    /// What is said of `visible`.
    reports: reports::Reports,
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
    /// Its place among those that wait for a transfer, as the pipe in use told it last, and the best that it had;
    /// `None` once something came.
    place: Option<(u32, u32)>,
    confirmed: bool,
    conflict: Option<(Head, Head)>,
    /// Highest `seq` seen in the epoch of the last HEAD, and when it last rose.
    seq: Option<(Position, u64)>,
    fresh: Option<Time>,
    was_fresh: bool,
    stale_boot: Option<u64>,
    relayed: relay::Relayed,
    upload: Option<offer::Upload>,
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
            active_since: Time::default(),
            left: BTreeMap::new(),
            signed: None,
            visible: None,
            given: None,
            ready: None,
            ready_changed: BTreeSet::new(),
            reports: reports::Reports::default(),
            hook_failed: None,
            refused: Vec::new(),
            assembly: None,
            awaiting: false,
            target: None,
            behind: None,
            place: None,
            confirmed: false,
            conflict: None,
            seq: None,
            fresh: None,
            was_fresh: false,
            stale_boot: None,
            relayed: relay::Relayed::default(),
            upload: None,
            ticking: false,
        }
    }

    /// A replica that begins with what its disk holds, which the application shows already. `level` is what
    /// was reached for it. `state` must have been checked against `head` (as [`store`](crate::store) does).
    pub fn restored(settings: ReplicaSettings, head: Head, state: State, level: Level) -> Self {
        let mut replica = Self::new(settings);
        replica.reports = reports::Reports::of(replica.ack_of(head.position, level, false));
        replica.visible = Some(Held { head, state });
        replica
    }

    /// The same, where two HEADs contradict each other since an earlier life: what is held, and the other. What is
    /// visible stays until a HEAD of a higher epoch comes.
    #[must_use]
    pub fn in_conflict(mut self, heads: Option<(Head, Head)>) -> Self {
        self.conflict = heads.filter(|_| !planted("conflict-forgotten"));
        self
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
            fresh: self.is_fresh(now),
            rose: self.fresh.map(|at| now.saturating_since(at)),
            arriving: self.arriving(),
            waiting: self.place.filter(|_| self.behind.is_some()).map(|(place, _)| place),
            upstream: up.and_then(|up| up.server),
            namespace: up.and_then(|up| up.status),
            stale_boot: self.stale_boot,
            evidence: self.conflict.clone(),
        }
    }

    fn is_fresh(&self, now: Time) -> bool {
        self.fresh.is_some_and(|at| now.saturating_since(at) <= self.settings.fresh)
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
    /// of it. It is said on every pipe, at the next beacon time at the latest.
    pub fn set_identity(&mut self, node: Id, boot: u64) {
        self.settings.node = node;
        self.settings.boot = boot;
        self.attempt = 0;
        self.stale_boot = None;
        for (_, up) in self.pipes.iter_mut() {
            // What was reported was reported of another process.
            up.owed.extend([Word::Hello, Word::Report, Word::Refusals]);
        }
    }

    /// Asks for what was refused to be offered again: the cause (a full disk) may have passed.
    pub fn retry(&mut self, cx: &mut Cx<'_>) {
        self.refused.clear();
        self.ask(cx, WantReason::Retry);
    }

    /// The application reached `level` with the revision at `position`: the one given, or the visible one. At
    /// any level the one given becomes visible. `volatile`: it is not on disk.
    ///
    /// It is said upward at once, but in a stream of changes (more than four, each within a quarter of a second after the
    /// one before): then what is reached gathers for up to as long.
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
        self.reached(cx, position, level, volatile, false)
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
        self.reached(cx, position, level, volatile, true)
    }

    fn reached(
        &mut self,
        cx: &mut Cx<'_>,
        position: Position,
        level: Level,
        volatile: bool,
        more: bool,
    ) -> Result<(), Unexpected> {
        if self.given.as_ref().is_some_and(|given| given.head.position == position) {
            self.visible = self.given.take();
            self.hook_failed = None;
            self.reports.shown();
        } else if self.visible.as_ref().is_none_or(|visible| visible.head.position != position) {
            return Err(Unexpected(position));
        }
        if level == Level::Applied {
            self.hook_failed = None;
        }
        // Levels of one revision only add up.
        let (level, kept) =
            self.reports.reached().map_or((level, !volatile), |(l, k)| (l.max(level), k || !volatile));
        let level = if planted("level-lowered") { level.min(Level::Visible) } else { level };
        let report = self.ack_of(position, level, !kept);
        self.reports.set(report);
        self.tell(cx, more);
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
        if self.refused.len() > 2 || planted("one-refusal-remembered") && self.refused.len() > 1 {
            self.refused.remove(0);
        }
    }

    /// The newest that is verified.
    fn tip(&self) -> Option<&Held> {
        self.ready.as_ref().or(self.given.as_ref()).or(self.visible.as_ref())
    }

    fn on_welcome(&mut self, cx: &mut Cx<'_>, pipe: PipeId, welcome: Welcome) {
        if self.refuses_path(cx, pipe, &welcome) {
            return;
        }
        let Some(up) = self.pipes.get_mut(pipe) else { return };
        let first = up.server.is_none();
        up.server = Some(welcome.server);
        up.path = welcome.path;
        up.beacon = Duration::from_millis(u64::from(welcome.beacon_ms)).clamp(BEACONS.0, BEACONS.1);
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
            if self.active == Some(pipe) {
                self.converse();
            }
        }
        self.schedule(cx);
        cx.wake(CHANGED);
    }

    fn on_goodbye(&mut self, cx: &mut Cx<'_>, pipe: PipeId, goodbye: &Goodbye) {
        if goodbye.code == GoodbyeCode::StaleBoot {
            self.raise_boot(cx, goodbye.detail);
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
                    if let Verdict::Newer = self.on_head(cx, head) {
                        self.ask_in_turn(cx, head);
                    }
                }
                if self.data() != before {
                    cx.wake(CHANGED);
                }
            }
            Frame::Beacon(_) => {}
            Frame::Waiting(namespace, place) => self.on_waiting(cx, pipe, &namespace, place),
            Frame::Slice(slice) => self.on_slice(cx, pipe, *slice),
            Frame::Stale(node, boot) => self.on_stale(cx, node, boot),
            Frame::Offer(namespace, position) => self.on_offer(cx, pipe, &namespace, position),
            Frame::Credit(taken) if self.pipes.get(pipe).is_some_and(|up| taken <= up.sent_up) => {
                self.on_credit(cx, pipe, taken);
            }
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

    /// The pipe in use is gone: the first in reserve takes over.
    fn fail_over(&mut self, cx: &mut Cx<'_>) {
        self.assembly = None;
        self.awaiting = false;
        self.confirmed = false;
        let rank = |(pipe, up): &(PipeId, &Up)| {
            let endpoint = endpoint(cx, *pipe);
            (up.server.is_none(), self.is_left(cx.now(), endpoint), endpoint, up.opened)
        };
        let next = self.pipes.iter().min_by_key(rank);
        self.active = next.map(|(pipe, _)| pipe);
        self.active_since = cx.now();
        self.behind_anew(cx);
        if self.active.is_some() && !planted("reserve-silent") {
            // A later attempt than that of any pipe before: this is where it is.
            self.say(cx, Word::Hello);
            self.say(cx, Word::Report);
            self.say(cx, Word::Refusals);
        }
        cx.wake(CHANGED);
    }

    /// Another upstream: it has not withheld anything yet.
    fn behind_anew(&mut self, cx: &Cx<'_>) {
        self.place = None;
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
                continue;
            }
            if up.owed.contains(&Word::Hello) {
                self.pay(cx, pipe);
            }
            let Some(up) = self.pipes.get(pipe) else { continue };
            if up.taken > up.credited && !planted("credit-by-ack") && !planted("small-credit-kept") {
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
                Some(pipe) if self.pipes.len() > 1 => self.leave(cx, pipe, "withholds data"),
                _ => self.ask(cx, WantReason::Other),
            }
        }
        if let Some(pipe) = self.frozen(now)
            && !planted("frozen-upstream-kept")
        {
            self.leave(cx, pipe, "shows nothing new of the authority");
        }
        let fresh = self.is_fresh(now);
        if std::mem::replace(&mut self.was_fresh, fresh) != fresh {
            cx.wake(CHANGED);
        }
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
            self.active_since = cx.now();
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
            path: Vec::new(),
            status: None,
            taken: 0,
            credited: 0,
            sent_up: 0,
            taken_up: 0,
            window: self.settings.window,
            owed: BTreeSet::new(),
            doubted: 0,
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
        self.send_up(cx);
    }

    fn timer(&mut self, cx: &mut Cx<'_>, key: TimerKey) {
        if key == TICK {
            self.tick(cx);
            self.schedule(cx);
        } else if !planted("gathered-reports-lost") {
            self.reports.time();
            self.say_reports(cx);
        }
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
        self.reports.given();
        self.given = Some(held.clone());
        Some(Update { head: held.head, changed: changed.into_iter().collect(), state: held.state })
    }
}
