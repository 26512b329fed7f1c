//! The command itself: against itself, against nanocat, and at its ends.
//!
//! nanocat comes with `cargo xtask peers`; without it the tests that need it fail.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Only a failure takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every kind of byte that a format treats in its own way.
const BODY: &[u8] = b"a b\xff\"\\\n\r~\x7f\x01";

/// A started program: killed when dropped, its output gathered meanwhile.
struct Running {
    child: Child,
    name: String,
    out: Receiver<Vec<u8>>,
    err: Receiver<String>,
}

impl Running {
    fn start(program: &str, args: &[&str]) -> Running {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = format!("{program} {}", args.join(" "));
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) => panic!("failed to start {name}: {e}; install the peers with `cargo xtask peers`"),
        };
        let (send_out, out) = channel();
        let mut from = child.stdout.take().expect("it was piped");
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                let _ = send_out.send(chunk[..n].to_vec());
            }
        });
        let (send_err, err) = channel();
        let from = BufReader::new(child.stderr.take().expect("it was piped"));
        std::thread::spawn(move || {
            from.lines().map_while(Result::ok).try_for_each(|line| send_err.send(line))
        });
        Running { child, name, out, err }
    }

    /// Waits for a line of the error output that begins like this, and gives the rest.
    #[track_caller]
    fn says(&self, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut before = Vec::new();
        while let Ok(line) = self.err.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            match line.strip_prefix(start) {
                Some(rest) => return rest.to_owned(),
                None => before.push(line),
            }
        }
        panic!("{} did not say {start:?}, but {before:?}", self.name)
    }

    /// Waits until this much has been printed.
    #[track_caller]
    fn prints(&self, expected: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        let mut got = Vec::new();
        while got.len() < expected.len() {
            match self.out.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => got.extend(chunk),
                Err(_) => break,
            }
        }
        assert_eq!(got.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{}", self.name);
    }

    /// Waits for the end; gives the exit code and the output that was not yet looked at.
    #[track_caller]
    fn ends(mut self) -> (i32, Vec<u8>, Vec<String>) {
        let deadline = Instant::now() + PATIENCE;
        // Its outputs end when it does: no need to ask again and again.
        let left = || deadline.saturating_duration_since(Instant::now());
        let out: Vec<u8> = std::iter::from_fn(|| self.out.recv_timeout(left()).ok()).flatten().collect();
        let err: Vec<String> = std::iter::from_fn(|| self.err.recv_timeout(left()).ok()).collect();
        assert!(!left().is_zero(), "{} does not end; it printed {err:?}", self.name);
        let status = self.child.wait().expect("it was started by us");
        (status.code().expect("it ended by itself"), out, err)
    }

    #[track_caller]
    fn ends_well(self) -> Vec<u8> {
        let name = self.name.clone();
        let (code, out, err) = self.ends();
        assert_eq!(code, 0, "{name}: {err:?}");
        out
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spanwire(line: &str) -> Running {
    Running::start(env!("CARGO_BIN_EXE_spanwire"), &line.split(' ').collect::<Vec<_>>())
}

/// Bound at a free port, and where.
fn bound(line: &str) -> (Running, String) {
    let running = spanwire(&format!("{line} --bind tcp://127.0.0.1:0 --events"));
    let url = running.says("listening at ");
    (running, url)
}

fn nanocat(line: &str) -> Running {
    Running::start("nanocat", &line.split(' ').collect::<Vec<_>>())
}

/// Runs to its end with this on the standard input.
fn fed(args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanwire"));
    let piped = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the command was built");
    child.stdin.take().expect("it was piped").write_all(input).expect("it reads its input");
    child.wait_with_output().expect("it was started by us")
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Files(tempfile::tempdir().expect("a temporary folder can be made"))
    }

    fn file(&self, name: &str, body: &[u8]) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, body).expect("the temporary folder is writable");
        path.to_str().expect("its name is text").to_owned()
    }
}

#[test]
fn pushed_messages_are_printed_by_pull_in_every_format() {
    let files = Files::new();
    let body = files.file("body", BODY);
    let raw = [BODY, BODY].concat();
    let formats: [(&str, &[u8]); 4] = [
        ("--raw", &raw),
        ("--ascii", b"a b.\"\\..~..\na b.\"\\..~..\n"),
        ("-Q", b"\"a b\\xff\\\"\\\\\\n\\r~\\x7f\\x01\"\n\"a b\\xff\\\"\\\\\\n\\r~\\x7f\\x01\"\n"),
        ("--format hex", b"\"\\x61\\x20\\x62\\xff\\x22\\x5c\\x0a\\x0d\\x7e\\x7f\\x01\"\n\"\\x61\\x20\\x62\\xff\\x22\\x5c\\x0a\\x0d\\x7e\\x7f\\x01\"\n"),
    ];
    for (format, expected) in formats {
        let (pull, url) = bound(&format!("pull --count 2 {format}"));
        assert_eq!(spanwire(&format!("push --connect {url} --file {body} --count 2")).ends_well(), b"");
        let out = pull.ends_well();
        assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{format}");
    }
}

#[test]
fn every_format_looks_as_with_nanocat() {
    let files = Files::new();
    let body = files.file("body", BODY);
    for format in ["--raw", "--ascii", "--quoted", "--hex"] {
        let url = format!("ipc://{}/{format}", files.0.path().display());
        let (ours, at) = bound(&format!("pull --count 1 {format}"));
        spanwire(&format!("push --connect {at} --file {body}")).ends_well();
        let theirs = nanocat(&format!("--pull --bind {url} {format}"));
        // It must not leave before nanocat has printed: nanomsg drops what it received from a peer over ipc that
        // is gone before the application takes it.
        let push = spanwire(&format!("push --connect {url} --file {body} --interval 1000"));
        theirs.prints(&ours.ends_well());
        push.signal("-INT");
        push.ends_well();
    }
}

#[test]
fn pub_waits_for_its_peers_and_sub_prints_what_it_subscribed_to() {
    let (sub, url) = bound("sub --subscribe no --subscribe top --count 1 -A");
    let other = spanwire(&format!("pub --connect {url} --data other --peers 1 --send-timeout 20"));
    other.ends_well();
    spanwire(&format!("pub --connect {url} --data topic --peers 1")).ends_well();
    assert_eq!(sub.ends_well(), b"topic\n");
}

#[test]
fn req_prints_its_reply_and_rep_the_request() {
    let (rep, url) = bound("rep --data pong --count 2 -A");
    assert_eq!(spanwire(&format!("req --connect {url} --data ping -A")).ends_well(), b"pong\n");
    assert_eq!(spanwire(&format!("req --connect {url} --data -1 -A")).ends_well(), b"pong\n");
    assert_eq!(rep.ends_well(), b"ping\n-1\n");
}

#[test]
fn rep_without_data_prints_and_does_not_answer() {
    let (rep, url) = bound("rep -A --count 1");
    let (code, out, err) = spanwire(&format!("req --connect {url} --data ping --recv-timeout 0.2")).ends();
    assert_eq!((code, out.as_slice()), (3, &b""[..]), "{err:?}");
    assert_eq!(rep.ends_well(), b"ping\n");
}

#[test]
fn pair_sends_at_the_interval_and_prints_what_comes() {
    let (one, url) = bound("pair --data ping --interval 0.05 -A");
    let other = spanwire(&format!("pair --connect {url} --data pong --interval 0.05 --count 3 -A"));
    assert_eq!(other.ends_well(), b"ping\nping\nping\n");
    one.prints(b"pong\n");
    one.signal("-INT");
    one.ends_well();
}

#[test]
fn pair_with_count_0_ends_once_its_data_is_sent() {
    let (one, url) = bound("pair --count 1 -A");
    spanwire(&format!("pair --connect {url} --data hello --count 0")).ends_well();
    assert_eq!(one.ends_well(), b"hello\n");
}

#[test]
fn addresses_of_both_kinds_are_used_at_once() {
    let files = Files::new();
    let path = files.0.path().join("s");
    let (first, url) = bound("pull --count 1 -A");
    let both =
        spanwire(&format!("push --connect {url} --bind-ipc {} --data x --peers 2 --count 2", path.display()));
    let second = spanwire(&format!("pull --connect-ipc {} --count 1 -A", path.display()));
    both.ends_well();
    assert_eq!((first.ends_well(), second.ends_well()), (b"x\n".to_vec(), b"x\n".to_vec()));
}

#[test]
fn data_comes_from_the_standard_input() {
    let (pull, url) = bound("pull --count 1");
    let out = fed(&["push", "--connect", &url, "--file", "-"], BODY);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(pull.ends_well(), BODY);
}

#[test]
fn nanocat_and_this_talk_in_every_pattern() {
    let (pull, url) = bound("pull --count 1 -A");
    nanocat(&format!("--push --connect {url} --data hello")).ends_well();
    assert_eq!(pull.ends_well(), b"hello\n");

    let (rep, url) = bound("rep --data pong --count 1 -A");
    assert_eq!(nanocat(&format!("--req --connect {url} --data ping -A")).ends_well(), b"pong\n");
    assert_eq!(rep.ends_well(), b"ping\n");

    let (req, url) = bound("req --data ping -A");
    let theirs = nanocat(&format!("--rep --connect {url} --data pong -A"));
    assert_eq!(req.ends_well(), b"pong\n");
    theirs.prints(b"ping\n");

    let (sub, url) = bound("sub --subscribe top --count 2 -A");
    let _theirs = nanocat(&format!("--pub --connect {url} --data topic --interval 0.05"));
    assert_eq!(sub.ends_well(), b"topic\ntopic\n");

    let (publisher, url) = bound("pub --data topic --interval 0.05");
    let theirs = nanocat(&format!("--sub --connect {url} --subscribe top -A"));
    theirs.prints(b"topic\ntopic\n");
    publisher.signal("-TERM");
    publisher.ends_well();

    let (pair, url) = bound("pair --data ping --count 1 -A");
    let theirs = nanocat(&format!("--pair --connect {url} --data pong -A"));
    assert_eq!(pair.ends_well(), b"pong\n");
    theirs.prints(b"ping\n");
}

#[test]
fn wrong_usage_is_2_and_says_why_on_the_error_output() {
    for (line, why) in [
        ("pull", "--bind"),
        ("push --bind tcp://127.0.0.1:0", "--data"),
        ("pull --bind tcp://127.0.0.1:0 --subscribe x", "--subscribe"),
        ("pair --bind tcp://127.0.0.1:0 --interval 1", "--data"),
        ("pull --bind tcp://127.0.0.1:0 --recv-timeout soon", "seconds"),
    ] {
        let (code, out, err) = spanwire(line).ends();
        assert_eq!((code, out.as_slice()), (2, &b""[..]), "{line}");
        assert!(err.join("\n").contains(why), "{line}: {err:?}");
    }
}

#[test]
fn an_error_is_1_and_names_its_address_or_file() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = format!("tcp://{}", holder.local_addr().expect("it is bound"));
    for (line, named) in [
        (format!("pull --bind {taken}"), taken.as_str()),
        ("push --connect tcp://127.0.0.1:1 --file /no/such/file".into(), "/no/such/file"),
    ] {
        let (code, out, err) = spanwire(&line).ends();
        assert_eq!((code, out.as_slice()), (1, &b""[..]), "{line}");
        assert!(err.join("\n").contains(named), "{line}: {err:?}");
    }
}

#[test]
fn a_timeout_is_3_in_either_direction() {
    let (code, _, err) = spanwire("pull --bind tcp://127.0.0.1:0 --recv-timeout 0.05").ends();
    assert_eq!(code, 3, "{err:?}");
    for line in ["push --data x", "push --data x --peers 1", "req --data x", "pair --data x"] {
        let (code, _, err) = spanwire(&format!("{line} --bind tcp://127.0.0.1:0 --send-timeout 0.05")).ends();
        assert_eq!(code, 3, "{line}: {err:?}");
    }
}

#[test]
fn what_a_peer_did_not_take_within_the_linger_is_4() {
    let files = Files::new();
    let large = files.file("large", &vec![7; 64 << 20]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    // A pull peer that says hello and then never reads.
    let accepting = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("it connects");
        stream.write_all(b"\0SP\0\0\x51\0\0").expect("it is there");
        stream
    });
    let push = spanwire(&format!("push -l {port} --file {large} --linger 0.2"));
    let _kept = accepting.join().expect("it connected");
    let (code, _, err) = push.ends();
    assert_eq!(code, 4, "{err:?}");
    assert!(err.join("\n").contains("1 message undelivered"), "{err:?}");
}

#[test]
fn a_signal_while_a_send_waits_tells_what_is_undelivered() {
    let files = Files::new();
    let body = files.file("body", &vec![7; 100_000]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let push = spanwire(&format!("push -l {port} --file {body} --count 100000 --linger 0.2"));
    // A pull peer that says hello and then never reads.
    let (mut stream, _) = listener.accept().expect("it connects");
    stream.write_all(b"\0SP\0\0\x51\0\0").expect("it is there");
    // What the system holds for it rises until nothing more fits; of that it tells nobody, so it is looked at again.
    let (mut there, mut looks, mut seen) = (0, 0, vec![0; 64 << 20]);
    while looks < 20 {
        std::thread::sleep(Duration::from_millis(10));
        let now = stream.peek(&mut seen).expect("it is there");
        (there, looks) = if now > 8 && now == there { (there, looks + 1) } else { (now, 0) };
    }
    push.signal("-INT");
    let (code, _, err) = push.ends();
    assert_eq!(code, 4, "{err:?}");
    assert!(err.join("\n").contains("messages undelivered"), "{err:?}");
}

#[test]
fn pair_sends_at_its_interval_to_a_peer_that_never_pauses() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanwire"));
    let args = ["pair", "-l", &port, "--data", "ping", "--interval", "0.05", "--raw"];
    let mut pair = command.args(args).stdout(Stdio::piped()).spawn().expect("the command was built");
    let (mut stream, _) = listener.accept().expect("it connects");
    stream.write_all(b"\0SP\0\0\x10\0\0").expect("it is there");
    // It sends more than is read of the output, so there is always something to take.
    let mut sends = stream.try_clone().expect("a descriptor");
    let flood = std::thread::spawn(move || {
        let message = [&4096_u64.to_be_bytes()[..], &[b'.'; 4096]].concat();
        while sends.write_all(&message).is_ok() {}
    });
    let mut out = pair.stdout.take().expect("it was piped");
    let reader = std::thread::spawn(move || {
        while out.read_exact(&mut [0; 4096]).is_ok() {
            // The pace is the test's: slower than what comes in.
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    // Its hello, and three messages.
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    let mut heard = [0; 8 + 3 * 12];
    let all = stream.read_exact(&mut heard);
    pair.kill().and_then(|()| pair.wait()).expect("it was started by us");
    flood.join().and_then(|()| reader.join()).expect("they end with it");
    all.expect("it sends again and again");
    assert!(heard.ends_with(b"\0\0\0\0\0\0\0\x04ping"), "{heard:?}");
}

#[test]
fn times_that_no_clock_can_tell_are_for_ever() {
    let (one, url) = bound("pair --data ping --interval 1e19 --recv-timeout 1e19 --count 1 -A");
    let other = spanwire(&format!("pair --connect {url} --data pong --count 1 -A"));
    assert_eq!((one.ends_well(), other.ends_well()), (b"pong\n".to_vec(), b"ping\n".to_vec()));
}

#[test]
fn a_signal_ends_it_in_order_and_is_a_failure_only_if_something_was_left_to_do() {
    for signal in ["-INT", "-TERM"] {
        let (endless, _) = bound("pull");
        endless.signal(signal);
        endless.ends_well();
        let (counting, _) = bound("pull --count 1");
        counting.signal(signal);
        assert_eq!(counting.ends().0, 130);
    }
    let delayed = spanwire("push --bind tcp://127.0.0.1:0 --data x --delay 1000 --events");
    delayed.says("listening at ");
    delayed.signal("-INT");
    assert_eq!(delayed.ends().0, 130);
}

#[test]
fn a_closed_output_ends_it_without_a_word() {
    for (count, expected) in [("", 0), (" --count 100", 1)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanwire"));
        let args = format!("pull --bind tcp://127.0.0.1:0 --events{count}");
        let piped = command.args(args.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("the command was built");
        drop(child.stdout.take());
        let mut lines =
            BufReader::new(child.stderr.take().expect("it was piped")).lines().map_while(Result::ok);
        let url = lines.next().and_then(|line| line.strip_prefix("listening at ").map(str::to_owned));
        let push = spanwire(&format!("push --connect {} --data x --interval 0.05", url.expect("it listens")));
        let said: Vec<_> = lines.filter(|line| line.starts_with("spanwire:")).collect();
        assert_eq!(child.wait().expect("it was started by us").code(), Some(expected));
        assert!(said.is_empty(), "{said:?}");
        drop(push);
    }
}

#[test]
fn what_did_not_happen_in_time_says_where_and_why() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for line in [
        "push --data x --send-timeout 0.3",
        "pull --recv-timeout 0.3",
        "req --data x --recv-timeout 0.3",
        "req --data x --send-timeout 0.3",
    ] {
        let (code, out, err) = spanwire(&format!("{line} --connect tcp://{nobody}")).ends();
        assert_eq!((code, out.len(), err.len()), (3, 0, 1), "{line}: {err:?}");
        assert!(err[0].contains(&format!("; tcp://{nobody}: Connection refused")), "{line}: {err:?}");
    }
    let (server, url) = bound("pull");
    let (code, _, err) = spanwire(&format!("sub --recv-timeout 1 --connect {url}")).ends();
    assert_eq!((code, err.len()), (3, 1), "{err:?}");
    assert!(err[0].contains("pull (SP id 0x51) where pub (SP id 0x20) was expected"), "{err:?}");
    drop(server);
}

#[test]
fn who_sends_to_nobody_without_a_limit_is_told_and_an_address_that_cannot_be_one_is_wrong_usage() {
    let place = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for line in ["push --data x", "req --data x", "pair --data x --count 0"] {
        let alone = spanwire(&format!("{line} --connect tcp://{place}"));
        let why = alone.says("spanwire: no peer yet, waiting for one; ");
        assert!(why.starts_with(&format!("tcp://{place}: Connection refused")), "{line}: {why}");
    }
    for url in ["bogus", "foo://x", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "ipc://"] {
        for way in ["--bind", "--connect"] {
            let (code, _, err) = spanwire(&format!("push --data x {way} {url}")).ends();
            assert_eq!((code, err.len()), (2, 1), "{way} {url}: {err:?}");
            assert!(err[0].contains(url), "{way} {url}: {err:?}");
        }
    }
}

#[test]
fn events_tell_of_peers_and_leave_the_standard_output_alone() {
    let (pull, url) = bound("pull --count 1 -A");
    spanwire(&format!("push --connect {url} --data x")).ends_well();
    pull.says("peer ");
    assert_eq!(pull.ends_well(), b"x\n");
}
