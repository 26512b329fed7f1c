//! spanwire itself, with the public interface that everybody has.
//!
//! Queues are bounded by messages: the bound in bytes is set so high that it does not count.

use std::collections::VecDeque;
use std::ops::Deref;

use spanwire::protocol::Receives;
use spanwire::{Limit, Message, Pending, Prefer, SendError, Slow, Socket};

use crate::Result;
use crate::cell::Cell;
use crate::contestant::{Contestant, Pull, Push, REFUSAL, Rep, Req, Standing, Topics};

/// spanwire.
pub(super) struct Spanwire;

pub(super) fn limit(cell: &Cell) -> Limit {
    Limit::messages(cell.queue()).and_bytes(cell.queue_bytes() + (8 << 20))
}

macro_rules! socket {
    ($kind:ident, $cell:expr $(, $option:ident($($value:expr),*))*) => {
        spanwire::$kind::builder()
            .send_queue($crate::peers::ours::limit($cell))
            .recv_queue($crate::peers::ours::limit($cell))
            .recv_max_size($cell.size + 1024)
            $(.$option($($value),*))*
            .build()
    };
}
pub(super) use socket;

impl Push for spanwire::Push {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        Ok((**self).send(body).map_err(|why| why.to_string())?)
    }
    async fn offer(&mut self, body: &[u8]) -> Result<bool> {
        match self.send_timeout(Message::from(body), REFUSAL) {
            Ok(()) => Ok(true),
            Err(SendError::TimedOut(_)) => Ok(false),
            Err(why) => Err(why.to_string().into()),
        }
    }
}

/// A socket, and what it received with one call.
pub(super) struct Many<S> {
    socket: S,
    got: Vec<Message>,
    looked_at: usize,
}

impl<S> Many<S> {
    /// So many at once at most: far fewer than a queue holds.
    pub(super) const MOST: usize = 32;

    pub(super) fn new(socket: S) -> Self {
        Many { socket, got: Vec::with_capacity(Self::MOST), looked_at: 0 }
    }

    /// To be filled, when all that is in it was looked at.
    #[inline]
    pub(super) fn empty(&mut self) -> Option<(&S, &mut Vec<Message>)> {
        if self.looked_at < self.got.len() {
            return None;
        }
        self.got.clear();
        self.looked_at = 0;
        Some((&self.socket, &mut self.got))
    }

    /// The next one, when it is not empty.
    #[inline]
    pub(super) fn next(&mut self) -> &Message {
        self.looked_at += 1;
        &self.got[self.looked_at - 1]
    }
}

impl<P: Receives<Item = Message>, S: Deref<Target = Socket<P>>> Pull for Many<S> {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        if let Some((socket, got)) = self.empty() {
            socket.recv_many(got, Self::MOST)?;
        }
        Ok(look(self.next()))
    }
}

impl Req for spanwire::Req {
    async fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&spanwire::Req::request(self, Message::from(body))?))
    }
}

impl Rep for spanwire::Rep {
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let request = self.recv()?;
        let seen = look(&request);
        let answer = request.body().clone();
        request.reply(answer).map_err(|why| why.to_string())?;
        Ok(seen)
    }
}

/// A socket that asks, and what it asked, the oldest first.
pub(super) struct Asker {
    req: spanwire::Req,
    pending: VecDeque<Pending>,
}

impl Push for Asker {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        self.pending.push_back(self.req.start(Message::from(body)).map_err(|why| why.to_string())?);
        Ok(())
    }
}

impl Pull for Asker {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&self.pending.pop_front().ok_or("nothing was asked")?.wait()?))
    }
}

impl Push for spanwire::Pub {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        Ok((**self).send(body).map_err(|why| why.to_string())?)
    }
}

impl Contestant for Spanwire {
    type Push = spanwire::Push;
    type Sharer = spanwire::Push;
    type Pull = Many<spanwire::Pull>;
    type Req = spanwire::Req;
    type Rep = spanwire::Rep;
    type Ask = Asker;
    type Serve = spanwire::Rep;
    type Pub = spanwire::Pub;
    type Sub = Many<spanwire::Sub>;

    fn name(&self) -> &'static str {
        "spanwire"
    }
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }
    fn standing(&self) -> Standing {
        Standing::Ours
    }
    fn takes(&self, _: &Cell) -> bool {
        true
    }
    async fn push(&self, url: &str, cell: &Cell) -> Result<spanwire::Push> {
        let socket = socket!(Push, cell)?;
        socket.connect(url)?;
        Ok(socket)
    }
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(Self::Pull, String)> {
        let socket = socket!(Pull, cell)?;
        let url = socket.bind(url)?.url().to_owned();
        Ok((Many::new(socket), url))
    }
    async fn req(&self, url: &str, cell: &Cell) -> Result<spanwire::Req> {
        let socket = socket!(Req, cell)?;
        socket.connect(url)?;
        Ok(socket)
    }
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(spanwire::Rep, String)> {
        let socket = socket!(Rep, cell)?;
        let url = socket.bind(url)?.url().to_owned();
        Ok((socket, url))
    }
    async fn sharers(&self, url: &str, cell: &Cell, n: usize) -> Result<Vec<spanwire::Push>> {
        let socket = self.push(url, cell).await?;
        Ok((0..n).map(|_| socket.clone()).collect())
    }
    async fn ask(&self, url: &str, cell: &Cell) -> Result<Asker> {
        Ok(Asker { req: self.req(url, cell).await?, pending: VecDeque::new() })
    }
    async fn serve(&self, url: &str, cell: &Cell) -> Result<(spanwire::Rep, String)> {
        self.rep(url, cell).await
    }
    async fn publish(&self, url: &str, cell: &Cell) -> Result<(spanwire::Pub, String)> {
        let socket = socket!(Pub, cell, slow(Slow::Wait))?;
        let url = socket.bind(url)?.url().to_owned();
        Ok((socket, url))
    }
    async fn subscribe(&self, url: &str, cell: &Cell, topics: Topics) -> Result<Self::Sub> {
        // It has a queue of its own behind that of the connection: together they are the cell's bound.
        let half = Limit::messages(cell.queue().div_ceil(2)).and_bytes(cell.queue_bytes() + (8 << 20));
        let socket = socket!(Sub, cell, recv_queue(half), queue(half, Prefer::Oldest))?;
        for topic in topics {
            socket.subscribe(topic);
        }
        socket.connect(url)?;
        Ok(Many::new(socket))
    }
}
