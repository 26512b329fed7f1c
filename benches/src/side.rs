//! What one process of a cell does: bind or connect, send or receive, check, and tell what it cost.
//!
//! A side speaks in lines: `at URL` when it is bound, `ready` where the others wait for it, `done` when its job
//! is, and, once it was told to stop, `result key=value …`. A sender reports its CPU time only then, so that
//! what its threads still do after its last call is counted. Inproc has both sides in one process.
//! Owns: the loops that are measured. Never: starts a process, or knows what a library is.

use std::fmt;
use std::io::{BufRead, Write};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::cell::{Cell, Plan, Shape};
use crate::contestant::{Contestant, Job, Pull, Push, Rep, Req, Topics};
use crate::payload::{Checker, MARKS, Maker, Seen, WRONG, topic};
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
    /// Where lines go; `None` is standard output.
    says: Option<mpsc::Sender<String>>,
}

/// How whoever started a thread speaks with it.
struct Others {
    tells: mpsc::Sender<()>,
    said: mpsc::Receiver<String>,
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
        Ends { told, says: None }
    }

    /// To and from another thread.
    fn pair() -> (Others, Self) {
        let ((tells, told), (says, said)) = (mpsc::channel(), mpsc::channel());
        (Others { tells, said }, Ends { told, says: Some(says) })
    }

    /// Says a line.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub fn say(&self, line: fmt::Arguments<'_>) -> Result<()> {
        if let Some(says) = &self.says {
            return says.send(line.to_string()).map_err(|_| "the other side is gone".into());
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        Ok(out.flush()?)
    }

    /// Says a word and waits until it is told to go on.
    fn say_and_wait(&self, word: &str) -> Result<()> {
        self.say(format_args!("{word}"))?;
        self.told.recv().map_err(|_| "the other side is gone".into())
    }

    /// Whether it was told to go on, at the latest after `time`.
    fn told_within(&self, time: Duration) -> Result<bool> {
        match self.told.recv_timeout(time) {
            Ok(()) => Ok(true),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(false),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err("the other side is gone".into()),
        }
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

/// What resident memory grew by since `before`, in units of so many KiB.
fn grown(before: Option<u64>, unit: f64, name: &str, numbers: &mut Numbers) {
    if let (Some(before), Some(now)) = (before, machine::resident_kib()) {
        numbers.set(name, now.saturating_sub(before) as f64 / unit);
    }
}

/// A job that ended before it was measured measured nothing.
fn at_least_one(n: u64) -> Result<f64> {
    if n == 0 { Err("nothing was measured".into()) } else { Ok(n as f64) }
}

/// How many messages are sent between two looks at the clock, which is not what is measured.
fn batch(cell: &Cell) -> u32 {
    if cell.size >= 64 << 10 || cell.shape.is_published() { 8 } else { 64 }
}

async fn send(
    mut push: impl Push,
    mut maker: Maker,
    job: &Job<'_>,
    ends: &Ends,
    ready: impl FnOnce(),
) -> Result<Numbers> {
    // The first one waits for the connection; the warm-up begins behind it.
    push.send(maker.make()).await?;
    push.flush().await?;
    ready();
    send_for(&mut push, &mut maker, job.cell, job.plan.warm_up).await?;
    maker.measure();
    let cpu = machine::cpu();
    send_for(&mut push, &mut maker, job.cell, job.plan.measured).await?;
    push.send(maker.end()).await?;
    push.flush().await?;
    ends.say_and_wait("done")?;
    let mut numbers = Numbers::default();
    numbers.set("cpu", (machine::cpu() - cpu).as_secs_f64());
    numbers.set("sent", maker.made() as f64);
    Ok(numbers)
}

async fn send_for(push: &mut impl Push, maker: &mut Maker, cell: &Cell, time: Duration) -> Result<()> {
    let (start, batch) = (Instant::now(), batch(cell));
    while start.elapsed() < time {
        for _ in 0..batch {
            push.send(maker.make()).await?;
        }
    }
    Ok(())
}

/// A thread for each handle; they begin together.
fn share_out<C: Contestant>(c: &C, sharers: Vec<C::Sharer>, job: &Job<'_>, ends: &Ends) -> Result<Numbers> {
    let barrier = Barrier::new(sharers.len());
    let mut numbers = Numbers::default();
    let sent: f64 = thread::scope(|scope| -> Result<f64> {
        let mut others = Vec::new();
        let mut threads = Vec::new();
        for (source, sharer) in sharers.into_iter().enumerate() {
            let (other, own) = Ends::pair();
            let barrier = &barrier;
            others.push(other);
            threads.push(scope.spawn(move || {
                let all_are_there = || {
                    barrier.wait();
                };
                c.block_on(send(sharer, Maker::new(job.cell, source), job, &own, all_are_there))
                    .unwrap_or_else(|why| give_up(&why))
            }));
        }
        for other in &others {
            other.said.recv().map_err(|_| "a sender is gone")?;
        }
        ends.say_and_wait("done")?;
        others.iter().try_for_each(|other| other.tells.send(()))?;
        let mut sent = 0.0;
        let mut cpu = 0.0_f64;
        for thread in threads {
            let told = thread.join().map_err(|_| "a sender panicked")?;
            sent += told.get("sent").unwrap_or(0.0);
            // Each tells the time of the whole process.
            cpu = cpu.max(told.get("cpu").unwrap_or(0.0));
        }
        numbers.set("cpu", cpu);
        Ok(sent)
    })?;
    numbers.set("sent", sent);
    Ok(numbers)
}

async fn receive(mut pull: impl Pull, mut checker: Checker, ends: &Ends) -> Result<Numbers> {
    let mut start = (0.0, Duration::ZERO);
    loop {
        match pull.recv(|body| checker.look(body)).await?? {
            Seen::WarmUp | Seen::Measured | Seen::Mark => {}
            Seen::First => start = (machine::clock(), machine::cpu()),
            Seen::End => break,
        }
    }
    let mut numbers = Numbers::default();
    numbers.set("to", machine::clock());
    numbers.set("from", start.0);
    numbers.set("cpu", (machine::cpu() - start.1).as_secs_f64());
    numbers.set("measured", at_least_one(checker.measured())?);
    numbers.set("seen", checker.seen() as f64);
    ends.say_and_wait("done")?;
    Ok(numbers)
}

async fn answer(mut rep: impl Rep, cell: &Cell, ends: &Ends) -> Result<Numbers> {
    let mut checker = Checker::new(cell);
    let mut cpu = Duration::ZERO;
    loop {
        match rep.serve(|body| checker.look(body)).await?? {
            Seen::WarmUp | Seen::Measured | Seen::Mark => {}
            Seen::First => cpu = machine::cpu(),
            Seen::End => break,
        }
    }
    let mut numbers = Numbers::default();
    numbers.set("cpu", (machine::cpu() - cpu).as_secs_f64());
    numbers.set("seen", checker.seen() as f64);
    // The last answer may still be on its way out.
    ends.say_and_wait("done")?;
    Ok(numbers)
}

async fn ask(mut req: impl Req, cell: &Cell, plan: &Plan, ends: &Ends) -> Result<Numbers> {
    let mut maker = Maker::new(cell, 0);
    let mut times = Vec::with_capacity(1 << 20);
    trip(&mut req, &mut maker).await?;
    let start = Instant::now();
    while start.elapsed() < plan.warm_up {
        trip(&mut req, &mut maker).await?;
    }
    maker.measure();
    let cpu = machine::cpu();
    let start = Instant::now();
    let mut last = start;
    while last - start < plan.measured {
        trip(&mut req, &mut maker).await?;
        let now = Instant::now();
        times.push(u32::try_from((now - last).as_nanos()).unwrap_or(u32::MAX));
        last = now;
    }
    let mut numbers = Numbers::default();
    numbers.set("cpu", (machine::cpu() - cpu).as_secs_f64());
    numbers.set("sent", maker.made() as f64);
    req.request(maker.end(), |_| ()).await?;
    times.sort_unstable();
    numbers.set("measured", at_least_one(times.len() as u64)?);
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
        numbers.set(name, f64::from(times[((times.len() - 1) as f64 * share) as usize]) / 1e3);
    }
    ends.say_and_wait("done")?;
    Ok(numbers)
}

#[inline]
async fn trip(req: &mut impl Req, maker: &mut Maker) -> Result<()> {
    let body = maker.make();
    let same = |answer: &[u8]| answer.len() == body.len() && answer.get(..8) == body.get(..8);
    if req.request(body, same).await? {
        Ok(())
    } else {
        Err(format!("{WRONG}an answer belongs to another request").into())
    }
}

/// `window` requests are on their way at any time; the answers must come in turn, as one server gives them.
async fn pipeline(
    mut ask: impl Push + Pull,
    window: usize,
    cell: &Cell,
    plan: &Plan,
    ends: &Ends,
) -> Result<Numbers> {
    let (mut maker, mut checker) = (Maker::new(cell, 0), Checker::new(cell));
    ask.send(maker.make()).await?;
    ask.recv(|body| checker.look(body)).await??;
    for _ in 0..window {
        ask.send(maker.make()).await?;
    }
    let mut start = (0.0, Duration::ZERO);
    for (time, measured) in [(plan.warm_up, false), (plan.measured, true)] {
        let began = Instant::now();
        if measured {
            maker.measure();
            start = (machine::clock(), machine::cpu());
        }
        while began.elapsed() < time {
            for _ in 0..batch(cell) {
                ask.recv(|body| checker.look(body)).await??;
                ask.send(maker.make()).await?;
            }
        }
    }
    for _ in 0..window {
        ask.recv(|body| checker.look(body)).await??;
    }
    let mut numbers = Numbers::default();
    numbers.set("to", machine::clock());
    numbers.set("from", start.0);
    numbers.set("cpu", (machine::cpu() - start.1).as_secs_f64());
    numbers.set("sent", maker.made() as f64);
    numbers.set("measured", at_least_one(checker.measured())?);
    if checker.seen() != maker.made() {
        return Err(format!("{WRONG}{} requests, {} answers", maker.made(), checker.seen()).into());
    }
    ask.send(maker.end()).await?;
    ask.recv(|body| checker.look(body)).await??;
    ends.say_and_wait("done")?;
    Ok(numbers)
}

/// Between two probes. A queue of 1,000 outlives the connecting of all subscribers.
const PROBING: Duration = Duration::from_millis(20);
/// Between two ends, where the first may be lost: by so much more at most is measured than the messages took.
const ENDING: Duration = Duration::from_millis(1);

async fn publish(mut publisher: impl Push, job: &Job<'_>, ends: &Ends, lossy: bool) -> Result<Numbers> {
    let mut maker = Maker::new(job.cell, 0);
    while !ends.told_within(PROBING)? {
        publisher.send(maker.probe()).await?;
    }
    send_for(&mut publisher, &mut maker, job.cell, job.plan.warm_up).await?;
    maker.measure();
    let cpu = machine::cpu();
    send_for(&mut publisher, &mut maker, job.cell, job.plan.measured).await?;
    publisher.send(maker.end()).await?;
    ends.say(format_args!("done"))?;
    while !ends.told_within(if lossy { ENDING } else { Duration::from_secs(1) })? {
        if lossy {
            publisher.send(maker.end()).await?;
        }
    }
    let mut numbers = Numbers::default();
    numbers.set("cpu", (machine::cpu() - cpu).as_secs_f64());
    numbers.set("sent", maker.made() as f64);
    Ok(numbers)
}

/// Messages taken from one subscriber before the next one has its turn; far fewer than a queue holds, or the
/// publisher would wait for one subscriber while this waits for another.
const TURN: usize = 32;

async fn listen<S: Pull>(mut subs: Vec<S>, cell: &Cell, ends: &Ends, lossy: bool) -> Result<Numbers> {
    let mut checkers: Vec<Checker> = subs.iter().map(|_| Checker::new(cell).lossy(lossy)).collect();
    for (sub, checker) in subs.iter_mut().zip(&mut checkers) {
        if sub.recv(|body| checker.look(body)).await?? != Seen::Mark {
            return Err("a message came before any probe".into());
        }
    }
    ends.say(format_args!("ready"))?;
    let mut open: Vec<(S, Checker)> = subs.into_iter().zip(checkers).collect();
    let (mut seen, mut measured, mut start) = (0, 0, None);
    // A subscriber that has its end stays connected, or the others would have less to share.
    let mut ended = Vec::new();
    while !open.is_empty() {
        let mut at = 0;
        while let Some((sub, checker)) = open.get_mut(at) {
            let mut last = false;
            for _ in 0..TURN {
                match sub.recv(|body| checker.look(body)).await?? {
                    Seen::First if start.is_none() => start = Some((machine::clock(), machine::cpu())),
                    Seen::End => {
                        last = true;
                        break;
                    }
                    _ => {}
                }
            }
            if last {
                seen += checker.seen();
                measured += checker.measured();
                ended.push(open.swap_remove(at).0);
            } else {
                at += 1;
            }
        }
    }
    let (from, cpu) = start.ok_or("nothing was measured")?;
    let mut numbers = Numbers::default();
    numbers.set("to", machine::clock());
    numbers.set("from", from);
    numbers.set("cpu", (machine::cpu() - cpu).as_secs_f64());
    numbers.set("measured", at_least_one(measured)?);
    numbers.set("seen", seen as f64);
    ends.say_and_wait("done")?;
    Ok(numbers)
}

/// Receives one message from each of `n`: then all are connected. Tells how long that took and what memory
/// they have when it is quiet again.
async fn welcome<P: Pull>(
    mut pull: P,
    cell: &Cell,
    before: Option<u64>,
    n: usize,
) -> Result<(P, Checker, Numbers)> {
    let (mut checker, mut numbers) = (Checker::new(cell), Numbers::default());
    for _ in 0..n {
        pull.recv(|body| checker.look(body)).await??;
    }
    numbers.set("connected", machine::clock());
    thread::sleep(Duration::from_millis(300));
    grown(before, n as f64, "rss", &mut numbers);
    Ok((pull, checker, numbers))
}

/// Connects the share of sockets that is this process's, and sends a message from each.
async fn greet<C: Contestant>(
    c: &C,
    job: &Job<'_>,
    url: &str,
    numbers: &mut Numbers,
) -> Result<Vec<(C::Push, Maker)>> {
    numbers.set("started", machine::clock());
    let mut pushes = Vec::new();
    for i in 0..job.share.count {
        pushes.push((c.push(url, job.cell).await?, Maker::new(job.cell, job.share.first + i)));
    }
    for (push, maker) in &mut pushes {
        push.send(maker.make()).await?;
        push.flush().await?;
    }
    Ok(pushes)
}

/// All sockets in turn, a few messages from each.
async fn send_all<P: Push>(
    mut pushes: Vec<(P, Maker)>,
    job: &Job<'_>,
    ends: &Ends,
    mut numbers: Numbers,
) -> Result<Numbers> {
    while !ends.told_within(Duration::from_secs(1))? {}
    let mut cpu = Duration::ZERO;
    for (time, measured) in [(job.plan.warm_up, false), (job.plan.measured, true)] {
        if measured {
            pushes.iter_mut().for_each(|(_, maker)| maker.measure());
            cpu = machine::cpu();
        }
        let start = Instant::now();
        'time: while start.elapsed() < time {
            for (push, maker) in &mut pushes {
                for _ in 0..8 {
                    push.send(maker.make()).await?;
                }
                // With many sockets a whole turn takes longer than there is time.
                if measured && start.elapsed() >= time {
                    break 'time;
                }
            }
        }
    }
    for (push, maker) in &mut pushes {
        push.send(maker.end()).await?;
        push.flush().await?;
    }
    ends.say_and_wait("done")?;
    numbers.set("cpu", (machine::cpu() - cpu).as_secs_f64());
    numbers.set("sent", pushes.iter().map(|(_, maker)| maker.made()).sum::<u64>() as f64);
    Ok(numbers)
}

/// Sends until nothing is taken any more; then the rest must come through.
async fn fill(mut push: impl Push, cell: &Cell, ends: &Ends) -> Result<Numbers> {
    let mut maker = Maker::new(cell, 0);
    let mut numbers = Numbers::default();
    push.send(maker.make()).await?;
    while !ends.told_within(Duration::from_secs(1))? {}
    let before = machine::resident_kib();
    // Queues that are not bounded end here.
    let most = cell.queue() as u64 * 100;
    while maker.made() < most && push.offer(maker.make()).await? {}
    if maker.made() < most {
        maker.take_back();
    }
    grown(before, 1024.0, "rss_dialed", &mut numbers);
    numbers.set("held", maker.made() as f64 - 1.0);
    ends.say(format_args!("ready"))?;
    maker.measure();
    push.send(maker.end()).await?;
    push.flush().await?;
    ends.say_and_wait("done")?;
    numbers.set("sent", maker.made() as f64);
    Ok(numbers)
}

/// CPU milliseconds and wake-ups for each second of doing nothing.
fn idle(plan: &Plan, ends: &Ends, cpu_name: &str, numbers: &mut Numbers) -> Result<()> {
    // Both sides are told when both are connected; then what connecting left behind may settle.
    ends.say_and_wait("done")?;
    thread::sleep(plan.warm_up);
    let (cpu, wakes, start) = (machine::cpu(), machine::wakes_of_others(), Instant::now());
    thread::sleep(plan.measured);
    let after = machine::wakes_of_others();
    let seconds = start.elapsed().as_secs_f64();
    numbers.set(cpu_name, (machine::cpu() - cpu).as_secs_f64() * 1e3 / seconds);
    if let (Some(before), Some(after)) = (wakes, after) {
        numbers.set("wakes", after.saturating_sub(before) as f64 / seconds);
    }
    Ok(())
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
