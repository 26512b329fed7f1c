//! What is said upward, and said again when there is room again.
//!
//! Owns: the form of each word, and when it goes out. Never: anything before WELCOME but HELLO, which shows what is held.

use spanwire::Message;
use spanwire::protocol::{Cx, PipeId, Reason, Reject};

use super::Replica;
use super::namespace::{NsReplica, Refusal, Word};
use crate::faults::planted;
use crate::wire::{Ack, Frame, Goodbye, GoodbyeCode, Hello, Level, MAX_WANTS, Nack, NackCode, VERSION, Want};
use crate::{ChainMark, Claim, Head};

impl NsReplica {
    pub(super) fn ack_of(&self, head: &Head, level: Level, volatile: bool) -> Ack {
        let newest = self.target.as_ref().filter(|_| planted("mark-of-the-newest"));
        let mark = ChainMark::of(&newest.unwrap_or(head).chain);
        Ack { namespace: self.settings.namespace.clone(), position: head.position, mark, level, volatile }
    }

    /// What was applied, if it is not what is visible. It says nothing of what is on the disk.
    fn past(&self) -> Option<Ack> {
        let visible = self.visible.as_ref().map(|visible| visible.head.position);
        let Claim { position, mark } = self.applied?;
        let below = visible.is_some_and(|visible| position < visible);
        let namespace = self.settings.namespace.clone();
        below.then_some(Ack { namespace, position, mark, level: Level::Applied, volatile: true })
    }

    fn want(&self) -> Want {
        Want {
            namespace: self.settings.namespace.clone(),
            have: self.tip().map(|held| held.head.clone()).into_iter().collect(),
            refused: self.refused.iter().map(|r| (r.position, r.code)).collect(),
        }
    }

    fn nack_of(&self, refusal: &Refusal) -> Nack {
        Nack {
            namespace: self.settings.namespace.clone(),
            position: refusal.position,
            mark: refusal.mark,
            stays_at: self.visible.as_ref().map(|held| held.head.position).unwrap_or_default(),
            code: refusal.code,
            text: refusal.text.clone(),
        }
    }

    /// What it refused, as far as that still stands: what is above visible, a failed hook, a conflict.
    fn refusals(&self) -> Vec<Frame> {
        let conflict = self.conflict.as_ref().map(|(_, other)| Refusal {
            position: other.position,
            mark: ChainMark::of(&other.chain),
            code: NackCode::Conflict,
            text: "another history claims this place".into(),
        });
        let visible = self.visible.as_ref().map(|held| held.head.position);
        let standing = self.refused.iter().filter(|r| visible.is_none_or(|v| r.position > v));
        (standing.chain(&self.hook_failed).chain(&conflict))
            .map(|refusal| Frame::Nack(self.nack_of(refusal)))
            .collect()
    }
}

impl Replica {
    /// What has a namespace to say, on the pipe in use: now, or when what follows has gathered, or when there is room.
    pub(super) fn speak(&mut self, cx: &mut Cx<'_>, at: usize) {
        let welcomed = |pipe: &PipeId| self.sessions.get(*pipe).is_some_and(|up| up.server.is_some());
        let pipe = self.active.filter(welcomed);
        let window = self.active.and_then(|pipe| self.sessions.get(pipe)).map(|session| session.window);
        let ns = &mut self.namespaces[at];
        if let Some(more) = ns.tells.take() {
            // What found no room, or nobody to hear it, waits for that.
            let heard = pipe.is_some() && !ns.owed.contains(&Word::Report);
            match ns.reports.may_wait(cx.now(), more, window.unwrap_or(self.settings.window)) {
                Some(due) if heard => cx.set_timer_lazily(ns.timer(), due),
                _ => drop(ns.owed.insert(Word::Report)),
            }
        }
        let Some(pipe) = pipe.filter(|_| !ns.owed.is_empty()) else { return };
        if !self.greeted(cx, pipe) {
            return;
        }
        while let Some(word) = self.namespaces[at].owed.first().copied() {
            let mut fits = true;
            for frame in self.frames(at, word) {
                fits = fits && cx.put(pipe, Message::from(frame.encode())).is_ok();
            }
            if !fits {
                return;
            }
            let ns = &mut self.namespaces[at];
            ns.owed.remove(&word);
            if word == Word::Report {
                ns.reports.said();
                cx.clear_timer(ns.timer());
            }
        }
    }

    fn frames(&self, at: usize, word: Word) -> Vec<Frame> {
        let ns = &self.namespaces[at];
        match word {
            Word::Past => ns.past().map(Frame::Ack).into_iter().collect(),
            Word::Report => ns.reports.all().cloned().map(Frame::Ack).collect(),
            Word::Want(reason) => vec![Frame::Want(reason, vec![self.want(ns)])],
            Word::Refusals => ns.refusals(),
        }
    }

    /// What has any namespace to say.
    pub(super) fn speak_all(&mut self, cx: &mut Cx<'_>) {
        (0..self.namespaces.len()).for_each(|at| self.speak(cx, at));
    }

    /// What is said is said by who the last HELLO names: first the one that is owed. `false`: there is no room.
    fn greeted(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> bool {
        let owes = |this: &Self| this.sessions.get(pipe).is_some_and(|session| session.owes_hello);
        if owes(self) {
            self.say_hello(cx, pipe);
        }
        !owes(self)
    }

    /// HELLO once more, on a pipe that is open.
    pub(super) fn say_hello(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.attempt = self.attempt.saturating_add(1);
        let hello = self.hello(pipe);
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        session.owes_hello = session.server.is_none() || cx.put(pipe, Message::from(hello.encode())).is_err();
        if !session.owes_hello && self.active == Some(pipe) {
            self.converse();
        }
    }

    pub(super) fn say_credit(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        session.owes_credit = cx.put(pipe, Message::from(Frame::Credit(session.taken).encode())).is_err();
        if !session.owes_credit {
            session.credited = session.taken;
        }
    }

    /// Says what found no room.
    pub(super) fn pay(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        if !self.greeted(cx, pipe) {
            return;
        }
        if self.sessions.get(pipe).is_some_and(|session| session.owes_credit) {
            self.say_credit(cx, pipe);
        }
        if self.active == Some(pipe) {
            self.speak_all(cx);
        }
    }

    /// The first word on a pipe.
    pub(super) fn greet(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        self.attempt = self.attempt.saturating_add(1);
        cx.put(pipe, Message::from(self.hello(pipe).encode())).map(|_| ()).map_err(|_| Reason::Slow)
    }

    pub(super) fn goodbye(&self, cx: &mut Cx<'_>, pipe: PipeId, code: GoodbyeCode, why: &'static str) {
        let goodbye = Goodbye { code, detail: 0, retry_after_ms: 0, alternates: Vec::new() };
        let _ = cx.put(pipe, Message::from(Frame::Goodbye(goodbye).encode()));
        cx.finish(pipe, Reason::Protocol(why));
    }

    fn want(&self, ns: &NsReplica) -> Want {
        let mut want = ns.want();
        if planted("fail-over-empty-handed") && self.opened >= 2 {
            want.have.clear();
        }
        want
    }

    /// On the pipe in use it asks for all; on the others for nothing.
    fn hello(&self, pipe: PipeId) -> Frame {
        let wanted = self.namespaces.iter().filter(|_| self.active == Some(pipe));
        let most = if planted("one-namespace-wanted") { 1 } else { MAX_WANTS };
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
            wants: wanted.take(most).map(|ns| self.want(ns)).collect(),
        })
    }
}
