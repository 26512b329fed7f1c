//! What a connection costs, in memory of our own: the structures that there is one of for each.
//!
//! Never: says what the allocator and the system add.

use super::drive::{Conn, Half};
use super::tx::{Tx, Writer};
use crate::protocol::Pipe;
use crate::transport::Facts;

/// A thousand idle connections are a thousand of each of these, so what is rarely there is boxed. The bounds are what was
/// measured; raise one only for something that every connection needs.
#[test]
fn a_connection_takes_no_more_than_it_did() {
    let sizes = [
        ("Pipe", size_of::<Pipe>(), 536),
        ("Tx, of it", size_of::<Tx>(), 120),
        ("Writer", size_of::<Writer>(), 168),
        ("Half", size_of::<Half>(), 184),
        ("Option<Conn>", size_of::<Option<Conn>>(), 16),
        ("Facts", size_of::<Facts>(), 96),
    ];
    for (what, size, most) in sizes {
        assert!(size <= most, "{what} has {size} bytes where {most} were enough");
    }
}
