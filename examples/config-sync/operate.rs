//! The operator's verbs: each is one or a few requests to a server's control address.
//!
//! What a script wants to read goes to standard output, all else to standard error. A verb that changes something
//! prints the position that it made, which `wait --at` takes.

mod epoch;
mod follow;
mod listed;
mod values;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use spanwire_config::client::{Client, ClientError, Commit, Committed, Export, Revert, Stepping};
use spanwire_config::rollout::Plan;
use spanwire_config::wire::client::{InvalidCode, Selector, Tip, Writable};
use spanwire_config::{ChangeSet, Entry, Id, Key, Limits, Place, State, tree};

pub(crate) use super::files::print;
use super::files::{self, input, output, print_bytes};
use super::progress::Progress;
use super::rollout::{self, Roll, What};
use super::show;
use follow::{history, wait, watch};
use listed::listed;
pub(crate) use values::Rev;
use values::{id, seconds};

/// Why a verb ended without what it was to do, and its exit code.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) u8, pub(crate) String);

/// Nothing of that name.
const ABSENT: u8 = 1;
const SENSELESS: u8 = 2;
pub(crate) const FILE: u8 = 3;
const ADDRESS: u8 = 4;
const CONFLICT: u8 = 5;
pub(crate) const REFUSED: u8 = 6;
const TIMEOUT: u8 = 7;

/// How long nothing is said of a server that cannot be reached.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) type Res<T> = Result<T, Failed>;

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Failed {
        let code = match &error {
            ClientError::Conflict { .. }
            | ClientError::Lost { .. }
            | ClientError::Rollout { .. }
            | ClientError::Aborted => CONFLICT,
            ClientError::Invalid { .. } | ClientError::ReadOnly { .. } => REFUSED,
            ClientError::Unanswered(_) | ClientError::Unreachable(_) | ClientError::Busy => TIMEOUT,
            _ => ADDRESS,
        };
        let asked = match &error {
            ClientError::Unanswered(_) | ClientError::Unreachable(_) => {
                "; is that the --control address of a server that runs?"
            }
            _ => "",
        };
        Failed(code, format!("{error}{asked}"))
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Failed {
        Failed(FILE, error.to_string())
    }
}

pub(crate) fn senseless<T>(why: impl ToString) -> Res<T> {
    Err(Failed(SENSELESS, why.to_string()))
}

#[derive(Args, Debug)]
pub(crate) struct To {
    /// The server's control address.
    #[arg(long, env = "CONFIG_SYNC_CONTROL")]
    control: String,
    /// Name of the namespace.
    #[arg(long, env = "CONFIG_SYNC_NAMESPACE", default_value = "config", value_parser = super::namespace)]
    namespace: String,
    /// Seconds: how long to wait, for an answer or (wait) for the nodes.
    #[arg(long, env = "CONFIG_SYNC_TIMEOUT", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

// Who makes a revision or an epoch, and when not. (No document: it would be the help of each verb.)
#[derive(Args, Debug)]
pub(crate) struct By {
    /// Only if this is the newest revision; 0:0: only as the first of all.
    #[arg(long, value_name = "REV")]
    expect: Option<Rev>,
    /// Who makes the change.
    #[arg(long, env = "CONFIG_SYNC_AUTHOR")]
    author: Option<String>,
    /// Why.
    #[arg(long, short = 'm', default_value = "")]
    note: String,
    /// Repeat a request that had no answer: the id that was printed.
    #[arg(long, value_name = "ID", value_parser = id)]
    request: Option<Id>,
}

#[derive(Args, Debug)]
pub(crate) struct How {
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    roll: Roll,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Give a key a value.
    Set {
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        how: How,
        /// The key: a path, for agents.
        key: OsString,
        /// The value.
        #[arg(required_unless_present = "file", conflicts_with = "file")]
        value: Option<String>,
        /// A file with the value; `-`: standard input.
        #[arg(long)]
        file: Option<PathBuf>,
        /// As a file it is executable. (One that is so stays so; `delete` ends that.)
        #[arg(long)]
        executable: bool,
    },
    /// Print what a key holds.
    Get {
        #[command(flatten)]
        to: To,
        /// The key.
        key: OsString,
        /// In which revision [default: the newest].
        #[arg(long, value_name = "REV")]
        at: Option<Rev>,
    },
    /// Print the keys that begin with PREFIX, and the sizes of their values.
    List {
        #[command(flatten)]
        to: To,
        /// What the keys begin with.
        #[arg(default_value = "")]
        prefix: OsString,
        /// In which revision [default: the newest].
        #[arg(long, value_name = "REV")]
        at: Option<Rev>,
        /// As JSON: one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Take keys out.
    Delete {
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        how: How,
        /// The keys; one that is not there is no error.
        #[arg(required = true)]
        keys: Vec<OsString>,
    },
    /// Make all changes of a directory or a file in one commit.
    Apply {
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        how: How,
        /// A directory: each file is a key. Or a file (`-`: standard input): {"put": {KEY: VALUE}, "delete": [KEY]}.
        from: PathBuf,
        /// Goes before every key of a directory.
        #[arg(long, default_value = "")]
        prefix: OsString,
        /// Take out what begins with the prefix and is not in the directory.
        #[arg(long)]
        prune: bool,
        /// Take out all that begins with the prefix, where the directory is empty.
        #[arg(long, requires = "prune")]
        discard: bool,
    },
    /// Print the commits, newest first.
    History {
        #[command(flatten)]
        to: To,
        /// How many.
        #[arg(long, short = 'n', default_value_t = 20)]
        max: usize,
        /// With the keys that they changed.
        #[arg(long, short)]
        keys: bool,
        /// As JSON: one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Print what changed from one revision to another.
    Diff {
        #[command(flatten)]
        to: To,
        /// The earlier revision: EPOCH:REV, or REV.
        from: Rev,
        /// The later one [default: the newest].
        until: Option<Rev>,
    },
    /// Commit the content of an earlier revision.
    Revert {
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        how: How,
        /// The earlier revision: EPOCH:REV, or REV.
        revision: Rev,
    },
    /// See to the rollout that is open: a change that was made with --rollout.
    Rollout {
        #[command(flatten)]
        to: To,
        /// What to do with it.
        what: What,
        /// Only if it is the rollout of this revision.
        #[arg(long, value_name = "REV")]
        at: Option<Rev>,
        /// Repeat a request that had no answer: the id that was printed. Needs --at.
        #[arg(long, value_name = "ID", value_parser = id, requires = "at")]
        request: Option<Id>,
        /// Who takes the step.
        #[arg(long, env = "CONFIG_SYNC_AUTHOR")]
        author: Option<String>,
        /// Why.
        #[arg(long, short = 'm', default_value = "")]
        note: String,
        /// As JSON: one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Print the server and every node: what it holds, how far it is behind, what it refused.
    Status {
        #[command(flatten)]
        to: To,
        /// As JSON: one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Wait until nodes have reached a revision, or refused it.
    Wait {
        #[command(flatten)]
        to: To,
        /// Which revision [default: the newest].
        #[arg(long, value_name = "REV")]
        at: Option<Rev>,
        /// How far.
        #[arg(long, value_enum, default_value = "applied")]
        level: LevelArg,
        /// A node of this name; repeatable [default: all nodes known now].
        #[arg(long)]
        name: Vec<String>,
        /// Only nodes with this label, NAME=VALUE; repeatable.
        #[arg(long, value_parser = super::label)]
        label: Vec<(String, String)>,
        /// Wait for so many nodes to be known, too; fewer are a failure.
        #[arg(long, default_value_t = 1)]
        min: usize,
        /// As JSON: one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Write a revision into a file.
    Export {
        #[command(flatten)]
        to: To,
        /// Where to; `-`: standard output.
        file: PathBuf,
        /// Which revision [default: the newest].
        #[arg(long, value_name = "REV")]
        at: Option<Rev>,
    },
    /// Put an export in the place of all there is. A new epoch begins with it.
    Import {
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        by: By,
        /// What `export` wrote; `-`: standard input.
        file: PathBuf,
    },
    #[command(flatten)]
    Epoch(epoch::Verb),
    /// Print each commit as it is made.
    Watch {
        #[command(flatten)]
        to: To,
        /// Begin above this revision [default: the newest].
        #[arg(long, value_name = "REV")]
        after: Option<Rev>,
        /// As JSON: one object a line.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LevelArg {
    /// On disk.
    Stored,
    /// Readers see it.
    Visible,
    /// The hook has acted on it.
    Applied,
}

/// As the shell names it: bytes.
fn key(name: &OsStr) -> Res<Key> {
    Key::new(name.as_bytes()).or_else(senseless)
}

fn random() -> Res<Id> {
    Ok(Id::random()?)
}

impl To {
    fn client(&self) -> Res<Client> {
        let client = Client::connect(&self.control, &self.namespace)?.with_timeout(self.timeout);
        let waits = client.clone();
        // A server may be about to start, so there is time; who wrote a wrong address need not wait for its end.
        std::thread::spawn(move || {
            std::thread::sleep(PATIENCE);
            waits.trouble().into_iter().for_each(|why| eprintln!("config-sync: {why}; trying on"));
        });
        Ok(client)
    }
}

/// A revision given without its epoch, with it: revisions never fall, so there is one at most.
fn place(client: &Client, rev: Rev) -> Res<Place> {
    let Rev { epoch, rev } = rev;
    if let Some(epoch) = epoch {
        return Ok(Place { epoch, rev });
    }
    let status = client.status()?;
    for known in [status.tip.position.into(), status.oldest] {
        if known.rev == rev && known != Place::default() {
            return Ok(known);
        }
    }
    let mut before = None;
    loop {
        let page = client.log(before, 0)?;
        if let Some(commit) = page.commits.iter().find(|commit| commit.at.rev == rev) {
            return Ok(commit.at);
        }
        match page.commits.last() {
            Some(last) if page.more && last.at.rev > rev => before = Some(last.at),
            _ if rev < status.oldest.rev => {
                let oldest = show::place(status.oldest);
                return Err(Failed(
                    REFUSED,
                    format!("revision {rev} is not kept; the oldest kept is {oldest}"),
                ));
            }
            _ => return Err(Failed(REFUSED, format!("there is no revision {rev}"))),
        }
    }
}

/// What is expected need not exist: that it does not is a conflict, and the server's to say.
fn expected(client: &Client, Rev { epoch, rev }: Rev) -> Res<Place> {
    let newest = |client: &Client| Ok::<_, Failed>(client.status()?.tip.position.epoch.number);
    Ok(Place { epoch: epoch.map_or_else(|| newest(client), Ok)?, rev })
}

fn maybe_place(client: &Client, rev: Option<Rev>) -> Res<Option<Place>> {
    rev.map(|rev| place(client, rev)).transpose()
}

impl By {
    fn request(&self) -> Res<Id> {
        self.request.map_or_else(random, Ok)
    }

    fn expect(&self, client: &Client) -> Res<Option<Place>> {
        self.expect.map(|rev| expected(client, rev)).transpose()
    }

    /// Whoever is logged in, if nobody is named.
    fn author(&self) -> String {
        self.author.clone().unwrap_or_else(user)
    }
}

fn user() -> String {
    std::env::var("USER").unwrap_or_default()
}

impl How {
    fn commit(&self, client: &Client, changes: ChangeSet) -> Res<Commit> {
        let request = self.by.request()?;
        Ok(Commit {
            request,
            rollout: self.roll.plan(request)?,
            supersede: self.roll.supersede,
            expect: self.by.expect(client)?,
            changes,
            author: self.by.author(),
            note: self.by.note.clone(),
        })
    }
}

/// A share picks nodes by their ids, so that a small one of few nodes may be nobody.
fn told_of_cohort(client: &Client, plan: Option<&Plan>) {
    let Some(stage) = plan.and_then(|plan| plan.stages.first()) else { return };
    let open = client.status().ok().and_then(|status| status.rollout);
    if open.is_some_and(|open| open.nodes == 0) {
        eprintln!("no node that is here is in the first stage ({})", rollout::cohort(stage));
    }
}

fn committed(client: &Client, commit: &Commit) -> Res<()> {
    done(commit.request, client.commit(commit))?;
    told_of_cohort(client, commit.rollout.as_ref());
    Ok(())
}

/// Prints where a change is; without an answer, how to ask again.
fn done(request: Id, told: Result<Committed, ClientError>) -> Res<()> {
    match told {
        Ok(Committed { at, replay, .. }) => {
            if replay {
                eprintln!("an earlier copy of this request did it");
            }
            print(&format!("{}\n", show::place(at)));
            Ok(())
        }
        Err(error @ ClientError::Unanswered(_)) => {
            let text =
                format!("{error}; it may have been done: to make sure, repeat it with --request {request}");
            Err(Failed(TIMEOUT, text))
        }
        Err(error @ ClientError::ReadOnly { why: Writable::Store, .. }) => {
            Err(Failed(REFUSED, format!("{error}: --request {request}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Runs one.
pub(crate) fn run(verb: Verb) -> Res<()> {
    match verb {
        Verb::Set { to, how, key: name, value, file, executable } => {
            let (client, name) = (to.client()?, key(&name)?);
            let value = match (value, file) {
                (Some(value), _) => value.into_bytes(),
                (None, Some(file)) => files::value(&file, &name, || Ok(client.limits()?.value))?,
                (None, None) => return senseless("a value or a file"),
            };
            // What it is for stays, unless that is said.
            let flags = match executable {
                true => tree::EXECUTABLE,
                false => now(&client, &name)?.map_or(0, |entry| entry.flags()),
            };
            let change = |flags: u16| {
                let mut changes = ChangeSet::new();
                changes.put(name.clone(), flags, value.clone());
                changes
            };
            let commit = how.commit(&client, change(flags))?;
            let mut told = client.commit(&commit);
            if !executable
                && how.by.request.is_some()
                && matches!(told, Err(ClientError::Invalid { code: InvalidCode::Used, .. }))
            {
                // The key may have been executable then, or not yet. Who has used the id makes nothing new with it.
                let other = Commit { changes: change(flags ^ tree::EXECUTABLE), ..commit.clone() };
                told = client.commit(&other);
            }
            done(commit.request, told)?;
            told_of_cohort(&client, commit.rollout.as_ref());
            Ok(())
        }
        Verb::Delete { to, how, keys } => {
            let (client, mut changes) = (to.client()?, ChangeSet::new());
            for name in keys {
                let name = key(&name)?;
                // A slip of the pen is a commit all the same, for a repeat of it is to be known.
                if how.by.request.is_none() && now(&client, &name)?.is_none() {
                    eprintln!("there was no key {}", show::key(&name));
                }
                changes.delete(name);
            }
            let commit = how.commit(&client, changes)?;
            committed(&client, &commit)
        }
        Verb::Get { to, key: name, at } => {
            let client = to.client()?;
            let name = key(&name)?;
            match client.get(&name, maybe_place(&client, at)?)? {
                (_, Some(entry)) => {
                    print_bytes(entry.value());
                    Ok(())
                }
                (of, None) => {
                    let at = show::place(of.position.into());
                    Err(Failed(ABSENT, format!("there is no key {} in revision {at}", show::key(&name))))
                }
            }
        }
        Verb::List { to, prefix, at, json } => {
            let client = to.client()?;
            let (of, state) = client.list(prefix.as_bytes(), maybe_place(&client, at)?)?;
            print(&show::list(&of, &state, json));
            Ok(())
        }
        Verb::Apply { to, how, from, prefix, prune, discard } => {
            apply(&to, how, &from, &prefix, prune.then_some(discard))
        }
        Verb::History { to, max, keys, json } => history(&to.client()?, max, keys, json),
        Verb::Diff { to, from, until } => {
            let client = to.client()?;
            let old = client.list(b"", Some(place(&client, from)?))?.1;
            let new = client.list(b"", maybe_place(&client, until)?)?.1;
            print(&show::diff(&old, &new));
            Ok(())
        }
        Verb::Revert { to, how, revision } => {
            let client = to.client()?;
            let back = place(&client, revision)?;
            let made = how.commit(&client, ChangeSet::new())?;
            let Commit { request, expect, author, note, rollout, supersede, .. } = made;
            let note = if note.is_empty() { format!("back to {}", show::place(back)) } else { note };
            let revert = Revert { request, expect, to: back, author, note, rollout, supersede };
            done(request, client.revert(&revert))?;
            told_of_cohort(&client, revert.rollout.as_ref());
            Ok(())
        }
        Verb::Rollout { to, what, at, request, author, note, json } => {
            let client = to.client()?;
            let Some(step) = what.step() else { return rollout::status(&client, json) };
            let at = match at {
                Some(rev) => place(&client, rev)?,
                None => rollout::open(&client)?.at,
            };
            let request = request.map_or_else(random, Ok)?;
            let author = author.unwrap_or_else(user);
            done(request, client.rollout(Stepping { request, author, note }, at, step))
        }
        Verb::Status { to, json } => {
            let mut status = to.client()?.status()?;
            // They come in the order of their ids.
            status.nodes.sort_by(|a, b| (&a.node.name, a.node.node).cmp(&(&b.node.name, b.node.node)));
            print(&show::status(&to.namespace, &status, json));
            Ok(())
        }
        Verb::Wait { to, at, level, name, label, min, json } => {
            let selector = Selector { names: name, labels: label };
            wait(&to, at, level, &selector, min, json)
        }
        Verb::Export { to, file, at } => {
            let client = to.client()?;
            let mut progress = Progress::new("export");
            let came = |of: &Tip, state: &State| progress.at(state.bytes(), of.bytes);
            let open = if at.is_none() { client.status()?.rollout } else { None };
            let (of, state) = client.list_with(b"", maybe_place(&client, at)?, came)?;
            drop(progress);
            if let Some(open) = open.filter(|open| open.at == of.position.into()) {
                eprintln!(
                    "{} is of a rollout that is open; what all others have: --at {}",
                    show::place(open.at),
                    show::place(open.for_all)
                );
            }
            output(&file, &Export { namespace: to.namespace.clone(), of, state }.encode())?;
            eprintln!("{}: {} keys, {} bytes", show::place(of.position.into()), of.keys, of.bytes);
            Ok(())
        }
        Verb::Import { to, by, file } => {
            let export = Export::decode(&input(&file)?.into())
                .map_err(|error| Failed(FILE, format!("{}: {error}", file.display())))?;
            let (of, from) = (&export.of, &export.namespace);
            let at = show::place(of.position.into());
            eprintln!("{from} {at}: {} keys, {} bytes", of.keys, of.bytes);
            by.import(&to.client()?, export.state)
        }
        Verb::Epoch(verb) => epoch::run(verb),
        Verb::Watch { to, after, json } => watch(&to.client()?, after, json),
    }
}

/// What a key holds in the newest revision, if there is one.
fn now(client: &Client, name: &Key) -> Res<Option<Entry>> {
    match client.get(name, None) {
        Ok((_, entry)) => Ok(entry),
        Err(ClientError::Invalid { code: InvalidCode::NoSuch, .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The newest revision; where there is none yet, an empty one.
fn newest(client: &Client) -> Res<(Option<Place>, State)> {
    match client.list(b"", None) {
        Ok((of, state)) => Ok((Some(of.position.into()), state)),
        Err(ClientError::Invalid { code: InvalidCode::NoSuch, .. }) => Ok((None, State::new())),
        Err(error) => Err(error.into()),
    }
}

/// `prune`: also where the directory is empty?
fn apply(to: &To, how: How, from: &Path, prefix: &OsStr, prune: Option<bool>) -> Res<()> {
    let client = to.client()?;
    let (prune, discard) = (prune.is_some(), prune == Some(true));
    let mut changes = if from.is_dir() {
        let read = tree::read(from, &Limits::default()).map_err(|error| Failed(FILE, error.to_string()))?;
        for (path, what) in &read.passed_over {
            eprintln!("passed over: {} ({what})", path.display());
        }
        let mut changes = ChangeSet::new();
        for (name, entry) in read.state.iter() {
            let name = Key::new([prefix.as_bytes(), name.as_bytes()].concat()).or_else(senseless)?;
            changes.put(name, entry.flags(), entry.value().clone());
        }
        if prune && changes.is_empty() && !discard {
            let why = format!("{} is empty: to take out all that is there, --discard", from.display());
            return Err(Failed(REFUSED, why));
        }
        changes
    } else if prune || !prefix.is_empty() {
        return senseless("--prune and --prefix are for a directory");
    } else {
        listed(&input(from)?).map_err(|why| Failed(FILE, format!("{}: {why}", from.display())))?
    };
    let (at, mut now) = newest(&client)?;
    let mut superseded = false;
    if how.roll.supersede
        && let Some(all) = rollout::for_all(&client)?
    {
        // What it changes is what all others have; what it ends is the newest.
        (now, superseded) = (client.list(b"", Some(all))?.1, true);
    }
    if prune {
        let named: std::collections::BTreeSet<Key> = changes.keys().cloned().collect();
        let gone = now.iter().filter(|(name, _)| name.as_bytes().starts_with(prefix.as_bytes()));
        gone.filter(|(name, _)| !named.contains(*name)).for_each(|(name, _)| changes.delete(name.clone()));
    }
    let effective = now.effective(&changes);
    if let (true, Some(at), None, false) = (effective.is_empty(), at, how.by.request, superseded) {
        eprintln!("nothing to change");
        print(&format!("{}\n", show::place(at)));
        return Ok(());
    }
    let mut commit = how.commit(&client, if prune { effective } else { changes })?;
    if prune && commit.expect.is_none() {
        // What to take out was decided by looking at this revision.
        commit.expect = at;
    }
    committed(&client, &commit)
}

/// Whether the server takes commits, for people.
pub(crate) fn writable(writable: Writable) -> &'static str {
    match writable {
        Writable::Yes => "takes commits",
        Writable::Vacant => "vacant",
        Writable::Store | Writable::Old => "READ-ONLY",
        Writable::Directory => "publishes a directory",
    }
}

/// Text of an entry, if it is some.
pub(crate) fn text(entry: Option<&Entry>) -> Option<&str> {
    std::str::from_utf8(entry.map_or(b"", |entry| &entry.value()[..])).ok()
}
