//! What must hold, whatever happens: the numbered invariants of the protocol, checked after every event.
//!
//! One looks at one namespace, as if there were no other; of a pipe it knows the bytes of all.
//!
//! The oracle knows every state that was ever durable at a server, every message, and what each node really did.
//! It asks the protocols only for what they claim. The first words of a failure name its invariant.

mod adopted;
pub(crate) mod memory;
mod passage;
mod served;
mod state;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ops::AddAssign;
use std::time::Duration;

use bytes::Bytes;
use spanwire::Message;
use spanwire::protocol::Time;
use spanwire_config::rollout::admits;
use spanwire_config::wire::{Frame, NackCode, Want, WantReason, snapshot_size};
use spanwire_config::{Data, Epoch, Head, Id, Level, Position, State, chain};
use spanwire_testkit::sim::{Link, Net, Passage, Route};

use super::nodes::{BEACON, FRESH, HELLO, Holding, Party, Served, Space};
use super::waits::Waits;
use super::{NAMES, coverage};
use memory::Intake;

/// Un-acknowledged transfers on one pipe.
const FLIGHT: usize = 8;
/// Longest time that a process stands still: it may be that late.
const LATE: Duration = Duration::from_secs(4);

/// What happened, so that a test can see that the mixture reaches what it is meant to test.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) commits: u64,
    pub(crate) published: u64,
    pub(crate) refusals: u64,
    pub(crate) starts: u64,
    pub(crate) links: u64,
    pub(crate) slices: u64,
    pub(crate) tampered: u64,
    pub(crate) digest_failures: u64,
    pub(crate) conflicts: u64,
    pub(crate) stale: u64,
    pub(crate) fail_overs: u64,
    /// Revisions that were for a cohort, and how often one was given to a node.
    pub(crate) rollouts: u64,
    pub(crate) canaries: u64,
    /// Revisions that became another's or everybody's.
    pub(crate) stages: u64,
    /// Answers to WAIT.
    pub(crate) waits: u64,
    /// States that an authority took over from nodes.
    pub(crate) adopted: u64,
    /// Nodes that started with the word of a contradiction.
    pub(crate) contradictions: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, o: Counts) {
        self.commits += o.commits;
        self.published += o.published;
        self.refusals += o.refusals;
        self.starts += o.starts;
        self.links += o.links;
        self.slices += o.slices;
        self.tampered += o.tampered;
        self.digest_failures += o.digest_failures;
        self.conflicts += o.conflicts;
        self.stale += o.stale;
        self.fail_overs += o.fail_overs;
        self.rollouts += o.rollouts;
        self.canaries += o.canaries;
        self.stages += o.stages;
        self.waits += o.waits;
        self.adopted += o.adopted;
        self.contradictions += o.contradictions;
    }
}

/// A position that can be a key: two incarnations are two places.
type Place = (u64, Id, u64);

/// A place in one history.
type Fact = (Place, [u8; 32]);

fn fact(head: &Head) -> Fact {
    (place(&head.position), head.chain)
}

fn place(at: &Position) -> Place {
    (at.epoch.number, at.epoch.incarnation, at.rev)
}

fn above(a: &Position, b: &Position) -> bool {
    a.partial_cmp(b) == Some(std::cmp::Ordering::Greater)
}

/// One connection of a server, from what passed over it.
#[derive(Debug)]
struct Conversation {
    server: usize,
    node: usize,
    opened: Time,
    /// The boot in its HELLO.
    boot: Option<u64>,
    stale: bool,
    wants: bool,
    have: Option<Head>,
    refused: Vec<Position>,
    window: u64,
    sent: u64,
    taken: u64,
    /// Since when bytes are on their way and none was taken.
    since: Option<Time>,
    flight: VecDeque<Position>,
    /// The transfer under way: where it leads and how much of it was sent.
    transfer: Option<(Position, u64)>,
    /// The next slice must start a transfer.
    anew: bool,
    /// What the node said last that it has, for the first step after that.
    holds: Option<Position>,
    /// The highest that it said to have; `None`: it said that what it has is of no use, or of another history.
    reached: Option<Position>,
    /// The epoch in which what it showed contradicts the server's history.
    contradicts: Option<Epoch>,
    /// A snapshot above one window is under way.
    large: Option<Position>,
    /// The queues on the way never fill, so what was put was sent at once.
    exact: bool,
}

/// What a node really did.
#[derive(Clone, Debug, Default)]
struct Truth {
    /// Places that it really reached in this process life, by level.
    reached: [BTreeSet<Fact>; 3],
    /// … and in all before it.
    earlier: [BTreeSet<Fact>; 3],
    /// The last revision that it said was stored.
    acked: Option<Position>,
    shown: Option<Position>,
    given: Option<Position>,
    /// It said that two histories contradict each other, when this epoch was the highest it knew.
    conflict: Option<u64>,
    /// Highest `seq` that arrived, by epoch.
    seqs: BTreeMap<(u64, Id), u64>,
    rose: Option<Time>,
    /// Since when it knows of something newer and neither gets it nor asks for it.
    waits: Option<Time>,
    /// The best place that it was told meanwhile.
    place: Option<u32>,
    /// Pipes that it used: what comes over one in reserve is not looked at.
    asked: BTreeSet<Link>,
    /// When it asked for what is new last.
    asked_at: Time,
    /// Pipes on which a server greeted it, and since when.
    welcomed: BTreeMap<Link, Time>,
    /// Forged HEADs in a row, by pipe.
    forged: BTreeMap<Link, u32>,
    /// What came to it.
    intake: Intake,
    /// What it refused, in all its lives.
    nacked: BTreeSet<(u64, u64)>,
}

/// What a server has on record of a node.
#[derive(Clone, Debug)]
struct Record {
    boot: u64,
    levels: [Option<Position>; 3],
}

/// The oracle.
#[derive(Debug)]
pub(crate) struct Oracle {
    /// The namespace, by number, and its name.
    at: usize,
    name: &'static str,
    pub(crate) counts: Counts,
    pub(crate) routes: Vec<Route>,
    servers: usize,
    lies: bool,
    twin: bool,
    keys: Keys,
    /// HEADs that left a server whose key nodes trust, byte for byte.
    issued: HashSet<[u8; 32]>,
    /// The epoch in which a server was shown, with a signature, that its store is old: since it started.
    frozen: Vec<Option<Epoch>>,
    /// Highest epoch number that nodes showed to each server since it started.
    seen: Vec<u64>,
    /// What each server's store has held.
    lineage: Vec<BTreeSet<Fact>>,
    /// Every state that was durable at a server, by place and chain.
    committed: BTreeMap<(Place, [u8; 32]), (Head, State)>,
    /// Whom each was for, as far as that was durable.
    audiences: BTreeMap<Fact, HashSet<Bytes>>,
    last: Vec<Option<Head>>,
    /// The authority's, as far as it is durable.
    space: Space,
    conversations: BTreeMap<Link, Conversation>,
    truths: Vec<Truth>,
    records: Vec<BTreeMap<Id, Record>>,
    /// Adoptions of each server that were looked at, since it started.
    adopted: Vec<usize>,
    pub(crate) waits: Waits,
    /// Found where no failure could be returned.
    wrong: Option<String>,
    healed: Option<Time>,
    /// Connections when the faults ended, and when the world should have become quiet.
    at_heal: Vec<Link>,
    tail_seen: bool,
    quiet: Option<Vec<Link>>,
    /// Connections that their nodes had cause to leave since.
    pub(crate) in_vain: BTreeSet<Link>,
    known_links: u64,
}

/// Who signs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    /// HEADs are signed, and nodes look at that.
    pub(crate) used: bool,
    /// The second server has a key that nodes do not trust.
    pub(crate) foreign: bool,
}

type Checked = Result<(), String>;

/// What a node does with a namespace; `None` as well if it does not ask for it yet.
fn agent(net: &Net<Party>, node: usize, at: usize) -> Option<Holding<'_>> {
    match net.node(node) {
        Some(Party::Agent(agent)) => agent.holding(at),
        _ => None,
    }
}

fn server(net: &Net<Party>, node: usize, at: usize) -> Option<Served<'_>> {
    match net.node(node) {
        Some(Party::Server(server)) => Some(server.served(at)),
        _ => None,
    }
}

fn durable(net: &Net<Party>, node: usize, at: usize) -> Option<&Space> {
    net.disk(node).map(|disk| &disk.durable().spaces[at])
}

fn print_of(head: &Head) -> [u8; 32] {
    let mut bytes = Vec::new();
    head.encode(&mut bytes);
    *blake3::hash(&bytes).as_bytes()
}

pub(crate) fn decode(message: &Message) -> Option<Frame> {
    Frame::decode(&message.clone().into_bytes()).ok()
}

/// A message in a few words.
pub(crate) fn describe(message: &Message) -> String {
    let heads = |heads: &[Head]| {
        heads.iter().map(|h| format!(" {} {} seq {:x}", h.namespace, h.position, h.seq)).collect::<String>()
    };
    let wants = |wants: &[Want]| {
        let shown = |want: &Want| {
            let refused: Vec<String> = want.refused.iter().map(|(at, _)| at.to_string()).collect();
            format!(" {}: have{} refused {refused:?}", want.namespace, heads(&want.have))
        };
        wants.iter().map(shown).collect::<String>()
    };
    match decode(message) {
        Some(Frame::Hello(h)) => {
            format!("HELLO {:?} boot {:x} attempt {}{}", h.node, h.boot, h.attempt, wants(&h.wants))
        }
        Some(Frame::Welcome(w)) => format!("WELCOME {:?} {:?}", w.server, w.namespaces),
        Some(Frame::Want(reason, w)) => format!("WANT {reason:?}{}", wants(&w)),
        Some(Frame::Slice(s)) => format!(
            "{} {} {} from {:?} at {} + {}{}",
            if s.base.is_some() { "DELTA" } else { "SNAPSHOT" },
            s.head.namespace,
            s.head.position,
            s.base.map(|base| base.position.rev),
            s.offset,
            s.bytes.len(),
            if s.last { " last" } else { "" }
        ),
        Some(Frame::Beacon(h)) => format!("BEACON{}", heads(&h)),
        Some(Frame::Credit(taken)) => format!("CREDIT {taken}"),
        Some(Frame::Ack(a)) => {
            format!(
                "ACK {} {} {:?} {:?}{}",
                a.namespace,
                a.position,
                a.mark,
                a.level,
                if a.volatile { " volatile" } else { "" }
            )
        }
        Some(Frame::Nack(n)) => {
            format!("NACK {} {} {:?} {:?} stays at {}", n.namespace, n.position, n.mark, n.code, n.stays_at)
        }
        Some(Frame::Goodbye(g)) => format!("GOODBYE {:?}", g.code),
        other => format!("{other:?}"),
    }
}

impl Oracle {
    pub(crate) fn new(
        at: usize,
        servers: usize,
        routes: &[Route],
        lies: bool,
        twin: bool,
        keys: Keys,
    ) -> Oracle {
        let nodes = routes.iter().map(|route| route.from + 1).max().unwrap_or(servers);
        Oracle {
            at,
            name: NAMES[at],
            counts: Counts::default(),
            routes: routes.to_vec(),
            servers,
            lies,
            twin,
            keys,
            issued: HashSet::new(),
            frozen: vec![None; servers],
            seen: vec![0; servers],
            lineage: vec![BTreeSet::new(); servers],
            committed: BTreeMap::new(),
            audiences: BTreeMap::new(),
            last: vec![None; servers],
            space: Space::default(),
            conversations: BTreeMap::new(),
            truths: vec![Truth::default(); nodes],
            records: vec![BTreeMap::new(); servers],
            adopted: vec![0; servers],
            waits: Waits::default(),
            wrong: None,
            healed: None,
            at_heal: Vec::new(),
            tail_seen: false,
            quiet: None,
            in_vain: BTreeSet::new(),
            known_links: 0,
        }
    }

    pub(crate) fn highest_epoch(&self) -> u64 {
        self.committed.keys().map(|((number, ..), _)| *number).max().unwrap_or(0)
    }

    /// What the authority has, as far as it is durable.
    pub(crate) fn authority_space(&self) -> &Space {
        &self.space
    }

    pub(crate) fn store_lost(&mut self, space: Space) {
        self.space = space;
        self.last[0] = None;
        self.lineage[0].clear();
    }

    /// A server's store is a copy of the authority's.
    pub(crate) fn store_copied(&mut self, server: usize) {
        self.lineage[server] = self.lineage[0].clone();
    }

    pub(crate) fn folder_put_back(&mut self, node: usize) {
        self.truths[node].acked = None;
        self.counts.stale += 1;
    }

    /// Invariant 4.
    pub(crate) fn node_starts(&mut self, node: usize, folder: &Space) {
        self.counts.starts += 1;
        let found = folder.history.as_ref().map(|(head, _)| head.position);
        let truth = &mut self.truths[node];
        if let Some(acked) = truth.acked
            && found.is_none_or(|found| !matches!(acked.partial_cmp(&found), Some(o) if o.is_le()))
        {
            self.wrong =
                Some(format!("invariant 4: node {node} said {acked} is stored, and found {found:?}"));
        }
        truth.shown = found;
        // Invariant 12, over restarts too.
        let contradicts = folder.contradiction().is_some();
        truth.conflict = contradicts.then(|| found.map_or(0, |found| found.epoch.number));
        self.counts.contradictions += u64::from(contradicts);
    }

    pub(crate) fn server_starts(&mut self, server: usize) {
        self.counts.starts += 1;
        self.records[server].clear();
        self.adopted[server] = 0;
        self.seen[server] = 0;
        self.frozen[server] = None;
    }

    /// Highest epoch number that nodes showed to this server since it started.
    pub(crate) fn seen(&self, server: usize) -> u64 {
        self.seen[server]
    }

    pub(crate) fn died(&mut self, node: usize) {
        let old = std::mem::take(&mut self.truths[node]);
        let mut earlier = old.earlier;
        earlier.iter_mut().zip(old.reached).for_each(|(earlier, mut reached)| earlier.append(&mut reached));
        self.truths[node] = Truth { earlier, acked: old.acked, nacked: old.nacked, ..Truth::default() };
        self.waits.died(node);
    }

    pub(crate) fn healed(&mut self, net: &Net<Party>) {
        self.healed = Some(net.now());
        if self.lies || net.links().any(|view| view.frozen) {
            // What was lost is found out by T_stall, and again on the next pipe. A half-open pipe's slot is held
            // as long, and who waits for one may leave.
            self.quiet = Some(Vec::new());
        }
        let wanted = |link: &Link| self.conversations.get(link).is_some_and(|talk| talk.wants);
        self.at_heal = net.links().filter(|view| !view.frozen).map(|view| view.link).filter(wanted).collect();
    }

    /// Takes note of what a server has on disk. Invariant 7, and that revisions rise.
    pub(crate) fn learn(&mut self, net: &Net<Party>, server: usize) -> Checked {
        let Some((head, state)) = durable(net, server, self.at).and_then(|space| space.history.as_ref())
        else {
            return Ok(());
        };
        if self.last[server].as_ref().is_some_and(|last| last == head) {
            return Ok(());
        }
        let audiences = self.audiences.entry(fact(head)).or_default();
        if audiences.insert(head.audience.clone()) && audiences.len() > 1 {
            self.counts.stages += 1;
            // What is on its way under the old one is taken back.
            let talks = self.conversations.values_mut().filter(|talk| talk.server == server);
            talks.for_each(|talk| talk.large = talk.large.filter(|large| *large != head.position));
        }
        if self.last[server].as_ref().is_some_and(|last| last.shown() == head.shown()) {
            self.last[server] = Some(head.clone());
            self.copy(net, server);
            return Ok(());
        }
        if self.frozen[server] == Some(head.position.epoch) && !self.lineage[server].contains(&fact(head)) {
            return Err(format!(
                "invariant 7: {} is committed in a store that was shown as old",
                head.position
            ));
        }
        self.lineage[server].insert(fact(head));
        let at = place(&head.position);
        let known = self.committed.range((at, [0; 32])..=(at, [0xff; 32])).next();
        if let Some(((_, other), _)) = known
            && *other != head.chain
            && !self.twin
        {
            return Err(format!("invariant 7: two histories at {}", head.position));
        }
        let copied = self.committed.contains_key(&(at, head.chain));
        if let Some(last) = &self.last[server]
            && !copied
        {
            if head.position.rev <= last.position.rev {
                return Err(format!("invariant 7: revision {} after {}", head.position, last.position));
            }
            let same = head.position.epoch == last.position.epoch;
            let (prev, before) = if same { (last.position.rev, last.chain) } else { (0, [0; 32]) };
            if head.prev_rev != prev || head.chain != chain(&before, head.position.rev, &head.digest) {
                return Err(format!("invariant 7: {} does not follow {}", head.position, last.position));
            }
        }
        for talk in self.conversations.values().filter(|talk| talk.server == server) {
            coverage::note(coverage::SESSION, talk.state(), "a commit");
        }
        if !copied {
            self.counts.commits += 1;
            self.committed.insert((at, head.chain), (head.clone(), state.clone()));
        }
        self.last[server] = Some(head.clone());
        self.copy(net, server);
        Ok(())
    }

    fn copy(&mut self, net: &Net<Party>, server: usize) {
        if let Some(space) = durable(net, 0, self.at).filter(|_| server == 0) {
            self.space = space.clone();
        }
    }

    fn is_mine(&self, head: &Head) -> bool {
        head.namespace == self.name
    }

    /// What a message asks for.
    fn want_in<'f>(&self, frame: &'f Frame) -> Option<&'f Want> {
        let wants = match frame {
            Frame::Hello(hello) => &hello.wants,
            Frame::Want(_, wants) => wants,
            _ => return None,
        };
        wants.iter().find(|want| want.namespace == self.name)
    }

    /// Whether a node may believe a HEAD: one that left a server whose key it trusts, as it was.
    fn is_true(&self, head: &Head) -> bool {
        !self.keys.used || self.issued.contains(&print_of(head))
    }

    fn find(&self, head: &Head) -> Option<&(Head, State)> {
        self.committed.get(&(place(&head.position), head.chain))
    }

    pub(crate) fn passed(&mut self, net: &Net<Party>, passage: &Passage<'_>, frame: &Frame) -> Checked {
        let Passage { link, from, to, arrived, .. } = *passage;
        match (from < self.servers, arrived) {
            (true, false) => self.server_sent(net, link, from, to, frame),
            (true, true) => self.node_got(net, link, to, frame),
            (false, false) => {
                if self.want_in(frame).is_some() {
                    let truth = &mut self.truths[from];
                    truth.asked.insert(link);
                    (truth.waits, truth.asked_at) = (None, net.now());
                    if let Some(node) = agent(net, from, self.at) {
                        truth.intake.asked(node.replica());
                    }
                }
                self.node_sent(from, frame)
            }
            (false, true) => self.server_got(net, link, to, from, frame),
        }
    }

    pub(crate) fn check(&mut self, net: &Net<Party>, node: Option<usize>) -> Checked {
        if let Some(wrong) = self.wrong.take() {
            return Err(wrong);
        }
        match node {
            Some(server) if server < self.servers => {
                self.learn(net, server)?;
                self.check_server(net, server)?;
            }
            Some(node) => self.check_node(net, node)?,
            None => (0..self.servers).try_for_each(|server| {
                self.learn(net, server)?;
                // What people do at a server is answered at once.
                self.check_waits(net, server, false)
            })?,
        }
        if let Some(healed) = self.healed {
            let since = net.now().saturating_since(healed);
            if since > BEACON * 3 && !std::mem::replace(&mut self.tail_seen, true) {
                self.check_tail(net)?;
            }
            if since > Duration::from_secs(8) && self.quiet.is_none() {
                self.quiet = Some(net.links().filter(|view| !view.frozen).map(|view| view.link).collect());
            }
        }
        Ok(())
    }

    /// Invariant 23, and that reports, freshness and connections have come to rest.
    pub(crate) fn settled(&self, net: &Net<Party>, left: &BTreeSet<Link>) -> Checked {
        let at_rest = |s: usize| server(net, s, self.at).map(|server| server.namespace());
        let Some(head) = at_rest(0).and_then(|protocol| protocol.head()) else {
            return Err("invariant 23: the authority has no head".into());
        };
        for n in self.servers..net.len() {
            let Some(node) = agent(net, n, self.at) else { return Err(format!("model: node {n} is down")) };
            let status = node.status(net.now());
            if node.settings().limits.check(head.keys, head.bytes).is_err() {
                if !matches!(status.data, Data::Held | Data::Conflict) {
                    return Err(format!("invariant 23: node {n} cannot hold the head: {status:?}"));
                }
                continue;
            }
            let shown = node.shown.as_ref().map(|(head, _)| head.position);
            if shown != Some(head.position) {
                return Err(format!(
                    "invariant 23: node {n} ends at {shown:?}, not {}: {status:?}",
                    head.position
                ));
            }
            if let Some((head, state)) = &node.shown
                && (state.recompute(), state.digest()) != (head.digest, head.digest)
            {
                return Err(format!("invariant 2: what node {n} shows has changed since"));
            }
            let records: Vec<_> = (0..self.servers)
                .filter_map(at_rest)
                .flat_map(|protocol| protocol.status())
                .filter(|record| record.node == node.settings().node)
                .collect();
            for level in [Level::Stored, Level::Visible, Level::Applied] {
                if !records.iter().any(|record| record.at(level) == Some(head.position)) {
                    return Err(format!(
                        "invariant 14: nobody knows that node {n} reached {level:?}: {records:?}"
                    ));
                }
            }
            if !records.iter().any(|record| record.connected) {
                return Err(format!("invariant 23: node {n} is connected to nobody"));
            }
            // A mirror's seq may be below what a node saw, for ever: its freshness is not promised.
            if self.servers == 1 && !status.fresh {
                return Err(format!("invariant 18: node {n} is connected and not fresh"));
            }
        }
        for link in self.quiet.iter().flatten().filter(|link| !left.contains(link)) {
            if !net.link(*link).is_some_and(|view| view.dialer.1 && view.listener.1) {
                return Err(format!("rest: {link:?} ended although nothing was wrong with it"));
            }
        }
        match self.committed.values().find(|(head, state)| state.recompute() != head.digest) {
            Some((head, _)) => Err(format!("invariant 2: the pinned state of {} changed", head.position)),
            None => Ok(()),
        }
    }
}
