//! A change for some nodes first: opened, perhaps for more of them later, promoted or aborted, whatever happens meanwhile.
//!
//! Owns: one rollout from its commit to its end. Never: leaves one open.

use std::time::Duration;

use spanwire_config::client::{Client, Commit, Committed};
use spanwire_config::rollout::{Audience, Plan, Stage, WHOLE};
use spanwire_config::wire::client::Step;
use spanwire_config::{ChangeSet, Id};
use spanwire_testkit::sim::Rng;

use super::history::Change;
use super::writers::{Done, Shared, Written};

/// Some agents have it.
pub(crate) const LABEL: (&str, &str) = ("canary", "yes");

/// Those with the label.
pub(crate) fn labelled() -> Stage {
    Stage { labels: vec![(LABEL.0.into(), LABEL.1.into())], share: WHOLE, gate: None }
}

/// Those with the label or a share of all, then perhaps more.
fn plan(rng: &mut Rng) -> Vec<Stage> {
    let share = |share| Stage { share, ..Stage::default() };
    let first = match rng.one_in(2) {
        true => labelled(),
        false => share(1 + rng.below(usize::from(WHOLE)) as u16),
    };
    let mut stages = vec![first];
    if rng.one_in(2) {
        stages.push(share(1 + rng.below(usize::from(WHOLE)) as u16));
    }
    stages
}

/// `None`: the test is over, or something failed.
pub(crate) fn roll(
    client: &Client,
    changes: ChangeSet,
    rng: &mut Rng,
    shared: &Shared,
    tell: impl Fn(Written) -> Option<()>,
) -> Option<()> {
    let failed = |what: &str, error: String| tell(Err(format!("a rollout, {what}: {error}")));
    let mut commit = match Commit::new(changes.clone()) {
        Ok(commit) => commit,
        Err(error) => return failed("its id", error.to_string()),
    };
    let plan = Plan { salt: commit.request, stages: plan(rng) };
    commit.rollout = Some(plan.clone());
    let opened = match shared.insist(|| client.commit(&commit))? {
        Ok(opened) => opened,
        Err(error) => return failed("its commit", error),
    };
    tell(Ok(Done::Commit(Change::Set(changes), opened)))?;
    let step = |step| -> Option<Result<Committed, String>> {
        let request = match Id::random() {
            Ok(request) => request,
            Err(error) => return Some(Err(error.to_string())),
        };
        shared.insist(|| client.rollout(request, opened.at, step))
    };
    let mut cohorts = Vec::new();
    for stage in 0..plan.stages.len() {
        if stage > 0 {
            match step(Step::Next)? {
                Ok(done) if done.at == opened.at => {}
                other => return failed("its next stage", format!("{other:?}")),
            }
        }
        cohorts.extend(Audience::parse(&plan.audience(commit.request, stage)));
        // At a heal it ends at once.
        shared.pause(rng.time(Duration::ZERO..Duration::from_millis(600)), true);
    }
    if rng.one_in(2) {
        return match step(Step::Promote)? {
            Ok(done) if (done.at, done.digest) == (opened.at, opened.digest) => tell(Ok(Done::Promoted)),
            other => failed("its promotion", format!("{other:?}")),
        };
    }
    match step(Step::Abort)? {
        Ok(done) if done.at.rev == opened.at.rev + 1 => tell(Ok(Done::Commit(Change::Back(cohorts), done))),
        other => failed("its abort", format!("{other:?}")),
    }
}
