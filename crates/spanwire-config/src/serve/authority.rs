//! The machine of one namespace of a running server, the thread that writes its log, and the sender that brings what is
//! decided to the nodes.
//!
//! Owns: the order in which the machine's actions reach the log, the nodes and who asked. Never: waits for a disk with
//! the machine's lock held.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use spanwire::protocol::{Cx, Time, WaitKey};
use spanwire::{Socket, WaitError};

use super::open::Decides;
use super::{audience, names};
use crate::control::now_ms;
use crate::process::{Log, ProcessError};
use crate::source::Writer;
use crate::{
    Alarm, Answer, AuthorityAction, AuthorityEvent, By, Distributor, Mode, NamespaceMut, NsAuthority,
    Published, State, Ticket,
};

/// The machine, and the sender that it speaks through, which serves other namespaces too: what it wants of the sender is done under its lock, and
/// so in its order. The socket's lock is taken within, never around it. The store is written in a thread of its own,
/// under no lock: what is committed meanwhile shares the next sync.
pub(crate) struct Authority {
    inner: Mutex<Inner>,
    /// Set before the first event.
    writer: OnceLock<Writer>,
    socket: Socket<Distributor>,
    /// Which of the sender's namespaces it is.
    at: usize,
    log: Log,
}

struct Inner {
    machine: NsAuthority,
    /// Who waits for an answer: as many as the machine lets wait.
    waiting: HashMap<Ticket, Then>,
    tickets: u64,
    /// The last alarm: many nodes may be the cause of one.
    alarm: String,
    /// What is said beside an option that is for one namespace.
    alone: String,
}

/// What follows an answer.
type Then = Box<dyn FnOnce(Answer) + Send>;

impl Authority {
    pub(super) fn start(
        driver: Decides,
        (socket, at): (Socket<Distributor>, usize),
        log: &Log,
        alone: &str,
    ) -> Result<Arc<Authority>, ProcessError> {
        let (machine, source) = driver.into_parts();
        let (waiting, alarm) = (HashMap::new(), String::new());
        let inner = Mutex::new(Inner { machine, waiting, tickets: 0, alarm, alone: alone.to_owned() });
        let this = Arc::new(Authority { inner, writer: OnceLock::new(), socket, at, log: log.clone() });
        let authority = Arc::downgrade(&this);
        let tell = move |event| {
            if let Some(authority) = authority.upgrade() {
                authority.tell(event);
            }
        };
        let writer = Writer::spawn(source, tell);
        let writer = writer.map_err(|e| ProcessError::Refused(format!("no thread for the store: {e}")))?;
        let _ = this.writer.set(writer);
        Ok(this)
    }

    /// Once nobody else asks: what is under way ends, and the log is closed.
    pub(super) fn end(mut self: Arc<Self>) {
        loop {
            // Nobody is there to hear them.
            let unheard = std::mem::take(&mut self.lock().waiting);
            drop(unheard);
            match Arc::try_unwrap(self) {
                Ok(Authority { writer, .. }) => return drop(writer),
                Err(busy) => self = busy,
            }
            // When this is answered the writer has ended what it was at.
            self.writer.get().map(Writer::health);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has something done with the namespace in the sender.
    pub(crate) fn with<R>(&self, act: impl FnOnce(NamespaceMut<'_>, &mut Cx<'_>) -> R) -> R {
        self.socket.with(|d, cx| act(d.nth(self.at), cx))
    }

    /// Looks at the namespace in the sender until that gives something; between two looks waits for `key`.
    pub(crate) fn wait<R>(
        &self,
        key: WaitKey,
        limit: Option<Duration>,
        mut look: impl FnMut(NamespaceMut<'_>) -> Option<R>,
    ) -> Result<R, WaitError> {
        self.socket.wait(key, limit, |d, _| look(d.nth(self.at)))
    }

    /// Looks at the machine.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&NsAuthority) -> R) -> R {
        look(&self.lock().machine)
    }

    pub(super) fn last(&self) -> Option<State> {
        self.look(|machine| machine.for_all().map(|all| all.state.clone()))
    }

    /// Asks the machine for what has an answer; `then` gets it, in this thread or the writer's, which must not wait
    /// for long.
    pub(crate) fn ask(
        &self,
        ask: impl FnOnce(Ticket) -> AuthorityEvent,
        then: impl FnOnce(Answer) + Send + 'static,
    ) {
        let mut inner = self.lock();
        inner.tickets += 1;
        let ticket = Ticket(inner.tickets);
        inner.waiting.insert(ticket, Box::new(then));
        self.handle(inner, ask(ticket), Time::default());
    }

    /// Asks, and waits for the answer. `None`: there is none, since the store's thread has ended.
    pub(super) fn ask_waiting(&self, ask: impl FnOnce(Ticket) -> AuthorityEvent) -> Option<Answer> {
        let (to, answer) = crossbeam_channel::bounded(1);
        self.ask(ask, move |answer| drop(to.send(answer)));
        answer.recv().ok()
    }

    /// Tells the machine what happened, and does what follows.
    pub(crate) fn tell(&self, event: AuthorityEvent) {
        self.handle(self.lock(), event, Time::default());
    }

    /// How far the cohort of an open rollout is, for its gate.
    pub(crate) fn count_cohort(&self) {
        let Some((at, audience)) = self.look(NsAuthority::cohort) else { return };
        let (nodes, now) = self.with(|d, cx| (d.cohort(at, &audience), cx.now()));
        let by = By { stamp: now_ms(), ..By::default() };
        let event = AuthorityEvent::Cohort((at, audience), nodes);
        self.handle(self.lock(), AuthorityEvent::By(Box::new(by), Box::new(event)), now);
    }

    /// `now` matters to the gates of a rollout alone.
    fn handle(&self, mut inner: MutexGuard<'_, Inner>, event: AuthorityEvent, now: Time) {
        let (mut events, mut answered) = (VecDeque::from([event]), Vec::new());
        while let Some(event) = events.pop_front() {
            for action in inner.machine.handle(event, now) {
                let left = match self.writer.get() {
                    Some(writer) => writer.perform(action),
                    None => Some(action),
                };
                match left.and_then(|action| self.perform(action)) {
                    Some(AuthorityAction::Reply(ticket, answer)) => {
                        answered.extend(inner.waiting.remove(&ticket).map(|then| (then, answer)));
                    }
                    Some(AuthorityAction::Alarm(alarm)) => inner.alarm(&self.log, &alarm),
                    // The writer gives back what it can do no more.
                    Some(AuthorityAction::Append(_)) => {
                        events.push_back(AuthorityEvent::Durable(Err("its thread has ended".into())));
                    }
                    // Nobody is asked for a state.
                    _ => {}
                }
            }
        }
        drop(inner);
        answered.into_iter().for_each(|(then, answer)| then(answer));
    }

    /// Does what is the sender's; gives back what is another's.
    fn perform(&self, action: AuthorityAction) -> Option<AuthorityAction> {
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
        let left = self.with(|mut d, cx| {
            let left = d.perform(cx, action);
            if line.is_some() {
                // Clients wait for revisions by this key, and who counts a cohort by the other.
                cx.wake(d.wait_key());
                cx.wake(d.shown_key());
            }
            left
        });
        line.into_iter().for_each(|line| self.log.say(line));
        left.unwrap_or_else(|error| {
            self.log.say(format_args!("ALARM: not published: {error}"));
            None
        })
    }

    /// Before a namespace begins: nodes that are here already may tell that its log was lost.
    pub(crate) fn judge_shown(&self) {
        self.judge(self.with(|mut d, _| d.take_shown()));
    }

    /// What nodes showed may tell that this store is an old copy, or that it was lost.
    pub(super) fn judge(&self, shown: Vec<AuthorityEvent>) {
        shown.into_iter().for_each(|event| self.tell(event));
        let mut inner = self.lock();
        if *inner.machine.mode() != Mode::Vacant {
            return;
        }
        if let Some(held) = inner.machine.holdings().first().map(|(held, ..)| held.position) {
            inner.raise(
                &self.log,
                format!("nodes hold {held}, and this store has nothing: it may have been lost"),
            );
        }
    }
}

impl Inner {
    fn alarm(&mut self, log: &Log, alarm: &Alarm) {
        let mut text = alarm.to_string();
        if let Alarm::OldStore { .. } | Alarm::Claim { .. } = alarm {
            let next = self.machine.highest().epoch.saturating_add(1);
            text.push_str(&format!(
                "; to begin an epoch above it, start with --new-epoch {next}{}",
                self.alone
            ));
        }
        self.raise(log, text);
    }

    /// Once, until there is another.
    fn raise(&mut self, log: &Log, text: String) {
        if text != self.alarm {
            log.say(format_args!("ALARM: {text}"));
            self.alarm = text;
        }
    }
}
