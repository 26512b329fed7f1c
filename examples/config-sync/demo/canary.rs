//! A change for one node first: promoted once that node has applied it, taken back by its gate where that node refuses it.

use std::time::Duration;

use spanwire_config::client::{Client, ClientError, Commit};
use spanwire_config::rollout::{Gate, Plan, Stage, WHOLE};
use spanwire_config::wire::client::{Selector, Step};
use spanwire_config::{ChangeSet, Id, Level, Place};

use super::lost::{NODES, key, said};
use super::{Demo, PATIENCE, Res, differs, files, write};

/// Has the label, and checks what it gets.
pub(super) const CANARY: &str = "app-1";
pub(super) const LABEL: (&str, &str) = ("canary", "yes");
const FILE: &str = "feature-flags/flags.yaml";

impl Demo<'_> {
    /// All nodes hold one revision, before and after.
    pub(super) fn canaries(&mut self, client: &Client) -> Res<()> {
        self.say("a canary: a change goes to app-1 alone, which has the label canary=yes");
        let others = || NODES.iter().filter(|name| **name != CANARY);
        let held = |all: &Self| others().map(|name| files(&all.out(name))).collect::<Res<Vec<_>>>();
        let before = held(self)?;
        let text = "new-checkout: true\nsearch-v3: 1%\n";
        write(&self.source().join(FILE), text)?;
        let at = self.open(client, text, None)?;
        let told = said(client.wait(at, Level::Applied, PATIENCE, &Selector::default()))?;
        let applied: Vec<&str> = told.ok.iter().map(|node| node.name.as_str()).collect();
        if applied != [CANARY] || differs(&self.source(), &self.out(CANARY))?.is_some() {
            return Err(format!("{}:{} is applied by {applied:?}: {told:?}", at.epoch, at.rev));
        }
        let holders = said(client.status())?.nodes;
        let holders: Vec<_> = holders.into_iter().filter(|node| node.stored == at).collect();
        if held(self)? != before || holders.len() != 1 {
            return Err(format!("others hold the canary's revision: {holders:?}"));
        }
        self.done(format_args!(
            "revision {}:{} applied by {CANARY}, and by nobody else; {} hold what they held",
            at.epoch,
            at.rev,
            others().copied().collect::<Vec<_>>().join(", ")
        ));

        self.say("promote: the same revision, for all");
        let request = Id::random().map_err(|error| error.to_string())?;
        if said(client.rollout(request, at, Step::Promote))?.at != at {
            return Err("a promotion is no revision of its own".into());
        }
        self.applied(client, at)?;

        self.say("another canary is broken: app-1 refuses it, and the gate of its stage takes it back");
        let gate = Gate { applied: WHOLE, refusals: 0, bake: Duration::ZERO };
        let broken = self.open(client, "BROKEN\n", Some(gate))?;
        match client.wait(broken, Level::Applied, PATIENCE, &Selector::default()) {
            Err(ClientError::Aborted) => {}
            // It was asked for before the gate had seen the refusal.
            Ok(told) if told.ok.is_empty() => {}
            other => return Err(format!("a wait for what is refused: {other:?}")),
        }
        self.until("the gate to abort it", || Ok(said(client.status())?.rollout.is_none()))?;
        self.until("its words", || Ok(self.said(CANARY, " refused: ")))?;
        if differs(&self.source(), &self.out(CANARY))?.is_some() {
            return Err(format!("{CANARY} shows something of what it refused"));
        }
        let after = Place::from(said(client.status())?.tip.position);
        if after.rev <= broken.rev {
            return Err(format!("{}:{} after {}:{}", after.epoch, after.rev, broken.epoch, broken.rev));
        }
        self.done(format_args!(
            "{CANARY} refused {}:{}; one revision more, {}:{}, has what all others have",
            broken.epoch, broken.rev, after.epoch, after.rev
        ));
        self.applied(client, after)
    }

    /// A rollout of this text, to those with the label.
    fn open(&self, client: &Client, text: &str, gate: Option<Gate>) -> Res<Place> {
        let mut changes = ChangeSet::new();
        changes.put(key(FILE)?, 0, text.to_owned());
        let mut commit = Commit::new(changes).map_err(|error| error.to_string())?;
        let labels = vec![(LABEL.0.into(), LABEL.1.into())];
        let stages = vec![Stage { labels, share: WHOLE, gate }];
        commit.rollout = Some(Plan { salt: commit.request, stages });
        Ok(said(client.commit(&commit))?.at)
    }
}
