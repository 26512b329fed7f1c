//! The processes: an authority with its store, and a node with its cache, its validator and its hook.

use std::collections::BTreeMap;
use std::time::Duration;

use spanwire::protocol::{Protocol, Receives, Time};
use spanwire_config::{
    ChangeSet, Distributor, Epoch, Head, Id, Key, Level, NackCode, Origin, Position, Replica,
    ReplicaSettings, Settings, State, Update,
};
use spanwire_testkit::sim::{Event, Io, Node, Scripted, SyncError};

use super::planted;

pub(crate) const BEACON: Duration = Duration::from_millis(200);
pub(crate) const FRESH: Duration = Duration::from_secs(1);
pub(crate) const HELLO: Duration = Duration::from_secs(1);
pub(crate) const STALL: Duration = Duration::from_secs(2);
/// Messages in a pipe's queue at either end.
const ROOM: usize = 64;

/// What a state folder holds: a server's or a node's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Folder {
    pub(crate) id: Id,
    /// How often it was opened.
    pub(crate) opened: u32,
    pub(crate) history: Option<(Head, State)>,
    pub(crate) level: Option<Level>,
    /// The epoch with which an empty store begins.
    pub(crate) begin: Epoch,
}

#[expect(clippy::large_enum_variant, reason = "a handful of them")]
#[derive(Debug)]
pub(crate) enum Party {
    Server(Server),
    Agent(Agent),
}

impl Node for Party {
    type Disk = Folder;

    fn handle(&mut self, event: Event, io: &mut Io<'_, Folder>) {
        match self {
            Party::Server(server) => server.socket.handle(event, io),
            Party::Agent(agent) => {
                agent.socket.handle(event, io);
                agent.think(io);
            }
        }
    }
}

/// A process that commits.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) socket: Scripted<Distributor>,
    pub(crate) settings: Settings,
}

impl Server {
    pub(crate) fn start(settings: Settings, io: &mut Io<'_, Folder>) -> Server {
        io.disk.write().opened += 1;
        // An operator starts it again until the disk takes it.
        while io.disk.sync() == Err(SyncError::Failed) {}
        let folder = io.disk.read();
        let origin = match &folder.history {
            Some((head, state)) => Origin::restored(head.clone(), state.clone(), folder.opened),
            None => Origin::begin(folder.begin),
        };
        let seed = io.rng().next();
        let distributor = Distributor::new(settings.clone(), origin);
        Server { socket: Scripted::new(distributor, ROOM, seed), settings }
    }

    /// Durable first, then out. `false`: the disk refused.
    pub(crate) fn commit(&mut self, io: &mut Io<'_, Folder>, prepared: spanwire_config::Prepared) -> bool {
        if planted("publish-before-sync") {
            let _ = self.socket.call(io, |d, cx| d.publish(cx, prepared.clone()));
        }
        let before = io.disk.read().clone();
        io.disk.write().history = Some((prepared.head().clone(), prepared.state().clone()));
        match io.disk.sync() {
            Ok(()) => {
                let _ = self.socket.call(io, |d, cx| d.publish(cx, prepared));
                true
            }
            // The store writes beside and renames: what was there before stays.
            Err(SyncError::Failed) => {
                *io.disk.write() = before;
                false
            }
            Err(SyncError::Crashed) => false,
        }
    }

    pub(crate) fn put(&mut self, io: &mut Io<'_, Folder>, changes: &ChangeSet) -> bool {
        match self.socket.protocol().prepare(changes) {
            Ok(Some(prepared)) => self.commit(io, prepared),
            _ => true,
        }
    }

    pub(crate) fn new_epoch(&mut self, io: &mut Io<'_, Folder>) -> bool {
        let number = self.socket.protocol().highest_epoch() + 1;
        let incarnation = random_id(io);
        match self.socket.protocol().prepare_epoch(Epoch { number, incarnation }) {
            Ok(prepared) => self.commit(io, prepared),
            Err(_) => false,
        }
    }
}

pub(crate) fn random_id(io: &mut Io<'_, Folder>) -> Id {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&io.rng().next().to_be_bytes());
    id[8..].copy_from_slice(&io.rng().next().to_be_bytes());
    Id(id)
}

/// A process that holds a copy and shows it to readers.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) number: usize,
    pub(crate) socket: Scripted<Replica>,
    pub(crate) settings: ReplicaSettings,
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

impl Agent {
    pub(crate) fn start(number: usize, mut settings: ReplicaSettings, io: &mut Io<'_, Folder>) -> Agent {
        io.disk.write().opened += 1;
        while io.disk.sync() == Err(SyncError::Failed) {}
        let low = io.rng().next() & 0xffff_ffff;
        let folder = io.disk.read().clone();
        settings.node = folder.id;
        settings.boot = u64::from(folder.opened) << 32 | low;
        let replica = match folder.history.clone() {
            Some((head, state)) => {
                Replica::restored(settings.clone(), head, state, folder.level.unwrap_or(Level::Stored))
            }
            None => Replica::new(settings.clone()),
        };
        let seed = io.rng().next();
        let now = io.now();
        let agent = Agent {
            number,
            socket: Scripted::new(replica, ROOM, seed),
            settings,
            given: None,
            before: State::default(),
            due: now,
            saved: folder.history.is_some(),
            applied: folder.level == Some(Level::Applied),
            hook: (folder.history.is_some() && folder.level != Some(Level::Applied)).then_some(now),
            shown: folder.history,
            retry: None,
            refused: Vec::new(),
            tries: BTreeMap::new(),
        };
        if let Some(at) = agent.hook {
            io.wake_at(at);
        }
        agent
    }

    /// The application does what is due.
    pub(crate) fn think(&mut self, io: &mut Io<'_, Folder>) {
        let now = io.now();
        if let Some(boot) = self.socket.protocol().status(now).stale_boot {
            self.rise(io, boot);
        }
        let ready = self.socket.protocol().readiness().recv;
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
            self.socket.call(io, |r, cx| r.retry(cx));
        }
        let due = self.given.as_ref().map(|_| self.due);
        for at in [due, self.hook, self.retry].into_iter().flatten() {
            io.wake_at(at.max(now + Duration::from_micros(1)));
        }
    }

    /// A server knows a later start of this node: its folder was put back.
    fn rise(&mut self, io: &mut Io<'_, Folder>, boot: u64) {
        let folder = io.disk.write();
        folder.opened = folder.opened.max((boot >> 32) as u32) + 1;
        let (id, opened) = (folder.id, folder.opened);
        if io.disk.sync() == Err(SyncError::Crashed) {
            return;
        }
        let boot = u64::from(opened) << 32 | io.rng().next() & 0xffff_ffff;
        self.settings.boot = boot;
        self.socket.call(io, |r, _| r.set_identity(id, boot));
    }

    fn take(&mut self, io: &mut Io<'_, Folder>) {
        if let Some(update) = self.given.take() {
            // Asking for the next says that the last is visible.
            self.show(&update, false);
        }
        self.given = self.socket.call(io, Receives::recv);
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
                self.show(&update, true);
                let _ = self.socket.call(io, |r, cx| r.ack(cx, at, level, false));
            }
            Err(SyncError::Failed) if planted("lost-sync-acknowledged") => {
                self.show(&update, true);
                let _ = self.socket.call(io, |r, cx| r.ack(cx, at, level, false));
            }
            Err(SyncError::Failed) if io.rng().one_in(2) => {
                return self.refuse(io, at, NackCode::Storage, Some(Duration::from_millis(200)));
            }
            Err(SyncError::Failed) => {
                self.show(&update, false);
                let _ = self.socket.call(io, |r, cx| r.ack(cx, at, Level::Visible, true));
            }
        }
        self.hook = Some(io.now() + io.rng().time(Duration::ZERO..Duration::from_millis(150)));
    }

    fn refuse(&mut self, io: &mut Io<'_, Folder>, at: Position, code: NackCode, again: Option<Duration>) {
        if self.socket.call(io, |r, cx| r.nack(cx, at, code, "no")).is_ok() {
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
        io.disk.write().history = Some((head.clone(), state.clone()));
        io.disk.write().level = Some(Level::Stored);
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
                let _ = self.socket.call(io, |r, cx| r.ack(cx, at, Level::Visible, false));
            }
        } else if !self.applied {
            if io.rng().one_in(8) {
                let _ = self.socket.call(io, |r, cx| r.nack(cx, at, NackCode::Hook, "exit 1"));
                self.hook = Some(now + BEACON);
                return;
            }
            io.disk.write().level = Some(Level::Applied);
            if io.disk.sync() == Err(SyncError::Crashed) {
                return;
            }
            self.applied = true;
            let _ = self.socket.call(io, |r, cx| r.ack(cx, at, Level::Applied, false));
            if io.rng().one_in(4) {
                // Levels only add up: a late word of a lower one changes nothing.
                let _ = self.socket.call(io, |r, cx| r.ack(cx, at, Level::Visible, false));
            }
        }
    }
}

pub(crate) fn key(n: usize) -> Key {
    Key::new(format!("key/{n}")).expect("short")
}
