//! Push and pull: work is shared out among workers, each piece to one of them.
//!
//! ```text
//! cargo run --example pushpull
//! ```
//!
//! One source, three workers, one sink. The workers are threads here; with a `tcp://` address they may be programs on
//! other machines, started before or after the source.
//!
//! You should see:
//!
//! ```text
//! 12 squares, their sum is 650
//! ```

use std::error::Error;
use std::time::Duration;

use spanwire::{Pull, Push};

const WORKERS: usize = 3;
const PIECES: u64 = 12;

fn main() -> Result<(), Box<dyn Error>> {
    let source = Push::new()?;
    let work = source.bind("tcp://127.0.0.1:0")?;
    let sink = Pull::new()?;
    let results = sink.bind("tcp://127.0.0.1:0")?;

    for _ in 0..WORKERS {
        let (input, output) = (Pull::new()?, Push::new()?);
        input.connect(work.url())?;
        output.connect(results.url())?;
        std::thread::spawn(move || {
            // Ends when the socket closes, which here is with the program.
            while let Ok(piece) = input.recv() {
                let n: u64 = String::from_utf8_lossy(&piece).parse().unwrap_or(0);
                if output.send((n * n).to_string()).is_err() {
                    return;
                }
            }
        });
    }

    // Without this the first worker to arrive would get all that is there.
    source.wait_for_peers(WORKERS, Duration::from_secs(5));
    for n in 1..=PIECES {
        source.send(n.to_string())?; // waits while every worker's queue is full
    }
    let mut sum = 0;
    for _ in 0..PIECES {
        let result = sink.recv_timeout(Duration::from_secs(5))?;
        sum += std::str::from_utf8(&result)?.parse::<u64>()?;
    }
    println!("{PIECES} squares, their sum is {sum}");
    Ok(())
}
