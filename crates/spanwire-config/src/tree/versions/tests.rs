use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use super::*;
use crate::tree::read;
use crate::{Entry, Epoch, Id, Key, Limits};

struct World {
    temp: tempfile::TempDir,
}

fn world() -> World {
    World { temp: tempfile::tempdir().expect("a folder") }
}

impl World {
    fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join(below)
    }

    fn open(&self, keep: usize) -> Versions {
        Versions::open(&self.path("out"), &self.path("staging"), keep).expect("writable")
    }

    /// What a reader finds behind the link.
    fn shown(&self) -> State {
        read(&self.path("out/current"), &Limits::default()).map(|tree| tree.state).unwrap_or_default()
    }

    fn there(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("out")).expect("it is there");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("readable").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

fn at_rev(rev: u64) -> Position {
    Position { epoch: Epoch { number: 1, incarnation: Id([0xab; 16]) }, rev }
}

fn state(files: &[(&str, &str)]) -> State {
    files.iter().map(|(k, v)| (Key::new(*k).expect("short"), Entry::new(0, v.to_string()))).collect()
}

fn go(versions: &Versions, rev: u64, state: &State, before: Option<(Position, &State)>) {
    let built = versions.stage(at_rev(rev), state, before).expect("written");
    versions.switch(built).expect("in place");
}

#[test]
fn each_revision_has_a_directory_and_the_stated_number_of_them_stays() {
    let w = world();
    let versions = w.open(2);
    let mut before = None;
    for rev in 1..=12 {
        let now = state(&[("same", "1"), ("d/e/changes", &rev.to_string())]);
        go(&versions, rev, &now, before.as_ref().map(|(at, state)| (*at, state)));
        assert_eq!(w.shown(), now);
        before = Some((at_rev(rev), now));
    }
    // By number, not by letter.
    assert_eq!(w.there(), ["1-11-abababab", "1-12-abababab", "current"]);
    let inode = |rev: u64, file: &str| {
        fs::metadata(versions.path(at_rev(rev)).join(file)).expect("it is there").ino()
    };
    assert_eq!(inode(11, "same"), inode(12, "same"), "what did not change is not written again");
    assert_ne!(inode(11, "d/e/changes"), inode(12, "d/e/changes"));
    assert_eq!(fs::read_dir(w.path("staging")).expect("it is there").count(), 1, "the folder for files");
}

#[test]
fn a_file_edited_by_hand_is_not_carried_into_the_next_revision() {
    let w = world();
    let versions = w.open(3);
    let (one, two) = (state(&[("a", "1"), ("b", "1")]), state(&[("a", "1"), ("b", "2")]));
    go(&versions, 1, &one, None);
    fs::write(w.path("out/current/a"), "mine").expect("writable");
    fs::write(w.path("out/current/stray"), "").expect("writable");
    go(&versions, 2, &two, Some((at_rev(1), &one)));
    assert_eq!(w.shown(), two);
    // Nor does putting it right change what another revision holds.
    fs::write(w.path("out/current/b"), "mine").expect("writable");
    assert_eq!(versions.repair(at_rev(2), &two).expect("repaired"), ["b"]);
    assert_eq!((w.shown(), versions.repair(at_rev(2), &two).expect("right")), (two, vec![]));
}

/// The steps of a switch in order, as a crash after each of them leaves the folders.
#[test]
fn a_crash_after_any_step_leaves_one_whole_revision_behind_the_link() {
    let (one, two) = (state(&[("a", "1"), ("d/b", "1")]), state(&[("a", "2"), ("d/b", "2"), ("c", "2")]));
    let name = "1-2-abababab";
    for step in 0..5 {
        let w = world();
        let versions = w.open(1);
        go(&versions, 1, &one, None);
        let built = versions.stage(at_rev(2), &two, Some((at_rev(1), &one))).expect("written");
        match step {
            // Half of it is written.
            0 => fs::remove_file(w.path("staging/tree/c")).expect("written"),
            1 => {}
            2 => fs::rename(w.path("staging/tree"), w.path("out").join(name)).expect("moved"),
            3 => {
                fs::rename(w.path("staging/tree"), w.path("out").join(name)).expect("moved");
                symlink(name, w.path("staging/current")).expect("made");
            }
            _ => versions.switch(built).expect("in place"),
        }
        assert_eq!(w.shown(), if step < 4 { one.clone() } else { two.clone() }, "step {step}");
        drop(versions);
        // The newest is what the store holds: before the move the one or the other, then the second.
        for newest in [(1, &one), (2, &two)].into_iter().skip(usize::from(step > 1)) {
            let versions = w.open(1);
            versions.repair(at_rev(newest.0), newest.1).expect("repaired");
            assert_eq!(w.shown(), *newest.1, "step {step}");
            assert_eq!(w.there(), [&format!("1-{}-abababab", newest.0), "current"], "step {step}");
        }
    }
}

#[test]
fn what_is_foreign_goes_and_no_link_is_followed() {
    let w = world();
    let precious = w.path("precious");
    fs::create_dir(&precious).expect("writable");
    fs::write(precious.join("a"), "mine").expect("writable");
    let (versions, one) = (w.open(3), state(&[("a", "1")]));
    go(&versions, 1, &one, None);
    // Another directory in the place of the revision, of an older one, and of the link; and what is no revision.
    fs::remove_dir_all(versions.path(at_rev(1))).expect("ours");
    symlink(&precious, versions.path(at_rev(1))).expect("writable");
    symlink(&precious, w.path("out/1-0-abababab")).expect("writable");
    fs::remove_file(w.path("out/current")).expect("ours");
    fs::create_dir_all(w.path("out/current/deep/down")).expect("writable");
    fs::write(w.path("out/stray"), "").expect("writable");
    fs::create_dir(w.path("out/1-1-old")).expect("writable");
    assert!(!versions.repair(at_rev(1), &one).expect("repaired").is_empty());
    assert_eq!(w.there(), ["1-1-abababab", "current"]);
    assert_eq!(w.shown(), one);
    assert_eq!(fs::read_to_string(precious.join("a")).expect("it is there"), "mine");
    assert!(versions.stage(at_rev(2), &state(&[("../x", "")]), None).is_err());
}

#[test]
fn a_reader_that_entered_by_the_link_sees_one_revision() {
    let w = world();
    let versions = w.open(2);
    let of = |rev: u64| state(&[("a", &rev.to_string()), ("z", &rev.to_string())]);
    go(&versions, 1, &of(1), None);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut seen, mut last) = (0, 0);
            while last < 60 {
                let link = fs::read_link(w.path("out/current")).expect("it is always there");
                let read = |file: &str| fs::read_to_string(w.path("out").join(&link).join(file));
                // Taken away meanwhile: enter again.
                let (Ok(a), Ok(z)) = (read("a"), read("z")) else { continue };
                assert_eq!(a, z);
                let now: u64 = a.parse().expect("a number");
                assert!(now >= last);
                (seen, last) = (seen + 1, now);
            }
            seen
        });
        (2..=60).for_each(|rev| go(&versions, rev, &of(rev), Some((at_rev(rev - 1), &of(rev - 1)))));
        assert!(reading.join().expect("it does not panic") > 0);
    });
}
