//! Poller: one thread waits for several sockets, of any pattern.
//!
//! ```text
//! cargo run --example poller
//! ```
//!
//! A service with two doors: requests to answer, and orders that change what it answers. `ready` is a level, not an edge: a
//! socket that still has something is told again.
//!
//! You should see:
//!
//! ```text
//! asked before the order: good day
//! asked after the order: bonjour
//! ```

use std::error::Error;
use std::time::Duration;

use spanwire::{Interest, Poller, Pull, Push, Rep, Req};

fn main() -> Result<(), Box<dyn Error>> {
    let (requests, orders) = (Rep::new()?, Pull::new()?);
    let (ask_at, order_at) = (requests.bind("tcp://127.0.0.1:0")?, orders.bind("tcp://127.0.0.1:0")?);
    let service = std::thread::spawn(move || serve(&requests, &orders).map_err(|e| e.to_string()));

    let (ask, order) = (Req::new()?, Push::new()?);
    ask.connect(ask_at.url())?;
    order.connect(order_at.url())?;
    let answer = ask.request("greet")?;
    println!("asked before the order: {}", String::from_utf8_lossy(&answer));
    order.send("bonjour")?;
    // The order goes another way than the requests: ask until it has arrived.
    let answer = loop {
        let answer = ask.request("greet")?;
        if answer != "good day" {
            break answer;
        }
    };
    println!("asked after the order: {}", String::from_utf8_lossy(&answer));
    order.send("stop")?;
    service.join().map_err(|_| "the service panicked")??;
    Ok(())
}

fn serve(requests: &Rep, orders: &Pull) -> Result<(), Box<dyn Error>> {
    let mut greeting = String::from("good day");
    let mut poller = Poller::new()?;
    let asked = poller.add(requests, Interest::RECV)?;
    let ordered = poller.add(orders, Interest::RECV)?;
    loop {
        for ready in poller.wait(Some(Duration::from_secs(5)))? {
            if ready.key == asked {
                // Another thread could have been quicker: `try_recv`, not `recv`.
                if let Ok(request) = requests.try_recv() {
                    request.reply(greeting.as_str())?;
                }
            } else if ready.key == ordered
                && let Ok(order) = orders.try_recv()
            {
                greeting = String::from_utf8_lossy(&order).into_owned();
                if greeting == "stop" {
                    return Ok(());
                }
            }
        }
    }
}
