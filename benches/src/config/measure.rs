//! One sample: nodes and writers in this process, the server in another, of which CPU time and memory are read.
//!
//! What a system takes and gives is checked: each node sees each commit once. Owns: the procedures, the same for all.
//! Never: knows which system it measures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::case::{Case, Content};
use super::proxy::Proxy;
use super::sight::{Sight, Together, key, value, wait};
use super::system::{Place, System, Watcher, Writer};
use crate::side::Numbers;
use crate::{Result, machine};

/// Until nodes are connected, values seen: what takes longer is broken.
const LIMIT: Duration = Duration::from_secs(60);
/// The same for a state of 10 MiB at a thousand nodes.
const LONG: Duration = Duration::from_secs(300);
/// Writers that keep a pace; more commits than that are never on their way.
const PACERS: usize = 16;
/// A commit that is issued later than this after its time was kept waiting by those before it.
const LATE: f64 = 0.002;

/// What is measured, with whom and where.
#[derive(Debug)]
pub struct Sample<'a> {
    /// The system.
    pub system: &'a dyn System,
    /// The case.
    pub case: Case,
    /// Its server.
    pub place: Place,
    /// The server's process.
    pub server: u32,
    /// How long is measured, where that can be chosen.
    pub measured: Duration,
}

impl Sample<'_> {
    /// Does it.
    ///
    /// # Errors
    /// What a system says, and every value that is lost or doubled.
    pub fn run(&self) -> Result<Numbers> {
        self.fill()?;
        match self.case {
            Case::Spread { nodes, rate } => self.spread(nodes, rate),
            Case::Stopped(nodes) => self.stopped(nodes),
            Case::Idle(nodes) => self.idle(nodes),
            Case::Reconnect(nodes) => self.reconnect(nodes),
            Case::Change(nodes) => self.change(nodes),
            Case::Cold(nodes) => self.cold(nodes),
            Case::Commits { writers, .. } => self.commits(writers),
        }
    }

    fn content(&self) -> Content {
        self.case.content()
    }

    fn writer(&self) -> Result<Box<dyn Writer>> {
        self.system.writer(&self.place)
    }

    fn cpu(&self) -> Result<Duration> {
        machine::cpu_of(self.server).ok_or_else(|| "the server's CPU time cannot be read".into())
    }

    fn resident(&self) -> Result<f64> {
        let kib = machine::resident_kib_of(self.server).ok_or("the server's memory cannot be read")?;
        Ok(kib as f64)
    }

    /// What is there before the case begins.
    fn fill(&self) -> Result<()> {
        let (content, mut writer) = (self.content(), self.writer()?);
        let all: Vec<(String, Vec<u8>)> =
            (0..content.keys as u64).map(|n| (key(n, content), value(0, 0.0, content.value))).collect();
        // 1 MiB is what etcd takes in one request.
        let most = writer.most().min((1 << 20) / (content.value + 64));
        all.chunks(most).try_for_each(|chunk| writer.commit(chunk))
    }

    /// Nodes that are connected and hold all there is.
    fn nodes(&self, at: &str, n: usize, together: &Arc<Together>) -> Result<Nodes> {
        let sights: Vec<Arc<Sight>> = (0..n).map(|node| Sight::new(node, together)).collect();
        let start = |sight: &Arc<Sight>| self.system.watcher(at, self.content(), sight.clone());
        let watchers = sights.iter().map(start).collect::<Result<Vec<_>>>()?;
        together.wait_whole(n, LIMIT)?;
        let nodes = Nodes { sights, watchers };
        nodes.wait_current()?;
        Ok(nodes)
    }

    fn spread(&self, n: usize, rate: u32) -> Result<Numbers> {
        let seconds = self.measured.as_secs_f64();
        let warm_up = (f64::from(rate) * (seconds / 4.0).min(1.0)).ceil() as u64;
        let commits = warm_up + (f64::from(rate) * seconds).ceil().max(4.0) as u64;
        let together = Arc::new(Together::new(warm_up));
        let nodes = self.nodes(&self.place.nodes, n, &together)?;
        let writers = (0..PACERS.min(rate as usize)).map(|_| self.writer()).collect::<Result<Vec<_>>>()?;
        let pace = Pace { rate: rate.into(), first: 1, warm_up, last: commits, content: self.content() };
        let (acks, server, own) = pace.keep(writers, || Ok((self.cpu()?, machine::cpu())))?;
        together.wait_seen(commits * n as u64, LIMIT)?;
        let events = ((commits - warm_up) * n as u64) as f64;
        let mut numbers = Numbers::default();
        numbers.set("cpu", (self.cpu()?.saturating_sub(server)).as_secs_f64() * 1e6 / events);
        numbers.set("nodes_cpu", (machine::cpu() - own).as_secs_f64() * 1e6 / events);
        let times = nodes.check(commits)?;
        let quarter = ((commits - warm_up) / 4).max(1) as u32;
        let part = |from: u32, to: u32| {
            let times = times.iter().filter(|(seq, _)| (from..to).contains(seq)).map(|(_, time)| *time);
            percentile(times.collect(), 0.5)
        };
        let (first, last) = (warm_up as u32 + 1, commits as u32 + 1);
        numbers.set("growth", part(last - quarter, last)? / part(first, first + quarter)?.max(1e-3));
        percentiles(&mut numbers, "", times.iter().map(|(_, time)| *time).collect())?;
        percentiles(&mut numbers, "ack_", acks)?;
        numbers.set("events", events);
        Ok(numbers)
    }

    fn stopped(&self, n: usize) -> Result<Numbers> {
        const RATE: u64 = 100;
        let (warm_up, measured) = (RATE, (RATE as f64 * self.measured.as_secs_f64()).ceil().max(4.0) as u64);
        let (half, stops) = (warm_up + measured, n.div_ceil(10));
        let together = Arc::new(Together::new(0));
        let nodes = self.nodes(&self.place.nodes, n, &together)?;
        let grown = |first: u64| -> Result<f64> {
            let writers = (0..PACERS).map(|_| self.writer()).collect::<Result<Vec<_>>>()?;
            let last = first + half - 1;
            let pace = Pace {
                rate: RATE as f64,
                first,
                warm_up: first + warm_up - 1,
                last,
                content: self.content(),
            };
            let before = self.resident()?;
            pace.keep(writers, || Ok(((), ())))?;
            together.wait_seen(last * n as u64, LIMIT)?;
            Ok(self.resident()? - before)
        };
        let without = grown(1)?;
        let proxy = Proxy::start(&self.place.nodes)?;
        let stopped = self.nodes(&proxy.at, stops, &Arc::new(Together::new(0)))?;
        proxy.refuse(true);
        proxy.hold();
        let with = grown(half + 1)?;
        let (last, start) = (2 * half, Instant::now());
        proxy.refuse(false);
        proxy.cut();
        let back = || stopped.sights.iter().all(|sight| sight.has_seen(last));
        wait(LIMIT, back).ok_or("those that had stopped do not have the last commit")?;
        let mut numbers = Numbers::default();
        numbers.set("back", start.elapsed().as_secs_f64() * 1e3);
        numbers.set("rss", (with - without).max(0.0) / stops as f64);
        let times = nodes.check(last)?;
        let part = |first: u64| {
            let measured = (first + warm_up) as u32..(first + half) as u32;
            let times = times.iter().filter(|(seq, _)| measured.contains(seq)).map(|(_, time)| *time);
            percentile(times.collect(), 0.99)
        };
        let (alone, beside) = (part(1)?, part(half + 1)?);
        numbers.set("p99_without", alone);
        numbers.set("p99", beside);
        numbers.set("moved", beside / alone.max(1e-3));
        Ok(numbers)
    }

    fn idle(&self, n: usize) -> Result<Numbers> {
        // What filling left behind may settle.
        thread::sleep(Duration::from_secs(1));
        let (before, own) = (self.resident()?, machine::resident_kib().unwrap_or(0));
        let start = Instant::now();
        let nodes = self.nodes(&self.place.nodes, n, &Arc::new(Together::new(0)))?;
        let mut numbers = Numbers::default();
        numbers.set("connect", start.elapsed().as_secs_f64() * 1e3);
        thread::sleep(Duration::from_secs(2));
        let (cpu, start) = (self.cpu()?, Instant::now());
        thread::sleep(self.measured);
        numbers.set("cpu", (self.cpu()? - cpu).as_secs_f64() * 1e3 / start.elapsed().as_secs_f64());
        numbers.set("rss", (self.resident()? - before) / n as f64);
        let own = machine::resident_kib().unwrap_or(0).saturating_sub(own);
        numbers.set("nodes_rss", own as f64 / n as f64);
        nodes.check(0)?;
        Ok(numbers)
    }

    /// Bytes in each second that pass for a node when nothing happens.
    fn idle_bytes(&self, proxy: &Proxy, n: usize) -> f64 {
        // What connecting left behind may settle.
        thread::sleep(Duration::from_millis(1500));
        let (bytes, start) = (proxy.bytes(), Instant::now());
        thread::sleep(Duration::from_secs(2));
        (proxy.bytes() - bytes) as f64 / start.elapsed().as_secs_f64() / n as f64
    }

    fn reconnect(&self, n: usize) -> Result<Numbers> {
        let proxy = Proxy::start(&self.place.nodes)?;
        let nodes = self.nodes(&proxy.at, n, &Arc::new(Together::new(0)))?;
        let mut numbers = Numbers::default();
        numbers.set("idle_bytes", self.idle_bytes(&proxy, n));
        let (cpu, bytes, connections) = (self.cpu()?, proxy.bytes(), proxy.connections());
        let start = Instant::now();
        proxy.cut();
        wait(LIMIT, || proxy.connections() >= connections + n as u64)
            .ok_or("not all nodes connected again")?;
        nodes.wait_current()?;
        numbers.set("ms", start.elapsed().as_secs_f64() * 1e3);
        // The last words of those that were last.
        thread::sleep(Duration::from_millis(100));
        numbers.set("bytes", (proxy.bytes() - bytes) as f64 / n as f64);
        numbers.set("cpu", (self.cpu()? - cpu).as_secs_f64() * 1e6 / n as f64);
        nodes.check(0)?;
        Ok(numbers)
    }

    fn change(&self, n: usize) -> Result<Numbers> {
        const COMMITS: u64 = 20;
        let proxy = Proxy::start(&self.place.nodes)?;
        let together = Arc::new(Together::new(0));
        let nodes = self.nodes(&proxy.at, n, &together)?;
        let (mut writer, content) = (self.writer()?, self.content());
        let mut commit = |seq| {
            let value = value(seq, machine::clock(), content.value);
            writer.commit(&[(key(seq, content), value)])
        };
        let mut numbers = Numbers::default();
        let idle = self.idle_bytes(&proxy, n);
        numbers.set("idle_bytes", idle);
        let (bytes, start) = (proxy.bytes(), Instant::now());
        for seq in 1..=COMMITS {
            commit(seq)?;
            together.wait_seen(seq * n as u64, LIMIT)?;
            thread::sleep(Duration::from_millis(20));
        }
        let carried = (proxy.bytes() - bytes) as f64 / n as f64;
        numbers.set("bytes", (carried - idle * start.elapsed().as_secs_f64()).max(0.0) / COMMITS as f64);
        // All are away while one key changes.
        let connections = proxy.connections();
        proxy.refuse(true);
        proxy.cut();
        commit(COMMITS + 1)?;
        let bytes = proxy.bytes();
        proxy.refuse(false);
        together.wait_seen((COMMITS + 1) * n as u64, LIMIT)?;
        wait(LIMIT, || proxy.connections() >= connections + n as u64)
            .ok_or("not all nodes connected again")?;
        nodes.wait_current()?;
        thread::sleep(Duration::from_millis(100));
        numbers.set("away_bytes", (proxy.bytes() - bytes) as f64 / n as f64);
        nodes.check(COMMITS + 1)?;
        Ok(numbers)
    }

    /// A node that has all ends, or a thousand would need 10 GiB.
    fn cold(&self, n: usize) -> Result<Numbers> {
        let (tell, told) = mpsc::channel();
        let together = Arc::new(Together::telling(tell));
        let sights: Vec<Arc<Sight>> = (0..n).map(|node| Sight::new(node, &together)).collect();
        let open: Mutex<Vec<Option<Box<dyn Watcher>>>> = Mutex::new((0..n).map(|_| None).collect());
        let open_now = || open.lock().unwrap_or_else(PoisonError::into_inner);
        let (cpu, own, start) = (self.cpu()?, machine::cpu(), Instant::now());
        let took = thread::scope(|scope| -> Result<Duration> {
            let open_now = &open_now;
            let ends = scope.spawn(move || {
                for _ in 0..n {
                    let whole = told.recv_timeout(LONG).map_err(|_| "no node became whole in time")?;
                    // Its entry may not be there yet: it was made a moment ago.
                    let ended =
                        wait(LIMIT, || open_now()[whole].is_some()).and_then(|()| open_now()[whole].take());
                    drop(ended);
                }
                Ok::<_, &str>(start.elapsed())
            });
            for sight in &sights {
                let watcher = self.system.watcher(&self.place.nodes, self.content(), sight.clone())?;
                open_now()[sight.node] = Some(watcher);
            }
            Ok(ends.join().map_err(|_| "a thread panicked")??)
        })?;
        let mut numbers = Numbers::default();
        numbers.set("s", took.as_secs_f64());
        numbers.set("cpu", (self.cpu()? - cpu).as_secs_f64() * 1e3 / n as f64);
        numbers.set("nodes_cpu", (machine::cpu() - own).as_secs_f64() * 1e3 / n as f64);
        numbers.set(
            "rss",
            machine::peak_kib_of(self.server).ok_or("the server's memory cannot be read")? as f64 / 1024.0,
        );
        sights.iter().try_for_each(|sight| sight.check(0).map(drop))?;
        Ok(numbers)
    }

    fn commits(&self, n: usize) -> Result<Numbers> {
        let writers = (0..n).map(|_| self.writer()).collect::<Result<Vec<_>>>()?;
        let (next, content) = (AtomicU64::new(1), self.content());
        let warm_up = self.measured / 4;
        let start = Instant::now();
        let (times, cpu) = thread::scope(|scope| -> Result<_> {
            let write = |mut writer: Box<dyn Writer>| {
                let next = &next;
                move || -> Result<Vec<u32>> {
                    let mut times = Vec::new();
                    while start.elapsed() < warm_up + self.measured {
                        let seq = next.fetch_add(1, Ordering::Relaxed);
                        let before = Instant::now();
                        writer.commit(&[(key(seq, content), value(seq, machine::clock(), content.value))])?;
                        if before - start >= warm_up {
                            times.push(before.elapsed().as_micros() as u32);
                        }
                    }
                    Ok(times)
                }
            };
            let threads: Vec<_> = writers.into_iter().map(|writer| scope.spawn(write(writer))).collect();
            thread::sleep(warm_up);
            let cpu = self.cpu()?;
            let times = threads.into_iter().map(|t| t.join().map_err(|_| "a writer panicked")?);
            Ok((times.collect::<Result<Vec<_>>>()?.concat(), cpu))
        })?;
        let mut numbers = Numbers::default();
        numbers.set("rate", times.len() as f64 / (start.elapsed() - warm_up).as_secs_f64());
        numbers.set("cpu", (self.cpu()? - cpu).as_secs_f64() * 1e6 / times.len().max(1) as f64);
        percentiles(&mut numbers, "", times)?;
        Ok(numbers)
    }
}

struct Nodes {
    sights: Vec<Arc<Sight>>,
    watchers: Vec<Box<dyn Watcher>>,
}

impl Nodes {
    fn wait_current(&self) -> Result<()> {
        let mut at = 0;
        wait(LIMIT, || {
            while self.watchers.get(at).is_some_and(|node| node.is_current()) {
                at += 1;
            }
            at >= self.watchers.len()
        })
        .ok_or_else(|| format!("node {at} is not current after {LIMIT:?}").into())
    }

    /// All times, if every node saw every commit once.
    fn check(&self, commits: u64) -> Result<Vec<(u32, u32)>> {
        Ok(self.sights.iter().map(|sight| sight.check(commits)).collect::<Result<Vec<_>>>()?.concat())
    }
}

/// Commits at a steady rate, whatever the answers take.
struct Pace {
    rate: f64,
    /// Number of the first commit.
    first: u64,
    /// The last that is not measured.
    warm_up: u64,
    last: u64,
    content: Content,
}

impl Pace {
    /// Calls `begin` before the first commit that is measured; times until commits were acknowledged.
    fn keep<A: Send, B: Send>(
        &self,
        writers: Vec<Box<dyn Writer>>,
        begin: impl Fn() -> Result<(A, B)> + Sync,
    ) -> Result<(Vec<u32>, A, B)> {
        let start = machine::clock() + 0.05;
        let (begun, next) = (Mutex::new(None), AtomicU64::new(self.first));
        let write = |mut writer: Box<dyn Writer>| -> Result<Vec<u32>> {
            let mut times = Vec::new();
            loop {
                let seq = next.fetch_add(1, Ordering::Relaxed);
                if seq > self.last {
                    return Ok(times);
                }
                let due = start + (seq - self.first) as f64 / self.rate;
                let early = due - machine::clock();
                if early > 0.0 {
                    thread::sleep(Duration::from_secs_f64(early));
                }
                if seq == self.warm_up + 1 {
                    *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(begin()?);
                }
                let now = machine::clock();
                // What all writers were too busy for was due all the same.
                let issued = if now - due > LATE && early <= 0.0 { due } else { now };
                writer.commit(&[(key(seq, self.content), value(seq, issued, self.content.value))])?;
                if seq > self.warm_up {
                    times.push(((machine::clock() - issued) * 1e6) as u32);
                }
            }
        };
        let times = thread::scope(|scope| -> Result<Vec<u32>> {
            let threads: Vec<_> = writers.into_iter().map(|writer| scope.spawn(|| write(writer))).collect();
            let times = threads.into_iter().map(|t| t.join().map_err(|_| "a writer panicked")?);
            Ok(times.collect::<Result<Vec<_>>>()?.concat())
        })?;
        let begun = begun.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (a, b) = begun.ok_or("nothing was measured")?;
        Ok((times, a, b))
    }
}

/// Of microseconds, in milliseconds.
fn percentile(mut times: Vec<u32>, share: f64) -> Result<f64> {
    if times.is_empty() {
        return Err("nothing was measured".into());
    }
    let at = ((times.len() - 1) as f64 * share) as usize;
    Ok(f64::from(*times.select_nth_unstable(at).1) / 1e3)
}

fn percentiles(numbers: &mut Numbers, prefix: &str, times: Vec<u32>) -> Result<()> {
    numbers.set(&format!("{prefix}p50"), percentile(times.clone(), 0.5)?);
    numbers.set(&format!("{prefix}p99"), percentile(times, 0.99)?);
    Ok(())
}
