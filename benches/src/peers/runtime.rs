//! The tokio runtime of a side's process, for contestants that are async.
//!
//! As many workers as there are CPUs, tokio's default. Owns: the runtime. Never: runs for a blocking
//! contestant.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

/// Runs `job` on the calling thread, and what it spawns on the workers.
pub(super) fn block_on<F: Future>(job: F) -> F::Output {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let make = || Builder::new_multi_thread().enable_all().build();
    RUNTIME
        .get_or_init(|| make().expect("a process that has just begun has room for a runtime"))
        .block_on(job)
}

/// Runs all of `job` on the calling thread, which also polls for the runtime: one of its own.
pub(super) fn block_on_one<F: Future>(job: F) -> F::Output {
    let make = || Builder::new_current_thread().enable_all().build();
    make().expect("a process that has just begun has room for a runtime").block_on(job)
}
