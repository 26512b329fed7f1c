//! Who commits: each asks again, under the same request id, until it has its answer.
//!
//! Owns: the threads, and the pause in which no commit is under way and no rollout open. Never: gives up a request of
//! which it does not know the end.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use spanwire_config::client::{Client, ClientError, Commit, Committed};
use spanwire_config::{ChangeSet, Key};
use spanwire_testkit::sim::Rng;

use super::history::{Change, WRITERS, counters};
use super::rollouts;

/// What was acknowledged.
#[derive(Debug)]
pub(crate) enum Done {
    /// A revision.
    Commit(Change, Committed),
    /// A rollout's is for all.
    Promoted,
}

/// What was acknowledged, or why it never will be.
pub(crate) type Written = Result<Done, String>;

#[derive(Default, Debug)]
struct Gate {
    open: bool,
    over: bool,
    /// Writers with something under way.
    busy: usize,
}

/// What all writers share.
#[derive(Default, Debug)]
pub(crate) struct Shared(Mutex<Gate>, Condvar);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to be written. `false`: the test is over.
    fn enter(&self) -> bool {
        let paused = |gate: &mut Gate| !gate.open && !gate.over;
        let mut gate = self.1.wait_while(self.lock(), paused).unwrap_or_else(PoisonError::into_inner);
        gate.busy += usize::from(!gate.over);
        !gate.over
    }

    /// Waits; not once the test is over, and `only_open` not while they are to pause.
    pub(crate) fn pause(&self, lasts: Duration, only_open: bool) {
        let goes_on = |gate: &mut Gate| !gate.over && (gate.open || !only_open);
        drop(self.1.wait_timeout_while(self.lock(), lasts, goes_on));
    }

    /// Asks until there is an answer. `None`: the test is over.
    pub(crate) fn insist(
        &self,
        mut ask: impl FnMut() -> Result<Committed, ClientError>,
    ) -> Option<Result<Committed, String>> {
        loop {
            match ask() {
                Ok(done) => return Some(Ok(done)),
                Err(ClientError::Unanswered(_) | ClientError::Unreachable(_) | ClientError::Busy) => {}
                // Somebody else ends it.
                Err(ClientError::Rollout { .. }) => self.pause(Duration::from_millis(20), false),
                Err(error) => return Some(Err(error.to_string())),
            }
            if self.lock().over {
                return None;
            }
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// They pause. The last makes rollouts, the others plain commits.
    pub(crate) fn new(control: &str, rng: &mut Rng, written: &Sender<Written>) -> Writers {
        let shared = Arc::<Shared>::default();
        let write = |writer| {
            let (shared, control, mut rng, written) =
                (shared.clone(), control.to_owned(), rng.fork(), written.clone());
            std::thread::spawn(move || {
                let client = match Client::connect(&control, "config") {
                    Ok(client) => client.with_timeout(Duration::from_millis(500)),
                    Err(error) => return drop(written.send(Err(error.to_string()))),
                };
                let tell = |done: Written| {
                    let failed = done.is_err();
                    (written.send(done).is_ok() && !failed).then_some(())
                };
                for number in 1.. {
                    if !shared.enter() {
                        return;
                    }
                    let changes = changes(writer, number, &mut rng);
                    let told = match writer + 1 {
                        WRITERS => rollouts::roll(&client, changes, &mut rng, &shared, tell),
                        _ => commit(&client, changes, &shared, tell),
                    };
                    shared.lock().busy -= 1;
                    if told.is_none() {
                        return;
                    }
                    // In bursts, and with pauses in which nothing is new.
                    let most = if rng.one_in(3) { 1_000 } else { 60 };
                    shared.pause(rng.time(Duration::ZERO..Duration::from_millis(most)), false);
                }
            })
        };
        let threads = (0..WRITERS).map(write).collect();
        Writers { shared, threads }
    }

    /// Lets them write, or pause once what is under way has been answered.
    pub(crate) fn go(&self, go: bool) {
        self.shared.lock().open = go;
        self.shared.1.notify_all();
    }

    /// None has a commit under way, or a rollout open.
    pub(crate) fn are_idle(&self) -> bool {
        self.shared.lock().busy == 0
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.1.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
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

/// `None`: the test is over, or a commit failed.
fn commit(
    client: &Client,
    changes: ChangeSet,
    shared: &Shared,
    tell: impl Fn(Written) -> Option<()>,
) -> Option<()> {
    let request = match Commit::new(changes.clone()) {
        Ok(request) => request,
        Err(error) => return tell(Err(error.to_string())),
    };
    let done = shared.insist(|| client.commit(&request))?;
    tell(
        done.map(|done| Done::Commit(Change::Set(changes), done))
            .map_err(|e| format!("a commit failed: {e}")),
    )
}
