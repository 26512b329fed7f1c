//! Who has reached a position: the answer to WAIT, from what nodes reported.
//!
//! The nodes are looked up once, at the start. From then on each of them is in exactly one of four lists, and the
//! answer is final when nobody is left who may still reach it, when time is over, or when what is waited for is gone.
//!
//! Owns: which list a node is in, and when a wait ends. Never: a clock, a socket.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::faults::planted;
use crate::rollout::admits;
use crate::wire::client::{Named, Refusing, Selector, WaitAsk, Waited};
use crate::wire::{Level, NackCode, NodeKind};
use crate::{Head, Id, Namespace, NodeStatus, NsAuthority, Place, Position};

/// Longest text of a refusal in an answer: there may be many of them.
const MAX_TEXT: usize = 256;

/// How a wait ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Each selected node is in exactly one list.
    Waited(Waited),
    /// It was a rollout's, and that was aborted.
    Aborted,
    /// Another epoch has begun; this is its newest.
    Lost(Place),
    /// Nothing was committed there yet.
    NoSuch,
}

/// What comes of a look at a wait that is under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// It goes on.
    Open,
    /// It ends.
    Ended(Outcome),
    /// The rollout of what is waited for is over: the authority knows how ([`Wait::settle`]).
    Settled,
}

/// What is waited for, before anybody is selected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Goal {
    position: Position,
    level: Level,
    /// Of whom it may be reached, while its rollout is open.
    audience: Option<Bytes>,
}

impl Goal {
    /// What is asked for, in the history that this authority has.
    ///
    /// # Errors
    /// The outcome, where there is nothing to wait for.
    pub fn of(machine: &NsAuthority, ask: &WaitAsk) -> Result<Goal, Outcome> {
        let head = machine.position().ok_or(Outcome::NoSuch)?;
        if ask.position.epoch < head.epoch.number {
            return Err(Outcome::Lost(head.into()));
        }
        if ask.position > head.into() || ask.position.rev == 0 {
            return Err(Outcome::NoSuch);
        }
        if machine.is_aborted(ask.position) {
            return Err(Outcome::Aborted);
        }
        let cohort = machine.cohort().filter(|(at, _)| Place::from(*at) == ask.position);
        Ok(Goal {
            position: Position { epoch: head.epoch, rev: ask.position.rev },
            level: ask.level,
            audience: cohort.map(|(_, audience)| audience),
        })
    }
}

/// A wait for one position, by the nodes that were selected when it began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wait {
    position: Position,
    level: Level,
    /// It is for a cohort while its rollout is open.
    cohort: bool,
    nodes: Vec<Named>,
    /// Names that were asked for and that no node had.
    unknown: Vec<Named>,
}

impl Wait {
    /// Selects from the nodes that are known now: of a revision that has an audience, from its cohort.
    pub fn new(goal: &Goal, selector: &Selector, known: &[NodeStatus]) -> Wait {
        let Selector { names, labels } = selector;
        let meant = |node: &&NodeStatus| {
            // A relay applies nothing.
            node.kind == NodeKind::Replica
                && (names.is_empty() || names.contains(&node.name))
                && labels.iter().all(|label| node.labels.contains(label))
                && goal.audience.as_ref().is_none_or(|audience| admits(audience, node.node, &node.labels))
        };
        let mut nodes: Vec<Named> = (known.iter().filter(meant))
            .map(|node| Named { node: node.node, name: node.name.clone() })
            .collect();
        nodes.sort_by(|a, b| (&a.name, a.node).cmp(&(&b.name, b.node)));
        let mut unknown: Vec<Named> = (names.iter())
            .filter(|name| known.iter().all(|node| node.name != **name))
            .map(|name| Named { node: Id::default(), name: name.clone() })
            .collect();
        unknown.sort_by(|a, b| a.name.cmp(&b.name));
        unknown.dedup();
        let level = if planted("wait-for-visible") { goal.level.min(Level::Visible) } else { goal.level };
        Wait { position: goal.position, level, cohort: goal.audience.is_some(), nodes, unknown }
    }

    /// Whether it ends now; `status` is that of the nodes of the sender's namespace. `over`: its time is.
    pub fn look(&self, sender: &Namespace, status: &[NodeStatus], over: bool) -> Look {
        // The sender may not have heard yet of the epoch that the authority has begun.
        let later = |head: &&Head| head.position.epoch.number > self.position.epoch.number;
        if let Some(head) = sender.head().filter(later)
            && !planted("wait-over-epochs")
        {
            return Look::Ended(Outcome::Lost(head.position.into()));
        }
        if self.is_settled(sender.canary().map(|head| head.position)) {
            return Look::Settled;
        }
        let (waited, done) = self.lists(status);
        match done || over && !planted("wait-without-end") {
            true => Look::Ended(Outcome::Waited(waited)),
            false => Look::Open,
        }
    }

    /// After [`Look::Settled`]: the same wait, of a revision that is for all by now.
    ///
    /// # Errors
    /// It was aborted.
    pub fn settle(&self, machine: &NsAuthority) -> Result<Wait, Outcome> {
        match machine.is_aborted(self.position.into()) {
            true => Err(Outcome::Aborted),
            false => Ok(Wait { cohort: false, ..self.clone() }),
        }
    }

    /// Whether it was a rollout's and is not any more; `canary` is the one that is open.
    fn is_settled(&self, canary: Option<Position>) -> bool {
        self.cohort && canary != Some(self.position)
    }

    /// Each selected node in one list, and whether that is final.
    fn lists(&self, status: &[NodeStatus]) -> (Waited, bool) {
        let status: BTreeMap<Id, &NodeStatus> = status.iter().map(|node| (node.node, node)).collect();
        let mut waited = Waited { silent: self.unknown.clone(), ..Waited::default() };
        let mut done = true;
        let come = status.values().filter(|node| self.nodes.iter().all(|named| named.node != node.node));
        let come = come.filter(|_| planted("wait-selects-anew"));
        let come: Vec<Named> = come.map(|node| Named { node: node.node, name: node.name.clone() }).collect();
        for named in self.nodes.iter().chain(&come) {
            let Some(node) = status.get(&named.node) else {
                // Forgotten: it may come back as long as there is time.
                waited.silent.push(named.clone());
                done = false;
                continue;
            };
            if self.reached(node) {
                waited.ok.push(named.clone());
            } else if let Some(refusing) = self.refusal(named, node) {
                // A conflict ends by somebody's hand at the node, which may be at work while it is away.
                done &=
                    node.connected || refusing.code != NackCode::Conflict || planted("wait-ends-by-conflict");
                if !planted("wait-forgets-refusals") {
                    waited.refused.push(refusing);
                }
            } else {
                done = false;
                let here = node.connected || planted("wait-away-is-behind");
                if here { &mut waited.behind } else { &mut waited.silent }.push(named.clone());
            }
        }
        (waited, done)
    }

    fn reached(&self, node: &NodeStatus) -> bool {
        !node.conflict && node.at(self.level).is_some_and(|at| at >= self.position)
    }

    /// Why it will not reach the position by itself.
    fn refusal(&self, named: &Named, node: &NodeStatus) -> Option<Refusing> {
        let node_named = named.clone();
        // The oldest of those that contain it: a newer one that is on its way may yet be taken.
        let refused = node.refused.iter().find(|(position, ..)| *position >= self.position);
        match refused {
            Some((position, code, text)) => {
                let mut end = text.len().min(MAX_TEXT);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                let (position, text) = ((*position).into(), text[..end].to_owned());
                Some(Refusing { node: node_named, position, code: *code, text })
            }
            None if node.conflict => Some(Refusing {
                node: node_named,
                position: self.position.into(),
                code: NackCode::Conflict,
                text: "holds another history".into(),
            }),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Epoch;

    fn at(rev: u64) -> Position {
        Position { epoch: Epoch { number: 1, incarnation: Id([1; 16]) }, rev }
    }

    fn goal(audience: Option<Bytes>) -> Goal {
        Goal { position: at(3), level: Level::Applied, audience }
    }

    fn status(
        n: u8,
        connected: bool,
        applied: Option<u64>,
        refused: Option<u64>,
        conflict: bool,
    ) -> NodeStatus {
        let applied = applied.map(at);
        NodeStatus {
            name: format!("n{n}"),
            labels: vec![("half".into(), if n.is_multiple_of(2) { "even" } else { "odd" }.into())],
            connected,
            stored: applied,
            visible: applied,
            applied,
            refused: refused.map(|rev| (at(rev), NackCode::Hook, "no".into())).into_iter().collect(),
            conflict,
            ..NodeStatus::new(Id([n; 16]), 1)
        }
    }

    fn known() -> impl Strategy<Value = Vec<NodeStatus>> {
        let one =
            (any::<bool>(), proptest::option::of(1u64..5), proptest::option::of(1u64..5), any::<bool>());
        proptest::collection::vec(one, 0..12).prop_map(|all| {
            (1..)
                .zip(all)
                .map(|(n, (here, applied, refused, odd))| status(n, here, applied, refused, odd))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn invariant_17_each_selected_node_is_in_exactly_one_list(
            start in known(), later in known(), names in proptest::collection::vec(0u8..14, 0..4), label in any::<bool>()
        ) {
            let selector = Selector {
                names: names.iter().map(|n| format!("n{n}")).collect(),
                labels: label.then(|| ("half".into(), "even".into())).into_iter().collect(),
            };
            let wait = Wait::new(&goal(None), &selector, &start);
            let (waited, done) = wait.lists(&later);
            let refused = waited.refused.iter().map(|refusing| &refusing.node);
            let mut all: Vec<&Named> =
                waited.ok.iter().chain(refused).chain(&waited.behind).chain(&waited.silent).collect();
            let count = all.len();
            all.sort_by(|a, b| (a.node, &a.name).cmp(&(b.node, &b.name)));
            all.dedup();
            prop_assert_eq!(all.len(), count, "nobody twice");
            // What was selected at the start, whatever came later.
            let meant = |node: &NodeStatus| {
                (names.is_empty() || selector.names.contains(&node.name))
                    && (!label || node.labels[0].1 == "even")
            };
            let unknown = selector.names.iter().filter(|name| start.iter().all(|node| node.name != **name));
            let unknown: std::collections::BTreeSet<_> = unknown.collect();
            prop_assert_eq!(count, start.iter().filter(|node| meant(node)).count() + unknown.len());
            let open = waited.behind.len() + waited.silent.len() - unknown.len();
            let here = |node: Id| later.iter().any(|status| status.node == node && status.connected);
            let may_end = |r: &Refusing| r.code == NackCode::Conflict && !here(r.node.node);
            prop_assert_eq!(done, open == 0 && !waited.refused.iter().any(may_end));
            prop_assert!(waited.ok.iter().all(|ok| later.iter().any(|n| n.node == ok.node && n.applied >= Some(at(3)))));
        }
    }

    #[test]
    fn who_is_outside_of_the_audience_is_not_selected() {
        let known: Vec<NodeStatus> = (0..20).map(|n| status(n, true, None, None, false)).collect();
        let half = crate::rollout::Audience { share: 5_000, ..crate::rollout::Audience::default() };
        let wait = Wait::new(&goal(Some(half.to_bytes())), &Selector::default(), &known);
        let meant = |node: &&NodeStatus| half.admits(node.node, &node.labels);
        let (waited, _) = wait.lists(&known);
        assert_eq!(waited.behind.len(), known.iter().filter(meant).count());
        assert!((1..20).contains(&waited.behind.len()));
        assert!(wait.is_settled(None) && wait.is_settled(Some(at(4))) && !wait.is_settled(Some(at(3))));
        assert!(!Wait { cohort: false, ..wait }.is_settled(None));
    }

    #[test]
    fn a_refusal_of_what_contains_the_position_counts_and_an_older_one_does_not() {
        let wait = Wait::new(&goal(None), &Selector::default(), &[status(1, true, None, None, false)]);
        let (waited, done) = wait.lists(&[status(1, true, Some(2), Some(4), false)]);
        assert_eq!((waited.refused.len(), waited.refused[0].position, done), (1, at(4).into(), true));
        let (waited, done) = wait.lists(&[status(1, true, Some(1), Some(2), false)]);
        assert_eq!((waited.behind.len(), done), (1, false));
        // What was refused may have been got over.
        let (waited, done) = wait.lists(&[status(1, true, Some(3), Some(3), false)]);
        assert_eq!((waited.ok.len(), done), (1, true));
    }

    #[test]
    fn who_is_away_in_conflict_may_come_back_with_another_word() {
        let wait = Wait::new(&goal(None), &Selector::default(), &[status(1, true, None, None, false)]);
        let (waited, done) = wait.lists(&[status(1, false, None, None, true)]);
        assert_eq!((waited.refused[0].code, done), (NackCode::Conflict, false));
        let (waited, done) = wait.lists(&[status(1, true, None, None, true)]);
        assert_eq!((waited.refused[0].code, done), (NackCode::Conflict, true));
        // A validator's word stays one, wherever the node is.
        assert!(wait.lists(&[status(1, false, None, Some(3), false)]).1);
    }

    #[test]
    fn what_is_reached_in_another_incarnation_does_not_count() {
        let mut node = status(1, true, Some(9), None, false);
        let wait = Wait::new(&goal(None), &Selector::default(), std::slice::from_ref(&node));
        node.applied = Some(Position { epoch: Epoch { number: 1, incarnation: Id([2; 16]) }, rev: 9 });
        assert_eq!(wait.lists(&[node]).0.behind.len(), 1);
    }
}
