//! A simulated world for your own protocol: one thread, one seed, virtual time.
//!
//! Nodes (a real [`Protocol`](spanwire::protocol::Protocol) in [`Scripted`], or anything that implements
//! [`Node`]) are joined by routes. A connection is what a pipe is: whole messages in order, or closed; it has
//! bounded queues, and who finds them full waits. A plan, made from the seed, says what users do and what goes
//! wrong: connections that break, stay cut, or hang half open; delays; processes that stand still, die, die in
//! the middle of a sync, and come back with nothing but their [`Disk`]; and messages that are changed, lost or
//! repeated by somebody who lies. After every event an oracle looks at everything ([`Model::check`]).
//!
//! When a seed fails, lines of its plan are left out for as long as it still fails in the same way, and the
//! report has the seed, the few lines that are left, and the last events.
//!
//! Owns: time, order and chance in the world. Never: a clock, a thread, a hash table's order; the same seed gives
//! the same events everywhere, and [`Outcome::hash`] proves it.
//!
//! # Example
//!
//! A counter that is replicated: the sender numbers its messages, and the receiver must end with the last one.
//! The receiver keeps its counter on disk, and forgets to sync it.
//!
//! ```
//! use std::time::Duration;
//! use spanwire_testkit::sim::{Disk, Event, Io, Link, Mix, Model, Net, Node, Rng, Route, Setup, Sim, Step};
//!
//! /// Node 0 sends what the oracle told it; node 1 writes it down.
//! #[derive(Default)]
//! struct Counter { link: Option<Link> }
//!
//! impl Node for Counter {
//!     type Disk = u64;
//!     fn handle(&mut self, event: Event, io: &mut Io<'_, u64>) {
//!         match event {
//!             Event::Opened { link, .. } => {
//!                 self.link = Some(link);
//!                 let count = *io.disk.read();
//!                 let _ = io.send(link, count.to_be_bytes().to_vec().into());
//!             }
//!             Event::Message(_, message) if io.node() == 1 => {
//!                 let count = u64::from_be_bytes(message[..8].try_into().unwrap());
//!                 let old = *io.disk.read();
//!                 *io.disk.write() = old.max(count); // and no io.disk.sync()
//!             }
//!             _ => {}
//!         }
//!     }
//! }
//!
//! #[derive(Default)]
//! struct Oracle { shown: u64 }
//!
//! impl Model for Oracle {
//!     type Node = Counter;
//!     type Op = u64;
//!     fn start(&mut self, _node: usize, _io: &mut Io<'_, u64>) -> Counter { Counter::default() }
//!     fn operate(&mut self, net: &mut Net<Counter>, count: &u64) -> Result<(), String> {
//!         net.with(0, |counter, io| {
//!             *io.disk.write() = *count;
//!             let _ = io.disk.sync();
//!             if let Some(link) = counter.link {
//!                 let _ = io.send(link, count.to_be_bytes().to_vec().into());
//!             }
//!         });
//!         Ok(())
//!     }
//!     fn check(&mut self, net: &Net<Counter>, _node: Option<usize>) -> Result<(), String> {
//!         let now = net.disk(1).map_or(0, |disk| *disk.read());
//!         if now < self.shown {
//!             return Err(format!("went back: from {} to {now}", self.shown));
//!         }
//!         self.shown = now;
//!         Ok(())
//!     }
//! }
//!
//! let sim = Sim::new(|seed| {
//!     let (mut rng, run) = (Rng::new(seed), Duration::from_secs(5));
//!     let mut plan: Vec<_> = (1..40).map(|n| Step::op(Duration::from_millis(100 * n), n)).collect();
//!     let mix = Mix { breaks: 4, crashes: 4, longest: Duration::from_secs(1), ..Mix::default() };
//!     plan.extend(mix.plan(&mut rng, 2, 1, run));
//!     Setup {
//!         model: Oracle::default(),
//!         disks: vec![0; 2],
//!         routes: vec![Route::new(1, 0)],
//!         plan,
//!         run,
//!         settle: Duration::from_secs(1),
//!     }
//! });
//! let found = sim.find(0..1_000).expect("a planted bug");
//! assert_eq!(found.failure.kind(), "went back");
//! // One commit, and one loss of power on node 1, are all that it takes.
//! assert!(found.plan.len() <= 2, "{found}");
//! assert_eq!(sim.run(7).hash, sim.run(7).hash);
//! ```

mod disk;
mod net;
mod node;
mod plan;
mod rng;
mod run;

pub use disk::{Disk, SyncError};
pub use net::{LinkView, Net, Route};
pub use node::{Event, Io, Link, Node, Scripted, SendError};
pub use plan::{Fault, Mix, Step, Way, What};
pub use rng::Rng;
pub use run::{Failure, Found, Model, Outcome, Passage, Setup, Sim, seeds};
