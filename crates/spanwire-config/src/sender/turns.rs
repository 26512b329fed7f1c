//! Whose turn it is: pipes that have something to look at, who waits for a slot, and the slices of namespaces that
//! share a pipe.
//!
//! Owns: the order of work, and the line for the slots. Never: what a namespace sends.

use spanwire::Message;
use spanwire::protocol::{Cx, PipeId, Reason};

use super::Distributor;
use super::transfer::Next;
use crate::faults::planted;
use crate::wire::Frame;

/// What came of a namespace's turn.
enum Turn {
    /// It has nothing to send now.
    Over,
    /// A slice is on its way.
    Sent,
    /// The pipe takes no more.
    Full,
}

impl Distributor {
    /// Works off the pipes that have something to look at.
    pub(super) fn run(&mut self, cx: &mut Cx<'_>) {
        self.welcome_anew(cx);
        loop {
            self.namespaces.iter_mut().for_each(|namespace| self.work.append(&mut namespace.work));
            // First who waits longest, who may need no slot any more: the next in line must not wait for another to free
            // one.
            let next = if self.has_slot() { self.waiting.pop_front() } else { None };
            if let Some((at, pipe)) = next {
                if let Some(cursor) = self.namespaces[at].cursors.get_mut(pipe) {
                    cursor.waits = false;
                }
                self.begin(cx, at, pipe);
            }
            let pipe = next.map(|(_, pipe)| pipe).or_else(|| self.work.pop_front());
            let Some(pipe) = pipe else { return };
            self.pump(cx, pipe);
            if planted("stopped-reader-holds-up") && self.is_stopped(pipe) {
                return;
            }
        }
    }

    fn is_stopped(&self, pipe: PipeId) -> bool {
        let sends = self.namespaces.iter().any(|n| n.cursors.get(pipe).is_some_and(|c| c.sending.is_some()));
        sends && self.sessions.get(pipe).is_some_and(|session| !session.has_credit())
    }

    fn has_slot(&self) -> bool {
        let slots = self.namespaces.iter().map(|namespace| namespace.slots);
        let held = if planted("slots-for-each") { slots.min().unwrap_or(0) } else { slots.sum() };
        held < self.settings.slots
    }

    /// Sends on one pipe what credit and room allow: a slice of each namespace in turn.
    fn pump(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let count = self.namespaces.len();
        let Some(mut turn) = self.sessions.get(pipe).map(|session| session.turn) else { return };
        let mut over = 0;
        while over < count {
            match self.turn(cx, turn, pipe) {
                Turn::Over => over += 1,
                Turn::Sent => over = 0,
                Turn::Full => {
                    // Who needs a slot is in line for it by now, whatever the pipe takes.
                    (0..count).for_each(|at| _ = self.begin(cx, at, pipe));
                    break;
                }
            }
            turn = (turn + 1) % count;
            if !self.waiting.is_empty() && self.has_slot() {
                // It ended, and others wait for what it gave back.
                self.work.push_back(pipe);
                break;
            }
        }
        if let Some(session) = self.sessions.get_mut(pipe) {
            session.turn = turn;
        }
    }

    /// A slice of one namespace.
    fn turn(&mut self, cx: &mut Cx<'_>, at: usize, pipe: PipeId) -> Turn {
        if !self.begin(cx, at, pipe) {
            return Turn::Over;
        }
        let namespace = &mut self.namespaces[at];
        let (Some(session), Some(cursor)) = (self.sessions.get_mut(pipe), namespace.cursors.get_mut(pipe))
        else {
            return Turn::Over;
        };
        if !session.has_credit() && !planted("credit-ignored") {
            return Turn::Full;
        }
        let Some(sending) = &mut cursor.sending else { return Turn::Over };
        let Some((message, len)) = sending.payload.slice(sending.offset, session.chunk) else {
            // Cannot be: a transfer ends with the slice that reaches its size.
            cx.close(pipe, Reason::Protocol("transfer out of step"));
            return Turn::Full;
        };
        let Ok(_room) = cx.put(pipe, message) else { return Turn::Full };
        sending.offset += len as u64;
        let done = sending.offset >= sending.payload.size();
        session.put(len as u64, cx.now());
        cx.count("slices", 1);
        if done {
            namespace.end(pipe);
        }
        Turn::Sent
    }

    /// Whether a transfer of this namespace is under way; begins the next where there is one. Who needs a slot and finds
    /// none waits in line.
    fn begin(&mut self, cx: &mut Cx<'_>, at: usize, pipe: PipeId) -> bool {
        let free = self.has_slot();
        let namespace = &mut self.namespaces[at];
        let Some(cursor) = namespace.cursors.get(pipe) else { return false };
        if cursor.sending.is_some() {
            return true;
        }
        let line = (at, pipe);
        let begun = namespace.begin(pipe, free);
        let Some(cursor) = namespace.cursors.get_mut(pipe) else { return false };
        match begun {
            Next::Begun => {
                if std::mem::take(&mut cursor.waits) {
                    self.waiting.retain(|waiting| *waiting != line);
                }
                return true;
            }
            Next::Waits if !cursor.waits => {
                cursor.waits = true;
                self.waiting.push_back(line);
            }
            _ => {}
        }
        if self.waiting.back() == Some(&line) {
            self.tell_place(cx, at, pipe, self.waiting.len());
        }
        false
    }

    /// Who waits for a slot is told its place, if that is another than it knows.
    fn tell_place(&mut self, cx: &mut Cx<'_>, at: usize, pipe: PipeId, place: usize) {
        let namespace = &mut self.namespaces[at];
        let Some(cursor) = namespace.cursors.get_mut(pipe) else { return };
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        if cursor.place != place {
            let frame = Frame::Waiting(namespace.settings.namespace.clone(), place);
            // Where there is no room there is something to read: it is said at the next beacon time.
            if cx.put(pipe, Message::from(frame.encode())).is_ok() {
                cursor.place = place;
            }
        }
    }

    /// The same for all who wait, at beacon time.
    pub(super) fn tell_places(&mut self, cx: &mut Cx<'_>) {
        for place in 0..self.waiting.len() {
            let (at, pipe) = self.waiting[place];
            // A beacon may be there, and nothing that is older.
            if cx.unsent(pipe).0 <= 1 {
                self.tell_place(cx, at, pipe, place + 1);
            }
        }
    }
}
