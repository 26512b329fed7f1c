//! The contestants: spanwire, the peers of this build, and the limits.
//!
//! A peer lives in one file that binds what it needs of the C library by hand. Its unsafe stays there; what
//! comes out is safe. Owns: the list. Never: anything that measures.

mod limit;
#[cfg(feature = "peers")]
mod nanomsg;
#[cfg(feature = "peers")]
mod nng;
mod ours;
#[cfg(feature = "peers")]
mod zmq;

use crate::contestant::Entry;

/// All of them, ours first.
pub fn all() -> Vec<Box<dyn Entry>> {
    vec![
        Box::new(ours::Spanwire),
        #[cfg(feature = "peers")]
        Box::new(zmq::Zmq),
        #[cfg(feature = "peers")]
        Box::new(nanomsg::Nanomsg),
        #[cfg(feature = "peers")]
        Box::new(nng::Nng),
        Box::new(limit::Raw),
        Box::new(limit::RawTick),
        Box::new(limit::Channel),
    ]
}

/// The text of a C string that a library keeps for ever.
///
/// # Safety
/// `text` is null, or ends with a zero and stays as it is.
#[cfg(feature = "peers")]
unsafe fn text(text: *const libc::c_char) -> String {
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: the caller says so.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
