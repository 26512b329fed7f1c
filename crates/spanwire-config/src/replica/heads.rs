//! What a HEAD means: a sign of life, news, or another history.
//!
//! Owns: the order of positions, freshness, conflicts. Never: moves what is visible.

use spanwire::protocol::{Cx, PipeId};

use super::ReplicaSettings;
use super::namespace::{NsReplica, Refusal, Verdict, Word};
use crate::faults::planted;
use crate::rollout::admits;
use crate::wire::NackCode;
use crate::{ChainMark, Head, OverLimit, Position, chain};

impl NsReplica {
    /// A HEAD of a beacon, which never moves what is visible.
    pub(super) fn on_shown(&mut self, cx: &mut Cx<'_>, pipe: PipeId, head: &Head) {
        let before = self.data();
        if let Verdict::Newer = self.on_head(cx, pipe, head) {
            self.ask_in_turn(head);
        }
        if self.data() != before {
            self.woken(cx);
        }
    }

    /// Any HEAD: freshness, conflicts, and whether it is news (the rules of a replica).
    pub(super) fn on_head(&mut self, cx: &mut Cx<'_>, pipe: PipeId, head: &Head) -> Verdict {
        if planted("seq-before-signature") {
            self.note_seq(cx, head);
        }
        if !self.believes(cx, pipe, head) {
            return Verdict::Ignore;
        }
        let tip = self.tip().map(|held| held.head.clone());
        if let Some(tip) = &tip {
            let (mine, theirs) = (tip.position.epoch, head.position.epoch);
            if theirs.number < mine.number && !planted("no-epoch") {
                cx.count("upstream-behind", 1);
                return Verdict::Ignore;
            }
            if theirs.number == mine.number && theirs != mine && planted("conflict-ignored") {
                return Verdict::Ignore;
            }
            if theirs.number == mine.number && theirs != mine {
                self.contradict(cx, tip.clone(), head.clone());
                return Verdict::Ignore;
            }
        }
        if self
            .conflict
            .as_ref()
            .is_some_and(|(one, _)| head.position.epoch.number <= one.position.epoch.number)
        {
            // Only a higher epoch ends it, whatever became of the revision that showed it.
            return Verdict::Ignore;
        }
        if !self.is_meant(head) && !planted("audience-ignored") {
            return Verdict::Ignore;
        }
        self.note_seq(cx, head);
        self.withdrawn(cx, head);
        if !self.stands(head) && !planted("canary-without-for-all") {
            cx.count("canary-out-of-turn", 1);
            return Verdict::Ignore;
        }
        let Some(tip) = tip else { return self.news(cx, head) };
        match order(&head.position, &tip.position) {
            Some(std::cmp::Ordering::Less) | None => {
                self.note_for_all(cx, head);
                Verdict::Ignore
            }
            Some(std::cmp::Ordering::Equal) => {
                if (head.digest, head.prev_rev, head.chain) != (tip.digest, tip.prev_rev, tip.chain)
                    && !planted("chain-unchecked")
                {
                    self.contradict(cx, tip, head.clone());
                    return Verdict::Ignore;
                }
                self.confirm(cx, head);
                Verdict::Same
            }
            Some(std::cmp::Ordering::Greater) => {
                let next = head.position.epoch == tip.position.epoch && head.prev_rev == tip.position.rev;
                if next
                    && head.chain != chain(&tip.chain, head.position.rev, &head.digest)
                    && !planted("fork-unchecked")
                {
                    self.contradict(cx, tip, head.clone());
                    return Verdict::Ignore;
                }
                self.news(cx, head)
            }
        }
    }

    /// Whether a HEAD is for this node. A relay keeps all.
    fn is_meant(&self, head: &Head) -> bool {
        let ReplicaSettings { node, labels, .. } = &self.settings;
        self.relays() || admits(&head.audience, *node, labels)
    }

    /// Whether what is for a cohort, if it is news, stands on what is held: for all, and the one before it. A relay serves
    /// both.
    pub(super) fn stands(&self, head: &Head) -> bool {
        let tip = self.tip().map(|held| &held.head);
        let news = tip.is_none_or(|tip| tip.position < head.position);
        let next = tip.is_some_and(|tip| {
            (tip.position.epoch, tip.position.rev) == (head.position.epoch, head.prev_rev)
                && tip.audience.is_empty()
        });
        !self.relays() || head.audience.is_empty() || !news || next
    }

    /// Who shows an older revision after one for a cohort does not send that one any more: its stage is over, and the
    /// present one leaves this node out.
    fn withdrawn(&mut self, cx: &mut Cx<'_>, head: &Head) {
        let relays = self.relays();
        let gone = self.target.take_if(|target| {
            // A relay is shown both.
            !target.audience.is_empty()
                && head.audience.is_empty()
                && head.seq > target.seq
                && head.position.epoch == target.position.epoch
                && head.position < target.position
                && !relays
        });
        if gone.is_some() {
            self.behind = None;
            self.assembly = None;
            self.woken(cx);
        }
    }

    fn news(&mut self, cx: &mut Cx<'_>, head: &Head) -> Verdict {
        if self.refused.iter().any(|r| r.position == head.position) && !planted("refusal-forgotten") {
            // Who shows it does not send what comes before it.
            self.not_beyond(head.position);
            return Verdict::Ignore;
        }
        if let Err(over) = self.settings.limits.check(head.keys, head.bytes)
            && !planted("limits-ignored")
        {
            self.too_large(cx, head, &over);
            return Verdict::Ignore;
        }
        if self.target.as_ref().is_none_or(|target| {
            !matches!(target.position.partial_cmp(&head.position), Some(std::cmp::Ordering::Greater))
        }) {
            self.target = Some(head.clone());
        }
        self.behind.get_or_insert(cx.now());
        Verdict::Newer
    }

    pub(super) fn too_large(&mut self, cx: &mut Cx<'_>, head: &Head, over: &OverLimit) {
        let position = head.position;
        self.refuse(Refusal {
            position,
            mark: ChainMark::of(&head.chain),
            code: NackCode::TooLarge,
            text: over.to_string(),
        });
        self.assembly = None;
        self.awaiting = true;
        self.not_beyond(position);
        self.say(Word::Refusals);
        self.woken(cx);
    }

    /// A refusal: what it names and what comes before it is not sent any more, so there is nothing to be behind of,
    /// unless something newer is known.
    pub(super) fn not_beyond(&mut self, refused: Position) {
        if self.target.as_ref().is_some_and(|target| target.position <= refused) {
            self.target = None;
            self.behind = None;
        }
    }

    /// An upstream shows what is held.
    fn confirm(&mut self, cx: &mut Cx<'_>, head: &Head) {
        self.confirmed = true;
        let held = self.ready.as_mut().or(self.given.as_mut()).or(self.visible.as_mut());
        if let Some(held) = held
            && head.seq > held.head.seq
            && !planted("promotion-not-kept")
        {
            let promoted = held.head.audience != head.audience;
            held.head = head.clone();
            if promoted || self.relays() {
                self.woken(cx);
            }
        }
    }

    fn note_seq(&mut self, cx: &Cx<'_>, head: &Head) {
        let epoch = Position { epoch: head.position.epoch, rev: 0 };
        let rose = match self.seq {
            // The first of a process life only sets the mark.
            None => planted("first-seq-is-fresh"),
            Some((known, seq)) if known == epoch => {
                if head.seq <= seq && !planted("forget-seq") {
                    return;
                }
                true
            }
            // An old epoch's HEAD may be a repeated one; that of another incarnation says nothing of this one.
            Some((known, _)) => match epoch.partial_cmp(&known) {
                Some(std::cmp::Ordering::Less) => return,
                order => order.is_some(),
            },
        };
        self.seq = Some((epoch, head.seq));
        if rose {
            self.fresh = Some(cx.now());
        }
    }

    fn contradict(&mut self, cx: &mut Cx<'_>, mine: Head, other: Head) {
        if self.conflict.is_none() {
            cx.count("conflicts", 1);
            self.conflict = Some((mine, other));
            self.assembly = None;
            self.target = None;
            self.behind = None;
            self.say(Word::Refusals);
            self.woken(cx);
        }
    }
}

/// The order of two positions.
fn order(a: &Position, b: &Position) -> Option<std::cmp::Ordering> {
    if planted("no-epoch") {
        return Some(a.rev.cmp(&b.rev));
    }
    match a.partial_cmp(b) {
        Some(std::cmp::Ordering::Less) if planted("old-position-taken") => Some(std::cmp::Ordering::Greater),
        order => order,
    }
}
