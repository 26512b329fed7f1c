//! The authority of config-sync: publishes a directory tree, and again whenever it changes; or, without a tree, what
//! clients commit. One namespace, or several that share its addresses and nothing else.
//!
//! A tree is read whole, compared with the last revision, and a difference is committed: an
//! [`NsAuthority`](crate::NsAuthority) decides, its log in the state folder makes it durable, and only then it is
//! published. So a restart goes on where it was: revisions never fall, and nodes that hold the newest one get
//! nothing. What nodes show is judged by the same machine as it comes, in a thread of its own.
//!
//! A namespace has one source of truth: where a tree is published, commits by clients are refused.
//!
//! Owns: watching and reading trees, the state folder, the order in which a machine's actions reach the
//! nodes. Never: publishes half a tree, or an empty one in place of what may be another unless told to.

mod authority;
mod lines;
mod open;
mod place;
mod space;
mod watch;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use spanwire::Socket;

pub(crate) use authority::Authority;
use open::{begins, claim, open};
use space::{Opened, Space};
use watch::watch;

use crate::control::{self, Control};
use crate::process::{Log, ProcessError, Shutdown, believes_nobody, follow};
use crate::rollout::Audience;
use crate::sign::{Keyring, Secret};
use crate::store::{Role, Store};
use crate::wire::{MAX_NAMESPACE, MAX_WANTS};
use crate::{Distributor, Id, Key, Limits, NotServed, Origin, Settings, folders, tree};

/// A namespace that is served beside the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Further {
    /// Its name: 1 to 128 bytes, another for each.
    pub name: String,
    /// The tree that is published in it; `None`: it changes by the commits of clients.
    pub dir: Option<PathBuf>,
}

/// What to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// The tree, of the first namespace; `None`: the state lives in the log alone, and changes by the commits of clients.
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
    /// Name of the namespace, or of the first. Default: `config`.
    pub namespace: String,
    /// More namespaces, at the same addresses: at most 63. Each has its log in a folder of its own inside `state`, its
    /// own history and its own nodes; all else here is for all of them. Default: none.
    pub further: Vec<Further>,
    /// Bounds of each namespace.
    pub limits: Limits,
    /// Begin a new epoch with this number, above all that nodes have seen. For a state folder that was lost. Not with
    /// several namespaces: each may be served alone from the same folder.
    pub new_epoch: Option<u64>,
    /// Publish an empty tree even where there was another.
    pub allow_empty: bool,
    /// Publish the tree in the place of what clients committed. Not with several namespaces. Default: false.
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
            further: Vec::new(),
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

    /// The namespaces, in their order.
    fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.namespace)
            .chain(self.further.iter().map(|further| &further.name))
            .map(|name| &name[..])
    }

    /// The directory of each, in the same order.
    fn dirs(&self) -> impl Iterator<Item = Option<&PathBuf>> {
        std::iter::once(self.dir.as_ref()).chain(self.further.iter().map(|further| further.dir.as_ref()))
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
    socket: Socket<Distributor>,
    control: Option<Control>,
    /// In the order of their names in the config, as in the sender.
    spaces: Vec<Space>,
    /// Holds the lock on the state folder. The last: those of namespaces may be in it.
    store: Store,
}

impl<'a> Server<'a> {
    fn serve(&mut self, shutdown: &Shutdown) -> Result<(), ProcessError> {
        let Server { config, log, spaces, .. } = self;
        let (mut watched, mut others) = (Vec::new(), Vec::new());
        for space in spaces {
            match space.config.dir.clone() {
                Some(dir) => {
                    let (changed, watcher) = watch(&dir, config.rescan, log);
                    space.publish_first(&dir)?;
                    space.report(shutdown);
                    watched.push((space, dir, changed, watcher));
                }
                None => {
                    space.report(shutdown);
                    others.push(space);
                }
            }
        }
        // It has started.
        self.store.keep();
        let started = watched.iter_mut().map(|(space, ..)| space).chain(&mut others);
        started.for_each(|space| space.keep());
        std::thread::scope(|scope| {
            for (space, dir, changed, watcher) in watched {
                scope.spawn(move || {
                    space.publish(&dir, &changed, shutdown);
                    drop(watcher);
                });
            }
            // Nothing is ever said here but the end.
            let _ = shutdown.0.recv();
        });
        Ok(())
    }

    fn end(self) {
        let Server { socket, control, spaces, .. } = self;
        if let Some(control) = &control {
            control.close();
        }
        // A farewell, so that nodes need not wait for a beacon that does not come.
        let _ = socket.close(Duration::from_secs(1));
        drop(socket);
        if let Some(control) = control {
            control.join();
        }
        spaces.into_iter().for_each(Space::end);
    }

    fn start(config: &'a Config, log: &'a Log) -> Result<Self, ProcessError> {
        check(config)?;
        let mut store = Store::open_as(&config.state, Role::Server)?;
        let opened = open_all(config, &mut store, log)?;
        let settings = Settings {
            cluster: Id::named(&config.cluster),
            namespace: config.namespace.clone(),
            server: store.identity().id,
            beacon: config.beacon,
            secret: config.secret.clone(),
            ..Settings::default()
        };
        let mut origins = opened.iter().map(|opened| opened.driver.machine().origin());
        let mut sender = Distributor::new(settings, origins.next().unwrap_or_else(|| Origin::pending(1)));
        for (further, origin) in config.further.iter().zip(origins) {
            let made = sender.with_namespace(&further.name, origin);
            sender = made.map_err(|why| ProcessError::Refused(why.to_string()))?;
        }
        let socket = Socket::new(sender)?;
        follow(socket.events(), log.clone());
        let mut heard = Vec::new();
        for url in &config.bind {
            let endpoint = bind(&socket, url)?;
            heard.push(format!("listening at {}", endpoint.url()));
        }
        let control = match &config.control[..] {
            [] => None,
            _ => Some(control::listen(config, &mut heard)?),
        };
        // Nothing is said to begin where an address that cannot be used ends it.
        for opened in &opened {
            begins(&opened.config, opened.driver.machine()).into_iter().for_each(|line| opened.log.say(line));
        }
        heard.into_iter().for_each(|line| log.say(line));
        let spaces =
            opened.into_iter().enumerate().map(|(at, opened)| Space::start(opened, socket.clone(), at));
        let spaces: Vec<Space> = spaces.collect::<Result<_, _>>()?;
        let served = || spaces.iter().map(|space| (&space.authority, &space.config, &space.log));
        let control = control.map(|rep| Control::start(rep, served()));
        believes_nobody(&config.keys, log);
        Ok(Server { config, log, socket, control, spaces, store })
    }
}

/// A namespace without a name.
const EMPTY: &str = "a namespace has a name, and an empty name is none (--namespace)";

/// What makes no sense, before anything is created.
fn check(config: &Config) -> Result<(), ProcessError> {
    let refuse = |why: String| Err(ProcessError::Refused(why));
    if config.bind.is_empty() {
        return refuse("no address to listen at (--bind)".into());
    }
    for (at, name) in config.names().enumerate() {
        let why = match name.len() {
            _ if at >= MAX_WANTS => NotServed::TooMany,
            0 => return refuse(EMPTY.into()),
            len if len > MAX_NAMESPACE => NotServed::Long(len),
            _ if config.names().take(at).any(|other| other == name) => NotServed::Twice(name.into()),
            _ => continue,
        };
        return refuse(why.to_string());
    }
    if !config.further.is_empty() && (config.new_epoch.is_some() || config.replace) {
        return refuse(
            "--new-epoch and --replace are for one namespace: start with that one alone, once".into(),
        );
    }
    if !config.further.is_empty() && config.state.as_os_str().is_empty() {
        return refuse("several namespaces have no state folder of themselves: name one (--state)".into());
    }
    for dir in config.dirs().flatten() {
        // Beside a file, the state folder would lie in a directory that may be published.
        std::fs::read_dir(dir).map_err(|error| tree::TreeError::Io { path: dir.clone(), error })?;
        folders::apart(dir, &config.state)?;
    }
    if config.state.as_os_str().is_empty() {
        return refuse("no state folder (--state)".into());
    }
    if config.control.is_empty()
        && let Some((name, _)) = config.names().zip(config.dirs()).find(|(_, dir)| dir.is_none())
    {
        let of = if config.further.is_empty() { String::new() } else { format!("the namespace {name}: ") };
        return refuse(format!(
            "{of}neither a directory to publish (--dir) nor an address for commits (--control)"
        ));
    }
    Ok(())
}

/// Every namespace, from its folder; `store` is that of the server.
fn open_all(config: &Config, store: &mut Store, log: &Log) -> Result<Vec<Opened>, ProcessError> {
    let say = |store: &Store, log: &Log| {
        store.damaged().iter().for_each(|why| log.say(format_args!("damaged, passed over: {why}")));
    };
    say(store, log);
    let places = place::places(config)?;
    for (left, name) in place::left_out(config, &places)? {
        let name = name.map_or(String::new(), |name| format!(": {name}"));
        log.say(format_args!("a namespace that is not served is kept in {}{name}", left.display()));
    }
    let mut all = Vec::new();
    for ((name, dir), state) in config.names().zip(config.dirs()).zip(places) {
        // Beside an option that is for one namespace.
        let (log, alone) = match config.further.is_empty() {
            true => (log.clone(), String::new()),
            false => (log.of(name), format!(", with this namespace alone (--namespace {name})")),
        };
        let mut own = if state == config.state { None } else { Some(Store::open_as(&state, Role::Server)?) };
        own.iter().for_each(|own| say(own, &log));
        let config = Config {
            namespace: name.into(),
            dir: dir.cloned(),
            state,
            further: Vec::new(),
            ..config.clone()
        };
        let there = own.as_mut().unwrap_or(store);
        let driver = open(&config, there, &log, &alone)?;
        claim(&config, there, driver.machine(), &alone)?;
        all.push(Opened { config, log, store: own, driver, alone });
    }
    Ok(all)
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
