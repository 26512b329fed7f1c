//! The settings of one socket.
//!
//! Owns: what the builder has set. Never: changes while the socket lives, or has a default (the builder's).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::queue::Limit;
use crate::transport::{Bag, Facts, Schemes};

/// The application's say on who may attach.
#[derive(Clone)]
pub(crate) struct Accept(pub(crate) Arc<AcceptFn>);

pub(crate) type AcceptFn = dyn Fn(&Facts) -> Result<(), String> + Send + Sync;

impl fmt::Debug for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accept(..)")
    }
}

/// Settings of a socket, fixed for its life.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) send_limit: Limit,
    pub(crate) recv_limit: Limit,
    pub(crate) linger: Duration,
    /// How long a caller that leads looks again and again before it sleeps.
    pub(crate) spin: Duration,
    pub(crate) recv_max_size: usize,
    pub(crate) handshake_timeout: Duration,
    pub(crate) reconnect_min: Duration,
    pub(crate) reconnect_max: Duration,
    pub(crate) reconnect: bool,
    pub(crate) send_priority: u8,
    pub(crate) recv_priority: u8,
    pub(crate) options: Bag,
    pub(crate) schemes: Schemes,
    pub(crate) accept: Option<Accept>,
}
