//! A floor: as many bytes as a change needs, sent to as many connections, and nothing else.
//!
//! No store, no protocol, no checks, no reports: the server writes to each connection in turn, a node reads and notes the
//! time. What it takes here, any design with a connection for each node takes on this machine; a target below that
//! cannot be met on it. Owns: nothing else. Never: answers a writer before all is sent.

use std::io::{BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;

use super::case::{Case, Content};
use super::ours::{SAID, place};
use super::sight::Sight;
use super::system::{Server, System, Watcher, Writer, start};
use crate::Result;

/// Bytes that a change of one key of 64 bytes costs config-broadcast downward.
const EVENT: usize = 384;
/// Bytes of a value.
const VALUE: usize = 64;

/// Plain sockets.
#[derive(Debug)]
pub struct Raw {
    /// Where nodes are tasks; otherwise each is a thread.
    pub tasks: Option<Arc<Runtime>>,
}

/// Serves until standard input ends; says where on standard output.
///
/// # Errors
/// What keeps it from starting.
pub fn serve_until_told() -> Result<()> {
    let (nodes, control) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    println!("{}{}", SAID[0], nodes.local_addr()?);
    println!("{}{}", SAID[1], control.local_addr()?);
    let all: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let to = all.clone();
    thread::spawn(move || {
        for node in nodes.incoming() {
            let Ok(mut node) = node else { return };
            // One byte says that it is counted.
            let mut all = to.lock().unwrap_or_else(PoisonError::into_inner);
            if node.set_nodelay(true).is_ok() && node.write_all(&[1]).is_ok() {
                all.push(node);
            }
        }
    });
    thread::spawn(move || {
        for writer in control.incoming() {
            let Ok(writer) = writer else { return };
            let all = all.clone();
            // It ends with its connection.
            thread::spawn(move || spread(writer, &all));
        }
    });
    // An end or an error is the same: nobody needs this server any more.
    let _ = std::io::stdin().lock().read_line(&mut String::new());
    Ok(())
}

fn spread(mut writer: TcpStream, all: &Mutex<Vec<TcpStream>>) -> std::io::Result<()> {
    writer.set_nodelay(true)?;
    let mut event = [0; EVENT];
    loop {
        writer.read_exact(&mut event[..VALUE])?;
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain_mut(|node| node.write_all(&event).is_ok());
        drop(all);
        writer.write_all(&[1])?;
    }
}

impl System for Raw {
    fn name(&self) -> &'static str {
        if self.tasks.is_some() { "raw" } else { "raw-node" }
    }

    fn version(&self) -> String {
        "(plain sockets: the floor)".to_owned()
    }

    fn measures(&self, case: &Case) -> bool {
        matches!(case, Case::Spread { .. })
    }

    fn serve(&self, _: &Path) -> Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("raw").stdin(Stdio::piped()).stdout(Stdio::piped());
        place(start(&mut command)?)
    }

    fn writer(&self, at: &super::system::Place) -> Result<Box<dyn Writer>> {
        let stream = TcpStream::connect(&at.control)?;
        stream.set_nodelay(true)?;
        Ok(Box::new(Writes(stream)))
    }

    fn watcher(&self, nodes: &str, content: Content, sight: Arc<Sight>) -> Result<Box<dyn Watcher>> {
        let (stream, counted) = (TcpStream::connect(nodes)?, Arc::new(AtomicBool::new(false)));
        let told = counted.clone();
        match &self.tasks {
            None => drop(thread::spawn(move || watch(stream, content, &sight, &told))),
            Some(runtime) => {
                stream.set_nonblocking(true)?;
                drop(runtime.spawn(async move { watch_as_task(stream, content, &sight, &told).await }));
            }
        }
        Ok(Box::new(Watches(counted)))
    }
}

fn watch(
    mut stream: TcpStream,
    content: Content,
    sight: &Sight,
    counted: &AtomicBool,
) -> std::io::Result<()> {
    let mut event = [0; EVENT];
    stream.read_exact(&mut event[..1])?;
    sight.whole(content.keys, content);
    counted.store(true, Ordering::Release);
    loop {
        stream.read_exact(&mut event)?;
        sight.see(&event[..VALUE]);
    }
}

async fn watch_as_task(
    stream: TcpStream,
    content: Content,
    sight: &Sight,
    counted: &AtomicBool,
) -> std::io::Result<()> {
    let (mut stream, mut event) = (tokio::net::TcpStream::from_std(stream)?, [0; EVENT]);
    stream.read_exact(&mut event[..1]).await?;
    sight.whole(content.keys, content);
    counted.store(true, Ordering::Release);
    loop {
        stream.read_exact(&mut event).await?;
        sight.see(&event[..VALUE]);
    }
}

/// Ends with the process.
struct Watches(Arc<AtomicBool>);

impl Watcher for Watches {
    fn is_current(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

struct Writes(TcpStream);

impl Writer for Writes {
    fn commit(&mut self, changes: &[(String, Vec<u8>)]) -> Result<()> {
        // What is there before is nowhere: there is no store.
        if let [(_, value)] = changes {
            self.0.write_all(value)?;
            self.0.read_exact(&mut [0])?;
        }
        Ok(())
    }

    fn most(&self) -> usize {
        usize::MAX
    }
}
