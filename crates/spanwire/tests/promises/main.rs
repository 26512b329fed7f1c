//! The promises that concern sockets, each with tests that can fail; a test's number is the promise's.

mod common;
mod memory;

mod p01_survives;
mod p02_bad_peers;
mod p06_drops;
mod p07_close;
mod p08_sizes;
mod p09_events;
mod p10_requests;
mod p11_cancel;







