//! Panics in code that is not ours: a user's transport, wire, protocol or check.
//!
//! In a transport or a wire it costs the one connection, as an error would. In a protocol it costs the socket:
//! its state is not to be trusted any more, so the driver closes it, and everybody who waits is told. Where that
//! was in a caller's thread it unwinds on, as any panic does. Other sockets, and the driver, are unharmed.
//!
//! Owns: the guard around such code. Never: hides the panic's own message, which goes where the program's panic
//! hook sends it.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

use super::core::{Core, Fresh, Guard, Phase, Trash};
use super::drive::Drive;
use super::driver::driver;
use super::ending::count_gone;
use crate::events::Event;
use crate::protocol::{Cx, Effects, PipeId, Protocol, ProtocolInfo, Readiness, Reason, Reject};

/// Runs code of a transport or a wire; its panic becomes an error.
pub(crate) fn contain<R>(f: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| Err(io::Error::other(text(&*payload))))
}

/// Drops what may be a user's.
pub(crate) fn dispose<T>(what: T) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(what)));
}

fn text(payload: &(dyn Any + Send)) -> String {
    let said = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    said.map_or_else(|| "it panicked".into(), |text| format!("it panicked: {text}"))
}

/// Goes off when it is dropped by a panic; else it is forgotten.
struct Bomb<'a>(&'a Core);

impl Drop for Bomb<'_> {
    fn drop(&mut self) {
        self.0.ruined();
    }
}

impl Core {
    /// Runs code of the protocol. It costs nothing where that does not panic.
    #[inline]
    pub(crate) fn guard<R>(&self, f: impl FnOnce() -> R) -> R {
        let bomb = Bomb(self);
        let result = f();
        std::mem::forget(bomb);
        result
    }

    /// Drives with `d`, and gives it back, also when that panics: others wait for it, and the socket's place in the
    /// driver's poll goes by the number of a descriptor in it. Then the driver buries the socket, and it unwinds on.
    pub(crate) fn with_loop<'a, R>(
        &'a self,
        mut d: Box<Drive>,
        f: impl FnOnce(&mut Drive) -> (Guard<'a>, R),
    ) -> (Guard<'a>, R) {
        match catch_unwind(AssertUnwindSafe(|| f(&mut d))) {
            Ok((mut st, result)) => {
                self.give(&mut st, d);
                (st, result)
            }
            Err(payload) => {
                self.give(&mut self.lock(), d);
                self.ruined(); // it looks once more, if it was faster
                resume_unwind(payload)
            }
        }
    }

    /// The protocol has panicked: the lock is held, so the driver does the rest.
    #[cold]
    fn ruined(&self) {
        self.panicked.store(true, Ordering::Release);
        if let (Some(me), Ok(driver)) = (self.me.upgrade(), driver()) {
            driver.post(me);
        }
    }

    /// One of the driver's calls. `None`: it panicked, and the socket is buried.
    pub(crate) fn survive<R>(&self, f: impl FnOnce(&Self) -> R) -> Option<R> {
        let result = catch_unwind(AssertUnwindSafe(|| f(self))).ok();
        if result.is_none() || self.panicked.load(Ordering::Acquire) {
            let _ = catch_unwind(AssertUnwindSafe(|| self.bury()));
        }
        result
    }

    /// Ends a socket whose protocol has panicked, without a word to that.
    pub(crate) fn bury(&self) {
        let mut st = self.lock();
        if st.ruined {
            return self.finish(st);
        }
        st.ruined = true;
        let dead = std::mem::replace(&mut st.protocol, Box::new(Ruin(self.info)));
        let fx = std::mem::take(&mut st.fx);
        st.fx = Effects { drops: fx.drops, own: fx.own, rng: fx.rng, ..Effects::default() };
        st.phase = Phase::Closed;
        for id in st.pipes.ids() {
            let Some(mut p) = st.pipes.remove(id) else { continue };
            let (queued, _) = p.tx.writer.as_ref().map_or((p.taken_messages, 0), |w| w.taken());
            let lost = queued + p.out.len() + p.inq.len();
            count_gone(&mut st, &p, lost);
            st.fresh.push(Fresh::Drop { token: p.tx.token });
            if p.ended.is_none() {
                self.say_gone(&mut st, id, p.info.endpoint, p.info.facts.remote.clone(), Reason::Local);
            }
            st.trash.push(Trash::Writer(p.tx.writer.take()));
        }
        st.blocked = 0;
        for endpoint in st.endpoints.keys().copied().collect::<Vec<_>>() {
            self.end_endpoint(&mut st, endpoint);
        }
        st.emit(Event::Panicked);
        st.alarms.clear();
        st.subscribers.clear();
        st.fx.wakes.clear();
        st.lead.wake_all();
        self.finish(st);
        dispose(dead);
    }
}

/// In the place of a protocol that has panicked.
struct Ruin(ProtocolInfo);

impl Protocol for Ruin {
    fn info(&self) -> ProtocolInfo {
        self.0
    }
    fn pipe_opened(&mut self, _: &mut Cx<'_>, _: PipeId) -> Result<(), Reject> {
        Err(Reason::Local)
    }
    fn pipe_closed(&mut self, _: &mut Cx<'_>, _: PipeId) {}
    fn readable(&mut self, _: &mut Cx<'_>, _: PipeId) {}
    fn readiness(&self) -> Readiness {
        Readiness::default()
    }
}
