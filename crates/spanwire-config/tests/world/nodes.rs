//! The processes: an authority with its store, and a node with its cache, its validator and its hook.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use spanwire::protocol::{Protocol, Receives, Time};
use spanwire_config::rollout::{Plan, WHOLE};
use spanwire_config::sign::Secret;
use spanwire_config::source::{
    Batch, Disk, Embedded, Health, Record, Recovered, Snapshot, Source, SourceError,
};
use spanwire_config::wire::client::WaitAsk;
use spanwire_config::{
    Answer, AuthorityAction, AuthorityEvent, Base, ChangeSet, Distributor, Driver, Epoch, Head, Id, Intent,
    Key, Level, Mode, NackCode, NsSettings, Opening, Place, Position, ReadOnly, Replica, ReplicaSettings,
    Request, Settings, State, Step, Ticket, Update,
};
use spanwire_testkit::sim::{self, Event, Io, Node, Scripted, SyncError};

use super::relay::Relay;
use super::waits::Desk;
use super::{RUN, coverage, planted};

pub(crate) const BEACON: Duration = Duration::from_millis(200);
pub(crate) const FRESH: Duration = Duration::from_secs(1);
pub(crate) const HELLO: Duration = Duration::from_secs(1);
pub(crate) const STALL: Duration = Duration::from_secs(2);
/// How often the nodes of a cohort are counted, and until when.
const GATE: Duration = Duration::from_millis(100);
const LAST_COUNT: Duration = RUN.saturating_sub(Duration::from_millis(60));
/// Messages in a pipe's queue at either end.
pub(crate) const ROOM: usize = 64;

/// What a state folder holds: a server's or a node's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Folder {
    pub(crate) id: Id,
    /// How often it was opened.
    pub(crate) opened: u32,
    /// What is in it: a node's cache, or the newest of a server's log.
    pub(crate) history: Option<(Head, State)>,
    pub(crate) level: Option<Level>,
    /// A relay's cache before the newest.
    pub(crate) before: Option<(Head, State)>,
    /// A server's log, file by file.
    pub(crate) files: BTreeMap<String, Arc<Vec<u8>>>,
    /// The epoch with which an empty store begins.
    pub(crate) begin: Epoch,
    /// A node's word of two histories that contradict each other: what it holds, and the other.
    pub(crate) conflict: Option<Arc<(Head, Head)>>,
}

impl Folder {
    /// What a node finds in it of a contradiction: a held HEAD of a higher epoch has ended it.
    pub(crate) fn contradiction(&self) -> Option<(Head, Head)> {
        let number = |head: &Head| head.position.epoch.number;
        let noted = self.conflict.as_deref();
        let holds = self.history.as_ref();
        noted.filter(|(mine, _)| holds.is_none_or(|(held, _)| number(held) <= number(mine))).cloned()
    }
}

#[derive(Debug)]
pub(crate) enum Party {
    Server(Box<Server>),
    Agent(Box<Agent>),
    Relay(Box<Relay>),
}

impl Node for Party {
    type Disk = Folder;

    fn handle(&mut self, event: Event, io: &mut Io<'_, Folder>) {
        match self {
            Party::Server(server) => server.handle(event, io),
            Party::Relay(relay) => relay.handle(event, io),
            Party::Agent(agent) => {
                coverage::comes(agent, io.now(), &event);
                agent.socket.handle(event, io);
                agent.think(io);
            }
        }
    }
}

/// A process that commits: what `config-sync serve` is, but for the tree that it reads.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) socket: Scripted<Distributor>,
    pub(crate) settings: Box<Settings>,
    driver: Driver<Log>,
    /// The disk is in here while the store uses it.
    shelf: Shelf,
    tickets: u64,
    /// The last commit that was answered for, and where it is.
    last: Option<Box<(Request, Position)>>,
    /// What nodes show is looked at some time later: the thread that does it has to wait its turn.
    pub(crate) lazy: bool,
    due: Option<Time>,
    /// It serves a copy of another's store, and decides nothing: an open rollout in it is the other's.
    pub(crate) mirror: bool,
    /// When the nodes of a cohort are counted next.
    count: Option<Time>,
    /// A stage passed that should not have.
    pub(crate) wrong: Option<String>,
    /// Who waits for nodes to reach a position.
    pub(crate) desk: Desk,
    adopting: Option<Adoption>,
    /// Something is published.
    begun: bool,
    /// What came of adoptions, oldest first; and whether the namespace had begun in another way by then.
    pub(crate) adopted: Vec<(Adoption, Answer, bool)>,
}

/// An operator has the authority take its state over from the nodes.
#[derive(Debug)]
pub(crate) struct Adoption {
    ticket: Ticket,
    pub(crate) named: Option<Base>,
    /// What nodes had shown by then: where, whether it is for all.
    pub(crate) shown: Vec<(Base, bool)>,
}

impl Server {
    pub(crate) fn start(settings: Settings, lazy: bool, io: &mut Io<'_, Folder>) -> Server {
        let (folder, shelf) = (io.disk.read().clone(), Shelf::default());
        let machine = NsSettings {
            log_commits: settings.log_commits,
            log_bytes: settings.log_bytes,
            keys: settings.secret.as_ref().map(Secret::public).unwrap_or_default(),
            ..NsSettings::default()
        };
        let open = |shelf: &Shelf| {
            let log = Log::new(shelf.clone());
            Driver::open(log, machine.clone(), Opening::Unknown, folder.begin.incarnation)
        };
        // What it will find: for the oracle, which is to know of it no later than it is durable.
        let copy = Shelf::default();
        copy.lend(&mut sim::Disk::new(folder.clone()), |copy| {
            let found = open(copy).expect("what was durable is whole");
            let last = found.0.machine().durable().cloned();
            io.disk.write().history = last.map(|last| (last.head, last.state));
        });
        let (driver, left) = loop {
            match shelf.lend(io.disk, open) {
                Ok(opened) => break opened,
                // Nobody sees what a dead process does; a new disk lets it do nothing.
                Err(_) if io.disk.is_crashed() => {
                    let mut empty = sim::Disk::new(Folder::default());
                    break shelf.lend(&mut empty, open).expect("an empty disk is no trouble");
                }
                // An operator starts it again until the disk takes it.
                Err(_) => {}
            }
        };
        let distributor = Distributor::new(settings.clone(), driver.machine().origin());
        let socket = Scripted::new(distributor, ROOM, io.rng().next());
        let mut server = Server {
            socket,
            settings: Box::new(settings),
            driver,
            shelf,
            tickets: 0,
            last: None,
            lazy,
            due: None,
            mirror: false,
            count: None,
            wrong: None,
            desk: Desk::default(),
            adopting: None,
            begun: false,
            adopted: Vec::new(),
        };
        server.driver.machine_mut().reserve_epoch(folder.begin.number);
        server.bring(io, left);
        server
    }

    pub(crate) fn handle(&mut self, event: Event, io: &mut Io<'_, Folder>) {
        self.socket.handle(event, io);
        let shown = self.socket.protocol().has_shown();
        if !self.lazy {
            self.look(io);
        } else if self.due.is_some_and(|due| due <= io.now()) {
            self.due = None;
            self.look(io);
        } else if shown {
            let wait = Duration::from_millis(30);
            let due = *self.due.get_or_insert(io.now() + wait);
            io.wake_at(due);
        }
        self.count(io);
        self.answer(io);
    }

    /// Answers who has waited long enough.
    pub(crate) fn answer(&mut self, io: &mut Io<'_, Folder>) {
        let next = self.desk.look(self.driver.machine(), self.socket.protocol(), io.now());
        if let Some(next) = next {
            io.wake_at(next);
        }
    }

    /// Somebody asks who has reached a position.
    pub(crate) fn wait(&mut self, ask: &WaitAsk, until: Time) -> u64 {
        self.desk.ask(self.driver.machine(), self.socket.protocol(), ask, until)
    }

    /// The newest position, and for whom it is if its rollout is open.
    pub(crate) fn newest(&self) -> (Option<Position>, Option<Bytes>) {
        let machine = self.driver.machine();
        (machine.position(), machine.cohort().map(|(_, audience)| audience))
    }

    /// The machine is told how far the cohort of an open rollout is; not so late that nobody starts it again if its
    /// store fails by that.
    fn count(&mut self, io: &mut Io<'_, Folder>) {
        let Some(of) = self
            .driver
            .machine()
            .cohort()
            .filter(|_| io.now() < Time::from_start(LAST_COUNT) && !self.mirror)
        else {
            self.count = None;
            return;
        };
        let now = io.now();
        let due = *self.count.get_or_insert(now);
        if due > now {
            return io.wake_at(due);
        }
        let nodes = self.socket.protocol().cohort(of.0, &of.1);
        let event = AuthorityEvent::Cohort(of.clone(), nodes.clone());
        let stage = |server: &Self| server.driver.machine().rollout(now).map(|(open, ..)| open.stage);
        let gate =
            self.driver.machine().rollout(now).and_then(|(open, ..)| open.plan.stages[open.stage].gate);
        let before = stage(self);
        let left = self.shelf.clone().lend(io.disk, |_| self.driver.tell_at(event, now));
        self.bring(io, left);
        if self.driver.machine().position() == Some(of.0) && stage(self) != before {
            let here = nodes.iter().filter(|node| node.here);
            let applied = here.clone().filter(|node| node.applied).count();
            let needed = here.count() * usize::from(gate.map_or(u16::MAX, |gate| gate.applied));
            if applied * usize::from(WHOLE) < needed
                || applied == 0 && gate.is_none_or(|gate| gate.applied > 0)
            {
                self.wrong = Some(format!("rollout: a stage of {} passed, and {nodes:?}", of.0));
            }
        }
        self.count = Some(now + GATE);
        io.wake_at(now + GATE);
    }

    /// The machine is told what nodes show.
    fn look(&mut self, io: &mut Io<'_, Folder>) {
        while self.socket.protocol().has_shown() {
            for event in self.socket.call(io, |d, _| d.take_shown()) {
                self.begun = self.driver.machine().position().is_some();
                let left = self.shelf.clone().lend(io.disk, |_| self.driver.tell(event));
                self.bring(io, left);
            }
        }
    }

    fn bring(&mut self, io: &mut Io<'_, Folder>, actions: Vec<AuthorityAction>) -> Option<Answer> {
        let mut answer = None;
        for action in actions {
            let left = self.socket.call(io, |d, cx| d.perform(cx, action)).expect("the machine's order");
            if let Some(AuthorityAction::Reply(ticket, said)) = left {
                if let Some(adoption) = self.adopting.take_if(|adoption| adoption.ticket == ticket) {
                    self.adopted.push((adoption, said.clone(), self.begun));
                }
                answer = Some(said);
            }
        }
        answer
    }

    fn tell(
        &mut self,
        io: &mut Io<'_, Folder>,
        event: impl FnOnce(Ticket) -> AuthorityEvent,
    ) -> Option<Answer> {
        self.tickets += 1;
        let event = event(Ticket(self.tickets));
        let left = self.shelf.clone().lend(io.disk, |_| self.driver.tell(event));
        let answer = self.bring(io, left);
        // An epoch that begins has what contradicted the one before looked at again.
        self.look(io);
        answer
    }

    /// `false`: it was not taken, or the process died.
    pub(crate) fn put(&mut self, io: &mut Io<'_, Folder>, changes: &ChangeSet) -> bool {
        let at = self.place();
        self.put_at(io, changes, at)
    }

    pub(crate) fn place(&self) -> Place {
        self.driver.machine().position().map(Place::from).unwrap_or_default()
    }

    pub(crate) fn is_vacant(&self) -> bool {
        *self.driver.machine().mode() == Mode::Vacant
    }

    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.driver.machine().mode(), Mode::ReadOnly(ReadOnly::Store(_)))
    }

    pub(crate) fn is_frozen(&self) -> bool {
        matches!(self.driver.machine().mode(), Mode::ReadOnly(ReadOnly::Old { .. }))
    }

    /// Commits if the newest position is `at`.
    pub(crate) fn put_at(&mut self, io: &mut Io<'_, Folder>, changes: &ChangeSet, at: Place) -> bool {
        self.ask(io, changes, at, None, false)
    }

    /// For a cohort first.
    pub(crate) fn open(&mut self, io: &mut Io<'_, Folder>, changes: &ChangeSet, plan: &Plan) -> bool {
        let at = self.place();
        let taken = self.ask(io, changes, at, Some(plan.clone()), false);
        self.count(io);
        taken
    }

    /// In the place of an open rollout, if there is one.
    pub(crate) fn supersede(&mut self, io: &mut Io<'_, Folder>, changes: &ChangeSet) -> bool {
        let at = self.place();
        self.ask(io, changes, at, None, true)
    }

    /// Whether a rollout is open.
    pub(crate) fn is_open(&self) -> bool {
        self.driver.machine().cohort().is_some()
    }

    /// A step of the open rollout.
    pub(crate) fn step(&mut self, io: &mut Io<'_, Folder>, step: Step) {
        let (request, at) = (random_id(io), self.place());
        self.tell(io, |ticket| AuthorityEvent::Rollout(ticket, request, at, step));
        self.count(io);
    }

    fn ask(
        &mut self,
        io: &mut Io<'_, Folder>,
        changes: &ChangeSet,
        at: Place,
        rollout: Option<Plan>,
        supersede: bool,
    ) -> bool {
        if self.is_vacant() {
            self.look(io);
        }
        let (request, intent) = (random_id(io), Intent::Change(changes.clone()));
        let (author, note) = (String::new(), String::new());
        let request =
            Request { request, expect: Some(at), intent, author, note, stamp: 0, rollout, supersede };
        let answer = self.tell(io, |ticket| AuthorityEvent::Commit(ticket, request.clone()));
        match answer {
            Some(Answer::Committed { position, .. }) if !io.disk.is_crashed() => {
                self.last = Some(Box::new((request, position)));
                true
            }
            _ => false,
        }
    }

    /// Whoever made the last commit asks once more, now or after a new start, and takes any position for its own: what
    /// is wrong with the answer. Known is what the log keeps.
    pub(crate) fn again(&mut self, io: &mut Io<'_, Folder>) -> Option<String> {
        let (mut request, made) = *self.last.clone()?;
        request.expect = None;
        let kept = self.driver.machine().history().any(|(_, commit)| commit.request == request.request);
        let answer = kept.then(|| self.tell(io, |ticket| AuthorityEvent::Commit(ticket, request)))??;
        match answer {
            Answer::Committed { position, replay: true, .. } if position == made => None,
            _ if io.disk.is_crashed() => None,
            other => Some(format!("invariant 15: what is at {made} was asked for again, and is {other:?}")),
        }
    }

    /// An operator has it take over what nodes hold: what is for all, or the one of this number in what they show.
    pub(crate) fn adopt(&mut self, io: &mut Io<'_, Folder>, named: Option<usize>) {
        self.look(io);
        if !self.is_vacant() {
            return;
        }
        let shown = self.driver.machine().holdings().into_iter().map(|(at, _, for_all, _)| (at, for_all));
        let shown: Vec<(Base, bool)> = shown.collect();
        let named = named.and_then(|n| shown.get(n % shown.len().max(1))).map(|(at, _)| *at);
        let incarnation = random_id(io);
        if self.adopting.is_none() {
            self.adopting = Some(Adoption { ticket: Ticket(self.tickets + 1), named, shown });
        }
        self.tell(io, |ticket| AuthorityEvent::Adopt(ticket, incarnation, named));
    }

    /// An operator begins a new epoch; its position, if it began.
    /// At least under this number; a namespace that is lost begins with `content`.
    pub(crate) fn new_epoch(
        &mut self,
        io: &mut Io<'_, Folder>,
        number: u64,
        content: &State,
    ) -> Option<Position> {
        self.look(io);
        self.driver.machine_mut().reserve_epoch(number);
        let incarnation = random_id(io);
        let vacant = self.is_vacant();
        let answer = self.tell(io, |ticket| match vacant {
            true => AuthorityEvent::Init(ticket, incarnation, content.clone()),
            false => AuthorityEvent::NewEpoch(ticket, incarnation),
        });
        match answer {
            Some(Answer::Begun { position, .. }) if !io.disk.is_crashed() => Some(position),
            _ => None,
        }
    }
}

/// The place of the world's disk, which a process holds only while it handles an event.
#[derive(Clone, Debug)]
struct Shelf {
    disk: Arc<Mutex<sim::Disk<Folder>>>,
    /// What the log holds once it is synced.
    next: Arc<Mutex<Option<(Head, State)>>>,
}

impl Default for Shelf {
    fn default() -> Self {
        Shelf { disk: Arc::new(Mutex::new(sim::Disk::new(Folder::default()))), next: Arc::default() }
    }
}

impl Shelf {
    fn disk(&self) -> MutexGuard<'_, sim::Disk<Folder>> {
        self.disk.lock().expect("nobody panics with it")
    }

    fn next(&self) -> MutexGuard<'_, Option<(Head, State)>> {
        self.next.lock().expect("nobody panics with it")
    }

    fn lend<R>(&self, disk: &mut sim::Disk<Folder>, f: impl FnOnce(&Shelf) -> R) -> R {
        std::mem::swap(&mut *self.disk(), disk);
        let result = f(self);
        std::mem::swap(&mut *self.disk(), disk);
        result
    }

    fn file<R>(&self, name: &str, f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let mut disk = self.disk();
        f(Arc::make_mut(disk.write().files.entry(name.to_owned()).or_default()))
    }
}

fn io_error(error: SyncError) -> io::Error {
    io::Error::other(format!("{error:?}"))
}

impl Disk for Shelf {
    fn len(&mut self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.disk().read().files.get(name).map(|bytes| bytes.len() as u64))
    }

    fn read_at(&mut self, name: &str, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let disk = self.disk();
        let file = disk.read().files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        bytes.copy_from_slice(file.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        self.file(name, |file| {
            file.resize(file.len().max(end), 0);
            file[start..end].copy_from_slice(bytes);
        });
        Ok(())
    }

    fn set_len(&mut self, name: &str, len: u64) -> io::Result<()> {
        self.file(name, |file| file.resize(len as usize, 0));
        Ok(())
    }

    /// The world knows one sync, of all files.
    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut disk = self.disk();
        if name == "log"
            && let Some(next) = self.next().take()
        {
            disk.write().history = Some(next);
        }
        disk.sync().map_err(io_error)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let files = &mut disk.write().files;
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk().write().files.remove(name);
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.disk().sync().map_err(io_error)
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.disk().read().files.keys().cloned().collect())
    }
}

/// The shipped log, which also tells the oracle what it holds.
#[derive(Debug)]
struct Log {
    log: Embedded<Shelf>,
    shelf: Shelf,
    /// The plan of the newest, and the request that brought it.
    plan: Option<(Arc<Plan>, Id)>,
}

impl Log {
    fn new(shelf: Shelf) -> Log {
        Log { log: Embedded::new(shelf.clone(), Id::default(), "config"), shelf, plan: None }
    }
}

impl Source for Log {
    fn load(&mut self) -> Result<Option<Recovered>, SourceError> {
        let loaded = self.log.load()?;
        let rollout = loaded.as_ref().and_then(|loaded| loaded.rollout.as_ref());
        self.plan = rollout.map(|open| (open.plan.clone(), open.rollout));
        Ok(loaded)
    }

    fn append_durable(&mut self, record: &Record) -> Result<(), SourceError> {
        let before = self.shelf.disk().read().history.clone();
        if let Record::Batch(batch) = record {
            let mut state = before.as_ref().map(|(_, state)| state.clone()).unwrap_or_default();
            batch.commits.iter().for_each(|commit| state.apply(&commit.changes));
            *self.shelf.next() = Some((batch.head.clone(), state));
            self.plan = batch.plan.clone().map(|plan| (plan, batch.commits[0].request));
        }
        if let (Record::Mark(mark), Some((head, state)), Some((plan, rollout))) =
            (record, &before, &self.plan)
        {
            let stage = if mark.passed { usize::MAX } else { usize::from(mark.stage) };
            let head = Head { audience: plan.audience(*rollout, stage), ..head.clone() };
            *self.shelf.next() = Some((head, state.clone()));
        }
        let result = self.log.append_durable(record);
        self.shelf.next().take();
        if result.is_err() && !self.shelf.disk().is_crashed() {
            self.shelf.disk().write().history = before;
        }
        result
    }

    fn range_since(&mut self, rev: u64) -> Result<Vec<Batch>, SourceError> {
        self.log.range_since(rev)
    }

    fn compact(&mut self, base: &Snapshot) -> Result<(), SourceError> {
        self.log.compact(base)
    }

    fn health(&self) -> Health {
        self.log.health()
    }

    fn raise_opened(&mut self, above: u32) -> Result<u32, SourceError> {
        self.log.raise_opened(above)
    }

    fn chain_at(&mut self, rev: u64) -> Result<Option<[u8; 32]>, SourceError> {
        self.log.chain_at(rev)
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
        let replica = replica.in_conflict(folder.contradiction());
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
        let status = self.socket.protocol().status(now);
        if let Some(boot) = status.stale_boot {
            self.rise(io, boot);
        }
        if status.evidence.as_ref() != io.disk.read().conflict.as_deref() {
            let before = io.disk.read().conflict.clone();
            io.disk.write().conflict = status.evidence.map(Arc::new);
            if io.disk.sync() == Err(SyncError::Failed) {
                io.disk.write().conflict = before;
            }
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
            coverage::says(self, now, "asks again");
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
        coverage::says(self, io.now(), "takes another boot");
        self.socket.call(io, |r, _| r.set_identity(id, boot));
    }

    fn take(&mut self, io: &mut Io<'_, Folder>) {
        if let Some(update) = self.given.take() {
            // Asking for the next says that the last is visible.
            self.show(&update, false);
        }
        coverage::says(self, io.now(), "takes the next");
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
                coverage::says(self, io.now(), "stored");
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
                coverage::says(self, io.now(), "visible, not stored");
                self.show(&update, false);
                let _ = self.socket.call(io, |r, cx| r.ack(cx, at, Level::Visible, true));
            }
        }
        self.hook = Some(io.now() + io.rng().time(Duration::ZERO..Duration::from_millis(150)));
    }

    fn refuse(&mut self, io: &mut Io<'_, Folder>, at: Position, code: NackCode, again: Option<Duration>) {
        coverage::says(self, io.now(), if code == NackCode::Storage { "has no room" } else { "refuses" });
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
                coverage::says(self, io.now(), "hook failed");
                let _ = self.socket.call(io, |r, cx| r.nack(cx, at, NackCode::Hook, "exit 1"));
                self.hook = Some(now + BEACON);
                return;
            }
            io.disk.write().level = Some(Level::Applied);
            if io.disk.sync() == Err(SyncError::Crashed) {
                return;
            }
            self.applied = true;
            coverage::says(self, io.now(), "hook done");
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
