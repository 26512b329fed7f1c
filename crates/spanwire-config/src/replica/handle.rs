//! One of the namespaces of a receiver, for its application.
//!
//! Owns: that what a namespace leaves to be done is done before the call ends. Never: a rule of its own.

use std::ops::{Deref, DerefMut};

use spanwire::protocol::{Cx, Time};

use super::{NsReplica, Replica, ReplicaStatus, Unexpected, Update};
use crate::faults::planted;
use crate::wire::{Level, NackCode};
use crate::{Position, RelayAction, RelayEvent};

/// One of the namespaces of a [`Replica`], to have something done in it.
#[derive(Debug)]
pub struct NsReplicaMut<'a> {
    pub(super) replica: &'a mut Replica,
    pub(super) at: usize,
}

impl Deref for NsReplicaMut<'_> {
    type Target = NsReplica;
    fn deref(&self) -> &NsReplica {
        &self.replica.namespaces[self.at]
    }
}

impl DerefMut for NsReplicaMut<'_> {
    fn deref_mut(&mut self) -> &mut NsReplica {
        &mut self.replica.namespaces[self.at]
    }
}

impl NsReplicaMut<'_> {
    /// As [`Replica::status`].
    pub fn status(&self, now: Time) -> ReplicaStatus {
        self.replica.status_at(self.at, now)
    }

    /// The newest verified revision of this namespace, as [`Replica`] gives those of all.
    pub fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Update> {
        let update = (**self).recv(cx);
        self.replica.settle(cx, self.at);
        update
    }

    /// As [`Replica::retry`].
    pub fn retry(&mut self, cx: &mut Cx<'_>) {
        (**self).retry();
        self.replica.settle(cx, self.at);
    }

    /// As [`Replica::ack`].
    ///
    /// # Errors
    /// As there.
    pub fn ack(
        &mut self,
        cx: &mut Cx<'_>,
        position: Position,
        level: Level,
        volatile: bool,
    ) -> Result<(), Unexpected> {
        self.reached(cx, position, level, volatile, false)
    }

    /// As [`Replica::ack_in_passing`].
    ///
    /// # Errors
    /// As there.
    pub fn ack_in_passing(
        &mut self,
        cx: &mut Cx<'_>,
        position: Position,
        level: Level,
        volatile: bool,
    ) -> Result<(), Unexpected> {
        self.reached(cx, position, level, volatile, true)
    }

    fn reached(
        &mut self,
        cx: &mut Cx<'_>,
        position: Position,
        level: Level,
        volatile: bool,
        more: bool,
    ) -> Result<(), Unexpected> {
        (**self).reached(cx, position, level, volatile, more)?;
        self.replica.settle(cx, self.at);
        if let Some(pipe) = self.replica.active.filter(|_| planted("credit-by-ack")) {
            self.replica.say_credit(cx, pipe);
        }
        Ok(())
    }

    /// As [`Replica::nack`].
    ///
    /// # Errors
    /// As there.
    pub fn nack(
        &mut self,
        cx: &mut Cx<'_>,
        position: Position,
        code: NackCode,
        text: &str,
    ) -> Result<(), Unexpected> {
        (**self).refuses(cx, position, code, text)?;
        self.replica.settle(cx, self.at);
        Ok(())
    }

    /// As [`Replica::relay_events`].
    pub fn relay_events(&mut self, cx: &mut Cx<'_>) -> Vec<RelayEvent> {
        let upstream = self.replica.upstream();
        let events = (**self).relay_events(cx, upstream);
        self.replica.settle(cx, self.at);
        events
    }

    /// As [`Replica::perform_relay`].
    ///
    /// # Errors
    /// As there.
    pub fn perform_relay(
        &mut self,
        cx: &mut Cx<'_>,
        action: RelayAction,
    ) -> Result<Option<RelayAction>, Unexpected> {
        match action {
            RelayAction::Ack { position, level, volatile } => self.ack(cx, position, level, volatile)?,
            other => return Ok(Some(other)),
        }
        Ok(None)
    }
}
