//! What follows when files are in place: the hook, and with [`OnFailure::Restore`] the way back.
//!
//! A revision whose hook failed stays the newest, and is reported as such; only the files go back. So the next start
//! tries it again, and the next revision is compared with the files that are there.
//!
//! Owns: the order hook, note, report. Never: goes back twice for one revision; says that a revision is applied whose
//! hook has not succeeded, or that one that was put back is the newest.

use std::time::Instant;

use super::{Agent, MADE};
use crate::again;
use crate::command::Failure;
use crate::hook::{Hook, Owed};
use crate::store::StoreError;
use crate::wire::NackCode;
use crate::{Head, Level, Position};

/// What becomes of the files of a revision whose hook failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnFailure {
    /// They stay, until a later revision.
    #[default]
    Keep,
    /// Those of the revision whose hook succeeded last are put back, and the hook runs for that one. They stay until a
    /// later revision or the next start, which tries the one that failed again.
    Restore,
}

/// The hook of the newest revision failed, and an earlier one is shown in its place.
#[derive(Debug)]
pub(super) struct Fallen {
    position: Position,
    why: String,
}

impl Agent<'_> {
    /// Runs the hook for the revision shown.
    pub(super) fn act(&mut self) {
        let Some((head, _)) = self.shown.clone() else { return };
        match self.hook(&head) {
            Ok(()) => self.acted(&head),
            Err(Failure::Ended) => {
                self.log.say("hook: ended with this process; it runs again at the next start");
            }
            Err(Failure::NotRun(why)) => {
                self.act.failed(Instant::now(), again::random());
                self.hook_failed(head.position, &format!("not run: {why}"));
            }
            Err(Failure::Failed(why)) => {
                self.act.done();
                self.hook_failed(head.position, &why);
                self.go_back(&head, why);
            }
        }
    }

    fn hook(&self, head: &Head) -> Result<(), Failure> {
        let Some(command) = self.config.on_change.as_ref().filter(|_| !self.owed.is_empty()) else {
            return Ok(());
        };
        let started = Instant::now();
        let (out, tree) = (&self.config.out, self.output.path(&self.config.out, head));
        let hook = Hook { command, limit: self.config.hook_limit, out, tree: &tree };
        hook.run(&self.store, head, &self.owed, self.shutdown)?;
        self.log.say(format_args!("hook: done in {:?}", started.elapsed()));
        Ok(())
    }

    /// The hook has nothing more to do for the revision shown.
    fn acted(&mut self, head: &Head) {
        self.owed = Owed::default();
        self.act.done();
        if let Some(Fallen { position, why }) = &self.fallen {
            self.log.say(format_args!("restored: {}", head.position));
            return self.nack(*position, NackCode::Hook, &format!("{why}; restored {}", head.position));
        }
        self.applied = self.shown.clone();
        self.note();
        self.ack(head.position, Level::Applied);
    }

    /// Notes what was applied, and by which templates; what is not noted by the next start is acted on once more.
    pub(super) fn note(&mut self) {
        let noted = self.note_applied().and_then(|()| match self.made() {
            made if self.store.note(MADE).unwrap_or_default() == made => Ok(()),
            made => self.store.set_note(MADE, &made),
        });
        match noted {
            Ok(()) => drop(self.note.done()),
            Err(error) if self.note.failed(Instant::now(), again::random()) => {
                self.log.say(format_args!("not noted as applied, tried again: {error}"));
            }
            Err(_) => {}
        }
    }

    /// Notes what the hook succeeded for last, so that its slot is not written.
    pub(super) fn note_applied(&self) -> Result<(), StoreError> {
        match &self.applied {
            Some((head, _)) if self.store.applied() != Some(head.base()) => {
                self.store.set_applied(head.base())
            }
            _ => Ok(()),
        }
    }

    /// Shows the revision again that the hook succeeded for last, if that is what the operator wants.
    fn go_back(&mut self, failed: &Head, why: String) {
        if self.config.on_failure == OnFailure::Keep || self.fallen.is_some() {
            return;
        }
        let Some((_, now)) = &self.shown else { return };
        let before = self.applied.as_ref().filter(|(head, _)| head.base() != failed.base());
        let Some((head, files)) = before.cloned() else {
            return self.log.say("nothing to restore: the hook has not succeeded for a revision before");
        };
        let changes = now.diff(&files);
        self.fallen = Some(Fallen { position: failed.position, why });
        // What the hook is owed stays: all that has changed since it succeeded is changed back.
        self.shown = Some((head, files));
        self.repair(Some(&changes));
    }

    fn hook_failed(&self, position: Position, why: &str) {
        self.log.say(format_args!("hook: {why}"));
        self.not_applied(position, why);
    }

    /// Tells why nothing came of putting this revision in place and acting on it.
    pub(super) fn not_applied(&self, position: Position, why: &str) {
        match &self.fallen {
            None => self.nack(position, NackCode::Hook, why),
            Some(Fallen { position: failed, why: first }) => {
                let why = format!("{first}; to restore {position} failed, too: {why}");
                self.nack(*failed, NackCode::Hook, &why);
            }
        }
    }
}
