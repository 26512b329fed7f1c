//! `exec://COMMAND` and `stdio://`: sockets over the standard streams of a child process.
//!
//! `exec://` starts COMMAND with `sh -c` and talks to its stdin and stdout; its stderr is left alone. `stdio://` is the
//! other end: it listens on its own program's stdin and stdout, for the one peer that is there. With
//! `exec://ssh host program` two programs meet over ssh, without a port. (A compound command is ended with its connection
//! only if its last part is run by `exec`.)
//!
//! Owns: the child, which ends with its connection. Never: waits for it, or knows a frame: the bytes are SP as
//! over tcp. A program that binds `stdio://` must not print to stdout, and its stdin and stdout become non-blocking.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spanwire::mio::Interest;
use spanwire::mio::unix::pipe::{Receiver, Sender};
use spanwire::transport::{
    Bag, Connection, Dialer, Facts, Listener, Registrar, Stream, StreamReader, StreamWriter, Target,
    Transport,
};
use spanwire::wire::Sp;

/// The transport; it has no options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exec;

impl Transport for Exec {
    fn schemes(&self) -> &'static [&'static str] {
        &["exec", "stdio"]
    }

    fn dialer(&self, url: &str, _: &Bag) -> io::Result<Box<dyn Dialer>> {
        let bad = |what: &str| io::Error::new(ErrorKind::InvalidInput, format!("bad address: {what}"));
        match url.split_once("://") {
            Some(("exec", command)) if command.trim().is_empty() => Err(bad("no command")),
            Some(("exec", command)) if command.contains('\0') => Err(bad("NUL in the command")),
            Some(("exec", command)) => Ok(Box::new(ExecDialer { command: command.to_owned() })),
            _ => Err(io::Error::new(ErrorKind::Unsupported, "stdio:// is bound, exec:// connects to it")),
        }
    }

    fn listen(&self, url: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        match url.split_once("://") {
            Some(("stdio", "")) => {
                StdioListener::new().map(|listener| Box::new(listener) as Box<dyn Listener>)
            }
            Some(("stdio", _)) => {
                Err(io::Error::new(ErrorKind::InvalidInput, "bad address: it is just stdio://"))
            }
            _ => {
                Err(io::Error::new(ErrorKind::Unsupported, "exec:// connects; its other end binds stdio://"))
            }
        }
    }
}

struct ExecDialer {
    command: String,
}

impl Dialer for ExecDialer {
    fn dial(&self, _: Option<&Target>) -> io::Result<Connection> {
        let mut command = Command::new("sh");
        let mut child =
            command.arg("-c").arg(&self.command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let streams = (child.stdin.take(), child.stdout.take());
        let process = Arc::new(Process(Some(child)));
        let (Some(stdin), Some(stdout)) = streams else { return Err(ErrorKind::BrokenPipe.into()) };
        connection(stdout.into(), stdin.into(), process)
    }
}

/// Whether the standard streams are taken, for the life of the process: there is one peer at the most.
static TAKEN: AtomicBool = AtomicBool::new(false);

struct StdioListener(Option<Connection>);

impl StdioListener {
    fn new() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Err(ErrorKind::AddrInUse.into());
        }
        Ok(StdioListener(Some(connection(stdin.into(), stdout.into(), Arc::new(Process(None)))?)))
    }
}

impl Listener for StdioListener {
    fn url(&self) -> String {
        "stdio://".into()
    }

    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        registrar.notifier().notify(); // its one connection is there already
        Ok(())
    }

    fn accept(&mut self) -> io::Result<Connection> {
        self.0.take().ok_or_else(|| ErrorKind::WouldBlock.into())
    }
}

/// The child at the other end; `None`: it is the process that started this one.
#[derive(Debug)]
struct Process(Option<Child>);

impl Drop for Process {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        // Its streams are closed. One that has not ended with them is not waited for.
        let _ = child.kill();
        if !matches!(child.try_wait(), Ok(Some(_))) {
            // Without a thread it stays a zombie until this process ends: no harm but an entry in a table.
            let _ = std::thread::Builder::new().name("exec-reaper".into()).spawn(move || child.wait());
        }
    }
}

fn connection(input: Receiver, output: Sender, process: Arc<Process>) -> io::Result<Connection> {
    input.set_nonblocking(true)?;
    output.set_nonblocking(true)?;
    Ok(Connection::Stream(Box::new(Pipes { input, output, process }), Box::new(Sp::TCP)))
}

/// Two pipes, one for each direction. Fields are dropped in this order: the streams close before the child ends.
#[derive(Debug)]
struct Pipes {
    input: Receiver,
    output: Sender,
    process: Arc<Process>,
}

impl Stream for Pipes {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        registrar.source(&mut self.input, Interest::READABLE)?;
        registrar.source(&mut self.output, Interest::WRITABLE)
    }

    fn establish(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn facts(&self) -> Facts {
        let peer = self.process.0.as_ref().map_or_else(std::os::unix::process::parent_id, Child::id);
        Facts::new(format!("pid {}", std::process::id()), format!("pid {peer}"))
    }

    fn split(self: Box<Self>) -> io::Result<(Box<dyn StreamReader>, Box<dyn StreamWriter>)> {
        let Pipes { input, output, process } = *self;
        let reader = Half { pipe: Some(input), _process: process.clone() };
        Ok((Box::new(reader), Box::new(Half { pipe: Some(output), _process: process })))
    }
}

/// One direction. The child ends when both are gone.
struct Half<T> {
    pipe: Option<T>,
    _process: Arc<Process>,
}

impl<T> Half<T> {
    fn pipe(&mut self) -> io::Result<&mut T> {
        self.pipe.as_mut().ok_or_else(|| ErrorKind::BrokenPipe.into())
    }
}

impl Read for Half<Receiver> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.pipe()?.read(buf)
    }
}

impl StreamReader for Half<Receiver> {}

impl Write for Half<Sender> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.pipe()?.write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.pipe()?.write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StreamWriter for Half<Sender> {
    fn shutdown(&mut self) -> io::Result<bool> {
        self.pipe = None; // a pipe's end is its close
        Ok(true)
    }
}
