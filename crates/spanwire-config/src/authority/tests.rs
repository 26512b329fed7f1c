//! The machine over a store in memory, driven by hand: the caller decides when a sync ends, fails or crashes.

mod commits;
mod history;
mod lives;
mod repeats;
mod rollouts;

use std::collections::BTreeMap;

use super::*;
use crate::sender::SEQ_BITS;
use crate::sign::Secret;
use crate::source::sim::{After, Faults, SimDisk};
use crate::source::{Embedded, Source, perform};
use crate::{ClusterId, Key, Limits, chain};

const CLUSTER: ClusterId = Id([7; 16]);

fn settings() -> NsSettings {
    NsSettings { cluster: CLUSTER, ..NsSettings::default() }
}

fn secret() -> Secret {
    Secret::from_seed(1, &[5; 32])
}

fn with_keys() -> NsSettings {
    NsSettings { keys: secret().public(), ..settings() }
}

/// As a sender issues it.
fn signed(head: &Head) -> Head {
    let mut head = head.clone();
    secret().sign(&mut head);
    head
}

/// Highest `seq` issued, as far as the tests of the machine go.
const ISSUED: u64 = 1 << SEQ_BITS | 5;

fn id(n: u64) -> Id {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    Id(id)
}

fn key(k: &str) -> Key {
    Key::new(k).expect("1 to 1,024 bytes")
}

fn put(n: u64, k: &str, v: &str) -> Request {
    let mut changes = ChangeSet::new();
    changes.put(key(k), 0, v.to_owned());
    request(n, Intent::Change(changes))
}

fn request(n: u64, intent: Intent) -> Request {
    Request {
        request: id(n),
        expect: None,
        intent,
        author: "a".into(),
        note: "n".into(),
        stamp: n,
        rollout: None,
        supersede: false,
    }
}

fn place(epoch: u64, rev: u64) -> Place {
    Place { epoch, rev }
}

/// A machine, its store, and what it said.
struct Rig {
    machine: NsAuthority,
    store: Option<Embedded<SimDisk>>,
    settings: NsSettings,
    /// The record that the store is writing.
    pending: Option<Record>,
    replies: Vec<(Ticket, Answer)>,
    published: Vec<Published>,
    /// HEADs of a revision that was published before, with another audience.
    shown: Vec<Head>,
    verdicts: Vec<(Id, Verdict)>,
    alarms: Vec<Alarm>,
    /// Open counts that the sender was told.
    reopened: Vec<u32>,
    offers: Vec<(Id, Head)>,
    compactions: usize,
    tickets: u64,
}

impl Rig {
    fn start(settings: NsSettings, disk: SimDisk, absent: Opening, incarnation: u64) -> Rig {
        let mut store = Embedded::new(disk, CLUSTER, "config");
        let opening = match store.load().expect("whole") {
            Some(recovered) => Opening::Restored(Box::new(recovered)),
            None => absent,
        };
        let (machine, actions) = NsAuthority::new(settings.clone(), opening, id(1_000_000 + incarnation));
        let mut rig = Rig {
            machine,
            store: Some(store),
            settings,
            pending: None,
            replies: Vec::new(),
            published: Vec::new(),
            shown: Vec::new(),
            verdicts: Vec::new(),
            alarms: Vec::new(),
            reopened: Vec::new(),
            offers: Vec::new(),
            compactions: 0,
            tickets: 0,
        };
        rig.act(actions);
        rig
    }

    fn fresh(settings: NsSettings) -> Rig {
        Rig::start(settings, SimDisk::new(), Opening::Unknown, 1)
    }

    /// One that has an empty first revision.
    fn serving(settings: NsSettings) -> Rig {
        let mut rig = Rig::start(settings, SimDisk::new(), Opening::NoStore, 1);
        let answer = rig.ask_now(|t| AuthorityEvent::Init(t, id(900), State::new()));
        assert!(matches!(answer, Answer::Begun { .. }), "{answer:?}");
        rig
    }

    fn store(&mut self) -> &mut Embedded<SimDisk> {
        self.store.as_mut().expect("there between calls")
    }

    fn say(&mut self, event: AuthorityEvent) {
        let actions = self.machine.handle(event, Time::default());
        self.act(actions);
    }

    fn act(&mut self, actions: Actions) {
        for action in actions {
            if let AuthorityAction::Append(record) = action {
                assert!(self.pending.replace(record).is_none(), "two at once");
                continue;
            }
            self.compactions += usize::from(matches!(action, AuthorityAction::Compact(_)));
            let action = match perform(self.store(), action) {
                Ok(event) => {
                    self.say(event);
                    continue;
                }
                Err(action) => action,
            };
            match action {
                AuthorityAction::Reply(ticket, answer) => self.replies.push((ticket, answer)),
                AuthorityAction::Publish(published) => {
                    assert!(self.published.last().is_none_or(|p| p.head.position < published.head.position));
                    assert_eq!(published.state.recompute(), published.head.digest);
                    self.published.push(published);
                }
                AuthorityAction::Show(head) => self.shown.push(head),
                AuthorityAction::Judge { node, verdict, .. } => self.verdicts.push((node, verdict)),
                AuthorityAction::Reopened(opened) => self.reopened.push(opened),
                AuthorityAction::Offer(node, head) => self.offers.push((node, head)),
                AuthorityAction::Alarm(alarm) => self.alarms.push(alarm),
                other => panic!("the store's: {other:?}"),
            }
        }
    }

    fn ask(&mut self, event: impl FnOnce(Ticket) -> AuthorityEvent) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.say(event(ticket));
        ticket
    }

    fn commit(&mut self, request: Request) -> Ticket {
        self.ask(|ticket| AuthorityEvent::Commit(ticket, request))
    }

    /// The sync under way ends.
    fn sync(&mut self) {
        let Some(record) = self.pending.take() else { return };
        let done = self.store().append_durable(&record).map_err(|e| e.to_string());
        self.say(AuthorityEvent::Durable(done));
    }

    fn sync_all(&mut self) {
        while self.pending.is_some() {
            self.sync();
        }
    }

    fn answer(&self, ticket: Ticket) -> Option<Answer> {
        let mut found = self.replies.iter().filter(|(to, _)| *to == ticket);
        let answer = found.next().map(|(_, answer)| answer.clone());
        assert!(found.next().is_none(), "answered twice");
        answer
    }

    fn ask_now(&mut self, event: impl FnOnce(Ticket) -> AuthorityEvent) -> Answer {
        let ticket = self.ask(event);
        self.sync_all();
        self.answer(ticket).expect("an answer once all is durable")
    }

    fn commit_now(&mut self, request: Request) -> Answer {
        self.ask_now(|ticket| AuthorityEvent::Commit(ticket, request))
    }

    #[track_caller]
    fn committed(&mut self, request: Request) -> Position {
        match self.commit_now(request) {
            Answer::Committed { position, .. } => position,
            other => panic!("{other:?}"),
        }
    }

    fn show(&mut self, node: u64, head: &Head) -> Verdict {
        let before = self.verdicts.len();
        self.say(AuthorityEvent::Shown { node: id(node), head: head.clone(), issued: ISSUED });
        assert_eq!(self.verdicts.len(), before + 1);
        assert_eq!(self.verdicts[before].0, id(node));
        self.verdicts[before].1
    }

    fn disk(&self) -> &SimDisk {
        self.store.as_ref().expect("there between calls").disk()
    }

    fn restart(&self, after: After) -> Rig {
        Rig::start(self.settings.clone(), self.disk().restart(after), Opening::NoStore, 2)
    }

    /// The newest that is durable, as a sender issues it.
    fn head(&self) -> Head {
        signed(&self.machine.durable().expect("durable").head)
    }
}
