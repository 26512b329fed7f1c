//! What was committed, and whether what nodes said and held agrees with it.
//!
//! Owns: the state of every revision, as far as a node can be asked for it. Never: a guess; what cannot be seen from
//! outside (that a reader's view is whole, that nothing was shown before it was checked) is the simulator's.

use std::collections::BTreeMap;

use spanwire_config::rollout::Audience;
use spanwire_config::{ChangeSet, Digest, Id, State};

/// Commits come from so many writers; those of the last are rollouts.
pub(crate) const WRITERS: usize = 3;

/// What a revision changes.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// These keys.
    Set(ChangeSet),
    /// A rollout was aborted: it has what there was before the revision before, which was for these alone, one after
    /// the other.
    Back(Vec<Audience>),
}

/// What a node says about a revision that it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    /// From its disk, at its start.
    pub(crate) resumed: bool,
    pub(crate) epoch: String,
    pub(crate) rev: u64,
    pub(crate) keys: u32,
    /// The relay does not say it of what it finds on its disk.
    pub(crate) digest: Option<String>,
}

impl Claim {
    /// Of a line like `revision 1/0a0b0c0d:7: 3 keys, digest 010203040506..: a, b`.
    pub(crate) fn of(line: &str) -> Option<Claim> {
        let starts = ["last good revision in place: ", "last good revision: ", "revision "];
        let (resumed, rest) = starts
            .iter()
            .enumerate()
            .find_map(|(n, start)| line.strip_prefix(start).map(|rest| (n < 2, rest)))?;
        let end = rest.find([' ']).unwrap_or(rest.len());
        let (position, rest) = rest.split_at(end);
        let (epoch, rev) = position.trim_end_matches(':').rsplit_once(':')?;
        let keys = rest.trim_start_matches([' ', '(']).split(' ').next()?.parse().ok()?;
        let digest = rest.split_once("digest ").map(|(_, rest)| rest.chars().take(12).collect());
        Some(Claim { resumed, epoch: epoch.to_owned(), rev: rev.parse().ok()?, keys, digest })
    }
}

/// One node's claims, in order.
#[derive(Clone, Debug)]
pub(crate) struct Track {
    last: Option<(String, u64)>,
    /// Nothing was said in this life yet.
    silent: bool,
    /// What was shown may be ahead of its disk: a relay hands on what is durable above it.
    may_lose: bool,
}

impl Track {
    /// Of a node that says what it holds before (`may_lose`), or after it is on its disk.
    pub(crate) fn new(may_lose: bool) -> Track {
        Track { last: None, silent: true, may_lose }
    }

    pub(crate) fn starts(&mut self) {
        self.silent = true;
        if self.may_lose {
            self.last = None;
        }
    }

    pub(crate) fn rev(&self) -> u64 {
        self.last.as_ref().map_or(0, |(_, rev)| *rev)
    }

    /// Never back: not within a life, not over a restart.
    pub(crate) fn says(&mut self, claim: &Claim) -> Result<(), String> {
        if let Some((epoch, rev)) = &self.last {
            let first = std::mem::replace(&mut self.silent, false);
            if *epoch != claim.epoch {
                return Err(format!("it is at {}, after {epoch}", claim.epoch));
            }
            if claim.rev < *rev || !first && claim.rev == *rev {
                return Err(format!("it went from revision {rev} to {}", claim.rev));
            }
            if first && !claim.resumed {
                return Err(format!("it started with nothing, and had stored {rev}"));
            }
        }
        self.silent = false;
        self.last = Some((claim.epoch.clone(), claim.rev));
        Ok(())
    }
}

#[derive(Debug)]
struct Known {
    keys: u32,
    digest: Digest,
    counters: [String; WRITERS],
}

/// Everything that was committed.
#[derive(Default, Debug)]
pub(crate) struct History {
    known: Vec<Known>,
    state: State,
    /// Before the newest revision.
    before: State,
    /// For whom revisions were whose rollout was aborted.
    aborted: BTreeMap<u64, Vec<Audience>>,
    /// Above a revision whose commit has not been answered yet.
    later: BTreeMap<u64, (Change, Digest)>,
}

/// The two keys of a writer: every commit of its gives both the same number.
pub(crate) fn counters(writer: usize) -> [String; 2] {
    [format!("w{writer}/a"), format!("w{writer}/b")]
}

impl History {
    /// The newest revision of which all before it are known.
    pub(crate) fn newest(&self) -> u64 {
        self.known.len() as u64
    }

    /// Its state.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// A commit was acknowledged.
    pub(crate) fn committed(&mut self, rev: u64, change: Change, digest: Digest) -> Result<(), String> {
        if rev <= self.newest() || self.later.insert(rev, (change, digest)).is_some() {
            return Err(format!("two commits were given revision {rev}"));
        }
        while let Some((change, digest)) = self.later.remove(&(self.newest() + 1)) {
            let before = self.state.clone();
            match change {
                Change::Set(changes) => self.state.apply(&changes),
                Change::Back(audiences) => {
                    self.state.clone_from(&self.before);
                    self.aborted.insert(self.newest(), audiences);
                }
            }
            self.before = before;
            if self.state.digest() != digest {
                return Err(format!("revision {} was acknowledged with another digest", self.newest() + 1));
            }
            let text = |key: &String| {
                let value = self.state.get(key).map(|entry| entry.value().to_vec()).unwrap_or_default();
                String::from_utf8_lossy(&value).trim_end().to_owned()
            };
            let counters = std::array::from_fn(|writer| text(&counters(writer)[0]));
            self.known.push(Known { keys: self.state.keys(), digest, counters });
        }
        Ok(())
    }

    /// Every commit is known up to the newest.
    pub(crate) fn is_whole(&self) -> Result<(), String> {
        match self.later.keys().next() {
            None => Ok(()),
            Some(rev) => {
                Err(format!("revision {rev} was acknowledged, and nobody made {}", self.newest() + 1))
            }
        }
    }

    fn at(&self, rev: u64) -> Result<&Known, String> {
        let index = usize::try_from(rev).unwrap_or(usize::MAX).wrapping_sub(1);
        self.known.get(index).ok_or_else(|| format!("revision {rev} was never committed"))
    }

    /// What a node held is what was committed.
    pub(crate) fn agrees(&self, claim: &Claim) -> Result<(), String> {
        let known = self.at(claim.rev)?;
        let digest = format!("{:?}", known.digest);
        if claim.keys != known.keys
            || claim.digest.as_ref().is_some_and(|claimed| !digest.starts_with(claimed))
        {
            return Err(format!("it says {claim:?}; committed were {} keys, digest {digest}", known.keys));
        }
        Ok(())
    }

    /// What was never for all is held by those alone for whom it was.
    pub(crate) fn may_hold(&self, rev: u64, node: Id, labels: &[(String, String)]) -> Result<(), String> {
        match self.aborted.get(&rev) {
            Some(cohorts) if !cohorts.iter().any(|cohort| cohort.admits(node, labels)) => {
                Err(format!("it held revision {rev}, which was never for it"))
            }
            _ => Ok(()),
        }
    }

    /// How many rollouts were aborted.
    pub(crate) fn aborted(&self) -> usize {
        self.aborted.len()
    }

    /// The content of two revisions is the same: the hook does not run from one to the other.
    pub(crate) fn is_same(&self, one: u64, other: u64) -> Result<bool, String> {
        Ok(self.at(one)?.digest == self.at(other)?.digest)
    }

    /// The content on a node's disk is what was committed.
    pub(crate) fn holds(&self, rev: u64, state: &State) -> Result<(), String> {
        let known = self.at(rev)?;
        match state.recompute() == known.digest {
            true => Ok(()),
            false => Err(format!("its content at revision {rev} is not what was committed")),
        }
    }

    /// What a hook wrote: its revision, and the counters that it found. None lower after a higher; whole commits.
    pub(crate) fn hooks(&self, text: &str) -> Result<u64, String> {
        let mut last = 0;
        for line in text.lines() {
            let mut words = line.split(' ');
            let rev = words.next().and_then(|rev| rev.parse().ok());
            let rev: u64 = rev.ok_or_else(|| format!("a hook wrote {line:?}"))?;
            if rev < last {
                return Err(format!("its hook ran for {rev} after {last}"));
            }
            last = rev;
            let expected = self.at(rev)?.counters.iter().flat_map(|n| [n.as_str(), n.as_str()]);
            if !words.eq(expected) {
                return Err(format!(
                    "at revision {rev} its hook found {line:?}, not {:?}",
                    self.at(rev)?.counters
                ));
            }
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use spanwire_config::Key;
    use spanwire_config::rollout::{Plan, Stage, WHOLE};

    use super::*;

    fn commit(writer: usize, n: u32) -> ChangeSet {
        let mut changes = ChangeSet::new();
        for key in counters(writer) {
            changes.put(Key::new(key).expect("short"), 0, format!("{n}\n"));
        }
        changes
    }

    fn history() -> History {
        let (mut history, mut state) = (History::default(), State::new());
        let commits = [commit(0, 1), commit(1, 1), commit(0, 2)].map(|changes| {
            state.apply(&changes);
            (changes, state.digest())
        });
        // In whatever order the answers come.
        for n in [1, 0, 2] {
            let (changes, digest) = commits[n].clone();
            history.committed(n as u64 + 1, Change::Set(changes), digest).expect("it is as it should be");
        }
        history
    }

    fn claim(rev: u64, resumed: bool) -> Claim {
        Claim { resumed, epoch: "1/aa".into(), rev, keys: 0, digest: None }
    }

    #[test]
    fn lines_are_read() {
        let said = Claim::of("revision 1/0a0b0c0d:7: 3 keys, digest 010203040506..: a, b").expect("read");
        let digest = Some("010203040506".to_owned());
        assert_eq!(said, Claim { resumed: false, epoch: "1/0a0b0c0d".into(), rev: 7, keys: 3, digest });
        let said = Claim::of("last good revision in place: 2/0a0b0c0d:9: 1 keys, digest 010203040506..");
        assert!(said.is_some_and(|said| said.resumed && said.rev == 9 && said.keys == 1));
        let said = Claim::of("last good revision: 1/0a0b0c0d:12 (4 keys)").expect("read");
        assert_eq!((said.resumed, said.rev, said.keys, said.digest), (true, 12, 4, None));
        assert_eq!(Claim::of("revision 1/0a0b0c0d:7 refused: no"), None);
        assert_eq!(Claim::of("connected: tcp://a"), None);
    }

    #[test]
    fn who_goes_back_is_seen() {
        let mut track = Track::new(false);
        track.starts();
        track.says(&claim(3, false)).expect("the first");
        track.says(&claim(5, false)).expect("higher");
        assert!(track.clone().says(&claim(5, false)).is_err(), "the same again");
        assert!(track.clone().says(&claim(4, false)).is_err(), "lower");
        assert!(track.clone().says(&Claim { epoch: "2/bb".into(), ..claim(9, false) }).is_err(), "elsewhere");
        track.starts();
        assert!(track.clone().says(&claim(6, false)).is_err(), "nothing was found on its disk");
        assert!(track.clone().says(&claim(4, true)).is_err(), "less was found on its disk");
        track.says(&claim(5, true)).expect("what it had");
        let mut relay = Track { may_lose: true, ..track };
        relay.starts();
        relay.says(&claim(2, true)).expect("it stores beside");
        assert!(relay.says(&claim(1, false)).is_err(), "but not within a life");
    }

    #[test]
    fn what_was_not_committed_is_seen() {
        let history = history();
        let digest = format!("{:?}", history.state().digest()).chars().take(12).collect::<String>();
        let right = Claim { keys: 4, digest: Some(digest), ..claim(3, false) };
        history.agrees(&right).expect("as it was");
        assert!(history.agrees(&Claim { rev: 2, ..right.clone() }).is_err(), "another digest");
        assert!(history.agrees(&Claim { keys: 5, ..right.clone() }).is_err());
        assert!(history.agrees(&Claim { rev: 4, ..right }).is_err(), "never committed");
        history.holds(3, history.state()).expect("as it was");
        assert!(history.holds(2, history.state()).is_err());
        assert_eq!(history.hooks("1 1 1    \n3 2 2 1 1  \n3 2 2 1 1  \n"), Ok(3));
        assert!(history.hooks("3 2 2 1 1  \n2 1 1 1 1  \n").is_err(), "lower after higher");
        assert!(history.hooks("3 2 1 1 1  \n").is_err(), "half of a commit");
    }

    #[test]
    fn a_commit_that_is_made_twice_or_lost_is_seen() {
        let mut history = history();
        let set = |changes| Change::Set(changes);
        assert!(
            history.committed(2, set(commit(0, 3)), Digest::default()).is_err(),
            "a place is given twice"
        );
        let mut state = history.state().clone();
        state.apply(&commit(0, 3));
        history.committed(5, set(commit(0, 3)), state.digest()).expect("an answer may be ahead of another");
        assert!(history.is_whole().is_err(), "something else was committed before it");
        assert!(history.committed(4, set(ChangeSet::new()), Digest::default()).is_err(), "another digest");
    }

    #[test]
    fn an_abort_has_the_content_of_before_and_what_it_ended_was_for_its_cohort_alone() {
        let (mut history, label) = (history(), [("canary".to_owned(), "yes".to_owned())]);
        let stage = Stage { labels: label.to_vec(), share: WHOLE, gate: None };
        let cohort = Plan { salt: Id::default(), stages: vec![stage] }.audience(Id::default(), 0);
        let cohort = Audience::parse(&cohort).expect("as it was written");
        let (before, mut canary) = (history.state().clone(), history.state().clone());
        canary.apply(&commit(2, 1));
        history.committed(4, Change::Set(commit(2, 1)), canary.digest()).expect("opened");
        let back = || Change::Back(vec![cohort.clone()]);
        history.may_hold(4, Id::default(), &[]).expect("it may be promoted yet");
        history.committed(5, back(), before.digest()).expect("aborted");
        assert_eq!((history.state(), history.is_same(3, 5)), (&before, Ok(true)));
        assert_eq!((history.is_same(4, 5), history.aborted()), (Ok(false), 1));
        history.may_hold(4, Id::default(), &label).expect("a canary");
        history.may_hold(5, Id::default(), &[]).expect("for all");
        assert!(history.may_hold(4, Id::default(), &[]).is_err());
        assert!(history.committed(6, back(), before.digest()).is_err(), "there was none to abort");
    }
}
