//! The built-in transports pass the suite, and so does tcp when its bytes come in pieces and late.

use std::sync::atomic::{AtomicU32, Ordering};

use spanwire::transport::{Inproc, Ipc, Tcp, TcpOptions};
use spanwire_testkit::conformance::Setup;
use spanwire_testkit::fault::{Faults, Faulty};
use spanwire_testkit::transport_conformance;

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

const BAD_TCP: [&str; 5] =
    ["tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://127.0.0.1:70000", "tcp://[::1:1"];

fn tcp_at() -> String {
    "tcp://127.0.0.1:0".into()
}

transport_conformance!(promise_24_tcp, || Setup::new(Tcp, tcp_at).ports().bad_addresses(BAD_TCP));

transport_conformance!(promise_24_ipc, || {
    let dir = tempfile::tempdir().expect("a directory");
    Setup::new(Ipc, move || format!("ipc://{}/{}", dir.path().display(), number()))
        .bad_addresses(["ipc://", &format!("ipc:///{}", "x".repeat(200))])
});

transport_conformance!(promise_24_inproc, || {
    Setup::new(Inproc, || format!("inproc://suite-{}", number())).bad_addresses(["inproc://"])
});

/// Every byte is read and written alone: slow, so there are fewer of them. (Much smaller kernel buffers would be
/// slower still: their windows close, and what opens them again is a timer.)
fn single_bytes() -> Setup {
    let buffers = TcpOptions::default().send_buffer(Some(64 << 10)).recv_buffer(Some(256 << 10));
    Setup::new(Faulty::new(Tcp, Faults::new(1).pieces(1)), tcp_at)
        .ports()
        .option(buffers)
        .largest(70_000)
        .cycles(100)
}

transport_conformance!(promise_24_tcp_in_single_bytes, single_bytes);

transport_conformance!(promise_24_tcp_in_pieces_and_late, || {
    Setup::new(Faulty::new(Tcp, Faults::new(2).pieces(3000).delay_one_in(3)), tcp_at).ports().cycles(300)
});

transport_conformance!(promise_24_inproc_in_pieces_and_late, || {
    let faulty = Faulty::new(Inproc, Faults::new(3).pieces(3).delay_one_in(3));
    Setup::new(faulty, || format!("inproc://late-{}", number())).cycles(300)
});
