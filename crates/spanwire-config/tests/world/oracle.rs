//! What must hold, whatever happens: the numbered invariants of the protocol, checked after every event.
//!
//! The oracle knows every state that was ever durable at a server, every message, and what each node really did.
//! It asks the protocols only for what they claim. The first words of a failure name its invariant.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::AddAssign;
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::{Protocol, Time};
use spanwire_config::wire::{Frame, NackCode, Want, WantReason, snapshot_size};
use spanwire_config::{Data, Epoch, Head, Id, Level, Position, State, chain};
use spanwire_testkit::sim::{Link, Net, Passage, Route};

use super::nodes::{Agent, BEACON, FRESH, Folder, HELLO, Party, Server};

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
    /// Pipes that it used: what comes over one in reserve is not looked at.
    asked: BTreeSet<Link>,
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
    pub(crate) counts: Counts,
    pub(crate) routes: Vec<Route>,
    servers: usize,
    lies: bool,
    twin: bool,
    /// Highest epoch number that nodes showed to each server since it started.
    seen: Vec<u64>,
    /// What each server's store has held.
    lineage: Vec<BTreeSet<Fact>>,
    /// Every state that was durable at a server, by place and chain.
    committed: BTreeMap<(Place, [u8; 32]), (Head, State)>,
    last: Vec<Option<Head>>,
    folder: Folder,
    conversations: BTreeMap<Link, Conversation>,
    truths: Vec<Truth>,
    records: Vec<BTreeMap<Id, Record>>,
    /// Found where no failure could be returned.
    wrong: Option<String>,
    healed: Option<Time>,
    /// Connections when the faults ended, and when the world should have become quiet.
    at_heal: Vec<Link>,
    tail_seen: bool,
    quiet: Option<Vec<Link>>,
    known_links: u64,
}

type Checked = Result<(), String>;

fn agent(net: &Net<Party>, node: usize) -> Option<&Agent> {
    match net.node(node) {
        Some(Party::Agent(agent)) => Some(agent),
        _ => None,
    }
}

fn server(net: &Net<Party>, node: usize) -> Option<&Server> {
    match net.node(node) {
        Some(Party::Server(server)) => Some(server),
        _ => None,
    }
}

fn decode(message: &Message) -> Option<Frame> {
    Frame::decode(&message.clone().into_bytes()).ok()
}

/// A message in a few words.
pub(crate) fn describe(message: &Message) -> String {
    let heads =
        |heads: &[Head]| heads.iter().map(|h| format!(" {} seq {:x}", h.position, h.seq)).collect::<String>();
    let wants = |wants: &[Want]| {
        let shown = |want: &Want| {
            let refused: Vec<String> = want.refused.iter().map(|(at, _)| at.to_string()).collect();
            format!(" have{} refused {refused:?}", heads(&want.have))
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
            "{} {} from {:?} at {} + {}{}",
            if s.base.is_some() { "DELTA" } else { "SNAPSHOT" },
            s.head.position,
            s.base.map(|base| base.position.rev),
            s.offset,
            s.bytes.len(),
            if s.last { " last" } else { "" }
        ),
        Some(Frame::Beacon(h)) => format!("BEACON{}", heads(&h)),
        Some(Frame::Credit(taken)) => format!("CREDIT {taken}"),
        Some(Frame::Ack(a)) => {
            format!("ACK {} {:?}{}", a.position, a.level, if a.volatile { " volatile" } else { "" })
        }
        Some(Frame::Nack(n)) => format!("NACK {} {:?} stays at {}", n.position, n.code, n.stays_at),
        Some(Frame::Goodbye(g)) => format!("GOODBYE {:?}", g.code),
        other => format!("{other:?}"),
    }
}

impl Oracle {
    pub(crate) fn new(servers: usize, routes: &[Route], lies: bool, twin: bool) -> Oracle {
        let nodes = routes.iter().map(|route| route.from + 1).max().unwrap_or(servers);
        Oracle {
            counts: Counts::default(),
            routes: routes.to_vec(),
            servers,
            lies,
            twin,
            seen: vec![0; servers],
            lineage: vec![BTreeSet::new(); servers],
            committed: BTreeMap::new(),
            last: vec![None; servers],
            folder: Folder::default(),
            conversations: BTreeMap::new(),
            truths: vec![Truth::default(); nodes],
            records: vec![BTreeMap::new(); servers],
            wrong: None,
            healed: None,
            at_heal: Vec::new(),
            tail_seen: false,
            quiet: None,
            known_links: 0,
        }
    }

    pub(crate) fn highest_epoch(&self) -> u64 {
        self.committed.keys().map(|((number, ..), _)| *number).max().unwrap_or(0)
    }

    /// The authority's folder, as far as it is durable.
    pub(crate) fn authority_folder(&self) -> &Folder {
        &self.folder
    }

    pub(crate) fn store_lost(&mut self, folder: Folder) {
        self.folder = folder;
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
    pub(crate) fn node_starts(&mut self, node: usize, folder: &Folder) {
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
    }

    pub(crate) fn server_starts(&mut self, server: usize) {
        self.counts.starts += 1;
        self.records[server].clear();
        self.seen[server] = 0;
    }

    /// Highest epoch number that nodes showed to this server since it started.
    pub(crate) fn seen(&self, server: usize) -> u64 {
        self.seen[server]
    }

    pub(crate) fn died(&mut self, node: usize) {
        let old = std::mem::take(&mut self.truths[node]);
        let mut earlier = old.earlier;
        earlier.iter_mut().zip(old.reached).for_each(|(earlier, mut reached)| earlier.append(&mut reached));
        self.truths[node] = Truth { earlier, acked: old.acked, ..Truth::default() };
    }

    pub(crate) fn healed(&mut self, net: &Net<Party>) {
        self.healed = Some(net.now());
        if self.lies || net.links().any(|view| view.frozen) {
            // What was lost is found out by T_stall, and again on the next pipe. A half-open pipe's slot is held
            // as long, and who waits for one is told nothing in this form, and may leave.
            self.quiet = Some(Vec::new());
        }
        let wanted = |link: &Link| self.conversations.get(link).is_some_and(|talk| talk.wants);
        self.at_heal = net.links().filter(|view| !view.frozen).map(|view| view.link).filter(wanted).collect();
    }

    /// Takes note of what a server has on disk. Invariant 7, and that revisions rise.
    pub(crate) fn learn(&mut self, net: &Net<Party>, server: usize) -> Checked {
        let Some((head, state)) = net.disk(server).and_then(|disk| disk.durable().history.as_ref()) else {
            return Ok(());
        };
        if self.last[server].as_ref().is_some_and(|last| last.shown() == head.shown()) {
            return Ok(());
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
        if !copied {
            self.counts.commits += 1;
            self.committed.insert((at, head.chain), (head.clone(), state.clone()));
        }
        self.last[server] = Some(head.clone());
        if server == 0
            && let Some(disk) = net.disk(0)
        {
            self.folder = disk.durable().clone();
        }
        Ok(())
    }

    fn find(&self, head: &Head) -> Option<&(Head, State)> {
        self.committed.get(&(place(&head.position), head.chain))
    }

    /// Invariants 6 and 7: what leaves a server is durable there, and is what was committed.
    fn left(&mut self, net: &Net<Party>, from: usize, head: &Head) -> Checked {
        if self.find(head).is_none() {
            self.learn(net, from)?;
        }
        match self.find(head) {
            Some((known, _))
                if (known.digest, known.prev_rev, known.keys, known.bytes)
                    == (head.digest, head.prev_rev, head.keys, head.bytes) =>
            {
                Ok(())
            }
            Some(_) => Err(format!("invariant 7: a HEAD for {} is not the one committed", head.position)),
            None => Err(format!("invariant 6: {} left before it was durable", head.position)),
        }
    }

    fn conversation(
        &mut self,
        net: &Net<Party>,
        link: Link,
        server: usize,
        node: usize,
    ) -> &mut Conversation {
        let exact = net.link(link).is_some_and(|view| self.routes[view.route].room >= 256);
        self.counts.links += u64::from(link.number() > self.known_links);
        self.known_links = self.known_links.max(link.number());
        self.conversations.entry(link).or_insert_with(|| Conversation {
            server,
            node,
            opened: net.now(),
            boot: None,
            stale: false,
            wants: false,
            have: None,
            refused: Vec::new(),
            window: 0,
            sent: 0,
            taken: 0,
            since: None,
            flight: VecDeque::new(),
            transfer: None,
            anew: true,
            holds: None,
            contradicts: None,
            large: None,
            exact,
        })
    }

    pub(crate) fn passed(&mut self, net: &Net<Party>, passage: &Passage<'_>) -> Checked {
        let Some(frame) = decode(passage.message) else { return Ok(()) };
        let Passage { link, from, to, arrived, .. } = *passage;
        match (from < self.servers, arrived) {
            (true, false) => self.server_sent(net, link, from, to, &frame),
            (true, true) => self.node_got(net, link, to, &frame),
            (false, false) => {
                if matches!(&frame, Frame::Want(..))
                    || matches!(&frame, Frame::Hello(h) if !h.wants.is_empty())
                {
                    self.truths[from].asked.insert(link);
                    self.truths[from].waits = None;
                }
                self.node_sent(from, &frame)
            }
            (false, true) => self.server_got(net, link, to, from, &frame),
        }
    }

    fn server_sent(
        &mut self,
        net: &Net<Party>,
        link: Link,
        from: usize,
        to: usize,
        frame: &Frame,
    ) -> Checked {
        match frame {
            Frame::Beacon(heads) => heads.iter().try_for_each(|head| self.left(net, from, head)),
            Frame::Slice(slice) => {
                self.left(net, from, &slice.head)?;
                self.counts.slices += 1;
                let (at, len, now) = (slice.head.position, slice.bytes.len() as u64, net.now());
                let talk = self.conversation(net, link, from, to);
                if talk.window > 0 && talk.sent.saturating_sub(talk.taken) >= talk.window {
                    return Err(format!(
                        "invariant 19: {} bytes on {link:?} without credit",
                        talk.sent - talk.taken
                    ));
                }
                talk.sent += len;
                if talk.sent > talk.taken {
                    talk.since.get_or_insert(now);
                }
                if talk.exact && talk.contradicts == Some(slice.head.position.epoch) {
                    return Err(format!("invariant 7: {at} is sent to who holds another history"));
                }
                if slice.offset == 0 {
                    if talk.exact && talk.refused.contains(&at) {
                        return Err(format!("invariant 10: {at} is sent again to who refused it"));
                    }
                    if talk.exact && talk.have.as_ref().is_some_and(|have| !above(&at, &have.position)) {
                        return Err(format!(
                            "invariant 21: {at} is sent from {:?} to who has {:?}",
                            slice.base,
                            talk.have.as_ref().map(|h| h.position)
                        ));
                    }
                    let base = slice.base.map(|base| base.position);
                    if talk.exact && talk.anew && base.is_some() && base != talk.holds {
                        return Err(format!(
                            "invariant 21: a step from {base:?} for who has {:?}",
                            talk.holds
                        ));
                    }
                    let size = snapshot_size(slice.head.keys, slice.head.bytes);
                    talk.large = (slice.base.is_none() && size > talk.window).then_some(at);
                } else if talk.transfer != Some((at, slice.offset)) || talk.anew && talk.exact {
                    return Err(format!("transfer: {at} goes on at {} on {link:?}", slice.offset));
                }
                talk.anew = false;
                talk.transfer = (!slice.last).then_some((at, slice.offset + len));
                if slice.last {
                    talk.large = None;
                    talk.flight.push_back(at);
                    if talk.exact && talk.flight.len() > FLIGHT {
                        return Err(format!(
                            "invariant 19: {} steps in flight on {link:?}",
                            talk.flight.len()
                        ));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn node_sent(&mut self, from: usize, frame: &Frame) -> Checked {
        let truth = &mut self.truths[from];
        match frame {
            Frame::Ack(ack)
                if !ack.volatile && truth.acked.is_none_or(|acked| !above(&acked, &ack.position)) =>
            {
                truth.acked = Some(ack.position);
            }
            Frame::Nack(nack) if nack.code == NackCode::Conflict => self.counts.conflicts += 1,
            Frame::Nack(_) => self.counts.refusals += 1,
            Frame::Want(WantReason::Digest, _) => {
                self.counts.digest_failures += 1;
                if !self.lies {
                    return Err(format!(
                        "invariant 1: node {from} got a step that does not lead to its HEAD"
                    ));
                }
            }
            Frame::Want(WantReason::New, _) => self.counts.fail_overs += 1,
            _ => {}
        }
        Ok(())
    }

    /// What a server now knows of a node.
    fn server_got(&mut self, net: &Net<Party>, link: Link, to: usize, from: usize, frame: &Frame) -> Checked {
        let now = net.now();
        let Some(at) = server(net, to) else { return Ok(()) };
        let window = u64::from(at.settings.window);
        let talk = self.conversation(net, link, to, from);
        match frame {
            Frame::Hello(hello) if talk.boot.is_none() => {
                talk.boot = Some(hello.boot);
                talk.window = u64::from(hello.window).min(window);
                let known = at.socket.protocol().status();
                talk.stale = known.iter().any(|n| n.node == hello.node && n.boot > hello.boot);
                if !hello.wants.is_empty() && !talk.stale {
                    talk.wanted(WantReason::New, &hello.wants);
                    return self.contradiction(net, link);
                }
            }
            Frame::Want(reason, wants) if talk.boot.is_some() => {
                talk.wanted(*reason, wants);
                return self.contradiction(net, link);
            }
            // Where queues fill, the server has put more than was seen to leave it.
            Frame::Credit(taken) if *taken > talk.taken && (*taken <= talk.sent || !talk.exact) => {
                talk.taken = *taken;
                talk.since = (talk.taken < talk.sent).then_some(now);
            }
            Frame::Ack(ack) => {
                if let Some(at) = talk.flight.iter().position(|flying| *flying == ack.position) {
                    talk.flight.drain(..=at);
                }
            }
            // One that a higher epoch ended, or that is only said again, changes nothing.
            Frame::Nack(nack) if nack.code == NackCode::Conflict => {
                let head = at.socket.protocol().head();
                if head.is_none_or(|head| head.position.epoch.number <= nack.position.epoch.number) {
                    talk.start_anew();
                }
            }
            Frame::Nack(nack) if nack.code != NackCode::Hook && !talk.refused.contains(&nack.position) => {
                talk.start_anew();
                // It goes back to what it shows.
                talk.have = None;
                talk.holds = Some(nack.stays_at);
                talk.refused.push(nack.position);
                if talk.refused.len() > 2 {
                    talk.refused.remove(0);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Invariant 7: a server that is shown what it cannot have issued says so.
    fn contradiction(&mut self, net: &Net<Party>, link: Link) -> Checked {
        let Some(talk) = self.conversations.get(&link) else { return Ok(()) };
        if let Some(have) = &talk.have {
            let seen = &mut self.seen[talk.server];
            *seen = (*seen).max(have.position.epoch.number);
        }
        let Some(at) = server(net, talk.server) else { return Ok(()) };
        let open = net.link(link).is_some_and(|view| view.listener.1);
        let (Some(have), Some(head), true) = (&talk.have, at.socket.protocol().head(), open) else {
            return Ok(());
        };
        let expected = match have.position.partial_cmp(&head.position) {
            None | Some(std::cmp::Ordering::Greater) => true,
            Some(std::cmp::Ordering::Equal) => have.chain != head.chain,
            Some(std::cmp::Ordering::Less) => {
                have.position.epoch == head.position.epoch && !self.lineage[talk.server].contains(&fact(have))
            }
        };
        let id = net.disk(talk.node).map(|disk| disk.read().id).unwrap_or_default();
        let said = at.socket.protocol().status().iter().any(|n| n.node == id && n.conflict);
        if said != expected {
            return Err(format!(
                "invariant 7: node {} shows {} to a server at {}; conflict said: {said}",
                talk.node, have.position, head.position
            ));
        }
        let epoch = head.position.epoch;
        if let (true, Some(talk)) = (expected, self.conversations.get_mut(&link)) {
            talk.contradicts = Some(epoch);
        }
        Ok(())
    }

    /// Invariants 12 and 18, as far as they are about what a node was told.
    fn node_got(&mut self, net: &Net<Party>, link: Link, to: usize, frame: &Frame) -> Checked {
        let heads: Vec<&Head> = match frame {
            Frame::Beacon(heads) => heads.iter().collect(),
            Frame::Slice(slice) => {
                self.truths[to].waits = None;
                vec![&slice.head]
            }
            _ => return Ok(()),
        };
        let Some(node) = agent(net, to) else { return Ok(()) };
        let open = net.link(link).is_some_and(|view| view.dialer.1);
        let used = self.truths[to].asked.contains(&link);
        let status = node.socket.protocol().status(net.now());
        for head in heads.into_iter().filter(|head| used && head.audience.is_empty()) {
            let truth = &mut self.truths[to];
            let first = truth.seqs.is_empty();
            let epoch = (head.position.epoch.number, head.position.epoch.incarnation);
            let known = truth.seqs.get(&epoch).copied();
            if known.is_none_or(|known| known < head.seq) {
                truth.seqs.insert(epoch, head.seq);
                if !first {
                    truth.rose = Some(net.now());
                }
            }
            let Some((visible, _)) = node.socket.protocol().visible() else { continue };
            let (a, b) = (visible.position, head.position);
            let same = a.epoch == b.epoch;
            let tip = node.given.is_none() && !node.socket.protocol().readiness().recv;
            // Something of a higher epoch may be verified and not visible yet.
            let over = status.newest.is_some_and(|newest| newest.epoch.number > b.epoch.number);
            let contradicts = a.epoch.number == b.epoch.number && !same && !over
                || tip && a == b && (visible.chain, visible.digest) != (head.chain, head.digest)
                || same
                    && tip
                    && b.rev > a.rev
                    && head.prev_rev == a.rev
                    && head.chain != chain(&visible.chain, b.rev, &head.digest);
            if contradicts && open && status.data != Data::Conflict {
                return Err(format!("invariant 12: node {to} at {a} is told of {b} and raises no alarm"));
            }
        }
        Ok(())
    }

    pub(crate) fn check(&mut self, net: &Net<Party>, node: Option<usize>) -> Checked {
        if let Some(wrong) = self.wrong.take() {
            return Err(wrong);
        }
        (0..self.servers).try_for_each(|server| self.learn(net, server))?;
        match node {
            Some(node) if node < self.servers => self.check_server(net, node)?,
            Some(node) => self.check_node(net, node)?,
            None => {}
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

    fn check_node(&mut self, net: &Net<Party>, n: usize) -> Checked {
        if let Some((head, _)) = net.disk(n).and_then(|disk| disk.durable().history.as_ref()) {
            self.truths[n].reached[0].insert(fact(head));
        }
        let Some(node) = agent(net, n) else { return Ok(()) };
        let protocol = node.socket.protocol();
        let shown = node.shown.as_ref().map(|(head, _)| head.position);
        if protocol.visible().map(|(head, _)| head.position) != shown {
            return Err(format!("invariant 3: node {n}: protocol and readers disagree on what is visible"));
        }
        if let (Some(at), Some((head, state))) = (shown, &node.shown) {
            let truth = &mut self.truths[n];
            truth.reached[1].insert(fact(head));
            if node.applied {
                truth.reached[2].insert(fact(head));
            }
            if truth.shown != Some(at) {
                if truth.shown.is_some_and(|before| !above(&at, &before)) {
                    return Err(format!("invariant 3: node {n} went from {:?} to {at}", truth.shown));
                }
                truth.shown = Some(at);
                self.counts.published += 1;
                self.check_content(n, head, state)?;
            }
        }
        self.check_given(n, node)?;
        let status = protocol.status(net.now());
        let truth = &mut self.truths[n];
        if status.fresh && truth.rose.is_none_or(|rose| net.now().saturating_since(rose) > FRESH) {
            return Err(format!("invariant 18: node {n} says fresh; seq rose last at {:?}", truth.rose));
        }
        let behind = status.data == Data::Behind && node.given.is_none() && !protocol.readiness().recv;
        truth.waits = behind.then_some(truth.waits.unwrap_or(net.now()));
        if let (Some(waits), Some(healed)) = (truth.waits, self.healed)
            && status.upstream.is_some()
            && net.now().saturating_since(waits.max(healed)) > FRESH * 3 + BEACON * 3
        {
            return Err(format!("invariant 23: node {n} is behind since {waits:?} and does not ask"));
        }
        let highest = status.newest.map_or(0, |at| at.epoch.number);
        match (status.data == Data::Conflict, truth.conflict) {
            (true, None) => truth.conflict = Some(highest),
            (false, Some(then)) if highest <= then => {
                return Err(format!(
                    "invariant 12: node {n} forgot that two histories contradict each other"
                ));
            }
            (false, Some(_)) => truth.conflict = None,
            _ => {}
        }
        Ok(())
    }

    /// Invariants 1, 2, 7 and 8: byte for byte what was committed there, nothing of before or after it.
    fn check_content(&self, n: usize, head: &Head, state: &State) -> Checked {
        let at = head.position;
        let Some((known, truth)) = self.find(head) else {
            return Err(format!("invariant 1: node {n} shows {at}, which was never committed"));
        };
        if known.digest != head.digest || state != truth {
            return Err(format!("invariant 1: node {n} shows {at} with other content"));
        }
        Ok(())
    }

    /// Invariants 5, 9, 10 and 11 on what an application is given.
    fn check_given(&mut self, n: usize, node: &Agent) -> Checked {
        let Some(update) = &node.given else {
            self.truths[n].given = None;
            return Ok(());
        };
        let at = update.position();
        if self.truths[n].given == Some(at) {
            return Ok(());
        }
        self.truths[n].given = Some(at);
        if !update.head.audience.is_empty() {
            return Err(format!("invariant 11: node {n} is given {at}, which is for a cohort"));
        }
        let limits = &node.settings.limits;
        if limits.check(update.state.keys(), update.state.bytes()).is_err() {
            return Err(format!("invariant 5: node {n} is given {at}, which is over its limits"));
        }
        // It remembers two; what is too large takes a place that the application does not see.
        let remembered = if limits.bytes < 1 << 20 { 0 } else { 2 };
        if node.refused.iter().rev().take(remembered).any(|refused| *refused == at) {
            return Err(format!("invariant 10: node {n} is given {at} again, which it refused"));
        }
        if self.truths[n].shown.is_some_and(|shown| !above(&at, &shown)) {
            return Err(format!("invariant 9: node {n} is given {at} after {:?}", self.truths[n].shown));
        }
        self.check_content(n, &update.head, &update.state)?;
        for key in node.before.diff(&update.state).keys() {
            if update.changed.binary_search(key).is_err() {
                return Err(format!("invariant 9: node {n} is not told that {key} changed at {at}"));
            }
        }
        Ok(())
    }

    fn check_server(&mut self, net: &Net<Party>, s: usize) -> Checked {
        let now = net.now();
        // Connections that nothing has passed on yet, and those that are gone.
        let open: Vec<_> = net.links().filter(|view| view.listener == (s, true)).collect();
        for view in &open {
            self.conversation(net, view.link, s, view.dialer.0);
        }
        self.conversations
            .retain(|link, talk| talk.server != s || open.iter().any(|view| view.link == *link));
        let Some(server) = server(net, s) else { return Ok(()) };
        let protocol = server.socket.protocol();

        let (steps, bytes) = protocol.log_size();
        if steps > server.settings.log_commits || bytes > server.settings.log_bytes {
            return Err(format!("invariant 19: {steps} steps and {bytes} bytes in the log"));
        }
        for (link, talk) in self.conversations.iter().filter(|(_, talk)| talk.server == s) {
            if talk.boot.is_none() && now.saturating_since(talk.opened) > HELLO + LATE {
                return Err(format!("invariant 19: {link:?} is open without HELLO since {:?}", talk.opened));
            }
            // Credit is due at the next beacon time; only faults may hold it up.
            let calm = self.healed.filter(|_| talk.exact && !self.lies);
            let here = open.iter().any(|view| view.link == *link && view.dialer.1 && !view.frozen);
            if let (Some(calm), Some(since), true) = (calm, talk.since, here)
                && now.saturating_since(since.max(calm)) > BEACON * 5
            {
                return Err(format!("invariant 22: {link:?} is given no credit since {since:?}"));
            }
            if talk.since.is_some_and(|since| now.saturating_since(since) > server.settings.stall + LATE) {
                return Err(format!("invariant 22: nothing is taken on {link:?} since {:?}", talk.since));
            }
        }
        // Here and not where it is sent: the end of one and the start of the next may be one event.
        let large = |talk: &&Conversation| talk.server == s && talk.exact && talk.large.is_some();
        let newest = self
            .conversations
            .values()
            .filter(large)
            .filter_map(|talk| talk.large)
            .map(|at| place(&at))
            .max();
        let large = self
            .conversations
            .values()
            .filter(large)
            .filter(|talk| talk.large.map(|at| place(&at)) == newest);
        let large = large.count();
        if large > server.settings.slots {
            return Err(format!(
                "invariant 22: {large} large transfers at once, of at most {}",
                server.settings.slots
            ));
        }
        for status in protocol.status() {
            let n = usize::from(status.node.0[0]) - 1;
            let levels = [status.stored, status.visible, status.applied];
            let boot = agent(net, n).map(|node| node.settings.boot);
            for (level, said) in levels.iter().enumerate() {
                // Of a start before the present one it may say what was true then (and old words may be repeated).
                let truth = &self.truths[n];
                let epoch = protocol.head().map(|head| head.position.epoch);
                // In the present epoch it counts only in the server's own history.
                let in_any = |facts: &BTreeSet<Fact>, at: &Position| {
                    (facts.range((place(at), [0; 32])..=(place(at), [0xff; 32])))
                        .any(|fact| epoch != Some(at.epoch) || self.lineage[s].contains(fact))
                };
                let known = |at: &Position| {
                    in_any(&truth.reached[level], at)
                        || (boot != Some(status.boot) || self.lies) && in_any(&truth.earlier[level], at)
                };
                if said.is_some_and(|said| !known(&said)) {
                    return Err(format!("invariant 14: node {n} never reached {said:?} at level {level}"));
                }
            }
            if let Some(old) = self.records[s].get(&status.node) {
                if status.boot < old.boot {
                    return Err(format!("invariant 14: node {n} fell to an earlier boot"));
                }
                let fell = |(old, new): (&Option<Position>, &Option<Position>)| match (old, new) {
                    (Some(old), Some(new)) => above(old, new),
                    (old, new) => old.is_some() && new.is_none(),
                };
                if status.boot == old.boot && old.levels.iter().zip(&levels).any(fell) {
                    return Err(format!(
                        "invariant 14: what node {n} reported fell from {:?} to {levels:?}",
                        old.levels
                    ));
                }
            }
            self.records[s].insert(status.node, Record { boot: status.boot, levels });
            // Where it is, as far as both ends agree on it.
            let mut talks = self.conversations.iter().filter(|(_, talk)| talk.server == s && talk.node == n);
            let here = talks.clone().any(|(link, talk)| {
                let both = open.iter().any(|view| view.link == *link && view.dialer.1);
                both && talk.wants
                    && !talk.stale
                    && talk.boot.is_some()
                    && talk.boot == boot
                    && boot == Some(status.boot)
            });
            if here && !status.connected {
                return Err(format!("invariant 14: node {n} is here, and said to be away"));
            }
            if status.connected && talks.next().is_none() {
                return Err(format!("invariant 14: node {n} is away, and said to be here"));
            }
        }
        Ok(())
    }

    /// Invariant 24: two beacons after the last commit, who has been connected since knows of it.
    fn check_tail(&self, net: &Net<Party>) -> Checked {
        let Some(head) = server(net, 0).and_then(|server| server.socket.protocol().head()) else {
            return Ok(());
        };
        for view in net.links().filter(|view| self.at_heal.contains(&view.link) && view.listener.0 == 0) {
            let Some(talk) = self.conversations.get(&view.link) else { continue };
            let Some(node) = agent(net, view.dialer.0) else { continue };
            let heard = talk.wants && talk.exact && view.dialer.1 && view.listener.1 && !view.frozen;
            let newest = node.socket.protocol().status(net.now()).newest;
            let fits = node.settings.limits.check(head.keys, head.bytes).is_ok();
            if heard && fits && newest.is_none_or(|newest| above(&head.position, &newest)) {
                return Err(format!(
                    "invariant 24: node {} knows of {newest:?}, not of {}",
                    view.dialer.0, head.position
                ));
            }
        }
        Ok(())
    }

    /// Invariant 23, and that reports, freshness and connections have come to rest.
    pub(crate) fn settled(&self, net: &Net<Party>) -> Checked {
        let at_rest = |s: usize| server(net, s).map(|server| server.socket.protocol());
        let Some(head) = at_rest(0).and_then(|protocol| protocol.head()) else {
            return Err("invariant 23: the authority has no head".into());
        };
        for n in self.servers..net.len() {
            let Some(node) = agent(net, n) else { return Err(format!("model: node {n} is down")) };
            let status = node.socket.protocol().status(net.now());
            if node.settings.limits.check(head.keys, head.bytes).is_err() {
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
                .filter(|record| record.node == node.settings.node)
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
        for link in self.quiet.iter().flatten() {
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

impl Conversation {
    fn start_anew(&mut self) {
        self.flight.clear();
        self.large = None;
        self.anew = true;
    }

    fn wanted(&mut self, reason: WantReason, wants: &[Want]) {
        let Some(want) = wants.first() else { return };
        self.start_anew();
        self.contradicts = None;
        self.wants = true;
        self.holds = want.have.first().map(|have| have.position);
        // Who asks for a snapshot says that what it has is of no use.
        self.have = want.have.first().filter(|_| reason != WantReason::Digest).cloned();
        self.refused = match reason {
            WantReason::Retry => Vec::new(),
            _ => want.refused.iter().map(|(at, _)| *at).collect(),
        };
    }
}
