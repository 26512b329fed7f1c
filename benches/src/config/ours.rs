//! Config-broadcast by its public interface: `serve` as a process, `Client`s that commit, and two kinds of watchers.
//!
//! A program has one `Node`, with a thread of its own. So many in one process are as many threads, which etcd's
//! clients, tasks of one runtime, are not. So there is a second kind: the same protocol's socket in a task of that
//! runtime. Both verify each revision and report it; neither has a cache on disk. Owns: nothing else.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use spanwire::Socket;
use spanwire_config::client::{Client, Commit};
use spanwire_config::process::{Log, shutdown};
use spanwire_config::{ChangeSet, Data, Id, Key, Level, Node, Replica, ReplicaSettings, serve};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::case::Content;
use super::sight::Sight;
use super::system::{Place, Server, System, Watcher, Writer, start};
use crate::Result;

/// Config-broadcast.
#[derive(Debug)]
pub struct Spanwire {
    /// Where nodes are tasks; otherwise each is a `Node` with a thread.
    pub tasks: Option<Arc<Runtime>>,
}

/// Any free port.
const ANY: &str = "tcp://127.0.0.1:0";
/// Before each of the two addresses in the log of a server.
pub(super) const SAID: [&str; 2] = ["listening at tcp://", "clients at tcp://"];

/// Serves from a store in `dir` until standard input ends; says where on standard output. The log goes to a file, as
/// it would from a service.
///
/// # Errors
/// What keeps it from starting.
pub fn serve_until_told(dir: &Path) -> Result<()> {
    let mut config = serve::Config::without_dir(dir.join("state"));
    config.bind = vec![ANY.to_owned()];
    config.control = vec![ANY.to_owned()];
    let (stopper, ended) = shutdown();
    std::thread::spawn(move || {
        // An end or an error is the same: nobody needs this server any more.
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        drop(stopper);
    });
    let file = Mutex::new(std::fs::File::create(dir.join("log"))?);
    let log = Log::new(move |line| {
        if SAID.iter().any(|said| line.starts_with(said)) {
            println!("{line}");
        }
        // A log that cannot be written stops no server.
        let _ = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(format!("{line}\n").as_bytes());
    });
    Ok(serve::run(&config, &ended, &log)?)
}

/// A server that says where it is.
pub(super) fn place(child: Child) -> Result<Server> {
    let place = Place { nodes: String::new(), control: String::new() };
    let mut server = Server { child, place };
    let mut lines = BufReader::new(server.child.stdout.take().ok_or("no standard output")?);
    let mut said = |with: &str| -> Result<String> {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let at = line.trim_end().strip_prefix(with);
        Ok(at.ok_or_else(|| format!("the server said {line:?}, not {with:?}"))?.to_owned())
    };
    server.place = Place { nodes: said(SAID[0])?, control: said(SAID[1])? };
    Ok(server)
}

impl System for Spanwire {
    fn name(&self) -> &'static str {
        if self.tasks.is_some() { "spanwire" } else { "spanwire-node" }
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    fn serve(&self, dir: &Path) -> Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        place(start(&mut command)?)
    }

    fn writer(&self, place: &Place) -> Result<Box<dyn Writer>> {
        Ok(Box::new(Writes(Client::connect(&format!("tcp://{}", place.control), "config")?)))
    }

    fn watcher(&self, nodes: &str, content: Content, sight: Arc<Sight>) -> Result<Box<dyn Watcher>> {
        match &self.tasks {
            Some(runtime) => Ok(Box::new(Task::start(runtime, nodes, content, sight)?)),
            None => thread(nodes, content, sight),
        }
    }
}

/// A `Node`, which sees what is visible in its hook.
fn thread(nodes: &str, content: Content, sight: Arc<Sight>) -> Result<Box<dyn Watcher>> {
    let mut first = true;
    let node = Node::builder().connect(format!("tcp://{nodes}")).name(format!("node-{}", sight.node));
    let node = node.on_change(move |changed| {
        let values = changed.keys.iter().filter_map(|key| changed.snapshot.get(key.as_bytes()));
        values.for_each(|value| sight.see(value));
        if std::mem::take(&mut first) {
            sight.whole(changed.snapshot.state().keys() as usize, content);
        }
        Ok(())
    });
    Ok(Box::new(Thread(node.start()?)))
}

struct Thread(Node);

impl Watcher for Thread {
    fn is_current(&self) -> bool {
        let status = self.0.status();
        status.data == Data::Live && status.upstream.is_some()
    }
}

/// The receiving protocol's socket, in a task.
struct Task {
    socket: Socket<Replica>,
    task: JoinHandle<()>,
}

impl Task {
    fn start(runtime: &Runtime, nodes: &str, content: Content, sight: Arc<Sight>) -> Result<Task> {
        let socket = Socket::new(Replica::new(ReplicaSettings {
            cluster: Id::named("config-sync"),
            node: Id::random()?,
            boot: 1 << 32,
            name: format!("node-{}", sight.node),
            ..ReplicaSettings::default()
        }))?;
        socket.connect(&format!("tcp://{nodes}"))?;
        let of = socket.clone();
        let task = runtime.spawn(async move {
            let mut first = true;
            while let Ok(update) = of.recv_async().await {
                update
                    .changed
                    .iter()
                    .filter_map(|key| update.state.get(key.as_bytes()))
                    .for_each(|entry| sight.see(entry.value()));
                if std::mem::take(&mut first) {
                    sight.whole(update.state.keys() as usize, content);
                }
                // It is the one given: this cannot fail.
                let _ = of.with(|replica, cx| replica.ack(cx, update.position(), Level::Applied, true));
            }
        });
        Ok(Task { socket, task })
    }
}

impl Watcher for Task {
    fn is_current(&self) -> bool {
        let status = self.socket.with(|replica, cx| replica.status(cx.now()));
        status.data == Data::Live && status.upstream.is_some()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.socket.close(std::time::Duration::ZERO);
        self.task.abort();
    }
}

struct Writes(Client);

impl Writer for Writes {
    fn commit(&mut self, changes: &[(String, Vec<u8>)]) -> Result<()> {
        let mut set = ChangeSet::new();
        for (key, value) in changes {
            set.put(Key::new(key)?, 0, value.clone());
        }
        let mut commit = Commit::new(set)?;
        match self.0.commit(&commit) {
            Ok(_) => Ok(()),
            // The first of a namespace says so.
            Err(spanwire_config::client::ClientError::ReadOnly { .. }) => {
                commit.expect = Some(spanwire_config::Place::default());
                self.0.commit(&commit)?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn most(&self) -> usize {
        usize::MAX
    }
}
