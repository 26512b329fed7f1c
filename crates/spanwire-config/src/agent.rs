//! The agent of config-sync: keeps a directory equal to what an authority publishes.
//!
//! A revision is checked, staged, stored, put in place file by file, and then the hook runs; the authority is
//! told of each step. With no server to reach, the agent starts with the last good revision from its state
//! folder. What it holds never goes back.
//!
//! Owns: the output directory and the state folder of one node. Never: shows what was not verified; touches
//! anything outside both.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use spanwire::{RecvError, Socket};

use crate::process::{Log, ProcessError, Shutdown, follow};
use crate::serve::names;
use crate::store::{Identity, Store};
use crate::tree::{self, Output};
use crate::wire::NackCode;
use crate::{
    ChangeSet, Data, Head, Id, Key, Level, Limits, Position, Replica, ReplicaSettings, ReplicaStatus, State,
    Update,
};

/// Longest list of keys that is put into the hook's environment, in bytes; the file has all of it.
const ENVIRONMENT: usize = 64 << 10;
/// Most of a hook's error output that is kept, in bytes.
const WORDS: usize = 900;

/// What to keep where.
#[derive(Clone, Debug)]
pub struct Config {
    /// Servers, in the order of preference: at least one.
    pub connect: Vec<String>,
    /// The directory; it holds nothing but what is published.
    pub out: PathBuf,
    /// The state folder, not inside `out`. Default: `out` with `.state` added. On another file system than
    /// `out`, files on their way are kept in `out` with `.staging` added.
    pub state: PathBuf,
    /// Name of the node, for people. Default: the last component of `out`.
    pub name: String,
    /// Name of the cluster. Default: `config-sync`.
    pub cluster: String,
    /// Name of the namespace. Default: `config`.
    pub namespace: String,
    /// Labels of the node.
    pub labels: Vec<(String, String)>,
    /// Command for `sh -c` after each change.
    pub on_change: Option<String>,
    /// How long the command may take. Default: 30 s.
    pub hook_limit: Duration,
    /// Bounds of what the node takes.
    pub limits: Limits,
    /// Take over a directory that holds something already and was not this agent's: what is not published
    /// is deleted.
    pub take_over: bool,
    /// How long to wait before a failed step is tried again. Default: 5 s.
    pub again: Duration,
}

impl Config {
    /// Keeps `out`, with no server yet, and the defaults.
    pub fn new(out: impl Into<PathBuf>) -> Config {
        let out = out.into();
        let mut state = out.clone().into_os_string();
        state.push(".state");
        let name = out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Config {
            connect: Vec::new(),
            out,
            state: state.into(),
            name,
            cluster: "config-sync".into(),
            namespace: "config".into(),
            labels: Vec::new(),
            on_change: None,
            hook_limit: Duration::from_secs(30),
            limits: Limits::default(),
            take_over: false,
            again: Duration::from_secs(5),
        }
    }
}

/// Keeps the directory until `shutdown`.
///
/// # Errors
/// What keeps it from starting: folders, addresses. Once it runs, trouble is logged, reported upward and
/// tried again.
pub fn run(config: &Config, shutdown: &Shutdown, log: &Log) -> Result<(), ProcessError> {
    let mut agent = Agent::start(config, log)?;
    let closer = agent.socket.clone();
    let signal = shutdown.clone();
    let ended = std::thread::spawn(move || {
        // Disconnected when the stopper is dropped: `recv` below ends with `Closed`.
        let _ = signal.0.recv();
        let _ = closer.close(Duration::from_secs(1));
    });
    loop {
        match agent.socket.recv_timeout(agent.pause()) {
            Ok(update) => agent.on_update(update),
            Err(RecvError::TimedOut | RecvError::Empty) => {}
            Err(_) => break,
        }
        agent.on_time()?;
    }
    let _ = ended.join();
    Ok(())
}

struct Agent<'a> {
    config: &'a Config,
    log: &'a Log,
    store: Store,
    output: Output,
    socket: Socket<Replica>,
    /// What the directory is to hold.
    shown: Option<(Head, State)>,
    /// Keys changed since the revision that the hook acted on last.
    owed: BTreeSet<Key>,
    /// The directory may not hold what is shown.
    dirty: bool,
    /// Refused for want of room: ask again then.
    retry: Option<Instant>,
    repair: Option<Instant>,
    renewed: bool,
    status: Option<(Data, Option<Id>)>,
}

impl<'a> Agent<'a> {
    fn start(config: &'a Config, log: &'a Log) -> Result<Self, ProcessError> {
        let refuse = |why: String| Err(ProcessError::Refused(why));
        if config.connect.is_empty() {
            return refuse("no server to connect to".into());
        }
        let mut store = Store::open(&config.state)?;
        let output = match Output::open(&config.out, &store.dir().join("staging")) {
            Err(tree::TreeError::OtherFileSystem(..)) => {
                let mut beside = config.out.clone().into_os_string();
                beside.push(".staging");
                Output::open(&config.out, Path::new(&beside))?
            }
            output => output?,
        };
        let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let (out, state) = (canonical(&config.out), canonical(&config.state));
        if state.starts_with(&out) || out.starts_with(&state) {
            return refuse("one of the output directory and the state folder is inside the other".into());
        }
        claim(&store, &output, &out, config.take_over)?;
        let loaded = store.load(config.limits.bytes);
        loaded.damaged.iter().for_each(|why| log.say(format_args!("damaged, passed over: {why}")));
        let identity = store.identity();
        let applied = store.applied();
        let replica = match &loaded.newest {
            Some((head, state)) => {
                let level = if applied == Some(head.base()) { Level::Applied } else { Level::Stored };
                Replica::restored(settings(config, identity), head.clone(), state.clone(), level)
            }
            None => Replica::new(settings(config, identity)),
        };
        let mut agent = Agent {
            config,
            log,
            store,
            output,
            socket: Socket::new(replica)?,
            shown: None,
            owed: BTreeSet::new(),
            // Whatever is in the directory before the first revision was not put there by this process.
            dirty: true,
            retry: None,
            repair: None,
            renewed: false,
            status: None,
        };
        if let Some((head, state)) = loaded.newest {
            agent.resume(head, state, loaded.before, applied)?;
        }
        follow(agent.socket.events(), log.clone());
        for url in &config.connect {
            agent.socket.connect(url)?;
        }
        Ok(agent)
    }

    /// Puts the last good revision in place before any server is asked.
    fn resume(
        &mut self,
        head: Head,
        state: State,
        before: Option<(Head, State)>,
        applied: Option<crate::Base>,
    ) -> Result<(), ProcessError> {
        let position = head.position;
        let differed = self.output.repair(&state, &self.config.limits)?;
        self.log.say(format_args!(
            "last good revision {position} in place: {} keys, digest {:?}",
            head.keys, head.digest
        ));
        if !differed.is_empty() {
            self.log.say(format_args!("repaired what differed from it: {}", differed.join(", ")));
        }
        self.shown = Some((head.clone(), state.clone()));
        self.dirty = false;
        if applied != Some(head.base()) {
            // The hook has not acted on it: with all that changed since the one that it did act on.
            let known = before.filter(|(old, _)| applied == Some(old.base())).map(|(_, state)| state);
            self.owed.extend(known.unwrap_or_default().diff(&state).keys().cloned());
            self.socket.with(|r, cx| r.ack(cx, position, Level::Visible, false)).ok();
            self.act();
        }
        Ok(())
    }

    fn pause(&self) -> Duration {
        let now = Instant::now();
        let next = self.retry.into_iter().chain(self.repair).min();
        next.map_or(Duration::from_secs(1), |at| at.saturating_duration_since(now))
            .min(Duration::from_secs(1))
    }

    /// One verified revision: validate, stage, persist, publish, act; each step is told upward.
    fn on_update(&mut self, update: Update) {
        let position = update.position();
        if let Err(error) = tree::check(&update.state, self.output.ignores_case()) {
            return self.refuse(position, NackCode::Validator, &error.to_string());
        }
        let before = self.shown.as_ref().map(|(_, state)| state.clone()).unwrap_or_default();
        let changes = before.diff(&update.state);
        // What needs room on the disk comes before anything is said or shown.
        let staged = self.output.stage(&changes).map_err(|e| e.to_string());
        let stored = staged.and_then(|staged| {
            self.store.save(&update.head, &update.state).map(|()| staged).map_err(|e| e.to_string())
        });
        let staged = match stored {
            Ok(staged) => staged,
            Err(why) => {
                self.retry = Some(Instant::now() + self.config.again);
                return self.refuse(position, NackCode::Storage, &why);
            }
        };
        self.ack(position, Level::Stored);
        let switched = if self.dirty { Err(None) } else { self.output.switch(staged).map_err(Some) };
        self.shown = Some((update.head.clone(), update.state.clone()));
        self.owed.extend(changes.keys().cloned());
        self.log.say(format_args!(
            "revision {position}: {} keys, digest {:?}{}",
            update.head.keys,
            update.head.digest,
            names(changes.keys())
        ));
        match switched {
            Ok(()) => {
                self.ack(position, Level::Visible);
                self.act();
            }
            Err(why) => {
                if let Some(why) = why {
                    self.log.say(format_args!("{why}; the directory is compared whole"));
                }
                self.dirty = true;
                self.repair(&changes);
            }
        }
    }

    /// Makes the directory hold what is shown, whatever is in it. `expected` to differ is what changes anyway.
    fn repair(&mut self, expected: &ChangeSet) {
        let Some((head, state)) = self.shown.clone() else { return };
        match self.output.repair(&state, &self.config.limits) {
            Ok(mut differed) => {
                let changes: BTreeSet<String> = expected.keys().map(Key::to_string).collect();
                differed.retain(|what| !changes.contains(what));
                (self.dirty, self.repair) = (false, None);
                if !differed.is_empty() {
                    self.log.say(format_args!(
                        "the directory was compared whole; put right: {}",
                        differed.join(", ")
                    ));
                }
                self.ack(head.position, Level::Visible);
                self.act();
            }
            Err(error) => {
                self.repair = Some(Instant::now() + self.config.again);
                let why = format!("files are not in place: {error}");
                self.log.say(&why);
                self.nack(head.position, NackCode::Hook, &why);
            }
        }
    }

    /// Runs the hook for the revision shown.
    fn act(&mut self) {
        let Some((head, _)) = self.shown.clone() else { return };
        if let Some(command) = &self.config.on_change
            && !self.owed.is_empty()
        {
            let started = Instant::now();
            if let Err(why) = hook(command, self.config, &self.store, &head, &self.owed) {
                self.log.say(format_args!("hook: {why}"));
                return self.nack(head.position, NackCode::Hook, &why);
            }
            self.log.say(format_args!("hook: done in {:?}", started.elapsed()));
        }
        if let Err(error) = self.store.set_applied(head.base()) {
            // After a restart the hook runs once more for it.
            self.log.say(format_args!("not noted as applied: {error}"));
        }
        self.owed.clear();
        self.ack(head.position, Level::Applied);
    }

    fn ack(&self, position: Position, level: Level) {
        // It is the one given or the one shown; if an operator's call came between, nothing is lost.
        let _ = self.socket.with(|r, cx| r.ack(cx, position, level, false));
    }

    fn nack(&self, position: Position, code: NackCode, why: &str) {
        let _ = self.socket.with(|r, cx| r.nack(cx, position, code, why));
    }

    fn refuse(&mut self, position: Position, code: NackCode, why: &str) {
        self.log.say(format_args!("revision {position} refused: {why}"));
        self.nack(position, code, why);
    }

    /// What time brings: retries, another identity, news of the connection.
    fn on_time(&mut self) -> Result<(), ProcessError> {
        let now = Instant::now();
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            self.socket.with(|r, cx| r.retry(cx));
        }
        if self.repair.is_some_and(|at| at <= now) {
            self.repair(&ChangeSet::new());
        }
        let status: ReplicaStatus = self.socket.with(|r, cx| r.status(cx.now()));
        if let Some(boot) = status.stale_boot {
            self.take_identity(boot)?;
        }
        let seen = (status.data, status.upstream);
        if self.status != Some(seen) {
            self.status = Some(seen);
            self.log.say(format_args!(
                "state: {:?}{}",
                status.data,
                if status.upstream.is_some() { "" } else { " (no server)" }
            ));
            if let Some((mine, other)) = status.evidence {
                self.log.say(format_args!(
                    "ALARM: two histories: {} and {}; the first stays until a higher epoch comes",
                    mine.position, other.position
                ));
            }
        }
        Ok(())
    }

    /// A server knows a later start of this node: the folder was put back, or it has a living twin.
    fn take_identity(&mut self, boot: u64) -> Result<(), ProcessError> {
        let identity = if self.renewed { self.store.renew()? } else { self.store.raise_above(boot)? };
        self.log.say(if self.renewed {
            "ALARM: another process uses a copy of this state folder; this one takes a new node id"
        } else {
            "the state folder is an older copy: its start number is raised"
        });
        self.renewed = true;
        self.socket.with(|r, _| r.set_identity(identity.id, identity.boot));
        Ok(())
    }
}

/// The directory is empty, or was this folder's before, or is taken over.
fn claim(store: &Store, output: &Output, out: &Path, take_over: bool) -> Result<(), ProcessError> {
    use std::os::unix::ffi::OsStrExt;
    let mine = store.note("out").is_some_and(|noted| noted == out.as_os_str().as_bytes());
    if !mine {
        if !output.is_empty()? && !take_over {
            return Err(ProcessError::Refused(format!(
                "{} is not empty and was not kept by this agent; what is not published would be deleted \
                 (--take-over does that)",
                out.display()
            )));
        }
        store.set_note("out", out.as_os_str().as_bytes())?;
    }
    Ok(())
}

fn settings(config: &Config, identity: Identity) -> ReplicaSettings {
    ReplicaSettings {
        cluster: Id::named(&config.cluster),
        namespace: config.namespace.clone(),
        node: identity.id,
        boot: identity.boot,
        name: config.name.clone(),
        labels: config.labels.clone(),
        limits: config.limits,
        ..ReplicaSettings::default()
    }
}

/// Runs the command with the change in its environment; its error output is the reason if it fails.
fn hook(
    command: &str,
    config: &Config,
    store: &Store,
    head: &Head,
    changed: &BTreeSet<Key>,
) -> Result<(), String> {
    let mut list = Vec::new();
    for key in changed {
        list.extend_from_slice(key.as_bytes());
        list.push(b'\n');
    }
    let file = store.dir().join("changed");
    store.set_note("changed", &list).map_err(|e| e.to_string())?;
    let mut run = Command::new("sh");
    run.arg("-c")
        .arg(command)
        .env("CONFIG_SYNC_REVISION", head.position.rev.to_string())
        .env("CONFIG_SYNC_EPOCH", head.position.epoch.number.to_string())
        .env("CONFIG_SYNC_TOKEN", head.position.to_string())
        .env("CONFIG_SYNC_OUT", &config.out)
        .env("CONFIG_SYNC_CHANGED_FILE", &file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A group of its own: what it started can be ended with it.
        .process_group(0);
    if list.len() <= ENVIRONMENT {
        use std::os::unix::ffi::OsStrExt;
        run.env("CONFIG_SYNC_CHANGED", std::ffi::OsStr::from_bytes(list.trim_ascii_end()));
    }
    let mut child = run.spawn().map_err(|e| format!("cannot start sh: {e}"))?;
    let words = words_of(&mut child);
    let status = match wait(&mut child, config.hook_limit) {
        Ok(status) => status,
        Err(why) => {
            end(&mut child);
            return Err(why);
        }
    };
    if status.success() {
        return Ok(());
    }
    // What it left running in the background may hold the pipe open: only what is there is taken.
    let words = words.recv_timeout(Duration::from_millis(200)).unwrap_or_default();
    Err(format!("{status}: {}", words.trim_end()))
}

/// Reads the error output in a thread, so that a talkative command does not block.
fn words_of(child: &mut Child) -> crossbeam_channel::Receiver<String> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    if let Some(mut pipe) = child.stderr.take() {
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                kept.extend_from_slice(&buffer[..n]);
                // The last words say most.
                let from = kept.len().saturating_sub(WORDS);
                kept.drain(..from);
            }
            let _ = sender.try_send(String::from_utf8_lossy(&kept).into_owned());
        });
    }
    receiver
}

fn wait(child: &mut Child, limit: Duration) -> Result<std::process::ExitStatus, String> {
    let until = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() >= until => return Err(format!("not done after {limit:?}")),
            // There is no portable wait with a limit; the hook is rare and this thread has nothing else to do.
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e.to_string()),
        }
    }
}

fn end(child: &mut Child) {
    if let Ok(id) = i32::try_from(child.id())
        && let Some(group) = rustix::process::Pid::from_raw(id)
    {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}
