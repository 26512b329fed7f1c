//! Topics as prefixes: does a message match any of them?
//!
//! A radix tree: a match walks down along the message's own bytes, so its time depends on the length of the
//! matching topic and not on their number. Nodes lie in one slab, without recursion: nested topics by the
//! thousand cannot exhaust the stack, not even a peer's.
//!
//! Owns: topics, each with its count. Never: orders anything by a hash.

use slab::Slab;

/// A counted set of byte prefixes.
#[derive(Clone, Debug)]
pub struct Topics {
    nodes: Slab<Node>,
    root: usize,
    len: usize,
    bytes: usize,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// Bytes between the parent and this node; empty only at the root.
    label: Box<[u8]>,
    /// How often the topic that ends here was added. 0: only a fork.
    count: usize,
    /// By the first byte of the child's label, in order.
    children: Vec<(u8, usize)>,
}

impl Node {
    fn child(&self, first: u8) -> Option<usize> {
        let at = self.children.binary_search_by_key(&first, |(byte, _)| *byte).ok()?;
        Some(self.children[at].1)
    }

    fn set_child(&mut self, first: u8, child: usize) {
        match self.children.binary_search_by_key(&first, |(byte, _)| *byte) {
            Ok(at) => self.children[at].1 = child,
            Err(at) => self.children.insert(at, (first, child)),
        }
    }
}

impl Default for Topics {
    fn default() -> Self {
        let mut nodes = Slab::new();
        let root = nodes.insert(Node::default());
        Topics { nodes, root, len: 0, bytes: 0 }
    }
}

impl Topics {
    /// Adds a topic; `true` if it was not there before. The empty one matches everything.
    pub fn add(&mut self, topic: &[u8]) -> bool {
        let (mut at, mut rest) = (self.root, topic);
        while let Some(&first) = rest.first() {
            let Some(child) = self.nodes[at].child(first) else {
                let leaf = self.nodes.insert(Node { label: rest.into(), ..Node::default() });
                self.nodes[at].set_child(first, leaf);
                at = leaf;
                break;
            };
            let common = self.nodes[child].label.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if common < self.nodes[child].label.len() {
                self.split(at, child, common);
            }
            at = self.nodes[at].child(first).unwrap_or(child);
            rest = &rest[common..];
        }
        self.nodes[at].count += 1;
        let new = self.nodes[at].count == 1;
        if new {
            self.len += 1;
            self.bytes += topic.len();
        }
        new
    }

    /// Puts a fork between `parent` and `child`, `common` bytes into the child's label.
    fn split(&mut self, parent: usize, child: usize, common: usize) {
        let label = std::mem::take(&mut self.nodes[child].label);
        let (above, below) = label.split_at(common);
        let fork = Node { label: above.into(), count: 0, children: vec![(below[0], child)] };
        self.nodes[child].label = below.into();
        let fork = self.nodes.insert(fork);
        self.nodes[parent].set_child(label[0], fork);
    }

    /// Takes a topic away once; `Some(true)` if it is gone now, `Some(false)` if it was added more often, and
    /// `None` if it was not there.
    pub fn remove(&mut self, topic: &[u8]) -> Option<bool> {
        let (mut parent, mut at, mut rest) = (self.root, self.root, topic);
        while let Some(&first) = rest.first() {
            let child = self.nodes[at].child(first)?;
            rest = rest.strip_prefix(&self.nodes[child].label[..])?;
            (parent, at) = (at, child);
        }
        let node = &mut self.nodes[at];
        node.count = node.count.checked_sub(1)?;
        if node.count > 0 {
            return Some(false);
        }
        self.len -= 1;
        self.bytes -= topic.len();
        if node.children.is_empty() && at != self.root {
            let leaf = self.nodes.remove(at);
            self.nodes[parent].children.retain(|(byte, _)| *byte != leaf.label[0]);
            self.merge(parent);
        } else {
            self.merge(at);
        }
        Some(true)
    }

    /// A fork with one way left is none: it takes its only child's place.
    fn merge(&mut self, at: usize) {
        let node = &self.nodes[at];
        if at == self.root || node.count > 0 || node.children.len() != 1 {
            return;
        }
        let mut child = self.nodes.remove(node.children[0].1);
        child.label = [&self.nodes[at].label[..], &child.label].concat().into();
        self.nodes[at] = child;
    }

    /// Whether the empty topic is among them, so that everything matches.
    #[inline]
    pub fn match_all(&self) -> bool {
        self.nodes[self.root].count > 0
    }

    /// Whether any topic is a prefix of `body`.
    #[inline]
    pub fn matches(&self, body: &[u8]) -> bool {
        let (mut node, mut rest) = (&self.nodes[self.root], body);
        while node.count == 0 {
            let Some(child) = rest.first().and_then(|first| node.child(*first)) else { return false };
            node = &self.nodes[child];
            let Some(left) = rest.strip_prefix(&node.label[..]) else { return false };
            rest = left;
        }
        true
    }

    /// Calls `each` with every topic once, in byte order, until it says `false`.
    pub fn for_each(&self, mut each: impl FnMut(&[u8]) -> bool) {
        let mut topic = Vec::new();
        let mut todo = vec![(self.root, 0)];
        while let Some((at, above)) = todo.pop() {
            let node = &self.nodes[at];
            topic.truncate(above);
            topic.extend_from_slice(&node.label);
            if node.count > 0 && !each(&topic) {
                return;
            }
            todo.extend(node.children.iter().rev().map(|(_, child)| (*child, topic.len())));
        }
    }

    /// Number of different topics.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none, so that nothing matches.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all different topics together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn topic() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0u8), Just(1), Just(255)], 0..7)
    }

    proptest! {
        #[test]
        fn it_says_what_a_list_of_prefixes_says(
            steps in vec((any::<bool>(), topic()), 1..120), bodies in vec(topic(), 1..20),
        ) {
            let mut tree = Topics::default();
            let mut list: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
            for (add, topic) in steps {
                if add {
                    let count = list.entry(topic.clone()).or_default();
                    *count += 1;
                    prop_assert_eq!(tree.add(&topic), *count == 1);
                } else {
                    let told = tree.remove(&topic);
                    match list.get_mut(&topic) {
                        Some(count) if *count > 1 => {
                            *count -= 1;
                            prop_assert_eq!(told, Some(false));
                        }
                        Some(_) => {
                            list.remove(&topic);
                            prop_assert_eq!(told, Some(true));
                        }
                        None => prop_assert_eq!(told, None),
                    }
                }
                for body in &bodies {
                    prop_assert_eq!(tree.matches(body), list.keys().any(|t| body.starts_with(t)));
                }
                prop_assert_eq!(tree.len(), list.len());
                prop_assert_eq!(tree.bytes(), list.keys().map(Vec::len).sum::<usize>());
                // Compact: every node but the root is a topic or a fork of two.
                let needless = |(at, n): (usize, &Node)| at != tree.root && n.count == 0 && n.children.len() < 2;
                prop_assert!(!tree.nodes.iter().any(needless));
            }
            let mut all = vec![];
            tree.for_each(|topic| { all.push(topic.to_vec()); true });
            prop_assert!(all.iter().eq(list.keys()));
        }
    }

    #[test]
    fn thousands_of_nested_topics_end_without_a_deep_stack() {
        let long = vec![7; 5_000];
        let mut tree = Topics::default();
        (0..long.len()).rev().for_each(|n| assert!(tree.add(&long[..n])));
        assert!(tree.matches(&long));
        let copy = tree.clone();
        drop(tree);
        let mut n = 0;
        copy.for_each(|_| {
            n += 1;
            n < 10
        });
        assert_eq!((n, copy.len()), (10, 5_000));
    }
}
