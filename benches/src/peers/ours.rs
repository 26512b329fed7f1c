//! spanwire itself, with the public interface that everybody has.
//!
//! Queues are bounded by messages: the bound in bytes is set so high that it does not count.

use spanwire::{Limit, Message};

use crate::Result;
use crate::cell::Cell;
use crate::contestant::{Contestant, Pull, Push, Rep, Req, Standing};

/// spanwire.
pub(super) struct Spanwire;

fn limit(cell: &Cell) -> Limit {
    Limit::messages(Cell::QUEUE).and_bytes(cell.queue_bytes() + (8 << 20))
}

macro_rules! socket {
    ($kind:ident, $cell:expr) => {
        spanwire::$kind::builder()
            .send_queue(limit($cell))
            .recv_queue(limit($cell))
            .recv_max_size($cell.size + 1024)
            .build()
    };
}

impl Push for spanwire::Push {
    fn send(&mut self, body: &[u8]) -> Result<()> {
        Ok((**self).send(Message::from(body)).map_err(|why| why.to_string())?)
    }
}

impl Pull for spanwire::Pull {
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&(**self).recv()?))
    }
}

impl Req for spanwire::Req {
    fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&spanwire::Req::request(self, Message::from(body))?))
    }
}

impl Rep for spanwire::Rep {
    fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let request = self.recv()?;
        let seen = look(&request);
        let answer = request.body().clone();
        request.reply(answer).map_err(|why| why.to_string())?;
        Ok(seen)
    }
}

impl Contestant for Spanwire {
    type Push = spanwire::Push;
    type Pull = spanwire::Pull;
    type Req = spanwire::Req;
    type Rep = spanwire::Rep;

    fn name(&self) -> &'static str {
        "spanwire"
    }
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }
    fn standing(&self) -> Standing {
        Standing::Ours
    }
    fn push(&self, url: &str, cell: &Cell) -> Result<spanwire::Push> {
        let socket = socket!(Push, cell)?;
        socket.connect(url)?;
        Ok(socket)
    }
    fn pull(&self, url: &str, cell: &Cell) -> Result<(spanwire::Pull, String)> {
        let socket = socket!(Pull, cell)?;
        let url = socket.bind(url)?.url().to_owned();
        Ok((socket, url))
    }
    fn req(&self, url: &str, cell: &Cell) -> Result<spanwire::Req> {
        let socket = socket!(Req, cell)?;
        socket.connect(url)?;
        Ok(socket)
    }
    fn rep(&self, url: &str, cell: &Cell) -> Result<(spanwire::Rep, String)> {
        let socket = socket!(Rep, cell)?;
        let url = socket.bind(url)?.url().to_owned();
        Ok((socket, url))
    }
}
