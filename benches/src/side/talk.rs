//! What a side says, and to whom: lines, and the numbers that it found out.
//!
//! Owns: the form of both. Never: knows what a number means.

use std::fmt;
use std::io::{BufRead, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::{Result, machine};

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

/// What resident memory grew by since `before`, in units of so many KiB.
pub(super) fn grown(before: Option<u64>, unit: f64, name: &str, numbers: &mut Numbers) {
    if let (Some(before), Some(now)) = (before, machine::resident_kib()) {
        numbers.set(name, now.saturating_sub(before) as f64 / unit);
    }
}

/// A job that ended before it was measured measured nothing.
pub(super) fn at_least_one(n: u64) -> Result<f64> {
    if n == 0 { Err("nothing was measured".into()) } else { Ok(n as f64) }
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
pub(super) struct Others {
    pub(super) tells: mpsc::Sender<()>,
    pub(super) said: mpsc::Receiver<String>,
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
    pub(super) fn pair() -> (Others, Self) {
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
    pub(super) fn say_and_wait(&self, word: &str) -> Result<()> {
        self.say(format_args!("{word}"))?;
        self.told.recv().map_err(|_| "the other side is gone".into())
    }

    /// Whether it was told to go on, at the latest after `time`.
    pub(super) fn told_within(&self, time: Duration) -> Result<bool> {
        match self.told.recv_timeout(time) {
            Ok(()) => Ok(true),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(false),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err("the other side is gone".into()),
        }
    }
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
