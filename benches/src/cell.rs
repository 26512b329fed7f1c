//! One thing to measure: a shape of traffic, a transport, a size.
//!
//! A new shape is a variant here, its metrics, and its two sides in [`side`](crate::side); rounds, tables and CSV
//! follow by themselves. Owns: names and units. Never: measures.

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
    /// Bytes of body in each message; at least 8.
    pub size: usize,
}

impl Cell {
    /// Messages that each queue of a contestant may hold.
    pub const QUEUE: usize = 1000;

    /// The same bound in bytes, for libraries that bound by bytes: never below 128 KiB.
    pub fn queue_bytes(&self) -> usize {
        (Cell::QUEUE * self.size).max(128 << 10)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} B", self.shape, self.transport, self.size)
    }
}

/// Who sends what to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One push socket sends to one pull socket as fast as it can.
    Stream,
    /// One req socket asks one rep socket, one request at a time.
    RoundTrip,
    /// This many push sockets, connected to one pull socket, and nothing to say.
    Idle {
        /// Connections.
        pipes: usize,
    },
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Stream => f.write_str("stream"),
            Shape::RoundTrip => f.write_str("rtt"),
            Shape::Idle { pipes } => write!(f, "idle-{pipes}"),
        }
    }
}

impl std::str::FromStr for Shape {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text, text.strip_prefix("idle-").map(str::parse)) {
            ("stream", _) => Ok(Shape::Stream),
            ("rtt", _) => Ok(Shape::RoundTrip),
            (_, Some(Ok(pipes))) => Ok(Shape::Idle { pipes }),
            _ => Err(format!("no shape {text:?}: stream, rtt, idle-N")),
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
    /// Digits after the point.
    pub digits: usize,
}

const CPU: Metric = Metric { name: "cpu", heading: "CPU s / M msg", more_is_better: false, digits: 3 };

impl Shape {
    /// What a sample of this shape holds.
    pub fn metrics(&self) -> &'static [Metric] {
        match self {
            Shape::Stream => {
                &[Metric { name: "rate", heading: "M msg/s", more_is_better: true, digits: 3 }, CPU]
            }
            Shape::RoundTrip => &[
                Metric { name: "p50", heading: "p50 µs", more_is_better: false, digits: 1 },
                Metric { name: "p99", heading: "p99 µs", more_is_better: false, digits: 1 },
                CPU,
            ],
            Shape::Idle { .. } => &[
                Metric { name: "cpu_bound", heading: "CPU ms/s, bound", more_is_better: false, digits: 3 },
                Metric { name: "cpu_dialed", heading: "CPU ms/s, dialled", more_is_better: false, digits: 3 },
                Metric { name: "rss", heading: "KiB / pipe, bound", more_is_better: false, digits: 1 },
            ],
        }
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

/// How long a sample takes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Left out of the measurement.
    pub warm_up: Duration,
    /// Measured.
    pub measured: Duration,
}

impl Plan {
    /// As much time as anything may take that is not broken.
    pub fn patience(&self) -> Duration {
        (self.warm_up + self.measured) * 4 + Duration::from_secs(30)
    }

    /// Refuses what cannot be measured.
    ///
    /// # Errors
    /// When nothing would be measured.
    pub fn check(self) -> Result<Self> {
        if self.measured.is_zero() { Err("nothing is measured in 0 s".into()) } else { Ok(self) }
    }
}
