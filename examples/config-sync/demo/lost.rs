//! The second act of the demo: content that lives in a server's store alone, canaries of it, and the store is lost.

use std::fs;
use std::time::Duration;

use spanwire_config::client::{Client, ClientError, Commit};
use spanwire_config::wire::client::{BeginWith, Selector, Writable};
use spanwire_config::{ChangeSet, Id, Level, Limits, Place, State, tree};

use super::{Demo, Res, differs, path, write};

pub(super) const NODES: [&str; 3] = ["app-1", "app-2", "app-3"];

pub(super) fn said<T>(result: Result<T, ClientError>) -> Res<T> {
    result.map_err(|error| error.to_string())
}

impl Demo<'_> {
    /// From an empty store to a new epoch that goes on from a node.
    pub(super) fn lose_the_store(&mut self) -> Res<()> {
        self.agents.clear();
        self.server = None;
        self.urls.clear();
        self.say("a server without a directory, and three new agents: its store holds what operators commit");
        self.start_store()?;
        let client = said(Client::connect(&self.control(), "config"))?;
        let content = self.content()?;
        let mut first = Commit::new(State::new().diff(&content)).map_err(|error| error.to_string())?;
        first.expect = Some(Place::default());
        let at = said(client.commit(&first))?.at;
        for name in NODES {
            self.start_agent(name)?;
        }
        self.until("three agents", || Ok(said(client.status())?.nodes.len() == NODES.len()))?;
        self.applied(&client, at)?;
        self.canaries(&client)?;
        let content = self.content()?;

        self.say("the server is killed (-9), and its store deleted; agents keep what they have");
        self.server = None;
        let store = self.dir.join("store");
        fs::remove_dir_all(&store).map_err(|error| format!("{}: {error}", store.display()))?;
        self.await_equal(&NODES)?;

        self.say("a server with nothing in its store begins nothing by itself, and refuses commits");
        self.start_store()?;
        let mut changes = ChangeSet::new();
        changes.put(key("app/limits.json")?, 0, "{}\n");
        let commit = |changes| Commit::new(changes).map_err(|error| error.to_string());
        match client.commit(&commit(changes)?) {
            Err(ClientError::ReadOnly { why: Writable::Vacant, .. }) => {}
            other => return Err(format!("a commit to an empty store: {other:?}")),
        }
        self.until("all nodes to show what they hold", || {
            let held = said(client.holdings())?;
            Ok(held.iter().any(|held| held.nodes as usize == NODES.len() && held.digest == content.digest()))
        })?;
        self.done("the nodes show what they hold: one state, three of them");

        self.say("adopt: the server takes the state from a node, and a new epoch begins with it");
        let request = Id::random().map_err(|error| error.to_string())?;
        let begun = said(client.begin(request, BeginWith::Node(None)))?;
        if (begun.at.epoch, begun.digest) != (at.epoch + 1, content.digest()) {
            return Err(format!("adopted {begun:?}"));
        }
        self.applied(&client, begun.at)?;

        self.say("and commits go on");
        let text = "{\n  \"requests_per_second\": 1200\n}\n";
        write(&self.source().join("app/limits.json"), text)?;
        let mut changes = ChangeSet::new();
        changes.put(key("app/limits.json")?, 0, text);
        let at = said(client.commit(&commit(changes)?))?.at;
        self.applied(&client, at)?;
        self.await_hooks()?;
        self.table()
    }

    fn control(&self) -> String {
        format!("ipc://{}", self.dir.join("control.ipc").display())
    }

    fn content(&self) -> Res<State> {
        tree::read(&self.source(), &Limits::default()).map(|tree| tree.state).map_err(|e| e.to_string())
    }

    fn start_store(&mut self) -> Res<()> {
        let (store, control) = (self.dir.join("store"), self.control());
        let args = ["serve", "--state", path(&store)?, "--control", &control];
        self.serve(&args, "store.ipc")
    }

    /// Every node has applied it, and holds what the source holds.
    pub(super) fn applied(&self, client: &Client, at: Place) -> Res<()> {
        let told = said(client.wait(at, Level::Applied, Duration::from_secs(10), &Selector::default()))?;
        if told.ok.len() != NODES.len() {
            return Err(format!("{}:{} is not applied by all: {told:?}", at.epoch, at.rev));
        }
        for name in NODES {
            if let Some(difference) = differs(&self.source(), &self.out(name))? {
                return Err(format!("{name}: {difference}"));
            }
        }
        self.done(format_args!("revision {}:{} applied by {}", at.epoch, at.rev, NODES.join(", ")));
        Ok(())
    }
}

pub(super) fn key(name: &str) -> Res<spanwire_config::Key> {
    spanwire_config::Key::new(name).map_err(|error| error.to_string())
}
