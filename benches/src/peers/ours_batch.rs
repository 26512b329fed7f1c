//! spanwire with requests by the batch: started, collected and answered many at a time.
//!
//! The sockets are the same; only their calls differ.

use std::collections::VecDeque;

use spanwire::{Message, Reply, Request, RequestSet};

use super::ours::socket;
use crate::Result;
use crate::cell::{Cell, Shape};
use crate::contestant::{Contestant, Pull, Push, Rep, Standing, Void, cannot};

/// spanwire by the batch.
pub(super) struct SpanwireBatch;

/// So many at once at most: a quarter of what is in flight, so that both sides are at work.
const MOST: usize = 64;

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
            self.set.recv_many(&mut self.got, MOST)?;
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
            self.rep.recv_many(&mut self.got, MOST)?;
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
    type Push = Void;
    type Sharer = Void;
    type Pull = Void;
    type Req = Void;
    type Rep = Void;
    type Ask = Asker;
    type Serve = Server;
    type Pub = Void;
    type Sub = Void;

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
        matches!(cell.shape, Shape::Pipelined(_))
    }
    async fn push(&self, _: &str, _: &Cell) -> Result<Void> {
        Err(cannot("send"))
    }
    async fn pull(&self, _: &str, _: &Cell) -> Result<(Void, String)> {
        Err(cannot("receive"))
    }
    async fn req(&self, _: &str, _: &Cell) -> Result<Void> {
        Err(cannot("ask one at a time"))
    }
    async fn rep(&self, _: &str, _: &Cell) -> Result<(Void, String)> {
        Err(cannot("answer one at a time"))
    }
    async fn ask(&self, url: &str, cell: &Cell) -> Result<Asker> {
        let req = socket!(Req, cell)?;
        req.connect(url)?;
        Ok(Asker {
            set: req.request_set()?,
            asked: VecDeque::new(),
            ids: Vec::new(),
            got: Vec::with_capacity(MOST),
            looked_at: 0,
        })
    }
    async fn serve(&self, url: &str, cell: &Cell) -> Result<(Server, String)> {
        let rep = socket!(Rep, cell)?;
        let url = rep.bind(url)?.url().to_owned();
        Ok((Server { rep, got: Vec::with_capacity(MOST), looked_at: 0, answers: VecDeque::new() }, url))
    }
}
