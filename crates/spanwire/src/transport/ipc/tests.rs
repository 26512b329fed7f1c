//! Real sockets in folders of their own, by hand.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::address::MAX_PATH;
use super::file::Lock;
use super::*;
use crate::transport::harness::{Loop, bag, refuses};
use crate::transport::sys;

fn place(dir: &tempfile::TempDir, name: &str) -> (PathBuf, String) {
    let path = dir.path().join(name);
    let url = format!("ipc://{}", path.display());
    (path, url)
}

fn bind(url: &str) -> io::Result<Box<dyn Listener>> {
    Ipc.listen(url, &Bag::default())
}

#[track_caller]
fn in_use(url: &str, text: &str) {
    let error = bind(url).err().expect("bound twice");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(text), "{error}");
}

/// What a killed process leaves.
fn leave_stale(path: &Path) {
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    assert!(path.exists());
}

fn names_in(dir: &tempfile::TempDir) -> Vec<OsString> {
    fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn bytes_go_both_ways_an_end_is_seen_and_nothing_stays_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (_, url) = place(&dir, "a");
    for url in [url.clone(), url.replace("ipc:", "unix:")] {
        let mut turn = Loop::new();
        let (mut a, mut b) = turn.connect(&Ipc, &url, &Bag::default());
        assert_eq!((&a.facts.remote, &b.facts.local), (&url, &url));
        turn.carries(&mut a, &mut b, "there");
        turn.carries(&mut b, &mut a, "and back");
        assert!(a.writer.shutdown().unwrap());
        turn.ends(&mut b);
        turn.carries(&mut b, &mut a, "still open");
    }
    assert!(names_in(&dir).is_empty());
}

#[test]
fn room_is_told_to_whoever_waits_for_it_and_not_with_each_read() {
    let dir = tempfile::tempdir().unwrap();
    let (_, url) = place(&dir, "room");
    let mut turn = Loop::new();
    let (mut a, mut b) = turn.connect(&Ipc, &url, &Bag::default());
    turn.carries(&mut a, &mut b, "a greeting");
    turn.carries(&mut b, &mut a, "another");
    turn.told_of_room();
    for _ in 0..10 {
        turn.carries(&mut a, &mut b, "hello");
        assert_eq!(turn.told_of_room(), 0, "nobody waits");
    }
    // Until it is full, in one write or in many; then all of it is read.
    for (piece, is_left) in [(1 << 20, true), (1000, false)] {
        let piece = vec![7; piece];
        let full =
            std::iter::repeat_with(|| a.writer.write(&piece)).find_map(Result::err).expect("it is bounded");
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(turn.told_of_room(), 0, "it is full");
        while b.reader.read(&mut [0; 4096]).is_ok() {}
        assert_eq!(turn.told_of_room(), 1);
        // Who still has more than there is room for waits on.
        let first = a.writer.write(&piece).expect("there is room");
        assert_eq!((first < piece.len(), a.writer.write(&piece).is_err()), (is_left, is_left));
        while b.reader.read(&mut [0; 4096]).is_ok() {}
        assert_eq!(turn.told_of_room(), usize::from(is_left));
        // And nobody is told when all has left.
        turn.carries(&mut a, &mut b, "the rest");
        turn.told_of_room();
        turn.carries(&mut a, &mut b, "more");
        assert_eq!(turn.told_of_room(), 0, "nobody waits");
    }
}

#[test]
fn a_stale_file_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (path, url) = place(&dir, "stale");
    leave_stale(&path);
    let mut turn = Loop::new();
    let (mut a, mut b) = turn.connect(&Ipc, &url, &Bag::default());
    turn.carries(&mut a, &mut b, "alive");
}

#[test]
fn a_second_listener_is_refused_and_does_the_first_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let (path, url) = place(&dir, "live");
    let mut turn = Loop::new();
    let mut first = bind(&url).unwrap();
    turn.register(|r| first.register(r));
    in_use(&url, "somebody listens");
    assert!(path.exists());
    // The probe of the second one is a connection that comes and goes.
    drop(turn.accept(&mut *first));
    let dialer = Ipc.dialer(&url, &Bag::default()).unwrap();
    let (mut a, mut b) = turn.meet(&*dialer, &mut *first);
    turn.carries(&mut a, &mut b, "unharmed");
    drop(first);
    bind(&url).unwrap();
}

#[test]
fn a_listener_whose_backlog_is_full_is_alive_and_a_connect_to_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (path, url) = place(&dir, "full");
    let _listener = Ipc.listen(&url, &bag(IpcOptions::default().backlog(1))).unwrap();
    let dialer = Ipc.dialer(&url, &Bag::default()).unwrap();
    let mut waiting = Vec::new();
    let error = loop {
        match dialer.dial(None) {
            Ok(connection) => waiting.push(connection),
            Err(error) => break error,
        }
        assert!(waiting.len() < 100, "a backlog of one never fills");
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    in_use(&url, "somebody listens");
    assert!(path.exists());
}

#[test]
fn of_many_binders_that_find_a_stale_file_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let (path, url) = place(&dir, &format!("race{round}"));
        leave_stale(&path);
        let start = std::sync::Barrier::new(4);
        let bound: Vec<_> = std::thread::scope(|scope| {
            let binder = || {
                start.wait();
                bind(&url)
            };
            let binders: Vec<_> = (0..4).map(|_| scope.spawn(binder)).collect();
            binders.into_iter().map(|b| b.join().unwrap()).collect()
        });
        let errors: Vec<_> = bound.iter().filter_map(|b| b.as_ref().err()).collect();
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors.iter().all(|e| e.kind() == io::ErrorKind::AddrInUse), "{errors:?}");
        // And the winner is reached.
        let mut winner = bound.into_iter().find_map(Result::ok).unwrap();
        let mut turn = Loop::new();
        turn.register(|r| winner.register(r));
        let dialer = Ipc.dialer(&url, &Bag::default()).unwrap();
        let _dialled = dialer.dial(None).unwrap();
        turn.accept(&mut *winner);
    }
    assert!(names_in(&dir).is_empty());
}

#[test]
fn what_is_no_socket_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, file_url) = place(&dir, "file");
    fs::write(&file, "precious").unwrap();
    in_use(&file_url, "not a socket");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let (folder, folder_url) = place(&dir, "folder");
    fs::create_dir(&folder).unwrap();
    in_use(&folder_url, "not a socket");
    let (target, _) = place(&dir, "target");
    leave_stale(&target);
    let (link, link_url) = place(&dir, "link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    in_use(&link_url, "not a socket");
    assert!(folder.is_dir() && target.exists() && link.is_symlink());
}

#[test]
fn a_path_that_another_is_binding_is_in_use_and_a_lock_left_behind_is_not_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let (path, url) = place(&dir, "locked");
    let lock = Lock::take(&path).unwrap();
    in_use(&url, "being bound");
    drop(lock);
    fs::write(dir.path().join(".locked.spanwire-bind"), "").unwrap();
    let listener = bind(&url).unwrap();
    assert_eq!(names_in(&dir), ["locked"]);
    drop(listener);
}

#[test]
fn a_file_that_is_not_our_lock_is_neither_removed_nor_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let (_, url) = place(&dir, "x");
    // The customary name of an application's own lock or pid file.
    let own = dir.path().join("x.lock");
    fs::write(&own, "precious").unwrap();
    let held = File::open(&own).unwrap();
    sys::try_lock(&held).unwrap();
    drop(bind(&url).unwrap());
    assert_eq!(fs::read_to_string(&own).unwrap(), "precious");
    // Whoever took our name for something else is told, and keeps it.
    let odd = dir.path().join(".x.spanwire-bind");
    fs::write(&odd, "precious").unwrap();
    in_use(&url, ".x.spanwire-bind");
    assert_eq!(fs::read_to_string(&odd).unwrap(), "precious");
}

#[test]
fn a_listener_removes_its_own_file_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (path, url) = place(&dir, "own");
    let listener = bind(&url).unwrap();
    fs::rename(&path, dir.path().join("moved")).unwrap();
    let other = bind(&url).unwrap();
    drop(listener);
    assert!(path.exists(), "the other's file must stay");
    drop(other);
    assert!(!path.exists());
}

#[test]
fn the_mode_is_as_asked_for_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [0o600, 0o666, 0o777] {
        let (path, url) = place(&dir, &format!("mode{mode:o}"));
        let _listener = Ipc.listen(&url, &bag(IpcOptions::default().mode(Some(mode)))).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
    }
}

#[test]
fn a_path_as_long_as_fits_works() {
    let dir = tempfile::tempdir().unwrap();
    let room = MAX_PATH - dir.path().as_os_str().len() - 1;
    let (_, url) = place(&dir, &"p".repeat(room));
    let mut turn = Loop::new();
    let (mut a, mut b) = turn.connect(&Ipc, &url, &Bag::default());
    turn.carries(&mut a, &mut b, "long");
}

#[cfg(target_os = "linux")]
#[test]
fn abstract_names_work_with_any_bytes_and_without_a_name() {
    let own = std::process::id();
    for url in [format!("abstract://spanwire-{own}"), format!("abstract://%00%ff%20/spanwire-{own}%25")] {
        let mut turn = Loop::new();
        let listener = bind(&url).unwrap();
        assert_eq!(listener.url().to_lowercase(), url);
        let second = bind(&url).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        let (mut a, mut b) = turn.connect(&Ipc, &url, &Bag::default());
        turn.carries(&mut a, &mut b, "no file");
    }
    let mut turn = Loop::new();
    let (mut a, mut b) = turn.connect(&Ipc, "abstract://", &Bag::default());
    assert_ne!(a.facts.remote, "abstract://", "the kernel chose a name");
    turn.carries(&mut a, &mut b, "any name");
    let longest = format!("abstract://{:x<MAX_PATH$}", own);
    turn.connect(&Ipc, &longest, &Bag::default());
}

#[cfg(target_os = "linux")]
#[test]
fn both_ends_know_the_process_the_user_and_the_group_of_the_peer() {
    let dir = tempfile::tempdir().unwrap();
    let (path, url) = place(&dir, "who");
    let mut turn = Loop::new();
    let mut listener = bind(&url).unwrap();
    turn.register(|r| listener.register(r));
    let made = fs::symlink_metadata(&path).unwrap();
    let dialer = Ipc.dialer(&url, &Bag::default()).unwrap();
    let (a, b) = turn.meet(&*dialer, &mut *listener);
    let us = Credentials { pid: Some(std::process::id()), uid: made.uid(), gid: made.gid() };
    assert_eq!(a.facts.more.get(), Some(&us));
    assert_eq!(b.facts.more.get(), Some(&us));
}

#[test]
fn buffer_sizes_are_in_force() {
    let options = IpcOptions::default().send_buffer(Some(40_000)).recv_buffer(Some(50_000));
    let socket = options.socket().unwrap();
    assert!([40_000, 80_000].contains(&socket.send_buffer_size().unwrap()));
    assert!([50_000, 100_000].contains(&socket.recv_buffer_size().unwrap()));
    assert!(socket.nonblocking().unwrap());
}

#[test]
fn buffer_sizes_are_in_force_at_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (_, url) = place(&dir, "buffers");
    let taken = |options: IpcOptions| {
        let (mut a, mut b) = Loop::new().connect(&Ipc, &url, &bag(options));
        [&mut a, &mut b].map(|end| {
            let mut all = 0;
            loop {
                match end.writer.write(&[0; 1000]) {
                    Ok(n) => all += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return all,
                    Err(e) => panic!("{e}"),
                }
            }
        })
    };
    let (small, large) = (IpcOptions::default().send_buffer(Some(8 << 10)), IpcOptions::default());
    let (small, large) = (taken(small), taken(large));
    assert_eq!(small[0], small[1]);
    assert_eq!(large[0], large[1]);
    assert!(2 * small[0] < large[0], "{small:?} {large:?}");
}

#[test]
fn a_bad_address_or_option_is_refused_in_words() {
    let long = format!("ipc://{}", "p".repeat(MAX_PATH + 1));
    let long_name = format!("abstract://{}", "n".repeat(MAX_PATH + 1));
    let mut bad = vec![
        ("ipc://", "no path"),
        ("unix://", "no path"),
        ("ipc://a\0b", "NUL"),
        (long.as_str(), "at most"),
        ("abstract://%", "two hexadecimal digits"),
        ("abstract://a%4", "two hexadecimal digits"),
        ("abstract://%zz", "two hexadecimal digits"),
    ];
    if ABSTRACT {
        bad.push((long_name.as_str(), "at most"));
    }
    for (url, text) in bad {
        refuses(Ipc.listen(url, &Bag::default()), url, text);
        refuses(Ipc.dialer(url, &Bag::default()), url, text);
    }
    if ABSTRACT {
        refuses(Ipc.dialer("abstract://", &Bag::default()), "abstract://", "no name to connect to");
    }
    for (options, text) in [
        (IpcOptions::default().mode(Some(0o1777)), "permission bits"),
        (IpcOptions::default().backlog(0), "backlog"),
        (IpcOptions::default().send_buffer(Some(0)), "buffer sizes"),
    ] {
        let error = Ipc.listen("ipc://x", &bag(options)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn a_connect_to_nothing_fails_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (path, url) = place(&dir, "nothing");
    let dialer = Ipc.dialer(&url, &Bag::default()).unwrap();
    assert_eq!(dialer.dial(None).unwrap_err().kind(), io::ErrorKind::NotFound);
    leave_stale(&path);
    assert_eq!(dialer.dial(None).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}
