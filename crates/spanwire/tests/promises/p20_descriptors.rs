//! Out of descriptors is a pause, not an end.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use spanwire::{Event, Pull};

use crate::common::*;

const NAME: &str = "p20_descriptors::promise_20_out_of_descriptors_accepting_pauses_and_goes_on_by_itself";

fn cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one valid timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A server with 64 descriptors, told what to do line by line, by its standard input.
fn server() {
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: one valid rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let pull = Pull::new().unwrap();
    let events = pull.events();
    let endpoint = pull.bind(&std::env::var("SPANWIRE_PROMISE_URL").unwrap()).unwrap();
    let endpoint = endpoint.url().to_owned();
    println!("say url {endpoint}");
    event(&events, |e| matches!(e, Event::AcceptFailed { .. }).then_some(()));
    println!("say failed");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let began = (Instant::now(), cpu());
    // The condition is that nothing happens: there is nothing to await but time.
    std::thread::sleep(Duration::from_millis(1500));
    let (time, used) = (began.0.elapsed(), cpu() - began.1);
    println!("{used:?} of CPU in {time:?}");
    assert!(used * 20 < time, "{used:?} of CPU in {time:?}");
    let again = events.try_iter().filter(|e| matches!(e, Event::AcceptFailed { .. })).count();
    assert_eq!(again, 0, "told once, and not at each look");
    println!("say idle");
    assert_eq!(pull.recv_timeout(SOON).unwrap(), "alive");
    // Some fifty fit at a time: each time that they ran out anew is told, too.
    let anew = events.try_iter().filter(|e| matches!(e, Event::AcceptFailed { .. })).count();
    assert!(anew <= 15, "{anew} more events");
    println!("say alive");
}

#[test]
fn promise_20_out_of_descriptors_accepting_pauses_and_goes_on_by_itself() {
    if is_child() {
        return server();
    }
    assert!(descriptors() > 1200);
    for url in streams() {
        let mut child = command(NAME)
            .env("SPANWIRE_PROMISE_URL", &url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut say = |what: &str| {
            lines.by_ref().map_while(Result::ok).find_map(|line| {
                let at = line.find(&format!("say {what}"))?;
                Some(line[at..].trim_start_matches("say ").to_owned())
            })
        };
        let url = say("url").expect("it listens").trim_start_matches("url ").to_owned();
        let mut clients: Vec<_> = (0..500)
            .map(|_| {
                let mut client = dial(&url);
                client.write_all(&handshake(PUSH)).unwrap();
                client
            })
            .collect();
        say("failed").expect("it tells that it is out of descriptors");
        writeln!(child.stdin.as_mut().unwrap(), "idle?").unwrap();
        say("idle").expect("it uses next to no CPU meanwhile");
        // Descriptors are freed. The last of the clients is served in the end.
        let mut last = clients.pop().unwrap();
        let freed = Instant::now();
        drop(clients);
        last.write_all(&frame(is_ipc(&url), b"alive")).unwrap();
        say("alive").expect("it accepts again");
        println!(
            "{url}: the last of those that waited was served {:?} after the others left",
            freed.elapsed()
        );
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn promise_20_a_socket_that_cannot_be_made_for_want_of_descriptors_is_an_error() {
    if !alone("p20_descriptors::promise_20_a_socket_that_cannot_be_made_for_want_of_descriptors_is_an_error")
    {
        return;
    }
    let limit = libc::rlimit { rlim_cur: 40, rlim_max: 40 };
    // SAFETY: one valid rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let mut sockets = Vec::new();
    let error = loop {
        match Pull::new() {
            Ok(pull) => sockets.push(pull),
            Err(e) => break e,
        }
    };
    assert!(matches!(error, spanwire::Error::System(_)), "{error}");
    // Those that are there, and dialers among them, do not end; room again, and all goes on.
    let first = sockets.remove(0);
    let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    assert!(matches!(first.bind(&tcp()), Err(spanwire::Error::Bind { .. })), "not without a descriptor");
    drop((files, sockets));
    let at = eventually("room again", || first.bind(&tcp()).ok());
    let push = eventually("room again", || spanwire::Push::new().ok());
    push.connect(at.url()).unwrap();
    push.send("fine").unwrap();
    assert_eq!(first.recv_timeout(SOON).unwrap(), "fine");
}
