//! What the nodes of a server did lately, for people.
//!
//! Owns: the words, and how many of them. Never: leaves out a node in trouble.

use crate::{NodeKind, NodeStatus, Position};

/// Most nodes that get a line each at a time.
const MOST_LINES: usize = 20;

/// What changed between two looks at the nodes, for people; both in the order of their ids.
pub(super) fn lines(last: &[NodeStatus], now: &[NodeStatus]) -> Vec<String> {
    // The steps between a change and its end are not worth a line for each node; a relay shows before it stores.
    let lasting = |n: &NodeStatus| n.kind == NodeKind::Replica && n.is_volatile();
    let told = |n: &NodeStatus| (n.connected, n.applied, n.refused.clone(), n.conflict, lasting(n));
    let before =
        |node: &NodeStatus| last.binary_search_by_key(&node.node, |old| old.node).ok().map(|at| &last[at]);
    let changed = now.iter().filter(|node| before(node).map(told) != Some(told(node)));
    let troubled = |node: &&NodeStatus| node.conflict || !node.refused.is_empty();
    let (mut told, swarm): (Vec<_>, Vec<_>) = changed.partition(troubled);
    if swarm.len() <= MOST_LINES {
        told.extend(swarm);
        return told.into_iter().map(line).collect();
    }
    let here = swarm.iter().filter(|node| node.connected).count();
    let highest = swarm
        .iter()
        .filter_map(|node| node.applied)
        .fold(None, |high: Option<Position>, at| Some(high.filter(|high| *high >= at).unwrap_or(at)));
    let at = highest.filter(|_| here > 0).map_or(String::new(), |at| {
        let there = swarm.iter().filter(|node| node.applied == Some(at)).count();
        format!("; {there} applied {at}")
    });
    let mut lines: Vec<String> = told.into_iter().map(line).collect();
    lines.push(format!("{} nodes: {here} here, {} away{at}", swarm.len(), swarm.len() - here));
    lines
}

/// One node for people.
fn line(node: &NodeStatus) -> String {
    let at = |position: Option<Position>| position.map_or("-".to_owned(), |p| p.to_string());
    let mut line = format!(
        "node {} ({:?}): {}, stored {}, visible {}, applied {}",
        node.name,
        node.node,
        if node.connected { "here" } else { "away" },
        at(node.stored),
        at(node.visible),
        at(node.applied),
    );
    if let Some((position, code, text)) = node.refused.last() {
        line.push_str(&format!("; refused {position}: {code:?}: {text}"));
    }
    if !node.path.is_empty() {
        let path: Vec<String> = node.path.iter().map(|relay| format!("{relay:?}")).collect();
        line.push_str(&format!("; through {}", path.join(", ")));
    }
    if node.is_volatile() {
        line.push_str("; volatile: not on its disk");
    }
    if node.conflict {
        line.push_str("; ALARM: holds another history");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Id};

    #[test]
    fn a_swarm_of_nodes_gets_one_line_and_who_is_in_trouble_one_of_its_own() {
        let at = |rev| Some(Position { epoch: Epoch { number: 1, incarnation: Id([1; 16]) }, rev });
        let node =
            |n: u8, applied| NodeStatus { connected: n < 90, applied, ..NodeStatus::new(Id([n; 16]), 1) };
        let before: Vec<NodeStatus> = (0..100).map(|n| node(n, at(1))).collect();
        assert_eq!(lines(&before, &before), Vec::<String>::new());
        let mut few = before.clone();
        few[3].applied = at(2);
        assert_eq!(lines(&before, &few), [line(&few[3])]);
        // Applied as before, and kept now; at a relay that is a step and not news.
        for kind in [NodeKind::Replica, NodeKind::Relay] {
            let mut before = before.clone();
            (before[4].kind, before[4].visible) = (kind, at(1));
            let mut kept = before.clone();
            kept[4].stored = at(1);
            let told = lines(&before, &kept);
            assert_eq!(told.len(), usize::from(kind == NodeKind::Replica), "{told:?}");
            assert!(lines(&kept, &before).iter().all(|line| line.ends_with("volatile: not on its disk")));
        }
        let mut many: Vec<NodeStatus> = (0..100).map(|n| node(n, at(2))).collect();
        many[5].conflict = true;
        let told = lines(&before, &many);
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], line(&many[5]));
        assert!(
            told[1].starts_with("99 nodes: 89 here, 10 away; 99 applied 1/") && told[1].ends_with(":2"),
            "{told:?}"
        );
    }
}
