//! What one process of a cell does: bind or connect, send or receive, check, and tell what it cost.
//!
//! A side speaks in lines: `at URL` when it is bound, `done` when its job is, and, once it was told to stop,
//! `result key=value …`. The sender reports its CPU time only then, so that what its threads still do after
//! its last call is counted. Inproc has both sides in one process.
//! Owns: the loops that are measured. Never: starts a process, or knows what a library is.

use std::fmt;
use std::io::{BufRead, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::cell::{Cell, Plan, Shape};
use crate::contestant::{Contestant, Pull, Push, Rep, Req};
use crate::payload::{Checker, Maker, Seen};
use crate::{Result, machine};

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that binds: pull or rep.
    Bound,
    /// The one that connects: push or req.
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

/// Named numbers that a side found out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Numbers(Vec<(String, f64)>);

impl Numbers {
    /// Adds one.
    pub fn set(&mut self, name: &str, value: f64) {
        self.0.push((name.to_owned(), value));
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Reads `key=value …`.
    ///
    /// # Errors
    /// When that is not what it is.
    pub fn parse(text: &str) -> Result<Self> {
        let pair = |word: &str| -> Result<(String, f64)> {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is no key=value"))?;
            Ok((name.to_owned(), value.parse()?))
        };
        Ok(Numbers(text.split_whitespace().map(pair).collect::<Result<_>>()?))
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// How a side speaks with whoever started it.
#[derive(Debug)]
pub struct Ends {
    /// A line came in.
    told: mpsc::Receiver<()>,
    /// Where lines go; `None` says nothing.
    loud: bool,
}

impl Ends {
    /// Standard input and output. The process ends when its input does: nobody is left to report to.
    pub fn stdio() -> Self {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                if line.is_err() || tell.send(()).is_err() {
                    break;
                }
            }
            std::process::exit(3);
        });
        Ends { told, loud: true }
    }

    /// The other side is a thread of this process, which stops this one by sending.
    fn quiet() -> (mpsc::Sender<()>, Self) {
        let (tell, told) = mpsc::channel();
        (tell, Ends { told, loud: false })
    }

    /// Says a line.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub fn say(&self, line: fmt::Arguments<'_>) -> Result<()> {
        if self.loud {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{line}")?;
            out.flush()?;
        }
        Ok(())
    }

    /// Waits until it is told to go on.
    ///
    /// # Errors
    /// When the other side is gone.
    fn wait(&self) -> Result<()> {
        self.told.recv().map_err(|_| "the other side is gone".into())
    }
}

/// Does a side.
///
/// # Errors
/// What the library says, and every message that is lost, doubled or out of order.
pub fn run<C: Contestant>(
    contestant: &C,
    role: Role,
    url: &str,
    cell: &Cell,
    plan: &Plan,
    ends: &Ends,
) -> Result<()> {
    let mut numbers = Numbers::default();
    match (cell.shape, role) {
        (Shape::Stream, Role::Bound) => {
            let (pull, url) = contestant.pull(url, cell)?;
            ends.say(format_args!("at {url}"))?;
            receive(pull, cell, &mut numbers)?;
            stopped(ends)?;
        }
        (Shape::Stream, Role::Dialed) => {
            send(contestant.push(url, cell)?, cell, plan, ends, &mut numbers)?;
        }
        (Shape::Stream, Role::Both) => {
            let (pull, url) = contestant.pull(url, cell)?;
            let (stop, quiet) = Ends::quiet();
            let sent = thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    let quiet = quiet;
                    let mut numbers = Numbers::default();
                    let push = contestant.push(&url, cell);
                    push.and_then(|push| send(push, cell, plan, &quiet, &mut numbers))
                        .unwrap_or_else(|why| give_up(&why));
                    numbers
                });
                receive(pull, cell, &mut numbers).unwrap_or_else(|why| give_up(&why));
                stop.send(()).unwrap_or_default();
                sender.join().map_err(|_| "the sender panicked")
            })?;
            // CPU time is the process's: the receiver has counted it for both.
            numbers.set("sent", sent.get("sent").unwrap_or(0.0));
            stopped(ends)?;
        }
        (Shape::RoundTrip, Role::Bound) => {
            let (rep, url) = contestant.rep(url, cell)?;
            ends.say(format_args!("at {url}"))?;
            answer(rep, cell, ends, &mut numbers)?;
        }
        (Shape::RoundTrip, Role::Dialed) => {
            ask(contestant.req(url, cell)?, cell, plan, &mut numbers)?;
            stopped(ends)?;
        }
        (Shape::RoundTrip, Role::Both) => {
            let (rep, url) = contestant.rep(url, cell)?;
            let (stop, quiet) = Ends::quiet();
            thread::scope(|scope| {
                let answerer = scope.spawn(|| {
                    let quiet = quiet;
                    answer(rep, cell, &quiet, &mut Numbers::default()).unwrap_or_else(|why| give_up(&why));
                });
                let asked = contestant.req(&url, cell).and_then(|req| ask(req, cell, plan, &mut numbers));
                asked.unwrap_or_else(|why| give_up(&why));
                stop.send(()).unwrap_or_default();
                answerer.join().map_err(|_| "the answerer panicked")
            })?;
            stopped(ends)?;
        }
        (Shape::Idle { pipes }, Role::Bound) => {
            let (mut pull, url) = contestant.pull(url, cell)?;
            let before = machine::resident_kib();
            ends.say(format_args!("at {url}"))?;
            // One message from each: all are connected.
            for _ in 0..pipes {
                pull.recv(|_| ())?;
            }
            if let (Some(before), Some(now)) = (before, machine::resident_kib()) {
                numbers.set("rss", now.saturating_sub(before) as f64 / pipes as f64);
            }
            numbers.set("cpu_bound", idle(plan, ends)?);
        }
        (Shape::Idle { pipes }, Role::Dialed) => {
            let mut pushes = Vec::new();
            for _ in 0..pipes {
                let mut push = contestant.push(url, cell)?;
                push.send(Maker::new(cell.size).make())?;
                push.flush()?;
                pushes.push(push);
            }
            numbers.set("cpu_dialed", idle(plan, ends)?);
        }
        (Shape::Idle { .. }, Role::Both) => return Err("idle pipes need two processes".into()),
    }
    ends.say(format_args!("result {numbers}"))
}

/// Ends the process, as the other thread may wait in its library for ever.
fn give_up(why: &dyn fmt::Display) -> ! {
    println!("error: {why}");
    std::process::exit(1)
}

fn stopped(ends: &Ends) -> Result<()> {
    ends.say(format_args!("done"))?;
    ends.wait()
}

/// A job that ended before it was measured measured nothing.
fn at_least_one(n: u64) -> Result<f64> {
    if n == 0 { Err("nothing was measured".into()) } else { Ok(n as f64) }
}

fn send(mut push: impl Push, cell: &Cell, plan: &Plan, ends: &Ends, numbers: &mut Numbers) -> Result<()> {
    let mut maker = Maker::new(cell.size);
    // The first one waits for the connection; the warm-up begins behind it.
    push.send(maker.make())?;
    push.flush()?;
    send_for(&mut push, &mut maker, plan.warm_up)?;
    maker.measure();
    let cpu = machine::cpu();
    send_for(&mut push, &mut maker, plan.measured)?;
    push.send(maker.end())?;
    push.flush()?;
    stopped(ends)?;
    numbers.set("cpu", (machine::cpu() - cpu).as_secs_f64());
    numbers.set("sent", maker.made() as f64);
    Ok(())
}

fn send_for(push: &mut impl Push, maker: &mut Maker, time: Duration) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        // The clock is not what is measured.
        for _ in 0..64 {
            push.send(maker.make())?;
        }
    }
    Ok(())
}

fn receive(mut pull: impl Pull, cell: &Cell, numbers: &mut Numbers) -> Result<()> {
    let mut checker = Checker::new(cell.size);
    let mut start = (Instant::now(), Duration::ZERO);
    loop {
        match pull.recv(|body| checker.look(body))?? {
            Seen::WarmUp | Seen::Measured => {}
            Seen::First => start = (Instant::now(), machine::cpu()),
            Seen::End => break,
        }
    }
    let took = start.0.elapsed().as_secs_f64();
    numbers.set("cpu", (machine::cpu() - start.1).as_secs_f64());
    let measured = at_least_one(checker.measured())?;
    numbers.set("seen", checker.seen() as f64);
    numbers.set("measured", measured);
    numbers.set("rate", measured / took / 1e6);
    Ok(())
}

fn answer(mut rep: impl Rep, cell: &Cell, ends: &Ends, numbers: &mut Numbers) -> Result<()> {
    let mut checker = Checker::new(cell.size);
    let mut cpu = Duration::ZERO;
    loop {
        match rep.serve(|body| checker.look(body))?? {
            Seen::WarmUp | Seen::Measured => {}
            Seen::First => cpu = machine::cpu(),
            Seen::End => break,
        }
    }
    numbers.set("cpu", (machine::cpu() - cpu).as_secs_f64());
    numbers.set("seen", checker.seen() as f64);
    // The last answer may still be on its way out.
    stopped(ends)
}

fn ask(mut req: impl Req, cell: &Cell, plan: &Plan, numbers: &mut Numbers) -> Result<()> {
    let mut maker = Maker::new(cell.size);
    let mut times = Vec::with_capacity(1 << 20);
    trip(&mut req, &mut maker)?;
    let start = Instant::now();
    while start.elapsed() < plan.warm_up {
        trip(&mut req, &mut maker)?;
    }
    maker.measure();
    let cpu = machine::cpu();
    let start = Instant::now();
    let mut last = start;
    while last - start < plan.measured {
        trip(&mut req, &mut maker)?;
        let now = Instant::now();
        times.push(u32::try_from((now - last).as_nanos()).unwrap_or(u32::MAX));
        last = now;
    }
    numbers.set("cpu", (machine::cpu() - cpu).as_secs_f64());
    numbers.set("sent", maker.made() as f64);
    req.request(maker.end(), |_| ())?;
    times.sort_unstable();
    numbers.set("measured", at_least_one(times.len() as u64)?);
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        numbers.set(name, f64::from(times[((times.len() - 1) as f64 * share) as usize]) / 1e3);
    }
    Ok(())
}

#[inline]
fn trip(req: &mut impl Req, maker: &mut Maker) -> Result<()> {
    let body = maker.make();
    let same = req.request(body, |answer| answer.len() == body.len() && answer.get(..8) == body.get(..8))?;
    if same { Ok(()) } else { Err("an answer belongs to another request".into()) }
}

/// CPU milliseconds for each second of doing nothing.
fn idle(plan: &Plan, ends: &Ends) -> Result<f64> {
    // Both sides are told when both are connected; then what connecting left behind may settle.
    stopped(ends)?;
    thread::sleep(plan.warm_up);
    let (cpu, start) = (machine::cpu(), Instant::now());
    thread::sleep(plan.measured);
    Ok((machine::cpu() - cpu).as_secs_f64() * 1e3 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_being_said() {
        let mut numbers = Numbers::default();
        numbers.set("cpu", 0.25);
        numbers.set("sent", 12_345_678_901.0);
        assert_eq!(Numbers::parse(&numbers.to_string()).unwrap(), numbers);
        assert!(Numbers::parse("cpu").is_err());
        assert!(Numbers::parse("cpu=much").is_err());
    }
}
