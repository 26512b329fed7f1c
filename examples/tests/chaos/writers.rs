//! Who commits: each asks again, under the same request id, until it has its answer.
//!
//! Owns: the threads, and the pause in which no commit is under way. Never: gives up a request of which it does not know
//! the end.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spanwire_config::client::{Client, ClientError, Commit, Committed};
use spanwire_config::{ChangeSet, Key};
use spanwire_testkit::sim::Rng;

use super::history::{WRITERS, counters};

/// A commit that was acknowledged, or why one never will be.
pub(crate) type Written = Result<(ChangeSet, Committed), String>;

#[derive(Default, Debug)]
struct Gate {
    open: bool,
    over: bool,
    /// Writers with a commit under way.
    busy: usize,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Writers {
    gate: Arc<(Mutex<Gate>, Condvar)>,
    threads: Vec<JoinHandle<()>>,
}

fn lock(gate: &(Mutex<Gate>, Condvar)) -> MutexGuard<'_, Gate> {
    gate.0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writers {
    /// They pause.
    pub(crate) fn new(control: &str, rng: &mut Rng, written: &Sender<Written>) -> Writers {
        let gate = Arc::new((Mutex::new(Gate::default()), Condvar::new()));
        let write = |writer| {
            let (gate, control, rng, written) =
                (gate.clone(), control.to_owned(), rng.fork(), written.clone());
            std::thread::spawn(move || write(writer, &gate, &control, rng, &written))
        };
        let threads = (0..WRITERS).map(write).collect();
        Writers { gate, threads }
    }

    /// Lets them write, or pause once what is under way has been answered.
    pub(crate) fn go(&self, go: bool) {
        lock(&self.gate).open = go;
        self.gate.1.notify_all();
    }

    /// None has a commit under way.
    pub(crate) fn are_idle(&self) -> bool {
        lock(&self.gate).busy == 0
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        lock(&self.gate).over = true;
        self.gate.1.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn write(
    writer: usize,
    gate: &(Mutex<Gate>, Condvar),
    control: &str,
    mut rng: Rng,
    written: &Sender<Written>,
) {
    let client = match Client::connect(control, "config") {
        Ok(client) => client.with_timeout(Duration::from_millis(500)),
        Err(error) => return drop(written.send(Err(error.to_string()))),
    };
    for number in 1_u64.. {
        let paused = |gate: &mut Gate| !gate.open && !gate.over;
        let mut open = gate.1.wait_while(lock(gate), paused).unwrap_or_else(PoisonError::into_inner);
        if open.over {
            return;
        }
        open.busy += 1;
        drop(open);
        let done = commit(&client, changes(writer, number, &mut rng), gate);
        lock(gate).busy -= 1;
        let Some(done) = done else { return };
        let failed = done.is_err();
        if written.send(done).is_err() || failed {
            return;
        }
        // In bursts, and with pauses in which nothing is new.
        let most = if rng.one_in(3) { 1_000 } else { 60 };
        let until = Instant::now() + rng.time(Duration::ZERO..Duration::from_millis(most));
        let mut open = lock(gate);
        while !open.over && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            open = gate.1.wait_timeout(open, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn count(writer: usize, number: u64) -> ChangeSet {
    let mut changes = ChangeSet::new();
    for name in counters(writer) {
        changes.put(Key::new(name).expect("short"), 0, format!("{number}\n"));
    }
    changes
}

/// What everything begins with.
pub(crate) fn first() -> ChangeSet {
    let mut changes = ChangeSet::new();
    (0..WRITERS).for_each(|writer| changes.merge(&count(writer, 0)));
    changes
}

fn changes(writer: usize, number: u64, rng: &mut Rng) -> ChangeSet {
    let mut changes = count(writer, number);
    for _ in 0..rng.below(4) {
        let key = Key::new(format!("d{}/k{}", rng.below(4), rng.below(10))).expect("short");
        if rng.one_in(4) {
            changes.delete(key);
        } else {
            let most = if rng.one_in(10) { 40_000 } else { 1_000 };
            changes.put(key, 0, vec![b'a' + rng.below(26) as u8; rng.below(most)]);
        }
    }
    changes
}

/// `None`: the test is over.
fn commit(client: &Client, changes: ChangeSet, gate: &(Mutex<Gate>, Condvar)) -> Option<Written> {
    let request = match Commit::new(changes.clone()) {
        Ok(request) => request,
        Err(error) => return Some(Err(error.to_string())),
    };
    loop {
        match client.commit(&request) {
            Ok(done) => return Some(Ok((changes, done))),
            Err(ClientError::Unanswered(_) | ClientError::Busy) if lock(gate).over => return None,
            Err(ClientError::Unanswered(_) | ClientError::Busy) => {}
            Err(error) => return Some(Err(format!("a commit failed: {error}"))),
        }
    }
}
