//! The machine of an authority, told all that can be told to it in any order: every event meets every state, no
//! request commits twice, and every question has one answer.
//!
//! The simulated worlds use the real store, in which a sync is one step; here what is told between an append and its
//! end is half of the point.

use std::collections::{BTreeMap, BTreeSet};

use spanwire::protocol::Time;
use spanwire_config::sign::Secret;
use spanwire_config::source::{Record, Recovered, Snapshot};
use spanwire_config::{
    Answer, AuthorityAction, AuthorityEvent, ChangeSet, Epoch, Head, Id, Intent, Key, Mode, NsAuthority,
    NsSettings, Opening, Place, Position, ReadOnly, Recall, Request, State, Ticket,
};
use spanwire_testkit::sim::Rng;

const STATES: [&str; 7] = [
    "VACANT",
    "VACANT, a sync",
    "SERVING",
    "SERVING, a sync",
    "READONLY store",
    "READONLY old",
    "READONLY old, a sync",
];

const EVENTS: [&str; 22] = [
    "commit",
    "commit again",
    "commit elsewhere",
    "commit too large",
    "revert",
    "durable",
    "not durable",
    "compacted",
    "not compacted",
    "raised",
    "not raised",
    "fine HEAD",
    "HEAD ahead",
    "HEAD of a fork",
    "HEAD of long ago",
    "recalled",
    "recalled another",
    "not recalled",
    "init",
    "new epoch",
    "import",
    "adopt",
];

/// Those of the store about what was asked before.
const ANSWERS: [&str; 7] =
    ["compacted", "not compacted", "raised", "not raised", "recalled", "recalled another", "not recalled"];

/// What cannot be, and why.
fn never(state: &str, event: &str) -> Option<&'static str> {
    let sync = state.ends_with("a sync");
    match event {
        // Another failure leaves a sync under way.
        "durable" | "not durable" if !sync && state != "READONLY store" => Some("nothing is with the store"),
        "recalled" | "recalled another" | "not recalled" if state.starts_with("VACANT") => {
            Some("there is no history to look up")
        }
        "compacted" | "not compacted" | "raised" | "not raised" if state.starts_with("VACANT") => {
            Some("there is nothing to let go of, and no HEAD was issued")
        }
        "HEAD of a fork" | "HEAD of long ago" | "fine HEAD" | "revert" | "commit elsewhere"
            if state.starts_with("VACANT") =>
        {
            Some("there is no history that it could be of")
        }
        _ => None,
    }
}

/// What is asked of the store and not answered.
#[derive(Default)]
struct Store {
    append: Option<Record>,
    compact: bool,
    raise: Option<u32>,
    recalls: Vec<Recall>,
    /// What is durable.
    log: Vec<Record>,
    opened: u32,
}

struct Walk {
    rng: Rng,
    machine: NsAuthority,
    store: Store,
    tickets: u64,
    /// Not answered.
    asked: BTreeSet<u64>,
    /// Requests, by what they are called, and where they were committed.
    requests: Vec<Request>,
    made: BTreeMap<Id, Position>,
    /// Which request a ticket is of.
    of: BTreeMap<u64, Id>,
    /// HEADs that were durable.
    heads: Vec<Head>,
}

fn secret() -> Secret {
    Secret::from_seed(1, &[5; 32])
}

fn settings() -> NsSettings {
    // Few are kept; what contradicts freezes, where it is signed.
    NsSettings { log_commits: 4, keys: secret().public(), ..NsSettings::default() }
}

impl Walk {
    fn new(seed: u64) -> Walk {
        let mut rng = Rng::new(seed);
        // A store is here and empty, or is not here at all.
        let opening = if rng.one_in(4) { Opening::NoStore } else { Opening::Unknown };
        let (machine, _) = NsAuthority::new(settings(), opening, Id([1; 16]));
        Walk {
            rng,
            machine,
            store: Store { opened: 1, ..Store::default() },
            tickets: 0,
            asked: BTreeSet::new(),
            requests: Vec::new(),
            made: BTreeMap::new(),
            of: BTreeMap::new(),
            heads: Vec::new(),
        }
    }

    fn state(&self) -> &'static str {
        let sync = self.store.append.is_some();
        match (self.machine.mode(), sync) {
            (Mode::Vacant, false) => "VACANT",
            (Mode::Vacant, true) => "VACANT, a sync",
            (Mode::Serving, false) => "SERVING",
            (Mode::Serving, true) => "SERVING, a sync",
            (Mode::ReadOnly(ReadOnly::Store(_)), _) => "READONLY store",
            (Mode::ReadOnly(_), false) => "READONLY old",
            (Mode::ReadOnly(_), true) => "READONLY old, a sync",
        }
    }

    fn id(&mut self) -> Id {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.rng.next().to_be_bytes());
        Id(id)
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.asked.insert(self.tickets);
        Ticket(self.tickets)
    }

    fn request(&mut self, expect: Option<Place>, intent: Intent) -> AuthorityEvent {
        let (request, author, note) = (self.id(), String::new(), String::new());
        let request =
            Request { request, expect, intent, author, note, stamp: 0, rollout: None, supersede: false };
        self.requests.push(request.clone());
        let ticket = self.ticket();
        self.of.insert(ticket.0, request.request);
        AuthorityEvent::Commit(ticket, request)
    }

    fn change(&mut self) -> Intent {
        let mut changes = ChangeSet::new();
        let key = Key::new(format!("k{}", self.rng.below(4))).expect("short");
        changes.put(key, 0, vec![self.rng.next() as u8; 4]);
        Intent::Change(changes)
    }

    /// A node shows this, signed.
    fn shown(&mut self, mut head: Head) -> AuthorityEvent {
        head.seq = self.rng.next() % (1 << 42);
        secret().sign(&mut head);
        AuthorityEvent::Shown { node: Id([self.rng.below(3) as u8; 16]), head, issued: 1 << 40 }
    }

    /// A HEAD of before, of this epoch where there is one.
    fn old(&mut self) -> Option<Head> {
        let epoch = self.machine.position()?.epoch;
        let own: Vec<&Head> = self.heads.iter().filter(|head| head.position.epoch == epoch).collect();
        let at = self.rng.below(own.len());
        own.get(at).map(|head| (*head).clone())
    }

    /// `None`: it makes no sense now.
    fn event(&mut self, name: &str) -> Option<AuthorityEvent> {
        let newest = self.machine.position();
        let why = || "broken".to_owned();
        Some(match name {
            "commit" => {
                let expect = if newest.is_none() { Some(Place::default()) } else { None };
                let intent = self.change();
                self.request(expect, intent)
            }
            "commit again" => {
                let at = self.rng.below(self.requests.len());
                let request = self.requests.get(at)?.clone();
                let ticket = self.ticket();
                self.of.insert(ticket.0, request.request);
                AuthorityEvent::Commit(ticket, request)
            }
            "commit elsewhere" => {
                let place = Place { rev: newest?.rev + 100, ..newest?.into() };
                let intent = self.change();
                self.request(Some(place), intent)
            }
            "commit too large" => {
                let mut changes = ChangeSet::new();
                changes.put(Key::new("large").expect("short"), 0, vec![0; 2 << 20]);
                self.request(None, Intent::Change(changes))
            }
            "revert" => {
                let rev = self.rng.below(newest?.rev as usize + 2) as u64;
                let to = Place { rev, ..newest?.into() };
                self.request(None, Intent::Revert(to))
            }
            "durable" => {
                let record = self.store.append.take()?;
                if let Record::Batch(batch) = &record {
                    self.heads.push(batch.head.clone());
                }
                self.store.log.push(record);
                AuthorityEvent::Durable(Ok(()))
            }
            "not durable" => {
                self.store.append.take()?;
                AuthorityEvent::Durable(Err(why()))
            }
            "compacted" | "not compacted" => {
                if !std::mem::take(&mut self.store.compact) {
                    return None;
                }
                AuthorityEvent::Compacted(if name == "compacted" { Ok(()) } else { Err(why()) })
            }
            "raised" => AuthorityEvent::Raised(Ok(self.store.raise.take()? + 1)),
            "not raised" => {
                self.store.raise.take()?;
                AuthorityEvent::Raised(Err(why()))
            }
            "fine HEAD" => {
                let head = self.heads.iter().rfind(|head| Some(head.position) == newest)?.clone();
                self.shown(head)
            }
            "HEAD ahead" => {
                let rev = newest.map_or(7, |newest| newest.rev + 5);
                let epoch =
                    newest.map_or(Epoch { number: 1, incarnation: Id([9; 16]) }, |newest| newest.epoch);
                let position = Position { epoch, rev };
                self.shown(Head { position, namespace: "config".into(), ..Head::default() })
            }
            "HEAD of a fork" => {
                let mut head = self.old()?;
                head.chain[0] ^= 1;
                self.shown(head)
            }
            "HEAD of long ago" => {
                let head = self.old()?;
                self.shown(head)
            }
            "recalled" => {
                let recall = self.store.recalls.pop()?;
                let chain =
                    self.heads.iter().find(|head| head.position == recall.head.position).map(|h| h.chain);
                AuthorityEvent::Recalled(recall, Ok(chain))
            }
            "recalled another" => AuthorityEvent::Recalled(self.store.recalls.pop()?, Ok(None)),
            "not recalled" => AuthorityEvent::Recalled(self.store.recalls.pop()?, Err(why())),
            "init" => AuthorityEvent::Init(self.ticket(), self.id(), State::new()),
            "new epoch" => AuthorityEvent::NewEpoch(self.ticket(), self.id()),
            "import" => AuthorityEvent::Import(self.ticket(), self.id(), State::new()),
            "adopt" => AuthorityEvent::Adopt(self.ticket(), self.id(), None),
            other => panic!("no such event: {other}"),
        })
    }

    fn step(&mut self, event: AuthorityEvent) -> Result<(), String> {
        for action in self.machine.handle(event, Time::ZERO) {
            match action {
                AuthorityAction::Append(_) if self.store.append.is_some() => {
                    return Err("store: two appends at once".into());
                }
                AuthorityAction::Append(record) => self.store.append = Some(record),
                AuthorityAction::Compact(_) => self.store.compact = true,
                AuthorityAction::RaiseOpened(above) => self.store.raise = Some(above),
                AuthorityAction::Recall(recall) => self.store.recalls.push(recall),
                AuthorityAction::Reply(Ticket(who), answer) => self.answered(who, &answer)?,
                AuthorityAction::Publish(published) if !self.heads.contains(&published.head) => {
                    return Err(format!(
                        "invariant 6: {} is published before it is durable",
                        published.head.position
                    ));
                }
                // No node answers it.
                AuthorityAction::Offer(node, _) => self.step(AuthorityEvent::Offered(node, None))?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Invariant 15, and that nobody is answered twice.
    fn answered(&mut self, who: u64, answer: &Answer) -> Result<(), String> {
        if !self.asked.remove(&who) {
            return Err(format!("answers: {who} gets a second one: {answer:?}"));
        }
        let Answer::Committed { position, replay, .. } = answer else { return Ok(()) };
        let Some(request) = self.of.get(&who) else { return Ok(()) };
        match self.made.insert(*request, *position) {
            Some(before) if before != *position && self.is_kept(*request) > 1 => {
                Err(format!("invariant 15: {request} is at {before} and at {position}"))
            }
            None if *replay && self.is_kept(*request) != 1 => {
                Err(format!("invariant 15: {request} is called a repeat at {position}"))
            }
            _ => Ok(()),
        }
    }

    /// How often a request is among the commits that are kept.
    fn is_kept(&self, request: Id) -> usize {
        self.machine.history().filter(|(_, commit)| commit.request == request).count()
    }

    /// The process dies, with what the store was writing written or not, and another begins.
    fn restart(&mut self) {
        if let Some(record) = self.store.append.take().filter(|_| self.rng.one_in(2)) {
            if let Record::Batch(batch) = &record {
                self.heads.push(batch.head.clone());
            }
            self.store.log.push(record);
        }
        let opened = self.store.opened + 1;
        let (mut last, mut frozen) = (None::<Snapshot>, None);
        for record in &self.store.log {
            match record {
                Record::Batch(batch) => {
                    let mut state = last.take().map(|last| last.state).unwrap_or_default();
                    batch.commits.iter().for_each(|commit| state.apply(&commit.changes));
                    if batch.head.prev_rev == 0 {
                        frozen = None;
                    }
                    last = Some(Snapshot { head: batch.head.clone(), state });
                }
                Record::Frozen(head) => frozen = Some(head.clone()),
                _ => {}
            }
        }
        let records = self.store.log.clone();
        let recovered = Recovered { opened, records, last, frozen, ..Recovered::default() };
        let (machine, actions) =
            NsAuthority::new(settings(), Opening::Restored(Box::new(recovered)), Id([1; 16]));
        self.machine = machine;
        let log = std::mem::take(&mut self.store.log);
        self.store = Store { log, opened, compact: actions.iter().any(is_compaction), ..Store::default() };
        self.asked.clear();
    }

    /// Invariants 13 and 15 between the events.
    fn check(&self) -> Result<(), String> {
        let vacant = *self.machine.mode() == Mode::Vacant;
        if vacant && self.machine.durable().is_some() {
            return Err("invariant 13: it is vacant and has a state to show".into());
        }
        let mut seen = BTreeSet::new();
        match self.machine.history().find(|(_, commit)| !seen.insert(commit.request)) {
            Some((at, commit)) => {
                Err(format!("invariant 15: {} is committed twice, last at {at}", commit.request))
            }
            None => Ok(()),
        }
    }
}

fn is_compaction(action: &AuthorityAction) -> bool {
    matches!(action, AuthorityAction::Compact(_))
}

#[test]
fn invariants_06_13_15_hold_and_every_event_meets_every_state_of_an_authority() {
    let mut seen: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let missing = |seen: &BTreeMap<(&str, &str), u64>| -> Vec<(&str, &str)> {
        let all = STATES.iter().flat_map(|state| EVENTS.iter().map(move |event| (*state, *event)));
        all.filter(|(state, event)| never(state, event).is_none() && !seen.contains_key(&(*state, *event)))
            .collect()
    };
    for seed in 0..3_000 {
        if seed >= 200 && missing(&seen).is_empty() {
            break;
        }
        let mut walk = Walk::new(seed);
        for _ in 0..200 {
            let state = walk.state();
            // A store that is old has answers to give as well, and is left soon.
            let names =
                if state == "READONLY old" && walk.rng.one_in(2) { &ANSWERS[..] } else { &EVENTS[..] };
            let name = names[walk.rng.below(names.len())];
            // A store that failed is left by a restart alone; a vacant one is left soon.
            if walk.rng.one_in(if state == "READONLY store" { 8 } else { 100 }) {
                walk.restart();
                continue;
            }
            // What ends much comes seldom.
            let ends = matches!(
                name,
                "init" | "new epoch" | "import" | "HEAD ahead" | "HEAD of a fork" | "not durable"
            );
            if state.starts_with("SERVING") && ends && !walk.rng.one_in(12) {
                continue;
            }
            let Some(event) = walk.event(name) else { continue };
            *seen.entry((state, name)).or_default() += 1;
            let done = walk.step(event).and_then(|()| walk.check());
            assert_eq!(done, Ok(()), "seed {seed}: {state}: {name}");
        }
    }
    let missing = missing(&seen);
    assert!(missing.is_empty(), "never: {missing:?}");
    let impossible: Vec<_> = seen.keys().filter(|(state, event)| never(state, event).is_some()).collect();
    assert!(impossible.is_empty(), "it was thought impossible: {impossible:?}");
}
