//! What is compared: a messaging library, or the limit it is held against.
//!
//! The traits are static, so that no dynamic call stands between the loop that measures and the library;
//! [`Entry`] hides the types again, once for a whole side. They are async, so that libraries that only are so
//! run inside of their runtime; a blocking one blocks in a future that is ready when polled once. Every
//! contestant must obey the cell's queue bound and keep the system's default socket buffers.
//! Owns: the traits. Never: times or counts anything.
#![expect(async_fn_in_trait, reason = "each future stays on the thread that made it")]

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::cell::{Cell, Plan, Share};
use crate::side::{self, Ends, Role};
use crate::{Result, peers};

/// What part a contestant plays in a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// spanwire.
    Ours,
    /// spanwire in another form: async, requests by the batch.
    OursToo,
    /// A library that does the same work: the best of these is what a ratio compares with.
    Peer,
    /// No library at all: what the machine can do.
    Limit,
}

/// A library, with the sockets that the shapes need. Binders tell their real URL.
pub trait Contestant: Send + Sync + 'static {
    /// Sends.
    type Push: Push;
    /// One of several handles of one push socket.
    type Sharer: Push + Send;
    /// Receives.
    type Pull: Pull;
    /// Asks.
    type Req: Req;
    /// Answers.
    type Rep: Rep;
    /// Asks without waiting: what is received are the answers, in turn.
    type Ask: Push + Pull;
    /// Answers those.
    type Serve: Rep;
    /// Sends to all.
    type Pub: Push;
    /// Receives what it subscribed.
    type Sub: Pull;

    /// Short, as in tables.
    fn name(&self) -> &'static str;
    /// Of the library that was really loaded.
    fn version(&self) -> String;
    /// Ours, a peer, a limit.
    fn standing(&self) -> Standing {
        Standing::Peer
    }
    /// Whether it can do the cell.
    fn takes(&self, cell: &Cell) -> bool;
    /// Whether its pub socket drops what a slow subscriber has no room for, whatever one sets.
    fn is_lossy(&self) -> bool {
        false
    }
    /// Runs a side.
    fn block_on<F: Future>(&self, job: F) -> F::Output {
        at_once(job)
    }

    /// Connects.
    ///
    /// # Errors
    /// What the library says.
    async fn push(&self, url: &str, cell: &Cell) -> Result<Self::Push>;
    /// Binds.
    ///
    /// # Errors
    /// What the library says.
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(Self::Pull, String)>;
    /// Connects.
    ///
    /// # Errors
    /// What the library says.
    async fn req(&self, url: &str, cell: &Cell) -> Result<Self::Req>;
    /// Binds.
    ///
    /// # Errors
    /// What the library says.
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(Self::Rep, String)>;
    /// Connects one socket, and gives `n` handles of it.
    ///
    /// # Errors
    /// What the library says.
    async fn sharers(&self, _url: &str, _cell: &Cell, _n: usize) -> Result<Vec<Self::Sharer>> {
        Err(cannot("share a socket"))
    }
    /// Connects.
    ///
    /// # Errors
    /// What the library says.
    async fn ask(&self, _url: &str, _cell: &Cell) -> Result<Self::Ask> {
        Err(cannot("have several requests in flight"))
    }
    /// Binds.
    ///
    /// # Errors
    /// What the library says.
    async fn serve(&self, _url: &str, _cell: &Cell) -> Result<(Self::Serve, String)> {
        Err(cannot("have several requests in flight"))
    }
    /// Binds. Without loss, if it can.
    ///
    /// # Errors
    /// What the library says.
    async fn publish(&self, _url: &str, _cell: &Cell) -> Result<(Self::Pub, String)> {
        Err(cannot("publish"))
    }
    /// Connects, and subscribes `topics`, in this order.
    ///
    /// # Errors
    /// What the library says.
    async fn subscribe(&self, _url: &str, _cell: &Cell, _topics: Topics) -> Result<Self::Sub> {
        Err(cannot("subscribe"))
    }
}

/// Topics, made as they are asked for.
pub type Topics = Box<dyn Iterator<Item = Vec<u8>>>;

/// The error of what a contestant does not do.
pub fn cannot(what: &str) -> Box<dyn std::error::Error + Send + Sync> {
    format!("it cannot {what}").into()
}

/// What a blocking contestant's future yields when it is polled.
pub fn at_once<F: Future>(job: F) -> F::Output {
    let mut job = pin!(job);
    match job.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(yields) => yields,
        Poll::Pending => unreachable!("no blocking contestant awaits anything but itself"),
    }
}

/// Sends messages to nobody in particular.
pub trait Push {
    /// Waits until the message is taken.
    ///
    /// # Errors
    /// What the library says.
    async fn send(&mut self, body: &[u8]) -> Result<()>;
    /// Lets go of what only a batch writer keeps back.
    ///
    /// # Errors
    /// What the library says.
    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }
    /// Waits no longer than [`REFUSAL`]; `false`: it was not taken.
    ///
    /// # Errors
    /// What the library says.
    async fn offer(&mut self, _body: &[u8]) -> Result<bool> {
        Err(cannot("stop waiting for room"))
    }
}

/// How long a full queue must stay full to be believed.
pub const REFUSAL: Duration = Duration::from_millis(500);

/// Receives messages.
pub trait Pull {
    /// Waits for a message and shows it.
    ///
    /// # Errors
    /// What the library says.
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R>;
}

/// Asks.
pub trait Req {
    /// Sends a request, waits for the answer and shows it.
    ///
    /// # Errors
    /// What the library says.
    async fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R>;
}

/// Answers.
pub trait Rep {
    /// Waits for a request, shows it and sends it back.
    ///
    /// # Errors
    /// What the library says.
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R>;
}

/// What a contestant has not; there is none.
#[derive(Debug)]
pub enum Void {}

impl Push for Void {
    async fn send(&mut self, _: &[u8]) -> Result<()> {
        match *self {}
    }
}

impl Pull for Void {
    async fn recv<R>(&mut self, _: impl FnOnce(&[u8]) -> R) -> Result<R> {
        match *self {}
    }
}

impl Req for Void {
    async fn request<R>(&mut self, _: &[u8], _: impl FnOnce(&[u8]) -> R) -> Result<R> {
        match *self {}
    }
}

impl Rep for Void {
    async fn serve<R>(&mut self, _: impl FnOnce(&[u8]) -> R) -> Result<R> {
        match *self {}
    }
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
    /// [`Contestant::is_lossy`].
    fn is_lossy(&self) -> bool;
    /// Does one side of a cell, or both for inproc.
    ///
    /// # Errors
    /// What the library says, and every message that is lost, doubled or out of order.
    fn run(&self, job: &Job<'_>, role: Role, url: &str, ends: &Ends) -> Result<()>;
}

/// What a side has to do.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The cell.
    pub cell: &'a Cell,
    /// For how long.
    pub plan: &'a Plan,
    /// Of a process that dials: which of the dialling sockets.
    pub share: Share,
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
    fn is_lossy(&self) -> bool {
        Contestant::is_lossy(self)
    }
    fn run(&self, job: &Job<'_>, role: Role, url: &str, ends: &Ends) -> Result<()> {
        side::run(self, job, role, url, ends)
    }
}

/// All that this build knows, ours first.
pub fn all() -> Vec<Box<dyn Entry>> {
    peers::all()
}
