//! The code of `docs/guide-config-library.md`, run; and the page compared with it.
#![cfg(all(unix, feature = "sync"))]

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use spanwire::Socket;
use spanwire::protocol::Time;
use spanwire_config::sign::{Keyring, Secret};
use spanwire_config::{
    AuthorityEvent, ChangeSet, Distributor, Id, Intent, Key, Node, NotReached, NsAuthority, NsSettings,
    Opening, Place, Position, Request, Settings, Ticket, Update,
};

/// What `config-sync serve` does, without a disk.
struct Server {
    authority: NsAuthority,
    socket: Socket<Distributor>,
    url: String,
    commits: u64,
}

impl Server {
    fn new(secret: Secret) -> Result<Server, Box<dyn Error>> {
        let cluster = Id::named("config-sync");
        let machine = NsSettings { cluster, ..NsSettings::default() };
        let (authority, _) = NsAuthority::new(machine, Opening::Unknown, Id::random()?);
        let settings = Settings { cluster, secret: Some(secret), ..Settings::default() };
        let socket = Socket::new(Distributor::new(settings, authority.origin()))?;
        let url = socket.bind("tcp://127.0.0.1:0")?.url().to_owned();
        Ok(Server { authority, socket, url, commits: 0 })
    }

    fn commit<const N: usize>(&mut self, pairs: [(&str, &str); N]) -> Result<Position, Box<dyn Error>> {
        let mut changes = ChangeSet::new();
        for (key, value) in pairs {
            changes.put(Key::new(key)?, 0, value.to_owned());
        }
        self.commits += 1;
        let request = Request {
            request: Id::named(&self.commits.to_string()),
            expect: Some(self.authority.position().map(Place::from).unwrap_or_default()),
            intent: Intent::Change(changes),
            author: String::new(),
            note: String::new(),
            stamp: 0,
            rollout: None,
            supersede: false,
        };
        let event = AuthorityEvent::Commit(Ticket(self.commits), request);
        self.authority.handle(event, Time::default());
        for action in self.authority.handle(AuthorityEvent::Durable(Ok(())), Time::default()) {
            self.socket.with(|d, cx| d.perform(cx, action))?;
        }
        self.authority.position().ok_or_else(|| "nothing is committed".into())
    }
}

struct Thread(std::thread::Thread);

impl Wake for Thread {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Any executor will do: here the smallest.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Arc::new(Thread(std::thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn the_program_of_the_guide_does_what_it_says() -> Result<(), Box<dyn Error>> {
    let secret = Secret::from_seed(1, &[7; 32]);
    let key_text = secret.public().to_file();
    let mut server = Server::new(secret)?;
    let url = server.url.clone();
    let temp = tempfile::tempdir()?;
    let folder = temp.path().join("cache");
    server.commit([("db/host", "10.0.0.1"), ("db/port", "5432"), ("workers", "4")])?;

    let node = Node::builder()
        .connect(&url) // "tcp://config.internal:7700"; may be said again
        .cache(&folder) // optional: start without a server
        .trust(Keyring::from_file(&key_text)?) // optional: the text of server.key.pub; take only what it signed
        .validate(|update: &Update| match update.state.get("workers") {
            Some(_) => Ok(()),
            None => Err("workers is missing".into()),
        })
        .name("billing-1")
        .start()?;
    node.wait_ready(Duration::from_secs(20))?;

    // One value, as it is now.
    assert_eq!(node.get("workers").as_deref(), Some(&b"4"[..]));

    // Values that belong together: one revision, pinned. A clone costs nothing, and nothing changes in it.
    let config = node.snapshot();
    let (host, port) = (config.get("db/host"), config.get("db/port"));
    assert!(host.is_some() && port.is_some());
    for (key, value) in config.iter() {
        println!("{key} = {} at {:?}", String::from_utf8_lossy(value), config.position());
    }

    let mut watch = node.watch();
    assert!(watch.seen().get("workers").is_some()); // what was visible when it began
    server.commit([("workers", "8")])?;
    // An iterator that waits; `try_next` and `next_timeout` do not, or not for ever.
    if let Some(changed) = watch.next() {
        assert_eq!(changed.keys[0].to_string(), "workers");
        assert_eq!(changed.snapshot.get("workers").map(|v| &v[..]), Some(&b"8"[..]));
    }
    // Only keys below one prefix.
    let mut db = node.watch_prefix("db/");
    assert!(db.try_next().is_none());

    let mut watch = node.watch();
    server.commit([("workers", "16")])?;
    let follow = async {
        // May be dropped at any time, as by `select!` or a timeout: nothing is lost.
        let changed = watch.changed().await;
        // Or `watch.into_stream()`, which is a `futures_core::Stream`.
        changed.map(|changed| changed.snapshot)
    };
    assert_eq!(block_on(follow).expect("a change").get("workers").map(|v| &v[..]), Some(&b"16"[..]));

    let position = server.commit([("db/host", "10.0.0.2")])?;
    let config = node.wait_for(position, Duration::from_secs(20))?; // or above it
    assert_eq!(config.get("db/host").map(|v| &v[..]), Some(&b"10.0.0.2"[..]));

    let next = Position { rev: position.rev + 1, ..position };
    match node.wait_for(next, Duration::from_millis(20)) {
        Err(NotReached::TimedOut(visible)) => assert_eq!(visible, Some(position)),
        Err(NotReached::Lost(_)) => {} // another epoch: that position never comes
        other => panic!("{other:?}"),
    }

    let freshness = node.freshness();
    assert!(freshness.fresh, "the authority was heard of {:?} ago", freshness.age);

    node.close(Duration::from_secs(20));
    Ok(())
}

/// Without blanks and ends of lines, which are the formatter's.
fn bare(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn every_block_of_the_guide_is_in_the_program() {
    let (guide, program) =
        (include_str!("../../../docs/guide-config-library.md"), bare(include_str!("library_guide.rs")));
    let blocks: Vec<&str> =
        guide.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() > 5, "the guide has no code");
    for block in blocks {
        assert!(program.contains(&bare(block)), "not in the program:\n{block}");
    }
}
