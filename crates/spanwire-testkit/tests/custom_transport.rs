//! The transport of the example `custom_transport`, which only dials, passes the suite.
//!
//! The other end is this program again, as a child that carries bytes between its standard streams and a tcp
//! connection.
#![cfg(unix)]

#[path = "../../../examples/custom_transport/exec.rs"]
mod exec;

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use exec::Exec;
use spanwire::transport::Tcp;
use spanwire_testkit::conformance::Setup;
use spanwire_testkit::transport_conformance;

const TO: &str = "SPANWIRE_TEST_CARRY_TO";

/// The command that connects its standard streams to `url`. The test harness prints to stdout, which therefore is
/// moved out of its way.
fn carry_to(url: &str) -> String {
    let program = std::env::current_exe().expect("the path of this program").display().to_string();
    let to = url.trim_start_matches("tcp://");
    format!(
        "exec://exec 3>&1 >/dev/null 2>&1; {TO}={to} exec '{program}' --exact as_a_child_it_carries_bytes"
    )
}

#[test]
fn as_a_child_it_carries_bytes() {
    if let Ok(to) = std::env::var(TO) {
        std::process::exit(i32::from(carry(&to).is_err()));
    }
}

fn carry(to: &str) -> io::Result<()> {
    let tcp = TcpStream::connect(to)?;
    tcp.set_nodelay(true)?;
    let (mut from, mut into) = (tcp.try_clone()?, tcp);
    std::thread::spawn(move || {
        let _ = copy(&mut io::stdin().lock(), &mut into);
        into.shutdown(Shutdown::Write)
    });
    // The end of the connection is the end of this process.
    copy(&mut from, &mut OpenOptions::new().write(true).open("/dev/fd/3")?)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buf = vec![0; 64 << 10];
    loop {
        match from.read(&mut buf)? {
            0 => return Ok(()),
            n => {
                to.write_all(&buf[..n])?;
                to.flush()?;
            }
        }
    }
}

transport_conformance!(promise_24_exec_over_tcp, || {
    Setup::dial_only(Exec, Tcp, || "tcp://127.0.0.1:0".into(), carry_to)
        .bad_to_dial(["exec://", "exec:// ", "exec://a\0b"])
        .bad_to_bind(["stdio://here"])
        .cycles(50)
        .loses_what_is_on_its_way()
});
