//! Whether this thread is a hot sender: one that comes back from a write sooner than the write took.
//!
//! A pipe knows that of itself (`tx`). A thread that spreads its messages over many pipes or sockets (a
//! publisher, a dispatcher) is as busy although each of its pipes is not: this looks at the thread.
//!
//! Owns: one record for each thread. Never: keeps a message back by itself; `flush` decides.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::tx::{MOST, streak};

#[derive(Clone, Copy)]
struct Heat {
    ended: Option<Instant>,
    cost: Duration,
    streak: u32,
}

thread_local! {
    static HEAT: Cell<Heat> = const { Cell::new(Heat { ended: None, cost: Duration::ZERO, streak: 0 }) };
}

/// The writes of one call, which may go to many pipes: judged once, and counted as one.
#[derive(Debug, Default)]
pub(super) struct Pass {
    now: Option<Instant>,
    hot: Option<bool>,
    wrote: Option<(Instant, Duration)>,
    paid: bool,
}

impl Pass {
    /// When the call's first look at the clock was.
    pub(super) fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }

    /// Whether this thread is hot.
    pub(super) fn hot(&mut self) -> bool {
        if let Some(hot) = self.hot {
            return hot;
        }
        let now = self.now();
        // While a thread's locals are being destroyed it is as cold as it can be.
        let hot = HEAT
            .try_with(|heat| {
                let h = heat.get();
                let gap = h.ended.map_or(Duration::MAX, |ended| now.saturating_duration_since(ended));
                let (streak, hot) = streak(h.streak, gap, h.cost);
                heat.set(Heat { streak, ..h });
                hot
            })
            .unwrap_or(false);
        self.hot = Some(hot);
        hot
    }

    /// A write of this call. `paid`: of many messages that had gathered.
    pub(super) fn wrote(&mut self, ended: Instant, cost: Duration, paid: bool) {
        let sum = self.wrote.map_or(cost, |(_, sum)| sum + cost);
        self.wrote = Some((ended, sum));
        self.paid |= paid;
    }

    /// The call is over.
    pub(super) fn done(self) {
        if let Some((ended, cost)) = self.wrote {
            let _ = HEAT.try_with(|heat| {
                let streak = if self.paid { MOST } else { heat.get().streak };
                heat.set(Heat { ended: Some(ended), cost, streak });
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tx::{FORGET, STREAK};
    use super::*;

    fn call(at: Instant, cost: u64) -> bool {
        let mut pass = Pass { now: Some(at), ..Pass::default() };
        let hot = pass.hot();
        if !hot {
            pass.wrote(at + Duration::from_micros(cost), Duration::from_micros(cost), false);
        }
        pass.done();
        hot
    }

    #[test]
    fn a_thread_becomes_hot_by_coming_back_at_once_and_cold_by_a_pause() {
        std::thread::spawn(|| {
            let mut at = Instant::now();
            for _ in 0..STREAK + 1 {
                assert!(!call(at, 5));
                at += Duration::from_micros(6); // 1 us after its write of 5
            }
            assert!(call(at, 5));
            let mut at = at + Duration::from_millis(1);
            assert!(!call(at, 5), "after a pause the first leaves at once");
            at += Duration::from_micros(6);
            assert!(!call(at, 5), "it was hot for one message only");
            at += FORGET + Duration::from_micros(6);
            for _ in 0..STREAK + 1 {
                assert!(!call(at, 5), "after a long pause all begins anew");
                at += Duration::from_micros(6);
            }
            assert!(call(at, 5));
        })
        .join()
        .expect("the assertions hold");
    }

    #[test]
    fn a_thread_whose_messages_gathered_is_hot_again_at_the_second_one_after_a_pause() {
        std::thread::spawn(|| {
            let mut at = Instant::now();
            let five = Duration::from_micros(5);
            let mut pass = Pass::default();
            pass.wrote(at, five, true);
            pass.done();
            for _ in 0..3 {
                at += Duration::from_millis(1);
                assert!(!call(at, 5));
                at += five + Duration::from_micros(1);
                assert!(call(at, 5));
                let mut pass = Pass::default();
                pass.wrote(at, five, true);
                pass.done();
            }
        })
        .join()
        .expect("the assertions hold");
    }

    #[test]
    fn one_call_to_many_pipes_is_one_return() {
        std::thread::spawn(|| {
            let at = Instant::now();
            let mut pass = Pass { now: Some(at), ..Pass::default() };
            for n in 0..100 {
                assert!(!pass.hot(), "a lone message goes to all at once");
                pass.wrote(at + Duration::from_micros(n), Duration::from_micros(1), false);
            }
            pass.done();
        })
        .join()
        .expect("the assertions hold");
    }
}
