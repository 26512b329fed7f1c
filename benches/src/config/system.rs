//! What is compared: a server that holds configuration, and nodes that watch all of it.
//!
//! Owns: the interface that every system is measured through. Never: measures.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use super::case::{Case, Content};
use super::sight::Sight;
use crate::{Result, machine};

/// Where a server is: `host:port` for nodes, and for who commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// For nodes.
    pub nodes: String,
    /// For writers.
    pub control: String,
}

/// A server process. Dropped, it is ended.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub child: Child,
    /// Where it is.
    pub place: Place,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server process that ends with this one.
///
/// # Errors
/// The system's.
pub fn start(command: &mut Command) -> std::io::Result<Child> {
    // SAFETY: between fork and exec only one system call is made, which touches no memory.
    unsafe { command.pre_exec(machine::end_with_parent) };
    command.spawn()
}

/// One that commits, on a connection of its own.
pub trait Writer: Send {
    /// Commits these keys and values together, and waits until they are acknowledged.
    ///
    /// # Errors
    /// When they are not.
    fn commit(&mut self, changes: &[(String, Vec<u8>)]) -> Result<()>;

    /// The most keys that one commit takes.
    fn most(&self) -> usize;
}

/// One that watches everything, on a connection of its own, and connects again by itself. Dropped, it ends.
pub trait Watcher: Send {
    /// It is connected, holds what the server had then, and gets what comes.
    fn is_current(&self) -> bool;
}

/// One to compare.
pub trait System: Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Its version.
    fn version(&self) -> String;

    /// Whether a case says something of it. Default: yes.
    fn measures(&self, _: &Case) -> bool {
        true
    }

    /// Starts a server with an empty store in `dir`, whose acknowledged commits survive a power cut if `dir` does.
    ///
    /// # Errors
    /// When it does not start.
    fn serve(&self, dir: &Path) -> Result<Server>;

    /// One that commits.
    ///
    /// # Errors
    /// When it does not connect.
    fn writer(&self, place: &Place) -> Result<Box<dyn Writer>>;

    /// One that watches at `nodes`; it may not be connected yet. `content` is what it will find.
    ///
    /// # Errors
    /// When it cannot be made.
    fn watcher(&self, nodes: &str, content: Content, sight: Arc<Sight>) -> Result<Box<dyn Watcher>>;
}

impl fmt::Debug for dyn System + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All that this build has.
///
/// # Errors
/// When one cannot be had though this build is meant to have it.
pub fn all() -> Result<Vec<Box<dyn System>>> {
    let runtime = Arc::new(tokio::runtime::Builder::new_multi_thread().enable_all().build()?);
    Ok(vec![
        Box::new(super::ours::Spanwire { tasks: Some(runtime.clone()) }),
        Box::new(super::raw::Raw { tasks: Some(runtime.clone()) }),
        #[cfg(feature = "peers-etcd")]
        Box::new(super::etcd::Etcd::new(runtime)),
        Box::new(super::ours::Spanwire { tasks: None }),
        Box::new(super::raw::Raw { tasks: None }),
    ])
}
