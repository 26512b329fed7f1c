//! spanwire by the batch: what is sent is gathered, and goes in with one call.
//!
//! The sockets and the receiving calls are those of [`Spanwire`]; a program that has several messages at hand sends them
//! so. No peer has such a call: it is a row of its own, and nobody's ratio.

use std::collections::VecDeque;
use std::ops::Deref;

use spanwire::protocol::Sends;
use spanwire::{Message, Socket};

use super::ours::{Many, Spanwire};
use crate::Result;
use crate::cell::{Cell, Shape};
use crate::contestant::{Contestant, Push, Standing, Topics, Void};

/// spanwire, sending by `send_many`.
pub(super) struct SpanwireBatch;

/// A socket, and what goes to it with the next call.
pub(super) struct Gathering<S> {
    socket: S,
    gathered: VecDeque<Message>,
    most: usize,
}

impl<S> Gathering<S> {
    fn new(socket: S, cell: &Cell) -> Self {
        // As many as a receiver takes at once; where many sockets send in turn, as many as one sends in its turn.
        let most = if let Shape::FanIn(_) = cell.shape { Shape::TURN } else { Many::<S>::MOST };
        Gathering { socket, gathered: VecDeque::with_capacity(most), most }
    }
}

impl<P: Sends<Item = Message>, S: Deref<Target = Socket<P>>> Gathering<S> {
    fn send_all(&mut self) -> Result<()> {
        self.socket.send_many(&mut self.gathered).map_err(|why| why.to_string())?;
        Ok(())
    }
}

impl<P: Sends<Item = Message>, S: Deref<Target = Socket<P>>> Push for Gathering<S> {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        self.gathered.push_back(Message::from(body));
        if self.gathered.len() == self.most { self.send_all() } else { Ok(()) }
    }
    async fn flush(&mut self) -> Result<()> {
        self.send_all()
    }
}

impl Contestant for SpanwireBatch {
    type Push = Gathering<spanwire::Push>;
    type Sharer = Gathering<spanwire::Push>;
    type Pull = Many<spanwire::Pull>;
    type Req = Void;
    type Rep = Void;
    type Ask = Void;
    type Serve = Void;
    type Pub = Gathering<spanwire::Pub>;
    type Sub = Many<spanwire::Sub>;

    fn name(&self) -> &'static str {
        "spanwire-batch"
    }
    fn version(&self) -> String {
        "(send_many)".to_owned()
    }
    fn standing(&self) -> Standing {
        Standing::OursToo
    }
    fn takes(&self, cell: &Cell) -> bool {
        match cell.shape {
            Shape::Stream => cell.size <= 1 << 10,
            Shape::Senders(_) | Shape::FanOut(_) | Shape::FanIn(_) => true,
            _ => false,
        }
    }
    async fn push(&self, url: &str, cell: &Cell) -> Result<Self::Push> {
        Ok(Gathering::new(Spanwire.push(url, cell).await?, cell))
    }
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(Self::Pull, String)> {
        Spanwire.pull(url, cell).await
    }
    async fn sharers(&self, url: &str, cell: &Cell, n: usize) -> Result<Vec<Self::Sharer>> {
        let sharers = Spanwire.sharers(url, cell, n).await?;
        Ok(sharers.into_iter().map(|socket| Gathering::new(socket, cell)).collect())
    }
    async fn publish(&self, url: &str, cell: &Cell) -> Result<(Self::Pub, String)> {
        let (socket, url) = Spanwire.publish(url, cell).await?;
        Ok((Gathering::new(socket, cell), url))
    }
    async fn subscribe(&self, url: &str, cell: &Cell, topics: Topics) -> Result<Self::Sub> {
        Spanwire.subscribe(url, cell, topics).await
    }
}
