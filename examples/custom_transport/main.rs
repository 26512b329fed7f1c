//! A transport of one's own: `exec://COMMAND` talks to a child process through its standard streams.
//!
//! ```text
//! cargo run --example custom_transport
//! ```
//!
//! The program starts itself as the child, which binds `stdio://`, and asks it. The transport is `exec.rs`; the guide is
//! `docs/guide-custom-transport.md`. In place of `exec://'path' child` one may say `exec://ssh host path child`, and the
//! child is on another machine.
//!
//! You should see:
//!
//! ```text
//! connected to a child process
//! one: eno
//! two: owt
//! three: eerht
//! the child is gone
//! ```

mod exec;

use std::error::Error;
use std::time::Duration;

use spanwire::{Event, Rep, Req};

use exec::Exec;

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).as_deref() == Some("child") { child() } else { parent() }
}

fn parent() -> Result<(), Box<dyn Error>> {
    let program = std::env::current_exe()?.display().to_string().replace('\'', r"'\''");
    let req = Req::builder().transport(Exec).build()?;
    let events = req.events();
    let child = req.connect(&format!("exec://exec '{program}' child"))?;
    for word in ["one", "two", "three"] {
        let answer = req.request_timeout(word, Duration::from_secs(10))?;
        if word == "one" {
            println!("connected to a child process");
        }
        println!("{word}: {}", String::from_utf8_lossy(&answer));
    }
    child.close();
    for event in &events {
        if let Event::Disconnected { .. } = event {
            println!("the child is gone");
            break;
        }
    }
    Ok(())
}

/// Answers each request with its characters in reverse, until the peer goes. Its stdout belongs to the transport.
fn child() -> Result<(), Box<dyn Error>> {
    let rep = Rep::builder().transport(Exec).build()?;
    let events = rep.events();
    rep.bind("stdio://")?;
    let server = rep.clone();
    std::thread::spawn(move || {
        while let Ok(request) = server.recv() {
            let reversed: String = String::from_utf8_lossy(&request).chars().rev().collect();
            if let Err(e) = request.reply(reversed) {
                eprintln!("child: {e}");
            }
        }
    });
    for event in &events {
        if let Event::Disconnected { .. } = event {
            break;
        }
    }
    Ok(())
}
