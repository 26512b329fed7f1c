//! Requests by id, and the lists that they stand in.
//!
//! The id is also the place: its low bits index a table that doubles before it is half full, and a number
//! whose place is taken is left out. So finding a request hashes nothing. Each request stands in up to two linked lists
//! through that table: of its connection (or of those that wait for one), and of resend times.
//!
//! Owns: the memory of open requests. Never: decides where one goes.

use std::mem;
use std::time::Duration;

use super::{Failed, GroupId};
use crate::Message;
use crate::protocol::{PipeId, Time};

/// Where a request is.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    /// In the queue of those that no connection carries.
    Waiting,
    /// Sent, or queued to be sent, on this connection.
    On(PipeId),
    /// With an answer, in place of the request, or without; not collected yet.
    Ended(Result<(), Failed>),
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: u32,
    /// The request; later the answer. Empty once sent when it is never sent again.
    pub(super) msg: Message,
    pub(super) at: At,
    pub(super) resend: Option<Duration>,
    pub(super) group: Option<GroupId>,
    /// When it is due, and whether that is in the common list.
    pub(super) due: Option<(Time, bool)>,
    /// When its connection got it, or since when it waits as a suspect.
    pub(super) since: Time,
    /// Its connection has ended, and it had not begun to leave.
    pub(super) unsent: bool,
    /// Connections in a row that may have ended because of it.
    pub(super) strikes: u8,
    /// How many connections there had been at the last of them.
    pub(super) struck: u64,
    pub(super) links: [Link; 2],
}

impl Request {
    #[inline]
    pub(super) fn new(id: u32, msg: Message, resend: Option<Duration>) -> Self {
        Request {
            id,
            msg,
            at: At::Waiting,
            resend,
            group: None,
            due: None,
            since: Time::ZERO,
            unsent: false,
            strikes: 0,
            struck: 0,
            links: Default::default(),
        }
    }
}

/// Neighbours in a list; 0 is none, since ids have their top bit set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    previous: u32,
    next: u32,
}

pub(super) const PLACE: usize = 0;
pub(super) const DUE: usize = 1;

/// Requests by id: at the place that the low bits name. Invariant: no two ids meet, which doubling keeps.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Length: a power of two, or 0.
    pub(super) slots: Vec<Option<Request>>,
    pub(super) len: usize,
}

impl Table {
    const SMALL: usize = 64;

    #[inline]
    fn place(&self, id: u32) -> usize {
        id as usize & self.slots.len().wrapping_sub(1)
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> Option<&Request> {
        self.slots.get(self.place(id))?.as_ref().filter(|request| request.id == id)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Request> {
        let place = self.place(id);
        self.slots.get_mut(place)?.as_mut().filter(|request| request.id == id)
    }

    /// Keeps the table less than half full, so that free places are found soon.
    pub(super) fn reserve_one(&mut self) {
        if (self.len + 1) * 2 <= self.slots.len() {
            return;
        }
        let size = (self.slots.len() * 2).max(Self::SMALL);
        let old = mem::take(&mut self.slots);
        self.slots.resize_with(size, || None);
        for request in old.into_iter().flatten() {
            let place = self.place(request.id);
            self.slots[place] = Some(request);
        }
    }

    pub(super) fn is_free(&self, id: u32) -> bool {
        self.slots[self.place(id)].is_none()
    }

    #[inline]
    pub(super) fn insert(&mut self, request: Request) {
        let place = self.place(request.id);
        self.slots[place] = Some(request);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Request> {
        self.get(id)?;
        let place = self.place(id);
        let request = self.slots[place].take();
        self.removed();
        request
    }

    /// The same where nobody wants what is in it.
    #[inline]
    pub(super) fn discard(&mut self, id: u32) {
        if self.get(id).is_some() {
            let place = self.place(id);
            self.slots[place] = None;
            self.removed();
        }
    }

    #[inline]
    fn removed(&mut self) {
        self.len -= 1;
        // After a burst the memory returns; an ordinary load keeps its table.
        if self.len == 0 && self.slots.len() > 64 * Self::SMALL {
            self.slots = Vec::new();
        }
    }
}

/// A list through the table, by link `L`. All operations are O(1).
#[derive(Debug, Default)]
pub(super) struct List<const L: usize> {
    first: u32,
    last: u32,
    pub(super) len: usize,
}

impl<const L: usize> List<L> {
    pub(super) fn front(&self) -> Option<u32> {
        (self.first != 0).then_some(self.first)
    }

    pub(super) fn back(&self) -> Option<u32> {
        (self.last != 0).then_some(self.last)
    }

    pub(super) fn push_back(&mut self, table: &mut Table, id: u32) {
        self.join(table, self.last, id);
        self.join(table, id, 0);
        self.len += 1;
    }

    pub(super) fn push_front(&mut self, table: &mut Table, id: u32) {
        self.join(table, id, self.first);
        self.join(table, 0, id);
        self.len += 1;
    }

    /// `id` must be in this list.
    pub(super) fn remove(&mut self, table: &mut Table, id: u32) {
        let Some(request) = table.get_mut(id) else { return };
        let Link { previous, next } = mem::take(&mut request.links[L]);
        self.join(table, previous, next);
        self.len -= 1;
    }

    /// Makes two requests neighbours; 0 stands for the end.
    fn join(&mut self, table: &mut Table, previous: u32, next: u32) {
        match table.get_mut(previous) {
            Some(request) if previous != 0 => request.links[L].next = next,
            _ => self.first = next,
        }
        match table.get_mut(next) {
            Some(request) if next != 0 => request.links[L].previous = previous,
            _ => self.last = previous,
        }
    }
}
