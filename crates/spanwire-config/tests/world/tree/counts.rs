//! What happened in trees. Owns: numbers. Never: a judgement; the tests say how much there must be.

use std::ops::AddAssign;

/// What happened, so that a test can see that the mixture reaches what it is meant to test.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct TreeCounts {
    pub(crate) forwarded: u64,
    pub(crate) reports: u64,
    pub(crate) loops: u64,
    pub(crate) behind: u64,
    pub(crate) deep: u64,
    /// Revisions that were for a cohort, and how often one was shown by a node behind a relay.
    pub(crate) rollouts: u64,
    pub(crate) canaries: u64,
    /// Nodes whose relay died, and that had another way.
    pub(crate) fail_overs: u64,
    /// How often an old copy of the store came back and commits were lost by that, and how often a node was behind a
    /// relay that held what was lost.
    pub(crate) lost: u64,
    pub(crate) conflicts: u64,
}

impl AddAssign for TreeCounts {
    fn add_assign(&mut self, o: TreeCounts) {
        self.forwarded += o.forwarded;
        self.reports += o.reports;
        self.loops += o.loops;
        self.behind += o.behind;
        self.deep += o.deep;
        self.rollouts += o.rollouts;
        self.canaries += o.canaries;
        self.fail_overs += o.fail_overs;
        self.lost += o.lost;
        self.conflicts += o.conflicts;
    }
}
