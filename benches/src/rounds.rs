//! Turns: every round runs each contestant once, A B C A B C…, so that a noisy minute hits all alike.
//!
//! A sample is one contestant's run of one cell in fresh processes: this program, started again with the
//! hidden subcommand `side`. What the senders say they sent and the receivers say they saw must agree.
//! Owns: the processes, and ends each one of them. Never: measures inside itself.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, unbounded};

use crate::Result;
use crate::cell::{Cell, Plan, Shape, Share, Transport};
use crate::contestant::{Entry, Standing};
use crate::machine::{Spent, Times};
use crate::payload::WRONG;
use crate::side::{Numbers, Role};

/// All rounds of one contestant in one cell.
#[derive(Debug, Default)]
pub struct Row {
    /// The contestant's name.
    pub name: String,
    /// One for each round; none where it failed.
    pub samples: Vec<Option<Numbers>>,
    /// Why rounds failed, also such as were run again.
    pub failures: Vec<String>,
    /// It was silent for too long: it has no more turns in this cell, or the others would wait for it.
    pub retired: bool,
}

/// All rounds of one cell.
#[derive(Debug)]
pub struct Outcome {
    /// What was measured.
    pub cell: Cell,
    /// A row for each contestant, in their order.
    pub rows: Vec<Row>,
    /// For each round what others took of the machine meanwhile.
    pub spent: Vec<Spent>,
    /// Rounds that were run again for their noise, and do not count.
    pub discarded: usize,
}

impl Outcome {
    /// Whether nothing was lost or doubled by anybody, and nothing failed but a peer.
    pub fn is_good(&self, contestants: &[&dyn Entry]) -> bool {
        self.rows.iter().all(|row| {
            let peer = contestants.iter().any(|c| c.name() == row.name && c.standing() == Standing::Peer);
            row.failures.iter().all(|why| peer && !why.contains(WRONG))
        })
    }
}

/// How many rounds.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// That count.
    pub count: usize,
    /// That may be run again because others took too much of the machine. The numbers are not looked at: a
    /// bad round in a quiet moment counts.
    pub spare: usize,
}

/// Runs a cell, and calls `tick` before each sample.
pub fn run(
    cell: Cell,
    contestants: &[&dyn Entry],
    rounds: Rounds,
    plan: &Plan,
    mut tick: impl FnMut(usize, &str),
) -> Outcome {
    let taking = contestants.iter().filter(|c| c.takes(&cell));
    let rows = taking.map(|c| Row { name: c.name().to_owned(), ..Row::default() }).collect();
    let mut outcome = Outcome { cell, rows, spent: Vec::new(), discarded: 0 };
    while outcome.spent.len() < rounds.count {
        let before = Times::now();
        let mut samples = Vec::new();
        for row in &mut outcome.rows {
            if row.retired {
                samples.push(None);
                continue;
            }
            tick(outcome.spent.len(), &row.name);
            let lossy = contestants.iter().any(|c| c.name() == row.name && c.is_lossy());
            let numbers = sample(&row.name, &cell, plan, lossy).map_err(|why| {
                row.failures.push(why.to_string());
                row.retired = why.to_string().contains(SILENT);
            });
            samples.push(numbers.ok());
        }
        let spent = Times::now().since(&before);
        if spent.is_noisy() && outcome.discarded < rounds.spare {
            outcome.discarded += 1;
            continue;
        }
        outcome.spent.push(spent);
        for (row, sample) in outcome.rows.iter_mut().zip(samples) {
            row.samples.push(sample);
        }
    }
    outcome
}

/// One run of one contestant.
///
/// # Errors
/// When a side fails, says nothing for too long, or they disagree about what was sent.
pub fn sample(name: &str, cell: &Cell, plan: &Plan, lossy: bool) -> Result<Numbers> {
    // Short, for a Unix socket's path has no room; removed with all that lies in it.
    let dir = tempfile::Builder::new().prefix("versus").tempdir()?;
    let url = ask_for(cell.transport, dir.path());
    let shares = cell.shares();
    if cell.transport == Transport::Inproc {
        let mut both = Side::start(name, Role::Both, &url, cell, plan, shares[0])?;
        both.expect("done")?;
        both.tell()?;
        let bound = Numbers::parse(&both.expect("result ")?)?;
        let dialed = Numbers::parse(&both.expect("result ")?)?;
        both.leave()?;
        return join(cell, &bound, &[dialed], lossy);
    }
    let mut bound = Side::start(name, Role::Bound, &url, cell, plan, shares[0])?;
    let url = bound.expect("at ")?;
    let dialed = shares.into_iter().map(|share| Side::start(name, Role::Dialed, &url, cell, plan, share));
    let mut sides = dialed.collect::<Result<Vec<_>>>()?;
    let dialers = 0..sides.len();
    sides.push(bound);
    let binder = dialers.end..sides.len();
    match cell.shape {
        Shape::FanOut(_) | Shape::Topics(_) => {
            all_say(&mut sides[dialers.clone()], "ready")?;
            sides[binder].iter_mut().try_for_each(Side::tell)?;
        }
        Shape::FanIn(_) => {
            all_say(&mut sides[binder], "ready")?;
            sides[dialers.clone()].iter_mut().try_for_each(Side::tell)?;
        }
        Shape::Full => {
            all_say(&mut sides[binder.clone()], "ready")?;
            sides[dialers.clone()].iter_mut().try_for_each(Side::tell)?;
            all_say(&mut sides[dialers.clone()], "ready")?;
            sides[binder].iter_mut().try_for_each(Side::tell)?;
        }
        _ => {}
    }
    all_say(&mut sides, "done")?;
    sides.iter_mut().try_for_each(Side::tell)?;
    let mut numbers = Vec::new();
    for side in &mut sides {
        numbers.push(Numbers::parse(&side.expect("result ")?)?);
    }
    sides.into_iter().try_for_each(Side::leave)?;
    join(cell, &numbers[dialers.end], &numbers[dialers], lossy)
}

fn ask_for(transport: Transport, dir: &Path) -> String {
    match transport {
        Transport::Tcp => "tcp://127.0.0.1:0".to_owned(),
        Transport::Ipc => format!("ipc://{}", dir.join("s").display()),
        Transport::Inproc => "inproc://versus".to_owned(),
    }
}

/// What all sides know together, under the names of the shape's metrics.
fn join(cell: &Cell, bound: &Numbers, dialed: &[Numbers], lossy: bool) -> Result<Numbers> {
    let every = |name: &'static str| dialed.iter().chain([bound]).filter_map(move |n| n.get(name));
    let total = |name| every(name).sum::<f64>();
    let mut all = Numbers::default();
    if !matches!(cell.shape, Shape::Idle(_)) {
        every("sent").next().ok_or("no sender said what it sent")?;
        let copies = if let Shape::FanOut(n) = cell.shape { n as f64 } else { 1.0 };
        let (due, seen) = (total("sent") * copies, total("seen"));
        let may_lose = lossy && cell.shape.is_published();
        if seen > due || (seen < due && !may_lose) {
            return Err(format!("{WRONG}{due} messages were due, {seen} came").into());
        }
        all.set("lost", if due > 0.0 { (1.0 - seen / due) * 100.0 } else { 0.0 });
    }
    let measured = total("measured");
    if every("to").next().is_some() {
        let (from, to) =
            (every("from").fold(f64::INFINITY, f64::min), every("to").fold(f64::NEG_INFINITY, f64::max));
        all.set("rate", measured / (to - from).max(1e-9) / 1e6);
    }
    if cell.shape.metric("cpu").is_some() {
        if measured <= 0.0 {
            return Err("nothing was measured".into());
        }
        // Of one process each side tells all of it, and the one that measured does so for the same time.
        let cpu = match cell.transport {
            Transport::Inproc => {
                let measurer = dialed.iter().chain([bound]).find(|n| n.get("measured").is_some());
                measurer.and_then(|n| n.get("cpu")).unwrap_or(0.0)
            }
            _ => total("cpu"),
        };
        all.set("measured", measured);
        all.set("cpu", cpu / measured * 1e6);
    }
    if let Some(connected) = bound.get("connected") {
        all.set("connect", (connected - every("started").fold(f64::INFINITY, f64::min)) * 1e3);
    }
    for metric in cell.shape.metrics().iter().filter(|m| all.get(m.name).is_none()).collect::<Vec<_>>() {
        every(metric.name).next().ok_or_else(|| format!("no side measured {}", metric.name))?;
        // Of several processes that dialled, what they cost together.
        all.set(metric.name, total(metric.name));
    }
    Ok(all)
}

/// Until all have said `word`, in any order. The first that has trouble ends it, with what the others say of
/// it: any may be the cause.
fn all_say(sides: &mut [Side], word: &str) -> Result<()> {
    let mut waiting: Vec<usize> = (0..sides.len()).collect();
    while !waiting.is_empty() {
        let lines: Vec<_> = waiting.iter().map(|&i| sides[i].lines.clone()).collect();
        let mut select = Select::new();
        for line in &lines {
            select.recv(line);
        }
        let Ok(ready) = select.select_deadline(sides[waiting[0]].deadline) else {
            let who: Vec<_> = waiting.iter().map(|&i| &*sides[i].who).collect();
            return Err(format!("{}: {SILENT}, not {word}", who.join(", ")).into());
        };
        let at = ready.index();
        let line = ready.recv(&lines[at]).map_err(|_| false);
        let side = waiting.swap_remove(at);
        if let Err(why) = sides[side].check(line, word) {
            let others = (0..sides.len()).filter(|&i| i != side);
            let said: Vec<_> = others.filter_map(|i| sides[i].trouble()).collect();
            return Err([&[why.to_string()], &said[..]].concat().join("; ").into());
        }
    }
    Ok(())
}

/// What is said of somebody who says nothing.
const SILENT: &str = "no word in time";

/// A process that does one side. Dropped, it is ended.
struct Side {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    deadline: Instant,
    who: String,
}

impl Side {
    fn start(name: &str, role: Role, url: &str, cell: &Cell, plan: &Plan, share: Share) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("side").args([name, &role.to_string(), url]);
        command.args([cell.shape.to_string(), cell.transport.to_string(), cell.size.to_string()]);
        command.args([plan.warm_up, plan.measured].map(|d| d.as_secs_f64().to_string()));
        command.args([share.first, share.count].map(|n| n.to_string()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let (tell, lines) = unbounded();
        // Ends with the child, whose end closes the pipe.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        let deadline = Instant::now() + plan.patience(cell);
        Ok(Side { child, stdin, lines, deadline, who: format!("{name} ({role})") })
    }

    /// The rest of the next line, which must begin with `with`.
    fn expect(&mut self, with: &str) -> Result<String> {
        let line = self.lines.recv_deadline(self.deadline);
        self.check(line.map_err(|e| e.is_timeout()), with)
    }

    /// The rest of `line`, or what is wrong; instead of a line there may be a time-out (`true`) or an end.
    fn check(&mut self, line: std::result::Result<String, bool>, with: &str) -> Result<String> {
        let who = &self.who;
        match line {
            Ok(line) => match line.strip_prefix(with) {
                Some(rest) => Ok(rest.to_owned()),
                None => Err(format!("{who}: {line}").into()),
            },
            Err(true) => Err(format!("{who}: {SILENT}").into()),
            Err(false) => Err(format!("{who}: ended without a word: {}", self.child.wait()?).into()),
        }
    }

    /// What it says of its trouble, if it has any soon.
    fn trouble(&self) -> Option<String> {
        let line = self.lines.recv_timeout(Duration::from_millis(100)).ok()?;
        line.starts_with("error").then(|| format!("{}: {line}", self.who))
    }

    /// Says go on.
    fn tell(&mut self) -> Result<()> {
        Ok(self.stdin.as_mut().ok_or("no standard input")?.write_all(b"\n")?)
    }

    /// Waits for its end, which must be a good one.
    fn leave(mut self) -> Result<()> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{}: {status}", self.who).into()) }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Both fail only when it has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Job;
    use crate::payload::{Checker, Maker};
    use crate::side::Ends;

    fn cell() -> Cell {
        Cell { shape: Shape::Stream, transport: Transport::Tcp, size: 64 }
    }

    fn said(text: &str) -> Numbers {
        Numbers::parse(text).unwrap()
    }

    #[test]
    fn cpu_time_is_told_for_each_million_measured_messages_and_the_rate_from_the_first_to_the_last() {
        let bound = said("seen=30 measured=20 from=1 to=1.5 cpu=0.2");
        let all = join(&cell(), &bound, &[said("sent=30 cpu=0.3")], false).unwrap();
        assert_eq!((all.get("cpu"), all.get("rate")), (Some(25_000.0), Some(0.00004)));
    }

    #[test]
    fn a_receiver_that_saw_less_or_more_than_was_sent_fails_the_run() {
        for seen in [29, 31] {
            let bound = said(&format!("seen={seen} measured=20 from=1 to=2 cpu=0"));
            for lossy in [false, true] {
                let all = join(&cell(), &bound, &[said("sent=30 cpu=0")], lossy);
                assert!(all.is_err(), "{seen} of 30 was accepted");
            }
        }
        assert!(join(&cell(), &said("seen=30 measured=20 from=1 to=2"), &[said("")], false).is_err());
    }

    struct Named(Standing);

    impl Entry for Named {
        fn name(&self) -> &'static str {
            "somebody"
        }
        fn version(&self) -> String {
            String::new()
        }
        fn standing(&self) -> Standing {
            self.0
        }
        fn takes(&self, _: &Cell) -> bool {
            true
        }
        fn is_lossy(&self) -> bool {
            false
        }
        fn run(&self, _: &Job<'_>, _: Role, _: &str, _: &Ends) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_peer_is_forgiven_that_it_gave_up_but_not_what_it_lost_and_we_are_forgiven_nothing() {
        let lost = {
            let (mut maker, mut checker) = (Maker::new(&cell(), 0), Checker::new(&cell()));
            maker.make();
            checker.look(maker.make()).unwrap_err().to_string()
        };
        for (why, standing, good) in [
            ("it hung", Standing::Peer, true),
            (&*lost, Standing::Peer, false),
            ("it hung", Standing::Ours, false),
            ("it hung", Standing::Limit, false),
        ] {
            let row = Row { name: "somebody".into(), failures: vec![why.into()], ..Row::default() };
            let outcome = Outcome { cell: cell(), rows: vec![row], spent: Vec::new(), discarded: 0 };
            assert_eq!(outcome.is_good(&[&Named(standing)]), good, "{why}, {standing:?}");
        }
    }

    #[test]
    fn only_a_lossy_publisher_may_lose_and_its_loss_is_told() {
        let cell = Cell { shape: Shape::FanOut(4), ..cell() };
        let dialed =
            [said("seen=15 measured=9 from=1 to=2 cpu=0"), said("seen=20 measured=9 from=1 to=2 cpu=0")];
        let bound = said("sent=10 cpu=0");
        assert_eq!(join(&cell, &bound, &dialed, true).unwrap().get("lost"), Some(12.5));
        assert!(join(&cell, &bound, &dialed, false).is_err());
    }
}
