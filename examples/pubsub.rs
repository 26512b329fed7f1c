//! Publish and subscribe: everybody gets what begins with a topic of theirs.
//!
//! ```text
//! cargo run --example pubsub
//! ```
//!
//! A publisher never waits for a slow subscriber (unless it is told to): what one loses is counted.
//!
//! You should see:
//!
//! ```text
//! weather: weather.north rain
//! weather: weather.south sun
//! all: weather.north rain
//! all: sports 3:2
//! all: weather.south sun
//! lost: 0
//! ```

use std::error::Error;
use std::time::Duration;

use spanwire::{Pub, Sub};

const SOON: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let publisher = Pub::new()?;
    let at = publisher.bind("tcp://127.0.0.1:0")?;

    let weather = Sub::new()?;
    weather.subscribe("weather.");
    weather.connect(at.url())?;
    let all = Sub::new()?;
    all.subscribe(""); // the empty topic is a prefix of everything; without any there is nothing
    all.connect(at.url())?;

    // Who is not there yet gets nothing.
    publisher.wait_for_peers(2, SOON);
    for news in ["weather.north rain", "sports 3:2", "weather.south sun"] {
        publisher.send(news)?;
    }

    for (name, sub, count) in [("weather", &weather, 2), ("all", &all, 3)] {
        for _ in 0..count {
            println!("{name}: {}", String::from_utf8_lossy(&sub.recv_timeout(SOON)?));
        }
    }
    println!("lost: {}", publisher.stats().all_dropped());
    Ok(())
}
