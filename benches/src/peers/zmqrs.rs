//! zmq.rs, the crate `zeromq`: async, on tokio.
//!
//! It has no high-water marks, so nothing bounds its queues as the cell asks; what it has are the buffers of
//! its streams. No inproc, and its pub socket drops.

use std::sync::Arc;

use tokio::sync::Mutex;
use zeromq::{
    DealerSocket, PubSocket, PullSocket, PushSocket, RepSocket, ReqSocket, RouterSocket, Socket, SocketRecv,
    SocketSend, SubSocket, ZmqMessage,
};

use super::runtime;
use crate::Result;
use crate::cell::{Cell, Shape, Transport};
use crate::contestant::{Contestant, Pull, Push, Rep, Req, Topics};

fn message(body: &[u8]) -> ZmqMessage {
    ZmqMessage::from(body.to_vec())
}

/// Shows the last frame.
fn show<R>(msg: &ZmqMessage, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
    Ok(look(msg.iter().last().ok_or("a message without a frame")?))
}

/// Any of its sockets.
pub(super) struct Own<S>(S);

impl<S: SocketSend> Push for Own<S> {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        Ok(self.0.send(message(body)).await?)
    }
}

impl<S: SocketRecv> Pull for Own<S> {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        show(&self.0.recv().await?, look)
    }
}

impl Req for Own<ReqSocket> {
    async fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        self.0.send(message(body)).await?;
        show(&self.0.recv().await?, look)
    }
}

/// A rep answers with what it got; a router has the asker's name before that.
impl<S: SocketRecv + SocketSend> Rep for Own<S> {
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let msg = self.0.recv().await?;
        let seen = show(&msg, look)?;
        self.0.send(msg).await?;
        Ok(seen)
    }
}

/// A push socket has one owner at a time.
pub(super) struct Sharer(Arc<Mutex<PushSocket>>);

impl Push for Sharer {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        Ok(self.0.lock().await.send(message(body)).await?)
    }
}

async fn connected<S: Socket>(url: &str) -> Result<S> {
    let mut socket = S::new();
    socket.connect(url).await?;
    Ok(socket)
}

async fn bound<S: Socket>(url: &str) -> Result<(Own<S>, String)> {
    let mut socket = S::new();
    let url = socket.bind(url).await?.to_string();
    Ok((Own(socket), url))
}

/// zmq.rs.
pub(super) struct ZmqRs;

impl Contestant for ZmqRs {
    type Push = Own<PushSocket>;
    type Sharer = Sharer;
    type Pull = Own<PullSocket>;
    type Req = Own<ReqSocket>;
    type Rep = Own<RepSocket>;
    type Ask = Own<DealerSocket>;
    type Serve = Own<RouterSocket>;
    type Pub = Own<PubSocket>;
    type Sub = Own<SubSocket>;

    fn name(&self) -> &'static str {
        "zmq.rs"
    }
    fn version(&self) -> String {
        env!("VERSUS_VERSION_ZEROMQ").to_owned()
    }
    fn takes(&self, cell: &Cell) -> bool {
        let few = match cell.shape {
            Shape::Topics(n) => n <= 1000,
            Shape::FanIn(n) => n <= 1000,
            Shape::Full => false,
            _ => true,
        };
        few && cell.transport != Transport::Inproc
    }
    fn is_lossy(&self) -> bool {
        true
    }
    fn block_on<F: Future>(&self, job: F) -> F::Output {
        // tokio has a task that never rests see no news of its streams, until it rests. zmq.rs asks its streams
        // again and again without resting, and would spin for ever.
        runtime::block_on(tokio::task::unconstrained(job))
    }
    async fn push(&self, url: &str, _: &Cell) -> Result<Self::Push> {
        Ok(Own(connected(url).await?))
    }
    async fn pull(&self, url: &str, _: &Cell) -> Result<(Self::Pull, String)> {
        bound(url).await
    }
    async fn req(&self, url: &str, _: &Cell) -> Result<Self::Req> {
        Ok(Own(connected(url).await?))
    }
    async fn rep(&self, url: &str, _: &Cell) -> Result<(Self::Rep, String)> {
        bound(url).await
    }
    async fn sharers(&self, url: &str, _: &Cell, n: usize) -> Result<Vec<Sharer>> {
        let socket = Arc::new(Mutex::new(connected(url).await?));
        Ok((0..n).map(|_| Sharer(socket.clone())).collect())
    }
    async fn ask(&self, url: &str, _: &Cell) -> Result<Self::Ask> {
        Ok(Own(connected(url).await?))
    }
    async fn serve(&self, url: &str, _: &Cell) -> Result<(Self::Serve, String)> {
        bound(url).await
    }
    async fn publish(&self, url: &str, _: &Cell) -> Result<(Self::Pub, String)> {
        bound(url).await
    }
    async fn subscribe(&self, url: &str, _: &Cell, topics: Topics) -> Result<Self::Sub> {
        let mut socket: SubSocket = connected(url).await?;
        for topic in topics {
            socket.subscribe(std::str::from_utf8(&topic)?).await?;
        }
        Ok(Own(socket))
    }
}
