//! What must hold in the small world, and what is known of it that no node knows.

use std::collections::{BTreeMap, BTreeSet};

use spanwire::Message;
use spanwire_config::source::Record;
use spanwire_config::wire::Frame;
use spanwire_config::{Answer, Head, Level, Position, State};

use super::nodes::{Disk, Node, id};

/// What a node did, over all of its lives; revisions of the one epoch that there is.
#[derive(Clone, Default, Debug)]
struct Truth {
    reached: [BTreeSet<u64>; 3],
    /// It said that this is stored.
    acked: u64,
    /// What its readers see, in this life.
    shown: u64,
    refused: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Oracle {
    /// What was durable at the authority.
    durable: BTreeMap<u64, (Head, State)>,
    /// Revisions that are for all; the others were or are for a cohort, which is the last replica.
    for_all: BTreeSet<u64>,
    state: State,
    truths: Vec<Truth>,
    /// Commits that were asked for: not answered yet, lost with the process that was asked, or where they are.
    requests: BTreeMap<u8, Asked>,
    /// Revisions that requests were given in the log.
    made: BTreeMap<u8, u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Waits,
    Lost,
    Told(u64),
}

type Checked = Result<(), String>;

impl Oracle {
    pub(crate) fn new(nodes: usize) -> Oracle {
        Oracle {
            durable: BTreeMap::new(),
            for_all: BTreeSet::new(),
            state: State::new(),
            truths: vec![Truth::default(); nodes],
            requests: BTreeMap::new(),
            made: BTreeMap::new(),
        }
    }

    pub(crate) fn asked(&mut self, number: u8) {
        self.requests.insert(number, Asked::Waits);
    }

    /// Something is durable.
    pub(crate) fn has_begun(&self) -> bool {
        !self.durable.is_empty()
    }

    /// Who was asked died without an answer: it is asked again.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = u8> {
        self.requests.iter().filter(|(_, asked)| **asked == Asked::Lost).map(|(number, _)| *number)
    }

    pub(crate) fn durable(&mut self, record: &Record) {
        let batch = match record {
            Record::Batch(batch) => batch,
            Record::Mark(mark) => {
                self.for_all.extend(mark.passed.then_some(mark.at.rev));
                return;
            }
            _ => return,
        };
        for commit in &batch.commits {
            self.state.apply(&commit.changes);
            // The others are what aborts made.
            if let number @ 0..0x20 = commit.request.0[0].wrapping_sub(0xc0) {
                self.made.insert(number, commit.rev);
            }
        }
        self.for_all.extend(batch.head.audience.is_empty().then_some(batch.head.position.rev));
        self.durable.insert(batch.head.position.rev, (batch.head.clone(), self.state.clone()));
    }

    pub(crate) fn refused(&mut self, node: usize, at: Option<Position>) {
        self.truths[node].refused.extend(at.map(|at| at.rev));
    }

    pub(crate) fn died(&mut self, node: usize) {
        self.truths[node].refused.clear();
        if node == 0 {
            self.requests
                .values_mut()
                .filter(|asked| **asked == Asked::Waits)
                .for_each(|asked| *asked = Asked::Lost);
        }
    }

    /// Invariant 4.
    pub(crate) fn starts(&mut self, node: usize, disk: &Disk) -> Checked {
        let found = disk.kept.as_ref().map_or(0, |(head, _)| head.position.rev);
        let truth = &mut self.truths[node];
        if found < truth.acked {
            return Err(format!(
                "invariant 4: node {node} said {} is stored, and found {found}",
                truth.acked
            ));
        }
        truth.shown = found;
        Ok(())
    }

    fn committed(&self, head: &Head) -> Option<&State> {
        let (known, state) = self.durable.get(&head.position.rev)?;
        let same = (known.position, known.chain, known.digest, known.prev_rev)
            == (head.position, head.chain, head.digest, head.prev_rev);
        let durable = !head.audience.is_empty() || self.for_all.contains(&head.position.rev);
        (same && durable).then_some(state)
    }

    /// Invariants 6 and 7: what a server shows is durable, and as it was committed. Invariant 14 begins here.
    pub(crate) fn sent(&mut self, node: usize, message: &Message) -> Checked {
        let Ok(frame) = Frame::decode(&message.clone().into_bytes()) else {
            return Err(format!("wire: node {node} says what cannot be read"));
        };
        let heads = match &frame {
            Frame::Beacon(heads) => heads.clone(),
            Frame::Slice(slice) => vec![slice.head.clone()],
            Frame::Ack(ack) => {
                let (truth, at) = (&mut self.truths[node], ack.position.rev);
                let first = if ack.volatile { Level::Visible } else { Level::Stored };
                let claims = [Level::Stored, Level::Visible, Level::Applied].into_iter().zip(&truth.reached);
                let claimed = |level: Level| (first..=ack.level).contains(&level);
                if let Some((level, _)) = claims.filter(|(l, _)| claimed(*l)).find(|(_, r)| !r.contains(&at))
                {
                    return Err(format!("invariant 14: node {node} says {level:?} of {at} and is not there"));
                }
                truth.acked = truth.acked.max(if ack.volatile { 0 } else { at });
                Vec::new()
            }
            _ => Vec::new(),
        };
        match heads.iter().find(|head| self.committed(head).is_none()) {
            Some(head) => {
                Err(format!("invariant 6: node {node} shows {}, which is not durable", head.position))
            }
            None => Ok(()),
        }
    }

    /// After each step of a node.
    pub(crate) fn check(&mut self, n: usize, node: &mut Node, disk: &Disk) -> Checked {
        let kept = disk.kept.as_ref().map(|(head, _)| head.position.rev);
        self.truths[n].reached[0].extend(kept);
        match node {
            Node::Server(server) => {
                for (number, answer) in std::mem::take(&mut server.answers) {
                    self.answered(number as u8, &answer)?;
                }
                for status in server.talk.script.protocol.status() {
                    let who = usize::from(status.node.0[0]) - 1;
                    for (level, reached) in [Level::Stored, Level::Visible, Level::Applied]
                        .into_iter()
                        .zip(&self.truths[who].reached)
                    {
                        if let Some(at) = status.at(level).filter(|at| !reached.contains(&at.rev)) {
                            return Err(format!("invariant 14: node {who} never reached {level:?} at {at}"));
                        }
                    }
                }
                Ok(())
            }
            Node::Relay(relay) => {
                let held = relay.machine.held().map(|(head, _)| head.position.rev);
                self.truths[n].reached[1].extend(held);
                Ok(())
            }
            Node::Agent(agent) => {
                let Some((head, state)) = &agent.shown else { return Ok(()) };
                let rev = head.position.rev;
                if self.committed(head) != Some(state) {
                    return Err(format!("invariant 1: node {n} shows another {}", head.position));
                }
                let last = n + 1 == self.truths.len();
                let truth = &mut self.truths[n];
                if !last && truth.shown != rev && !head.audience.is_empty() {
                    return Err(format!("invariant 11: node {n} shows {rev}, which is for another"));
                }
                if rev < truth.shown {
                    return Err(format!("invariant 3: node {n} goes from {} to {rev}", truth.shown));
                }
                if truth.refused.contains(&rev) {
                    return Err(format!("invariant 10: node {n} shows {rev}, which it refused"));
                }
                truth.shown = rev;
                truth.reached[1].insert(rev);
                if agent.applied {
                    truth.reached[2].insert(rev);
                }
                Ok(())
            }
        }
    }

    /// Invariant 15: one request is one commit, and has one answer.
    fn answered(&mut self, number: u8, answer: &Answer) -> Checked {
        let Answer::Committed { position, .. } = answer else {
            return Err(format!("invariant 15: the answer to {number} is {answer:?}"));
        };
        if self.made.get(&number) != Some(&position.rev) {
            return Err(format!("invariant 15: {number} is said to be {position}, and is {:?}", self.made));
        }
        let before = self.requests.insert(number, Asked::Told(position.rev));
        match before {
            Some(Asked::Told(rev)) if rev != position.rev => {
                Err(format!("invariant 15: {number} is at {rev} and at {}", position.rev))
            }
            _ => Ok(()),
        }
    }

    /// Invariant 23, and that the authority knows it.
    pub(crate) fn at_rest(&self, nodes: &[&Node], relay: bool) -> Checked {
        let newest_of = |n: usize| match n + 1 == self.truths.len() {
            true => self.durable.keys().next_back().copied().unwrap_or(0),
            false => self.for_all.iter().next_back().copied().unwrap_or(0),
        };
        if let Some((number, asked)) =
            self.requests.iter().find(|(_, asked)| !matches!(asked, Asked::Told(_)))
        {
            return Err(format!("invariant 15: request {number} ends as {asked:?}"));
        }
        let revisions: BTreeSet<u64> = self.made.values().copied().collect();
        if revisions.len() != self.made.len() || self.made.len() != self.requests.len() {
            return Err(format!("invariant 15: requests {:?} became {:?}", self.requests, self.made));
        }
        let Some(Node::Server(server)) = nodes.first() else { return Err("model: no authority".into()) };
        let table = server.talk.script.protocol.status();
        for (n, node) in nodes.iter().enumerate().skip(1 + usize::from(relay)) {
            let Node::Agent(agent) = node else { return Err("model: no replica".into()) };
            let newest = newest_of(n);
            let shown = agent.shown.as_ref().map_or(0, |(head, _)| head.position.rev);
            if shown != newest && !self.truths[n].refused.contains(&newest) {
                let status = agent.talk.script.protocol.status(agent.talk.script.now());
                return Err(format!("invariant 23: node {n} ends at {shown}, not {newest}: {status:?}"));
            }
            let known = table.iter().find(|known| known.node == id(n));
            let Some(known) = known else { return Err(format!("report: node {n} is not known")) };
            if known.applied.map_or(0, |at| at.rev) != shown || !known.connected {
                return Err(format!("report: node {n} is at {shown}, and known as {known:?}"));
            }
        }
        Ok(())
    }

    /// All on which a later check depends.
    pub(crate) fn write_to(&self, out: &mut impl std::fmt::Write) -> std::fmt::Result {
        write!(out, "{:?}{:?}{:?}{:?}", self.truths, self.requests, self.made, self.for_all)
    }
}
