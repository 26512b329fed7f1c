//! The promises that concern sockets, each with tests that can fail; a test's number is the promise's.
//!
//! Where a promise names a time, the condition is awaited and the time printed (`--nocapture`): a busy machine is no defect.
//! Elsewhere: 3, 4, 5, 13, 17 and 18 in `spanwire-config/tests`, 24 in `spanwire-testkit/tests`, 25 in `benches/tests`.
//! Nowhere: 19 and 22, since there is neither a gray release nor a secured transport.

mod common;
#[path = "../common/executor.rs"]
mod executor;
mod memory;
#[path = "../common/rng.rs"]
mod rng;
#[path = "../common/tapped.rs"]
mod tapped;
#[path = "../common/wait.rs"]
mod wait;

mod p01_survives;
mod p02_bad_peers;
mod p06_drops;
mod p07_close;
mod p08_sizes;
mod p09_events;
mod p10_requests;
mod p11_cancel;
mod p12_threads_and_forks;
mod p14_redial;
mod p15_bounds;
mod p16_liveness;
mod p20_descriptors;
mod p21_names;
mod p23_memory;
