//! An authority whose store is memory: for tests of what nodes see.

use spanwire::protocol::Time;
use spanwire_config::rollout::Open;
use spanwire_config::source::{Batch, Record, Recovered, Snapshot};
use spanwire_config::{
    Answer, AuthorityAction, AuthorityEvent, ChangeSet, Id, Intent, NsAuthority, NsSettings, Opening, Place,
    Position, Request, State, Ticket,
};

/// A machine, and what it made durable.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) machine: NsAuthority,
    settings: NsSettings,
    records: Vec<Record>,
    incarnation: Id,
    requests: u64,
    opened: u32,
    answer: Option<Answer>,
}

impl Memory {
    pub(crate) fn new(settings: NsSettings, incarnation: Id) -> Memory {
        let (machine, _) = NsAuthority::new(settings.clone(), Opening::Unknown, incarnation);
        let records = Vec::new();
        Memory { machine, settings, records, incarnation, requests: 0, opened: 1, answer: None }
    }

    /// The same store, opened once more; with its first `keep` records if it was put back from a copy.
    pub(crate) fn reopen(&self, keep: usize) -> Memory {
        let records: Vec<Record> = self.records.iter().take(keep).cloned().collect();
        let (mut last, mut rollout): (Option<Snapshot>, Option<Open>) = (None, None);
        for record in &records {
            let Record::Batch(Batch { head, commits, plan }) = record else { continue };
            let before = last.take();
            let mut state = before.as_ref().map(|last| last.state.clone()).unwrap_or_default();
            commits.iter().for_each(|commit| state.apply(&commit.changes));
            last = Some(Snapshot { head: head.clone(), state });
            rollout = plan.clone().zip(before).map(|(plan, for_all)| Open {
                plan,
                rollout: commits[0].request,
                stage: 0,
                paused: false,
                members: None,
                for_all,
            });
        }
        let opened = self.opened + 1;
        let recovered = Recovered { opened, records: records.clone(), last, rollout, ..Recovered::default() };
        let opening = Opening::Restored(Box::new(recovered));
        let (machine, _) = NsAuthority::new(self.settings.clone(), opening, self.incarnation);
        let (settings, requests) = (self.settings.clone(), self.requests + 1_000);
        Memory {
            machine,
            settings,
            records,
            opened,
            requests,
            ..Memory::new(NsSettings::default(), self.incarnation)
        }
    }

    /// What is left for the sender.
    pub(crate) fn tell(&mut self, event: AuthorityEvent) -> Vec<AuthorityAction> {
        let (mut left, mut events) = (Vec::new(), vec![event]);
        while let Some(event) = events.pop() {
            for action in self.machine.handle(event, Time::default()) {
                match action {
                    AuthorityAction::Append(record) => {
                        self.records.push(record);
                        events.insert(0, AuthorityEvent::Durable(Ok(())));
                    }
                    AuthorityAction::Compact(_) => events.insert(0, AuthorityEvent::Compacted(Ok(()))),
                    AuthorityAction::RaiseOpened(above) => {
                        self.opened = self.opened.max(above) + 1;
                        events.insert(0, AuthorityEvent::Raised(Ok(self.opened)));
                    }
                    AuthorityAction::Recall(recall) => {
                        events.insert(0, AuthorityEvent::Recalled(recall, Ok(None)));
                    }
                    AuthorityAction::Reply(_, answer) => self.answer = Some(answer),
                    other => left.push(other),
                }
            }
        }
        left
    }

    /// The last answer, once.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        self.answer.take()
    }

    #[track_caller]
    pub(crate) fn commit(&mut self, changes: &ChangeSet) -> (Position, Vec<AuthorityAction>) {
        self.requests += 1;
        let mut request = self.incarnation.0;
        request[8..].copy_from_slice(&self.requests.to_be_bytes());
        self.commit_as(Request {
            request: Id(request),
            expect: Some(self.machine.position().map(Place::from).unwrap_or_default()),
            intent: Intent::Change(changes.clone()),
            author: String::new(),
            note: String::new(),
            stamp: 0,
            rollout: None,
            supersede: false,
        })
    }

    #[track_caller]
    pub(crate) fn commit_as(&mut self, request: Request) -> (Position, Vec<AuthorityAction>) {
        let left = self.tell(AuthorityEvent::Commit(Ticket(0), request));
        match self.answer.take() {
            Some(Answer::Committed { position, .. }) => (position, left),
            other => panic!("{other:?}"),
        }
    }

    /// An epoch of at least this number begins, with the content of now.
    #[track_caller]
    pub(crate) fn new_epoch(&mut self, number: u64) -> (Position, Vec<AuthorityAction>) {
        self.machine.reserve_epoch(number);
        let incarnation = Id([number as u8; 16]);
        let left = self.tell(match self.machine.position() {
            Some(_) => AuthorityEvent::NewEpoch(Ticket(0), incarnation),
            None => AuthorityEvent::Init(Ticket(0), incarnation, State::new()),
        });
        match self.answer.take() {
            Some(Answer::Begun { position, .. }) => (position, left),
            other => panic!("{other:?}"),
        }
    }
}
