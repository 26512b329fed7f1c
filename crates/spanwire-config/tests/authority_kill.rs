//! A real process that commits to a real folder and is killed at any instant: what it said is there.
#![cfg(all(unix, feature = "sync"))]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use spanwire::protocol::Time;
use spanwire_config::source::{Embedded, FsDisk, Source, perform};
use spanwire_config::{
    Answer, AuthorityAction, AuthorityEvent, ChangeSet, Id, Intent, Key, NsAuthority, NsSettings, Opening,
    Place, Request, Ticket,
};

const DIR: &str = "SPANWIRE_TEST_AUTHORITY_DIR";
const NAME: &str = "a_killed_authority_keeps_every_commit_that_it_acknowledged";

/// A machine and its store, joined the plain way.
struct Node {
    machine: NsAuthority,
    store: Embedded<FsDisk>,
}

impl Node {
    fn open(dir: &Path) -> Node {
        // The folder is locked until the kernel has let go of the process before.
        let disk = loop {
            match FsDisk::open(dir) {
                Ok(disk) => break disk,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        let mut store = Embedded::new(disk, Id::default(), "config");
        let opening = match store.load().expect("a kill is no damage") {
            Some(recovered) => Opening::Restored(Box::new(recovered)),
            None => Opening::Unknown,
        };
        // Small, so that compaction is among what is interrupted.
        let settings = NsSettings { log_commits: 12, ..NsSettings::default() };
        let (machine, actions) = NsAuthority::new(settings, opening, Id([9; 16]));
        let mut node = Node { machine, store };
        node.act(actions);
        node
    }

    fn act(&mut self, actions: Vec<AuthorityAction>) -> Vec<Answer> {
        let mut answers = Vec::new();
        for action in actions {
            let event = match perform(&mut self.store, action) {
                Ok(event) => event,
                Err(AuthorityAction::Reply(_, answer)) => {
                    answers.push(answer);
                    continue;
                }
                Err(_) => continue,
            };
            let next = self.machine.handle(event, Time::default());
            answers.extend(self.act(next));
        }
        answers
    }

    fn commit(&mut self, n: u64) -> Place {
        let mut changes = ChangeSet::new();
        changes.put(Key::new(format!("k{}", n % 9)).expect("short"), 0, format!("{n}").repeat(200));
        let mut request = [0; 16];
        request[8..].copy_from_slice(&n.to_be_bytes());
        let expect = self.machine.position().is_none().then_some(Place::default());
        let request = Request {
            request: Id(request),
            expect,
            intent: Intent::Change(changes),
            author: String::new(),
            note: String::new(),
            stamp: 0,
            rollout: None,
            supersede: false,
        };
        let actions = self.machine.handle(AuthorityEvent::Commit(Ticket(n), request), Time::default());
        match self.act(actions).as_slice() {
            [Answer::Committed { position, .. }] => (*position).into(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_killed_authority_keeps_every_commit_that_it_acknowledged() {
    if let Some(dir) = std::env::var_os(DIR) {
        // The process that is killed: commits on from where the store is, and says so after each.
        let mut node = Node::open(Path::new(&dir));
        let mut out = std::io::stderr().lock();
        for n in node.machine.position().map_or(0, |p| p.rev) + 1.. {
            let at = node.commit(n);
            writeln!(out, "committed {n} at {}", at.rev).expect("the parent listens");
        }
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("store");
    let mut last = 0;
    for round in 0..25 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args([NAME, "--exact", "--nocapture"])
            .env(DIR, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("itself");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        // Killed after some commits, another number each time, at whatever it does then.
        let mut told = 0;
        while told < 1 + round * 7 % 23 {
            let line = lines.next().expect("it runs until it is killed").expect("text");
            if let Some(rest) = line.strip_prefix("committed ") {
                last = rest.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
                told += 1;
            }
        }
        child.kill().expect("it runs");
        // What it still said before it died counts too.
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("committed ").and_then(|rest| rest.split(' ').next()) {
                last = n.parse().unwrap_or(last);
            }
        }
        child.wait().expect("ours");
        let mut node = Node::open(&path);
        let rev = node.machine.position().map_or(0, |p| p.rev);
        assert!((last..=last + 1).contains(&rev), "round {round}: {last} acknowledged, {rev} there");
        // The writer repeats what it knows of, and the one that it heard nothing of.
        assert_eq!(node.commit(last).rev, last, "round {round}: a repeat");
        let next = node.commit(last + 1).rev;
        assert_eq!(next, last + 1, "round {round}: in doubt, and once all the same");
    }
    assert!(last > 200, "{last}");
}
