//! Commits: compared, gathered, made durable in batches, published, kept, and let go of.
//!
//! Owns: the order of commits and of their answers. Never: an answer before all that it depends on is durable.

use std::collections::VecDeque;
use std::sync::Arc;

use super::repeats::Asked;
use super::{
    Actions, Alarm, Answer, AuthorityAction, Gathered, Intent, Invalid, Kept, LEAP, Mode, NsAuthority, Place,
    Published, ReadOnly, Request, Rollout, Ticket, Writing, max_each,
};
use crate::faults::planted;
use crate::rollout::{Mark, Open, Plan};
use crate::source::{Batch, LogCommit, MAX_AUTHOR, MAX_NOTE, Record, Snapshot};
use crate::{ChangeSet, Epoch, Head, Id, Position, Shown, State, chain};

impl NsAuthority {
    /// The newest position, commits under way included.
    pub(super) fn tip(&self) -> Option<Position> {
        if let Some(last) = self.gathered.back().and_then(|last| last.commits.last()) {
            return self.tip_epoch().map(|epoch| Position { epoch, rev: last.rev });
        }
        match &self.writing {
            Some(Writing::Batch { batch, .. }) => Some(batch.head.position),
            _ => self.position(),
        }
    }

    pub(super) fn tip_epoch(&self) -> Option<Epoch> {
        match &self.writing {
            Some(Writing::Batch { batch, .. }) => Some(batch.head.position.epoch),
            _ => self.position().map(|position| position.epoch),
        }
    }

    pub(super) fn tip_state(&self) -> State {
        if let Some(last) = self.gathered.back() {
            return last.state.clone();
        }
        match &self.writing {
            Some(Writing::Batch { state, .. }) => state.clone(),
            _ => self.durable.as_ref().map(|durable| durable.state.clone()).unwrap_or_default(),
        }
    }

    /// Answers once all that is decided so far is durable: the answer may depend on it.
    pub(super) fn answer(&mut self, out: &mut Actions, ticket: Ticket, answer: Answer) {
        let (durable, tip) = (self.position().map_or(0, |p| p.rev), self.tip().map_or(0, |p| p.rev));
        if tip <= durable {
            out.push(AuthorityAction::Reply(ticket, answer));
        } else {
            self.answers.push_back((tip, ticket, answer));
        }
    }

    pub(super) fn on_commit(&mut self, out: &mut Actions, ticket: Ticket, request: Request) {
        let refuse = |out: &mut Actions, answer| out.push(AuthorityAction::Reply(ticket, answer));
        if self.repeated(out, ticket, request.request, Asked::Commit(&request)) {
            return;
        }
        match &self.mode {
            Mode::ReadOnly(why) => return refuse(out, Answer::ReadOnly(why.clone())),
            Mode::Vacant if self.writing.is_some() => return refuse(out, Answer::Busy),
            // Only a commit that says so begins a namespace.
            Mode::Vacant if self.fresh.is_none() || request.expect.is_none() => {
                return refuse(out, Answer::ReadOnly(ReadOnly::Vacant));
            }
            Mode::Vacant | Mode::Serving => {}
        }
        if self.beginning.is_some()
            || self.waits() >= self.settings.waiting_commits
            || self.gathered_bytes >= self.settings.waiting_bytes
        {
            return refuse(out, Answer::Busy);
        }
        let head = self.tip().map(Place::from).unwrap_or_default();
        if request.expect.is_some_and(|expect| expect != head) && !planted("publish-without-compare") {
            return self.answer(out, ticket, Answer::Conflict { head });
        }
        let open = self.tip_is_open();
        if open && !request.supersede && !planted("commit-during-rollout") {
            return self.answer(out, ticket, Answer::Open(head));
        }
        if open && self.is_passing() {
            return refuse(out, Answer::Busy);
        }
        let (changes, state) = match self.outcome(&request) {
            Ok(outcome) => outcome,
            Err(why) => return self.answer(out, ticket, Answer::Invalid(why)),
        };
        let (Some(rev), false) = (head.rev.checked_add(1), head.rev >= u64::MAX - LEAP) else {
            return refuse(out, Answer::Invalid(Invalid::NotNow("revisions are used up")));
        };
        let size = crate::wire::encode_changes(&changes).len() + request.author.len() + request.note.len();
        let plan = request.rollout.map(Arc::new);
        let commit = LogCommit {
            rev,
            request: request.request,
            author: request.author,
            note: request.note,
            stamp: request.stamp,
            digest: state.digest(),
            changes: Arc::new(changes),
        };
        if let Some(incarnation) = self.fresh {
            // Only here does a commit begin a namespace, at (0, 0) and where no node has shown a HEAD.
            let epoch = Epoch { number: self.highest.epoch.saturating_add(1), incarnation };
            let batch = self.batch(epoch, vec![commit], &state, None);
            return self.start(out, batch, state, vec![ticket]);
        }
        let Some(epoch) = self.tip_epoch() else { return refuse(out, Answer::ReadOnly(ReadOnly::Vacant)) };
        let for_all = if plan.is_some() { self.tip_for_all() } else { state.clone() };
        let alone = plan.is_some() || open;
        let (tickets, commits) = (vec![ticket], vec![commit]);
        self.gather(out, epoch, Gathered { tickets, commits, state, for_all, plan, alone, size });
    }

    /// Puts one commit to those that wait for the store.
    pub(super) fn gather(&mut self, out: &mut Actions, epoch: Epoch, new: Gathered) {
        for commit in &new.commits {
            self.requests.insert(commit.request, (Position { epoch, rev: commit.rev }, commit.digest));
        }
        self.gathered_commits += new.commits.len();
        self.gathered_bytes += new.size;
        let (most, full) = (self.settings.batch_commits, self.settings.batch_bytes);
        let room = |last: &&mut Gathered| last.commits.len() < most && last.size < full && !last.alone;
        match self.gathered.back_mut().filter(room).filter(|_| !new.alone) {
            Some(last) => {
                last.tickets.extend(new.tickets);
                last.commits.extend(new.commits);
                last.state = new.state;
                last.for_all = new.for_all;
                last.size += new.size;
            }
            None => self.gathered.push_back(new),
        }
        self.next_batch(out);
    }

    /// Clients that wait for an answer.
    pub(super) fn waits(&self) -> usize {
        self.gathered_commits + self.answers.len()
    }

    /// What a request leads to from the tip.
    fn outcome(&self, request: &Request) -> Result<(ChangeSet, State), Invalid> {
        if request.author.len() > MAX_AUTHOR {
            return Err(Invalid::TooLong("author"));
        }
        if request.note.len() > MAX_NOTE {
            return Err(Invalid::TooLong("note"));
        }
        if let Some(plan) = &request.rollout {
            plan.check().map_err(Invalid::Rollout)?;
            if request.supersede {
                return Err(Invalid::Rollout("what supersedes a rollout is for all"));
            }
            if self.durable.is_none() {
                return Err(Invalid::Rollout("the first revision is for all"));
            }
        }
        let tip = self.tip_state();
        let supersedes = request.supersede && self.tip_is_open();
        let mut state = if supersedes { self.tip_for_all() } else { tip.clone() };
        let mut changes = match &request.intent {
            Intent::Change(changes) => {
                self.settings.limits.check_values(changes)?;
                state.effective(changes)
            }
            Intent::Revert(to) => state.diff(&self.read(Some(*to))?.1),
        };
        state.apply(&changes);
        if supersedes {
            changes = tip.diff(&state);
        }
        self.settings.limits.check(state.keys(), state.bytes())?;
        Ok((changes, state))
    }

    /// The batch of `commits`, which lead to `state`, on top of what is durable.
    pub(super) fn batch(
        &self,
        epoch: Epoch,
        commits: Vec<LogCommit>,
        state: &State,
        plan: Option<Arc<Plan>>,
    ) -> Batch {
        let (prev_rev, previous) = match &self.durable {
            Some(last) if last.head.position.epoch == epoch => (last.head.position.rev, last.head.chain),
            _ => (0, [0; 32]),
        };
        let rev = commits.last().map_or(0, |commit| commit.rev);
        let digest = state.digest();
        let rollout = commits.last().map_or(Id::default(), |commit| commit.request);
        let head = Head {
            audience: plan.as_ref().map(|plan| plan.audience(rollout, 0)).unwrap_or_default(),
            cluster: self.settings.cluster,
            namespace: self.settings.namespace.clone(),
            position: Position { epoch, rev },
            prev_rev,
            digest,
            keys: state.keys(),
            bytes: state.bytes(),
            chain: chain(&previous, rev, &digest),
            ..Head::default()
        };
        Batch { head, commits, plan }
    }

    /// Gives the store its next batch, if it is free and there is one.
    pub(super) fn next_batch(&mut self, out: &mut Actions) {
        if self.writing.is_some() {
            return;
        }
        let Some(epoch) = self.position().map(|position| position.epoch) else { return };
        let Some(Gathered { tickets, commits, state, plan, size, .. }) = self.gathered.pop_front() else {
            return;
        };
        self.gathered_commits = self.gathered_commits.saturating_sub(commits.len());
        self.gathered_bytes = self.gathered_bytes.saturating_sub(size);
        let batch = self.batch(epoch, commits, &state, plan);
        self.start(out, batch, state, tickets);
    }

    pub(super) fn start(&mut self, out: &mut Actions, batch: Batch, state: State, tickets: Vec<Ticket>) {
        let epoch = batch.head.position.epoch;
        let mut replies = Vec::new();
        for commit in &batch.commits {
            self.requests.insert(commit.request, (Position { epoch, rev: commit.rev }, commit.digest));
        }
        for (ticket, commit) in tickets.into_iter().zip(&batch.commits) {
            let position = Position { epoch, rev: commit.rev };
            replies.push((ticket, Answer::Committed { position, digest: commit.digest, replay: false }));
        }
        let changes = batch.changes();
        if planted("publish-before-sync") {
            let before = self.durable.as_ref().map(|durable| durable.head.shown());
            let (head, state, changes) = (batch.head.clone(), state.clone(), changes.clone());
            out.push(AuthorityAction::Publish(Published { head, state, before, changes }));
        }
        out.push(AuthorityAction::Append(Record::Batch(batch.clone())));
        self.writing = Some(Writing::Batch { batch, state, changes, replies });
    }

    pub(super) fn on_durable(&mut self, out: &mut Actions) {
        match self.writing.take() {
            Some(Writing::Batch { batch, state, changes, replies }) => {
                let for_all = self.durable.take();
                let before = for_all.as_ref().map(|durable| durable.head.clone());
                // Whatever follows a rollout ends it.
                self.rollout = match (&batch.plan, &batch.commits[..], for_all) {
                    (Some(plan), [commit, ..], Some(for_all)) => Some(Rollout::new(Open {
                        plan: plan.clone(),
                        rollout: commit.request,
                        stage: 0,
                        paused: false,
                        members: None,
                        for_all,
                    })),
                    _ => None,
                };
                let epoch = batch.head.position.epoch;
                let begins = before.as_ref().map(|head| head.position.epoch) != Some(epoch);
                if begins {
                    // Another history: what contradicted the old one is looked at again, and freezes only
                    // if it contradicts this one too.
                    self.conflicts.clear();
                    self.freeze = None;
                    self.fresh = None;
                    self.mode = Mode::Serving;
                }
                self.highest = max_each(self.highest, batch.head.position.into());
                let rev = batch.head.position.rev;
                self.durable = Some(Snapshot { head: batch.head.clone(), state });
                self.keep(batch);
                if !planted("publish-before-sync") {
                    self.publish(out, before.map(|head| head.shown()), changes);
                }
                out.extend(replies.into_iter().map(|(to, answer)| AuthorityAction::Reply(to, answer)));
                while self.answers.front().is_some_and(|(of, ..)| *of <= rev) {
                    if let Some((_, ticket, answer)) = self.answers.pop_front() {
                        out.push(AuthorityAction::Reply(ticket, answer));
                    }
                }
                self.trim(out);
                // What a node showed while the epoch was being written did not count for its number.
                let rival = (self.held.iter())
                    .find(|(_, head)| begins && head.position.epoch.number >= epoch.number)
                    .map(|(node, head)| (*node, head.clone()));
                if let Some((node, head)) = rival {
                    self.dispute(out, node, head);
                }
            }
            Some(Writing::Mark { mark, replies }) => self.on_marked(out, &mark, replies),
            Some(Writing::Frozen) | None => {}
        }
        if self.writing.is_some() {
            // A dispute just now gave the store something to write.
        } else if let Some(head) = self.freeze.take() {
            out.push(AuthorityAction::Append(Record::Frozen(head)));
            self.writing = Some(Writing::Frozen);
        } else if self.beginning.is_some() && self.gathered.is_empty() {
            self.begin_now(out);
        } else {
            self.next_batch(out);
        }
    }

    /// Makes the durable state the one that is served.
    pub(super) fn publish(&mut self, out: &mut Actions, before: Option<Shown>, changes: Arc<ChangeSet>) {
        if let Some(Snapshot { head, state }) = self.durable.clone() {
            out.push(AuthorityAction::Publish(Published { head, state, before, changes }));
        }
    }

    pub(super) fn keep(&mut self, batch: Batch) {
        let epoch = batch.head.position.epoch;
        let mut size = 0;
        for commit in &batch.commits {
            size +=
                crate::wire::encode_changes(&commit.changes).len() + commit.author.len() + commit.note.len();
            self.requests.insert(commit.request, (Position { epoch, rev: commit.rev }, commit.digest));
        }
        self.log_commits += batch.commits.len();
        self.log_bytes += size;
        self.log.push_back(Kept { batch, size, marks: Vec::new() });
    }

    /// A step of the rollout that the newest batch opened, from the log.
    pub(super) fn kept_mark(&mut self, mark: &Mark) {
        // If its batch is below the base, so are its requests.
        let Some(kept) = self.log.back_mut().filter(|kept| kept.batch.head.position == mark.at) else {
            return;
        };
        kept.note(mark);
        if mark.request != Id::default() {
            self.requests.insert(mark.request, (mark.at, kept.batch.head.digest));
        }
        if let Some(rollout) = &mut self.rollout
            && self.durable.as_ref().is_some_and(|durable| durable.head.position == mark.at)
        {
            rollout.marks += 1;
        }
    }

    /// Keeps the log within its bounds, whole batches at a time, and never without its newest.
    pub(super) fn trim(&mut self, out: &mut Actions) {
        while self.log.len() > 1
            && (self.log_commits > self.settings.log_commits || self.log_bytes > self.settings.log_bytes)
        {
            let Some(Kept { batch, size, marks }) = self.log.pop_front() else { break };
            for request in &marks {
                self.requests.remove(request);
            }
            let mut state = self.base.take().map(|base| base.state).unwrap_or_default();
            for commit in &batch.commits {
                state.apply(&commit.changes);
                let at = Position { epoch: batch.head.position.epoch, rev: commit.rev };
                // A store that was not compacted shows what had been let go of: of a request that was made anew
                // since, the later commit counts.
                if self.requests.get(&commit.request).is_some_and(|(known, _)| *known == at) {
                    self.requests.remove(&commit.request);
                }
            }
            self.log_commits -= batch.commits.len();
            self.log_bytes -= size;
            self.dropped.0 += batch.commits.len();
            self.dropped.1 += size;
            self.base = Some(Snapshot { head: batch.head, state });
        }
        // Rewriting the store costs its size, so it is done when half as much has gone.
        let (commits, bytes) = self.dropped;
        let state =
            self.durable.as_ref().map_or(0, |d| usize::try_from(d.state.bytes()).unwrap_or(usize::MAX));
        let due =
            commits > self.settings.log_commits / 2 || bytes > (self.settings.log_bytes / 2).max(state / 2);
        if due
            && !self.compacting
            && let Some(base) = &self.base
        {
            self.compacting = true;
            self.dropped = (0, 0);
            out.push(AuthorityAction::Compact(base.clone()));
        }
    }

    /// The store failed: what was under way is unknown, and nothing is tried again.
    pub(super) fn fail(&mut self, out: &mut Actions, why: &str) {
        let reason = ReadOnly::Store(why.into());
        out.push(AuthorityAction::Alarm(Alarm::Store(why.into())));
        let answer = Answer::ReadOnly(reason.clone());
        let refuse = |to: Ticket| AuthorityAction::Reply(to, answer.clone());
        match self.writing.take() {
            Some(Writing::Batch { batch, replies, .. }) => {
                for commit in &batch.commits {
                    self.requests.remove(&commit.request);
                }
                out.extend(replies.into_iter().map(|(to, _)| refuse(to)));
            }
            Some(Writing::Mark { replies, .. }) => out.extend(replies.into_iter().map(|(to, _)| refuse(to))),
            Some(Writing::Frozen) | None => {}
        }
        self.abandon(out, &reason);
        self.freeze = None;
        self.mode = Mode::ReadOnly(reason);
    }

    /// Gives up all that is not with the store yet.
    pub(super) fn abandon(&mut self, out: &mut Actions, why: &ReadOnly) {
        let answer = Answer::ReadOnly(why.clone());
        for gathered in std::mem::take(&mut self.gathered) {
            for commit in &gathered.commits {
                self.requests.remove(&commit.request);
            }
            out.extend(gathered.tickets.into_iter().map(|to| AuthorityAction::Reply(to, answer.clone())));
        }
        self.gathered_commits = 0;
        self.gathered_bytes = 0;
        let safe = self.tip().map_or(0, |tip| tip.rev);
        let (stay, go): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.answers).into_iter().partition(|(rev, ..)| *rev <= safe);
        // After a failure nothing is with the store, so `safe` is durable and nothing stays.
        self.answers = stay;
        out.extend(go.into_iter().map(|(_, ticket, _)| AuthorityAction::Reply(ticket, answer.clone())));
        if let Some(beginning) = self.beginning.take() {
            out.push(AuthorityAction::Reply(beginning.ticket, answer.clone()));
        }
    }
}
