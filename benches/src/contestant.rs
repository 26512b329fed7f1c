//! What is compared: a messaging library, or the limit it is held against.
//!
//! The traits are static, so that no dynamic call stands between the loop that measures and the library;
//! [`Entry`] hides the types again, once for a whole side. Every contestant must obey the cell's queue bound
//! and keep the system's default socket buffers.
//! Owns: the traits. Never: times or counts anything.

use crate::cell::{Cell, Plan};
use crate::side::{self, Ends, Role};
use crate::{Result, peers};

/// What part a contestant plays in a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// spanwire.
    Ours,
    /// A library that does the same work: the best of these is what a ratio compares with.
    Peer,
    /// No library at all: what the machine can do.
    Limit,
}

/// A library, with the four sockets that the shapes need. Binders tell their real URL.
pub trait Contestant: Send + Sync + 'static {
    /// Sends.
    type Push: Push;
    /// Receives.
    type Pull: Pull;
    /// Asks.
    type Req: Req;
    /// Answers.
    type Rep: Rep;

    /// Short, as in tables.
    fn name(&self) -> &'static str;
    /// Of the library that was really loaded.
    fn version(&self) -> String;
    /// Ours, a peer, a limit.
    fn standing(&self) -> Standing {
        Standing::Peer
    }
    /// Whether the cell makes sense for it.
    fn takes(&self, _cell: &Cell) -> bool {
        true
    }

    /// Connects.
    ///
    /// # Errors
    /// What the library says.
    fn push(&self, url: &str, cell: &Cell) -> Result<Self::Push>;
    /// Binds, and tells the real URL.
    ///
    /// # Errors
    /// What the library says.
    fn pull(&self, url: &str, cell: &Cell) -> Result<(Self::Pull, String)>;
    /// Connects.
    ///
    /// # Errors
    /// What the library says.
    fn req(&self, url: &str, cell: &Cell) -> Result<Self::Req>;
    /// Binds, and tells the real URL.
    ///
    /// # Errors
    /// What the library says.
    fn rep(&self, url: &str, cell: &Cell) -> Result<(Self::Rep, String)>;
}

/// Sends messages to nobody in particular.
pub trait Push: Send {
    /// Waits until the message is taken.
    ///
    /// # Errors
    /// What the library says.
    fn send(&mut self, body: &[u8]) -> Result<()>;
    /// Lets go of what only a batch writer keeps back.
    ///
    /// # Errors
    /// What the library says.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Receives messages.
pub trait Pull: Send {
    /// Waits for a message and shows it.
    ///
    /// # Errors
    /// What the library says.
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R>;
}

/// Asks.
pub trait Req: Send {
    /// Sends a request, waits for the answer and shows it.
    ///
    /// # Errors
    /// What the library says.
    fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R>;
}

/// Answers.
pub trait Rep: Send {
    /// Waits for a request, shows it and sends it back.
    ///
    /// # Errors
    /// What the library says.
    fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R>;
}

/// A contestant without its types.
pub trait Entry: Send + Sync {
    /// [`Contestant::name`].
    fn name(&self) -> &'static str;
    /// [`Contestant::version`].
    fn version(&self) -> String;
    /// [`Contestant::standing`].
    fn standing(&self) -> Standing;
    /// [`Contestant::takes`].
    fn takes(&self, cell: &Cell) -> bool;
    /// Does one side of a cell, or both for inproc.
    ///
    /// # Errors
    /// What the library says, and every message that is lost, doubled or out of order.
    fn run(&self, role: Role, url: &str, cell: &Cell, plan: &Plan, ends: &Ends) -> Result<()>;
}

impl<C: Contestant> Entry for C {
    fn name(&self) -> &'static str {
        Contestant::name(self)
    }
    fn version(&self) -> String {
        Contestant::version(self)
    }
    fn standing(&self) -> Standing {
        Contestant::standing(self)
    }
    fn takes(&self, cell: &Cell) -> bool {
        Contestant::takes(self, cell)
    }
    fn run(&self, role: Role, url: &str, cell: &Cell, plan: &Plan, ends: &Ends) -> Result<()> {
        side::run(self, role, url, cell, plan, ends)
    }
}

/// All that this build knows, ours first.
pub fn all() -> Vec<Box<dyn Entry>> {
    peers::all()
}
