//! Helpers that protocols share: state for each pipe, and taking turns.
//!
//! [`PipeMap`] is a slab that refuses stale ids; [`Ring`] is round robin within priorities, the policy of
//! load balancing and of fair queueing (nanomsg `priolist.c`: 1 is served first). Never: iterates in an
//! order that depends on hashing, so that simulated runs repeat exactly.

use std::collections::{BTreeMap, VecDeque};

use super::PipeId;

/// State for each pipe. Access is O(1), and an id whose slot was given to a newer pipe finds nothing.
#[derive(Clone, Debug)]
pub struct PipeMap<T> {
    slots: Vec<Option<(PipeId, T)>>,
    len: usize,
}

impl<T> Default for PipeMap<T> {
    fn default() -> Self {
        PipeMap { slots: Vec::new(), len: 0 }
    }
}

impl<T> PipeMap<T> {
    /// Puts `value` for `pipe`, in place of one that was there.
    pub fn insert(&mut self, pipe: PipeId, value: T) {
        if self.slots.len() <= pipe.slot() {
            self.slots.resize_with(pipe.slot() + 1, || None);
        }
        if self.slots[pipe.slot()].replace((pipe, value)).is_none() {
            self.len += 1;
        }
    }

    /// The value of `pipe`.
    #[inline]
    pub fn get(&self, pipe: PipeId) -> Option<&T> {
        match self.slots.get(pipe.slot()) {
            Some(Some((id, value))) if *id == pipe => Some(value),
            _ => None,
        }
    }

    /// The value of `pipe`, to change.
    #[inline]
    pub fn get_mut(&mut self, pipe: PipeId) -> Option<&mut T> {
        match self.slots.get_mut(pipe.slot()) {
            Some(Some((id, value))) if *id == pipe => Some(value),
            _ => None,
        }
    }

    /// Takes the value of `pipe` out.
    pub fn remove(&mut self, pipe: PipeId) -> Option<T> {
        self.get(pipe)?;
        self.len -= 1;
        let value = self.slots[pipe.slot()].take().map(|(_, value)| value);
        while matches!(self.slots.last(), Some(None)) {
            self.slots.pop();
        }
        value
    }

    /// Whether `pipe` has a value.
    pub fn contains(&self, pipe: PipeId) -> bool {
        self.get(pipe).is_some()
    }

    /// Number of pipes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All pipes, in the order of their slots.
    pub fn keys(&self) -> impl Iterator<Item = PipeId> + '_ {
        self.slots.iter().flatten().map(|(id, _)| *id)
    }

    /// All pipes and values, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (PipeId, &T)> + '_ {
        self.slots.iter().flatten().map(|(id, value)| (*id, value))
    }

    /// All pipes and values, to change, in the order of their slots.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (PipeId, &mut T)> + '_ {
        self.slots.iter_mut().flatten().map(|(id, value)| (*id, value))
    }
}

/// Pipes that take turns: those with the lowest priority number first, round robin among equals.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    levels: BTreeMap<u8, VecDeque<PipeId>>,
    member: PipeMap<u8>,
}

impl Ring {
    /// Gives `pipe` a place at the end of its priority's turn. A second call changes nothing.
    pub fn insert(&mut self, pipe: PipeId, priority: u8) {
        if !self.member.contains(pipe) {
            self.member.insert(pipe, priority);
            self.levels.entry(priority).or_default().push_back(pipe);
        }
    }

    /// Takes `pipe` out. In O(1) when it is in front.
    pub fn remove(&mut self, pipe: PipeId) {
        let Some(priority) = self.member.remove(pipe) else { return };
        let Some(level) = self.levels.get_mut(&priority) else { return };
        if level.front() == Some(&pipe) {
            level.pop_front();
        } else {
            level.retain(|p| *p != pipe);
        }
        if level.is_empty() {
            self.levels.remove(&priority);
        }
    }

    /// Whose turn it is.
    #[inline]
    pub fn front(&self) -> Option<PipeId> {
        self.levels.first_key_value().and_then(|(_, level)| level.front().copied())
    }

    /// How many take turns with the one in front, that one counted.
    pub(super) fn in_turn(&self) -> usize {
        self.levels.first_key_value().map_or(0, |(_, level)| level.len())
    }

    /// `pipe` had its turn: to the end of its priority, if it was in front.
    #[inline]
    pub fn rotate(&mut self, pipe: PipeId) {
        if self.member.len() <= 1 {
            return; // its own turn follows; the most common case, without a look at the levels
        }
        let Some(priority) = self.member.get(pipe) else { return };
        if let Some(level) = self.levels.get_mut(priority)
            && level.len() > 1
            && level.front() == Some(&pipe)
        {
            level.rotate_left(1);
        }
    }

    /// Whether `pipe` has a place.
    pub fn contains(&self, pipe: PipeId) -> bool {
        self.member.contains(pipe)
    }

    /// Whether nobody has a place.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.member.is_empty()
    }

    /// Number of pipes.
    pub fn len(&self) -> usize {
        self.member.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32, word: u32) -> PipeId {
        PipeId::new(slot, word)
    }

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut m = PipeMap::default();
        m.insert(id(0, 1), "a");
        m.insert(id(0, 2), "b");
        assert_eq!((m.get(id(0, 1)), m.get(id(0, 2)), m.len()), (None, Some(&"b"), 1));
        assert_eq!(m.remove(id(0, 1)), None);
        assert_eq!(m.remove(id(0, 2)), Some("b"));
        assert!(m.is_empty());
    }

    #[test]
    fn equals_take_turns_and_a_lower_number_goes_first() {
        let mut r = Ring::default();
        for (slot, priority) in [(0, 8), (1, 8), (2, 1), (1, 8)] {
            r.insert(id(slot, 1), priority);
        }
        assert_eq!((r.front(), r.len()), (Some(id(2, 1)), 3));
        r.remove(id(2, 1));
        assert_eq!(r.front(), Some(id(0, 1)));
        r.rotate(id(1, 1)); // not in front: changes nothing
        r.rotate(id(0, 1));
        assert_eq!(r.front(), Some(id(1, 1)));
        r.remove(id(0, 1));
        r.rotate(id(1, 1));
        assert_eq!(r.front(), Some(id(1, 1)));
        r.remove(id(1, 1));
        assert!(r.is_empty() && r.front().is_none());
    }
}
