//! Nobody waits for a fellow: invariant 25, as far as it shows in a world whose machines take no time.
//!
//! Who has all but the newest and can be sent that is sent it in the event that made it so, whoever else has stopped.
//! What nodes do share, the slots of large transfers, is the business of invariant 22.

use super::*;

/// What a step may have beyond the state that it leads to: the keys that it deletes.
const DELETES: u64 = 512;

impl Oracle {
    /// Invariant 25, after an event of a server.
    pub(super) fn check_served(&self, s: usize, server: Served<'_>) -> Checked {
        let protocol = server.namespace();
        // While a rollout is open each has a target of its own, and a store that failed judges nobody.
        let plain = protocol.canary().is_none() && !server.server.lazy && !server.has_failed();
        let foreign = self.keys.foreign && s == 1;
        let logged = protocol.log_size().0 > 0;
        let Some(head) = protocol.head().filter(|_| plain && !foreign && logged) else { return Ok(()) };
        let small = snapshot_size(head.keys, head.bytes) + DELETES;
        let waits = |talk: &Conversation| {
            let next =
                talk.reached.is_some_and(|at| at.epoch == head.position.epoch && at.rev == head.prev_rev);
            let idle = talk.transfer.is_none() && talk.flight.is_empty();
            let credit = small <= talk.window && talk.sent.saturating_sub(talk.taken) < talk.window;
            talk.exact
                && talk.wants
                && !talk.stale
                && talk.contradicts.is_none()
                && next
                && idle
                && credit
                && !talk.refused.contains(&head.position)
        };
        let mut talks = self.conversations.iter().filter(|(_, talk)| talk.server == s);
        match talks.find(|(_, talk)| waits(talk)) {
            Some((link, talk)) => Err(format!(
                "invariant 25: node {} on {link:?} has {:?} and waits for {}",
                talk.node, talk.reached, head.position
            )),
            None => Ok(()),
        }
    }
}
