//! The scenarios. Each is a sentence about what must hold in every interleaving; a file for each theme.
//!
//! Owns: how a scenario is run, and the states in which it begins. Never: a rule of the engine.

mod close;
mod keys;
mod messages;
mod news;
mod notices;
mod outside;
mod pollers;
mod sending;
mod times;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use loom::thread::{self, JoinHandle};

use crate::core::{Drive, Key, Socket};
use crate::kernel::NOW;
use crate::lead::{Look, Want};

const EVER: u32 = u32::MAX;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().expect("a number"))
}

/// Runs `f` on a new socket through every interleaving with at most `preemptions` preemptions, for as long as there is
/// time. One that was not explored to its end says so, past the test harness: `cargo xtask loom` counts them.
fn alone(preemptions: usize, make: fn() -> Arc<Socket>, f: impl Fn(&Arc<Socket>) + Send + Sync + 'static) {
    let time = Duration::from_secs(number("SECS").unwrap_or(4));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(number("PREEMPT").map_or(preemptions, |p| p as usize));
    builder.max_branches = 20_000;
    builder.checkpoint_interval = 500;
    builder.max_duration = Some(time);
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let began = Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        f(&make());
    });
    if began.elapsed() >= time {
        let (runs, this) = (runs.load(Ordering::Relaxed), std::thread::current());
        let line = format!("cut short: {} after {runs} interleavings\n", this.name().unwrap_or("a scenario"));
        std::io::stdout().write_all(line.as_bytes()).expect("somebody reads what is printed");
    }
}

/// The same, beside the driver, which is stopped when `f` is over.
fn driven(preemptions: usize, make: fn() -> Arc<Socket>, f: impl Fn(&Arc<Socket>) + Send + Sync + 'static) {
    alone(preemptions, make, move |s| with_driver(s, || f(s)));
}

fn with_driver(s: &Arc<Socket>, f: impl FnOnce()) {
    let driver = go(s, Socket::driver);
    f();
    s.kernel.stop();
    driver.join().unwrap();
}

/// With room for all that a scenario receives, and for one message to send.
fn plain() -> Arc<Socket> {
    Socket::new(4)
}

/// With room for one received message: the next one stalls its pipe.
fn narrow() -> Arc<Socket> {
    Socket::new(1)
}

/// With room for more than one who drives reads before others have their turn.
fn roomy() -> Arc<Socket> {
    Socket::new(8)
}

/// With room for two messages to send.
fn deep() -> Arc<Socket> {
    Socket::with(4, 2, false)
}

/// With a source of messages that is no descriptor.
fn noted() -> Arc<Socket> {
    Socket::with(4, 1, true)
}

fn go(s: &Arc<Socket>, f: impl FnOnce(&Socket) + Send + 'static) -> JoinHandle<()> {
    let s = s.clone();
    thread::spawn(move || f(&s))
}

fn join<const N: usize>(all: [JoinHandle<()>; N]) {
    for one in all {
        one.join().unwrap();
    }
}

/// The driver has the socket: it watches it, as after an idle time.
fn watched(s: &Arc<Socket>) {
    let mut st = s.lock();
    assert_eq!(st.lead.look(&s.link), Look::Armed);
    s.finish(st);
}

/// A caller was here just now: the socket is only on the driver's list.
fn listed(s: &Arc<Socket>) {
    leave(s, lead(s, Want::Recv));
}

/// This thread leads, for as long as it holds the loop.
fn lead(s: &Arc<Socket>, want: Want<Key>) -> Box<Drive> {
    s.lock().lead.take(want, &s.link).expect("nobody leads yet")
}

/// It gives the loop back.
fn leave(s: &Arc<Socket>, d: Box<Drive>) {
    let mut st = s.lock();
    s.give(&mut st, d);
    s.finish(st);
}

/// It polls once, and delivers what there is.
fn turn(s: &Arc<Socket>, d: &mut Drive) {
    s.turn(d, NOW);
    let st = s.lock();
    let st = s.deliver(st, d);
    s.finish(st);
}

/// It polls once, delivers what there is and gives the loop back, all in one.
fn turn_and_leave(s: &Arc<Socket>, mut d: Box<Drive>) {
    s.turn(&mut d, NOW);
    let st = s.lock();
    let mut st = s.deliver(st, &mut d);
    s.give(&mut st, d);
    s.finish(st);
}
