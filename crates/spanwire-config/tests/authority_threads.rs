//! Many writers on one authority with a real disk: one sync serves all that gathered during the one before.
#![cfg(all(unix, feature = "sync"))]

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use spanwire::protocol::Time;
use spanwire_config::source::{Embedded, FsDisk, Source, Writer};
use spanwire_config::{
    Answer, AuthorityAction, AuthorityEvent, ChangeSet, Id, Intent, Key, NsAuthority, NsSettings, Opening,
    Place, Request, Ticket,
};

struct Inner {
    machine: NsAuthority,
    waiting: HashMap<Ticket, Sender<Answer>>,
    tickets: u64,
    published: usize,
}

/// A machine behind a lock that nobody holds while a disk is waited for.
struct Shared {
    inner: Mutex<Inner>,
    writer: OnceLock<Writer>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with it")
    }

    fn act(&self, inner: &mut Inner, actions: Vec<AuthorityAction>) {
        for action in actions {
            match self.writer.get().expect("set before the first event").perform(action) {
                Some(AuthorityAction::Reply(ticket, answer)) => {
                    let to = inner.waiting.remove(&ticket).expect("who asked");
                    to.send(answer).expect("it waits");
                }
                Some(AuthorityAction::Publish(_)) => inner.published += 1,
                _ => {}
            }
        }
    }

    fn handle(&self, event: AuthorityEvent) {
        let mut inner = self.lock();
        let actions = inner.machine.handle(event, Time::default());
        self.act(&mut inner, actions);
    }

    fn commit(&self, n: u64, expect: Option<Place>) -> Answer {
        let (to, answer) = channel();
        let mut inner = self.lock();
        inner.tickets += 1;
        let ticket = Ticket(inner.tickets);
        inner.waiting.insert(ticket, to);
        let mut changes = ChangeSet::new();
        changes.put(Key::new(format!("k{n}")).expect("short"), 0, n.to_string());
        let mut request = [0; 16];
        request[8..].copy_from_slice(&n.to_be_bytes());
        let (author, note) = (String::new(), String::new());
        let intent = Intent::Change(changes);
        let request = Request { request: Id(request), expect, intent, author, note, stamp: 0 };
        let actions = inner.machine.handle(AuthorityEvent::Commit(ticket, request), Time::default());
        self.act(&mut inner, actions);
        drop(inner);
        answer.recv().expect("an answer")
    }
}

#[test]
fn many_writers_share_syncs_and_all_that_was_acknowledged_is_on_disk() {
    const WRITERS: u64 = 16;
    const EACH: u64 = 40;
    let dir = tempfile::tempdir().expect("a folder");
    let mut source = Embedded::new(FsDisk::open(dir.path()).expect("writable"), Id::default(), "config");
    assert_eq!(source.load().expect("empty"), None);
    let (machine, actions) = NsAuthority::new(NsSettings::default(), Opening::Unknown, Id([9; 16]));
    assert!(actions.is_empty());
    let inner = Inner { machine, waiting: HashMap::new(), tickets: 0, published: 0 };
    let shared = Arc::new(Shared { inner: Mutex::new(inner), writer: OnceLock::new() });
    let tell = Arc::downgrade(&shared);
    let writer = Writer::spawn(source, move |event| {
        if let Some(shared) = tell.upgrade() {
            shared.handle(event);
        }
    });
    shared.writer.set(writer.expect("a thread")).expect("once");
    let first = shared.commit(0, Some(Place::default()));
    assert!(matches!(first, Answer::Committed { position, .. } if position.rev == 1));

    let threads: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let shared = shared.clone();
            std::thread::spawn(move || {
                let mut revs = Vec::new();
                for i in 0..EACH {
                    match shared.commit(1 + writer * EACH + i, None) {
                        Answer::Committed { position, replay: false, .. } => revs.push(position.rev),
                        other => panic!("{other:?}"),
                    }
                }
                assert!(revs.is_sorted(), "a writer's commits keep their order");
                revs
            })
        })
        .collect();
    let mut revs: Vec<u64> = threads.into_iter().flat_map(|t| t.join().expect("no writer panics")).collect();
    revs.sort_unstable();
    let commits = WRITERS * EACH;
    assert_eq!(revs, (2..=commits + 1).collect::<Vec<_>>(), "each once");
    let health = shared.writer.get().expect("set").health();
    assert_eq!(health.stopped, None);
    assert_eq!(health.heads, shared.lock().published as u64, "one HEAD for each batch");
    assert!(health.heads < commits / 2, "{} syncs for {commits} commits", health.heads);

    drop(shared);
    let mut source = Embedded::new(FsDisk::open(dir.path()).expect("free again"), Id::default(), "config");
    let found = source.load().expect("whole").expect("there");
    assert_eq!(found.last.map(|last| (last.head.position.rev, last.state.keys())), Some((641, 641)));
}
