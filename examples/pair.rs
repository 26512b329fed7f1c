//! Pair: two that talk both ways, and come together again by themselves.
//!
//! ```text
//! cargo run --example pair
//! ```
//!
//! One end goes and another one takes its place at the same address; the events of the other end tell what happened.
//!
//! You should see:
//!
//! ```text
//! connected
//! first: hello
//! disconnected: closed by the peer
//! connected
//! second: hello again
//! ```

use std::error::Error;
use std::time::Duration;

use spanwire::{Event, Pair};

const SOON: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let ours = Pair::builder().reconnect(Duration::from_millis(10), Duration::from_secs(1)).build()?;
    let events = ours.events();
    let tell = || -> Result<(), Box<dyn Error>> {
        loop {
            match events.recv_timeout(SOON)? {
                Event::Connected { .. } => println!("connected"),
                Event::Disconnected { reason, .. } => println!("disconnected: {reason}"),
                _ => continue, // the delay before the next attempt, and the like
            }
            return Ok(());
        }
    };

    let first = Pair::new()?;
    let at = first.bind("tcp://127.0.0.1:0")?;
    ours.connect(at.url())?;
    tell()?;
    first.send("hello")?;
    println!("first: {}", String::from_utf8_lossy(&ours.recv_timeout(SOON)?));
    first.close(SOON)?;
    tell()?;

    let second = Pair::new()?;
    second.bind(at.url())?;
    tell()?;
    second.send("hello again")?;
    println!("second: {}", String::from_utf8_lossy(&ours.recv_timeout(SOON)?));
    Ok(())
}
