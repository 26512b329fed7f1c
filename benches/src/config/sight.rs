//! What nodes see: each commit once, and how long after it was issued.
//!
//! A value carries the number of its commit and the time of its issue, so that who sees it needs nothing else. Owns:
//! the check that nothing is lost or doubled. Never: knows how a value came.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::machine;
use crate::payload::WRONG;
use crate::{Result, config::case::Content};

/// Number of what is there before a case begins.
const BEFORE: u64 = 0;

/// A value of `size` bytes: commit number `seq` (0: there before), issued at `at` on the shared clock.
pub fn value(seq: u64, at: f64, size: usize) -> Vec<u8> {
    let mut value = [seq.to_le_bytes(), at.to_le_bytes()].concat();
    // Not all alike, for whoever might compress.
    value.extend((16..size).map(|i| (seq as usize).wrapping_mul(31).wrapping_add(i * 7) as u8));
    value
}

/// The key of a commit.
pub fn key(seq: u64, content: Content) -> String {
    format!("config/key-{:06}", seq % content.keys as u64)
}

/// What all nodes of a process saw together.
#[derive(Debug, Default)]
pub struct Together {
    /// Values seen, of all nodes.
    seen: AtomicU64,
    /// Nodes that hold a whole state.
    whole: AtomicUsize,
    /// Commits up to this number are warm-up.
    warm_up: u64,
    /// Told which node holds a whole state.
    tell: Option<Mutex<mpsc::Sender<usize>>>,
}

impl Together {
    /// For a case in which commits up to number `warm_up` are not measured.
    pub fn new(warm_up: u64) -> Self {
        Together { warm_up, ..Together::default() }
    }

    /// For a case in which somebody wants to know each node that holds a whole state.
    pub fn telling(tell: mpsc::Sender<usize>) -> Self {
        Together { tell: Some(Mutex::new(tell)), ..Together::default() }
    }

    /// Waits until every one of `nodes` holds a whole state.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_whole(&self, nodes: usize, limit: Duration) -> Result<()> {
        wait(limit, || self.whole.load(Ordering::Acquire) >= nodes).ok_or_else(|| {
            let whole = self.whole.load(Ordering::Acquire);
            format!("{whole} of {nodes} nodes hold the state after {limit:?}").into()
        })
    }

    /// Waits until `values` were seen.
    ///
    /// # Errors
    /// Not in time: values are lost.
    pub fn wait_seen(&self, values: u64, limit: Duration) -> Result<()> {
        wait(limit, || self.seen.load(Ordering::Acquire) >= values).ok_or_else(|| {
            let seen = self.seen.load(Ordering::Acquire);
            format!("{WRONG}{values} values were due, {seen} came within {limit:?}").into()
        })
    }
}

/// Looks every millisecond.
pub fn wait(limit: Duration, mut done: impl FnMut() -> bool) -> Option<()> {
    let until = Instant::now() + limit;
    while !done() {
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(())
}

#[derive(Debug, Default)]
struct Seen {
    /// A bit for each commit.
    bits: Vec<u64>,
    /// Commit and microseconds from its issue.
    times: Vec<(u32, u32)>,
    wrong: Option<String>,
}

impl Seen {
    fn has(&self, seq: u64) -> bool {
        self.bits.get((seq / 64) as usize).is_some_and(|word| word & (1 << (seq % 64)) != 0)
    }
}

/// What one node sees.
#[derive(Debug)]
pub struct Sight {
    /// Number of the node.
    pub node: usize,
    seen: Mutex<Seen>,
    together: Arc<Together>,
}

impl Sight {
    /// Nothing yet.
    pub fn new(node: usize, together: &Arc<Together>) -> Arc<Self> {
        Arc::new(Sight { node, seen: Mutex::default(), together: together.clone() })
    }

    /// A value is visible.
    pub fn see(&self, value: &[u8]) {
        let now = machine::clock();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(Ok(seq)), Some(Ok(at))) =
            (value.get(..8).map(<[u8; 8]>::try_from), value.get(8..16).map(<[u8; 8]>::try_from))
        else {
            seen.wrong = Some(format!("a value of {} bytes", value.len()));
            return;
        };
        let (seq, at) = (u64::from_le_bytes(seq), f64::from_le_bytes(at));
        if seq == BEFORE {
            return;
        }
        let (word, bit) = ((seq / 64) as usize, 1 << (seq % 64));
        if seen.bits.len() <= word {
            seen.bits.resize(word + 1, 0);
        }
        if seen.bits[word] & bit != 0 {
            seen.wrong = Some(format!("commit {seq} came twice"));
        }
        seen.bits[word] |= bit;
        if seq > self.together.warm_up {
            seen.times.push((seq as u32, ((now - at) * 1e6).max(0.0) as u32));
        }
        drop(seen);
        self.together.seen.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether commit `seq` was seen.
    pub fn has_seen(&self, seq: u64) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).has(seq)
    }

    /// The node holds a whole state for the first time: so many keys.
    pub fn whole(&self, keys: usize, content: Content) {
        if keys != content.keys {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.wrong = Some(format!("a first state of {keys} keys, not {}", content.keys));
        }
        self.together.whole.fetch_add(1, Ordering::AcqRel);
        if let Some(tell) = &self.together.tell {
            // Who asked may have given up.
            let _ = tell.lock().unwrap_or_else(PoisonError::into_inner).send(self.node);
        }
    }

    /// Commit numbers with microseconds, if all of `commits` were seen, once each.
    ///
    /// # Errors
    /// What was lost or doubled.
    pub fn check(&self, commits: u64) -> Result<Vec<(u32, u32)>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &seen.wrong {
            return Err(format!("{WRONG}node {}: {why}", self.node).into());
        }
        if let Some(lost) = (1..=commits).find(|seq| !seen.has(*seq)) {
            return Err(format!("{WRONG}node {} did not see commit {lost} of {commits}", self.node).into());
        }
        Ok(std::mem::take(&mut seen.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_came_twice_or_never_is_told() {
        let content = Content { keys: 1, value: 16 };
        let together = Arc::new(Together::new(1));
        let sight = Sight::new(0, &together);
        (0..3).for_each(|seq| sight.see(&value(seq, machine::clock(), 16)));
        assert_eq!(sight.check(2).unwrap().len(), 1, "the first is warm-up");
        assert!(sight.check(3).unwrap_err().to_string().contains("commit 3"));
        sight.see(&value(2, 0.0, 16));
        assert!(sight.check(2).unwrap_err().to_string().contains("twice"));
        let sight = Sight::new(0, &together);
        sight.whole(2, content);
        assert!(sight.check(0).is_err());
    }
}
