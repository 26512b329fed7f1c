//! The processes of the small world, around the machines that real ones use.
//!
//! Owns: what a process does with what its machines say. Never: an order; each step is an event of the world.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::script::Script;
use spanwire::protocol::{Limit, PipeId, PipeInfo, Protocol, Time};
use spanwire_config::rollout::{Plan, Stage, WHOLE};
use spanwire_config::source::{Record, Recovered, Snapshot};
use spanwire_config::{
    Answer, AuthorityAction, AuthorityEvent, ChangeSet, Distributor, Head, Id, Intent, Key, Level, NackCode,
    NodeKind, NsAuthority, NsRelay, NsSettings, Opening, Place, Position, RelayAction, RelayEvent,
    RelaySettings, Replica, ReplicaSettings, Request, Settings, State, Step, Ticket, Update,
};

/// The ticket of what no commit is.
const UNASKED: u64 = u64::MAX;

/// Its node id, and as a server its server id.
pub(crate) fn id(node: usize) -> Id {
    Id([node as u8 + 1; 16])
}

/// What a crash leaves.
#[derive(Clone, Default, Debug)]
pub(crate) struct Disk {
    pub(crate) opened: u32,
    /// Of an authority.
    pub(crate) log: Arc<Vec<Record>>,
    /// Of the others.
    pub(crate) kept: Option<(Head, State)>,
    pub(crate) applied: bool,
}

/// A protocol with the pipes that it has, by link.
#[derive(Clone, Debug)]
pub(crate) struct Talker<P> {
    pub(crate) script: Script<P>,
    pipes: BTreeMap<usize, PipeId>,
}

impl<P: Protocol> Talker<P> {
    fn new(protocol: P) -> Talker<P> {
        Talker { script: Script::new(protocol), pipes: BTreeMap::new() }
    }

    pub(crate) fn open(&mut self, link: usize) {
        let mut info = PipeInfo::default();
        let limit = Limit::messages(64);
        (info.send_limit, info.recv_limit, info.endpoint) = (limit, limit, link as u32);
        if let Ok(pipe) = self.script.open_with(info) {
            self.pipes.insert(link, pipe);
        }
    }

    pub(crate) fn close(&mut self, link: usize) {
        if let Some(pipe) = self.pipes.remove(&link) {
            self.script.end(pipe);
        }
    }

    pub(crate) fn arrive(&mut self, link: usize, message: Message) {
        if let Some(pipe) = self.pipes.get(&link) {
            assert_eq!(self.script.arrive(*pipe, [message]), 1, "there is room");
        }
    }

    /// What it put, by link, and the links that it closed.
    fn take(&mut self, sent: &mut Vec<(usize, Message)>, closed: &mut Vec<usize>) {
        for (link, pipe) in &self.pipes {
            sent.extend(self.script.drain(*pipe, usize::MAX).into_iter().map(|message| (*link, message)));
        }
        let gone = |(link, pipe): (&usize, &PipeId)| (!self.script.is_open(*pipe)).then_some(*link);
        closed.extend(self.pipes.iter().filter_map(gone));
        self.pipes.retain(|_, pipe| self.script.is_open(*pipe));
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) talk: Talker<Distributor>,
    pub(crate) machine: NsAuthority,
    /// The store writes it.
    pub(crate) writing: Option<Record>,
    pub(crate) answers: Vec<(u64, Answer)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) talk: Talker<Replica>,
    /// What the application looks at: it is on its disk by now.
    pub(crate) given: Option<Update>,
    pub(crate) shown: Option<(Head, State)>,
    pub(crate) applied: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Relay {
    pub(crate) upper: Talker<Replica>,
    pub(crate) lower: Talker<Distributor>,
    pub(crate) machine: NsRelay,
    pub(crate) persisting: Option<(Head, State)>,
    now: Time,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there are four of them, each behind a pointer")]
pub(crate) enum Node {
    Server(Server),
    Relay(Relay),
    Agent(Agent),
}

/// What the commits do: the second deletes what the first puts, and puts something that is there again.
fn changes(number: u8) -> ChangeSet {
    let key = |n: u8| Key::new(format!("k{n}")).expect("short");
    let mut changes = ChangeSet::new();
    changes.put(key(0), 0, vec![number]);
    changes.put(key(number), 0, vec![number]);
    changes.delete(key(number - 1));
    changes
}

fn replica(disk: &mut Disk, node: usize, kind: NodeKind) -> Replica {
    disk.opened += 1;
    let boot = u64::from(disk.opened) << 32;
    let labels = vec![("n".to_owned(), node.to_string())];
    let settings = ReplicaSettings { node: id(node), boot, kind, labels, ..ReplicaSettings::default() };
    let level = if disk.applied { Level::Applied } else { Level::Stored };
    match disk.kept.clone() {
        Some((head, state)) => Replica::restored(settings, head, state, level),
        None => Replica::new(settings),
    }
}

fn settings(node: usize) -> Settings {
    Settings { server: id(node), ..Settings::default() }
}

impl Node {
    pub(crate) fn server(disk: &mut Disk) -> Node {
        let opening = if disk.log.is_empty() {
            disk.opened = 1;
            Opening::Unknown
        } else {
            disk.opened += 1;
            let mut last = Snapshot::default();
            for record in disk.log.iter() {
                let Record::Batch(batch) = record else { continue };
                batch.commits.iter().for_each(|commit| last.state.apply(&commit.changes));
                last.head = batch.head.clone();
            }
            let (opened, records) = (disk.opened, disk.log.to_vec());
            let recovered = Recovered { opened, records, last: Some(last), ..Recovered::default() };
            Opening::Restored(Box::new(recovered))
        };
        let (machine, actions) = NsAuthority::new(NsSettings::default(), opening, Id([0xee; 16]));
        assert!(actions.is_empty(), "the log is short: {actions:?}");
        let talk = Talker::new(Distributor::new(settings(0), machine.origin()));
        Node::Server(Server { talk, machine, writing: None, answers: Vec::new() })
    }

    pub(crate) fn relay(disk: &mut Disk, node: usize) -> Node {
        let upper = Talker::new(replica(disk, node, NodeKind::Relay));
        let machine =
            NsRelay::new(RelaySettings { node: id(node), ..RelaySettings::default() }, disk.kept.clone());
        let lower = Talker::new(Distributor::new(settings(node), machine.origin()));
        Node::Relay(Relay { upper, lower, machine, persisting: None, now: Time::ZERO })
    }

    pub(crate) fn agent(disk: &mut Disk, node: usize) -> Node {
        let talk = Talker::new(replica(disk, node, NodeKind::Replica));
        Node::Agent(Agent { talk, given: None, shown: disk.kept.clone(), applied: disk.applied })
    }

    /// All that it put and closed since it was asked last.
    pub(crate) fn take(&mut self) -> (Vec<(usize, Message)>, Vec<usize>) {
        let (mut sent, mut closed) = (Vec::new(), Vec::new());
        match self {
            Node::Server(server) => server.talk.take(&mut sent, &mut closed),
            Node::Agent(agent) => agent.talk.take(&mut sent, &mut closed),
            Node::Relay(relay) => {
                relay.upper.take(&mut sent, &mut closed);
                relay.lower.take(&mut sent, &mut closed);
            }
        }
        (sent, closed)
    }

    /// Does what follows from the last event at once.
    pub(crate) fn settle(&mut self, disk: &Disk) {
        match self {
            Node::Server(server) => server.look(disk),
            Node::Relay(relay) => relay.turn(),
            Node::Agent(_) => {}
        }
    }
}

impl Server {
    /// `cohort`: it is for this node first.
    pub(crate) fn commit(&mut self, disk: &Disk, number: u8, cohort: Option<usize>) {
        let plan = |node: usize| {
            let labels = vec![("n".to_owned(), node.to_string())];
            Plan { salt: Id::default(), stages: vec![Stage { labels, share: WHOLE, gate: None }] }
        };
        let request = Request {
            request: Id([0xc0 + number; 16]),
            // The first begins the namespace.
            expect: (number == 1).then(Place::default),
            intent: Intent::Change(changes(number)),
            author: String::new(),
            note: String::new(),
            stamp: 0,
            rollout: cohort.map(plan),
            supersede: false,
        };
        self.tell(disk, AuthorityEvent::Commit(Ticket(u64::from(number)), request));
    }

    /// A step of the open rollout; nobody asks for its answer.
    pub(crate) fn roll(&mut self, disk: &Disk, number: u8, step: Step) {
        let at = self.machine.position().map(Place::from).unwrap_or_default();
        let request = Id([0xe0 + number; 16]);
        self.tell(disk, AuthorityEvent::Rollout(Ticket(UNASKED), request, at, step));
    }

    /// The store is done with what it writes; by now it is in the log.
    pub(crate) fn durable(&mut self, disk: &Disk) {
        self.writing = None;
        self.tell(disk, AuthorityEvent::Durable(Ok(())));
    }

    fn tell(&mut self, disk: &Disk, event: AuthorityEvent) {
        for action in self.machine.handle(event, Time::ZERO) {
            let left = self.talk.script.call(|d, cx| d.perform(cx, action)).expect("the machine's order");
            match left {
                Some(AuthorityAction::Append(record)) => self.writing = Some(record),
                Some(AuthorityAction::Reply(Ticket(UNASKED), _)) => {}
                Some(AuthorityAction::Reply(Ticket(who), answer)) => self.answers.push((who, answer)),
                Some(AuthorityAction::Recall(recall)) => {
                    let rev = recall.head.position.rev;
                    let chain = disk.log.iter().find_map(|record| match record {
                        Record::Batch(batch) if batch.head.position.rev == rev => Some(batch.head.chain),
                        _ => None,
                    });
                    self.tell(disk, AuthorityEvent::Recalled(recall, Ok(chain)));
                }
                Some(AuthorityAction::RaiseOpened(above)) => {
                    self.tell(disk, AuthorityEvent::Raised(Ok(above + 1)));
                }
                _ => {}
            }
        }
    }

    fn look(&mut self, disk: &Disk) {
        while self.talk.script.protocol.has_shown() {
            for event in self.talk.script.call(|d, _| d.take_shown()) {
                self.tell(disk, event);
            }
        }
    }
}

impl Agent {
    pub(crate) fn is_ready(&self) -> bool {
        self.given.is_none() && self.talk.script.readiness().recv
    }

    /// Takes what is verified and writes it to its disk; nobody sees it yet.
    pub(crate) fn keep(&mut self, disk: &mut Disk) {
        let Some(update) = self.talk.script.recv() else { return };
        (disk.kept, disk.applied) = (Some((update.head.clone(), update.state.clone())), false);
        self.given = Some(update);
    }

    pub(crate) fn refuse(&mut self) -> Option<Position> {
        let at = self.talk.script.recv()?.position();
        let said = self.talk.script.call(|r, cx| r.nack(cx, at, NackCode::Validator, "no"));
        said.expect("it is the one given");
        Some(at)
    }

    pub(crate) fn show(&mut self) {
        let Some(update) = self.given.take() else { return };
        let said = self.talk.script.call(|r, cx| r.ack(cx, update.position(), Level::Stored, false));
        said.expect("it is the one given");
        (self.shown, self.applied) = (Some((update.head, update.state)), false);
    }

    pub(crate) fn apply(&mut self, disk: &mut Disk) {
        let Some((head, _)) = &self.shown else { return };
        let at = head.position;
        disk.applied = disk.kept.as_ref().is_some_and(|(kept, _)| kept.position == at);
        let said = self.talk.script.call(|r, cx| r.ack(cx, at, Level::Applied, false));
        said.expect("it is visible");
        self.applied = true;
    }
}

impl Relay {
    pub(crate) fn stored(&mut self, disk: &mut Disk) {
        let Some(kept) = self.persisting.take() else { return };
        let at = kept.0.position;
        disk.kept = Some(kept);
        self.tell(RelayEvent::Stored(at, Ok(())));
    }

    /// The table is told upward.
    pub(crate) fn flush(&mut self) {
        if let Some(due) = self.machine.due() {
            self.now = self.now.max(due);
            self.tell(RelayEvent::Time);
        }
    }

    fn turn(&mut self) {
        loop {
            let mut events = self.upper.script.call(|r, cx| r.relay_events(cx));
            events.extend(self.lower.script.call(|d, _| d.relay_events()));
            if events.is_empty() {
                return;
            }
            events.into_iter().for_each(|event| self.tell(event));
        }
    }

    fn tell(&mut self, event: RelayEvent) {
        for action in self.machine.handle(event, self.now) {
            let left =
                self.lower.script.call(|d, cx| d.perform_relay(cx, action)).expect("the machine's order");
            let Some(left) = left else { continue };
            let Ok(Some(left)) = self.upper.script.call(|r, cx| r.perform_relay(cx, left)) else { continue };
            match left {
                RelayAction::Persist(head, state) => self.persisting = Some((head, state)),
                RelayAction::Report { whole } => {
                    if whole {
                        self.lower.script.call(|d, _| d.report_all());
                    }
                    while let Some(report) = self.lower.script.call(|d, _| d.take_report()) {
                        if !self.upper.script.call(|r, cx| r.report(cx, &report)) {
                            self.lower.script.call(|d, _| d.put_back(&report));
                            break;
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// A beacon time passes at the sender.
pub(crate) fn beacon(talk: &mut Talker<Distributor>) {
    talk.script.advance(Duration::from_secs(1));
}
