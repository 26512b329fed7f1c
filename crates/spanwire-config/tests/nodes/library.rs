//! A node inside a program: real sockets, real folders, executors of two kinds.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

use futures_core::Stream;
use spanwire::{Event, Socket};
use spanwire_config::sign::Secret;
use spanwire_config::{Changed, Node, NodeBuilder, NodeStatus, NotReached, Place, WatchStream};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(50);

/// An authority behind a real socket.
struct Server {
    memory: Memory,
    socket: Socket<Distributor>,
    url: String,
}

fn cluster() -> Id {
    Id::named("config-sync")
}

fn server_with(beacon: Duration, secret: Option<Secret>) -> Server {
    let machine = NsSettings { cluster: cluster(), ..NsSettings::default() };
    let memory = Memory::new(machine, epoch(1).incarnation);
    let settings = Settings { cluster: cluster(), beacon, secret, ..Settings::default() };
    let socket = Socket::new(Distributor::new(settings, memory.machine.origin())).expect("a socket");
    let url = socket.bind("tcp://127.0.0.1:0").expect("an address").url().to_owned();
    Server { memory, socket, url }
}

fn server() -> Server {
    server_with(Duration::from_millis(100), None)
}

impl Server {
    fn bring(&self, left: Vec<AuthorityAction>) {
        for action in left {
            self.socket.with(|d, cx| d.perform(cx, action)).expect("in order");
        }
    }

    fn commit(&mut self, changes: &ChangeSet) -> Position {
        let (position, left) = self.memory.commit(changes);
        self.bring(left);
        position
    }

    fn put<const N: usize>(&mut self, pairs: [(&str, &str); N]) -> Position {
        self.commit(&puts(pairs))
    }

    /// Waits until the one node is so.
    #[track_caller]
    fn await_node(&self, what: &str, holds: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        let key = self.socket.with(|d, _| d.wait_key());
        let found = |d: &mut Distributor| d.status().into_iter().find(|node| holds(node));
        match self.socket.wait(key, Some(PATIENCE), |d, _| found(d)) {
            Ok(node) => node,
            Err(e) => panic!("{e}: {what} in {:?}", self.socket.with(|d, _| d.status())),
        }
    }
}

fn node(server: &Server) -> NodeBuilder {
    Node::builder().name("n").connect(&server.url).again(SOON)
}

#[track_caller]
fn start(builder: NodeBuilder) -> Node {
    builder.start().expect("it starts")
}

fn names(changed: &Changed) -> Vec<String> {
    changed.keys.iter().map(Key::to_string).collect()
}

/// A hand-made executor for one task: it sleeps until it is woken, and counts that.
struct Woken {
    thread: Thread,
    times: AtomicUsize,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.times.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Woken {
    /// In its own thread: until it is woken once more than so often.
    fn sleep_after(&self, before: usize) {
        let latest = Instant::now() + PATIENCE;
        while self.times.load(Ordering::SeqCst) == before {
            assert!(Instant::now() < latest, "nobody wakes it");
            std::thread::park_timeout(PATIENCE);
        }
    }
}

fn woken() -> Arc<Woken> {
    Arc::new(Woken { thread: std::thread::current(), times: AtomicUsize::new(0) })
}

fn block_on<F: Future>(future: F) -> F::Output {
    let woken = woken();
    let waker = Waker::from(woken.clone());
    let mut future = pin!(future);
    loop {
        let before = woken.times.load(Ordering::SeqCst);
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        woken.sleep_after(before);
    }
}

fn next(stream: &mut WatchStream) -> impl Future<Output = Option<Changed>> + '_ {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx))
}

#[test]
fn a_node_without_a_hook_reports_a_revision_once_and_at_every_level() {
    let mut server = server_with(Duration::from_secs(60), None);
    let node = start(node(&server));
    let first = server.put([("a", "1")]);
    node.wait_for(first, PATIENCE).expect("it comes");
    server.await_node("applied", |node| node.applied == Some(first));
    let before = server.socket.stats().rx_msgs;
    let second = server.put([("a", "2")]);
    let status = server.await_node("applied", |node| node.applied == Some(second));
    assert_eq!((status.visible, status.stored), (Some(second), None), "there is no cache");
    // What it says next tells that it said nothing in between.
    let third = server.put([("a", "3")]);
    server.await_node("applied", |node| node.applied == Some(third));
    assert_eq!(server.socket.stats().rx_msgs - before, 2);
}

#[test]
fn invariant_02_a_pinned_snapshot_stays_whole_while_newer_ones_come() {
    let mut server = server();
    let node = start(node(&server));
    assert_eq!((node.get("a"), node.snapshot().position()), (None, None));
    let first = server.put([("a", "1"), ("b", "1")]);
    let pinned = node.wait_for(first, PATIENCE).expect("it comes");
    assert_eq!(node.get("a").as_deref(), Some(&b"1"[..]));
    let reader = node.clone();
    let (looks, looked) = std::sync::mpsc::sync_channel(0);
    let reading = std::thread::spawn(move || {
        // Whatever is pinned has one value for both.
        let look = || {
            let snapshot = reader.snapshot();
            assert_eq!(snapshot.get("a"), snapshot.get("b"));
            assert_eq!(snapshot.state().recompute(), snapshot.digest());
        };
        look();
        let _ = looks.send(());
        while reader.get("end").is_none() {
            look();
        }
    });
    looked.recv().expect("it looks before anything changes");
    for n in 0..50 {
        let value = n.to_string();
        server.put([("a", &value), ("b", &value)]);
    }
    let last = server.put([("end", "")]);
    node.wait_for(last, PATIENCE).expect("it comes");
    reading.join().expect("it saw no mixture");
    assert_eq!(pinned.get("a").map(|v| &v[..]), Some(&b"1"[..]));
    assert_eq!((pinned.position(), pinned.state().keys(), pinned.iter().count()), (Some(first), 2, 2));
}

#[test]
fn promise_18_one_change_is_one_wake_up_and_identical_content_is_none() {
    let mut server = server();
    let node = start(node(&server));
    let at = server.put([("a", "1")]);
    node.wait_for(at, PATIENCE).expect("it comes");
    let mut stream = node.watch().into_stream();
    let woken = woken();
    let waker = Waker::from(woken.clone());
    let mut poll = || Pin::new(&mut stream).poll_next(&mut Context::from_waker(&waker));
    assert!(poll().is_pending(), "what is visible when it begins is no change");
    // Repeats of the content, and a new epoch with it.
    for _ in 0..3 {
        let at = server.put([("a", "1")]);
        node.wait_for(at, PATIENCE).expect("it comes");
    }
    let (at, left) = server.memory.new_epoch(2);
    server.bring(left);
    node.wait_for(at, PATIENCE).expect("it comes");
    assert_eq!(woken.times.load(Ordering::SeqCst), 0);
    let at = server.put([("a", "2")]);
    node.wait_for(at, PATIENCE).expect("it comes");
    woken.sleep_after(0);
    assert_eq!(woken.times.load(Ordering::SeqCst), 1);
    let Poll::Ready(Some(changed)) = poll() else { panic!("nothing changed") };
    assert_eq!((names(&changed), changed.snapshot.position()), (vec!["a".into()], Some(at)));
    assert!(poll().is_pending());
    assert_eq!(woken.times.load(Ordering::SeqCst), 1);
}

#[test]
fn promise_18_what_changes_while_nobody_asks_is_one_item() {
    let mut server = server();
    let node = start(node(&server));
    let at = server.put([("a", "1"), ("b", "1"), ("c", "1")]);
    node.wait_for(at, PATIENCE).expect("it comes");
    let (mut all, mut some) = (node.watch(), node.watch_prefix("c"));
    server.put([("a", "2")]);
    server.put([("d", "1")]);
    let mut changes = puts([("a", "1"), ("e", "1")]);
    changes.delete(key("b"));
    let at = server.commit(&changes);
    node.wait_for(at, PATIENCE).expect("it comes");
    // `a` went and came back.
    let changed = all.try_next().expect("a change");
    assert_eq!(names(&changed), ["b", "d", "e"]);
    assert_eq!(all.seen().position(), Some(at));
    assert!(all.try_next().is_none() && all.next_timeout(SOON).is_none());
    assert!(some.try_next().is_none(), "nothing of that prefix");
    let at = server.put([("c", "2"), ("x", "1")]);
    assert_eq!(names(&some.next_timeout(PATIENCE).expect("it waits")), ["c"]);
    assert_eq!(some.seen().position(), Some(at));
    // They end with the node, after what is still to be seen.
    node.close(PATIENCE);
    assert_eq!(all.by_ref().map(|changed| names(&changed).len()).collect::<Vec<_>>(), [2]);
    assert!(some.next().is_none() && all.next().is_none());
    assert_eq!(node.get("c").as_deref(), Some(&b"2"[..]), "what was visible stays readable");
}

#[test]
fn a_position_is_waited_for_until_it_is_lost_late_or_there() {
    let mut server = server();
    let node = start(node(&server));
    let late = node.wait_ready(SOON);
    assert!(matches!(late, Err(NotReached::TimedOut(None))), "{late:?}");
    let first = server.put([("a", "1")]);
    let there = block_on(node.wait_for_async(first)).expect("it comes");
    assert_eq!(there.position(), Some(first));
    let next = Position { rev: first.rev + 1, ..first };
    let late = node.wait_for(next, SOON);
    assert!(matches!(late, Err(NotReached::TimedOut(Some(at))) if at == first), "{late:?}");
    // Somebody waits while it comes; and what is above counts.
    let waiting = node.clone();
    let waiting = std::thread::spawn(move || waiting.wait_for(next, PATIENCE));
    server.put([("a", "2")]);
    server.put([("a", "3")]);
    let reached = waiting.join().expect("no panic").expect("it comes");
    assert!(reached.position() >= Some(next));
    // Another epoch is another history.
    let (at, left) = server.memory.new_epoch(7);
    let waiting = node.clone();
    let lost = std::thread::spawn(move || waiting.wait_for(Position { rev: 99, ..first }, PATIENCE));
    server.bring(left);
    assert_eq!(lost.join().expect("no panic").err(), Some(NotReached::Lost(at)));
    assert!(node.wait_for(at, PATIENCE).is_ok() && node.wait_for(first, PATIENCE).is_err());
    // As a client is told of its commit.
    let there = Place::from(at);
    assert!(node.wait_for(there, PATIENCE).is_ok());
    assert_eq!(node.wait_for(Place::from(first), PATIENCE).err(), Some(NotReached::Lost(at)));
    let late = node.wait_for(Place { rev: there.rev + 1, ..there }, SOON);
    assert!(matches!(late, Err(NotReached::TimedOut(Some(seen))) if seen == at), "{late:?}");
    let waiting = node.clone();
    let closed = std::thread::spawn(move || waiting.wait_for(Position { rev: 99, ..at }, PATIENCE));
    node.close(PATIENCE);
    assert_eq!(closed.join().expect("no panic").err(), Some(NotReached::Closed));
    // A future that was dropped leaves nothing behind, and one on a closed node says so.
    drop(node.wait_for_async(at));
    assert_eq!(block_on(node.wait_for_async(Position { rev: 99, ..at })).err(), Some(NotReached::Closed));
}

#[test]
fn invariant_18_a_node_says_fresh_only_if_seq_rose_within_the_time() {
    // No beacon comes while this test runs.
    let mut server = server_with(Duration::from_secs(60), None);
    let time = Duration::from_millis(300);
    let node = start(node(&server).fresh(time));
    let at = server.put([("a", "1")]);
    node.wait_for(at, PATIENCE).expect("it comes");
    let first = node.freshness();
    assert!(!first.fresh && first.age.is_none(), "the first seq only sets the mark: {first:?}");
    let began = Instant::now();
    let at = server.put([("a", "2")]);
    node.wait_for(at, PATIENCE).expect("it comes");
    let then = node.freshness();
    assert_eq!(then.fresh, then.age.expect("it rose") <= time);
    assert!(then.fresh || began.elapsed() > time);
    // It ends by time alone, and tells nobody.
    std::thread::sleep(time);
    let last = node.freshness();
    assert!(!last.fresh && last.age > Some(time), "{last:?}");
}

#[test]
fn invariant_10_what_the_validator_refuses_is_not_shown_and_the_last_good_stays() {
    let mut server = server();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let asking = asked.clone();
    let node = start(node(&server).validate(move |update: &Update| {
        asking.lock().expect("no panic").push((update.position().rev, update.changed.len()));
        match update.state.get("a").map(|entry| &entry.value()[..]) {
            Some(b"bad") => Err("a is bad".into()),
            Some(b"worse") => panic!("a is worse"),
            _ => Ok(()),
        }
    }));
    let mut watch = node.watch();
    let good = server.put([("a", "good")]);
    server.await_node("applied", |node| node.applied == Some(good));
    for (value, said) in [("bad", "a is bad"), ("worse", "the validator panicked")] {
        let at = server.put([("a", value)]);
        let status = server.await_node(value, |node| node.refused.iter().any(|(refused, ..)| *refused == at));
        let (_, code, text) = status.refused.last().expect("it was refused").clone();
        assert_eq!((code, text.as_str()), (NackCode::Validator, said));
        assert_eq!(status.visible, Some(good));
        assert_eq!((node.snapshot().position(), node.status().data), (Some(good), Data::Held));
        // The program is told what its server is.
        let status = node.status();
        assert_eq!((status.newest, status.visible), (Some(good), Some(good)));
        assert_eq!(status.refused, Some((at, NackCode::Validator, said.to_owned())));
    }
    let better = server.put([("a", "better")]);
    node.wait_for(better, PATIENCE).expect("it comes");
    assert_eq!((node.status().newest, node.status().refused), (Some(better), None));
    // Readers saw the good ones alone.
    let seen: Vec<_> =
        std::iter::from_fn(|| watch.try_next()).filter_map(|c| c.snapshot.position()).collect();
    assert_eq!(seen.last(), Some(&better));
    assert_eq!(*asked.lock().expect("no panic"), [(1, 1), (2, 1), (3, 1), (4, 1)]);
}

/// Asks a node where it stands, in the moment in which it is woken.
struct Asks {
    node: Node,
    heard: Mutex<Vec<Option<Position>>>,
}

impl Wake for Asks {
    fn wake(self: Arc<Self>) {
        let visible = self.node.status().visible;
        self.heard.lock().expect("no panic").push(visible);
    }
}

#[test]
fn invariant_14_who_is_woken_by_a_revision_hears_that_it_is_visible() {
    for hook in [false, true] {
        let mut server = server();
        let builder = node(&server);
        let node = start(if hook { builder.on_change(|_| Ok(())) } else { builder });
        let asks = Arc::new(Asks { node: node.clone(), heard: Mutex::default() });
        let waker = Waker::from(asks.clone());
        let mut ready = pin!(node.wait_ready_async());
        assert!(ready.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let at = server.put([("a", "1")]);
        server.await_node("applied", |node| node.applied == Some(at));
        assert_eq!(*asks.heard.lock().expect("no panic"), [Some(at)]);
        node.close(SOON);
    }
}

#[test]
fn invariant_05_a_node_with_keys_shows_only_what_they_signed() {
    let secret = Secret::from_seed(1, &[1; 32]);
    let mut server = server_with(Duration::from_millis(20), Some(secret.clone()));
    let good = start(node(&server).trust(secret.public()));
    let doubting = start(node(&server).trust(Secret::from_seed(1, &[2; 32]).public()));
    assert!(server.socket.wait_for_peers(2, PATIENCE));
    let events = server.socket.events();
    let at = server.put([("a", "1")]);
    good.wait_for(at, PATIENCE).expect("it comes");
    let next = || events.recv_timeout(PATIENCE).expect("it leaves, and comes back");
    while !matches!(next(), Event::Disconnected { .. }) {}
    while !matches!(next(), Event::Connected { .. }) {}
    assert!(doubting.wait_ready(SOON).is_err() && doubting.status().newest.is_none());
}

#[test]
fn invariant_14_levels_are_told_when_they_are_true() {
    let mut server = server();
    let (told, fails) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(1)));
    let (telling, failing) = (told.clone(), fails.clone());
    let node = start(node(&server).on_change(move |changed| {
        telling.lock().expect("no panic").push(names(changed));
        match failing.load(Ordering::SeqCst) {
            0 => Ok(()),
            1 => Err("not now".into()),
            _ => panic!("not at all"),
        }
    }));
    // Without a cache nothing is stored; and a hook that failed did not apply.
    for (n, said) in [(1, "not now"), (2, "the hook panicked")] {
        fails.store(n, Ordering::SeqCst);
        let at = server.put([("a", &n.to_string()), (["x", "b", "c"][n], "1")]);
        let status = server.await_node(said, |node| {
            node.refused
                .iter()
                .any(|(refused, code, text)| *refused == at && *code == NackCode::Hook && text == said)
        });
        assert_eq!((status.visible, status.applied, status.stored), (Some(at), None, None));
        assert_eq!(node.snapshot().position(), Some(at));
    }
    fails.store(0, Ordering::SeqCst);
    let at = server.put([("d", "1")]);
    let status = server.await_node("applied", |node| node.applied == Some(at));
    assert_eq!((status.stored, status.refused.len()), (None, 0));
    // The next content: only what changed since it succeeded. The same content: nothing.
    let at = server.put([("d", "2")]);
    server.await_node("applied", |node| node.applied == Some(at));
    let at = server.put([("d", "2")]);
    server.await_node("applied", |node| node.applied == Some(at));
    let told = told.lock().expect("no panic").clone();
    assert_eq!(told, [vec!["a", "b"], vec!["a", "b", "c"], vec!["a", "b", "c", "d"], vec!["d"]]);
}

#[tokio::test]
async fn on_tokio_changes_and_positions_are_awaited_and_given_up() {
    let mut server = server();
    let node = start(node(&server));
    let mut watch = node.watch();
    // Given up, and asked for again.
    assert!(tokio::time::timeout(SOON, watch.changed()).await.is_err());
    assert!(tokio::time::timeout(SOON, node.wait_ready_async()).await.is_err());
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.wait_ready_async().await }
    });
    let first = server.put([("a", "1")]);
    let changed = tokio::time::timeout(PATIENCE, watch.changed()).await.expect("in time").expect("a change");
    assert_eq!(changed.snapshot.position(), Some(first));
    assert_eq!(waiting.await.expect("no panic").expect("it comes").position(), Some(first));
    let mut stream = watch.into_stream();
    let streaming = tokio::spawn(async move {
        let mut keys = Vec::new();
        while let Some(changed) = next(&mut stream).await {
            keys.extend(names(&changed));
        }
        keys
    });
    for n in 0..3 {
        let at = server.put([("n", &n.to_string())]);
        node.wait_for_async(at).await.expect("it comes");
    }
    node.close(PATIENCE);
    let keys = tokio::time::timeout(PATIENCE, streaming).await.expect("in time").expect("no panic");
    assert!(!keys.is_empty() && keys.iter().all(|key| key == "n"), "{keys:?}");
}

#[test]
fn on_a_hand_made_executor_the_same() {
    let mut server = server();
    let node = start(node(&server));
    let mut watch = node.watch();
    let making = std::thread::spawn(move || {
        server.put([("a", "1")]);
        server
    });
    let changed = block_on(watch.changed()).expect("a change");
    assert_eq!(names(&changed), ["a"]);
    let mut server = making.join().expect("no panic");
    let mut stream = watch.into_stream();
    server.put([("b", "1")]);
    assert_eq!(names(&block_on(next(&mut stream)).expect("a change")), ["b"]);
    // It ends with the last handle.
    drop(node);
    assert!(block_on(next(&mut stream)).is_none());
}

#[cfg(all(unix, feature = "sync"))]
mod cache {
    use std::fs;

    use spanwire_config::rollout::{Plan, Stage, WHOLE};
    use spanwire_config::{AuthorityEvent, Copied, Intent, NodeError, Request, Step, Ticket, store};

    use super::*;

    #[test]
    fn promise_17_a_node_starts_with_its_last_good_revision_without_any_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = server();
        let kept = |url: &str| Node::builder().connect(url).cache(folder.path());
        let node = start(kept(&server.url));
        server.put([("a", "1")]);
        let at = server.put([("a", "2"), ("b", "1")]);
        let status = server.await_node("applied", |node| node.applied == Some(at));
        assert_eq!(status.stored, Some(at), "it is on disk");
        assert!(matches!(kept(&server.url).start(), Err(NodeError::Cache(_))), "one at a time");
        node.close(PATIENCE);
        drop(server);
        let (tell, told) = std::sync::mpsc::channel();
        let began = Instant::now();
        let node = start(kept("tcp://127.0.0.1:1").on_change(move |changed| {
            tell.send(names(changed)).expect("the test listens");
            Ok(())
        }));
        assert_eq!(node.get("a").as_deref(), Some(&b"2"[..]));
        assert!(began.elapsed() < Duration::from_secs(1), "at once: {:?}", began.elapsed());
        assert_eq!((node.snapshot().position(), node.status().data), (Some(at), Data::Cached));
        assert!(!node.freshness().fresh && node.cache_trouble().is_none());
        assert_eq!(told.recv_timeout(PATIENCE).expect("the hook"), ["a", "b"]);
        node.close(PATIENCE);
        assert!(told.try_recv().is_err(), "told once");
        // It is this namespace's alone.
        let other = kept("tcp://127.0.0.1:1").namespace("other").start();
        assert!(matches!(other, Err(NodeError::Foreign(name)) if name == "config"));
    }

    #[test]
    fn promise_17_a_torn_cache_is_refused_and_reported_and_so_is_one_of_a_revoked_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = Secret::from_seed(1, &[1; 32]);
        let mut server = server_with(Duration::from_millis(100), Some(secret.clone()));
        let kept = || Node::builder().connect(&server.url).cache(folder.path()).trust(secret.public());
        let node = start(kept());
        let first = server.memory.commit(&puts([("a", "1")]));
        server.bring(first.1);
        node.wait_for(first.0, PATIENCE).expect("it comes");
        let second = server.memory.commit(&puts([("a", "2")]));
        server.bring(second.1);
        server.await_node("applied", |node| node.applied == Some(second.0));
        node.close(PATIENCE);
        let offline = || Node::builder().cache(folder.path());
        let mut trust = Secret::from_seed(2, &[2; 32]).public();
        let retired = start(offline().trust(trust.clone()));
        assert_eq!(retired.get("a").as_deref(), Some(&b"2"[..]), "believed under the key of its time");
        retired.close(PATIENCE);
        trust.revoke(&secret.public());
        let revoked = start(offline().trust(trust));
        assert_eq!(revoked.snapshot().position(), None);
        assert!(revoked.cache_trouble().is_some_and(|why| why.contains("revoked")));
        revoked.close(PATIENCE);
        // The newer of the two is torn.
        let newer = folder.path().join("slot-b");
        let bytes = fs::read(&newer).expect("written");
        fs::write(&newer, &bytes[..bytes.len() / 2]).expect("ours");
        let node = start(offline().trust(secret.public()));
        assert_eq!(node.get("a").as_deref(), Some(&b"1"[..]), "the one before");
        assert!(node.cache_trouble().is_some_and(|why| why.contains("slot-b")));
        node.close(PATIENCE);
    }

    #[test]
    fn invariant_14_what_the_disk_refuses_is_shown_as_volatile_and_stored_later() {
        let folder = tempfile::tempdir().expect("a folder");
        // Nothing can be written where a directory stands in the way.
        for slot in ["slot-a.new", "slot-b.new"] {
            fs::create_dir(folder.path().join(slot)).expect("writable");
        }
        let mut server = server();
        let node = start(node(&server).cache(folder.path()));
        let at = server.put([("a", "1")]);
        let status = server.await_node("applied", |node| node.applied == Some(at));
        assert_eq!((status.stored, node.get("a").is_some()), (None, true));
        assert!(node.cache_trouble().is_some());
        for slot in ["slot-a.new", "slot-b.new"] {
            fs::remove_dir(folder.path().join(slot)).expect("ours");
        }
        server.await_node("stored", |node| node.stored == Some(at));
        assert_eq!(node.cache_trouble(), None);
        node.close(PATIENCE);
        assert!(folder.path().join("slot-a").exists());
    }

    #[test]
    fn a_promotion_is_kept_on_disk_as_it_comes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = server();
        let node = start(node(&server).cache(folder.path()));
        let first = server.put([("a", "1")]);
        let all = Stage { share: WHOLE, ..Stage::default() };
        let (at, left) = server.memory.commit_as(Request {
            request: Id([9; 16]),
            expect: Some(first.into()),
            intent: Intent::Change(puts([("a", "2")])),
            author: String::new(),
            note: String::new(),
            stamp: 0,
            rollout: Some(Plan { salt: Id::default(), stages: vec![all] }),
            supersede: false,
        });
        server.bring(left);
        server.await_node("the canary on disk", |node| node.stored == Some(at));
        let kept =
            || store::peek(folder.path(), 1 << 20).map(|(head, _)| (head.position, head.audience.len()));
        assert!(kept().is_some_and(|(held, audience)| held == at && audience > 0));
        let promote = AuthorityEvent::Rollout(Ticket(0), Id([10; 16]), at.into(), Step::Promote);
        let left = server.memory.tell(promote);
        server.bring(left);
        let latest = Instant::now() + PATIENCE;
        // Nobody tells of files.
        while kept() != Some((at, 0)) {
            assert!(Instant::now() < latest, "waited for the promotion on disk");
            std::thread::sleep(Duration::from_millis(5));
        }
        node.close(PATIENCE);
    }

    #[test]
    fn a_folder_that_was_put_back_takes_a_higher_start_number() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = server();
        let at = server.put([("a", "1")]);
        let identity = folder.path().join("identity");
        let (mut boot, mut id) = (0, None);
        // Each start has a higher number than the one before, whatever is in the folder.
        let mut run = || {
            let node = start(node(&server).cache(folder.path()));
            node.wait_for(at, PATIENCE).expect("it comes");
            let applied = |node: &NodeStatus| node.connected && node.applied == Some(at) && node.boot > boot;
            let status = server.await_node("applied by a later start", applied);
            assert_eq!(*id.get_or_insert(status.node), status.node);
            boot = status.boot;
            node
        };
        run().close(PATIENCE);
        let old = fs::read(&identity).expect("written");
        run().close(PATIENCE);
        run().close(PATIENCE);
        fs::write(&identity, old).expect("ours");
        let node = run();
        assert_eq!(node.copied(), Some(Copied::Raised), "the program can tell its operator");
        assert_eq!(node.cache_trouble(), None, "it is noted");
        node.close(PATIENCE);
        let node = run();
        assert_eq!(node.copied(), None, "once is enough");
        node.close(PATIENCE);
    }

    #[test]
    fn of_two_nodes_on_copies_of_a_folder_one_becomes_another_node_and_says_so() {
        let (folder, copy) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let mut server = server();
        let at = server.put([("a", "1")]);
        let first = start(node(&server).cache(folder.path()));
        server.await_node("applied", |node| node.connected && node.applied == Some(at));
        for file in fs::read_dir(folder.path()).expect("it exists") {
            let file = file.expect("readable");
            if file.file_type().expect("readable").is_file() {
                fs::copy(file.path(), copy.path().join(file.file_name())).expect("writable");
            }
        }
        assert_eq!(first.copied(), None);
        let second = start(node(&server).cache(copy.path()));
        let key = server.socket.with(|d, _| d.wait_key());
        let both = |d: &mut Distributor| {
            let there = |node: &&NodeStatus| node.connected && node.applied == Some(at);
            (d.status().iter().filter(there).count() == 2).then_some(())
        };
        server.socket.wait(key, Some(PATIENCE), |d, _| both(d)).expect("the server shows both");
        let told = [first.copied(), second.copied()];
        assert!(told.contains(&Some(Copied::Renamed)), "one has another id: {told:?}");
        first.close(PATIENCE);
        second.close(PATIENCE);
    }
}
