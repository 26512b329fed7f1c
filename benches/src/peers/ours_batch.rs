//! spanwire by the batch: what is sent is gathered and goes in with one call; requests are started, collected and
//! answered many at a time.
//!
//! The sockets and the receiving calls are those of [`Spanwire`]; a program that has several messages at hand uses them
//! so. No peer has such calls: it is a row of its own, and nobody's ratio.

use std::collections::VecDeque;
use std::ops::Deref;

use spanwire::protocol::Sends;
use spanwire::{Message, Reply, Request, RequestSet, Socket};

use super::ours::{Many, Spanwire, socket};
use crate::Result;
use crate::cell::{Cell, Shape};
use crate::contestant::{Contestant, Pull, Push, Rep, Standing, Topics, Void};

/// spanwire by the batch.
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

/// So many at once at most: a quarter of what is in flight, so that both sides are at work.
const ASKED: usize = 64;

/// A set of requests, and what it collected with one call. What is to be asked leaves before the next is collected.
pub(super) struct Asker {
    set: RequestSet,
    asked: VecDeque<Message>,
    ids: Vec<spanwire::ReqId>,
    got: Vec<Reply>,
    looked_at: usize,
}

impl Push for Asker {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        self.asked.push_back(Message::from(body));
        Ok(())
    }
}

impl Pull for Asker {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        if self.looked_at == self.got.len() {
            self.got.clear();
            self.ids.clear();
            self.looked_at = 0;
            self.set.start_many(&mut self.asked, &mut self.ids)?;
            self.set.recv_many(&mut self.got, ASKED)?;
        }
        self.looked_at += 1;
        match &self.got[self.looked_at - 1].result {
            Ok(reply) => Ok(look(reply)),
            Err(why) => Err(why.to_string().into()),
        }
    }
}

/// A socket that answers, with the requests that it took with one call.
pub(super) struct Server {
    rep: spanwire::Rep,
    got: Vec<Request>,
    looked_at: usize,
    answers: VecDeque<(Request, Message)>,
}

impl Rep for Server {
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        if self.got.is_empty() {
            self.rep.recv_many(&mut self.got, ASKED)?;
        }
        let seen = look(&self.got[self.looked_at]);
        self.looked_at += 1;
        if self.looked_at == self.got.len() {
            self.looked_at = 0;
            self.answers.extend(self.got.drain(..).map(|request| {
                let answer = request.body().clone();
                (request, answer)
            }));
            self.rep.reply_many(&mut self.answers)?;
        }
        Ok(seen)
    }
}

impl Contestant for SpanwireBatch {
    type Push = Gathering<spanwire::Push>;
    type Sharer = Gathering<spanwire::Push>;
    type Pull = Many<spanwire::Pull>;
    type Req = Void;
    type Rep = Void;
    type Ask = Asker;
    type Serve = Server;
    type Pub = Gathering<spanwire::Pub>;
    type Sub = Many<spanwire::Sub>;

    fn name(&self) -> &'static str {
        "spanwire-batch"
    }
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }
    fn standing(&self) -> Standing {
        Standing::OursToo
    }
    fn takes(&self, cell: &Cell) -> bool {
        match cell.shape {
            Shape::Stream => cell.size <= 1 << 10,
            Shape::Senders(_) | Shape::FanOut(_) | Shape::FanIn(_) | Shape::Pipelined(_) => true,
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
    async fn ask(&self, url: &str, cell: &Cell) -> Result<Asker> {
        let req = socket!(Req, cell)?;
        req.connect(url)?;
        Ok(Asker {
            set: req.request_set()?,
            asked: VecDeque::new(),
            ids: Vec::new(),
            got: Vec::with_capacity(ASKED),
            looked_at: 0,
        })
    }
    async fn serve(&self, url: &str, cell: &Cell) -> Result<(Server, String)> {
        let rep = socket!(Rep, cell)?;
        let url = rep.bind(url)?.url().to_owned();
        Ok((Server { rep, got: Vec::with_capacity(ASKED), looked_at: 0, answers: VecDeque::new() }, url))
    }
}
