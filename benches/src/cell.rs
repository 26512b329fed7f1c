//! One thing to measure: a shape of traffic, a transport, a size.
//!
//! A new shape is a variant here, its metrics, and its two sides in [`side`](crate::side); rounds, tables, plots
//! and CSV follow by themselves. Owns: names, units, and which cells there are. Never: measures.

use std::fmt;
use std::time::Duration;

use crate::Result;

/// What is measured, on what, with how much in each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The traffic.
    pub shape: Shape,
    /// What carries it.
    pub transport: Transport,
    /// Bytes of body in each message; at least 8, with topics 16.
    pub size: usize,
}

impl Cell {
    /// Most sockets that one process dials with: nanomsg has room for 512.
    pub const SHARE: usize = 400;

    /// Messages that each queue of a contestant may hold: 1,000, of large ones fewer, 62.5 MiB together.
    pub fn queue(&self) -> usize {
        ((64_000 << 10) / self.size.max(64 << 10)).max(1)
    }

    /// The same bound in bytes, for libraries that bound by bytes: never below 128 KiB.
    pub fn queue_bytes(&self) -> usize {
        (self.queue() * self.size).max(128 << 10)
    }

    /// Sockets that dial, shared out to processes: for each its first one and how many.
    pub fn shares(&self) -> Vec<Share> {
        let n = self.shape.dialers();
        (0..n)
            .step_by(Cell::SHARE)
            .map(|first| Share { first, count: (n - first).min(Cell::SHARE) })
            .collect()
    }

    /// Whether all of `words` are said of it: `tcp stream 64`, `pub`, `pub-8`, `64KiB`. A bare number is bytes.
    pub fn is_meant(&self, words: &str) -> bool {
        let (shape, transport) = (self.shape.to_string(), self.transport.to_string());
        let family = self.shape.family().0;
        let known = [&*shape, family, &*transport, &*size(self.size), &*self.size.to_string()];
        words.split_whitespace().all(|word| word == "B" || known.contains(&word))
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.shape, self.transport, size(self.size))
    }
}

/// Bytes in the largest unit that has no remainder: `64B`, `64KiB`.
pub fn size(bytes: usize) -> String {
    match bytes {
        _ if bytes != 0 && bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes != 0 && bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}

/// What part of the dialling sockets a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Number of its first one.
    pub first: usize,
    /// How many.
    pub count: usize,
}

/// Who sends what to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One push socket sends to one pull socket as fast as it can.
    Stream,
    /// The same, by so many threads that share the push socket.
    Senders(usize),
    /// One req socket asks one rep socket, one request at a time.
    RoundTrip,
    /// The same with so many requests in flight.
    Pipelined(usize),
    /// One pub socket sends to so many sub sockets, all of it to each.
    FanOut(usize),
    /// So many push sockets send to one pull socket.
    FanIn(usize),
    /// One pub socket sends to one sub socket that has so many topics.
    Topics(usize),
    /// So many push sockets, connected to one pull socket, and nothing to say.
    Idle(usize),
    /// One push socket sends until no queue takes any more: the receiver does not receive.
    Full,
}

impl Shape {
    /// Messages that a socket sends before the next has its turn, where many send in turn.
    pub const TURN: usize = 8;

    /// Its name without a number, and its number.
    pub fn family(&self) -> (&'static str, Option<usize>) {
        match *self {
            Shape::Stream => ("stream", None),
            Shape::Senders(n) => ("senders", Some(n)),
            Shape::RoundTrip => ("rtt", None),
            Shape::Pipelined(n) => ("pipeline", Some(n)),
            Shape::FanOut(n) => ("pub", Some(n)),
            Shape::FanIn(n) => ("fanin", Some(n)),
            Shape::Topics(n) => ("topics", Some(n)),
            Shape::Idle(n) => ("idle", Some(n)),
            Shape::Full => ("full", None),
        }
    }

    /// What its number counts.
    pub fn unit(&self) -> &'static str {
        match self {
            Shape::Senders(_) => "threads on one socket",
            Shape::Pipelined(_) => "requests in flight",
            Shape::FanOut(_) => "subscribers",
            Shape::FanIn(_) | Shape::Idle(_) => "connections",
            Shape::Topics(_) => "topics",
            Shape::Stream | Shape::RoundTrip | Shape::Full => "bytes in a message",
        }
    }

    /// Sockets that dial.
    pub fn dialers(&self) -> usize {
        match *self {
            Shape::FanOut(n) | Shape::FanIn(n) | Shape::Idle(n) => n,
            _ => 1,
        }
    }

    /// Senders that number their messages, at one receiving socket.
    pub fn sources(&self) -> usize {
        match *self {
            Shape::FanIn(n) | Shape::Idle(n) | Shape::Senders(n) => n,
            _ => 1,
        }
    }

    /// Whether a pub socket sends.
    pub fn is_published(&self) -> bool {
        matches!(self, Shape::FanOut(_) | Shape::Topics(_))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family() {
            (name, Some(n)) => write!(f, "{name}-{n}"),
            (name, None) => f.write_str(name),
        }
    }
}

impl std::str::FromStr for Shape {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = text.split_once('-').map(|(name, n)| (name, n.parse::<usize>()));
        match (text, number) {
            ("stream", _) => Ok(Shape::Stream),
            ("rtt", _) => Ok(Shape::RoundTrip),
            ("full", _) => Ok(Shape::Full),
            (_, Some((name, Ok(n)))) if (1..=1_000_000).contains(&n) => match name {
                "senders" => Ok(Shape::Senders(n)),
                "pipeline" => Ok(Shape::Pipelined(n)),
                "pub" => Ok(Shape::FanOut(n)),
                "fanin" => Ok(Shape::FanIn(n)),
                "topics" => Ok(Shape::Topics(n)),
                "idle" => Ok(Shape::Idle(n)),
                _ => Err(format!("no shape {text:?}")),
            },
            _ => Err(format!("no shape {text:?}")),
        }
    }
}

/// A number that a shape yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name in samples and CSV.
    pub name: &'static str,
    /// Its heading in tables, with the unit.
    pub heading: &'static str,
    /// Whether more is better.
    pub more_is_better: bool,
    /// Digits after the point, or more where fewer than three would say something.
    pub digits: usize,
}

impl Metric {
    /// The digits that `value` needs after the point.
    pub fn digits_of(&self, value: f64) -> usize {
        let leading_zeros = if value > 0.0 { -value.log10().floor() } else { 0.0 };
        if self.digits < 3 { self.digits } else { self.digits.max(leading_zeros as usize + 2).min(7) }
    }
}

const fn more(name: &'static str, heading: &'static str, digits: usize) -> Metric {
    Metric { name, heading, more_is_better: true, digits }
}

const fn less(name: &'static str, heading: &'static str, digits: usize) -> Metric {
    Metric { name, heading, more_is_better: false, digits }
}

const CPU: Metric = less("cpu", "CPU s / M msg", 3);
const RSS: Metric = less("rss", "KiB / conn, bound", 2);
const STREAM: &[Metric] = &[more("rate", "M msg/s", 3), CPU];
const PIPELINED: &[Metric] = &[more("rate", "M req/s", 4), CPU];
const ROUND_TRIP: &[Metric] =
    &[less("p50", "p50 µs", 1), less("p99", "p99 µs", 1), less("p999", "p99.9 µs", 1), CPU];
const PUBLISHED: &[Metric] = &[more("rate", "M deliveries/s", 3), CPU, less("lost", "lost %", 1)];
const FAN_IN: &[Metric] = &[more("rate", "M msg/s", 3), CPU, less("connect", "connected after ms", 1), RSS];
const IDLE: &[Metric] = &[
    less("cpu_bound", "CPU ms/s, bound", 3),
    less("cpu_dialed", "CPU ms/s, dialled", 3),
    less("wakes", "wake-ups/s", 2),
    RSS,
];
const FULL: &[Metric] = &[
    less("held", "messages held", 0),
    less("rss_dialed", "MiB, sender", 2),
    less("rss_bound", "MiB, receiver", 2),
];

impl Shape {
    /// What a sample of this shape holds, the most telling first.
    pub fn metrics(&self) -> &'static [Metric] {
        match self {
            Shape::Stream | Shape::Senders(_) => STREAM,
            Shape::Pipelined(_) => PIPELINED,
            Shape::RoundTrip => ROUND_TRIP,
            Shape::FanOut(_) | Shape::Topics(_) => PUBLISHED,
            Shape::FanIn(_) => FAN_IN,
            Shape::Idle(_) => IDLE,
            Shape::Full => FULL,
        }
    }

    /// One of them.
    pub fn metric(&self, name: &str) -> Option<&'static Metric> {
        self.metrics().iter().find(|m| m.name == name)
    }
}

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Loopback tcp, one process for each side.
    Tcp,
    /// A Unix socket, one process for each side.
    Ipc,
    /// Two threads of one process.
    Inproc,
}

impl Transport {
    /// Every transport.
    pub const ALL: [Transport; 3] = [Transport::Tcp, Transport::Ipc, Transport::Inproc];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Ipc => "ipc",
            Transport::Inproc => "inproc",
        })
    }
}

impl std::str::FromStr for Transport {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = Transport::ALL.into_iter().find(|t| t.to_string() == text);
        known.ok_or_else(|| format!("no transport {text:?}: tcp, ipc, inproc"))
    }
}

/// The whole matrix, the cells with a target first, so that a run that is out of time has missed the least.
pub fn matrix() -> Vec<Cell> {
    use Transport::{Inproc, Ipc, Tcp};
    const SIZES: [usize; 5] = [64, 8, 1 << 10, 64 << 10, 1 << 20];
    let mut cells = Vec::new();
    let mut add = |shape, transports: &[Transport], sizes: &[usize]| {
        for &transport in transports {
            cells.extend(sizes.iter().map(|&size| Cell { shape, transport, size }));
        }
    };
    add(Shape::Stream, &Transport::ALL, &SIZES);
    add(Shape::RoundTrip, &Transport::ALL, &[64, 64 << 10]);
    for subs in [8, 64, 1, 1000] {
        add(Shape::FanOut(subs), &[Tcp], &[64]);
    }
    for window in [256, 16, 1] {
        add(Shape::Pipelined(window), &[Tcp], &[64]);
    }
    add(Shape::FanIn(1000), &[Tcp], &[64]);
    add(Shape::Idle(1), &[Tcp], &[64]);
    for threads in [1, 2, 8] {
        add(Shape::Senders(threads), &[Tcp, Inproc], &[64]);
    }
    add(Shape::Idle(100), &[Tcp], &[64]);
    add(Shape::Full, &[Tcp, Ipc], &[1 << 10]);
    for pipes in [1, 10, 100, 10_000] {
        add(Shape::FanIn(pipes), &[Tcp], &[64]);
    }
    for topics in [1, 10, 100, 1000, 10_000, 100_000, 1_000_000] {
        add(Shape::Topics(topics), &[Tcp], &[64]);
    }
    cells
}

/// The part that `--quick` has time for: at least one cell for each target.
pub fn is_quick(cell: &Cell) -> bool {
    match (cell.shape, cell.transport) {
        (Shape::Stream, Transport::Tcp) => cell.size >= 64 && cell.size <= 64 << 10,
        (Shape::Stream, Transport::Ipc) => cell.size == 64,
        (Shape::Stream, Transport::Inproc) => matches!(cell.size, 64 | 65536),
        (Shape::RoundTrip, Transport::Tcp) => true,
        (Shape::RoundTrip, Transport::Ipc) => cell.size == 64,
        (Shape::FanOut(n), _) => n == 8,
        (Shape::Pipelined(n), _) => n == 256,
        (Shape::FanIn(n), _) => n == 1000,
        (Shape::Idle(n), Transport::Tcp) => n == 1,
        (Shape::Senders(n), Transport::Tcp) => n == 2,
        (Shape::Full, Transport::Tcp) => true,
        (Shape::Topics(n), _) => n == 1000,
        _ => false,
    }
}

/// How long a sample takes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Left out of the measurement.
    pub warm_up: Duration,
    /// Measured.
    pub measured: Duration,
}

impl Plan {
    /// As much time as anything may take in `cell` that is not broken.
    pub fn patience(&self, cell: &Cell) -> Duration {
        let many = match cell.shape {
            Shape::FanOut(n) | Shape::FanIn(n) | Shape::Idle(n) => n as u32 * 5,
            Shape::Topics(n) => n as u32 / 20,
            _ => 0,
        };
        (self.warm_up + self.measured) * 20 + Duration::from_secs(4) + Duration::from_millis(many.into())
    }

    /// Refuses what cannot be measured.
    ///
    /// # Errors
    /// When nothing would be measured.
    pub fn check(self) -> Result<Self> {
        if self.measured.is_zero() { Err("nothing is measured in 0 s".into()) } else { Ok(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_found_by_its_name_and_comes_once() {
        let cells = matrix();
        for cell in &cells {
            let same = cells.iter().filter(|c| c.is_meant(&cell.to_string())).count();
            assert_eq!(same, 1, "{cell}");
            assert_eq!(cell.shape.to_string().parse(), Ok(cell.shape));
        }
    }

    #[test]
    fn words_choose_cells_in_any_order() {
        let chosen = |words: &str| matrix().iter().filter(|c| c.is_meant(words)).count();
        assert_eq!(chosen("tcp stream 64"), 1);
        assert_eq!(chosen("stream 64KiB"), 3);
        assert_eq!((chosen("pub"), chosen("pub-8"), chosen("pub-9")), (4, 1, 0));
    }

    #[test]
    fn queues_hold_a_thousand_messages_unless_that_is_too_much_memory() {
        let queue = |size| Cell { shape: Shape::Stream, transport: Transport::Tcp, size }.queue();
        assert_eq!((queue(8), queue(64 << 10), queue(1 << 20)), (1000, 1000, 62));
    }

    #[test]
    fn many_dialling_sockets_are_shared_out_without_rest() {
        let cell = Cell { shape: Shape::FanIn(1000), transport: Transport::Tcp, size: 64 };
        let counts: Vec<usize> = cell.shares().iter().map(|s| s.count).collect();
        assert_eq!(counts, [400, 400, 200]);
    }
}
