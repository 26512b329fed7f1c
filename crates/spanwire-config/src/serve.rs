//! The authority of config-sync: publishes a directory tree, and again whenever it changes; or, without a tree, what
//! clients commit.
//!
//! A tree is read whole, compared with the last revision, and a difference is committed: an
//! [`NsAuthority`](crate::NsAuthority) decides, its log in the state folder makes it durable, and only then it is
//! published. So a restart goes on where it was: revisions never fall, and nodes that hold the newest one get
//! nothing. What nodes show is judged by the same machine as it comes, in a thread of its own.
//!
//! There is one source of truth: where a tree is published, commits by clients are refused.
//!
//! Owns: watching and reading the tree, the state folder, the order in which the machine's actions reach the
//! nodes. Never: publishes half a tree, or an empty one in place of what may be another unless told to.

mod authority;
mod lines;
mod open;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spanwire::Socket;

pub(crate) use authority::Authority;
use lines::lines;
use open::{claim, open, random, told};
use watch::{Next, next, watch};

use crate::control::{self, Control};
use crate::process::{Log, ProcessError, Shutdown, follow};
use crate::rollout::Audience;
use crate::sign::{Keyring, Secret};
use crate::store::Store;
use crate::{
    Answer, AuthorityEvent, Distributor, Id, Intent, Key, Limits, Mode, NodeStatus, Place, ReadOnly, Request,
    Settings, State, folders, tree,
};

/// How often the nodes of a cohort are counted while a rollout is open.
const GATE: Duration = Duration::from_millis(200);

/// What to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// The tree; `None`: the state lives in the log alone, and changes by the commits of clients.
    pub dir: Option<PathBuf>,
    /// Addresses to listen at for nodes: at least one.
    pub bind: Vec<String>,
    /// Addresses to listen at for clients ([`Client`](crate::client::Client)). Whoever reaches one may commit.
    /// Default: none.
    pub control: Vec<String>,
    /// The state folder; neither of it and `dir` is inside the other. Default: beside `dir`, with `.state`
    /// added to its name; empty (which is refused) if nothing lies beside it.
    pub state: PathBuf,
    /// Name of the cluster; nodes of another are turned away. Default: `config-sync`.
    pub cluster: String,
    /// Name of the namespace. Default: `config`.
    pub namespace: String,
    /// Bounds of the tree.
    pub limits: Limits,
    /// Begin a new epoch with this number, above all that nodes have seen. For a state folder that was lost.
    pub new_epoch: Option<u64>,
    /// Publish an empty tree even where there was another.
    pub allow_empty: bool,
    /// Publish the tree in the place of what clients committed. Default: false.
    pub replace: bool,
    /// Quiet time after a change before the tree is read, and between two readings of one that changed lately.
    /// Default: 50 ms.
    pub debounce: Duration,
    /// Time between readings without any word of a change, since those words get lost. Default: 5 s.
    pub rescan: Duration,
    /// Signs HEADs. Default: none.
    pub secret: Option<Secret>,
    /// Which signatures are believed of nodes that show a later history, and stop commits. Default: none.
    pub keys: Keyring,
    /// Time between beacons. Default: 1 s.
    pub beacon: Duration,
}

impl Config {
    /// Serves `dir` at no address yet, with the defaults.
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        let dir = dir.into();
        Config {
            state: folders::beside(&dir, ".state").unwrap_or_default(),
            dir: Some(dir),
            bind: Vec::new(),
            control: Vec::new(),
            cluster: "config-sync".into(),
            namespace: "config".into(),
            limits: Limits::default(),
            new_epoch: None,
            allow_empty: false,
            replace: false,
            debounce: Duration::from_millis(50),
            rescan: Duration::from_secs(5),
            secret: None,
            keys: Keyring::new(),
            beacon: Duration::from_secs(1),
        }
    }

    /// Serves what clients commit, kept in the log in `state`, at no address yet, with the defaults.
    pub fn without_dir(state: impl Into<PathBuf>) -> Config {
        Config { dir: None, state: state.into(), ..Config::new("") }
    }
}

/// Serves until `shutdown`.
///
/// # Errors
/// What keeps it from starting: folders, addresses, a tree that cannot be read. Once it serves, trouble with
/// the tree is logged, the last revision is served on, and the tree is read again.
pub fn run(config: &Config, shutdown: &Shutdown, log: &Log) -> Result<(), ProcessError> {
    let mut server = Server::start(config, log)?;
    let served = server.serve(shutdown);
    server.end();
    served
}

struct Server<'a> {
    config: &'a Config,
    log: &'a Log,
    /// Holds the lock on the state folder.
    _store: Store,
    authority: Arc<Authority>,
    judging: JoinHandle<()>,
    control: Option<Control>,
    reports: Option<JoinHandle<()>>,
    /// The tree could not be read lately.
    behind: bool,
    passed_over: Vec<(PathBuf, &'static str)>,
}

impl<'a> Server<'a> {
    fn serve(&mut self, shutdown: &Shutdown) -> Result<(), ProcessError> {
        let Server { config, log, .. } = *self;
        let Some(dir) = &config.dir else {
            self.reports = Some(self.report(shutdown));
            // Nothing is ever said here but the end.
            let _ = shutdown.0.recv();
            return Ok(());
        };
        let (changed, _watcher) = watch(dir, config.rescan, log);
        // Before this, nodes get the last durable revision, or are told to wait.
        match self.publish_tree(dir) {
            Err(error) if self.may_go_on(&error) => self.trouble(&error),
            first => first?,
        }
        self.reports = Some(self.report(shutdown));
        loop {
            let pause = if self.behind { config.rescan.min(Duration::from_secs(1)) } else { config.rescan };
            match next(&changed, shutdown, pause, config.debounce) {
                Next::Over => return Ok(()),
                Next::Read => {}
            }
            match self.publish_tree(dir) {
                Ok(()) => self.behind = false,
                Err(error) => self.trouble(&error),
            }
        }
    }

    fn end(self) {
        let Server { authority, judging, control, reports, .. } = self;
        if let Some(control) = &control {
            control.close();
        }
        // A farewell, so that nodes need not wait for a beacon that does not come.
        let _ = authority.socket.close(Duration::from_secs(1));
        let _ = judging.join();
        if let Some(control) = control {
            control.join();
        }
        let _ = reports.map(JoinHandle::join);
        authority.end();
    }

    fn start(config: &'a Config, log: &'a Log) -> Result<Self, ProcessError> {
        let refuse = |why: String| Err(ProcessError::Refused(why));
        if config.bind.is_empty() {
            return refuse("no address to listen at (--bind)".into());
        }
        match &config.dir {
            Some(dir) => {
                // Before anything is created: beside a file, the state folder would lie in a directory that may be
                // published.
                std::fs::read_dir(dir).map_err(|error| tree::TreeError::Io { path: dir.clone(), error })?;
                folders::apart(dir, &config.state)?;
            }
            None if config.state.as_os_str().is_empty() => return refuse("no state folder (--state)".into()),
            None if config.control.is_empty() => {
                return refuse(
                    "neither a directory to publish (--dir) nor an address for commits (--control)".into(),
                );
            }
            None => {}
        }
        let mut store = Store::open(&config.state)?;
        store.damaged().iter().for_each(|why| log.say(format_args!("damaged, passed over: {why}")));
        let identity = store.identity();
        let driver = open(config, &mut store, log)?;
        claim(config, &store, driver.machine())?;
        let settings = Settings {
            cluster: Id::named(&config.cluster),
            namespace: config.namespace.clone(),
            server: identity.id,
            beacon: config.beacon,
            secret: config.secret.clone(),
            ..Settings::default()
        };
        let socket = Socket::new(Distributor::new(settings, driver.machine().origin()))?;
        follow(socket.events(), log.clone());
        for url in &config.bind {
            let endpoint = bind(&socket, url)?;
            log.say(format_args!("listening at {}", endpoint.url()));
        }
        let control = match &config.control[..] {
            [] => None,
            _ => Some(control::listen(config, log)?),
        };
        let authority = Authority::start(driver, socket, log)?;
        let judging = judging(authority.clone());
        let control = control.map(|rep| Control::start(rep, &authority, config, log));
        Ok(Server {
            config,
            log,
            _store: store,
            authority,
            judging,
            control,
            reports: None,
            behind: false,
            passed_over: Vec::new(),
        })
    }

    /// Whether it makes sense to serve, and to read the tree again, after this.
    fn may_go_on(&self, error: &ProcessError) -> bool {
        let (vacant, serves) =
            self.authority.look(|machine| (*machine.mode() == Mode::Vacant, machine.durable().is_some()));
        // Nothing is served yet: nodes wait, until the tree is not empty or somebody decides.
        !vacant && serves || vacant && matches!(error, ProcessError::Refused(_))
    }

    fn trouble(&mut self, error: &ProcessError) {
        let rest = match self.authority.last() {
            Some(_) => "the last revision is served on",
            None => "nodes are told to wait",
        };
        self.log.say(format_args!("the tree is not published: {error}; {rest}"));
        self.behind = true;
    }

    /// Reads the tree and publishes what differs from the last revision.
    fn publish_tree(&mut self, dir: &Path) -> Result<(), ProcessError> {
        let read = tree::read_settled(dir, &self.config.limits, self.config.debounce)?;
        tree::check(&read.state, false)?;
        if read.passed_over != self.passed_over {
            for (path, what) in &read.passed_over {
                self.log.say(format_args!("passed over: {} ({what})", path.display()));
            }
            self.passed_over = read.passed_over;
        }
        let last = self.authority.last();
        // Where nothing is known, the log may have been lost, and the tree with it.
        let may_be_emptied = last.as_ref().is_some_and(State::is_empty) || self.config.allow_empty;
        if read.state.is_empty() && !may_be_emptied {
            return Err(ProcessError::Refused(format!(
                "{} is empty; if that is meant, start with --allow-empty",
                dir.display()
            )));
        }
        match last {
            Some(last) => {
                let changes = last.diff(&read.state);
                let open = self.authority.look(|machine| machine.cohort().is_some());
                if changes.is_empty() && !open { Ok(()) } else { self.commit(changes) }
            }
            None => self.first(read.state),
        }
    }

    /// The first revision of a namespace of which there is no log.
    fn first(&mut self, state: State) -> Result<(), ProcessError> {
        self.authority.judge_shown();
        if self.config.new_epoch.is_none() {
            return self.commit(State::new().diff(&state));
        }
        let id = random()?;
        match self.authority.ask_waiting(|ticket| AuthorityEvent::Init(ticket, id, state)) {
            Some(Answer::Begun { .. }) => Ok(()),
            other => Err(ProcessError::Refused(told(other.as_ref()))),
        }
    }

    /// Durable first, then out.
    fn commit(&mut self, changes: crate::ChangeSet) -> Result<(), ProcessError> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let (at, highest) = self
            .authority
            .look(|machine| (machine.position().map(Place::from).unwrap_or_default(), machine.highest()));
        let request = Request {
            request: random()?,
            expect: Some(at),
            intent: Intent::Change(changes),
            author: "config-sync serve".into(),
            note: String::new(),
            stamp: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            rollout: None,
            // The directory is all that is published, whoever opened a rollout before.
            supersede: true,
        };
        match self.authority.ask_waiting(|ticket| AuthorityEvent::Commit(ticket, request)) {
            Some(Answer::Committed { .. }) => Ok(()),
            Some(Answer::ReadOnly(ReadOnly::Vacant)) => Err(ProcessError::Refused(format!(
                "nodes hold epoch {}, and this state folder has no log; start with --new-epoch {}",
                highest.epoch,
                highest.epoch.saturating_add(1)
            ))),
            other => Err(ProcessError::Refused(told(other.as_ref()))),
        }
    }

    /// Logs what nodes report, in a thread of its own, until the socket is closed.
    fn report(&self, shutdown: &Shutdown) -> std::thread::JoinHandle<()> {
        let (socket, log) = (self.authority.socket.clone(), self.log.clone());
        let shutdown = shutdown.clone();
        std::thread::spawn(move || {
            let key = socket.with(|d, _| d.wait_key());
            let mut last: Vec<NodeStatus> = Vec::new();
            while !shutdown.is_over() {
                let changed = socket.wait(key, Some(Duration::from_secs(1)), |d, _| {
                    let now = d.status();
                    (now != last).then_some(now)
                });
                match changed {
                    Ok(now) => {
                        for line in lines(&last, &now) {
                            log.say(line);
                        }
                        last = now;
                        // Reports come in swarms; one look is enough for a tenth of a second of them.
                        let _ = shutdown.0.recv_timeout(Duration::from_millis(100));
                    }
                    Err(spanwire::WaitError::TimedOut) => {}
                    Err(_) => return,
                }
            }
        })
    }
}

/// Has what nodes show judged as it comes, and the nodes of a cohort counted while there is one, in a thread of its own,
/// until the socket is closed.
fn judging(authority: Arc<Authority>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let key = authority.socket.with(|d, _| d.shown_key());
        loop {
            let open = authority.socket.with(|d, _| d.canary().is_some());
            let shown = authority.socket.wait(key, open.then_some(GATE), |d, _| {
                (d.has_shown() || d.canary().is_some() != open).then(|| d.take_shown())
            });
            match shown {
                Ok(shown) => authority.judge(shown),
                Err(spanwire::WaitError::TimedOut) => {}
                Err(_) => return,
            }
            authority.count_cohort();
        }
    })
}

/// Whom a HEAD is for, if not for all.
fn audience(head: &crate::Head) -> String {
    let Some(cohort) = Audience::parse(&head.audience) else { return String::new() };
    let labels: Vec<String> = cohort.labels.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    let (whole, part) = (cohort.share / 100, cohort.share % 100);
    let of = if labels.is_empty() { " nodes".to_owned() } else { labels.concat() };
    format!(" for {whole}{} % of{of}", if part == 0 { String::new() } else { format!(".{part:02}") })
}

/// Binds; an address that the server before this one has not let go of yet is waited for.
pub(crate) fn bind<P: spanwire::protocol::Protocol>(
    socket: &Socket<P>,
    url: &str,
) -> Result<spanwire::Endpoint, spanwire::Error> {
    let latest = Instant::now() + Duration::from_secs(2);
    loop {
        match socket.bind(url) {
            Err(spanwire::Error::Bind { source, .. })
                if source.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < latest =>
            {
                // The other process does not tell when it lets go.
                std::thread::sleep(Duration::from_millis(20));
            }
            bound => return bound,
        }
    }
}

pub(crate) fn names<'k>(keys: impl Iterator<Item = &'k Key>) -> String {
    let mut keys = keys.peekable();
    if keys.peek().is_none() {
        return String::new();
    }
    let first: Vec<String> = keys.by_ref().take(8).map(Key::to_string).collect();
    let more = keys.count();
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("; changed: {}{tail}", first.join(", "))
}
