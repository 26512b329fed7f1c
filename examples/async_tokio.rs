//! Async: the same sockets in tasks, here of tokio; any other executor will do.
//!
//! ```text
//! cargo run --example async_tokio
//! ```
//!
//! There is no runtime inside and no feature to switch on: a socket that blocks in one thread may be awaited in another. A
//! future that is dropped, here by `timeout`, has taken nothing.
//!
//! You should see:
//!
//! ```text
//! 100 tasks got their own answers
//! nothing came for 50 ms, and nothing was lost: late
//! ```

use std::error::Error;
use std::time::Duration;

use spanwire::{Pull, Push, Rep, Req};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let rep = Rep::new()?;
    let at = rep.bind("tcp://127.0.0.1:0")?;
    tokio::spawn(async move {
        while let Ok(request) = rep.recv_async().await {
            let body = request.body().clone();
            if let Err(e) = request.reply(body) {
                eprintln!("the answer did not leave: {e}");
            }
        }
    });

    let req = Req::new()?;
    req.connect(at.url())?;
    let tasks: Vec<_> = (0..100)
        .map(|n: u32| {
            let req = req.clone();
            tokio::spawn(async move { Ok((n, req.request_async(n.to_string()).await?)) })
        })
        .collect();
    for task in tasks {
        let answer: Result<_, spanwire::RequestError> = task.await?;
        let (n, answer) = answer?;
        assert_eq!(answer, n.to_string().as_str());
    }
    println!("100 tasks got their own answers");

    let (push, pull) = (Push::new()?, Pull::new()?);
    push.connect(pull.bind("inproc://late")?.url())?;
    let nothing = tokio::time::timeout(Duration::from_millis(50), pull.recv_async()).await;
    assert!(nothing.is_err());
    push.send_async("late").await?;
    let late = pull.recv_async().await?;
    println!("nothing came for 50 ms, and nothing was lost: {}", String::from_utf8_lossy(&late));
    Ok(())
}
