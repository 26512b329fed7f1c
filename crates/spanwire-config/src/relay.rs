//! One namespace at a relay: a replica upward, a sender without a pen downward.
//!
//! ```text
//!      server above ── HEADs, data ──► Replica ──► NsRelay ──► Distributor ── HEADs, data ──► nodes below
//!                   ◄─ ACK, REPORT ──    │                         │        ◄─ HELLO, ACK, NACK ──
//!                                        └──── cache on disk       └── table of nodes
//! ```
//!
//! What arrives is verified by the [`Replica`](crate::Replica) as on any node, and goes down with the HEAD as it
//! came; [`Distributor`](crate::Distributor) serves it as an authority's does. This machine, without I/O, stands
//! between the two: [`NsRelay::handle`] takes what happened and returns what is to be done.
//!
//! A relay of several namespaces has one of these for each, between one receiver and one sender of all: what it wants done is
//! done in its namespace ([`Replica::namespace`](crate::Replica::namespace),
//! [`Distributor::namespace`](crate::Distributor::namespace)).
//!
//! While a rollout is open two HEADs are current, each with its state: what is for all, and on top of that the canary's.
//! They arrive in that order, as every revision follows from the one before.
//!
//! Owns: what is forwarded and when, the verdict on what nodes below show, when the table is told upward, loops.
//! Never: a HEAD without the state that it names; a signature, a commit, a word about who is right among
//! histories that it does not know.

#[cfg(all(unix, feature = "sync"))]
mod process;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use spanwire::protocol::Time;

#[cfg(all(unix, feature = "sync"))]
pub use process::{Config, run};

use crate::again::{self, Again};
use crate::faults::planted;
use crate::sign::Keyring;
use crate::wire::{Level, MAX_PATH};
use crate::{
    Base, ChangeSet, ClusterId, Head, Id, Origin, Position, Published, ServerId, State, Update, Verdict,
};

/// Settings of an [`NsRelay`].
#[derive(Clone, Debug)]
pub struct RelaySettings {
    /// The cluster. Default: zeros.
    pub cluster: ClusterId,
    /// The namespace: at most 128 bytes. Default: `config`.
    pub namespace: String,
    /// This relay, as a node and as a server. Default: zeros; give each its own.
    pub node: Id,
    /// Which signatures of HEADs that nodes show are believed. Empty: a cluster without keys.
    pub keys: Keyring,
    /// Most HEADs whose chain is remembered. Default: 10,000.
    pub chains: usize,
    /// How long changes of the table gather before they are told upward. Default: 100 ms.
    pub flush: Duration,
}

impl Default for RelaySettings {
    fn default() -> Self {
        RelaySettings {
            cluster: Id::default(),
            namespace: "config".into(),
            node: Id::default(),
            keys: Keyring::new(),
            chains: 10_000,
            flush: Duration::from_millis(100),
        }
    }
}

/// The server above, as its WELCOME says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// The server.
    pub server: ServerId,
    /// Servers from the authority to it.
    pub path: Vec<ServerId>,
    /// Counts conversations: rises with every one that begins.
    pub conversation: u64,
}

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RelayEvent {
    /// A newer state was verified.
    Verified(Update),
    /// A later HEAD of a state that is held: with another audience it is for more nodes, or for all.
    Heard(Head),
    /// The server above is another, or none, or its path has changed.
    Upstream(Option<Upstream>),
    /// A node below shows a HEAD that the log does not know.
    Shown {
        /// Who.
        node: Id,
        /// What.
        head: Head,
    },
    /// The table of nodes has changed.
    Changed,
    /// A server above knows a higher boot of a node below.
    Stale {
        /// The node.
        node: Id,
        /// Its highest boot.
        boot: u64,
    },
    /// [`RelayAction::Persist`] ended, for this position.
    Stored(Position, Result<(), String>),
    /// [`NsRelay::due`] has come.
    Time,
    /// This process took another id or start number; it speaks as this one.
    Renamed(Id),
}

/// What is to be done, in this order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RelayAction {
    /// Serve this from now on.
    Publish(Published),
    /// A state that is served has a later HEAD.
    Show(Head),
    /// What a node showed is judged.
    Judge {
        /// Who showed it.
        node: Id,
        /// What was shown.
        head: Head,
        /// What it means for the data it gets.
        verdict: Verdict,
    },
    /// Keep this on disk, then say [`RelayEvent::Stored`]; a later HEAD of what was kept last takes its place. Never two
    /// at once.
    Persist(Head, State),
    /// Say upward that this level is reached.
    Ack {
        /// Where.
        position: Position,
        /// The level.
        level: Level,
        /// It is not on disk.
        volatile: bool,
    },
    /// Say this path in WELCOME.
    Path {
        /// This relay.
        server: ServerId,
        /// From the authority to here.
        path: Vec<ServerId>,
    },
    /// Tell the table upward: the whole of it, or what has changed.
    Report {
        /// The whole.
        whole: bool,
    },
    /// Tell a node below that a higher boot of it is known.
    Stale {
        /// The node.
        node: Id,
        /// Its highest boot.
        boot: u64,
    },
    /// Something that people must hear.
    Alarm(RelayAlarm),
}

/// What people must hear of a relay.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayAlarm {
    /// It serves on, and would begin with less after a restart. Said once until the disk takes something again; it is
    /// tried again after a second, then ever later, up to a minute.
    #[error("{position} is not kept on disk, tried again: {why}")]
    NotStored {
        /// What.
        position: Position,
        /// The system's words.
        why: String,
    },
    /// Who is right is not for a relay to say.
    #[error("node {node:?} shows {shown}, which contradicts what this relay holds; it gets no data")]
    Contradiction {
        /// Who.
        node: Id,
        /// What.
        shown: Position,
    },
}

/// A revision from a relay's disk, if there is one.
pub type Cached = Option<(Head, State)>;

/// What of the last two revisions on its disk a relay goes on with: what is for all, and a canary's state on top of that.
pub fn cached(newest: Cached, before: Cached) -> (Cached, Cached) {
    let for_all = |kept: &(Head, State)| kept.0.audience.is_empty();
    let canary = match newest {
        Some(newest) if !for_all(&newest) => newest,
        newest => return (newest, None),
    };
    let all = before.filter(for_all);
    let stands = |(head, _): &(Head, State)| {
        (head.position.epoch, head.position.rev) == (canary.0.position.epoch, canary.0.prev_rev)
    };
    let canary = all.as_ref().is_some_and(stands).then_some(canary);
    (all, canary)
}

/// One namespace at a relay: a machine without I/O, driven by [`handle`](NsRelay::handle).
#[derive(Clone, Debug)]
pub struct NsRelay {
    settings: RelaySettings,
    /// The newest that is for all.
    held: Option<(Head, State)>,
    /// The newest, while it is for a cohort alone.
    canary: Option<(Head, State)>,
    /// HEADs of the epoch held, oldest first: what they say of history.
    chains: VecDeque<Base>,
    /// What is not on disk yet, and for whom it is.
    persisting: Option<(Position, Bytes)>,
    /// The newest that is on disk, and for whom it is there; with it what it stands on.
    written: Option<(Position, Bytes)>,
    /// The disk did not take it: try again then.
    again: Again<Time>,
    upstream: Option<Upstream>,
    /// The conversation to which the table was told.
    told: Option<u64>,
    report: Option<Time>,
}

type Actions = Vec<RelayAction>;

impl NsRelay {
    /// Starts from what its disk holds, if anything, which must have been checked.
    pub fn new(settings: RelaySettings, cache: Option<(Head, State)>) -> Self {
        let chains = cache.iter().map(|(head, _)| head.base()).collect();
        let written = cache.as_ref().map(|(head, _)| (head.position, head.audience.clone()));
        NsRelay {
            settings,
            held: cache,
            canary: None,
            chains,
            persisting: None,
            written,
            again: Again::default(),
            upstream: None,
            told: None,
            report: None,
        }
    }

    /// With the state of an open rollout from its disk, which stands on what is for all: see [`cached`].
    #[must_use]
    pub fn with_canary(mut self, canary: Option<(Head, State)>) -> NsRelay {
        if let Some((head, _)) = &canary {
            self.chains.push_back(head.base());
            self.written = Some((head.position, head.audience.clone()));
        }
        self.canary = canary;
        self
    }

    /// What a [`Distributor`](crate::Distributor) of this relay begins with.
    pub fn origin(&self) -> Origin {
        Origin::passed(self.held.clone()).with_canary(self.canary.clone())
    }

    /// The state of an open rollout, which is served to its cohort.
    pub fn canary(&self) -> Option<(&Head, &State)> {
        self.canary.as_ref().map(|(head, state)| (head, state))
    }

    fn newest(&self) -> Option<&(Head, State)> {
        self.canary.as_ref().or(self.held.as_ref())
    }

    /// The newest that is held and for all, and served.
    pub fn held(&self) -> Option<(&Head, &State)> {
        self.held.as_ref().map(|(head, state)| (head, state))
    }

    /// The server above.
    pub fn upstream(&self) -> Option<&Upstream> {
        self.upstream.as_ref()
    }

    /// When [`RelayEvent::Time`] is to be said.
    pub fn due(&self) -> Option<Time> {
        self.report_due().into_iter().chain(self.again.at()).min()
    }

    fn report_due(&self) -> Option<Time> {
        self.report.filter(|_| self.upstream.is_some())
    }

    /// Takes what happened; returns what is to be done, in order.
    pub fn handle(&mut self, event: RelayEvent, now: Time) -> Actions {
        let mut out = Vec::new();
        match event {
            RelayEvent::Verified(update) => self.on_verified(&mut out, update),
            RelayEvent::Heard(head) => self.on_heard(&mut out, head),
            RelayEvent::Upstream(upstream) => self.on_upstream(&mut out, upstream),
            RelayEvent::Shown { node, head } => {
                let verdict = self.judge(&head);
                if verdict == Verdict::Conflict {
                    let shown = head.position;
                    out.push(RelayAction::Alarm(RelayAlarm::Contradiction { node, shown }));
                }
                out.push(RelayAction::Judge { node, head, verdict });
            }
            RelayEvent::Changed => self.report = self.report.or(Some(now + self.settings.flush)),
            RelayEvent::Stale { .. } if planted("stale-not-routed") => {}
            RelayEvent::Stale { node, boot } => out.push(RelayAction::Stale { node, boot }),
            RelayEvent::Stored(position, stored) => self.on_stored(&mut out, position, stored, now),
            RelayEvent::Time => {
                if self.report_due().is_some_and(|due| due <= now) {
                    self.tell(&mut out);
                }
                if self.again.is_due(now) {
                    self.persist(&mut out);
                }
            }
            RelayEvent::Renamed(node) => {
                self.settings.node = node;
                out.push(self.path());
            }
        }
        out
    }

    fn on_heard(&mut self, out: &mut Actions, head: Head) {
        let states = [&mut self.held, &mut self.canary].into_iter().flatten();
        let same = |known: &&mut Head| known.shown() == head.shown() && head.seq > known.seq;
        let Some(known) = states.map(|(known, _)| known).find(same) else { return };
        known.clone_from(&head);
        if let Some(promoted) = self.canary.take_if(|(known, _)| known.audience.is_empty()) {
            self.held = Some(promoted);
        }
        out.push(RelayAction::Show(head));
        self.persist(out);
    }

    fn on_verified(&mut self, out: &mut Actions, update: Update) {
        let Update { head, changed, state } = update;
        let mut changes = ChangeSet::new();
        for key in changed {
            match state.get(key.as_bytes()) {
                Some(entry) => changes.set(key, crate::Change::Put(entry.clone())),
                None => changes.delete(key),
            }
        }
        let before = self.newest().map(|(held, _)| held.shown());
        let position = head.position;
        if before.is_some_and(|before| before.base.position.epoch != position.epoch) {
            self.chains.clear();
        }
        self.chains.push_back(head.base());
        while self.chains.len() > self.settings.chains.max(1) {
            self.chains.pop_front();
        }
        (self.held, self.canary) = match head.audience.is_empty() {
            true => (Some((head.clone(), state.clone())), None),
            false => (self.held.take(), Some((head.clone(), state.clone()))),
        };
        let published = Published { head, state, before, changes: Arc::new(changes) };
        out.push(RelayAction::Publish(published));
        let stored = planted("relay-acks-early");
        let level = if stored { Level::Stored } else { Level::Visible };
        out.push(RelayAction::Ack { position, level, volatile: !stored });
        self.persist(out);
    }

    /// What is current is kept, the canary's last, and again where it is for others than it was; what came while the disk
    /// was busy and is no longer current never.
    fn persist(&mut self, out: &mut Actions) {
        let new = |head: &Head| {
            self.written.as_ref().is_none_or(|(at, audience)| {
                *at < head.position || *at == head.position && *audience != head.audience
            })
        };
        let mut states = [&self.held, &self.canary].into_iter().flatten();
        if let (Some((head, state)), None) = (states.find(|(head, _)| new(head)), &self.persisting) {
            self.persisting = Some((head.position, head.audience.clone()));
            out.push(RelayAction::Persist(head.clone(), state.clone()));
        }
    }

    fn on_stored(&mut self, out: &mut Actions, position: Position, stored: Result<(), String>, now: Time) {
        let persisted = self.persisting.take();
        match stored {
            Ok(()) => {
                self.again.done();
                self.written = persisted;
                if self.newest().is_some_and(|(head, _)| head.position == position) {
                    out.push(RelayAction::Ack { position, level: Level::Stored, volatile: false });
                }
                self.persist(out);
            }
            // The same relay waits for as long each time, another one for longer or shorter. The next revision is a
            // try, too.
            Err(why) => {
                if self.again.failed(now, again::chance_of(self.settings.node)) {
                    out.push(RelayAction::Alarm(RelayAlarm::NotStored { position, why }));
                }
            }
        }
    }

    fn path(&self) -> RelayAction {
        let server = self.settings.node;
        let above = self.upstream.iter().flat_map(|upstream| upstream.path.iter().copied());
        let path = above.chain([server]).collect::<Vec<_>>();
        debug_assert!(path.len() <= MAX_PATH, "a longer path is refused where it is heard");
        RelayAction::Path { server, path }
    }

    fn on_upstream(&mut self, out: &mut Actions, upstream: Option<Upstream>) {
        let path = |upstream: &Option<Upstream>| upstream.as_ref().map(|upstream| upstream.path.clone());
        let changed = path(&self.upstream) != path(&upstream);
        self.upstream = upstream;
        if changed {
            out.push(self.path());
        }
        // A server that does not know the nodes below is told of them at once.
        if self.upstream.as_ref().is_some_and(|upstream| self.told != Some(upstream.conversation)) {
            self.tell(out);
        }
    }

    /// Tells the table upward: a server that this conversation is new to is told all of it.
    fn tell(&mut self, out: &mut Actions) {
        let Some(upstream) = &self.upstream else { return };
        self.report = None;
        let whole = self.told.replace(upstream.conversation) != Some(upstream.conversation);
        let whole = whole && !planted("table-not-told-again");
        out.push(RelayAction::Report { whole });
    }

    /// What a node below shows, against what is known here. What is unknown is no contradiction: it goes upward
    /// with the node's record.
    fn judge(&self, head: &Head) -> Verdict {
        let foreign = head.cluster != self.settings.cluster || head.namespace != self.settings.namespace;
        if foreign || !self.settings.keys.is_empty() && !self.settings.keys.verify(head) {
            return Verdict::Disregard;
        }
        let Some((held, _)) = self.newest() else { return Verdict::Recorded };
        let (shown, mine) = (head.position, held.position);
        match shown.partial_cmp(&mine) {
            None => Verdict::Conflict,
            // Until what is held here has passed it.
            Some(std::cmp::Ordering::Greater) => Verdict::Recorded,
            _ if shown.epoch != mine.epoch => Verdict::Fine,
            _ => {
                let at = self.chains.partition_point(|known| known.position.rev < shown.rev);
                let known = self.chains.get(at).filter(|known| known.position == shown);
                match known {
                    Some(known) if known.chain != head.chain => Verdict::Conflict,
                    _ => Verdict::Fine,
                }
            }
        }
    }
}
