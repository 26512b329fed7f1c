//! Bugs that can be switched on: they show whether the tests would see them.
//!
//! Each is a small change of one rule, named at its place in the code by `planted("name")`, which is `false`
//! in every build without the feature `faults`, and false in every thread that did not [`plant`] that name. To
//! add one: a line in [`ALL`], and `planted("its-name")` where the rule is.
//!
//! Owns: which one is on, for each thread. Never: a bug in a build that serves anybody.

/// Whether this bug is switched on: never.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) const fn planted(_name: &'static str) -> bool {
    false
}

#[cfg(feature = "faults")]
pub use on::{ALL, plant, planted};

#[cfg(feature = "faults")]
mod on {
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<&'static str> = Cell::new(from_environment());
    }

    /// `SPANWIRE_FAULT=name` switches one on in every thread.
    fn from_environment() -> &'static str {
        let name = std::env::var("SPANWIRE_FAULT").unwrap_or_default();
        ALL.iter().map(|(known, _)| *known).find(|known| *known == name).unwrap_or_default()
    }

    /// Switches one bug on in this thread, or with an empty name none.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn plant(name: &'static str) {
        assert!(name.is_empty() || ALL.iter().any(|(known, _)| *known == name), "no planted fault {name}");
        ON.set(name);
    }

    /// Whether this bug is switched on in this thread.
    pub fn planted(name: &'static str) -> bool {
        ON.get() == name
    }

    /// Every bug, with what it does. Those of `world` are planted in the test's own authority and nodes.
    pub const ALL: &[(&str, &str)] = &[
        // The replica.
        ("skip-digest", "a transfer is not compared with the digest that its HEAD names"),
        ("skip-base", "a step is applied to whatever is held"),
        ("accept-holes", "slices are joined without looking at their offsets, and the digest is not checked"),
        ("no-epoch", "positions are ordered by revision only"),
        ("signature-unchecked", "signatures of HEADs are not looked at"),
        ("signature-by-position", "a HEAD for a place of which one verified is taken without a look"),
        ("unknown-key-taken", "a HEAD whose key is not known is taken as it is"),
        ("seq-before-signature", "a seq counts as a sign of life before its signature was looked at"),
        ("forgeries-tolerated", "who shows forged HEADs again and again is listened to for ever"),
        ("frozen-upstream-kept", "who lives and shows nothing new is listened to for ever"),
        ("forget-seq", "any HEAD is a sign of life, whatever its seq"),
        ("first-seq-is-fresh", "the first seq of a process life counts as one that rose"),
        ("snapshot-over-state", "a snapshot is put over what is held: deleted keys return"),
        ("deletes-ignored", "deletes of a step are ignored: deleted keys return"),
        ("half-snapshot", "the first slice of a snapshot is shown to readers"),
        ("ack-early", "a revision is acknowledged as stored when it was verified"),
        ("credit-by-ack", "credit is given back only with an ACK"),
        ("small-credit-kept", "less than half a window of credit is never given back"),
        ("refusal-forgotten", "what was refused is taken again when it is offered"),
        ("conflict-ignored", "another incarnation under the same number is ignored in silence"),
        ("conflict-forgotten", "a conflict ends with the process"),
        ("conflict-ends", "a conflict ends with the pipe"),
        ("chain-unchecked", "another chain at the place that is held is not looked at"),
        ("fork-unchecked", "the chain of the next revision is not compared with what is held"),
        ("mark-of-the-newest", "a level is reported with the mark of the newest that was heard of"),
        ("level-lowered", "a level is overwritten by a lower one that is said later"),
        ("gathered-reports-lost", "reports that wait for more are not said when their time has come"),
        ("reports-not-repeated", "what was reported is not said again after WELCOME"),
        ("dead-upstream-kept", "an upstream without a word is never left"),
        ("beacon-ignored", "beacons are not looked at: the loss of the last update is not seen"),
        ("withheld-data-tolerated", "a replica that is behind never asks again"),
        ("audience-ignored", "a HEAD for a cohort is taken by everybody"),
        ("one-refusal-remembered", "of two revisions that were refused the first is forgotten"),
        ("promotion-not-kept", "a later HEAD of the revision that is held does not take its place"),
        ("announced-size-allocated", "a transfer is given the memory that its HEAD announces"),
        ("transfer-size-unchecked", "a transfer grows beyond what its HEAD announces"),
        ("limits-ignored", "a state over the node's limits is taken"),
        ("changes-forgotten", "of several steps only the keys of the last are named as changed"),
        ("nack-does-not-go-back", "after a refusal, what is built on the refused one stays"),
        ("no-fail-over", "when the pipe in use dies, none of those in reserve takes over"),
        ("reserve-silent", "a pipe that takes over is not told what is wanted"),
        ("old-position-taken", "a transfer to a position below the one held is taken"),
        // The authority.
        ("resend-refused", "what a node refused is sent to it again"),
        ("credit-ignored", "slices are sent without credit"),
        ("seq-stands-still", "beacons repeat the last seq"),
        ("opened-not-in-seq", "seq starts again with every opening of the store"),
        ("slots-unlimited", "any number of large transfers at once"),
        ("slot-leaks", "the slot of a transfer that ended is not given back"),
        ("slot-kept-on-close", "the slot of a pipe that closed is not given back"),
        ("stopped-reader-holds-up", "who comes after a pipe on which nothing is taken waits with it"),
        ("stopped-readers-kept", "a pipe on which nothing is taken is never closed"),
        ("hello-awaited-for-ever", "a pipe without HELLO is never closed"),
        ("late-end-counts", "the end of an old pipe says that the node has left"),
        ("late-reports-count", "a report of an earlier boot counts for the present one"),
        ("status-overwritten", "a later report of a lower position replaces a higher one"),
        ("volatile-counts-as-stored", "what is not on disk is recorded as stored"),
        ("stale-boot-taken", "a boot below one known is not turned away"),
        ("publish-without-compare", "a commit that expects another position than the newest is made"),
        ("request-forgotten", "a request that is asked again is committed again"),
        ("vacant-shows", "where nothing is published, beacons repeat what a node showed"),
        ("epoch-not-compared", "a new epoch takes a number that was seen already"),
        ("ahead-is-no-conflict", "a node that is ahead of the store is not seen"),
        ("fork-is-no-conflict", "a node with another chain at the head is not seen"),
        ("unjudged-is-served", "who shows what the log does not know gets data before it is judged"),
        ("vacant-begins-anew", "a lost namespace begins anew although a node showed it"),
        ("adopts-oldest", "an authority adopts the oldest that nodes hold"),
        ("adopts-canary", "an authority adopts what is for a cohort without being told to"),
        ("adopts-after-begin", "a state that comes after the namespace began is adopted still"),
        ("losses-not-listed", "an adoption does not say what is lost by it"),
        ("freeze-ignored", "commits go on in a store that was shown to be old"),
        ("flight-unlimited", "any number of steps that were not acknowledged"),
        ("log-unlimited", "the log is never cut"),
        ("log-by-revision", "a step of the log serves whoever names its revision, in whatever history"),
        ("merge-backwards", "merged steps: the older operation on a key wins"),
        ("merge-drops-deletes", "merged steps leave out deletes"),
        ("old-snapshot-for-all", "a snapshot is shared with nodes that are above it"),
        ("chain-anew-for-beacon", "a beacon's chain is computed anew"),
        ("prev-rev-forgotten", "a HEAD goes out without its prev_rev"),
        ("rev-starts-anew", "revisions start again with every epoch"),
        ("want-keeps-transfer", "after a fresh start was asked for, the old transfer goes on"),
        ("nack-keeps-cursor", "after a refusal the cursor stays where it was"),
        ("stale-deltas", "encoded steps are kept when there is a new head"),
        ("publish-before-sync", "a commit is sent before it is durable"),
        ("canary-for-everybody", "the revision of a rollout is sent to nodes outside of its cohort"),
        ("commit-during-rollout", "a commit is taken while a rollout is open"),
        ("stage-before-sync", "a stage or a promotion is shown before it is durable"),
        ("gate-always-open", "a stage passes whoever has applied it"),
        ("rollout-lost-by-restart", "after a restart an open rollout is not known"),
        ("abort-step-empty", "canaries get an empty step by an abort, as all others do"),
        ("wait-for-visible", "a wait for what is applied ends when it is visible"),
        ("wait-over-epochs", "a wait goes on when its epoch is over"),
        ("wait-without-end", "a wait goes on when its time is over"),
        ("wait-ends-by-conflict", "a wait ends though who is in conflict is away, and may come back without"),
        ("wait-forgets-refusals", "a wait leaves out who refused"),
        ("wait-away-is-behind", "a wait says of who is away that it is here and behind"),
        ("wait-selects-anew", "a wait is for the nodes that have come since as well"),
        // What namespaces share.
        ("one-namespace-wanted", "HELLO asks for the first namespace alone"),
        ("added-not-asked-for", "a namespace that is added on an open pipe is not asked for there"),
        ("credit-of-the-first", "only what comes of the first namespace is credited"),
        ("fresh-of-all", "a HEAD of one namespace is a sign of life of all"),
        ("word-to-the-first", "what a node reports of a namespace is taken as said of the first"),
        ("beacon-of-the-first", "beacons show the HEADs of the first namespace alone"),
        ("slots-for-each", "each namespace has all the slots for itself"),
        // The relay.
        ("relay-issues", "relay: HEADs go down with a seq of the relay's own"),
        ("relay-acks-early", "relay: what is forwarded is reported as stored"),
        ("loop-not-seen", "relay: a path that leads round is not refused"),
        ("table-not-told-again", "relay: a new server above is not told the whole table"),
        ("canary-without-for-all", "relay: it is sent what is for a cohort before what is for all"),
        ("attempt-ignored", "relay: whichever report comes last says where a node is"),
        ("stale-not-routed", "relay: a node below is not told that a higher boot of it is known"),
        ("path-not-said-again", "relay: WELCOME is not said again when the path changes"),
        ("fail-over-empty-handed", "relay: who comes to another upstream does not say what it has"),
        ("table-of-the-first", "relay: of several namespaces the table of the first alone is told upward"),
        ("newest-way-taken", "relay: a pipe that opens is used at once, whatever is in use"),
        ("mark-not-passed", "relay: what a node applied is told upward without its mark"),
        (
            "mark-made-anew",
            "relay: what a node names is told upward with the mark of what the relay has there",
        ),
        ("mark-ignored", "relay: what a node names counts by its position, whatever history it is of"),
        ("above-head-counts", "relay: a position above the head is counted as reached"),
        ("below-log-counts", "relay: a position that the log does not reach is counted as reached"),
        ("refusal-by-position", "relay: a refusal counts by its position, whatever history it is of"),
        // The world.
        ("lost-sync-acknowledged", "world: a node reports as stored what its disk refused"),
    ];
}
