//! A replica inside a program: configuration as values, whole revisions at a time, without files.
//!
//! A [`Node`] connects, verifies, keeps a cache on disk if it is given a folder, and shows the newest revision that
//! its validator accepted. Readers pin it ([`Node::snapshot`]), watch it ([`Node::watch`]), or wait for a position
//! ([`Node::wait_for`]). Everything works with any executor or none: the node has one thread of its own.
//!
//! ```
//! # use spanwire::Socket;
//! # use spanwire_config::{Distributor, Settings, NsAuthority, NsSettings, Opening, Id};
//! use std::time::Duration;
//! use spanwire_config::Node;
//!
//! # let (authority, _) = NsAuthority::new(NsSettings::default(), Opening::Unknown, Id::default());
//! # let server = Socket::new(Distributor::new(Settings::default(), authority.origin()))?;
//! # let url = server.bind("tcp://127.0.0.1:0")?.url().to_owned();
//! let node = Node::builder()
//!     .name("billing")
//!     .validate(|update: &spanwire_config::Update| match update.state.get("db/host") {
//!         Some(_) => Ok(()),
//!         None => Err("db/host is missing".into()),
//!     })
//!     .connect(&url)
//!     .start()?;
//! // Nothing is there before the first revision.
//! assert_eq!(node.get("db/host"), None);
//! assert!(node.wait_ready(Duration::from_millis(10)).is_err() && !node.freshness().fresh);
//! node.close(Duration::from_secs(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Owns: the thread, the cache, what is visible. Never: shows half a revision, or one that was not verified and
//! validated; goes back; runs user code under a lock.

mod board;
mod keeper;
mod watch;

use std::fmt;
#[cfg(all(unix, feature = "sync"))]
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use spanwire::Socket;

pub use board::Snapshot;
pub use watch::{Changed, NotReached, WaitFor, Wanted, Watch, WatchStream};

use crate::again::{self, Again};
use crate::sign::Keyring;
use crate::{Id, Limits, Replica, ReplicaSettings, ReplicaStatus, Update};
use board::Board;
use keeper::{Cache, Keeper};

/// Looks at a revision before anything of it is kept or shown.
///
/// Any function of that form is one:
///
/// ```
/// use spanwire_config::{Update, Validator};
///
/// fn with_a_port(update: &Update) -> Result<(), String> {
///     let port = update.state.get("port").ok_or("no port")?;
///     let port = std::str::from_utf8(port.value()).map_err(|e| e.to_string())?;
///     port.parse::<u16>().map(|_| ()).map_err(|e| format!("port {port}: {e}"))
/// }
///
/// fn takes(_: impl Validator) {}
/// takes(with_a_port);
/// ```
pub trait Validator: Send {
    /// Whether the program can live with it. The revision is whole and verified; `changed` names what differs from the
    /// one accepted before. Called by the node's thread, for one revision after the other: what takes long keeps what
    /// is newer waiting. A panic is a refusal.
    ///
    /// # Errors
    /// Why not, for people: the authority shows it. The revision before stays visible, and this one does not come again
    /// unless asked for (or after a restart).
    fn validate(&mut self, update: &Update) -> Result<(), String>;
}

impl<F: FnMut(&Update) -> Result<(), String> + Send> Validator for F {
    fn validate(&mut self, update: &Update) -> Result<(), String> {
        self(update)
    }
}

type OnChange = Box<dyn FnMut(&Changed) -> Result<(), String> + Send>;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// An address cannot be used, or the system gives no socket.
    #[error(transparent)]
    Socket(#[from] spanwire::Error),
    /// The folder of the cache cannot be used.
    #[cfg(all(unix, feature = "sync"))]
    #[error(transparent)]
    Cache(#[from] crate::store::StoreError),
    /// The folder of the cache is another namespace's.
    #[error("the cache is of namespace {0}, in this or another cluster: give each its own folder")]
    Foreign(String),
    /// The system gives no randomness, or no thread.
    #[error("the system gives no {0}: {1}")]
    System(&'static str, std::io::Error),
}

/// What a node is made of; [`start`](Self::start) makes it.
#[must_use = "nothing happens before `start`"]
pub struct NodeBuilder {
    settings: ReplicaSettings,
    connect: Vec<String>,
    #[cfg(all(unix, feature = "sync"))]
    cache: Option<PathBuf>,
    validator: Option<Box<dyn Validator>>,
    on_change: Option<OnChange>,
    again: Duration,
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("settings", &self.settings)
            .field("connect", &self.connect)
            .finish_non_exhaustive()
    }
}

impl NodeBuilder {
    /// Address of a server; may be said several times. The one that answers first is used while it lives, then the next
    /// in this order.
    pub fn connect(mut self, url: impl Into<String>) -> Self {
        self.connect.push(url.into());
        self
    }

    /// Name of the cluster. Default: `config-sync`, as for the commands.
    pub fn cluster(mut self, name: &str) -> Self {
        self.settings.cluster = Id::named(name);
        self
    }

    /// Name of the namespace. Default: `config`.
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.settings.namespace = name.into();
        self
    }

    /// Name of this node, for people. Default: none.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// A label of this node, for whom a revision may be; at most 16. Said again, the later value counts.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        self.settings.labels.retain(|(other, _)| *other != name);
        self.settings.labels.push((name, value.into()));
        self
    }

    /// Whose revisions are believed. Default: anybody's, for clusters without keys.
    pub fn trust(mut self, keys: Keyring) -> Self {
        self.settings.trust = keys;
        self
    }

    /// What this node takes at most.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.limits = limits;
        self
    }

    /// How long [`Node::freshness`] says *fresh* after a sign of life of the authority. Default: 10 s.
    pub fn fresh(mut self, time: Duration) -> Self {
        self.settings.fresh = time;
        self
    }

    /// Keeps the last two revisions in this folder, which is made if absent: the next start shows the last good one at
    /// once, whether a server answers or not. One node at a time.
    #[cfg(all(unix, feature = "sync"))]
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// How long to wait before a full or failing disk is tried again for the first time; each wait is twice the one
    /// before, up to a minute, but for up to half of it, by chance. Default: 1 s.
    pub fn again(mut self, time: Duration) -> Self {
        self.again = time;
        self
    }

    /// Asked about each revision before it is kept or shown.
    pub fn validate(mut self, validator: impl Validator + 'static) -> Self {
        self.validator = Some(Box::new(validator));
        self
    }

    /// Called by the node's thread after a revision with other content is visible, at the start with all keys of the
    /// cached one. With it the authority is told that a revision is *applied* when this succeeded, and of the error when
    /// not: the revision stays visible, and its keys are named again with the next. Without it, what is visible counts
    /// as applied. A panic is an error.
    pub fn on_change(mut self, act: impl FnMut(&Changed) -> Result<(), String> + Send + 'static) -> Self {
        self.on_change = Some(Box::new(act));
        self
    }

    /// Starts it. What the cache holds is visible when this returns.
    ///
    /// # Errors
    /// [`NodeError`]. A server that does not answer is none.
    pub fn start(self) -> Result<Node, NodeError> {
        let (mut settings, board) = (self.settings, Arc::new(Board::new()));
        settings.node = Id::random().map_err(|e| NodeError::System("randomness", e))?;
        settings.boot = 1 << 32;
        let (cache, replica) = {
            #[cfg(all(unix, feature = "sync"))]
            match self.cache {
                Some(folder) => open(&folder, settings, &board)?,
                None => (Cache::default(), Replica::new(settings)),
            }
            #[cfg(not(all(unix, feature = "sync")))]
            (Cache::default(), Replica::new(settings))
        };
        let socket = Socket::new(replica)?;
        let keeper = Keeper {
            socket: socket.clone(),
            board: board.clone(),
            validator: self.validator,
            on_change: self.on_change,
            cache,
            acted: crate::State::new(),
            in_step: true,
            unsaved: Again::new(self.again, again::WAIT.1),
            audience: Bytes::new(),
            known: None,
        };
        // Before the thread, so that an address of which nothing can be made ends it here.
        for url in &self.connect {
            socket.connect(url)?;
        }
        let thread = std::thread::Builder::new().name("config-node".into());
        let thread = thread.spawn(|| keeper.run()).map_err(|e| NodeError::System("thread", e))?;
        Ok(Node(Arc::new(Handle { board, socket, thread: Mutex::new(Some(thread)) })))
    }
}

/// What the folder holds is shown at once.
#[cfg(all(unix, feature = "sync"))]
fn open(
    folder: &std::path::Path,
    mut settings: ReplicaSettings,
    board: &Board,
) -> Result<(Cache, Replica), NodeError> {
    let mut store = crate::store::Store::open(folder)?;
    store.set_trust(settings.trust.clone());
    let identity = store.identity();
    (settings.node, settings.boot) = (identity.id, identity.boot);
    let loaded = store.load(settings.limits.bytes);
    let damaged: Vec<String> = store.damaged().iter().chain(&loaded.damaged).cloned().collect();
    if !damaged.is_empty() {
        board.set_trouble(Some(damaged.join("; ")));
    }
    let replica = match loaded.newest {
        None => Replica::new(settings),
        Some((head, _)) if (head.cluster, &head.namespace) != (settings.cluster, &settings.namespace) => {
            return Err(NodeError::Foreign(head.namespace));
        }
        Some((head, state)) => {
            board.publish(Snapshot::new(head.clone(), state.clone())).wake();
            Replica::restored(settings, head, state, crate::Level::Stored)
        }
    };
    let conflict = store.conflict(board.now().head());
    let evidence = crate::store::Evidence::new(conflict.clone());
    Ok((Cache { store: Some(store), evidence, raised: false }, replica.in_conflict(conflict)))
}

/// Whether the authority was heard of lately, by this node's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Freshness {
    /// A `seq` above all seen before arrived within the time set. What only keeps the connection alive, or repeats what
    /// was said before, does not count; nor does the first of a process life.
    pub fresh: bool,
    /// How long ago the last one arrived; `None`: never in this process life.
    pub age: Option<Duration>,
}

/// What a node did when its server knew a later start of the same node: the folder of its cache is an older copy, or
/// another process runs with a copy of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Copied {
    /// It raised its start number above that one, once. A folder that was put back from a backup needs no more.
    Raised,
    /// It was told again, so another process lives with a copy of the folder: this one goes on as another node, with an
    /// id of its own.
    Renamed,
}

/// A replica inside a program. A clone is the same node; it ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Node(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    board: Arc<Board>,
    socket: Socket<Replica>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Its thread holds the socket too, and ends with it.
        let _ = self.socket.close(Duration::ZERO);
    }
}

impl Node {
    /// A node that connects to nobody yet.
    pub fn builder() -> NodeBuilder {
        NodeBuilder {
            settings: ReplicaSettings { cluster: Id::named("config-sync"), ..ReplicaSettings::default() },
            connect: Vec::new(),
            #[cfg(all(unix, feature = "sync"))]
            cache: None,
            validator: None,
            on_change: None,
            again: again::WAIT.0,
        }
    }

    /// The value of a key, in the revision that is visible now. For values that belong together take one
    /// [`snapshot`](Self::snapshot).
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<Bytes> {
        self.snapshot().get(key).cloned()
    }

    /// The revision that is visible now, whole and pinned.
    pub fn snapshot(&self) -> Snapshot {
        self.0.board.now()
    }

    /// Watches for other content than what is visible now ([`Watch::seen`]).
    pub fn watch(&self) -> Watch {
        self.watch_prefix("")
    }

    /// The same, for keys that begin with `prefix` alone.
    pub fn watch_prefix(&self, prefix: impl AsRef<[u8]>) -> Watch {
        Watch::new(self.0.board.clone(), prefix.as_ref())
    }

    /// Waits until a [`Position`](crate::Position), or a [`Place`](crate::Place) as a client is told where its commit is,
    /// or something above it in its epoch is visible.
    ///
    /// # Errors
    /// [`NotReached`].
    pub fn wait_for(&self, wanted: impl Into<Wanted>, timeout: Duration) -> Result<Snapshot, NotReached> {
        self.wait(Some(wanted.into()), timeout)
    }

    /// Waits until there is a first revision.
    ///
    /// # Errors
    /// [`NotReached`].
    pub fn wait_ready(&self, timeout: Duration) -> Result<Snapshot, NotReached> {
        self.wait(None, timeout)
    }

    fn wait(&self, wanted: Option<Wanted>, timeout: Duration) -> Result<Snapshot, NotReached> {
        let until = Instant::now().checked_add(timeout);
        let waited = self.0.board.wait(until, |now, closed| watch::reached(now, closed, wanted));
        waited.unwrap_or_else(|| Err(NotReached::TimedOut(self.snapshot().position())))
    }

    /// [`wait_for`](Self::wait_for) as a future, on any executor; it has no time limit of its own and may be dropped at
    /// any time.
    pub fn wait_for_async(&self, wanted: impl Into<Wanted>) -> WaitFor {
        WaitFor { board: self.0.board.clone(), wanted: Some(wanted.into()), sleeper: None }
    }

    /// [`wait_ready`](Self::wait_ready) as a future.
    pub fn wait_ready_async(&self) -> WaitFor {
        WaitFor { board: self.0.board.clone(), wanted: None, sleeper: None }
    }

    /// Whether the authority was heard of lately.
    pub fn freshness(&self) -> Freshness {
        let status = self.status();
        Freshness { fresh: status.fresh, age: status.rose }
    }

    /// Where the replica stands, for people. What a reader has seen here as visible, this shows as visible too.
    pub fn status(&self) -> ReplicaStatus {
        self.0.socket.with(|r, cx| r.status(cx.now()))
    }

    /// What is wrong with the cache, if anything: damage that was found in it, or why what is visible, or who this node is
    /// by now ([`copied`](Self::copied)), is not in it. The authority is told *volatile* while what is visible is not.
    pub fn cache_trouble(&self) -> Option<String> {
        self.0.board.trouble()
    }

    /// What this node did last when it heard that its cache is an older copy, or that another process uses a copy of it;
    /// `None`: it did not hear so in this process life. An operator should know of [`Copied::Renamed`]: each node is to
    /// have its own folder.
    pub fn copied(&self) -> Option<Copied> {
        self.0.board.copied()
    }

    /// Asks for what was refused to be offered again: the cause may have passed.
    pub fn retry(&self) {
        self.0.socket.with(|r, cx| r.retry(cx));
    }

    /// Ends the node, for all its clones, with a farewell to its server for as long as `timeout`, and waits until its
    /// thread has ended and its cache is free; so not to be called by its validator or hook. Watchers see the end, and
    /// what was visible stays readable.
    pub fn close(&self, timeout: Duration) {
        let _ = self.0.socket.close(timeout);
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It does not panic; if it did, it has ended.
        let _ = thread.map(JoinHandle::join);
    }
}
