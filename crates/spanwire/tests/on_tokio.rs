//! Sockets that a tokio runtime drives: whoever uses them, whatever ends, nothing is lost, and nobody is left waiting.
#![cfg(feature = "tokio")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use spanwire::{Error, Limit, Message, Pull, Push, RecvError, Rep, Req};
use tokio::runtime::{Builder, Runtime};

const GIVE_UP: Duration = Duration::from_secs(30);

fn one() -> Runtime {
    Builder::new_current_thread().enable_io().build().unwrap()
}

fn several() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_io().build().unwrap()
}

/// A pull socket that `runtime` drives, and a push socket that is attached to it.
fn pair(runtime: &Runtime, url: &str) -> (Pull, Push) {
    let pull = Pull::builder().recv_queue(Limit::messages(8)).build().unwrap();
    let bound = pull.bind(url).unwrap();
    let push = Push::builder().send_queue(Limit::messages(8)).build().unwrap();
    push.connect(bound.url()).unwrap();
    assert!(push.wait_for_peers(1, GIVE_UP) && pull.wait_for_peers(1, GIVE_UP));
    // Not before: a runtime of one thread stands still while this one waits.
    let _within = runtime.enter();
    pull.drive_on_tokio().unwrap();
    (pull, push)
}

fn number(message: &Message) -> u32 {
    u32::from_be_bytes(message.as_ref().try_into().unwrap())
}

fn urls() -> [String; 3] {
    let ipc = std::env::temp_dir().join(format!("spanwire-on-tokio-{}", std::process::id()));
    ["tcp://127.0.0.1:0".into(), format!("ipc://{}", ipc.display()), "inproc://on-tokio".into()]
}

#[test]
fn round_trips_and_streams_on_every_transport() {
    for runtime in [one(), several()] {
        for url in urls() {
            let rep = Rep::new().unwrap();
            let bound = rep.bind(&url).unwrap();
            let req = Req::new().unwrap();
            req.connect(bound.url()).unwrap();
            runtime.block_on(async {
                rep.drive_on_tokio().unwrap();
                req.drive_on_tokio().unwrap();
                req.drive_on_tokio().unwrap(); // changes nothing
                let serving = tokio::spawn(async move {
                    for _ in 0..500 {
                        let request = rep.recv_async().await.unwrap();
                        let answer = request.body().clone();
                        request.reply_async(answer).await.unwrap();
                    }
                    rep
                });
                for i in 0..500_u32 {
                    let reply = req.request_async(Message::from(&i.to_be_bytes()[..])).await.unwrap();
                    assert_eq!(number(&reply), i);
                }
                drop(serving.await.unwrap());
            });
            let (pull, push) = pair(&runtime, &url);
            runtime.block_on(async {
                let sending = tokio::spawn(async move {
                    push.drive_on_tokio().unwrap();
                    for i in 0..5_000_u32 {
                        push.send_async(Message::from(&i.to_be_bytes()[..])).await.unwrap();
                    }
                    push
                });
                for i in 0..5_000_u32 {
                    assert_eq!(number(&pull.recv_async().await.unwrap()), i);
                }
                drop(sending.await.unwrap());
            });
        }
    }
}

#[test]
fn a_dropped_future_takes_nothing_with_it() {
    let runtime = several();
    let (pull, push) = pair(&runtime, "tcp://127.0.0.1:0");
    let sender = std::thread::spawn(move || {
        for i in 0..3_000_u32 {
            push.send(Message::from(&i.to_be_bytes()[..])).unwrap();
        }
        push
    });
    runtime.block_on(async {
        let mut due = 0;
        while due < 3_000 {
            tokio::select! {
                biased;
                got = pull.recv_async() => {
                    assert_eq!(number(&got.unwrap()), due);
                    due += 1;
                }
                () = tokio::task::yield_now() => {}
            }
        }
    });
    drop(sender.join().unwrap());
}

/// The runtime goes in the midst of it, with a task that waits; a thread goes on where the task was, and in the end another
/// runtime. The socket is left to the driver in between.
#[test]
fn a_runtime_that_is_dropped_leaves_the_socket_to_the_driver() {
    for make in [one, several] {
        let runtime = make();
        let (pull, push) = pair(&runtime, "tcp://127.0.0.1:0");
        let waiting = pull.clone();
        let task = runtime.spawn(async move { waiting.recv_async().await });
        runtime.block_on(tokio::task::yield_now());
        drop(runtime);
        drop(task);
        push.send("to the driver").unwrap();
        // Nobody calls: the driver alone reads.
        let mut waits = 0;
        while !pull.readiness().recv {
            waits += 1;
            assert!(waits < 30_000, "nobody drives the socket: {pull:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(pull.recv().unwrap(), "to the driver");
        let again = make();
        again.block_on(async {
            pull.drive_on_tokio().unwrap();
            push.send("to the next").unwrap();
            assert_eq!(pull.recv_async().await.unwrap(), "to the next");
        });
    }
}

/// A task of a runtime that is gone is polled by another: its wakes come through the driver.
#[test]
fn a_task_elsewhere_is_woken_before_and_after_the_runtime_goes() {
    let (driving, other) = (several(), one());
    let (pull, push) = pair(&driving, "tcp://127.0.0.1:0");
    let arrived = Arc::new(AtomicU32::new(0));
    let (seen, theirs) = (arrived.clone(), pull.clone());
    let task = std::thread::spawn(move || {
        other.block_on(async {
            for i in 0..2_u32 {
                assert_eq!(number(&theirs.recv_async().await.unwrap()), i);
                seen.store(i + 1, Ordering::Release);
            }
        });
    });
    push.send(Message::from(&0_u32.to_be_bytes()[..])).unwrap();
    while arrived.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    drop(driving);
    push.send(Message::from(&1_u32.to_be_bytes()[..])).unwrap();
    task.join().unwrap();
}

#[test]
fn many_tasks_and_threads_share_one_socket() {
    const EACH: u32 = 4_000;
    for url in ["tcp://127.0.0.1:0", "inproc://on-tokio-shared"] {
        let runtime = several();
        let (pull, push) = pair(&runtime, url);
        let sum = Arc::new(AtomicU32::new(0));
        let count = Arc::new(AtomicU32::new(0));
        let take = |got: Result<Message, RecvError>, sum: &AtomicU32, count: &AtomicU32| match got {
            Ok(got) => {
                sum.fetch_add(number(&got), Ordering::Relaxed);
                count.fetch_add(1, Ordering::AcqRel);
                true
            }
            Err(why) => {
                assert!(why.is_closed(), "{why}");
                false
            }
        };
        let tasks: Vec<_> = (0..6)
            .map(|_| {
                let (pull, sum, count) = (pull.clone(), sum.clone(), count.clone());
                runtime.spawn(async move { while take(pull.recv_async().await, &sum, &count) {} })
            })
            .collect();
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (pull, sum, count) = (pull.clone(), sum.clone(), count.clone());
                std::thread::spawn(move || while take(pull.recv(), &sum, &count) {})
            })
            .collect();
        for i in 0..EACH {
            push.send(Message::from(&i.to_be_bytes()[..])).unwrap();
        }
        while count.load(Ordering::Acquire) < EACH {
            std::thread::yield_now();
        }
        // All of them wait now; the close tells each.
        pull.close(Duration::ZERO).unwrap();
        for thread in threads {
            thread.join().unwrap();
        }
        runtime.block_on(async {
            for task in tasks {
                task.await.unwrap();
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), (0..EACH).sum());
    }
}

/// What is queued leaves after the last handle is gone, though the runtime stands still.
#[test]
fn a_socket_that_is_dropped_lingers_on_the_driver() {
    let runtime = one();
    let (pull, push) = pair(&runtime, "tcp://127.0.0.1:0");
    runtime.block_on(async { push.drive_on_tokio().unwrap() });
    let sender = std::thread::spawn(move || {
        let mut sent = 0_u32;
        while push.try_send(Message::from(vec![0; 100_000])).is_ok() {
            sent += 1;
        }
        sent // and the socket goes with what is queued
    });
    let sent = sender.join().unwrap();
    for _ in 0..sent {
        assert_eq!(pull.recv_timeout(GIVE_UP).unwrap().len(), 100_000);
    }
}

/// A thousand sockets that come and go leave nothing in the runtime.
#[test]
fn tasks_end_with_their_sockets() {
    let runtime = one();
    runtime.block_on(async {
        for _ in 0..1_000 {
            let pull = Pull::new().unwrap();
            pull.drive_on_tokio().unwrap();
        }
        while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn where_it_cannot_be_it_is_an_error() {
    let pull = Pull::new().unwrap();
    assert!(matches!(pull.drive_on_tokio(), Err(Error::System(_))));
    let without_io = Builder::new_current_thread().build().unwrap();
    without_io.block_on(async { assert!(matches!(pull.drive_on_tokio(), Err(Error::System(_)))) });
    one().block_on(async {
        pull.close(Duration::ZERO).unwrap();
        assert!(matches!(pull.drive_on_tokio(), Err(Error::Closed)));
    });
}
