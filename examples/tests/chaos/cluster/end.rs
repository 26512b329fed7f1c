//! The end of a run: one more change that is everybody's by a promotion, and a look at all that there is.
//!
//! Owns: what is compared. Never: a fault.

use std::time::{Duration, Instant};

use spanwire_config::client::Commit;
use spanwire_config::rollout::Plan;
use spanwire_config::wire::client::{Selector, Step};
use spanwire_config::{Id, Level, Limits, store, tree};

use super::super::history::Change;
use super::super::rollouts::labelled;
use super::super::writers;
use super::{Cluster, RELAYS, Res};

impl Cluster {
    /// Canaries apply the last change, then it is for all.
    pub(crate) fn promote_the_last(&mut self) -> Res<()> {
        let mut commit = Commit::new(writers::first()).map_err(|e| e.to_string())?;
        commit.rollout = Some(Plan { salt: commit.request, stages: vec![labelled()] });
        self.healed = Instant::now();
        let opened = self.answer("the last commit", |client| client.commit(&commit))?;
        self.history.committed(opened.at.rev, Change::Set(commit.changes), opened.digest)?;
        let canaries = self
            .client
            .clone()
            .with_timeout(Duration::from_secs(30))
            .wait(opened.at, Level::Applied, Duration::from_secs(20), &Selector::default())
            .map_err(|error| format!("the last canaries: {error}"))?;
        if canaries.ok.is_empty() {
            return Err(format!("the last canaries: {canaries:?}"));
        }
        let request = Id::random().map_err(|e| e.to_string())?;
        self.answer("the last promotion", |client| client.rollout(request, opened.at, Step::Promote))?;
        self.converge()
    }

    /// The trees, the state folders, the hooks' notes and the authority's content, byte for byte.
    pub(crate) fn look_at_everything(&mut self) -> Res<()> {
        let (newest, limits) = (self.history.newest(), Limits::default());
        // Whoever starts again now, without a server, has it as what is for all.
        self.wait("a promotion is on every disk", |all| {
            let folders = all.members[1..].iter().zip(1..).map(|(member, n)| {
                let of_agent = if n > RELAYS { ".state" } else { "" };
                all.dir.join(format!("{}{of_agent}", member.name))
            });
            let mut heads = folders.filter_map(|folder| store::peek(&folder, limits.bytes));
            Ok(heads.all(|(head, _)| head.audience.is_empty()))
        })?;
        let (tip, state) = self.client.list(b"", None).map_err(|e| e.to_string())?;
        if tip.position.rev != newest || state != *self.history.state() {
            return Err(format!(
                "the authority ends at {}, not at revision {newest} as it was committed",
                tip.position
            ));
        }
        for member in &self.members[1 + RELAYS..] {
            let at = |why: String| format!("{}: {why}", member.name);
            let tree = tree::read(&self.dir.join(&member.name), &limits).map_err(|e| at(e.to_string()))?;
            if tree.state != state {
                return Err(at("its directory is not what was committed".into()));
            }
            let stored = store::peek(&self.dir.join(format!("{}.state", member.name)), limits.bytes);
            let (head, content) = stored.ok_or_else(|| at("nothing is on its disk".into()))?;
            self.history.holds(head.position.rev, &content).map_err(at)?;
            let notes = self.dir.join(member.name.replace("agent", "hooks"));
            let notes = std::fs::read_to_string(notes).map_err(|e| at(e.to_string()))?;
            let last = self.history.hooks(&notes).map_err(at)?;
            if !self.history.is_same(last, newest).map_err(at)? || head.position.rev != newest {
                return Err(at(format!(
                    "its hook ran last for {last}, on its disk is {}",
                    head.position.rev
                )));
            }
        }
        Ok(())
    }
}
