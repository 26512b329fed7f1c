//! The processes, and what they have in common.

use std::time::Duration;

use spanwire_config::{Id, Key};
use spanwire_testkit::sim::{Event, Io, Node};

pub(crate) use super::agent::{Agent, Holding};
pub(crate) use super::folder::{Folder, Space};
use super::relay::Relay;
pub(crate) use super::server::{Adoption, Office, Served, Server};

pub(crate) const BEACON: Duration = Duration::from_millis(200);
pub(crate) const FRESH: Duration = Duration::from_secs(1);
pub(crate) const HELLO: Duration = Duration::from_secs(1);
pub(crate) const STALL: Duration = Duration::from_secs(2);
/// Messages in a pipe's queue at either end.
pub(crate) const ROOM: usize = 64;

#[derive(Debug)]
pub(crate) enum Party {
    Server(Box<Server>),
    Agent(Box<Agent>),
    Relay(Box<Relay>),
}

impl Node for Party {
    type Disk = Folder;

    fn handle(&mut self, event: Event, io: &mut Io<'_, Folder>) {
        match self {
            Party::Server(server) => server.handle(event, io),
            Party::Relay(relay) => relay.handle(event, io),
            Party::Agent(agent) => agent.handle(event, io),
        }
    }
}

pub(crate) fn random_id(io: &mut Io<'_, Folder>) -> Id {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&io.rng().next().to_be_bytes());
    id[8..].copy_from_slice(&io.rng().next().to_be_bytes());
    Id(id)
}

pub(crate) fn key(n: usize) -> Key {
    Key::new(format!("key/{n}")).expect("short")
}
