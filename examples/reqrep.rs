//! Request and reply: many threads ask at once on one socket, and each gets its own answer.
//!
//! ```text
//! cargo run --example reqrep
//! ```
//!
//! There is no order of calls to obey: a request returns its own reply, whoever else is asking.
//!
//! You should see:
//!
//! ```text
//! 4 threads asked 1000 times, all answers were right
//! nobody answers "hold on": no reply before the deadline
//! ```

use std::error::Error;
use std::time::Duration;

use spanwire::{Rep, Req, RequestError};

fn main() -> Result<(), Box<dyn Error>> {
    let rep = Rep::new()?;
    let at = rep.bind("tcp://127.0.0.1:0")?;
    std::thread::spawn(move || {
        while let Ok(request) = rep.recv() {
            if &*request == b"hold on" {
                continue; // a request that is dropped is not answered
            }
            let answer = format!("{}!", String::from_utf8_lossy(&request));
            if let Err(e) = request.reply(answer) {
                eprintln!("the answer did not leave: {e}");
            }
        }
    });

    let req = Req::new()?;
    req.connect(at.url())?;
    std::thread::scope(|scope| {
        for t in 0..4 {
            let req = &req;
            scope.spawn(move || {
                for n in 0..250 {
                    let answer = req.request(format!("{t}/{n}")).expect("the server is there");
                    assert_eq!(answer, format!("{t}/{n}!").as_str());
                }
            });
        }
    });
    println!("4 threads asked 1000 times, all answers were right");

    match req.request_timeout("hold on", Duration::from_millis(100)) {
        Err(e @ RequestError::TimedOut) => println!("nobody answers \"hold on\": {e}"),
        other => println!("not expected: {other:?}"),
    }
    Ok(())
}
