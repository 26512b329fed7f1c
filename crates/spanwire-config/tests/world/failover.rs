//! What the death of a relay costs whoever was served by it, when nothing else is wrong: invariant 26.
//!
//! One fail-over: each that has another way, which does not lead to the dead, takes it, and only once. No revision: it
//! says there what it has, and is sent no more than what is new.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spanwire::protocol::Time;
use spanwire_config::wire::{Frame, Want, WantReason};
use spanwire_config::{Id, Position};
use spanwire_testkit::sim::{Link, Net};

use super::nodes::{BEACON, FRESH, Party};
use super::tree::{receiver, relay};

/// Until then it has failed over; a pipe that dies in silence is found to be dead in less.
const SOON: Duration = FRESH.saturating_add(BEACON);

/// By whom a node is served.
#[derive(Debug, Default)]
struct Ways {
    used: Option<Link>,
    greeted: BTreeSet<Link>,
}

/// A node's server has died.
#[derive(Debug)]
struct Loss {
    at: Time,
    had: Option<Position>,
    hellos: u32,
}

#[derive(Debug, Default)]
pub(crate) struct FailOvers {
    ways: BTreeMap<usize, Ways>,
    losses: BTreeMap<usize, Loss>,
    /// Fail-overs that were looked at to their end.
    pub(crate) seen: u64,
}

impl FailOvers {
    /// This relay is about to die, and all is calm.
    pub(crate) fn dies(&mut self, net: &Net<Party>, dead: usize) {
        let id = |node: usize| Id([node as u8 + 1; 16]);
        for (child, ways) in &self.ways {
            let open = |link: &Link| net.link(*link).filter(|view| view.dialer.1 && view.listener.1);
            let Some(used) = ways.used.as_ref().and_then(open) else { continue };
            if used.listener.0 != dead {
                continue;
            }
            let leads_elsewhere = |server: usize| {
                let Some(relay) = relay(net, server) else { return server == 0 };
                let up = relay.machines[0].upstream();
                let round = |id: &Id| up.is_none_or(|up| up.server == *id || up.path.contains(id));
                let fresh = relay.upper.protocol().status(net.now()).fresh;
                server != dead && fresh && ![id(dead), id(*child)].iter().any(round)
            };
            let mut others = ways.greeted.iter().filter_map(open).filter(|view| view.link != used.link);
            let good = |server: usize| server != dead && leads_elsewhere(server);
            let any = others.clone().next().is_some();
            if any && others.all(|view| !view.frozen && good(view.listener.0)) {
                let had = receiver(net, *child).and_then(|(replica, _)| replica.visible());
                let had = had.map(|(head, _)| head.position);
                self.losses.insert(*child, Loss { at: net.now(), had, hellos: 0 });
            }
        }
    }

    /// Something left a node.
    pub(crate) fn said(&mut self, link: Link, from: usize, frame: &Frame) -> Result<(), String> {
        let (wants, hello): (&[Want], bool) = match frame {
            Frame::Hello(hello) => (&hello.wants, true),
            Frame::Want(reason, _) if *reason == WantReason::Digest && self.losses.contains_key(&from) => {
                return Err(format!("invariant 26: node {from} cannot go on from what it has"));
            }
            Frame::Want(_, wants) => (wants, false),
            _ => return Ok(()),
        };
        let Some(want) = wants.first() else { return Ok(()) };
        self.ways.entry(from).or_default().used = Some(link);
        let Some(loss) = self.losses.get_mut(&from).filter(|_| hello) else { return Ok(()) };
        loss.hellos += 1;
        if loss.hellos > 1 {
            return Err(format!("invariant 26: node {from} fails over twice, since {:?}", loss.at));
        }
        let has = want.have.iter().map(|head| head.position);
        if loss
            .had
            .is_some_and(|had| !has.clone().any(|has| has.partial_cmp(&had).is_some_and(|o| o.is_ge())))
        {
            return Err(format!("invariant 26: node {from} had {:?} and says {:?}", loss.had, has.last()));
        }
        Ok(())
    }

    /// Something arrived at a node.
    pub(crate) fn heard(&mut self, link: Link, to: usize, frame: &Frame) {
        if matches!(frame, Frame::Welcome(_)) {
            self.ways.entry(to).or_default().greeted.insert(link);
        }
    }

    pub(crate) fn died(&mut self, node: usize) {
        self.ways.remove(&node);
        self.losses.remove(&node);
    }

    /// After an event.
    pub(crate) fn check(&mut self, now: Time) -> Result<(), String> {
        if self.losses.is_empty() {
            return Ok(());
        }
        let over = |loss: &Loss| now.saturating_since(loss.at) > SOON;
        if let Some((node, loss)) = self.losses.iter().find(|(_, loss)| over(loss) && loss.hellos == 0) {
            return Err(format!("invariant 26: node {node} has another way since {:?}, and waits", loss.at));
        }
        self.seen += self.losses.values().filter(|loss| over(loss)).count() as u64;
        self.losses.retain(|_, loss| !over(loss));
        Ok(())
    }
}
