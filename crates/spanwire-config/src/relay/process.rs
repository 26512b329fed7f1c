//! The relay of config-sync: receives what an authority publishes and serves it to others.
//!
//! Two sockets, one to servers above and one for nodes below, and the machine between them. What is verified goes
//! down at once; the state folder is written beside that, so that after a restart the relay serves what it had,
//! whether a server above answers or not.
//!
//! Owns: the threads, the state folder, the order in which the machine's actions are done. Never: a decision.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use spanwire::protocol::Time;
use spanwire::{Socket, WaitError};

use super::{Cached, cached};
use crate::process::{Log, ProcessError, RAISED, Shutdown, believes_nobody, follow, ours};
use crate::serve::bind;
use crate::sign::Keyring;
use crate::store::{Contradiction, Evidence, Role, Store};
use crate::{
    Data, Distributor, Head, Id, Level, Limits, NodeKind, NsRelay, RelayAction, RelayEvent, RelaySettings,
    Replica, ReplicaSettings, Settings, State,
};

/// What to relay.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses of servers above: at least one. The one that answers first is used while it lives; then the next
    /// in this order of those that stand by.
    pub connect: Vec<String>,
    /// Addresses to listen at: at least one.
    pub bind: Vec<String>,
    /// The state folder.
    pub state: PathBuf,
    /// Name of the relay, for people. Default: the name of the state folder.
    pub name: String,
    /// Name of the cluster. Default: `config-sync`.
    pub cluster: String,
    /// Name of the namespace. Default: `config`.
    pub namespace: String,
    /// Bounds of what it takes.
    pub limits: Limits,
    /// Whose signatures are believed, of servers above and of what nodes show. Default: none are asked for.
    pub keys: Keyring,
    /// Time between beacons. Default: 1 s.
    pub beacon: Duration,
}

impl Config {
    /// Relays with this state folder, with no address yet, and the defaults.
    pub fn new(state: impl Into<PathBuf>) -> Config {
        let state = state.into();
        let name = state.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Config {
            connect: Vec::new(),
            bind: Vec::new(),
            state,
            name,
            cluster: "config-sync".into(),
            namespace: "config".into(),
            limits: Limits::default(),
            keys: Keyring::new(),
            beacon: Duration::from_secs(1),
        }
    }
}

/// Relays until `shutdown`.
///
/// # Errors
/// What keeps it from starting: the folder, addresses. Once it runs, trouble is logged and it serves on.
pub fn run(config: &Config, shutdown: &Shutdown, log: &Log) -> Result<(), ProcessError> {
    let refuse = |why: &str| Err(ProcessError::Refused(why.into()));
    if config.connect.is_empty() {
        return refuse("no server to connect to (--connect)");
    }
    if config.bind.is_empty() {
        return refuse("no address to listen at (--bind)");
    }
    let mut store = Store::open_as(&config.state, Role::Relay)?;
    believes_nobody(&config.keys, log);
    store.set_trust(config.keys.clone());
    let loaded = store.load(config.limits.bytes);
    let damaged = store.damaged().iter().chain(&loaded.damaged);
    damaged.for_each(|why| log.say(format_args!("damaged, passed over: {why}")));
    if let Some((head, _)) = &loaded.newest {
        ours(&config.state, head, &config.cluster, &config.namespace)?;
        log.say(format_args!("last good revision: {} ({} keys)", head.position, head.keys));
    }
    let conflict = store.conflict(loaded.newest.as_ref().map(|(head, _)| head));
    let cache = cached(loaded.newest, loaded.before);
    let (relay, persist) = Relay::new(config, store, cache, conflict, log)?;
    follow(relay.lower.events(), log.clone());
    for url in &config.bind {
        log.say(format_args!("listening at {}", bind(&relay.lower, url)?.url()));
    }
    follow(relay.upper.events(), log.clone());
    for url in &config.connect {
        relay.upper.connect(url)?;
    }
    relay.lock().store().keep();
    let (above, below, disk) = (relay.clone(), relay.clone(), relay.clone());
    let threads = [
        std::thread::spawn(move || above.watch_above()),
        std::thread::spawn(move || below.watch_below()),
        std::thread::spawn(move || disk.keep(&persist)),
    ];
    // Disconnected when the stopper is dropped.
    let _ = shutdown.0.recv();
    relay.end();
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// The machine and its two sockets: what it wants done is done under its lock, and so in its order. A socket's
/// lock is taken within, never around it.
struct Relay {
    inner: Mutex<Inner>,
    upper: Socket<Replica>,
    lower: Socket<Distributor>,
    log: Log,
}

struct Inner {
    machine: NsRelay,
    /// Gone when the process ends.
    persist: Option<Sender<(Head, State)>>,
    store: Arc<Mutex<Store>>,
    evidence: Evidence,
    /// The start number was raised once already.
    renewed: bool,
    said: Option<(Data, Option<Id>)>,
}

impl Inner {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Kept = (Arc<Mutex<Store>>, Receiver<(Head, State)>);

impl Relay {
    fn new(
        config: &Config,
        store: Store,
        (cache, canary): (Cached, Cached),
        conflict: Option<Contradiction>,
        log: &Log,
    ) -> Result<(Arc<Relay>, Kept), ProcessError> {
        let (identity, cluster) = (store.identity(), Id::named(&config.cluster));
        let receiver = ReplicaSettings {
            cluster,
            namespace: config.namespace.clone(),
            node: identity.id,
            boot: identity.boot,
            kind: NodeKind::Relay,
            name: config.name.clone(),
            limits: config.limits,
            trust: config.keys.clone(),
            ..ReplicaSettings::default()
        };
        let replica = match canary.clone().or(cache.clone()) {
            Some((head, state)) => Replica::restored(receiver, head, state, Level::Stored),
            None => Replica::new(receiver),
        };
        let replica = replica.in_conflict(conflict.clone());
        let settings = RelaySettings {
            cluster,
            namespace: config.namespace.clone(),
            node: identity.id,
            keys: config.keys.clone(),
            ..RelaySettings::default()
        };
        let machine = NsRelay::new(settings, cache).with_canary(canary);
        let sender = Settings {
            cluster,
            namespace: config.namespace.clone(),
            server: identity.id,
            beacon: config.beacon,
            ..Settings::default()
        };
        let distributor = Distributor::new(sender, machine.origin());
        // The machine persists one at a time: this never waits.
        let (persist, kept) = crossbeam_channel::bounded(1);
        let store = Arc::new(Mutex::new(store));
        let inner = Inner {
            machine,
            persist: Some(persist),
            store: store.clone(),
            evidence: Evidence::new(conflict),
            renewed: false,
            said: None,
        };
        let relay = Relay {
            inner: Mutex::new(inner),
            upper: Socket::new(replica)?,
            lower: Socket::new(distributor)?,
            log: log.clone(),
        };
        Ok((Arc::new(relay), (store, kept)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        self.lower.with(|_, cx| cx.now())
    }

    /// Does what there is to be done; returns how long there is nothing.
    fn turn(&self) -> Duration {
        let mut inner = self.lock();
        loop {
            let mut events = self.upper.with(|r, cx| r.relay_events(cx));
            events.extend(self.lower.with(|d, _| d.relay_events()));
            let now = self.now();
            if inner.machine.due().is_some_and(|due| due <= now) {
                events.push(RelayEvent::Time);
            }
            if events.is_empty() {
                break;
            }
            events.into_iter().for_each(|event| self.tell(&mut inner, event, now));
        }
        self.look(&mut inner);
        let due = inner.machine.due().map(|due| due.saturating_since(self.now()));
        due.unwrap_or(Duration::from_secs(1)).min(Duration::from_secs(1))
    }

    fn tell(&self, inner: &mut Inner, event: RelayEvent, now: Time) {
        for action in inner.machine.handle(event, now) {
            if let RelayAction::Publish(published) = &action {
                let head = &published.head;
                self.log.say(format_args!(
                    "revision {}: {} keys, digest {:?}",
                    head.position, head.keys, head.digest
                ));
            }
            let left = match self.lower.with(|d, cx| d.perform_relay(cx, action)) {
                Ok(None) => continue,
                Ok(Some(left)) => left,
                // Cannot be: what is published follows what this machine published before.
                Err(stale) => {
                    self.log.say(format_args!("not served: {stale}"));
                    continue;
                }
            };
            // What is not known any more need not be said.
            let Ok(Some(left)) = self.upper.with(|r, cx| r.perform_relay(cx, left)) else { continue };
            match left {
                RelayAction::Persist(head, state) => {
                    if let Some(persist) = &inner.persist {
                        let _ = persist.send((head, state));
                    }
                }
                RelayAction::Report { whole } => self.report(whole),
                RelayAction::Alarm(alarm) => self.log.say(format_args!("ALARM: {alarm}")),
                _ => {}
            }
        }
    }

    /// Tells the table upward as far as there is room; the rest is a change that is told after the next flush.
    fn report(&self, whole: bool) {
        if whole {
            self.lower.with(|d, _| d.report_all());
        }
        while let Some(report) = self.lower.with(|d, _| d.take_report()) {
            if !self.upper.with(|r, cx| r.report(cx, &report)) {
                return self.lower.with(|d, _| d.put_back(&report));
            }
        }
    }

    /// What people want to know, and a start number that a server knows to be old.
    fn look(&self, inner: &mut Inner) {
        let status = self.upper.with(|r, cx| r.status(cx.now()));
        if let Some(boot) = status.stale_boot {
            let mut store = inner.store.lock().unwrap_or_else(PoisonError::into_inner);
            let written = if inner.renewed { store.renew() } else { store.raise_above(boot) };
            if let Err(error) = written {
                self.log.say(format_args!("not noted, so it holds until this process ends: {error}"));
            }
            let identity = store.identity();
            drop(store);
            self.log.say(if inner.renewed {
                "ALARM: another process uses a copy of this state folder; this one takes a new id"
            } else {
                RAISED
            });
            inner.renewed = true;
            self.upper.with(|r, _| r.set_identity(identity.id, identity.boot));
            self.tell(inner, RelayEvent::Renamed(identity.id), self.now());
        }
        if inner.evidence.is_news(status.evidence.as_ref()) {
            let store = inner.store.clone();
            let store = store.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(why) = inner.evidence.keep(&store, status.evidence.as_ref(), Instant::now()) {
                self.log.say(why);
            }
        }
        let seen = (status.data, status.upstream);
        if inner.said != Some(seen) {
            inner.said = Some(seen);
            let none = if status.upstream.is_some() { "" } else { " (no server above)" };
            self.log.say(format_args!("state: {:?}{none}", status.data));
        }
    }

    fn watch_above(&self) {
        let key = self.upper.with(|r, _| r.wait_key());
        loop {
            let limit = Some(self.turn());
            let news = |r: &mut Replica| r.has_relay_events().then_some(());
            match self.upper.wait(key, limit, |r, _| news(r)) {
                Ok(()) | Err(WaitError::TimedOut) => {}
                Err(_) => return,
            }
        }
    }

    fn watch_below(&self) {
        let key = self.lower.with(|d, _| d.wait_key());
        loop {
            let limit = Some(self.turn());
            let news = |d: &mut Distributor| d.has_relay_events().then_some(());
            match self.lower.wait(key, limit, |d, _| news(d)) {
                Ok(()) | Err(WaitError::TimedOut) => {}
                Err(_) => return,
            }
        }
    }

    /// Writes what is verified to disk, one after the other.
    fn keep(&self, (store, kept): &Kept) {
        let mut full = false;
        for (head, state) in kept {
            let position = head.position;
            let mut open = store.lock().unwrap_or_else(PoisonError::into_inner);
            let stored = open.save(&head, &state).map_err(|error| error.to_string());
            drop(open);
            if std::mem::replace(&mut full, stored.is_err()) && !full {
                self.log.say("the disk takes revisions again");
            }
            let mut inner = self.lock();
            self.tell(&mut inner, RelayEvent::Stored(position, stored), self.now());
        }
    }

    fn end(&self) {
        let latest = Instant::now() + Duration::from_secs(1);
        self.lock().persist = None;
        let left = || latest.saturating_duration_since(Instant::now());
        let _ = self.upper.close(left());
        let _ = self.lower.close(left());
    }
}
