//! What one process of a cell does: bind or connect, send or receive, check, and tell what it cost.
//!
//! A side speaks in lines: `at URL` when it is bound, `ready` where the others wait for it, `done` when its job
//! is, and, once it was told to stop, `result key=value …`. A sender reports its CPU time only then, so that
//! what its threads still do after its last call is counted. Inproc has both sides in one process.
//! Owns: the loops that are measured. Never: starts a process, or knows what a library is.

mod crowd;
mod fan;
mod stream;
mod talk;
mod trips;

use std::fmt;
use std::thread;

use crowd::{fill, greet, idle, send_all, welcome};
use fan::{listen, publish};
use stream::{receive, send, share_out};
use talk::grown;
pub use talk::{Ends, Numbers};
use trips::{answer, ask, pipeline};

use crate::cell::Shape;
use crate::contestant::{Contestant, Job, Pull, Topics};
use crate::payload::{Checker, MARKS, Maker, Seen, topic};
use crate::{Result, machine};

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that binds: pull, rep or pub.
    Bound,
    /// The one that connects: push, req or sub.
    Dialed,
    /// Both, as two threads.
    Both,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Bound => "bound",
            Role::Dialed => "dialed",
            Role::Both => "both",
        })
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = [Role::Bound, Role::Dialed, Role::Both].into_iter().find(|r| r.to_string() == text);
        known.ok_or_else(|| format!("no role {text:?}"))
    }
}

/// Does a side, or both.
///
/// # Errors
/// What the library says, and every message that is lost, doubled or out of order.
pub fn run<C: Contestant>(c: &C, job: &Job<'_>, role: Role, url: &str, ends: &Ends) -> Result<()> {
    match role {
        Role::Bound => {
            let numbers = c.block_on(bound(c, job, url, ends))?;
            ends.say(format_args!("result {numbers}"))
        }
        Role::Dialed => {
            let numbers = c.block_on(dialed(c, job, url, ends))?;
            ends.say(format_args!("result {numbers}"))
        }
        Role::Both => both(c, job, url, ends),
    }
}

/// Two threads, and this one for what is said between them and outside.
fn both<C: Contestant>(c: &C, job: &Job<'_>, url: &str, ends: &Ends) -> Result<()> {
    let ((binder, binders), (dialer, dialers)) = (Ends::pair(), Ends::pair());
    let gone = |_| "a thread is gone";
    thread::scope(|scope| -> Result<()> {
        let bound =
            scope.spawn(move || c.block_on(bound(c, job, url, &binders)).unwrap_or_else(|why| give_up(&why)));
        let at = binder.said.recv().map_err(gone)?;
        let url = at.strip_prefix("at ").ok_or("the binder did not say where it is")?.to_owned();
        let dialed = scope
            .spawn(move || c.block_on(dialed(c, job, &url, &dialers)).unwrap_or_else(|why| give_up(&why)));
        for other in [&binder, &dialer] {
            other.said.recv().map_err(gone)?;
        }
        ends.say_and_wait("done")?;
        for other in [&binder, &dialer] {
            other.tells.send(())?;
        }
        for side in [bound, dialed] {
            let numbers = side.join().map_err(|_| "a thread panicked")?;
            ends.say(format_args!("result {numbers}"))?;
        }
        Ok(())
    })
}

/// Ends the process, as another thread may wait in its library for ever.
fn give_up(why: &dyn fmt::Display) -> ! {
    println!("error: {why}");
    std::process::exit(1)
}

async fn bound<C: Contestant>(c: &C, job: &Job<'_>, url: &str, ends: &Ends) -> Result<Numbers> {
    let cell = job.cell;
    match cell.shape {
        Shape::Stream | Shape::Senders(_) => {
            let (pull, url) = c.pull(url, cell).await?;
            ends.say(format_args!("at {url}"))?;
            receive(pull, Checker::new(cell), ends).await
        }
        Shape::RoundTrip => {
            let (rep, url) = c.rep(url, cell).await?;
            ends.say(format_args!("at {url}"))?;
            answer(rep, cell, ends).await
        }
        Shape::Pipelined(_) => {
            let (rep, url) = c.serve(url, cell).await?;
            ends.say(format_args!("at {url}"))?;
            answer(rep, cell, ends).await
        }
        Shape::FanOut(_) | Shape::Topics(_) => {
            let (publisher, url) = c.publish(url, cell).await?;
            ends.say(format_args!("at {url}"))?;
            publish(publisher, job, ends, c.is_lossy()).await
        }
        Shape::FanIn(n) => {
            let (pull, url) = c.pull(url, cell).await?;
            let before = machine::resident_kib();
            ends.say(format_args!("at {url}"))?;
            let (pull, checker, mut numbers) = welcome(pull, cell, before, n).await?;
            ends.say(format_args!("ready"))?;
            for (name, value) in receive(pull, checker, ends).await?.iter() {
                numbers.set(name, value);
            }
            Ok(numbers)
        }
        Shape::Idle(n) => {
            let (pull, url) = c.pull(url, cell).await?;
            let before = machine::resident_kib();
            ends.say(format_args!("at {url}"))?;
            let (_pull, _, mut numbers) = welcome(pull, cell, before, n).await?;
            idle(job.plan, ends, "cpu_bound", &mut numbers)?;
            Ok(numbers)
        }
        Shape::Full => {
            let (mut pull, url) = c.pull(url, cell).await?;
            ends.say(format_args!("at {url}"))?;
            let mut checker = Checker::new(cell);
            pull.recv(|body| checker.look(body)).await??;
            let before = machine::resident_kib();
            ends.say_and_wait("ready")?;
            let mut numbers = Numbers::default();
            grown(before, 1024.0, "rss_bound", &mut numbers);
            while pull.recv(|body| checker.look(body)).await?? != Seen::End {}
            numbers.set("seen", checker.seen() as f64);
            ends.say_and_wait("done")?;
            Ok(numbers)
        }
    }
}

async fn dialed<C: Contestant>(c: &C, job: &Job<'_>, url: &str, ends: &Ends) -> Result<Numbers> {
    let Job { cell, plan, share } = *job;
    match cell.shape {
        Shape::Stream => {
            let push = c.push(url, cell).await?;
            send(push, Maker::new(cell, 0), job, ends, || ()).await
        }
        Shape::Senders(n) => {
            let sharers = c.sharers(url, cell, n).await?;
            share_out(c, sharers, job, ends)
        }
        Shape::RoundTrip => ask(c.req(url, cell).await?, cell, plan, ends).await,
        Shape::Pipelined(window) => pipeline(c.ask(url, cell).await?, window, cell, plan, ends).await,
        Shape::FanOut(_) => {
            let mut subs = Vec::new();
            for _ in 0..share.count {
                subs.push(c.subscribe(url, cell, Box::new(std::iter::once(Vec::new()))).await?);
            }
            listen(subs, cell, ends, c.is_lossy()).await
        }
        Shape::Topics(n) => {
            // That of the marks comes last: whoever hears a probe has subscribed them all.
            let topics: Topics = Box::new((0..n).map(topic).chain([MARKS]).map(Vec::from));
            let sub = c.subscribe(url, cell, topics).await?;
            listen(vec![sub], cell, ends, c.is_lossy()).await
        }
        Shape::FanIn(_) => {
            let mut numbers = Numbers::default();
            let pushes = greet(c, job, url, &mut numbers).await?;
            send_all(pushes, job, ends, numbers).await
        }
        Shape::Idle(_) => {
            let mut numbers = Numbers::default();
            let _pushes = greet(c, job, url, &mut numbers).await?;
            idle(plan, ends, "cpu_dialed", &mut numbers)?;
            Ok(numbers)
        }
        Shape::Full => fill(c.push(url, cell).await?, cell, ends).await,
    }
}
