//! Clients of a real server: commits, reads and waits over the control socket.

use std::time::Duration;

use spanwire_config::client::{Client, ClientError, Commit, Committed, Revert};
use spanwire_config::wire::client::{
    Ask, BeginWith, CommitAsk, InvalidCode, LogAsk, Named, Order, Reply, Selector, StatusAsk, WaitAsk,
    Writable,
};
use spanwire_config::{ChangeSet, Entry, Id, Key, Level, Limits, Place, State, serve};

use super::harness::{Running, World, await_that};

pub(crate) const FIRST: Place = Place { epoch: 0, rev: 0 };

fn key(key: &str) -> Key {
    Key::new(key).expect("1 to 1,024 bytes")
}

pub(crate) fn put(pairs: &[(&str, &str)]) -> ChangeSet {
    let mut changes = ChangeSet::new();
    pairs.iter().for_each(|(name, value)| changes.put(key(name), 0, value.to_string()));
    changes
}

pub(crate) fn state(pairs: &[(&str, &str)]) -> State {
    let mut state = State::new();
    state.apply(&put(pairs));
    state
}

pub(crate) fn expecting(at: Place, changes: ChangeSet) -> Commit {
    Commit { expect: Some(at), ..Commit::new(changes).expect("randomness") }
}

fn commit(client: &Client, changes: ChangeSet) -> Committed {
    client.commit(&Commit::new(changes).expect("randomness")).expect("committed")
}

/// Waits until the server has taken all that was asked before: requests of one connection are taken in their order.
fn await_taken(asker: &spanwire::Req) {
    let status = Ask::Status(StatusAsk { namespace: "config".into(), after: None }).encode();
    asker.request_timeout(status, Duration::from_secs(20)).expect("an answer");
}

impl World {
    pub(crate) fn control(&self) -> String {
        format!("ipc://{}", self.path("control.ipc").display())
    }

    /// A server without a directory.
    pub(crate) fn log_config(&self) -> serve::Config {
        let mut config = serve::Config::without_dir(self.path("state"));
        (config.bind, config.control) = (vec![self.url.clone()], vec![self.control()]);
        config.beacon = Duration::from_millis(100);
        config
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.control(), "config").expect("an address")
    }
}

#[test]
fn what_a_client_commits_reaches_the_nodes_and_is_there_after_a_restart() {
    let w = World::new();
    let server = Running::serve(w.log_config());
    let client = w.client();
    let first = client.commit(&expecting(FIRST, put(&[("a", "1"), ("d/b", "2")]))).expect("the first");
    assert_eq!((first.at, first.replay), (Place { epoch: 1, rev: 1 }, false));
    let _agent = Running::agent(w.agent_config("out"));
    await_that("the first revision", || w.tree("out") == state(&[("a", "1"), ("d/b", "2")]));
    let (at, entry) = client.get(&key("a"), None).expect("read");
    assert_eq!((Place::from(at.position), entry), (first.at, Some(Entry::new(0, "1"))));
    assert_eq!(client.get(&key("d"), None).expect("read").1, None, "a prefix is no key");
    let second = commit(&client, put(&[("a", "3")]));
    server.ends();
    let _server = Running::serve(w.log_config());
    let (at, all) = client.list(b"", None).expect("read");
    assert_eq!((Place::from(at.position), all), (second.at, state(&[("a", "3"), ("d/b", "2")])));
    assert_eq!(client.list(b"d/", Some(first.at)).expect("read").1, state(&[("d/b", "2")]));
    let revert = Revert {
        request: Id::random().expect("randomness"),
        expect: Some(second.at),
        to: first.at,
        author: "me".into(),
        note: "back".into(),
        rollout: None,
        supersede: false,
    };
    let third = client.revert(&revert).expect("reverted");
    assert_eq!((third.at.rev, third.digest), (3, first.digest));
    await_that("the old content", || w.tree("out") == state(&[("a", "1"), ("d/b", "2")]));
    let log = client.log(None, 0).expect("the log");
    let told: Vec<_> = log.commits.iter().map(|c| (c.at.rev, c.puts, &c.note[..])).collect();
    assert_eq!(told, [(3, 1, "back"), (2, 1, ""), (1, 2, "")]);
}

#[test]
fn invariant_15_a_repeat_of_a_request_commits_once_over_a_restart_too() {
    let w = World::new();
    let server = Running::serve(w.log_config());
    let client = w.client();
    let first = expecting(FIRST, put(&[("a", "1")]));
    let done = client.commit(&first).expect("committed");
    // Later commits do not change the answer, nor does it matter that (0, 0) is the newest no more.
    commit(&client, put(&[("a", "2")]));
    let again = client.commit(&first).expect("the same answer");
    assert_eq!(again, Committed { replay: true, ..done });
    let import = Id::random().expect("randomness");
    let begun = client.import(import, state(&[("b", "1")])).expect("imported");
    assert_eq!((begun.at, begun.replay), (Place { epoch: 2, rev: 3 }, false));
    server.ends();
    let _server = Running::serve(w.log_config());
    assert_eq!(client.commit(&first).expect("the same answer"), again);
    let again = client.import(import, state(&[("b", "1")])).expect("the same answer");
    assert_eq!(again, Committed { replay: true, ..begun });
    assert_eq!(client.log(None, 0).expect("the log").commits.len(), 3);
}

#[test]
fn invariant_16_of_many_writers_that_expect_one_position_one_commits() {
    let w = World::new();
    let _server = Running::serve(w.log_config());
    let client = w.client();
    let mut head = client.commit(&expecting(FIRST, put(&[("a", "0")]))).expect("the first").at;
    for round in 1..6 {
        let told: Vec<_> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|writer| {
                    let mine = expecting(head, put(&[("a", &format!("{round} of {writer}"))]));
                    let client = w.client();
                    scope.spawn(move || client.commit(&mine))
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
        });
        let won: Vec<_> = told.iter().filter_map(|told| told.as_ref().ok()).collect();
        assert_eq!(won.len(), 1, "{told:?}");
        let lost = |told: &_| matches!(told, Err(ClientError::Conflict { head }) if *head == won[0].at);
        assert_eq!(told.iter().filter(|told| lost(told)).count(), 7, "{told:?}");
        head = won[0].at;
    }
}

#[test]
fn invariant_17_a_wait_returns_by_its_timeout_with_each_node_in_one_list() {
    let w = World::new();
    let server = Running::serve(w.log_config());
    let client = w.client();
    let at = client.commit(&expecting(FIRST, put(&[("a", "1")]))).expect("the first").at;
    let agent = |name: &str, hook: &str| {
        let mut config = w.agent_config(name);
        config.on_change = Some(hook.into());
        config.labels = vec![("kind".into(), name.into())];
        Running::agent(config)
    };
    let _good = agent("good", "true");
    let _bad = agent("bad", "echo unwell >&2; exit 3");
    let _slow = agent("slow", "sleep 60");
    let gone = agent("gone", "true");
    server.await_line("node gone");
    gone.ends();
    let _ = ["slow", "bad", "good"].map(|name| {
        await_that(name, || {
            let nodes = client.status().expect("status").nodes;
            nodes.iter().any(|node| node.node.name == name && node.visible == at)
        });
    });
    await_that("the refusal", || {
        client.status().is_ok_and(|s| s.nodes.iter().any(|n| !n.refused.is_empty()))
    });
    await_that("it to be gone", || {
        client.status().is_ok_and(|s| s.nodes.iter().any(|n| n.node.name == "gone" && !n.connected))
    });
    let at = commit(&client, put(&[("a", "2")])).at;
    await_that("the refusal of this one", || {
        client.status().is_ok_and(|s| s.nodes.iter().any(|n| n.refused.iter().any(|refused| refused.0 == at)))
    });
    let names = |all: &[Named]| all.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    let selector = |names: &[&str], labels: &[(&str, &str)]| Selector {
        names: names.iter().map(ToString::to_string).collect(),
        labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
    };
    let began = std::time::Instant::now();
    let short = Duration::from_millis(400);
    let all = client
        .wait(at, Level::Applied, short, &selector(&["good", "bad", "slow", "gone", "none"], &[]))
        .expect("an answer");
    assert!(began.elapsed() >= short && began.elapsed() < short + Duration::from_secs(5));
    let refused: Vec<_> = all.refused.iter().map(|r| (&r.node.name[..], r.position, &r.text[..])).collect();
    assert_eq!((names(&all.ok), names(&all.behind)), (vec!["good".into()], vec!["slow".into()]), "{all:?}");
    assert!(matches!(refused[..], [("bad", refused, text)] if refused == at && text.contains("unwell")));
    let mut silent = names(&all.silent);
    silent.sort();
    assert_eq!(silent, ["gone", "none"]);
    // Long before its time where nobody is left to wait for.
    let long = Duration::from_secs(3600);
    let kind = client.wait(at, Level::Applied, long, &selector(&[], &[("kind", "good")])).expect("an answer");
    assert_eq!((names(&kind.ok), kind.refused.len(), kind.behind.len()), (vec!["good".into()], 0, 0));
    let kind =
        client.wait(at, Level::Visible, long, &selector(&["bad"], &[("kind", "good")])).expect("an answer");
    assert_eq!(kind, Default::default(), "both must hold");
    // And where the epoch changes under it.
    let asker = spanwire::Req::new().expect("a socket");
    asker.connect(&w.control()).expect("an address");
    let ask = Ask::Wait(WaitAsk {
        namespace: "config".into(),
        position: at,
        level: Level::Applied,
        timeout_ms: u32::MAX,
        selector: selector(&["slow"], &[]),
    });
    let waiting = asker.start(ask.encode()).expect("open");
    await_taken(&asker);
    let begun = client.import(Id::random().expect("randomness"), state(&[("b", "1")])).expect("imported");
    let told = waiting.wait().expect("an answer");
    let told = Reply::decode(&told.into_bytes()).expect("a reply");
    assert!(matches!(told, Reply::Lost(head) if head == begun.at), "{told:?}");
    // As a client hears it.
    let told = client.wait(at, Level::Applied, long, &selector(&["slow"], &[]));
    assert!(matches!(told, Err(ClientError::Lost { head }) if head == begun.at), "{told:?}");
}

#[test]
fn a_server_that_publishes_a_directory_refuses_commits_and_answers_all_else() {
    let w = World::new();
    w.write("src/a", "1");
    let mut config = w.serve_config();
    config.control = vec![w.control()];
    let server = Running::serve(config);
    server.await_line("revision 1/");
    let client = w.client();
    let told = client.commit(&expecting(Place { epoch: 1, rev: 1 }, put(&[("a", "2")])));
    let dir = w.path("src").display().to_string();
    let refused = |told: &_| matches!(told, Err(ClientError::ReadOnly { why: Writable::Directory, text }) if text.contains(&dir));
    assert!(refused(&told), "{told:?}");
    let told = client.import(Id::random().expect("randomness"), State::new());
    assert!(refused(&told), "{told:?}");
    let status = client.status().expect("status");
    assert_eq!((status.writable, status.tip.keys), (Writable::Directory, 1));
    assert_eq!(client.list(b"", None).expect("read").1, w.tree("src"));
    // A follower hears of what changes the directory.
    w.write("src/b", "2");
    let told = client.follow(Place { epoch: 1, rev: 1 }, Duration::from_secs(20)).expect("the log");
    assert_eq!(told.commits[0].keys, [(key("b"), true)]);
}

#[test]
fn a_namespace_that_nodes_hold_begins_by_an_import_only() {
    let w = World::new();
    let server = Running::serve(w.log_config());
    let client = w.client();
    // Nothing is there yet, and nothing says that this is new.
    let told = client.commit(&Commit::new(put(&[("a", "1")])).expect("randomness"));
    assert!(
        matches!(&told, Err(ClientError::ReadOnly { why: Writable::Vacant, text }) if text.contains("0:0"))
    );
    for told in [
        client.get(&key("a"), None).map(|_| ()),
        client.wait(FIRST, Level::Stored, Duration::ZERO, &Selector::default()).map(|_| ()),
    ] {
        assert!(matches!(told, Err(ClientError::Invalid { code: InvalidCode::NoSuch, .. })), "{told:?}");
    }
    client.commit(&expecting(FIRST, put(&[("a", "1")]))).expect("the first");
    let _agent = Running::agent(w.agent_config("out"));
    await_that("the first revision", || w.tree("out") == state(&[("a", "1")]));
    server.ends();
    std::fs::remove_dir_all(w.path("state")).expect("ours");
    let server = Running::serve(w.log_config());
    server.await_line("node out");
    let told = client.commit(&expecting(FIRST, put(&[("a", "2")])));
    let held = "nodes hold revision 1:1";
    assert!(
        matches!(&told, Err(ClientError::ReadOnly { why: Writable::Vacant, text }) if text.contains(held)),
        "{told:?}"
    );
    let begun = client.import(Id::random().expect("randomness"), state(&[("a", "3")])).expect("imported");
    assert_eq!(begun.at, Place { epoch: 2, rev: 2 });
    await_that("the import", || w.tree("out") == state(&[("a", "3")]));
}

#[test]
fn what_makes_no_sense_is_told_in_words_and_changes_nothing() {
    let w = World::new();
    let mut config = w.log_config();
    config.limits = Limits { value: 10, keys: 3, bytes: 100 };
    let _server = Running::serve(config);
    let client = w.client();
    let head = client.commit(&expecting(FIRST, put(&[("a", "1")]))).expect("the first").at;
    let invalid = |changes: ChangeSet| match client.commit(&expecting(head, changes)) {
        Err(ClientError::Invalid { code, text, .. }) => (code, text),
        other => panic!("{other:?}"),
    };
    let over = invalid(put(&[("b", "12345678901")]));
    assert_eq!(over, (InvalidCode::OverLimit, "the value of b has 11 bytes; the limit is 10".into()));
    assert_eq!(invalid(put(&[("b", ""), ("c", ""), ("d", "")])).1, "4 keys; the limit is 3");
    let told = client.import(Id::random().expect("randomness"), state(&[("b", "12345678901")]));
    assert!(matches!(told, Err(ClientError::Invalid { code: InvalidCode::OverLimit, .. })), "{told:?}");
    let mut long = expecting(head, put(&[("b", "")]));
    long.note = "n".repeat(1025);
    let told = client.commit(&long);
    assert!(matches!(told, Err(ClientError::Invalid { code: InvalidCode::TooLong, .. })), "{told:?}");
    let wait = client.wait(Place { epoch: 1, rev: 2 }, Level::Stored, Duration::ZERO, &Selector::default());
    assert!(matches!(wait, Err(ClientError::Invalid { code: InvalidCode::NoSuch, .. })), "{wait:?}");
    let wait = client.wait(Place { epoch: 0, rev: 1 }, Level::Stored, Duration::ZERO, &Selector::default());
    assert!(matches!(wait, Err(ClientError::Lost { head: now }) if now == head), "{wait:?}");
    // Nobody is selected, so there is nothing to wait for.
    let wait = client.wait(head, Level::Applied, Duration::from_secs(3600), &Selector::default());
    assert_eq!(wait.expect("an answer"), Default::default());
    let other = Client::connect(&w.control(), "other").expect("an address").status();
    assert!(matches!(other, Err(ClientError::Invalid { code: InvalidCode::Namespace, .. })), "{other:?}");
    let req = spanwire::Req::new().expect("a socket");
    req.connect(&w.control()).expect("an address");
    let ask = |bytes: &[u8]| {
        let reply = req.request_timeout(bytes, Duration::from_secs(20)).expect("an answer");
        match Reply::decode(&reply.into_bytes()) {
            Ok(Reply::Invalid { code: InvalidCode::Malformed, text, .. }) => text,
            other => panic!("{other:?}"),
        }
    };
    assert!(ask(b"").contains("too early"));
    assert!(ask(&[9, 32, 0, 0]).contains("version 9"));
    assert!(ask(&[1, 99, 0, 0]).contains("type 99"));
    let Commit { request, expect, author, note, changes, .. } = expecting(head, put(&[("b", "")]));
    let namespace = "config".into();
    let mut bytes = Ask::Commit(CommitAsk {
        request,
        namespace,
        expect,
        author,
        note,
        rollout: None,
        supersede: false,
        changes,
    })
    .encode();
    bytes.push(0);
    assert!(ask(&bytes).contains("after the end"));
    assert_eq!(client.status().expect("status").tip.position.rev, 1);
}

#[test]
fn a_large_revision_comes_in_pages_that_are_of_one_revision() {
    let w = World::new();
    let _server = Running::serve(w.log_config());
    let client = w.client();
    let value = "v".repeat(1000);
    let mut changes = ChangeSet::new();
    (0..1500u16).for_each(|n| changes.put(key(&format!("k{n:04}")), 0, value.clone()));
    let first = client.commit(&expecting(FIRST, changes.clone())).expect("the first").at;
    let other = std::thread::spawn({
        let client = w.client();
        move || {
            for n in 0..50u16 {
                commit(&client, put(&[(&format!("k{n:04}"), "changed")]));
            }
        }
    });
    while !other.is_finished() {
        // The digest of the whole is checked by the client.
        let (of, all) = client.list(b"", None).expect("one revision");
        assert_eq!((all.keys(), all.digest()), (1500, of.digest));
    }
    other.join().expect("no panic");
    let mut whole = State::new();
    whole.apply(&changes);
    assert_eq!(client.list(b"", Some(first)).expect("read").1, whole);
    // The log in pages, both ways.
    let back = client.log(None, 20).expect("the log");
    assert_eq!((back.commits.len(), back.more), (20, true));
    let rest = client.log(Some(back.commits[19].at), 0).expect("the log");
    assert_eq!((rest.commits.len(), rest.more, rest.commits[30].puts), (31, false, 1500));
    let forward = client.follow(first, Duration::ZERO).expect("the log");
    let revisions: Vec<u64> = forward.commits.iter().map(|commit| commit.at.rev).collect();
    assert_eq!(revisions, (2..=51).collect::<Vec<_>>());
    // Beyond the newest there is nothing until there is.
    let began = std::time::Instant::now();
    let none = client.follow(forward.head, Duration::from_millis(50)).expect("an answer");
    assert!(none.commits.is_empty() && began.elapsed() >= Duration::from_millis(50));
}

#[test]
fn a_server_needs_something_to_serve() {
    let w = World::new();
    let mut config = w.log_config();
    config.control = Vec::new();
    let refused = Running::serve(config).refused();
    assert!(refused.to_string().contains("neither a directory"), "{refused}");
}

#[test]
fn those_who_wait_are_bounded_and_who_is_gone_makes_room() {
    let w = World::new();
    let _server = Running::serve(w.log_config());
    let client = w.client();
    let head = client.commit(&expecting(FIRST, put(&[("a", "1")]))).expect("the first").at;
    let crowd = spanwire::Req::new().expect("a socket");
    crowd.connect(&w.control()).expect("an address");
    let (namespace, order) = (String::from("config"), Order::Forward);
    let ask = Ask::Log(LogAsk { namespace, order, bound: head, max: 0, wait_ms: u32::MAX }).encode();
    let waiting: Vec<_> = (0..1024).map(|_| crowd.start(ask.clone()).expect("open")).collect();
    await_taken(&crowd);
    let short = w.client().with_timeout(Duration::from_millis(300));
    let told = short.follow(head, Duration::from_millis(10));
    assert!(matches!(told, Err(ClientError::Busy)), "{told:?}");
    drop((waiting, crowd));
    await_that("room", || {
        short.follow(head, Duration::from_millis(10)).is_ok_and(|page| page.commits.is_empty())
    });
}

#[test]
fn a_lost_store_is_adopted_from_the_nodes_in_a_new_epoch() {
    let w = World::new();
    let server = Running::serve(w.log_config());
    let client = w.client();
    let content = [("a", "1".to_owned()), ("large", "x".repeat(900 << 10)), ("more", "y".repeat(900 << 10))];
    let content = content.each_ref().map(|(key, value)| (*key, value.as_str()));
    client.commit(&expecting(FIRST, put(&content))).expect("the first");
    let _agents = ["n1", "n2"].map(|name| Running::agent(w.agent_config(name)));
    ["n1", "n2"].iter().for_each(|name| await_that("the first", || w.tree(name) == state(&content)));
    let refused = client.begin(Id([1; 16]), BeginWith::Nothing);
    assert!(matches!(refused, Err(ClientError::Invalid { code: InvalidCode::NotNow, .. })), "{refused:?}");
    server.ends();
    std::fs::remove_dir_all(w.path("state")).expect("ours");

    let server = Running::serve(w.log_config());
    await_that("both nodes to show what they hold", || {
        client.holdings().expect("an answer").iter().any(|h| h.nodes == 2 && h.for_all && h.position.rev == 1)
    });
    // Nothing begins by itself.
    let refused = client.commit(&expecting(FIRST, put(&[("b", "1")])));
    assert!(matches!(refused, Err(ClientError::ReadOnly { why: Writable::Vacant, .. })), "{refused:?}");
    let nowhere = client.begin(Id([2; 16]), BeginWith::Node(Some(Place { epoch: 1, rev: 7 })));
    assert!(matches!(nowhere, Err(ClientError::Invalid { code: InvalidCode::NoSuch, .. })), "{nowhere:?}");
    let begun =
        client.begin(Id([3; 16]), BeginWith::Node(Some(Place { epoch: 1, rev: 1 }))).expect("adopted");
    assert_eq!((begun.at, begun.replay), (Place { epoch: 2, rev: 2 }, false));
    let again = client.begin(Id([3; 16]), BeginWith::Node(None)).expect("the same answer");
    assert_eq!(again, Committed { replay: true, ..begun });
    assert_eq!(client.list(b"", None).expect("read").1, state(&content));
    let all = client.wait(begun.at, Level::Applied, Duration::from_secs(20), &Selector::default());
    assert_eq!(all.expect("an answer").ok.len(), 2);
    commit(&client, put(&[("a", "2")]));
    await_that("the next commit", || w.tree("n1").get("a") == Some(&Entry::new(0, "2")));
    // With what is there, and with nothing.
    let same = client.begin(Id([4; 16]), BeginWith::Same).expect("begun");
    assert_eq!(same.at, Place { epoch: 3, rev: 4 });
    server.ends();
    std::fs::remove_dir_all(w.path("state")).expect("ours");
    let _server = Running::serve(w.log_config());
    await_that("both nodes", || client.holdings().expect("an answer").iter().any(|h| h.nodes == 2));
    assert_eq!(client.begin(Id([5; 16]), BeginWith::Nothing).expect("begun").at, Place { epoch: 4, rev: 5 });
    await_that("nothing", || w.tree("n1").is_empty() && w.tree("n2").is_empty());
}

#[test]
fn a_directory_takes_the_place_of_commits_only_if_that_is_meant() {
    let w = World::new();
    let server = Running::serve(w.log_config());
    let client = w.client();
    client.commit(&expecting(FIRST, put(&[("a", "1"), ("b", "2")]))).expect("the first");
    server.ends();
    // It holds the same but for two keys.
    w.write("src/a", "1");
    w.write("src/c", "3");
    let published = serve::Config { state: w.path("state"), control: vec![w.control()], ..w.serve_config() };
    let why = Running::serve(published.clone()).refused().to_string();
    assert!(why.contains("change 2 of its keys") && why.contains("--replace"), "{why}");
    let server = Running::serve(w.log_config());
    assert_eq!(client.list(b"", None).expect("read").1, state(&[("a", "1"), ("b", "2")]));
    server.ends();
    let server = Running::serve(serve::Config { replace: true, ..published.clone() });
    server.await_line("revision 1/");
    assert_eq!(client.list(b"", None).expect("read").1, state(&[("a", "1"), ("c", "3")]));
    server.ends();
    // From now on it is the directory's.
    w.write("src/c", "4");
    let server = Running::serve(published.clone());
    server.await_line("revision 1/");
    server.ends();
    // Nothing to replace: the directory holds what was committed.
    let server = Running::serve(w.log_config());
    commit(&client, put(&[("d", "5")]));
    server.ends();
    w.write("src/d", "5");
    let server = Running::serve(published);
    server.await_line("clients at");
    assert_eq!(client.get(&key("d"), None).expect("read").1, Some(Entry::new(0, "5")));
}

#[test]
fn many_clients_at_once_commit_each_once_and_in_their_order() {
    const CLIENTS: usize = 16;
    const EACH: usize = 20;
    let w = World::new();
    let server = Running::serve(w.log_config());
    let first = w.client();
    first.commit(&expecting(FIRST, put(&[("a", "1")]))).expect("the first");
    let mut revs: Vec<u64> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let client = w.client();
                scope.spawn(move || {
                    let one = |i: usize| commit(&client, put(&[(&format!("k{n}"), &i.to_string())])).at.rev;
                    let revs: Vec<u64> = (0..EACH).map(one).collect();
                    assert!(revs.is_sorted(), "{revs:?}");
                    revs
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
    });
    revs.sort_unstable();
    assert_eq!(revs, (2..=(CLIENTS * EACH) as u64 + 1).collect::<Vec<_>>(), "each once");
    server.ends();
    let _server = Running::serve(w.log_config());
    let (tip, held) = first.list(b"", None).expect("read");
    assert_eq!((tip.position.rev, held.keys()), ((CLIENTS * EACH) as u64 + 1, CLIENTS as u32 + 1));
    assert!(held.iter().skip(1).all(|(_, entry)| &entry.value()[..] == b"19"));
}

#[test]
fn what_is_larger_than_the_server_takes_is_refused_before_it_is_sent_and_in_its_words() {
    let w = World::new();
    let _server = Running::serve(w.log_config());
    let client = w.client();
    assert_eq!(client.limits().expect("an answer"), Limits::default());
    let over = |told: Result<Committed, ClientError>| match told {
        Err(ClientError::Invalid { code: InvalidCode::OverLimit, text, .. }) => text,
        other => panic!("{other:?}"),
    };
    let with = |pairs: Vec<(Key, Vec<u8>)>| {
        let mut changes = ChangeSet::new();
        pairs.into_iter().for_each(|(name, value)| changes.put(name, 0, value));
        expecting(FIRST, changes)
    };
    // The server itself says so of what it takes.
    for size in [(1 << 20) + 1, 70 << 20] {
        let text = over(client.commit(&with(vec![(key("a"), vec![0; size])])));
        assert_eq!(text, format!("the value of a has {size} bytes; the limit is 1048576"));
    }
    for count in [64, 70] {
        let pairs: Vec<_> = (10..10 + count).map(|n| (key(&format!("{n}")), vec![0; 1 << 20])).collect();
        let text = over(client.commit(&with(pairs.clone())));
        let bytes = count * ((1 << 20) + 2);
        assert_eq!(text, format!("{bytes} bytes in keys and values; the limit is 67108864"));
        let mut state = State::new();
        pairs.into_iter().for_each(|(name, value)| drop(state.put(name, Entry::new(0, value))));
        assert_eq!(over(client.import(Id::random().expect("randomness"), state)), text);
    }
    // Nothing was done, and the connection is as it was.
    assert_eq!(client.commit(&expecting(FIRST, put(&[("a", "1")]))).expect("the first").at.rev, 1);
}
