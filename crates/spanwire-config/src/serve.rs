//! The authority of config-sync: publishes a directory tree, and again whenever it changes; or, without a tree, what
//! clients commit.
//!
//! A tree is read whole, compared with the last revision, and a difference is committed: an
//! [`NsAuthority`] decides, its log in the state folder makes it durable, and only then it is
//! published. So a restart goes on where it was: revisions never fall, and nodes that hold the newest one get
//! nothing. What nodes show is judged by the same machine as it comes, in a thread of its own.
//!
//! There is one source of truth: where a tree is published, commits by clients are refused.
//!
//! Owns: watching and reading the tree, the state folder, the order in which the machine's actions reach the
//! nodes. Never: publishes half a tree, or an empty one in place of what may be another unless told to.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use notify::Watcher;
use spanwire::Socket;
use spanwire::protocol::Time;

use crate::control::{self, Control};
use crate::process::{Log, ProcessError, Shutdown, follow};
use crate::rollout::Audience;
use crate::sign::{Keyring, Secret};
use crate::source::{Embedded, FsDisk, SourceError};
use crate::store::Store;
use crate::{
    Alarm, Answer, AuthorityAction, AuthorityEvent, Distributor, Driver, Id, Intent, Key, Limits, Mode,
    NodeStatus, NsAuthority, NsSettings, Opening, Place, Published, ReadOnly, Request, Settings, State,
    Ticket, folders, tree,
};

/// The log, in the state folder.
const LOG_DIR: &str = "log";
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

type Decides = Driver<Embedded<FsDisk>>;

/// The machine that decides, on the log in the state folder.
fn open(config: &Config, store: &mut Store, log: &Log) -> Result<Decides, ProcessError> {
    let dir = config.state.join(LOG_DIR);
    let incarnation = random()?;
    let settings = NsSettings {
        cluster: Id::named(&config.cluster),
        namespace: config.namespace.clone(),
        limits: config.limits,
        keys: config.keys.clone(),
        ..NsSettings::default()
    };
    let load = || {
        let disk = FsDisk::open(&dir)
            .map_err(|error| SourceError::Io { what: format!("open {}", dir.display()), error })?;
        let source = Embedded::new(disk, Id::named(&config.cluster), &config.namespace);
        // Nobody hears what it has to say at its start.
        Driver::open(source, settings.clone(), Opening::Unknown, incarnation).map(|(driver, _)| driver)
    };
    if config.new_epoch == Some(0) {
        return Err(ProcessError::Refused("--new-epoch: epochs are numbered from 1 on".into()));
    }
    let mut loaded = load();
    if let (Err(SourceError::Damaged { .. }), Some(_)) = (&loaded, config.new_epoch) {
        // Kept for people: it may hold what no node has.
        let free = (1..1000).map(|n| config.state.join(format!("{LOG_DIR}.damaged-{n}")));
        if let Some(aside) = free.into_iter().find(|path| !path.exists())
            && std::fs::rename(&dir, &aside).is_ok()
        {
            log.say(format_args!("the damaged log is in {} now", aside.display()));
            loaded = load();
        }
    }
    let mut driver = loaded.map_err(|error| {
        let hint = match error {
            SourceError::Damaged { .. } => {
                "; nodes may hold more, so give --new-epoch with a number above theirs"
            }
            _ => "",
        };
        ProcessError::Refused(format!("{}: {error}{hint}", dir.display()))
    })?;
    if driver.cut() > 0 {
        let cut = driver.cut();
        log.say(format_args!("{cut} bytes of an unfinished commit were cut off; nobody was told of it"));
    }
    if let Some(number) = config.new_epoch {
        driver.machine_mut().reserve_epoch(number);
    }
    match driver.machine().position() {
        Some(now) if config.new_epoch.is_some_and(|number| now.epoch.number < number) => {
            let event = AuthorityEvent::NewEpoch(Ticket(0), random()?);
            begin(&mut driver, log, event)?;
        }
        Some(now) if config.new_epoch.is_some_and(|number| number < now.epoch.number) => {
            return Err(ProcessError::Refused(format!(
                "--new-epoch is below the epoch that is here: {now}; give a number above {}, or none",
                now.epoch.number
            )));
        }
        Some(now) => {
            let keys = driver.machine().durable().map_or(0, |durable| durable.state.keys());
            log.say(format_args!("last revision: {now} ({keys} keys)"));
        }
        // A state folder of the form without a log.
        None => {
            let loaded = store.load(config.limits.bytes);
            if let (Some((head, state)), None) = (loaded.newest, config.new_epoch) {
                let (node, base) = (store.identity().id, head.base());
                driver.tell(AuthorityEvent::Shown { node, head, issued: 0 });
                driver.tell(AuthorityEvent::Adopt(Ticket(0), random()?, Some(base)));
                begin(&mut driver, log, AuthorityEvent::Offered(node, Some(state)))?;
            } else {
                log.say(format_args!("a new history begins: epoch {}", config.new_epoch.unwrap_or(1)));
            }
        }
    }
    Ok(driver)
}

/// An epoch begins before anybody is served.
fn begin(driver: &mut Decides, log: &Log, event: AuthorityEvent) -> Result<(), ProcessError> {
    let answer = driver.tell(event).into_iter().find_map(|action| match action {
        AuthorityAction::Reply(_, answer) => Some(answer),
        _ => None,
    });
    match answer {
        Some(Answer::Begun { position, .. }) => {
            log.say(format_args!("a new epoch begins: {position}"));
            Ok(())
        }
        other => Err(ProcessError::Refused(format!("no new epoch: {}", told(other.as_ref())))),
    }
}

/// The machine, and the sender that it speaks through: what it wants of the sender is done under its lock, and
/// so in its order. The socket's lock is taken within, never around it.
pub(crate) struct Authority {
    inner: Mutex<Inner>,
    pub(crate) socket: Socket<Distributor>,
    log: Log,
}

struct Inner {
    driver: Decides,
    /// The last alarm: many nodes may be the cause of one.
    alarm: String,
}

impl Authority {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the machine.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&NsAuthority) -> R) -> R {
        look(self.lock().driver.machine())
    }

    fn last(&self) -> Option<State> {
        self.lock().driver.machine().for_all().map(|all| all.state.clone())
    }

    /// Tells the machine what happened and does what follows; returns its answer, if it gave one.
    pub(crate) fn tell(&self, event: AuthorityEvent) -> Result<Option<Answer>, ProcessError> {
        self.tell_at(event, Time::default())
    }

    fn tell_at(&self, event: AuthorityEvent, now: Time) -> Result<Option<Answer>, ProcessError> {
        let mut inner = self.lock();
        let mut answer = None;
        for action in inner.driver.tell_at(event, now) {
            let line = match &action {
                AuthorityAction::Publish(Published { head, changes, .. }) => Some(format!(
                    "revision {}{}: {} keys, {} bytes, digest {:?}{}",
                    head.position,
                    audience(head),
                    head.keys,
                    head.bytes,
                    head.digest,
                    names(changes.keys())
                )),
                AuthorityAction::Show(head) if head.audience.is_empty() => {
                    Some(format!("revision {} is for all now", head.position))
                }
                AuthorityAction::Show(head) => {
                    Some(format!("revision {} is{} now", head.position, audience(head)))
                }
                _ => None,
            };
            let left = self.socket.with(|d, cx| {
                let left = d.perform(cx, action);
                if line.is_some() {
                    // Clients wait for revisions by this key, and who counts a cohort by the other.
                    cx.wake(d.wait_key());
                    cx.wake(d.shown_key());
                }
                left
            });
            line.into_iter().for_each(|line| self.log.say(line));
            match left.map_err(|e| ProcessError::Refused(e.to_string()))? {
                Some(AuthorityAction::Reply(_, said)) => answer = Some(said),
                Some(AuthorityAction::Alarm(alarm)) => inner.alarm(&self.log, &alarm),
                // Nobody is asked for a state.
                _ => {}
            }
        }
        Ok(answer)
    }

    /// Before a namespace begins: nodes that are here already may tell that its log was lost.
    pub(crate) fn judge_shown(&self) {
        self.judge(self.socket.with(|d, _| d.take_shown()));
    }

    /// How far the cohort of an open rollout is, for its gate.
    fn count_cohort(&self) {
        let Some((at, audience)) = self.look(NsAuthority::cohort) else { return };
        let (nodes, now) = self.socket.with(|d, cx| (d.cohort(at, &audience), cx.now()));
        if let Err(error) = self.tell_at(AuthorityEvent::Cohort((at, audience), nodes), now) {
            self.log.say(format_args!("the rollout does not go on: {error}"));
        }
    }

    /// What nodes showed may tell that this store is an old copy, or that it was lost.
    fn judge(&self, shown: Vec<AuthorityEvent>) {
        for event in shown {
            if let Err(error) = self.tell(event) {
                self.log.say(format_args!("what a node showed is not judged: {error}"));
            }
        }
    }
}

impl Inner {
    fn alarm(&mut self, log: &Log, alarm: &Alarm) {
        let mut text = alarm.to_string();
        if let Alarm::OldStore { .. } | Alarm::Claim { .. } = alarm {
            let next = self.driver.machine().highest().epoch.saturating_add(1);
            text.push_str(&format!("; to begin an epoch above it, start with --new-epoch {next}"));
        }
        if text != self.alarm {
            log.say(format_args!("ALARM: {text}"));
            self.alarm = text;
        }
    }
}

fn random() -> Result<Id, ProcessError> {
    Id::random().map_err(|e| ProcessError::Refused(format!("no randomness: {e}")))
}

/// An answer that was not hoped for, in words.
fn told(answer: Option<&Answer>) -> String {
    match answer {
        Some(Answer::ReadOnly(why)) => why.to_string(),
        Some(Answer::Invalid(why)) => why.to_string(),
        Some(Answer::Busy) => "busy".into(),
        other => format!("{other:?}"),
    }
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
        // A hint for the next start, so its failure is none.
        let _ = Arc::into_inner(authority).map(|authority| {
            let inner = authority.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
            inner.driver.into_source().close()
        });
    }

    fn start(config: &'a Config, log: &'a Log) -> Result<Self, ProcessError> {
        let refuse = |why: String| Err(ProcessError::Refused(why));
        if config.bind.is_empty() {
            return refuse("no address to listen at".into());
        }
        match &config.dir {
            Some(dir) => {
                // Before anything is created: beside a file, the state folder would lie in a directory that may be
                // published.
                std::fs::read_dir(dir).map_err(|error| tree::TreeError::Io { path: dir.clone(), error })?;
                folders::apart(dir, &config.state)?;
            }
            None if config.state.as_os_str().is_empty() => return refuse("no state folder".into()),
            None if config.control.is_empty() => {
                return refuse("neither a directory to publish nor an address for commits".into());
            }
            None => {}
        }
        let mut store = Store::open(&config.state)?;
        store.damaged().iter().for_each(|why| log.say(format_args!("damaged, passed over: {why}")));
        let identity = store.identity();
        let driver = open(config, &mut store, log)?;
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
        let inner = Mutex::new(Inner { driver, alarm: String::new() });
        let authority = Arc::new(Authority { inner, socket, log: log.clone() });
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
        let inner = self.authority.lock();
        let vacant = *inner.driver.machine().mode() == Mode::Vacant;
        // Nothing is served yet: nodes wait, until the tree is not empty or somebody decides.
        !vacant && inner.driver.machine().durable().is_some()
            || vacant && matches!(error, ProcessError::Refused(_))
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
        match self.authority.tell(AuthorityEvent::Init(Ticket(1), random()?, state))? {
            Some(Answer::Begun { .. }) => Ok(()),
            other => Err(ProcessError::Refused(told(other.as_ref()))),
        }
    }

    /// Durable first, then out.
    fn commit(&mut self, changes: crate::ChangeSet) -> Result<(), ProcessError> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let (at, highest) = {
            let inner = self.authority.lock();
            let machine = inner.driver.machine();
            (machine.position().map(Place::from).unwrap_or_default(), machine.highest())
        };
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
        match self.authority.tell(AuthorityEvent::Commit(Ticket(1), request))? {
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
                        // The steps between a change and its end are not worth a line for each node.
                        let told = |n: &NodeStatus| (n.connected, n.applied, n.refused.clone(), n.conflict);
                        for node in &now {
                            let before = last.iter().find(|old| old.node == node.node);
                            if before.map(told) != Some(told(node)) {
                                log.say(line(node));
                            }
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
                std::thread::sleep(Duration::from_millis(20));
            }
            bound => return bound,
        }
    }
}

/// One node for people.
fn line(node: &NodeStatus) -> String {
    let at = |position: Option<crate::Position>| position.map_or("-".to_owned(), |p| p.to_string());
    let mut line = format!(
        "node {} ({:?}): {}, stored {}, visible {}, applied {}",
        node.name,
        node.node,
        if node.connected { "here" } else { "away" },
        at(node.stored),
        at(node.visible),
        at(node.applied),
    );
    if let Some((position, code, text)) = node.refused.last() {
        line.push_str(&format!("; refused {position}: {code:?}: {text}"));
    }
    if !node.path.is_empty() {
        let path: Vec<String> = node.path.iter().map(|relay| format!("{relay:?}")).collect();
        line.push_str(&format!("; through {}", path.join(", ")));
    }
    if node.conflict {
        line.push_str("; ALARM: holds another history");
    }
    line
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

/// Watches the tree; a failure only means that changes are seen by the next reading.
fn watch(dir: &Path, rescan: Duration, log: &Log) -> (Receiver<()>, Option<notify::RecommendedWatcher>) {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        use notify::event::{AccessKind, AccessMode, EventKind};
        // Reading is no change; reading the tree would cause the next reading.
        if let Ok(notify::Event { kind: EventKind::Access(how), .. }) = &event
            && *how != AccessKind::Close(AccessMode::Write)
        {
            return;
        }
        // One pending word is enough, whatever it was about.
        let _ = sender.try_send(());
    });
    let watcher = made.and_then(|mut watcher| {
        watcher.watch(dir, notify::RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => (receiver, Some(watcher)),
        Err(error) => {
            log.say(format_args!("the tree is read every {:?}: it cannot be watched: {error}", rescan));
            // The sender lives in the watcher; without it the channel would look closed.
            (crossbeam_channel::never(), None)
        }
    }
}

enum Next {
    Read,
    Over,
}

/// Waits for a word of a change and quiet after it, for the time of a reading, or for the end.
fn next(changed: &Receiver<()>, shutdown: &Shutdown, rescan: Duration, debounce: Duration) -> Next {
    crossbeam_channel::select! {
        recv(shutdown.0) -> _ => return Next::Over,
        recv(changed) -> _ => {}
        default(rescan) => return Next::Read,
    }
    // At most ten times the quiet time: a tree that never rests is read all the same.
    let latest = Instant::now() + debounce * 10;
    while Instant::now() < latest {
        match changed.recv_timeout(debounce) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if shutdown.is_over() { Next::Over } else { Next::Read }
}
