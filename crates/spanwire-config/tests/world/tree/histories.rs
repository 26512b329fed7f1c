//! What the authority of a tree committed, in every history that its store has had: an old copy that is put back loses
//! the last commits, and what comes next makes other revisions of the same numbers.
//!
//! A place names a revision in one history alone; a fact (a place with its chain) names it for good.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use spanwire_config::{Head, Position, State};

use super::super::folder::Space;
use super::{Place, place};

/// A revision, whatever history it is of.
pub(super) type Fact = (Place, [u8; 32]);

/// Copies of a store that are kept, one for each of the last commits.
const COPIES: usize = 6;

pub(super) fn fact(ns: usize, head: &Head) -> Fact {
    (place(ns, &head.position), head.chain)
}

/// The histories of one namespace.
#[derive(Debug)]
pub(super) struct Histories {
    ns: usize,
    /// Every revision that was durable, with what it was made on.
    committed: BTreeMap<Fact, (Head, State, Option<Fact>)>,
    /// What leads to the newest, oldest first.
    lineage: Vec<Fact>,
    /// The store at the last commits, oldest first, if an old one is to come back; and how much led there.
    copies: Option<VecDeque<(Space, usize)>>,
    /// How often an old one came back, and commits were lost by that.
    pub(super) lost: u32,
    /// An old one came back, and be it that only openings were lost: `seq` may have gone back.
    pub(super) is_old: bool,
}

impl Histories {
    pub(super) fn new(ns: usize, copies: bool) -> Histories {
        let copies = copies.then(VecDeque::new);
        Histories { ns, committed: BTreeMap::new(), lineage: Vec::new(), copies, lost: 0, is_old: false }
    }

    /// Takes note of what the store holds.
    pub(super) fn learn(&mut self, space: &Space) {
        let Some((head, state)) = &space.history else { return };
        let fact = fact(self.ns, head);
        if self.lineage.last() == Some(&fact) {
            return;
        }
        let base = self.lineage.last().copied();
        self.lineage.push(fact);
        self.committed.entry(fact).or_insert_with(|| (head.clone(), state.clone(), base));
        if let Some(copies) = &mut self.copies {
            copies.push_back((space.clone(), self.lineage.len()));
            if copies.len() > COPIES {
                copies.pop_front();
            }
        }
    }

    /// The store as it was so many commits ago, or as long ago as is known: it is the store from now on.
    pub(super) fn go_back(&mut self, commits: usize) -> Option<Space> {
        let copies = self.copies.as_mut()?;
        copies.truncate(copies.len().saturating_sub(commits).max(1));
        let (space, led) = copies.back()?;
        self.is_old = true;
        self.lost += u32::from(*led < self.lineage.len());
        self.lineage.truncate(*led);
        Some(space.clone())
    }

    /// What was committed there, if it was.
    pub(super) fn committed(&self, fact: &Fact) -> Option<(&Head, &State)> {
        self.committed.get(fact).map(|(head, state, _)| (head, state))
    }

    pub(super) fn highest_epoch(&self) -> u64 {
        self.committed.keys().map(|((_, epoch, ..), _)| *epoch).max().unwrap_or(0)
    }

    /// Whether it is of the history that the store has now.
    pub(super) fn holds(&self, fact: &Fact) -> bool {
        // Most often it is one of the last.
        self.lineage.iter().rev().any(|known| known == fact)
    }

    /// Whether one leads to the other.
    pub(super) fn leads(&self, from: &Fact, to: &Fact) -> bool {
        let base = |at: &Fact| self.committed.get(at).and_then(|(.., base)| *base);
        std::iter::successors(Some(*to), base).any(|at| at == *from)
    }

    /// Whether who really was at `facts` may be counted as having been at `at`: in the epoch of `now` only by the
    /// history of now. `lies`: somebody may say again what was said of another.
    pub(super) fn counts(
        &self,
        facts: &BTreeSet<Fact>,
        at: &Position,
        now: Option<&Head>,
        lies: bool,
    ) -> bool {
        let at = place(self.ns, at);
        let past = now.is_none_or(|now| place(self.ns, &now.position).1 > at.1);
        let mut there = facts.range((at, [0; 32])..=(at, [0xff; 32]));
        there.any(|fact| past || lies || self.holds(fact))
    }

    /// Invariant 7: who goes from one revision to another in an epoch stays in one history.
    pub(super) fn check_step(&self, n: usize, from: Option<&Head>, to: &Head) -> Result<(), String> {
        let same = |from: &&Head| from.position.epoch == to.position.epoch;
        match from.filter(same).is_none_or(|from| self.leads(&fact(self.ns, from), &fact(self.ns, to))) {
            true => Ok(()),
            false => {
                let (from, to) = (from.map(|from| from.position), to.position);
                Err(format!("invariant 7: node {n} goes from {from:?} to another history's {to}"))
            }
        }
    }

    /// What a place may be: each revision of that number.
    pub(super) fn at(&self, at: Place) -> impl Iterator<Item = &Fact> {
        self.committed.range((at, [0; 32])..=(at, [0xff; 32])).map(|(fact, _)| fact)
    }
}
