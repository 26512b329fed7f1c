//! An authority and its store in one thread: what the machine wants done to the store is done, until it wants
//! nothing more.
//!
//! What is left is the caller's, in order: [`Distributor::perform`](crate::Distributor::perform) takes what is
//! for the nodes, and answers and alarms go to people. A caller that must not wait for a disk puts a
//! [`Writer`](crate::source::Writer) in the place of this.
//!
//! Owns: the machine and the source. Never: a thread, a clock, a pipe.

use spanwire::protocol::Time;

use crate::source::{Source, SourceError, perform};
use crate::{AuthorityAction, AuthorityEvent, Id, NsAuthority, NsSettings, Opening};

/// An [`NsAuthority`] on its [`Source`].
#[derive(Debug)]
pub struct Driver<S> {
    machine: NsAuthority,
    source: S,
    /// Bytes of an unfinished record that were cut off; never acknowledged.
    cut: u64,
}

impl<S: Source> Driver<S> {
    /// Loads the source and starts from what it holds; where it holds nothing, from `absent`. `incarnation` is
    /// random; it names the epoch that a first commit begins.
    ///
    /// # Errors
    /// The source's: nothing may be served then.
    pub fn open(
        mut source: S,
        settings: NsSettings,
        absent: Opening,
        incarnation: Id,
    ) -> Result<(Self, Vec<AuthorityAction>), SourceError> {
        let recovered = source.load()?;
        let cut = recovered.as_ref().map_or(0, |recovered| recovered.cut);
        let opening = recovered.map_or(absent, |recovered| Opening::Restored(Box::new(recovered)));
        let (machine, actions) = NsAuthority::new(settings, opening, incarnation);
        let mut driver = Driver { machine, source, cut };
        let left = driver.act(actions);
        Ok((driver, left))
    }

    /// The machine.
    pub fn machine(&self) -> &NsAuthority {
        &self.machine
    }

    /// The machine, for what is said between events.
    pub fn machine_mut(&mut self) -> &mut NsAuthority {
        &mut self.machine
    }

    /// Bytes of an unfinished record that loading cut off; nobody was told of it.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// Gives the source back.
    pub fn into_source(self) -> S {
        self.source
    }

    /// Gives both back, for a [`Writer`](crate::source::Writer).
    pub fn into_parts(self) -> (NsAuthority, S) {
        (self.machine, self.source)
    }

    /// Says what happened; returns what is left to be done, in order.
    pub fn tell(&mut self, event: AuthorityEvent) -> Vec<AuthorityAction> {
        // Only the gates of a rollout look at the time.
        self.tell_at(event, Time::default())
    }

    /// As [`tell`](Self::tell), at this time: for what the nodes of a cohort report.
    pub fn tell_at(&mut self, event: AuthorityEvent, now: Time) -> Vec<AuthorityAction> {
        let actions = self.machine.handle(event, now);
        self.act(actions)
    }

    fn act(&mut self, mut actions: Vec<AuthorityAction>) -> Vec<AuthorityAction> {
        let mut left = Vec::new();
        while !actions.is_empty() {
            let mut next = Vec::new();
            for action in actions {
                match perform(&mut self.source, action) {
                    Ok(event) => next.extend(self.machine.handle(event, Time::default())),
                    Err(action) => left.push(action),
                }
            }
            actions = next;
        }
        left
    }
}
