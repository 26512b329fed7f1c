//! A stream from one sender, or from many handles of one, to a receiver.
//!
//! Owns: warm-up, what is measured, and the end, which is sent behind it. Never: looks at the clock for each message.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::give_up;
use super::talk::{Ends, Numbers, at_least_one};
use crate::cell::Cell;
use crate::contestant::{Contestant, Job, Pull, Push};
use crate::payload::{Checker, Maker, Seen};
use crate::{Result, machine};

/// How many messages are sent between two looks at the clock, which is not what is measured.
pub(super) fn batch(cell: &Cell) -> u32 {
    if cell.size >= 64 << 10 || cell.shape.is_published() { 8 } else { 64 }
}

pub(super) async fn send(
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

pub(super) async fn send_for(
    push: &mut impl Push,
    maker: &mut Maker,
    cell: &Cell,
    time: Duration,
) -> Result<()> {
    let (start, batch) = (Instant::now(), batch(cell));
    while start.elapsed() < time {
        for _ in 0..batch {
            push.send(maker.make()).await?;
        }
    }
    Ok(())
}

/// A thread for each handle; they begin together.
pub(super) fn share_out<C: Contestant>(
    c: &C,
    sharers: Vec<C::Sharer>,
    job: &Job<'_>,
    ends: &Ends,
) -> Result<Numbers> {
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

pub(super) async fn receive(mut pull: impl Pull, mut checker: Checker, ends: &Ends) -> Result<Numbers> {
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
