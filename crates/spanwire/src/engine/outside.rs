//! A runtime in the driver's place: its poll holds that of a socket, and a task of it drives the socket when that has
//! an event.
//!
//! Whoever waits for the socket is woken on the runtime's own thread, so nothing goes through the driver's. All that no
//! descriptor announces stays with the driver: posts, ticks, what is left to gather, and deadlines, which the runtime
//! tells it of. Both take the loop as the driver does ([`Lead::take_as_driver`](super::lead::Lead::take_as_driver)), so
//! only one drives at a time.
//!
//! Owns: the change from the one to the other. Never: knows which runtime it is.

use std::sync::atomic::Ordering;

use super::core::{Core, Guard};
use super::driver::driver;
use crate::error::Error;

impl Core {
    /// From here on a runtime's poll announces the socket. Dropping `kept` ends that; the socket does so when it closes.
    /// `false`: another runtime does already.
    pub(crate) fn go_outside(&self, kept: Box<dyn Send>) -> Result<bool, Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        let mut st = self.lock();
        if st.is_closed() {
            return Err(Error::Closed);
        }
        if self.link.outside.swap(true, Ordering::Relaxed) {
            drop(st); // and then `kept`, which may wake
            return Ok(false);
        }
        st.outside = Some(kept);
        if st.lead.watched() {
            self.link.nested.set(false);
        }
        self.post_and_finish(st); // an event that the driver had seen is not lost
        Ok(true)
    }

    pub(crate) fn is_outside(&self) -> bool {
        self.look_at(|_| self.link.outside.load(Ordering::Relaxed))
    }

    /// The runtime's task drives. `true`: there was not yet an end.
    pub(crate) fn drive_outside(&self) -> bool {
        if self.forked() {
            return false;
        }
        let mut st = self.lock();
        let Some(d) = st.lead.take_as_driver() else { return false };
        let (mut st, driven) = self.drive_on(st, d);
        // The driver has the clock. It is told only of what is due before it comes by anyway.
        let sooner = driven.due.is_some_and(|due| st.driver_until.is_none_or(|until| due < until));
        st.polled_until = if sooner { driven.due } else { st.driver_until };
        if sooner {
            self.post_and_finish(st);
        } else {
            self.finish(st);
        }
        driven.again
    }

    /// The runtime ends, or the socket closes: the driver watches again.
    pub(crate) fn come_back(&self) {
        if self.forked() {
            return;
        }
        let mut st = self.lock();
        if !self.link.outside.swap(false, Ordering::Relaxed) {
            return self.finish(st);
        }
        let kept = st.outside.take();
        if st.lead.watched() {
            self.link.nested.set(true);
        }
        self.post_and_finish(st); // what was announced to the runtime alone
        drop(kept); // it may wake
    }

    /// Leaves, and puts the socket before the driver.
    fn post_and_finish<'a>(&'a self, mut st: Guard<'a>) {
        let posted = std::mem::replace(&mut st.lead.posted, true);
        self.finish(st);
        if !posted && let (Some(me), Ok(driver)) = (self.me.upgrade(), driver()) {
            driver.post(me);
        }
    }
}
