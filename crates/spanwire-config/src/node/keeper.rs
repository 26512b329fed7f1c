//! The thread of a node: judges, stores, shows and reports one revision after the other.
//!
//! Owns: the order validate, persist, publish, act; each step is reported when it is done. Never: shows what a
//! validator refused; says that something is on disk which is not; wakes when there is nothing to do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use spanwire::protocol::{Cx, Receives};
use spanwire::{Socket, WaitError};

use super::{Board, Changed, Copied, OnChange, Snapshot, Validator};
use crate::again::{self, Again};
#[cfg(all(unix, feature = "sync"))]
use crate::store::{Evidence, Store};
use crate::wire::NackCode;
use crate::{Head, Id, Key, Level, Position, Replica, State, Update};

pub(super) struct Keeper {
    pub(super) socket: Socket<Replica>,
    pub(super) board: Arc<Board>,
    pub(super) validator: Option<Box<dyn Validator>>,
    pub(super) on_change: Option<OnChange>,
    pub(super) cache: Cache,
    /// What the application acted on last.
    pub(super) acted: State,
    /// That is what was visible last.
    pub(super) in_step: bool,
    /// What is visible is not on disk: try again then.
    pub(super) unsaved: Again,
    /// For whom that was which the disk was given last.
    pub(super) audience: Bytes,
    /// The contradiction that was taken notice of.
    pub(super) known: Option<(Head, Head)>,
}

enum Next {
    Update(Box<Update>),
    StaleBoot(u64),
    /// Two HEADs contradict each other, or do no more.
    Evidence,
    /// What is visible is for more nodes by now, or for all.
    Promoted,
}

impl Keeper {
    /// Until the socket is closed.
    pub(super) fn run(mut self) {
        if let Some(head) = self.board.now().head() {
            self.audience.clone_from(&head.audience);
            // From the disk, shown already.
            self.ack(head.position, Level::Visible, false);
        }
        self.act(None);
        let key = self.socket.with(|r, _| r.wait_key());
        loop {
            let due = self.unsaved.at().into_iter().chain(self.cache.due()).min();
            let pause = due.map(|at| at.saturating_duration_since(Instant::now()));
            match self.socket.wait(key, pause, |r, cx| next(r, cx, &self.known, &self.audience)) {
                Ok(Next::Update(update)) => self.on_update(*update),
                Ok(Next::StaleBoot(boot)) => self.rise(boot),
                Ok(Next::Evidence) => self.keep_evidence(),
                Ok(Next::Promoted) => self.save_again(),
                Err(WaitError::TimedOut) => {
                    if self.unsaved.is_due(Instant::now()) {
                        self.save_again();
                    }
                    self.keep_evidence();
                }
                Err(_) => break,
            }
        }
    }

    fn on_update(&mut self, update: Update) {
        let position = update.position();
        if let Some(validator) = &mut self.validator
            && let Err(why) = contained("the validator", || validator.validate(&update))
        {
            return self.nack(position, NackCode::Validator, &why);
        }
        let stored = self.save(&update.head, &update.state);
        // What the application has not acted on yet is looked for in all there is.
        let changed = self.in_step.then_some(update.changed);
        let (board, snapshot) = (&self.board, Snapshot::new(update.head, update.state));
        let said = stored || self.on_change.is_some();
        // Both at once: who sees it and asks where this node stands is to hear the same.
        let due = self.socket.with(|r, cx| {
            let due = board.publish(snapshot);
            // What comes may take long. If not, what is said next says this as well.
            let _ = match said {
                true => r.ack_in_passing(cx, position, Level::Visible, !stored),
                false => r.show(position),
            };
            due
        });
        due.wake();
        self.act(changed);
    }

    /// Whether it is on disk now.
    fn save(&mut self, head: &Head, state: &State) -> bool {
        self.audience.clone_from(&head.audience);
        match self.cache.save(head, state) {
            None => false,
            Some(Ok(())) => {
                self.unsaved.done();
                self.board.set_trouble(None);
                true
            }
            Some(Err(why)) => {
                self.board.set_trouble(Some(why));
                self.unsaved.failed(Instant::now(), again::random());
                false
            }
        }
    }

    fn keep_evidence(&mut self) {
        self.known = self.socket.with(|r, cx| r.status(cx.now()).evidence);
        let failed = self.cache.due().is_some();
        if let Err(why) = self.cache.keep(self.known.as_ref()) {
            self.board.set_trouble(Some(why));
        } else if failed && self.cache.due().or(self.unsaved.at()).is_none() {
            self.board.set_trouble(None);
        }
    }

    fn save_again(&mut self) {
        let visible =
            |r: &mut Replica, _: &mut Cx<'_>| r.visible().map(|(head, state)| (head.clone(), state.clone()));
        if let Some((head, state)) = self.socket.with(visible)
            && self.save(&head, &state)
        {
            self.ack(head.position, Level::Visible, false);
        }
    }

    /// The application acts on what is visible. `changed`: the only keys that may differ from what it acted on last.
    fn act(&mut self, changed: Option<Vec<Key>>) {
        let now = self.board.now();
        let Some(position) = now.position() else { return };
        let keys: Vec<Key> = match changed {
            Some(mut keys) => {
                let (old, new) = (&self.acted, now.state());
                keys.retain(|key| old.get(key.as_bytes()) != new.get(key.as_bytes()));
                keys
            }
            None => self.acted.diff(now.state()).keys().cloned().collect(),
        };
        self.in_step = false;
        if let (Some(act), false) = (&mut self.on_change, keys.is_empty()) {
            let changed = Changed { snapshot: now.clone(), keys };
            if let Err(why) = contained("the hook", || act(&changed)) {
                return self.nack(position, NackCode::Hook, &why);
            }
        }
        (self.acted, self.in_step) = (now.state().clone(), true);
        // Levels add up: what is on disk was said before.
        self.ack(position, Level::Applied, true);
    }

    /// A server knows a later start of this node.
    fn rise(&mut self, boot: u64) {
        let (id, boot, copied, unnamed) = self.cache.rise(boot);
        // Known before the next HELLO says it.
        self.board.set_copied(copied, unnamed);
        self.socket.with(|r, _| r.set_identity(id, boot));
    }

    fn ack(&self, position: Position, level: Level, volatile: bool) {
        // It is the one given or the visible one; nobody else asks this socket for updates.
        let _ = self.socket.with(|r, cx| r.ack(cx, position, level, volatile));
    }

    fn nack(&self, position: Position, code: NackCode, why: &str) {
        let _ = self.socket.with(|r, cx| r.nack(cx, position, code, why));
    }
}

impl Drop for Keeper {
    /// However it ended: nobody is to wait for more.
    fn drop(&mut self) {
        let _ = self.socket.close(Duration::ZERO);
        self.board.close();
    }
}

fn next(
    replica: &mut Replica,
    cx: &mut Cx<'_>,
    known: &Option<(Head, Head)>,
    audience: &Bytes,
) -> Option<Next> {
    let status = replica.status(cx.now());
    if let Some(boot) = status.stale_boot {
        return Some(Next::StaleBoot(boot));
    }
    if status.evidence != *known {
        return Some(Next::Evidence);
    }
    if let Some(update) = replica.recv(cx) {
        return Some(Next::Update(Box::new(update)));
    }
    replica.visible().is_some_and(|(head, _)| head.audience != *audience).then_some(Next::Promoted)
}

/// A panic of the application's is a refusal.
fn contained(who: &str, f: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(format!("{who} panicked")))
}

/// The disk cache, if there is one.
#[derive(Debug, Default)]
pub(super) struct Cache {
    #[cfg(all(unix, feature = "sync"))]
    pub(super) store: Option<Store>,
    /// What it holds of a conflict.
    #[cfg(all(unix, feature = "sync"))]
    pub(super) evidence: Evidence,
    /// The start number was raised already: told again, the folder has a living twin.
    #[cfg(all(unix, feature = "sync"))]
    pub(super) raised: bool,
}

impl Cache {
    /// `None`: there is none.
    #[cfg(all(unix, feature = "sync"))]
    fn save(&mut self, head: &Head, state: &State) -> Option<Result<(), String>> {
        Some(self.store.as_mut()?.save(head, state).map_err(|e| e.to_string()))
    }

    #[cfg(not(all(unix, feature = "sync")))]
    fn save(&mut self, _: &Head, _: &State) -> Option<Result<(), String>> {
        None
    }

    /// Keeps the word of a conflict over restarts.
    #[cfg(all(unix, feature = "sync"))]
    fn keep(&mut self, now: Option<&(Head, Head)>) -> Result<(), String> {
        self.store.as_ref().map_or(Ok(()), |store| self.evidence.keep(store, now, Instant::now()))
    }

    /// When to keep again what could not be kept of a conflict.
    #[cfg(all(unix, feature = "sync"))]
    fn due(&self) -> Option<Instant> {
        self.evidence.at()
    }

    #[cfg(not(all(unix, feature = "sync")))]
    fn due(&self) -> Option<Instant> {
        None
    }

    #[cfg(not(all(unix, feature = "sync")))]
    fn keep(&mut self, _: Option<&(Head, Head)>) -> Result<(), String> {
        Ok(())
    }

    /// Another start number, or another node; and why that is not on disk, if it should be.
    fn rise(&mut self, boot: u64) -> (Id, u64, Copied, Option<String>) {
        #[cfg(all(unix, feature = "sync"))]
        if let Some(store) = &mut self.store {
            let (written, copied) = if self.raised {
                (store.renew(), Copied::Renamed)
            } else {
                (store.raise_above(boot), Copied::Raised)
            };
            self.raised = true;
            let unnamed = written
                .err()
                .map(|e| format!("who this node is was not noted, so it holds until this process ends: {e}"));
            let identity = store.identity();
            return (identity.id, identity.boot, copied, unnamed);
        }
        let id = Id::random().unwrap_or_else(|_| Id::named(&format!("{boot:x}")));
        (id, boot, Copied::Renamed, None)
    }
}
