//! A `Poller` with one member, step by step as in `socket/poller.rs`.
//!
//! Owns: nothing between two waits but its place in the kernel. Never: takes an item.

use crate::core::{Drive, Key, Patience, Socket, State, Who};
use crate::kernel::NOW;
use crate::lead::Want;

enum Hold {
    Lead(Box<Drive>),
    Behind(Vec<(Want<Key>, u64)>),
    None,
}

/// What it waits for, receiving and sending.
#[derive(Clone, Copy)]
pub(crate) struct Interest {
    pub(crate) recv: bool,
    pub(crate) send: bool,
}

impl Interest {
    pub(crate) const RECV: Interest = Interest { recv: true, send: false };
    pub(crate) const BOTH: Interest = Interest { recv: true, send: true };

    fn want(self) -> Want<Key> {
        match (self.recv, self.send) {
            (true, false) => Want::Recv,
            (false, true) => Want::Send,
            _ => Want::Any,
        }
    }
}

pub(crate) struct Poller<'a> {
    socket: &'a Socket,
    interest: Interest,
    /// An edge was spent while somebody else led.
    missed: bool,
}

impl<'a> Poller<'a> {
    pub(crate) fn new(socket: &'a Socket, interest: Interest) -> Self {
        socket.kernel.join();
        Poller { socket, interest, missed: false }
    }

    fn ready(&self, st: &State) -> bool {
        self.socket.level(st, self.interest.recv, self.interest.send)
    }

    /// `true`: ready. `false`: late.
    pub(crate) fn wait(&mut self, patience: Patience) -> bool {
        loop {
            let (mut hold, ready) = self.hold();
            let late = !ready && self.sleep(&mut hold, patience);
            let found = self.release(hold);
            if ready || found || late {
                return ready || found;
            }
        }
    }

    fn hold(&mut self) -> (Hold, bool) {
        let s = self.socket;
        let mut st = s.lock();
        if self.ready(&st) {
            s.finish(st);
            return (Hold::None, true);
        }
        let want = self.interest.want();
        match st.lead.take(want, &s.link) {
            Some(mut drive) => {
                s.refresh(&mut st, &mut drive);
                s.before_sleep(&mut st, &drive, want);
                s.finish(st);
                s.sleep_or_wake(&drive, std::mem::take(&mut self.missed));
                (Hold::Lead(drive), false)
            }
            None => {
                let mut places = Vec::new();
                for (on, want) in [(self.interest.recv, Want::Recv), (self.interest.send, Want::Send)] {
                    if on {
                        places.push((want, st.lead.park(want, Who::Poller(s.kernel.clone()))));
                    }
                }
                s.finish(st);
                (Hold::Behind(places), false)
            }
        }
    }

    /// `true`: late.
    fn sleep(&mut self, hold: &mut Hold, patience: Patience) -> bool {
        let s = self.socket;
        loop {
            let due = match &*hold {
                Hold::Lead(drive) => s.lock().due_with(drive),
                _ => None,
            };
            let until = if patience == Patience::Short { NOW } else { due };
            let (event, told) = s.kernel.outer_waits(until);
            let mut any = false;
            self.missed |= event && !matches!(hold, Hold::Lead(_));
            if let Hold::Lead(drive) = hold {
                let due = s.lock().due_with(drive);
                if event || due.is_some_and(|at| at <= s.kernel.clock()) {
                    any = s.serve(drive, self.interest.want());
                }
            }
            let late = patience == Patience::Short;
            if told || any || late {
                return late && !told && !any;
            }
        }
    }

    fn release(&self, hold: Hold) -> bool {
        let s = self.socket;
        let mut st = s.lock();
        match hold {
            Hold::Lead(drive) => {
                s.forget_sleep(&mut st);
                s.give(&mut st, drive);
            }
            Hold::Behind(places) => {
                for (want, id) in places {
                    if !st.lead.cancel(want, id) {
                        st.lead.returned();
                    }
                }
            }
            Hold::None => {}
        }
        let ready = self.ready(&st);
        s.finish(st);
        ready
    }
}
