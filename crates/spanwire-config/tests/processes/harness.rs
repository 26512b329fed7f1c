//! A folder with a source, the address of a server, and the processes that run upon them, each in a thread.
//!
//! Owns: how each is set up, and that it ends. Never: judges what one of them does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spanwire_config::process::{Log, ProcessError, Shutdown, Stopper, shutdown};
use spanwire_config::sign::Keyring;
use spanwire_config::{Epoch, Head, Id, Limits, Position, State, agent, relay, serve, store, tree};

/// Only a failure takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a process logged, and who waits for more.
type Lines = Arc<(Mutex<Vec<String>>, Condvar)>;

/// A process in a thread; ended when dropped.
pub(crate) struct Running {
    lines: Lines,
    stopper: Option<Stopper>,
    thread: Option<JoinHandle<Result<(), ProcessError>>>,
}

impl Running {
    fn start(run: impl FnOnce(Shutdown, Log) -> Result<(), ProcessError> + Send + 'static) -> Running {
        let (stopper, stop) = shutdown();
        let lines = Lines::default();
        let log = Log::new({
            let lines = lines.clone();
            move |line| {
                lines.0.lock().expect("no logger panics").push(line.to_owned());
                lines.1.notify_all();
            }
        });
        let thread = std::thread::spawn(move || run(stop, log));
        Running { lines, stopper: Some(stopper), thread: Some(thread) }
    }

    pub(crate) fn serve(config: serve::Config) -> Running {
        Running::start(move |stop, log| serve::run(&config, &stop, &log))
    }

    pub(crate) fn agent(config: agent::Config) -> Running {
        Running::start(move |stop, log| agent::run(&config, &stop, &log))
    }

    pub(crate) fn relay(config: relay::Config) -> Running {
        Running::start(move |stop, log| relay::run(&config, &stop, &log))
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.0.lock().expect("no logger panics").clone()
    }

    /// Waits for a line with this in it; gives the last one.
    #[track_caller]
    pub(crate) fn await_line(&self, part: &str) -> String {
        self.await_lines(1, part)
    }

    /// Waits for so many of them.
    #[track_caller]
    pub(crate) fn await_lines(&self, n: usize, part: &str) -> String {
        let found = |lines: &[String]| lines.iter().filter(|line| line.contains(part)).nth(n - 1).is_some();
        let lines = self.lines.0.lock().expect("no logger panics");
        let waited = self.lines.1.wait_timeout_while(lines, PATIENCE, |lines| !found(lines));
        let lines = waited.expect("no logger panics").0.clone();
        assert!(found(&lines), "waited for {part:?}, {n} times, in {lines:#?}");
        lines.into_iter().rfind(|line| line.contains(part)).expect("found")
    }

    /// It does not start, or ends by itself, and says why.
    #[track_caller]
    pub(crate) fn refused(mut self) -> ProcessError {
        let thread = self.thread.take().expect("it ends once");
        await_that("the refusal", || thread.is_finished());
        thread.join().expect("it does not panic").expect_err("it is refused")
    }

    /// Told to end, it ends well. Gives what it logged.
    #[track_caller]
    pub(crate) fn ends(mut self) -> Vec<String> {
        self.stopper = None;
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("it does not panic").expect("a farewell");
        self.lines()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if std::thread::panicking() {
                eprintln!("its last words: {:#?}, {ended:?}", self.lines());
            }
        }
    }
}

/// For what no process logs: files that others write, and what a server says when it is asked.
#[track_caller]
pub(crate) fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let latest = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < latest, "waited for {what}");
        // Nobody tells of these: the one place where these tests look again and again.
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The head of this state, as another program might have stored it.
pub(crate) fn head(epoch: u64, rev: u64, state: &State) -> Head {
    let epoch = Epoch { number: epoch, incarnation: Id([epoch as u8; 16]) };
    Head {
        cluster: Id::named("config-sync"),
        namespace: "config".into(),
        position: Position { epoch, rev },
        digest: state.digest(),
        keys: state.keys(),
        bytes: state.bytes(),
        ..Default::default()
    }
}

pub(crate) struct World {
    temp: tempfile::TempDir,
    pub(crate) url: String,
}

impl World {
    /// An empty source.
    pub(crate) fn new() -> World {
        let temp = tempfile::tempdir().expect("a folder");
        let url = format!("ipc://{}", temp.path().join("s.ipc").display());
        fs::create_dir(temp.path().join("src")).expect("writable");
        World { temp, url }
    }

    /// A source with these files.
    pub(crate) fn with(files: &[(&str, &str)]) -> World {
        let w = World::new();
        files.iter().for_each(|(name, text)| w.write(&format!("src/{name}"), text));
        w
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join(below)
    }

    pub(crate) fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().expect("below")).expect("writable");
        // Beside and renamed, so that nobody sees half of it.
        let temp = self.path("half");
        fs::write(&temp, text).expect("writable");
        fs::rename(&temp, path).expect("writable");
    }

    pub(crate) fn tree(&self, below: &str) -> State {
        tree::read(&self.path(below), &Limits::default()).map(|t| t.state).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn await_equal(&self, name: &str) {
        await_that(&format!("{name} to equal the source"), || self.tree(name) == self.tree("src"));
    }

    /// The revision that an agent has stored.
    pub(crate) fn stored(&self, name: &str) -> Option<u64> {
        let dir = self.path(&format!("{name}.state"));
        store::peek(&dir, Limits::default().bytes).map(|(head, _)| head.position.rev)
    }

    pub(crate) fn serve_config(&self) -> serve::Config {
        let mut config = serve::Config::new(self.path("src"));
        config.bind = vec![self.url.clone()];
        config.beacon = Duration::from_millis(100);
        config.debounce = Duration::from_millis(10);
        config
    }

    pub(crate) fn agent_config(&self, name: &str) -> agent::Config {
        let mut config = agent::Config::new(self.path(name));
        config.connect = vec![self.url.clone()];
        config.again = Duration::from_millis(50);
        config
    }

    pub(crate) fn serve(&self) -> Running {
        Running::serve(self.serve_config())
    }

    pub(crate) fn agent(&self, name: &str) -> Running {
        Running::agent(self.agent_config(name))
    }

    /// A server and the agent `n`, which has applied the first revision.
    #[track_caller]
    pub(crate) fn server_and_agent(&self) -> (Running, Running) {
        let (server, agent) = (self.serve(), self.agent("n"));
        server.await_line("applied 1/");
        (server, agent)
    }

    /// Both ran so, and have ended.
    #[track_caller]
    pub(crate) fn ran(&self) {
        let (server, agent) = self.server_and_agent();
        agent.ends();
        server.ends();
    }

    pub(crate) fn relay(&self, name: &str, connect: &[&str], keys: Keyring) -> Running {
        let mut config = relay::Config::new(self.path(name));
        config.keys = keys;
        config.connect = connect.iter().map(|of| self.url_of(of)).collect();
        config.bind = vec![self.url_of(name)];
        config.beacon = Duration::from_millis(100);
        Running::relay(config)
    }

    /// The address of the server or of a relay.
    fn url_of(&self, name: &str) -> String {
        if name == "src" { self.url.clone() } else { format!("ipc://{}", self.path(name).display()) + ".ipc" }
    }

    /// An agent of these servers or relays.
    pub(crate) fn agent_below(&self, name: &str, servers: &[&str]) -> Running {
        let mut config = self.agent_config(name);
        config.connect = servers.iter().map(|of| self.url_of(of)).collect();
        Running::agent(config)
    }
}
