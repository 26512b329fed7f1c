//! A publisher and its subscribers.
//!
//! Owns: how both find out that all have subscribed, and the end where messages may be lost. Never: takes so many
//! from one subscriber that the publisher waits for another.

use std::time::Duration;

use super::stream::send_for;
use super::talk::{Ends, Numbers, at_least_one};
use crate::cell::Cell;
use crate::contestant::{Job, Pull, Push};
use crate::payload::{Checker, Maker, Seen};
use crate::{Result, machine};

/// Between two probes. A queue of 1,000 outlives the connecting of all subscribers.
const PROBING: Duration = Duration::from_millis(20);
/// Between two ends, where the first may be lost: by so much more at most is measured than the messages took.
const ENDING: Duration = Duration::from_millis(1);

pub(super) async fn publish(
    mut publisher: impl Push,
    job: &Job<'_>,
    ends: &Ends,
    lossy: bool,
) -> Result<Numbers> {
    let mut maker = Maker::new(job.cell, 0);
    while !ends.told_within(PROBING)? {
        publisher.send(maker.probe()).await?;
        publisher.flush().await?;
    }
    send_for(&mut publisher, &mut maker, job.cell, job.plan.warm_up).await?;
    maker.measure();
    let cpu = machine::cpu();
    send_for(&mut publisher, &mut maker, job.cell, job.plan.measured).await?;
    publisher.send(maker.end()).await?;
    publisher.flush().await?;
    ends.say(format_args!("done"))?;
    while !ends.told_within(if lossy { ENDING } else { Duration::from_secs(1) })? {
        if lossy {
            publisher.send(maker.end()).await?;
            publisher.flush().await?;
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

pub(super) async fn listen<S: Pull>(
    mut subs: Vec<S>,
    cell: &Cell,
    ends: &Ends,
    lossy: bool,
) -> Result<Numbers> {
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
