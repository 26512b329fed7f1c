//! The agent of config-sync: keeps a directory equal to what an authority publishes.
//!
//! A revision is checked, staged, stored, put in place file by file, and then the hook runs; the authority is
//! told of each step. With no server to reach, the agent starts with the last good revision from its state
//! folder. What it holds never goes back.
//!
//! Owns: the output directory and the state folder of one node. Never: shows what was not verified; touches
//! anything outside both.

mod act;
mod place;
mod promotion;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use spanwire::{RecvError, Socket};

use crate::again::{self, Again};
use crate::check::Check;
use crate::command::Failure;
use crate::hook::{Owed, lines};
use crate::layout::Kept;
use crate::process::{Log, ProcessError, RAISED, Shutdown, believes_nobody, follow, ours};
use crate::render::Templates;
use crate::serve::names;
use crate::sign::Keyring;
use crate::store::{Evidence, Identity, Loaded, NewDir, Role, Store, StoreError};
use crate::tree;
use crate::wire::client::MAX_NAME;
use crate::wire::{NackCode, NamespaceStatus};
use crate::{
    ChangeSet, Data, Head, Id, Kept as Held, Key, Level, Limits, Position, Replica, ReplicaSettings,
    ReplicaStatus, State, Update, folders,
};

pub use crate::layout::Layout;
pub use crate::render::{Template, TemplateError};
pub use act::OnFailure;
use promotion::Promotion;

/// Note in the state folder: which templates made what is applied, and the keys of what they made.
const MADE: &str = "made";

/// What to keep where.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses of the server: at least one. The one that answers first is used while it lives; then the
    /// next in this order of those that stand by.
    pub connect: Vec<String>,
    /// The directory; it holds nothing but what is published. No mount point: files are written outside of it
    /// and renamed into it.
    pub out: PathBuf,
    /// The state folder; neither of it and `out` is inside the other. Default: beside `out`, with `.state`
    /// added to its name; empty (which is refused) if nothing lies beside it. On another file system than
    /// `out`, files on their way are kept beside `out`, with `.staging` added.
    pub state: PathBuf,
    /// How revisions lie below `out`. Default: the files of the newest one.
    pub layout: Layout,
    /// Files made of each revision, beside those that it holds. Default: none.
    pub templates: Vec<Template>,
    /// Name of the node, for people. Default: the name of `out`.
    pub name: String,
    /// Name of the cluster. Default: `config-sync`.
    pub cluster: String,
    /// Name of the namespace. Default: `config`.
    pub namespace: String,
    /// Labels of the node: name and value, each name once.
    pub labels: Vec<(String, String)>,
    /// Whose revisions are believed; empty: anybody's. Default: empty.
    pub trust: Keyring,
    /// Command for `sh -c` that refuses a revision by failing, before anything of it is kept or shown. It runs in a
    /// directory that holds the new tree.
    pub validate: Option<String>,
    /// How long that command may take. Default: 30 s.
    pub validate_limit: Duration,
    /// Command for `sh -c` after each change.
    pub on_change: Option<String>,
    /// How long the command may take. Default: 30 s.
    pub hook_limit: Duration,
    /// What becomes of the files of a revision whose hook failed. Default: they stay.
    pub on_failure: OnFailure,
    /// Bounds of what the node takes.
    pub limits: Limits,
    /// Take over a directory that holds something already and was not this agent's: what is not published
    /// is deleted.
    pub take_over: bool,
    /// Say once a second how far a snapshot is that takes longer. Default: false.
    pub progress: bool,
    /// How long to wait before a failed step is tried again for the first time; each wait is twice the one before, but for
    /// up to half of it, by chance. Default: 1 s.
    pub again: Duration,
    /// The longest of these waits. Default: 60 s.
    pub again_most: Duration,
}

impl Config {
    /// Keeps `out`, with no server yet, and the defaults.
    pub fn new(out: impl Into<PathBuf>) -> Config {
        let out = out.into();
        let named = folders::beside(&out, "").unwrap_or_default();
        let name = named.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Config {
            connect: Vec::new(),
            state: folders::beside(&out, ".state").unwrap_or_default(),
            out,
            layout: Layout::default(),
            templates: Vec::new(),
            name,
            cluster: "config-sync".into(),
            namespace: "config".into(),
            labels: Vec::new(),
            trust: Keyring::new(),
            validate: None,
            validate_limit: Duration::from_secs(30),
            on_change: None,
            hook_limit: Duration::from_secs(30),
            on_failure: OnFailure::default(),
            limits: Limits::default(),
            take_over: false,
            progress: false,
            again: again::WAIT.0,
            again_most: again::WAIT.1,
        }
    }
}

/// Keeps the directory until `shutdown`.
///
/// # Errors
/// What keeps it from starting: folders, addresses. Once it runs, trouble is logged, reported upward and
/// tried again; so is trouble with what is in the directory.
pub fn run(config: &Config, shutdown: &Shutdown, log: &Log) -> Result<(), ProcessError> {
    let mut agent = Agent::start(config, shutdown, log)?;
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
        if shutdown.is_over() {
            // What was under way is not answered for; asking for more would say that it is shown.
            break;
        }
        agent.on_time();
    }
    let _ = ended.join();
    Ok(())
}

struct Agent<'a> {
    config: &'a Config,
    shutdown: &'a Shutdown,
    log: &'a Log,
    store: Store,
    output: Kept,
    templates: Templates,
    check: Option<Check>,
    socket: Socket<Replica>,
    /// What the directory is to hold: what is published, and what templates make of it. The newest revision, but after
    /// its hook failed.
    shown: Option<(Head, State)>,
    /// The same, of the revision that the hook succeeded for last.
    applied: Option<(Head, State)>,
    /// It is shown in the place of the newest.
    fallen: Option<act::Fallen>,
    /// What the hook is to be told of.
    owed: Owed,
    /// The directory may not hold what is shown.
    dirty: bool,
    /// Held for want of room on the disk, or of a process: ask for it again then.
    retry: Again,
    /// The disk took nothing when that was tried last.
    full: bool,
    repair: Again,
    /// The hook could not be run: try again then.
    act: Again,
    /// What was applied is not noted: try again then.
    note: Again,
    renewed: bool,
    /// For whom that is which is on disk.
    promotion: Promotion,
    evidence: Evidence,
    status: Option<(Data, Option<Id>)>,
    /// What the server in use says of the namespace.
    namespace: Option<NamespaceStatus>,
}

impl<'a> Agent<'a> {
    fn start(config: &'a Config, shutdown: &'a Shutdown, log: &'a Log) -> Result<Self, ProcessError> {
        let refuse = |why: String| Err(ProcessError::Refused(why));
        if config.connect.is_empty() {
            return refuse("no server to connect to (--connect)".into());
        }
        folders::apart(&config.out, &config.state)?;
        folders::not_kept(&config.out, &config.state)?;
        let Config { name, labels, limits, .. } = config;
        if let Some((twice, _)) = (labels.iter().enumerate())
            .find(|(n, (name, _))| labels.iter().take(*n).any(|(other, _)| other == name))
            .map(|(_, label)| label)
        {
            return refuse(format!("the label {twice} has two values; a label has one"));
        }
        if name.len() > MAX_NAME {
            return refuse(format!("the name has {} bytes; {MAX_NAME} at most", name.len()));
        }
        let templates = Templates::read(&config.templates, name, labels, limits)?;
        if tree::is_mount_point(&config.out) {
            return refuse(format!(
                "{} is a mount point: no file outside of it can be put in place at once; keep a directory \
                 below it, such as {}, with a state folder beside that or named with --state",
                config.out.display(),
                config.out.join("current").display()
            ));
        }
        let mut store = Store::open_as(&config.state, Role::Agent)?;
        believes_nobody(&config.trust, log);
        store.set_trust(config.trust.clone());
        let loaded = store.load(config.limits.bytes);
        let held = loaded.newest.iter().flat_map(|(_, state)| state.iter().map(|(key, _)| key));
        folders::none_inside(&config.out, config.layout, held.chain(templates.keys()))?;
        let (output, new) = place::open(config, &store)?;
        let damaged = store.damaged().iter().chain(&loaded.damaged);
        damaged.for_each(|why| log.say(format_args!("damaged, passed over: {why}")));
        if let Some((head, _)) = &loaded.newest {
            ours(&config.state, head, &config.cluster, &config.namespace)?;
        }
        let check = config.validate.as_deref();
        let check = check.map(|command| Check::open(&store, command, config.validate_limit)).transpose()?;
        let identity = store.identity();
        let applied = store.applied();
        let replica = match &loaded.newest {
            Some((head, state)) => {
                let level = if applied == Some(head.base()) { Level::Applied } else { Level::Stored };
                let kept = Held::revision(head.clone(), state.clone(), level).applied_before(applied);
                Replica::keeping(settings(config, identity), kept)
            }
            None => Replica::new(settings(config, identity)),
        };
        let conflict = store.conflict(loaded.newest.as_ref().map(|(head, _)| head));
        let again = Again::new(config.again, config.again_most);
        let mut agent = Agent {
            config,
            shutdown,
            log,
            store,
            output,
            templates,
            check,
            socket: Socket::new(replica.in_conflict(conflict.clone()))?,
            shown: None,
            applied: None,
            fallen: None,
            owed: Owed::default(),
            // Whatever is in the directory before the first revision was not put there by this process.
            dirty: true,
            retry: again.clone(),
            full: false,
            repair: again.clone(),
            act: again.clone(),
            note: again.clone(),
            renewed: false,
            promotion: Promotion::new(
                loaded.newest.as_ref().map(|(head, _)| head.audience.clone()).unwrap_or_default(),
                again,
            ),
            evidence: Evidence::new(conflict),
            status: None,
            namespace: None,
        };
        agent.resume(loaded);
        follow(agent.socket.events(), log.clone());
        for url in &config.connect {
            agent.socket.connect(url)?;
        }
        agent.store.keep();
        new.into_iter().for_each(NewDir::keep);
        Ok(agent)
    }

    /// Puts the last good revision in place before any server is asked.
    fn resume(&mut self, Loaded { newest, applied, .. }: Loaded) {
        let Some((head, state)) = newest else { return };
        let applied = applied.and_then(|(head, state)| Some((head, self.templates.render(&state).ok()?)));
        let files = match self.templates.render(&state) {
            Ok(files) => files,
            // Other templates than those that it was accepted with. What is there stays, and a revision that they can
            // be rendered with puts everything in its place.
            Err(error) => {
                let why = format!("the last good revision is not put in place: {error}");
                self.log.say(&why);
                return self.nack(head.position, NackCode::Hook, &why);
            }
        };
        if self.store.applied() != Some(head.base()) {
            // The hook has not acted on it. It is owed what was noted before the revision was stored, and all that
            // differs from the one that it did act on; if that is lost, all may have changed.
            let known = applied.as_ref().map(|(_, files)| files.clone()).unwrap_or_default();
            self.owed = Owed::noted(&self.store).unwrap_or_default();
            self.owed.add(known.diff(&files).keys(), self.most_owed());
        }
        // Files of other templates are not what it acted on.
        let same = self.store.note(MADE).unwrap_or_default() == self.made();
        self.applied = applied.filter(|_| same);
        self.owe_made();
        let position = head.position;
        let holds = format!("{position}: {} keys, digest {:?}", head.keys, head.digest);
        let repaired = self.output.repair(&head, &files);
        self.shown = Some((head, files));
        match repaired {
            Ok(differed) => {
                self.log.say(format_args!("last good revision in place: {holds}"));
                if !differed.is_empty() {
                    self.log.say(format_args!("repaired what differed from it: {}", differed.join(", ")));
                }
                self.in_place(position);
            }
            Err(error) => {
                self.log.say(format_args!("last good revision: {holds}"));
                self.not_in_place(position, &error.to_string());
            }
        }
    }

    /// Whom other templates made files for before: their keys, and those of now, may have changed.
    fn owe_made(&mut self) {
        let before = self.store.note(MADE).unwrap_or_default();
        if before != self.made() {
            let before: Vec<Key> =
                before.split(|b| *b == b'\n').skip(1).filter_map(|key| Key::new(key).ok()).collect();
            self.owed.add(before.iter().chain(self.templates.keys()), self.most_owed());
        }
    }

    fn made(&self) -> Vec<u8> {
        let mark: String = self.templates.mark().iter().map(|byte| format!("{byte:02x}")).collect();
        if mark.is_empty() {
            Vec::new()
        } else {
            [mark.as_bytes(), b"\n", &lines(self.templates.keys())].concat()
        }
    }

    /// All keys may be renamed in one revision; of more, only deletes of long ago are left out.
    fn most_owed(&self) -> usize {
        (self.config.limits.keys as usize).saturating_mul(2)
    }

    fn pause(&self) -> Duration {
        let now = Instant::now();
        let next = [&self.retry, &self.repair, &self.act, &self.note, &self.promotion.again]
            .into_iter()
            .filter_map(Again::at)
            .min();
        next.map_or(Duration::from_secs(1), |at| at.saturating_duration_since(now))
            .min(Duration::from_secs(1))
    }

    /// One verified revision: validate, stage, persist, publish, act; each step is told upward.
    fn on_update(&mut self, update: Update) {
        let position = update.position();
        let files = match self.templates.render(&update.state) {
            Ok(files) => files,
            Err(error) => return self.refuse(position, NackCode::Validator, &error.to_string()),
        };
        if let Err(error) = tree::check(&files, self.output.ignores_case()) {
            return self.refuse(position, NackCode::Validator, &error.to_string());
        }
        let before = self.shown.as_ref().map(|(_, state)| state.clone()).unwrap_or_default();
        let changes = before.diff(&files);
        match self
            .check
            .as_ref()
            .map(|check| check.run(&update.head, &files, &changes, &self.config.out, self.shutdown))
        {
            None | Some(Ok(())) => {}
            Some(Err(Failure::Failed(why))) => {
                self.retry.done();
                return self.refuse(position, NackCode::Check, &why);
            }
            Some(Err(Failure::NotRun(why))) => {
                self.retry.failed(Instant::now(), again::random());
                return self.refuse(position, NackCode::Check, &format!("not run: {why}"));
            }
            Some(Err(Failure::Ended)) => return,
        }
        let mut owed = self.owed.clone();
        owed.add(changes.keys(), self.most_owed());
        // What needs room on the disk comes before anything is said or shown.
        // Not noted, what the hook succeeded for could lose its slot.
        let noted = self.note_applied();
        let found = self.find_output();
        let stored = (|| -> Result<_, String> {
            found?;
            let shown = self.shown.as_ref().map(|(head, state)| (head, state));
            let staged = self.output.stage(&update.head, &files, shown, &changes);
            let staged = staged.map_err(|e| e.to_string())?;
            noted.map_err(|e| e.to_string())?;
            if self.config.on_change.is_some() {
                owed.note(&self.store).map_err(|e| e.to_string())?;
            }
            self.store.save(&update.head, &update.state).map_err(|e| e.to_string())?;
            Ok(staged)
        })();
        let staged = match stored {
            Ok(staged) => staged,
            Err(why) => {
                self.refuse(position, NackCode::Storage, &why);
                return self.no_room();
            }
        };
        self.retry.done();
        if std::mem::take(&mut self.full) {
            self.log.say("the disk takes revisions again");
        }
        self.owed = owed;
        self.promotion.stored(update.head.audience.clone());
        self.ack(position, Level::Stored);
        // A directory for each revision takes away all else with each of them.
        let unsafe_now = self.config.layout != Layout::Flat && self.none_inside(&files).is_err();
        let switched = if self.dirty || unsafe_now { Err(None) } else { staged.switch().map_err(Some) };
        (self.shown, self.fallen) = (Some((update.head.clone(), files)), None);
        self.log.say(format_args!(
            "revision {position}: {} keys, digest {:?}{}",
            update.head.keys,
            update.head.digest,
            names(changes.keys())
        ));
        match switched {
            Ok(()) => self.in_place(position),
            Err(why) => {
                if let Some(why) = why {
                    self.log.say(format_args!("{why}; the directory is compared whole"));
                }
                self.repair(Some(&changes));
            }
        }
    }

    /// Makes the directory hold what is shown, whatever is in it. Of a revision that has just come, `expected` to differ is
    /// what it changes.
    fn repair(&mut self, expected: Option<&ChangeSet>) {
        let Some((head, state)) = self.shown.clone() else { return };
        if let Err(why) = self.find_output() {
            return self.not_in_place(head.position, &why);
        }
        let none = self.none_inside(&state).map_err(|error| error.to_string());
        match none.and_then(|()| self.output.repair(&head, &state).map_err(|error| error.to_string())) {
            Ok(mut differed) => {
                let changes = expected.into_iter().flat_map(ChangeSet::keys).map(Key::to_string);
                let own = expected.and_then(|_| self.output.own(&head));
                let changes: BTreeSet<String> = changes.chain(own).collect();
                let below = |dir: &str| {
                    let dir = format!("{dir}/");
                    changes.range(dir.clone()..).next().is_some_and(|key| key.starts_with(&dir))
                };
                differed.retain(|what| {
                    !changes.contains(what) && !what.strip_suffix(" (directory)").is_some_and(below)
                });
                if !differed.is_empty() {
                    self.log.say(format_args!(
                        "the directory was compared whole; put right: {}",
                        differed.join(", ")
                    ));
                }
                self.in_place(head.position);
            }
            Err(why) => self.not_in_place(head.position, &why),
        }
    }

    /// Nobody's state folder would be deleted.
    fn none_inside(&self, files: &State) -> Result<(), StoreError> {
        folders::none_inside(&self.config.out, self.config.layout, files.iter().map(|(key, _)| key))
    }

    /// The directory holds what is shown.
    fn in_place(&mut self, position: Position) {
        self.dirty = false;
        self.repair.done();
        if self.fallen.is_none() {
            self.ack(position, Level::Visible);
        }
        self.act();
    }

    fn not_in_place(&mut self, position: Position, error: &str) {
        self.dirty = true;
        self.repair.failed(Instant::now(), again::random());
        // The hook waits for that.
        self.act.done();
        let why = format!("files are not in place: {error}");
        self.log.say(&why);
        self.not_applied(position, &why);
    }

    fn ack(&self, position: Position, level: Level) {
        // It is the one given or the one shown; if an operator's call came between, nothing is lost.
        let _ = self.socket.with(|r, cx| match level {
            Level::Applied => r.ack(cx, position, level, false),
            // What is next may take long, or be done at once.
            _ => r.ack_in_passing(cx, position, level, false),
        });
    }

    fn nack(&self, position: Position, code: NackCode, why: &str) {
        let _ = self.socket.with(|r, cx| r.nack(cx, position, code, why));
    }

    fn refuse(&mut self, position: Position, code: NackCode, why: &str) {
        self.log.say(format_args!("revision {position} refused: {why}"));
        self.nack(position, code, why);
    }

    /// A revision is held since it cannot be kept: nothing is shown that a restart would lose.
    fn no_room(&mut self) {
        self.retry.failed(Instant::now(), again::random());
        if !std::mem::replace(&mut self.full, true) {
            self.log.say(format_args!(
                "ALARM: nothing new can be kept on the disk ({}, {}): what was last kept stays in place; tried again, \
                 with pauses up to {:?}",
                self.config.state.display(),
                self.config.out.display(),
                self.config.again_most
            ));
        }
    }

    /// What time brings: retries, another identity, news of the connection.
    fn on_time(&mut self) {
        let now = Instant::now();
        if self.retry.is_due(now) {
            self.socket.with(|r, cx| r.retry(cx));
        }
        if self.repair.is_due(now) {
            self.repair(None);
        }
        if self.act.is_due(now) {
            self.act();
        }
        self.keep_promotion(now);
        if self.note.is_due(now) {
            self.note();
        }
        let status: ReplicaStatus = self.socket.with(|r, cx| r.status(cx.now()));
        if let Some(boot) = status.stale_boot {
            self.take_identity(boot);
        }
        if let (true, Some((came, of)), Some(newest)) = (self.config.progress, status.arriving, status.newest)
        {
            let (came, of) = (came >> 10, of >> 10);
            self.log.say(format_args!("receiving {newest}: {came} of {of} KiB"));
        }
        if let (true, Some(place)) = (self.config.progress, status.waiting) {
            self.log.say(format_args!("waiting for a transfer: place {place}"));
        }
        if let Err(why) = self.evidence.keep(&self.store, status.evidence.as_ref(), now) {
            self.log.say(why);
        }
        if std::mem::replace(&mut self.namespace, status.namespace) != status.namespace
            && let Some(why) = status.namespace.and_then(not_served)
        {
            self.log.say(format_args!("namespace {:?}: {why}", self.config.namespace));
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
                    "ALARM: two histories: {} and {}; the first stays until a higher epoch comes, or for \
                     `config-sync resync --discard --state {}` while this process does not run",
                    mine.position,
                    other.position,
                    self.config.state.display()
                ));
            }
        }
    }

    /// What is visible is for more nodes than it was, or for all: after a restart, too.
    fn keep_promotion(&mut self, now: Instant) {
        let promoted = self.socket.with(|r, _| {
            let visible = r.visible();
            let owed = self.promotion.is_owed(visible.map(|(head, _)| &head.audience), now);
            visible.filter(|_| owed).map(|(head, state)| (head.clone(), state.clone()))
        });
        let Some((head, state)) = promoted else { return };
        match self.store.save(&head, &state) {
            Ok(()) => self.promotion.stored(head.audience),
            Err(error) if self.promotion.failed(now) => {
                self.log.say(format_args!(
                    "not noted for whom {} is by now, tried again: {error}",
                    head.position
                ));
            }
            Err(_) => {}
        }
    }

    /// A server knows a later start of this node: the folder was put back, or it has a living twin.
    fn take_identity(&mut self, boot: u64) {
        let written = if self.renewed { self.store.renew() } else { self.store.raise_above(boot) };
        if let Err(error) = written {
            self.log.say(format_args!("not noted, so it holds until this process ends: {error}"));
        }
        let identity = self.store.identity();
        self.log.say(if self.renewed {
            "ALARM: another process uses a copy of this state folder; this one takes a new node id"
        } else {
            RAISED
        });
        self.renewed = true;
        self.socket.with(|r, _| r.set_identity(identity.id, identity.boot));
    }
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
        trust: config.trust.clone(),
        ..ReplicaSettings::default()
    }
}

/// What a person should know of a namespace of which nothing comes.
fn not_served(status: NamespaceStatus) -> Option<&'static str> {
    match status {
        NamespaceStatus::Unknown => Some("this server has none of this name; --namespace names another"),
        NamespaceStatus::Denied => Some("this server does not give it to this node"),
        NamespaceStatus::Vacant => Some("this server holds nothing yet; its operator begins, or adopts"),
        NamespaceStatus::Known | NamespaceStatus::Pending => None,
    }
}
