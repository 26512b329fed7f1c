//! For whom that is which is on the agent's disk: a promotion changes it without a new revision.
//!
//! Owns: the audience that was stored last, and when to try again what was not. Never: writes; keeps a time to try again
//! for what a later revision has made good.

use std::time::Instant;

use bytes::Bytes;

use crate::again::{self, Again};

#[derive(Debug)]
pub(super) struct Promotion {
    stored: Bytes,
    pub(super) again: Again,
}

impl Promotion {
    /// `stored`: the audience of what the disk holds.
    pub(super) fn new(stored: Bytes, again: Again) -> Promotion {
        Promotion { stored, again }
    }

    /// Whether what is visible, which is for `audience`, is to be stored now.
    pub(super) fn is_owed(&mut self, audience: Option<&Bytes>, now: Instant) -> bool {
        if audience.is_none_or(|audience| *audience == self.stored) {
            self.again.done();
            return false;
        }
        self.again.at().is_none_or(|at| at <= now)
    }

    /// It is on disk, by whichever write.
    pub(super) fn stored(&mut self, audience: Bytes) {
        self.stored = audience;
        self.again.done();
    }

    /// It is not. Whether this is the first time in a row.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.again.failed(now, again::random())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_revision_on_disk_leaves_nothing_to_try_again() {
        let (now, canaries) = (Instant::now(), Bytes::from_static(b"canaries"));
        let mut promotion = Promotion::new(canaries, Again::default());
        let all = Bytes::new();
        assert!(promotion.is_owed(Some(&all), now));
        assert!(promotion.failed(now));
        let at = promotion.again.at().expect("tried again");
        assert!(!promotion.is_owed(Some(&all), now) && promotion.is_owed(Some(&all), at));
        // Before that time a whole revision is stored.
        promotion.stored(all.clone());
        // A time in the past would be waited for without a pause.
        assert_eq!(promotion.again.at(), None);
        assert!(!promotion.is_owed(Some(&all), at));
        // Nor when there is nothing any more that could be stored.
        assert!(promotion.failed(now), "the first in a row");
        assert!(!promotion.is_owed(None, at));
        assert_eq!(promotion.again.at(), None);
    }
}
