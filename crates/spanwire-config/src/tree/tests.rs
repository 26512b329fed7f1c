//! Trees on a real disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

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
    let differed = out.repair(&wanted, &Limits::default()).expect("repaired");
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
    assert!(out.repair(&wanted, &Limits::default()).expect("read").is_empty());
    write(&d.root, "a", "edited by hand");
    fs::remove_file(d.root.join("d/b")).expect("ours");
    write(&d.root, "foreign/x", "");
    fs::create_dir_all(d.root.join("nothing/in/it")).expect("writable");
    fs::set_permissions(d.root.join("d/c"), fs::Permissions::from_mode(0o755)).expect("ours");
    let differed = out.repair(&wanted, &Limits::default()).expect("repaired");
    assert!(differed.len() >= 5, "{differed:?}");
    assert_eq!(holds(&d.root), wanted);
    assert!(out.repair(&wanted, &Limits::default()).expect("read").is_empty());
    // Foreign files beyond every limit, and names that no key can have.
    write(&d.root, "big", &"x".repeat(5000));
    write(&d.root, "line\nbreak", "");
    out.repair(&wanted, &Limits { value: 100, keys: 3, bytes: 100 }).expect("repaired");
    assert_eq!(holds(&d.root), wanted);
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
