//! Trees on a real disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use super::read::{RECENT, settle};
use super::*;
use crate::Limits;

struct Dirs {
    _temp: tempfile::TempDir,
    root: PathBuf,
    staging: PathBuf,
    outside: PathBuf,
}

fn dirs() -> Dirs {
    let temp = tempfile::tempdir().expect("a folder");
    let [root, staging, outside] = ["out", "staging", "outside"].map(|name| temp.path().join(name));
    fs::create_dir_all(&outside).expect("writable");
    Dirs { _temp: temp, root, staging, outside }
}

fn state<const N: usize>(files: [(&str, &str); N]) -> State {
    files.into_iter().map(|(k, v)| (key(k), Entry::new(0, v.to_owned()))).collect()
}

fn key(k: &str) -> Key {
    Key::new(k).expect("1 to 1,024 bytes")
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("below root")).expect("writable");
    fs::write(path, text).expect("writable");
}

fn go(out: &Output, from: &State, to: &State) -> Result<(), TreeError> {
    out.switch(out.stage(&from.diff(to))?)
}

fn holds(root: &Path) -> State {
    let tree = read(root, &Limits::default()).expect("readable");
    assert!(tree.empty.is_empty() && tree.passed_over.is_empty(), "{tree:?}");
    tree.state
}

#[test]
fn a_tree_is_a_state_with_the_executable_bit_and_without_links() {
    let d = dirs();
    write(&d.root, "a.conf", "1");
    write(&d.root, "sub/dir/b", "");
    write(&d.root, "run.sh", "#!/bin/sh\n");
    fs::set_permissions(d.root.join("run.sh"), fs::Permissions::from_mode(0o755)).expect("ours");
    write(&d.outside, "secret", "s");
    symlink(d.outside.join("secret"), d.root.join("link")).expect("writable");
    symlink(&d.outside, d.root.join("sub/dirlink")).expect("writable");
    let tree = read(&d.root, &Limits::default()).expect("readable");
    let keys: Vec<String> = tree.state.iter().map(|(k, _)| k.to_string()).collect();
    assert_eq!(keys, ["a.conf", "run.sh", "sub/dir/b"]);
    assert_eq!(tree.state.get("run.sh").map(Entry::flags), Some(EXECUTABLE));
    assert_eq!(tree.state.get("sub/dir/b").map(|e| e.value().len()), Some(0));
    let passed: Vec<_> = tree.passed_over.iter().map(|(p, w)| (p.to_str(), *w)).collect();
    assert_eq!(passed, [(Some("link"), "symbolic link"), (Some("sub/dirlink"), "symbolic link")]);
}

#[test]
fn a_missing_root_is_an_error_and_not_an_empty_tree() {
    let d = dirs();
    assert!(matches!(read(&d.root, &Limits::default()), Err(TreeError::Io { .. })));
    fs::create_dir(&d.root).expect("writable");
    assert!(read(&d.root, &Limits::default()).expect("readable").state.is_empty());
}

#[test]
fn an_unreadable_file_is_an_error_and_not_an_empty_value() {
    let d = dirs();
    write(&d.root, "a", "1");
    fs::set_permissions(d.root.join("a"), fs::Permissions::from_mode(0o000)).expect("ours");
    // Whoever may read everything (root) reads it; nobody gets an empty value.
    match read(&d.root, &Limits::default()) {
        Ok(tree) => assert_eq!(tree.state, state([("a", "1")])),
        Err(e) => assert!(matches!(&e, TreeError::Io { path, .. } if path.ends_with("a")), "{e}"),
    }
}

#[test]
fn what_is_over_the_limits_is_refused() {
    let d = dirs();
    write(&d.root, "a", "12345");
    write(&d.root, "b", "12345");
    let over = |limits: Limits| matches!(read(&d.root, &limits), Err(TreeError::OverLimit(_)));
    assert!(over(Limits { value: 4, ..Limits::default() }));
    assert!(over(Limits { keys: 1, ..Limits::default() }));
    assert!(over(Limits { bytes: 11, ..Limits::default() }));
    assert!(!over(Limits { value: 5, keys: 2, bytes: 12 }));
}

#[test]
fn a_file_that_is_replaced_is_read_whole() {
    let d = dirs();
    write(&d.root, "a", "0000");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (path, stopped) = (d.root.join("a"), stop.clone());
    let writer = std::thread::spawn(move || {
        let mut n = 0u8;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            n = n.wrapping_add(1);
            let temp = path.with_extension("new");
            fs::write(&temp, vec![n; 50_000]).expect("writable");
            fs::rename(&temp, &path).expect("writable");
        }
    });
    for _ in 0..10 {
        // The temporary one may be half there, or gone when it is opened.
        let Ok(tree) = read(&d.root, &Limits::default()) else { continue };
        let value = tree.state.get("a").map(|e| e.value().clone()).unwrap_or_default();
        assert!(value.iter().all(|b| *b == value[0]), "two versions in one value");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().expect("it does not panic");
}

#[test]
fn a_tree_that_is_being_written_is_not_taken_before_it_rests() {
    let d = dirs();
    let mut turns = 0;
    let mut write_until = |last: u32| {
        settle(&d.root, &Limits::default(), SystemTime::now, || {
            turns += 1;
            if turns <= last {
                write(&d.root, "a", &turns.to_string());
            }
        })
    };
    fs::create_dir(&d.root).expect("writable");
    write(&d.root, "a", "0");
    assert_eq!(write_until(3).expect("at rest").state, state([("a", "3")]));
    assert!(matches!(write_until(u32::MAX), Err(TreeError::Unsettled(_))));
    // What has rested for a while is taken at once.
    let settled = |after: Duration| {
        let mut asked = 0;
        settle(&d.root, &Limits::default(), || SystemTime::now() + after, || asked += 1).expect("at rest");
        asked
    };
    assert_eq!(settled(RECENT * 2), 0);
    // A file that brings an old time along was put here lately all the same.
    let old = SystemTime::now() - RECENT * 2;
    let file = fs::File::options().write(true).open(d.root.join("a")).expect("ours");
    file.set_modified(old).expect("ours");
    assert_eq!(settled(Duration::ZERO), 1);
}

#[test]
fn a_directory_out_of_which_files_went_lately_is_looked_at_twice() {
    let d = dirs();
    write(&d.root, "d/a", "1");
    let before = read(&d.root, &Limits::default()).expect("readable").newest;
    let again = |turn: u32| {
        fs::remove_file(d.root.join("d/a")).expect("there");
        write(&d.root, "d/b", &turn.to_string());
        let old = fs::File::options().write(true).open(d.root.join("d/b")).expect("ours");
        old.set_modified(SystemTime::UNIX_EPOCH).expect("ours");
        fs::remove_file(d.root.join("d/b")).expect("there");
    };
    again(1);
    // Nothing is left whose own time tells of it.
    assert!(read(&d.root, &Limits::default()).expect("readable").newest >= before);
    let mut asked = 0;
    settle(&d.root, &Limits::default(), SystemTime::now, || asked += 1).expect("at rest");
    assert_eq!(asked, 1);
}

#[test]
fn keys_that_are_no_paths_are_refused() {
    let long = "x".repeat(256);
    for bad in
        ["/abs", "a//b", "a/", "..", "a/../b", "./a", ".", "a\0b", "a\nb", &long, &format!("d/{long}/f")]
    {
        assert!(matches!(check_key(&key(bad)), Err(TreeError::Key { .. })), "{bad:?}");
    }
    for good in ["a", "a/b", "..a", "a..", "...", "a b/ö", &"x".repeat(255)] {
        assert!(check_key(&key(good)).is_ok(), "{good:?}");
    }
}

#[test]
fn it_is_said_what_is_wrong_with_a_key() {
    for (bad, why) in [
        ("/abs", "it begins with /"),
        ("a/", "it ends with /"),
        ("a//b", "it has // in it"),
        (".", "one of its components is ."),
        ("./x", "one of its components is ."),
        ("a/../x", "one of its components is .."),
    ] {
        let error = check_key(&key(bad)).expect_err(bad).to_string();
        assert!(error.starts_with(&format!("key {bad} is no path: {why}")), "{error}");
    }
    assert!(!check_key(&key("./x")).expect_err("no path").to_string().contains(".."));
}

#[test]
fn a_set_of_keys_that_no_tree_can_hold_is_refused() {
    assert!(matches!(check(&state([("a", ""), ("a-b", ""), ("a/b", "")]), false), Err(TreeError::Clash(..))));
    assert!(check(&state([("a", ""), ("a-b", ""), ("ab/c", "")]), false).is_ok());
    assert!(check(&state([("a", ""), ("A", "")]), false).is_ok());
    assert!(matches!(check(&state([("a", ""), ("A", "")]), true), Err(TreeError::Clash(..))));
    assert!(matches!(check(&state([("a", ""), ("A/b", "")]), true), Err(TreeError::Clash(..))));
}

#[test]
fn changes_are_put_in_place_and_deletes_take_empty_directories_with_them() {
    let d = dirs();
    let out = Output::open(&d.root, &d.staging).expect("writable");
    let first = state([("a", "1"), ("d/e/f", "2"), ("d/g", "3")]);
    go(&out, &State::new(), &first).expect("written");
    assert_eq!(holds(&d.root), first);
    let second = state([("a", "changed"), ("d/g", "3"), ("new/x", "4")]);
    go(&out, &first, &second).expect("written");
    assert_eq!(holds(&d.root), second);
    assert!(!d.root.join("d/e").exists());
    go(&out, &second, &State::new()).expect("written");
    assert!(out.is_empty().expect("readable") && d.root.exists());
    assert!(fs::read_dir(&d.staging).expect("readable").next().is_none());
}

#[test]
fn a_file_can_become_a_directory_and_back() {
    let d = dirs();
    let out = Output::open(&d.root, &d.staging).expect("writable");
    let (file, dir) = (state([("a", "1")]), state([("a/b/c", "2"), ("a/d", "3")]));
    go(&out, &State::new(), &file).expect("written");
    go(&out, &file, &dir).expect("written");
    assert_eq!(holds(&d.root), dir);
    go(&out, &dir, &file).expect("written");
    assert_eq!(holds(&d.root), file);
}

#[test]
fn a_link_in_the_way_is_not_followed() {
    let d = dirs();
    let out = Output::open(&d.root, &d.staging).expect("writable");
    write(&d.outside, "victim", "untouched");
    symlink(&d.outside, d.root.join("sub")).expect("writable");
    let wanted = state([("sub/victim", "evil"), ("sub/new", "evil")]);
    assert!(matches!(go(&out, &State::new(), &wanted), Err(TreeError::Link(_))));
    assert!(matches!(go(&out, &wanted, &State::new()), Err(TreeError::Link(_))));
    assert_eq!(holds(&d.outside), state([("victim", "untouched")]));
    // A repair takes the link away, not what it points to.
    let differed = out.repair(&wanted).expect("repaired");
    assert!(differed[0].contains("symbolic link"), "{differed:?}");
    assert_eq!((holds(&d.root), holds(&d.outside)), (wanted, state([("victim", "untouched")])));
    // A file that was replaced by a link is replaced, not written through.
    fs::remove_file(d.root.join("sub/new")).expect("ours");
    symlink(d.outside.join("victim"), d.root.join("sub/new")).expect("writable");
    let next = state([("sub/new", "next")]);
    go(&out, &state([]), &next).expect("renamed over the link");
    assert_eq!(holds(&d.outside), state([("victim", "untouched")]));
}

#[test]
fn drift_is_found_and_repaired() {
    let d = dirs();
    let out = Output::open(&d.root, &d.staging).expect("writable");
    let wanted = state([("a", "1"), ("d/b", "2"), ("d/c", "3")]);
    go(&out, &State::new(), &wanted).expect("written");
    assert!(out.repair(&wanted).expect("read").is_empty());
    write(&d.root, "a", "edited by hand");
    fs::remove_file(d.root.join("d/b")).expect("ours");
    write(&d.root, "foreign/x", "");
    fs::create_dir_all(d.root.join("nothing/in/it")).expect("writable");
    fs::set_permissions(d.root.join("d/c"), fs::Permissions::from_mode(0o755)).expect("ours");
    let differed = out.repair(&wanted).expect("repaired");
    assert!(differed.len() >= 5, "{differed:?}");
    assert_eq!(holds(&d.root), wanted);
    assert!(out.repair(&wanted).expect("read").is_empty());
    // Foreign files beyond every limit, and names that no key can have.
    write(&d.root, "big", &"x".repeat(5000));
    write(&d.root, "line\nbreak", "");
    out.repair(&wanted).expect("repaired");
    assert_eq!(holds(&d.root), wanted);
}

#[test]
fn what_is_foreign_is_deleted_without_being_read_however_deep_it_is() {
    let d = dirs();
    let out = Output::open(&d.root, &d.staging).expect("writable");
    let wanted = state([("a", "1"), ("d/b", "2"), ("file", "3")]);
    go(&out, &State::new(), &wanted).expect("written");
    // A chain of directories that no path can name, with a file in each.
    let mut here = fs::File::open(&d.root).map(OwnedFd::from).expect("readable");
    for _ in 0..1_000 {
        rustix::fs::mkdirat(&here, "deep!", Mode::RWXU).expect("writable");
        here = rustix::fs::openat(&here, "deep!", FOLDER, Mode::empty()).expect("made");
        let flags = OFlags::WRONLY | OFlags::CREATE;
        rustix::fs::openat(&here, "f", flags, Mode::RUSR).expect("writable");
    }
    // A link on the way is deleted, not followed.
    write(&d.outside, "victim", "untouched");
    symlink(&d.outside, d.root.join("deep!/link")).expect("writable");
    // Nobody but root can read these two.
    write(&d.root, "foreign/secret", "x");
    for unreadable in ["foreign/secret", "a"] {
        fs::set_permissions(d.root.join(unreadable), fs::Permissions::from_mode(0o000)).expect("ours");
    }
    // A directory where a file should be.
    fs::remove_file(d.root.join("file")).expect("ours");
    write(&d.root, "file/x/y", "");
    // One that is written all the time, and one that comes and goes.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (root, stopped) = (d.root.clone(), stop.clone());
    let (begun, begins) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        let mut log = fs::File::create(root.join("d/log")).expect("writable");
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            log.write_all(b"line\n").expect("writable");
            fs::write(root.join("d/temporary"), "").expect("writable");
            let _ = fs::remove_file(root.join("d/temporary"));
            let _ = begun.send(());
        }
    });
    begins.recv().expect("it writes");
    let differed = out.repair(&wanted).expect("repaired");
    for what in ["deep! (directory)", "foreign (directory)", "file (directory)", "d/log", "file"] {
        assert!(differed.iter().any(|d| d == what), "{what} in {differed:?}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().expect("it does not panic");
    out.repair(&wanted).expect("repaired");
    assert_eq!((holds(&d.root), holds(&d.outside)), (wanted, state([("victim", "untouched")])));
}

#[test]
fn flags_of_the_applications_are_no_difference() {
    let d = dirs();
    let out = Output::open(&d.root, &d.staging).expect("writable");
    let wanted: State = [(key("a"), Entry::new(EXECUTABLE | 0x80, "1"))].into_iter().collect();
    go(&out, &State::new(), &wanted).expect("written");
    assert_eq!(out.repair(&wanted).expect("read"), Vec::<String>::new());
}

#[test]
fn what_is_as_deep_as_allowed_can_be_read_and_repaired() {
    let d = dirs();
    let out = Output::open(&d.root, &d.staging).expect("writable");
    let deep = |directories: usize| "d/".repeat(directories) + "f";
    let wanted = state([(&*deep(64), "1")]);
    check(&wanted, false).expect("allowed");
    go(&out, &State::new(), &wanted).expect("written");
    assert_eq!(out.repair(&wanted).expect("read"), Vec::<String>::new());
    assert_eq!(holds(&d.root), wanted);
    let error = check(&state([(&*deep(65), "1")]), false).expect_err("too deep");
    assert!(error.to_string().contains("64 directories"), "{error}");
}

#[test]
fn what_has_to_go_first_is_found_by_looking_up() {
    let keys = |keys: &[&'static str]| keys.iter().map(|k| k.as_bytes()).collect::<BTreeSet<_>>();
    let puts = keys(&["a/b/c", "d", "e-f", "e/", "g/h"]);
    for (deleted, first) in [
        ("a", true),
        ("a/b", true),
        ("a/b/c/x", true),
        ("d/e/f", true),
        ("g", true),
        ("e-", false),
        ("b", false),
    ] {
        assert_eq!(in_the_way(deleted.as_bytes(), &puts), first, "{deleted}");
    }
    // A renamed directory of as many files as there may be: each with each would take an hour.
    let names = |dir: &str| (0..100_000).map(|n| format!("{dir}/{n}")).collect::<Vec<_>>();
    let (old, new) = (names("old"), names("new"));
    let puts: BTreeSet<&[u8]> = new.iter().map(|k| k.as_bytes()).collect();
    assert!(!old.iter().any(|key| in_the_way(key.as_bytes(), &puts)));
}

#[test]
fn what_a_crash_left_in_the_staging_folder_is_swept() {
    let d = dirs();
    let out = Output::open(&d.root, &d.staging).expect("writable");
    out.stage(&State::new().diff(&state([("a", "1"), ("b", "2")]))).expect("staged");
    drop(out);
    let out = Output::open(&d.root, &d.staging).expect("writable");
    assert!(
        fs::read_dir(&d.staging).expect("readable").next().is_none() && out.is_empty().expect("readable")
    );
}
