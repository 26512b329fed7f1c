//! Many writers on one authority with a real disk: one sync serves all that gathered during the one before.
#![cfg(all(unix, feature = "sync"))]

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use spanwire::protocol::Time;
use spanwire_config::source::{
    Batch, Embedded, FsDisk, Health, Record, Recovered, Snapshot, Source, SourceError, Writer,
};
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
        let request = Request {
            request: Id(request),
            expect,
            intent,
            author,
            note,
            stamp: 0,
            rollout: None,
            supersede: false,
        };
        let actions = inner.machine.handle(AuthorityEvent::Commit(ticket, request), Time::default());
        self.act(&mut inner, actions);
        drop(inner);
        answer.recv().expect("an answer")
    }
}

/// A source whose syncs take as long as the test holds the gate.
struct Gated<S>(S, Arc<Mutex<()>>);

impl<S: Source> Source for Gated<S> {
    fn load(&mut self) -> Result<Option<Recovered>, SourceError> {
        self.0.load()
    }
    fn append_durable(&mut self, record: &Record) -> Result<(), SourceError> {
        let _open = self.1.lock().expect("nobody panics with it");
        self.0.append_durable(record)
    }
    fn range_since(&mut self, rev: u64) -> Result<Vec<Batch>, SourceError> {
        self.0.range_since(rev)
    }
    fn compact(&mut self, base: &Snapshot) -> Result<(), SourceError> {
        self.0.compact(base)
    }
    fn health(&self) -> Health {
        self.0.health()
    }
    fn raise_opened(&mut self, above: u32) -> Result<u32, SourceError> {
        self.0.raise_opened(above)
    }
    fn chain_at(&mut self, rev: u64) -> Result<Option<[u8; 32]>, SourceError> {
        self.0.chain_at(rev)
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
    let gate = Arc::new(Mutex::new(()));
    let writer = Writer::spawn(Gated(source, gate.clone()), move |event| {
        if let Some(shared) = tell.upgrade() {
            shared.handle(event);
        }
    });
    shared.writer.set(writer.expect("a thread")).expect("once");
    let first = shared.commit(0, Some(Place::default()));
    assert!(matches!(first, Answer::Committed { position, .. } if position.rev == 1));

    let write = |numbers: std::ops::Range<u64>| -> Vec<_> {
        let writer = |writer| {
            let (shared, numbers) = (shared.clone(), numbers.clone());
            std::thread::spawn(move || {
                let mut revs = Vec::new();
                for i in numbers {
                    match shared.commit(1 + writer * EACH + i, None) {
                        Answer::Committed { position, replay: false, .. } => revs.push(position.rev),
                        other => panic!("{other:?}"),
                    }
                }
                assert!(revs.is_sorted(), "a writer's commits keep their order");
                revs
            })
        };
        (0..WRITERS).map(writer).collect()
    };
    let join = |threads: Vec<std::thread::JoinHandle<Vec<u64>>>| {
        threads.into_iter().flat_map(|t| t.join().expect("no writer panics"))
    };
    let before = shared.lock().published;
    let slow_disk = gate.lock().expect("nobody panics with it");
    let threads = write(0..1);
    while shared.lock().waiting.len() < WRITERS as usize {
        std::thread::yield_now();
    }
    drop(slow_disk);
    let mut revs: Vec<u64> = join(threads).collect();
    assert_eq!(shared.lock().published, before + 2, "the one on its way, then all that gathered behind it");
    revs.extend(join(write(1..EACH)));
    revs.sort_unstable();
    let commits = WRITERS * EACH;
    assert_eq!(revs, (2..=commits + 1).collect::<Vec<_>>(), "each once");
    let health = shared.writer.get().expect("set").health();
    assert_eq!(health.stopped, None);
    assert_eq!(health.heads, shared.lock().published as u64, "one HEAD for each batch");

    drop(shared);
    let mut source = Embedded::new(FsDisk::open(dir.path()).expect("free again"), Id::default(), "config");
    let found = source.load().expect("whole").expect("there");
    assert_eq!(found.last.map(|last| (last.head.position.rev, last.state.keys())), Some((641, 641)));
}
