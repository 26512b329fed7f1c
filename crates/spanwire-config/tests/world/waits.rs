//! Who waits at a server for nodes to reach a position (WAIT), and what must be true of the answers: invariant 17.
//!
//! `Desk` is what a server does about it, with the shipped rules; `Waits` is the oracle's part: it selects by itself when
//! a wait begins, and compares the answer with that and with what the nodes really did.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use spanwire::protocol::Time;
use spanwire_config::rollout::admits;
use spanwire_config::wait::{Goal, Look, Outcome, Wait};
use spanwire_config::wire::client::{Named, Refusing, WaitAsk, Waited};
use spanwire_config::{Id, NackCode, Namespace, NodeKind, NodeStatus, NsAuthority, Place, Position};

/// Longer than a process stands still.
const LATE: Duration = Duration::from_secs(4);

/// The waits of one process.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    open: Vec<(u64, Time, Wait)>,
    ended: Vec<(u64, Outcome)>,
    asked: u64,
    /// One that ended before its time while who was in conflict was away. Seen when it looked: a liar's next message may
    /// come in the same event and end that node's pipe.
    hasty: Option<u64>,
    /// When it last looked; a message that is lost on its last step comes to no process.
    pub(crate) looked: Time,
}

impl Desk {
    /// Begins a wait; its number.
    pub(crate) fn ask(
        &mut self,
        machine: &NsAuthority,
        sender: &Namespace,
        ask: &WaitAsk,
        until: Time,
    ) -> u64 {
        self.asked += 1;
        match Goal::of(machine, ask) {
            Ok(goal) => {
                self.open.push((self.asked, until, Wait::new(&goal, &ask.selector, &sender.status())))
            }
            Err(outcome) => self.ended.push((self.asked, outcome)),
        }
        self.asked
    }

    /// Ends what is to end; when the next has to.
    pub(crate) fn look(&mut self, machine: &NsAuthority, sender: &Namespace, now: Time) -> Option<Time> {
        self.looked = now;
        if self.open.is_empty() {
            return None;
        }
        let status = sender.status();
        for (number, until, wait) in std::mem::take(&mut self.open) {
            let mut look = (wait.look(sender, &status, now >= until), wait);
            if look.0 == Look::Settled {
                look = match look.1.settle(machine) {
                    Ok(wait) => (wait.look(sender, &status, now >= until), wait),
                    Err(outcome) => (Look::Ended(outcome), look.1),
                };
            }
            let here = |named: &Named| status.iter().any(|node| node.node == named.node && node.connected);
            let conflict = |refusing: &Refusing| refusing.code == NackCode::Conflict;
            match look {
                (Look::Ended(outcome), _) => {
                    if let Outcome::Waited(waited) = &outcome
                        && now < until
                        && waited.refused.iter().any(|refusing| conflict(refusing) && !here(&refusing.node))
                    {
                        self.hasty = Some(number);
                    }
                    self.ended.push((number, outcome));
                }
                (_, wait) => self.open.push((number, until, wait)),
            }
        }
        self.open.iter().map(|(_, until, _)| *until).min()
    }

    /// What ended, oldest first.
    pub(crate) fn ended(&self) -> impl Iterator<Item = &(u64, Outcome)> {
        self.ended.iter()
    }
}

/// What an answer is compared with.
#[derive(Debug)]
struct Expected {
    ask: WaitAsk,
    until: Time,
    /// Nodes, and names that none has, in no order.
    selected: BTreeSet<(Id, String)>,
    unknown: BTreeSet<String>,
    /// The newest position when it began.
    head: Option<Position>,
}

/// What the oracle knows of the world when a wait ends.
pub(crate) struct Facts<'f> {
    pub(crate) now: Time,
    /// When the server last looked.
    pub(crate) looked: Time,
    /// The newest position of the server.
    pub(crate) head: Option<Position>,
    pub(crate) status: &'f [NodeStatus],
    /// Whether this node ever reached a position at a level that is at least that of the question.
    pub(crate) reached: &'f dyn Fn(Id, &WaitAsk) -> bool,
    /// Whether this node ever refused what is at this place.
    pub(crate) refused: &'f dyn Fn(Id, Place) -> bool,
    /// Whether what is at this place was for a cohort, and never for all.
    pub(crate) for_some: &'f dyn Fn(Place) -> bool,
}

/// The oracle of all waits.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// By server and number, in its present life.
    open: BTreeMap<(usize, u64), Expected>,
    seen: BTreeMap<usize, usize>,
    pub(crate) answers: u64,
}

impl Waits {
    /// One begins. `audience`: for whom the position is, while its rollout is open.
    pub(crate) fn begins(
        &mut self,
        (server, number): (usize, u64),
        ask: WaitAsk,
        until: Time,
        known: &[NodeStatus],
        (head, audience): (Option<Position>, Option<Bytes>),
    ) {
        let named =
            |node: &NodeStatus| ask.selector.names.is_empty() || ask.selector.names.contains(&node.name);
        let labelled = |node: &NodeStatus| ask.selector.labels.iter().all(|pair| node.labels.contains(pair));
        let meant = |node: &NodeStatus| audience.as_ref().is_none_or(|a| admits(a, node.node, &node.labels));
        let replicas = known.iter().filter(|node| node.kind == NodeKind::Replica);
        let selected = replicas.filter(|node| named(node) && labelled(node) && meant(node));
        let selected = selected.map(|node| (node.node, node.name.clone())).collect();
        let names: BTreeSet<&String> = known.iter().map(|node| &node.name).collect();
        let unknown = ask.selector.names.iter().filter(|name| !names.contains(name)).cloned().collect();
        self.open.insert((server, number), Expected { ask, until, selected, unknown, head });
    }

    /// A process dies: who asked it hears nothing, and asks again.
    pub(crate) fn died(&mut self, server: usize) {
        self.open.retain(|(of, _), _| *of != server);
        self.seen.remove(&server);
    }

    /// Whether one has ended that was not looked at.
    pub(crate) fn has_news(&self, server: usize, desk: &Desk) -> bool {
        desk.ended.len() > self.seen.get(&server).copied().unwrap_or(0)
    }

    /// What was answered since.
    pub(crate) fn check_answers(
        &mut self,
        server: usize,
        desk: &Desk,
        facts: &Facts<'_>,
    ) -> Result<(), String> {
        if let Some(number) = desk.hasty {
            return Err(format!("invariant 17: wait {number} ends, and who is in conflict may come back"));
        }
        let seen = self.seen.entry(server).or_default();
        for (number, outcome) in desk.ended().skip(std::mem::replace(seen, desk.ended.len())) {
            let Some(expected) = self.open.remove(&(server, *number)) else {
                return Err(format!("invariant 17: wait {number} ends twice: {outcome:?}"));
            };
            self.answers += 1;
            if let Some(wrong) = expected.wrong(outcome, facts) {
                return Err(format!("invariant 17: {wrong}: {:?} is answered by {outcome:?}", expected.ask));
            }
        }
        Ok(())
    }

    /// After an event of a server: whoever is to be answered was.
    pub(crate) fn check_open(&self, server: usize, facts: &Facts<'_>) -> Result<(), String> {
        let mine = self.open.range((server, 0)..=(server, u64::MAX));
        match mine.map(|(_, expected)| expected).find(|expected| expected.is_due(facts)) {
            Some(expected) => Err(format!("invariant 17: no answer to {:?}", expected.ask)),
            None => Ok(()),
        }
    }
}

impl Expected {
    fn is_due(&self, facts: &Facts<'_>) -> bool {
        let late = facts.now.saturating_since(self.until) > LATE;
        facts.looked >= self.until
            || late
            || facts.head.is_some_and(|head| head.epoch.number > self.ask.position.epoch)
    }

    fn wrong(&self, outcome: &Outcome, facts: &Facts<'_>) -> Option<String> {
        let at = self.ask.position;
        let fine = match outcome {
            Outcome::Waited(waited) => return self.wrong_lists(waited, facts),
            Outcome::Lost(_) => facts.head.is_some_and(|head| head.epoch.number > at.epoch),
            Outcome::NoSuch => at.rev == 0 || self.head.is_none_or(|head| at > head.into()),
            Outcome::Aborted => (facts.for_some)(at) && facts.head.map(Place::from) != Some(at),
        };
        (!fine).then(|| "another outcome".to_owned())
    }

    fn wrong_lists(&self, waited: &Waited, facts: &Facts<'_>) -> Option<String> {
        let refused = || waited.refused.iter().map(|refusing| &refusing.node);
        let all = waited.ok.iter().chain(refused()).chain(&waited.behind).chain(&waited.silent);
        let (mut nodes, mut unknown) = (BTreeSet::new(), BTreeSet::new());
        for named in all {
            let new = match named.node == Id::default() {
                true => unknown.insert(named.name.clone()),
                false => nodes.insert((named.node, named.name.clone())),
            };
            if !new {
                return Some(format!("{named:?} is in two lists"));
            }
        }
        if (&nodes, &unknown) != (&self.selected, &self.unknown) {
            return Some(format!("{:?} and {:?} were selected", self.selected, self.unknown));
        }
        let open = waited.behind.iter().chain(&waited.silent).filter(|named| named.node != Id::default());
        if facts.now < self.until && open.clone().count() > 0 {
            return Some("it ends before its time, and somebody may still reach it".to_owned());
        }
        let known = |named: &Named| facts.status.iter().find(|node| node.node == named.node);
        let place = |at: Position| Place::from(at);
        let has =
            |node: &NodeStatus| node.at(self.ask.level).is_some_and(|has| place(has) >= self.ask.position);
        if let Some(named) =
            open.clone().find(|named| known(named).is_some_and(|node| has(node) && !node.conflict))
        {
            return Some(format!("{named:?} has reached it"));
        }
        let away = |named: &&Named| known(named).is_none_or(|node| !node.connected);
        if let Some(named) = waited.behind.iter().find(away) {
            return Some(format!("{named:?} is not here"));
        }
        let mut silent = waited.silent.iter().filter(|named| named.node != Id::default());
        if let Some(named) = silent.find(|named| !away(named)) {
            return Some(format!("{named:?} is here"));
        }
        let mut open = open.filter_map(|named| known(named).map(|node| (named, node)));
        // In this history: of another with the same number it says nothing.
        let here = |at: &Position| {
            self.head.is_some_and(|head| at.epoch == head.epoch || head.epoch.number < at.epoch.number)
        };
        let refuses = |node: &NodeStatus| {
            node.refused.iter().any(|(at, ..)| here(at) && place(*at) >= self.ask.position)
        };
        if let Some((named, _)) = open.find(|(_, node)| node.conflict || refuses(node)) {
            return Some(format!("{named:?} said that it will not"));
        }
        if let Some(named) = waited.ok.iter().find(|named| !(facts.reached)(named.node, &self.ask)) {
            return Some(format!("{named:?} never reached it"));
        }
        let mut refusals = waited.refused.iter().filter(|refusing| refusing.code != NackCode::Conflict);
        let never =
            refusals.find(|r| r.position < self.ask.position || !(facts.refused)(r.node.node, r.position));
        never.map(|refusing| format!("{refusing:?} is no refusal of it"))
    }
}
