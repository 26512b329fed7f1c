//! The authority of config-sync: publishes a directory tree, and again whenever it changes.
//!
//! The tree is read whole, compared with the last revision, and a difference is committed: an [`NsAuthority`]
//! decides, its log in the state folder makes it durable, and only then it is published. So a restart goes on
//! where it was: revisions never fall, and nodes that hold the newest one get nothing.
//!
//! Owns: watching and reading the tree, the state folder. Never: publishes half a tree, or an empty one in
//! place of another unless told to.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use notify::Watcher;
use spanwire::Socket;
use spanwire::protocol::Time;

use crate::process::{Log, ProcessError, Shutdown, follow};
use crate::sign::{Keyring, Secret};
use crate::source::{Embedded, FsDisk, Source, SourceError};
use crate::store::Store;
use crate::{
    Answer, AuthorityAction, AuthorityEvent, Distributor, Epoch, Id, Intent, Key, Limits, Mode, NodeStatus,
    NsAuthority, NsSettings, Opening, Origin, Place, Published, Request, Settings, State, Ticket, Verdict,
    folders, tree,
};

/// The log, in the state folder.
const LOG_DIR: &str = "log";

/// What to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// The tree.
    pub dir: PathBuf,
    /// Addresses to listen at: at least one.
    pub bind: Vec<String>,
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
            dir,
            bind: Vec::new(),
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
}

/// Serves until `shutdown`.
///
/// # Errors
/// What keeps it from starting: folders, addresses, a tree that cannot be read. Once it serves, trouble with
/// the tree is logged, the last revision is served on, and the tree is read again.
pub fn run(config: &Config, shutdown: &Shutdown, log: &Log) -> Result<(), ProcessError> {
    let mut server = Server::start(config, log)?;
    let (changed, watcher) = watch(config, log);
    // Before this, nodes get the last durable revision, or are told to wait.
    match server.publish_tree() {
        Err(error) if server.socket.with(|d, _| d.head().is_some()) => server.trouble(&error),
        first => first?,
    }
    let reports = server.report(shutdown);
    loop {
        let pause = if server.behind { config.rescan.min(Duration::from_secs(1)) } else { config.rescan };
        match next(&changed, shutdown, pause, config.debounce) {
            Next::Over => break,
            Next::Read => {}
        }
        match server.publish_tree() {
            Ok(()) => server.behind = false,
            Err(error) => server.trouble(&error),
        }
    }
    drop(watcher);
    // A farewell, so that nodes need not wait for a beacon that does not come.
    let Server { socket, authority, .. } = server;
    let _ = socket.close(Duration::from_secs(1));
    let _ = reports.join();
    // A hint for the next start, so its failure is none.
    let _ = authority.source.close();
    Ok(())
}

/// What followed from an event, beside what the store was told.
#[derive(Default)]
struct Outcome {
    published: Vec<Published>,
    answer: Option<Answer>,
    disputed: Vec<Id>,
    opened: Option<u32>,
}

/// The machine that decides, and the store that makes it durable.
struct Authority<'a> {
    machine: NsAuthority,
    source: Embedded<FsDisk>,
    opened: u32,
    log: &'a Log,
}

impl<'a> Authority<'a> {
    fn open(config: &Config, store: &mut Store, log: &'a Log) -> Result<(Self, Outcome), ProcessError> {
        let refuse = |why: String| ProcessError::Refused(why);
        let dir = config.state.join(LOG_DIR);
        let load = || {
            let disk = FsDisk::open(&dir)
                .map_err(|error| SourceError::Io { what: format!("open {}", dir.display()), error })?;
            let mut source = Embedded::new(disk, Id::named(&config.cluster), &config.namespace);
            source.load().map(|recovered| (source, recovered))
        };
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
        let (source, recovered) = loaded.map_err(|error| {
            let hint = match error {
                SourceError::Damaged { .. } => {
                    "; nodes may hold more, so give --new-epoch with a number above theirs"
                }
                _ => "",
            };
            refuse(format!("{}: {error}{hint}", dir.display()))
        })?;
        let opened = recovered.as_ref().map_or(1, |recovered| recovered.opened);
        let cut = recovered.as_ref().map_or(0, |recovered| recovered.cut);
        if cut > 0 {
            log.say(format_args!("{cut} bytes of an unfinished commit were cut off; nobody was told of it"));
        }
        let opening = recovered.map_or(Opening::Unknown, |recovered| Opening::Restored(Box::new(recovered)));
        let settings = NsSettings {
            cluster: Id::named(&config.cluster),
            namespace: config.namespace.clone(),
            limits: config.limits,
            secret: config.secret.clone(),
            keys: config.keys.clone(),
            ..NsSettings::default()
        };
        let (machine, actions) = NsAuthority::new(settings, opening, random()?);
        let mut this = Authority { machine, source, opened, log };
        let mut outcome = Outcome::default();
        this.act(actions, &mut outcome);
        if let Some(number) = config.new_epoch {
            this.machine.reserve_epoch(number);
        }
        match this.machine.position() {
            Some(now) if config.new_epoch.is_some_and(|number| now.epoch.number < number) => {
                let incarnation = random()?;
                this.begin(&mut outcome, |ticket| AuthorityEvent::NewEpoch(ticket, incarnation))?;
            }
            Some(now) => {
                let keys = this.machine.durable().map_or(0, |durable| durable.state.keys());
                log.say(format_args!("last revision: {now} ({keys} keys)"));
            }
            // A state folder of the form without a log.
            None => {
                let loaded = store.load(config.limits.bytes);
                if let (Some((head, state)), None) = (loaded.newest, config.new_epoch) {
                    let (node, position, incarnation) = (store.identity().id, head.position, random()?);
                    this.tell(AuthorityEvent::Shown(Ticket(0), node, head), &mut outcome);
                    this.tell(AuthorityEvent::Adopt(Ticket(0), incarnation, Some(position)), &mut outcome);
                    this.begin(&mut outcome, |_| AuthorityEvent::Offered(node, Some(state)))?;
                } else {
                    log.say(format_args!("a new history begins: epoch {}", config.new_epoch.unwrap_or(1)));
                }
            }
        }
        Ok((this, outcome))
    }

    fn begin(
        &mut self,
        outcome: &mut Outcome,
        event: impl FnOnce(Ticket) -> AuthorityEvent,
    ) -> Result<(), ProcessError> {
        self.tell(event(Ticket(0)), outcome);
        match outcome.answer.take() {
            Some(Answer::Begun { position, .. }) => {
                self.log.say(format_args!("a new epoch begins: {position}"));
                Ok(())
            }
            other => Err(ProcessError::Refused(format!("no new epoch: {}", told(other.as_ref())))),
        }
    }

    fn tell(&mut self, event: AuthorityEvent, outcome: &mut Outcome) {
        // No rule of the machine depends on the time.
        let actions = self.machine.handle(event, Time::default());
        self.act(actions, outcome);
    }

    /// Does what the machine says, and tells it how that went, until there is nothing left.
    fn act(&mut self, actions: Vec<AuthorityAction>, outcome: &mut Outcome) {
        for action in actions {
            let event = match action {
                AuthorityAction::Append(record) => {
                    AuthorityEvent::Durable(self.source.append_durable(&record).map_err(|e| e.to_string()))
                }
                AuthorityAction::Compact(base) => {
                    AuthorityEvent::Compacted(self.source.compact(&base).map_err(|e| e.to_string()))
                }
                AuthorityAction::RaiseOpened(above) => {
                    let raised = self.source.raise_opened(above).map_err(|e| e.to_string());
                    outcome.opened = raised.clone().ok();
                    AuthorityEvent::Raised(raised)
                }
                AuthorityAction::Recall(recall) => {
                    let chain = self.source.chain_at(recall.head.position.rev).map_err(|e| e.to_string());
                    AuthorityEvent::Recalled(recall, chain)
                }
                AuthorityAction::Reply(_, answer) => {
                    outcome.answer = Some(answer);
                    continue;
                }
                AuthorityAction::Publish(published) => {
                    outcome.published.push(published);
                    continue;
                }
                AuthorityAction::Judge(_, node, Verdict::Conflict) => {
                    outcome.disputed.push(node);
                    continue;
                }
                AuthorityAction::Alarm(alarm) => {
                    self.log.say(format_args!("ALARM: {alarm}"));
                    continue;
                }
                // The distributor has beacons of its own, and nobody is asked for a state.
                AuthorityAction::Judge(..) | AuthorityAction::Beacon(_) | AuthorityAction::Offer(..) => {
                    continue;
                }
            };
            self.tell(event, outcome);
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
    authority: Authority<'a>,
    socket: Socket<Distributor>,
    /// The tree could not be read lately.
    behind: bool,
    passed_over: Vec<(PathBuf, &'static str)>,
}

impl<'a> Server<'a> {
    fn start(config: &'a Config, log: &'a Log) -> Result<Self, ProcessError> {
        let refuse = |why: String| Err(ProcessError::Refused(why));
        if config.bind.is_empty() {
            return refuse("no address to listen at".into());
        }
        config.dir.canonicalize().map_err(|error| tree::TreeError::Io { path: config.dir.clone(), error })?;
        folders::apart(&config.dir, &config.state)?;
        let mut store = Store::open(&config.state)?;
        store.damaged().iter().for_each(|why| log.say(format_args!("damaged, passed over: {why}")));
        let identity = store.identity();
        let (authority, outcome) = Authority::open(config, &mut store, log)?;
        let origin = match outcome.published.into_iter().next_back() {
            Some(last) => Origin::restored(last.head, last.state, authority.opened),
            // Before its first commit the namespace has no epoch.
            None => Origin::begin(Epoch::default()),
        };
        let settings = Settings {
            cluster: Id::named(&config.cluster),
            namespace: config.namespace.clone(),
            server: identity.id,
            limits: config.limits,
            beacon: config.beacon,
            secret: config.secret.clone(),
            ..Settings::default()
        };
        let distributor = Distributor::new(settings, origin);
        let socket = Socket::new(distributor)?;
        follow(socket.events(), log.clone());
        for url in &config.bind {
            let endpoint = bind(&socket, url)?;
            log.say(format_args!("listening at {}", endpoint.url()));
        }
        Ok(Server { config, log, _store: store, authority, socket, behind: false, passed_over: Vec::new() })
    }

    fn trouble(&mut self, error: &ProcessError) {
        self.log.say(format_args!("the tree is not published: {error}; the last revision is served on"));
        self.behind = true;
    }

    /// Reads the tree and publishes what differs from the last revision.
    fn publish_tree(&mut self) -> Result<(), ProcessError> {
        self.look_at_shown()?;
        let read = tree::read_settled(&self.config.dir, &self.config.limits, self.config.debounce)?;
        tree::check(&read.state, false)?;
        if read.passed_over != self.passed_over {
            for (path, what) in &read.passed_over {
                self.log.say(format_args!("passed over: {} ({what})", path.display()));
            }
            self.passed_over = read.passed_over;
        }
        let last = self.socket.with(|d, _| d.state().cloned());
        let was_empty = last.as_ref().is_none_or(State::is_empty);
        if read.state.is_empty() && !was_empty && !self.config.allow_empty {
            return Err(ProcessError::Refused(format!(
                "{} is empty now; if that is meant, start with --allow-empty",
                self.config.dir.display()
            )));
        }
        let first = last.is_none();
        let changes = last.unwrap_or_default().diff(&read.state);
        if changes.is_empty() && !first {
            return Ok(());
        }
        self.commit(changes)
    }

    /// Durable first, then out.
    fn commit(&mut self, changes: crate::ChangeSet) -> Result<(), ProcessError> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let request = Request {
            request: random()?,
            expect: Some(self.authority.machine.position().map(Place::from).unwrap_or_default()),
            intent: Intent::Change(changes),
            author: "config-sync serve".into(),
            note: String::new(),
            stamp: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
        let mut outcome = Outcome::default();
        self.authority.tell(AuthorityEvent::Commit(Ticket(1), request), &mut outcome);
        let answer = outcome.answer.take();
        self.bring(outcome)?;
        match answer {
            Some(Answer::Committed { .. }) => Ok(()),
            other => Err(ProcessError::Refused(told(other.as_ref()))),
        }
    }

    /// What nodes showed may tell that this store is an old copy.
    fn look_at_shown(&mut self) -> Result<(), ProcessError> {
        if matches!(self.authority.machine.mode(), Mode::Vacant) {
            return Ok(());
        }
        let mut outcome = Outcome::default();
        for (node, head) in self.socket.with(|d, _| d.take_shown()) {
            self.authority.tell(AuthorityEvent::Shown(Ticket(0), node, head), &mut outcome);
        }
        self.bring(outcome)
    }

    fn bring(&mut self, outcome: Outcome) -> Result<(), ProcessError> {
        if let Some(opened) = outcome.opened {
            self.socket.with(|d, _| d.reopened(opened));
        }
        for published in outcome.published {
            let (head, changed) = (published.head.clone(), names(published.changes.keys()));
            let done = self.socket.with(|d, cx| d.publish(cx, published.into()));
            done.map_err(|e| ProcessError::Refused(e.to_string()))?;
            self.log.say(format_args!(
                "revision {}: {} keys, {} bytes, digest {:?}{changed}",
                head.position, head.keys, head.bytes, head.digest
            ));
        }
        for node in outcome.disputed {
            self.socket.with(|d, cx| d.dispute(cx, node));
        }
        Ok(())
    }

    /// Logs what nodes report, in a thread of its own, until the socket is closed.
    fn report(&self, shutdown: &Shutdown) -> std::thread::JoinHandle<()> {
        let (socket, log, shutdown) = (self.socket.clone(), self.log.clone(), shutdown.clone());
        std::thread::spawn(move || {
            let key = socket.with(|d, _| d.wait_key());
            let mut last: Vec<NodeStatus> = Vec::new();
            let mut told_epoch = 0;
            while !shutdown.is_over() {
                let changed = socket.wait(key, Some(Duration::from_secs(1)), |d, _| {
                    let now = d.status();
                    (now != last).then(|| (now, d.highest_epoch(), d.head().map(|h| h.position.epoch.number)))
                });
                match changed {
                    Ok((now, highest, own)) => {
                        // The steps between a change and its end are not worth a line for each node.
                        let told = |n: &NodeStatus| (n.connected, n.applied, n.refused.clone(), n.conflict);
                        for node in &now {
                            let before = last.iter().find(|old| old.node == node.node);
                            if before.map(told) != Some(told(node)) {
                                log.say(line(node));
                            }
                        }
                        if own.is_some_and(|own| highest > own) && highest != told_epoch {
                            told_epoch = highest;
                            log.say(format_args!(
                                "ALARM: a node has seen epoch {highest}: this state folder is old; \
                                 start with --new-epoch {}",
                                highest.saturating_add(1)
                            ));
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

/// Binds; an address that the server before this one has not let go of yet is waited for.
fn bind(socket: &Socket<Distributor>, url: &str) -> Result<spanwire::Endpoint, spanwire::Error> {
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
fn watch(config: &Config, log: &Log) -> (Receiver<()>, Option<notify::RecommendedWatcher>) {
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
        watcher.watch(&config.dir, notify::RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => (receiver, Some(watcher)),
        Err(error) => {
            log.say(format_args!(
                "the tree is read every {:?}: it cannot be watched: {error}",
                config.rescan
            ));
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
