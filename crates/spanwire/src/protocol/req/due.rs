//! When requests are to be sent again, as far as that is a matter of time.
//!
//! Requests with the same interval are due in the order in which they were sent, so their list needs no sorting; other
//! intervals go to a tree.
//!
//! Owns: the timer. Never: sends.

use std::collections::BTreeSet;
use std::time::Duration;

use super::table::{DUE, List, Table};
use crate::protocol::{Cx, Time, TimerKey};

const RESEND: TimerKey = TimerKey(0, 0);

/// When requests are to be sent again.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Requests whose interval is `interval`: due in their order.
    pub(super) common: List<DUE>,
    interval: Duration,
    pub(super) others: BTreeSet<(Time, u32)>,
    /// When the timer rings. It may be too early, since answers do not touch it; then it is set anew.
    armed: Option<Time>,
}

impl Due {
    pub(super) fn insert(&mut self, table: &mut Table, cx: &mut Cx<'_>, id: u32, interval: Duration) {
        let at = cx.now() + interval;
        if self.common.len == 0 {
            self.interval = interval;
        }
        let common = interval == self.interval;
        if common {
            self.common.push_back(table, id);
        } else {
            self.others.insert((at, id));
        }
        if let Some(request) = table.get_mut(id) {
            request.due = Some((at, common));
        }
        self.arm_for(cx, at);
    }

    pub(super) fn remove(&mut self, table: &mut Table, id: u32) {
        let Some((at, common)) = table.get_mut(id).and_then(|request| request.due.take()) else { return };
        if common {
            self.common.remove(table, id);
        } else {
            self.others.remove(&(at, id));
        }
    }

    fn next(&self, table: &Table) -> Option<(Time, u32)> {
        let common = self.common.front().and_then(|id| Some((table.get(id)?.due?.0, id)));
        let other = self.others.first().copied();
        [common, other].into_iter().flatten().min()
    }

    /// The timer has rung: it is set no more.
    pub(super) fn rang(&mut self) {
        self.armed = None;
    }

    /// Takes out a request that is due.
    pub(super) fn pop(&mut self, table: &mut Table, now: Time) -> Option<u32> {
        let (at, id) = self.next(table)?;
        if at > now {
            return None;
        }
        self.remove(table, id);
        Some(id)
    }

    pub(super) fn arm(&mut self, table: &Table, cx: &mut Cx<'_>) {
        if let Some((at, _)) = self.next(table) {
            self.arm_for(cx, at);
        }
    }

    fn arm_for(&mut self, cx: &mut Cx<'_>, at: Time) {
        if self.armed.is_none_or(|armed| at < armed) {
            self.armed = Some(at);
            cx.set_timer(RESEND, at);
        }
    }
}
