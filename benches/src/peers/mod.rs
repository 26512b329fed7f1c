//! The contestants: spanwire, the peers of this build, and the limits.
//!
//! A peer lives in one file; C libraries are bound there by hand, as far as they are needed, and their unsafe
//! stays there. Owns: the list. Never: anything that measures.

mod limit;
#[cfg(feature = "peers-c")]
mod nanomsg;
#[cfg(feature = "peers-c")]
mod nng;
mod ours;
mod ours_async;
mod ours_batch;
mod ours_spin;
mod runtime;
#[cfg(feature = "peers-rust")]
mod rzmq;
#[cfg(feature = "peers-c")]
mod zmq;
#[cfg(feature = "peers-rust")]
mod zmqrs;

use crate::contestant::Entry;

/// All of them, ours first.
pub fn all() -> Vec<Box<dyn Entry>> {
    vec![
        Box::new(ours::Spanwire),
        Box::new(ours_async::SpanwireAsync { driven: false }),
        Box::new(ours_async::SpanwireAsync { driven: true }),
        Box::new(ours_batch::SpanwireBatch),
        Box::new(ours_spin::SpanwireSpin),
        #[cfg(feature = "peers-c")]
        Box::new(zmq::Zmq),
        #[cfg(feature = "peers-c")]
        Box::new(nanomsg::Nanomsg),
        #[cfg(feature = "peers-c")]
        Box::new(nng::Nng),
        #[cfg(feature = "peers-rust")]
        Box::new(rzmq::Rzmq),
        #[cfg(feature = "peers-rust")]
        Box::new(zmqrs::ZmqRs),
        Box::new(limit::Raw),
        Box::new(limit::RawTick),
        Box::new(limit::Framed),
        Box::new(limit::Channel),
    ]
}

/// One socket for several threads, for libraries whose sockets belong to one at a time.
#[cfg(feature = "peers-c")]
struct Locked<P>(std::sync::Arc<std::sync::Mutex<P>>);

#[cfg(feature = "peers-c")]
impl<P> Locked<P> {
    fn shared(push: P, n: usize) -> Vec<Self> {
        let push = std::sync::Arc::new(std::sync::Mutex::new(push));
        (0..n).map(|_| Locked(push.clone())).collect()
    }
}

#[cfg(feature = "peers-c")]
impl<P: crate::contestant::Push> crate::contestant::Push for Locked<P> {
    async fn send(&mut self, body: &[u8]) -> crate::Result<()> {
        let mut push = self.0.lock().map_err(|_| "another sender panicked")?;
        // A blocking send, that is over when it was polled: no lock is held across a wait for a wake.
        crate::contestant::at_once(push.send(body))
    }
}

/// The text of a C string that a library keeps for ever.
///
/// # Safety
/// `text` is null, or ends with a zero and stays as it is.
#[cfg(feature = "peers-c")]
unsafe fn text(text: *const libc::c_char) -> String {
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: the caller says so.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
