//! A process that commits: what `config-sync serve` is, but for the tree that it reads, with any number of namespaces.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use bytes::Bytes;
use spanwire::protocol::{Cx, Time};
use spanwire_config::rollout::{Plan, WHOLE};
use spanwire_config::sign::Secret;
use spanwire_config::wire::client::WaitAsk;
use spanwire_config::{
    Answer, AuthorityAction, AuthorityEvent, Base, ChangeSet, Distributor, Driver, Intent, Mode, Namespace,
    NsSettings, Opening, Place, Position, ReadOnly, Request, Settings, State, Step, Ticket,
};
use spanwire_testkit::sim::{self, Event, Io, Scripted};

use super::folder::{Folder, Log, Shelf, Space};
use super::nodes::{ROOM, random_id};
use super::waits::Desk;
use super::{NAMES, RUN};

/// How often the nodes of a cohort are counted, and until when.
const GATE: Duration = Duration::from_millis(100);
const LAST_COUNT: Duration = RUN.saturating_sub(Duration::from_millis(60));

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) socket: Scripted<Distributor>,
    pub(crate) settings: Box<Settings>,
    /// One for each namespace.
    authorities: Vec<Authority>,
    /// What nodes show is looked at some time later: the thread that does it has to wait its turn.
    pub(crate) lazy: bool,
    due: Option<Time>,
    /// It serves a copy of another's store, and decides nothing: an open rollout in it is the other's.
    pub(crate) mirror: bool,
}

/// The authority of one namespace.
#[derive(Debug)]
pub(crate) struct Authority {
    at: usize,
    driver: Driver<Log>,
    /// The disk is in here while the store uses it.
    shelf: Shelf,
    tickets: u64,
    /// The last commit that was answered for, and where it is.
    last: Option<Box<(Request, Position)>>,
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

/// One namespace of a server, as the oracle looks at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served<'n> {
    pub(crate) server: &'n Server,
    at: usize,
}

impl<'n> Served<'n> {
    pub(crate) fn namespace(&self) -> &'n Namespace {
        &self.server.socket.protocol().namespaces()[self.at]
    }

    /// Nothing shares its pipes.
    pub(crate) fn is_alone(&self) -> bool {
        self.server.authorities.len() == 1
    }
}

impl Deref for Served<'_> {
    type Target = Authority;
    fn deref(&self) -> &Authority {
        &self.server.authorities[self.at]
    }
}

/// One namespace of a server, for its operator.
#[derive(Debug)]
pub(crate) struct Office<'s> {
    socket: &'s mut Scripted<Distributor>,
    own: &'s mut Authority,
    mirror: bool,
}

impl Deref for Office<'_> {
    type Target = Authority;
    fn deref(&self) -> &Authority {
        self.own
    }
}

impl DerefMut for Office<'_> {
    fn deref_mut(&mut self) -> &mut Authority {
        self.own
    }
}

impl Server {
    /// `namespaces`: how many.
    pub(crate) fn start(settings: Settings, lazy: bool, io: &mut Io<'_, Folder>) -> Server {
        let namespaces = io.disk.read().spaces.len();
        let opened: Vec<_> = (0..namespaces).map(|at| Authority::open(at, &settings, io)).collect();
        let origin = |at: usize| opened[at].0.driver.machine().origin();
        let distributor = (1..namespaces)
            .fold(Distributor::new(settings.clone(), origin(0)), |sender, at| {
                sender.with_namespace(NAMES[at], origin(at)).expect("few, and each once")
            });
        let socket = Scripted::new(distributor, ROOM, io.rng().next());
        let (authorities, left): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let mut server =
            Server { socket, settings: Box::new(settings), authorities, lazy, due: None, mirror: false };
        for (at, left) in left.into_iter().enumerate() {
            server.office(at).bring(io, left);
        }
        server
    }

    /// One of its namespaces.
    pub(crate) fn office(&mut self, at: usize) -> Office<'_> {
        Office { socket: &mut self.socket, own: &mut self.authorities[at], mirror: self.mirror }
    }

    /// The same, to look at.
    pub(crate) fn served(&self, at: usize) -> Served<'_> {
        Served { server: self, at }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.authorities.iter().any(Authority::has_failed)
    }

    pub(crate) fn handle(&mut self, event: Event, io: &mut Io<'_, Folder>) {
        self.socket.handle(event, io);
        let shown = self.socket.protocol().namespaces().iter().any(Namespace::has_shown);
        let due = self.due.is_some_and(|due| due <= io.now());
        if !self.lazy || due {
            self.due = None;
            (0..self.authorities.len()).for_each(|at| self.office(at).look(io));
        } else if shown {
            let wait = Duration::from_millis(30);
            let due = *self.due.get_or_insert(io.now() + wait);
            io.wake_at(due);
        }
        for at in 0..self.authorities.len() {
            self.office(at).count(io);
            self.office(at).answer(io);
        }
    }
}

impl Authority {
    fn open(at: usize, settings: &Settings, io: &mut Io<'_, Folder>) -> (Authority, Vec<AuthorityAction>) {
        let (folder, shelf) = (io.disk.read().clone(), Shelf::new(at));
        let begin = folder.spaces[at].begin;
        let machine = NsSettings {
            namespace: NAMES[at].into(),
            log_commits: settings.log_commits,
            log_bytes: settings.log_bytes,
            keys: settings.secret.as_ref().map(Secret::public).unwrap_or_default(),
            ..NsSettings::default()
        };
        let open = |shelf: &Shelf| {
            let log = Log::new(shelf.clone());
            Driver::open(log, machine.clone(), Opening::Unknown, begin.incarnation)
        };
        // What it will find: for the oracle, which is to know of it no later than it is durable.
        let copy = Shelf::new(at);
        copy.lend(&mut sim::Disk::new(folder.clone()), |copy| {
            let found = open(copy).expect("what was durable is whole");
            let last = found.0.machine().durable().cloned();
            io.disk.write().spaces[at].history = last.map(|last| (last.head, last.state));
        });
        let (mut driver, left) = loop {
            match shelf.lend(io.disk, open) {
                Ok(opened) => break opened,
                // Nobody sees what a dead process does; a new disk lets it do nothing.
                Err(_) if io.disk.is_crashed() => {
                    let spaces = vec![Space::default(); folder.spaces.len()];
                    let mut empty = sim::Disk::new(Folder { spaces, ..Folder::default() });
                    break shelf.lend(&mut empty, open).expect("an empty disk is no trouble");
                }
                // An operator starts it again until the disk takes it.
                Err(_) => {}
            }
        };
        driver.machine_mut().reserve_epoch(begin.number);
        let authority = Authority {
            at,
            driver,
            shelf,
            tickets: 0,
            last: None,
            count: None,
            wrong: None,
            desk: Desk::default(),
            adopting: None,
            begun: false,
            adopted: Vec::new(),
        };
        (authority, left)
    }

    /// The newest position, and for whom it is if its rollout is open.
    pub(crate) fn newest(&self) -> (Option<Position>, Option<Bytes>) {
        let machine = self.driver.machine();
        (machine.position(), machine.cohort().map(|(_, audience)| audience))
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

    /// Whether a rollout is open.
    pub(crate) fn is_open(&self) -> bool {
        self.driver.machine().cohort().is_some()
    }
}

impl Office<'_> {
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.socket.protocol().namespaces()[self.own.at]
    }

    /// Answers who has waited long enough.
    pub(crate) fn answer(&mut self, io: &mut Io<'_, Folder>) {
        let next = {
            let served = &self.socket.protocol().namespaces()[self.own.at];
            self.own.desk.look(self.own.driver.machine(), served, io.now())
        };
        if let Some(next) = next {
            io.wake_at(next);
        }
    }

    /// Somebody asks who has reached a position.
    pub(crate) fn wait(&mut self, ask: &WaitAsk, until: Time) -> u64 {
        {
            let served = &self.socket.protocol().namespaces()[self.own.at];
            self.own.desk.ask(self.own.driver.machine(), served, ask, until)
        }
    }

    /// The machine is told how far the cohort of an open rollout is; not so late that nobody starts it again if its
    /// store fails by that.
    fn count(&mut self, io: &mut Io<'_, Folder>) {
        let Some(of) = self
            .driver
            .machine()
            .cohort()
            .filter(|_| io.now() < Time::from_start(LAST_COUNT) && !self.mirror && !io.disk.is_crashed())
        else {
            self.count = None;
            return;
        };
        let now = io.now();
        let due = *self.count.get_or_insert(now);
        if due > now {
            return io.wake_at(due);
        }
        let nodes = self.namespace().cohort(of.0, &of.1);
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
        while self.namespace().has_shown() && !io.disk.is_crashed() {
            let name = NAMES[self.at];
            let shown = self.socket.call(io, |d, _| d.namespace(name).expect("served").take_shown());
            for event in shown {
                self.begun = self.driver.machine().position().is_some();
                let left = self.shelf.clone().lend(io.disk, |_| self.driver.tell(event));
                self.bring(io, left);
            }
        }
    }

    fn bring(&mut self, io: &mut Io<'_, Folder>, actions: Vec<AuthorityAction>) -> Option<Answer> {
        let (mut answer, name) = (None, NAMES[self.at]);
        for action in actions {
            let perform =
                |d: &mut Distributor, cx: &mut Cx<'_>| d.namespace(name).expect("served").perform(cx, action);
            let left = self.socket.call(io, perform).expect("the machine's order");
            if let Some(AuthorityAction::Reply(ticket, said)) = left {
                if let Some(adoption) = self.adopting.take_if(|adoption| adoption.ticket == ticket) {
                    let begun = self.begun;
                    self.adopted.push((adoption, said.clone(), begun));
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
