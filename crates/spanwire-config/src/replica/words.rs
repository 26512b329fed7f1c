//! What is said upward, and said again when there is room again.
//!
//! Owns: the form of each word. Never: anything before WELCOME but HELLO, which shows what is held.

use spanwire::Message;
use spanwire::protocol::{Cx, PipeId, Reason, Reject};

use super::{REPORT, Refusal, Replica, Up, Word};
use crate::Position;
use crate::faults::planted;
use crate::wire::{Ack, Frame, Hello, Level, Nack, NackCode, VERSION, Want, WantReason};

impl Replica {
    pub(super) fn ack_of(&self, position: Position, level: Level, volatile: bool) -> Ack {
        Ack { namespace: self.settings.namespace.clone(), position, level, volatile }
    }

    pub(super) fn want(&self) -> Want {
        Want {
            namespace: self.settings.namespace.clone(),
            have: (self.tip().map(|held| held.head.clone()).into_iter())
                .filter(|_| !planted("fail-over-empty-handed") || self.opened < 2)
                .collect(),
            refused: self.refused.iter().map(|r| (r.position, r.code)).collect(),
        }
    }

    pub(super) fn nack_of(&self, refusal: &Refusal) -> Nack {
        Nack {
            namespace: self.settings.namespace.clone(),
            position: refusal.position,
            stays_at: self.visible.as_ref().map(|held| held.head.position).unwrap_or_default(),
            code: refusal.code,
            text: refusal.text.clone(),
        }
    }

    pub(super) fn frames(&self, word: Word, pipe: PipeId, up: &Up) -> Vec<Frame> {
        match word {
            Word::Hello => vec![self.hello(pipe)],
            Word::Want(reason) => vec![Frame::Want(reason, vec![self.want()])],
            Word::Credit => vec![Frame::Credit(up.taken)],
            Word::Report => self.reports.all().cloned().map(Frame::Ack).collect(),
            Word::Refusals => {
                let conflict = self.conflict.as_ref().map(|(_, other)| Refusal {
                    position: other.position,
                    code: NackCode::Conflict,
                    text: "another history claims this place".into(),
                });
                // Only what still stands: what is above visible, a failed hook, a conflict.
                let visible = self.visible.as_ref().map(|held| held.head.position);
                let standing = self.refused.iter().filter(|r| visible.is_none_or(|v| r.position > v));
                (standing.chain(&self.hook_failed).chain(&conflict))
                    .map(|refusal| Frame::Nack(self.nack_of(refusal)))
                    .collect()
            }
        }
    }

    /// Says what was reached: now, or when what follows has gathered.
    pub(super) fn tell(&mut self, cx: &mut Cx<'_>, more: bool) {
        let up = self.active.and_then(|pipe| self.pipes.get(pipe));
        // What found no room, or nobody to hear it, waits for that.
        let heard = up.is_some_and(|up| up.server.is_some() && !up.owed.contains(&Word::Report));
        let window = up.map_or(self.settings.window, |up| up.window);
        match self.reports.may_wait(cx.now(), more, window) {
            Some(due) if heard => cx.set_timer_lazily(REPORT, due),
            _ => self.say(cx, Word::Report),
        }
    }

    /// Says what gathered, if anything.
    pub(super) fn say_reports(&mut self, cx: &mut Cx<'_>) {
        if self.reports.waits() {
            self.say(cx, Word::Report);
        }
    }

    /// Says something on the pipe in use: now, or when there is room.
    pub(super) fn say(&mut self, cx: &mut Cx<'_>, word: Word) {
        if !matches!(word, Word::Hello | Word::Report | Word::Credit) {
            // What was reached before is heard before.
            self.say_reports(cx);
        }
        if let Some(pipe) = self.active {
            self.say_on(cx, pipe, word);
        }
    }

    pub(super) fn say_on(&mut self, cx: &mut Cx<'_>, pipe: PipeId, word: Word) {
        let owes = |up: &Up| up.owed.contains(&Word::Hello);
        if !matches!(word, Word::Hello | Word::Credit) && self.pipes.get(pipe).is_some_and(owes) {
            // What is said is said by who the last HELLO names: first the one that is owed.
            self.say_on(cx, pipe, Word::Hello);
            if let Some(up) = self.pipes.get_mut(pipe)
                && owes(up)
            {
                up.owed.insert(word);
                return;
            }
        }
        if word == Word::Hello {
            self.attempt = self.attempt.saturating_add(1);
        }
        let Some(up) = self.pipes.get(pipe) else { return };
        // Nothing is said before WELCOME but HELLO, which shows what is held.
        let mut fits = up.server.is_some() || word == Word::Credit;
        for frame in self.frames(word, pipe, up) {
            fits = fits && cx.put(pipe, Message::from(frame.encode())).is_ok();
        }
        let Some(up) = self.pipes.get_mut(pipe) else { return };
        match (fits, word) {
            (true, Word::Credit) => up.credited = up.taken,
            (true, Word::Report) => {
                up.owed.remove(&word);
                if self.active == Some(pipe) {
                    self.reports.said();
                    cx.clear_timer(REPORT);
                }
            }
            (true, _) => drop(up.owed.remove(&word)),
            (false, _) => drop(up.owed.insert(word)),
        }
        if (fits, word) == (true, Word::Hello) {
            self.converse();
        }
    }

    pub(super) fn pay(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let Some(up) = self.pipes.get_mut(pipe) else { return };
        for word in std::mem::take(&mut up.owed) {
            self.say_on(cx, pipe, word);
        }
    }

    /// Asks for a fresh start from what is verified.
    pub(super) fn ask(&mut self, cx: &mut Cx<'_>, reason: WantReason) {
        self.assembly = None;
        self.awaiting = true;
        self.say(cx, Word::Want(reason));
    }

    pub(super) fn greet(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        self.attempt = self.attempt.saturating_add(1);
        cx.put(pipe, Message::from(self.hello(pipe).encode())).map(|_| ()).map_err(|_| Reason::Slow)
    }

    fn hello(&self, pipe: PipeId) -> Frame {
        let wants = if self.active == Some(pipe) { vec![self.want()] } else { Vec::new() };
        Frame::Hello(Hello {
            node: self.settings.node,
            boot: self.settings.boot,
            attempt: self.attempt,
            kind: self.settings.kind,
            name: self.settings.name.clone(),
            labels: self.settings.labels.clone(),
            proto_min: VERSION,
            proto_max: VERSION,
            cluster: self.settings.cluster,
            window: self.settings.window,
            max_chunk: self.settings.max_chunk,
            wants,
        })
    }
}
