//! Between the event loop and the state: what the loop found goes in, what it needs to know comes out.
//!
//! `refresh` before a poll, `deliver` after it, both under the lock, both called by whoever holds the loop.
//!
//! Owns: nothing. Never: reads or polls.

use super::core::{Alarm, Core, Fresh, Guard, PEERS, Phase, State, Trash};
use super::drive::{Drive, Report, forget};
use super::handshake::Attach;
use super::tx::Writer;
use crate::events::Event;
use crate::protocol::{Control, DropReason, Pipe, PipeInfo, Reason, Time};
use crate::queue::{Frames, Outbound};
use crate::wire::Side;

/// Tokens kept ready for what may be accepted in one round.
const SPARE: usize = 32;

impl Core {
    /// Brings the loop up to date: new listeners, closed pipes, pipes with room again, jobs, due timers.
    pub(crate) fn refresh<'a>(&'a self, mut st: Guard<'a>, d: &mut Drive) -> Guard<'a> {
        st.drive_deadline = None; // the loop does not lie here: it knows its own, which this one may outlive
        self.run_due(&mut st);
        if !st.fx.dirty.is_empty() {
            st = self.write_dirty(st);
        }
        for fresh in std::mem::take(&mut st.fresh) {
            match fresh {
                Fresh::Listener { endpoint, token, url, door } => d.add_listener(token, endpoint, url, door),
                Fresh::Drop { token } => {
                    // It may not even have been dialled.
                    if d.drop_conn(token) || d.forget_dial(&mut st.jobs, token) {
                        st.tokens.try_remove(token);
                    }
                }
                Fresh::Drain { token, writer } => {
                    if d.drain_conn(token, writer) {
                        st.draining += 1;
                    } else if d.drop_conn(token) {
                        st.tokens.try_remove(token);
                    }
                }
                Fresh::ReadOut { token, all } => d.read_out(token, all),
            }
        }
        for id in std::mem::take(&mut st.fx.unstalled) {
            if let Some(p) = st.pipes.get_mut(id) {
                let (token, room) = (p.tx.token, room(p));
                d.set_room(token, room);
            }
        }
        if !st.jobs.is_empty() {
            d.jobs.append(&mut st.jobs);
        }
        while d.spare.len() < SPARE {
            d.spare.push(st.tokens.insert(()));
        }
        st
    }

    /// Timers of the protocol and of the engine.
    fn run_due(&self, st: &mut State) {
        let next = [st.fx.timers.next(), st.alarms.first().map(|(at, _)| *at)].into_iter().flatten().min();
        let Some(next) = next else { return };
        let now = Time::now();
        if next > now {
            return;
        }
        while let Some(key) = st.fx.timers.pop_due(now) {
            self.call(st, |protocol, cx| protocol.timer(cx, key));
        }
        while let Some((at, alarm)) = st.alarms.first().copied()
            && at <= now
        {
            st.alarms.pop_first();
            match alarm {
                Alarm::Dial(endpoint) => self.start_attempt(st, endpoint),
                Alarm::NextTarget(endpoint) => self.dial_next_target(st, endpoint),
                Alarm::Linger => self.give_up(st),
            }
        }
    }

    /// Takes in what the loop found.
    pub(crate) fn deliver<'a>(&'a self, mut st: Guard<'a>, d: &mut Drive) -> Guard<'a> {
        while let Some(key) = d.touched.pop() {
            self.deliver_batch(&mut st, d, key);
        }
        // Before anything is written: the system tells why a connection broke once, to who read.
        if !d.reports.is_empty() {
            for report in std::mem::take(&mut d.reports) {
                self.on_report(&mut st, d, report);
            }
        }
        while let Some(id) = d.writable.pop() {
            st = self.on_writable(st, id);
        }
        if !d.trash.is_empty() {
            let trash = std::mem::take(&mut d.trash);
            st.trash.push(Trash::Conns(trash));
        }
        if !st.fx.dirty.is_empty() {
            st = self.write_dirty(st);
        }
        st
    }

    fn deliver_batch(&self, st: &mut State, d: &mut Drive, key: usize) {
        let closed = st.phase != Phase::Open;
        // None: it was read twice in a turn, and all of it delivered.
        let Some((id, mut inbox)) = d.take_inbox(key) else { return };
        let Some(p) = st.pipes.get_mut(id) else {
            // The pipe was closed while they were read.
            for _ in 0..forget(&mut inbox.messages) {
                self.call(st, |_, cx| cx.dropped(None, DropReason::PipeClosed));
            }
            return;
        };
        let n = inbox.messages.len();
        p.received.0 += n as u64;
        let bytes = std::mem::take(&mut inbox.bytes);
        p.received.1 += bytes as u64;
        if closed {
            // Nobody will receive any more.
            let n = forget(&mut inbox.messages);
            for _ in 0..n {
                self.call(st, |_, cx| cx.dropped(Some(id), DropReason::PipeClosed));
            }
        } else if p.inq.is_empty() {
            std::mem::swap(&mut p.inq.messages, &mut inbox.messages);
            p.inq.bytes = bytes;
        } else {
            p.inq.messages.append(&mut inbox.messages);
            p.inq.bytes += bytes;
        }
        let control = std::mem::take(&mut inbox.control);
        if let Some(p) = st.pipes.get_mut(id)
            && !inbox.reply.is_empty()
        {
            p.tx.reply.append(&mut inbox.reply);
            if !p.dirty {
                p.dirty = true;
                p.urgent = true;
                st.fx.dirty.push(id);
            }
        }
        for (subscribe, topic) in control {
            let word = if subscribe { Control::Subscribe(&topic) } else { Control::Cancel(&topic) };
            self.call(st, |protocol, cx| protocol.control(cx, id, word));
        }
        if !closed && n > 0 {
            self.call(st, |protocol, cx| protocol.readable(cx, id));
        }
        d.keep(inbox);
        if let Some(p) = st.pipes.get_mut(id) {
            let room = room(p);
            d.set_room(key, room);
        }
    }

    fn on_report(&self, st: &mut State, d: &mut Drive, report: Report) {
        match report {
            Report::Accepted { endpoint, token } => {
                st.totals.accepted += 1;
                // Bound and closed meanwhile: a stranger to nobody's door.
                if !st.endpoints.contains_key(&endpoint) && d.drop_conn(token) {
                    st.tokens.try_remove(token);
                }
            }
            Report::AcceptFailed { endpoint, error } => {
                st.totals.accept_errors += 1;
                st.emit(Event::AcceptFailed { endpoint, error });
            }
            Report::DialFailed { endpoint, token, url, error } => {
                free_token(st, token);
                self.attempt_failed(st, endpoint, token, url, error);
            }
            Report::Failed { endpoint, token, remote, established, reason } => {
                free_token(st, token);
                self.opening_failed(st, endpoint, token, remote, established, reason);
            }
            Report::Ready { token } => self.open_pipe(st, d, token),
            Report::Dead { token, reason } => {
                let Some(half) = d.half(token) else { return };
                let id = half.pipe;
                // The loop keeps the reading half until the pipe's end comes back as `Fresh::Drop`: only then is
                // its token free, also when a writer delays that.
                self.end_pipe(st, id, reason);
            }
            Report::Freed { token } => {
                st.draining -= 1;
                st.tokens.try_remove(token);
            }
        }
    }

    /// The handshake is over: the protocol has the last word.
    fn open_pipe(&self, st: &mut State, d: &mut Drive, token: usize) {
        let Some((endpoint, side, attach)) = d.take_ready(token) else { return };
        if side == Side::Dialer && !self.is_attempt(st, endpoint, token) {
            return; // another address made it in this same round, or the endpoint was closed: it is let go already
        }
        let Attach { rx, writer, has_control, peer, facts, wire, inbox } = *attach;
        let remote = facts.remote.clone();
        let Some(cfg) = st.endpoints.get(&endpoint).map(|e| e.cfg) else {
            self.let_go(st, d, token);
            return;
        };
        let info = PipeInfo {
            send_priority: cfg.send_priority,
            recv_priority: cfg.recv_priority,
            peer_id: peer.sp_id.unwrap_or(0),
            wire,
            facts: facts.clone(),
            endpoint,
            dialed: side == Side::Dialer,
            send_limit: self.cfg.send_limit,
            recv_limit: self.cfg.recv_limit,
        };
        let id = st.pipes.open(info);
        if let Some(p) = st.pipes.get_mut(id) {
            p.has_control = has_control;
            if let Writer::Framed { current, .. } = &writer {
                p.out = Outbound::Framed(Frames::new(current.prefix()));
            }
            p.tx.writer = Some(Box::new(writer));
            p.tx.token = token;
        }
        let refused = if st.phase == Phase::Open {
            let accepted = self.call(st, |protocol, cx| protocol.pipe_opened(cx, id));
            accepted.err()
        } else if st.phase == Phase::Closing && self.held(st) > 0 {
            self.call(st, |protocol, cx| protocol.pipe_opened(cx, id)).err()
        } else {
            Some(Reason::Local)
        };
        if let Some(reason) = refused {
            if let Some(mut p) = st.pipes.remove(id) {
                st.trash.push(Trash::Writer(p.tx.writer.take()));
            }
            self.let_go(st, d, token);
            self.opening_failed(st, endpoint, token, remote, true, reason);
            return;
        }
        if st.pipes.get(id).is_none_or(|p| !p.open) {
            // It was accepted, and closed in the same breath: its end is told, and the connection on its way out.
            self.attempt_succeeded(st, endpoint, token, id);
            self.endpoint_lost(st, endpoint, id, &Reason::Local);
            return;
        }
        let budget = st.pipes.get_mut(id).and_then(room);
        d.attach(token, id, rx, inbox, budget.unwrap_or((1, 1)));
        st.totals.attached += 1;
        st.emit(Event::Connected { pipe: id, endpoint, dialed: side == Side::Dialer, facts });
        self.attempt_succeeded(st, endpoint, token, id);
        st.fx.wakes.push(PEERS);
        if st.phase == Phase::Closing {
            self.call(st, |_, cx| cx.finish(id, Reason::Local));
        }
        self.settle(st);
    }

    fn let_go(&self, st: &mut State, d: &mut Drive, token: usize) {
        if d.drop_conn(token) {
            st.tokens.try_remove(token);
        }
    }
}

/// A connection on its way is gone. News that it is to be let go must not reach who gets its token next.
fn free_token(st: &mut State, token: usize) {
    st.fresh.retain(|fresh| !matches!(fresh, Fresh::Drop { token: other } if *other == token));
    st.tokens.try_remove(token);
}

/// Room in a pipe's inbound queue; `None`: it is full, and the pipe is stalled until it has drained.
fn room(p: &mut Pipe) -> Option<(usize, usize)> {
    let limit = p.info.recv_limit;
    if p.in_full() {
        p.stalled = Some(p.inq.bytes);
        return None;
    }
    p.stalled = None;
    Some((limit.max_messages() - p.inq.len(), limit.max_bytes() - p.inq.bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Push;
    use crate::engine::Want;
    use crate::engine::drive::Job;
    use crate::transport::{Bag, Tcp, Transport};

    #[test]
    fn news_that_a_dial_is_over_does_not_reach_who_gets_its_token_next() {
        let push = Push::new().expect("a socket");
        let core = push.core();
        let mut st = core.lock();
        let mut d = st.lead.take(Want::Recv, core.link()).expect("nobody else leads");
        // An endpoint is closed while its dial fails.
        let token = st.tokens.insert(());
        st.fresh.push(Fresh::Drop { token });
        let (remote, reason) = (String::new(), Reason::Peer);
        d.reports.push(Report::Failed { endpoint: 77, token, remote, established: false, reason });
        st = core.deliver(st, &mut d);
        // Before that news is taken in, another dials.
        assert_eq!(st.tokens.insert(()), token, "the token is used again");
        let dialer: Arc<_> = Tcp.dialer("tcp://127.0.0.1:9", &Bag::default()).expect("an address").into();
        st.jobs.push(Job::Dial {
            endpoint: 78,
            url: "tcp://127.0.0.1:9".into(),
            token,
            dialer,
            target: None,
        });
        st = core.refresh(st, &mut d);
        assert_eq!(d.jobs.len(), 1);
        d.jobs.clear();
        core.give(&mut st, d);
        core.finish(st);
    }
}
