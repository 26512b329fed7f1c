//! etcd, one member with its defaults (each commit is synced), and its client from the crate `etcd-client`.
//!
//! A watcher is a client as etcd's documentation has it: it reads all keys at a revision, watches from the next one on
//! over a connection of its own, keeps what it has, and after an error connects and watches from where it was. All
//! share one runtime. Owns: the server's command line, that loop.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, EventType, GetOptions, Txn, TxnOp, WatchOptions};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::case::Content;
use super::sight::Sight;
use super::system::{Place, Server, System, Watcher, Writer, start};
use crate::Result;

/// How many read all keys at once: as many as our server serves at once. etcd sets no limit and would need memory for
/// every one.
const READERS: usize = 8;
/// Pause before a lost connection is made again: our first one, at most.
const AGAIN: Duration = Duration::from_millis(50);
/// Largest message taken; the default of 4 MiB is too small for a large state.
const LARGEST: usize = 256 << 20;

/// etcd.
#[derive(Debug)]
pub struct Etcd {
    runtime: Arc<Runtime>,
    readers: Arc<Semaphore>,
}

impl Etcd {
    /// With a runtime for all clients.
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Etcd { runtime, readers: Arc::new(Semaphore::new(READERS)) }
    }
}

/// A port that was free a moment ago.
fn free() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl System for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn version(&self) -> String {
        let said = Command::new("etcd").arg("--version").output().map(|out| out.stdout).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        said.lines()
            .next()
            .and_then(|l| l.strip_prefix("etcd Version: "))
            .unwrap_or("unknown version")
            .to_owned()
    }

    fn serve(&self, dir: &Path) -> Result<Server> {
        let (client, peer) = (free()?, free()?);
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new("etcd");
        command.env_clear().envs(std::env::vars().filter(|(name, _)| !name.starts_with("ETCD_")));
        command.args(["--name", "versus", "--logger", "zap", "--data-dir"]).arg(dir.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.arg("--initial-cluster").arg(format!("versus={peer}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.join("log"))?);
        let child = start(&mut command)
            .map_err(|why| format!("etcd does not start ({why}); install Debian's package etcd-server"))?;
        let at = client.trim_start_matches("http://").to_owned();
        let server = Server { child, place: Place { nodes: at.clone(), control: at } };
        // It answers once it has elected itself.
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let ready = async { Client::connect([&client], None).await?.get("ready", None).await };
            let within = async { tokio::time::timeout(Duration::from_secs(2), ready).await };
            match self.runtime.block_on(within) {
                Ok(Ok(_)) => return Ok(server),
                _ if Instant::now() < until => std::thread::sleep(Duration::from_millis(50)),
                Ok(Err(why)) => return Err(format!("etcd does not answer: {why}").into()),
                Err(_) => return Err("etcd does not answer".into()),
            }
        }
    }

    fn writer(&self, place: &Place) -> Result<Box<dyn Writer>> {
        let client = self.runtime.block_on(Client::connect([&place.control], None))?;
        Ok(Box::new(Writes { runtime: self.runtime.clone(), client }))
    }

    fn watcher(&self, nodes: &str, content: Content, sight: Arc<Sight>) -> Result<Box<dyn Watcher>> {
        let current = Arc::new(AtomicBool::new(false));
        let mut node = Node { at: nodes.to_owned(), content, sight, held: BTreeMap::new(), revision: None };
        let (told, readers) = (current.clone(), self.readers.clone());
        let task = self.runtime.spawn(async move {
            loop {
                // However it ended: the connection is gone.
                let _ = node.follow(&told, &readers).await;
                told.store(false, Ordering::Release);
                tokio::time::sleep(AGAIN).await;
            }
        });
        Ok(Box::new(Watches { current, task }))
    }
}

struct Writes {
    runtime: Arc<Runtime>,
    client: Client,
}

impl Writer for Writes {
    fn commit(&mut self, changes: &[(String, Vec<u8>)]) -> Result<()> {
        let done = async {
            match changes {
                [(key, value)] => self.client.put(key.as_str(), value.as_slice(), None).await.map(drop),
                _ => {
                    let puts =
                        changes.iter().map(|(key, value)| TxnOp::put(key.as_str(), value.as_slice(), None));
                    self.client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.map(drop)
                }
            }
        };
        Ok(self.runtime.block_on(done)?)
    }

    fn most(&self) -> usize {
        // Its default, --max-txn-ops.
        128
    }
}

struct Watches {
    current: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Watcher for Watches {
    fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Node {
    at: String,
    content: Content,
    sight: Arc<Sight>,
    held: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The revision that it holds.
    revision: Option<i64>,
}

impl Node {
    /// One connection.
    async fn follow(&mut self, current: &AtomicBool, readers: &Semaphore) -> Result<()> {
        let client = Client::connect([&self.at], None).await?;
        let revision = match self.revision {
            Some(revision) => revision,
            None => self.read(&client, readers).await?,
        };
        let options = WatchOptions::new().with_all_keys().with_start_revision(revision + 1);
        let mut watch = client.watch_client().max_decoding_message_size(LARGEST);
        let (_watcher, mut stream) = watch.watch("", Some(options)).await?;
        current.store(true, Ordering::Release);
        while let Some(said) = stream.message().await? {
            if said.canceled() {
                return Err(said.cancel_reason().into());
            }
            for event in said.events() {
                let Some(kv) = event.kv() else { continue };
                match event.event_type() {
                    EventType::Put => {
                        self.held.insert(kv.key().to_vec(), kv.value().to_vec());
                        self.sight.see(kv.value());
                    }
                    EventType::Delete => drop(self.held.remove(kv.key())),
                }
                self.revision = Some(kv.mod_revision());
            }
        }
        Ok(())
    }

    /// All keys, and their revision.
    async fn read(&mut self, client: &Client, readers: &Semaphore) -> Result<i64> {
        let _turn = readers.acquire().await?;
        let mut kv = client.kv_client().max_decoding_message_size(LARGEST);
        let mut all = kv.get("", Some(GetOptions::new().with_all_keys())).await?;
        let revision = all.header().ok_or("no header")?.revision();
        self.held = all.take_kvs().into_iter().map(|kv| kv.into_key_value()).collect();
        self.held.values().for_each(|value| self.sight.see(value));
        self.revision = Some(revision);
        self.sight.whole(self.held.len(), self.content);
        Ok(revision)
    }
}
