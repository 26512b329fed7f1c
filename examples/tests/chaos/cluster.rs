//! The cluster: who there is, what is done to it, and how one sees that it healed.
//!
//! Owns: the processes, the links, what nodes said. Never: helps a node in any way but by starting it again.

mod end;

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use spanwire_config::client::{Client, ClientError, Commit, Committed};
use spanwire_config::wire::client::NodeLine;
use spanwire_config::{Limits, Place, store};
use spanwire_testkit::sim::Rng;

use super::history::{Change, Claim, History, Track, counters};
use super::link::{Link, Mode};
use super::process::{Line, Process, bury_orphans};
use super::rollouts::LABEL;
use super::writers::{self, Done, Writers, Written};

pub(crate) type Res<T> = Result<T, String>;

const RELAYS: usize = 2;
const AUTHORITY: usize = 0;
/// Only a failure takes so long.
const PATIENCE: Duration = Duration::from_secs(90);
/// Words that are kept of each process for a failure.
const WORDS: usize = 25;

/// A member, and what is known of it.
#[derive(Debug)]
struct Member {
    name: String,
    process: Process,
    track: Track,
    /// What it said it held, not yet compared with what was committed.
    claims: Vec<Claim>,
    reached: Option<Instant>,
    words: VecDeque<String>,
}

/// What ends a fault.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Start(usize),
    Continue(usize),
    Open(usize),
}

/// What was done. Kills: of the authority, of relays, of agents.
#[derive(Default, Debug)]
struct Counts {
    kills: [u32; 3],
    stops: u32,
    cuts: u32,
    silences: u32,
    damaged: u32,
    promoted: u32,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: PathBuf,
    // Before the members: a writer's request needs no answer any more.
    writers: Writers,
    members: Vec<Member>,
    links: Vec<Link>,
    /// Whom each link leads to.
    to: Vec<usize>,
    undo: Vec<(Instant, Undo)>,
    lines: Receiver<Line>,
    written: Receiver<Written>,
    client: Client,
    history: History,
    healed: Instant,
    /// From heal to equal: each node, all of them, and the authority's knowledge of it.
    nodes: Vec<Duration>,
    all: Vec<Duration>,
    told: Vec<Duration>,
    counts: Counts,
}

fn program() -> Res<PathBuf> {
    let test = std::env::current_exe().map_err(|e| e.to_string())?;
    let folder = test.ancestors().nth(2).ok_or("it lies in target/debug/deps")?;
    let program = folder.join("examples/config-sync");
    match program.is_file() {
        true => Ok(program),
        false => Err(format!("{} is not built: cargo xtask chaos does that first", program.display())),
    }
}

fn keygen(program: &Path, file: &Path) -> Res<()> {
    let mut command = Command::new(program);
    let status = command.arg("keygen").arg(file).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("keygen: {other:?}")),
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl Cluster {
    pub(crate) fn new(dir: &Path, agents: usize, rng: &mut Rng) -> Res<Cluster> {
        // The hooks of killed agents are buried by this process.
        let own = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(own)).map_err(|e| e.to_string())?;
        let (program, at) = (program()?, dir.display().to_string());
        let (sender, lines) = channel();
        let signed = rng.one_in(2);
        if signed {
            keygen(&program, &dir.join("key"))?;
        }
        let trust = if signed { format!(" --trust {at}/key.pub") } else { String::new() };
        let key = if signed { format!(" --key {at}/key") } else { String::new() };
        let control = format!("ipc://{at}/control.ipc");
        let (mut links, mut to, mut members): (Vec<Link>, _, _) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..1 + RELAYS + agents {
            // All ways lead up: to the authority, a relay above, or both relays.
            let above = match n {
                AUTHORITY => Vec::new(),
                1 => vec![AUTHORITY],
                2 => vec![AUTHORITY, 1],
                _ if rng.one_in(6) => vec![AUTHORITY, 1 + rng.below(RELAYS)],
                _ if rng.one_in(2) => vec![1, 2],
                _ => vec![2, 1],
            };
            let mut connect = String::new();
            for above in above {
                links.push(Link::new().map_err(|e| e.to_string())?);
                to.push(above);
                connect += &format!(" --connect {}", links[links.len() - 1].url());
            }
            let (name, mut args) = match n {
                AUTHORITY => (
                    "authority".into(),
                    words(&format!(
                        "serve --state {at}/authority --bind tcp://127.0.0.1:0 --control {control}{key}"
                    )),
                ),
                1..=RELAYS => (
                    format!("relay-{n}"),
                    words(&format!(
                        "relay --state {at}/relay-{n} --bind tcp://127.0.0.1:0 --name relay-{n}{connect}{trust}"
                    )),
                ),
                _ => {
                    let canary = format!(" --label {}={}", LABEL.0, LABEL.1);
                    let label = if n == 1 + RELAYS || rng.one_in(4) { canary } else { String::new() };
                    let args = format!("agent --out {at}/agent-{n} --name agent-{n}{label}{connect}{trust}");
                    (format!("agent-{n}"), words(&args))
                }
            };
            if n > RELAYS {
                // Builtins of the shell alone: thirty agents share the machine with all else.
                let all = || (0..).zip((0..super::history::WRITERS).flat_map(counters));
                let reads = all().map(|(i, key)| format!("read v{i} < {key}; ")).collect::<String>();
                let found = all().map(|(i, _)| format!(" $v{i}")).collect::<String>();
                let hook = format!(
                    "cd \"$CONFIG_SYNC_OUT\" && {{ {reads}echo \"$CONFIG_SYNC_REVISION{found}\" >> {at}/hooks-{n}; }}"
                );
                args.extend(["--on-change".into(), hook]);
            }
            let process = Process::new(n, &program, args, sender.clone());
            let track = Track::new((1..=RELAYS).contains(&n));
            members.push(Member {
                name,
                process,
                track,
                claims: Vec::new(),
                reached: None,
                words: VecDeque::new(),
            });
        }
        let (answers, written) = channel();
        Ok(Cluster {
            dir: dir.to_owned(),
            writers: Writers::new(&control, rng, &answers),
            members,
            links,
            to,
            undo: Vec::new(),
            lines,
            written,
            client: Client::connect(&control, "config")
                .map_err(|e| e.to_string())?
                .with_timeout(Duration::from_secs(2)),
            history: History::default(),
            healed: Instant::now(),
            nodes: Vec::new(),
            all: Vec::new(),
            told: Vec::new(),
            counts: Counts::default(),
        })
    }

    /// Everybody starts, and holds the first commits.
    pub(crate) fn begin(&mut self) -> Res<()> {
        (0..self.members.len()).try_for_each(|n| self.start(n))?;
        self.healed = Instant::now();
        let mut first = Commit::new(writers::first()).map_err(|e| e.to_string())?;
        first.expect = Some(Place::default());
        let done = self.answer("the first commit", |client| client.commit(&first))?;
        self.history.committed(done.at.rev, Change::Set(first.changes), done.digest)?;
        self.converge()?;
        // A cold start is no heal.
        self.nodes.clear();
        self.all.clear();
        self.told.clear();
        Ok(())
    }

    /// Does harm for this long.
    pub(crate) fn hurt(&mut self, rng: &mut Rng, lasts: Duration) -> Res<()> {
        let end = Instant::now() + lasts;
        self.writers.go(true);
        while Instant::now() < end {
            self.harm(rng)?;
            self.watch(Instant::now() + rng.time(Duration::ZERO..Duration::from_millis(300)))?;
        }
        Ok(())
    }

    fn harm(&mut self, rng: &mut Rng) -> Res<()> {
        let most = if rng.one_in(3) { 7_000 } else { 1_200 };
        let until = Instant::now() + rng.time(Duration::ZERO..Duration::from_millis(most));
        let agents = self.members.len() - 1 - RELAYS;
        let who = match rng.below(10) {
            0 => AUTHORITY,
            1 | 2 => 1 + rng.below(RELAYS),
            _ => 1 + RELAYS + rng.below(agents),
        };
        let link = rng.below(self.links.len());
        let kind = rng.below(10);
        match kind {
            0..=3 if self.members[who].process.is_running() => {
                self.kill(who)?;
                self.undo.push((until, Undo::Start(who)));
            }
            4 | 5 if self.members[who].process.is_running() => {
                self.members[who].process.stop(true);
                self.counts.stops += 1;
                self.undo.push((until, Undo::Continue(who)));
            }
            6..=8 => {
                let mode = if rng.one_in(3) { Mode::Silent } else { Mode::Cut };
                // Sometimes all of a server's.
                let all = rng.one_in(6);
                for other in 0..self.links.len() {
                    if other == link || all && self.to[other] == self.to[link] {
                        self.links[other].set(mode);
                        self.undo.push((until, Undo::Open(other)));
                    }
                }
                match mode {
                    Mode::Silent => self.counts.silences += 1,
                    _ => self.counts.cuts += 1,
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn start(&mut self, who: usize) -> Res<()> {
        let member = &mut self.members[who];
        if !member.process.is_running() {
            member.track.starts();
            member.process.start()?;
        }
        Ok(())
    }

    /// Kills it, and looks at what it leaves on its disk.
    fn kill(&mut self, who: usize) -> Res<()> {
        self.members[who].process.kill();
        let role = match who {
            AUTHORITY => 0,
            1..=RELAYS => 1,
            _ => 2,
        };
        self.counts.kills[role] += 1;
        (0..self.links.len())
            .filter(|link| self.to[*link] == who)
            .for_each(|link| self.links[link].lead_to(None));
        let processes: Vec<&Process> = self.members.iter().map(|member| &member.process).collect();
        bury_orphans(&processes);
        self.hear()?;
        if who > RELAYS {
            self.look_at_disk(who)?;
        }
        Ok(())
    }

    fn look_at_disk(&mut self, who: usize) -> Res<()> {
        let member = &mut self.members[who];
        let found = store::peek(&self.dir.join(format!("{}.state", member.name)), Limits::default().bytes);
        let Some((head, state)) = found else {
            return match member.track.rev() {
                0 => Ok(()),
                rev => Err(format!("{}: it stored revision {rev}, and nothing is on its disk", member.name)),
            };
        };
        let (rev, said) = (head.position.rev, member.track.rev());
        if rev < said || state.recompute() != head.digest {
            return Err(format!("{}: on its disk is {}, and it said {said}", member.name, head.position));
        }
        member.claims.push(Claim {
            resumed: true,
            epoch: head.position.epoch.to_string(),
            rev,
            keys: state.keys(),
            digest: Some(format!("{:?}", head.digest).chars().take(12).collect()),
        });
        Ok(())
    }

    /// Listens until then, and ends the faults that are due.
    fn watch(&mut self, until: Instant) -> Res<()> {
        loop {
            let now = Instant::now();
            while let Some(due) = self.undo.iter().position(|(at, _)| *at <= now) {
                let (_, undo) = self.undo.swap_remove(due);
                self.end(undo)?;
            }
            let next = self.undo.iter().map(|(at, _)| *at).chain([until]).min().unwrap_or(until);
            if now >= until {
                return Ok(());
            }
            match self.lines.recv_timeout(next.saturating_duration_since(now)) {
                Ok(line) => self.heard(line)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("nobody speaks any more".into()),
            }
            self.take_answers()?;
        }
    }

    fn end(&mut self, undo: Undo) -> Res<()> {
        match undo {
            Undo::Start(who) => self.start(who)?,
            Undo::Continue(who) => self.members[who].process.stop(false),
            Undo::Open(link) => self.links[link].set(Mode::Open),
        }
        Ok(())
    }

    fn take_answers(&mut self) -> Res<()> {
        while let Ok(written) = self.written.try_recv() {
            match written? {
                Done::Commit(change, done) => self.history.committed(done.at.rev, change, done.digest)?,
                Done::Promoted => self.counts.promoted += 1,
            }
        }
        Ok(())
    }

    fn hear(&mut self) -> Res<()> {
        while let Ok(line) = self.lines.try_recv() {
            self.heard(line)?;
        }
        Ok(())
    }

    fn heard(&mut self, line: Line) -> Res<()> {
        let Line { who, at, text } = line;
        let member = &mut self.members[who];
        if text.contains("ALARM") {
            return Err(format!("{}: {text}", member.name));
        }
        self.counts.damaged += u32::from(text.starts_with("damaged"));
        if let Some(claim) = Claim::of(&text).filter(|_| who != AUTHORITY) {
            member.track.says(&claim).map_err(|why| format!("{}: {why}: {text}", member.name))?;
            member.claims.push(claim);
            member.reached = Some(at);
        }
        if let Some(address) = text.strip_prefix("listening at tcp://").and_then(|text| text.parse().ok()) {
            let links = (0..self.links.len()).filter(|link| self.to[*link] == who);
            links.for_each(|link| self.links[link].lead_to(Some(address)));
        }
        if member.words.len() == WORDS {
            member.words.pop_front();
        }
        member.words.push_back(text);
        Ok(())
    }

    /// Everything is there again; what follows has to happen by itself.
    pub(crate) fn heal(&mut self) -> Res<()> {
        self.undo.clear();
        self.links.iter().for_each(|link| link.set(Mode::Open));
        for who in 0..self.members.len() {
            self.members[who].process.stop(false);
            self.start(who)?;
        }
        self.healed = Instant::now();
        self.writers.go(false);
        Ok(())
    }

    /// Asks until there is an answer.
    fn answer(
        &mut self,
        what: &str,
        ask: impl Fn(&Client) -> Result<Committed, ClientError>,
    ) -> Res<Committed> {
        let mut answer = Err(format!("{what}: no answer"));
        self.wait(what, |all| match ask(&all.client) {
            Err(ClientError::Unanswered(_) | ClientError::Unreachable(_)) => Ok(false),
            answered => {
                answer = answered.map_err(|error| format!("{what}: {error}"));
                Ok(true)
            }
        })?;
        answer
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Cluster) -> Res<bool>) -> Res<()> {
        while !done(self)? {
            if self.healed.elapsed() > PATIENCE {
                return Err(format!("not within {PATIENCE:?} of the heal: {what}"));
            }
            for member in &mut self.members {
                if let Some(status) = member.process.ended() {
                    return Err(format!("{} ended by itself: {status}", member.name));
                }
            }
            self.watch(Instant::now() + Duration::from_millis(10))?;
        }
        Ok(())
    }

    /// Waits until every node holds the newest revision and the authority knows it. Nothing is done for it.
    pub(crate) fn converge(&mut self) -> Res<()> {
        self.wait("every commit is answered", |all| Ok(all.writers.are_idle()))?;
        self.take_answers()?;
        self.history.is_whole()?;
        let (newest, healed) = (self.history.newest(), self.healed);
        self.wait(&format!("every node holds revision {newest}"), |all| {
            Ok(all.members[1..].iter().all(|member| member.track.rev() >= newest))
        })?;
        // Who stayed where it was held it at the heal.
        let times: Vec<Duration> = self.members[1 + RELAYS..]
            .iter()
            .filter_map(|member| Some(member.reached?.saturating_duration_since(healed)))
            .collect();
        self.all.extend(times.iter().max());
        self.nodes.extend(times);
        let names: BTreeSet<String> = self.members[1..].iter().map(|member| member.name.clone()).collect();
        let (mut lacks, mut nodes) = (String::new(), Vec::new());
        let known = self.wait("the authority knows where every node is", |all| {
            let Ok(status) = all.client.status() else { return Ok(false) };
            let good = |node: &&NodeLine| {
                let level = if node.node.name.starts_with("relay") { node.stored } else { node.applied };
                node.connected && !node.conflict && level.rev == newest
            };
            let there: BTreeSet<String> =
                status.nodes.iter().filter(good).map(|node| node.node.name.clone()).collect();
            lacks = format!("{:?} of {:?}", names.difference(&there).collect::<Vec<_>>(), status.nodes.len());
            nodes = status.nodes;
            Ok(there == names && nodes.len() == names.len())
        });
        known.map_err(|why| format!("{why}; not {lacks}"))?;
        self.told.push(self.healed.elapsed());
        for (n, member) in self.members.iter_mut().enumerate() {
            let node = nodes.iter().find(|node| n > RELAYS && node.node.name == member.name);
            for claim in member.claims.drain(..) {
                let at = |why: String| format!("{}: {why}", member.name);
                self.history.agrees(&claim).map_err(at)?;
                if let Some(NodeLine { node, labels, .. }) = node {
                    self.history.may_hold(claim.rev, node.node, labels).map_err(at)?;
                }
            }
        }
        Ok(())
    }

    /// The mixture reached what it is meant to test.
    pub(crate) fn was_hurt(&self, seconds: u64) -> bool {
        let enough = |n: u32| u64::from(n) >= seconds / 20;
        let Counts { kills, stops, cuts, silences, promoted, .. } = &self.counts;
        let aborted = self.history.aborted() as u32;
        let mut done = kills.iter().chain([stops, cuts, silences, promoted, &aborted]);
        self.history.newest() > seconds && done.all(|n| enough(*n))
    }

    pub(crate) fn summary(&self) -> String {
        let Counts { kills: [authority, relays, agents], stops, cuts, silences, damaged, promoted } =
            &self.counts;
        let aborted = self.history.aborted();
        format!(
            "{} commits; rollouts: promoted {promoted}, aborted {aborted}; killed: authority {authority}, relays {relays}, \
             agents {agents}; stopped {stops}; links cut {cuts}, silenced {silences}; damaged files passed over {damaged}\n\
             {} heals; from heal to equal: a node {}; all nodes {}; the authority knows {}",
            self.history.newest(),
            self.all.len(),
            spread(&self.nodes),
            spread(&self.all),
            spread(&self.told)
        )
    }

    /// For a failure: what those said last that lag.
    pub(crate) fn last_words(&self) -> String {
        let newest = self.history.newest();
        let lag = |(n, member): &(usize, &Member)| *n <= RELAYS || member.track.rev() < newest;
        let tell = |(_, member): (usize, &Member)| {
            let words: String = member.words.iter().map(|line| format!("    {line}\n")).collect();
            format!("{} ({} starts) at {}:\n{words}", member.name, member.process.starts, member.track.rev())
        };
        self.members.iter().enumerate().filter(lag).map(tell).collect()
    }
}

fn spread(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    // The smallest that so many are not above.
    let at = |share: f64| times.get(((times.len() as f64 * share).ceil() as usize).max(1) - 1).copied();
    match (at(0.5), at(0.99), times.last()) {
        (Some(p50), Some(p99), Some(most)) => format!("p50 {p50:.2?}, p99 {p99:.2?}, at most {most:.2?}"),
        _ => "-".into(),
    }
}
