//! When a request is sent again: the whole rule.
//!
//! - **No answer within its interval:** it goes to the next peer, behind those that wait ([`Due`](super::due::Due)
//!   knows the time).
//! - **Its connection ended, and it had not begun to leave:** it goes to another, as if it had not been there;
//!   with resend off, too.
//! - **Its connection ended later:** with resend off it has failed. Else it goes to another at once, before all
//!   that is newer, and the end may be a *strike* against it.
//! - **Eight strikes:** it is given up. It is most likely larger than the peer takes.
//!
//! A strike is an end so [`SOON`] after the connection got the request that the request may be its cause. Of
//! connections that were open together only one counts: if they end together, what was handed from one to the next
//! was not the cause. A connection that lasts longer acquits.
//!
//! After two strikes it is a *suspect*, and so is all that was on those connections with the culprit. Suspects go
//! one at a time, on *trial*, so that the culprit is alone in the end and the others have their answers; and after
//! all others, unless these never leave a gap.
//!
//! Owns: the order in which requests go out, strikes, suspects. Never: puts a request on a connection.

use std::time::Duration;

use super::Failed;
use super::table::{At, List, PLACE, Request, Table};
use crate::protocol::{Cx, TimerKey};

/// A connection that ended so soon after it was given a request may have ended because of it. A suspect that waited
/// so long goes before others.
const SOON: Duration = Duration::from_secs(1);
/// From so many strikes on it is a suspect: one may be chance.
const SUSPECT: u8 = 2;
/// So many strikes in a row, and the request is given up.
const PATIENCE: u8 = 8;
/// Rings when the suspect that is out has had its connection for [`SOON`].
pub(super) const TRIAL: TimerKey = TimerKey(1, 0);

/// A connection, as far as requests go.
#[derive(Debug)]
pub(super) struct Carrier {
    /// Connections are numbered from 1 on, in the order in which they opened.
    pub(super) number: u64,
    /// Requests that it carries, oldest first.
    pub(super) requests: List<PLACE>,
}

impl Request {
    pub(super) fn is_suspect(&self) -> bool {
        self.strikes >= SUSPECT
    }

    /// Its connection has ended, number `connection` of `opened` so far. Whether it is to be sent again.
    pub(super) fn after_end(&mut self, cx: &Cx<'_>, connection: u64, opened: u64) -> Result<(), Failed> {
        if std::mem::take(&mut self.unsent) {
            return Ok(());
        }
        if self.resend.is_none() {
            return Err(Failed::ConnectionLost);
        }
        if cx.now().saturating_since(self.since) >= SOON {
            self.strikes = 0;
        } else if connection > self.struck {
            self.strikes += 1;
            self.struck = opened;
        }
        if self.strikes < PATIENCE { Ok(()) } else { Err(Failed::Undeliverable) }
    }
}

/// Requests that no connection carries.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Oldest first.
    others: List<PLACE>,
    suspects: List<PLACE>,
    /// The suspect that is out.
    trial: Option<u32>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.others.len + self.suspects.len
    }

    /// Any that waits.
    pub(super) fn front(&self) -> Option<u32> {
        self.others.front().or(self.suspects.front())
    }

    /// Who goes next.
    pub(super) fn next(&self, table: &Table, cx: &Cx<'_>) -> Option<u32> {
        let other = self.others.front();
        let Some(suspect) = self.suspects.front().filter(|_| self.trial.is_none()) else { return other };
        let has_waited =
            || table.get(suspect).is_some_and(|request| cx.now().saturating_since(request.since) >= SOON);
        if other.is_none() || has_waited() { Some(suspect) } else { other }
    }

    /// It is on a connection now.
    pub(super) fn sent(&mut self, table: &mut Table, cx: &mut Cx<'_>, id: u32) {
        if self.remove(table, id) {
            self.trial = Some(id);
            cx.set_timer(TRIAL, cx.now() + SOON);
        }
    }

    /// Comes back, before all that is newer; but a suspect that has had its trial goes behind the other suspects.
    pub(super) fn push_front(&mut self, table: &mut Table, cx: &mut Cx<'_>, id: u32) {
        if self.end_trial(cx, id) {
            return self.push_back(table, cx, id);
        }
        self.list_of(table, cx, id).push_front(table, id);
    }

    /// Is new, or comes back behind all.
    pub(super) fn push_back(&mut self, table: &mut Table, cx: &mut Cx<'_>, id: u32) {
        self.end_trial(cx, id);
        self.list_of(table, cx, id).push_back(table, id);
    }

    fn list_of(&mut self, table: &mut Table, cx: &Cx<'_>, id: u32) -> &mut List<PLACE> {
        let Some(request) = table.get_mut(id) else { return &mut self.others };
        request.at = At::Waiting;
        if !request.is_suspect() {
            return &mut self.others;
        }
        request.since = cx.now();
        &mut self.suspects
    }

    /// Takes a request out that waits here; says whether it is a suspect.
    pub(super) fn remove(&mut self, table: &mut Table, id: u32) -> bool {
        let suspect = table.get(id).is_some_and(Request::is_suspect);
        let list = if suspect { &mut self.suspects } else { &mut self.others };
        list.remove(table, id);
        suspect
    }

    /// Its connection carries this one no longer; `true`: it was the suspect that was out.
    pub(super) fn end_trial(&mut self, cx: &mut Cx<'_>, id: u32) -> bool {
        let tried = self.trial == Some(id);
        if tried {
            self.trial = None;
            cx.clear_timer(TRIAL);
        }
        tried
    }

    /// The connection has outlived the suspect that it carries: it is none any more.
    pub(super) fn acquit(&mut self, table: &mut Table) {
        if let Some(request) = self.trial.take().and_then(|id| table.get_mut(id)) {
            request.strikes = 0;
        }
    }

    /// Whether suspects wait: one may go as soon as none is out.
    pub(super) fn has_suspects(&self) -> bool {
        self.suspects.len > 0
    }
}
