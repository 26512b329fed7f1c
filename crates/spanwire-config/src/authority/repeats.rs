//! Repeats: a request that is known already gets the first one's answer, and one that only has its id is refused.
//!
//! Owns: what makes a request the same. Never: a second effect of one request; an answer before what it tells of is
//! durable.

use super::{
    Actions, Answer, AuthorityAction, Intent, Invalid, NsAuthority, Place, Request, Ticket, Writing,
};
use crate::faults::planted;
use crate::source::LogCommit;
use crate::wire::client::Step;
use crate::{Change, Id, Position, State};

/// What is asked for under an id.
#[derive(Clone, Copy)]
pub(super) enum Asked<'a> {
    Commit(&'a Request),
    /// An epoch with this content.
    Content(&'a State),
    /// An epoch whose content is here, or at a node.
    Epoch,
    /// A step of the rollout that is open at this place.
    Step(Step, Place),
}

impl NsAuthority {
    /// Answers a request whose id is known already, in any mode: what is durable is answered for even when nothing can
    /// be written. Returns whether it is.
    pub(super) fn repeated(
        &mut self,
        out: &mut Actions,
        ticket: Ticket,
        request: Id,
        asked: Asked<'_>,
    ) -> bool {
        if let Some(Writing::Mark { mark, .. }) = &self.writing
            && mark.request == request
            && !matches!(asked, Asked::Step(..))
        {
            // A step's, which is not done yet: then it is known what it was.
            out.push(AuthorityAction::Reply(ticket, Answer::Busy));
            return true;
        }
        let Some((position, digest)) =
            self.requests.get(&request).copied().filter(|_| !planted("request-forgotten"))
        else {
            return false;
        };
        let answer = if self.is_same(request, position, asked) {
            Answer::Committed { position, digest, replay: true }
        } else {
            Answer::Invalid(Invalid::Used(position.into()))
        };
        let durable = self.position().map_or(0, |p| p.rev);
        if position.rev <= durable {
            out.push(AuthorityAction::Reply(ticket, answer));
        } else if self.waits() >= self.settings.waiting_commits {
            out.push(AuthorityAction::Reply(ticket, Answer::Busy));
        } else {
            // It waits for its own revision, not for later ones; the queue stays in the order of revisions.
            let at = self.answers.partition_point(|(rev, ..)| *rev <= position.rev);
            self.answers.insert(at, (position.rev, ticket, answer));
        }
        true
    }

    /// Whether what was done under this id, at `position`, is what is asked for. What is not kept any more counts as that.
    fn is_same(&self, request: Id, position: Position, asked: Asked<'_>) -> bool {
        let Some(made) = self.made(position) else { return true };
        let is_commit = made.request == request;
        let is_epoch = is_commit && position.epoch.incarnation == request;
        match asked {
            // It is the commit that follows the one that it ends.
            Asked::Step(Step::Abort, of) => {
                is_commit && !is_epoch && of.rev.checked_add(1) == Some(position.rev)
            }
            Asked::Step(_, of) => !is_commit && Place::from(position) == of,
            Asked::Epoch => is_epoch,
            Asked::Content(state) => is_epoch && made.digest == state.digest(),
            Asked::Commit(request) => is_commit && !is_epoch && self.is_made_of(made, position, request),
        }
    }

    fn is_made_of(&self, made: &LogCommit, position: Position, request: &Request) -> bool {
        match &request.intent {
            Intent::Revert(to) => {
                self.read(Some(*to)).map_or(true, |(_, state)| state.digest() == made.digest)
            }
            Intent::Change(changes) if *changes == *made.changes => true,
            Intent::Change(changes) => {
                // Of a change only what had an effect is kept. That of one that ended a rollout is not what was asked for.
                let kept = request.supersede
                    || made.changes.iter().all(|(key, change)| changes.get(key) == Some(change));
                let holds = |state: &State| {
                    changes.iter().all(|(key, change)| match change {
                        Change::Put(entry) => state.get(key.as_bytes()) == Some(entry),
                        Change::Delete => state.get(key.as_bytes()).is_none(),
                    })
                };
                kept && self.content(position).is_none_or(|state| holds(&state))
            }
        }
    }

    /// The commit at a position, durable or not.
    fn made(&self, position: Position) -> Option<&LogCommit> {
        let (epoch, rev) = (position.epoch, position.rev);
        let of = |commits: &'_ [LogCommit]| commits.iter().position(|commit| commit.rev == rev);
        let batch = self.log.partition_point(|kept| kept.batch.head.position.rev < rev);
        let logged =
            self.log.get(batch).map(|kept| &kept.batch).filter(|batch| batch.head.position.epoch == epoch);
        let written = match &self.writing {
            Some(Writing::Batch { batch, .. }) => Some(batch),
            _ => None,
        };
        let batches = logged.into_iter().chain(written).map(|batch| &batch.commits);
        let all = batches.chain(self.gathered.iter().map(|gathered| &gathered.commits));
        all.filter_map(|commits| commits.get(of(commits)?)).next()
    }

    /// The content at a position, durable or not.
    fn content(&self, position: Position) -> Option<State> {
        let durable = self.position().map_or(0, |p| p.rev);
        if position.rev <= durable {
            return self.read(Some(Place::from(position))).ok().map(|(_, state)| state);
        }
        let mut state = self.durable.as_ref().map(|durable| durable.state.clone()).unwrap_or_default();
        let written = match &self.writing {
            Some(Writing::Batch { batch, .. }) => &batch.commits[..],
            _ => &[],
        };
        let gathered = self.gathered.iter().flat_map(|gathered| &gathered.commits);
        for commit in written.iter().chain(gathered).take_while(|commit| commit.rev <= position.rev) {
            state.apply(&commit.changes);
        }
        Some(state)
    }
}
