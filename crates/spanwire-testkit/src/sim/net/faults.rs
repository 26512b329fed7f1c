//! Faults carried out: to connections, routes and processes; and the end of all of them.
//!
//! Owns: what each fault of a plan does. Never: chooses one (the plan does).

use std::time::Duration;

use spanwire::protocol::Time;

use super::{Lie, Net, Pending};
use crate::sim::plan::{Fault, Way};
use crate::sim::{Link, Node};

impl<N: Node> Net<N> {
    /// Nothing passes on a connection any more, and what is on its way is lost.
    fn freeze(&mut self, link: Link) {
        if let Some(conn) = self.links.conns.get_mut(&link) {
            conn.frozen = true;
        }
    }

    /// A process dies now and is started again later. What it sent may still arrive, or not.
    pub fn crash(&mut self, node: usize, down: Duration, power: bool) {
        let Some(slot) = self.slots.get_mut(node) else { return };
        slot.disk.crash(power);
        slot.wake = None;
        slot.stalled = Time::ZERO;
        if slot.node.take().is_none() {
            return;
        }
        slot.deaths += 1;
        let deaths = slot.deaths;
        self.crashed.push(node);
        self.note(|| format!("n{node} dies"));
        let links: Vec<Link> =
            self.links.conns.iter().filter(|(_, c)| c.nodes.contains(&node)).map(|(l, _)| *l).collect();
        for link in links {
            let loss = self.rng.one_in(2);
            let frozen = self.links.conns.get(&link).is_some_and(|conn| conn.frozen);
            self.end(link, node, loss && !frozen);
        }
        self.at(self.now + down, Pending::Start { node, deaths });
    }

    /// A node may start: it has not, and its routes will dial.
    pub(in crate::sim) fn may_start(&self, node: usize, deaths: u64) -> bool {
        self.slots[node].node.is_none() && self.slots[node].deaths == deaths
    }

    pub(in crate::sim) fn started(&mut self, node: usize) {
        for route in 0..self.routes.len() {
            let state = &mut self.routes[route];
            if state.route.from == node && !state.dialing && state.conn.is_none() {
                state.backoff = state.route.reconnect;
                self.dial_later(route);
            }
        }
    }

    /// Carries out one fault, as a plan does it.
    pub fn fault(&mut self, fault: &Fault) {
        let last = |n: usize| n.saturating_sub(1);
        let route_of = |route: usize, routes: usize| route.min(last(routes));
        let (nodes, routes) = (self.slots.len(), self.routes.len());
        if nodes == 0 || routes == 0 {
            return;
        }
        match *fault {
            Fault::Break { route } => self.break_route(route_of(route, routes)),
            Fault::Cut { route, lasts } => {
                let route = route_of(route, routes);
                self.routes[route].cut = true;
                self.routes[route].cuts += 1;
                let cut = self.routes[route].cuts;
                self.break_route(route);
                self.at(self.now + lasts, Pending::EndCut { route, cut });
            }
            Fault::HalfOpen { route, dialer, listener, lasts } => {
                let Some(link) = self.routes[route_of(route, routes)].conn else { return };
                self.freeze(link);
                for (side, told) in [(0, dialer), (1, listener)] {
                    let at = if told { self.now } else { self.now + lasts };
                    self.at(at, Pending::Close { link, side });
                }
            }
            Fault::Delay { route, by, lasts } => {
                let route = route_of(route, routes);
                let state = &mut self.routes[route];
                state.delays += 1;
                state.extra = by;
                let delay = state.delays;
                self.set_delay(route);
                self.at(self.now + lasts, Pending::EndDelay { route, delay });
            }
            Fault::Stall { node, lasts } => {
                let slot = &mut self.slots[node.min(last(nodes))];
                if slot.node.is_some() {
                    slot.stalled = slot.stalled.max(self.now + lasts);
                }
            }
            Fault::Crash { node, down, power } => self.crash(node.min(last(nodes)), down, power),
            Fault::CrashAtSync { node, after, synced, down } => {
                let node = node.min(last(nodes));
                self.slots[node].disk.crash_at = Some((after, synced));
                self.down[node] = down;
            }
            Fault::FailSync { node, syncs } => self.slots[node.min(last(nodes))].disk.fail += syncs,
            Fault::Flip { route, way, random } => self.lie(route_of(route, routes), way, Lie::Flip(random)),
            Fault::Lose { route, way } => self.lie(route_of(route, routes), way, Lie::Lose),
            Fault::Replay { route, way, back } => {
                self.lie(route_of(route, routes), way, Lie::Replay(back));
            }
        }
    }

    fn lie(&mut self, route: usize, way: Way, lie: Lie) {
        self.routes[route].lies[usize::from(way == Way::Down)].push(lie);
    }

    fn break_route(&mut self, route: usize) {
        let Some(link) = self.routes[route].conn else { return };
        if let Some(conn) = self.links.conns.get_mut(&link) {
            conn.dirs.iter_mut().for_each(|dir| dir.queue.clear());
            conn.frozen = true;
        }
        // Who hears first is chance.
        let first = self.rng.below(2);
        self.at(self.now, Pending::Close { link, side: first });
        let later = self.rng.time(Duration::ZERO..Duration::from_millis(30));
        self.at(self.now + later, Pending::Close { link, side: 1 - first });
    }

    fn set_delay(&mut self, route: usize) {
        let state = &self.routes[route];
        let delay = state.route.delay + state.extra;
        if let Some(conn) = state.conn.and_then(|link| self.links.conns.get_mut(&link)) {
            conn.delay = delay;
        }
    }

    pub(in crate::sim) fn end_cut(&mut self, route: usize, cut: u32) {
        if self.routes[route].cuts == cut {
            self.routes[route].cut = false;
        }
    }

    pub(in crate::sim) fn end_delay(&mut self, route: usize, delay: u32) {
        if self.routes[route].delays == delay {
            self.routes[route].extra = Duration::ZERO;
            self.set_delay(route);
        }
    }

    /// All faults end; who is down starts. Half-open connections stay: peers must find those out.
    pub(in crate::sim) fn heal(&mut self) {
        self.healed = true;
        for route in 0..self.routes.len() {
            let (cut, delay) = (self.routes[route].cuts, self.routes[route].delays);
            self.end_cut(route, cut);
            self.end_delay(route, delay);
            self.routes[route].lies = [Vec::new(), Vec::new()];
        }
        for node in 0..self.slots.len() {
            let slot = &mut self.slots[node];
            slot.disk.crash_at = None;
            slot.disk.fail = 0;
            let deaths = slot.deaths;
            if slot.node.is_none() {
                self.at(self.now, Pending::Start { node, deaths });
            }
        }
    }
}
