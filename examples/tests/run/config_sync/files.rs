//! What the operator's verbs read and write.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use super::super::program;
use super::{World, json};

#[test]
fn an_export_is_written_whole_into_what_is_there_and_into_nothing_else() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "a", "secret", "--expect", "0:0"]);
    let mode = |name: &str| fs::metadata(w.path(name)).expect("there").permissions().mode() & 0o777;
    w.ok(&["export", "new"]);
    assert_eq!(mode("new"), 0o600, "it may hold secrets");
    let export = fs::read(w.path("new")).expect("readable");
    // A file keeps its mode, and a link to it stays one.
    fs::write(w.path("old"), "old").expect("writable");
    fs::set_permissions(w.path("old"), fs::Permissions::from_mode(0o640)).expect("ours");
    symlink(w.path("old"), w.path("link")).expect("writable");
    w.ok(&["export", "link"]);
    assert!(w.path("link").is_symlink());
    assert_eq!((fs::read(w.path("old")).expect("readable"), mode("old")), (export.clone(), 0o640));
    // Into a pipe it goes, too.
    assert!(Command::new("mkfifo").arg(w.path("pipe")).status().expect("it is there").success());
    let pipe = w.path("pipe");
    let reads = std::thread::spawn(move || fs::read(pipe));
    w.ok(&["export", "pipe"]);
    assert_eq!(reads.join().expect("no panic").expect("readable"), export);
    assert!(!fs::metadata(w.path("pipe")).expect("there").is_file());
    // What cannot be written leaves nothing behind.
    fs::create_dir(w.path("dir")).expect("writable");
    assert_eq!(w.verb(&["export", "dir"]).0, Some(3));
    assert_eq!(w.verb(&["export", "none/e"]).0, Some(3));
    let left: Vec<_> =
        fs::read_dir(w.temp.path()).expect("there").map(|e| e.expect("readable").file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".part")), "{left:?}");
}

#[test]
fn what_standard_output_does_not_take_is_an_error_and_a_reader_that_went_is_none() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    let control = w.control();
    let run = |args: &[&str], out: Stdio| {
        let mut command = Command::new(program("config-sync"));
        let command = command.args(args).env("CONFIG_SYNC_CONTROL", &control).stdin(Stdio::null());
        let output = command.stdout(out).stderr(Stdio::piped()).output().expect("the example was built");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    // A link, so that the device itself is never in reach of a rename.
    symlink("/dev/full", w.path("full")).expect("writable");
    for verb in
        [&["get", "a"][..], &["list"], &["status"], &["history"], &["set", "a", "2"], &["export", "-"]]
    {
        let full = fs::OpenOptions::new().write(true).open(w.path("full")).expect("it is there");
        let (code, err) = run(verb, full.into());
        assert!(code == Some(3) && err.contains("standard output: "), "{verb:?}: {code:?} {err}");
    }
    assert_eq!(w.ok(&["get", "a"]), "2");
    let (reads, writes) = std::io::pipe().expect("a pipe");
    drop(reads);
    assert_eq!(run(&["get", "a"], writes.into()), (Some(0), String::new()));
}

#[test]
fn an_empty_directory_prunes_nothing_unless_that_is_meant() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    fs::create_dir(w.path("none")).expect("writable");
    let (code, _, err) = w.verb(&["apply", "none", "--prune"]);
    assert!(code == Some(6) && err.contains("none is empty") && err.contains("--discard"), "{err}");
    assert_eq!(w.ok(&["get", "a"]), "1");
    assert_eq!(w.ok(&["apply", "none", "--prune", "--discard"]), "1:2\n");
    assert_eq!(w.ok(&["list"]), "");
}

#[test]
fn an_executable_key_stays_one_when_its_value_is_set() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "run", "1", "--executable", "--expect", "0:0"]);
    w.ok(&["set", "run", "2"]);
    let flags = || json(&w.ok(&["list", "--json"]))["entries"][0]["flags"].clone();
    assert_eq!(flags(), 1);
    w.ok(&["delete", "run"]);
    w.ok(&["set", "run", "3"]);
    assert_eq!(flags(), 0);
}

#[test]
fn a_set_is_repeated_whatever_became_of_the_executable_key() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "run", "1", "--executable", "--expect", "0:0"]);
    let id = "00112233445566778899aabbccddeeff";
    let set = ["set", "run", "2", "--request", id];
    assert_eq!(w.ok(&set), "1:2\n");
    w.ok(&["delete", "run"]);
    let (code, out, err) = w.verb(&set);
    assert_eq!((code, &out[..]), (Some(0), "1:2\n"), "{err}");
    assert!(err.contains("an earlier copy"), "{err}");
    // Another change is one all the same, and nothing comes of the question.
    let (code, _, err) = w.verb(&["set", "run", "3", "--request", id]);
    assert!(code == Some(6) && err.contains("used for something else, at 1:2"), "{err}");
    assert_eq!(w.ok(&["list"]), "");
}

#[test]
fn a_key_that_is_no_text_is_shown_read_and_deleted_as_the_shell_names_it() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let w = World::new();
    let _server = w.serve_log();
    let odd = OsStr::from_bytes(b"b\xff");
    // Not every file system takes it, but every key is one.
    let run = |verb: &str, args: &[&OsStr]| {
        let mut command = Command::new(program("config-sync"));
        command.arg(verb).args(args).env("CONFIG_SYNC_CONTROL", w.control()).stdin(Stdio::null());
        let output = command.output().expect("it was built");
        (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let set = run("set", &[odd, OsStr::new("1"), OsStr::new("--expect"), OsStr::new("0:0")]);
    assert_eq!(set.0, Some(0), "{}", set.2);
    w.ok(&["set", "b\u{fffd}", "22"]);
    assert_eq!(run("get", &[odd]).1, b"1");
    // In the order of their bytes.
    assert_eq!(w.ok(&["list"]), "2  b\u{fffd}\n1  $'b\\xff'\n");
    let listed = json(w.ok(&["list", "--json"]).trim());
    let hex: Vec<_> =
        listed["entries"].as_array().expect("a list").iter().map(|e| e["key_hex"].as_str()).collect();
    assert_eq!(hex, [None, Some("62ff")]);
    assert_eq!(run("list", &[odd]).1, b"1  $'b\\xff'\n");
    assert!(w.ok(&["history", "-n", "2", "--keys"]).contains("+ $'b\\xff'\n"));
    assert_eq!(run("delete", &[odd]).0, Some(0));
    assert_eq!(w.ok(&["list"]), "2  b\u{fffd}\n");
    let gone = run("get", &[odd]);
    assert!(gone.0 == Some(1) && gone.2.contains("no key $'b\\xff' in"), "{}", gone.2);
}
