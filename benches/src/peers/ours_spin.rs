//! spanwire with sockets that spin before they sleep: what a CPU that is kept busy buys.
//!
//! The sockets are the same but for that setting, and so are their calls.

use std::time::Duration;

use super::ours::{Many, socket};
use crate::Result;
use crate::cell::{Cell, Shape, Transport};
use crate::contestant::{Contestant, Standing, Void};

/// As long as waking a thread takes, and some more.
const SPIN: Duration = Duration::from_micros(100);

/// spanwire that spins.
pub(super) struct SpanwireSpin;

impl Contestant for SpanwireSpin {
    type Push = spanwire::Push;
    type Sharer = Void;
    type Pull = Many<spanwire::Pull>;
    type Req = spanwire::Req;
    type Rep = spanwire::Rep;
    type Ask = Void;
    type Serve = Void;
    type Pub = Void;
    type Sub = Void;

    fn name(&self) -> &'static str {
        "spanwire-spin"
    }
    fn version(&self) -> String {
        format!("(each wait spins for {SPIN:?})")
    }
    fn standing(&self) -> Standing {
        Standing::OursToo
    }
    fn takes(&self, cell: &Cell) -> bool {
        match cell.shape {
            Shape::RoundTrip => true,
            Shape::Stream => cell.transport == Transport::Inproc && cell.size <= 1 << 10,
            _ => false,
        }
    }
    async fn push(&self, url: &str, cell: &Cell) -> Result<Self::Push> {
        let socket = socket!(Push, cell, spin(SPIN))?;
        socket.connect(url)?;
        Ok(socket)
    }
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(Self::Pull, String)> {
        let socket = socket!(Pull, cell, spin(SPIN))?;
        let url = socket.bind(url)?.url().to_owned();
        Ok((Many::new(socket), url))
    }
    async fn req(&self, url: &str, cell: &Cell) -> Result<Self::Req> {
        let socket = socket!(Req, cell, spin(SPIN))?;
        socket.connect(url)?;
        Ok(socket)
    }
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(Self::Rep, String)> {
        let socket = socket!(Rep, cell, spin(SPIN))?;
        let url = socket.bind(url)?.url().to_owned();
        Ok((socket, url))
    }
}
