//! spanwire in its async form, on tokio: what the futures cost beside the blocking calls.
//!
//! The sockets are the same; only their calls differ. `spanwire-async` is on a runtime of several threads, and the
//! background driver reads; `spanwire-tokio` has its sockets driven by a runtime of one thread.

use std::ops::Deref;

use spanwire::protocol::Protocol;
use spanwire::{Message, Socket};

use super::ours::{Many, socket};
use super::runtime;
use crate::Result;
use crate::cell::{Cell, Shape};
use crate::contestant::{Contestant, Pull, Push, Rep, Req, Standing, Void};

/// spanwire on tokio.
pub(super) struct SpanwireAsync {
    /// Its sockets are driven by the runtime.
    pub(super) driven: bool,
}

impl SpanwireAsync {
    fn on_tokio<P: Protocol, S: Deref<Target = Socket<P>>>(&self, socket: S) -> Result<S> {
        if self.driven {
            socket.drive_on_tokio()?;
        }
        Ok(socket)
    }
}

/// Any of its sockets.
pub(super) struct OnTokio<S>(S);

impl Push for OnTokio<spanwire::Push> {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        Ok(self.0.send_async(body).await.map_err(|why| why.to_string())?)
    }
}

impl Pull for OnTokio<Many<spanwire::Pull>> {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        if let Some((socket, got)) = self.0.empty() {
            socket.recv_many_async(got, Many::<spanwire::Pull>::MOST).await?;
        }
        Ok(look(self.0.next()))
    }
}

impl Req for OnTokio<spanwire::Req> {
    async fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&self.0.request_async(Message::from(body)).await?))
    }
}

impl Rep for OnTokio<spanwire::Rep> {
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let request = self.0.recv_async().await?;
        let seen = look(&request);
        let answer = request.body().clone();
        request.reply_async(answer).await.map_err(|why| why.to_string())?;
        Ok(seen)
    }
}

impl Contestant for SpanwireAsync {
    type Push = OnTokio<spanwire::Push>;
    type Sharer = Void;
    type Pull = OnTokio<Many<spanwire::Pull>>;
    type Req = OnTokio<spanwire::Req>;
    type Rep = OnTokio<spanwire::Rep>;
    type Ask = Void;
    type Serve = Void;
    type Pub = Void;
    type Sub = Void;

    fn name(&self) -> &'static str {
        if self.driven { "spanwire-tokio" } else { "spanwire-async" }
    }
    fn version(&self) -> String {
        concat!("(tokio ", env!("VERSUS_VERSION_TOKIO"), ")").to_owned()
    }
    fn standing(&self) -> Standing {
        Standing::OursToo
    }
    fn takes(&self, cell: &Cell) -> bool {
        // This program blocks while its sides talk, and with it a runtime of one thread: large bodies that are queued
        // at the end of a stream would then stay.
        let stream = cell.shape == Shape::Stream && (cell.size == 64 || cell.size == 65536 && !self.driven);
        stream || cell.shape == Shape::RoundTrip && matches!(cell.size, 64 | 65536)
    }
    fn block_on<F: Future>(&self, job: F) -> F::Output {
        if self.driven { runtime::block_on_one(job) } else { runtime::block_on(job) }
    }
    async fn push(&self, url: &str, cell: &Cell) -> Result<Self::Push> {
        let socket = self.on_tokio(socket!(Push, cell)?)?;
        socket.connect(url)?;
        Ok(OnTokio(socket))
    }
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(Self::Pull, String)> {
        let socket = self.on_tokio(socket!(Pull, cell)?)?;
        let url = socket.bind(url)?.url().to_owned();
        Ok((OnTokio(Many::new(socket)), url))
    }
    async fn req(&self, url: &str, cell: &Cell) -> Result<Self::Req> {
        let socket = self.on_tokio(socket!(Req, cell)?)?;
        socket.connect(url)?;
        Ok(OnTokio(socket))
    }
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(Self::Rep, String)> {
        let socket = self.on_tokio(socket!(Rep, cell)?)?;
        let url = socket.bind(url)?.url().to_owned();
        Ok((OnTokio(socket), url))
    }
}
