//! Who is right about history: HEADs that nodes show, against all that were issued here.
//!
//! Owns: the verdict, the freeze, the highest numbers seen. Never: believes what is not signed where there are
//! keys.

use super::{
    Actions, Alarm, AuthorityAction, LEAP, Mode, NsAuthority, Place, ReadOnly, Recall, Verdict, Writing,
    max_each,
};
use crate::faults::planted;
use crate::sender::SEQ_BITS;
use crate::source::Record;
use crate::{Head, Id};

impl NsAuthority {
    pub(super) fn on_shown(&mut self, out: &mut Actions, node: Id, head: Head, issued: u64) {
        let judge = |head: Head, verdict| AuthorityAction::Judge { node, head, verdict };
        let keys = !self.settings.keys.is_empty();
        let foreign = head.cluster != self.settings.cluster || head.namespace != self.settings.namespace;
        if foreign || keys && !self.settings.keys.verify(&head) {
            return out.push(judge(head, Verdict::Disregard));
        }
        let shown = Place::from(head.position);
        let mine = self.position().map(Place::from).unwrap_or_default();
        let leap = |theirs: u64, mine: u64| theirs.checked_sub(mine).is_some_and(|d| d > LEAP);
        if !keys && (leap(shown.epoch, mine.epoch) || leap(shown.rev, mine.rev)) {
            out.push(AuthorityAction::Alarm(Alarm::Leap { node, shown: head.position }));
            if self.conflicts.len() < self.settings.nodes {
                self.conflicts.insert(node);
            }
            return out.push(judge(head, Verdict::Conflict));
        }
        self.highest = max_each(self.highest, shown);
        if self.held.contains_key(&node) || self.held.len() < self.settings.nodes {
            self.held.insert(node, head.clone());
        }
        let Some(durable) = &self.durable else {
            // A namespace that a node has shown does not begin anew by a commit.
            if !planted("vacant-begins-anew") {
                self.fresh = None;
            }
            return out.push(judge(head, Verdict::Recorded));
        };
        let own = durable.head.position;
        if head.position.epoch.number < own.epoch.number {
            return self.fine(out, node, head, issued);
        }
        if head.position.epoch != own.epoch || head.position.rev > own.rev {
            if planted("ahead-is-no-conflict") {
                return self.fine(out, node, head, issued);
            }
            return self.contradicts(out, node, head);
        }
        let rev = head.position.rev;
        let known = if rev == own.rev {
            Some(durable.head.chain)
        } else {
            let at = self.log.partition_point(|kept| kept.batch.head.position.rev < rev);
            let kept = self.log.get(at).map(|kept| &kept.batch.head);
            let base = self.base.as_ref().map(|base| &base.head);
            kept.into_iter().chain(base).find(|h| h.position == head.position).map(|h| h.chain)
        };
        match known {
            Some(chain) if chain == head.chain || planted("fork-is-no-conflict") => {
                self.fine(out, node, head, issued);
            }
            Some(_) => self.contradicts(out, node, head),
            // Inside the log every HEAD is known: this one was never issued.
            None if self.base.as_ref().is_none_or(|base| base.head.position.rev < rev) => {
                self.contradicts(out, node, head);
            }
            None => out.push(AuthorityAction::Recall(Recall { head, node, issued })),
        }
    }

    pub(super) fn on_recalled(
        &mut self,
        out: &mut Actions,
        recall: Recall,
        chain: Result<Option<[u8; 32]>, String>,
    ) {
        let Recall { head, node, issued } = recall;
        match chain {
            // An epoch may have begun while the store was asked.
            _ if self.position().map(|p| p.epoch) != Some(head.position.epoch) => {
                self.on_shown(out, node, head, issued);
            }
            Ok(Some(chain)) if chain == head.chain => self.fine(out, node, head, issued),
            Ok(_) => self.contradicts(out, node, head),
            // It may be of a lost history, whose nodes get no data in this epoch: there is no verdict, and so no data,
            // until it is shown again and the store answers.
            Err(why) => {
                out.push(AuthorityAction::Judge { node, head, verdict: Verdict::Recorded });
                if matches!(self.mode, Mode::Serving) {
                    self.fail(out, &why);
                }
            }
        }
    }

    pub(super) fn fine(&mut self, out: &mut Actions, node: Id, head: Head, issued: u64) {
        let same_epoch = self.position().map(|p| p.epoch) == Some(head.position.epoch);
        // Only a signature can make the count rise: an unsigned claim could use it up.
        if same_epoch && head.seq > issued && !self.settings.keys.is_empty() {
            self.raise(out, (head.seq >> SEQ_BITS) as u32);
        }
        self.conflicts.remove(&node);
        out.push(AuthorityAction::Judge { node, head, verdict: Verdict::Fine });
    }

    pub(super) fn contradicts(&mut self, out: &mut Actions, node: Id, head: Head) {
        out.push(AuthorityAction::Judge { node, head: head.clone(), verdict: Verdict::Conflict });
        self.dispute(out, node, head);
    }

    /// A node holds what contradicts this history.
    pub(super) fn dispute(&mut self, out: &mut Actions, node: Id, head: Head) {
        let shown = head.position;
        if self.conflicts.len() < self.settings.nodes {
            self.conflicts.insert(node);
        }
        if self.settings.keys.is_empty() && !self.settings.strict {
            out.push(AuthorityAction::Alarm(Alarm::Claim { node, shown }));
            return;
        }
        if !matches!(self.mode, Mode::Serving) || planted("freeze-ignored") {
            return;
        }
        out.push(AuthorityAction::Alarm(Alarm::OldStore { node, shown }));
        let why = ReadOnly::Old { shown };
        // What is with the store ends first; what is not goes no further.
        self.abandon(out, &why);
        self.mode = Mode::ReadOnly(why);
        if self.writing.is_some() {
            self.freeze = Some(head);
        } else {
            out.push(AuthorityAction::Append(Record::Frozen(head)));
            self.writing = Some(Writing::Frozen);
        }
    }

    pub(super) fn raise(&mut self, out: &mut Actions, above: u32) {
        if !std::mem::replace(&mut self.raising, true) {
            out.push(AuthorityAction::RaiseOpened(above));
        }
    }
}
