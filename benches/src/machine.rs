//! The machine, and what it cost: CPU time of this process, time that others took.
//!
//! Reads `getrusage` and, where there is one, `/proc`. Owns: the unsafe of `getrusage`, `clock_gettime`, `uname`,
//! `setrlimit` and `prctl`. Never: changes anything but how many files may be open, and when a child ends.

use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;
use std::time::Duration;

/// User and system time of this process, all threads.
pub fn cpu() -> Duration {
    usage(libc::RUSAGE_SELF)
}

/// User and system time of the children that were waited for.
pub fn cpu_of_children() -> Duration {
    usage(libc::RUSAGE_CHILDREN)
}

fn usage(who: libc::c_int) -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a valid place for a rusage, and all zeroes are a valid one, should the call fail.
    let usage = unsafe {
        libc::getrusage(who, usage.as_mut_ptr());
        usage.assume_init()
    };
    let of = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// User and system time of another process, all threads; `None` when there is none, or the system does not tell.
pub fn cpu_of(process: u32) -> Option<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for a clock's name, and one for a timespec.
    let told = unsafe {
        libc::clock_getcpuclockid(process.try_into().ok()?, &mut clock) == 0
            && libc::clock_gettime(clock, &mut time) == 0
    };
    told.then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// In a child before it becomes another program: it ends when the thread that started it does. Linux only.
///
/// # Errors
/// None; the form is that of `pre_exec`.
pub fn end_with_parent() -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    // SAFETY: sets a flag of this process, and touches no memory.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    Ok(())
}

/// Seconds on a clock that all processes share.
pub fn clock() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for a timespec. The call cannot fail: every system has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Lets this process, and those that it starts, open as many files as they may; tells how many.
pub fn raise_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a place for an rlimit, and then a whole one. Failure leaves the limit as it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            let higher = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &higher) == 0 {
                limit = higher;
            }
        }
    }
    limit.rlim_cur
}

/// How often threads of this process other than the calling one went to sleep, so woke up; where `/proc` tells.
pub fn wakes_of_others() -> Option<u64> {
    let me = fs::read_link("/proc/thread-self").ok()?;
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        if Some(task.file_name().as_os_str()) == me.file_name() {
            continue;
        }
        // A thread may end meanwhile.
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Some(sum)
}

/// Resident memory of this process in KiB, where `/proc` tells.
pub fn resident_kib() -> Option<u64> {
    memory_kib("self", "VmRSS:")
}

/// The same of another process.
pub fn resident_kib_of(process: u32) -> Option<u64> {
    memory_kib(&process.to_string(), "VmRSS:")
}

/// The most that was ever resident of another process, in KiB, where `/proc` tells.
pub fn peak_kib_of(process: u32) -> Option<u64> {
    memory_kib(&process.to_string(), "VmHWM:")
}

fn memory_kib(process: &str, what: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(what))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// System and kernel, as `uname` tells.
pub fn kernel() -> String {
    let mut name = MaybeUninit::<libc::utsname>::zeroed();
    // SAFETY: `name` is a valid place for a utsname, and all zeroes (empty strings) are a valid one.
    let name = unsafe {
        libc::uname(name.as_mut_ptr());
        name.assume_init()
    };
    let text = |field: &[libc::c_char]| {
        // SAFETY: uname ends every field with a zero, and so do the zeroes it started from.
        unsafe { CStr::from_ptr(field.as_ptr()) }.to_string_lossy().into_owned()
    };
    format!("{} {} {}", text(&name.sysname), text(&name.release), text(&name.machine))
}

/// How many CPUs may run this.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The processor, where `/proc` tells.
pub fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    model.unwrap_or("unknown processor").to_owned()
}

/// The load average of the last minute, where `/proc` tells.
pub fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// How the time of all CPUs was spent so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    all: u64,
    busy: u64,
    stolen: u64,
    own: Duration,
}

impl Times {
    /// Until now; zeroes where `/proc` does not tell.
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal; guest time is part of user time.
        let n: Vec<u64> = first.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
        let all: u64 = n.iter().sum();
        let of = |i: usize| n.get(i).copied().unwrap_or(0);
        Times { all, busy: all - of(3) - of(4) - of(7), stolen: of(7), own: cpu() + cpu_of_children() }
    }

    /// What was spent between `before` and this.
    pub fn since(&self, before: &Times) -> Spent {
        let ticks = 100.0;
        let all = (self.all.saturating_sub(before.all) as f64).max(1.0);
        let own = self.own.saturating_sub(before.own).as_secs_f64() * ticks;
        let busy = self.busy.saturating_sub(before.busy) as f64;
        Spent {
            foreign: ((busy - own) / all).max(0.0),
            stolen: self.stolen.saturating_sub(before.stolen) as f64 / all,
        }
    }
}

/// Shares of all CPU time that were not ours.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Spent by other processes and the kernel for them: 0 to 1.
    pub foreign: f64,
    /// Taken by the host: 0 to 1.
    pub stolen: f64,
}

impl Spent {
    /// Whether others took more than a twentieth: then a sample says little, a round trip least of all.
    pub fn is_noisy(&self) -> bool {
        self.foreign + self.stolen > 0.05
    }
}
