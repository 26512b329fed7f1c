//! rzmq: async, on tokio.
//!
//! HWM is the bound in messages on each side. Its pub socket can wait (`XPUB_NODROP`), as libzmq's.

use std::sync::OnceLock;

use rzmq::socket::options as opt;
use rzmq::{Context, Msg, SocketType, ZmqError};

use super::runtime;
use crate::Result;
use crate::cell::{Cell, Shape};
use crate::contestant::{Contestant, Pull, Push, REFUSAL, Rep, Req, Topics};

/// The context of the process: inproc needs one for both sides.
fn context() -> Result<&'static Context> {
    static CONTEXT: OnceLock<Context> = OnceLock::new();
    match CONTEXT.get() {
        Some(context) => Ok(context),
        None => {
            let context = Context::new()?;
            Ok(CONTEXT.get_or_init(|| context))
        }
    }
}

/// A socket of any kind.
#[derive(Clone)]
pub(super) struct Socket(rzmq::Socket);

impl Socket {
    async fn new(kind: SocketType, cell: &Cell) -> Result<Self> {
        let socket = context()?.socket(kind)?;
        for (option, value) in [
            (opt::SNDHWM, cell.queue() as i32),
            (opt::RCVHWM, cell.queue() as i32),
            (opt::MAX_CONNECTIONS, 20_000),
        ] {
            socket.set_option(option, value).await?;
        }
        if cell.shape == Shape::Full {
            socket.set_option(opt::SNDTIMEO, REFUSAL.as_millis() as i32).await?;
        }
        Ok(Socket(socket))
    }

    async fn connected(kind: SocketType, url: &str, cell: &Cell) -> Result<Self> {
        let this = Socket::new(kind, cell).await?;
        this.0.connect(url).await?;
        Ok(this)
    }

    async fn bound(kind: SocketType, url: &str, cell: &Cell) -> Result<(Self, String)> {
        let this = Socket::new(kind, cell).await?;
        let url = this.bind(url).await?;
        Ok((this, url))
    }

    async fn bind(&self, url: &str) -> Result<String> {
        self.0.bind(url).await?;
        let real = self.0.get_option(opt::LAST_ENDPOINT).await?;
        let real = String::from_utf8_lossy(&real).trim_end_matches('\0').to_owned();
        Ok(if real.is_empty() { url.to_owned() } else { real })
    }
}

fn show<R>(msg: &Msg, look: impl FnOnce(&[u8]) -> R) -> R {
    look(msg.data().unwrap_or_default())
}

impl Push for Socket {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        Ok(self.0.send(Msg::from_vec(body.to_vec())).await?)
    }
    async fn offer(&mut self, body: &[u8]) -> Result<bool> {
        match self.0.send(Msg::from_vec(body.to_vec())).await {
            Ok(()) => Ok(true),
            Err(ZmqError::ResourceLimitReached | ZmqError::Timeout) => Ok(false),
            Err(why) => Err(why.into()),
        }
    }
}

impl Pull for Socket {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(show(&self.0.recv().await?, look))
    }
}

impl Req for Socket {
    async fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        self.send(body).await?;
        self.recv(look).await
    }
}

impl Rep for Socket {
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let msg = self.0.recv().await?;
        let seen = show(&msg, look);
        self.0.send(msg).await?;
        Ok(seen)
    }
}

/// What asks without waiting, or answers that.
pub(super) struct Routed(Socket);

impl Push for Routed {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        self.0.send(body).await
    }
}

impl Pull for Routed {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let frames = self.0.0.recv_multipart().await?;
        Ok(show(frames.last().ok_or("a message without a frame")?, look))
    }
}

impl Rep for Routed {
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let frames = self.0.0.recv_multipart().await?;
        let seen = show(frames.last().ok_or("a message without a frame")?, look);
        self.0.0.send_multipart(frames).await?;
        Ok(seen)
    }
}

/// rzmq.
pub(super) struct Rzmq;

impl Contestant for Rzmq {
    type Push = Socket;
    type Sharer = Socket;
    type Pull = Socket;
    type Req = Socket;
    type Rep = Socket;
    type Ask = Routed;
    type Serve = Routed;
    type Pub = Socket;
    type Sub = Socket;

    fn name(&self) -> &'static str {
        "rzmq"
    }
    fn version(&self) -> String {
        env!("VERSUS_VERSION_RZMQ").to_owned()
    }
    fn takes(&self, cell: &Cell) -> bool {
        match cell.shape {
            Shape::Topics(n) => n <= 10_000,
            // With 1,000 its sockets say that they are closing, or say nothing.
            Shape::FanIn(n) => n <= 100,
            Shape::FanOut(n) => n <= 64,
            _ => true,
        }
    }
    fn block_on<F: Future>(&self, job: F) -> F::Output {
        runtime::block_on(job)
    }
    async fn push(&self, url: &str, cell: &Cell) -> Result<Socket> {
        Socket::connected(SocketType::Push, url, cell).await
    }
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(Socket, String)> {
        Socket::bound(SocketType::Pull, url, cell).await
    }
    async fn req(&self, url: &str, cell: &Cell) -> Result<Socket> {
        Socket::connected(SocketType::Req, url, cell).await
    }
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(Socket, String)> {
        Socket::bound(SocketType::Rep, url, cell).await
    }
    async fn sharers(&self, url: &str, cell: &Cell, n: usize) -> Result<Vec<Socket>> {
        let socket = self.push(url, cell).await?;
        Ok((0..n).map(|_| socket.clone()).collect())
    }
    async fn ask(&self, url: &str, cell: &Cell) -> Result<Routed> {
        Ok(Routed(Socket::connected(SocketType::Dealer, url, cell).await?))
    }
    async fn serve(&self, url: &str, cell: &Cell) -> Result<(Routed, String)> {
        let (socket, url) = Socket::bound(SocketType::Router, url, cell).await?;
        Ok((Routed(socket), url))
    }
    async fn publish(&self, url: &str, cell: &Cell) -> Result<(Socket, String)> {
        let socket = Socket::new(SocketType::Pub, cell).await?;
        socket.0.set_option(opt::XPUB_NODROP, 1).await?;
        let url = socket.bind(url).await?;
        Ok((socket, url))
    }
    async fn subscribe(&self, url: &str, cell: &Cell, topics: Topics) -> Result<Socket> {
        let socket = Socket::new(SocketType::Sub, cell).await?;
        // Subscriptions are messages to the publisher.
        socket.0.set_option(opt::SNDHWM, 2_000_000).await?;
        for topic in topics {
            socket.0.set_option_raw(opt::SUBSCRIBE, &topic).await?;
        }
        socket.0.connect(url).await?;
        Ok(socket)
    }
}
