//! How epochs begin: empty, with what there is, or with what a node holds.
//!
//! Owns: the numbers of a new epoch, and adoption. Never: an epoch in the middle of a commit under way.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::repeats::Asked;
use super::{
    Actions, Adopting, Answer, AuthorityAction, BEGUN, Beginning, By, Invalid, Mode, NsAuthority, Place,
    ReadOnly, Ticket, Writing, max_each,
};
use crate::faults::planted;
use crate::source::{LogCommit, MAX_AUTHOR, MAX_NOTE};
use crate::{Base, Epoch, Head, Id, Position, State};

impl NsAuthority {
    pub(super) fn begin(
        &mut self,
        out: &mut Actions,
        (ticket, incarnation, by): (Ticket, Id, By),
        content: Option<State>,
        from: Option<Position>,
    ) {
        if self.beginning.is_some() || self.durable.is_none() && self.writing.is_some() {
            return out.push(AuthorityAction::Reply(ticket, Answer::Busy));
        }
        self.beginning = Some(Beginning { ticket, incarnation, by, content, from });
        if self.writing.is_none() {
            self.begin_now(out);
        }
    }

    /// Whether an epoch may begin as far as who wants it says; else that is answered.
    pub(super) fn permits(&mut self, out: &mut Actions, ticket: Ticket, by: &By) -> bool {
        let head = self.tip().map(Place::from).unwrap_or_default();
        let answer = if by.author.len() > MAX_AUTHOR {
            Answer::Invalid(Invalid::TooLong("author"))
        } else if by.note.len() > MAX_NOTE {
            Answer::Invalid(Invalid::TooLong("note"))
        } else if by.expect.is_some_and(|expect| expect != head) {
            Answer::Conflict { head }
        } else {
            return true;
        };
        self.answer(out, ticket, answer);
        false
    }

    pub(super) fn on_import(
        &mut self,
        out: &mut Actions,
        (ticket, incarnation, by): (Ticket, Id, By),
        content: State,
    ) {
        if self.repeated(out, ticket, incarnation, Asked::Content(&content)) {
            return;
        }
        if let Mode::ReadOnly(why @ ReadOnly::Store(_)) = &self.mode {
            return out.push(AuthorityAction::Reply(ticket, Answer::ReadOnly(why.clone())));
        }
        let limits = &self.settings.limits;
        let within = limits.check(content.keys(), content.bytes());
        if let Err(over) = within.and_then(|()| limits.check_values(&State::new().diff(&content))) {
            return self.answer(out, ticket, Answer::Invalid(over.into()));
        }
        let from = self.position();
        if self.permits(out, ticket, &by) {
            self.begin(out, (ticket, incarnation, by), Some(content), from);
        }
    }

    pub(super) fn begin_now(&mut self, out: &mut Actions) {
        let Some(Beginning { ticket, incarnation, by, content, from }) = self.beginning.take() else {
            return;
        };
        let own = self.position().map(Place::from).unwrap_or_default();
        let highest = if planted("epoch-not-compared") { own } else { max_each(self.highest, own) };
        let (Some(number), Some(rev)) = (highest.epoch.checked_add(1), highest.rev.checked_add(1)) else {
            let why = Invalid::NotNow("a node shows the highest number there is");
            return out.push(AuthorityAction::Reply(ticket, Answer::Invalid(why)));
        };
        let now = self.durable.as_ref().map(|durable| durable.state.clone()).unwrap_or_default();
        // An open rollout ends with its epoch: what is repeated is what is for all.
        let state =
            content.unwrap_or_else(|| self.for_all().map(|all| all.state.clone()).unwrap_or_default());
        let rev = if planted("rev-starts-anew") { 1 } else { rev };
        let commit = LogCommit {
            rev,
            request: incarnation,
            author: by.author,
            note: if by.note.is_empty() { "an epoch begins".into() } else { by.note },
            stamp: by.stamp,
            digest: state.digest(),
            changes: Arc::new(now.diff(&state)),
        };
        let batch = self.batch(Epoch { number, incarnation }, vec![commit], &state, None);
        let position = batch.head.position;
        let mut lost: BTreeMap<_, (Position, usize)> = BTreeMap::new();
        for held in self.held.values().map(|head| head.position) {
            let beyond = from.is_none_or(|from| held.partial_cmp(&from).is_none_or(|order| order.is_gt()));
            if beyond && !planted("losses-not-listed") {
                let key = (held.epoch.number, held.rev, held.epoch.incarnation);
                lost.entry(key).or_insert((held, 0)).1 += 1;
            }
        }
        let lost = lost.into_values().rev().collect();
        self.start(out, batch, state, Vec::new());
        if let Some(Writing::Batch { replies, .. }) = &mut self.writing {
            replies.push((ticket, Answer::Begun { position, lost }));
        }
    }

    pub(super) fn on_adopt(
        &mut self,
        out: &mut Actions,
        (ticket, incarnation, by): (Ticket, Id, By),
        named: Option<Base>,
    ) {
        if self.repeated(out, ticket, incarnation, Asked::Epoch) {
            return;
        }
        let refuse = |why| AuthorityAction::Reply(ticket, Answer::Invalid(Invalid::NotNow(why)));
        if !matches!(self.mode, Mode::Vacant) || self.writing.is_some() {
            return out.push(refuse(BEGUN));
        }
        if self.adopting.is_some() {
            return out.push(AuthorityAction::Reply(ticket, Answer::Busy));
        }
        if !self.permits(out, ticket, &by) {
            return;
        }
        // A canary's state never passed its gate: only by name.
        let limits = self.settings.limits;
        let fits = |head: &&Head| limits.check(head.keys, head.bytes).is_ok();
        let eligible = |head: &&Head| {
            fits(head)
                && match named {
                    Some(named) => head.base() == named,
                    None => head.audience.is_empty() || planted("adopts-canary"),
                }
        };
        let best = match planted("adopts-oldest") {
            true => self.held.values().filter(eligible).min_by_key(|head| Place::from(head.position)),
            false => self.held.values().filter(eligible).max_by_key(|head| Place::from(head.position)),
        };
        let best = best.cloned();
        let Some(best) = best else { return out.push(refuse("no node holds such a state")) };
        let rival = self.held.values().filter(eligible).any(|head| {
            let (a, b) = (head.position, best.position);
            a.epoch.number == b.epoch.number
                && (a.epoch != b.epoch
                    || a.rev == b.rev && (head.digest, head.chain) != (best.digest, best.chain))
        });
        if named.is_none() && rival {
            return out.push(refuse("nodes hold two histories under one number: name the position"));
        }
        let mut left: Vec<Id> = (self.held.iter())
            .filter(|(_, head)| head.shown() == best.shown())
            .map(|(node, _)| *node)
            .collect();
        let Some(node) = left.pop() else { return out.push(refuse("no node holds such a state")) };
        out.push(AuthorityAction::Offer(node, best.clone()));
        self.adopting = Some(Adopting { ticket, incarnation, by, left, node, head: best });
    }

    pub(super) fn on_offered(&mut self, out: &mut Actions, node: Id, state: Option<State>) {
        let Some(mut adopting) = self.adopting.take_if(|adopting| adopting.node == node) else { return };
        let begun = !matches!(self.mode, Mode::Vacant) && !planted("adopts-after-begin");
        if begun || self.writing.is_some() {
            // It began in another way meanwhile, and what was committed since must not be undone.
            let why = Invalid::NotNow(BEGUN);
            return out.push(AuthorityAction::Reply(adopting.ticket, Answer::Invalid(why)));
        }
        let head = &adopting.head;
        // Recomputed: what came over the wire is believed for its content alone.
        let whole =
            state.filter(|s| (s.keys(), s.bytes(), s.recompute()) == (head.keys, head.bytes, head.digest));
        match (whole, adopting.left.pop()) {
            (Some(state), _) => {
                let from = Some(head.position);
                let Adopting { ticket, incarnation, by, .. } = adopting;
                self.begin(out, (ticket, incarnation, by), Some(state), from);
            }
            (None, Some(next)) => {
                adopting.node = next;
                out.push(AuthorityAction::Offer(next, adopting.head.clone()));
                self.adopting = Some(adopting);
            }
            (None, None) => {
                let why = Invalid::NotNow("no node sent the state that its HEAD names");
                out.push(AuthorityAction::Reply(adopting.ticket, Answer::Invalid(why)));
            }
        }
    }
}
