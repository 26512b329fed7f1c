//! One namespace of a running server: its machine, what its nodes show and report, and the directory that is published
//! in it.
//!
//! Owns: reading the tree, and when. Never: another namespace.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Receiver;
use spanwire::{Socket, WaitError};

use super::Config;
use super::authority::Authority;
use super::lines::lines;
use super::open::{Decides, random, told};
use super::watch::{Next, next};
use crate::process::{Log, ProcessError, Shutdown};
use crate::store::Store;
use crate::{
    Answer, AuthorityEvent, ChangeSet, Distributor, Intent, Mode, NodeStatus, Place, ReadOnly, Request,
    State, tree,
};

/// How often the nodes of a cohort are counted while a rollout is open.
const GATE: Duration = Duration::from_millis(200);

/// A namespace that is served.
pub(super) struct Space {
    /// With its name, directory and state folder as those of the server.
    pub(super) config: Config,
    pub(super) log: Log,
    /// Holds the lock on its folder, where that is not the server's.
    store: Option<Store>,
    pub(super) authority: Arc<Authority>,
    /// What is said beside an option that is for one namespace.
    alone: String,
    judging: JoinHandle<()>,
    reports: Option<JoinHandle<()>>,
    /// The tree could not be read lately.
    behind: bool,
    passed_over: Vec<(PathBuf, &'static str)>,
}

/// What a namespace starts from.
pub(super) struct Opened {
    pub(super) config: Config,
    pub(super) log: Log,
    /// Where it is not the server's.
    pub(super) store: Option<Store>,
    pub(super) driver: Decides,
    /// What is said beside an option that is for one namespace.
    pub(super) alone: String,
}

impl Space {
    /// The `at`th namespace of this sender.
    pub(super) fn start(
        opened: Opened,
        socket: Socket<Distributor>,
        at: usize,
    ) -> Result<Space, ProcessError> {
        let Opened { config, log, store, driver, alone } = opened;
        let authority = Authority::start(driver, (socket, at), &log, &alone)?;
        Ok(Space {
            judging: judging(authority.clone()),
            config,
            log,
            store,
            authority,
            alone,
            reports: None,
            behind: false,
            passed_over: Vec::new(),
        })
    }

    /// Publishes what is in the directory now. Before this, nodes get the last durable revision, or are told to wait.
    pub(super) fn publish_first(&mut self, dir: &Path) -> Result<(), ProcessError> {
        match self.publish_tree(dir) {
            Err(error) if self.may_go_on(&error) => self.trouble(&error),
            first => first?,
        }
        Ok(())
    }

    /// Publishes what is in the directory whenever that changed, until the end.
    pub(super) fn publish(&mut self, dir: &Path, changed: &Receiver<()>, shutdown: &Shutdown) {
        let Config { rescan, debounce, .. } = self.config;
        loop {
            let pause = if self.behind { rescan.min(Duration::from_secs(1)) } else { rescan };
            match next(changed, shutdown, pause, debounce) {
                Next::Over => return,
                Next::Read => {}
            }
            match self.publish_tree(dir) {
                Ok(()) => self.behind = false,
                Err(error) => self.trouble(&error),
            }
        }
    }

    /// Its folder stays, whatever becomes of this process.
    pub(super) fn keep(&mut self) {
        self.store.iter_mut().for_each(Store::keep);
    }

    /// Once the sockets are closed: its threads have ended, and its log.
    pub(super) fn end(self) {
        let _ = self.judging.join();
        let _ = self.reports.map(JoinHandle::join);
        self.authority.end();
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
    fn commit(&mut self, changes: ChangeSet) -> Result<(), ProcessError> {
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
                "nodes hold epoch {}, and this state folder has no log; start with --new-epoch {}{}",
                highest.epoch,
                highest.epoch.saturating_add(1),
                self.alone
            ))),
            other => Err(ProcessError::Refused(told(other.as_ref()))),
        }
    }

    /// Logs what nodes report, in a thread of its own, until the socket is closed.
    pub(super) fn report(&mut self, shutdown: &Shutdown) {
        let (authority, log) = (self.authority.clone(), self.log.clone());
        let shutdown = shutdown.clone();
        self.reports = Some(std::thread::spawn(move || {
            let key = authority.with(|d, _| d.wait_key());
            let mut last: Vec<NodeStatus> = Vec::new();
            while !shutdown.is_over() {
                let changed = authority.wait(key, Some(Duration::from_secs(1)), |d| {
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
                    Err(WaitError::TimedOut) => {}
                    Err(_) => return,
                }
            }
        }));
    }
}

/// Has what nodes show judged as it comes, and the nodes of a cohort counted while there is one, in a thread of its own,
/// until the socket is closed.
fn judging(authority: Arc<Authority>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let key = authority.with(|d, _| d.shown_key());
        loop {
            let open = authority.with(|d, _| d.canary().is_some());
            let shown = authority.wait(key, open.then_some(GATE), |mut d| {
                (d.has_shown() || d.canary().is_some() != open).then(|| d.take_shown())
            });
            match shown {
                Ok(shown) => authority.judge(shown),
                Err(WaitError::TimedOut) => {}
                Err(_) => return,
            }
            authority.count_cohort();
        }
    })
}
