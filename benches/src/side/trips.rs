//! Requests and their answers, one at a time or many on their way.
//!
//! Owns: the times of trips, and the check that an answer belongs to its request. Never: has more on their way than the
//! cell says.

use std::time::{Duration, Instant};

use super::stream::batch;
use super::talk::{Ends, Numbers, at_least_one};
use crate::cell::{Cell, Plan};
use crate::contestant::{Pull, Push, Rep, Req};
use crate::payload::{Checker, Maker, Seen, WRONG};
use crate::{Result, machine};

pub(super) async fn answer(mut rep: impl Rep, cell: &Cell, ends: &Ends) -> Result<Numbers> {
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

pub(super) async fn ask(mut req: impl Req, cell: &Cell, plan: &Plan, ends: &Ends) -> Result<Numbers> {
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
pub(super) async fn pipeline(
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
