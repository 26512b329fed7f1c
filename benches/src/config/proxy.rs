//! A relay of bytes between nodes and their server, that counts them, cuts connections, and plays nodes that stopped.
//!
//! Counts what TCP carries for its users, both ways, not TCP's own headers. Owns: two sockets for each connection, one
//! thread. Never: looks at what it carries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::Result;

#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    connections: AtomicU64,
    refuses: AtomicBool,
}

/// What becomes of the connections that are carried when this is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// Both ends are closed.
    Cut,
    /// The node's end is closed; the server's stays as it is, unread, until the next word.
    Hold,
}

/// A running proxy; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens: `host:port`.
    pub at: String,
    counts: Arc<Counts>,
    word: watch::Sender<Word>,
    _runtime: Runtime,
}

impl Proxy {
    /// Before the server at `host:port`.
    ///
    /// # Errors
    /// The system's.
    pub fn start(server: &str) -> Result<Self> {
        let server: SocketAddr = server.parse()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let at = listener.local_addr()?.to_string();
        let counts = Arc::new(Counts::default());
        let (word, words) = watch::channel(Word::Cut);
        let of = counts.clone();
        runtime.spawn(async move {
            loop {
                let Ok((node, _)) = listener.accept().await else { return };
                if of.refuses.load(Ordering::Acquire) {
                    continue;
                }
                let (of, mut words) = (of.clone(), words.clone());
                words.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    let mut node = node;
                    let told = tokio::select! {
                        // However it ended: both of its ends are closed.
                        _ = carry(&mut node, &mut server, &of) => false,
                        _ = words.changed() => true,
                    };
                    drop(node);
                    if told && *words.borrow_and_update() == Word::Hold {
                        // An error is the end of the proxy.
                        let _ = words.changed().await;
                    }
                });
            }
        });
        Ok(Proxy { at, counts, word, _runtime: runtime })
    }

    /// Bytes carried so far.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Acquire)
    }

    /// Connections carried so far.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Acquire)
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.word.send_replace(Word::Cut);
    }

    /// For the server all nodes stop: their connections stay, and nothing is read from them. For the nodes they end.
    /// Until [`cut`](Self::cut).
    pub fn hold(&self) {
        self.word.send_replace(Word::Hold);
    }

    /// Closes new connections at once, or carries them again.
    pub fn refuse(&self, refuses: bool) {
        self.counts.refuses.store(refuses, Ordering::Release);
    }
}

async fn carry(node: &mut TcpStream, server: &mut TcpStream, counts: &Counts) -> std::io::Result<()> {
    counts.connections.fetch_add(1, Ordering::AcqRel);
    node.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((node_in, node_out), (server_in, server_out)) = (node.split(), server.split());
    tokio::select! {
        done = copy(node_in, server_out, counts) => done,
        done = copy(server_in, node_out, counts) => done,
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    counts: &Counts,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let n = from.read(&mut bytes).await?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&bytes[..n]).await?;
        counts.bytes.fetch_add(n as u64, Ordering::AcqRel);
    }
}
