//! Many connections to one receiver, busy or idle; and one whose queues are filled.
//!
//! Owns: connecting so many, and what memory and time they take. Never: measures before all are connected.

use std::thread;
use std::time::{Duration, Instant};

use super::talk::{Ends, Numbers, grown};
use crate::cell::{Cell, Plan, Shape};
use crate::contestant::{Contestant, Job, Pull, Push};
use crate::payload::{Checker, Maker};
use crate::{Result, machine};

/// Receives one message from each of `n`: then all are connected. Tells how long that took and what memory
/// they have when it is quiet again.
pub(super) async fn welcome<P: Pull>(
    mut pull: P,
    cell: &Cell,
    before: Option<u64>,
    n: usize,
) -> Result<(P, Checker, Numbers)> {
    let (mut checker, mut numbers) = (Checker::new(cell), Numbers::default());
    for _ in 0..n {
        pull.recv(|body| checker.look(body)).await??;
    }
    numbers.set("connected", machine::clock());
    // What connecting left behind settles in threads of libraries that tell nobody.
    thread::sleep(Duration::from_millis(300));
    grown(before, n as f64, "rss", &mut numbers);
    Ok((pull, checker, numbers))
}

/// Connects the share of sockets that is this process's, and sends a message from each.
pub(super) async fn greet<C: Contestant>(
    c: &C,
    job: &Job<'_>,
    url: &str,
    numbers: &mut Numbers,
) -> Result<Vec<(C::Push, Maker)>> {
    numbers.set("started", machine::clock());
    let mut pushes = Vec::new();
    for i in 0..job.share.count {
        pushes.push((c.push(url, job.cell).await?, Maker::new(job.cell, job.share.first + i)));
    }
    for (push, maker) in &mut pushes {
        push.send(maker.make()).await?;
        push.flush().await?;
    }
    Ok(pushes)
}

/// All sockets in turn, a few messages from each.
pub(super) async fn send_all<P: Push>(
    mut pushes: Vec<(P, Maker)>,
    job: &Job<'_>,
    ends: &Ends,
    mut numbers: Numbers,
) -> Result<Numbers> {
    while !ends.told_within(Duration::from_secs(1))? {}
    let mut cpu = Duration::ZERO;
    for (time, measured) in [(job.plan.warm_up, false), (job.plan.measured, true)] {
        if measured {
            pushes.iter_mut().for_each(|(_, maker)| maker.measure());
            cpu = machine::cpu();
        }
        let start = Instant::now();
        'time: while start.elapsed() < time {
            for (push, maker) in &mut pushes {
                for _ in 0..Shape::TURN {
                    push.send(maker.make()).await?;
                }
                // With many sockets a whole turn takes longer than there is time.
                if measured && start.elapsed() >= time {
                    break 'time;
                }
            }
        }
    }
    for (push, maker) in &mut pushes {
        push.send(maker.end()).await?;
        push.flush().await?;
    }
    ends.say_and_wait("done")?;
    numbers.set("cpu", (machine::cpu() - cpu).as_secs_f64());
    numbers.set("sent", pushes.iter().map(|(_, maker)| maker.made()).sum::<u64>() as f64);
    Ok(numbers)
}

/// Sends until nothing is taken any more; then the rest must come through.
pub(super) async fn fill(mut push: impl Push, cell: &Cell, ends: &Ends) -> Result<Numbers> {
    let mut maker = Maker::new(cell, 0);
    let mut numbers = Numbers::default();
    push.send(maker.make()).await?;
    while !ends.told_within(Duration::from_secs(1))? {}
    let before = machine::resident_kib();
    // Queues that are not bounded end here.
    let most = cell.queue() as u64 * 100;
    while maker.made() < most && push.offer(maker.make()).await? {}
    if maker.made() < most {
        maker.take_back();
    }
    grown(before, 1024.0, "rss_dialed", &mut numbers);
    numbers.set("held", maker.made() as f64 - 1.0);
    ends.say(format_args!("ready"))?;
    maker.measure();
    push.send(maker.end()).await?;
    push.flush().await?;
    ends.say_and_wait("done")?;
    numbers.set("sent", maker.made() as f64);
    Ok(numbers)
}

/// CPU milliseconds and wake-ups for each second of doing nothing.
pub(super) fn idle(plan: &Plan, ends: &Ends, cpu_name: &str, numbers: &mut Numbers) -> Result<()> {
    // Both sides are told when both are connected; then what connecting left behind may settle.
    ends.say_and_wait("done")?;
    thread::sleep(plan.warm_up);
    // Time in which nothing is done is what is measured.
    let (cpu, wakes, start) = (machine::cpu(), machine::wakes_of_others(), Instant::now());
    thread::sleep(plan.measured);
    let after = machine::wakes_of_others();
    let seconds = start.elapsed().as_secs_f64();
    numbers.set(cpu_name, (machine::cpu() - cpu).as_secs_f64() * 1e3 / seconds);
    if let (Some(before), Some(after)) = (wakes, after) {
        numbers.set("wakes", after.saturating_sub(before) as f64 / seconds);
    }
    Ok(())
}
