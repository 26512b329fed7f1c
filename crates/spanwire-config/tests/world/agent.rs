//! A process that holds a copy of each namespace and shows it to readers: its cache, its validators, its hooks.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use spanwire::protocol::{Cx, Time};
use spanwire_config::{
    Head, Kept, Level, NackCode, NsReplica, NsReplicaMut, Position, Replica, ReplicaSettings, ReplicaStatus,
    State, Update,
};
use spanwire_testkit::sim::{Event, Io, Scripted, SyncError};

use super::folder::Folder;
use super::nodes::{BEACON, ROOM};
use super::{NAMES, coverage, planted};

/// A process that holds a copy and shows it to readers.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) socket: Scripted<Replica>,
    pub(crate) settings: ReplicaSettings,
    /// One for each namespace of the world, held by now or not.
    apps: Vec<App>,
    /// When the next namespace is asked for.
    adds: Option<Time>,
    /// Whose turn it is.
    turn: usize,
}

/// What it does with one namespace.
#[derive(Debug)]
pub(crate) struct App {
    at: usize,
    number: usize,
    pub(crate) given: Option<Update>,
    /// What readers saw when it was given.
    pub(crate) before: State,
    /// When the application has made up its mind about what it was given.
    due: Time,
    /// What readers see, as they pinned it.
    pub(crate) shown: Option<(Head, State)>,
    /// It is on disk.
    pub(crate) saved: bool,
    pub(crate) applied: bool,
    hook: Option<Time>,
    retry: Option<Time>,
    /// Refused since it last asked again.
    pub(crate) refused: Vec<Position>,
    tries: BTreeMap<u64, u32>,
}

/// One namespace of an agent, as the oracle looks at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding<'n> {
    agent: &'n Agent,
    at: usize,
}

impl<'n> Holding<'n> {
    pub(crate) fn name(&self) -> &'static str {
        NAMES[self.at]
    }

    pub(crate) fn settings(&self) -> &'n ReplicaSettings {
        &self.agent.settings
    }

    pub(crate) fn replica(&self) -> &'n NsReplica {
        &self.agent.socket.protocol().namespaces()[self.at]
    }

    pub(crate) fn status(&self, now: Time) -> ReplicaStatus {
        self.agent.status(self.at, now)
    }

    /// Something is verified and not taken.
    pub(crate) fn is_ready(&self) -> bool {
        self.replica().memory().ready.is_some()
    }
}

impl Deref for Holding<'_> {
    type Target = App;
    fn deref(&self) -> &App {
        &self.agent.apps[self.at]
    }
}

/// The application of one namespace, at work.
struct Work<'a> {
    socket: &'a mut Scripted<Replica>,
    app: &'a mut App,
    /// It spoke to the protocol.
    said: bool,
}

impl Deref for Work<'_> {
    type Target = App;
    fn deref(&self) -> &App {
        self.app
    }
}

impl DerefMut for Work<'_> {
    fn deref_mut(&mut self) -> &mut App {
        self.app
    }
}

impl Agent {
    pub(crate) fn start(number: usize, mut settings: ReplicaSettings, io: &mut Io<'_, Folder>) -> Agent {
        io.disk.write().opened += 1;
        while io.disk.sync() == Err(SyncError::Failed) {}
        let low = io.rng().next() & 0xffff_ffff;
        let folder = io.disk.read().clone();
        settings.node = folder.id;
        settings.boot = u64::from(folder.opened) << 32 | low;
        let kept = |at: usize| {
            let space = &folder.spaces[at];
            let held = space
                .history
                .clone()
                .map(|(head, state)| Kept::revision(head, state, space.level.unwrap_or(Level::Stored)));
            held.unwrap_or_default().in_conflict(space.contradiction())
        };
        let count = folder.spaces.len();
        // Some ask for the others later.
        let late = count > 1 && io.rng().one_in(4);
        let first = Replica::keeping(settings.clone(), kept(0));
        let replica = (1..count).filter(|_| !late).fold(first, |replica, at| {
            replica.with_namespace(NAMES[at], kept(at)).expect("few, and each once")
        });
        let (seed, now) = (io.rng().next(), io.now());
        let apps = folder.spaces.iter().enumerate().map(|(at, space)| App {
            at,
            number,
            given: None,
            before: State::default(),
            due: now,
            saved: space.history.is_some(),
            applied: space.level == Some(Level::Applied),
            hook: (space.history.is_some() && space.level != Some(Level::Applied)).then_some(now),
            shown: space.history.clone(),
            retry: None,
            refused: Vec::new(),
            tries: BTreeMap::new(),
        });
        let apps: Vec<App> = apps.collect();
        let adds = late.then(|| now + io.rng().time(Duration::ZERO..Duration::from_millis(1_500)));
        let hooks = apps.iter().filter_map(|app| app.hook);
        hooks.chain(adds).for_each(|at| io.wake_at(at));
        Agent { socket: Scripted::new(replica, ROOM, seed), settings, apps, adds, turn: 0 }
    }

    /// One of its namespaces; `None` if it does not ask for that yet.
    pub(crate) fn holding(&self, at: usize) -> Option<Holding<'_>> {
        (at < self.socket.protocol().namespaces().len()).then_some(Holding { agent: self, at })
    }

    fn holdings(&self) -> impl Iterator<Item = Holding<'_>> {
        (0..self.apps.len()).filter_map(|at| self.holding(at))
    }

    fn status(&self, at: usize, now: Time) -> ReplicaStatus {
        self.socket.protocol().status_of(NAMES[at], now).expect("held")
    }

    pub(crate) fn handle(&mut self, event: Event, io: &mut Io<'_, Folder>) {
        let now = io.now();
        coverage::comes(self.holdings(), now, &event);
        self.socket.handle(event, io);
        self.think(io);
    }

    /// The application does what is due.
    pub(crate) fn think(&mut self, io: &mut Io<'_, Folder>) {
        if let Some(boot) = self.socket.protocol().status(io.now()).stale_boot {
            self.rise(io, boot);
        }
        if self.adds.is_some_and(|at| at <= io.now()) {
            self.add(io);
        }
        let count = self.socket.protocol().namespaces().len();
        for _ in 0..count {
            let app = &mut self.apps[self.turn % count];
            let mut work = Work { socket: &mut self.socket, app, said: false };
            work.think(io);
            let said = work.said;
            self.turn = (self.turn + 1) % count;
            if said || io.disk.is_crashed() {
                // What it said is looked at before it dies by what it does for another: that comes a moment later.
                if count > 1 {
                    io.wake_at(io.now() + Duration::from_micros(1));
                }
                return;
            }
        }
    }

    /// One more namespace is asked for.
    fn add(&mut self, io: &mut Io<'_, Folder>) {
        let at = self.socket.protocol().namespaces().len();
        let app = &self.apps[at];
        let space = &io.disk.read().spaces[at];
        let held = app
            .shown
            .clone()
            .map(|(head, state)| Kept::revision(head, state, space.level.unwrap_or(Level::Stored)));
        let kept = held.unwrap_or_default().in_conflict(space.contradiction());
        self.socket.call(io, |r, cx| r.add_namespace(cx, NAMES[at], kept)).expect("few, and each once");
        self.adds = (at + 1 < self.apps.len()).then(|| io.now() + BEACON);
        self.adds.into_iter().for_each(|at| io.wake_at(at));
    }

    /// A server knows a later start of this node: its folder was put back.
    fn rise(&mut self, io: &mut Io<'_, Folder>, boot: u64) {
        let folder = io.disk.write();
        folder.opened = folder.opened.max((boot >> 32) as u32) + 1;
        let (id, opened) = (folder.id, folder.opened);
        if io.disk.sync() == Err(SyncError::Crashed) {
            return;
        }
        let (now, boot) = (io.now(), u64::from(opened) << 32 | io.rng().next() & 0xffff_ffff);
        self.settings.boot = boot;
        self.holdings().for_each(|one| coverage::says(one.status(now).data, "takes another boot"));
        self.socket.call(io, |r, _| r.set_identity(id, boot));
    }
}

impl Work<'_> {
    fn says(&self, now: Time, event: &'static str) {
        coverage::says(self.status(now).data, event);
    }

    fn status(&self, now: Time) -> ReplicaStatus {
        self.socket.protocol().status_of(self.name(), now).expect("held")
    }

    fn of<R>(
        &mut self,
        io: &mut Io<'_, Folder>,
        f: impl FnOnce(&mut NsReplicaMut<'_>, &mut Cx<'_>) -> R,
    ) -> R {
        let name = self.name();
        self.said = true;
        self.socket.call(io, |r, cx| f(&mut r.namespace(name).expect("held"), cx))
    }

    fn name(&self) -> &'static str {
        NAMES[self.app.at]
    }

    /// The application does what is due.
    fn think(&mut self, io: &mut Io<'_, Folder>) {
        let now = io.now();
        let (at, status) = (self.at, self.status(now));
        if status.evidence.as_ref() != io.disk.read().spaces[at].conflict.as_deref() {
            let before = io.disk.read().spaces[at].conflict.clone();
            io.disk.write().spaces[at].conflict = status.evidence.map(Arc::new);
            if io.disk.sync() == Err(SyncError::Failed) {
                io.disk.write().spaces[at].conflict = before;
            }
        }
        let ready = self.socket.protocol().namespaces()[at].memory().ready.is_some();
        // Some applications do not answer before they ask for the next.
        let hasty = ready && self.given.is_some() && io.rng().one_in(12);
        if self.given.is_none() && ready || hasty {
            self.take(io);
        } else if self.given.is_some() && self.due <= now {
            self.decide(io);
        }
        if self.hook.is_some_and(|at| at <= now) && self.given.is_none() {
            self.hook = None;
            self.act(io);
        }
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            self.refused.clear();
            self.says(now, "asks again");
            self.of(io, |r, cx| r.retry(cx));
        }
        let due = self.given.as_ref().map(|_| self.due);
        for at in [due, self.hook, self.retry].into_iter().flatten() {
            io.wake_at(at.max(now + Duration::from_micros(1)));
        }
    }

    fn take(&mut self, io: &mut Io<'_, Folder>) {
        if let Some(update) = self.given.take() {
            // Asking for the next says that the last is visible.
            self.show(&update, false);
        }
        self.says(io.now(), "takes the next");
        self.given = self.of(io, |r, cx| r.recv(cx));
        self.before = self.shown.as_ref().map(|(_, state)| state.clone()).unwrap_or_default();
        let most = if io.rng().one_in(6) { 800 } else { 40 };
        self.due = io.now() + io.rng().time(Duration::ZERO..Duration::from_millis(most));
        self.hook = None;
    }

    fn show(&mut self, update: &Update, saved: bool) {
        self.shown = Some((update.head.clone(), update.state.clone()));
        (self.saved, self.applied) = (saved, false);
    }

    /// The validator: a function of the content, and (for some) of how often it was asked.
    fn refuses(&mut self, state: &State, rev: u64) -> bool {
        let Some(poison) = state.get("poison") else { return false };
        let (bit, masks) = (1 << (self.number % 8), poison.value());
        let tries = self.tries.entry(rev).or_default();
        *tries += 1;
        masks.first().is_some_and(|mask| mask & bit != 0)
            || masks.get(1).is_some_and(|mask| mask & bit != 0) && *tries < 2
    }

    fn decide(&mut self, io: &mut Io<'_, Folder>) {
        let Some(update) = self.given.take() else { return };
        let at = update.position();
        if self.refuses(&update.state, at.rev) {
            let again =
                io.rng().one_in(2).then(|| io.rng().time(Duration::ZERO..Duration::from_millis(1_500)));
            self.refuse(io, at, NackCode::Validator, again);
            return;
        }
        let level = [Level::Stored, Level::Visible][io.rng().below(2)];
        match self.save(io, &update.head, &update.state) {
            Err(SyncError::Crashed) => return,
            Ok(()) => {
                self.says(io.now(), "stored");
                self.show(&update, true);
                let _ = self.of(io, |r, cx| r.ack(cx, at, level, false));
            }
            Err(SyncError::Failed) if planted("lost-sync-acknowledged") => {
                self.show(&update, true);
                let _ = self.of(io, |r, cx| r.ack(cx, at, level, false));
            }
            Err(SyncError::Failed) if io.rng().one_in(2) => {
                return self.refuse(io, at, NackCode::Storage, Some(Duration::from_millis(200)));
            }
            Err(SyncError::Failed) => {
                self.says(io.now(), "visible, not stored");
                self.show(&update, false);
                let _ = self.of(io, |r, cx| r.ack(cx, at, Level::Visible, true));
            }
        }
        self.hook = Some(io.now() + io.rng().time(Duration::ZERO..Duration::from_millis(150)));
    }

    fn refuse(&mut self, io: &mut Io<'_, Folder>, at: Position, code: NackCode, again: Option<Duration>) {
        self.says(io.now(), if code == NackCode::Storage { "has no room" } else { "refuses" });
        if self.of(io, |r, cx| r.nack(cx, at, code, "no")).is_ok() {
            self.refused.push(at);
        }
        if let Some(wait) = again {
            self.retry = Some(io.now() + wait);
        }
        // What was on the way to being applied still is.
        if self.shown.is_some() && !(self.applied && self.saved) {
            self.hook = Some(io.now());
        }
    }

    fn save(&mut self, io: &mut Io<'_, Folder>, head: &Head, state: &State) -> Result<(), SyncError> {
        let before = io.disk.read().clone();
        io.disk.write().spaces[self.at].history = Some((head.clone(), state.clone()));
        io.disk.write().spaces[self.at].level = Some(Level::Stored);
        let result = io.disk.sync();
        if result == Err(SyncError::Failed) {
            *io.disk.write() = before;
        }
        result
    }

    /// The hook runs on what is visible; before that, what is not on disk yet is saved again.
    fn act(&mut self, io: &mut Io<'_, Folder>) {
        let Some((head, state)) = self.shown.clone() else { return };
        let (at, now) = (head.position, io.now());
        if !self.saved {
            match self.save(io, &head, &state) {
                Ok(()) => self.saved = true,
                Err(SyncError::Crashed) => return,
                Err(SyncError::Failed) => {}
            }
            self.hook = Some(now + BEACON);
            if self.saved {
                let _ = self.of(io, |r, cx| r.ack(cx, at, Level::Visible, false));
            }
        } else if !self.applied {
            if io.rng().one_in(8) {
                self.says(io.now(), "hook failed");
                let _ = self.of(io, |r, cx| r.nack(cx, at, NackCode::Hook, "exit 1"));
                self.hook = Some(now + BEACON);
                return;
            }
            io.disk.write().spaces[self.at].level = Some(Level::Applied);
            if io.disk.sync() == Err(SyncError::Crashed) {
                return;
            }
            self.applied = true;
            self.says(io.now(), "hook done");
            let _ = self.of(io, |r, cx| r.ack(cx, at, Level::Applied, false));
            if io.rng().one_in(4) {
                // Levels only add up: a late word of a lower one changes nothing.
                let _ = self.of(io, |r, cx| r.ack(cx, at, Level::Visible, false));
            }
        }
    }
}
